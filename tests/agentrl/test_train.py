"""The main job on a toy environment: a whole run, its folder, its resumption, and what bad input does to it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentrl import evaluate, train, warmstart
from agentrl.analysis.curves import sparkline
from agentrl.command.guard import main_guard
from agentrl.errors import CheckpointError
from agentrl.runs.checkpoint import find_damage, newest_checkpoint
from agentrl.runs.folder import read_metrics
from tests.toy import IMITATION, SMALL_CONFIG, TRAINING

ROOT = Path(__file__).resolve().parents[2]
CONFIG = f"""{SMALL_CONFIG}{IMITATION}{TRAINING}steps = 4
[eval]
tasks = 16
[checkpoint]
every = 1
[tracking]
divergence_every = 2
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warmstart")


@pytest.fixture
def config(tmp_path: Path, cache: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(CONFIG.replace("[warmstart]", f'[warmstart]\ncache_dir = "{cache}"'))
    return path


def run(*words: str | Path) -> int:
    return main_guard(lambda: train.main([str(word) for word in words]))


def comparable(run_folder: Path) -> list[dict[str, Any]]:
    """Records without times."""
    return [{k: v for k, v in record.items() if not k.startswith("time/")} for record in read_metrics(run_folder)]


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(newest_checkpoint(run_folder)).state_dict()


def test_a_run_leaves_everything_in_its_folder_readable_without_our_code(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(config, "--run-dir", folder) == 0
    assert json.loads((folder / "config.json").read_text())["train"]["steps"] == 4
    versions = json.loads((folder / "versions.json").read_text())
    assert {"python", "torch", "transformers", "git_commit", "seed", "command"} <= versions.keys()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in records] == [
        ("eval", 0), ("train", 1), ("train", 2), ("train", 3), ("train", 4), ("eval", 4),
    ]  # fmt: skip
    assert records[0]["eval/tasks"] == 16
    assert records[4]["cost/episodes"] == 4 * 16
    assert records[2].keys() >= {"weight_change/lm_head", "learner/head_energy", "learner/entropy", "time/rollout_s"}
    episode = json.loads((folder / "trajectories" / "step-000001.jsonl").read_text().splitlines()[0])
    row = episode["rows"][0]
    assert len(row["ids"]) == len(row["trained"]) == len(row["logprobs"])
    checkpoint = newest_checkpoint(folder)
    module = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "You see red."}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert module.generate(**prompt, max_new_tokens=2, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
    assert tokenizer.decode(row["ids"]) == row["text"]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("rollout/success")) == 4


