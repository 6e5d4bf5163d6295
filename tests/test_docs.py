"""What the documentation names exists, and the site builds from it without a warning."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from agentrl.command.entry import COMMANDS
from agentrl.config.describe import describe_fields

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "envs/*/*.md", "retriever/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#:]*)(?:#([^)\s]*))?\)")
PATH = re.compile(r"(?<![\w./-])((?:agentrl|envs|retriever|configs|benchmarks|tests|docs)/[\w./*-]*)(?![\w{<:-])")
KEYS = {key for key, _, _ in describe_fields()}
TABLES = {key.split(".")[0] for key in KEYS}
OPTION = re.compile(r"--([a-z]\w*(?:\.\w+)+)")
NAMED_KEY = re.compile(rf"`((?:{'|'.join(sorted(TABLES))})(?:\.[a-z]\w*)+)(?: = [^`]*)?`")
MODULE = re.compile(r"(?<![\w./])agentrl((?:\.[a-z]\w*)+)(?::(\w+))?")


def every(pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    """All matches in all pages."""
    for page in PAGES:
        for match in pattern.finditer(page.read_text(encoding="utf-8")):
            yield page, match


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown's readers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def is_known(key: str) -> bool:
    """Whether a config has the key, or a table or dictionary in which it may stand."""
    parts = key.split(".")
    heads = [".".join(parts[:n]) for n in range(2, len(parts) + 1)]
    return any(head in KEYS for head in heads) or any(known.startswith(key + ".") for known in KEYS)


def start(*words: str) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs, in the checkout."""
    path = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, **path}, capture_output=True, text=True
    )


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    broken = []
    for page, match in every(LINK):
        target, anchor = match.groups()
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(f"{page.relative_to(ROOT)}: {match[0]}")
    assert not broken


def test_every_path_that_is_named_exists() -> None:
    missing = {
        f"{page.relative_to(ROOT)}: {path}"
        for page, match in every(PATH)
        for path in [match[1].rstrip(".")]
        if not any(ROOT.glob(path.rstrip("/"))) and "TASK" not in path and not re.search(r"-v\d$", path)
    }
    assert not missing


def test_every_config_key_that_is_named_exists() -> None:
    named = {(page, match[1]) for pattern in (OPTION, NAMED_KEY) for page, match in every(pattern)}
    unknown = {(page, key) for page, key in named if not is_known(key) and not key.endswith((".py", ".md", ".toml"))}
    # options of an environment may be written short: --env.data
    assert not {f"{page.relative_to(ROOT)}: {key}" for page, key in unknown if not key.startswith("env.")}


def test_every_module_and_class_that_is_named_exists() -> None:
    missing = set()
    for page, match in every(MODULE):
        name, attribute = f"agentrl{match[1]}", match[2]
        parent, _, last = name.rpartition(".")
        if find_spec(parent) and (find_spec(name) if hasattr(importlib.import_module(parent), "__path__") else None):
            if attribute and not hasattr(importlib.import_module(name), attribute):
                missing.add(f"{page.relative_to(ROOT)}: {match[0]}")
        elif not hasattr(importlib.import_module(parent), last):
            missing.add(f"{page.relative_to(ROOT)}: {match[0]}")
    assert not missing


def test_the_map_names_every_module_and_room() -> None:
    text = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    block = re.search(r"```\nagentrl/\n(.*?)\n(?=\S)", text, flags=re.DOTALL)
    assert block
    named = set(re.findall(r"(?:^  | )(\w+\.py|\w+/)(?= )", block[1], flags=re.MULTILINE)) - {"engines/"}
    rooms = [path for path in (ROOT / "agentrl").iterdir() if not path.is_symlink() and "__" not in path.name]
    assert named == {path.name + "/" * path.is_dir() for path in rooms if path.is_dir() or path.suffix == ".py"}


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_lists_every_command_and_key(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site is built with the extra dev")
    done = start("-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    commands = (tmp_path / "commands.html").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f">agentrl {name}</h2>" not in commands]
    keys = (tmp_path / "config_keys.html").read_text(encoding="utf-8")
    assert not [key for key in KEYS if f"<code>{key.rpartition('.')[2]}</code>" not in keys]
    for page in set(tmp_path.rglob("*.html")) - {tmp_path / "404.html"}:  # served from anywhere, by absolute addresses
        for target in re.findall(r'(?:href|src)="(?![a-z]+:)([^"#?]+)', page.read_text(encoding="utf-8")):
            made = (page.parent / target).exists() or target.endswith("api/agentrl.html")  # by the next command
            assert made, f"{page.relative_to(tmp_path)}: {target}"


@pytest.mark.slow
def test_the_api_reference_builds_without_warnings_and_holds_what_scripts_use(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="the reference is built with the extra dev")
    done = start("docs/api_reference.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "agentrl.html").read_text(encoding="utf-8")
    agentrl = importlib.import_module("agentrl")
    assert not [name for name in agentrl.__all__ if f'id="{name}"' not in page and f"agentrl/{name}.html" not in page]
    assert len(list(tmp_path.rglob("*.html"))) > 150
