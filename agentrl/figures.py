"""python -m agentrl.figures NAME RUN... --out FILE: the paper's figures from run folders."""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("figures")  # before the imports below, which take seconds

import sys

from agentrl.command.guard import main_guard
from agentrl.command.parsers import figures_parser
from agentrl.errors import UserError
from agentrl.report.plots import FIGURES, Line, Points, require_picture, save
from agentrl.report.view import RunView, describe_differences, load_runs, same_settings
from agentrl.runs.outputs import output_file
from agentrl.types import Metrics

_MONITORS = {
    "KL divergence": "kl",
    "share of clipped tokens": "clip_fraction",
    "global gradient norm": "grad_norm",
    "lm_head gradient norm": "head_energy",
}
"""The four signals of Figure 3 -> key of an update; the head's energy is a squared norm."""


def collect_lines(runs: list[RunView]) -> list[Line]:
    """One line per setting: runs that differ in nothing but `train.seed` belong together.

    Raises:
        UserError: runs of a setting were evaluated at different batches.
    """
    groups = same_settings(runs)
    labels = describe_differences([{**group[0].config, "train": {}, "eval": {}} for group in groups])
    return [_line(group, label or group[0].name) for group, label in zip(groups, labels, strict=True)]


def _line(runs: list[RunView], label: str) -> Line:
    steps = [[record["step"] for record in run.evals] for run in runs]
    if any(other != steps[0] for other in steps) or not steps[0]:
        raise UserError(f"{label}: the runs must be finished and evaluated at the same batches.")
    first = runs[0]
    gate, learner = first.config["gate"], first.config["learner"]
    updates = [(batch["step"], update) for batch in first.batches for update in batch["updates"]]
    return Line(
        label,
        success=[[record["eval/success"] for record in run.evals] for run in runs],
        costs={
            "rollouts": [[run.episodes_at(step) for step in steps[0]] for run in runs],
            "CPU seconds of rollouts and updates": [[run.cpu_seconds_at(step) for step in steps[0]] for run in runs],
        },
        steps=[float(step) for step in steps[0]],
        monitors=_monitors(updates),
        bounds=_theorem2(updates),
        weight_change=_weight_change(first),
        values={"K": float(learner["max_reuse"])} | ({"tau": gate["tau"]} if gate["kind"] == "dgg" else {}),
        is_reference=(gate["kind"] == "fixed" and gate["k"] == 1) or learner["max_reuse"] == 1,
    )


def _monitors(updates: list[tuple[int, Metrics]]) -> dict[str, Points]:
    x = [step + (update["k"] - 1) / 16 for step, update in updates]
    found = {name: (x, [update[key] for _, update in updates]) for name, key in _MONITORS.items()}
    x, energies = found["lm_head gradient norm"]
    found["lm_head gradient norm"] = (x, [energy**0.5 for energy in energies])
    return found


def _theorem2(updates: list[tuple[int, Metrics]]) -> dict[str, Points]:
    measured = [(step, update) for step, update in updates if update.get("head_bound")]
    x = [step + (update["k"] - 1) / 16 for step, update in measured]
    return {
        "1 + chi-square, measured": (x, [1 + update["chi_square"] for _, update in measured]),
        "lower bound: head energy / c_max": (x, [u["head_energy"] / u["head_bound"] for _, u in measured]),
    }


def _weight_change(run: RunView) -> dict[str, Points]:
    changes = [batch for batch in run.batches if any(key.startswith("weight_change/") for key in batch)]
    keys = [key for key in (changes[0] if changes else {}) if key.startswith("weight_change/")]
    steps = [float(batch["step"]) for batch in changes]
    return {key.split("/")[1]: (steps, [batch[key] for batch in changes]) for key in keys}


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options = figures_parser().parse_args(argv)
    require_picture(options.out, "--out")
    with output_file(options.out, "--out"):  # before the work
        pass
    lines = collect_lines(load_runs(options.runs))
    lines.sort(key=lambda line: not line.is_reference)
    draw = FIGURES[options.name]
    save(draw(lines), options.out)
    print(f"{options.out}: {len(lines)} settings, {len(options.runs)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
