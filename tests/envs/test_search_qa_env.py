import json
import pickle
import random
import re

import gymnasium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import envs  # registers the ids
from agentrl.envs.env_errors import DataError
from agentrl.envs.search_qa.env import SearchQAEnv
from agentrl.envs.search_qa.score_transcripts import score
from agentrl.envs.search_qa.scoring import own_turns
from agentrl.envs.search_qa.text import cut_turn, format_passages, information, parse_action
from agentrl.retriever.client import Client
from agentrl.retriever.passages import Hit
from agentrl.retriever.retrieval_errors import QueryError, RetrieverUnavailable
from agentrl.retriever.search import Retriever

assert "agentrl/SearchQA-v0" in envs.ENVIRONMENTS
INVALID = (
    "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. "
    "If I want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again.\n"
)


def make(**options) -> gymnasium.Env[str, str]:
    return gymnasium.make("agentrl/SearchQA-v0", **{"split": "test", **options})


@pytest.mark.parametrize(
    ("text", "cut", "action"),
    [
        ("a <search> q </search> tail", "a <search> q </search>", ("search", "q")),
        ("a <answer> x </answer> tail", "a <answer> x </answer>", ("answer", "x")),
        # Searching wins the cut, the first complete block wins the parse.
        ("<answer>x</answer> <search>q</search> z", "<answer>x</answer> <search>q</search>", ("answer", "x")),
        ("<search>q</search> <answer>x</answer>", "<search>q</search>", ("search", "q")),
        ("</search> <answer>x</answer>", "</search>", (None, "")),
        ("<answer>x</search>", "<answer>x</search>", (None, "")),
        ("<search><answer>x</answer></search>", None, ("search", "<answer>x</answer>")),
        ("<search>\n two\nlines </search>", "<search>\n two\nlines </search>", ("search", "two\nlines")),
        ("<SEARCH>q</SEARCH>", "<SEARCH>q</SEARCH>", (None, "")),
        ("<search></search>", "<search></search>", ("search", "")),
        ("nothing", "nothing", (None, "")),
        ("", "", (None, "")),
    ],
)  # fmt: skip
def test_cut_and_parse_on_any_order_of_tags_follow_search_r1(text, cut, action):
    cut = text if cut is None else cut
    assert cut_turn(text) == cut
    assert parse_action(cut) == action


def test_information_block_is_search_r1s_byte_for_byte():
    hits = [Hit("1", '"A b"\nline one\nline two ', 1.0), Hit("2", "no title line", 0.5)]
    assert format_passages(hits) == 'Doc 1(Title: "A b") line one\nline two \nDoc 2(Title: no title line) \n'
    assert information(hits[:1]) == '\n\n<information>Doc 1(Title: "A b") line one\nline two</information>\n\n'
    assert information([]) == "\n\n<information>No search results found.</information>\n\n"


def test_episode_of_searches_and_an_answer_pays_exact_match():
    env = make(expert="default")
    question, info = env.reset(options={"task": 0})
    assert info["task"].startswith("generated-0/test/")
    assert info["anchor"] == question
    for _ in range(5):
        action = info["expert_action"]
        observation, reward, terminated, truncated, info = env.step(action)
        if terminated:
            break
        assert observation.startswith("\n\n<information>Doc 1(Title: ")
        assert observation.endswith("</information>\n\n")
        assert (reward, truncated, info["is_valid_action"]) == (0.0, False, True)
        assert len(info["passages"]) == 3
    assert (observation, reward, truncated) == ("", 1.0, False)
    assert (info["success"], info["score"]) == (True, 1.0)


def test_wrong_answer_pays_nothing_and_partial_answer_pays_f1():
    env = make(questions="generated", reward="f1")
    env.reset(options={"task": 1})
    gold = env.unwrapped._question.golden_answers[0]
    reward, terminated = env.step(f"<answer>{gold} or not</answer>")[1:3]
    assert terminated
    assert 0 < reward < 1
    env.reset(options={"task": 1})
    _, reward, terminated, _, info = env.step("<answer>nobody</answer>")
    assert (reward, terminated, info["success"], info["score"]) == (0.0, True, False, 0.0)


