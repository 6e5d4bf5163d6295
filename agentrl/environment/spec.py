"""Finds and makes environments: Gymnasium ids, classes of one's own, wrappers.

The only file of `agentrl` that imports `envs`.
"""

import difflib
import inspect
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.envs.registration import registry
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from agentrl import envs
from agentrl.common.data_source import DataSource
from agentrl.common.plugins import find_object, import_module
from agentrl.config.defaults import DependentDefault
from agentrl.config.schema import Config, EnvConfig
from agentrl.environment.contract import reset_env
from agentrl.envs.wrappers import FORMATS
from agentrl.errors import UserError


@dataclass(frozen=True)
class EnvironmentSpec:
    """All it takes to make an environment, in any process."""

    id: str
    """Gymnasium id, or `module:Class`."""
    split: str
    """Passed on where the constructor has a parameter `split`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the constructor."""
    format: str = "plain"
    """Name in `agentrl.envs.wrappers.FORMATS`, or `module:Wrapper`."""
    expert: bool = False
    """Ask for `info["expert_action"]` where the constructor has a parameter `expert` that these options allow."""

    def make(self) -> gymnasium.Env[str, str]:
        """A new environment.

        Raises:
            UserError: unknown id, module or option, or no environment at all.
        """
        options, entry_point = self.constructor_options(), _find_entry_point(self.id)
        made = None
        if self.expert and "expert" in _parameters(entry_point) - options.keys():
            with suppress(ValueError):  # the class has an expert, but none for these options (questions from a file)
                made = _construct(self.id, entry_point, {**options, "expert": "default"})
        if made is None:
            made = _construct(self.id, entry_point, options)
        if not isinstance(made, gymnasium.Env):
            raise UserError(f"env.id: {self.id} makes a {type(made).__name__}, which is no gymnasium.Env.")
        if self.format not in FORMATS:
            return find_object(self.format, "env.format")(made)
        _refuse_numbers(made, self.id)
        wrapper = FORMATS[self.format]
        return wrapper(made) if wrapper is not None else made

    def constructor_options(self) -> dict[str, Any]:
        """Keyword arguments of the constructor, checked by name.

        Raises:
            UserError: unknown id, unknown option, or one that is missing.
        """
        entry_point = _find_entry_point(self.id)
        accepted = _parameters(entry_point)
        options = dict(self.options)
        if "split" in accepted:
            options.setdefault("split", self.split)
        unknown = [name for name in options if name not in accepted and "**" not in accepted]
        if unknown:
            known = sorted(accepted - {"**"})
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" It takes: {', '.join(known) or 'none'}."
            raise UserError(f"env.options.{unknown[0]} is not an option of {self.id}.{hint}")
        missing = sorted(_required(entry_point) - options.keys())
        if missing:
            raise UserError(f"{self.id} needs env.options.{missing[0]}: its constructor has no default for it.")
        return options

    def modules(self) -> list[str]:
        """Names of the modules that hold the environment and its wrapper."""
        paths = [_find_entry_point(self.id)]
        paths += [find_object(self.format, "env.format")] if ":" in self.format else [FORMATS.get(self.format)]
        return [path.__module__ for path in paths if getattr(path, "__module__", None)]

    def has_splits(self) -> bool:
        """Whether the environment takes a split at all."""
        return bool({"split", "**"} & _parameters(_find_entry_point(self.id)))

    def offers_expert(self) -> bool:
        """Whether there is somebody to imitate: an environment asked for its expert names an `expert_action`."""
        env = replace(self, expert=True).make()
        try:
            return "expert_action" in reset_env(env, 0, None)[1]
        finally:
            env.close()


def environment_spec(config: Config, split: str = "train", *, expert: bool = False) -> EnvironmentSpec:
    """The environment of an experiment.

    Args:
        config: the experiment.
        split: `train` or `eval`: which of its splits.
        expert: whether the expert is asked for.
    """
    env = config.env
    return EnvironmentSpec(
        env.id, env.split if split == "train" else env.eval_split, env.options, env.format, expert=expert
    )


