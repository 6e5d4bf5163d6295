"""python -m agentrl.evaluate MODEL_OR_RUN: success rates, or mean@k, pass@k and majority@k, with intervals."""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("evaluate")  # before the imports below, which take seconds

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

from agentrl.api_policy.api_player import ApiPolicy
from agentrl.api_policy.server_options import api_policy_from
from agentrl.command.callable_module import make_callable
from agentrl.command.guard import main_guard, parse_command_line
from agentrl.command.parsers import evaluate_parser, program
from agentrl.common.data_source import DataSource, with_kinds
from agentrl.common.paths import user_path
from agentrl.config.read import load_config
from agentrl.config.schema import Config, EnvConfig
from agentrl.console import Display, LogLevel, console, note, say, set_log_level
from agentrl.environment.spec import conventions, require_splits, with_conventions
from agentrl.errors import CheckpointError, RunError, UserError
from agentrl.evaluation.document import PanelCheck
from agentrl.evaluation.held_out import evaluate, held_out_tasks, renumbered
from agentrl.evaluation.make_document import describe_player, describe_usage, make_document
from agentrl.evaluation.players import rollout_for
from agentrl.evaluation.rates import Evaluation
from agentrl.evaluation.samples import (
    SampleFile,
    accuracy_record,
    accuracy_view,
    describe_sampling,
    sampling_line,
)
from agentrl.evaluation.sitting import Sitting, sit_down
from agentrl.evaluation.success_table import success_table, title_of
from agentrl.panels.check import check_panel, settings_tree
from agentrl.panels.panel import Panel, find_panel
from agentrl.rollout.human import HumanPlayer, show_end
from agentrl.rollout.rollout import Rollout
from agentrl.runs.checkpoint import newest_checkpoint
from agentrl.runs.folder import read_run_config
from agentrl.runs.outputs import claim_folder, given_back_if_empty, output_file, write_json
from agentrl.runs.software import describe_software
from agentrl.types import Metrics, Task, Trajectory


def _resolve(
    target: str | None, overrides: Mapping[str, Any] | Sequence[str] | None, api: ApiPolicy | None
) -> tuple[Config, str | None]:
    """(config, model folder) of a run folder, a model folder or a hub name."""
    if target is None:
        return load_config({"model": {"path": api.model}} if api else None, overrides), None
    folder = Path(target)
    if (folder / "metrics.jsonl").exists():
        return load_config(read_run_config(folder), overrides), str(newest_checkpoint(folder))
    if folder.exists() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is neither a run folder (metrics.jsonl) nor a model folder (config.json).")
    return load_config({"model": {"path": target}}, overrides), target  # whose defaults are those of its kind


def settle(config: Config, policy: str) -> Config:
    """The config with what nobody has set taken from the environment's conventions: its split, its samples per task."""
    config, samples = with_conventions(config), config.eval.samples
    if samples is None:
        is_random = policy in ("model", "api") and config.eval.temperature > 0
        usual = {int(conventions(env.id).get("eval_samples", 1)) for env in config.mixture or [config.env]}
        samples = usual.pop() if is_random and len(usual) == 1 else 1
    if samples > 1 and policy == "model" and config.eval.temperature == 0:
        raise UserError(f"eval.samples is {samples} at eval.temperature 0: greedy samples are all alike. Take 1.")
    return config.model_copy(update={"eval": config.eval.model_copy(update={"samples": samples})})


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options, overrides = parse_command_line(evaluate_parser(), argv)
    overrides = [_long_form(word) for word in overrides]
    if options.env:
        overrides += ["--env.id", options.env]
    if options.samples is not None:
        overrides += ["--eval.samples", str(options.samples)]
    run(
        options.model, overrides,
        policy=options.policy, config=options.config, out=options.out, json_file=options.json,
        api=api_policy_from(options), resume=options.resume, panel=options.panel, log_level=options.log_level,
    )  # fmt: skip
    return 0


