"""vLLM servers that die, hang, and come back with old weights (`test_engine.py` holds what every engine must do)."""

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agentrl import train
from agentrl.command.guard import main_guard
from agentrl.config.read import build_config
from agentrl.environment.pool import EnvironmentSpec, EnvPool
from agentrl.errors import InfrastructureError, RunError, UserError
from agentrl.model.logprobs import row_logprobs
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines import vllm_servers
from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.factory import make_engine
from agentrl.rollout.engines.vllm_servers import VllmServersEngine
from agentrl.rollout.engines.weight_sync import DiskSync, check_sync, opening_row
from agentrl.rollout.rollout import Rollout
from agentrl.runs.folder import read_metrics
from agentrl.types import Status, Task, Trajectory
from tests.agentrl.engines import MODULE, TOKENIZER, Server, start_fleet, weights
from tests.agentrl.helpers import TOY, tiny_policy
from tests.agentrl.test_vllm import CONFIG

CHAT = Chat(TOKENIZER, stop_ids=[TOKENIZER.eos_token_id])
# Not what the servers find in their folder when they start.
TRAINED, _ = tiny_policy(seed=5, hidden_size=64)


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"http://127\.0\.0\.1:9 has not answered for 1 s"):
        VllmServersEngine(["http://127.0.0.1:9"], sync=DiskSync(tmp_path), max_context_tokens=8, patience_s=1.0)


@pytest.fixture
def bare_server() -> Iterator[str]:
    """A server that is healthy and can do nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_without_routes_for_weights_is_the_users_error(bare_server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes no weights or no token ids\..* VLLM_SERVER_DEV_MODE=1 vllm serve"):
        VllmServersEngine([bare_server], sync=DiskSync(tmp_path), max_context_tokens=8, patience_s=5.0)


class Turns:
    """What `turn_server` saw, and how it fails."""

    def __init__(self) -> None:
        self.asked = self.running = self.most = 0
        self.version = ""
        self.hang_up_on: tuple[int, ...] = ()
        """Turns, from 1, whose connection it closes without an answer."""
        self.lock = threading.Lock()

    def answer(self) -> bytes | None:
        """To one turn; None hangs up."""
        with self.lock:
            self.asked += 1
            asked, self.running = self.asked, self.running + 1
            self.most = max(self.most, self.running)
        time.sleep(0.02)
        with self.lock:
            self.running -= 1
        spans = [{"version": self.version}]
        choice = {"finish_reason": "length", "token_ids": [7], "logprobs": {"content": [{"logprob": -1.0}]}}
        whole = json.dumps({"choices": [{**choice, "weight_versions": spans}]}).encode()
        return None if asked in self.hang_up_on else whole


@pytest.fixture
def turn_server() -> Iterator[tuple[str, Turns]]:
    """A server with vLLM's routes that answers every turn with one token, as fast and as badly as it is told to."""
    turns = Turns()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send(200)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            words = json.loads(body) if body else {}
            turns.version = words.get("new_version", turns.version)
            if not self.path.endswith("/generate"):
                return self.send(200)
            if not words:
                return self.send(400)
            answer = turns.answer()
            if answer is None:
                self.close_connection = True
                return None
            return self.send(200, answer)

        def send(self, status: int, body: bytes = b"{}") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", turns
    server.shutdown()
    server.server_close()


@pytest.fixture
def turn_engine(turn_server: tuple[str, Turns], tmp_path: Path) -> Iterator[VllmServersEngine]:
    pytest.importorskip("httpx", reason="needs the extra vllm or search")
    sync = DiskSync(tmp_path)
    engine = VllmServersEngine([turn_server[0]], sync=sync, max_context_tokens=64, patience_s=30.0)
    engine.load_weights(weights(MODULE), version=0)
    yield engine
    engine.close()


async def many_turns(engine: VllmServersEngine, count: int) -> int:
    one = Sampling(max_new_tokens=1)
    turns = await asyncio.gather(*[engine.generate([6, 7], one, key=(i,)) for i in range(count)])
    return sum(turn.ids == [7] for turn in turns)


def test_a_turn_whose_connection_broke_is_asked_for_again_and_costs_no_episode(
    turn_server: tuple[str, Turns], turn_engine: VllmServersEngine
) -> None:
    turn_server[1].hang_up_on = (2, 5)
    assert asyncio.run(many_turns(turn_engine, 8)) == 8
    assert turn_server[1].asked == 10
    assert turn_engine.counts()["failed_requests"] == 0


def test_a_server_that_hangs_up_twice_on_a_turn_has_failed_and_is_mended(
    turn_server: tuple[str, Turns], turn_engine: VllmServersEngine
) -> None:
    turn_server[1].hang_up_on = (1, 2)
    with pytest.raises(InfrastructureError, match="RemoteProtocolError"):
        asyncio.run(many_turns(turn_engine, 1))
    assert asyncio.run(many_turns(turn_engine, 1)) == 1
    assert turn_engine.counts()["returned_servers"] == 1


