"""Batches played one step ahead, in a process of their own: same tokens, fixed lag, and what happens when it fails."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl import train
from agentrl.build import refuse_ahead
from agentrl.command.guard import main_guard
from agentrl.config.schema import RolloutConfig
from agentrl.environment.probe import resident_bytes
from agentrl.errors import CheckpointError, RunError, Unplayable, UserError
from agentrl.learner.learner import TorchLearner
from agentrl.learner.monitors import RatioStatistics
from agentrl.model.processes import Processes
from agentrl.rollout.ahead import BatchStream
from agentrl.rollout.chat import chat_for
from agentrl.rollout.process import DistantRollout, RolloutProcess
from agentrl.rollout.process_body import RolloutPlan, share_memory
from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.rollout.tasks import TaskSampler
from agentrl.runs.checkpoint import newest_checkpoint
from agentrl.runs.folder import read_metrics
from agentrl.runs.ready_batch import read_batch, write_batch
from agentrl.types import Trajectory
from tests.agentrl.helpers import TOY, tiny_policy, toy_config, toy_rollout
from tests.agentrl.test_faults import run as run_small
from tests.toy import IMITATION, SMALL_CONFIG, TRAINING

ROOT = Path(__file__).resolve().parents[2]
CONFIG = f"""{SMALL_CONFIG}ahead = 1
{IMITATION}{TRAINING}steps = 4
[eval]
tasks = 8
every = 2
[checkpoint]
every = 1
keep = 9
[tracking]
trackers = []
"""
SETTINGS = toy_config()
FAULTY = toy_config(env={"options": {"faults": {"step": "raise"}}})
PLAN = RolloutPlan(SETTINGS, "train", SETTINGS.rollout, 0)
BROKEN = RolloutPlan(FAULTY, "train", SETTINGS.rollout, 0)


def sampler() -> TaskSampler:
    return TaskSampler(TOY, "train", indices=list(range(64)), seed=0)


def comparable(batch: RolloutBatch) -> Any:
    """A batch without its seconds and counts, arrays as lists of Python's numbers."""
    trajectories = [asdict(t) for group in batch.groups for t in group.trajectories]
    return [{**t, "rows": [[array.tolist() for array in row.values()] for row in t["rows"]]} for t in trajectories]


class Distant:
    """A rollout process of the toy environment, and the module that the learner would hold."""

    def __init__(self) -> None:
        self.module, self.tokenizer = tiny_policy()
        copy, _ = tiny_policy()
        self.plans = {"train": PLAN, "broken": BROKEN}
        self.process = RolloutProcess(
            copy, self.tokenizer, self.plans, rank=0, count=1, folder="unused", num_threads=1
        )  # fmt: skip
        chat = chat_for(self.tokenizer, self.module, SETTINGS.rollout)
        self.rollouts = {
            name: DistantRollout(self.process, name, chat, plan.environments(), plan)
            for name, plan in self.plans.items()
        }
        self.process.load_weights(self.module.state_dict().items(), version=3)


@pytest.fixture(scope="module")
def distant() -> Iterator[Distant]:
    made = Distant()
    yield made
    made.process.close()


