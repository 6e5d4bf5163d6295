"""What mkdocs does not find in `docs/`: pages that lie beside the code they describe, and pages made from the code.

mkdocs calls the functions `on_...` (https://www.mkdocs.org/dev-guide/plugins/#events).
"""

import argparse
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.structure.files import File, Files

from agentrl.command.entry import COMMANDS, run_command
from agentrl.config.describe import describe_fields

ROOT = Path(__file__).resolve().parents[1]
HOME = "README.md"
"""Becomes the site's first page; every other page keeps its path in the repository, or in `docs/`."""
PAGES = (
    HOME,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "envs/*/README.md",
    "retriever/README.md",
    "benchmarks/results/**/*.md",
)
IMAGES = ("benchmarks/results/**/*.svg", "benchmarks/results/**/*.png")
LINK = re.compile(r"(?<!`)(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
"""Markdown's links to files: image mark, text, path, anchor. Those with a colon are addresses."""


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside `docs/`, and what is generated."""
    for pattern in (*PAGES, *IMAGES):
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, place_on_site(path), abs_src_path=str(path)))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    files.append(File.generated(config, "config_keys.md", content=config_page()))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """The links of a page, which hold in the repository, as they hold on the site; files of code lose theirs."""
    source = page.file.abs_src_path
    if source is None:  # generated
        return markdown

    def moved(match: re.Match[str]) -> str:
        mark, text, path, anchor = match.groups(default="")
        target = place_on_site((Path(source).parent / path).resolve())
        if files.get_file_from_path(target) is None and not target.endswith(".md"):
            return text
        return f"{mark}[{text}]({os.path.relpath(target, os.path.dirname(page.file.src_uri) or '.')}{anchor})"

    return LINK.sub(moved, markdown)


def place_on_site(path: Path) -> str:
    """Where a file of the repository lies on the site."""
    if path.is_relative_to(ROOT / "docs"):
        return path.relative_to(ROOT / "docs").as_posix()
    place = path.relative_to(ROOT).as_posix()
    return "index.md" if place == HOME else place


def commands_page() -> str:
    """Every command with its options, as its `--help` prints them."""
    page = [
        "# Commands",
        "",
        "`agentrl COMMAND` and the form after *usage* are the same. This page is printed by the commands themselves.",
    ]
    with mock.patch.dict(os.environ, {"COLUMNS": "100"}):
        for name, (_, purpose) in COMMANDS.items():
            page += ["", f"## agentrl {name}", "", f"{purpose[0].upper()}{purpose[1:]}."]
            for parser in parsers_of(name):
                page += ["", "```text", parser.format_help().rstrip(), "```"]
    return "\n".join(page) + "\n"


def parsers_of(name: str) -> Iterator[argparse.ArgumentParser]:
    """The parser of a command, then those of its subcommands."""
    asked: list[argparse.ArgumentParser] = []
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", lambda parser, file=None: asked.append(parser)),
        contextlib.suppress(SystemExit),
    ):
        run_command(name, ["--help"])
    yield asked[0]
    for action in asked[0]._actions:  # argparse has no public way to them
        if isinstance(action.choices, dict):
            yield from action.choices.values()


def config_page() -> str:
    """Every config key with default and meaning, table by table."""
    page = [
        "# Config keys",
        "",
        "In a TOML file a key stands as `key = value` below its `[table]`, on the command line as `--table.key value`.",
        "`agentrl train --help-config` prints the same list.",
    ]
    tables: dict[str, list[str]] = {}
    for key, default, meaning in describe_fields():
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append(f"| `{name}` | {cell(f'`{default}`')} | {cell(meaning)} |")
    for table, rows in tables.items():
        page += ["", f"## [{table}]", "", "| key | default | meaning |", "|---|---|---|", *rows]
    return "\n".join(page) + "\n"


def cell(text: str) -> str:
    """Text as it may stand in a Markdown table."""
    return text.replace("|", "&#124;" if "`" not in text else "\\|").replace("<", "&lt;" if "`" not in text else "<")
