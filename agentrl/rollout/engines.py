"""The engine that a config asks for."""

import socket
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from agentrl.config import RolloutConfig
from agentrl.errors import UserError
from agentrl.plugins import call_own
from agentrl.rollout.engine import Engine
from agentrl.rollout.fleet import FleetEngine
from agentrl.rollout.local import LocalEngine
from agentrl.rollout.vllm import VllmEngine
from agentrl.rollout.weight_sync import DiskSync, NcclSync, WeightSync

_SYNC_OPTIONS = ("weight_sync", "folder", "address")


def make_engine(config: RolloutConfig, module: Any, tokenizer: Any, *, rank: int = 0, count: int = 1) -> Engine:
    """An engine for this process; all but the embedded one need `load_weights` before the first turn.

    Args:
        config: which engine, and its limits.
        module: the learner's model: decodes itself in the embedded engine, else only lends its shape.
        tokenizer: for stop strings.
        rank: number of this process; it uses every `count`-th endpoint.
        count: number of processes.

    Raises:
        UserError: fewer endpoints than processes, unknown options, or vLLM refuses the set-up.
        MissingExtraError: the package is not installed.
    """
    if config.engine == "local":
        return LocalEngine(
            module, tokenizer, max_concurrent=config.max_concurrent, max_context_tokens=config.max_context_tokens
        )
    if ":" in config.engine:
        made: Engine = call_own(
            config.engine, "rollout.engine",
            module=module, tokenizer=tokenizer, config=config, rank=rank, count=count,
        )  # fmt: skip
        return made
    if config.endpoints:
        return FleetEngine(
            _own_endpoints(config, rank, count),
            sync=_make_sync(config.engine_options),
            max_context_tokens=config.max_context_tokens,
            patience_s=config.turn_timeout_s,
        )
    dtype = getattr(module, "compute_dtype", None) or module.dtype
    return VllmEngine(
        module, tokenizer,
        max_concurrent=config.max_concurrent, max_context_tokens=config.max_context_tokens,
        dtype=str(dtype).removeprefix("torch."), patience_s=config.turn_timeout_s,
        options=config.engine_options,
    )  # fmt: skip


def _own_endpoints(config: RolloutConfig, rank: int, count: int) -> list[str]:
    if len(config.endpoints) < count:
        raise UserError(
            f"rollout.endpoints names {len(config.endpoints)} servers for {count} learner processes; every process "
            "needs at least one of its own."
        )
    return config.endpoints[rank::count]


def _make_sync(options: dict[str, Any]) -> WeightSync:
    unknown = [name for name in options if name not in _SYNC_OPTIONS]
    if unknown:
        raise UserError(
            f"rollout.engine_options.{unknown[0]}: with endpoints there are {', '.join(_SYNC_OPTIONS)}; options of "
            "vLLM are given to the servers themselves."
        )
    kind = options.get("weight_sync", "disk")
    if kind == "nccl":
        return NcclSync(options.get("address") or socket.gethostbyname(socket.gethostname()))
    if kind != "disk":
        raise UserError(f'rollout.engine_options.weight_sync must be "disk" or "nccl", got {kind!r}.')
    return DiskSync(Path(mkdtemp(prefix="agentrl-weights-", dir=options.get("folder"))))