@pytest.mark.slow
def test_a_run_repeated_with_its_seed_is_bit_identical_and_another_seed_is_not(config: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(config, "--run-dir", tmp_path / name, "--train.seed", str(seed)) == 0
    assert comparable(tmp_path / "a") == comparable(tmp_path / "b") != comparable(tmp_path / "c")
    for key, value in weights(tmp_path / "a").items():
        assert torch.equal(value, weights(tmp_path / "b")[key])


@pytest.mark.parametrize(
    "stop_after", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_run_resumed_from_any_checkpoint_ends_bit_identical(config: Path, tmp_path: Path, stop_after: int) -> None:
    assert run(config, "--run-dir", tmp_path / "whole") == 0
    assert run(config, "--run-dir", tmp_path / "cut", "--train.steps", str(stop_after)) == 0
    assert run("--resume", tmp_path / "cut", "--train.steps", "4") == 0
    assert comparable(tmp_path / "cut") == comparable(tmp_path / "whole")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(value, cut[key]) for key, value in whole.items())


@pytest.mark.slow
def test_a_run_killed_at_many_moments_resumes_to_the_same_end(config: Path, tmp_path: Path) -> None:
    kill_and_resume(config, tmp_path, kills=int(os.environ.get("AGENTRL_KILLS", "6")), seed=1)


def kill_and_resume(config: Path, tmp_path: Path, *, kills: int, seed: int) -> None:
    """kill -9 at moments spread over a run's whole life, saving and evaluation included."""
    import random

    assert run(config, "--run-dir", tmp_path / "whole") == 0
    moments = random.Random(seed)
    for number in range(kills):
        folder = tmp_path / f"killed-{number}"
        command = [sys.executable, "-m", "agentrl.train", str(config), "--run-dir", str(folder)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (folder / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not list((folder / "checkpoints").glob("step-*")) or newest_checkpoint(folder)
        try:
            newest_checkpoint(folder)
        except CheckpointError:
            continue  # killed before the first checkpoint was whole: said so, nothing to resume
        assert run("--resume", folder) == 0
        assert comparable(folder) == comparable(tmp_path / "whole")
        assert not list(folder.rglob("*.writing"))


def test_resume_when_the_newest_checkpoint_is_damaged_uses_the_one_before(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(config, "--run-dir", folder) == 0
    before = comparable(folder)
    broken = newest_checkpoint(folder) / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-7])
    assert (
        find_damage(broken.parent)
        == f"model.safetensors has {broken.stat().st_size} bytes, {broken.stat().st_size + 7} were written"
    )
    with pytest.warns(UserWarning, match="is damaged"):
        assert run("--resume", folder) == 0
    assert comparable(folder) == before
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        (checkpoint / "trainer" / "state.json").write_text("{}")
    with (
        pytest.warns(UserWarning, match="has changed|bytes"),
        pytest.raises(CheckpointError, match="all of them are damaged"),
    ):
        train.main(["--resume", str(folder)])


def test_resume_with_an_edited_config_names_the_difference(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(config, "--run-dir", folder, "--train.steps", "2") == 0
    tree = json.loads((folder / "config.json").read_text())
    tree["learner"]["lr"] = 5e-4
    (folder / "config.json").write_text(json.dumps(tree))
    assert run("--resume", folder, "--train.steps", "3") == 0
    assert "config changed since the checkpoint: learner.lr: 0.001 -> 0.0005" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.stepss", "3"], "unknown key train.stepss (command line). Did you mean train.steps?"),
        (["--train.steps", "many"], "train.steps must be a valid integer"),
        (["--rollout.max_turns", "0"], "rollout.max_turns must be >= 1, got 0"),
        (["--env.id", "agentrl/ALFWorld-v1"], "Did you mean agentrl/ALFWorld-v0?"),
        (["--env.id", "tests.toy:ColorEnv"], "tests.toy has no 'ColorEnv'. Did you mean ColourEnv?"),
        (
            ["--env.options.folts", "1"],
            "env.options.folts is not an option of tests.toy:ColourEnv. Did you mean faults?",
        ),
        (["--model.path", "/no/such/model", "--warmstart.episodes", "0"], "no folder at /no/such/model"),
        (["--env.id", "agentrl/ALFWorld-v0", "--env.options.data", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_bad_input_gives_one_clear_line_and_exit_code_2_and_leaves_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    folder = tmp_path / "run"
    assert run(config, "--run-dir", folder, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert not folder.exists()


def test_a_second_run_into_the_same_folder_is_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    assert run(config, "--run-dir", tmp_path / "run") == 2
    assert "is not empty" in capsys.readouterr().err
    assert run("--resume", tmp_path / "nowhere") == 2
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_gives_one_clear_line_and_keeps_the_last_checkpoint(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    real = os.fsync
    calls = iter(range(10_000))

    def full(handle: int) -> None:
        if next(calls) > 30:  # in the middle of the second checkpoint
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert run(config, "--run-dir", folder) == 2
    assert "the disk is full" in capsys.readouterr().err
    monkeypatch.undo()
    assert newest_checkpoint(folder)
    assert not list((folder / "checkpoints").glob(".*"))
    assert run("--resume", folder) == 0


def test_dry_run_prints_the_schedule_and_touches_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, "--run-dir", tmp_path / "run", "--dry-run", "--train.steps", "100") == 0
    out = capsys.readouterr().out
    for fact in ("groups per batch", "rows per batch", "longest context", "1 .. 4", "memory in all", "1,600"):
        assert fact in out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_warm_start_is_made_once_and_found_again(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(config), "--warmstart.cache_dir", str(tmp_path / "cache"), "--warmstart.episodes", "20"]

    def made(*more: str) -> tuple[str, Path]:
        assert main_guard(lambda: warmstart.main([*words, *more])) == 0
        out = capsys.readouterr().out
        return out, Path(out.splitlines()[-1])

    out, first = made()
    assert "(cached)" not in out
    out, second = made()
    assert "(cached)" in out
    assert second == first
    assert made("--warmstart.noise", "0.3")[1] != first


@pytest.mark.parametrize(("level", "batches"), [("quiet", 0), ("normal", 0), ("debug", 3)])
def test_the_log_level_says_whether_every_batch_is_told(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], level: str, batches: int
) -> None:
    words = ["--warmstart.episodes", "0", "--train.steps", "3", "--log-level", level]
    assert run(config, "--run-dir", tmp_path / "run", *words) == 0
    out = capsys.readouterr().out
    assert sum(line.startswith("batch ") for line in out.splitlines()) == batches
    assert (out == "") == (level == "quiet")


def test_without_an_expert_the_warm_start_is_skipped_with_a_notice(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--env.id", "tests.toy:NoExpertEnv", "--train.steps", "1"]
    assert run(config, "--run-dir", tmp_path / "run", *words) == 0
    assert "warm start skipped" in capsys.readouterr().out


@pytest.mark.parametrize(("policy", "rate"), [("expert", 1.0), ("random", None)])
def test_evaluate_scripted_policies_bracket_every_number(
    config: Path, tmp_path: Path, policy: str, rate: float | None
) -> None:
    result = tmp_path / "result.json"
    words = ["--policy", policy, "--env", "tests.toy:ColourEnv", "--env.split", "test", "--json", str(result)]
    assert main_guard(lambda: evaluate.main([*words, "--rollout.env_workers", "0"])) == 0
    metrics = json.loads(result.read_text())
    assert metrics["eval/tasks"] == 64
    assert metrics["eval/success"] == rate if rate is not None else metrics["eval/success"] < 0.5


@pytest.mark.parametrize("env", ["ALFWorld-v0", "WebShop-v0", "SearchQA-v0", "Math-v0", "ReasoningGym-v0"])
def test_every_shipped_environment_has_a_chance_level_and_an_expert_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str
) -> None:
    if env == "ReasoningGym-v0":
        pytest.importorskip("reasoning_gym")
    monkeypatch.chdir(tmp_path)
    rates = []
    for policy in ("random", "expert"):
        settings = {"env.id": f"agentrl/{env}", "eval.tasks": 24, "rollout.env_workers": 0}
        settings |= {"env.options.data": "generated"} if env == "ALFWorld-v0" else {}
        rates.append(evaluate.run(None, settings, policy=policy).total.value)
    assert rates[0] < 0.3
    assert rates[1] > rates[0] + 0.3


def test_evaluate_of_a_run_and_of_its_model_folder_agree(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(config, "--run-dir", folder) == 0
    assert main_guard(lambda: evaluate.main([str(folder), "--json", str(tmp_path / "a.json")])) == 0
    model = str(newest_checkpoint(folder))
    words = [model, "--config", str(config), "--json", str(tmp_path / "b.json")]
    assert main_guard(lambda: evaluate.main(words)) == 0
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert a == b
    last = read_metrics(folder)[-1]
    assert a["eval/success"] == last["eval/success"]
    assert a["eval/counts"] == last["eval/counts"]


def test_sparkline_of_a_rising_curve_rises() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█ 0% -> 100%"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_lifts_the_toy_agent_from_chance_to_nine_in_ten(config: Path, tmp_path: Path, seed: int) -> None:
    words = [
        "--train.seed",
        str(seed),
        "--train.steps",
        "40",
        "--train.groups_per_step",
        "8",
        "--train.group_size",
        "8",
    ]
    words += ["--learner.lr", "2e-3", "--gate.window", "20", "--checkpoint.every", "0", "--eval.temperature", "1.0"]
    assert run(config, "--run-dir", tmp_path / "run", *words, "--eval.tasks", "64") == 0
    evals = [record["eval/success"] for record in read_metrics(tmp_path / "run") if record["kind"] == "eval"]
    assert evals[0] < 0.4
    assert evals[-1] >= 0.9
