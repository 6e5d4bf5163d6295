"""python -m agentrl.panels: list the frozen panels, verify the data at hand, make a panel."""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("panels")  # before the imports below, which take seconds

import sys
from pathlib import Path

from rich.table import Table

from agentrl.command.guard import main_guard, parse_command_line
from agentrl.command.parsers import panels_parser
from agentrl.config.read import load_config
from agentrl.config.schema import Config
from agentrl.console import console, note, say
from agentrl.environment.spec import environment_spec
from agentrl.errors import UserError
from agentrl.panels.check import check_panel, count_tasks, settings_tree
from agentrl.panels.digests import take_fingerprint
from agentrl.panels.panel import Panel, find_panel, shipped_panels, write_panel


def list_panels() -> None:
    """All shipped ones, a line each."""
    table = Table(box=None, pad_edge=False)
    for column in ("panel", "tasks", "what", "not known to it"):
        table.add_column(column, overflow="fold")
    for panel in shipped_panels().values():
        table.add_row(panel.id, f"{panel.num_tasks:,}", panel.about, "; ".join(panel.unknown))
    console.print(table)
    open_ones = [panel for panel in shipped_panels().values() if panel.unknown]
    say("Those of version 0 are frozen by whoever has their data (docs/data.md), then played by --panel NAME.json:")
    for panel in open_ones:
        console.print(f"  {panel.freezing}", soft_wrap=True, markup=False, highlight=False)


def config_of(panel: Panel, overrides: list[str]) -> Config:
    """A config that plays a panel."""
    return load_config(settings_tree({}, panel), overrides)


def verify(panel: Panel, overrides: list[str]) -> int:
    """Say whether the data at hand are the panel's; the exit code."""
    differences = check_panel(panel, config_of(panel, overrides))
    for line in differences:
        say(f"differs: {line}")
    for line in panel.unknown:
        say(f"not known to the panel: {line}")
    if panel.unknown:
        say(f"freeze it: {panel.freezing}")
    say(f"{panel.id}: {len(differences)} differences" if differences else f"{panel.id}: the same")
    return 1 if differences else 0


def make(panel: Panel, overrides: list[str], out: Path, *, version: int | None) -> None:
    """Write a panel anew with the digests of the data at hand."""
    config = config_of(panel, overrides)
    env = environment_spec(config.model_copy(update={"env": config.env.model_copy(update={"format": "plain"})}), "eval")
    made = env.make()
    try:
        for line in count_tasks(panel, env, made):
            note(line)
        found = take_fingerprint(made, panel.tasks())
    finally:
        made.close()
    number = panel.version if version is None else version
    untold = [name for name, digest in found.files.items() if not digest]
    if number and untold:
        raise UserError(
            f"{panel.name}@{number}: the retriever does not tell the digest of its {' and '.join(untold)}. Give the "
            "index folder or the corpus file, or serve it with python -m agentrl.retriever.serve."
        )
    changes = {
        "version": number, "digests": [digest[:8] for digest in found.digests], "content": found.content,
        "engine": found.engine, "files": found.files or panel.files, "unknown": [] if number else panel.unknown,
        "names": found.names if panel.names is not None or _are_identifiers(found.names) else None,
    }  # fmt: skip
    write_panel(Panel.model_validate({**panel.model_dump(), **changes}), out)
    say(f"{out}: {panel.name}@{number}, {panel.num_tasks:,} tasks")


def _are_identifiers(names: list[str]) -> bool:
    """Whether names are short paths, as those of games; no sentence of a question may get into a list."""
    return all(name and " " not in name and len(name) < 120 for name in names) and len(names) <= 500


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options, overrides = parse_command_line(panels_parser(), argv)
    if options.action == "list":
        list_panels()
        return 0
    if options.panel is None:
        raise UserError(f"{options.action} needs a panel: alfworld-seen@1, or a file .json.")
    panel = find_panel(options.panel)
    if options.action == "verify":
        return verify(panel, overrides)
    if options.out is None:
        raise UserError("make needs --out FILE.json.")
    make(panel, overrides, options.out, version=options.version)
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
