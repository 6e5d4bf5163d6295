"""What an environment may answer: anything in `info`; what no run can use is refused by one check."""

import asyncio
import enum
import json
import math
import pickle
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from agentrl import check_env
from agentrl.command.guard import main_guard
from agentrl.config.read import load_config
from agentrl.environment.contract import ContractError, checked_info, checked_reset, checked_step
from agentrl.environment.pool import EnvPool
from agentrl.environment.spec import EnvironmentSpec, with_conventions
from agentrl.envs.spaces import FreeText
from agentrl.errors import ConfigError
from agentrl.types import Task


class ToolError(Exception):
    """Pickles, but does not unpickle."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class Hostile:
    """Every method that a curious program calls raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __len__ = __float__ = __iter__ = __repr__  # type: ignore[assignment]


class Colour(enum.StrEnum):
    RED = "red"


ODD = {
    "error": ToolError("rate limit", code=429), "lock": threading.Lock(), "lambda": lambda: None, "hostile": Hostile(),
    "nan": math.nan, "array": np.arange(3), "tensor": torch.ones(2, requires_grad=True), "nested": {1: {(2,): {3}}},
    "colour": Colour.RED, "bytes": b"\xff", 7: "seven", "surrogate": ["\ud800"], "huge": np.zeros(10**6),
    "none": None, "integer": np.int64(3),
}  # fmt: skip


def test_info_of_any_kind_becomes_plain_data_that_every_process_can_read() -> None:
    info = checked_info(ODD)
    assert pickle.loads(pickle.dumps(info)).keys() == {str(key) for key in ODD}
    json.dumps(info)
    assert (info["array"], info["tensor"], info["integer"], info["colour"]) == ([0, 1, 2], [1.0, 1.0], 3, "red")
    assert type(info["colour"]) is str
    assert info["error"] == "rate limit"
    assert info["hostile"] == "<Hostile>"
    assert len(info["huge"]) <= 500


def test_info_that_holds_itself_ends() -> None:
    circle: dict[str, Any] = {}
    circle["again"] = [circle]
    assert "again" in checked_info(circle)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("score", np.bool_(True), 1.0), ("score", np.float32(0.5), 0.5), ("score", torch.tensor(0.25), 0.25),
        ("score", Decimal("0.5"), 0.5), ("success", np.bool_(False), False), ("success", torch.tensor(True), True),
        ("category", 3, "3"), ("category", ["a", "b"], '["a", "b"]'), ("answer", np.int64(7), "7"),
        ("anchor", np.array([1, 2]), "[1, 2]"), ("admissible_actions", np.array(["go"]), ["go"]),
        ("metadata", {"level": np.int64(3), "tags": ("x",)}, {"level": 3, "tags": ["x"]}),
    ],
)  # fmt: skip
def test_what_a_run_reads_has_the_type_it_needs(key: str, value: Any, wanted: Any) -> None:
    found = checked_info({key: value})[key]
    assert (found, type(found)) == (wanted, type(wanted))


@pytest.mark.parametrize("info", [None, {}, {"score": None, "category": None}, {"score": math.nan}])
def test_nothing_is_nothing(info: Any) -> None:
    assert checked_reset(("hello", info)) == ("hello", {})


@pytest.mark.parametrize(
    ("info", "message"),
    [({"success": "False"}, "info['success'] must be bool, got str: 'False'"), ({"score": "high"}, "a finite number"),
     ({"score": 7}, "between 0 and 1"), ({"system": 3}, "must be str"), ({"tools": "search"}, "must be list"),
     ({"score": Hostile()}, 'info["score"] must be a finite number|cannot be read'), (3, "info must be a dict")],
)  # fmt: skip
def test_what_a_run_would_misread_is_refused(info: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message.replace("[", r"\[").replace("]", r"\]")):
        checked_info(info)


@pytest.mark.parametrize("reward", [1, True, np.float32(1), np.bool_(True), np.array([1.0]), torch.tensor(1.0)])
def test_rewards_of_any_library_are_numbers(reward: Any) -> None:
    step = checked_step((np.str_("hi"), reward, np.bool_(True), torch.tensor(False), None))
    assert step == ("hi", 1.0, True, False, {})
    assert [type(each) for each in step] == [str, float, bool, bool, dict]


