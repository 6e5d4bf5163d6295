"""Every task of reasoning-gym as a Gymnasium environment, by name."""

import difflib
import importlib.util
from functools import lru_cache
from typing import Any

import gymnasium
from gymnasium.utils import EzPickle

from agentrl.common.data_source import DataSource
from agentrl.common.extras import MissingExtraError
from agentrl.envs.env_errors import DataError
from agentrl.envs.math.answers import ANSWER_FORMATS, AnswerTooLongError, extract_answers, write_answer
from agentrl.envs.math.workers import WorkerError, WorkerOutcome, WorkerPool
from agentrl.envs.options import check_choice, choose_task
from agentrl.envs.spaces import FreeText

MAX_ANSWER_CHARS = 20_000  # boards and grids are long
_SETUP_LIMIT_S = 60.0
_GUESSES_LIMIT_S = 2.0

_pool = WorkerPool("agentrl.envs.math.reasoning_gym_worker")  # nothing runs before the first request


class ReasoningGymEnv(gymnasium.Env[str, str], EzPickle):
    """One generated problem an episode, one response; the reward is the task's own score, 0 to 1.

    Scores are clamped: below `min_score`, or no better than a text without content gets (some tasks give 0.01 to 1.0
    for anything), is 0. A scorer that raises, or does not end within a second of CPU time, scores 0; `info["reason"]`
    says why. Generators and scorers run in worker processes, which also makes a problem the same in every process.

    Tasks are numbered 0 to `num_tasks` - 1; `reset(options={"task": i})` puts problem i, `reset(seed=s)` draws one.
    info: `task`, `category` (the task's name), `metadata` (`benchmark`, `subject`); at steps `success` (score 1.0),
    `score`, `answer`, `is_valid_action` (an answer was found) and `reason` (empty, or why the score is 0).

        env = gymnasium.make("agentrl/ReasoningGym-v0", name="chain_sum", config={"max_terms": 3})

    Raises `DataError` for a task or configuration that reasoning-gym does not have.

    Args:
        split: `train` or `test`; a question belongs to one of them by its hash (a quarter is held out).
        name: the reasoning-gym task; `composite` takes `config = {datasets = [{name = "gcd"}, ...]}`.
        config: its options.
        num_problems: size of the split; default 1,000 and 200.
        data_seed: seed of the generator.
        answer_format: where the answer stands: `plain` (the whole response), `tags` (inside <answer></answer>),
            `boxed`, `hashes` or `answer`.
        min_score: scores below count as 0.
        expert: None, or `default`: the reference answer as `info["expert_action"]` (some tasks have none).
    """

    # Beside Gymnasium's keys: see `agentrl.envs.math.env.MathEnv.metadata`.
    metadata: dict[str, Any] = {  # noqa: RUF012 - so declared by the base class
        "render_modes": [], "blocking": True, "eval_split": "test", "eval_samples": 16, "scorer": "reasoning-gym",
    }  # fmt: skip

    def __init__(
        self,
        split: str = "train",
        *,
        name: str = "chain_sum",
        config: dict[str, Any] | None = None,
        num_problems: int | None = None,
        data_seed: int = 0,
        answer_format: str = "plain",
        min_score: float = 0.05,
        expert: str | None = None,
    ) -> None:
        EzPickle.__init__(
            self,
            split,
            name=name,
            config=config,
            num_problems=num_problems,
            data_seed=data_seed,
            answer_format=answer_format,
            min_score=min_score,
            expert=expert,
        )
        check_choice("split", split, ("train", "test"))
        check_choice("answer_format", answer_format, ANSWER_FORMATS)
        check_choice("expert", expert, (None, "default"))
        if importlib.util.find_spec("reasoning_gym") is None:
            raise MissingExtraError("reasoning-gym", "math", "agentrl/ReasoningGym-v0")
        if num_problems is not None and not 1 <= num_problems <= 10_000:
            raise ValueError(f"num_problems must be 1 to 10000, got {num_problems}.")
        self.num_tasks = num_problems or (1000 if split == "train" else 200)
        self.split, self.answer_format, self.min_score, self.expert = split, answer_format, min_score, expert
        self._source = {"name": name, "seed": data_seed, "config": config or {}}
        self.observation_space = self.action_space = FreeText()
        self._problem: dict[str, Any] | None = None
        self._other_answers: list[str] | None = None
        self._set_up({"call": "check"})

    @property
    def data_source(self) -> DataSource:
        """The package makes the problems."""
        return DataSource("generated", self.num_tasks)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Put a problem: number `options["task"]`, else a random one."""
        super().reset(seed=seed)
        task = choose_task(self.np_random, options, self.num_tasks)
        self._problem = self._set_up({"call": "problem", "split": self.split, "task": task})
        info = {**self._describe(), "task": f"{self._source['name']}/{self.split}/{task}"}
        info["random_actions"] = [write_answer(guess, self.answer_format) for guess in self._guesses()]
        if self.expert and self._problem["answer"] is not None:
            info["expert_action"] = write_answer(self._problem["answer"], self.answer_format)
        return self._problem["question"], info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Score a response."""
        if self._problem is None:
            raise gymnasium.error.ResetNeeded("Call reset() before step().")
        answer, reason = None, "no answer"
        try:
            found = extract_answers(action, answer_format=self.answer_format, max_chars=MAX_ANSWER_CHARS)
            answer = found[0] if found else None
        except AnswerTooLongError:
            reason = "answer too long"
        score = 0.0
        if answer is not None:
            score, reason = self._score(answer)
        info = {
            **self._describe(),
            "success": score >= 1.0,
            "score": score,
            "answer": answer,
            "is_valid_action": answer is not None,
            "reason": reason,
        }
        return "", score, True, False, info

    def _guesses(self) -> list[str]:
        """Answers to other problems of the same task; none where making so many takes too long."""
        if self._other_answers is None:
            outcome = _pool.call({"call": "answers", **self._source}, cpu_limit_s=_GUESSES_LIMIT_S)
            self._other_answers = outcome.value["answers"] if outcome.value else []
        return self._other_answers

    def _set_up(self, request: dict[str, Any]) -> dict[str, Any]:
        """A worker's answer to a request that a model's text has no part in."""
        request = {**request, **self._source}
        outcome = _pool.call(request, cpu_limit_s=_SETUP_LIMIT_S, wall_limit_s=2 * _SETUP_LIMIT_S)
        if outcome.value is None:
            raise self._explain(outcome)
        return outcome.value

    def _score(self, answer: str) -> tuple[float, str]:
        assert self._problem is not None
        # A worker that has not met this problem has to make it first.
        limit_s = 1.0 + 2 * self._problem["cpu_s"]
        request = {"call": "score", **self._source, "index": self._problem["index"], "answer": answer}
        outcome = _pool.call(request, cpu_limit_s=limit_s, wall_limit_s=limit_s + 0.8)
        if outcome.value is None:
            return 0.0, f"{outcome.failure} ({outcome.detail})"
        score, reason = float(outcome.value["score"]), str(outcome.value["reason"])
        if score < self.min_score:
            return 0.0, reason or f"score {score:g} below {self.min_score:g}"
        return score, reason

    def _describe(self) -> dict[str, Any]:
        assert self._problem is not None
        metadata = {"benchmark": "reasoning-gym", "subject": self._problem["subject"]}
        return {"category": self._source["name"], "metadata": metadata}

    def _explain(self, outcome: WorkerOutcome) -> Exception:
        name = str(self._source["name"])
        if name not in task_names():
            near = difflib.get_close_matches(name, task_names(), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            return DataError(f"reasoning-gym has no task {name!r}.{hint} It has {len(task_names())} tasks.")
        if outcome.failure == "error":
            return DataError(f"reasoning-gym: {name} with config {self._source['config']}: {outcome.detail}.")
        return WorkerError(f"making a problem of {name} failed: {outcome.failure} ({outcome.detail})")


@lru_cache(maxsize=1)
def task_names() -> tuple[str, ...]:
    """Names of all tasks that the installed reasoning-gym has."""
    outcome = _pool.call({"call": "names"})
    if outcome.value is None:
        raise WorkerError(f"listing reasoning-gym's tasks failed: {outcome.failure} ({outcome.detail})")
    return tuple(outcome.value["names"])
