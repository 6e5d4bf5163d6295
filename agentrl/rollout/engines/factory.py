"""The engine that a config asks for."""

from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Any

import torch

from agentrl.common.plugins import call_own, find_callable
from agentrl.config.schema import RolloutConfig
from agentrl.errors import UserError
from agentrl.rollout.engines.adapter_sync import AdapterSync
from agentrl.rollout.engines.attention import Layout, find_layout
from agentrl.rollout.engines.base import Engine
from agentrl.rollout.engines.local import LocalEngine
from agentrl.rollout.engines.vllm import VllmEngine
from agentrl.rollout.engines.vllm_servers import VllmServersEngine
from agentrl.rollout.engines.weight_sync import DiskSync, Host, NcclSync, WeightSync

_SYNC_OPTIONS = ("weight_sync", "folder", "address")


def make_engine(
    config: RolloutConfig,
    module: Any,
    tokenizer: Any,
    *,
    rank: int = 0,
    count: int = 1,
    host: Host | None = None,
    folder: str | None = None,
    shares_weights: bool = True,
    model: str | None = None,
) -> Engine:
    """An engine for this process; all but the embedded one need `load_weights` before the first turn.

    Args:
        config: which engine, and its limits.
        module: the learner's model: decodes itself in the embedded engine, else only lends its shape.
        tokenizer: for stop strings.
        rank: number of this process; it uses every `count`-th endpoint.
        count: number of processes.
        host: the processes of this machine, of which one writes weights for servers.
        folder: name of the folder for them, the same for these processes; None makes one.
        shares_weights: whether `module` is the learner's own, no replica.
        model: folder or hub name from which an engine that `reads_weights` takes them, so that it needs no
            `load_weights` either.

    Raises:
        UserError: fewer endpoints than processes, unknown options, vLLM refuses the set-up, or the embedded engine
            does not decode what transformers computes.
        MissingExtraError: the package is not installed.
    """
    if config.engine == "local":
        return _local_engine(config, module, tokenizer, shares_weights=shares_weights)
    if ":" in config.engine:
        made: Engine = call_own(
            config.engine, "rollout.engine",
            module=module, tokenizer=tokenizer, config=config, rank=rank, count=count,
        )  # fmt: skip
        return made
    if config.endpoints:
        return VllmServersEngine(
            _own_endpoints(config, rank, count),
            sync=_make_sync(config.engine_options, module, host or Host(), folder),
            max_context_tokens=config.max_context_tokens,
            patience_s=config.turn_timeout_s,
        )
    return VllmEngine(
        module, tokenizer,
        max_concurrent=config.max_concurrent, max_context_tokens=config.max_context_tokens,
        dtype=str(_products(module)).removeprefix("torch."), patience_s=config.turn_timeout_s,
        options=config.engine_options, model=model,
    )  # fmt: skip


def engine_type(config: RolloutConfig) -> Any:
    """The class that a config names, which says what it needs and can (`needs_shape_only`, `can_run_ahead` ...)."""
    if ":" in config.engine:
        return find_callable(config.engine, "rollout.engine")
    return LocalEngine if config.engine == "local" else VllmServersEngine if config.endpoints else VllmEngine


def holds_own_weights(config: RolloutConfig) -> bool:
    """Whether the engine needs no more than the module's shape."""
    return bool(getattr(engine_type(config), "needs_shape_only", False))


def reads_weights(config: RolloutConfig) -> bool:
    """Whether the engine itself reads a model's folder where nobody trains, so that no second copy is loaded."""
    return engine_type(config) is VllmEngine


def _local_engine(config: RolloutConfig, module: Any, tokenizer: Any, *, shares_weights: bool) -> LocalEngine:
    def engine_of(layout: Layout, slots: int, positions: int) -> LocalEngine:
        return LocalEngine(
            module, tokenizer,
            max_concurrent=slots, max_context_tokens=positions, layout=layout, shares_weights=shares_weights,
        )  # fmt: skip

    layout = find_layout(engine_of, module, max_context_tokens=config.max_context_tokens)
    return engine_of(layout, config.max_concurrent, config.max_context_tokens)


def _own_endpoints(config: RolloutConfig, rank: int, count: int) -> list[str]:
    if len(config.endpoints) < count:
        raise UserError(
            f"rollout.endpoints names {len(config.endpoints)} servers for {count} learner processes; every process "
            "needs at least one of its own."
        )
    return config.endpoints[rank::count]


def _make_sync(options: dict[str, Any], module: Any, host: Host, folder: str | None) -> WeightSync:
    unknown = [name for name in options if name not in _SYNC_OPTIONS]
    if unknown:
        raise UserError(
            f"rollout.engine_options.{unknown[0]}: with endpoints there are {', '.join(_SYNC_OPTIONS)}; options of "
            "vLLM are given to the servers themselves."
        )
    kind = options.get("weight_sync", "disk")
    if kind == "nccl":
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
        return NcclSync(options.get("address"), device=device, dtype=_products(module))
    if kind not in ("disk", "adapter"):
        raise UserError(f'rollout.engine_options.weight_sync must be "disk", "adapter" or "nccl", got {kind!r}.')
    root = Path(options.get("folder") or gettempdir())
    place = root / folder if folder else Path(mkdtemp(prefix="agentrl-weights-", dir=root))
    return (AdapterSync if kind == "adapter" else DiskSync)(place, dtype=_products(module), host=host)


def _products(module: Any) -> torch.dtype:
    """The type of the module's matrix products, in which engines compute."""
    return getattr(module, "compute_dtype", None) or module.dtype
