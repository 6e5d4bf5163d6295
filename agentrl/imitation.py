"""A warm start: imitates an environment's expert, which makes a base policy where no pretrained one is at hand.

The expert plays through the same rollout code as the model later, so demonstrations have exactly the rows of RL. With
noise, a turn is now and then a random admissible action from which the expert recovers: the student sees mistakes and
stays short of the expert, which leaves RL something to improve. The environment's tokens are learned too: predicting
what a room holds teaches the names that actions copy.
"""

import inspect
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agentrl.common.plugins import HERE, find_object
from agentrl.config.describe import content_hash
from agentrl.config.schema import Config
from agentrl.console import Display, note, say
from agentrl.environment.played import PlayedEnvironment
from agentrl.environment.spec import environment_spec
from agentrl.errors import UserError
from agentrl.learner.batch import BatchRow, micro_batches
from agentrl.model.anatomy import head, head_bias, head_form, hidden_states
from agentrl.model.head import token_logprobs
from agentrl.model.load import load_model
from agentrl.model.tiny import build_tokenizer
from agentrl.rollout.chat import Chat, chat_for
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.scripted import fallback_policy, noisy_expert
from agentrl.rollout.tasks import TaskSampler, split_indices
from agentrl.runs.checkpoint import save_model
from agentrl.runs.fingerprint import fingerprint
from agentrl.types import Trajectory

_SEED = 0
"""Of demonstrations and initial weights; apart from `train.seed`, so that runs share a warm start."""
_RECIPE = 2
"""Part of the cache key: raised whenever the recipe below changes what comes out."""
_VOCABULARY_EPISODES = 400
"""Demonstrations whose words become the tiny model's vocabulary."""
_VOCABULARY_CHARACTERS = 50_000
"""How much of one text it is taken from: an observation of megabytes would take minutes and teach nothing more."""


def warmstart(config: Config) -> Path:
    """Folder of the warm-started model for a config: from the cache, or made now."""
    name = cache_name(config)
    cached = next((root / name for root in cache_roots(config) if (root / name / "config.json").is_file()), None)
    if cached is not None:
        say(f"warm start: {cached} (cached)")
        return cached
    folder = writable_root(config) / name
    texts = vocabulary_texts(config) if config.model.path == "tiny" else ()
    module, tokenizer = load_model(config.model, texts=texts, seed=_SEED)
    chat = chat_for(tokenizer, module, config.rollout)
    trajectories = collect_demonstrations(config, chat, config.warmstart.episodes)
    wins = sum(trajectory.success for trajectory in trajectories)
    say(f"warm start: the expert (noise {config.warmstart.noise:g}) wins {wins} of {len(trajectories)} episodes")
    imitate(module, demonstration_rows(trajectories, config), config, pad_id=tokenizer.pad_token_id or 0)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        save_model(draft, module, tokenizer)
        with suppress(OSError):  # somebody else made it meanwhile
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def cache_roots(config: Config) -> list[Path]:
    """Folders in which a warm start may be found: the configured or usual one, then the one for temporary files."""
    if config.warmstart.cache_dir is not None:
        usual = Path(config.warmstart.cache_dir).expanduser()
    else:
        base = os.environ.get("AGENTRL_CACHE") or os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "agentrl"
        )
        usual = Path(base).expanduser() / "warmstart"
    user = os.getuid() if hasattr(os, "getuid") else "user"
    temporary = Path(tempfile.gettempdir()) / f"agentrl-{user}" / "warmstart"
    return [root for root in (usual, temporary) if root == usual or _is_own(temporary.parent)]


def writable_root(config: Config) -> Path:
    """The first of these folders that can be written, made and tried before the work.

    Raises:
        UserError: there is none.
    """
    usual, *others = cache_roots(config)
    for root in (usual, *others):
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            tempfile.TemporaryFile(dir=root).close()
        except OSError as error:
            note(f"warm starts cannot be kept in {root} ({error.strerror}); warmstart.cache_dir names another folder")
            continue
        return root
    raise UserError("no folder for the warm start can be written. Set warmstart.cache_dir to one that can.")


