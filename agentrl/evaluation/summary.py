"""What a finished run has reached, what it took, where it lies."""

from pathlib import Path

from rich.table import Table

from agentrl.analysis.curves import sparkline
from agentrl.config.schema import Config
from agentrl.console import console, note, say
from agentrl.evaluation.rates import rates_from_metrics
from agentrl.evaluation.success_table import success_table, title_of
from agentrl.runs.folder import read_metrics
from agentrl.types import Metrics


def summarize(run: Path, config: Config, seconds: float) -> None:
    """What was reached, what it took, where it lies."""
    records = read_metrics(run)
    evals = [record for record in records if record["kind"] == "eval"]
    steps = [record for record in records if record["kind"] == "train"]
    before, after = evals[0], evals[-1]
    times = {1: "once"}.get(after["eval/samples"], f"{after['eval/samples']} times")
    title = f"{title_of(config, after)}, each held-out task {times}"
    columns = {"before": rates_from_metrics(before), "after": rates_from_metrics(after)}
    console.print(success_table(columns, title=title, rewards=[before["eval/reward"], after["eval/reward"]]))
    table = Table(show_header=False, box=None)
    closed = sum(record["learner/gate_closed"] for record in steps)
    last = steps[-1] if steps else {"cost/episodes": 0, "cost/optimizer_steps": 0, "cost/discarded_steps": 0}
    table.add_row("training success", sparkline([record["rollout/success"] for record in steps]))
    if steps:
        table.add_row("training reward", f"mean {steps[0]['rollout/reward']:.3g} -> {steps[-1]['rollout/reward']:.3g}")
    table.add_row("rollouts", f"{last['cost/episodes']:,} episodes in {len(steps)} batches")
    table.add_row("optimizer steps", f"{last['cost/optimizer_steps']:,} ({last['cost/discarded_steps']:,} discarded)")
    table.add_row("gate", f"{config.gate.kind}: closed in {closed} of {len(steps)} batches")
    table.add_row("time", f"{seconds:.0f} s in this process")
    console.print(table)
    if steps and not any(record["batch/mixed_groups"] for record in steps):
        note("nothing was learned: the rewards of each group were equal in every batch, so no answer was better")
    tell_unasked(steps, after, config.rollout.max_context_tokens)
    say(f" run folder        {run}")


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
