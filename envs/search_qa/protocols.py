"""How other frameworks let a model play search QA: Gymnasium wrappers from text to text, and their limits.

| | Search-R1 | verl-agent | the DGG paper |
|---|---|---|---|
| wrapper (`env.format`) | `SearchR1Prompt` | `VerlAgentSearch` | `SearchR1Prompt` |
| context | one growing assistant turn (`continuation`) | a fresh prompt per step (`window`) | `continuation` |
| `max_steps`, the last without search | 4 + 1 = 5 | 4 | 10 |
| `topk` | 3 | 3 | 3 |
| invalid action | fixed text, no penalty | empty observation, -0.01 | fixed text, no penalty |
| tokens | prompt 2,048, all 4,096, turn 500, observation 500 | prompt 4,096, turn 512 | prompt 2,048, rest 8,192 |

Sources: Search-R1 at a14dc3a, verl-agent through the fork xlan156/verl-agent at 8ca3a46, the DGG paper, appendix G.
`max_steps`, `topk` and `max_observation_tokens` are options of the environment, the other limits the trainer's. The
paper names its limits and its retriever but no prompt; Search-R1's is used.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import gymnasium

from agentrl.envs.search_qa.scoring import last_answer
from agentrl.envs.search_qa.text import cut_turn
from agentrl.envs.verl_agent import PromptWindow

SEARCH_R1_PROMPT = (
    "Answer the given question. "
    "You must conduct reasoning inside <think> and </think> first every time you get new information. "
    "After reasoning, if you find you lack some knowledge, "
    "you can call a search engine by <search> query </search> "
    "and it will return the top searched results between <information> and </information>. "
    "You can search as many times as your want. "
    "If you find no further external knowledge needed, you can directly provide the answer inside <answer> and "
    "</answer>, without detailed illustrations. For example, <answer> Beijing </answer>. Question: {question}\n"
)
STOP_STRINGS = ("</search>", "</answer>")
"""Where an engine ends a turn; the same text as Search-R1's cut after 500 tokens, without re-tokenising."""

# The parts and their order are verl-agent's, the wording is our own.
_FIRST_STEP = (
    "\nYou are an expert agent that answers a question step by step.\nYour question: {question}\n\n{instruction}\n"
)
_LATER_STEP = (
    "\nYou are an expert agent that answers a question step by step.\nYour question: {question}\n\n"
    "You have already taken {num_steps} step(s). In the history below, <search> </search> holds your queries and "
    "<information> </information> what the search engine returned. History:\n{history}\n\n{instruction}\n"
)
_INSTRUCTION = (
    "It is your turn to respond for the current step. First reason, within <think> </think> tags. "
    "Then choose exactly one of two actions:\n"
    "(1) If you lack some knowledge, call the search engine: <search> your query </search>.\n"
    "(2) If you know enough, give the final answer without explanations: <answer> your answer </answer>, "
    "for example <answer>Beijing</answer>."
)
_SEARCH_BLOCK = re.compile(r"<search>(.*?)</search>", re.IGNORECASE | re.DOTALL)
_ANSWER_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)


class SearchR1Prompt(gymnasium.Wrapper[str, str, str, str]):
    """The first observation is Search-R1's prompt; what follows is the environment's own text.

    The question is stripped, and gets a question mark where it does not end with one. Goes with `rollout.context`
    "continuation" and `rollout.stop` at the closing tags (`configs/search_qa_real.toml`).
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The prompt."""
        question, info = self.env.reset(seed=seed, options=options)
        question = question.strip()
        return SEARCH_R1_PROMPT.format(question=question if question.endswith("?") else question + "?"), info


def project_search(text: str) -> tuple[str, bool]:
    """The action in a model's text and whether the text is well formed, as verl-agent decides it.

    The text is cut after the first `</search>`, else `</answer>`; the action is its first search block, else its first
    answer block, else empty. Not well formed: no block, both kinds of opening tag in the uncut text, or one of them
    twice. A `<think>` block is not asked for.

    >>> project_search("so <search> Emma </search> or <search> Jane </search>")
    ('<search>Emma</search>', False)
    """
    trimmed = cut_turn(text)
    num_searches = len(re.findall("<search>", text, re.IGNORECASE))
    num_answers = len(re.findall("<answer>", text, re.IGNORECASE))
    is_single = not (num_searches and num_answers) and num_searches <= 1 and num_answers <= 1
    for tag, pattern in (("search", _SEARCH_BLOCK), ("answer", _ANSWER_BLOCK)):
        match = pattern.search(trimmed)
        if match:
            return f"<{tag}>{match.group(1).strip()}</{tag}>", is_single
    return "", False


class VerlAgentSearch(gymnasium.Wrapper[str, str, str, str]):
    """verl-agent's protocol: every observation is a complete prompt with the question and the last steps.

    For a context that shows the model the current observation only. An action that is not well formed is carried out
    all the same; nothing is observed where it holds no search. `is_valid_action` says whether it was; verl-agent
    subtracts 0.01 where it was not, which is left to the learner (`advantage.invalid_action_penalty`; with
    `rollout.context` "window" and no `window_turns`). `anchor` is the raw observation, as verl-agent groups
    steps: the question, later the information text.

    Args:
        env: `SearchQAEnv`.
        history_length: past steps shown.
        first_prompt, later_prompt: templates with {question}, and with {question}, {num_steps}, {history}. To compare
            numbers with verl-agent give those of its prompts/search.py, with the field names replaced.
    """

    def __init__(
        self,
        env: gymnasium.Env[str, str],
        *,
        history_length: int = 4,
        first_prompt: str = _FIRST_STEP.replace("{instruction}", _INSTRUCTION),
        later_prompt: str = _LATER_STEP.replace("{instruction}", _INSTRUCTION),
    ) -> None:
        super().__init__(env)
        self._window = PromptWindow(first_prompt, later_prompt, history_length=history_length)
        _check_template("first_prompt", first_prompt, question="")
        _check_template("later_prompt", later_prompt, question="", num_steps=0, history="")
        self._question = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The first prompt."""
        self._question, info = self.env.reset(seed=seed, options=options)
        self._window.start()
        return self._window.prompt(question=self._question), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out the projected action; returns the next prompt."""
        projected, is_well_formed = project_search(action)
        sent = projected
        if "<answer>" in projected and "</answer>" in projected:  # inside a search block too, that ends the episode
            sent = f"<answer>{last_answer([projected]) or ''}</answer>"
        _, reward, terminated, truncated, info = self.env.step(sent)
        passages = info.get("passages")
        information = "" if passages is None else f"<information>{_to_json(passages)}</information>"
        self._window.add(f"Step {self._window.num_steps + 1}:{projected} {information}\n")
        info |= {"is_valid_action": is_well_formed and info["is_valid_action"], "anchor": information}
        return self._window.prompt(question=self._question), float(reward), terminated, truncated, info


def _check_template(name: str, template: str, **fields: Any) -> None:
    try:
        template.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{field}}}" for field in fields)
        raise ValueError(f"{name} may hold {known} and no other braces; it has {error!r}.") from None


def _to_json(passages: Sequence[dict[str, Any]]) -> str:
    """`{"result": "Doc 1: ...\\n"}`: a JSON string, newlines and non-ASCII characters escaped."""
    text = "".join(f"Doc {i}: {passage['contents'].strip()}\n" for i, passage in enumerate(passages, start=1))
    return json.dumps({"result": text or "No search results found."})
