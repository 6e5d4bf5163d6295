"""python -m agentrl.study CONFIG: arms x seeds on one machine, resumable, with tables from what was measured."""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from agentrl.cli import main_guard
from agentrl.errors import UserError
from agentrl.study.plan import Cell, Study, load_study
from agentrl.study.results import Results
from agentrl.study.runner import Runner, is_done
from agentrl.study.tables import replace_section, study_tables

console = Console(stderr=True)


def run_study(study: Study, *, stages: list[str], jobs: int, budget_s: float) -> int:
    """Run stage after stage; the results file is written anew after every run. Exit code 1 where a run failed."""
    runner = Runner(study, jobs=jobs, budget_s=budget_s)
    for stage in stages:
        cells = planned(study)
        if stage not in cells:
            console.print(f"stage {stage}: waits for an earlier stage", highlight=False)
            break
        done = runner.run(cells[stage], f"stage {stage}", on_done=lambda: write(study))
        write(study)
        if not done:
            console.print(f"stage {stage}: not complete; the same command continues it", highlight=False)
            break
    return 1 if runner.failed else 0


def planned(study: Study) -> dict[str, list[Cell]]:
    """Stage -> its runs, for the stages whose values are known by now."""
    cells: dict[str, list[Cell]] = {}
    for stage in study.config.stages:
        found = study.cells(stage, Results.collect(study, cells).lookup)
        if found is None:
            continue
        cells[stage] = found
    return cells


def write(study: Study) -> None:
    """Write the results file from the run folders."""
    command = f"python -m agentrl.study {shlex.join(sys.argv[1:])}"
    Results.collect(study, planned(study)).write(Path(study.config.results), command=command)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.study",
        description="Run a study (arms x seeds), or print the tables of results that were measured before.",
        epilog="Interrupt it at any time; the same command goes on where it stopped.",
    )
    parser.add_argument("study", type=Path, nargs="+", metavar="STUDY.toml | RESULTS.json")
    parser.add_argument("--stage", action="append", help="only this stage (may be given more than once)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="start no run after so many CPU seconds")
    parser.add_argument("--plan", action="store_true", help="list the runs and what is done, and stop")
    parser.add_argument("--readme", type=Path, help="put the tables between the study marks of this Markdown file")
    options = parser.parse_args(argv)
    if all(path.suffix == ".json" for path in options.study):
        return print_tables(options.study, options.readme)
    if len(options.study) != 1:
        raise UserError("give one STUDY.toml, or any number of RESULTS.json.")
    study = load_study(options.study[0])
    unknown = set(options.stage or []) - set(study.config.stages)
    if unknown:
        raise UserError(f"no stage {', '.join(unknown)}; there are {', '.join(study.config.stages)}.")
    if options.plan:
        return print_plan(study)
    stages = options.stage or list(study.config.stages)
    code = run_study(study, stages=stages, jobs=options.jobs, budget_s=options.budget_s)
    print_tables([Path(study.config.results)], options.readme)
    return code


def print_plan(study: Study) -> int:
    """One line a run."""
    runner, cells = Runner(study), planned(study)
    for stage in study.config.stages:
        if stage not in cells:
            print(f"{stage}: waits for an earlier stage")
        for cell in cells.get(stage, []):
            changed = " ".join(f"{key}={value}" for key, value in cell.overrides)
            print(f"{stage} {'done' if is_done(runner.folder(cell)) else 'open'} {cell.key} {changed}")
    return 0


def print_tables(paths: list[Path], readme: Path | None) -> int:
    """Markdown to stdout, or into a file."""
    text = "\n\n".join(study_tables(Results.read(path), source=path) for path in paths)
    if readme is None:
        print(text)
    else:
        replace_section(readme, text)
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
