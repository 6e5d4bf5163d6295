"""The files of an index folder, and the checks that its parts are whole and belong together.

OUT/manifest.json            format, corpus (source, SHA-256, passages), default index
OUT/corpus/                  passages.jsonl, offsets.npy
OUT/bm25/                    manifest.json, the arrays of `lexical.bm25.LexicalIndex`
OUT/ENCODER/                 manifest.json, vectors-00000.f32, ...          (the index "ENCODER/exact")
OUT/ENCODER/KIND.faiss       and KIND.json, one pair per FAISS index
"""

import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentrl.retriever.retrieval_errors import IndexFolderError

FORMAT = 1
_SAMPLES, _SAMPLE_BYTES = 64, 4096


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        IndexFolderError: it is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IndexFolderError(
            f"{path} does not exist: the index is not built, or its build was stopped. "
            f"Run (again): python -m agentrl.retriever.build CORPUS.jsonl {path.parent}"
        ) from None
    except ValueError as error:
        raise IndexFolderError(f"{path} is not JSON ({error}). Build the index again.") from error
    if not isinstance(content, dict):
        raise IndexFolderError(f"{path} holds no JSON object. Build the index again.")
    return content


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and a hash of 64 spread samples: cheap on a 65 GB file, and different for files that differ in substance."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for sample in range(_SAMPLES):
            stream.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return {"bytes": size, "samples_sha256": digest.hexdigest()}


def fingerprints(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Fingerprints of files of a folder, by name."""
    return {name: fingerprint(folder / name) for name in names}


def check_files(folder: Path, expected: dict[str, Any]) -> None:
    """Compare files with the fingerprints taken when they were written.

    Raises:
        IndexFolderError: a file is missing, truncated, or another file than the one that was written.
    """
    for name, recorded in expected.items():
        path = folder / name
        if not path.is_file():
            raise IndexFolderError(f"{path} is missing. Restore it or build the index again.")
        size = path.stat().st_size
        if size != recorded["bytes"]:
            kind = "truncated" if size < recorded["bytes"] else "too long"
            raise IndexFolderError(
                f"{path} is {kind}: {recorded['bytes']} bytes were written, {size} are there. "
                "Restore it or build the index again."
            )
        if fingerprint(path) != recorded:
            raise IndexFolderError(
                f"{path} is not the file this index was built with (same size, other content). "
                "Index and corpus must come from one build."
            )


def check_pairing(manifest: dict[str, Any], part: dict[str, Any], where: Path) -> None:
    """Check that a part (vectors, BM25) was made from the corpus of this folder.

    Raises:
        IndexFolderError: it was made from another corpus.
    """
    if part.get("corpus_sha256") != manifest["corpus"]["sha256"]:
        raise IndexFolderError(
            f"{where} was built from another corpus than {where.parent / 'corpus'} "
            f"({str(part.get('corpus_sha256'))[:12]} against {manifest['corpus']['sha256'][:12]}). "
            "Index and corpus must come from one build."
        )


def refuse_file(path: Path) -> None:
    """Say what to do with a file that stands where an index folder is expected; a folder or nothing passes.

    Raises:
        IndexFolderError: it is a FAISS file of another tool, or a corpus.
    """
    build = "python -m agentrl.retriever.build"
    if is_faiss_file(path):
        raise IndexFolderError(
            f"{path} is a FAISS index made by another tool: it holds vectors, but neither their passages nor their "
            f"encoder. Build a folder from the corpus it was made of: {build} CORPUS.jsonl OUT, and give OUT."
        )
    if path.is_file():
        raise IndexFolderError(
            f"{path} is a file, expected an index folder. If it is a corpus, build one from it: {build} {path} OUT "
            "--index bm25 (or with an encoder, see --help), and give OUT."
        )


def is_faiss_file(path: Path) -> bool:
    """Whether a file begins as FAISS writes an index: four letters (`IxFI`, `IwFl`, `IHNf`, ...), then numbers."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(32)
    return re.match(rb"I[A-Za-z][A-Za-z0-9]{2}", head) is not None and b"\0" in head


def foreign_indexes(folder: Path) -> list[str]:
    """FAISS files in a folder and its parts that were not built there, by their relative path."""
    found = (path for pattern in ("*.index", "*.faiss", "*/*.index", "*/*.faiss") for path in folder.glob(pattern))
    return sorted(
        str(p.relative_to(folder)) for p in found if not p.with_suffix(".json").is_file() and is_faiss_file(p)
    )


def describe_foreign(folder: Path) -> str:
    """A sentence about foreign FAISS files in a folder; empty where there are none."""
    foreign = foreign_indexes(folder) if folder.is_dir() else []
    if not foreign:
        return ""
    return (
        f" {', '.join(foreign[:3])} was made by another tool: vectors whose encoder and passages nobody recorded "
        "cannot be served."
    )


def open_manifest(out: Path) -> dict[str, Any]:
    """The folder's manifest, checked for its format and its corpus files."""
    refuse_file(out)
    if foreign := not (out / "manifest.json").exists() and describe_foreign(out):
        raise IndexFolderError(
            f"{out} is no index folder.{foreign} Build one: python -m agentrl.retriever.build CORPUS.jsonl OUT"
        )
    manifest = read_json(out / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise IndexFolderError(
            f"{out} has index format {manifest.get('format')!r}; this version reads format {FORMAT}. Build it again."
        )
    check_files(out / "corpus", manifest["corpus"]["files"])
    return manifest


def is_whole(part: Path, manifest: dict[str, Any]) -> bool:
    """Whether a part of the index (vectors, BM25) is finished; one that has lost bytes since counts as unfinished.

    Raises:
        IndexFolderError: it belongs to another corpus, or a file is another one than was written.
    """
    if not (part / "manifest.json").exists():
        return False
    own = read_json(part / "manifest.json")
    check_pairing(manifest, own, part)
    if any(size_of(part / name) < file["bytes"] for name, file in own["files"].items()):
        print(f"repairing: files of {part} are missing or truncated", file=sys.stderr)
        (part / "manifest.json").unlink()
        return False
    check_files(part, own["files"])
    return True


def size_of(file: Path) -> int:
    """Its bytes; 0 where there is none."""
    return file.stat().st_size if file.exists() else 0


@contextmanager
def lock(file: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file, which is made if need be; the lock goes with the process, however that ends.

    Raises:
        IndexFolderError: another process holds it, and `wait` is off.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise IndexFolderError(
                f"another process is writing {file}. Wait for it; to share the work, give every process its --part I/N."
            ) from None
        yield
