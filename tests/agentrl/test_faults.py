"""Faults, each injected on the real path of a run: what the run does, what it leaves, how it goes on."""

import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agentrl import train
from agentrl.command.guard import main_guard
from agentrl.config.read import load_config
from agentrl.environment.pool import EnvPool, _Worker
from agentrl.environment.probe import resident_bytes
from agentrl.environment.spec import EnvironmentSpec
from agentrl.errors import RunError
from agentrl.learner.learner import TorchLearner
from agentrl.model.tiny import build_tokenizer
from agentrl.rollout.chat import Chat
from agentrl.rollout.failures import FailureLimit
from agentrl.rollout.rollout import Rollout
from agentrl.runs.checkpoint import newest_checkpoint
from agentrl.runs.folder import read_metrics
from agentrl.types import Status, Task, Trajectory
from tests.toy import ColourEnv

TOY = "tests.toy:ColourEnv"
SMALL = {
    "env.eval_split": "test", "model.tiny.hidden_size": 16, "model.tiny.num_heads": 2, "model.tiny.num_kv_heads": 1,
    "model.tiny.intermediate_size": 32, "model.tiny.num_layers": 1, "rollout.max_turns": 2,
    "rollout.max_new_tokens": 2, "rollout.max_context_tokens": 128, "rollout.env_workers": 0, "train.steps": 3,
    "train.groups_per_step": 2, "train.group_size": 2, "learner.lr": 1e-3, "gate.window": 2, "eval.tasks": 4,
    "checkpoint.every": 1, "tracking.trackers": "[]",
}  # fmt: skip


def run(folder: Path, env: str = TOY, **changes: Any) -> int:
    """A small run in this process; keyword `rollout__env_workers` is `rollout.env_workers`."""
    settings = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    if "gate.kind" in settings:
        del settings["gate.window"]  # DGG's
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return main_guard(lambda: train.main(["--env.id", env, "--run-dir", str(folder), *words]))


def resume(folder: Path) -> int:
    return main_guard(lambda: train.main(["--resume", str(folder)]))


def comparable(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if not k.startswith("time/")} for record in read_metrics(folder)]


NUM_FIRST_RESETS = 3 + 64  # before the run begins: looks at what it offers, episodes that lend a tiny model its words


class SignalEnv(ColourEnv):
    """Sends a signal to its own process in the n-th episode."""

    sends: tuple[int, int] = (signal.SIGTERM, 10**9)
    count = 0

    def reset(self, **keywords: Any) -> tuple[str, dict[str, Any]]:
        type(self).count += 1
        if type(self).count == self.sends[1]:
            os.kill(os.getpid(), self.sends[0])
        return super().reset(**keywords)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    SignalEnv.sends = (signal.SIGTERM, 10**9)
    assert run(tmp_path / "whole", f"{__name__}:SignalEnv", checkpoint__every=0, eval__every=2) == 0
    return tmp_path / "whole"


@pytest.mark.parametrize(
    ("number", "episode", "code", "done"),
    [(signal.SIGTERM, 11, 143, 1), (signal.SIGINT, 11, 130, 1), (signal.SIGTERM, 2, 143, 0),
     (signal.SIGTERM, 14, 143, 2), (signal.SIGHUP, 11, 129, 1), (signal.SIGUSR1, 11, 138, 1)],
    ids=["terminated", "Ctrl-C", "in the first evaluation", "in a later evaluation", "terminal gone", "Slurm warns"],
)  # fmt: skip
def test_a_signal_saves_a_checkpoint_and_exits_and_the_run_resumes_to_the_same_end(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, episode: int, code: int, done: int
) -> None:
    folder = tmp_path / "stopped"
    SignalEnv.count, SignalEnv.sends = -NUM_FIRST_RESETS, (number, episode)
    before = signal.getsignal(number)
    assert run(folder, f"{__name__}:SignalEnv", checkpoint__every=0, eval__every=2) == code
    assert signal.getsignal(number) == before
    assert f"continue with: python -m agentrl.train --resume {folder}" in capsys.readouterr().out
    assert newest_checkpoint(folder).name == f"step-{done:06d}"
    assert resume(folder) == 0
    assert comparable(folder) == comparable(whole)


def test_a_signal_while_the_learner_works_waits_for_the_batch(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = tmp_path / "stopped", TorchLearner.update

    def update(self: TorchLearner, batch: Any) -> Any:
        for _ in range(3):  # schedulers repeat themselves
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    monkeypatch.setattr(TorchLearner, "update", update)
    assert run(folder, f"{__name__}:SignalEnv", checkpoint__every=0, eval__every=2) == 143
    monkeypatch.undo()
    assert newest_checkpoint(folder).name == "step-000001"
    assert resume(folder) == 0
    assert comparable(folder) == comparable(whole)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "exit"])
