"""Is the answer in this response the gold answer? Never stalls, never raises on a model's text.

Three routes, tried in order: the same text after normalisation; exact arithmetic where both are plain numbers; and
math-verify in a worker process that is killed when it overruns. The first two take microseconds in this process.

    >>> verify("0.5", r"so the answer is \\boxed{\\frac{1}{2}}").correct
    True
"""

import importlib.util
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass

from agentrl.common.extras import MissingExtraError
from agentrl.envs.math.answers import (
    AnswerTooLongError,
    canonical,
    extract_answers,
    normalise,
)
from agentrl.envs.math.equivalents import same_by_convention
from agentrl.envs.math.markup import without_markup
from agentrl.envs.math.numerals import numerals_equal, parse_numeral
from agentrl.envs.math.workers import WorkerPool

MAX_ANSWER_CHARS = 2000
_CACHE_SIZE = 1 << 14  # pairs of at most a few kB

_pool = WorkerPool("agentrl.envs.math.checker")  # nothing runs before the first request
_Question = tuple[str, str, float | None]  # gold answer, prediction, tolerance
_LibraryVerdict = tuple[bool, str, str]
_verdicts: "OrderedDict[_Question, _LibraryVerdict]" = OrderedDict()
_asked: "dict[_Question, Future[_LibraryVerdict]]" = {}  # being checked now
_lock = threading.Lock()


def _forget_other_threads() -> None:
    """In a forked child: the threads that were checking something are the parent's."""
    global _lock
    _lock = threading.Lock()
    _asked.clear()


os.register_at_fork(after_in_child=_forget_other_threads)


@dataclass(frozen=True, slots=True)
class AnswerVerdict:
    """The outcome of one check.

    Attributes:
        correct: whether the response gives the gold answer.
        answer: the answer found, in one spelling for all writings of one number (for majority votes); None without one.
        decided_by: `identical` (same text), `number` (integers, decimals, fractions), `extended` (powers of ten,
            percentages, choices, bases, where math-verify errs), `library`; or why the response counts as wrong
            unchecked: `no_answer`, `too_long`, `timeout`, `died`, `error`.
        detail: what a failed worker reported.
    """

    correct: bool
    answer: str | None
    decided_by: str
    detail: str = ""


def verify(
    gold: str,
    response: str,
    *,
    answer_format: str = "boxed",
    tolerance: float | None = None,
    use_library: bool = True,
) -> AnswerVerdict:
    """Check the answer of `response` against `gold` (LaTeX without a box).

    The last box counts; where the gold answer is a list, boxes joined by commas or "and" may give it together. An
    absolute `tolerance` accepts numbers that near. Without the library only the same text and plain numbers are equal
    (then math-verify need not be installed, and no process is started).
    """
    try:
        answers = extract_answers(
            response, answer_format=answer_format, max_chars=max(MAX_ANSWER_CHARS, 2 * len(gold) + 200)
        )
    except AnswerTooLongError:
        return AnswerVerdict(False, None, "too_long")
    if not answers:
        return AnswerVerdict(False, None, "no_answer")
    normal_gold = normalise(gold)
    if len(answers) > 1 and not _is_list(normal_gold):
        answers = answers[:1]
    verdicts = []
    for answer in answers:
        verdicts.append(_compare(normal_gold, answer, tolerance, use_library))
        if verdicts[-1].correct:
            return verdicts[-1]
    return verdicts[0]


def start_workers() -> None:
    """Start the worker processes in the background, so that the first check that needs them does not wait for SymPy."""
    require_math_verify()
    _pool.start()


def require_math_verify() -> None:
    """Raise `MissingExtraError` where math-verify is not installed (looked up, not imported)."""
    if importlib.util.find_spec("math_verify") is None:
        raise MissingExtraError("math-verify", "math", "checking mathematical answers")


def _is_list(gold: str) -> bool:
    return "," in gold or ";" in gold or r"\text{ and }" in gold or r"\text{ or }" in gold or r"\pm" in gold


def _compare(gold: str, answer: str, tolerance: float | None, use_library: bool) -> AnswerVerdict:
    """Both routes of this process, then the library's. `gold` is normalised, `answer` as written."""
    normal, key = normalise(answer), canonical(answer)
    if not normal:
        return AnswerVerdict(False, None, "no_answer")
    if normal == gold:
        return AnswerVerdict(True, key, "identical")
    gold_number, number = parse_numeral(gold), parse_numeral(normal)
    if gold_number and number:
        equal = numerals_equal(gold_number, number, tolerance=tolerance)
        if equal is not None:
            plain = gold_number.is_plain and number.is_plain
            return AnswerVerdict(equal, key, "number" if plain else "extended")
    by_convention = same_by_convention(gold, normal, written=without_markup(answer))
    if by_convention is not None:
        return AnswerVerdict(by_convention, key, "extended")
    if not use_library:
        return AnswerVerdict(False, key, "number")
    correct, decided_by, detail = library_verdict(gold, normal, tolerance=tolerance)
    return AnswerVerdict(correct, key, decided_by, detail)


def library_verdict(gold: str, prediction: str, *, tolerance: float | None = None) -> _LibraryVerdict:
    """(equal, `library` or what failed, detail) for two normalised answers, by math-verify in a worker.

    Cached, but for failures that depend on the machine's load or memory; threads that ask the same share one check.
    """
    question = (gold, prediction, tolerance)
    with _lock:
        if question in _verdicts:
            _verdicts.move_to_end(question)
            return _verdicts[question]
        mine = question not in _asked
        shared = _asked.setdefault(question, Future())
    if not mine:
        return shared.result()
    try:
        shared.set_result(_ask(question))
    except BaseException as error:
        shared.set_exception(error)
    finally:
        with _lock:
            _asked.pop(question, None)
    return shared.result()


def _ask(question: _Question) -> _LibraryVerdict:
    require_math_verify()
    gold, prediction, tolerance = question
    outcome = _pool.call({"gold": gold, "prediction": prediction, "tolerance": tolerance})
    verdict = (bool(outcome.value and outcome.value["equal"]), outcome.failure or "library", outcome.detail)
    by_the_machine = outcome.failure == "died" or outcome.detail == "wall" or outcome.detail.startswith("MemoryError")
    if not by_the_machine:
        with _lock:
            _verdicts[question] = verdict
            if len(_verdicts) > _CACHE_SIZE:
                _verdicts.popitem(last=False)
    return verdict
