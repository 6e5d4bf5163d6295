"""Evidence recall: `python -m agentrl.retriever.evaluate OUT QUESTIONS.jsonl`.

For questions whose supporting titles are known: which share of those titles is among the top k passages when the
question itself is searched for, and for which share of the questions all of them are.
"""

import argparse
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agentrl.common.extras import MissingExtraError
from agentrl.common.fields import fold, text_of, texts_of
from agentrl.common.paths import user_path
from agentrl.common.progress import progress_bar
from agentrl.common.rows import read_rows
from agentrl.retriever.passages import Hit
from agentrl.retriever.retrieval_errors import RequestError, RetrieverError
from agentrl.retriever.search import Retriever, available_indexes

_BATCH = 64


@dataclass(frozen=True)
class EvidenceQuestion:
    """dataset, question, and the titles of its supporting passages."""

    dataset: str
    question: str
    titles: frozenset[str]


def fold_title(title: str) -> str:
    """A title without quotes, case and Unicode variants.

    >>> fold_title('"Kiss and Tell"') == fold_title("kiss and tell")
    True
    """
    return unicodedata.normalize("NFC", title.strip().strip('"')).casefold()


def read_questions(path: Path, *, limit: int = 0) -> list[EvidenceQuestion]:
    """Questions with supporting titles (`question`, `supporting_titles`, optionally `dataset`).

    Raises:
        RequestError: the file cannot be read, a row with titles has no question, or no row has titles.
    """
    questions = []
    for place, fields in read_rows(path, extra="search", error=RequestError):
        row = fold(fields)
        titles = frozenset(map(fold_title, texts_of(row.get("supporting_titles"))))
        if titles:
            if not (question := text_of(row.get("question"))):
                raise RequestError(f"{path}, {place}: expected a question, got {str(fields)[:120]}")
            questions.append(EvidenceQuestion(text_of(row.get("dataset")) or path.stem, question, titles))
    if not questions:
        raise RequestError(f"{path}: no row with a question and its supporting_titles")
    return questions[:: -(-len(questions) // limit)] if limit else questions


def recall_at(questions: Sequence[EvidenceQuestion], found: Iterable[Sequence[Hit]], k: int) -> tuple[float, float]:
    """(mean share of supporting titles among the first k hits, share of questions with all of them)."""
    shares = []
    for question, hits in zip(questions, found, strict=True):
        seen = {fold_title(hit.title) for hit in hits[:k]}
        shares.append(len(question.titles & seen) / len(question.titles))
    return float(np.mean(shares)), float(np.mean([share == 1 for share in shares]))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.retriever.evaluate",
        description="Evidence recall of the indexes of a folder on questions with known supporting titles.",
        epilog="A question with k supporting titles cannot have recall 1 at fewer than k passages.",
    )
    parser.add_argument(
        "folder", type=user_path, metavar="OUT", help="a folder written by python -m agentrl.retriever.build"
    )
    parser.add_argument(
        "questions", type=user_path, metavar="QUESTIONS.jsonl", help="rows with question, supporting_titles"
    )
    parser.add_argument("--index", nargs="+", help="indexes (default: all of the folder)")
    parser.add_argument("--topk", type=int, nargs="+", default=[3, 10], help="numbers of passages (default: 3 10)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the encoder")
    parser.add_argument(
        "--limit", type=int, default=0, help="use about this many questions, evenly spread (default: all)"
    )
    options = parser.parse_args(arguments)
    try:
        questions = read_questions(options.questions, limit=options.limit)
        for name in options.index or available_indexes(options.folder):
            _report(options, name, questions)
    except (RetrieverError, MissingExtraError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _report(options: argparse.Namespace, name: str, questions: Sequence[EvidenceQuestion]) -> None:
    retriever = Retriever.open(options.folder, index=name, encode_dtype=options.dtype)
    found: list[list[Hit]] = []
    begin = time.process_time()
    with progress_bar(f"searching {name}", len(questions)) as advance:
        for start in range(0, len(questions), _BATCH):
            batch = [question.question for question in questions[start : start + _BATCH]]
            found += retriever.search(batch, topk=max(options.topk))
            advance(len(batch))
    seconds = time.process_time() - begin
    for dataset in [*dict.fromkeys(question.dataset for question in questions), "all"]:
        own = [i for i, question in enumerate(questions) if dataset in (question.dataset, "all")]
        values = [recall_at([questions[i] for i in own], [found[i] for i in own], k) for k in options.topk]
        shown = "  ".join(
            f"recall@{k} {mean:.3f} (all {whole:.3f})" for k, (mean, whole) in zip(options.topk, values, strict=True)
        )
        print(f"{name:16} {dataset:18} n {len(own):5}  {shown}", flush=True)
    print(f"{name:16} {1000 * seconds / len(questions):.2f} CPU ms per query, encoder included", flush=True)


if __name__ == "__main__":
    sys.exit(main())
