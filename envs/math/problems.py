"""Problem files of any published format to one row: id, problem, answer, source, metadata.

A row without a usable gold answer is dropped and counted; a file that does not hold questions and answers is an error.
Names of columns match whatever their case; fields that are no text are read or refused by the rule
of `agentrl.common.fields`.
"""

import logging
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from agentrl.common.fields import fold, pick, read_spelled, text_of
from agentrl.common.rows import ENDINGS, read_rows
from agentrl.envs.env_errors import DataError
from agentrl.envs.math.answers import extract_answers, normalise
from agentrl.envs.math.numerals import parse_numeral

# Names of benchmarks and training sets: split -> file name without ending; a data folder holds NAME with an ending of
# `agentrl.common.rows`.
NAMED_DATA: dict[str, dict[str, str]] = {
    "math500": {"test": "math500"},
    "aime24": {"test": "aime24"},
    "aime25": {"test": "aime25"},
    "amc23": {"test": "amc23"},
    "minerva": {"test": "minerva"},
    "olympiadbench": {"test": "olympiadbench"},
    "gsm8k": {"train": "gsm8k_train", "test": "gsm8k_test"},
    "svamp": {"test": "svamp"},
    "math": {"train": "math_train", "test": "math500"},
    "aime_1983_2023": {"train": "aime_1983_2023"},
}
_INTEGER_ANSWERS = frozenset({"aime24", "aime25", "aime_1983_2023"})

# In lower case; a file's own spelling does not matter.
_QUESTION_COLUMNS = ("problem", "question", "prompt", "query", "input", "content")
_CONTEXT_COLUMNS = ("context", "body", "passage")
_ANSWER_COLUMNS = ("answer", "final_answer", "expected_answer", "ground_truth", "gold", "target", "gt_answer",
                   "correct_answer", "gold_answer")  # fmt: skip
_SOLUTION_COLUMNS = ("solution",)
_ID_COLUMNS = ("unique_id", "id", "_id", "docid", "idx", "problem_idx", "problem_id", "question_id", "qid", "uuid")
_SUBJECT_COLUMNS = ("subfield", "subject", "type", "problem_type")
_LEVEL_COLUMNS = ("level", "difficulty")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        id: unique within its file.
        problem: the text put to the model.
        answer: the gold answer, LaTeX without a box.
        source: name of the benchmark, or of the file.
        metadata: `subject` and `level` where the file tells them.
        tolerance: absolute error that the benchmark allows (OlympiadBench), if any.
    """

    id: str
    problem: str
    answer: str
    source: str
    metadata: dict[str, str | int | float] = field(default_factory=dict)
    tolerance: float | None = None


class ProblemSet(NamedTuple):
    """The problems of a file, and how many rows were dropped for which reason."""

    problems: tuple[Problem, ...]
    dropped: Counter[str]


@lru_cache(maxsize=32)
def load_problems(
    data: str,
    *,
    split: str = "test",
    data_dir: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
) -> ProblemSet:
    """The problems of a named data set or of a file; read once per process.

    Args:
        data: a name of `NAMED_DATA`, or a path to a file of a format of `agentrl.common.rows`.
        split: `train` or `test`, for named data sets.
        data_dir: folder of the named files; default: the environment variable `MATH_DATA`.
        question_column: column of the question; default: the first usual name that the file has.
        answer_column: column of the gold answer; default: likewise, else the last box of the column `solution`.

    Raises:
        DataError: the file is missing, damaged, empty, or has no such columns.
    """
    path = find_file(data, split=split, data_dir=data_dir)
    source = data if data in NAMED_DATA else _stem(path)
    reader = _RowReader(path, source, question_column, answer_column)
    problems, dropped = [], Counter[str]()
    for number, (_, row) in enumerate(read_rows(path, extra="math", error=DataError), start=1):
        problem = reader.read(row, number)
        if isinstance(problem, Problem):
            problems.append(problem)
        else:
            dropped[problem] += 1
    if not problems:
        raise DataError(f"{path} holds no problem with a gold answer (dropped: {dict(dropped) or 'nothing'}).")
    if dropped:
        log.warning("%s: %d of %d rows dropped: %s", path, dropped.total(), number, dict(dropped))
    return ProblemSet(tuple(problems), dropped)


def find_file(data: str, *, split: str, data_dir: str | None) -> Path:
    """Path of a named data set's file, or of `data` itself."""
    if data not in NAMED_DATA:
        path = Path(data).expanduser()
        if path.is_file():
            return path
        raise DataError(
            f"There is no file {data!r}, and no data set of that name. Names: {', '.join(NAMED_DATA)}, curriculum."
        )
    splits = NAMED_DATA[data]
    if split not in splits:
        raise DataError(f"The data set {data!r} has no {split!r} split; it has: {', '.join(splits)}.")
    folder = data_dir or os.environ.get("MATH_DATA")
    if not folder:
        raise DataError(f"Set data_dir or MATH_DATA to the folder that holds {splits[split]}.jsonl (for {data!r}).")
    for ending in ENDINGS:
        if (path := Path(folder).expanduser() / (splits[split] + ending)).is_file():
            return path
    raise DataError(
        f"Expected {splits[split]}.jsonl (or .json, .csv, .tsv, .parquet; packed) for {data!r} in {folder}, found none."
    )