def test_a_burst_of_turns_waits_here_for_room_on_the_server(
    monkeypatch: pytest.MonkeyPatch, turn_server: tuple[str, Turns], tmp_path: Path
) -> None:
    pytest.importorskip("httpx", reason="needs the extra vllm or search")
    monkeypatch.setattr(vllm_servers, "_MAX_OPEN", 3)
    sync = DiskSync(tmp_path)
    engine = VllmServersEngine([turn_server[0]], sync=sync, max_context_tokens=64, patience_s=30.0)
    engine.load_weights(weights(MODULE), version=0)
    assert asyncio.run(many_turns(engine, 20)) == 20
    assert turn_server[1].most == 3
    assert len(engine._clients) == 1 + 3, "turns take over each other's connections"
    engine.close()


@pytest.mark.parametrize(
    ("options", "count", "message"),
    [
        ({}, 2, "1 servers for 2 learner processes"),
        ({"gpu_memory_utilization": 0.5}, 1, "options of vLLM are given to the servers themselves"),
        ({"weight_sync": "carrier pigeon"}, 1, 'must be "disk", "adapter" or "nccl"'),
    ],
)
def test_a_set_up_that_cannot_work_is_refused_before_any_request(
    options: dict[str, Any], count: int, message: str
) -> None:
    tree = {"engine": "vllm", "endpoints": ["http://127.0.0.1:9"], "engine_options": options}
    with pytest.raises(UserError, match=message):
        make_engine(build_config({"rollout": tree}).rollout, MODULE, TOKENIZER, rank=0, count=count)


