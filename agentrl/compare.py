"""python -m agentrl.compare A B ...: results on the same tasks, paired, with intervals."""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("compare")  # before the imports below, which take seconds

import sys

from agentrl.command.guard import main_guard, parse_command_line
from agentrl.command.parsers import compare_parser
from agentrl.comparison.comparable import compare_results, read_results
from agentrl.comparison.plain_tables import as_markdown, as_view, differences, flipped, overview
from agentrl.comparison.published import published_table, read_published
from agentrl.comparison.side_by_side import render_page
from agentrl.console import console
from agentrl.errors import UserError
from agentrl.runs.outputs import output_file


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options, unknown = parse_command_line(compare_parser(), argv)
    if unknown:
        raise UserError(f"compare takes no config keys, got {unknown[0]}.")
    if len(options.results) < 2 and options.published is None:
        raise UserError("compare needs two results or more: folders that evaluate --out wrote. Or give --published.")
    results = read_results(options.results)
    comparisons = [
        compare_results(results[0], other, allow_other_protocol=options.allow_other_protocol) for other in results[1:]
    ]
    tables = [overview(results)] if results else []
    tables += [table for each in comparisons for table in (differences(each), flipped(each))]
    if options.published is not None:
        documents = [each.document for each in results]
        tables.append(published_table(read_published(), options.published or None, documents))
    with output_file(options.markdown, "--markdown") as write, output_file(options.html, "--html") as write_page:
        write("\n".join(map(as_markdown, tables)))
        if options.html is not None:
            write_page(render_page(tables, comparisons))
    for table in tables:
        console.print(as_view(table))
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
