"""The tensors of a checkpoint, written by all processes of a sharded policy at once, each its share, whole tensors.

The model's are `model-00001-of-00002.safetensors` ... with Hugging Face's index beside them, so that `from_pretrained`
reads the folder as it is; those of the trainer are cut into files likewise. `torch.distributed.checkpoint` would write
rows instead of tensors, which nothing but itself reads before one process has written all weights a second time.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from agentrl.errors import UserError
from agentrl.model.processes import Processes
from agentrl.model.stored import StoredTensor, stored_tensors
from agentrl.runs.outputs import system_errors

Tensors = dict[str, torch.Tensor]
Manifest = dict[str, tuple[int, str]]
"""Size in bytes and SHA-256 of files, by their names in the folder."""
_WHOLE_MODEL = "model.safetensors"
_T = TypeVar("_T")


@dataclass(frozen=True)
class WrittenPart:
    """What one process has written."""

    manifest: Manifest
    weight_map: dict[str, str]
    """File of every weight, by the name it has there."""
    num_bytes: int
    """Of the weights."""


def write_parts(
    draft: Path, weights: Tensors, tables: dict[str, Tensors], *, shape: Any, writers: Processes
) -> Manifest:
    """Write this process's tensors, flushed and hashed; all must call it together.

    Args:
        draft: the folder, which the first process has made, with a folder `trainer` in it.
        weights: this process's share of the model.
        tables: its share of further tensors, which go to `trainer/NAME-...safetensors`.
        shape: a module of the policy's architecture.
        writers: who writes. The first one adds the index of the weights.

    Returns:
        What all of them have written, the index left out.

    Raises:
        UserError: a process does not see the folder.
        OSError: one could not write; in all of them.
    """
    writers.wait()
    seen = writers.gather((draft / "trainer").is_dir())
    if not all(seen):
        raise UserError(
            f"process {seen.index(False)} does not see {draft.parent}, where all write their part of a checkpoint "
            "(learner.shard). Give a --run-dir on storage that all machines share."
        )
    parts = _everywhere(writers, lambda: _write_part(draft, weights, tables, shape, writers))
    if writers.is_first:
        size = {"total_size": sum(part.num_bytes for part in parts)}
        names = {name: file for part in parts for name, file in part.weight_map.items()}
        index = {"metadata": size, "weight_map": dict(sorted(names.items()))}
        (draft / f"{_WHOLE_MODEL}.index.json").write_text(json.dumps(index, indent=1))
    return {name: entry for part in parts for name, entry in part.manifest.items()}


def stored_table(folder: Path, name: str) -> dict[str, StoredTensor]:
    """Tensors of `trainer/NAME.safetensors`, or of the files that several processes wrote; nothing without a file."""
    paths = [folder / "trainer" / f"{name}.safetensors", *(folder / "trainer").glob(f"{name}-*-of-*.safetensors")]
    return {key: value for path in paths if path.exists() for key, value in stored_tensors(path).items()}


def save_table(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file."""
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)


def seal(path: Path) -> tuple[int, str]:
    """(size, SHA-256) of a file that is on the disk afterwards."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_size, digest(path)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_part(
    draft: Path, weights: Tensors, tables: dict[str, Tensors], shape: Any, writers: Processes
) -> WrittenPart:
    number = f"-{writers.rank + 1:05}-of-{writers.count:05}"
    num_bytes, files, names = sum(tensor.nbytes for tensor in weights.values()), [], []
    with system_errors(draft):
        if weights:
            # what save_pretrained does, which writes nothing in other processes than the first
            named = revert_weight_conversion(shape, weights)
            names = list(named)
            files.append(draft / f"model{number}.safetensors")
            save_table(files[-1], named, metadata={"format": "pt"})
        for table, tensors in tables.items():
            if tensors:
                files.append(draft / "trainer" / f"{table}{number}.safetensors")
                save_table(files[-1], tensors)
        manifest = {str(path.relative_to(draft)): seal(path) for path in files}
    return WrittenPart(manifest, dict.fromkeys(names, files[0].name if names else ""), num_bytes)


def _everywhere(writers: Processes, work: Callable[[], _T]) -> list[_T]:
    """What the work of every process gives. Where the system stops one, all stop, with its error."""
    done: _T | OSError
    try:
        done = work()
    except OSError as error:
        done = error
    results: Iterable[_T | OSError] = writers.gather(done)
    found: list[_T] = []
    for result in results:
        if isinstance(result, OSError):
            raise result
        found.append(result)
    return found
