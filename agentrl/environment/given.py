"""Environments and rewards that a script hands over as objects: a class, a factory, functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrl.common.plugins import HERE, name_object
from agentrl.config.read import load_config
from agentrl.config.schema import Config
from agentrl.console import note
from agentrl.environment.reward import Reward
from agentrl.environment.spec import with_conventions
from agentrl.errors import UserError

GivenEnvironment = str | Callable[..., Any]
"""A registered id, `module:Class`, a class, or a function that makes an environment."""
GivenReward = Reward | str | Sequence[Reward | str] | Mapping[Reward | str, float]
"""A function, several, or functions with their weights; a text is `module:function`, or `environment`."""


def load_given(
    source: Any, overrides: Mapping[str, Any] | Sequence[str] | None, *,
    env: GivenEnvironment | None = None, reward: GivenReward | None = None,
) -> Config:  # fmt: skip
    """`load_config` with an environment and rewards on top, which the config then names, and what that names itself.

    What only this process has is played in it: no worker process could import it.

    Raises:
        UserError: two rewards of one name, or what is neither function nor name.
    """
    if env is not None:
        name = env if isinstance(env, str) else name_object(_called(env, "env", "a class or a function"))
        if isinstance(overrides, Sequence):
            overrides = [*overrides, "--env.id", name]
        else:
            overrides = {**(overrides or {}), "env.id": name}
    config = load_config(source, overrides)
    members = config.mixture or [config.env]
    if reward is not None:
        weights = _name_rewards(reward)
        members = [each.model_copy(update={"reward": weights}) for each in members]
        config = config.with_environments(members)
    ours = [each.id for each in members if HERE in (each.id[: len(HERE)], each.format[: len(HERE)])]
    if ours and config.rollout.ahead:
        raise UserError(
            f"rollout.ahead = 1 plays in another process, which cannot import {ours[0].removeprefix(HERE)} of this "
            "script or notebook. Put it into a module, or set rollout.ahead = 0."
        )
    if ours:
        note(f"{ours[0].removeprefix(HERE)} is of this script or notebook: played in this process (env_workers = 0)")
        config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"env_workers": 0})})
    return with_conventions(config)


def _name_rewards(reward: GivenReward) -> str | dict[str, float]:
    if isinstance(reward, Mapping):
        pairs = list(reward.items())
    else:
        several = reward if isinstance(reward, Sequence) and not isinstance(reward, str) else [reward]
        pairs = [(each, 1.0) for each in several]
    names = [each if isinstance(each, str) else name_object(_called(each, "reward", "a function")) for each, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"reward: two are called {twice}. Give each function (def) a name of its own.")
    return {name: float(weight) for name, (_, weight) in zip(names, pairs, strict=True)}


def _called(given: Any, where: str, wanted: str) -> Any:
    if not callable(given):
        raise UserError(f"{where} must be {wanted}, or a name, got {type(given).__name__}: {given!r:.80}.")
    return given