def available_data(split: str, *, data_dir: str | None) -> list[str]:
    """Named data sets whose file of a split is in the data folder."""
    folder = data_dir or os.environ.get("MATH_DATA")
    if not folder or not Path(folder).expanduser().is_dir():
        return []
    files = {name: splits[split] for name, splits in NAMED_DATA.items() if split in splits}
    return [n for n, file in files.items() if any((Path(folder).expanduser() / (file + e)).is_file() for e in ENDINGS)]


class _RowReader:
    """Turns rows of one file into problems."""

    def __init__(self, path: Path, source: str, question_column: str | None, answer_column: str | None) -> None:
        self.path, self.source = path, source
        self.question_columns = (question_column.lower(),) if question_column else _QUESTION_COLUMNS
        self.answer_columns = (answer_column.lower(),) if answer_column else _ANSWER_COLUMNS
        self.may_use_solution = answer_column is None

    def read(self, row: dict[str, Any], number: int) -> Problem | str:
        """The problem of row `number` (from 1), or why it has to be dropped."""
        names, row = ", ".join(map(str, row)), fold(row)
        try:
            problem, answer = self._question(row, names), self._answer(row)
            name = text_of(pick(row, _ID_COLUMNS))
            subject = text_of(pick(row, _SUBJECT_COLUMNS), join=", ")
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.path}, row {number}: {error}.") from error
        level = _level(pick(row, _LEVEL_COLUMNS))
        if not problem:
            return "no question"
        if not answer:
            return "no gold answer"
        if level == 0:
            return "difficulty 0"
        named = {"subject": subject or None, "level": level}
        metadata = {key: value for key, value in named.items() if isinstance(value, str | int | float)}
        return Problem(name or str(number - 1), problem, answer, self.source, metadata, _tolerance(row))

    def _question(self, row: dict[str, Any], names: str) -> str:
        if not any(column in row for column in self.question_columns):
            raise ValueError(
                f"expected a column {' or '.join(self.question_columns)}, got {names}. Name it by question_column"
            )
        question = read_spelled(pick(row, self.question_columns))
        if isinstance(question, list) and question and isinstance(question[-1], dict):  # chat messages: the user's last
            question = next((m for m in reversed(question) if fold(m).get("role", "user") == "user"), question[-1])
        parts = [text_of(pick(row, _CONTEXT_COLUMNS)), text_of(question)]
        return "\n".join(filter(None, parts))

    def _answer(self, row: dict[str, Any]) -> str:
        reward_model = read_spelled(row.get("reward_model"))
        if any(column in row for column in self.answer_columns):
            answer = answer_text(pick(row, self.answer_columns))
        elif isinstance(reward_model, dict):  # verl's format, as DAPO-Math-17k is published
            answer = answer_text(fold(reward_model).get("ground_truth"))
        elif self.may_use_solution and (solution := text_of(pick(row, _SOLUTION_COLUMNS))):
            answer = next(iter(extract_answers(solution)), "")
        else:
            raise ValueError(f"expected a column {' or '.join(self.answer_columns)}; name it by answer_column")
        if "####" in answer:  # GSM8K: the rationale, then the number
            answer = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", answer.rpartition("####")[2]).strip()
        if r"\boxed" in answer:
            answer = next(iter(extract_answers(answer)), "")
        return _integer(answer) if answer and self.source in _INTEGER_ANSWERS else answer


def answer_text(value: Any) -> str:
    """A gold answer as text, without loss: `27.0` is `27`, a list is joined by commas, None and NaN are empty.

    Raises `TypeError` for what is no answer (booleans, objects).
    """
    try:
        return text_of(value, join=", ")
    except TypeError as error:
        raise TypeError(str(error).replace("expected a text", "expected an answer", 1)) from error


def _integer(answer: str) -> str:
    """`025`, `70.0`, `$204$` and `336^\\circ` as the integer that they are."""
    number = parse_numeral(re.sub(r"\^\{?\\circ\}?$", "", normalise(answer)).strip())
    if number and number.is_plain and number.value.denominator == 1:
        return str(number.value.numerator)
    raise ValueError(f"expected an integer as the answer, got {answer!r}")


def _level(value: Any) -> int | float | str | None:
    if isinstance(value, str):
        digits = re.fullmatch(r"(?:Level )?([0-9]+)", value)
        return int(digits.group(1)) if digits else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _tolerance(row: dict[str, Any]) -> float | None:
    try:
        return float(row["error"]) if row.get("error") else None
    except (TypeError, ValueError):
        return None


def _stem(path: Path) -> str:
    return path.name.split(".")[0]
