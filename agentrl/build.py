"""From a config to what a run is made of: environments, models, learner, engine with rollouts, run folder."""

import copy
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agentrl.common.data_source import with_kinds
from agentrl.config.describe import diff_configs
from agentrl.config.read import build_config
from agentrl.config.schema import Config, RolloutConfig
from agentrl.console import note, say
from agentrl.environment.played import PlayedEnvironment, close_all, played_environments
from agentrl.errors import CheckpointError, UserError
from agentrl.evaluation.held_out import EVAL_SEED, eval_rollout_config, held_out_tasks, renumbered
from agentrl.imitation import vocabulary_texts, warmstart
from agentrl.learner.learner import TorchLearner
from agentrl.learner.protocol import Learner
from agentrl.model.anatomy import head_form
from agentrl.model.compiled import asked_compiler
from agentrl.model.load import load_model, set_threads
from agentrl.model.logprobs import check_fidelity
from agentrl.model.processes import Processes
from agentrl.model.upper import freeze_lower_layers
from agentrl.model.weights import add_lora, compute_dtype, gather_weights, shard
from agentrl.rollout.ahead import BatchStream
from agentrl.rollout.chat import chat_for
from agentrl.rollout.engines.base import Engine
from agentrl.rollout.engines.factory import engine_type, holds_own_weights, make_engine
from agentrl.rollout.engines.weight_sync import Host
from agentrl.rollout.process import DistantRollout, RolloutProcess
from agentrl.rollout.process_body import RolloutPlan
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.tasks import MixedSampler, TaskSampler, split_indices
from agentrl.runs.checkpoint import load_adapter, load_trainer_state, save_model
from agentrl.runs.trackers import require_trackers
from agentrl.runs.writer import RunWriter
from agentrl.types import Task


@dataclass(frozen=True)
class Environments:
    """What is played."""

    train: Mapping[str, PlayedEnvironment]
    """Training tasks, by the environments' names."""
    held_out: Mapping[str, PlayedEnvironment]
    """The evaluation splits."""
    sampler: TaskSampler
    """The stream of training tasks."""
    held_out_tasks: list[Task]
    """Played at every evaluation; never among the training tasks."""

    def data(self) -> dict[str, Any]:
        """Where the tasks come from, as JSON; None where an environment does not say."""
        return {"train": _sources(self.train), "eval": _sources(self.held_out)}

    def run_name(self, source: Any, config: Config) -> str:
        """A name after the config's file or the environment; with the data, so that generated is taken for no other."""
        name = str(getattr(source, "stem", config.title))
        return with_kinds(name, (environment.pool.capabilities().source for environment in self.train.values()))

    def close(self) -> None:
        """Stop the worker processes."""
        for environments in (self.train, self.held_out):
            close_all(environments)


@dataclass(frozen=True)
class Models:
    """The modules of a run."""

    policy: Any
    """What the learner trains."""
    replica: Any
    """What an embedded engine decodes with: the policy itself, or where that is cut into shards a whole copy.
    For engines with weights of their own the copy has a shape and no weights."""
    initial: Any | None
    """The model before training where training goes on, on the CPU; None: `policy` still is that."""
    reference: Any | None
    """What a KL is measured to, where one is asked for: a frozen copy in the type of the products, cut as the policy
    is, or with adapters the policy itself, whose adapters are then switched off."""
    tokenizer: Any


def make_environments(config: Config, processes: Processes) -> Environments:
    """Workers for both splits, and the tasks of each.

    Raises:
        UserError: a tracker that cannot work, an environment that breaks the contract, fewer tasks than processes.
    """
    require_trackers(config.tracking.trackers)
    set_threads(config.model.path)
    train, held_out = (played_environments(config, split) for split in ("train", "eval"))
    streams: dict[str, TaskSampler] = {}
    tasks: list[Task] = []
    for name, member in config.environments().items():
        num_tasks, num_held_out = (side[name].pool.capabilities().num_tasks for side in (train, held_out))
        tasks += renumbered(
            held_out_tasks(member, num_tasks=num_tasks, num_eval_tasks=num_held_out), name, start=len(tasks)
        )
        env = member.env
        indices, _ = split_indices(
            split=env.split, eval_split=env.eval_split,
            num_tasks=num_tasks, num_eval_tasks=num_held_out, eval_count=config.eval.tasks,
        )  # fmt: skip
        band = config.train.difficulty_band
        if band is not None and indices is None:
            raise UserError(f"train.difficulty_band: {env.id} does not enumerate its tasks (num_tasks). Leave it out.")
        streams[name] = TaskSampler(env.id, env.split, indices=indices, seed=config.train.seed, band=band)
    weights = {name: member.env.weight for name, member in config.environments().items()}
    sampler = streams[""] if "" in streams else MixedSampler(streams, weights)
    if min(config.train.groups_per_step, len(tasks)) < processes.count:
        raise UserError(
            f"{processes.count} processes need at least as many tasks each time, but train.groups_per_step is "
            f"{config.train.groups_per_step} and {len(tasks)} tasks are held out. Start fewer processes."
        )
    return Environments(train, held_out, sampler, tasks)


