"""The whole page: one HTML file with style, script and data inside, and no way to the network.

Where the stored episodes would make it large, their texts lie in a folder beside it.
"""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from agentrl.common.data_source import tasks_of
from agentrl.report import charts, sections
from agentrl.report.archive import pack
from agentrl.report.arm_sections import RunComparison, compare_runs
from agentrl.report.view import RunView, success_interval

_FOLDER = Path(__file__).parent
_SCRIPTS = ("charts.js", "episodes.js", "page.js")
_INSIDE = 4_000_000
"""Letters of packed episodes up to which they are in the page itself."""
PARTS = ("headline", "diagnosis", "tiles", "curves", "gate", "categories")
"""Templates of the sections that change while a run goes on."""


@dataclass
class Page:
    """A page, and the files that belong beside it."""

    html: str
    beside: dict[str, str] = field(default_factory=dict)
    """Path below the folder beside the page -> text; empty where everything is in the page."""
    comparison: RunComparison | None = None
    """What it says about several runs together."""


def render_page(runs: list[RunView], *, beside: str | None = None, level: float | None = None) -> Page:
    """A page about one run, or about several with a comparison in front.

    Args:
        runs: what it is about.
        beside: folder for episodes, as seen from the page; None: all episodes are in the page, however many.
        level: of held-out success for which a comparison tells costs (`compare_runs`).

    Raises:
        UserError: the runs cannot be compared.
    """
    comparison = compare_runs(runs, level) if len(runs) > 1 else None
    indexes, pieces = [], []
    for run in runs:
        read = [run.archive.read(path) for path in run.archive.files()]
        indexes.append(pack([entry for entries, _ in read for entry in entries]))
        pieces.append({name: text for _, packed in read for name, text in packed.items()})
    is_large = sum(len(text) for own in pieces for text in own.values()) > _INSIDE
    outside = beside if beside is not None and is_large else None
    contents = []
    for i, (run, index) in enumerate(zip(runs, indexes, strict=True)):
        inside = {} if outside else pieces[i]
        episodes = render("episodes.html", number=i, index=index, pieces=inside)
        contents.append(render("run.html", run=run, episodes=episodes, longest=None))
    if comparison is None:
        title = " ".join(filter(None, (runs[0].environments, runs[0].played))) + f": {runs[0].name}"
        body = contents[0]
    else:
        title = f"{len(runs)} runs compared"
        body = render("runs.html", runs=runs, contents=contents, comparison=comparison)
    html = assemble(title, body, beside=outside)
    keys = {f"{i}/{name}": text for i, own in enumerate(pieces) for name, text in own.items()} if outside else {}
    return Page(html, {f"{key}.js": piece_script(key, text) for key, text in keys.items()}, comparison)


def piece_script(key: str, text: str) -> str:
    """A script that hands a packed piece to the page."""
    return f'agentrl.piece({json.dumps(key)}, "{text}");\n'


def render(template: str, **values: Any) -> Markup:
    """A template as HTML; all text is escaped."""
    return Markup(_ENVIRONMENT.get_template(template).render(**values))


def assemble(title: str, body: str, *, beside: str | None = None, every_s: float | None = None) -> str:
    """The HTML document. Only our own scripts may run (by their hashes in the policy), and nothing may be loaded.

    Args:
        title: plain text.
        body: HTML.
        beside: folder of scripts with episodes, which may be loaded from where the page is.
        every_s: of a page that follows a run: seconds between its questions.
    """
    scripts = [charts.script(), *(_static(name) for name in _SCRIPTS)]
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    own = [f"'sha256-{digest}'" for digest in digests] + (["'self'"] if beside else [])
    connect = "'none'" if every_s is None else "'self'"
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {' '.join(own)}; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    return str(render(
        "page.html", title=title, body=Markup(body), policy=policy, style=Markup(_static("report.css")),
        scripts=[Markup(text) for text in scripts], beside=beside, every_ms=every_s and round(1000 * every_s),
    ))  # fmt: skip


def _static(name: str) -> str:
    return (_FOLDER / "static" / name).read_text(encoding="utf-8")


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
_ENVIRONMENT.globals |= {"success_interval": success_interval, "tasks_of": tasks_of} | {
    function.__name__: function
    for function in (
        sections.accuracy, sections.categories, sections.count,
        sections.decisions, sections.describe_policy, sections.diagnosis, sections.gate_timeline, sections.run_charts,
        sections.settings, sections.tiles,
    )
}  # fmt: skip
