"""Save and resume everything, without pickles: safetensors and JSON only.

A checkpoint is a folder in Hugging Face format (weights, config, tokenizer, chat template) with a folder `trainer/`
beside the weights: optimizer moments, counters, gate window, task position; of a LoRA policy also the factors, beside
merged weights. Tensors are whole and named: any number of processes goes on, sharded or not. It is written under a
temporary name, flushed to the disk and renamed, and carries the size and SHA-256 of every file, so a half-written or
damaged one is recognised and the one before it is used. Checkpoints lie between rollout batches: no part of a batch is
pending, and one that was played ahead (`rollout.ahead`) is kept whole, as are the episodes of groups that were put off.

The first process writes it. Of a sharded policy every process holds, writes and hashes its share of the tensors
(`checkpoint_parts`); the first one adds what is no tensor, and renames the folder when the last one has written.
"""

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
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

from agentrl.config.schema import Config
from agentrl.errors import CheckpointError, Unplayable
from agentrl.learner.protocol import Learner
from agentrl.model.processes import ALONE, Processes
from agentrl.model.stored import StoredTensor
from agentrl.rollout.ahead import BatchStream
from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.runs.checkpoint_parts import Manifest, Tensors, digest, save_table, seal, stored_table, write_parts
from agentrl.runs.interruption import Interrupted
from agentrl.runs.outputs import draft_of, whole_folder
from agentrl.runs.ready_batch import read_batch, write_batch

_MANIFEST = "trainer/manifest.json"
_TENSORS = ("weights", "adapter", "optimizer", "monitor")
"""Of `Learner.state_dict()`; the rest is plain."""
_NAME = re.compile(r"step-([0-9]{6,})")


@dataclass
class TrainerState:
    """All of a run."""

    step: int
    """Rollout batches done."""
    learner: dict[str, Any]
    """`Learner.state_dict()`: all tensors, or to be written by several processes this one's share."""
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
        processes: of which the first writes, or of a sharded policy all; all must save together.
    """

    def __init__(self, run: Path, config: Config, shape: Any, tokenizer: Any, processes: Processes) -> None:
        self.run, self.config, self.shape, self.tokenizer, self.processes = run, config, shape, tokenizer, processes

    def save(self, learner: Learner, batches: BatchStream) -> None:
        """Write what has been learned so far, and what was played ahead."""
        writers = self.processes if self.config.learner.shard else ALONE
        weights, stream = learner.state_dict(spread=writers.count > 1), batches.state_dict()
        config, keep = self.config.model_dump(), self.config.checkpoint.keep
        state = TrainerState(learner.num_batches, weights, config=config, **stream)
        if self.processes.is_first or writers.count > 1:
            save_checkpoint(self.run, state, shape=self.shape, tokenizer=self.tokenizer, keep=keep, writers=writers)

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


def save_checkpoint(
    run: Path, state: TrainerState, *, shape: Any, tokenizer: Any, keep: int, writers: Processes = ALONE
) -> Path:
    """Write `run/checkpoints/step-NNNNNN` and delete all but the newest `keep`.

    Args:
        run: run folder.
        state: all that a resumed run needs.
        shape: a module of the policy's architecture, for its config.
        tokenizer: its tokenizer.
        keep: checkpoints to keep.
        writers: who writes, each with its share of the tensors in `state.learner`; all must save together.
    """
    folder = checkpoint_folder(run, state.step)
    if not writers.is_first:
        weights, tables = _tensors(state)
        write_parts(draft_of(folder), weights, tables, shape=shape, writers=writers)
        writers.wait()
        return folder
    with whole_folder(folder) as draft:
        _write(draft, state, shape, tokenizer, writers)
    _flush_folder(folder.parent)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    writers.wait()
    return folder


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` rollout batches lies."""
    return run / "checkpoints" / f"step-{step:06d}"


