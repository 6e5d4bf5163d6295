"""An environment behind a server with `reset` and `step`: over plain HTTP, or an OpenEnv session over a WebSocket."""

import itertools
import json
import os
import ssl
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import gymnasium

from agentrl.common.extras import MissingExtraError
from agentrl.envs.env_errors import DataError, NoRoomError
from agentrl.envs.spaces import FreeText

_TEXT_KEYS = ("text", "message", "prompt", "content", "output", "observation", "echoed_message")
_NO_ROOM_STATUS = (429, 503)
"""HTTP: too many requests; service unavailable for the present."""
_TRY_AGAIN_LATER = 1013
"""WebSocket's close code for an overloaded server."""
_GOODBYE_S = 5.0
"""Patience for a server that ends a session."""
_episodes = itertools.count()


class RemoteEnv(gymnasium.Env[str, str]):
    """A server's environment.

    `http://`: POST `/reset` with {"seed", "episode_id", "task"?} and `/step` with {"action", "episode_id"}; the answers
    are {"observation", "reward", "done"}, or with Gymnasium's "terminated", "truncated" and "info". The id tells the
    server's episodes apart; it may answer `/reset` with another one, which is then used.

    `ws://`: one OpenEnv session (https://github.com/meta-pytorch/OpenEnv, messages `reset` and `step` at `/ws`). The
    server needs none of this package, this package none of the server's.

    Args:
        url: "http://host:port" or "ws://host:port".
        action_key: field of the action object that takes the model's text; None sends the text itself.
        observation_key: field of an observation object that the model reads; None takes the first usual one, else
            all of it as JSON.
        timeout_s: patience for one answer.
        token_variable: environment variable that holds a bearer token, if the server wants one.
        options: further fields of every reset.

    Raises:
        DataError: an address or answer that cannot be used.
        NoRoomError: the server refuses another episode for want of room (OpenEnv's CAPACITY_REACHED, HTTP 429 or 503):
            a training loop waits until one of its own has ended, and closes sessions that it does not need.
        OSError: no connection, or no answer in time: a failure of infrastructure, which a training loop retries.
    """

    metadata: dict[str, Any] = {"render_modes": [], "blocking": True, "sessions": True}  # noqa: RUF012

    def __init__(
        self,
        url: str,
        *,
        action_key: str | None = None,
        observation_key: str | None = None,
        timeout_s: float = 60.0,
        token_variable: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.url, self.action_key, self.observation_key = url, action_key, observation_key
        self.timeout_s, self.token_variable, self.options = timeout_s, token_variable, options or {}
        self.observation_space, self.action_space = FreeText(), FreeText()
        if urlsplit(url).scheme not in ("http", "https", "ws", "wss") or not urlsplit(url).hostname:
            raise DataError(f"url must be http://host:port or ws://host:port, got {url!r}.")
        self._session: _Session | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """First observation of a new episode of the server."""
        super().reset(seed=seed)
        if self._session is None:
            self._session = self._connect()
        answer = self._ask(self._session.reset, {**self.options, **(options or {}), "seed": seed})
        return self._text(answer), dict(answer.get("info") or {})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Gymnasium's 5-tuple; a server's single `done` counts as terminated."""
        assert self._session is not None, "reset comes before step"
        answer = self._ask(self._session.step, action if self.action_key is None else {self.action_key: action})
        truncated = bool(answer.get("truncated", False))
        terminated = bool(answer.get("terminated", answer.get("done", False) and not truncated))
        reward = float(answer.get("reward") or 0.0)
        return self._text(answer), reward, terminated, truncated, dict(answer.get("info") or {})

    def close(self) -> None:
        """End the session; a reset opens another one."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _connect(self) -> "_Session":
        token = os.environ.get(self.token_variable) if self.token_variable else None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        kind = _HttpSession if self.url.startswith("http") else _OpenEnvSession
        return kind(self.url, headers, self.timeout_s)

    def _ask(self, method: Callable[[Any], Any], argument: Any) -> dict[str, Any]:
        try:
            answer = method(argument)
        except (OSError, DataError):
            self.close()
            raise
        if not isinstance(answer, dict) or "observation" not in answer:
            raise DataError(f'{self.url} must answer {{"observation": ...}}, got {str(answer)[:200]}')
        return answer

    def _text(self, answer: dict[str, Any]) -> str:
        observation = answer["observation"]
        if isinstance(observation, str):
            return observation
        if isinstance(observation, dict):
            keys = _TEXT_KEYS if self.observation_key is None else (self.observation_key,)
            text = next((observation[key] for key in keys if isinstance(observation.get(key), str)), None)
            if text is not None:
                return str(text)
            if self.observation_key is not None:
                known = ", ".join(observation)
                raise DataError(f"{self.url}: observation_key = {self.observation_key!r} is no text of: {known}.")
        return json.dumps(observation)


class _Session(Protocol):
    def reset(self, fields: dict[str, Any]) -> Any: ...

    def step(self, action: Any) -> Any: ...

    def close(self) -> None: ...


class _HttpSession:
    """Episodes over POST requests on one kept connection."""

    def __init__(self, url: str, headers: dict[str, str], timeout_s: float) -> None:
        import httpx

        # No proxy stands between a run and its environments; their certificates are the system's.
        self.http = httpx.Client(
            headers=headers, timeout=timeout_s, trust_env=False, verify=ssl.create_default_context()
        )
        self.url, self.base = url, url.rstrip("/")
        self.episode_id: Any = None

    def reset(self, fields: dict[str, Any]) -> Any:
        self.episode_id = f"{os.getpid()}-{next(_episodes)}"
        answer = self._post("/reset", {**fields, "episode_id": self.episode_id})
        if isinstance(answer, dict):
            self.episode_id = answer.get("episode_id", self.episode_id)
        return answer

    def step(self, action: Any) -> Any:
        return self._post("/step", {"action": action, "episode_id": self.episode_id})

    def close(self) -> None:
        self.http.close()

    def _post(self, route: str, body: dict[str, Any]) -> Any:
        import httpx

        try:
            response = self.http.post(self.base + route, json=body)
        except httpx.HTTPError as error:
            kind = TimeoutError if isinstance(error, httpx.TimeoutException) else ConnectionError
            raise kind(f"{self.url}{route}: {type(error).__name__}: {error}") from None
        if response.status_code in _NO_ROOM_STATUS and route == "/reset":
            raise NoRoomError(f"{self.url}{route} answered {response.status_code}: {response.text[:200]}")
        if response.status_code != 200:
            raise ConnectionError(f"{self.url}{route} answered {response.status_code}: {response.text[:200]}")
        try:
            return response.json()
        except ValueError:
            raise DataError(f"{self.url}{route} must answer with JSON, got {response.text[:200]!r}") from None


class _OpenEnvSession:
    """One OpenEnv session; the server keeps an environment for it until it is closed."""

    def __init__(self, url: str, headers: dict[str, str], timeout_s: float) -> None:
        try:
            from websockets.sync.client import connect
        except ImportError:
            raise MissingExtraError("websockets", "openenv", "RemoteEnv over ws://") from None
        address = url if urlsplit(url).path not in ("", "/") else url.rstrip("/") + "/ws"
        self.url, self.timeout_s = url, timeout_s
        opened = _open(lambda: connect(
            address, additional_headers=headers, open_timeout=timeout_s, close_timeout=_GOODBYE_S, max_size=1 << 24,
            proxy=None,
        ), url)  # fmt: skip
        self._stack = ExitStack()
        self.socket = self._stack.enter_context(opened)

    def reset(self, fields: dict[str, Any]) -> Any:
        return self._exchange("reset", fields)

    def step(self, action: Any) -> Any:
        return self._exchange("step", action)

    def close(self) -> None:
        """Say goodbye and wait until the server has: only then is the place free for somebody else."""
        from websockets.exceptions import WebSocketException

        try:
            self.socket.send(json.dumps({"type": "close"}))
            while True:
                self.socket.recv(timeout=_GOODBYE_S)
        except (WebSocketException, OSError):
            self._stack.close()

    def _exchange(self, kind: str, data: Any) -> Any:
        from websockets.exceptions import ConnectionClosed, WebSocketException

        try:
            with suppress(ConnectionClosed):  # what the server said before it left is still to be read
                self.socket.send(json.dumps({"type": kind, "data": data}))
            answer = json.loads(self.socket.recv(timeout=self.timeout_s))
        except ConnectionClosed as error:
            full = error.rcvd is not None and error.rcvd.code == _TRY_AGAIN_LATER
            raise (NoRoomError if full else ConnectionError)(f"{self.url}: {type(error).__name__}: {error}") from None
        except WebSocketException as error:
            raise ConnectionError(f"{self.url}: {type(error).__name__}: {error}") from None
        except ValueError as error:
            raise DataError(f"{self.url} must answer with JSON: {error}") from None
        if not isinstance(answer, dict) or answer.get("type") == "error":
            raise _refusal(self.url, answer)
        return answer.get("data")


def _open(connect: Callable[[], Any], url: str) -> Any:
    from websockets.exceptions import InvalidStatus, WebSocketException

    try:
        return connect()
    except InvalidStatus as error:
        kind = NoRoomError if error.response.status_code in _NO_ROOM_STATUS else ConnectionError
        raise kind(f"{url} answered {error.response.status_code} instead of a WebSocket") from None
    except WebSocketException as error:
        raise ConnectionError(f"{url}: {type(error).__name__}: {error}") from None


def _refusal(url: str, answer: Any) -> Exception:
    """The exception for a message of the type `error`."""
    data = answer.get("data") if isinstance(answer, dict) else answer
    told = data.get("message", data) if isinstance(data, dict) else data
    full = isinstance(data, dict) and data.get("code") == "CAPACITY_REACHED"
    return (NoRoomError if full else ConnectionError)(f"{url}: {str(told)[:500]}")
