"""python -m agentrl.train CONFIG: rollouts, gated reuse, evaluation, checkpoints.

The only file that knows every room.
"""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("train")  # before the imports below, which take seconds

import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

from agentrl.analysis.curves import sparkline
from agentrl.build import load_models
from agentrl.command.callable_module import make_callable
from agentrl.command.guard import main_guard, parse_command_line
from agentrl.command.parsers import program, train_parser
from agentrl.common.paths import user_path
from agentrl.config.describe import describe_fields, diff_configs
from agentrl.config.read import build_config, load_config
from agentrl.config.schema import Config
from agentrl.config.shipped import list_configs
from agentrl.console import LineLog, console, note, progress, say
from agentrl.dry_run.schedule import schedule_table
from agentrl.environment.pool import EnvPool
from agentrl.environment.spec import EnvSpec, with_conventions
from agentrl.errors import Unplayable, UserError
from agentrl.evaluation.held_out import EVAL_SEED, eval_rollout_config, evaluate, held_out_tasks
from agentrl.evaluation.rates import format_rate, rates_from_metrics
from agentrl.evaluation.tables import success_table
from agentrl.learner.advantage import advantages, penalized_rewards
from agentrl.learner.batch import Batch, assemble
from agentrl.learner.learner import Learner, Update
from agentrl.learner.weight_monitor import DivergenceMonitor
from agentrl.model.load import set_threads, stop_token_ids
from agentrl.model.logprobs import row_logprobs
from agentrl.model.processes import ALONE, Processes
from agentrl.model.weights import adapter_tensors, gather_weights
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.base import Engine
from agentrl.rollout.engines.factory import make_engine
from agentrl.rollout.engines.weight_sync import Host, check_sync, opening_row
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.tasks import TaskSampler, split_indices
from agentrl.runs.checkpoint import TrainerState, load_trainer_state, newest_checkpoint, save_checkpoint, save_model
from agentrl.runs.folder import RunRecord, read_metrics, read_run, read_run_config
from agentrl.runs.interruption import Interrupted, Interruption
from agentrl.runs.metrics import Played, join_played, step_metrics
from agentrl.runs.outputs import claim_folder, given_back_if_empty, require_empty
from agentrl.runs.writer import Run
from agentrl.types import Group, Metrics, Row, Task


@dataclass
class Parts:
    """The rooms of a run, wired together."""

    config: Config
    run: Run
    module: Any
    """The policy, or where that is cut into shards the engine's copy: whole, or for vLLM a mere shape."""
    tokenizer: Any
    engine: Engine
    rollout: Rollout
    eval_rollout: Rollout
    sampler: TaskSampler
    eval_tasks: list[Task]
    learner: Learner
    divergence: DivergenceMonitor
    processes: Processes
    start: int = 0
    """Rollout batches done before."""
    log_line: LineLog = field(default_factory=LineLog)
    """For consoles without progress bars."""
    done: int = 0
    """Rollout batches whose updates and records are complete."""
    interruption: Interruption = field(default_factory=Interruption)
    """Signals that ask the run to end."""
    failed_share: float = 0.0
    """Share of the last batch's episodes that failed."""

    def close(self) -> None:
        """End what runs beside the loop: trackers, workers, the engine."""
        self.run.close()
        self.rollout.pool.close()
        self.eval_rollout.pool.close()
        self.engine.close()


def train(parts: Parts, bars: Progress) -> None:
    """The loop: play, compare, learn, sync; now and then evaluate and save. Every process plays its share of tasks."""
    config = parts.config
    bar = bars.add_task("training", total=config.train.steps, completed=parts.start)
    sync(parts, [opening_row(parts.rollout.chat)])
    if parts.start == 0:
        save(parts, 0)
    parts.done = parts.start
    if not is_evaluated(parts, parts.start):
        log_evaluation(parts, bars, parts.start)
    for step in range(parts.start + 1, config.train.steps + 1):
        groups = play_batch(parts)
        update = parts.learner.update(compare(parts, groups))
        synced = sync(parts, [row for group in groups for t in group.trajectories for row in t.rows])
        metrics = log_step(parts, step, groups, update, {**synced, **parts.divergence.measure(step)})
        parts.done = step
        end_if_failing(parts, step, metrics["rollout/failed_share"])
        parts.interruption.check()
        if due(config.eval.every, step) and step < config.train.steps:
            log_evaluation(parts, bars, step)
        if due(config.checkpoint.every, step) or step == config.train.steps:
            save(parts, step)
        outcome = f"success {metrics['rollout/success']:.0%}, failed {metrics['rollout/failed_share']:.1%}"
        bars.update(bar, advance=1, description=f"training, {outcome}")
        parts.log_line(f"batch {step}/{config.train.steps}: {outcome}", force=metrics["rollout/failed_share"] > 0)
    log_evaluation(parts, bars, config.train.steps)
    bars.remove_task(bar)


