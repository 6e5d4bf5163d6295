"""python -m agentrl.watch RUN: follow a running job in a browser on this machine, or in the terminal."""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("watch")  # before the imports below, which take seconds

import json
import sys
import time
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from agentrl.analysis.curves import sparkline
from agentrl.command.guard import main_guard, parse_command_line
from agentrl.command.parsers import watch_parser
from agentrl.errors import UserError
from agentrl.report import charts
from agentrl.report.archive import Record, pack, title_of
from agentrl.report.page import PARTS, assemble, piece_script, render
from agentrl.report.sections import describe_policy, diagnosis
from agentrl.report.view import RunView, load_runs, rate_factors, success_interval

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_READING_S = 1.0
"""Seconds after which an answer is sent, though not all stored episodes are listed in it."""


class WatchServer(ThreadingHTTPServer):
    """Serves the page of one run; bound to loopback.

    Args:
        folder: run folder, finished or not.
        port: 0 takes a free one.
        every_s: seconds between questions of the page.
    """

    daemon_threads = True

    def __init__(self, folder: Path, *, port: int = 0, every_s: float = 2.0) -> None:
        run = load_runs([folder])[0]
        if not run.is_run:
            raise UserError(f"{folder} is an evaluation, which nothing is added to; see it with agentrl report.")
        self.folder, self.every_s, self.archive = folder, every_s, run.archive
        charts.script()  # now, not while the first visitor waits
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"

    def page(self) -> str:
        """The whole page as it is now; its episodes come with the first update."""
        run = load_runs([self.folder])[0]
        episodes = render("episodes.html", number=0, index=pack([]), pieces={})
        body = render("run.html", run=run, episodes=episodes, longest=longest_episodes(run))
        return assemble(f"{run.name} (live)", body, beside="episodes", every_s=self.every_s)

    def update(self, seen: str) -> dict[str, Any] | None:
        """What changed since the version that a page has seen; None where nothing did.

        A version is the size of the records and the time of the newest listed file of episodes, in ns. `more` says that
        there are further ones.
        """
        size = str((self.folder / "metrics.jsonl").stat().st_size)
        seen_size, _, listed = seen.partition("-")
        entries, newest, more = self._entries_since(int(listed) if listed.isdecimal() else 0)
        version = f"{size}-{newest}"
        if version == seen:
            return None
        parts: dict[str, str] = {}
        if size != seen_size or entries:
            run = load_runs([self.folder])[0]
            parts = {name: render(f"{name}.html", run=run) for name in PARTS} | {"longest": longest_episodes(run)}
        return {"version": version, "parts": parts, "entries": entries, "more": more}

    def _entries_since(self, listed: int) -> tuple[list[Record], int, bool]:
        """(index of files written later than `listed`, time of the last of them, whether there are more)."""
        changed = sorted((path.stat().st_mtime_ns, path) for path in self.archive.files())
        entries: list[Record] = []
        begin = time.monotonic()
        for written, path in changed:
            if written > listed:
                entries += self.archive.index(path)
                listed = written
                if time.monotonic() - begin > _READING_S:
                    break
        return entries, listed, listed < max((written for written, _ in changed), default=0)


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer

    def do_GET(self) -> None:
        """`/` is the page, `/update?seen=VERSION` its news, `/episodes/0/NAME.js` a piece of the stored episodes."""
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in _LOOPBACK:
            return self._answer(403, "text/plain", "only for this machine")
        address = urlsplit(self.path)
        if address.path == "/":
            return self._answer(200, "text/html", self.server.page())
        if address.path == "/update":
            update = self.server.update(parse_qs(address.query).get("seen", [""])[0])
            return self._answer(204, "text/plain", "") if update is None else self._send_json(update)
        name = unquote(address.path).removeprefix("/episodes/0/").removesuffix(".js")
        piece = self.server.archive.piece(name)
        if piece is not None:
            return self._answer(200, "text/javascript", piece_script(f"0/{name}", pack(piece)))
        return self._answer(404, "text/plain", "no such page")

    def _send_json(self, value: Any) -> None:
        self._answer(200, "application/json", json.dumps(value))

    def _answer(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""


def longest_episodes(run: RunView, *, count: int = 8) -> str:
    """The episodes of the newest stored batch that take the most generated tokens: a batch waits for its longest."""
    path = next(reversed(run.archive.files()), None)
    records = [] if path is None else list(run.archive.records(path))
    records.sort(key=num_generated_tokens, reverse=True)
    rows = [
        [
            title_of(r),
            f"{num_generated_tokens(r):,}",
            len(r["turns"]),
            r["status"].replace("_", " "),
            f"{r['reward']:g}",
        ]
        for r in records[:count]
    ]
    return render("longest.html", rows=rows, source=path and path.stem, number=len(records))


def num_generated_tokens(record: Record) -> int:
    """Tokens that the model wrote in a stored episode."""
    return sum(turn["end"] - turn["start"] for turn in record["turns"])


def terminal_view(run: RunView) -> RenderableType:
    """The same in a few lines of text."""
    table = Table(title=f"{run.environments}  {run.name}", title_justify="left", show_header=False, box=None)
    table.add_row("policy", describe_policy(run.config))
    batches, evals = run.batches, run.evals
    table.add_row("rollout batches", f"{len(batches)} of {run.config['train']['steps']}")
    for record in evals[-1:]:
        rate, low, high, _ = success_interval(record)
        table.add_row("held-out success", f"{rate:.1%} [{low:.1%}, {high:.1%}]")
        if "eval/reward" in record:
            table.add_row("held-out mean reward", f"{record['eval/reward']:.3g}")
    if batches:
        last = batches[-1]
        verdicts = "".join("x" if batch["learner/gate_closed"] else "." for batch in batches[-48:])
        table.add_row("training success", sparkline([batch["rollout/success"] for batch in batches]))
        table.add_row("training mean reward", f"{batches[0]['rollout/reward']:.3g} -> {last['rollout/reward']:.3g}")
        for step, text in diagnosis(run):
            table.add_row(f"diagnosis, batch {step}", text)
        table.add_row("gate closed", verdicts)
        factors = rate_factors(run)[1]
        if factors:
            table.add_row("learning rate", f"{sparkline(factors[-48:])} {factors[-1]:.3g} of the given one")
        table.add_row("rollouts", f"{last['cost/episodes']:,}")
        table.add_row("gradients", f"{last['cost/optimizer_steps']:,} used, {last['cost/discarded_steps']:,} discarded")
        table.add_row("last batch", f"{last['time/rollout_s']:.1f} s rollouts, {last['time/update_s']:.1f} s updates")
    return table


def follow_in_terminal(folder: Path, *, every_s: float, wait: Callable[[float], None] = time.sleep) -> None:
    """Redraw the terminal view until the run has made its last evaluation."""
    with Live(console=Console(markup=False, emoji=False), auto_refresh=False) as live:
        while True:
            run = load_runs([folder])[0]
            live.update(terminal_view(run), refresh=True)
            if run.is_finished:
                return
            wait(every_s)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options, overrides = parse_command_line(watch_parser(), argv)
    if overrides:
        raise UserError(f"watch takes no config keys, got {overrides[0]}.")
    if options.every <= 0:
        raise UserError(f"--every must be > 0, got {options.every:g}.")
    if options.terminal:
        follow_in_terminal(options.run, every_s=options.every)
        return 0
    try:
        server = WatchServer(options.run, port=options.port, every_s=options.every)
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {options.port} cannot be used: {error}. Give another one, or 0.") from None
    with server:
        print(f"{server.url}  (Ctrl-C stops the page, not the run)", flush=True)
        if options.open:
            webbrowser.open(server.url)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
