"""What the commands take that are about results: servers behind an API, panels, comparisons."""

import argparse
import json

from agentrl.command.program import program
from agentrl.common.paths import user_path


def panels_parser() -> argparse.ArgumentParser:
    """`agentrl panels`."""
    parser = argparse.ArgumentParser(
        prog=program("panels"),
        description="Frozen, named lists of tasks with protocol, limits, sampling and digests: list them, verify that "
        "the data at hand are a panel's own, or make one from data.",
        epilog="Where data lie is said as everywhere: ALFWORLD_DATA, --env.options.data ... Exit code of verify: 0: "
        "the same; 1: differences, named task by task and file by file; 2: bad input.",
    )
    parser.add_argument("action", nargs="?", choices=["list", "verify", "make"], default="list")
    parser.add_argument("panel", nargs="?", metavar="NAME@V", help="a shipped panel, or a file .json")
    parser.add_argument("--out", type=user_path, metavar="FILE", help="make: the file to write")
    parser.add_argument("--version", type=int, metavar="V", help="make: its version (default: that of the panel)")
    return parser


def compare_parser() -> argparse.ArgumentParser:
    """`agentrl compare`."""
    parser = argparse.ArgumentParser(
        prog=program("compare"),
        description="Compare results of evaluate --out on the same tasks: paired differences with 95 % intervals, per "
        "category, and the tasks that flipped. What cannot be compared is refused, with the reason.",
        epilog="The first result is what the others are compared with.",
    )
    parser.add_argument("results", nargs="*", type=user_path, metavar="RESULT", help="folders, or files result.json")
    parser.add_argument(
        "--allow-other-protocol", action="store_true",
        help="compare across protocols (prompts, limits, sampling); every table then says so",
    )  # fmt: skip
    parser.add_argument(
        "--published", nargs="?", const="", metavar="BENCHMARK", help="show what papers report, in a table of its own"
    )
    parser.add_argument("--markdown", type=user_path, metavar="FILE", help="also write the tables there")
    parser.add_argument(
        "--html", type=user_path, metavar="FILE", help="also write one page, with the episodes of A and B side by side"
    )
    return parser


def add_api_options(group: argparse._ArgumentGroup) -> None:
    """Of `agentrl evaluate --policy api`."""
    group.add_argument("--endpoint", metavar="URL", help="base address, such as http://127.0.0.1:8000/v1")
    group.add_argument("--model", dest="api_model", metavar="NAME", help="model, as the server calls it")
    group.add_argument(
        "--key-variable", metavar="VAR", default="OPENAI_API_KEY",
        help="environment variable that holds the key (default: OPENAI_API_KEY)",
    )  # fmt: skip
    group.add_argument("--timeout-s", type=float, default=120.0, help="seconds for a reply (default: 120)")
    group.add_argument(
        "--retries", type=int, default=5, help="tries after 429, 5xx and time-outs, with growing waits (default: 5)"
    )
    group.add_argument(
        "--extra-body", type=json.loads, default={}, metavar="JSON",
        help="more fields of the request; null takes one of ours away, e.g. '{\"seed\": null, \"top_k\": 20}'",
    )  # fmt: skip
    group.add_argument("--price-prompt", type=float, metavar="USD", help="price of a million prompt tokens")
    group.add_argument("--price-completion", type=float, metavar="USD", help="price of a million completion tokens")
    group.add_argument("--max-tokens-total", type=int, metavar="N", help="stop before more tokens than this")
    group.add_argument("--max-cost", type=float, metavar="USD", help="stop before it costs more than this")