def train_until_interrupted(parts: Parts, bars: Progress) -> None:
    """The loop; a signal saves what is done and raises `Interrupted`."""
    with parts.interruption, parts.interruption.patiently():
        try:
            train(parts, bars)
        except Interrupted:
            save_once(parts)
            raise
        except Unplayable as error:
            if parts.processes.count == 1 or error.everywhere:  # a save takes all processes
                save_once(parts)
            raise


def save_once(parts: Parts) -> None:
    """A checkpoint of the last whole batch, unless there is one."""
    if not (parts.run.folder / "checkpoints" / f"step-{parts.done:06d}").exists():
        save(parts, parts.done)


def end_if_failing(parts: Parts, step: int, share: float) -> None:
    """Raise `Unplayable` where too many episodes of this batch and of the one before failed.

    A run that goes on with a few of its episodes learns from what happens to work, at the price of all of them.
    """
    limit, before, parts.failed_share = parts.config.rollout.max_failed_share, parts.failed_share, share
    if min(before, share) <= limit:
        return
    causes = Counter(t.error for each in parts.processes.gather(parts.rollout.failures) for t in each)
    cause, count = causes.most_common(1)[0]
    raise Unplayable(
        f"{before:.0%} and {share:.0%} of the episodes of batches {step - 1} and {step} failed, more than "
        f"rollout.max_failed_share = {limit:g} allows. The cause of {count} of the last {causes.total()}: {cause}. "
        f"Mend it and go on with --resume {parts.run.folder}, or allow more with --rollout.max_failed_share 1.",
        everywhere=True,
    )


def play_batch(parts: Parts) -> list[Group]:
    """The groups of the next tasks; a signal abandons them, and the tasks come again after a resume."""
    place = parts.sampler.state_dict()
    try:
        with parts.interruption.at_once():
            tasks = parts.processes.share(parts.sampler.take(parts.config.train.groups_per_step))
            return parts.rollout.play(tasks, group_size=parts.config.train.group_size)
    except (Interrupted, Unplayable):
        parts.sampler.load_state_dict(place)
        raise


def compare(parts: Parts, groups: list[Group]) -> Batch:
    """This process's groups as a batch; what concerns the whole batch is asked of the other processes."""
    config, processes = parts.config, parts.processes
    in_reward = config.loss.kl_coef > 0 and config.loss.kl_in == "reward"
    penalties = parts.learner.kl_penalties(groups) if in_reward else None
    everywhere = processes.gather(penalized_rewards(groups, penalties))
    elsewhere = [r for rank, rewards in enumerate(everywhere) if rank != processes.rank for r in rewards]
    worth = advantages(groups, config.advantage, penalties=penalties, elsewhere=elsewhere)
    return assemble(groups, worth, drop_equal=config.advantage.drop_equal)


def log_step(parts: Parts, step: int, groups: list[Group], update: Update, further: Metrics) -> Metrics:
    """Log a rollout batch with what all processes played; the record."""
    config, rollout = parts.config, parts.rollout
    played = Played(groups, rollout.failures, rollout.num_left_out, parts.engine.metrics())
    played = join_played(parts.processes.gather(played))
    drop_equal = config.advantage.drop_equal
    record = step_metrics(step, played, update, seconds=rollout.seconds, costs=parts.run.costs, drop_equal=drop_equal)
    record["rollout/failed_share"] = len(played.failures) / (config.train.groups_per_step * config.train.group_size)
    if parts.processes.is_first:
        parts.run.log({**record, **further}, groups=played.groups)
    return record