class OddInfo(gymnasium.Env[str, str]):
    """Trains whatever it says beside the text."""

    observation_space = action_space = FreeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return f"Say {int(self.np_random.integers(9))}.", None

    def step(self, action: str) -> Any:
        return "Thanks.", np.float32(len(action) % 2), True, False, {**ODD, "score": np.bool_(True)}


class Awaited(OddInfo):
    """Of another school."""

    async def step(self, action: str) -> Any:  # type: ignore[override]
        return "Thanks.", 1.0, True, False, {}


@pytest.mark.slow
def test_what_trains_passes_check_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = check_env.Finding("worker process", "ok", "")  # starting a process takes longer than all other checks
    monkeypatch.setattr(check_env, "play_elsewhere", lambda spec, timeout_s: "")
    monkeypatch.setattr(check_env, "check_other_process", lambda prober, there: fine)
    words = [f"{__name__}:OddInfo", "--episodes", "2", "--max-steps", "2", "--json", str(tmp_path / "page.json")]
    assert main_guard(lambda: check_env.main(words)) == 0, (tmp_path / "page.json").read_text()
    handle = EnvPool(EnvironmentSpec(f"{__name__}:OddInfo", "train")).acquire()
    assert asyncio.run(handle.reset(Task("", "train", seed=0)))[1] == {}


@pytest.mark.slow
def test_odd_info_reaches_a_run_from_a_worker() -> None:
    pool = EnvPool(EnvironmentSpec(f"{__name__}:OddInfo", "train"), num_workers=1)

    async def play() -> Any:
        handle = pool.acquire()
        await handle.reset(Task("", "train", seed=0))
        return await handle.step("a")

    *_, info = asyncio.run(play())
    pool.close()
    assert (info["error"], info["score"]) == ("rate limit", 1.0)


def test_async_methods_are_told_with_the_remedy() -> None:
    env = Awaited()
    with pytest.raises(ContractError, match=r"step is `async def`.*plain `def step`"):
        checked_step(env.step("a"))


@pytest.mark.parametrize(
    ("env_id", "split"),
    [("agentrl/ALFWorld-v0", "valid_unseen"), ("agentrl/WebShop-v0", "test"), ("agentrl/SearchQA-v0", "test"),
     ("agentrl/Math-v0", "test"), ("agentrl/ReasoningGym-v0", "test"), ("tests.toy:ColourEnv", "valid_unseen")],
)  # fmt: skip
def test_the_evaluation_split_is_the_environments_own_unless_given(env_id: str, split: str) -> None:
    root = Path(__file__).resolve().parents[2]
    for source in (None, root / "configs" / "quickstart.toml"):
        config = with_conventions(load_config(source, ["--env.id", env_id], notify=lambda _: None))
        assert config.env.eval_split == split
    given = load_config(None, ["--env.id", env_id, "--env.eval_split", "mine"])
    assert with_conventions(given).env.eval_split == "mine"


def test_dates_in_options_arrive_as_text_before_and_after_a_resume(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[env.options]\nstart = 2026-01-31\nhours = [08:30:00]\nat = { t = 2026-01-31T08:30:00Z }\n")
    options = load_config(file).env.options
    assert options == {"start": "2026-01-31", "hours": ["08:30:00"], "at": {"t": "2026-01-31T08:30:00+00:00"}}
    assert load_config(json.loads(load_config(file).model_dump_json())).env.options == options


@pytest.mark.parametrize(
    ("name", "value"),
    [("stop_token", "</s>"), ("pad_token", "pad"), ("end_of_turn_token", "<|im_end|>"), ("token", "<sep>"),
     ("max_tokens", "5"), ("eos_token", "END")],
)  # fmt: skip
def test_tokens_that_are_text_are_no_secrets(name: str, value: str) -> None:
    assert load_config({"env": {"options": {name: value}}}).env.options == {name: value}


@pytest.mark.parametrize("name", ["token", "api_token", "service_token", "access-token", "secret_key", "db_password"])
def test_names_of_secrets_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="looks like a secret"):
        load_config({"env": {"options": {name: "sesame-4711-abcdef"}}})
