"""Vector indexes through FAISS: flat, SQ8, IVF, HNSW; memory-mapped, on GPUs where faiss-gpu is present."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.common.extras import MissingExtraError
from agentrl.retriever.retrieval_errors import IndexFolderError
from agentrl.retriever.vectors import Vectors

KINDS = ("flat", "sq8", "ivf", "ivf-sq8", "hnsw")
# FAISS's own default (128,000 in 1.15) never takes the matrix-product path for the batches of a rollout.
_BLAS_THRESHOLD = 16
_TRAINING_ROWS_PER_LIST = 64


@dataclass(frozen=True)
class FaissParameters:
    """Build and search parameters.

    nlist: inverted lists of "ivf*"; 0 takes 4 * sqrt(passages).
    nprobe: lists visited by a query.
    neighbors, ef_construction, ef_search: links per vector and beam widths of "hnsw".
    """

    nlist: int = 0
    nprobe: int = 64
    neighbors: int = 32
    ef_construction: int = 80
    ef_search: int = 128

    def __post_init__(self) -> None:
        for name, least in (("nlist", 0), ("nprobe", 1), ("neighbors", 2), ("ef_construction", 1), ("ef_search", 1)):
            if getattr(self, name) < least:
                raise IndexFolderError(f"{name} must be >= {least}, got {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        """All fields, for a manifest."""
        return asdict(self)


DEFAULT_PARAMETERS = FaissParameters()


def build_faiss(
    vectors: Vectors,
    kind: str,
    parameters: FaissParameters,
    *,
    on_rows: Callable[[int], None] = lambda rows: None,
    seed: int = 0,
) -> Any:
    """Train and fill an index, block by block; `on_rows` hears how many rows were added.

    Besides the index itself, memory holds one block and the training sample (64 rows per inverted list).
    """
    faiss = _faiss()
    nlist = min(parameters.nlist or round(4 * sqrt(vectors.num_rows)), max(1, vectors.num_rows // 39))
    factory = {
        "flat": "Flat",
        "sq8": "SQ8",
        "ivf": f"IVF{nlist},Flat",
        "ivf-sq8": f"IVF{nlist},SQ8",
        "hnsw": f"HNSW{parameters.neighbors},Flat",
    }[kind]
    index = faiss.index_factory(vectors.dimension, factory, faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        index.hnsw.efConstruction = parameters.ef_construction
    if not index.is_trained:
        wanted = min(vectors.num_rows, max(_TRAINING_ROWS_PER_LIST * nlist, 10_000))
        rows = np.sort(np.random.default_rng(seed).choice(vectors.num_rows, size=wanted, replace=False))
        index.train(vectors.take(rows))
    for start, stop in vectors.blocks():
        index.add(np.ascontiguousarray(vectors.block(start, stop)))
        on_rows(stop - start)
    return index


class FaissIndex:
    """A FAISS index behind the same `search` as `ExactIndex`.

    Args:
        index: a FAISS index whose ids are row numbers.
        kind: one of `KINDS`.
        parameters: search parameters are set from it.
    """

    def __init__(self, index: Any, *, kind: str, parameters: FaissParameters) -> None:
        self.kind = kind
        self.num_rows, self.dimension = int(index.ntotal), int(index.d)
        if kind.startswith("ivf"):
            index.nprobe = parameters.nprobe
        if kind == "hnsw":
            index.hnsw.efSearch = parameters.ef_search
        self._index = _on_gpus(index) if kind != "hnsw" else index

    @classmethod
    def load(cls, path: Path, *, kind: str, parameters: FaissParameters) -> "FaissIndex":
        """Open an index file, memory-mapped where FAISS can (flat codes and inverted lists)."""
        faiss = _faiss()
        # Two flags do the same for two families: inverted lists, and flat codes (with HNSW's storage).
        mapped = faiss.IO_FLAG_MMAP if kind.startswith("ivf") else faiss.IO_FLAG_MMAP_IFC
        try:
            index = faiss.read_index(str(path), mapped | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            message = str(error).splitlines()[0][:300]
            raise IndexFolderError(f"{path} cannot be read by FAISS: {message}. Build the index again.") from error
        return cls(index, kind=kind, parameters=parameters)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (float32) and rows (int64), both `[B, min(k, N)]`, best first; row -1 where fewer were found."""
        faiss = _faiss()
        # A single query is faster without the matrix product.
        faiss.cvar.distance_compute_blas_threshold = _BLAS_THRESHOLD if len(queries) > 1 else 1 << 30
        scores, rows = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, self.num_rows))
        return scores, rows


def _on_gpus(index: Any) -> Any:
    """The index sharded over all GPUs in float16, as Search-R1 does it; unchanged where there are none."""
    faiss = _faiss()
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return index
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16, options.shard = True, True
    return faiss.index_cpu_to_all_gpus(index, co=options)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss-cpu", "search", "A FAISS index") from error
    return faiss
