"""python -m agentrl.watch RUN: follow a running job in a browser on this machine, or in the terminal."""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("watch")  # before the imports below, which take seconds

import json
import sys
import time
import webbrowser
from collections.abc import Callable
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from agentrl.analysis.curves import sparkline
from agentrl.command.guard import main_guard, parse_command_line
from agentrl.command.parsers import watch_parser
from agentrl.errors import UserError
from agentrl.report.page import assemble, render_parts, render_run
from agentrl.report.sections import describe_policy
from agentrl.report.view import RunView, load_runs, newest_episodes, rate_factors
from agentrl.runs.folder import episode_files

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_EPISODES = 32
"""Episodes of the newest file that the page offers."""


class WatchServer(ThreadingHTTPServer):
    """Serves the page of one run; bound to loopback.

    Args:
        folder: run folder, finished or not.
        port: 0 takes a free one.
        every_s: seconds between questions of the page.
    """

    daemon_threads = True

    def __init__(self, folder: Path, *, port: int = 0, every_s: float = 2.0) -> None:
        load_runs([folder])
        self.folder, self.every_s = folder, every_s
        self._episodes: tuple[str, list[dict[str, Any]]] = ("", [])
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"

    def page(self) -> str:
        """The whole page as it is now."""
        run = load_runs([self.folder])[0]
        body = render_run(run, self.episodes(run), extra=(("longest", "Longest episodes", longest_episodes),))
        return assemble(f"{run.name} (live)", body, live=f' data-live="{round(1000 * self.every_s)}"')

    def update(self, seen: str) -> dict[str, Any] | None:
        """What changed since the version that a page has seen; None where nothing did."""
        version = self.version()
        if version == seen:
            return None
        run = load_runs([self.folder])[0]
        episodes = self.episodes(run)
        parts = {**render_parts(run), "longest": longest_episodes(run)}
        # Episodes are sent again only when there are newer ones.
        fresh = episodes if version.split("|")[-1] != seen.split("|")[-1] else []
        return {"version": version, "parts": parts, "episodes": fresh}

    def version(self) -> str:
        """Changes whenever the run has written something: size of the records, newest file of episodes."""
        files = episode_files(self.folder)
        newest = f"{files[-1].name} {files[-1].stat().st_mtime_ns}" if files else ""
        return f"{(self.folder / 'metrics.jsonl').stat().st_size}|{newest}"

    def episodes(self, run: RunView) -> list[dict[str, Any]]:
        """Episodes of the newest stored batch or evaluation."""
        key = self.version().split("|")[-1]
        if key != self._episodes[0]:
            self._episodes = (key, newest_episodes(run, limit=_EPISODES))
        return self._episodes[1]


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer

    def do_GET(self) -> None:
        """`/` is the page, `/update?seen=VERSION` its news."""
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in _LOOPBACK:
            return self._answer(403, "text/plain", "only for this machine")
        address = urlsplit(self.path)
        if address.path == "/":
            return self._answer(200, "text/html", self.server.page())
        if address.path == "/update":
            update = self.server.update(parse_qs(address.query).get("seen", [""])[0])
            return self._answer(204, "text/plain", "") if update is None else self._send_json(update)
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
    episodes = newest_episodes(run, limit=10_000, with_rows=False)
    episodes.sort(key=lambda episode: -sum(turn["end"] - turn["start"] for turn in episode["turns"]))
    if not episodes:
        return '<p class="none">no episodes stored yet (tracking.trajectories_every)</p>'
    rows = "".join(
        f"<tr><th>{escape(episode['name'])}</th><td>{sum(t['end'] - t['start'] for t in episode['turns']):,}</td>"
        f"<td>{len(episode['turns'])}</td><td>{escape(episode['status'])}</td><td>{episode['reward']:g}</td></tr>"
        for episode in episodes[:count]
    )
    head = "<tr><th>episode</th><th>generated tokens</th><th>turns</th><th>ended</th><th>reward</th></tr>"
    where = escape(episodes[0]["source"])
    return f'<p>of {where}, {len(episodes)} episodes</p><div class="scroll"><table>{head}{rows}</table></div>'


def terminal_view(run: RunView) -> RenderableType:
    """The same in a few lines of text."""
    table = Table(title=f"{run.config['env']['id']}  {run.name}", title_justify="left", show_header=False, box=None)
    table.add_row("policy", describe_policy(run.config))
    batches, evals = run.batches, run.evals
    table.add_row("rollout batches", f"{len(batches)} of {run.config['train']['steps']}")
    for record in evals[-1:]:
        low, high = record["eval/success_low"], record["eval/success_high"]
        table.add_row("held-out success", f"{record['eval/success']:.1%} [{low:.1%}, {high:.1%}]")
    if batches:
        last = batches[-1]
        verdicts = "".join("x" if batch["learner/gate_closed"] else "." for batch in batches[-48:])
        table.add_row("training success", sparkline([batch["rollout/success"] for batch in batches]))
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
