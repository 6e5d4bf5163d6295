"""python -m agentrl.structure MODEL_OR_RUN...: the architectural constants of Theorem 1 (Table 2, Figure 6)."""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("structure")  # before the imports below, which take seconds

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from agentrl.analysis.head_constants import Structure, measure_structure
from agentrl.command.guard import main_guard
from agentrl.command.parsers import structure_parser
from agentrl.config.schema import ModelConfig
from agentrl.console import Display, console
from agentrl.errors import UserError
from agentrl.model.load import load_model
from agentrl.report.plots import Line, Points, constants_over_training, require_picture, save
from agentrl.runs.checkpoint import checkpoints
from agentrl.runs.folder import episode_files, read_episodes
from agentrl.runs.outputs import output_file

Context = tuple[list[int], int]


def contexts_of_run(folder: Path, count: int, *, seed: int) -> list[Context]:
    """Sampled tokens of stored evaluation episodes (held-out tasks) with what came before them.

    Raises:
        UserError: the run stored no episodes.
    """
    files = [path for path in episode_files(folder) if path.stem.startswith("eval")]
    if not files:
        raise UserError(f"{folder} holds no evaluation episodes to measure on; give --text FILE.")
    rows = [row for record in read_episodes(files[-1]) for row in record["rows"]]
    places = [(i, t) for i, row in enumerate(rows) for t in np.flatnonzero(row["trained"]) if t > 0]
    chosen = np.random.default_rng(seed).permutation(len(places))[:count]
    return [(rows[i]["ids"][:t], rows[i]["ids"][t]) for i, t in (places[c] for c in chosen)]


def contexts_of_text(text: str, tokenizer: object, count: int, *, seed: int, longest: int = 256) -> list[Context]:
    """Tokens of a plain text with up to `longest` tokens before them."""
    ids = tokenizer(text)["input_ids"]  # type: ignore[operator]
    if len(ids) < 2:
        raise UserError("--text must hold at least two tokens.")
    places = np.random.default_rng(seed).permutation(np.arange(1, len(ids)))[:count]
    return [(ids[max(0, place - longest) : place], ids[place]) for place in places]


def measure(path: Path, options: argparse.Namespace, run: Path | None) -> Structure:
    """Constants of one model folder, on episodes of a run or on a text."""
    module, tokenizer = load_model(ModelConfig(path=str(path)), device=torch.device("cpu"))
    if options.text:
        contexts = contexts_of_text(
            options.text.read_text(encoding="utf-8"), tokenizer, options.tokens, seed=options.seed
        )
    elif run:
        contexts = contexts_of_run(run, options.tokens, seed=options.seed)
    else:
        raise UserError(f"{path} is a model folder: give --text FILE to measure on.")
    return measure_structure(module, contexts, num_samples=options.samples, seed=options.seed)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options = structure_parser().parse_args(argv)
    if options.out:
        require_picture(options.out, "--out")
    found = [entry for path in options.models for entry in _checkpoints(path)]
    rows = {}
    with output_file(options.out, "--out"):  # before the work
        pass
    with output_file(options.json, "--json") as write:
        with Display() as display, display.bar("measuring", total=len(found)) as bar:
            for name, path, run in found:
                rows[name] = measure(path, options, run)
                bar.advance()
        console.print(_table(rows))
        write(json.dumps({name: describe(row) for name, row in rows.items()}, indent=1))
    if options.out:
        save(constants_over_training(_lines(rows)), options.out)
    return 0


def describe(row: Structure) -> dict[str, float]:
    """Flat numbers of one model."""
    numbers: dict[str, float] = {}
    for label, share in (("median", 0.5), ("p95", 0.95)):
        values = row.quantiles(share)
        names = ("ratio", "C", "C_struct")
        numbers |= {f"{name}_{label}": value for name, value in zip(names, values, strict=True)}
    held = row.gradient_ratio <= row.bound * (1 + 1e-4)
    return {**numbers, "pairs": len(row.ratio), "bound_holds": float(held.mean())}


def _checkpoints(path: Path) -> list[tuple[str, Path, Path | None]]:
    """(name, model folder, run folder) of every checkpoint of a run, or of a model folder itself."""
    if (path / "metrics.jsonl").is_file():
        return [(f"{path.name} {folder.name}", folder, path) for folder in checkpoints(path)]
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is neither a run folder (metrics.jsonl) nor a model folder (config.json).")
    return [(path.resolve().name, path, None)]


def _table(rows: dict[str, Structure]) -> Table:
    table = Table(title="constants of Theorem 1: median, 95th percentile", title_justify="left")
    table.add_column("model", overflow="fold")
    for name in ("|x|²/|h|²", "C", "C_struct", "bound holds"):
        table.add_column(name, justify="right", overflow="fold")
    for name, row in rows.items():
        numbers = describe(row)
        cells = [f"{numbers[f'{key}_median']:.1e}, {numbers[f'{key}_p95']:.1e}" for key in ("ratio", "C", "C_struct")]
        table.add_row(name, *cells, f"{numbers['bound_holds']:.0%}")
    return table


def _lines(rows: dict[str, Structure]) -> list[Line]:
    """One line per run over its checkpoints."""
    lines: dict[str, Line] = {}
    for name, row in rows.items():
        run, _, checkpoint = name.rpartition(" step-")
        empty: dict[str, Points] = {"median": ([], []), "95th percentile": ([], [])}
        line = lines.setdefault(run or name, Line(run or name, [], monitors=empty))
        for key, share in (("median", 0.5), ("95th percentile", 0.95)):
            line.monitors[key][0].append(float(checkpoint) if run else 0.0)
            line.monitors[key][1].append(row.quantiles(share)[2])
    return list(lines.values())


if __name__ == "__main__":
    sys.exit(main_guard(main))