def _is_own(folder: Path) -> bool:
    """Whether a folder among everybody's temporary ones is ours, or not there yet."""
    try:
        found = folder.lstat()
    except OSError:
        return True
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not folder.is_symlink())


def cache_name(config: Config) -> str:
    """The name of a config's warm start: of everything that shapes it, the environment's code and data included."""
    rollout = config.rollout.model_dump(include={"context", "window_turns", "max_turns", "max_context_tokens", "stop"})
    settings = config.warmstart.model_dump(exclude={"cache_dir"})
    members = config.environments()
    kept = {"eval_split", "reward", "success_threshold", *(["weight"] if len(members) == 1 else [])}
    env = [member.env.model_dump(exclude=kept) for member in members.values()]
    model = config.model.model_dump(exclude={"lora_rank", "lora_targets"})  # adapters come after
    modules = [module for member in members.values() for module in environment_spec(member).modules()]
    values = [*(member.env.options for member in members.values()), config.model.path]
    content: dict[str, Any] = {**fingerprint(modules, values)}
    if any(member.env.id.startswith(HERE) for member in members.values()):
        content["cells"] = _sources_of_cells(members.values())
    key = content_hash(_RECIPE, env if len(env) > 1 else env[0], model, settings, rollout, content)
    return f"{config.env.id.split('/')[-1].split(':')[-1]}-{key}"


def _sources_of_cells(members: Iterable[Config]) -> list[str]:
    """The code of environments that a script or a notebook defines; where it cannot be read no warm start is kept."""
    ours = [find_object(member.env.id, "env.id") for member in members if member.env.id.startswith(HERE)]
    try:
        return [inspect.getsource(each) for each in ours]
    except (OSError, TypeError):
        return [f"{os.getpid()} {time.time()}"]


def collect_demonstrations(config: Config, chat: Chat, count: int) -> list[Trajectory]:
    """`count` episodes of the noisy expert on the training split, in the rows that the model will see.

    Of a mixture each environment gives its share, at least one.
    """
    members = list(config.environments().values())
    total = sum(member.env.weight for member in members)
    return [
        trajectory
        for member in members
        for trajectory in _demonstrations(member, chat, max(1, round(count * member.env.weight / total)))
    ]


def _demonstrations(config: Config, chat: Chat, count: int) -> list[Trajectory]:
    """The first `count` of one environment."""
    environment = replace(PlayedEnvironment.of(config, "train", expert=True), rewards=None)
    pool = environment.pool
    num_tasks = pool.capabilities().num_tasks
    indices, _ = split_indices(
        split=config.env.split, eval_split=config.env.eval_split,
        num_tasks=num_tasks, num_eval_tasks=num_tasks, eval_count=config.eval.tasks,
    )  # fmt: skip
    tasks = TaskSampler(config.env.id, config.env.split, indices=indices, seed=_SEED).take(count)
    has_expert = pool.capabilities().expert
    expert = noisy_expert(config.warmstart.noise, train_noise=config.warmstart.train_noise)
    policy = expert if has_expert else fallback_policy
    doing = "warm start: the expert plays" if has_expert else "the environment's words, for the tokenizer"
    rollout = Rollout(None, chat, {"": environment}, config.rollout, seed=_SEED, policy=policy)
    with Display() as display, display.bar(doing, total=count) as bar:
        groups = rollout.play(tasks, group_size=1, on_episode=lambda _: bar.advance()).groups
    pool.close()
    return [group.trajectories[0] for group in groups]


def demonstration_rows(trajectories: list[Trajectory], config: Config) -> list[BatchRow]:
    """Rows whose `advantages` are the weight of each token's loss: 1 for the expert's, less for the environment's."""
    rows = []
    for trajectory in trajectories:
        for i, row in enumerate(trajectory.rows):
            weight = np.full(len(row.ids), config.warmstart.observation_weight, np.float32)
            for turn in trajectory.turns:
                if turn.row == i:
                    weight[turn.start : turn.end] = float(turn.imitate)
            weight[0] = 0.0
            if weight.any():
                rows.append(BatchRow(row.ids, weight > 0, weight, row.logprobs))
    return rows


