"""A lexical BM25 index in numpy: no model, no other package.

Scores are Lucene's: sum over query terms of idf(t) * tf / (tf + k1 * (1 - b + b * length / mean length)), with
idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5)), k1 = 0.9 and b = 0.4 (Pyserini's defaults, which Search-R1 uses).
Terms are lower-cased words without accents; English function words are dropped and plural endings folded
(Harman's S-stemmer, "How effective is suffixing?", 1991), where Lucene's analyser uses Porter's stemmer.
"""

import re
import threading
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

K1, B = 0.9, 0.4
_WORD = re.compile(r"\w+")
# Lucene's default English stop set, with the question words that no passage is about.
_STOP_WORDS = """
    a an and are as at be but by for if in into is it no not of on or such that the their then there these they this
    to was will with who what when where which whom whose why how did does do has had have were been
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_PASSAGES_PER_RUN = 100_000


def terms(text: str) -> list[str]:
    """The index terms of a text, in order."""
    folded = text.lower()
    if not folded.isascii():
        folded = "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c))
    return [_singular(word) for word in _WORD.findall(folded) if word not in STOP_WORDS]


def _singular(word: str) -> str:
    if len(word) < 4 or word[-1] != "s" or word[-2] in "us":
        return word
    if word.endswith("ies") and word[-4] not in "ea":
        return word[:-3] + "y"
    if word.endswith("es") and word[-3] in "aeo":
        return word
    return word[:-1]


class Bm25Index:
    """Postings of every term: rows of passages (ascending) and the term's weight in each.

    Args:
        vocabulary: term -> number.
        starts: int64 `[terms + 1]`; postings of term t are `[starts[t], starts[t + 1])`.
        rows: int32, the passage of a posting.
        weights: float32, its contribution to the score.
        num_rows: passages in the corpus.
    """

    kind = "bm25"

    def __init__(
        self, vocabulary: dict[str, int], starts: np.ndarray, rows: np.ndarray, weights: np.ndarray, num_rows: int
    ) -> None:
        self.vocabulary, self.starts, self.rows, self.weights = vocabulary, starts, rows, weights
        self.num_rows = num_rows
        self._scratch = threading.local()

    def search(self, queries: Sequence[str], k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query: scores (float32) and rows (int64) of at most k passages that share a term with it, best first."""
        return [self._search_one(query, k) for query in queries]

    def _search_one(self, query: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        totals = getattr(self._scratch, "totals", None)
        if totals is None:
            totals = self._scratch.totals = np.zeros(self.num_rows, np.float32)
        touched = []
        # Sorted, so that float32 sums do not depend on the order of words in the query.
        for term, count in sorted(Counter(terms(query)).items()):
            number = self.vocabulary.get(term)
            if number is not None:
                postings = slice(self.starts[number], self.starts[number + 1])
                totals[self.rows[postings]] += count * self.weights[postings]
                touched.append(self.rows[postings])
        if not touched:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        rows = np.unique(np.concatenate(touched)).astype(np.int64)
        scores = totals[rows]
        totals[rows] = 0.0
        if len(rows) > k:  # keep every passage that ties with the k-th
            kept = scores >= np.partition(scores, len(scores) - k)[-k]
            rows, scores = rows[kept], scores[kept]
        best = np.lexsort((rows, -scores))[:k]
        return scores[best], rows[best]

    def save(self, folder: Path) -> None:
        """Write the index as `terms.txt` and three `.npy` files."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "terms.txt").write_text("\n".join(self.vocabulary), encoding="utf-8")
        np.save(folder / "starts.npy", self.starts)
        np.save(folder / "rows.npy", self.rows)
        np.save(folder / "weights.npy", self.weights)

    @classmethod
    def load(cls, folder: Path, *, num_rows: int) -> "Bm25Index":
        """Open a saved index; the postings are memory-mapped."""
        names = (folder / "terms.txt").read_text(encoding="utf-8").split("\n")
        starts, rows, weights = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("starts", "rows", "weights")
        )
        return cls({name: number for number, name in enumerate(names)}, np.asarray(starts), rows, weights, num_rows)

    @classmethod
    def build(cls, texts: Iterable[str], *, scratch: Path | None = None) -> "Bm25Index":
        """Index texts in row order.

        Args:
            texts: contents of the passages.
            scratch: a folder for sorted runs and for the postings, which are then memory-mapped, so that memory is
                bounded by the vocabulary and one run of 100,000 passages. None keeps everything in memory.
        """
        vocabulary: dict[str, int] = {}
        lengths: list[np.ndarray] = []
        runs: list[np.ndarray | Path] = []
        num_rows = 0
        for run, texts_of_run in enumerate(_chunks(texts, _PASSAGES_PER_RUN)):
            postings, run_lengths = _invert(texts_of_run, vocabulary, first_row=num_rows)
            num_rows += len(run_lengths)
            lengths.append(run_lengths)
            if scratch is None:
                runs.append(postings)
            else:
                scratch.mkdir(parents=True, exist_ok=True)
                np.save(scratch / f"run-{run:05d}.npy", postings)
                runs.append(scratch / f"run-{run:05d}.npy")
        return _merge(vocabulary, runs, np.concatenate(lengths), scratch)


def _chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _invert(texts: Sequence[str], vocabulary: dict[str, int], *, first_row: int) -> tuple[np.ndarray, np.ndarray]:
    """Postings `[n, 3]` (term, row, frequency) sorted by term then row, and the number of terms of each text."""
    entries = array("i")  # 12 bytes a posting, where a list of tuples takes 120
    lengths = np.empty(len(texts), np.int32)
    for offset, text in enumerate(texts):
        words = terms(text)
        lengths[offset] = len(words)
        for term, count in Counter(words).items():
            entries.extend((vocabulary.setdefault(term, len(vocabulary)), first_row + offset, count))
    postings = np.frombuffer(entries, np.int32).reshape(-1, 3)
    return postings[np.argsort(postings[:, 0], kind="stable")], lengths


def _merge(
    vocabulary: dict[str, int], runs: Sequence[np.ndarray | Path], lengths: np.ndarray, scratch: Path | None
) -> Bm25Index:
    num_rows, num_terms = len(lengths), len(vocabulary)
    frequencies = np.zeros(num_terms, np.int64)
    for run in runs:
        frequencies += np.bincount(_load_run(run)[:, 0], minlength=num_terms)
    starts = np.concatenate([np.zeros(1, np.int64), frequencies.cumsum()])
    rows = _new_array(scratch, "rows", int(starts[-1]), np.int32)
    weights = _new_array(scratch, "weights", int(starts[-1]), np.float32)
    idf = np.log1p((num_rows - frequencies + 0.5) / (frequencies + 0.5))
    norms = K1 * (1 - B + B * lengths / max(lengths.mean(), 1e-9))
    free = starts[:-1].copy()  # where the next posting of each term goes
    for run in runs:
        term, row, count = _load_run(run).T
        counts = np.bincount(term, minlength=num_terms)
        first = np.cumsum(counts) - counts
        places = free[term] + np.arange(len(term)) - first[term]
        rows[places] = row
        weights[places] = idf[term] * count / (count + norms[row])
        free += counts
        if isinstance(run, Path):
            run.unlink()
    return Bm25Index(vocabulary, starts, rows, weights, num_rows)


def _load_run(run: np.ndarray | Path) -> np.ndarray:
    return np.load(run, mmap_mode="r") if isinstance(run, Path) else run


def _new_array(scratch: Path | None, name: str, size: int, dtype: type) -> np.ndarray:
    if scratch is None or size == 0:
        return np.empty(size, dtype)
    return np.lib.format.open_memmap(scratch / f"{name}.tmp.npy", mode="w+", dtype=dtype, shape=(size,))
