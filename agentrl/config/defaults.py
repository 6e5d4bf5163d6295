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
    is_tiny = _get(tree, "model", "path", "tiny") == "tiny"
    if is_tiny:
        yield DependentDefault(
            "learner.lr", 1e-3, 'model.path = "tiny": at the rate of pretrained models it stands still'
        )
    else:
        yield DependentDefault("learner.lr", 1e-6, "model.path is a pretrained model")
    if _get(tree, "rollout", "engine", "local") == "local":
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
