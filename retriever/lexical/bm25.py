"""BM25 search with Lucene's arithmetic, on numpy.

Scores follow Lucene's `BM25Similarity` (k1 = 0.9, b = 0.4, Anserini's defaults) down to its float32 operations and its
one-byte document lengths, so that the order of results is Lucene's own; equal scores are ordered by document id. The
index is a handful of flat arrays, held in memory or mapped from a folder and then shared by all processes.

Letters: D documents, V terms, P postings (pairs of a term and a document that contains it).
"""

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentrl.retriever.lexical.analyzer import terms

K1 = np.float32(0.9)
B = np.float32(0.4)
_BLOCK_DOCUMENTS = 64
ARRAYS = ("term_bytes", "term_ends", "starts", "documents", "counts", "inverse_norms", "tie_ranks", "num_documents")


def _encode_int4(value: int) -> int:
    """Lucene's `SmallFloat.longToInt4`: four significant bits and an exponent."""
    shift = value.bit_length() - 4
    return value if shift < 0 else ((value >> shift) & 7) | ((shift + 1) << 3)


def _decode_int4(code: int) -> int:
    shift = (code >> 3) - 1
    return code & 7 if shift < 0 else ((code & 7) | 8) << shift


_EXACT_LENGTHS = 255 - _encode_int4(2**31 - 1)  # lengths below 24 are stored exactly


def stored_length(length: int) -> int:
    """A document length as Lucene remembers it, in one byte (`SmallFloat.intToByte4`).

    >>> stored_length(23), stored_length(107)
    (23, 104)
    """
    if length < _EXACT_LENGTHS:
        return length
    return _EXACT_LENGTHS + _decode_int4(_encode_int4(length - _EXACT_LENGTHS))


def inverse_norms(lengths: NDArray[np.int32]) -> NDArray[np.float32]:
    """1 / (k1 (1 - b + b L / average)) for document lengths [D] in terms: float32 [D], each operation as in Lucene."""
    average = np.float32(int(lengths.sum(dtype=np.int64)) / max(int(np.count_nonzero(lengths)), 1))
    distinct, which = np.unique(lengths, return_inverse=True)
    stored = np.array([stored_length(int(length)) for length in distinct], np.float32)
    one = np.float32(1)
    relative = B * stored / average if average else stored
    return (one / (K1 * ((one - B) + relative)))[which]


class LexicalIndex:
    """An inverted index over D documents numbered from 0.

    The arrays, by name: `term_bytes` the sorted terms as UTF-8 one after the other, `term_ends` [V] where each ends,
    `starts` [V + 1] where each term's postings begin, `documents` [P], `counts` [P] occurrences of the term in the
    document, `inverse_norms` [D], `tie_ranks` [D] rank of the document's id among all ids, `num_documents` [] how many
    documents have any term (Lucene counts only those).
    """

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.term_bytes = arrays["term_bytes"]
        self.term_ends = arrays["term_ends"]
        self.starts = arrays["starts"]
        self.documents = arrays["documents"]
        self.counts = arrays["counts"]
        self.inverse_norms = arrays["inverse_norms"]
        self.tie_ranks = arrays["tie_ranks"]
        self.num_documents = int(arrays["num_documents"])
        self._row = lru_cache(maxsize=1 << 16)(self._find)

    @classmethod
    def open(cls, folder: Path) -> "LexicalIndex":
        """Map a saved index into memory; nothing is read until a query needs it."""
        # a plain view: numpy's memmap subclass costs microseconds at each indexing
        return cls({name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in ARRAYS})

    def _find(self, wanted: str) -> int:
        """Row of a term by binary search, or -1."""
        needle = wanted.encode("utf-8", "surrogatepass")
        low, high = 0, len(self.term_ends)
        while low < high:
            middle = (low + high) // 2
            if self._term(middle) < needle:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self.term_ends) and self._term(low) == needle else -1

    def _term(self, row: int) -> bytes:
        begin = self.term_ends[row - 1] if row else 0
        return self.term_bytes[begin : self.term_ends[row]].tobytes()

    def search(self, query: str, *, k: int = 50) -> list[int]:
        """The k best documents for a query, best first; fewer where fewer match, none for stop words alone."""
        documents: list[int] = self.best(terms(query), k)[1].tolist()
        return documents

    def best(self, query_terms: Iterable[str], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and numbers of the at most k best documents that hold one of the terms, best first.

        Scores are added up in the order of the terms, as in Lucene.
        """
        scores = np.zeros(len(self.inverse_norms))
        for word, count in Counter(query_terms).items():
            row = self._row(word)
            if row >= 0:
                self._add_scores(scores, row, count)
        return self._best(scores.astype(np.float32), k)

    def _add_scores(self, scores: NDArray[np.float64], row: int, query_count: int) -> None:
        """Add one term's share: float32 within a term and float64 across terms, as Lucene does."""
        begin, end = int(self.starts[row]), int(self.starts[row + 1])
        documents = self.documents[begin:end]
        frequency = end - begin
        idf = np.float32(math.log(1 + (self.num_documents - frequency + 0.5) / (frequency + 0.5)))
        weight = np.float32(query_count) * idf
        saturation = self.counts[begin:end] * self.inverse_norms[documents]
        scores[documents] += weight - weight / (np.float32(1) + saturation)

    def _best(self, values: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        floor = np.finfo(np.float32).tiny  # below every score of a document that matches
        # the k-th best of the maxima of blocks is a bound below the k-th best score: few documents are left to sort
        maxima = np.maximum.reduceat(values, np.arange(0, len(values), _BLOCK_DOCUMENTS))
        if len(maxima) > k:
            floor = max(floor, np.partition(maxima, -k)[-k])
        candidates = np.flatnonzero(values >= floor)
        best = candidates[np.lexsort((self.tie_ranks[candidates], -values[candidates]))[:k]]
        return values[best], best
