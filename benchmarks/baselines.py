"""Success without reinforcement learning on the panels that need no data: chance, the environments' own experts, a
small pretrained model as it is, and the same after a short imitation of the expert.

Every task is played three times, with random numbers of its own each time: three seeds. Chance and experts play whole
panels, the model the first tasks of each: a copy of the panel, written below --out, whose name says so
(`math-generated-first16-seeds3`). SmolLM2-135M comes from `python -m agentrl.convert_smollm2 FOLDER`.

    export OMP_NUM_THREADS=1 RESULTS=benchmarks/results/baselines
    python benchmarks/baselines.py --out runs/baselines --model FOLDER --results $RESULTS.json > $RESULTS.md
    python benchmarks/baselines.py --out runs/baselines --panels math-generated@1    # one panel, without a model

What lies below --out is read or gone on with, not played again; --read plays nothing at all.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agentrl import evaluate  # noqa: E402
from agentrl.config.read import load_config  # noqa: E402
from agentrl.errors import UserError  # noqa: E402
from agentrl.evaluation.document import read_document  # noqa: E402
from agentrl.imitation import warmstart  # noqa: E402
from agentrl.panels.check import settings_tree  # noqa: E402
from agentrl.panels.panel import Panel, shipped_panels, write_panel  # noqa: E402

SEEDS = 3
MODEL_TASKS = {
    "alfworld-generated": 4, "webshop-generated": 2, "search-qa-generated": 8, "math-generated": 16,
    "reasoning-gym-generated": 8,
}  # fmt: skip
"""What a model of 135M parameters plays of each panel that needs no data: one to three CPU-minutes of one core."""
IMITATION = {"batch_size": 4, "lr": 1e-4, "muon_lr": 0.0, "observation_weight": 0.0}
"""As in `configs/alfworld_smollm2.toml`, which gives the reasons."""
EPISODES = {
    "alfworld-generated": 8, "webshop-generated": 4, "search-qa-generated": 24, "math-generated": 48,
    "reasoning-gym-generated": 16,
}  # fmt: skip
"""Demonstrations imitated, once: about a CPU-minute each."""


def part_of(panel: Panel, tasks: int, folder: Path) -> Path:
    """A panel of the first tasks of another, played by every seed."""
    name = f"{panel.name}-seeds{SEEDS}" if tasks == panel.num_tasks else f"{panel.name}-first{tasks}-seeds{SEEDS}"
    settings = {**panel.settings, "eval": {**panel.settings["eval"], "samples": SEEDS}}
    changes = {
        "name": name, "num_tasks": tasks, "settings": settings, "content": None, "engine": None,
        "indices": [task.index for task in panel.tasks()[:tasks]] if panel.is_enumerable else None,
        "names": panel.names and panel.names[:tasks], "digests": panel.digests and panel.digests[:tasks],
    }  # fmt: skip
    path = folder / f"{name}.json"
    write_panel(Panel.model_validate({**panel.model_dump(), **changes}), path)
    return path


def imitated(panel: Panel, model: Path, out: Path) -> Path:
    """The folder of the model after a short imitation of the panel's expert on the training split."""
    tree = settings_tree({}, panel)
    tree["model"] = {"path": str(model)}
    tree["warmstart"] = {**IMITATION, "episodes": EPISODES[panel.name], "cache_dir": str(out / "imitated")}
    return warmstart(load_config(tree))