def test_an_environment_that_fails_once_costs_a_retry_and_nothing_else(tmp_path: Path, fault: str) -> None:
    options = f'{{ faults = {{ step = "{fault}" }}, flag = "{tmp_path / "failed"}" }}'
    workers = 1 if fault == "exit" else 0
    assert run(tmp_path / "a", env__options=options, rollout__env_workers=workers, train__steps=1) == 0
    assert run(tmp_path / "b", train__steps=1) == 0
    assert (tmp_path / "failed").exists()
    played = [record["rollout/reward"] for record in read_metrics(tmp_path / "a") if record["kind"] == "train"]
    assert played == [record["rollout/reward"] for record in read_metrics(tmp_path / "b") if record["kind"] == "train"]


def test_groups_that_cannot_be_played_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faulty = list(range(0, 64, 2))
    options = f'{{ faults = {{ step = "raise" }}, faulty_tasks = {faulty} }}'
    code = run(tmp_path / "run", env__options=options, train__groups_per_step=4, train__steps=1)
    printed = capsys.readouterr()
    if code == 3:  # all four were even
        assert "no group of this batch could be played" in printed.err
        return
    assert code == 0
    record = next(r for r in read_metrics(tmp_path / "run") if r["kind"] == "train")
    lost = record["rollout/groups_left_out"]
    assert 0 < lost < 4
    assert record["rollout/ended/failed"] == 2 * lost
    assert record["rollout/retries"] == 2 * 2 * lost
    assert record["batch/groups"] == 4 - lost
    assert f"{lost} of 4 groups left out" in printed.err
    assert "the oven is on fire" in printed.err


def test_an_environment_that_always_fails_ends_the_run_with_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = '{ faults = { step = "raise" } }'
    assert run(tmp_path / "run", env__options=options) == 3
    error = capsys.readouterr().err
    assert "no group of this batch could be played: ZeroDivisionError: the oven is on fire (toy.py:" in error
    assert not (tmp_path / "run").exists() or newest_checkpoint(tmp_path / "run").name == "step-000000"


HALF = f'{{ faults = {{ step = "raise" }}, faulty_tasks = {list(range(1, 64, 2))} }}'


def test_a_run_half_of_whose_episodes_fail_ends_with_the_cause_and_a_checkpoint_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(folder, env__options=HALF, train__groups_per_step=8, train__steps=5, checkpoint__every=0) == 3
    printed = capsys.readouterr()
    shares = [r["rollout/failed_share"] for r in read_metrics(folder) if r["kind"] == "train"]
    assert all(share > 0.25 for share in shares[-2:]), shares
    assert newest_checkpoint(folder).name == f"step-{len(shares):06d}"
    assert "rollout.max_failed_share = 0.25" in printed.err
    assert "the oven is on fire" in printed.err
    assert f"--resume {folder}" in printed.err
    assert f"failed {shares[0]:.1%}" in printed.out
    go_on = ["--resume", str(folder), "--rollout.max_failed_share", "1"]
    assert main_guard(lambda: train.main(go_on)) == 0


def test_one_bad_batch_does_not_end_a_run() -> None:
    limit = FailureLimit(0.25, before=0.0, run="runs/x")
    failed = Trajectory(Task(TOY, "train", 0), 0, [], [], "", Status.FAILED, error="it rains")
    for share in (1.0, 0.25, 0.3, 0.0, 0.26):
        limit.check(1, share, [failed])
    with pytest.raises(RunError, match=r"26% and 30% .* it rains"):
        limit.check(2, 0.3, [failed])


class NaNRewardEnv(ColourEnv):
    """Rewards are not numbers."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, math.nan, terminated, truncated, info


class StrangeEnv(ColourEnv):
    """Always right, in words that have no characters and with objects in `info` that JSON does not know."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        info = {"metadata": {"level": np.int64(3), "set": {1}}, "answer": 12, "category": "\ud800", "success": True}
        return "\ud800 I heard that.", 1.0, True, False, {**self._info(), **info}


def test_what_an_environment_puts_into_text_and_info_is_stored_and_equal_rewards_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", f"{__name__}:StrangeEnv", train__steps=1) == 0
    assert "nothing was learned: the rewards of each group were equal" in capsys.readouterr().err
    stored = json.loads((tmp_path / "run" / "trajectories" / "step-000001.jsonl").read_text().splitlines()[0])
    assert stored["metadata"] == {"level": 3, "set": "{1}"}
    assert stored["turns"][0]["observation"] == "? I heard that."