def test_servers_that_do_not_answer_end_the_set_up_with_their_address_and_leave_no_files(tmp_path: Path) -> None:
    pytest.importorskip("httpx", reason="needs the extra vllm or search")
    address = "http://127.0.0.1:9"
    tree = {"engine": "vllm", "endpoints": [address], "engine_options": {"folder": str(tmp_path)}}
    config = build_config({"rollout": {**tree, "turn_timeout_s": 0.2}})
    with pytest.raises(RunError, match=f"{address} has not answered for 0.2 s"):
        make_engine(config.rollout, MODULE, TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_disk_sync_writes_the_tied_head_and_keeps_one_copy(tmp_path: Path) -> None:
    module, _ = tiny_policy(tie=True)
    sync = DiskSync(tmp_path / "weights")
    for _ in range(3):
        sync.offer(weights(module))
    (file,) = (tmp_path / "weights").rglob("*.safetensors")
    stored = load_file(file)
    assert torch.equal(stored["lm_head.weight"], module.model.embed_tokens.weight)
    assert stored.keys() == module.state_dict().keys()
    sync.close()
    assert not (tmp_path / "weights").exists()


def make_rollout(engine: VllmServersEngine) -> Rollout:
    config = build_config(
        {"rollout": {"max_turns": 2, "max_new_tokens": 48, "max_context_tokens": 300, "env_workers": 0}}
    ).rollout
    return Rollout(
        engine, CHAT, EnvPool(EnvironmentSpec(TOY, "train"), num_workers=0, step_timeout_s=60.0), config, seed=0
    )


TASKS = [Task(TOY, "train", seed=i, index=i, position=i) for i in range(8)]


def sampled_by_trained_policy(trajectory: Trajectory) -> bool:
    """Whether the recorded log-probs are those of `TRAINED`."""
    row = trajectory.rows[0]
    ours = np.array([0.0, *row_logprobs(TRAINED, row.ids.tolist(), 1.0)])
    return bool(np.abs(ours - row.logprobs)[row.trained].max() < 1e-3)


@pytest.mark.vllm
def test_a_server_killed_and_restarted_in_a_rollout_spoils_no_episode(
    vllm_servers: list[Server], tmp_path: Path
) -> None:
    server = vllm_servers[0]
    engine = start_fleet([server], tmp_path)
    engine.load_weights(weights(TRAINED), version=3)
    restarted: list[float] = []

    def restart_once(_: Trajectory) -> None:
        if not restarted:
            restarted.append(time.monotonic())
            server.kill()
            server.start()

    rollout = make_rollout(engine)
    groups = rollout.play(TASKS, group_size=4, on_episode=restart_once).groups
    played = [trajectory for group in groups for trajectory in group.trajectories]
    retried = [trajectory for trajectory in played if trajectory.num_retries]
    assert len(played) == 32
    assert all(trajectory.status is not Status.FAILED for trajectory in played)
    assert 0 < len(retried) < 32
    assert all(f"vLLM server {server.url}" in trajectory.error for trajectory in retried)
    # The new process started with other weights than the current ones, and got these before it was asked again.
    assert all(sampled_by_trained_policy(trajectory) for trajectory in played)
    counts = engine.counts()
    assert counts["returned_servers"] == 1
    assert counts["failed_requests"] >= len(retried)
    engine.close()


@pytest.mark.vllm
def test_while_a_server_is_away_the_others_play_and_it_gets_its_weights_when_back(
    vllm_servers: list[Server], tmp_path: Path
) -> None:
    engine = start_fleet(vllm_servers, tmp_path)
    engine.load_weights(weights(MODULE), version=0)
    vllm_servers[1].kill()
    engine.load_weights(weights(TRAINED), version=1)
    groups = make_rollout(engine).play(TASKS, group_size=2).groups
    assert sum(len(group.trajectories) for group in groups) == 16
    vllm_servers[1].start()
    until = time.monotonic() + engine.patience_s
    while not engine.counts()["returned_servers"] and time.monotonic() < until:
        time.sleep(0.5)
    for name in ("a", "b", "c", "d"):  # sessions of both servers
        asyncio.run(engine.generate([6, 7], Sampling(max_new_tokens=4), key=(0,), session=name))
    score = row_logprobs
    gaps = check_sync(engine, [opening_row(CHAT)], lambda i, t: score(TRAINED, i, t), temperature=1.0, tolerance=1e-3)
    assert gaps["sync/gap_max"] < 1e-3
    assert engine.counts()["failed_requests"] == 0
    engine.close()


@pytest.mark.vllm
def test_a_server_restarted_behind_our_back_is_noticed_by_its_answer(
    vllm_servers: list[Server], tmp_path: Path
) -> None:
    engine = start_fleet(vllm_servers[:1], tmp_path)
    engine.load_weights(weights(TRAINED), version=1)
    # What another process at this address would say of itself.
    httpx.post(f"{vllm_servers[0].url}/update_weight_version", json={"new_version": "default"}).raise_for_status()
    with pytest.raises(InfrastructureError, match=r"answered with the weights \['default'\]"):
        asyncio.run(engine.generate([6, 7], Sampling(max_new_tokens=4), key=(0,)))
    assert len(asyncio.run(engine.generate([6, 7], Sampling(max_new_tokens=4), key=(0,))).ids) == 4
    assert engine.counts()["returned_servers"] == 1
    engine.close()


@pytest.mark.vllm
def test_a_hung_server_is_an_infrastructure_failure_and_comes_back(vllm_servers: list[Server], tmp_path: Path) -> None:
    engine = start_fleet(vllm_servers[:1], tmp_path)
    engine.load_weights(weights(TRAINED), version=1)
    one = Sampling(max_new_tokens=4)
    engine.patience_s = 8.0
    asyncio.run_coroutine_threadsafe(set_timeout(engine, 8.0), engine._loop).result()
    vllm_servers[0].pause()
    with pytest.raises(InfrastructureError, match="has not answered within 8 s"):
        asyncio.run(engine.generate([6, 7], one, key=(0,)))
    with pytest.raises(RunError, match="no vLLM server has come back within 8 s"):
        asyncio.run(engine.generate([6, 7], one, key=(0,)))
    vllm_servers[0].proceed()
    engine.patience_s = 300.0
    assert len(asyncio.run(engine.generate([6, 7], one, key=(0,))).ids) == 4
    engine.close()


async def set_timeout(engine: VllmServersEngine, seconds: float) -> None:
    engine._client.timeout = httpx.Timeout(seconds)


@pytest.mark.vllm
def test_a_run_on_a_fleet_checks_every_sync(vllm_servers: list[Server], tmp_path: Path) -> None:
    # The servers' model is the run's, whose vocabulary is another one; so the run starts from their folder.
    config = tmp_path / "toy.toml"
    config.write_text(
        CONFIG.replace("[rollout]", f"[rollout]\nendpoints = {json.dumps([s.url for s in vllm_servers])}")
    )
    words = ["--model.path", str(vllm_servers[0].folder), "--run-dir", str(tmp_path / "run")]
    assert main_guard(lambda: train.main([str(config), *words])) == 0
    steps = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert len(steps) == 2
    assert all(record["sync/gap_max"] < 1e-3 for record in steps)
    assert all(record["engine/generated_tokens"] > 0 for record in steps)


@pytest.mark.vllm
def test_the_weight_transfer_api_has_the_names_we_use() -> None:
    pytest.importorskip("vllm")
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    start = NCCLTrainerInitInfo("127.0.0.1", 1, 2, rank=0)
    assert start.is_sender
    assert start.world_size == 2
    assert ParamMeta("a", torch.float32, (1,)).name == "a"
    assert {"metadata", "__iter__"} <= WeightSource.__abstractmethods__
    assert hasattr(HTTPVLLMWeightSyncClient("http://x"), "update_weights")
    assert callable(WeightTransferTrainerFactory.trainer_init)
