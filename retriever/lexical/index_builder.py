"""Building a search index: documents in, the arrays of `bm25.LexicalIndex` out."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from agentrl.retriever.lexical.analyzer import term, words
from agentrl.retriever.lexical.bm25 import LexicalIndex, inverse_norms

_BLOCK_TOKENS = 8_000_000  # tokens sorted at a time: about 0.3 GB of memory
_MAX_COUNT = np.iinfo(np.uint16).max
_Block = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint16]]  # term ids, documents, counts


class _TermIds(dict[str, int]):
    """Word as written -> id of its term, or -1 for a stop word; ids in order of first sight."""

    def __init__(self) -> None:
        self.terms: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        found = term(word)
        self[word] = number = self.terms.setdefault(found, len(self.terms)) if found else -1
        return number


class IndexBuilder:
    """Collects documents block by block, then merges the blocks into an index.

    With a folder, blocks and the finished arrays are files in it, and memory holds one block and the vocabulary;
    without one, everything stays in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._ids = _TermIds()
        self._lengths = array("i")  # terms in each document added so far
        self._tokens = array("i")  # term ids of the open block, document after document
        self._num_closed = 0  # documents in closed blocks
        self._blocks: list[_Block | Path] = []

    def add(self, text: str) -> None:
        """Add the next document."""
        found = [number for number in map(self._ids.__getitem__, words(text)) if number >= 0]
        self._tokens.extend(found)
        self._lengths.append(len(found))
        if len(self._tokens) >= _BLOCK_TOKENS:
            self._close_block()

    def _close_block(self) -> None:
        """Turn the tokens at hand into postings sorted by term, then by document."""
        lengths = np.array(self._lengths[self._num_closed :], np.int32)
        width = max(len(lengths), 1)
        keys = np.array(self._tokens, np.int64) * width + np.repeat(np.arange(len(lengths)), lengths)
        keys, counts = np.unique(keys, return_counts=True)
        ids, documents = np.divmod(keys, width)
        # Lucene counts further, but no text of a shop and no passage repeats a word so often
        small_counts = np.minimum(counts, _MAX_COUNT).astype(np.uint16)
        self._keep((ids.astype(np.int32), (documents + self._num_closed).astype(np.int32), small_counts))
        self._num_closed = len(self._lengths)
        self._tokens = array("i")

    def _keep(self, block: _Block) -> None:
        if self.folder is None:
            self._blocks.append(block)
            return
        path = self.folder / f"block-{len(self._blocks)}.npz"
        np.savez(path, *block)
        self._blocks.append(path)

    def _read(self, block: _Block | Path) -> _Block:
        if isinstance(block, tuple):
            return block
        with np.load(block) as arrays:
            return arrays["arr_0"], arrays["arr_1"], arrays["arr_2"]

    def finish(self, ids: Sequence[str] | range) -> LexicalIndex:
        """Merge the blocks.

        Args:
            ids: the documents' ids [D], which decide the order of equal scores; `range(D)` for that of their numbers.
        """
        self._close_block()
        by_bytes = sorted(self._ids.terms, key=lambda found: found.encode("utf-8", "surrogatepass"))
        new_row = np.empty(len(by_bytes), np.int64)  # id of a term -> its row among the sorted terms
        new_row[[self._ids.terms[found] for found in by_bytes]] = np.arange(len(by_bytes))
        encoded = [found.encode("utf-8", "surrogatepass") for found in by_bytes]
        lengths = np.array(self._lengths, np.int32)
        tie_ranks = np.empty(len(lengths), np.int32)
        tie_ranks[sorted(range(len(lengths)), key=ids.__getitem__)] = np.arange(len(lengths))
        arrays: dict[str, NDArray[Any]] = {
            "term_bytes": np.frombuffer(b"".join(encoded), np.uint8),
            "term_ends": np.cumsum([len(found) for found in encoded], dtype=np.int64),
            "inverse_norms": inverse_norms(lengths),
            "tie_ranks": tie_ranks,
            "num_documents": np.array(np.count_nonzero(lengths)),
            **self._merge(new_row),
        }
        return self._save(arrays)

    def _merge(self, new_row: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Lay each term's postings side by side, block after block."""
        frequencies = np.zeros(len(new_row), np.int64)
        for block in self._blocks:
            frequencies += np.bincount(new_row[self._read(block)[0]], minlength=len(new_row))
        starts = np.concatenate([[0], np.cumsum(frequencies)])
        documents = self._allocate("documents", int(starts[-1]), np.int32)
        counts = self._allocate("counts", int(starts[-1]), np.uint16)
        free = starts[:-1].copy()  # next free posting of each term
        for block in self._blocks:
            ids, block_documents, block_counts = self._read(block)
            rows, first, run = np.unique(new_row[ids], return_index=True, return_counts=True)
            # the block is sorted by old id: its runs are contiguous, but not in the order of the new rows
            offset = np.repeat(free[rows] - first, run)
            order = np.repeat(first, run) + _positions_in_runs(run)
            target = offset + order
            documents[target] = block_documents[order]
            counts[target] = block_counts[order]
            free[rows] += run
        return {"starts": starts, "documents": documents, "counts": counts}

    def _allocate(self, name: str, size: int, dtype: DTypeLike) -> NDArray[Any]:
        if self.folder is None:
            return np.empty(size, dtype)
        return np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype, (size,))

    def _save(self, arrays: dict[str, NDArray[Any]]) -> LexicalIndex:
        if self.folder is None:
            return LexicalIndex(arrays)
        for name, values in arrays.items():
            if isinstance(values, np.memmap):
                values.flush()
            else:
                np.save(self.folder / f"{name}.npy", values)
        for block in self._blocks:
            if isinstance(block, Path):
                block.unlink()
        return LexicalIndex.open(self.folder)


def _positions_in_runs(run: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, … within each run: [2, 3] -> [0, 1, 0, 1, 2]."""
    return np.arange(int(run.sum())) - np.repeat(np.cumsum(run) - run, run)
