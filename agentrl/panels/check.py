"""Is this the panel's own data and protocol? What differs is named, and the score is then called by another name."""

from dataclasses import replace
from typing import Any

from agentrl.config.schema import Config
from agentrl.environment.spec import EnvironmentSpec, environment_spec
from agentrl.errors import UserError
from agentrl.panels.digests import Fingerprint, take_fingerprint
from agentrl.panels.panel import Panel

_SHOWN = 200
"""Differing tasks that are named one by one."""


def settings_tree(base: dict[str, Any], panel: Panel) -> dict[str, Any]:
    """A config's tables with the panel's keys in their place; other options of the environment stay."""
    tree = {table: dict(values) if isinstance(values, dict) else values for table, values in base.items()}
    for table, values in panel.settings.items():
        known = tree.setdefault(table, {})
        options = {**known.get("options", {}), **values.get("options", {})} if table == "env" else None
        known.update(values)
        if options is not None:
            known["options"] = options
    tree["eval"] = {**tree.get("eval", {}), "tasks": None}  # all of its tasks
    return tree


def compare_settings(panel: Panel, config: Config) -> list[str]:
    """Keys in which a config is not the panel's."""
    found, tree = [], config.model_dump()
    for table, values in panel.settings.items():
        for key, wanted in values.items():
            here = tree[table][key]
            pairs = [(f"{table}.{key}", here, wanted)]
            if key == "options":
                pairs = [(f"env.options.{name}", here.get(name), value) for name, value in wanted.items()]
            found += [f"{name} is {is_!r}, the panel's is {was!r}" for name, is_, was in pairs if _differ(is_, was)]
    return found


def compare_data(panel: Panel, found: Fingerprint) -> list[str]:
    """Data that are not the panel's, task by task and file by file."""
    differences = []
    if panel.digests is not None:
        names = panel.names or found.names
        other = [
            f"task {place} ({name})" if name else f"task {place}"
            for place, (name, was, now) in enumerate(zip(names, panel.digests, found.digests, strict=True))
            if was != now[: len(was)]
        ]
        differences += [f"{task}: other content" for task in other[:_SHOWN]]
        if len(other) > _SHOWN:
            differences.append(f"... and {len(other) - _SHOWN:,} more tasks")
    for name, digest in panel.files.items():
        if not found.files.get(name):
            differences.append(f"{name}: not there")
        elif found.files[name] != digest:
            differences.append(f"{name}: {found.files[name]}, the panel's is {digest}")
    if panel.engine is not None and panel.engine != found.engine and not differences:
        differences.append("engine: the environment answers a seeded walk otherwise than when the panel was made")
    return differences


def check_panel(panel: Panel, config: Config) -> list[str]:
    """All differences of settings and data; empty where a score may bear the panel's name.

    Raises:
        UserError: only a part of it would be played, or the data have too few tasks.
    """
    if config.eval.tasks is not None:
        raise UserError(f"--panel {panel.id} is played whole. Leave eval.tasks = {config.eval.tasks} away.")
    return compare_settings(panel, config) + compare_data_of(panel, environment_spec(config, "eval"))


def compare_data_of(panel: Panel, spec: EnvironmentSpec) -> list[str]:
    """`compare_data` with what an environment has."""
    env = replace(spec, format="plain").make()
    try:
        return count_tasks(panel, spec, env) + compare_data(panel, take_fingerprint(env, panel.tasks()))
    finally:
        env.close()


def count_tasks(panel: Panel, spec: EnvironmentSpec, env: Any) -> list[str]:
    """What differs where the data have more tasks than a panel of all of them.

    Raises:
        UserError: they have fewer than the panel needs.
    """
    count = getattr(env.unwrapped, "num_tasks", None)
    if not panel.is_enumerable or count is None:
        return []
    needed = max(panel.indices) + 1 if panel.indices is not None else panel.num_tasks
    if count < needed:
        raise UserError(
            f"--panel {panel.id} needs {needed:,} tasks of {spec.id} {spec.split}, the data have {count:,}. "
            f"Its data: {panel.source}"
        )
    if panel.indices is not None or count == panel.num_tasks:
        return []
    return [f"{spec.split}: {count:,} tasks, the panel has {panel.num_tasks:,}"]


def _differ(one: Any, other: Any) -> bool:
    as_list = [list(value) if isinstance(value, tuple) else value for value in (one, other)]
    return bool(as_list[0] != as_list[1])
