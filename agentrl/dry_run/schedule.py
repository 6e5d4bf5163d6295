"""What a config amounts to, worked out before anything is loaded: the table of `--dry-run`."""

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import Qwen2Config, Qwen3Config

from agentrl.config.defaults import dependent_defaults
from agentrl.config.describe import leaves
from agentrl.config.schema import Config
from agentrl.dry_run.estimate import (
    CPU,
    GPU,
    GPU_FP32,
    BatchSplit,
    Item,
    Shape,
    batch_seconds,
    checkpoint_bytes,
    checkpoint_memory,
    engine_memory,
    learner_memory,
    sync_memory,
    trained_shape,
    whole_modules_wait,
)
from agentrl.environment.spec import convention_defaults
from agentrl.model.head import default_chunk
from agentrl.model.pretrained import read_config
from agentrl.rollout.engines.factory import holds_own_weights

_TINY_VOCABULARY = 1024
"""Assumed words of a tokenizer that is built only from demonstrations."""
_LARGEST_FOR_CPU = 10**9
"""Parameters above which times are those of GPUs."""
# Shapes of the models that `configs` name, so that their schedules can be printed offline.
_KNOWN_SHAPES = {
    "Qwen/Qwen3-4B-Instruct-2507": Qwen3Config(
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "Qwen/Qwen2.5-7B-Instruct": Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, tie_word_embeddings=False,
    ),
}  # fmt: skip

Row = tuple[str, str, str]
"""Quantity, value, how it comes about."""


def schedule_table(config: Config) -> Table:
    """Rows, tokens, optimizer steps, memory per process and split of time of a config.

    Processes are those of the launcher (`accelerate launch`, or WORLD_SIZE in the environment).
    """
    table = Table(title="derived schedule", title_justify="left")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_column("how")
    shape = trained_shape(Shape.of(model_shape(config)), config)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for rows in (
        _default_rows(config),
        _batch_rows(config),
        _memory_rows(config, shape, processes),
        _time_rows(config, shape, processes),
    ):
        for row in rows:
            table.add_row(*row)
        table.add_section()
    needed = max(sum(item.value for item in items) for _, items, _ in _phases(config, shape, processes))
    saved = checkpoint_bytes(shape, config) * config.checkpoint.keep
    on_gpu, here = _on_gpu(shape), int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    texts = warnings_of(needed, saved, memory=machine_memory(), disk=free_disk(), processes_here=here)
    if on_gpu and not torch.cuda.is_available():
        texts.append("there is no GPU here; times are those of one, and on this machine many times longer")
    table.caption, table.caption_justify = "\n".join(f"warning: {text}" for text in texts) or None, "left"
    return table


def warnings_of(needed: float, saved: float, *, memory: float, disk: float, processes_here: int) -> list[str]:
    """What a machine lacks.

    Args:
        needed: most bytes that one process holds at once.
        saved: bytes of all checkpoints that are kept.
        memory: bytes of a GPU, or where there is none of the machine, which all its processes share.
        disk: free bytes where runs are written.
        processes_here: on this machine.
    """
    share = memory if torch.cuda.is_available() else memory / processes_here
    texts = []
    if needed > share:
        whose = "a GPU here has" if torch.cuda.is_available() else "this machine has"
        texts.append(
            f"a process needs about {format_bytes(needed)} and {whose} {format_bytes(share)} for it: take a smaller "
            "learner.microbatch_tokens or rollout.max_concurrent, model.lora_rank, or more memory"
        )
    if saved > disk:
        texts.append(f"checkpoints take {format_bytes(saved)}, and {format_bytes(disk)} are free on this disk")
    return texts


