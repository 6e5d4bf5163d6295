"""Environments from elsewhere: HTTP and OpenEnv servers, TextArena."""

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agentrl.config.read import load_config
from agentrl.environment.capacity import Room
from agentrl.environment.pool import EnvPool
from agentrl.environment.spec import EnvironmentSpec
from agentrl.envs.adapters.remote import RemoteEnv
from agentrl.envs.adapters.textarena import TextArenaEnv
from agentrl.envs.env_errors import DataError, NoRoomError
from agentrl.model.tiny import build_tokenizer
from agentrl.rollout.chat import Chat
from agentrl.rollout.rollout import Rollout
from agentrl.types import Task

REMOTE = "agentrl.envs.adapters.remote:RemoteEnv"


class GuessServer(BaseHTTPRequestHandler):
    """A server of somebody else's: many episodes at once, a secret number each."""

    protocol_version = "HTTP/1.1"
    secrets: dict[str, int] = {}  # noqa: RUF012
    fault = ""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer: Any = {"/reset": self.reset, "/step": self.step}[self.path](body)
        status, text = 200, json.dumps(answer)
        if self.fault:
            status, text = {
                "500": (500, "on fire"),
                "503": (503, "no room"),
                "html": (200, "<html>"),
                "list": (200, "[1]"),
            }[self.fault]
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def reset(self, body: dict[str, Any]) -> dict[str, Any]:
        self.secrets[body["episode_id"]] = body["seed"] % 3
        return {"observation": "Which number?", "info": {"category": "guess", "token": self.headers["Authorization"]}}

    def step(self, body: dict[str, Any]) -> dict[str, Any]:
        action = body["action"]["guess"] if isinstance(body["action"], dict) else body["action"]
        right = action == str(self.secrets[body["episode_id"]])
        return {"observation": {"hint": "no", "text": "Over."}, "reward": float(right), "done": True}

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), GuessServer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_http_episodes_of_several_environments_do_not_mix(url: str) -> None:
    envs = [RemoteEnv(url) for _ in range(3)]
    for seed, env in enumerate(envs):
        observation, info = env.reset(seed=seed)
        assert (observation, info["category"]) == ("Which number?", "guess")
    for seed, env in enumerate(envs):
        assert env.step(str(seed)) == ("Over.", 1.0, True, False, {})
        env.close()


def test_http_keys_say_where_action_and_observation_lie(url: str) -> None:
    env = RemoteEnv(url, action_key="guess", observation_key="hint")
    env.reset(seed=2)
    assert env.step("2")[:2] == ("no", 1.0)
    env.close()
    wrong = RemoteEnv(url, observation_key="hintt")
    wrong.reset(seed=0)
    with pytest.raises(DataError, match="'hintt' is no text of: hint, text"):
        wrong.step("0")
    wrong.close()


def test_http_token_comes_from_the_environment_and_never_from_options(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUESS_TOKEN", "secret")
    env = RemoteEnv(url, token_variable="GUESS_TOKEN")
    assert env.reset(seed=0)[1]["token"] == "Bearer secret"
    assert "secret" not in repr(vars(env) | {"_session": None})
    env.close()


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [("500", ConnectionError, "answered 500: on fire"), ("html", DataError, "must answer with JSON, got '<html>'"),
     ("list", DataError, 'must answer {"observation": ...}')],
)  # fmt: skip
def test_http_faults_are_named_and_the_next_reset_connects_again(
    url: str, monkeypatch: pytest.MonkeyPatch, fault: str, error: type[Exception], message: str
) -> None:
    env = RemoteEnv(url)
    monkeypatch.setattr(GuessServer, "fault", fault)
    with pytest.raises(error, match=message.replace("{", r"\{").replace("...", r"\.\.\.")):
        env.reset(seed=0)
    monkeypatch.setattr(GuessServer, "fault", "")
    assert env.reset(seed=0)[0] == "Which number?"
    env.close()


def test_remote_without_a_server_or_with_a_wrong_address_says_so() -> None:
    with pytest.raises(OSError, match="refused"):
        RemoteEnv("http://127.0.0.1:9").reset(seed=0)
    with pytest.raises(DataError, match="url must be http://host:port or ws://host:port, got 'localhost:80'"):
        RemoteEnv("localhost:80")


