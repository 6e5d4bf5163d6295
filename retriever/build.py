"""Build an index folder: `python -m agentrl.retriever.build CORPUS.jsonl OUT`."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.common.extras import MissingExtraError
from agentrl.common.paths import user_path
from agentrl.common.progress import progress_bar, track
from agentrl.retriever.bm25_search import build_bm25
from agentrl.retriever.encode_corpus import encode_corpus
from agentrl.retriever.encoder import ENCODERS, Encoder, TextEncoder
from agentrl.retriever.exact import ExactIndex
from agentrl.retriever.faiss_index import DEFAULT_PARAMETERS, FaissIndex, FaissParameters, build_faiss
from agentrl.retriever.faiss_index import KINDS as FAISS_KINDS
from agentrl.retriever.index_folder import (
    FORMAT,
    fingerprints,
    is_whole,
    lock,
    open_manifest,
    read_json,
    write_json,
)
from agentrl.retriever.passages import PassageFile, Passages, read_corpus, write_passages
from agentrl.retriever.retrieval_errors import IndexFolderError, RetrieverError
from agentrl.retriever.search import open_vectors
from agentrl.retriever.vectors import DEFAULT_SHARD_ROWS

_RECALL_QUERIES = 200


def prepare_corpus(corpus: Path, out: Path) -> dict[str, Any]:
    """Copy the corpus into the folder for random access; nothing is done where a whole copy is there.

    Returns:
        The folder's manifest.

    Raises:
        CorpusError: a line of the corpus is no passage.
        IndexFolderError: the folder belongs to another corpus.
    """
    with lock(out / ".lock"):
        return _prepare_corpus(corpus, out)


def _prepare_corpus(corpus: Path, out: Path) -> dict[str, Any]:
    before: dict[str, Any] = {}
    if (out / "manifest.json").exists():
        try:
            before = read_json(out / "manifest.json")
            manifest = open_manifest(out)
        except IndexFolderError as damage:
            print(f"repairing: {damage}", file=sys.stderr)
        else:
            known = manifest["corpus"]
            if corpus.resolve() != Path(known["source"]) or _stamp(corpus) != known["source_stamp"]:
                _check_same_corpus(corpus, out, known)
            return manifest
    passages = track(read_corpus(corpus), description="reading the corpus", total=None)
    num_passages, sha256 = write_passages(passages, out / "corpus")
    if before.get("format") == FORMAT and before["corpus"]["sha256"] != sha256:
        raise IndexFolderError(
            f"{out} was damaged, and was built from another corpus than {corpus}. Give another folder."
        )
    manifest = {
        **before,
        "format": FORMAT,
        "corpus": {
            "source": str(corpus.resolve()),
            "source_stamp": _stamp(corpus),
            "sha256": sha256,
            "num_passages": num_passages,
            "files": fingerprints(out / "corpus", ["passages.jsonl", "offsets.npy"]),
        },
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def _stamp(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []


def _check_same_corpus(corpus: Path, out: Path, known: dict[str, Any]) -> None:
    stored = PassageFile(out / "corpus")
    row = -1
    for row, passage in enumerate(read_corpus(corpus)):
        if row >= len(stored) or passage != stored[row]:
            break
    else:
        if row + 1 == len(stored):
            return
    raise IndexFolderError(
        f"{out} was built from {known['source']}, and {corpus} differs from that at passage {row}. "
        "Give another folder for another corpus."
    )


def build_vector_index(out: Path, encoder: TextEncoder, kind: str, parameters: FaissParameters) -> float:
    """Build a FAISS index over a folder's vectors; returns its recall@3 against exact search.

    The queries of the recall are the titles of 200 passages.
    """
    folder = out / encoder.spec.name
    manifest = open_manifest(out)
    vectors, _ = open_vectors(folder, manifest)
    with progress_bar(f"building {kind}", vectors.num_rows) as advance:
        index = build_faiss(vectors, kind, parameters, on_rows=advance)
    _write_faiss(index, folder / f"{kind}.faiss")
    recall = _recall_at_3(
        FaissIndex.load(folder / f"{kind}.faiss", kind=kind, parameters=parameters),
        ExactIndex(vectors, scan_dtype="float32"),  # the other scan holds a copy of all vectors
        encoder.encode(_sample_titles(PassageFile(out / "corpus")), role="query"),
    )
    details = {
        "kind": kind,
        "parameters": parameters.to_json(),
        "recall_at_3": round(recall, 4),
        "corpus_sha256": manifest["corpus"]["sha256"],
        "files": fingerprints(folder, [f"{kind}.faiss"]),
    }
    write_json(folder / f"{kind}.json", details)
    return recall


def _write_faiss(index: Any, path: Path) -> None:
    import faiss

    temporary = path.with_name(path.name + ".tmp")
    faiss.write_index(index, str(temporary))
    temporary.replace(path)


def _sample_titles(passages: Passages, *, seed: int = 0) -> list[str]:
    count = min(_RECALL_QUERIES, len(passages))
    rows = np.random.default_rng(seed).choice(len(passages), size=count, replace=False)
    return [passages[int(row)][1].split("\n", 1)[0].strip('"')[:200] or "untitled" for row in rows]


def _recall_at_3(index: FaissIndex, exact: ExactIndex, queries: np.ndarray) -> float:
    """Share of the found rows that score no worse than the third best; equal passages count alike."""
    found, third_best = index.search(queries, 3)[1], exact.search(queries, 3)[0][:, -1]
    hits = [
        exact.vectors.take(rows[rows >= 0]) @ query >= bound - 1e-6
        for query, rows, bound in zip(queries, found, third_best, strict=True)
    ]
    return float(np.mean([of_query.sum() / found.shape[1] for of_query in hits]))


def build(
    corpus: Path,
    out: Path,
    *,
    index: str = "minilm/exact",
    encoder: TextEncoder | None = None,
    parameters: FaissParameters = DEFAULT_PARAMETERS,
    shard_rows: int = DEFAULT_SHARD_ROWS,
    part: tuple[int, int] = (0, 1),
) -> str:
    """Build one index of a folder, taking over whatever a run before this one finished.

    Args:
        corpus: of any format of `agentrl.common.rows`.
        out: the folder; a second index over the same corpus goes into the same folder and shares its vectors.
        index: "bm25", or "ENCODER/KIND" with KIND one of exact, flat, sq8, ivf, ivf-sq8, hnsw.
        encoder: the encoder itself; required unless `index` is "bm25".
        parameters: of a FAISS index.
        shard_rows: passages per file of vectors.
        part: (i, n): this process encodes every n-th shard only.

    Returns:
        One line that says what is there now.
    """
    manifest = prepare_corpus(corpus, out)
    note = ""
    if index == "bm25":
        build_bm25(out)
    else:
        assert encoder is not None
        if not is_whole(out / encoder.spec.name, manifest) and not encode_corpus(
            out, encoder, shard_rows=shard_rows, part=part
        ):
            return "This part is encoded. Run the command without --part once all parts are."
        kind = index.partition("/")[2]
        if kind != "exact":
            recall = build_vector_index(out, encoder, kind, parameters)
            note = f", recall@3 {recall:.3f} against exact search"
    write_json(out / "manifest.json", {**manifest, "default": index})
    return f"{out}: {manifest['corpus']['num_passages']:,} passages, index {index}{note}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.retriever.build",
        description="Encode and index a corpus. Killed and started again, it goes on where it stopped.",
        epilog="Serve the result with: python -m agentrl.retriever.serve OUT",
    )
    parser.add_argument(
        "corpus",
        type=user_path,
        metavar="CORPUS.jsonl",
        help='rows of {"id", "contents"} or {"title", "text"}: JSON lines, JSON, CSV, TSV or Parquet',
    )
    parser.add_argument("out", type=user_path, metavar="OUT", help="folder of the index; several indexes may share it")
    kinds = ", ".join(("exact", *FAISS_KINDS))
    parser.add_argument(
        "--index",
        default="minilm/exact",
        help=f"bm25, or ENCODER/KIND; encoders: {', '.join(ENCODERS)}; kinds: {kinds} (default: %(default)s)",
    )
    parser.add_argument("--model", help="folder or Hugging Face id of the encoder's weights, if not the usual one")
    parser.add_argument("--device", default="cpu", help="torch device of the encoder (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the encoder")
    parser.add_argument(
        "--batch-size", type=int, default=0, help="texts per forward pass (default: 8 on a CPU, else 256)"
    )
    parser.add_argument("--shard-rows", type=int, default=DEFAULT_SHARD_ROWS, help="passages per file of vectors")
    parser.add_argument("--part", default="0/1", help="I/N: encode every N-th shard from the I-th on, for N processes")
    parser.add_argument("--nlist", type=int, default=0, help="inverted lists of ivf (default: 4 sqrt(passages))")
    parser.add_argument("--nprobe", type=int, default=64, help="lists an ivf query visits (default: %(default)s)")
    parser.add_argument("--ef-search", type=int, default=128, help="beam of an hnsw query (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    name, _, kind = options.index.partition("/")
    if options.index != "bm25" and (name not in ENCODERS or kind not in ("exact", *FAISS_KINDS)):
        parser.error(f"no index {options.index!r}: bm25, or ENCODER/KIND as in --help")
    first, _, count = options.part.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        parser.error(f"--part must be I/N with 0 <= I < N, got {options.part!r}")
    try:
        encoder = None
        parameters = FaissParameters(nlist=options.nlist, nprobe=options.nprobe, ef_search=options.ef_search)
        if options.index != "bm25":
            spec = ENCODERS[name].with_model(options.model)
            encoder = Encoder(spec, device=options.device, dtype=options.dtype, batch_size=options.batch_size)
        line = build(
            options.corpus,
            options.out,
            index=options.index,
            encoder=encoder,
            parameters=parameters,
            shard_rows=options.shard_rows,
            part=(int(first), int(count)),
        )
    except (RetrieverError, MissingExtraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    print(line, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