def load_models(
    config: Config, environments: Environments, *, folder: Path, checkpoint: Path | None, processes: Processes
) -> Models:
    """Load the policy of a run, or of its checkpoint, ready for training on all processes.

    Args:
        config: the experiment.
        environments: whose expert may be imitated for a warm start.
        folder: run folder, which keeps the initial weights.
        checkpoint: what to go on from.
        processes: the first makes a warm start, the others then find it.
    """
    adapted, cut = bool(config.model.lora_rank), config.learner.shard and processes.count > 1
    refuse_ahead(config.rollout, processes.device)
    if config.rollout.engine_options.get("weight_sync") == "adapter" and not config.model.lora_rank:
        raise UserError(
            'rollout.engine_options.weight_sync = "adapter" sends the factors of a LoRA policy, and model.lora_rank is '
            '0. Set a rank, or weight_sync = "disk".'
        )
    refuse_frozen(config, sharded=cut)
    has_expert = all(environment.pool.capabilities().expert for environment in environments.train.values())
    if not processes.is_first:
        processes.wait()
    try:
        # Adapters resume on the frozen weights they began with.
        module, tokenizer = _load(config, has_expert, folder / "initial" if checkpoint and adapted else checkpoint)
    finally:
        if processes.is_first:
            processes.wait()
    module.to(processes.device)
    freeze_lower_layers(module, config.model.train_layers)
    initial = None
    if checkpoint is not None:
        first = config.model.model_copy(update={"path": str(folder / "initial")})
        initial = load_model(first, device=torch.device("cpu"))[0]
    reference = frozen_copy(initial or module, processes.device) if config.loss.kl_coef and not adapted else None
    replica = module
    if config.rollout.ahead:
        replica = copy.deepcopy(module).to("cpu")
    elif cut:
        replica = without_weights(module) if holds_own_weights(config.rollout) else copy.deepcopy(module)
    head_form(module)  # measured while the module is whole; wrapped ones keep it
    if cut:
        check_fidelity(module, pad_id=pad_id(tokenizer), max_context_tokens=config.rollout.max_context_tokens)
    add_lora(module, config.model, seed=config.train.seed)
    if adapted:
        reference = module if config.loss.kl_coef else None
        if checkpoint is not None:
            load_adapter(checkpoint, module)
    if cut:
        shard(module)
        if reference is not None and reference is not module:
            shard(reference)
    return Models(module, replica, initial, reference, tokenizer)


def make_learner(config: Config, models: Models, processes: Processes) -> TorchLearner:
    """The learner of the policy, before its first batch."""
    compiler = asked_compiler()
    if compiler is not None:
        say(f"updates are compiled by {compiler.backend}: the first ones take longer")
    return TorchLearner(
        models.policy, config, pad_id=pad_id(models.tokenizer), reference=models.reference, initial=models.initial,
        processes=processes, compiler=compiler,
    )  # fmt: skip


