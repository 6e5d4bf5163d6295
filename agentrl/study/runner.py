"""Runs the cells of a study: a few at a time, resumable, each in a process of its own with its cost on file."""

import io
import json
import multiprocessing
import os
import platform
import resource
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from agentrl.runs.folder import read_last_record
from agentrl.runs.interruption import Interruption
from agentrl.study.locks import LOST, held, is_held
from agentrl.study.plan import Cell, Study, as_words

_POLL_S = 1.0
_ELSEWHERE_S = 5.0
"""Seconds between looks at runs of others."""
_NOT_MINE = 76
"""Exit code of a run's process that found the run taken, or ended, by somebody else."""


@dataclass
class Runner:
    """Keeps `jobs` runs going until all cells are done, the budget is spent, or it is interrupted.

    Any number of these, on any number of machines that share the folder of runs, work through one study: each run has a
    lock file (`agentrl.study.locks`), and what runs elsewhere is waited for.
    """

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
        with Interruption(), _ended_with_us(running), _progress() as bars:
            total = bars.add_task(title, total=len(cells))
            while running or (waiting and self.spent_s < self.budget_s):
                while len(running) < self.jobs and self.spent_s < self.budget_s:
                    cell = self._next(waiting)
                    if cell is None:
                        break
                    process = context.Process(target=_run_cell, args=self._job(cell), daemon=False)
                    process.start()
                    running[process] = (cell, bars.add_task(cell.key, total=self._num_steps(cell)))
                wait([process.sentinel for process in running], timeout=_POLL_S)
                if not running:  # what is left runs elsewhere
                    time.sleep(_ELSEWHERE_S)
                for process, (cell, bar) in list(running.items()):
                    bars.update(bar, completed=_steps_done(self.folder(cell)))
                    if not process.is_alive():
                        process.join()
                        del running[process]
                        bars.remove_task(bar)
                        if process.exitcode in (_NOT_MINE, LOST):
                            waiting.append(cell)
                        else:
                            self._finish(cell, bars)
                            on_done()
                bars.update(total, completed=len(cells) - len(waiting) - len(running))
        on_done()  # also with what others ended meanwhile
        return all(self.is_done(cell) for cell in cells)

    def is_done(self, cell: Cell) -> bool:
        """Whether a run was measured, here or as the results file says."""
        return cell.key in self.measured or is_done(self.folder(cell))

    def is_held(self, cell: Cell) -> bool:
        """Whether somebody works on a run now, here or on another machine."""
        return is_held(lock_path(self.folder(cell)))

    def _next(self, waiting: list[Cell]) -> Cell | None:
        """Take the first run that nobody works on; those that others ended leave the list too."""
        for cell in list(waiting):
            done = self.is_done(cell)
            if done or not self.is_held(cell):
                waiting.remove(cell)
                if not done:
                    return cell
        return None

    def folder(self, cell: Cell) -> Path:
        """Run folder of a cell."""
        return Path(self.study.config.runs).expanduser() / cell.key

    def _job(self, cell: Cell) -> tuple[list[str], str]:
        folder = self.folder(cell)
        words = [*as_words(dict(cell.overrides)), "--train.seed", str(cell.seed)]
        return [str(self.study.base), "--run-dir", str(folder), *words], str(folder)

    def _finish(self, cell: Cell, bars: Progress) -> None:
        folder = self.folder(cell)
        cost = read_cost(folder)
        self.spent_s += cost["cpu_s"]
        if is_done(folder):
            last = read_last_record(folder) or {}
            end = f"{last['eval/success']:.1%} at the end, {cost['cpu_s']:.0f} CPU-s"
            bars.console.print(f"{cell.key}: {end}", highlight=False)
        else:
            self.failed.append(cell.key)
            lines = folder.with_suffix(".log").read_text(errors="replace").strip().splitlines()
            bars.console.print(f"{cell.key}: failed: {lines[-1] if lines else 'no output'}", highlight=False)

    def _num_steps(self, cell: Cell) -> int | None:
        return dict(cell.overrides).get("train.steps")


@contextmanager
def _ended_with_us(running: Collection[BaseProcess]) -> Iterator[None]:
    """Whatever ends this command ends its runs too, each with a checkpoint from which it goes on."""
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def is_done(folder: Path) -> bool:
    """Whether a run got to its last evaluation."""
    last = read_last_record(folder)
    return last is not None and bool(last.get("final"))


def lock_path(folder: Path) -> Path:
    """The lock of whoever works on a run folder."""
    return folder.with_suffix(".lock")


def read_cost(folder: Path) -> dict[str, float]:
    """CPU and wall seconds of all processes that worked on a run folder, start-up and evaluations included."""
    path = folder.with_suffix(".cost.jsonl")
    lines = path.read_text().splitlines() if path.is_file() else []
    costs = [json.loads(line) for line in lines]
    return {key: sum(cost[key] for cost in costs) for key in ("cpu_s", "wall_s")}


def read_machine(folder: Path) -> str:
    """The processor on which a run ended; empty where it is not on file."""
    path = folder.with_suffix(".cost.jsonl")
    lines = path.read_text().splitlines() if path.is_file() else []
    return str(json.loads(lines[-1]).get("processor", "")) if lines else ""


def describe_processor() -> str:
    """Name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.split(": ")[1] for line in lines if "model name" in line)
    return next(names, platform.processor() or platform.machine())


def _run_cell(words: list[str], folder: str) -> None:
    """Body of a run's process: begins or continues the run, unless somebody else works on it or has ended it."""
    path = Path(folder)
    with held(lock_path(path)) as mine:
        if not mine or is_done(path):
            sys.exit(_NOT_MINE)
        _train(_continued(words, path), path)


def _continued(words: list[str], folder: Path) -> list[str]:
    """Command-line words that begin a run anew, or continue it where it has a checkpoint."""
    if folder.exists() and not any((folder / "checkpoints").glob("step-*[1-9]*")):
        shutil.rmtree(folder)  # nothing to continue from
    return ["--resume", str(folder)] if folder.exists() else words


def _train(words: list[str], path: Path) -> None:
    """`python -m agentrl.train WORDS` in this process, with its output and its cost beside the run folder."""
    started = time.perf_counter()
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
            "processor": describe_processor(),
        }
        with path.with_suffix(".cost.jsonl").open("a") as file:
            file.write(json.dumps(cost) + "\n")


def _steps_done(folder: Path) -> int:
    last = read_last_record(folder)
    return 0 if last is None else int(last["step"])


@contextmanager
def _progress() -> Iterator[Progress]:
    """One bar for the stage, one for each run; plain lines where there is no terminal."""
    console = Console(stderr=True, markup=False, emoji=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars
