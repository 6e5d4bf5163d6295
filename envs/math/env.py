"""Math problems as a Gymnasium environment: a question in, a response out, a verifiable reward."""

import logging
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import EzPickle

from agentrl.common.data_source import DataSource
from agentrl.envs.env_errors import DataError
from agentrl.envs.math import curriculum
from agentrl.envs.math.answers import ANSWER_FORMATS, write_answer
from agentrl.envs.math.known_sets import source_of
from agentrl.envs.math.overlap import exact_repeats, words
from agentrl.envs.math.problems import NAMED_DATA, Problem, available_data, load_problems
from agentrl.envs.math.verifier import AnswerVerdict, require_math_verify, start_workers, verify
from agentrl.envs.options import check_at_least, check_choice, choose_task
from agentrl.envs.spaces import FreeText

log = logging.getLogger(__name__)

CURRICULUM = "curriculum"
SPLITS = ("train", "test")
_HELD_OUT_SHARE = 0.1
_NUM_GUESSES = 16

_FEEDBACK = {
    "boxed": r"Put your final answer within \boxed{}.",
    "hashes": "Put your final answer after ####.",
    "answer": 'Put your final answer on its own line after "Answer:".',
    "tags": "Put your final answer inside <answer> and </answer>.",
    "plain": "Answer with nothing but the final answer.",
}


