"""python -m agentrl.evaluate MODEL_OR_RUN: success rates, or mean@k, pass@k and majority@k, with intervals."""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("evaluate")  # before the imports below, which take seconds

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from agentrl.command.callable_module import make_callable
from agentrl.command.guard import main_guard, parse_command_line
from agentrl.command.parsers import evaluate_parser, program
from agentrl.common.paths import user_path
from agentrl.config.read import load_config
from agentrl.config.schema import Config, EnvConfig, ModelConfig, RolloutConfig
from agentrl.console import Display, LogLevel, console, say, set_log_level
from agentrl.environment.played import PlayedEnvironment, close_all, played_environments
from agentrl.environment.spec import conventions, with_conventions
from agentrl.errors import CheckpointError, UserError
from agentrl.evaluation.held_out import EVAL_SEED, eval_rollout_config, evaluate, held_out_tasks, renumbered
from agentrl.evaluation.rates import Evaluation
from agentrl.evaluation.samples import (
    SampleFile,
    accuracy_record,
    accuracy_view,
    describe_sampling,
    sampling_line,
)
from agentrl.evaluation.success_table import success_table
from agentrl.model.load import compute_device, load_model, set_threads
from agentrl.model.tiny import build_tokenizer
from agentrl.rollout.chat import Chat, chat_for
from agentrl.rollout.engines.factory import holds_own_weights, make_engine
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.scripted import ScriptedPolicy, expert_policy, random_policy
from agentrl.runs.checkpoint import newest_checkpoint
from agentrl.runs.folder import read_run_config
from agentrl.runs.outputs import claim_folder, given_back_if_empty, output_file, write_json
from agentrl.runs.software import describe_software
from agentrl.types import Metrics, Task, Trajectory

Played = Mapping[str, PlayedEnvironment]


def _resolve(target: str | None, overrides: Mapping[str, Any] | Sequence[str] | None) -> tuple[Config, str | None]:
    """(config, model folder) of a run folder, a model folder or a hub name."""
    if target is None:
        return load_config(None, overrides), None
    folder = Path(target)
    if (folder / "metrics.jsonl").exists():
        return load_config(read_run_config(folder), overrides), str(newest_checkpoint(folder))
    if folder.exists() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is neither a run folder (metrics.jsonl) nor a model folder (config.json).")
    return load_config(None, overrides), target


@contextmanager
def _model_rollout(config: Config, model: str) -> Iterator[Rollout]:
    set_threads(model)
    # An engine with weights of its own only looks at the module's shape.
    place = torch.device("cpu") if holds_own_weights(config.rollout) else compute_device()
    module, tokenizer = load_model(ModelConfig(path=model, dtype=config.model.dtype), device=place)
    limits = eval_rollout_config(config)
    with closing(make_engine(limits, module, tokenizer)) as engine:
        engine.load_weights(module.state_dict().items(), version=0)
        with _environments(config, limits) as environments:
            yield Rollout(engine, chat_for(tokenizer, module, limits), environments, limits, seed=EVAL_SEED)


@contextmanager
def _environments(config: Config, limits: RolloutConfig, *, expert: bool = False) -> Iterator[Played]:
    played = played_environments(config.model_copy(update={"rollout": limits}), "eval", expert=expert)
    try:
        yield played
    finally:
        close_all(played)


@contextmanager
def _scripted_rollout(config: Config, policy: str) -> Iterator[Rollout]:
    """Scripted policies speak commands and have no context to run out of."""
    scripted: ScriptedPolicy = expert_policy if policy == "expert" else random_policy
    tokenizer = build_tokenizer(())
    members = [env.model_copy(update={"format": "plain", "reward": None}) for env in config.mixture or [config.env]]
    plain = config.with_environments(members)
    unlimited = config.rollout.model_copy(update={"max_context_tokens": 1 << 30, "context": "conversation"})
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    with _environments(plain, config.rollout, expert=policy == "expert") as environments:
        yield Rollout(None, chat, environments, unlimited, seed=EVAL_SEED, policy=scripted)


def _rollout_for(config: Config, policy: str, model: str | None) -> AbstractContextManager[Rollout]:
    if policy != "model":
        return _scripted_rollout(config, policy)
    if model is None:
        raise UserError("give a MODEL or RUN to evaluate, or --policy random|expert.")
    return _model_rollout(config, model)


