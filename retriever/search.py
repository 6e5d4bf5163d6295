"""The retriever itself: an index, its encoder and its passages as one object, in this process."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from agentrl.retriever.bm25_search import Bm25Searcher, index_texts, open_bm25
from agentrl.retriever.cache import CountingCache
from agentrl.retriever.checks import DEFAULT_LIMITS, Limits, check_queries, check_topk
from agentrl.retriever.encoder import Encoder, EncoderSpec, TextEncoder, same_encoder
from agentrl.retriever.exact import ExactIndex, ScanDtype
from agentrl.retriever.faiss_index import KINDS as FAISS_KINDS
from agentrl.retriever.faiss_index import FaissIndex, FaissParameters
from agentrl.retriever.index_folder import check_files, check_pairing, describe_foreign, open_manifest, read_json
from agentrl.retriever.passages import Hit, PassageFile, Passages, digest_passages
from agentrl.retriever.retrieval_errors import IndexFolderError, RequestError
from agentrl.retriever.vectors import Vectors


class VectorIndex(Protocol):
    """An index over vectors: `ExactIndex` or `FaissIndex`."""

    kind: str
    num_rows: int
    dimension: int

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows `[B, k]`, best first; row -1 where fewer were found."""
        ...


class DenseSearcher:
    """Queries -> vectors (cached) -> rows."""

    def __init__(self, index: VectorIndex, encoder: TextEncoder, *, num_cached_vectors: int = 32_768) -> None:
        if encoder.dimension != index.dimension:
            raise IndexFolderError(
                f"the encoder {encoder.spec.model} gives {encoder.dimension} dimensions, the index has "
                f"{index.dimension}: they do not belong together"
            )
        self.index, self.encoder = index, encoder
        self.kind, self.num_rows = index.kind, index.num_rows
        self.vectors: CountingCache[str, np.ndarray] = CountingCache(num_cached_vectors)
        self.encode_s = self.search_s = 0.0

    def search(self, queries: Sequence[str], k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per query: scores (float32) and rows (int64), best first."""
        scores, rows = self.index_search(self._encode(queries), k)
        return [(s[r >= 0], r[r >= 0]) for s, r in zip(scores, rows, strict=True)]

    def index_search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Timed search by vector."""
        begin = time.perf_counter()
        found = self.index.search(vectors, k)
        self.search_s += time.perf_counter() - begin
        return found

    def _encode(self, queries: Sequence[str]) -> np.ndarray:
        begin = time.perf_counter()
        vectors = np.empty((len(queries), self.encoder.dimension), np.float32)
        missing = []
        for position, query in enumerate(queries):
            vector = self.vectors.get(query)
            if vector is None:
                missing.append(position)
            else:
                vectors[position] = vector
        if missing:
            vectors[missing] = self.encoder.encode([queries[position] for position in missing], role="query")
            for position in missing:
                self.vectors.put(queries[position], vectors[position].copy())
        self.encode_s += time.perf_counter() - begin
        return vectors


class Retriever:
    """Search for passages.

    Args:
        passages: the corpus by row.
        searcher: a `Bm25Searcher` or a `DenseSearcher` over the same rows.
        name: what health and error messages call it, such as "minilm/exact".
        corpus_sha256: of the corpus, as its folder knows it; None: computed when asked for.
        num_cached_results: entries of the LRU cache of results, keyed by query and topk.
        limits: bounds of a request.
    """

    def __init__(
        self,
        passages: Passages,
        searcher: Bm25Searcher | DenseSearcher,
        *,
        name: str = "",
        corpus_sha256: str | None = None,
        num_cached_results: int = 32_768,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        if searcher.num_rows != len(passages):
            raise IndexFolderError(
                f"the index has {searcher.num_rows} rows, the corpus {len(passages)} passages: "
                "they do not belong together"
            )
        self.passages, self.searcher, self.limits = passages, searcher, limits
        self.name = name or searcher.kind
        self._corpus_sha256 = corpus_sha256
        self.results: CountingCache[tuple[str, int], tuple[Hit, ...]] = CountingCache(num_cached_results)

    def search(self, queries: Sequence[str], *, topk: int) -> list[list[Hit]]:
        """The best `topk` passages of every query, best first.

        A query is searched once however often it occurs. BM25 finds fewer passages, or none, where fewer share a word
        with the query; every passage that is returned has a text.

        Raises:
            RequestError: topk or the queries are out of bounds; `QueryError` where the text of a query is at fault.
        """
        check_topk(topk, self.limits)
        queries = check_queries(queries, self.limits)
        found = {query: self.results.get((query, topk)) for query in queries}
        missing = [query for query, hits in found.items() if hits is None]
        if missing:
            for query, (scores, rows) in zip(missing, self.searcher.search(missing, topk), strict=True):
                hits = tuple(Hit(*self.passages[int(r)], float(s)) for s, r in zip(scores, rows, strict=True))
                found[query] = hits
                self.results.put((query, topk), hits)
        return [list(found[query] or ()) for query in queries]

    @property
    def corpus_sha256(self) -> str:
        """Of all passages: the same for a folder, a packed corpus and one held in memory."""
        if self._corpus_sha256 is None:
            self._corpus_sha256 = digest_passages(self.passages[row] for row in range(len(self.passages)))
        return self._corpus_sha256

    def statistics(self) -> dict[str, Any]:
        """Counters since the start: cache hits, and seconds spent encoding and searching."""
        statistics: dict[str, Any] = {"result_cache_hits": self.results.hits, "results_cached": len(self.results)}
        if isinstance(self.searcher, DenseSearcher):
            statistics |= {
                "vector_cache_hits": self.searcher.vectors.hits,
                "encode_s": round(self.searcher.encode_s, 3),
                "search_s": round(self.searcher.search_s, 3),
            }
        return statistics

    @classmethod
    def from_passages(cls, passages: Iterable[tuple[str, str]]) -> "Retriever":
        """A BM25 retriever over `(id, contents)` pairs held in memory; needs no model and no files."""
        rows = list(passages)
        return cls(Passages(rows), Bm25Searcher(index_texts(contents for _, contents in rows)))

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        index: str | None = None,
        model: str | None = None,
        device: str = "cpu",
        encode_dtype: Literal["float32", "bfloat16"] = "float32",
        scan_dtype: ScanDtype = "auto",
        limits: Limits = DEFAULT_LIMITS,
    ) -> "Retriever":
        """Open an index folder written by `agentrl.retriever.build`.

        Args:
            folder: the folder.
            index: "bm25", or "ENCODER/KIND" such as "minilm/exact"; None takes the one built last.
            model: where the encoder's weights are now, if elsewhere than at build time.
            device: "cpu" or a torch device, for the encoder and for an exact scan.
            encode_dtype: precision of the encoder.
            scan_dtype: precision of an exact scan; the result does not depend on it.
            limits: bounds of a request.

        Raises:
            IndexFolderError: a file is missing, truncated or of another corpus, or the encoder is another one.
        """
        folder = Path(folder).expanduser()
        manifest = open_manifest(folder)
        name = _find_index(folder, index or manifest.get("default"))
        passages, corpus = PassageFile(folder / "corpus"), manifest["corpus"]["sha256"]
        if name == "bm25":
            return cls(passages, open_bm25(folder, manifest), name=name, corpus_sha256=corpus, limits=limits)
        encoder_name, _, kind = name.partition("/")
        dense = _open_dense(
            folder / encoder_name, kind, manifest, model=model, device=device, encode_dtype=encode_dtype,
            scan_dtype=scan_dtype,
        )  # fmt: skip
        return cls(passages, dense, name=name, corpus_sha256=corpus, limits=limits)


def _find_index(folder: Path, name: str | None) -> str:
    known = available_indexes(folder)
    if name is None or name not in known:
        raise IndexFolderError(
            f"{folder} has no index {name!r}; it has: {', '.join(known) or 'none yet'}."
            f"{describe_foreign(folder)} Build it (or go on building) with: "
            f"python -m agentrl.retriever.build CORPUS.jsonl {folder}"
        )
    return name


def available_indexes(folder: Path) -> list[str]:
    """Names of the finished indexes of a folder."""
    names = ["bm25"] if (folder / "bm25" / "manifest.json").is_file() else []
    for manifest in sorted(folder.glob("*/manifest.json")):
        part = manifest.parent
        if part.name not in ("bm25", "corpus"):
            names.append(f"{part.name}/exact")
            names += [f"{part.name}/{kind}" for kind in FAISS_KINDS if (part / f"{kind}.json").is_file()]
    return names


def open_vectors(part: Path, manifest: dict[str, Any]) -> tuple[Vectors, dict[str, Any]]:
    """The vectors of one encoder and their manifest, checked."""
    own = read_json(part / "manifest.json")
    check_pairing(manifest, own, part)
    check_files(part, own["files"])
    files = [part / name for name in sorted(own["files"])]
    return Vectors.open(files, dimension=own["dimension"], shard_rows=own["shard_rows"]), own


def _open_dense(
    part: Path, kind: str, manifest: dict[str, Any], *, model: str | None, device: str, encode_dtype: Any,
    scan_dtype: ScanDtype,
) -> DenseSearcher:  # fmt: skip
    index: VectorIndex
    if kind == "exact":
        vectors, own = open_vectors(part, manifest)
        index = ExactIndex(vectors, scan_dtype=scan_dtype, device=device)
    else:
        own, details = read_json(part / "manifest.json"), read_json(part / f"{kind}.json")
        check_pairing(manifest, own, part)
        check_pairing(manifest, details, part / f"{kind}.faiss")
        check_files(part, details["files"])
        parameters = FaissParameters(**details["parameters"])
        index = FaissIndex.load(part / f"{kind}.faiss", kind=kind, parameters=parameters)
    encoder = Encoder(EncoderSpec(**own["encoder"]).with_model(model), device=device, dtype=encode_dtype)
    if not same_encoder(encoder, own["probe"]):
        raise RequestError(
            f"the encoder at {encoder.spec.model} is not the one {part} was built with (a fixed sentence gets another "
            "vector). Give the folder of the right model with --model."
        )
    return DenseSearcher(index, encoder)