def test_openenv_session_is_played_over_a_websocket() -> None:
    server_module = pytest.importorskip("websockets.sync.server", reason="needs the extra openenv")

    def session(socket: Any) -> None:
        """The messages of OpenEnv's own server, as documented in openenv.core.env_server.types."""
        secret = 0
        for raw in socket:
            message = json.loads(raw)
            if message["type"] == "reset":
                secret = message["data"]["seed"] % 3
                data: dict[str, Any] = {"observation": {"message": "Which number?"}, "reward": None, "done": False}
            elif "guess" not in message["data"]:
                socket.send(json.dumps({"type": "error", "data": {"message": "no guess", "code": "VALIDATION_ERROR"}}))
                continue
            else:
                right = message["data"]["guess"] == str(secret)
                data = {"observation": {"message": "Over."}, "reward": float(right), "done": True}
            socket.send(json.dumps({"type": "observation", "data": data}))

    with server_module.serve(session, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        env = RemoteEnv(url, action_key="guess")
        for seed in (4, 5):
            assert env.reset(seed=seed) == ("Which number?", {})
            assert env.step(str(seed % 3)) == ("Over.", 1.0, True, False, {})
        env.close()
        wrong = RemoteEnv(url, action_key="guesss")
        wrong.reset(seed=0)
        with pytest.raises(ConnectionError, match="no guess"):
            wrong.step("0")
        server.shutdown()


class FullServer:
    """OpenEnv's sessions with room for so many, refused as its own server refuses; a slow goodbye."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.active, self.most = capacity, 0, 0

    def __call__(self, socket: Any) -> None:
        if self.active >= self.capacity:
            told = {"message": "Server at capacity", "code": "CAPACITY_REACHED", "max_sessions": self.capacity}
            socket.send(json.dumps({"type": "error", "data": told}))
            return
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            for raw in socket:
                message = json.loads(raw)
                if message["type"] == "close":
                    time.sleep(0.02)
                    return
                done = message["type"] == "step"
                data = {"observation": "Say yes.", "reward": float(done), "done": done}
                socket.send(json.dumps({"type": "observation", "data": data}))
        finally:
            self.active -= 1


@pytest.mark.parametrize("capacity", [1, 5])
def test_a_server_with_little_room_is_waited_for_and_every_episode_is_played(capacity: int) -> None:
    server_module = pytest.importorskip("websockets.sync.server", reason="pip install 'agentrl[openenv]'")
    sessions = FullServer(capacity)
    with server_module.serve(sessions, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        spec = EnvironmentSpec(REMOTE, "train", {"url": f"ws://127.0.0.1:{server.socket.getsockname()[1]}"})
        tokenizer = build_tokenizer(())
        chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
        limits = load_config(None, ["--rollout.max_turns", "2"]).rollout
        pools = [EnvPool(spec) for _ in range(2)]
        rollouts = [Rollout(None, chat, p, limits, seed=0, policy=lambda info, random: ("yes", True)) for p in pools]
        for batch in range(2):
            for rollout in rollouts:  # the idle sessions of one pool leave their places to the other
                tasks = [Task(REMOTE, "train", i, None, 4 * batch + i) for i in range(4)]
                played = rollout.play(tasks, group_size=5)
                assert sum(len(group.trajectories) for group in played.groups) == 20
                assert not played.failures
                assert sessions.active == 0
        for pool in pools:
            pool.close()
        server.shutdown()
    assert sessions.most == capacity


def test_a_refusal_for_want_of_room_is_told_apart_over_http(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuessServer, "fault", "503")
    with pytest.raises(NoRoomError, match="answered 503: no room"):
        RemoteEnv(url).reset(seed=0)


def test_a_server_whose_places_stay_taken_fails_the_episode_with_the_remedy() -> None:
    async def ask() -> bool:
        room = Room("remote", patience_s=0.1)
        room.open()
        tries = 0
        while True:
            await room.enter()
            tries += 1
            if not await room.refuse(tries):
                return room.is_scarce

    assert asyncio.run(ask())


def shy(observation: str) -> str:
    return "[0 0]"


@pytest.mark.reference
@pytest.mark.reference
def test_textarena_guess_the_number_by_bisection_wins_and_repeats() -> None:
    pytest.importorskip("textarena", reason="needs the extra textarena")
    random.seed(7)
    outside = random.getstate()

    def play(seed: int) -> list[str]:
        env, low, high, seen = TextArenaEnv("GuessTheNumber-v0"), 1, 20, []
        observation, info = env.reset(seed=seed)
        assert "between 1 and 20" in observation
        assert info["category"] == "GuessTheNumber-v0"
        while True:
            guess = (low + high) // 2
            observation, reward, terminated, truncated, info = env.step(f"[{guess}]")
            seen.append(observation)
            assert info["is_valid_action"]
            if terminated:
                assert (reward, info["success"], truncated) == (1.0, True, False)
                return seen
            low, high = (guess + 1, high) if "higher" in observation else (low, guess - 1)

    games = [play(seed) for seed in range(6)]
    assert games == [play(seed) for seed in range(6)]
    assert len({len(game) for game in games}) > 1
    assert random.getstate() == outside


@pytest.mark.reference
@pytest.mark.reference
def test_textarena_marks_invalid_moves_and_names_unknown_games() -> None:
    pytest.importorskip("textarena", reason="needs the extra textarena")
    env = TextArenaEnv("GuessTheNumber-v0")
    env.reset(seed=0)
    assert env.step("I do not know")[4]["is_valid_action"] is False
    assert env.step("\0 nonsense")[2]
    with pytest.raises(DataError, match="NoSuchGame-v0"):
        TextArenaEnv("NoSuchGame-v0")
    with pytest.raises(DataError, match="needs opponent"):
        TextArenaEnv("TicTacToe-v0", num_players=2)
    with pytest.raises(DataError, match="opponent must be module:function"):
        TextArenaEnv("TicTacToe-v0", num_players=2, opponent="tests.nothing:here")


@pytest.mark.reference
@pytest.mark.reference
def test_textarena_opponents_play_the_other_seats() -> None:
    pytest.importorskip("textarena", reason="needs the extra textarena")
    env = TextArenaEnv("TicTacToe-v0", num_players=2, opponent=f"{__name__}:shy")
    observation, _ = env.reset(seed=0)
    assert "Tic" in observation
    observation, reward, terminated, _, _ = env.step("[4]")
    assert terminated or "Player 1" in observation or "GAME" in observation or observation
    assert reward in (-1.0, 0.0, 1.0)
