"""Question sets from local files in their published formats.

| data set | formats read |
|---|---|
| hotpotqa, 2wikimultihopqa | official JSON list; Hugging Face rows as JSON lines |
| musique | official JSON lines (aliases and supporting paragraphs kept) |
| bamboogle | CSV `Question,Answer`; JSON lines |
| nq | NQ-open JSON lines; DPR's `question<TAB>['answer', ...]`, named .tsv or .csv |
| triviaqa | official JSON `{"Data": [...]}`; DPR's; Hugging Face rows |
| popqa | TSV with `possible_answers`; JSON lines |
| any | FlashRAG (`golden_answers`, `metadata`) and Search-R1 (`reward_model.ground_truth.target`) rows |
| any | rows with a column of `QUESTION_COLUMNS` and one of `ANSWER_COLUMNS`, whatever their case |

Every one may come as JSON lines, JSON, CSV, TSV or Parquet (`agentrl.common.rows`). All aliases count as gold answers.
What fields hold that are no text is read or refused by the rule of `agentrl.common.fields`.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentrl.common.data_source import DataSource, content_digest
from agentrl.common.fields import (
    find_packed,
    fold,
    is_missing,
    pick,
    read_spelled,
    text_of,
    texts_of,
)
from agentrl.common.rows import read_rows
from agentrl.envs.env_errors import DataError

QUESTION_COLUMNS = ("question", "query", "problem", "input", "prompt", "content")
ANSWER_COLUMNS = ("golden_answers", "possible_answers", "answers", "answer", "targets", "target", "output",
                  "ground_truth", "gold", "final_answer")  # fmt: skip
ID_COLUMNS = ("id", "_id", "questionid", "question_id", "qid", "query_id", "query-id", "docid", "doc_id", "idx")

# Questions in the files that published numbers are made with (Search-R1); a report says when a set is a part of it.
PUBLISHED_SIZES = {
    "nq": 3610,
    "triviaqa": 11313,
    "popqa": 14267,
    "hotpotqa": 7405,
    "2wikimultihopqa": 12576,
    "musique": 2417,
    "bamboogle": 125,
}
_MEMBERS = {
    "2wiki": "2wikimultihopqa", "2wikimqa": "2wikimultihopqa", "2wikimultihop": "2wikimultihopqa",
    "hotpot": "hotpotqa", "hotpot_qa": "hotpotqa", "nq_open": "nq", "trivia_qa": "triviaqa",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question.

    task: stable name, `dataset/id`.
    text: the question as the file has it.
    golden_answers: every accepted answer.
    dataset: name of the data set.
    kind: its type ("bridge", "comparison", ...), or "" where the file does not say.
    supporting_titles: titles of the passages that answer it, in the order a reader finds them; empty if unknown.
    """

    task: str
    text: str
    golden_answers: tuple[str, ...]
    dataset: str
    kind: str = ""
    supporting_titles: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A FlashRAG row, which `load_questions` reads again."""
        return {
            "id": self.task.partition("/")[2],
            "dataset": self.dataset,
            "question": self.text,
            "golden_answers": list(self.golden_answers),
            "type": self.kind,
            "supporting_titles": list(self.supporting_titles),
        }


def dataset_name(name: str) -> str:
    """The one name of a data set that goes by several.

    >>> dataset_name("searchR1_2WikiMultihopQA"), dataset_name("my_set")
    ('2wikimultihopqa', 'my_set')
    """
    bare = name.removeprefix("searchR1_")  # verl's and verl-agent's copies of Search-R1's rows
    known = _MEMBERS.get(bare.lower(), bare.lower())
    return known if known in PUBLISHED_SIZES else bare


def load_questions(files: Mapping[str, str | Path], *, split: str, holdout: float = 0.0) -> tuple[Question, ...]:
    """The questions of a split, data set by data set.

    Args:
        files: data set name -> path. `{split}` in a path stands for the split's name. A path without it is one file
            for all splits: then training needs `holdout`, so that evaluation never meets a training question.
        split: "train" or the name of an evaluation split.
        holdout: share of a file without `{split}` that is kept from training; chosen by the question's text, so that
            equal questions fall on one side.

    Raises:
        DataError: a file is missing, a row is no question, or training and evaluation would share questions.
    """
    if not 0 <= holdout < 1:
        raise DataError(f"holdout must be a share from 0 to below 1, got {holdout}")
    questions: list[Question] = []
    for name, path in files.items():
        has_split = "{split}" in str(path)
        if split == "train" and not has_split and not holdout:
            raise DataError(
                f"questions.{name}: {path} is the same file for training and evaluation. Put {{split}} into its name "
                "(one file per split), or set holdout = 0.1 to keep a tenth of it from training."
            )
        rows = _read_questions(str(path).replace("{split}", split), dataset_name(name))
        if not has_split and holdout:
            rows = tuple(q for q in rows if _is_held_out(q, holdout) != (split == "train"))
        questions += rows
    if not files:
        raise DataError("no question file is named; give for example questions.hotpotqa = 'hotpotqa_{split}.jsonl'")
    if not questions:
        raise DataError(f"no questions for split {split!r} in {', '.join(map(str, files.values()))}")
    return tuple(questions)


def source_of(questions: Sequence[Question], searched: str) -> DataSource:
    """What questions from files are called: their number, their digest, and what is searched for answers."""
    rows = ((question.task, question.text, *question.golden_answers) for question in questions)
    return DataSource("files", len(questions), content_digest(rows), f"searching {searched}")


def _is_held_out(question: Question, share: float) -> bool:
    words = " ".join(question.text.lower().split())
    return zlib.crc32(words.encode("utf-8", "replace")) % 10_000 < share * 10_000


@lru_cache(maxsize=64)
def _read_questions(path: str, dataset: str) -> tuple[Question, ...]:
    file = find_packed(Path(path).expanduser())
    if file is None:
        raise DataError(f"no question file at {path} (data set {dataset}); give the path of the published file")
    questions = []
    header = {*QUESTION_COLUMNS, *ANSWER_COLUMNS}
    for number, (_, row) in enumerate(read_rows(file, extra="search", error=DataError, header=header)):
        try:
            questions.append(_parse(row, dataset, number))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            shown = json.dumps(row, default=str)[:160]
            reason = error.args[0] if error.args else error
            raise DataError(
                f"{path}, row {number}: expected a question with its answer, got {shown} ({reason}). "
                f"Formats that are read: see envs/search_qa/questions.py."
            ) from error
    return tuple(questions)


def _parse(row: Mapping[str, Any], dataset: str, number: int) -> Question:
    row = fold(row)
    text = text_of(pick(row, QUESTION_COLUMNS))
    if not text:
        raise ValueError(f"no question text: expected a column {' or '.join(QUESTION_COLUMNS)}")
    answers = tuple(dict.fromkeys(_answers(row)))
    if not answers:
        raise ValueError(f"no answer: expected a column {' or '.join(ANSWER_COLUMNS)}")
    name = dataset_name(text_of(pick(row, ("dataset", "data_source"))) or dataset)
    metadata = _object(row.get("metadata"))
    if metadata:  # FlashRAG keeps there what its rows have no field for
        row = {**fold(metadata), **row}
    key = text_of(pick(row, ID_COLUMNS)) or number
    return Question(f"{name}/{key}", text, answers, name, text_of(row.get("type")), tuple(dict.fromkeys(_titles(row))))


def _answers(row: Mapping[str, Any]) -> list[str]:
    """All accepted answers of a folded row in any of the formats."""
    rewarded = _object(row.get("reward_model"))
    if rewarded:
        truth = fold(rewarded).get("ground_truth")
        target = fold(truth).get("target") if isinstance(truth, Mapping) else truth
        if not is_missing(target):
            return texts_of(target)
    return [*texts_of(pick(row, ANSWER_COLUMNS)), *texts_of(pick(row, ("answer_aliases", "aliases")))]


def _object(value: Any) -> Mapping[str, Any]:
    """An object, or one given as JSON text; empty for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, Mapping) else {}


def _titles(row: Mapping[str, Any]) -> list[str]:
    """Titles of the supporting passages of a folded row."""
    if titles := texts_of(row.get("supporting_titles")):
        return titles
    facts = read_spelled(row.get("supporting_facts"))
    if isinstance(facts, Mapping):
        return texts_of(fold(facts).get("title"))
    if isinstance(facts, list):
        return [text for fact in facts for text in _fact_title(fact)]
    paragraphs = row.get("paragraphs") or []
    return [
        text_of(p["title"])
        for p in (paragraphs if isinstance(paragraphs, list) else ())
        if isinstance(p, Mapping) and p.get("is_supporting") and not is_missing(p.get("title"))
    ]


def _fact_title(fact: Any) -> list[str]:
    """The title in `["Title", 0]`, in an object with a title, or the text itself."""
    if isinstance(fact, Mapping):
        return texts_of(fold(fact).get("title"))
    return texts_of(fact[0] if isinstance(fact, list | tuple) and fact else fact)
