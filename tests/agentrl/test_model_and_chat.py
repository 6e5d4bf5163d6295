from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.config import Config, ModelConfig, TinyModelConfig
from agentrl.errors import UserError
from agentrl.model import build_tiny_model, build_tokenizer, load_model, set_threads, stop_token_ids
from agentrl.rollout.chat import Chat, PastTurn, window_prompt

CORPUS = ["You arrive at cabinet 13. On the cabinet 13, you see a mug 2, and a pan 1."] * 5
TOKENIZER = build_tokenizer(CORPUS)
# The template of Qwen2.5 and of Qwen3's instruct models in its essentials.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatml_tokenizer(template: str = CHATML):  # type: ignore[no-untyped-def]
    tokenizer = build_tokenizer([*CORPUS, "user assistant system\n"] * 3)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = template
    return tokenizer


@given(st.text(max_size=60))
def test_tokenizer_of_any_text_round_trips(text: str) -> None:
    backend = TOKENIZER.backend_tokenizer
    ids = backend.encode(text, add_special_tokens=False).ids
    assert backend.decode(ids, skip_special_tokens=False) == text


def test_tokenizer_keeps_an_entity_name_in_one_token() -> None:
    ids = TOKENIZER.encode(" cabinet 13", add_special_tokens=False)
    assert len(ids) == 1
    separate = build_tokenizer(CORPUS, entity_names=False)
    assert [separate.decode([i]) for i in separate.encode(" cabinet 13")] == [" cabinet", " 1", "3"]


def test_tokenizer_of_a_rare_word_falls_back_to_bytes() -> None:
    assert len(TOKENIZER.encode("zebra", add_special_tokens=False)) == 5


def test_tiny_model_gives_entities_of_one_class_related_embeddings() -> None:
    tokenizer = build_tokenizer(["a cabinet 1, a cabinet 2, a drawer 1, a drawer 2"] * 5)
    module = build_tiny_model(TinyModelConfig(), tokenizer)
    e = {name: module.model.embed_tokens.weight[tokenizer.encode(name)[0]] for name in
         (" cabinet 1", " cabinet 2", " drawer 1", " drawer 2")}  # fmt: skip
    # class + number: cabinet 1 - cabinet 2 = drawer 1 - drawer 2
    torch.testing.assert_close(e[" cabinet 1"] - e[" cabinet 2"], e[" drawer 1"] - e[" drawer 2"])


def test_load_model_saved_in_hugging_face_format_gives_the_same_weights(tmp_path: Path) -> None:
    module, tokenizer = load_model(ModelConfig(), texts=CORPUS, seed=3)
    module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, other = load_model(ModelConfig(path=str(tmp_path)))
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert other.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])
    assert stop_token_ids(other, again) == stop_token_ids(tokenizer, module) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("path", ["/no/such/folder", "surely-no-such-model-name"])
def test_load_model_of_a_missing_model_says_so_in_one_line(path: str) -> None:
    with pytest.raises(UserError, match=r"model\.path") as caught:
        load_model(ModelConfig(path=path))
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=4), st.booleans())
def test_chat_grown_turn_by_turn_equals_the_template_of_the_whole(turns: list[tuple[str, str]], chatml: bool) -> None:
    tokenizer = chatml_tokenizer() if chatml else TOKENIZER
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    ids = chat.open("first", system="be brief")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "first"}]
    for answer, observation in turns:
        ids += chat.answer_ids(answer)
        ids += chat.follow(ids, observation)
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": observation}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == whole


def test_chat_follow_after_a_cut_answer_adds_the_missing_end_of_turn() -> None:
    tokenizer = chatml_tokenizer()
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    cut = chat.follow([5, 6], "hello")
    ended = chat.follow([5, 6, tokenizer.eos_token_id], "hello")
    assert cut == [tokenizer.eos_token_id, *ended]


def test_chat_decode_answer_leaves_out_the_end_of_turn_only() -> None:
    chat = Chat(TOKENIZER, stop_ids=[TOKENIZER.eos_token_id])
    assert chat.decode_answer(chat.answer_ids(" cabinet 13 ")) == " cabinet 13 "


def test_chat_with_a_template_that_drops_past_thoughts_is_refused_for_growing_rows() -> None:
    forgetful = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
        "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = chatml_tokenizer(forgetful)
    with pytest.raises(UserError, match="drops past <think> blocks"):
        Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    Chat(tokenizer, stop_ids=[tokenizer.eos_token_id], growing=False)


def test_window_prompt_shows_the_last_turns_with_their_numbers() -> None:
    past = [PastTurn("a shelf", "look"), PastTurn("a box", "open box")]
    text = window_prompt("an apple", past, task="Find fruit.", num_turns=3)
    assert text.startswith("Find fruit.\n\nYou have taken 3 step(s).")
    assert "[Observation 2: 'a shelf', Action 2: 'look']\n[Observation 3: 'a box', Action 3: 'open box']" in text
    assert text.endswith("You are now at step 4 and your current observation is: an apple")
    assert window_prompt("Find fruit.", [], task="Find fruit.", num_turns=0) == "Find fruit."


def test_set_threads_when_the_model_is_small_then_one_thread(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    (tmp_path / "model.safetensors").write_bytes(b"0" * 10)
    try:
        torch.set_num_threads(2)
        set_threads(Config.model_validate({"model": {"path": str(tmp_path / "none")}}))
        assert torch.get_num_threads() == 2
        set_threads(Config.model_validate({"model": {"path": str(tmp_path)}}))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