def is_evaluated(parts: Parts, step: int) -> bool:
    """Whether the evaluation that belongs after `step` batches is on record, or none does but the one at the end."""
    config = parts.config
    if step and (step >= config.train.steps or not due(config.eval.every, step)):
        return True
    records = read_metrics(parts.run.folder)
    return any(record["kind"] == "eval" and record["step"] == step for record in records)


def sync(parts: Parts, rows: Sequence[Row]) -> Metrics:
    """Bring the learner's weights to the engine; where it has a copy of its own, both score how it continues `rows`."""
    engine, learner, limits = parts.engine, parts.learner, parts.config.rollout
    if engine.shares_weights:  # the embedded engine decodes with the policy itself, or with a copy by the same code
        weights = () if parts.module is learner.module else learner.weights()
        engine.load_weights(weights, version=learner.num_updates)
        return {}
    started = time.perf_counter()
    engine.load_weights(learner.weights(), version=learner.num_updates)
    score = partial(row_logprobs, learner.module)
    gaps = check_sync(engine, rows, score, temperature=limits.temperature, tolerance=limits.sync_tolerance)
    return {**gaps, "time/sync_s": time.perf_counter() - started}


def wire(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    command: list[str] | None = None,
    processes: Processes = ALONE,
) -> Parts:
    """Check everything that can be checked, load the policy, and only then touch the run folder."""
    set_threads(config)
    config = with_conventions(config)
    spec = EnvSpec(config.env.id, config.env.split, config.env.options, config.env.format)
    eval_spec = EnvSpec(config.env.id, config.env.eval_split, config.env.options, config.env.format)
    pools = [EnvPool.of(each, config.rollout) for each in (spec, eval_spec)]
    num_tasks, num_eval_tasks = (pool.offer().num_tasks for pool in pools)
    eval_tasks = held_out_tasks(config, num_tasks=num_tasks, num_eval_tasks=num_eval_tasks)
    indices, _ = split_indices(
        split=config.env.split, eval_split=config.env.eval_split,
        num_tasks=num_tasks, num_eval_tasks=num_eval_tasks, eval_count=config.eval.tasks,
    )  # fmt: skip
    sampler = TaskSampler(config.env.id, config.env.split, indices=indices, seed=config.train.seed)
    checkpoint = newest_checkpoint(folder) if resume else None
    if min(config.train.groups_per_step, len(eval_tasks)) < processes.count:
        raise UserError(
            f"{processes.count} processes need at least as many tasks each time, but train.groups_per_step is "
            f"{config.train.groups_per_step} and {len(eval_tasks)} tasks are held out. Start fewer processes."
        )
    models = load_models(config, pools[0].offer(), folder=folder, checkpoint=checkpoint, processes=processes)
    module, tokenizer = models.policy, models.tokenizer
    learner = Learner(
        module, config, pad_id=tokenizer.pad_token_id or 0, reference=models.reference, processes=processes
    )
    divergence = DivergenceMonitor(
        module, every=config.tracking.divergence_every, start=models.initial, processes=processes
    )
    limits = config.rollout
    weights_folder = processes.from_first(f"agentrl-weights-{uuid.uuid4().hex[:12]}")
    engine = make_engine(
        limits, models.replica, tokenizer, rank=processes.rank, count=processes.count,
        host=Host(processes.is_first_here, processes.wait), folder=weights_folder,
    )  # fmt: skip
    chat = Chat(tokenizer, stop_ids=stop_token_ids(tokenizer, module), growing=limits.context == "conversation")
    judged: dict[str, Any] = {"system": config.env.system, "reward": config.env.reward}
    rollout = Rollout(engine, chat, pools[0], limits, seed=config.train.seed, **judged)
    eval_rollout = Rollout(engine, chat, pools[1], eval_rollout_config(config), seed=EVAL_SEED, **judged)
    start = 0
    if checkpoint is not None:
        start = restore(checkpoint, config, learner, sampler, divergence)
    initial_weights = gather_weights(module, keep=processes.is_first and checkpoint is None)
    if not processes.is_first:
        run = Run(folder, config, tokenizer=tokenizer)
    elif checkpoint is not None:
        run = Run.reopen(folder, config, step=start, tokenizer=tokenizer)
    else:
        run = Run.create(folder, config, command=command or [], tokenizer=tokenizer)
        save_model(folder / "initial", models.replica, tokenizer, weights=initial_weights)
    processes.wait()
    parts = Parts(
        config, run, models.replica, tokenizer, engine, rollout, eval_rollout, sampler, eval_tasks, learner, divergence,
        processes, start,
    )  # fmt: skip
    parts.failed_share = processes.from_first(run.costs.get("rollout/failed_share", 0.0))
    if processes.count > 1:
        parts.interruption = Interruption(agree=lambda asked: any(processes.gather(asked)))
    return parts