class MathEnv(gymnasium.Env[str, str], EzPickle):
    """One question an episode, one response, or several with feedback; reward 1.0 for a correct answer, else 0.0.

    The observation is the problem's own text; `protocols` holds the prompt templates, as wrappers. Tasks are
    numbered 0 to `num_tasks` - 1: `reset(options={"task": i})` puts problem i, `reset(seed=s)` draws one.

    info at reset: `task` (source and id), `category` (the source where several are mixed, else the subject, else the
    level, else the source), `metadata` (`benchmark`, and `subject` and `level` where given: whatever a table may be
    split by), `random_actions` (answers to other problems of the set: chance), and `expert_action` where an expert is
    asked for. info at steps: `success`, `score`, `answer` (the answer found, in one spelling for all writings of one
    number; None without one), `is_valid_action` (an answer was found), `verdict` (what decided it, see
    `AnswerVerdict.decided_by`), `category`, `metadata`.

        env = gymnasium.make("agentrl/Math-v0", split="test", data="math500", data_dir="data/math")
        problem, info = env.reset(options={"task": 0})
        _, reward, terminated, _, info = env.step(r"... so the answer is \\boxed{(3, \\frac{\\pi}{2})}")

    Args:
        split: `train` or `test`.
        data: where problems come from: `curriculum` (generated), a name of `problems.NAMED_DATA`, a path to
            a file with question and answer columns, or a list of these. A file of one's own is split by a hash of the
            problem: a tenth is held out, unless `eval_data` names other test problems.
        eval_data: what the test split consists of, where not the test part of `data`.
        data_dir: folder of named data; default: the environment variable `MATH_DATA`.
        question_column: column of the question in files of one's own, where it has no usual name.
        answer_column: likewise for the gold answer.
        levels: keep problems of these levels only.
        exclude_overlap: leave out training problems that stand word for word in `eval_data` or in any named benchmark
            whose file is in the data folder.
        answer_format: where in a response the answer stands: `boxed` (the last box), `hashes` (after ####), `answer`
            (after "Answer:"), `tags` (inside <answer></answer>), `plain` (the whole text).
        max_attempts: responses allowed; after a wrong one the observation says so.
        use_library: whether math-verify decides what plain comparison cannot; default: for all but the curriculum,
            whose answers are integers (then nothing beyond the base installation is needed).
        expert: None, or for the curriculum `default` (a pupil who makes each level's typical mistake) or `careful`.
        mistake_prob: the pupil's probability of the mistake, where it is possible.
        num_problems: size of the curriculum's split; default 4,000 and 500.
        data_seed: seed of the curriculum.
    """

    # Beside Gymnasium's keys: how the benchmark is usually evaluated, the distribution that judges, and `blocking`, set
    # for each instance: a step may wait for a worker up to two seconds, so an event loop had better not wait along.
    metadata: dict[str, Any] = {  # noqa: RUF012 - so declared by the base class
        "render_modes": [], "eval_split": "test", "eval_samples": 16, "scorer": "math-verify",
        "expert": "pupil who errs on purpose, no ceiling",
    }  # fmt: skip

    def __init__(
        self,
        split: str = "train",
        *,
        data: str | os.PathLike[str] | Sequence[str] = CURRICULUM,
        eval_data: str | os.PathLike[str] | Sequence[str] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        question_column: str | None = None,
        answer_column: str | None = None,
        levels: Sequence[int] | None = None,
        exclude_overlap: bool = True,
        answer_format: str = "boxed",
        max_attempts: int = 1,
        use_library: bool | None = None,
        expert: str | None = None,
        mistake_prob: float = 0.5,
        num_problems: int | None = None,
        data_seed: int = 0,
    ) -> None:
        source: dict[str, Any] = {
            "data": _names(data), "eval_data": None if eval_data is None else _names(eval_data), "levels": levels,
            "data_dir": data_dir and os.fspath(data_dir), "question_column": question_column, "data_seed": data_seed,
            "answer_column": answer_column, "exclude_overlap": exclude_overlap, "num_problems": num_problems,
        }  # fmt: skip
        EzPickle.__init__(
            self, split, **source, answer_format=answer_format, max_attempts=max_attempts, use_library=use_library,
            expert=expert, mistake_prob=mistake_prob,
        )  # fmt: skip
        _check_options(split, answer_format, max_attempts, expert, source)
        self.answer_format, self.expert, self.mistake_prob = answer_format, expert, mistake_prob
        self.max_attempts, self._attempts = max_attempts, 0
        self.problems, self.report = open_problems(split=split, **source | {"levels": tuple(levels or ())})
        sources = {problem.source for problem in self.problems}
        self.use_library = sources != {CURRICULUM} if use_library is None else use_library
        if self.use_library:
            require_math_verify()
        self.metadata = {**self.metadata, "blocking": self.use_library}
        self._mixed = len(sources) > 1
        self.observation_space = self.action_space = FreeText()
        self.problem: Problem | None = None

    @property
    def num_tasks(self) -> int:
        """Number of problems in the split."""
        return len(self.problems)

    @property
    def data_source(self) -> DataSource:
        """Where the problems come from."""
        return source_of(self.problems, is_generated={p.source for p in self.problems} == {CURRICULUM})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Put a problem: number `options["task"]`, else a random one."""
        super().reset(seed=seed)
        task = choose_task(self.np_random, options, self.num_tasks)
        self.problem = self.problems[task]
        self._attempts = 0
        if self.use_library:
            start_workers()
        info = {**self._describe(), "task": f"{self.problem.source}/{self.problem.id}"}
        info["random_actions"] = self._guesses()
        if self.expert:
            careful = self.expert == "careful"
            random = None if careful else self.np_random
            info["expert_action"] = curriculum.solve(self.problem, random, mistake_prob=self.mistake_prob)
        return self.problem.problem, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Check a response; the observation is empty at the end, else it asks for another try."""
        if self.problem is None:
            raise gymnasium.error.ResetNeeded("Call reset() before step().")
        verdict = verify(
            self.problem.answer,
            action,
            answer_format=self.answer_format,
            tolerance=self.problem.tolerance,
            use_library=self.use_library,
        )
        self._attempts += 1
        terminated = verdict.correct or self._attempts >= self.max_attempts
        info = {
            **self._describe(),
            "success": verdict.correct,
            "score": float(verdict.correct),
            "answer": verdict.answer,
            "is_valid_action": verdict.answer is not None,
            "verdict": verdict.decided_by,
        }
        return "" if terminated else self._feedback(verdict), float(verdict.correct), terminated, False, info

    def task_content(self) -> list[Any]:
        """What determines the score of the present task: problem, gold answer, tolerance."""
        assert self.problem is not None, "reset comes first"
        return [self.problem.problem, self.problem.answer, self.problem.tolerance]

    def _describe(self) -> dict[str, Any]:
        assert self.problem is not None
        metadata = {"benchmark": self.problem.source, **self.problem.metadata}
        level = f"level {metadata['level']}" if "level" in metadata else self.problem.source
        category = self.problem.source if self._mixed else str(metadata.get("subject", level))
        return {"category": category, "metadata": metadata}

    def _guesses(self) -> list[str]:
        """Answers to other problems of the set, the same ones whenever this problem is put."""
        assert self.problem is not None
        random = np.random.default_rng(zlib.crc32(self.problem.id.encode()))
        drawn = random.integers(self.num_tasks, size=_NUM_GUESSES)
        return [write_answer(self.problems[i].answer, self.answer_format) for i in drawn]

    def _feedback(self, verdict: AnswerVerdict) -> str:
        left = self.max_attempts - self._attempts
        found = "That is not correct." if verdict.answer is not None else "No answer was found."
        return f"{found} Try again (attempts left: {left}). {_FEEDBACK[self.answer_format]}"


