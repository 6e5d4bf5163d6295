"""Save and resume everything, without pickles: safetensors and JSON only.

A checkpoint is a folder in Hugging Face format (weights, config, tokenizer, chat template) with a folder `trainer/`
beside the weights: optimizer moments, counters, gate window, task position; of a LoRA policy also the factors, beside
merged weights. Tensors are whole and named: any number of processes goes on, sharded or not. It is written under a
temporary name, flushed to the disk and renamed, and carries the size and SHA-256 of every file, so a half-written or
damaged one is recognised and the one before it is used. Checkpoints lie between rollout batches: no part of a batch is
pending, and one that was played ahead (`rollout.ahead`) is kept whole, as are the episodes of groups that were put off.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from agentrl.config.schema import Config
from agentrl.errors import CheckpointError, Unplayable
from agentrl.learner.protocol import Learner
from agentrl.model.processes import Processes
from agentrl.rollout.ahead import BatchStream
from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.runs.interruption import Interrupted
from agentrl.runs.outputs import whole_folder
from agentrl.runs.ready_batch import read_batch, write_batch

_MANIFEST = "trainer/manifest.json"
_NAME = re.compile(r"step-([0-9]{6,})")


@dataclass
class TrainerState:
    """All of a run."""

    step: int
    """Rollout batches done."""
    learner: dict[str, Any]
    """`Learner.state_dict()`."""
    sampler: dict[str, Any]
    """`TaskSampler.state_dict()`."""
    config: dict[str, Any]
    """The resolved config the state belongs to."""
    ready: RolloutBatch | None = None
    """A batch that was played ahead and not yet learned from."""
    put_off: RolloutBatch | None = None
    """Tasks that come first in the next batch, and their episodes that are over."""


class Checkpoints:
    """Those of one run.

    Args:
        run: its folder.
        config: the experiment.
        shape: a module of the policy's architecture.
        tokenizer: its tokenizer.
        processes: of which the first writes; all must save together.
    """

    def __init__(self, run: Path, config: Config, shape: Any, tokenizer: Any, processes: Processes) -> None:
        self.run, self.config, self.shape, self.tokenizer, self.processes = run, config, shape, tokenizer, processes

    def save(self, learner: Learner, batches: BatchStream) -> None:
        """Write what has been learned so far, and what was played ahead."""
        weights, stream = learner.state_dict(), batches.state_dict()
        config = self.config.model_dump()
        state = TrainerState(learner.num_batches, weights, config=config, **stream)
        if self.processes.is_first:
            keep = self.config.checkpoint.keep
            save_checkpoint(self.run, state, shape=self.shape, tokenizer=self.tokenizer, keep=keep)

    @contextmanager
    def saving_at_the_end(self, learner: Learner, batches: BatchStream) -> Iterator[None]:
        """Where a signal ends a run, or one that cannot go on, its last whole batch is saved unless it was."""
        try:
            yield
        except (Interrupted, Unplayable) as end:
            together = isinstance(end, Interrupted) or end.everywhere or self.processes.count == 1
            if together and not checkpoint_folder(self.run, learner.num_batches).exists():
                self.save(learner, batches)
            raise


def save_checkpoint(run: Path, state: TrainerState, *, shape: Any, tokenizer: Any, keep: int) -> Path:
    """Write `run/checkpoints/step-NNNNNN` and delete all but the newest `keep`.

    Args:
        run: run folder.
        state: all that a resumed run needs.
        shape: a module of the policy's architecture, for its config.
        tokenizer: its tokenizer.
        keep: checkpoints to keep.
    """
    folder = checkpoint_folder(run, state.step)
    with whole_folder(folder) as draft:
        _write(draft, state, shape, tokenizer)
    _flush_folder(folder.parent)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` rollout batches lies."""
    return run / "checkpoints" / f"step-{step:06d}"