def save_model(folder: Path, module: Any, tokenizer: Any, *, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Weights (the module's own, or those given), config, tokenizer and chat template in Hugging Face format."""
    transformers_logging.disable_progress_bar()
    module.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def newest_checkpoint(run: Path, processes: Processes = ALONE) -> Path:
    """The newest whole checkpoint of a run; damaged ones are skipped with a warning.

    Args:
        run: run folder.
        processes: who looks, each at a share of the files; all must ask together.

    Raises:
        CheckpointError: there is none.
    """
    if not run.is_dir():
        raise CheckpointError(f"no run folder at {run}.")
    found = processes.from_first(checkpoints(run))
    for folder in reversed(found):
        problem = find_damage(folder, processes)
        if problem is None:
            return folder
        if processes.is_first:
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
    """The state beside the weights of a checkpoint; its tensors are read as the learner takes them."""
    plain = json.loads((folder / "trainer" / "state.json").read_text(encoding="utf-8"))
    moments: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in stored_table(folder, "optimizer").items():
        name, _, kind = key.rpartition("/")
        moments.setdefault(name, {})[kind] = tensor
    learner = {**plain["learner"], "optimizer": moments, "monitor": stored_table(folder, "divergence")}
    paths = {name: folder / "trainer" / f"{name}.json" for name in ("ready", "put_off")}
    batches = {name: read_batch(path) for name, path in paths.items() if path.exists()}
    return TrainerState(plain["step"], learner, plain["sampler"], plain["config"], **batches)


def find_damage(folder: Path, processes: Processes = ALONE) -> str | None:
    """What is wrong with a checkpoint, or None: every file must have its recorded size and SHA-256.

    Args:
        folder: the checkpoint.
        processes: who looks, each at a share of the files; all must ask together, and all get the answer.
    """
    return next((problem for problem in processes.gather(_find_damage(folder, processes)) if problem), None)


def _find_damage(folder: Path, processes: Processes) -> str | None:
    try:
        manifest: Manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {_MANIFEST}"
    by_size = sorted(manifest.items(), key=lambda entry: entry[1][0], reverse=True)
    for name, (size, written) in processes.share(by_size):
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        if digest(path) != written:
            return f"{name} has changed"
    return None


def _tensors(state: TrainerState) -> tuple[Tensors, dict[str, Tensors]]:
    """(weights, further tensors by the name of their file) of a state."""
    moments = state.learner["optimizer"]
    optimizer = {f"{name}/{kind}": tensor for name, kinds in moments.items() for kind, tensor in kinds.items()}
    return state.learner["weights"], {"optimizer": optimizer, "divergence": state.learner["monitor"]}


def _write(draft: Path, state: TrainerState, shape: Any, tokenizer: Any, writers: Processes) -> None:
    """What the first process writes: all but the other writers' parts."""
    (draft / "trainer").mkdir(parents=True)
    weights, tables = _tensors(state)
    manifest: Manifest = {}
    if writers.count > 1:
        save_model(draft, shape, tokenizer, weights={})
        (draft / "model.safetensors").unlink(missing_ok=True)  # without weights
        manifest = write_parts(draft, weights, tables, shape=shape, writers=writers)
        tables = {}
    else:
        save_model(draft, shape, tokenizer, weights=weights)
    for name, tensors in {**tables, "adapter": state.learner["adapter"]}.items():
        if tensors or name == "optimizer":
            save_table(draft / "trainer" / f"{name}.safetensors", tensors)
    learner = {key: value for key, value in state.learner.items() if key not in _TENSORS}
    plain = {"step": state.step, "learner": learner, "sampler": state.sampler, "config": state.config}
    (draft / "trainer" / "state.json").write_text(json.dumps(plain))
    for name, batch in (("ready", state.ready), ("put_off", state.put_off)):
        if batch is not None:
            write_batch(draft / "trainer" / f"{name}.json", batch)
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    names = [str(path.relative_to(draft)) for path in files]
    manifest = {name: manifest.get(name) or seal(draft / name) for name in names}
    (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    seal(draft / _MANIFEST)
    _flush_folder(draft / "trainer")
    _flush_folder(draft)


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
