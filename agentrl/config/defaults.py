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
    if _get(tree, "rollout", "engine", "local") != "local":
        yield _sync_tolerance(str(_get(tree, "model", "dtype", "float32")))
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


def _sync_tolerance(dtype: str) -> DependentDefault:
    """50 u nats, with u the largest relative error of one rounding in the products of `model.dtype`.

    Learner and engine multiply the same rounded weights and keep logits in float32, so they differ by what is rounded
    on the way to the last hidden state: r roundings of relative size up to u, which add up, as a random walk does, to
    u sqrt(r / 3) of it; a log-prob moves by that times the spread of the logits. For 36 blocks of two sums and two
    products on each side r is about 300, and the spread is 2 to 4 nats: 20 to 40 u.
    """
    if dtype in ("mixed", "bfloat16"):
        return DependentDefault(
            "rollout.sync_tolerance", 0.1, f'model.dtype = "{dtype}": 50 x 2^-9, products in bfloat16'
        )
    why = f'model.dtype = "{dtype}": 50 x 2^-11, since a GPU may multiply float32 in TF32'
    return DependentDefault("rollout.sync_tolerance", 0.025, why)


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
