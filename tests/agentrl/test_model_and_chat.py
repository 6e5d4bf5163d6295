from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from agentrl.config.schema import ModelConfig, TinyModelConfig
from agentrl.errors import UserError
from agentrl.model.load import load_model, set_threads
from agentrl.model.tiny import build_tiny_model, build_tokenizer
from agentrl.rollout.chat import Chat, PastTurn, stop_token_ids, window_prompt

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
        set_threads(str(tmp_path / "none"))
        assert torch.get_num_threads() == 2
        set_threads(str(tmp_path))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = [{"type": "function", "function": {"name": "buy", "description": "Buy.", "parameters": {"type": "object"}}}]


def test_a_system_message_or_tools_that_the_template_would_lose_are_refused_in_one_line() -> None:
    tokenizer = chatml_tokenizer(GEMMA)
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    assert chat.open("hello")
    with pytest.raises(UserError, match=r"no system role.*env\.system = \"\"") as caught:
        chat.open("hello", system="be brief")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not show tools") as caught:
        chat.open("hello", tools=TOOL)
    assert "\n" not in str(caught.value)
    silent = chatml_tokenizer("{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + CHATML)
    with pytest.raises(UserError, match="no system role"):
        Chat(silent, stop_ids=[silent.eos_token_id]).open("hello", system="be brief")
    knowing = chatml_tokenizer("{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}" + CHATML)
    ids = Chat(knowing, stop_ids=[knowing.eos_token_id]).open("hello", system="be brief", tools=TOOL)
    assert knowing.decode(ids).startswith("[buy]<|im_start|>system\nbe brief<|im_end|>")


def test_a_template_that_refuses_a_plain_conversation_is_told_in_one_line() -> None:
    tokenizer = chatml_tokenizer("{{ raise_exception('never') }}")
    with pytest.raises(UserError, match="refuses a conversation of the roles user: never") as caught:
        Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    assert "\n" not in str(caught.value)


def test_the_templates_own_end_of_turn_stops_where_it_is_not_the_eos() -> None:
    tokenizer = chatml_tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    assert chat.end_id == end
    assert chat.stop_ids == {end, tokenizer.eos_token_id}
    said = chat.open("hello") + chat.answer_ids("go")
    whole = tokenizer.decode(said + chat.follow(said, "on"))
    assert "go<|im_end|>\n<|im_start|>user\non<|im_end|>" in whole
    cut = [*chat.open("hello"), tokenizer.eos_token_id]
    assert tokenizer.decode(cut + chat.follow(cut, "on")).count("<|endoftext|><|im_end|>\n<|im_start|>user") == 1
    tokenizer.eos_token = None
    assert Chat(tokenizer, stop_ids=[]).stop_ids == {end}


def test_a_date_in_the_template_stands_still() -> None:
    dated = "{% set d = strftime_now('%Y-%m-%d %H:%M:%S.%f') if strftime_now is defined else 'none' %}[{{ d }}]"
    tokenizer = chatml_tokenizer(dated + CHATML)
    ids = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id]).open("hello")
    assert tokenizer.decode(ids).startswith("[2024-07-26 00:00:00.000000]<|im_start|>user")


def test_what_a_saved_tokenizer_carries_besides_its_vocabulary_changes_no_ids(tmp_path: Path) -> None:
    tokenizer = chatml_tokenizer()
    plain = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id]).open("many words " * 10)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=300)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert Chat(again, stop_ids=[again.eos_token_id]).open("many words " * 10) == plain


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_row_of_pieces_has_the_ids_of_the_whole_with_sentencepieces_blanks(scheme: str) -> None:
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyz.<>/\n"))
    vocabulary = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    backend.add_special_tokens(["<s>", "</s>", "[INST]", "[/INST]"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST]{{ m['content'] }}[/INST]"
        "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    chat = Chat(tokenizer, stop_ids=[2])
    ids = chat.open("hi")
    ids += chat.answer_ids("yes")
    ids += chat.follow(ids, "obs")
    roles = [("user", "hi"), ("assistant", "yes"), ("user", "obs")]
    text = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in roles], tokenize=False)
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    answer = tokenizer.encode("<a>cats</a>", add_special_tokens=False)
    whole = tokenizer.encode("<a>cats</a>\n<b>x</b>", add_special_tokens=False)
    assert answer + chat.continue_raw("\n<b>x</b>") == whole