def make_rollouts(
    config: Config, environments: Environments, models: Models, processes: Processes
) -> tuple[Engine, BatchStream, Rollout]:
    """(engine, batches for training, rollout for evaluation): one engine, sampling and tasks of their own."""
    chat = chat_for(models.tokenizer, models.policy, config.rollout)
    folder = processes.from_first(f"agentrl-weights-{uuid.uuid4().hex[:12]}")
    sides = {"train": environments.train, "held-out": environments.held_out}
    plans = {
        "train": RolloutPlan(config, "train", config.rollout, config.train.seed),
        "held-out": RolloutPlan(config, "eval", eval_rollout_config(config), EVAL_SEED),
    }
    engine: Engine
    rollouts: list[Rollout]
    if config.rollout.ahead:
        half = max(1, torch.get_num_threads() // 2)
        torch.set_num_threads(half)
        engine = process = RolloutProcess(
            models.replica, models.tokenizer, plans,
            rank=processes.rank, count=processes.count, folder=folder, num_threads=half,
        )  # fmt: skip
        rollouts = [DistantRollout(process, name, chat, sides[name], plan) for name, plan in plans.items()]
        environments.close()  # they have said what there is to play
    else:
        engine = make_engine(
            config.rollout, models.replica, models.tokenizer, rank=processes.rank, count=processes.count,
            host=Host(processes.is_first_here, processes.wait), folder=folder,
            shares_weights=models.replica is models.policy,
        )  # fmt: skip
        rollouts = [plan.rollout(engine, chat, sides[name]) for name, plan in plans.items()]
    return engine, BatchStream(rollouts[0], environments.sampler, config.train, processes=processes), rollouts[1]


def _sources(environments: Mapping[str, PlayedEnvironment]) -> Any:
    found = {name: environment.pool.capabilities().source for name, environment in environments.items()}
    records = {name: source and source.record() for name, source in found.items()}
    return records.get("", records)


def refuse_ahead(config: RolloutConfig, device: torch.device) -> None:
    """Raises UserError where the next batch cannot be played while the learner computes on this device."""
    if not config.ahead:
        return
    if device.type != "cpu" and not engine_type(config).can_run_ahead:
        raise UserError(
            f'rollout.ahead = 1: the engine "{config.engine}" decodes on the GPU that the learner computes on, so it '
            "cannot play meanwhile. Name servers (rollout.endpoints), or set rollout.ahead = 0."
        )
    sync = config.engine_options.get("weight_sync", "disk")
    if config.endpoints and sync != "disk":
        raise UserError(
            "rollout.ahead = 1 brings whole weights to servers through a folder: rollout.engine_options.weight_sync "
            f'must be "disk", got "{sync}".'
        )


def refuse_frozen(config: Config, *, sharded: bool) -> None:
    """Raises UserError where `model.train_layers` meets what it cannot be combined with."""
    if not config.model.train_layers:
        return
    others = {
        "model.lora_rank": config.model.lora_rank,
        "learner.shard over several processes": sharded,
        "rollout.endpoints, whose servers hold the whole model as it was": config.rollout.endpoints,
    }
    for name, is_set in others.items():
        if is_set:
            raise UserError(f"model.train_layers cannot be combined with {name}. Leave one of them out.")


def restore(checkpoint: Path, config: Config, *, learner: Learner, batches: BatchStream) -> int:
    """Bring learner and stream of batches to a checkpoint's state; the number of rollout batches done."""
    state = load_trainer_state(checkpoint)
    for line in diff_configs(build_config(state.config), config):
        say(f"config changed since the checkpoint: {line}")
    try:
        learner.load_state_dict(state.learner)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None
    batches.load_state_dict({"sampler": state.sampler, "ready": state.ready, "put_off": state.put_off})
    if state.step >= config.train.steps:
        note(f"all {config.train.steps} batches are done; only the last evaluation is repeated. More: --train.steps N")
    return state.step


def open_run(
    folder: Path, config: Config, environments: Environments, models: Models, *,
    step: int | None, command: list[str], processes: Processes,
) -> RunWriter:  # fmt: skip
    """The run folder: a new one with the initial weights, or where `step` batches were restored, the old one.

    Only the first process writes; all must ask together.
    """
    size = sum(p.numel() for name, p in models.policy.named_parameters() if "lora_" not in name)
    initial = gather_weights(models.policy, keep=processes.is_first and step is None)
    if not processes.is_first:
        run = RunWriter(folder, config, tokenizer=models.tokenizer, writes=False)
    elif step is not None:
        run = RunWriter.reopen(folder, config, step=step, tokenizer=models.tokenizer, num_parameters=size)
    else:
        about: dict[str, Any] = {"command": command, "data": environments.data()}
        run = RunWriter.create(folder, config, tokenizer=models.tokenizer, num_parameters=size, **about)
        save_model(folder / "initial", models.replica, models.tokenizer, weights=initial)
    run.last_failed_share = processes.from_first(run.last_failed_share)
    processes.wait()
    return run


def pad_id(tokenizer: Any) -> int:
    """The id that rows are filled up with."""
    return tokenizer.pad_token_id or 0


def frozen_copy(module: Any, device: torch.device) -> Any:
    """A copy that is never trained, in the type of its products: autocast would keep casts of what can be trained."""
    frozen = copy.deepcopy(module).requires_grad_(False).to(device, compute_dtype(module))
    head_form(frozen)  # as for the policy: measured while it is whole
    return frozen


def without_weights(module: Any) -> Any:
    """A copy that has the module's shape and settings alone, ties included; nothing is allocated for it."""
    hollow: dict[int, Any] = {id(p): torch.nn.Parameter(p.detach().to("meta")) for p in module.parameters()}
    hollow |= {id(b): b.to("meta") for b in module.buffers()}
    return copy.deepcopy(module, hollow)


def _load(config: Config, has_expert: bool, path: Path | None) -> tuple[Any, Any]:
    """(module, tokenizer): from a folder, a warm start, or the model the config names."""
    if path is None and config.warmstart.episodes:
        if has_expert:
            path = warmstart(config)
        else:
            ids = " or ".join(env.id for env in config.mixture or [config.env])
            say(f"warm start skipped: {ids} offers no expert")
    if path is not None:
        return load_model(config.model.model_copy(update={"path": str(path)}))
    texts = vocabulary_texts(config) if config.model.path == "tiny" else ()
    return load_model(config.model, texts=texts, seed=config.train.seed)
