"""python -m agentrl.report RUN...: run folders -> one self-contained HTML page."""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("report")  # before the imports below, which take seconds

import sys

from agentrl.command.guard import main_guard
from agentrl.command.parsers import report_parser
from agentrl.errors import UserError
from agentrl.report.page import render_page
from agentrl.report.view import load_runs
from agentrl.runs.outputs import output_file


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options = report_parser().parse_args(argv)
    if options.episodes < 0:
        raise UserError(f"--episodes must be >= 0, got {options.episodes}.")
    out = options.out or options.runs[0] / "report.html"
    if options.out and not out.parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}.")
    runs = load_runs(options.runs)
    with output_file(out, "--out") as write:
        page = render_page(runs, num_episodes=options.episodes)
        write(page)
    print(f"{out} ({len(page.encode()) / 1024:,.0f} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