def run(
    target: Path | str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    policy: str = "model",
    config: Config | Path | str | None = None,
    out: Path | str | None = None,
    json_file: Path | None = None,
    api: ApiPolicy | None = None,
    resume: bool = False,
    panel: str | None = None,
    log_level: LogLevel = "normal",
) -> Evaluation:
    """Play the held-out tasks and print what came of it. In scripts: `agentrl.evaluate("runs/...")`.

    Args:
        target: run folder, model folder or hub name; None with a scripted policy.
        overrides: dotted keys and values, `{"env.eval_split": "valid_seen", "eval.tasks": 50}`.
        policy: `model`, `api`, `human`, `expert` or `random`.
        config: settings instead of those of the run folder.
        out: folder for samples.jsonl and result.json, which `agentrl report` opens; None: runs/eval-MODEL-SOURCE-TIME.
        json_file: where the result goes too.
        api: the server that plays, with the policy `api`.
        resume: go on with the samples that lie in `out`.
        panel: a frozen list of tasks with protocol, limits and sampling (`agentrl.panels`).
        log_level: how much is said: `quiet`, `normal`, `debug`.

    Returns:
        The evaluation; `total.value` is its success, `trajectories` what was played.

    Raises:
        UserError: something that can be mended beforehand.
        RunError: nothing could be played.
    """
    set_log_level(log_level)
    target = os.path.expanduser(target) if target is not None else None
    frozen = None if panel is None else find_panel(panel)
    given = None if frozen is not None else overrides
    settled, model = (load_config(config, given), target) if config is not None else _resolve(target, given, api)
    if frozen is not None:
        settled = load_config(settings_tree(settled.model_dump(), frozen), overrides)
    elif overrides and "env.eval_split" in _keys_of(overrides):
        require_splits(settled)
    settled = settle(settled, policy)
    checked = None if frozen is None else _check(frozen, settled)
    name = f"eval-{Path(api.model if api else model or policy).name}"
    claimed = claim_folder(name) if out is None and not resume else None
    folder = user_path(str(out)) if out is not None else claimed
    with given_back_if_empty(claimed), output_file(json_file, "--json") as write:
        player = api.describe() if api else {"model": model}
        sitting = sit_down(folder, settled, {"policy": policy, **player}, resume=resume, is_costly=policy == "api")
        with closing(sitting):
            tasks = None if frozen is None else frozen.tasks()
            result, about = play_held_out(settled, policy, model, sitting, api, tasks)
        record = describe_result(settled, policy, result)
        write(json.dumps(record, indent=1))
    show_result(settled, policy, result, record)
    if checked is not None:
        say(f"panel {checked.name}")
    software = describe_software()
    document = make_document(settled, result, **about, panel=checked, software=software)
    legacy = {"about": {"model": model, **software, "config": settled.model_dump()}}
    write_json(sitting.folder / "result.json", {**record, **document.model_dump(), **legacy})
    where = sitting.folder if claimed is None else _named_after_data(claimed, name, record)
    say(f"samples and result in {where}; {program('report')} {where} shows them")
    return result


def _named_after_data(folder: Path, name: str, record: Metrics) -> Path:
    """The folder, with the kind of its tasks in its name, where they say it."""
    told = folder.with_name(folder.name.replace(name, with_kinds(name, [DataSource.of(record.get("eval/data"))]), 1))
    with suppress(OSError):  # somebody's folder is called so
        return folder.rename(told)
    return folder


def _check(panel: Panel, config: Config) -> PanelCheck:
    """Whether the score may bear the panel's name; said before anything is played."""
    differences = check_panel(panel, config)
    for line in differences:
        note(f"not {panel.id}: {line}")
    for line in panel.unknown:
        note(f"{panel.id} does not know {line}: its scores compare only where that is the same")
    name = panel.id + ("+other" if differences else "")
    return PanelCheck(name=name, digest=panel.digest(), differences=differences)