def play(panel: Panel, player: str, model: Path | None, tasks: int, out: Path) -> dict[str, Any]:
    """One player on one panel: success of each seed, %, or why there is none."""
    folder = out / f"{panel.name}-{player}"
    told = {"panel": panel.id, "player": player}
    if not (folder / "result.json").is_file():
        try:
            evaluate.run(
                model, policy="model" if model else player, panel=str(part_of(panel, tasks, out)), out=folder,
                resume=(folder / "samples.jsonl").is_file(), log_level="quiet",
            )  # fmt: skip
        except UserError as error:
            return {**told, "refused": str(error)}
    document = read_document(folder)
    successes = [[task.samples[seed].success for task in document.tasks] for seed in range(SEEDS)]
    assert document.panel is not None
    return {
        **told, "played": document.panel.name, "tasks": len(document.tasks),
        "seeds": [round(100 * sum(each) / len(each), 2) for each in successes],
        "interval": [round(100 * value, 1) for value in document.intervals["all"]], "counts": document.counts,
        "weights": document.player.get("weights"), "template": document.player.get("template"),
        "software": document.software,
    }  # fmt: skip


def results_of(panels: list[Panel], model: Path | None, out: Path, *, only_read: bool) -> list[dict[str, Any]]:
    """All players on all panels, each one's line as it is done; or what those did who have played before."""
    results = []
    for panel in panels:
        players: dict[str, Any] = {"random": None, "expert": None}
        if model:
            players["zero-shot"] = lambda _: model
            players["imitated"] = lambda panel: imitated(panel, model, out)
        for player, folder_of in players.items():
            if only_read and not (out / f"{panel.name}-{player}" / "result.json").is_file():
                results.append({"panel": panel.id, "player": player, "refused": "still to be run"})
                continue
            started = time.process_time()
            folder = folder_of(panel) if folder_of and not only_read else None
            tasks = MODEL_TASKS[panel.name] if folder else panel.num_tasks
            results.append(play(panel, player, folder, tasks, out))
            line = {key: results[-1].get(key) for key in ("panel", "player", "seeds", "interval", "refused")}
            print(json.dumps(line), f"{time.process_time() - started:.0f} CPU-s", file=sys.stderr, flush=True)
    return results


def page(results: list[dict[str, Any]]) -> str:
    """Markdown: a row a panel and player."""
    lines = ["| panel | player | tasks x seeds | by seed, % | mean [95 %] |", "|---|---|---:|---|---:|"]
    for each in results:
        if "refused" in each:
            lines.append(f"| `{each['panel']}` | {each['player']} | | not played: {each['refused']} | |")
            continue
        mean, low, high = each["interval"]
        seeds = " / ".join(f"{value:.1f}" for value in each["seeds"])
        size = f"{each['tasks']} x {SEEDS}"
        lines.append(
            f"| `{each['panel']}` | {each['player']} | {size} | {seeds} | {mean:.1f} [{low:.1f}, {high:.1f}] |"
        )
    episodes = ", ".join(f"{name} {count}" for name, count in EPISODES.items())
    return (
        "# Baselines\n\nSuccess on the panels that need no data, without reinforcement learning. Every task is played "
        f"{SEEDS} times with random numbers of its own; brackets: 95 % over tasks. Chance and experts play whole "
        "panels, SmolLM2-135M-Instruct (4-bit values, made whole again) their first tasks only, as many as the third "
        "column says: `zero-shot` as it is, `imitated` after one pass over demonstrations on the training split "
        f"(episodes: {episodes}; AdamW at 1e-4). Made by `benchmarks/baselines.py`; the JSON file beside this one has "
        "weights, versions and counts.\n\n" + "\n".join(lines)
    )


def main() -> None:
    """Play what is missing, then print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    panels = {panel.id: panel for panel in shipped_panels().values() if panel.name in EPISODES}
    parser.add_argument("--out", type=Path, required=True, help="folder of the evaluations")
    parser.add_argument("--model", type=Path, help="folder of a model that plays too")
    parser.add_argument("--panels", nargs="+", default=list(panels), choices=panels, metavar="NAME")
    parser.add_argument("--read", action="store_true", help="tell what lies below --out, play nothing")
    parser.add_argument("--results", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = results_of([panels[name] for name in options.panels], options.model, options.out, only_read=options.read)
    if options.results:
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    print(page(results))


if __name__ == "__main__":
    main()
