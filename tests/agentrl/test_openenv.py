"""A real OpenEnv server: its capacity is learnt and waited for, and no episode is lost over it.

The server needs packages that exclude ours, so it runs with the Python of an environment of its own: OPENENV_PYTHON,
else `.venv-openenv/bin/python` (make test-all builds it).
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrl.config.read import load_config
from agentrl.environment.pool import EnvPool
from agentrl.environment.spec import EnvironmentSpec
from agentrl.model.tiny import build_tokenizer
from agentrl.rollout.chat import Chat
from agentrl.rollout.rollout import Rollout
from agentrl.types import Task

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("OPENENV_PYTHON", ROOT / ".venv-openenv" / "bin" / "python"))
REMOTE = "agentrl.envs.adapters.remote:RemoteEnv"
pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with openenv: make .venv-openenv/openenv.done"),
]


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), str(ROOT / "tests" / "openenv_server.py"), str(port), str(request.param)]
    server = subprocess.Popen(command, env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")})
    try:
        wait_for(port, server)
        yield f"ws://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(1200):
        assert server.poll() is None, "the server did not start"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the server did not answer")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("url", [1, 64, 512], indirect=True)
def test_every_episode_of_twelve_batches_is_played_whatever_the_server_has_room_for(url: str, workers: int) -> None:
    tokenizer = build_tokenizer(())
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    limits = load_config(None, ["--rollout.max_turns", "2"]).rollout
    spec = EnvironmentSpec(REMOTE, "train", {"url": url, "action_key": "message"})
    pools = [EnvPool(spec, num_workers=workers) for _ in range(2)]
    training, evaluation = (
        Rollout(None, chat, pool, limits, seed=0, policy=lambda info, random: ("it is 0", True)) for pool in pools
    )
    played = []
    for batch in range(12):
        if batch % 6 == 0:
            tasks = [Task(REMOTE, "test", 1000 + i, None, i) for i in range(60)]
            assert not evaluation.play(tasks, group_size=1).failures
        tasks = [Task(REMOTE, "train", 16 * batch + i, None, 16 * batch + i) for i in range(16)]
        batch_of_groups = training.play(tasks, group_size=8)
        assert not batch_of_groups.failures
        played += [trajectory for group in batch_of_groups.groups for trajectory in group.trajectories]
    for pool in pools:
        pool.close()
    assert len(played) == 1536
    assert all(t.reward == (t.task.seed % 3 == 0) for t in played)
    assert sum(t.num_retries for t in played) == 0, "waiting for room is no failure"
