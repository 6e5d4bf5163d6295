"""What a config says, for people: every key with default and meaning, differences, what is wrong with a value."""

import difflib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from agentrl.config.schema import Config, Section


def describe_fields() -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, meaning) of every field, in file order."""
    for section, info in Config.model_fields.items():
        yield from _describe_section(section, info)


def content_hash(*parts: Any) -> str:
    """Twelve hex digits that name JSON-able values; equal values give equal names in every process."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def diff_configs(old: Config, new: Config) -> list[str]:
    """One line `key: old -> new` for every field that differs."""
    before, after = dict(leaves(old.model_dump())), dict(leaves(new.model_dump()))
    keys = [*before, *(key for key in after if key not in before)]
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys if before.get(key) != after.get(key)]


def _describe_section(prefix: str, info: FieldInfo) -> Iterator[tuple[str, str, str]]:
    section = info.annotation
    assert isinstance(section, type)
    assert issubclass(section, Section)
    for name, field in section.model_fields.items():
        key = f"{prefix}.{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _describe_section(key, field)
        else:
            yield (
                key,
                json.dumps(field.get_default(call_default_factory=True)),
                " ".join((field.description or "").split()),
            )


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value that is no table."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def explain_problem(problem: Any, origin: dict[str, str]) -> str:
    """One line about what pydantic found: the key, what is wrong, where it stands, the remedy."""
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    where = next((source for known, source in origin.items() if known == key or known.startswith(key + ".")), None)
    where = where or next((source for known, source in origin.items() if key.startswith(known)), "config")
    if problem["type"] == "extra_forbidden":
        known = [name for name, _, _ in describe_fields()]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        near = near or [name for name in known if name.split(".")[-1] == path[-1]][:1]
        near = near or difflib.get_close_matches(key, list(Config.model_fields), n=1)
        hint = f" Did you mean {near[0]}?" if near else f" Tables are: {', '.join(Config.model_fields)}."
        return f"unknown key {key} ({where}).{hint}"
    default = next((text for name, text, _ in describe_fields() if name == key), "null")
    remedy = f" Its default is {default}." if where == "command line" else f" Remove the line to use {default}."
    remedy = remedy if default != "null" else ""
    message = problem["msg"].replace("Input should be", "must be").replace("greater than or equal to", ">=")
    message = message.replace("less than or equal to", "<=").replace("greater than", ">").replace("less than", "<")
    return f"{key} {message}, got {problem['input']!r} ({where}).{remedy}"
