"""Progress bars for work that takes longer than a moment."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], *, description: str, total: int | None) -> Iterator[T]:
    """Yield the items, showing a bar on stderr where that is a terminal (a line of summary elsewhere)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2) as progress:
        task = progress.add_task(description, total=total)
        waiting = 0
        for item in items:
            yield item
            waiting += 1
            if waiting == 256:  # an update for every item would cost more than the item
                progress.advance(task, waiting)
                waiting = 0
        progress.advance(task, waiting)
