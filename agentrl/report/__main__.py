"""python -m agentrl.report RUN...: run folders -> one self-contained HTML page."""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("report")  # before the imports below, which take seconds

import sys
from pathlib import Path

from agentrl.command.guard import main_guard
from agentrl.command.parsers import report_parser
from agentrl.console import console, say
from agentrl.errors import UserError
from agentrl.report.arm_sections import terminal_table
from agentrl.report.page import render_page
from agentrl.report.view import load_runs
from agentrl.runs.outputs import output_file


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options = report_parser().parse_args(argv)
    out = options.out or options.runs[0] / "report.html"
    if options.out and not out.parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}.")
    if options.level is not None and not 0 < options.level <= 1:
        raise UserError(f"--level is a share of the held-out tasks, above 0 and at most 1, got {options.level:g}.")
    runs = load_runs(options.runs)
    is_special = out.exists() and not out.is_file()  # /dev/stdout has nothing beside it
    folder = out.with_name(f"{out.stem}-episodes")
    with output_file(out, "--out") as write:
        page = render_page(runs, beside=None if is_special else folder.name, level=options.level)
        if not is_special:
            _write_beside(folder, page.beside)
        write(page.html)
    size = f"{len(page.html.encode()) / 1024:,.0f} KiB"
    if page.beside:
        mebibytes = sum(map(len, page.beside.values())) / 2**20
        size += f"; the episodes are beside it in {folder}, {mebibytes:,.0f} MiB: keep both together"
    if page.comparison:
        for table in page.comparison.tables[:2]:
            console.print(terminal_table(table))
        say(page.comparison.tables[0].note)
    print(f"{out} ({size})")
    return 0


def _write_beside(folder: Path, files: dict[str, str]) -> None:
    """The folder of a page's episodes; those of an older page go."""
    for old in folder.glob("[0-9]*/*.js"):
        old.unlink()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main_guard(main))