def machine_memory() -> float:
    """Bytes of the first GPU, else of the machine or of what a container may use of it."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    limits = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    with suppress(OSError, ValueError):  # no control group, or "max"
        limits.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def free_disk() -> float:
    """Free bytes of the disk that `runs` is on."""
    return float(shutil.disk_usage(Path.cwd()).free)


def _on_gpu(shape: Shape) -> bool:
    return torch.cuda.is_available() or shape.parameters > _LARGEST_FOR_CPU


def _default_rows(config: Config) -> list[Row]:
    """Defaults that depend on other keys, where they hold."""
    tree = config.model_dump()
    held = (default for default in dependent_defaults(tree) if dict(leaves(tree))[default.key] == default.value)
    return [
        (
            default.key,
            str(default.value) if isinstance(default.value, str) else f"{default.value:g}",
            f"the default, since {default.reason}",
        )
        for default in (*held, *convention_defaults(config))
    ]


def _batch_rows(config: Config) -> list[Row]:
    train, rollout, reuse = config.train, config.rollout, config.gate.most_uses(config.learner.max_reuse)
    episodes = train.groups_per_step * train.group_size
    rows = episodes * (rollout.max_turns if rollout.context == "window" else 1)
    generated = episodes * min(rollout.max_turns * rollout.max_new_tokens, rollout.max_context_tokens)
    most = episodes * (train.refill or 1.0)
    bound = "<= " if most > episodes else ""
    further = [("episodes played per batch", f"<= {most:,.0f}", "x train.refill")] if bound else []
    return [
        ("rollout batches", f"{train.steps:,}", "train.steps"),
        ("groups per batch", f"{train.groups_per_step:,}", "train.groups_per_step"),
        ("episodes per batch", f"{episodes:,}", "groups x train.group_size"),
        *further,
        ("rows per batch", f"<= {rows:,}", "one an episode; one a turn in the window context"),
        ("generated tokens per batch", f"<= {generated:,}", "episodes x max_turns x max_new_tokens"),
        ("tokens per batch", f"<= {rows * rollout.max_context_tokens:,}", "rows x rollout.max_context_tokens"),
        ("longest context", f"{rollout.max_context_tokens:,}", "rollout.max_context_tokens"),
        ("optimizer steps per batch", f"1 .. {reuse}", f"gate {config.gate.kind!r}, learner.max_reuse"),
        ("episodes in all", f"{bound}{train.steps * most:,.0f}", "batches x episodes"),
        ("optimizer steps in all", f"{train.steps:,} .. {train.steps * reuse:,}", "batches x steps per batch"),
    ]


def _memory_rows(config: Config, shape: Shape, processes: int) -> list[Row]:
    learner, engine = _memory_items(config, shape, processes)
    rows = [(item.name, format_bytes(item.value), item.formula) for item in [*learner, *engine]]
    for name, items, how in _phases(config, shape, processes):
        rows.append((name, format_bytes(sum(item.value for item in items)), f"{how}; per process of {processes}"))
    saved = checkpoint_memory(shape, config, processes=processes)
    rows.append((saved.name, format_bytes(saved.value), saved.formula))
    return rows


def _memory_items(config: Config, shape: Shape, processes: int) -> tuple[list[Item], list[Item]]:
    """(of the learner, of the engine) in one process."""
    tokens = min(config.learner.microbatch_tokens, config.rollout.max_context_tokens * config.train.group_size)
    tokens = max(tokens, config.rollout.max_context_tokens)
    device = torch.device("cuda" if _on_gpu(shape) else "cpu")
    chunk = min(tokens, default_chunk(shape.vocabulary, device))
    learner = learner_memory(shape, config, tokens=tokens, chunk=chunk, processes=processes)
    return learner, engine_memory(shape, config, processes=processes)


def _phases(config: Config, shape: Shape, processes: int) -> list[tuple[str, list[Item], str]]:
    """(name, what is held at once, how that comes about) of the parts of a batch."""
    learner, engine = _memory_items(config, shape, processes)
    if holds_own_weights(config.rollout):
        resident = [item for item in learner if item.name in ("weights", "optimizer", "reference policy")]
        waits = whole_modules_wait(config, processes) and not config.rollout.endpoints
        playing, how = ([], "the engine alone") if waits else (resident, "weights, optimizer, reference and engine")
        phases = [
            ("memory of an update", learner, "the engine sleeps, its weights on the host"),
            ("memory of a rollout", [*playing, *engine], how),
        ]
        if not config.rollout.endpoints:
            how = "weights, optimizer, reference, engine's weights, one tensor in both types"
            phases.append(("memory of a weight sync", [*resident, *sync_memory(shape, config)], how))
        return phases
    return [("memory in all", [*learner, *engine], "sum of the above")]


def _time_rows(config: Config, shape: Shape, processes: int) -> list[Row]:
    device = CPU
    if _on_gpu(shape):
        device = GPU if config.model.dtype in ("mixed", "bfloat16") else GPU_FP32
    updates = config.gate.most_uses(config.learner.max_reuse)
    items = batch_seconds(shape, config, updates=updates, device=device, processes=processes)
    total = sum(item.value for item in items)
    rows = [(item.name, f"{item.value / total:.0%}", item.formula) for item in items]
    how = f"all {updates} updates, all rows full; {device.name}; environments not counted"
    rows.append(("seconds per batch", f"<= {total:,.0f}", how))
    overlap = BatchSplit.of(items)
    gain = f"{overlap.in_turn / overlap.ahead:.2f}x less: rollouts + updates / the longer of both"
    rows.append(("one step ahead", f"<= {overlap.ahead:,.0f}", f"{gain} (rollout.ahead = 1)"))
    balance = f"{1 / overlap.engines:.2g} : 1" if overlap.engines < 1 else f"1 : {overlap.engines:.2g}"
    rows.append(("learner : engines", balance, "seconds of updates : rollouts; with so many neither waits"))
    if processes > 1:
        learners, engines = overlap.share(processes)
        how = f"{processes} devices, those of the engines as servers (rollout.endpoints)"
        rows.append(("devices one step ahead", f"{learners} : {engines}", how))
    whole = f"{config.train.steps:,} batches; evaluations and the warm start not counted"
    return [*rows, ("time in all", f"<= {format_hours(total * config.train.steps)}", whole)]


def model_shape(config: Config) -> Any:
    """The Hugging Face config of the policy, read without its weights."""
    tiny = config.model.tiny
    if config.model.path == "tiny":
        return Qwen3Config(
            vocab_size=_TINY_VOCABULARY, hidden_size=tiny.hidden_size, intermediate_size=tiny.intermediate_size,
            num_hidden_layers=tiny.num_layers, num_attention_heads=tiny.num_heads,
            num_key_value_heads=tiny.num_kv_heads, head_dim=tiny.hidden_size // tiny.num_heads,
            tie_word_embeddings=tiny.tie_embeddings,
        )  # fmt: skip
    if config.model.path in _KNOWN_SHAPES:
        return _KNOWN_SHAPES[config.model.path]
    return read_config(config.model.path)


def format_hours(seconds: float) -> str:
    """`2 h 06 min`, rounded up.

    >>> format_hours(7530), format_hours(59)
    ('2 h 06 min', '0 h 01 min')
    """
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours:,} h {minutes:02} min"


def format_bytes(count: float) -> str:
    """`1.5 GiB`."""
    if count < 1024:
        return f"{count:,.0f} B"
    power = 1 + (count >= 1 << 20) + (count >= 1 << 30)
    return f"{count / 1024**power:,.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"
