"""What a person sees while a command works: lines, notes, progress bars."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

LogLevel = Literal["quiet", "normal", "debug"]
"""`quiet`: notes and errors; `normal`: also what comes of it, and a line now and then; `debug`: a line for every batch,
and the log of the libraries."""


def note(text: str) -> None:
    """Print a remark on stderr, apart from what a command prints as its result."""
    print(f"note: {text}", file=sys.stderr)


console = Console(stderr=False, markup=False, emoji=False)  # what environments and paths are called is no markup


def set_log_level(level: LogLevel, *, is_first: bool = True) -> None:
    """How much is said from now on; of several processes the first speaks."""
    console.quiet = level == "quiet" or not is_first
    Display.usual_s = 0.0 if level == "debug" else 15.0
    if level == "debug":
        logging.basicConfig(level=logging.DEBUG)


def say(text: str) -> None:
    """Print a plain line."""
    console.print(text, highlight=False, soft_wrap=True)


class Display:
    """Progress bars on a terminal; elsewhere (files, CI) a line now and then.

        >>> with Display() as display, display.bar("episodes", total=8) as bar:
        ...     bar.advance()


    Args:
        every_s: seconds between lines that nothing forces; None: as the log level says.
    """

    usual_s = 15.0

    def __init__(self, *, every_s: float | None = None) -> None:
        words, number = Column(ratio=1, no_wrap=True, overflow="ellipsis"), Column(no_wrap=True)
        columns = (
            TextColumn("{task.description}", markup=False, table_column=words), BarColumn(bar_width=16),
            MofNCompleteColumn(table_column=number), TimeElapsedColumn(table_column=number),
            TimeRemainingColumn(table_column=number),
        )  # fmt: skip
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal, expand=True)
        self.every_s, self._last = self.usual_s if every_s is None else every_s, 0.0

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextmanager
    def bar(self, name: str, *, total: int, done: int = 0) -> Iterator["Bar"]:
        """A bar for as long as its work goes on."""
        number = self._bars.add_task(name, total=total, completed=done)
        try:
            yield Bar(self, self._bars, number, name, left=total - done)
        finally:
            self._bars.remove_task(number)

    def line(self, text: str, *, force: bool = False) -> None:
        """Print `text` where there are no bars, if the last line is old enough or if forced."""
        if not console.is_terminal and (force or time.monotonic() - self._last > self.every_s):
            self._last = time.monotonic()
            say(text)
            sys.stdout.flush()


class Bar:
    """One bar of a display."""

    def __init__(self, display: Display, bars: Progress, number: TaskID, name: str, *, left: int) -> None:
        self._display, self._bars, self._number, self._name = display, bars, number, name
        self._left, self._advanced, self._started = left, 0, time.monotonic()

    def advance(self, outcome: str = "", *, line: str = "", force: bool = False) -> None:
        """One step more, with what came of it; `line` is printed where there are no bars."""
        description = f"{self._name}, {outcome}" if outcome else self._name
        self._bars.update(self._number, advance=1, description=description)
        self._left, self._advanced = self._left - 1, self._advanced + 1
        if line:
            seconds = self._left * (time.monotonic() - self._started) / self._advanced
            left = f"{seconds / 60:,.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
            self._display.line(f"{line}, {left} left", force=force)
