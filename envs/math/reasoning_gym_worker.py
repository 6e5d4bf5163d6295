"""reasoning-gym's generators and scorers; runs in a worker process that can be killed (`agentrl.envs.math.workers`).

Scorers read the model's text with SymPy's parser and, four of them, with `eval`; some loop for minutes on a short
text. Generators iterate over sets, so that their problems depend on the hash seed, which the workers fix.
"""

import ast
import hashlib
import importlib
import json
import math
import time
import warnings
from functools import lru_cache
from typing import Any

DATASET_SIZE = 10_000
HELD_OUT_SHARE = 0.25
_MAX_TRIES = 400
NUM_GUESSES = 16
"""Answers that a random policy draws from."""
_JUNK = ("", "?", "no answer")
# These call `eval` on answers, all of which are lists; a literal is all they may read.
_EVALUATING_MODULES = (
    "algorithmic.string_insertion",
    "algorithmic.spiral_matrix",
    "algorithmic.binary_matrix",
    "games.n_queens",
)


def initialise() -> None:
    """Disarm what evaluates answers as code, and silence warnings about junk."""
    warnings.simplefilter("ignore")
    for name in _EVALUATING_MODULES:
        importlib.import_module(f"reasoning_gym.{name}").eval = ast.literal_eval  # type: ignore[attr-defined]


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one of

    `{"call": "names"}` with `{"names": [...]}`;
    `{"call": "check", "name", "seed", "config"}` with `{}`, or an error;
    `{"call": "problem", "name", "seed", "config", "split", "task"}` with `{"question", "answer", "index", "subject",
    "cpu_s"}`, the reference answer being None where a task has none;
    `{"call": "answers", "name", "seed", "config"}` with `{"answers": [...]}`, reference answers of some problems;
    `{"call": "score", "name", "seed", "config", "index", "answer"}` with `{"score", "reason"}`.
    """
    if request["call"] == "names":
        from reasoning_gym.factory import DATASETS

        return {"names": sorted(DATASETS)}
    started = time.process_time()
    source = (request["name"], request["seed"], json.dumps(request["config"], sort_keys=True))
    if request["call"] == "check":
        dataset(source)
        return {}
    if request["call"] == "problem":
        index = find_index(source, request["split"], request["task"])
        problem, subject = entry(source, index), type(dataset(source)).__module__.split(".")[1]
        answer = None if problem["answer"] is None else str(problem["answer"])
        junk_score(source, index)
        return {
            "question": problem["question"],
            "answer": answer,
            "index": index,
            "subject": subject,
            "cpu_s": time.process_time() - started,
        }
    if request["call"] == "answers":
        found = (entry(source, index)["answer"] for index in range(min(NUM_GUESSES, len(dataset(source)))))
        return {"answers": [str(answer) for answer in found if answer is not None]}
    score, reason = score_answer(source, request["index"], request["answer"])
    return {"score": score, "reason": reason}


_Source = tuple[str, int, str]


@lru_cache(maxsize=4)
def dataset(source: _Source) -> Any:
    """The generator of a task, seed and configuration (JSON)."""
    import reasoning_gym
    from reasoning_gym.composite import DatasetSpec

    name, seed, config = source
    options = {"size": DATASET_SIZE, **json.loads(config)}
    if "datasets" in options:  # `composite`: a mixture of others
        options["datasets"] = [DatasetSpec(**{"weight": 1, "config": {}, **d}) for d in options["datasets"]]
    return reasoning_gym.create_dataset(name, seed=seed, **options)


@lru_cache(maxsize=1024)
def entry(source: _Source, index: int) -> dict[str, Any]:
    """Problem number `index` of a generator, with its reference answer and metadata."""
    return dict(dataset(source)[index])


@lru_cache(maxsize=1024)
def find_index(source: _Source, split: str, task: int) -> int:
    """The entry that is task number `task` of a split; a question belongs to a split by its hash."""
    size = len(dataset(source))
    for attempt in range(_MAX_TRIES):
        index = (task + attempt * 1009) % size
        digest = hashlib.blake2b(entry(source, index)["question"].encode(), digest_size=8).digest()
        if (int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**64) == (split == "test"):
            return index
    raise ValueError(f"{source[0]} has too few distinct questions to hold some out")


@lru_cache(maxsize=1024)
def junk_score(source: _Source, index: int) -> float:
    """The best score that texts without any content reach with this problem."""
    return max(raw_score(source, index, text)[0] for text in _JUNK)


def score_answer(source: _Source, index: int, answer: str) -> tuple[float, str]:
    """Score 0 to 1 and why it is 0; what is no better than junk, and not the reference answer, counts as 0."""
    score, reason = raw_score(source, index, answer)
    if score <= junk_score(source, index) and answer.strip() != str(entry(source, index)["answer"]).strip():
        return 0.0, reason or "no better than junk"
    return score, reason


def raw_score(source: _Source, index: int, answer: str) -> tuple[float, str]:
    """The scorer's own number, clamped to 0 to 1; 0 with the reason where it raises or returns no number."""
    try:
        score = float(dataset(source).score_answer(answer, entry(source, index)))
    except Exception as error:  # scorers of a third party, fed with a model's text
        return 0.0, f"{type(error).__name__}: {str(error)[:200]}"
    if not math.isfinite(score):
        return 0.0, f"score {score}"
    return min(1.0, max(0.0, score)), ""