def test_invalid_action_is_answered_with_the_fixed_text():
    env = make()
    env.reset(seed=0)
    for text in ("I think", "", "<search>", "<search>  </search>", "</answer>", "<answer>"):
        env.reset(seed=0)
        observation, reward, terminated, truncated, info = env.step(text)
        assert observation == INVALID
        assert (reward, terminated, truncated, info["is_valid_action"]) == (0.0, False, False, False)


def test_last_step_does_not_search_and_truncates():
    env = make(max_steps=3)
    env.reset(seed=0)
    assert env.step("<search> river </search>")[0] != ""
    assert env.step("hm")[0] == INVALID
    observation, reward, terminated, truncated, info = env.step("<search> river </search>")
    assert (observation, reward, terminated, truncated) == ("", 0.0, False, True)
    assert info["success"] is False
    assert "passages" not in info


def test_answer_in_the_last_step_terminates():
    env = make(max_steps=1)
    env.reset(seed=0)
    assert env.step("<answer>x</answer>")[2:4] == (True, False)


def test_search_that_finds_nothing_says_so():
    env = make()
    env.reset(seed=0)
    observation, *_, info = env.step("<search> xyzzy </search>")
    assert observation == "\n\n<information>No search results found.</information>\n\n"
    assert info["is_valid_action"]


@given(
    st.text(alphabet=st.characters(), max_size=200)
    | st.sampled_from(["x" * (1 << 20), "\0", "\ud800", "<answer>" * 99])
)
@settings(max_examples=60, deadline=None)
def test_step_on_any_text_never_raises(text):
    env = SearchQAEnv(split="test", questions="compact")
    for shaped in (text, f"<search>{text}</search>", f"<think>{text}</think><answer>{text}</answer>"):
        env.reset(seed=0)
        observation, reward, terminated, truncated, info = env.step(shaped)
        assert isinstance(observation, str)
        assert 0 <= reward <= 1
        assert terminated or truncated or observation
        json.dumps(info)


@pytest.mark.parametrize("questions", ["generated", "compact"])
def test_same_seed_or_task_gives_the_same_episode(questions):
    first, second = make(questions=questions, expert="default"), make(questions=questions, expert="default")
    for options in ({"seed": 7}, {"options": {"task": 3}}):
        assert first.reset(**options) == second.reset(**options)
        action = first.reset(**options)[1]["expert_action"]
        second.reset(**options)
        assert first.step(action) == second.step(action)
    assert {first.reset(seed=s)[0] for s in range(20)} != {first.reset(seed=0)[0]}


def test_environment_before_reset_can_be_pickled():
    env = pickle.loads(pickle.dumps(SearchQAEnv(split="test", questions="compact", expert="default")))
    assert env.reset(seed=1)[1]["expert_action"].startswith("<search>")


@pytest.mark.parametrize("name", ["default", "thinking"])
@pytest.mark.parametrize("questions", ["generated", "compact"])
def test_expert_wins_every_held_out_question(questions, name):
    env = SearchQAEnv(split="test", questions=questions, expert=name, topk=1)
    for task in range(0, env.num_tasks, 5):
        _, info = env.reset(options={"task": task})
        while "success" not in info:
            assert info["expert_action"].startswith("<think>") is (name == "thinking")
            info = env.step(info["expert_action"])[-1]
        assert info["success"], info


def test_expert_recovers_from_a_random_step():
    env = SearchQAEnv(split="test", questions="compact", expert="default", topk=1, max_steps=8)
    draws = random.Random(0)
    for task in range(0, 300, 3):
        _, info = env.reset(options={"task": task})
        searches = [action for action in info["admissible_actions"] if "<search>" in action]
        info = env.step(draws.choice(searches))[-1]
        while "success" not in info:
            info = env.step(info["expert_action"])[-1]
        assert info["success"]


