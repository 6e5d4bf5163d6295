"""What a person sees while a command works: lines, notes, progress bars."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def note(text: str) -> None:
    """Print a remark on stderr, apart from what a command prints as its result."""
    print(f"note: {text}", file=sys.stderr)


console = Console(stderr=False, markup=False, emoji=False)  # what environments and paths are called is no markup


@contextmanager
def progress() -> Iterator[Progress]:
    """Progress bars on a terminal; silence elsewhere."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars


def say(text: str) -> None:
    """Print a plain line."""
    console.print(text, highlight=False, soft_wrap=True)


class LineLog:
    """Prints a line now and then where no progress bar can be shown (files, CI)."""

    def __init__(self, *, every_s: float = 15.0) -> None:
        self.every_s, self._last = every_s, 0.0

    def __call__(self, text: str, *, force: bool = False) -> None:
        """Print `text` if the last line is old enough, or if forced."""
        if not console.is_terminal and (force or time.monotonic() - self._last > self.every_s):
            self._last = time.monotonic()
            say(text)
            sys.stdout.flush()
