"""Progress of long work on stderr: a bar with rate and time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _RateColumn(ProgressColumn):
    """Items per second, over the last while."""

    def render(self, task: Task) -> Text:
        """The rate, or nothing before the first measurement."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


@contextmanager
def progress_bar(description: str, total: int | None, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar over `total` items, `done` of them before the start; call the value with each further count."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    # A minute of history: encoding advances in blocks of many seconds.
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=60.0) as progress:
        task = progress.add_task(description, total=total, completed=done)
        yield lambda count: progress.update(task, advance=count)
