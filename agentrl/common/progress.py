"""Progress of long work on stderr, with rate and time left: a bar on a terminal, a line now and then in a file."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")
_LINE_EVERY_S = 30.0
_ITEMS_PER_UPDATE = 256  # an update for every item would cost more than many an item


class _RateColumn(ProgressColumn):
    """Items per second, over the last while."""

    def render(self, task: Task) -> Text:
        """The rate, or nothing before the first measurement."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


@contextmanager
def progress_bar(description: str, total: int | None, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Progress over `total` items, `done` of them before the start; call the value with each further count."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with _lines(description, total, done) as advance:
            yield advance
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    # A minute of history: encoding advances in blocks of many seconds.
    with Progress(*columns, console=console, speed_estimate_period=60.0) as progress:
        task = progress.add_task(description, total=total, completed=done)
        yield lambda count: progress.update(task, advance=count)


def track(items: Iterable[T], *, description: str, total: int | None) -> Iterator[T]:
    """Yield the items, with their progress."""
    number = 0
    with progress_bar(description, total) as advance:
        for number, item in enumerate(items, start=1):
            yield item
            if number % _ITEMS_PER_UPDATE == 0:
                advance(_ITEMS_PER_UPDATE)
        advance(number % _ITEMS_PER_UPDATE)


@contextmanager
def _lines(description: str, total: int | None, done: int) -> Iterator[Callable[[int], None]]:
    start = last = time.monotonic()
    count = done

    def say(now: float) -> None:
        rate = (count - done) / max(now - start, 1e-9)
        of = "" if total is None else f" of {total:,}"
        left = "" if total is None or count >= total or not rate else f", {_clock((total - count) / rate)} left"
        Console(stderr=True, soft_wrap=True).print(
            f"{description}: {count:,}{of}, {rate:,.1f}/s{left}", highlight=False
        )

    def advance(more: int) -> None:
        nonlocal count, last
        count += more
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last = now
            say(now)

    try:
        yield advance
    finally:
        say(time.monotonic())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