@lru_cache(maxsize=16)
def open_problems(
    *,
    split: str,
    data: tuple[str, ...],
    eval_data: tuple[str, ...] | None,
    data_dir: str | None,
    question_column: str | None,
    answer_column: str | None,
    levels: tuple[int, ...],
    exclude_overlap: bool,
    num_problems: int | None,
    data_seed: int,
) -> tuple[tuple[Problem, ...], dict[str, int]]:
    """The problems of a split, and how many rows were left out for which reason; shared within a process."""
    dropped = Counter[str]()

    def load(name: str, part: str) -> list[Problem]:
        if name == CURRICULUM:
            size = num_problems or (4000 if part == "train" else 500)
            return list(curriculum.make_problems(split=part, num_problems=size, seed=data_seed, levels=levels))
        problems, losses = load_problems(
            name, split=part, data_dir=data_dir, question_column=question_column, answer_column=answer_column
        )
        dropped.update(losses)
        if name not in NAMED_DATA and eval_data is None:
            problems = tuple(p for p in problems if _is_held_out(p) == (part == "test"))
        return [p for p in problems if not levels or p.metadata.get("level") in levels]

    if split == "test":
        chosen, dropped_here = [p for name in (eval_data or data) for p in load(name, "test")], dropped
    else:
        chosen, dropped_here = [p for name in data for p in load(name, "train")], dropped.copy()
        tested = _test_parts(data, eval_data, data_dir) if exclude_overlap else []
        chosen = _without_repeats(chosen, [p.problem for name in tested for p in load(name, "test")], dropped_here)
    if not chosen:
        raise DataError(f"No problem is left of {', '.join(data)}, split {split} (left out: {dict(dropped_here)}).")
    return tuple(chosen), dict(dropped_here)


def _test_parts(data: tuple[str, ...], eval_data: tuple[str, ...] | None, data_dir: str | None) -> list[str]:
    """Names whose test problems must not be trained on: those of `eval_data`, and all benchmarks at hand."""
    if data == (CURRICULUM,) and not eval_data:
        return []
    return list(dict.fromkeys([*(eval_data or ()), *available_data("test", data_dir=data_dir)]))


def _without_repeats(problems: list[Problem], held_out: list[str], dropped: "Counter[str]") -> list[Problem]:
    """Training problems less those that stand among the held-out texts, and less those that came before."""
    repeats = exact_repeats([problem.problem for problem in problems], held_out)
    if repeats:
        sources = ", ".join(dict.fromkeys(problem.source for problem in problems))
        log.warning("%d problems of %s stand in a benchmark: not trained on", len(repeats), sources)
    left = _without(problems, repeats, dropped, "in a benchmark")
    return _without(left, _repeated(left), dropped, "repeated")


def _without(problems: list[Problem], positions: list[int], dropped: "Counter[str]", reason: str) -> list[Problem]:
    gone = set(positions)
    if gone:
        dropped[reason] += len(gone)
    return [problem for i, problem in enumerate(problems) if i not in gone]


def _repeated(problems: list[Problem]) -> list[int]:
    """Positions of problems that came before, word for word and sign for sign (DAPO-17k repeats each 100 times)."""
    first: dict[str, int] = {}
    return [i for i, problem in enumerate(problems) if first.setdefault(problem.problem, i) != i]


def _is_held_out(problem: Problem) -> bool:
    return curriculum.is_held_out(" ".join(words(problem.problem)), seed=0, share=_HELD_OUT_SHARE)


def _names(data: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    return (os.fspath(data),) if isinstance(data, str | os.PathLike) else tuple(map(os.fspath, data))


def _check_options(
    split: str, answer_format: str, max_attempts: int, expert: str | None, source: dict[str, Any]
) -> None:
    check_choice("split", split, SPLITS)
    check_choice("answer_format", answer_format, ANSWER_FORMATS)
    check_at_least("max_attempts", max_attempts)
    check_choice("expert", expert, (None, *curriculum.EXPERTS))
    if expert and (source["data"] != (CURRICULUM,) or source["eval_data"] is not None):
        raise DataError("expert: only the curriculum has one; use data = 'curriculum' without eval_data.")