def restore(
    checkpoint: Path, config: Config, learner: Learner, sampler: TaskSampler, divergence: DivergenceMonitor
) -> int:
    """Bring learner, task stream and monitors to a checkpoint's state; the number of rollout batches done."""
    state = load_trainer_state(checkpoint, learner.policy.names)
    for line in diff_configs(build_config(state.config), config):
        say(f"config changed since the checkpoint: {line}")
    learner.load_state_dict(state.learner)
    sampler.load_state_dict(state.sampler)
    if state.divergence:
        divergence.load_tensors(state.divergence)
    return state.step


def save(parts: Parts, step: int) -> None:
    """Write a checkpoint after `step` rollout batches."""
    every = parts.config.tracking.divergence_every
    between = bool(every) and step % every != 0
    weights = gather_weights(parts.learner.module, keep=parts.processes.is_first)
    state = TrainerState(
        step=step,
        learner=parts.learner.state_dict(),
        sampler=parts.sampler.state_dict(),
        config=parts.config.model_dump(),
        divergence=parts.divergence.tensors() if between else {},
        trained=parts.learner.policy.names,
        adapter=adapter_tensors(parts.learner.module),
    )
    if parts.processes.is_first:
        save_checkpoint(
            parts.run.folder, state,
            module=parts.module, weights=weights, tokenizer=parts.tokenizer, keep=parts.config.checkpoint.keep,
        )  # fmt: skip


def log_evaluation(parts: Parts, bars: Progress, step: int) -> None:
    """Play the held-out tasks and log their success."""
    samples = parts.config.eval.samples or 1
    tasks = parts.processes.share(parts.eval_tasks)
    bar = bars.add_task("evaluation", total=len(tasks) * samples)
    with parts.interruption.at_once():
        result = evaluate(parts.eval_rollout, tasks, samples=samples, on_episode=lambda _: bars.advance(bar))
    bars.remove_task(bar)
    parts.engine.metrics()  # evaluation tokens are not training cost
    played = [trajectory for each in parts.processes.gather(result.trajectories) for trajectory in each]
    if not parts.processes.is_first:
        return
    result = replace(result, trajectories=sorted(played, key=lambda t: (t.task.position, t.member)))
    seconds = {"time/eval_s": parts.eval_rollout.seconds[0]}
    record = {"step": step, "kind": "eval", "final": step == parts.config.train.steps, **result.metrics(), **seconds}
    parts.run.log(record, name=f"eval-{step:06d}", trajectories=result.trajectories)
    parts.log_line(f"evaluation after {step} batches: success {format_rate(result.total)}", force=True)


def due(every: int, step: int) -> bool:
    """Whether something that happens `every` steps happens after this one."""
    return every > 0 and step % every == 0


def summarize(parts: Parts, seconds: float) -> None:
    """What was reached, what it took, where it lies."""
    records = read_metrics(parts.run.folder)
    evals = [record for record in records if record["kind"] == "eval"]
    steps = [record for record in records if record["kind"] == "train"]
    before, after = evals[0], evals[-1]
    times = {1: "once"}.get(after["eval/samples"], f"{after['eval/samples']} times")
    title = f"{parts.config.env.id} {parts.config.env.eval_split}, each held-out task {times}"
    console.print(
        success_table({"before": rates_from_metrics(before), "after": rates_from_metrics(after)}, title=title)
    )
    table = Table(show_header=False, box=None)
    closed = sum(record["learner/gate_closed"] for record in steps)
    last = steps[-1] if steps else {"cost/episodes": 0, "cost/optimizer_steps": 0, "cost/discarded_steps": 0}
    table.add_row("training success", sparkline([record["rollout/success"] for record in steps]))
    table.add_row("rollouts", f"{last['cost/episodes']:,} episodes in {len(steps)} batches")
    table.add_row("optimizer steps", f"{last['cost/optimizer_steps']:,} ({last['cost/discarded_steps']:,} discarded)")
    table.add_row("gate", f"{parts.config.gate.kind}: closed in {closed} of {len(steps)} batches")
    table.add_row("time", f"{seconds:.0f} s in this process")
    console.print(table)
    if steps and not any(record["batch/mixed_groups"] for record in steps):
        note("nothing was learned: the rewards of each group were equal in every batch, so no answer was better")
    tell_unasked(steps, after, parts.config.rollout.max_context_tokens)
    say(f" run folder        {parts.run.folder}")


