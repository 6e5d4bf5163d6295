"""Passage vectors on disk: raw float32 shards, appended block by block, memory-mapped for reading."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agentrl.retriever.retrieval_errors import IndexFolderError

# Rows that are read, scored and written together. Shards hold whole blocks, so no block spans two files.
BLOCK_ROWS = 8192
DEFAULT_SHARD_ROWS = 32 * BLOCK_ROWS  # 805 MB at 768 dimensions


class Vectors:
    """Read-only rows of float32 `[num_rows, dimension]` spread over shards of `shard_rows` rows.

    Args:
        shards: arrays `[rows, dimension]`, all but the last with exactly `shard_rows` rows.
        shard_rows: a multiple of `BLOCK_ROWS`; for a single array any value at least its length.
    """

    def __init__(self, shards: Sequence[np.ndarray], *, shard_rows: int | None = None) -> None:
        if not shards:
            raise ValueError("at least one array of vectors is needed, got none")
        if any(shard.dtype != np.float32 for shard in shards):
            raise ValueError(f"vectors must be float32, got {shards[0].dtype}")
        self.shards = list(shards)
        self.num_rows = sum(len(shard) for shard in self.shards)
        self.dimension = int(self.shards[0].shape[1])
        self.shard_rows = shard_rows or max(self.num_rows, 1)
        if len(self.shards) > 1 and self.shard_rows % BLOCK_ROWS:
            raise ValueError(f"shard_rows must be a multiple of {BLOCK_ROWS}, got {self.shard_rows}")

    @classmethod
    def open(cls, files: Sequence[Path], *, dimension: int, shard_rows: int) -> "Vectors":
        """Memory-map shard files written by `append_rows`; other processes share the same pages."""
        shards = []
        for file in files:
            if file.stat().st_size % (4 * dimension):
                raise IndexFolderError(
                    f"{file} holds {file.stat().st_size} bytes, no whole number of {dimension}-d float32 rows. "
                    "It is truncated: run the same agentrl.retriever.build command again."
                )
            shards.append(np.memmap(file, dtype="<f4", mode="r").reshape(-1, dimension))
        return cls(shards, shard_rows=shard_rows)

    def block(self, start: int, stop: int) -> np.ndarray:
        """Rows `start:stop` of one block, without a copy."""
        shard, offset = divmod(start, self.shard_rows)
        return self.shards[shard][offset : offset + stop - start]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The given rows, `[len(rows), dimension]`, copied."""
        if len(self.shards) == 1:
            return np.asarray(self.shards[0][rows])
        taken = np.empty((len(rows), self.dimension), np.float32)
        shard_of_row = rows // self.shard_rows
        for shard in np.unique(shard_of_row):
            here = shard_of_row == shard
            taken[here] = self.shards[shard][rows[here] - shard * self.shard_rows]
        return taken

    def blocks(self, block_rows: int = BLOCK_ROWS) -> list[tuple[int, int]]:
        """All `(start, stop)` ranges in order."""
        return [(start, min(start + block_rows, self.num_rows)) for start in range(0, self.num_rows, block_rows)]


def append_rows(file: Path, rows: np.ndarray) -> None:
    """Append float32 rows and wait until they are on disk, so that a killed build loses at most one call."""
    with file.open("ab") as stream:
        stream.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        stream.flush()
        os.fsync(stream.fileno())


def usable_rows(file: Path, *, dimension: int) -> int:
    """Number of whole, written rows of a shard after a kill; the file is cut back to them.

    A row of zeros is no embedding: it is what a power failure leaves where data had not reached the disk.
    """
    if not file.exists():
        return 0
    row_bytes = 4 * dimension
    num_rows = file.stat().st_size // row_bytes
    while num_rows:
        rows = np.memmap(file, dtype="<f4", mode="r", shape=(num_rows, dimension))
        tail = rows[max(0, num_rows - BLOCK_ROWS) :]
        empty = np.flatnonzero(~tail.any(axis=1))
        if not len(empty):
            break
        num_rows = num_rows - len(tail) + int(empty[0])
    with file.open("r+b") as stream:
        stream.truncate(num_rows * row_bytes)
    return int(num_rows)
