"""Commands: exit codes, one line for what a user can mend, and the smaller parts around a run."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl import evaluate, train, warmstart
from agentrl.analysis.curves import sparkline
from agentrl.build import restore
from agentrl.command.guard import main_guard
from agentrl.common.extras import MissingExtraError
from agentrl.common.installation import install_hint
from agentrl.common.intervals import wilson_interval
from agentrl.config.read import build_config
from agentrl.config.schema import TinyModelConfig
from agentrl.console import Display
from agentrl.dry_run.schedule import format_bytes, schedule_table
from agentrl.environment.calls import serve
from agentrl.environment.spec import EnvironmentSpec
from agentrl.envs.env_errors import DataError
from agentrl.errors import CheckpointError, RunError, UserError
from agentrl.model.load import recompute_activations
from agentrl.model.tiny import build_tiny_model, build_tokenizer
from agentrl.rollout.ahead import BatchStream
from agentrl.rollout.chat import Chat
from agentrl.rollout.scripted import expert_policy, random_policy
from agentrl.rollout.tasks import TaskSampler
from agentrl.runs.checkpoint import TrainerState, save_checkpoint
from agentrl.runs.folder import read_metrics, read_run_config
from agentrl.runs.interruption import Interrupted, Interruption
from agentrl.runs.outputs import claim_folder
from agentrl.types import Task
from tests.agentrl.helpers import tiny_policy, toy_config, toy_rollout
from tests.agentrl.test_learner import make_learner
from tests.toy import ColourEnv

TOY = "tests.toy:ColourEnv"


def raising(error: BaseException) -> int:
    def main() -> int:
        raise error

    return main_guard(main)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("no such key"), 2, "error: no such key\n"),
        (UserError("one\ntwo"), 2, "error: one\nerror: two\n"),
        (DataError("no such file"), 2, "error: no such file\n"),
        (MissingExtraError("vllm", "vllm", "The engine"), 2, f"Install it with: {install_hint('vllm')}"),
        (OSError(28, "No space left on device"), 2, "the disk is full"),
        (OSError(122, "Disk quota exceeded"), 2, "the disk is full"),
        (FileExistsError(17, "File exists", "figures"), 2, "a file stands where a folder should"),
        (NotADirectoryError(20, "Not a directory", "a.txt/b"), 2, "a file stands where a folder should"),
        (IsADirectoryError(21, "Is a directory", "runs"), 2, "a folder where a file should"),
        (PermissionError(13, "Permission denied", "/data/x"), 2, "no permission"),
        (RunError("the engine died"), 3, "error: the engine died\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted(signal.SIGTERM), 143, "interrupted"),
    ],
)
def test_main_guard_turns_what_users_can_mend_into_a_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    assert raising(error) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("a bug"), ImportError("a bug"), OSError(5, "I/O error"), KeyError("bug")])
def test_main_guard_lets_bugs_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        raising(error)


def test_a_reader_that_stops_reading_ends_a_command_quietly() -> None:
    script = "import sys; from agentrl.command.guard import main_guard\ndef main():\n  while True: print('x' * 1000)\n"
    with subprocess.Popen(
        [sys.executable, "-c", script + "sys.exit(main_guard(main))"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "3"], "Did you mean --warmstart.lr or --learner.lr?"),
        (["--nonsense"], "python -m agentrl.train --help lists what it takes"),
        (["a.toml", "--resume", "b"], "--resume RUN brings its own config and folder"),
    ],
)
def test_train_with_words_it_does_not_know_says_which_it_may_mean(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main_guard(lambda: train.main(words)) == 2
    assert message in capsys.readouterr().err


def test_train_help_config_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_guard(lambda: train.main(["--help-config"])) == 0
    out = capsys.readouterr().out
    assert "learner.max_reuse" in out
    assert "gate.tau" in out


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (evaluate.main, [], "give a MODEL or RUN to evaluate"),
        (evaluate.main, ["tests"], "is neither a run folder"),
        (evaluate.main, ["--policy", "random", "--env", f"{__name__}:SilentEnv"], "offers neither info"),
        (warmstart.main, ["configs/quickstart.toml", "--warmstart.episodes", "0"], "nothing to imitate"),
        (warmstart.main, ["configs/quickstart.toml", "--env.id", "tests.toy:NoExpertEnv"], "offers no expert"),
    ],
)
def test_commands_without_something_to_work_on_say_what_they_need(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, main: Any, words: list[str], message: str
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main_guard(lambda: main([*words, "--rollout.env_workers", "0"])) == 2
    assert message in capsys.readouterr().err


class SilentEnv(ColourEnv):
    """Offers nothing in `info`."""

    def _info(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("policy", [random_policy, expert_policy])
def test_scripted_policies_name_what_info_lacks(policy: Any) -> None:
    with pytest.raises(UserError, match="info"):
        policy({}, None)


def test_read_run_config_of_a_damaged_folder_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_run_config(tmp_path)
    (tmp_path / "config.json").write_text('{"learner": {"lrr": 1}}')
    with pytest.raises(CheckpointError, match=r"Did you mean learner\.lr"):
        read_run_config(tmp_path)


def test_read_metrics_leaves_out_a_last_line_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_a_checkpoint_of_another_model_is_refused_by_the_name_of_a_parameter(tmp_path: Path) -> None:
    module, tokenizer = tiny_policy()
    learner, config = make_learner(toy_config()), toy_config()
    sampler = TaskSampler(TOY, "train", indices=None, seed=0)
    batches = BatchStream(toy_rollout(module, tokenizer, config.rollout), sampler, config.train)
    state = TrainerState(1, learner.state_dict(), sampler.state_dict(), config.model_dump())
    state.learner["optimizer"] = {"model.other.weight": {"exp_avg": torch.ones(2)}}
    folder = save_checkpoint(tmp_path, state, shape=module, tokenizer=tokenizer, keep=1)
    with pytest.raises(CheckpointError, match=r"step-000001: .*'model.other.weight', which this model does not train"):
        restore(folder, config, learner=learner, batches=batches)


def test_schedule_counts_single_use_and_a_pretrained_shape(tmp_path: Path) -> None:
    def cells(config: Any) -> str:
        return " ".join(str(cell) for column in schedule_table(config).columns for cell in column.cells)

    assert "1 .. 1" in cells(build_config({"gate": {"kind": "fixed", "k": 1}}))
    math = {"id": "agentrl/Math-v0"}
    assert "env.eval_split" in cells(build_config({"env": math}))
    assert "env.eval_split" not in cells(build_config({"env": math | {"eval_split": "train"}}))
    build_tiny_model(TinyModelConfig(hidden_size=16), build_tokenizer(())).config.save_pretrained(tmp_path)
    assert " x 4" in cells(build_config({"model": {"path": str(tmp_path)}}))
    with pytest.raises(UserError, match=r"model\.path: no folder at"):
        schedule_table(build_config({"model": {"path": str(tmp_path / "nothing" / "here")}}))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5,120.0 GiB")],
)
def test_format_bytes_takes_the_largest_unit_below(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_curves_of_nothing_say_nothing() -> None:
    assert sparkline([]) == "-"
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_gradient_checkpointing_is_switched_on() -> None:
    module = build_tiny_model(TinyModelConfig(hidden_size=16), build_tokenizer(()))
    recompute_activations(module)
    assert any(getattr(part, "gradient_checkpointing", False) for part in module.modules())


def test_chat_without_a_fast_tokenizer_gives_the_same_ids() -> None:
    chat = Chat(build_tokenizer(["red green"] * 3), stop_ids=[1])
    with_backend = chat.open("red"), chat.decode_answer([*chat.open("red green"), 1])
    chat._backend = None
    assert (chat.open("red"), chat.decode_answer([*chat.open("red green"), 1])) == with_backend


def test_claimed_folders_of_one_second_are_all_different_and_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "now")
    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(lambda _: claim_folder("x"), range(24)))
    assert len(set(claimed)) == 24
    assert all(folder.is_dir() for folder in claimed)
    assert {str(folder) for folder in claimed} >= {"runs/x-now", "runs/x-now-2", "runs/x-now-24"}


def test_a_display_without_a_terminal_prints_now_and_then_and_when_told(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(every_s=1000.0)
    display.line("first", force=True)
    display.line("too soon")
    display.line("told", force=True)
    assert capsys.readouterr().out.split() == ["first", "told"]


def test_a_worker_answers_with_results_and_with_what_went_wrong(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    spec = EnvironmentSpec(TOY, "train", {"faults": {"step": "raise"}, "flag": str(tmp_path / "failed")})
    thread = threading.Thread(target=serve, args=(spec, theirs, list(sys.path)))
    thread.start()
    assert ours.recv() == "ready"

    def call(*message: Any) -> Any:
        ours.send(message)
        return ours.recv()

    kind, (observation, info) = call(1, "reset", Task(TOY, "train", 0, 5))
    assert (kind, observation, info["task"]) == ("ok", "You see blue.", "train/5")
    kind, text = call(1, "step", "green")
    assert kind == "error"
    assert text.startswith("ZeroDivisionError: the oven is on fire (toy.py:")
    assert call(1, "reset", Task(TOY, "train", 0, 5))[0] == "ok"  # made anew
    assert call(1, "step", "green")[0] == "ok"
    ours.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_processes_stop_at_the_same_check_when_one_of_them_was_asked() -> None:
    asked: list[bool] = []
    others = iter([False, True])
    interruption = Interruption(agree=lambda mine: asked.append(mine) or next(others))
    with interruption, interruption.patiently():
        with interruption.at_once():
            pass
        interruption.check()
        with pytest.raises(Interrupted) as caught:
            interruption.check()
    assert asked == [False, False]
    assert caught.value.exit_code == 143


def test_a_second_ctrl_c_ends_on_the_spot_and_is_no_end_that_saves() -> None:
    interruption = Interruption()
    with interruption, interruption.patiently():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert not isinstance(
        caught.value, Interrupted
    )  # weights may be half updated: `saving_at_the_end` takes only these


def test_evaluate_with_no_samples_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_guard(lambda: evaluate.main(["--policy", "expert", "--env", TOY, "-k", "0"])) == 2
    assert "eval.samples must be >= 1, got 0" in capsys.readouterr().err


def test_evaluate_writes_the_rates_as_json(tmp_path: Path) -> None:
    words = [
        "--policy",
        "expert",
        "--env",
        TOY,
        "--env.split",
        "test",
        "--eval.tasks",
        "4",
        "--rollout.env_workers",
        "0",
    ]
    assert main_guard(lambda: evaluate.main([*words, "--json", str(tmp_path / "x.json")])) == 0
    assert json.loads((tmp_path / "x.json").read_text())["eval/success"] == 1.0