def describe_tasks(spec: EnvironmentSpec) -> tuple[int | None, DataSource | None]:
    """(`count_tasks`, where they come from) of a spec's split; None where the environment does not say."""
    env = spec.make()
    try:
        num_tasks = getattr(env.unwrapped, "num_tasks", None)
        source = DataSource.of(getattr(env.unwrapped, "data_source", None))
    finally:
        env.close()
    if num_tasks is not None and int(num_tasks) < 1:
        raise UserError(f"{spec.id} has no tasks in the split {spec.split!r}: its num_tasks is {num_tasks}.")
    return None if num_tasks is None else int(num_tasks), source


def count_tasks(spec: EnvironmentSpec) -> int | None:
    """Number of enumerable tasks of a spec's split; None where the environment has no `num_tasks`."""
    return describe_tasks(spec)[0]


def conventions(env_id: str) -> dict[str, Any]:
    """How a benchmark is usually evaluated, from the `metadata` of its class; all keys may be missing.

    `eval_split`; `eval_samples`, episodes per task; `scorer`, the distribution that judges answers; `expert`, what its
    default expert is, where that is no ceiling.
    """
    return dict(getattr(_find_entry_point(env_id), "metadata", {}))


def convention_defaults(config: Config) -> Iterator[DependentDefault]:
    """What the environments themselves name where nobody has set it: the split they are evaluated on."""
    for place, env in enumerate(config.mixture or [config.env]):
        for name, value in _named_by(env).items():
            key = f"env.{place}.{name}" if config.mixture else f"env.{name}"
            yield DependentDefault(key, value, "env.id: it is the environment's own word")


def with_conventions(config: Config) -> Config:
    """A config whose evaluation splits, where nobody has set one, are those that the environments name."""
    members = config.mixture or [config.env]
    return config.with_environments([env.model_copy(update=_named_by(env)) for env in members])


def _named_by(env: EnvConfig) -> dict[str, str]:
    split = None if "eval_split" in env.model_fields_set else conventions(env.id).get("eval_split")
    return {} if split is None else {"eval_split": str(split)}


def require_splits(config: Config) -> None:
    """Refuse a split that was asked for of an environment that has none, and would play something else.

    Raises:
        UserError: its constructor takes no `split`.
    """
    if not environment_spec(config, "eval").has_splits():
        raise UserError(
            f"env.eval_split: {config.env.id} has no splits (its constructor takes no `split`), so there is no "
            f"{config.env.eval_split!r} to play. Leave it out."
        )


def _construct(env_id: str, entry_point: Any, options: dict[str, Any]) -> Any:
    name = _registered_name(env_id)
    return entry_point(**options) if name is None else gymnasium.make(name, disable_env_checker=True, **options)


def _registered_name(env_id: str) -> str | None:
    """The id under which Gymnasium knows an environment; `module:Name-v0` imports the module that registers it."""
    module, colon, name = env_id.rpartition(":")
    if colon and re.search(r"-v\d+$", name):
        import_module(module, "env.id", env_id)
        env_id = name
    return env_id if env_id in registry else None


def _refuse_numbers(env: gymnasium.Env[str, str], env_id: str) -> None:
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if isinstance(space, Box | Discrete | MultiBinary | MultiDiscrete):
            raise UserError(
                f"env.id: the {name} of {env_id} is {space}, and a language model needs text. "
                "Give env.format = module:Wrapper, a gymnasium.Wrapper that turns it into text."
            )


def _find_entry_point(env_id: str) -> Any:
    name = _registered_name(env_id)
    if name is not None:
        spec: GymnasiumSpec = registry[name]
        entry_point = spec.entry_point
        return find_object(entry_point, env_id) if isinstance(entry_point, str) else entry_point
    if ":" in env_id:
        found = find_object(env_id, "env.id")
        if not callable(found):
            raise UserError(f"env.id: {env_id} is a {type(found).__name__}; an environment's class is needed.")
        return found
    near = difflib.get_close_matches(env_id, list(registry), n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UserError(
        f"env.id: no environment {env_id!r}. {hint}Built in: {', '.join(envs.ENVIRONMENTS)}; your own: module:Class."
    )


def _parameters(entry_point: Any) -> set[str]:
    parameters = inspect.signature(entry_point).parameters.values()
    return {"**" if parameter.kind is parameter.VAR_KEYWORD else parameter.name for parameter in parameters}


def _required(entry_point: Any) -> set[str]:
    """Parameters without a default."""
    parameters = inspect.signature(entry_point).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
