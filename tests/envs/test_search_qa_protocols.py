import json

import pytest

from agentrl.envs.search_qa.env import SearchQAEnv
from agentrl.envs.search_qa.protocols import STOP_STRINGS, SearchR1Prompt, VerlAgentSearch, project_search
from agentrl.envs.search_qa.text import cut_turn
from agentrl.retriever.client import Client
from agentrl.retriever.retrieval_errors import RetrieverError


def search_r1(**options):
    return SearchR1Prompt(SearchQAEnv(split="test", **options))


def verl_agent(max_steps=4, **options):
    return VerlAgentSearch(SearchQAEnv(split="test", max_steps=max_steps), **options)


def test_search_r1_prompt_is_the_papers_with_its_slip():
    env = search_r1(questions="compact")
    prompt, info = env.reset(seed=0)
    assert prompt == (
        "Answer the given question. You must conduct reasoning inside <think> and </think> first every time you get "
        "new information. After reasoning, if you find you lack some knowledge, you can call a search engine by "
        "<search> query </search> and it will return the top searched results between <information> and "
        "</information>. You can search as many times as your want. If you find no further external knowledge needed, "
        "you can directly provide the answer inside <answer> and </answer>, without detailed illustrations. For "
        "example, <answer> Beijing </answer>. "
        f"Question: {info['anchor']}\n"
    )
    assert (env.unwrapped.max_steps, env.unwrapped.topk) == (5, 3)
    assert STOP_STRINGS == ("</search>", "</answer>")


def test_search_r1_prompt_equals_the_recorded_ones(reference_data):
    path = reference_data / "search_qa" / "bamboogle_searchr1_instruct_rollouts.jsonl"
    env = search_r1(questions={"bamboogle": str(path)}, retriever="http://unused:1")
    env.unwrapped._retriever_key = ("compact-0", "test", "0")  # the prompt needs no search
    for task, line in enumerate(path.read_text().splitlines()):
        prompt, _ = env.reset(options={"task": task})
        assert f"<|im_start|>user\n{prompt}<|im_end|>" in json.loads(line)["output"]["query"]


def test_search_r1_prompt_adds_a_question_mark_where_there_is_none(tmp_path):
    (tmp_path / "q.jsonl").write_text(
        '{"question": " who wrote emma ", "answer": "x"}\n{"question": "Who?", "answer": "x"}\n'
    )
    env = search_r1(questions={"nq": str(tmp_path / "q.jsonl")}, retriever="http://unused:1")
    env.unwrapped._retriever_key = ("compact-0", "test", "0")
    assert env.reset(options={"task": 0})[0].endswith("Question: who wrote emma?\n")
    assert env.reset(options={"task": 1})[0].endswith("Question: Who?\n")


@pytest.mark.parametrize(
    ("text", "action", "is_valid"),
    [
        ("<think>t</think><search> q </search>", "<search>q</search>", True),
        ("<answer> x </answer>", "<answer>x</answer>", True),  # no <think> needed
        ("<SEARCH>q</SEARCH>", "<search>q</search>", True),
        ("<search>q</search> tail", "<search>q</search>", True),
        ("<search>q</search><search>r</search>", "<search>q</search>", False),
        ("<answer>x</answer><answer>y</answer>", "<answer>x</answer>", False),
        ("<search>q</search><answer>x</answer>", "<search>q</search>", False),
        ("<answer>x</answer><search>q</search>", "<search>q</search>", False),
        ("<answer>x</answer> or <search>", "<answer>x</answer>", False),
        ("<search>q", "", False),
        ("", "", False),
    ],
)
def test_project_decides_as_verl_agent(text, action, is_valid):
    assert project_search(text) == (action, is_valid)
    assert cut_turn(text) == cut_turn(cut_turn(text))


def test_verl_agent_shows_question_history_and_escaped_passages():
    env = verl_agent(first_prompt="Q: {question}", later_prompt="{question}|{num_steps}|{history}")
    first, info = env.reset(seed=0)
    question = first.removeprefix("Q: ")
    assert info["anchor"] == question
    prompt, reward, *_, info = env.step("<think>t</think> <search> river </search>")
    passages = "".join(f"Doc {i}: {p['contents']}\n" for i, p in enumerate(info["passages"], 1))
    expected = f"<information>{json.dumps({'result': passages})}</information>"
    assert "\\n" in expected
    assert prompt == f"{question}|1|Step 1:<search>river</search> {expected}\n"
    assert (info["anchor"], reward, info["is_valid_action"]) == (expected, 0.0, True)
    prompt, reward, *_, info = env.step("hm")
    assert prompt == f"{question}|2|Step 1:<search>river</search> {expected}\n\nStep 2: \n"
    assert (info["anchor"], reward, info["is_valid_action"]) == ("", 0.0, False)


def test_verl_agent_carries_out_an_action_that_is_not_well_formed_and_leaves_the_penalty_to_the_learner():
    env = verl_agent()
    env.reset(options={"task": 0})
    gold = env.unwrapped._question.golden_answers[0]
    _, reward, terminated, _, info = env.step(f"<answer>{gold}</answer><answer>x</answer>")
    assert (terminated, reward, info["success"], info["is_valid_action"]) == (True, 1.0, True, False)


def test_verl_agent_ends_where_an_answer_stands_inside_a_search():
    env = verl_agent()
    env.reset(options={"task": 0})
    gold = env.unwrapped._question.golden_answers[0]
    _, reward, terminated, _, info = env.step(f"<search>so <answer>{gold}</answer></search>")
    assert (terminated, info["success"], reward) == (True, True, 1.0)


def test_verl_agent_truncates_at_its_fourth_step_without_searching(monkeypatch):
    env = verl_agent()
    env.reset(seed=0)
    for _ in range(3):
        *_, truncated, _ = env.step("<search>river</search>")
        assert not truncated

    def fails(self, queries, *, topk):
        raise RetrieverError("searched in the last step")

    monkeypatch.setattr(Client, "search", fails)
    _, reward, terminated, truncated, info = env.step("<search>river</search>")
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)


def test_verl_agent_keeps_the_last_steps_only():
    env = verl_agent(history_length=2, later_prompt="{question}{num_steps}{history}", max_steps=9)
    env.reset(seed=0)
    for word in ("one", "two", "three"):
        prompt = env.step(f"<search>{word}</search>")[0]
    assert "Step 1:" not in prompt
    assert prompt.index("Step 2:<search>two</search>") < prompt.index("Step 3:<search>three</search>")
    without = verl_agent(history_length=0, first_prompt="{question}")
    question, _ = without.reset(seed=0)
    assert without.step("<search>one</search>")[0] == question


def test_verl_agents_own_wording_is_used_when_no_other_is_given():
    env = verl_agent()
    prompt, info = env.reset(seed=0)
    assert f"Your question: {info['anchor']}" in prompt
    assert "<think> </think>" in prompt
    assert "already taken 1 step(s)" in env.step("<search>river</search>")[0]


@pytest.mark.parametrize("prompt", ["{question} {memory}", "{", "{0}"])
def test_verl_agent_with_a_template_of_other_fields_is_refused(prompt):
    with pytest.raises(ValueError, match="first_prompt may hold"):
        VerlAgentSearch(search_r1(), first_prompt=prompt)
