"""Runs the cells of a study: a few at a time, resumable, each in a process of its own with its cost on file."""

import io
import json
import multiprocessing
import os
import resource
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from agentrl.run_folder import read_metrics
from agentrl.study.plan import Cell, Study, as_words

_POLL_S = 1.0


@dataclass
class Runner:
    """Keeps `jobs` runs going until all cells are done, the budget is spent, or it is interrupted."""

    study: Study
    jobs: int = 1
    """Runs at once."""
    measured: Container[str] = ()
    """Keys of runs that an earlier results file holds."""
    budget_s: float = float("inf")
    """CPU seconds after which no further run is started."""
    spent_s: float = 0.0
    """CPU seconds of the runs that ended in this call."""
    failed: list[str] = field(default_factory=list)
    """Keys of runs that ended with an error."""

    def run(self, cells: list[Cell], title: str, *, on_done: Callable[[], None]) -> bool:
        """Run what is not done yet; whether all cells are done now.

        Args:
            cells: in the order in which they start.
            title: of the progress view.
            on_done: called after every finished run.
        """
        waiting = [cell for cell in cells if not self.is_done(cell)]
        running: dict[Any, tuple[Cell, TaskID]] = {}
        # A fork server imports torch once; every run is then a fork of it with clocks that start at zero.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["agentrl.train"])
        with _progress() as bars:
            total = bars.add_task(title, total=len(cells), completed=len(cells) - len(waiting))
            while running or (waiting and self.spent_s < self.budget_s):
                while waiting and len(running) < self.jobs and self.spent_s < self.budget_s:
                    cell = waiting.pop(0)
                    process = context.Process(target=_run_cell, args=self._job(cell), daemon=False)
                    process.start()
                    running[process] = (cell, bars.add_task(cell.key, total=self._num_steps(cell)))
                wait([process.sentinel for process in running], timeout=_POLL_S)
                for process, (cell, bar) in list(running.items()):
                    bars.update(bar, completed=_steps_done(self.folder(cell)))
                    if not process.is_alive():
                        process.join()
                        del running[process]
                        bars.remove_task(bar)
                        bars.advance(total)
                        self._finish(cell, bars)
                        on_done()
        return all(self.is_done(cell) for cell in cells)

    def is_done(self, cell: Cell) -> bool:
        """Whether a run was measured, here or as the results file says."""
        return cell.key in self.measured or is_done(self.folder(cell))

    def folder(self, cell: Cell) -> Path:
        """Run folder of a cell."""
        return Path(self.study.config.runs).expanduser() / cell.key

    def _job(self, cell: Cell) -> tuple[list[str], str]:
        folder = self.folder(cell)
        words = [*as_words(dict(cell.overrides)), "--train.seed", str(cell.seed)]
        if folder.exists() and not any((folder / "checkpoints").glob("step-*[1-9]*")):
            shutil.rmtree(folder)  # nothing to continue from
        if folder.exists():
            return ["--resume", str(folder)], str(folder)
        return [str(self.study.base), "--run-dir", str(folder), *words], str(folder)

    def _finish(self, cell: Cell, bars: Progress) -> None:
        folder = self.folder(cell)
        cost = read_cost(folder)
        self.spent_s += cost["cpu_s"]
        if is_done(folder):
            last = read_metrics(folder)[-1]["eval/success"]
            bars.console.print(f"{cell.key}: {last:.1%} at the end, {cost['cpu_s']:.0f} CPU-s", highlight=False)
        else:
            self.failed.append(cell.key)
            lines = folder.with_suffix(".log").read_text(errors="replace").strip().splitlines()
            bars.console.print(f"{cell.key}: failed: {lines[-1] if lines else 'no output'}", highlight=False)

    def _num_steps(self, cell: Cell) -> int | None:
        return dict(cell.overrides).get("train.steps")


def is_done(folder: Path) -> bool:
    """Whether a run got to its last evaluation."""
    if not (folder / "metrics.jsonl").is_file():
        return False
    records = read_metrics(folder)
    return bool(records) and bool(records[-1].get("final"))


def read_cost(folder: Path) -> dict[str, float]:
    """CPU and wall seconds of all processes that worked on a run folder, start-up and evaluations included."""
    path = folder.with_suffix(".cost.jsonl")
    lines = path.read_text().splitlines() if path.is_file() else []
    costs = [json.loads(line) for line in lines]
    return {key: sum(cost[key] for cost in costs) for key in ("cpu_s", "wall_s")}


def _run_cell(words: list[str], folder: str) -> None:
    """Body of a run's process: `python -m agentrl.train WORDS` with its output beside the run folder."""
    started = time.perf_counter()
    path = Path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(fd, "wb", closefd=False), line_buffering=True) for fd in (1, 2)
    )
    sys.argv = ["agentrl.train", *words]
    try:
        runpy.run_module("agentrl.train", run_name="__main__")
    finally:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cost = {
            "cpu_s": sum(u.ru_utime + u.ru_stime for u in used),
            "wall_s": time.perf_counter() - started,
            "peak_mib": used[0].ru_maxrss / 1024,
        }
        with path.with_suffix(".cost.jsonl").open("a") as file:
            file.write(json.dumps(cost) + "\n")


def _steps_done(folder: Path) -> int:
    if not (folder / "metrics.jsonl").is_file():
        return 0
    return sum(line.startswith('{"step"') and '"kind": "train"' in line[:60] for line in _lines(folder))


def _lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text(errors="replace").splitlines()


@contextmanager
def _progress() -> Iterator[Progress]:
    """One bar for the stage, one for each run; plain lines where there is no terminal."""
    console = Console(stderr=True, markup=False, emoji=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars
