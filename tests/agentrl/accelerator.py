"""An accelerator without one: tensors on a device of their own that compute on the CPU, and never mix with CPU tensors.

torch's `meta` device lends its name (it is known to autograd and needs no driver), while the numbers are real. Mixing
devices is refused where CUDA refuses it, and what makes the host wait for the device is counted.
"""

from collections import Counter
from typing import Any, Self

import torch
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("meta")
# What takes indices or sources that lie on the CPU. Numbers without a dimension may lie there everywhere.
_MIX = ("_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_", "lift_fresh")
_WAITS = ("_local_scalar_dense", "nonzero", "equal")


class OnDevice(torch.Tensor):
    """A tensor on the device; `held` is where its numbers are."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made: Self = torch.Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=DEVICE, **shape)
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.held})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=self.dtype).to(DEVICE)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, values: Any = (), options: Any = None) -> Any:
        return _run(function, values, options or {}, Counter())


class Accelerator(TorchDispatchMode):
    """While it is entered, `.to(DEVICE)` and `device=DEVICE` give tensors of this kind."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        """What the host waited for, by operation."""

    def __enter__(self) -> Self:
        self._tensor, self._fused = torch.tensor, optimizer._get_fused_kernels_supported_devices
        torch.tensor = self._from_host
        optimizer._get_fused_kernels_supported_devices = lambda: [DEVICE.type]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.tensor, optimizer._get_fused_kernels_supported_devices = self._tensor, self._fused

    def _from_host(self, data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        """`torch.tensor`, which for a meta device would forget the numbers."""
        made: torch.Tensor = self._tensor(data, **options)
        return made if device is None else made.to(device)

    def __torch_dispatch__(self, function: Any, types: Any, values: Any = (), options: Any = None) -> Any:
        return _run(function, values, options or {}, self.waits)


def _run(function: Any, values: Any, options: dict[str, Any], waits: Counter[str]) -> Any:
    name = function.overloadpacket.__name__
    tensors: list[torch.Tensor] = []
    tree_map_only(torch.Tensor, tensors.append, (values, options))
    ours = {id(t.held): t for t in tensors if isinstance(t, OnDevice)}
    strangers = [t for t in tensors if not isinstance(t, OnDevice) and t.dim() > 0]
    # A number on the CPU may be read by the device, but not written to.
    strangers += [t for t in values[:1] if isinstance(t, torch.Tensor) and name.endswith("_") and t.device != DEVICE]
    if ours and strangers and name not in _MIX:
        raise RuntimeError(f"{name}: tensors on the device and on the {strangers[0].device} are mixed")
    wanted = options.get("device")
    on_device = bool(ours) if wanted is None else torch.device(wanted) == DEVICE
    if name == "copy_":
        on_device = isinstance(values[0], OnDevice)
    if ours and (name in _WAITS or (name in ("_to_copy", "copy_") and not on_device)):
        waits[name] += 1
    if wanted is not None:
        options = {**options, "device": torch.device("cpu")}
    values, options = tree_map_only(OnDevice, lambda t: t.held, (values, options))
    results = function(*values, **options)
    if not on_device:
        return results
    return tree_map_only(torch.Tensor, lambda t: ours[id(t)] if id(t) in ours else OnDevice(t), results)
