"""Defaults that depend on other keys: the one place that says which, on what, and why. `--dry-run` shows them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentrl.common.plugins import HERE


@dataclass(frozen=True)
class DependentDefault:
    """What a key is where nobody sets it."""

    key: str
    """Dotted."""
    value: Any
    reason: str
    """Which other key decides, and why."""


def dependent_defaults(tree: Mapping[str, Any]) -> Iterator[DependentDefault]:
    """Those of a config.

    Args:
        tree: nested tables, as far as they are given.
    """
    if _get(tree, "model", "path", "tiny") == "tiny":
        yield from _of_tiny_model(begins_at_random=not _get(tree, "warmstart", "episodes", 0))
    else:
        yield DependentDefault("learner.lr", 1e-6, "model.path is a pretrained model")
    if _get(tree, "rollout", "ahead", 0):
        yield DependentDefault("loss.tis_cap", 2.0, "rollout.ahead: weights one batch older than the learner's")
    elif _get(tree, "rollout", "engine", "local") == "local":
        yield DependentDefault("loss.tis_cap", 0.0, 'rollout.engine = "local" computes as the learner does')
    else:
        yield DependentDefault("loss.tis_cap", 2.0, "rollout.engine computes by other code than the learner")
    env = tree.get("mixture") or tree.get("env")
    members = env if isinstance(env, list) else [env]
    ids = [str(each.get("id", "agentrl/")) for each in members if isinstance(each, Mapping)]
    workers = max(map(default_workers, ids), default=0)
    why = (
        "env.id is somebody's own" if workers else "env.id is built in, it neither hangs nor leaks; or it is a script's"
    )
    yield DependentDefault("rollout.env_workers", workers, why)


def _of_tiny_model(*, begins_at_random: bool) -> Iterator[DependentDefault]:
    """What a small model learns with in minutes; measured by `benchmarks/ten_environments.py`."""
    why = 'model.path = "tiny"'
    yield DependentDefault("learner.lr", 1e-3, f"{why}: at the rate of pretrained models it stands still")
    if not begins_at_random:
        return
    why += " without a warm start"
    settings: tuple[tuple[str, Any, str], ...] = (
        ("learner.schedule", "linear", "large steps find an answer, small ones keep it"),
        ("loss.normalization", "sequence_mean", "a long episode weighs no more than a short one"),
        (
            "loss.kl_coef",
            0.02,
            "the pull to a start that says every word keeps it trying, once one is right most often",
        ),
        ("loss.kl_kind", "k2", "its pull grows with the distance, that of k3 is bounded"),
        ("rollout.max_new_tokens", 4, "whatever it says beyond an answer is noise to learn from"),
        ("train.steps", 200, "some minutes on two cores"),
    )
    for key, value, reason in settings:
        yield DependentDefault(key, value, f"{why}: {reason}")


def default_workers(env_id: str) -> int:
    """0 for the built-in environments, which neither hang nor leak; 2 processes for anybody else's.

    What a script or a notebook cell defines cannot be imported by another process, and is played in its own.
    """
    return 0 if env_id.startswith(("agentrl/", HERE)) else 2


def with_defaults(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with every dependent default written out that nobody has set."""
    filled = {name: dict(table) if isinstance(table, dict) else table for name, table in tree.items()}
    for default in dependent_defaults(tree):
        name, key = default.key.split(".")
        table = filled.setdefault(name, {})
        if isinstance(table, dict) and table.get(key) is None:
            table[key] = default.value
    return filled


def without_defaults(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree without the dependent defaults that `with_defaults` wrote out, so that overrides settle them anew."""
    bare = {name: dict(table) if isinstance(table, dict) else table for name, table in tree.items()}
    for default in dependent_defaults(tree):
        name, key = default.key.split(".")
        if _get(tree, name, key, None) == default.value:
            del bare[name][key]
    return bare


def _get(tree: Mapping[str, Any], table: str, key: str, default: Any) -> Any:
    section = tree.get(table)
    return section.get(key, default) if isinstance(section, Mapping) else default
