"""python -m agentrl.envs.math: check problem files, and how much of a benchmark a training set repeats."""

import argparse
import json
import sys
from collections import Counter

from rich.console import Console
from rich.table import Table

from agentrl.common.extras import MissingExtraError
from agentrl.common.paths import user_path
from agentrl.common.progress import track
from agentrl.envs.env_errors import DataError
from agentrl.envs.math.answers import normalise
from agentrl.envs.math.overlap import find_overlap
from agentrl.envs.math.problems import NAMED_DATA, Problem, load_problems
from agentrl.envs.math.verifier import library_verdict, verify

_EPILOG = """examples:
  python -m agentrl.envs.math overlap math math500 --data-dir data/math
  python -m agentrl.envs.math overlap my_train.jsonl aime25.jsonl --json overlap.json
  python -m agentrl.envs.math check math500 minerva --data-dir data/math

TRAIN, BENCHMARK and DATA are names (%s) or paths to JSON-lines, JSON or Parquet files with a question and an answer
column. Several training sets are joined by commas.
"""


def main(argv: list[str] | None = None) -> int:
    """Command line: exit code 0, 1 when `check` found a gold answer that does not match itself, 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.envs.math",
        description=__doc__,
        epilog=_EPILOG % ", ".join(NAMED_DATA),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    overlap = commands.add_parser("overlap", help="exact, 13-gram and 8-gram overlap of benchmarks with a training set")
    overlap.add_argument("train", metavar="TRAIN", help="training set, or several joined by commas")
    overlap.add_argument("benchmarks", metavar="BENCHMARK", nargs="+", help="benchmarks to look for")
    overlap.add_argument("--json", type=user_path, help="write the ids of the problems concerned there")
    check = commands.add_parser("check", help="load files, and check that every gold answer is accepted as itself")
    check.add_argument("data", metavar="DATA", nargs="+")
    check.add_argument("--split", choices=["train", "test"], default="test", help="split of named data")
    check.add_argument("--no-shortcut", action="store_true", help="let math-verify decide even identical texts")
    for command in (overlap, check):
        command.add_argument("--data-dir", help="folder of named data (default: the environment variable MATH_DATA)")
    options = parser.parse_args(argv)
    try:
        return _overlap(options) if options.command == "overlap" else _check(options)
    except (DataError, MissingExtraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _overlap(options: argparse.Namespace) -> int:
    train = [p for name in options.train.split(",") for p in _load(name, "train", options.data_dir)]
    texts = [problem.problem for problem in train]
    table = Table("benchmark", "problems", "exact", "13-gram", "8-gram", title=f"overlap with {options.train}")
    found = {}
    for name in track(options.benchmarks, description="comparing", total=len(options.benchmarks)):
        problems = _load(name, "test", options.data_dir)
        result = find_overlap(texts, [problem.problem for problem in problems])
        counts = [len(result.exact), len(result.ngrams[13]), len(result.ngrams[8])]
        table.add_row(name, str(len(problems)), *map(str, counts))
        found[name] = {
            "num_problems": len(problems),
            "exact": [problems[i].id for i in result.exact],
            "13-gram": [problems[i].id for i in result.ngrams[13]],
            "8-gram": [problems[i].id for i in result.ngrams[8]],
            "train_exact": [f"{train[i].source}/{train[i].id}" for i in result.train_exact],
        }
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


def _check(options: argparse.Namespace) -> int:
    num_wrong = 0
    for name in options.data:
        problems, dropped = load_problems(name, split=options.split, data_dir=options.data_dir)
        routes, wrong = Counter[str](), []
        for problem in track(problems, description=name, total=len(problems)):
            correct, route = _accepts_itself(problem, shortcut=not options.no_shortcut)
            routes[route] += 1
            if not correct:
                wrong.append(problem)
        decided = ", ".join(f"{count} {route}" for route, count in routes.most_common())
        print(f"{name}: {len(problems)} problems ({decided}), {len(wrong)} not accepted, {dropped.total()} dropped")
        for reason, count in dropped.items():
            print(f"  dropped: {count} rows, {reason}")
        for problem in wrong[:20]:
            print(f"  not accepted: {problem.id}: {problem.answer}")
        num_wrong += len(wrong)
    return 1 if num_wrong else 0


def _accepts_itself(problem: Problem, *, shortcut: bool) -> tuple[bool, str]:
    if not shortcut:
        return library_verdict(normalise(problem.answer), normalise(problem.answer))[:2]
    verdict = verify(problem.answer, rf"\boxed{{{problem.answer}}}")
    return verdict.correct, verdict.decided_by


def _load(name: str, split: str, data_dir: str | None) -> list[Problem]:
    """A file, or a named data set's part; a set that has no such part is taken as it is."""
    if split not in NAMED_DATA.get(name, {split: ""}):
        split = next(iter(NAMED_DATA[name]))
    return list(load_problems(name, split=split, data_dir=data_dir).problems)


if __name__ == "__main__":
    sys.exit(main())