def play_held_out(
    config: Config, policy: str, model: str | None, sitting: Sitting, api: ApiPolicy | None = None,
    tasks: list[Task] | None = None,
) -> tuple[Evaluation, dict[str, Any]]:  # fmt: skip
    """Every held-out task as often as `eval.samples` says; episodes are stored in a folder as they come.

    Returns:
        The evaluation; who played, and what an API counted.

    Raises:
        RunError: it could not go on (`BudgetSpent`: the budget is spent); what was played before is stored.
    """
    with (
        SampleFile.into(sitting.folder, goes_on=bool(sitting.known)) as file,
        rollout_for(config, policy, model, api, sitting.usage) as rollout,
    ):
        file.keep_tokenizer(rollout.chat.tokenizer)
        splits = ", ".join(dict.fromkeys(env.eval_split for env in config.mixture or [config.env]))
        try:
            result = _play(
                rollout, tasks or _held_out(config, rollout), config.eval.samples or 1, file, f"{policy} on {splits}",
                sitting.known,
            )  # fmt: skip
        except RunError as error:
            if policy == "api":
                raise type(error)(f"{error} Go on with --out {sitting.folder} --resume.") from None
            raise
        player = describe_player(rollout.player, policy, model, rollout.chat)
        return result, {"player": player, "usage": describe_usage(rollout.player, sitting.usage)}


def _held_out(config: Config, rollout: Rollout) -> list[Task]:
    tasks: list[Task] = []
    for name, member in config.environments().items():
        num_tasks = rollout.environments[name].pool.capabilities().num_tasks
        found = held_out_tasks(member, num_tasks=num_tasks, num_eval_tasks=num_tasks)
        tasks += renumbered(found, name, start=len(tasks))
    return tasks


def describe_result(config: Config, policy: str, result: Evaluation) -> Metrics:
    """The result as a record."""
    scorers = [conventions(env.id).get("scorer") for env in config.mixture or [config.env]]
    scorer = next(filter(None, scorers), None)
    sampling = describe_sampling(config, result.trajectories, samples=result.samples, scorer=scorer)
    record = {**result.metrics(), "split": result.metrics()["eval/split"], "policy": policy, "sampling": sampling}
    if result.samples > 1:
        record["accuracy"] = accuracy_record(result.accuracy)
    return record


def show_result(config: Config, policy: str, result: Evaluation, record: Metrics) -> None:
    """The result as a table."""
    title = title_of(config, record)
    if result.samples > 1:
        console.print(accuracy_view(result.accuracy, samples=result.samples, title=title))
    else:
        name = policy if policy != "model" else f"T = {config.eval.temperature:g}"
        if policy == "expert" and "expert" not in config.env.options:
            name = ", ".join(filter(None, (name, conventions(config.env.id).get("expert"))))
        console.print(success_table({name: result.rates}, title=title, rewards=[record["eval/reward"]]))
    say(sampling_line(record["sampling"]))


def _long_form(word: str) -> str:
    """`--env.split` names the split to evaluate, as one would expect here; `--env.data` is an option of the env."""
    name, equals, value = word.partition("=")
    key = name.removeprefix("--env.")
    if key == name or "." in key or (key in EnvConfig.model_fields and key != "split"):
        return word
    return f"{'--env.eval_split' if key == 'split' else f'--env.options.{key}'}{equals}{value}"


def _keys_of(overrides: Mapping[str, Any] | Sequence[str]) -> set[str]:
    return {word.removeprefix("--").partition("=")[0] for word in overrides}


def _play(
    rollout: Rollout, tasks: list[Task], samples: int, file: SampleFile, title: str,
    known: Mapping[tuple[int, int], Trajectory],
) -> Evaluation:  # fmt: skip
    """`evaluate` with a progress bar, each sample stored as it comes."""
    is_shown = isinstance(rollout.player, HumanPlayer)
    shows_bar = nullcontext() if is_shown else Display()
    with shows_bar as display, display.bar(title, total=len(tasks) * samples) if display else nullcontext() as bar:

        def take(trajectory: Trajectory) -> None:
            if bar is not None:
                bar.advance()
            else:
                show_end(trajectory)
            if (trajectory.task.position, trajectory.member) not in known:
                file.write(trajectory)

        return evaluate(rollout, tasks, samples=samples, on_episode=take, known=known)


make_callable(__name__, run)

if __name__ == "__main__":
    sys.exit(main_guard(main, outlives_readers=True))
