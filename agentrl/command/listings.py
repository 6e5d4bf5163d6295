"""What `--list` and `--help-config` print."""

import argparse

from rich.table import Table

from agentrl.config.describe import describe_fields
from agentrl.config.shipped import list_configs
from agentrl.console import console


def answer_listing(options: argparse.Namespace) -> bool:
    """Whether a list was asked for; it is then printed."""
    if options.help_config:
        print_config_help()
    elif options.list:
        print(list_configs())
    return bool(options.help_config or options.list)


def print_config_help() -> None:
    """All config keys with default and meaning: a table on a terminal, else one line a key."""
    if not console.is_terminal:
        for key, default, meaning in describe_fields():
            print(f"{key} = {default}  # {meaning}")
        return
    table = Table(title="config keys", title_justify="left")
    for column in ("key", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for row in describe_fields():
        table.add_row(*row)
    console.print(table)