def test_random_policy_stays_far_below_the_expert():
    env, draws, wins = SearchQAEnv(split="test", questions="compact", topk=1), random.Random(0), 0
    for task in range(200):
        _, info = env.reset(options={"task": task})
        while "success" not in info:
            info = env.step(draws.choice(info["admissible_actions"]))[-1]
        wins += info["success"]
    assert wins / 200 < 0.15


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"topk": 0}, "topk"),
        ({"max_steps": 0}, "max_steps"),
        ({"reward": "bleu"}, "reward must be"),
        ({"expert": "oracle"}, "expert must be"),
        ({"kinds": ["hard"]}, "kinds must be one of bridge"),
        ({"split": "dev"}, "split must be one of train, test"),
        ({"max_observation_tokens": 500}, "needs tokenizer"),
        ({"questions": "compact", "retriever": "http://127.0.0.1:1"}, "one corpus each"),
        ({"questions": {"nq": "nq.jsonl"}}, "need a retriever"),
        (
            {"questions": {"nq": "nq.jsonl"}, "retriever": "http://127.0.0.1:1", "expert": "default"},
            "generated questions",
        ),
    ],
)
def test_senseless_options_are_refused_with_a_reason(options, reason):
    with pytest.raises(DataError, match=reason):
        SearchQAEnv(**{"split": "test", **options})


def test_task_number_out_of_range_is_refused():
    env = SearchQAEnv(split="test", questions="compact", kinds=["comparison"])
    with pytest.raises(DataError, match=f"from 0 to {env.num_tasks - 1}, got {env.num_tasks}"):
        env.reset(options={"task": env.num_tasks})


def test_dead_retriever_stops_the_run_and_never_becomes_an_observation(tmp_path):
    path = tmp_path / "nq.jsonl"
    path.write_text('{"question": "who", "answer": ["Ann"]}')
    env = SearchQAEnv(split="test", questions={"nq": str(path)}, retriever="http://127.0.0.1:9", patience_s=0.2)
    with pytest.raises(RetrieverUnavailable, match=r"http://127.0.0.1:9 gave no answer within 0.2 s") as stopped:
        env.reset(seed=0)
    assert stopped.value.fatal


def test_retriever_that_dies_in_mid_episode_raises_out_of_step(monkeypatch):
    def dies(self, queries, *, topk):
        raise RetrieverUnavailable("gone")

    env = make()
    env.reset(seed=0)
    monkeypatch.setattr(Client, "search", dies)
    with pytest.raises(RetrieverUnavailable):
        env.step("<search> river </search>")


def test_query_that_the_retriever_refuses_is_an_invalid_action(monkeypatch):
    def refuses(self, queries, *, topk):
        raise QueryError("too long")

    env = make()
    env.reset(seed=0)
    monkeypatch.setattr(Client, "search", refuses)
    observation, *_, info = env.step("<search> river </search>")
    assert (observation, info["is_valid_action"]) == (INVALID, False)


def test_format_reward_reads_the_whole_response():
    env = make(expert="thinking", reward="format")
    _, info = env.reset(options={"task": 0})
    while "success" not in info:
        _, reward, *_, info = env.step(info["expert_action"])
    assert reward == 1.0
    env.reset(options={"task": 0})
    assert env.step(f"<answer>{env.unwrapped._question.golden_answers[0]}</answer>")[1] == 0.8


