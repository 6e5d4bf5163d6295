"""The whole page: one HTML file with style, script and data inside, and no way to the network."""

import base64
import hashlib
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from agentrl.report import sections
from agentrl.report.view import RunView, pick_episodes

_STATIC = Path(__file__).parent / "static"
Part = tuple[str, str, Callable[[RunView], str]]
"""Name, heading, renderer of a section."""
_PARTS: tuple[Part, ...] = (
    ("curves", "Curves", sections.curves),
    ("gate", "Gate", sections.gate),
    ("categories", "Categories", sections.categories),
)


def render_page(runs: list[RunView], *, num_episodes: int) -> str:
    """A page about one run, or about several with a comparison in front."""
    if len(runs) == 1:
        title = f"{runs[0].config['env']['id']}: {runs[0].name}"
        body = render_run(runs[0], pick_episodes(runs[0], limit=num_episodes))
        return assemble(title, body)
    share = max(8, num_episodes // len(runs))
    title = f"{len(runs)} runs compared"
    tabs = "".join(
        f'<button role="tab" data-tab="run-{i}" aria-selected="{str(i == 0).lower()}">{escape(run.label)}</button>'
        for i, run in enumerate(runs)
    )
    contents = [render_run(run, pick_episodes(run, limit=share)) for run in runs]
    panels = "".join(
        f'<div class="panel" id="run-{i}"{" hidden" if i else ""}>{content}</div>' for i, content in enumerate(contents)
    )
    head = f"<header><h1>{title}</h1></header><section><h2>Comparison</h2>{sections.comparison(runs)}</section>"
    return assemble(title, f'{head}<nav class="tabs" role="tablist">{tabs}</nav>{panels}')


def render_run(run: RunView, episodes: list[dict[str, Any]], *, extra: tuple[Part, ...] = ()) -> str:
    """All sections of one run, with further ones before the episodes."""
    parts = [f'<header data-part="headline">{sections.headline(run)}</header>']
    parts.append(f'<section data-part="tiles">{sections.tiles(run)}</section>')
    for name, title, render in (*_PARTS, *extra):
        parts.append(f'<section><h2>{title}</h2><div data-part="{name}">{render(run)}</div></section>')
    parts.append(f"<section><h2>Episodes</h2>{_browser(episodes)}</section>")
    parts.append(f"<section><h2>Settings</h2><details><summary>Configuration, software, command</summary>"
                 f"{sections.settings(run)}</details></section>")  # fmt: skip
    return "".join(parts)


def render_parts(run: RunView) -> dict[str, str]:
    """The sections that change while a run goes on, by name."""
    parts = {name: render(run) for name, _, render in _PARTS}
    return {"headline": sections.headline(run), "tiles": sections.tiles(run), **parts}


def assemble(title: str, body: str, *, live: str = "") -> str:
    """The HTML document. Only our own script may run (its hash is in the policy), and nothing may be loaded.

    Args:
        title: plain text.
        body: HTML.
        live: attributes of `<body>` for a page that follows a run.
    """
    style, script = ((_STATIC / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    connect = "'self'" if live else "'none'"
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src {connect}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{style}</style></head>'
        f"<body{live}><main>{body}</main><footer>agentrl</footer><script>{script}</script></body></html>\n"
    )


def as_data(value: Any) -> str:
    """JSON that is safe inside a `<script>` element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _browser(episodes: list[dict[str, Any]]) -> str:
    return (
        '<div class="browser"><div class="side"><div class="filters">'
        '<select aria-label="when" data-filter="source"></select>'
        '<select aria-label="category" data-filter="category"></select>'
        '<select aria-label="outcome" data-filter="outcome"></select></div><ol class="list"></ol></div>'
        '<article class="episode" aria-live="polite"></article>'
        f'<script type="application/json">{as_data(episodes)}</script></div>'
    )
