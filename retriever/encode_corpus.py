"""Vectors of a corpus: encoded in shards, by one process or several, and taken up again after a kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.common.progress import progress_bar
from agentrl.retriever.encoder import TextEncoder, probe_vector, same_encoder
from agentrl.retriever.index_folder import fingerprints, lock, open_manifest, read_json, size_of, write_json
from agentrl.retriever.passages import PassageFile, Passages
from agentrl.retriever.retrieval_errors import IndexFolderError, RetrieverError
from agentrl.retriever.vectors import BLOCK_ROWS, DEFAULT_SHARD_ROWS, append_rows, usable_rows

_ENCODE_ROWS = 256  # passages between two writes: what a kill can cost


def encode_corpus(
    out: Path,
    encoder: TextEncoder,
    *,
    shard_rows: int = DEFAULT_SHARD_ROWS,
    part: tuple[int, int] = (0, 1),
) -> bool:
    """Encode what is not yet encoded, in shards; returns whether all shards are complete.

    Args:
        out: an index folder with its corpus.
        encoder: the encoder.
        shard_rows: passages per file, a multiple of 8,192.
        part: (i, n) encodes only every n-th shard from the i-th on, so that n processes or machines can share the work.

    Raises:
        IndexFolderError: the folder holds vectors of another encoder, or in shards of another size.
    """
    if shard_rows < 1 or shard_rows % BLOCK_ROWS:
        raise IndexFolderError(f"--shard-rows must be a multiple of {BLOCK_ROWS}, got {shard_rows}")
    manifest, folder = open_manifest(out), out / encoder.spec.name
    passages = PassageFile(out / "corpus")
    own = _claim(folder, encoder, manifest, shard_rows)
    shards = [(start, min(start + shard_rows, len(passages))) for start in range(0, len(passages), shard_rows)]
    names = [f"vectors-{number:05d}.f32" for number in range(len(shards))]
    mine = range(part[0], len(shards), part[1])
    sizes = [(stop - start) * 4 * encoder.dimension for start, stop in shards]
    total = sum(shards[number][1] - shards[number][0] for number in mine)
    done = sum(size_of(folder / names[number]) for number in mine) // (4 * encoder.dimension)
    with progress_bar(f"encoding ({encoder.spec.name})", total, done=min(done, total)) as advance:
        for number in mine:
            _encode_shard(folder / names[number], encoder, passages, shards[number], advance)
    if [size_of(folder / name) for name in names] != sizes:
        return False
    with lock(folder / ".lock"):
        write_json(folder / "manifest.json", {**own, "files": fingerprints(folder, names)})
    return True


def _encode_shard(
    file: Path, encoder: TextEncoder, passages: Passages, rows: tuple[int, int], advance: Callable[[int], None]
) -> None:
    """Append the vectors that a shard still lacks; it is this process's alone meanwhile."""
    with lock(file, wait=False):
        done = usable_rows(file, dimension=encoder.dimension)
        for row in range(rows[0] + done, rows[1], _ENCODE_ROWS):
            texts = [passages[i][1] for i in range(row, min(row + _ENCODE_ROWS, rows[1]))]
            append_rows(file, _encode(encoder, texts, row))
            advance(len(texts))


def _claim(folder: Path, encoder: TextEncoder, manifest: dict[str, Any], shard_rows: int) -> dict[str, Any]:
    """Write down whose vectors these are before the first one, or check it on a later run."""
    own = {
        "encoder": encoder.spec.to_json(),
        "dimension": encoder.dimension,
        "shard_rows": shard_rows,
        "corpus_sha256": manifest["corpus"]["sha256"],
    }
    claim = folder / "encoder.json"
    if not claim.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(claim, {**own, "probe": probe_vector(encoder)})
    known = read_json(claim)
    different = [key for key in own if key != "encoder" and known.get(key) != own[key]]
    if different or not same_encoder(encoder, known["probe"]):
        raise IndexFolderError(
            f"{folder} holds vectors of another build (different: {', '.join(different) or 'the model'}). "
            "Use the same options, or another folder."
        )
    return {**own, "probe": known["probe"]}


def _encode(encoder: TextEncoder, texts: list[str], row: int) -> np.ndarray:
    vectors = encoder.encode(texts, role="passage")
    if not np.isfinite(vectors).all():
        raise RetrieverError(f"the encoder gave a vector with a number that is not finite, passages from row {row} on")
    return vectors
