"""python -m agentrl.report RUN...: run folders -> one self-contained HTML page."""

import argparse
import sys
from pathlib import Path

from agentrl.cli import main_guard
from agentrl.errors import UserError
from agentrl.report.page import render_page
from agentrl.report.view import load_runs


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.report",
        description="Write one HTML page about one or more runs: summary, curves, gate, success per category, episodes "
        "turn by turn. It needs no network, opens on a phone, and prints.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the first run folder)")
    parser.add_argument("--episodes", type=int, default=48, metavar="N", help="episodes in the page (default: 48)")
    options = parser.parse_args(argv)
    if options.episodes < 0:
        raise UserError(f"--episodes must be >= 0, got {options.episodes}.")
    page = render_page(load_runs(options.runs), num_episodes=options.episodes)
    out = options.out or options.runs[0] / "report.html"
    if not out.parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}.")
    draft = out.with_name(out.name + ".writing")
    draft.write_text(page, encoding="utf-8")
    draft.replace(out)
    print(f"{out} ({len(page.encode()) / 1024:,.0f} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
