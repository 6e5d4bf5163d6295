"""`accelerate launch`: several processes train one policy, a dead one stops the run, any number goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from agentrl import train
from agentrl.command.guard import main_guard
from agentrl.runs.checkpoint import newest_checkpoint
from agentrl.runs.folder import read_metrics
from tests.agentrl.test_train import ROOT

pytestmark = pytest.mark.slow

SMALL = ["--eval.tasks", "8", "--model.dtype", "float64"]


def launch(
    count: int, *words: str | Path, program: tuple[str, ...] = ("-m", "agentrl.train"), compiler: str = "no"
) -> subprocess.Popen[str]:
    """`accelerate launch`; its --multi_gpu starts processes, which find that there is no GPU and use the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", compiler]
    command += ["--main_process_port", "0"]
    command += [*program, *(str(word) for word in words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[str], *, patience_s: int = 170) -> str:
    out, _ = process.communicate(timeout=patience_s)
    assert process.returncode == 0, out
    return out


def steps(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(folder) if record["kind"] == "train"]


def assert_same_run(folder: Path, expected: Path) -> None:
    for ours, theirs in zip(steps(folder), steps(expected), strict=True):
        for key in ("rollout/success", "cost/episodes", "cost/generated_tokens", "learner/steps", "batch/mixed_groups"):
            assert ours[key] == theirs[key], key
        for key in ("head_energy", "grad_norm", "entropy"):  # absent where no group was mixed
            if f"learner/{key}" in theirs:
                assert ours[f"learner/{key}"] == pytest.approx(theirs[f"learner/{key}"], rel=1e-5), key
    assert steps(expected)[-1]["cost/optimizer_steps"] > 4
    ours, theirs = (AutoModelForCausalLM.from_pretrained(newest_checkpoint(f)).state_dict() for f in (folder, expected))
    for name, weight in theirs.items():
        assert float((ours[name] - weight).norm()) <= 1e-6 * float(weight.norm()), name
    for path in sorted((expected / "trajectories").glob("step-*")):
        episodes, others = (
            [json.loads(line) for line in file.read_text().splitlines()]
            for file in (path, folder / "trajectories" / path.name)
        )
        keys = [(e["task"]["position"], e["member"], [row["ids"] for row in e["rows"]]) for e in episodes]
        assert keys == [(e["task"]["position"], e["member"], [row["ids"] for row in e["rows"]]) for e in others]


@pytest.mark.parametrize("further", [[], ["--learner.shard", "true"], ["--model.lora_rank", "4"]], ids=str)
def test_2_launched_processes_train_what_one_does_and_any_number_goes_on(
    launched_config: Path, tmp_path: Path, further: list[str]
) -> None:
    if "--model.lora_rank" in further:
        pytest.importorskip("peft", reason="the extra lora is not installed")
    words = [str(launched_config), *SMALL, *further]
    assert main_guard(lambda: train.main([*words, "--run-dir", str(tmp_path / "one")])) == 0
    out = finish(launch(2, *words, "--run-dir", tmp_path / "two", "--train.steps", "2"))
    assert out.count("run folder") == 1, "only the first process speaks"
    assert main_guard(lambda: train.main(["--resume", str(tmp_path / "two"), "--train.steps", "3"])) == 0
    finish(launch(3, "--resume", tmp_path / "two", "--train.steps", "4"))
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_a_callback_is_asked_once_a_batch_and_ends_the_run_of_all_processes(
    launched_config: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, agentrl\n"
        "def on_batch(record, groups):\n"
        "    print('batch', record['step'], 'groups', len(groups), flush=True)\n"
        "    return record['step'] < 2\n"
        "run = agentrl.train(sys.argv[1], {'eval.tasks': 8}, run_dir=sys.argv[2], on_batch=on_batch)\n"
    )
    out = finish(launch(2, launched_config, tmp_path / "run", program=(str(script),)))
    groups = json.loads((tmp_path / "run" / "config.json").read_text())["train"]["groups_per_step"]
    assert [line for line in out.splitlines() if " groups " in line] == [f"batch {n} groups {groups}" for n in (1, 2)]
    assert [record["step"] for record in steps(tmp_path / "run")] == [1, 2]


def test_a_process_that_dies_stops_the_run_within_a_minute_and_the_run_can_be_resumed(
    launched_config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = [str(launched_config), *SMALL]
    process = launch(2, *words, "--run-dir", folder, "--train.steps", "500")
    while not (folder / "checkpoints" / "step-000002").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {rank_of(int(child)): int(child) for child in children}
    os.kill(ranks["1"], signal.SIGKILL)
    killed = time.monotonic()
    out, _ = process.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert "SIGKILL" in out or "lost contact with another process" in out
    done = len(steps(folder))
    assert main_guard(lambda: train.main(["--resume", str(folder), "--train.steps", str(done + 1)])) == 0
    assert len(steps(folder)) == done + 1


def rank_of(pid: int) -> str:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((entry.decode().removeprefix("RANK=") for entry in entries if entry.startswith(b"RANK=")), "")


def test_more_processes_than_tasks_is_one_clear_line(launched_config: Path, tmp_path: Path) -> None:
    process = launch(2, launched_config, *SMALL, "--run-dir", tmp_path / "run", "--train.groups_per_step", "1")
    out, _ = process.communicate(timeout=170)
    assert process.returncode != 0
    assert "2 processes need at least as many tasks each time" in out
    assert not (tmp_path / "run").exists()


def test_a_slurm_job_of_2_tasks_trains_what_one_process_does_and_a_job_of_one_goes_on(
    launched_config: Path, tmp_path: Path
) -> None:
    if shutil.which("sbatch") is None or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("no Slurm here (Debian: slurm-wlm)")
    words = [str(launched_config), *SMALL]
    assert main_guard(lambda: train.main([*words, "--run-dir", str(tmp_path / "one")])) == 0

    def submit(tasks: int, *words: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        log = tmp_path / f"{tasks}.log"
        command = ["sbatch", "--wait", "--output", str(log), "--gpus-per-node", "0", "--cpus-per-task", "1"]
        command += ["--ntasks-per-node", str(tasks), "docs/slurm.sh", *words]
        env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        assert subprocess.run(command, cwd=ROOT, env=env, check=False).returncode == 0, log.read_text()

    folder = tmp_path / "two"
    submit(2, *words, "--run-dir", str(folder), "--train.steps", "2")
    submit(1, "--resume", str(folder), "--train.steps", str(len(steps(tmp_path / "one"))))
    assert_same_run(folder, tmp_path / "one")