@pytest.mark.slow
def test_a_distant_rollout_plays_what_a_near_one_plays_bit_for_bit_and_follows_new_weights(distant: Distant) -> None:
    near = toy_rollout(distant.module, distant.tokenizer, SETTINGS.rollout)
    tasks, seen = sampler().take(4), []
    for version in (3, 4):
        near.player.engine.load_weights([], version=version)  # type: ignore[attr-defined]
        distant.process.load_weights(distant.module.state_dict().items(), version=version)
        batch = distant.rollouts["train"].play(tasks, group_size=4, on_episode=seen.append)
        assert comparable(batch) == comparable(near.play(tasks, group_size=4))
        assert batch.version == version
        with torch.no_grad():
            for parameter in distant.module.parameters():
                parameter.mul_(0.9)
    assert len(seen) == 2 * 16
    distant.process.load_weights(distant.module.state_dict().items(), version=5)
    assert comparable(distant.rollouts["train"].play(tasks, group_size=4)) != comparable(batch)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_process_that_is_lost_in_mid_batch_is_started_again_and_plays_the_same_batch(
    distant: Distant, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks, told = sampler().take(4), []
    whole = distant.rollouts["train"].play(tasks, group_size=4)
    monkeypatch.setattr(distant.process, "patience_s", 4.0)
    pid = distant.process._process.pid
    os.kill(pid, signal.SIGSTOP)
    distant.rollouts["train"].begin(tasks, group_size=4, tells=True)
    os.kill(pid, number)
    monkeypatch.setattr(RolloutProcess, "_start", with_patience(600.0))
    again = distant.rollouts["train"].finish(told.append)
    assert comparable(again) == comparable(whole)
    assert again.version == whole.version
    assert sorted((t.task.position, t.member) for t in told) == [(p, m) for p in range(4) for m in range(4)]
    assert not Path(f"/proc/{pid}").exists()
    what = "died (SIGKILL: perhaps out of memory)" if number == signal.SIGKILL else "hangs: nothing moved for 4 s"
    assert what in capsys.readouterr().err


def with_patience(seconds: float) -> Any:
    """`_start` behind which the machine may be as slow as it likes."""
    real = RolloutProcess._start

    def start(self: RolloutProcess) -> None:
        self.patience_s = seconds
        real(self)

    return start


@pytest.mark.slow
def test_what_is_raised_in_the_process_is_raised_here_by_its_kind(distant: Distant) -> None:
    with pytest.raises(Unplayable, match="no group of this batch could be played: "):
        distant.rollouts["broken"].play(sampler().take(1), group_size=2)
    with pytest.raises(RuntimeError, match=r"in the rollout process:\n(.|\n)*has no attribute 'dance'"):
        distant.process.call("dance")
    assert distant.rollouts["train"].play(sampler().take(1), group_size=2).groups


@pytest.mark.slow
def test_a_process_whose_memory_grew_is_replaced_between_batches(
    distant: Distant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = sampler().take(1)
    before = distant.rollouts["train"].play(tasks, group_size=2)
    pid, distant.process._first_bytes = distant.process._process.pid, 4 << 30
    monkeypatch.setattr("agentrl.rollout.process.resident_bytes", lambda _: 9 << 30)
    assert comparable(distant.rollouts["train"].play(tasks, group_size=2)) == comparable(before)
    assert distant.process._process.pid != pid
    assert "the rollout process was replaced: its memory has grown by 5,120 MiB" in capsys.readouterr().err


def played_thrice(kind: str, **options: Any) -> tuple[list[RolloutBatch], list[int]]:
    """The same batch three times, by an engine of one's own, and the process that played each."""
    module, tokenizer = tiny_policy()
    config = toy_config(rollout={"engine": f"tests.agentrl.faulty_engines:{kind}", "engine_options": options})
    plan = RolloutPlan(config, "train", config.rollout, 0)
    process = RolloutProcess(
        module, tokenizer, {"train": plan}, rank=0, count=1, folder="unused", num_threads=1
    )  # fmt: skip
    chat = chat_for(tokenizer, tiny_policy()[0], config.rollout)
    rollout = DistantRollout(process, "train", chat, plan.environments(), plan)
    batches, pids = [], []
    try:
        for _ in range(3):
            batches.append(rollout.play(sampler().take(2), group_size=2))
            pids.append(process._process.pid)
    finally:
        process.close()
    return batches, pids


@pytest.mark.slow
def test_an_engine_that_leaks_is_replaced_and_the_batches_stay_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grown by 1 GiB, which is more than a process with torch has to begin with."""
    monkeypatch.setattr("agentrl.rollout.process._GROWTH_BYTES", 64 << 20)
    batches, pids = played_thrice("Leaking", leak=1 << 30)
    assert comparable(batches[0]) == comparable(batches[1]) == comparable(batches[2])
    assert pids[0] == pids[1] != pids[2]
    assert re.search(r"replaced: its memory has grown by 1,0\d\d MiB", capsys.readouterr().err)


@pytest.mark.slow
def test_a_process_that_is_out_of_memory_is_started_again_and_plays_the_same_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batches, pids = played_thrice("Hungry", flag=str(tmp_path / "refused"))
    assert (tmp_path / "refused").exists()
    assert comparable(batches[0]) == comparable(batches[1]) == comparable(batches[2])
    assert pids[0] == pids[1] == pids[2]
    told = capsys.readouterr().err
    assert "the rollout process is out of memory (" in told
    assert "can't allocate memory" in told
    assert "it is started again and plays the batch once more" in told


@pytest.mark.slow
def test_a_process_that_is_out_of_memory_time_after_time_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrl.rollout.process._MAX_RESTARTS", 1)
    with pytest.raises(RunError, match=r"out of memory \(.*2 times with the same batch. A smaller rollout.max_conc"):
        played_thrice("Hungry")


@pytest.mark.slow
def test_a_process_that_is_lost_time_after_time_ends_the_run(distant: Distant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of those that share the process: it is not started again."""
    real = RolloutProcess._start

    def start_and_kill(self: RolloutProcess) -> None:
        real(self)
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()

    monkeypatch.setattr(RolloutProcess, "_start", start_and_kill)
    monkeypatch.setattr("agentrl.rollout.process._MAX_RESTARTS", 1)
    os.kill(distant.process._process.pid, signal.SIGKILL)
    with pytest.raises(RunError, match=r"the rollout process died \(SIGKILL.*2 times with the same batch"):
        distant.rollouts["train"].play(sampler().take(1), group_size=2)


def test_share_memory_keeps_values_and_ties_and_takes_one_piece() -> None:
    module, _ = tiny_policy(tie=True)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    share_memory(module)
    assert module.lm_head.weight.data_ptr() == module.get_input_embeddings().weight.data_ptr()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert len({tensor.untyped_storage().data_ptr() for tensor in module.parameters()}) == 1
    assert all(tensor.is_shared() and tensor.data_ptr() % 64 == 0 for tensor in module.parameters())


def test_share_memory_where_there_is_too_little_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"rollout.ahead = 1 keeps the weights in shared memory.* has 0 MiB left"):
        share_memory(tiny_policy()[0])


def test_a_batch_comes_back_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    module, tokenizer = tiny_policy()
    batch = toy_rollout(module, tokenizer, SETTINGS.rollout).play(sampler().take(3), group_size=3)
    batch.failures = [
        Trajectory(batch.groups[0].task, 2, [], [], "", batch.groups[0].trajectories[0].status, error="x")
    ]
    write_batch(tmp_path / "ready.json", batch)
    back = read_batch(tmp_path / "ready.json")
    assert comparable(back) == comparable(batch)
    assert (back.failures, back.seconds, back.counts) == (batch.failures, batch.seconds, batch.counts)
    assert [row.ids.dtype for row in back.rows[:1]] == [row.ids.dtype for row in batch.rows[:1]]
    assert back.groups[0].trajectories[0].turns == batch.groups[0].trajectories[0].turns


def test_a_batch_that_is_ready_is_handed_on_by_a_checkpoint_to_any_number_of_processes() -> None:
    module, tokenizer = tiny_policy()
    rollout = toy_rollout(module, tokenizer, SETTINGS.rollout)
    stream = BatchStream(rollout, sampler(), SETTINGS.train)
    stream.play()
    state = stream.state_dict()
    assert state["sampler"] == {"position": 4}
    shares = []
    for rank in range(3):
        other = BatchStream(rollout, sampler(), SETTINGS.train, processes=Processes(rank, 3))
        other.load_state_dict(state)
        assert other.sampler.position == 4
        shares.append([group.task.position for group in other.take(is_last=True).groups])
    assert shares == [[0, 3], [1], [2]]
    assert stream.take(is_last=True).groups == state["ready"].groups
    assert stream.state_dict() == {"sampler": {"position": 4}, "ready": None}


def test_a_batch_that_was_abandoned_gives_its_tasks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    module, tokenizer = tiny_policy()
    rollout = toy_rollout(module, tokenizer, SETTINGS.rollout)
    stream = BatchStream(rollout, sampler(), SETTINGS.train)
    monkeypatch.setattr(rollout.environments[""].pool, "acquire", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stream.play()
    monkeypatch.undo()
    stream.play()
    assert [group.task.position for group in stream.take(is_last=True).groups] == [0, 1, 2, 3]


def test_lag_metrics_of_two_tokens_by_hand() -> None:
    """Ratios learner / played of 2 and 1/2: ESS (2.5)^2 / (2 * 4.25), KL ((2 - 1 - ln 2) + (1/2 - 1 + ln 2)) / 2."""
    learner, played = torch.log(torch.tensor([0.8, 0.2])), torch.log(torch.tensor([0.4, 0.4]))
    statistics = RatioStatistics.of(
        learner, played, torch.ones(2), torch.tensor([0, 0]), clip_range=(0.2, 0.2)
    )  # fmt: skip
    lag = statistics.lag_metrics()
    assert lag["lag_ess"] == pytest.approx(6.25 / 8.5, rel=1e-5)
    assert lag["lag_kl"] == pytest.approx((1 - math.log(2) - 0.5 + math.log(2)) / 2, rel=1e-5)
    assert lag["lag_max_ratio"] == pytest.approx(2, rel=1e-5)


def test_engines_that_share_the_learners_gpu_say_that_they_cannot_run_ahead() -> None:
    on_gpu = torch.device("cuda")
    for engine in ("local", "vllm"):
        with pytest.raises(UserError, match=f'the engine "{engine}" decodes on the GPU that the learner computes on'):
            refuse_ahead(RolloutConfig(engine=engine, ahead=1), on_gpu)
    servers = RolloutConfig(engine="vllm", ahead=1, endpoints=["http://a:1"])
    refuse_ahead(servers, on_gpu)
    refuse_ahead(RolloutConfig(ahead=1), torch.device("cpu"))
    refuse_ahead(RolloutConfig(), on_gpu)
    for sync in ("nccl", "adapter"):
        with pytest.raises(UserError, match=f'weight_sync must be "disk", got "{sync}"'):
            refuse_ahead(servers.model_copy(update={"engine_options": {"weight_sync": sync}}), on_gpu)


def run(*words: str | Path) -> int:
    return main_guard(lambda: train.main([str(word) for word in words]))


def records(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if not k.startswith("time/")} for record in read_metrics(folder)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead")
    path = folder / "ahead.toml"
    path.write_text(CONFIG.replace("[warmstart]", f'[warmstart]\ncache_dir = "{folder}"'))
    return path


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    assert run(config, "--run-dir", config.parent / "whole") == 0
    return config.parent / "whole"


@pytest.mark.slow
def test_every_batch_is_played_with_the_weights_after_the_batch_before_the_last(whole: Path) -> None:
    steps = [record for record in read_metrics(whole) if record["kind"] == "train"]
    updates = [0, *(record["cost/optimizer_steps"] for record in steps)]
    assert updates[1] > 0
    for step in range(1, 5):
        lines = (whole / "trajectories" / f"step-{step:06d}.jsonl").read_text().splitlines()
        assert {json.loads(line)["policy_version"] for line in lines} == {updates[max(0, step - 2)]}
    assert [record["step"] for record in steps if "time/wait_s" in record] == [1, 2, 3, 4]
    assert steps[3]["time/wait_s"] == 0, "nothing comes behind the last batch"
    assert steps[0]["learner/lag_kl"] == pytest.approx(0, abs=1e-9)
    assert steps[1]["learner/lag_kl"] > 0
    assert steps[1]["learner/lag_ess"] < 1 < steps[1]["learner/lag_max_ratio"]
    assert json.loads((whole / "config.json").read_text())["loss"]["tis_cap"] == 2.0


@pytest.mark.slow
def test_a_run_ahead_resumed_from_its_middle_ends_bit_identical(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(whole, folder)
    for step in (3, 4):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:06d}")
    assert (newest_checkpoint(folder) / "trainer" / "ready.json").exists()
    assert run("--resume", folder) == 0
    assert records(folder) == records(whole)


@pytest.mark.slow
def test_a_signal_while_a_batch_is_in_flight_waits_for_it_and_the_run_resumes_to_the_same_end(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = tmp_path / "stopped", TorchLearner.update

    def update(self: TorchLearner, batch: Any) -> Any:
        if self.num_batches == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    monkeypatch.setattr(TorchLearner, "update", update)
    assert run(config, "--run-dir", folder, "--checkpoint.every", "0") == 143
    monkeypatch.undo()
    assert newest_checkpoint(folder).name == "step-000002"
    assert run("--resume", folder, "--checkpoint.every", "0") == 0
    assert records(folder) == records(whole)


@pytest.mark.slow
def test_a_run_that_is_killed_takes_its_rollout_process_along(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "agentrl.train", str(config), "--run-dir", str(folder), "--train.steps", "400"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "checkpoints" / "step-000001").exists():
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < until, "the rollout process outlived its run"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_ahead_killed_at_any_moment_resumes_to_the_same_end(config: Path, whole: Path, tmp_path: Path) -> None:
    moments, kills, resumed = random.Random(1), int(os.environ.get("AGENTRL_KILLS", "4")), 0
    for number in range(kills):
        folder = tmp_path / f"killed-{number}"
        command = [sys.executable, "-m", "agentrl.train", str(config), "--run-dir", str(folder)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list((folder / "checkpoints").glob("step-*")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 2.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        try:
            newest_checkpoint(folder)
        except CheckpointError:
            continue  # killed before the first checkpoint was whole
        assert run("--resume", folder) == 0
        assert records(folder) == records(whole)
        resumed += 1
    assert resumed >= kills // 2


@pytest.mark.slow
def test_memory_of_both_processes_is_flat_over_two_hundred_batches_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []
    real = RolloutProcess.finish

    def finish(self: RolloutProcess, *arguments: Any) -> Any:
        result = real(self, *arguments)
        sizes.append((resident_bytes(), resident_bytes(self._process.pid)))
        return result

    monkeypatch.setattr(RolloutProcess, "finish", finish)
    changes = {"rollout__ahead": 1, "train__group_size": 4, "checkpoint__every": 20, "eval__every": 50}
    assert run_small(tmp_path / "run", train__steps=200, **changes) == 0
    assert len(sizes) >= 200
    for name, before, after in zip(("learner", "rollout process"), sizes[60], sizes[-1], strict=True):
        grown = after - before
        assert grown < 8 << 20, f"{name}: {grown / 2**20:.1f} MiB more after {len(sizes) - 61} further batches"