class EmptyEnv(ColourEnv):
    """Has no task."""

    num_tasks = 0


def test_a_split_without_tasks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "run", f"{__name__}:EmptyEnv") == 2
    assert "EmptyEnv has no tasks in the split 'train': its num_tasks is 0" in capsys.readouterr().err


def test_a_reward_that_is_no_number_is_a_failure_of_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", f"{__name__}:NaNRewardEnv") == 3
    assert "a reward must be a finite number, got nan" in capsys.readouterr().err


@pytest.mark.parametrize(("batches", "code"), [({2}, 0), ({1, 2, 3}, 3)], ids=["one batch", "every batch"])
def test_a_loss_that_is_not_finite_is_discarded_and_three_in_a_row_end_the_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    batches: set[int],
    code: int,
) -> None:
    real, count = TorchLearner.update, iter(range(1, 100))

    def update(self: TorchLearner, batch: Any) -> Any:
        if next(count) in batches:
            for row in batch.rows:
                row.advantages[:] = math.nan
        return real(self, batch)

    monkeypatch.setattr(TorchLearner, "update", update)
    folder = tmp_path / "run"
    assert (
        run(folder, train__steps=4, gate__kind="none", train__group_size=8, env__options='{ split = "train" }') == code
    )
    if code:
        assert "3 gradients in a row were not finite" in capsys.readouterr().err
    else:
        records = [record for record in read_metrics(folder) if record["kind"] == "train"]
        assert [update["reason"] for record in records for update in record["updates"]].count("non_finite") == 1
    state = AutoModelForCausalLM.from_pretrained(newest_checkpoint(folder)).state_dict()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


@contextmanager
def server_of_a_full_house(guests: int) -> Iterator[str]:
    """An environment server that answers nobody before all have asked."""
    everybody = threading.Barrier(guests, timeout=60)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            everybody.wait()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"observation": "hello"}')

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class LeakyEnv(ColourEnv):
    """Keeps 2 MiB an episode."""

    kept: list[bytes] = []  # noqa: RUF012

    def reset(self, **keywords: Any) -> tuple[str, dict[str, Any]]:
        self.kept.append(b"x" * (2 << 20))
        return super().reset(**keywords)


@pytest.mark.slow
def test_a_worker_whose_memory_grows_is_replaced_between_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrl.environment.pool.WORKER_GROWTH_BYTES", 12 << 20)
    assert run(tmp_path / "run", f"{__name__}:LeakyEnv", rollout__env_workers=1, train__steps=5) == 0
    assert "memory has grown by" in capsys.readouterr().err
    records = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert sum(record["rollout/ended/failed"] + record["rollout/retries"] for record in records) == 0


def test_a_worker_that_is_killed_between_two_steps_is_replaced(tmp_path: Path) -> None:
    pool = EnvPool(EnvironmentSpec(TOY, "train"), num_workers=1)
    task = Task(TOY, "train", 0, 5)
    first, _ = asyncio.run(pool.acquire().reset(task))
    (worker,) = pool._workers
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.join()
    again, _ = asyncio.run(pool.acquire().reset(task))
    pool.close()
    assert again == first


@pytest.mark.slow
def test_a_batch_that_is_abandoned_does_not_wait_for_a_step_that_hangs() -> None:
    pool = EnvPool(EnvironmentSpec(TOY, "train", {"faults": {"step": "hang"}}), num_workers=1, step_timeout_s=60.0)
    handle = pool.acquire()

    async def play() -> None:
        await handle.reset(Task(TOY, "train", 0, 1))
        step = asyncio.ensure_future(handle.step("red"))
        await asyncio.sleep(0.5)
        step.cancel()

    started = time.perf_counter()
    asyncio.run(play())
    pool.close()
    assert time.perf_counter() - started < 30


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["exit", "hang"])
def test_a_task_that_takes_its_process_along_costs_its_own_group_only(fault: str) -> None:
    spec = EnvironmentSpec(TOY, "train", {"faults": {"step": fault}, "faulty_tasks": [1]})
    pool = EnvPool(spec, num_workers=1, step_timeout_s=2.0)
    tokenizer = build_tokenizer(())
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    limits = load_config(None, ["--rollout.max_turns", "2"]).rollout
    rollout = Rollout(None, chat, pool, limits, seed=0, policy=lambda info, random: ("red", True))
    played = rollout.play([Task(TOY, "train", 0, i, i) for i in range(4)], group_size=4)
    pool.close()
    assert [group.task.index for group in played.groups] == [0, 2, 3]
    assert [len(group.trajectories) for group in played.groups] == [4, 4, 4]
    assert [(t.task.index, t.num_retries) for t in played.failures] == [(1, 2)] * 4
    assert played.left_out == 1


