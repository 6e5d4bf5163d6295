"""A real OpenEnv server: `python tests/openenv_server.py PORT CAPACITY`, in an environment that holds openenv."""

import sys
import uuid
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Say(Action):
    message: str


class Heard(Observation):
    message: str


class EchoEnvironment(Environment[Say, Heard, State]):
    """Says a number, wants it back in the second turn."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state = State(episode_id=str(uuid.uuid4()))
        self.number = 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Heard:
        self._state = State(episode_id=episode_id or str(uuid.uuid4()))
        self.number = (seed or 0) % 3
        return Heard(message=f"The number is {self.number}.", done=False, reward=0.0)

    def step(self, action: Say, timeout_s: float | None = None, **_: Any) -> Heard:
        self._state.step_count += 1
        over = self._state.step_count == 2
        return Heard(message="Which one?", done=over, reward=float(over and str(self.number) in action.message))

    @property
    def state(self) -> State:
        return self._state


if __name__ == "__main__":
    app = create_fastapi_app(EchoEnvironment, Say, Heard, max_concurrent_envs=int(sys.argv[2]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