def save_model(folder: Path, module: Any, tokenizer: Any, *, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Weights (the module's own, or those given), config, tokenizer and chat template in Hugging Face format."""
    transformers_logging.disable_progress_bar()
    module.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def newest_checkpoint(run: Path) -> Path:
    """The newest whole checkpoint of a run; damaged ones are skipped with a warning.

    Raises:
        CheckpointError: there is none.
    """
    if not run.is_dir():
        raise CheckpointError(f"no run folder at {run}.")
    found = checkpoints(run)
    for folder in reversed(found):
        problem = find_damage(folder)
        if problem is None:
            return folder
        warnings.warn(f"checkpoint {folder} is damaged ({problem}); trying the one before it.", stacklevel=2)
    reason = "all of them are damaged" if found else "the run ended before the first one was written"
    raise CheckpointError(f"no usable checkpoint in {run / 'checkpoints'}: {reason}. Start the run again.")


def checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders that the run wrote, oldest first; copies and renamed ones beside them are the user's."""
    numbered = [
        (int(match[1]), path)
        for path in (run / "checkpoints").glob("step-*")
        if (match := _NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    ]
    return [path for number, path in sorted(numbered) if _recorded_step(path) in (number, None)]


def _recorded_step(folder: Path) -> int | None:
    """Batches that a checkpoint says it is of; None where that cannot be read: it is damaged."""
    try:
        return int(json.loads((folder / "trainer" / "state.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_adapter(folder: Path, module: Any) -> None:
    """Give a LoRA policy the factors of a checkpoint."""
    path = folder / "trainer" / "adapter.safetensors"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no adapter; resume with the model.lora_rank it was trained with.")
    factors = load_file(path)
    own = {name: parameter for name, parameter in module.named_parameters() if "lora_" in name}
    if {n: t.shape for n, t in factors.items()} != {n: p.shape for n, p in own.items()}:
        raise CheckpointError(f"{folder}: the adapter has another rank or other targets than model.lora_rank/targets.")
    for name, parameter in own.items():
        parameter.data.copy_(factors[name])


def load_trainer_state(folder: Path) -> TrainerState:
    """The state beside the weights of a checkpoint."""
    plain = json.loads((folder / "trainer" / "state.json").read_text(encoding="utf-8"))
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / "trainer" / "optimizer.safetensors").items():
        name, _, kind = key.rpartition("/")
        moments.setdefault(name, {})[kind] = tensor
    monitor = folder / "trainer" / "divergence.safetensors"
    learner = {**plain["learner"], "optimizer": moments, "monitor": load_file(monitor) if monitor.exists() else {}}
    paths = {name: folder / "trainer" / f"{name}.json" for name in ("ready", "put_off")}
    batches = {name: read_batch(path) for name, path in paths.items() if path.exists()}
    return TrainerState(plain["step"], learner, plain["sampler"], plain["config"], **batches)


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file must have its recorded size and SHA-256."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {_MANIFEST}"
    for name, (size, digest) in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        if _digest(path) != digest:
            return f"{name} has changed"
    return None


def _write(draft: Path, state: TrainerState, shape: Any, tokenizer: Any) -> None:
    learner = dict(state.learner)
    save_model(draft, shape, tokenizer, weights=learner.pop("weights"))
    moments = learner.pop("optimizer")
    tables = {
        "optimizer": {f"{name}/{kind}": tensor for name, kinds in moments.items() for kind, tensor in kinds.items()},
        "divergence": learner.pop("monitor"),
        "adapter": learner.pop("adapter"),
    }
    (draft / "trainer").mkdir()
    for name, tensors in tables.items():
        if tensors or name == "optimizer":
            file = draft / "trainer" / f"{name}.safetensors"
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    plain = {"step": state.step, "learner": learner, "sampler": state.sampler, "config": state.config}
    (draft / "trainer" / "state.json").write_text(json.dumps(plain))
    for name, batch in (("ready", state.ready), ("put_off", state.put_off)):
        if batch is not None:
            write_batch(draft / "trainer" / f"{name}.json", batch)
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(draft)): (path.stat().st_size, _digest(path)) for path in files}
    (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in [*files, draft / _MANIFEST]:
        _flush_file(path)
    _flush_folder(draft / "trainer")
    _flush_folder(draft)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