@pytest.mark.slow
def test_a_batch_whose_every_step_ends_its_process_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EnvironmentSpec(TOY, "train", {"faults": {"step": "exit"}})
    pool = EnvPool(spec, num_workers=2)
    starts = 0
    real = _Worker._start

    def start(self: _Worker) -> None:
        nonlocal starts
        starts += 1
        real(self)

    tokenizer = build_tokenizer(())
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    limits = load_config(None, []).rollout
    rollout = Rollout(None, chat, pool, limits, seed=0, policy=lambda info, random: ("red", True))
    monkeypatch.setattr(_Worker, "_start", start)
    with pytest.raises(RunError, match="no group of this batch"):
        rollout.play([Task(TOY, "train", 0, i, i) for i in range(16)], group_size=8)
    pool.close()
    assert starts < 40  # 128 episodes, three times each


def test_a_dead_retriever_ends_the_run_with_its_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = '{ retriever = "http://127.0.0.1:9", patience_s = 0.2 }'
    words = {"env__options": options, "env__format": "agentrl.envs.search_qa.protocols:SearchR1Prompt"}
    assert run(tmp_path / "run", "agentrl/SearchQA-v0", **words) in (2, 3)
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_searches_over_http_of_several_episodes_wait_together() -> None:
    """Eight episodes whose server answers none before it has heard all."""
    options = {"retriever": "http://127.0.0.1:9"}
    assert EnvironmentSpec("agentrl/SearchQA-v0", "train", options).make().unwrapped.metadata["blocking"]
    here = EnvironmentSpec("agentrl/SearchQA-v0", "train").make()
    assert not here.unwrapped.metadata["blocking"]
    with server_of_a_full_house(8) as url:
        pool = EnvPool(EnvironmentSpec("agentrl.envs.adapters.remote:RemoteEnv", "train", {"url": url}))
        tasks = [Task("", "train", seed) for seed in range(8)]

        async def play() -> list[Any]:
            return await asyncio.gather(*(pool.acquire().reset(task) for task in tasks))

        answers = asyncio.run(play())
        pool.close()
    assert [observation for observation, _ in answers] == ["hello"] * 8


@pytest.mark.slow
def test_a_disk_that_is_really_full_ends_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    script = (
        f"mount -t tmpfs -o size=900k full {tmp_path} && "
        f"{sys.executable} -m agentrl.train --env.id {TOY} --run-dir {tmp_path}/run --train.steps 60 "
        + " ".join(f"--{key} '{value}'" for key, value in SMALL.items() if key != "train.steps")
        + f"; code=$?; cp -r {tmp_path}/run {tmp_path}.saved; exit $code"
    )
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"]).returncode:
        pytest.skip("a small file system of one's own needs user namespaces")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    saved = tmp_path.with_name(tmp_path.name + ".saved")
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr
    assert sum(not line.startswith("note: ") for line in done.stderr.strip().splitlines()) == 1
    assert newest_checkpoint(saved)
    assert resume(saved) == 0
    shutil.rmtree(saved)


@pytest.mark.slow
def test_workers_that_start_at_once_leave_the_main_module_as_it_was() -> None:
    main = sys.modules["__main__"]
    before = main.__spec__, main.__dict__.get("__file__", "none")
    pool = EnvPool(EnvironmentSpec(TOY, "train"), num_workers=4)

    async def play() -> None:
        await asyncio.gather(*(pool.acquire().reset(Task(TOY, "train", seed)) for seed in range(4)))

    asyncio.run(play())
    pool.close()
    assert (main.__spec__, main.__dict__.get("__file__", "none")) == before


@pytest.mark.slow
def test_memory_is_flat_over_two_hundred_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = TorchLearner.update

    def update(self: TorchLearner, batch: Any) -> Any:
        sizes.append(resident_bytes())
        return real(self, batch)

    monkeypatch.setattr(TorchLearner, "update", update)
    assert run(tmp_path / "run", train__steps=200, train__group_size=4, checkpoint__every=20, eval__every=50) == 0
    grown = sizes[-1] - sizes[49]
    assert len(sizes) == 200
    assert grown < 8 << 20, f"{grown / 2**20:.1f} MiB more after 150 further steps"
