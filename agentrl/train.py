"""python -m agentrl.train CONFIG: rollouts, gated reuse, evaluation, checkpoints.

    tasks ──► batches.play ────► assign_credit ──► learner.update ─────► bring_weights ──► record
      ▲       waits for every    waits for the     up to K gradients;    waits for the       │
      │       episode            other processes   the gate ends it      last of them        │
      └───────────────── now and then: held-out tasks, a checkpoint ◄────────────────────────┘

Every process plays its share. What is learned from: `learner/credit.py`; what is played ahead: `rollout/ahead.py`.
"""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("train")  # before the imports below, which take seconds

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl import build
from agentrl.command.callable_module import make_callable
from agentrl.command.guard import main_guard, parse_command_line
from agentrl.command.listings import answer_listing
from agentrl.command.parsers import program, refuse_beside_resume, train_parser
from agentrl.config.read import config_without_file, load_config
from agentrl.config.schema import Config
from agentrl.console import Display, LogLevel, console, say, set_log_level
from agentrl.dry_run.schedule import schedule_table
from agentrl.environment.given import GivenEnvironment, GivenReward, load_given
from agentrl.evaluation.held_out import HeldOut
from agentrl.evaluation.summary import summarize
from agentrl.learner.credit import assign_credit
from agentrl.learner.protocol import Learner
from agentrl.model.processes import Processes
from agentrl.rollout.ahead import BatchStream
from agentrl.rollout.engines.base import Engine
from agentrl.rollout.engines.weight_sync import bring_weights, opening_row
from agentrl.rollout.failures import FailureLimit
from agentrl.runs.checkpoint import Checkpoints, newest_checkpoint
from agentrl.runs.folder import RunRecord, read_run, read_run_config
from agentrl.runs.interruption import Interruption, Stopped
from agentrl.runs.metrics import outcome
from agentrl.runs.outputs import run_folder
from agentrl.runs.writer import OnBatch, RunWriter, due


def train(
    config: Config, learner: Learner, engine: Engine, batches: BatchStream, *, held_out: HeldOut, run: RunWriter,
    checkpoints: Checkpoints, interruption: Interruption, processes: Processes, display: Display, on_batch: OnBatch,
) -> None:  # fmt: skip
    """The loop: play, compare, learn, bring the weights; now and then evaluate and save."""
    start, steps = learner.num_batches, config.train.steps
    failures = FailureLimit(config.rollout.max_failed_share, before=run.last_failed_share, run=run.folder)
    bring_weights(engine, learner, [opening_row(batches.rollout.chat)], config.rollout)
    if start == 0:
        checkpoints.save(learner, batches)
    held_out.evaluate_once(start)
    with display.bar("training", total=steps, done=start) as bar:
        for step in range(start + 1, steps + 1):
            with interruption.at_once():
                batches.play()
            batch = batches.take(is_last=step == steps)
            update = learner.update(assign_credit(batch.groups, config, learner=learner, processes=processes))
            synced = batches.meet() | bring_weights(engine, learner, batch.rows, config.rollout)
            played = batch.join(processes.gather(batch))
            record = run.log_batch(step, played, update, {**synced, **learner.measure()})
            interruption.stop_if(on_batch(record, played.groups) is False)
            failures.check(step, record["rollout/failed_share"], played.failures)
            interruption.check()
            if step < steps and due(config.eval.every, step):
                held_out.evaluate(step)
            if step == steps or due(config.checkpoint.every, step):
                checkpoints.save(learner, batches)
            bar.advance(seen := outcome(record), line=f"batch {step}/{steps}: {seen}", force=played.failures != [])
    held_out.evaluate(steps)


def run(
    config: Config | Path | str | None = None, overrides: Mapping[str, Any] | Sequence[str] | None = None, *,
    env: GivenEnvironment | None = None, reward: GivenReward | None = None, on_batch: OnBatch | None = None,
    run_dir: Path | str | None = None, resume: Path | str | None = None, name: str | None = None,
    log_level: LogLevel = "normal",
) -> RunRecord:  # fmt: skip
    """Train: the whole of a run, from its checks to its summary. In scripts: `agentrl.train(config)`.

    Raises UserError for what can be mended beforehand, RunError where a run cannot go on (it can be resumed).

    Args:
        config: an experiment, its TOML file, the name of a shipped one; None: the defaults, or those of `resume`.
        overrides: dotted keys and values on top, `{"train.steps": 20}`.
        env: what is played instead: an id, a class, a function that makes one; also of a notebook cell.
        reward: judges whole episodes (`agentrl.Reward`): a function, a list of them, or a dict with their weights.
        on_batch: called after each batch with its record and groups; False ends the run there, as one that is done.
        run_dir: where to write; None: runs/NAME-SOURCE-TIME, the source of the tasks where it is known.
        resume: a run folder to continue from its newest checkpoint.
    """
    started, processes = time.perf_counter(), Processes.join()
    source = read_run_config(resume) if resume and config is None else config
    config = load_given(source, overrides, env=env, reward=reward)
    set_log_level(log_level, is_first=processes.is_first)
    places = build.make_environments(config, processes)
    with run_folder(run_dir, resume, name or places.run_name(source, config), processes) as folder:
        checkpoint = newest_checkpoint(folder, processes) if resume else None
        models = build.load_models(config, places, folder=folder, checkpoint=checkpoint, processes=processes)
        learner = build.make_learner(config, models, processes)
        engine, batches, evaluation = build.make_rollouts(config, places, models, processes)
        done = build.restore(checkpoint, config, learner=learner, batches=batches) if checkpoint else None
        writer = build.open_run(folder, config, places, models, step=done, command=sys.argv, processes=processes)
    checkpoints = Checkpoints(folder, config, models.replica, models.tokenizer, processes)
    interruption, display = Interruption.of(processes), Display()
    shared: dict[str, Any] = {"processes": processes, "interruption": interruption, "display": display}
    held_out = HeldOut(evaluation, places.held_out_tasks, run=writer, **shared)
    rooms: dict[str, Any] = {"held_out": held_out, "run": writer, "checkpoints": checkpoints, **shared}
    try:
        with display, interruption, interruption.patiently(), checkpoints.saving_at_the_end(learner, batches):
            train(config, learner, engine, batches, on_batch=processes.ask_first(on_batch), **rooms)
    except Stopped:
        held_out.evaluate(learner.num_batches, final=True)
    except KeyboardInterrupt:
        say(f"interrupted; continue with: {program('train')} --resume {folder}")
        raise
    finally:
        for part in (writer, places, engine):
            part.close()
    if processes.is_first:
        summarize(folder, config, time.perf_counter() - started)
    processes.leave()
    return read_run(folder)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options, overrides = parse_command_line(train_parser(), argv)
    if answer_listing(options):
        return 0
    refuse_beside_resume(options)
    given: Any = read_run_config(options.resume) if options.resume else options.config or config_without_file(overrides)
    if options.dry_run:
        console.print(schedule_table(load_config(given, overrides)))
        return 0
    run(given, overrides, run_dir=options.run_dir, resume=options.resume, log_level=options.log_level)
    return 0


make_callable(__name__, run)

if __name__ == "__main__":
    sys.exit(main_guard(main, outlives_readers=True))
