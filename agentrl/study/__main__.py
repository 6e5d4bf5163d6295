"""python -m agentrl.study CONFIG: arms x seeds on any number of machines, resumable, with tables of what came out."""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("study")  # before the imports below, which take seconds

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from agentrl.command.guard import main_guard
from agentrl.command.parsers import study_parser
from agentrl.config.shipped import find_config, list_configs
from agentrl.errors import UserError
from agentrl.study.pictures import draw_study
from agentrl.study.plan import Cell, Study, load_study, require_arms
from agentrl.study.results import Results, Run
from agentrl.study.runner import Runner
from agentrl.study.tables import replace_section, study_tables, summary_table

console = Console(stderr=True, markup=False, emoji=False)


def run_study(study: Study, *, stages: list[str], jobs: int, budget_s: float) -> int:
    """Run stage after stage; the results file is written anew after every run. Exit code 1 where a run failed."""
    measured = on_file(study)
    runner = Runner(study, jobs=jobs, budget_s=budget_s, measured=measured)
    for stage in stages:
        cells = planned(study, measured)
        if stage not in cells:
            console.print(f"stage {stage}: waits for an earlier stage", highlight=False)
            break
        done = runner.run(cells[stage], f"stage {stage}", on_done=lambda: write(study, measured))
        write(study, measured)
        if not done:
            console.print(f"stage {stage}: not complete; the same command continues it", highlight=False)
            break
    return 1 if runner.failed else 0


def on_file(study: Study) -> dict[str, Run]:
    """Key -> record of the runs that the results file holds."""
    path = Path(study.config.results).expanduser()
    return Results.read(path).by_key() if path.is_file() else {}


def planned(study: Study, measured: dict[str, Run]) -> dict[str, list[Cell]]:
    """Stage -> its runs, for the stages whose values are known by now."""
    cells: dict[str, list[Cell]] = {}
    for stage in study.config.stages:
        found = study.cells(stage, Results.collect(study, cells, measured).lookup)
        if found is None:
            continue
        cells[stage] = found
    return cells


def write(study: Study, measured: dict[str, Run]) -> None:
    """Write the results file from the run folders, and from what it held before."""
    command = f"python -m agentrl.study {shlex.join(sys.argv[1:])}"
    Results.collect(study, planned(study, measured), measured).write(
        Path(study.config.results).expanduser(), command=command
    )


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = study_parser()
    options = parser.parse_args(argv)
    if options.list:
        print(list_configs(studies=True))
        return 0
    if not options.study:
        parser.error("give a STUDY.toml (--list shows the shipped ones) or some RESULTS.json")
    if all(path.suffix == ".json" for path in options.study):
        return show(options.study, options)
    if len(options.study) != 1:
        raise UserError("give one STUDY.toml, or any number of RESULTS.json.")
    study = load_study(find_config(options.study[0]))
    if options.results:
        study.config.results = options.results
    unknown = set(options.stage or []) - set(study.config.stages)
    if unknown:
        raise UserError(f"no stage {', '.join(unknown)}; there are {', '.join(study.config.stages)}.")
    require_arms(filter(None, [options.reference, *(options.summary or [])]), study.config.arms)  # before it costs
    stages = options.stage or list(study.config.stages)
    if options.plan:
        return print_plan(study, stages)
    code = run_study(study, stages=stages, jobs=options.jobs, budget_s=options.budget_s)
    show([Path(study.config.results).expanduser()], options)
    return code


def print_plan(study: Study, stages: list[str]) -> int:
    """One line a run of these stages."""
    measured = on_file(study)
    runner, cells = Runner(study, measured=measured), planned(study, measured)
    for stage in stages:
        if stage not in cells:
            print(f"{stage}: waits for an earlier stage")
        for cell in cells.get(stage, []):
            changed = " ".join(f"{key}={value}" for key, value in cell.overrides)
            state = "done" if runner.is_done(cell) else "running" if runner.is_held(cell) else "open"
            print(f"{stage} {state} {cell.key} {changed}")
    return 0


def show(paths: list[Path], options: argparse.Namespace) -> int:
    """Markdown to stdout or into a file, and figures into a folder."""
    studies = {path: Results.read(path) for path in paths}
    if options.reference:
        for results in studies.values():
            require_arms([options.reference], results.study["arms"])
            results.study["reference"] = options.reference
    if options.figures is not None:
        draw(studies, options.figures)
    if options.summary:
        text = summary_table(list(studies.values()), options.summary)
    else:
        text = "\n\n".join(study_tables(results, source=path) for path, results in studies.items())
    if options.readme is None:
        print(text)
    else:
        replace_section(options.readme, text)
    return 0


def draw(studies: dict[Path, Results], folder: Path) -> None:
    """One SVG a stage."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, results in studies.items():
        for written in draw_study(results, folder, name=path.stem):
            console.print(f"{written}", highlight=False)


if __name__ == "__main__":
    sys.exit(main_guard(main))