def tell_unasked(steps: list[Metrics], evaluation: Metrics, limit: int) -> None:
    """Say how many episodes never began, because their first prompt alone filled the row."""
    unasked = sum(record.get("rollout/never_asked", 0) for record in steps)
    held_out = evaluation.get("eval/never_asked", 0)
    if unasked or held_out:
        keys = ("rollout/longest_unasked", "eval/longest_unasked")
        longest = max(record.get(key, 0) for record in [*steps, evaluation] for key in keys)
        played = steps[-1]["cost/episodes"] if steps else 0
        note(
            f"{unasked:,} of {played:,} training episodes and {held_out:,} of "
            f"{evaluation['eval/tasks'] * evaluation['eval/samples']:,} of the last evaluation were never asked and "
            f"count as failures: their first prompt has up to {longest:,} tokens, rollout.max_context_tokens is "
            f"{limit:,}. Raise it above {longest:,}."
        )


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options, overrides = parse_command_line(train_parser(), argv)
    if options.help_config:
        print_config_help()
        return 0
    if options.list:
        print(list_configs())
        return 0
    if options.resume and (options.config or options.run_dir):
        raise UserError("--resume RUN brings its own config and folder; give no CONFIG and no --run-dir with it.")
    config = load_config(read_run_config(options.resume) if options.resume else options.config, overrides)
    if options.dry_run:
        console.print(schedule_table(config))
        return 0
    name = options.config.stem if options.config else None
    run(config, name=name, run_dir=options.run_dir, resume=options.resume, command=sys.argv)
    return 0


def run(
    config: Config | Path | str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    run_dir: Path | str | None = None,
    resume: Path | str | None = None,
    name: str | None = None,
    command: list[str] | None = None,
) -> RunRecord:
    """Train: the whole of a run, from its checks to its summary. In scripts: `agentrl.train(config)`.

    Args:
        config: an experiment, its TOML file, the name of a shipped one; None: the defaults, or those of `resume`.
        overrides: dotted keys and values on top, `{"train.steps": 20}`.
        run_dir: where to write; None: runs/NAME-TIME.
        resume: a run folder to continue from its newest checkpoint.
        name: of the default folder; None: the environment's.
        command: what to record as the command.

    Returns:
        The finished run, as `agentrl.read_run` reads it.

    Raises:
        UserError: something that can be mended beforehand.
        RunError: the run cannot go on; `resume` may later.
    """
    started = time.perf_counter()
    source = read_run_config(user_path(str(resume))) if resume and config is None else config
    config = load_config(source, overrides)
    processes = Processes.join()
    console.quiet = not processes.is_first
    given = resume or run_dir
    claimed = None
    if given is None and processes.is_first:
        claimed = claim_folder(name or config.env.id.split("/")[-1].replace(":", "-"))
    elif run_dir and processes.is_first:
        require_empty(user_path(str(run_dir)))
    folder = processes.from_first(user_path(str(given)) if given else claimed)
    assert folder is not None
    with given_back_if_empty(claimed):
        parts = wire(config, folder, resume=resume is not None, command=command or sys.argv, processes=processes)
    try:
        with progress() as bars:
            train_until_interrupted(parts, bars)
    except KeyboardInterrupt:
        say(f"interrupted; continue with: {program('train')} --resume {folder}")
        raise
    finally:
        parts.close()
    if processes.is_first:
        summarize(parts, time.perf_counter() - started)
    processes.leave()
    return read_run(folder)


def print_config_help() -> None:
    """All config keys with default and meaning."""
    table = Table(title="config keys", title_justify="left")
    for column in ("key", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for row in describe_fields():
        table.add_row(*row)
    console.print(table)


make_callable(__name__, run)

if __name__ == "__main__":
    sys.exit(main_guard(main, outlives_readers=True))
