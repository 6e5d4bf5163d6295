"""Success rates as tables."""

from collections.abc import Sequence

from rich.table import Table

from agentrl.common.data_source import tasks_of
from agentrl.config.schema import Config
from agentrl.evaluation.rates import Rate, format_rate
from agentrl.types import Metrics


def success_table(columns: dict[str, dict[str, Rate]], *, title: str, rewards: Sequence[float]) -> Table:
    """Success per category with 95 % intervals, one column an evaluation (`Evaluation.rates`), and its mean reward."""
    table = Table(title=title, title_justify="left")
    table.add_column("category")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("episodes", justify="right")
    categories = sorted({name for rates in columns.values() for name in rates if name != "all"})
    for category in [*categories, "all"]:
        if category == "all":
            table.add_section()
        rates = [column.get(category, Rate(0, 0)) for column in columns.values()]
        style = "bold" if category == "all" else None
        table.add_row(category, *(format_rate(rate) for rate in rates), str(rates[-1].count), style=style)
    table.add_row("mean reward", *(f"{reward:.3g}" for reward in rewards))
    return table


def title_of(config: Config, record: Metrics) -> str:
    """What an evaluation played: id, split, and where the tasks come from."""
    return " ".join(filter(None, ["" if config.mixture else config.env.id, tasks_of(record)]))
