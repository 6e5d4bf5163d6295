"""Exact maximum-inner-product search at the speed of one matrix product.

N vectors of D dimensions, B queries, groups of G vectors. A scan multiplies blocks of vectors with all queries and
keeps only the largest score of each group (a leading-axis maximum, a few per cent of the product). The k best vectors
lie in groups whose maximum is among the best; those groups alone are scored again, in float32 and, where two scores are
closer than rounding, in float64. The scan may run in bfloat16: the rounding of vectors, queries and scores is bounded
by their measured residuals (Cauchy-Schwarz), and every group that could hide a better vector within that bound is
scored again. So the result is that of a float64 scan, ties going to the lower row, whatever the scan's precision.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agentrl.common.extras import MissingExtraError
from agentrl.retriever.vectors import BLOCK_ROWS, Vectors

ScanDtype = Literal["auto", "float32", "bfloat16"]
_MAX_GROUPS = 1 << 16  # bounds the table of group maxima: [groups, queries]
_MIN_GROUP_ROWS = 16
_SPARE_GROUPS = {"float32": 1, "bfloat16": 4}  # scored again beyond k, so that a second pass is rarely needed
# A single query is bound by memory: dot products over float32 rows beat every matrix product, as long as the rows,
# which are only mapped, can be expected to stay in memory.
_SINGLE_QUERY_BYTES = 8 << 30


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512-BF16, AMX, or the Arm extension); Linux only."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


class ExactIndex:
    """Exact top-k by inner product over `Vectors`.

    Args:
        vectors: the passages' vectors; read from disk by page where they are memory-mapped.
        scan_dtype: "auto" is bfloat16 where the CPU (or a GPU) multiplies it natively, else float32.
        device: "cpu", or a torch device that holds the vectors for the scan.
    """

    kind = "exact"

    def __init__(self, vectors: Vectors, *, scan_dtype: ScanDtype = "auto", device: str = "cpu") -> None:
        self.vectors, self.device = vectors, device
        self.num_rows, self.dimension = vectors.num_rows, vectors.dimension
        self.group_rows = _MIN_GROUP_ROWS
        while self.num_rows > self.group_rows * _MAX_GROUPS:
            self.group_rows *= 2
        if scan_dtype == "auto":
            scan_dtype = "bfloat16" if device != "cpu" or cpu_has_bfloat16() else "float32"
        self.scan_dtype = scan_dtype
        self._largest_norm = 0.0
        self._largest_residual = 0.0
        self._rounded: Any = None  # torch tensor [num_rows, dimension] where the scan needs a copy of the vectors
        self._shards: list[Any] = []  # torch views of the vectors' shards, where torch scans them as they are
        self._prepare()
        if self._rounded is None and _torch_is_faster(vectors):
            self._shards = [_view(shard) for shard in vectors.shards]

    def _prepare(self) -> None:
        in_torch = self.scan_dtype == "bfloat16" or self.device != "cpu"
        if in_torch:
            torch = _torch()
            dtype = getattr(torch, self.scan_dtype)
            self._rounded = torch.empty((self.num_rows, self.dimension), dtype=dtype, device=self.device)
        for start, stop in self.vectors.blocks():
            block = np.array(self.vectors.block(start, stop))
            self._largest_norm = max(self._largest_norm, _largest_row_norm(block))
            if in_torch:
                rounded = torch.from_numpy(block).to(dtype)
                self._rounded[start:stop] = rounded.to(self.device)
                residual = block - rounded.float().numpy()
                self._largest_residual = max(self._largest_residual, _largest_row_norm(residual))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (float32) and rows (int64), both `[B, min(k, N)]`, best first, for float32 queries `[B, D]`."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        k = min(k, self.num_rows)
        use_torch = self._rounded is not None or bool(self._shards)
        if len(queries) == 1 and self.device == "cpu":
            use_torch = self._rounded is not None and 4 * self.num_rows * self.dimension > _SINGLE_QUERY_BYTES
        maxima, slack = self._scan_torch(queries) if use_torch else self._scan_numpy(queries)
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for i, query in enumerate(queries):
            scores[i], rows[i] = self._best_of_groups(query, maxima[i], slack[i], k)
        return scores, rows

    def _scan_numpy(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Group maxima `[B, groups]` and, per query, how far a true score may lie above its scanned value."""
        num_queries, group_rows = len(queries), self.group_rows
        scores = np.empty((BLOCK_ROWS, num_queries), np.float32)
        maxima = []
        for start, stop in self.vectors.blocks():
            padded = -(-(stop - start) // group_rows) * group_rows
            block = self.vectors.block(start, stop)
            if num_queries == 1:
                np.vecdot(block, queries[0], out=scores[: stop - start, 0])
            else:
                np.matmul(block, queries.T, out=scores[: stop - start])
            scores[stop - start : padded] = -np.inf
            maxima.append(scores[:padded].reshape(group_rows, -1, num_queries).max(axis=0))
        return np.ascontiguousarray(np.concatenate(maxima).T), self._float32_slack(queries)

    def _scan_torch(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `_scan_numpy`, in torch."""
        torch, group_rows = _torch(), self.group_rows
        rounded = torch.from_numpy(queries).to(getattr(torch, self.scan_dtype))
        residual = np.linalg.norm(queries - rounded.float().numpy(), axis=1)
        right = rounded.to(self.device).T
        scores = torch.empty((BLOCK_ROWS, len(queries)), dtype=rounded.dtype, device=self.device)
        maxima = []
        for start, stop in self.vectors.blocks():
            padded = -(-(stop - start) // group_rows) * group_rows
            torch.mm(self._block(start, stop), right, out=scores[: stop - start])
            scores[stop - start : padded] = -torch.inf
            maxima.append(torch.amax(scores[:padded].view(group_rows, -1, len(queries)), dim=0))
        table = torch.cat(maxima).T.contiguous().float().cpu().numpy()
        slack = np.linalg.norm(queries, axis=1) * self._largest_residual + residual * self._largest_norm
        if self.scan_dtype == "bfloat16":
            # The product is returned in bfloat16, 8 bits of significand; a GPU may add up parts of it in bfloat16 too.
            slack = slack + np.abs(table).max(axis=1) * (2.0**-8 if self.device == "cpu" else 2.0**-6)
        return table, slack + self._float32_slack(queries)

    def _block(self, start: int, stop: int) -> Any:
        if self._rounded is not None:
            return self._rounded[start:stop]
        shard, offset = divmod(start, self.vectors.shard_rows)
        return self._shards[shard][offset : offset + stop - start]

    def _float32_slack(self, queries: np.ndarray) -> np.ndarray:
        # A float32 dot product of D terms errs by at most D * 2^-24 * |q| * |v|; two of them are compared.
        return np.linalg.norm(queries, axis=1) * self._largest_norm * self.dimension * 2.0**-23

    def _best_of_groups(self, query: np.ndarray, maxima: np.ndarray, slack: float, k: int) -> tuple[Any, Any]:
        wanted = min(k + _SPARE_GROUPS[self.scan_dtype], len(maxima))
        groups = np.argpartition(maxima, len(maxima) - wanted)[-wanted:]
        scores, rows = self._score_groups(query, groups)
        if len(rows) < k:  # the padded last group
            groups = np.arange(len(maxima))
            scores, rows = self._score_groups(query, groups)
        threshold = np.partition(scores, len(scores) - k)[-k] - slack
        # Groups that were left out have maxima of at most the smallest one taken.
        if wanted < len(maxima) and maxima[groups].min() >= threshold:
            scores, rows = self._score_groups(query, np.flatnonzero(maxima >= threshold))
        return self._order(query, scores, rows, k)

    def _score_groups(self, query: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Float32 scores and rows of every vector in the groups."""
        groups_per_block = BLOCK_ROWS // self.group_rows
        starts = groups // groups_per_block * BLOCK_ROWS
        # Group j of a block with n groups holds its rows j, j + n, j + 2n, ...
        strides = -(-np.minimum(BLOCK_ROWS, self.num_rows - starts) // self.group_rows)
        rows = (starts + groups % groups_per_block)[:, None] + strides[:, None] * np.arange(self.group_rows)
        rows = rows[rows < np.minimum(starts + BLOCK_ROWS, self.num_rows)[:, None]]
        return self.vectors.take(rows) @ query, rows

    def _order(self, query: np.ndarray, scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[Any, Any]:
        """The k best by float64 score, then by row."""
        rounding = self._float32_slack(query[None])[0]
        close = scores >= np.partition(scores, len(scores) - k)[-k] - rounding
        rows = rows[close]
        precise = self.vectors.take(rows).astype(np.float64) @ query.astype(np.float64)
        best = np.lexsort((rows, -precise))[:k]
        return precise[best].astype(np.float32), rows[best]


def _view(array: np.ndarray) -> Any:
    """A torch tensor over the same memory, which may be a read-only map: nothing here writes into it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return _torch().from_numpy(array)


def _torch_is_faster(vectors: Vectors) -> bool:
    """Whether torch multiplies float32 faster than numpy here: on some CPUs by a third, on others the reverse."""
    if vectors.num_rows < BLOCK_ROWS:
        return False
    torch, block = _torch(), np.array(vectors.block(0, BLOCK_ROWS))
    queries, scores = block[:32].copy(), np.empty((BLOCK_ROWS, 32), np.float32)
    left, right, product = torch.from_numpy(block), torch.from_numpy(queries).T, torch.from_numpy(scores)
    in_numpy = _least_s(lambda: np.matmul(block, queries.T, out=scores))
    return _least_s(lambda: torch.mm(left, right, out=product)) < in_numpy


def _least_s(run: Callable[[], object], *, repeats: int = 4) -> float:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _largest_row_norm(block: np.ndarray) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64).max(initial=0.0)))


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "search", "Exact search") from None
    return torch
