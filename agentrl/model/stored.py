"""Tensors that lie in safetensors files, read when they are needed, and no more of them than that."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from agentrl.model.processes import rows_of


class StoredTensor:
    """One of them.

    Args:
        file: an open safetensors file.
        name: its name there.
    """

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name
        self.shape = torch.Size(file.get_slice(name).get_shape())

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The tensor, or some of its rows, in memory of its own: the file may go."""
        if rows is None or rows.start == rows.stop:
            whole: torch.Tensor = self._file.get_tensor(self._name)
            return (whole if rows is None else whole[rows]).clone()
        part: torch.Tensor = self._file.get_slice(self._name)[rows]
        return part.clone()


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Those of a file, by name."""
    file: Any = safe_open(path, framework="pt")
    return {name: StoredTensor(file, name) for name in file.keys()}  # noqa: SIM118 -- no dict


def own_part(source: torch.Tensor | StoredTensor, model: torch.Tensor) -> torch.Tensor:
    """What this process holds of a whole tensor that is cut as `model` is, a copy; scalars stay whole.

    Every process takes its own part: nothing is sent.
    """
    rows = rows_of(model) if source.shape == model.shape else None
    if isinstance(source, StoredTensor):
        return source.read(rows)
    return (source if rows is None else source[rows]).clone()