def imitate(module: Any, rows: list[BatchRow], config: Config, *, pad_id: int) -> None:
    """Weighted maximum likelihood on demonstration rows; changes the module in place.

    Muon moves the matrices inside the blocks, AdamW the rest; both learning rates rise over the first 3 % of the steps
    and fall linearly to zero.
    """
    settings = config.warmstart
    random = np.random.default_rng(_SEED)
    num_steps = max(1, math.ceil(settings.passes * len(rows) / settings.batch_size))
    order = np.concatenate([random.permutation(len(rows)) for _ in range(math.ceil(settings.passes))])
    optimizers = _make_optimizers(module, config)
    module.train()
    recent = 0.0
    with Display() as display, display.bar("warm start: imitation", total=num_steps) as bar:
        for step in range(num_steps):
            chosen = [rows[i] for i in order[step * settings.batch_size : (step + 1) * settings.batch_size]]
            loss = _imitation_step(module, chosen, optimizers, config, step / num_steps, pad_id)
            recent = loss if step == 0 else 0.98 * recent + 0.02 * loss
            line = f"warm start: step {step + 1}/{num_steps}, loss {recent:.3f}"
            bar.advance(f"loss {recent:.3f}", line=line, force=step + 1 == num_steps)
    module.eval()


def vocabulary_texts(config: Config) -> list[str]:
    """Texts of some episodes, from which a tiny model's tokenizer takes its words."""
    tokenizer = build_tokenizer(())
    scribe = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    unlimited = config.rollout.model_copy(update={"max_context_tokens": 1 << 30, "context": "conversation"})
    count = min(config.warmstart.episodes, _VOCABULARY_EPISODES) or 64
    trajectories = collect_demonstrations(config.model_copy(update={"rollout": unlimited}), scribe, count)
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    texts = [*(t.first_observation for t in trajectories), *(text for t in turns for text in (t.action, t.observation))]
    return [text[:_VOCABULARY_CHARACTERS] for text in texts]


def _make_optimizers(module: Any, config: Config) -> list[tuple[torch.optim.Optimizer, float]]:
    """(optimizer, peak learning rate) pairs that together cover all parameters."""
    settings = config.warmstart
    matrices = [p for n, p in module.named_parameters() if p.ndim == 2 and "layers" in n] if settings.muon_lr else []
    inside = {id(p) for p in matrices}
    rest = [p for p in module.parameters() if id(p) not in inside]
    adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if not matrices:
        return [(adamw, settings.lr)]
    muon = torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=0.0)
    return [(adamw, settings.lr), (muon, settings.muon_lr)]


def _imitation_step(
    module: Any,
    rows: list[BatchRow],
    optimizers: list[tuple[torch.optim.Optimizer, float]],
    config: Config,
    done: float,
    pad_id: int,
) -> float:
    """One optimizer step at a share `done` of the schedule; the weighted mean loss per token in nats."""
    total = float(sum(row.advantages.sum() for row in rows))
    parts = micro_batches(
        rows, [1.0 / total] * len(rows), budget=config.learner.microbatch_tokens, pad_id=pad_id, keep=lambda _: True
    )
    value = 0.0
    for part in (part.to(module.device) for part in parts):
        hidden = hidden_states(module, part.ids)
        logprobs, _ = token_logprobs(
            hidden.flatten(0, 1)[part.predecessors], head(module).weight, part.targets,
            temperature=config.rollout.temperature, form=head_form(module), bias=head_bias(head(module)),
        )  # fmt: skip
        loss = -(logprobs * part.advantages * part.weights).sum()
        loss.backward()
        value += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimizer, peak in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, done / 0.03 + 0.01, 1.0 - done)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return value
