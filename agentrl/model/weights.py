"""A policy's weights, whatever wraps them: low-rank adapters and shards.

A LoRA policy keeps its frozen weight under `X.base_layer.weight` and trains the factors `X.lora_A...`, `X.lora_B...`; a
sharded one holds parts of every tensor on every process. Engines, checkpoints and monitors see plain tensors.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from agentrl.common.extras import MissingExtraError
from agentrl.config.schema import ModelConfig
from agentrl.errors import UserError
from agentrl.model.anatomy import backbone, blocks, head, head_form, is_tied
from agentrl.model.processes import Processes, local, whole

Keep = Callable[[str], bool]
"""Whether the tensor of a name is kept."""

_ADAPTER = "default"
LORA_SCALE = 2
"""Alpha / rank: what the product of the factors is multiplied with."""


def add_lora(module: Any, config: ModelConfig, *, seed: int) -> None:
    """Freeze the module and put adapters of rank `config.lora_rank` beside its matrices, in place; 0 does nothing.

    The factors start as PEFT does: A random, B zero, scaled by `LORA_SCALE`; no dropout.

    Raises:
        MissingExtraError: peft is not installed.
        UserError: no layer has one of the names in `config.lora_targets`.
    """
    if not config.lora_rank:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingExtraError("peft", "lora", "model.lora_rank > 0") from None
    names = {name.rpartition(".")[2] for name, _ in module.named_modules()}
    unknown = sorted(set(config.lora_targets) - names)
    if unknown:
        raise UserError(f"model.lora_targets: this model has no layer named {unknown[0]!r}.")
    rank, targets = config.lora_rank, list(config.lora_targets)
    wanted = LoraConfig(r=rank, lora_alpha=LORA_SCALE * rank, target_modules=targets)
    dtype = next(module.parameters()).dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(wanted, module, adapter_name=_ADAPTER)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name)
        parameter.data = parameter.data.to(dtype)


@contextmanager
def without_adapters(module: Any) -> Iterator[None]:
    """Inside, a LoRA policy is the frozen model that it began with."""
    layers = [layer for layer in module.modules() if hasattr(layer, "lora_A")]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def compute_dtype(module: Any) -> torch.dtype:
    """Type of the module's matrix products: what `load_model` was asked for, else the type of its weights."""
    dtype: torch.dtype = getattr(module, "compute_dtype", None) or module.dtype
    return dtype


def computing(module: Any) -> AbstractContextManager[None]:
    """Inside, forward passes of the module multiply in `compute_dtype`; norms, softmax and sums stay exact.

    A forward pass under autocast casts a whole weight once, keeps it until the context ends, and gives it a gradient in
    the weight's own type.
    """
    dtype = compute_dtype(module)
    return nullcontext() if dtype == module.dtype else torch.autocast(module.device.type, dtype=dtype)


def shard(module: Any) -> None:
    """Cut every parameter over all processes (FSDP2), in place: each block gathers its own while it computes.

    Blocks are gathered in `compute_dtype`, which halves the traffic of mixed precision; gradients are summed in the
    type of the weights.
    Gradients are summed, not averaged: losses are weighed by global counts. The head is a unit of its own, gathered by
    the learner once an update.
    """
    body, layer, tied = backbone(module), head(module), is_tied(module)
    head_form(module)  # measured while the module is whole; shards keep it
    cut = blocks(module)
    if cut is None:
        raise UserError(
            f"learner.shard: {type(module).__name__} has no list of blocks to cut. Set learner.shard = false."
        )
    units = [*cut, body] + ([] if tied else [layer])
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype(module), reduce_dtype=module.dtype)
    for unit in units:
        fully_shard(unit, reshard_after_forward=True, mp_policy=policy)
    for unit in units:
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    if tied:
        layer.weight = module.get_input_embeddings().weight


def is_sharded(module: Any) -> bool:
    """Whether `shard` was applied."""
    return isinstance(backbone(module), FSDPModule)


def effective_weight(layer: Any) -> torch.Tensor:
    """The matrix a linear layer multiplies with, [out, in]: the parameter itself, or base + scaled product of factors.

    Carries the graph to the factors.
    """
    if not hasattr(layer, "lora_A"):
        return layer.weight
    if layer.disable_adapters:
        return layer.base_layer.weight
    return layer.base_layer.weight + layer.scaling[_ADAPTER] * (
        layer.lora_B[_ADAPTER].weight @ layer.lora_A[_ADAPTER].weight
    )


@torch.no_grad()
def plain_weights(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Named whole tensors of the model without wrapping: adapters merged, shards joined, a tied head once.

    All processes of a sharded policy must run through it together.
    """
    yield from _merged(module, whole)


@torch.no_grad()
def plain_parts(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """`plain_weights`, but of every tensor of a sharded policy the rows that this process holds."""
    yield from _merged(module, local)


def plain_names(module: Any) -> dict[str, torch.nn.Parameter]:
    """Name of every one of `plain_weights` -> the parameter that is cut as it is: without adapters, itself."""
    named = module.named_parameters()
    return {name.replace(".base_layer.", "."): parameter for name, parameter in named if "lora_" not in name}


def _merged(module: Any, part: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Plain names and tensors, or parts of their rows. Rows of B are cut as those of the matrix it changes."""
    layers = dict(module.named_modules())
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            continue
        value = part(parameter.detach())
        if ".base_layer." in name and name.endswith(".weight"):
            layer = layers[name.rpartition(".base_layer.")[0]]
            factors = layer.lora_B[_ADAPTER].weight, layer.lora_A[_ADAPTER].weight
            value = value + layer.scaling[_ADAPTER] * (part(factors[0].detach()) @ whole(factors[1].detach()))
        yield name.replace(".base_layer.", "."), value


def gather_weights(module: Any, *, keep: bool | Keep) -> dict[str, torch.Tensor]:
    """`plain_weights` on the CPU, those that this process is to `keep`; all processes help to gather each."""
    keeps = keep if callable(keep) else (lambda _: keep)
    return {name: tensor.cpu() for name, tensor in plain_weights(module) if keeps(name)}


def share_of(module: Any, processes: Processes) -> Keep:
    """Which tensors, by name, this process keeps where each keeps a part of all: about as many numbers everywhere.

    Tensors of one block stay together, since transformers joins and splits them where it writes a model (experts).
    """
    sizes: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        sizes[_unit(name)] += parameter.numel()
    loads, owners = [0] * processes.count, {}
    for unit, size in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0])):
        owners[unit] = loads.index(min(loads))
        loads[owners[unit]] += size
    return lambda name: owners[_unit(name)] == processes.rank


def _unit(name: str) -> str:
    """The block of a tensor, or where it is in none its layer; adapters belong to the layer that they change.

    >>> _unit("model.layers.3.mlp.experts.7.up_proj.weight"), _unit("lm_head.base_layer.weight")
    ('model.layers.3', 'lm_head')
    """
    block = re.match(r".*?\.\d+(?=\.)", name)
    return block[0] if block else re.split(r"\.base_layer\.|\.lora_", name)[0].removesuffix(".weight")


def adapter_tensors(module: Any) -> dict[str, torch.Tensor]:
    """The factors of a LoRA policy by name, whole; empty for any other."""
    return {name: whole(p.detach()) for name, p in module.named_parameters() if "lora_" in name}
