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
from agentrl.study.alarms import Alarms, alarms_table, find_alarms
from agentrl.study.claims import claims_table
from agentrl.study.page_tables import render_page
from agentrl.study.pictures import draw_alarms, draw_safe_regions, draw_study
from agentrl.study.plan import Cell, Study, load_study, require_known
from agentrl.study.results import Results, Run
from agentrl.study.runner import Runner
from agentrl.study.tables import by_k_table, study_tables, summary_table

console = Console(stderr=True, markup=False, emoji=False)


def run_study(study: Study, *, stages: list[str], jobs: int, budget_s: float) -> int:
    """Run stage after stage; the results file is written anew after every run. Exit code 1 where a run failed."""
    measured = on_file(study)
    require_same_study(study, measured)
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


def require_same_study(study: Study, measured: dict[str, Run]) -> None:
    """Refuse to write over runs that this study no longer asks for, as after a change of its base experiment.

    Raises:
        UserError: how many, and what to do.
    """
    known = {cell.key for cells in planned(study, measured).values() for cell in cells}
    lost = [run for key, run in measured.items() if key not in known]
    if lost:
        raise UserError(
            f"{study.config.results} holds {len(lost)} runs that the study as it stands does not ask for (the first: "
            f"{lost[0]['key']}), and which would be lost. Keep them and name another file with --results."
        )


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
    if options.page:
        render_page(options.page, lambda words: tables(parser.parse_args(words), folder=options.page.parent))
        return 0
    if not options.study:
        parser.error("give a STUDY.toml (--list shows the shipped ones) or some RESULTS.json")
    if all(path.suffix == ".json" for path in options.study):
        return show(options)
    if len(options.study) != 1:
        raise UserError("give one STUDY.toml, or any number of RESULTS.json.")
    study = load_study(find_config(options.study[0]))
    if options.results:
        study.config.results = options.results
    require_known("stage", filter(None, [*(options.stage or []), options.claims]), study.config.stages)
    arms = [options.reference, *(options.summary or []), *(options.alarms or []), *(options.by_k or [])]
    require_known("arm", filter(None, arms), study.config.arms)
    stages = options.stage or list(study.config.stages)
    if options.plan:
        return print_plan(study, stages)
    code = run_study(study, stages=stages, jobs=options.jobs, budget_s=options.budget_s)
    options.study = [Path(study.config.results).expanduser()]
    show(options)
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


def show(options: argparse.Namespace) -> int:
    """Markdown to stdout, and figures into a folder."""
    studies = read_studies(options)
    announced = alarms(studies, options)
    if options.figures is not None:
        draw(options, studies, announced)
    print(tables_of(options, studies, announced))
    return 0


def read_studies(options: argparse.Namespace, folder: Path = Path()) -> dict[Path, Results]:
    """Path as given -> results, checked to have the arm and the stages that are asked for."""
    studies = {path: Results.read(folder / path) for path in options.study}
    for results in studies.values():
        if options.reference:
            require_known("arm", [options.reference], results.study["arms"])
            results.study["reference"] = options.reference
    known = dict.fromkeys(stage for results in studies.values() for stage in results.study["stages"])
    require_known("stage", filter(None, [*(options.stage or []), options.claims]), known)
    return studies


def tables(options: argparse.Namespace, folder: Path = Path()) -> str:
    """The tables that a command line asks for; its paths are relative to a folder."""
    studies = read_studies(options, folder)
    return tables_of(options, studies, alarms(studies, options))


def tables_of(options: argparse.Namespace, studies: dict[Path, Results], announced: list[Alarms]) -> str:
    """The same of results that were read."""
    if options.claims:
        return claims_table(list(studies.values()), options.claims)
    if options.alarms:
        return alarms_table(announced, drop=options.drop / 100, within=options.within)
    if options.by_k:
        return by_k_table(list(studies.values()), options.by_k, stages=options.stage)
    if options.summary:
        return summary_table(list(studies.values()), options.summary, stages=options.stage)
    return "\n\n".join(study_tables(results, source=path, stages=options.stage) for path, results in studies.items())


def alarms(studies: dict[Path, Results], options: argparse.Namespace) -> list[Alarms]:
    """What announces a fall, where the command line asks for it."""
    if options.claims or not options.alarms:
        return []
    return find_alarms(
        list(studies.values()), options.alarms, stages=options.stage, drop=options.drop / 100, within=options.within
    )


def draw(options: argparse.Namespace, studies: dict[Path, Results], announced: list[Alarms]) -> None:
    """One SVG a stage, or one of the claims or the alarms that are asked for."""
    options.figures.mkdir(parents=True, exist_ok=True)
    if options.claims:
        written = [options.figures / f"{options.claims}.svg"]
        draw_safe_regions(list(studies.values()), options.claims, written[0])
    elif options.alarms:
        written = [options.figures / "alarms.svg"]
        draw_alarms(announced, written[0])
    else:
        written = [
            path
            for source, results in studies.items()
            for path in draw_study(results, options.figures, name=source.stem, stages=options.stage)
        ]
    for path in written:
        console.print(f"{path}", highlight=False)


if __name__ == "__main__":
    sys.exit(main_guard(main))