def settle(config: Config, policy: str) -> Config:
    """The config with what nobody has set taken from the environment's conventions: its split, its samples per task."""
    config, samples = with_conventions(config), config.eval.samples
    if samples is None:
        is_random = policy == "model" and config.eval.temperature > 0
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
        log_level=options.log_level,
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
    log_level: LogLevel = "normal",
) -> Evaluation:
    """Play the held-out tasks and print what came of it. In scripts: `agentrl.evaluate("runs/...")`.

    Args:
        target: run folder, model folder or hub name; None with a scripted policy.
        overrides: dotted keys and values, `{"env.eval_split": "valid_seen", "eval.tasks": 50}`.
        policy: `model`, `expert` or `random`.
        config: settings instead of those of the run folder.
        out: folder for samples.jsonl and result.json, which `agentrl report` opens; None: runs/eval-MODEL-TIME.
        json_file: where the result goes too.
        log_level: how much is said: `quiet`, `normal`, `debug`.

    Returns:
        The evaluation; `total.value` is its success, `trajectories` what was played.

    Raises:
        UserError: something that can be mended beforehand.
        RunError: nothing could be played.
    """
    set_log_level(log_level)
    target = os.path.expanduser(target) if target is not None else None
    if config is not None:
        settled, model = load_config(config, overrides), target
    else:
        settled, model = _resolve(target, overrides)
    settled = settle(settled, policy)
    claimed = claim_folder(f"eval-{Path(model or policy).name}") if out is None else None
    folder = claimed or user_path(str(out))
    with given_back_if_empty(claimed), output_file(json_file, "--json") as write:
        result = play_held_out(settled, policy, model, folder)
        record = describe_result(settled, policy, result)
        write(json.dumps(record, indent=1))
    show_result(settled, policy, result, record)
    about = {"model": model, **describe_software(), "config": settled.model_dump()}
    write_json(folder / "result.json", {**record, "about": about})
    say(f"samples and result in {folder}; {program('report')} {folder} shows them")
    return result


def play_held_out(config: Config, policy: str, model: str | None, folder: Path) -> Evaluation:
    """Every held-out task as often as `eval.samples` says; episodes are stored in a folder as they come."""
    with SampleFile.into(folder) as file, _rollout_for(config, policy, model) as rollout:
        tasks: list[Task] = []
        for name, member in config.environments().items():
            num_tasks = rollout.environments[name].pool.capabilities().num_tasks
            found = held_out_tasks(member, num_tasks=num_tasks, num_eval_tasks=num_tasks)
            tasks += renumbered(found, name, start=len(tasks))
        file.keep_tokenizer(rollout.chat.tokenizer)
        splits = ", ".join(dict.fromkeys(env.eval_split for env in config.mixture or [config.env]))
        return _play(rollout, tasks, config.eval.samples or 1, file, f"{policy} on {splits}")


def describe_result(config: Config, policy: str, result: Evaluation) -> Metrics:
    """The result as a record."""
    scorers = [conventions(env.id).get("scorer") for env in config.mixture or [config.env]]
    scorer = next(filter(None, scorers), None)
    sampling = describe_sampling(config, result.trajectories, samples=result.samples, scorer=scorer)
    record = {**result.metrics(), "split": result.split, "policy": policy, "sampling": sampling}
    if result.samples > 1:
        record["accuracy"] = accuracy_record(result.accuracy)
    return record


def show_result(config: Config, policy: str, result: Evaluation, record: Metrics) -> None:
    """The result as a table."""
    title = config.played
    if result.samples > 1:
        console.print(accuracy_view(result.accuracy, samples=result.samples, title=title))
    else:
        name = policy if policy != "model" else f"T = {config.eval.temperature:g}"
        console.print(success_table({name: result.rates}, title=title, rewards=[record["eval/reward"]]))
    say(sampling_line(record["sampling"]))


def _long_form(word: str) -> str:
    """`--env.split` names the split to evaluate, as one would expect here; `--env.data` is an option of the env."""
    name, equals, value = word.partition("=")
    key = name.removeprefix("--env.")
    if key == name or "." in key or (key in EnvConfig.model_fields and key != "split"):
        return word
    return f"{'--env.eval_split' if key == 'split' else f'--env.options.{key}'}{equals}{value}"


def _play(rollout: Rollout, tasks: list[Task], samples: int, file: SampleFile, title: str) -> Evaluation:
    """`evaluate` with a progress bar, each sample stored as it comes."""
    with Display() as display, display.bar(title, total=len(tasks) * samples) as bar:

        def take(trajectory: Trajectory) -> None:
            bar.advance()
            file.write(trajectory)

        return evaluate(rollout, tasks, samples=samples, on_episode=take)


make_callable(__name__, run)

if __name__ == "__main__":
    sys.exit(main_guard(main, outlives_readers=True))