def test_observation_beyond_the_token_limit_is_cut_at_a_token(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    cut, whole = (make(max_observation_tokens=n, tokenizer=str(tmp_path)) for n in (5, 5000))
    for env in (cut, whole):
        env.reset(seed=0)
    action = "<search> river </search>"
    observation = whole.step(action)[0]
    assert observation.endswith("</information>\n\n")
    assert cut.step(action)[0] == re.match(r"\s*(\S+\s+){4}\S+", observation).group()


def test_recorded_search_r1_episodes_replayed_give_the_recorded_texts_and_scores(reference_data, monkeypatch, tmp_path):
    """Every recorded transcript, turn by turn: same observations, same exact match and F1 per item."""
    path = reference_data / "search_qa" / "bamboogle_searchr1_instruct_rollouts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps({k: r[k] for k in ("id", "question", "golden_answers")}) + "\n" for r in rows)
    )
    recorded: list[str] = []

    def replay(self, queries, *, topk):
        docs = re.findall(r"Doc \d+\(Title: (.*?)\) (.*?)(?=\nDoc \d+\(Title: |\Z)", recorded.pop(0), re.DOTALL)
        return [[Hit("", f"{title}\n{text}", 1.0) for title, text in docs]]

    monkeypatch.setattr(Client, "search", replay)
    monkeypatch.setattr(Client, "check", lambda self: {})
    env = SearchQAEnv(split="test", questions={"bamboogle": str(tmp_path / "q.jsonl")}, retriever="http://unused:1")
    wins = 0
    for task, row in enumerate(rows):
        response, measured = row["output"]["final_response"], row["output"]["metric_score"]
        recorded[:] = re.findall(r"<information>(.*?)</information>", response, re.DOTALL)
        env.reset(options={"task": task})
        replayed = ""
        for turn in own_turns(response):
            # In the record the observation begins with two newlines and ends with two.
            observation, reward, *_, info = env.step(turn.removeprefix("\n\n") if replayed else turn)
            replayed += (
                turn.removeprefix("\n\n").removesuffix("\n\n") if replayed else turn.removesuffix("\n\n")
            ) + observation
        assert replayed == response
        assert (info["success"], info["score"]) == (bool(measured["em"]), pytest.approx(measured["f1"]))
        assert reward == measured["em"]
        assert score("bamboogle", own_turns(response), row["golden_answers"]).em == bool(measured["em"])
        wins += info["success"]
    assert (wins, len(rows)) == (33, 100)


def test_questions_from_files_with_an_index_folder_run_end_to_end(tmp_path):
    from agentrl.retriever.build import build

    (tmp_path / "corpus.jsonl").write_text('{"id": "0", "contents": "\\"Emma\\"\\nEmma is a novel by Jane Austen."}\n')
    (tmp_path / "nq_test.jsonl").write_text('{"question": "who wrote emma", "answer": ["Jane Austen", "Austen"]}\n')
    build(tmp_path / "corpus.jsonl", tmp_path / "index", index="bm25")
    env = make(questions={"nq": str(tmp_path / "nq_{split}.jsonl")}, retriever=f"{tmp_path / 'index'}#bm25")
    question, info = env.reset(seed=0)
    assert (question, info["category"], info["task"]) == ("who wrote emma", "nq", "nq/0")
    assert "admissible_actions" not in info
    assert "Jane Austen" in env.step("<search>emma</search>")[0]
    assert env.step("<answer>austen.</answer>")[-1]["success"]


def test_generated_questions_with_a_retriever_over_another_corpus_are_refused(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"id": "0", "contents": "\\"Emma\\"\\nEmma is a novel by Jane Austen."}\n')
    with pytest.raises(DataError, match="does not hold the generated encyclopaedia"):
        make(retriever=str(tmp_path / "corpus.jsonl")).reset(seed=0)


def test_generated_questions_with_their_corpus_in_a_file_play_the_same_episode(tmp_path):
    from agentrl.envs.search_qa.encyclopaedia import main

    main([str(tmp_path)])
    own, given = make(expert="default"), make(expert="default", retriever=str(tmp_path / "corpus.jsonl"))
    assert own.reset(seed=3) == given.reset(seed=3)
    action = own.reset(seed=3)[1]["expert_action"]
    assert own.step(action) == given.step(action)


def test_retriever_in_process_is_shared_between_environments():
    first, second = make(), make()
    first.reset(seed=0)
    second.reset(seed=1)
    assert first.unwrapped._client is second.unwrapped._client
    assert isinstance(first.unwrapped._client._local, Retriever)
