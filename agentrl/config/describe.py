"""What a config says, for people: every key with default and meaning, differences, what is wrong with a value."""

import difflib
import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from agentrl.config.schema import Config
from agentrl.config.section import Section, kinds_in


def describe_fields() -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, meaning) of every field, in file order."""
    for section in tables():
        yield from _describe_section(section, Config.model_fields[section])


def tables() -> list[str]:
    """Names of the tables of a config."""
    return [name for name, field in Config.model_fields.items() if not field.exclude]


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
    if of_kinds := kinds_in(info.annotation):
        yield from _describe_kinds(prefix, of_kinds, info.default.kind)
        return
    section = info.annotation
    assert isinstance(section, type)
    assert issubclass(section, Section)
    for name, field in section.model_fields.items():
        key = f"{prefix}.{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _describe_section(key, field)
        else:
            yield key, _default_text(field), _meaning(field)


def _describe_kinds(prefix: str, of_kinds: dict[str, type[Section]], default: str) -> Iterator[tuple[str, str, str]]:
    """What all kinds share comes first; a key of some kinds names them, with a line for every other meaning."""
    names = [kind if kind != "own" else "module:name" for kind in of_kinds]
    one = next(iter(of_kinds.values()))
    shared = next(cls for cls in reversed(one.__mro__) if issubclass(cls, Section) and "kind" in cls.model_fields)
    for name, field in shared.model_fields.items():
        meaning, is_kind = _meaning(field), name == "kind"
        text = json.dumps(default) if is_kind else _default_text(field)
        yield f"{prefix}.{name}", text, f"{meaning} Kinds: {', '.join(names)}." if is_kind else meaning
    rows: dict[tuple[str, str, str], list[str]] = {}
    for kind, name in zip(of_kinds, names, strict=True):
        for key, field in of_kinds[kind].model_fields.items():
            if key not in shared.model_fields:
                rows.setdefault((key, _default_text(field), _meaning(field)), []).append(name)
    for (key, text, meaning), owners in rows.items():
        yield f"{prefix}.{key}", text, f"{', '.join(owners)}: {meaning}"


def _default_text(field: FieldInfo) -> str:
    return "null" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))


def _meaning(field: FieldInfo) -> str:
    meaning, allowed = " ".join((field.description or "").split()), _allowed(field.annotation)
    return f"{meaning} One of {', '.join(allowed)}." if len(allowed) > 1 else meaning


def _allowed(annotation: Any) -> list[str]:
    """The words of a Literal, wherever it stands in a type."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _allowed(part)]


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value that is no table."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif key == "env" and isinstance(value, list):  # [[env]]
            yield from leaves({str(i): table for i, table in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def kinds_of_table(table: str) -> dict[str, type[Section]]:
    """Kind -> class of a table whose `kind` decides its keys (`gate`, `loss`); empty for any other."""
    return kinds_in(Config.model_fields[table].annotation) if table in Config.model_fields else {}


def explain_problem(problem: Any, origin: dict[str, str]) -> str:
    """One line about what pydantic found: the key, what is wrong, where it stands, the remedy."""
    path = [str(part) for part in problem["loc"]]
    kind = path.pop(1) if len(path) > 1 and path[1] in kinds_of_table(path[0]) else None
    if path[0] == "mixture":
        path[0] = "env"
    key = ".".join(path)
    if problem["type"] == "union_tag_invalid":
        return _explain_kind(path[0], problem["ctx"]["tag"], _source(f"{key}.kind", origin))
    where = _source(key, origin)
    if problem["type"] == "extra_forbidden":
        return _explain_unknown(path, kind, where)
    if problem["type"] == "missing" and kind is not None:
        meaning = _meaning(kinds_of_table(path[0])[kind].model_fields[path[-1]])
        return f'{path[0]}.kind = "{kind}" needs {key} ({_source(f"{path[0]}.kind", origin)}): {meaning}'
    default = next((text for name, text, _ in describe_fields() if name == key), "null")
    remedy = f" Its default is {default}." if where == "command line" else f" Remove the line to use {default}."
    remedy = remedy if default != "null" else ""
    message = problem["msg"].replace("Input should be", "must be").replace("greater than or equal to", ">=")
    message = message.replace("less than or equal to", "<=").replace("greater than", ">").replace("less than", "<")
    return f"{key} {message}, got {problem['input']!r} ({where}).{remedy}"


def _source(key: str, origin: dict[str, str]) -> str:
    """Where a key was written."""
    exact = next((source for known, source in origin.items() if known == key or known.startswith(key + ".")), None)
    return exact or next((source for known, source in origin.items() if key.startswith(known)), "config")


def _explain_kind(table: str, given: str, where: str) -> str:
    known = [kind for kind in kinds_of_table(table) if kind != "own"]
    near = difflib.get_close_matches(given, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{table}.kind must be one of {', '.join(known)}, or module:name of your own, got {given!r} ({where}).{hint}"


def _explain_unknown(path: list[str], kind: str | None, where: str) -> str:
    key = ".".join(path)
    owners = [name for name, cls in kinds_of_table(path[0]).items() if path[-1] in cls.model_fields]
    if kind is not None and owners:
        whose = ", ".join("a kind of your own" if name == "own" else name for name in owners)
        return f'{key} is no key of {path[0]}.kind = "{kind}" ({where}); it belongs to {whose}. Leave it out.'
    known = [name for name, _, _ in describe_fields()]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near = near or [name for name in known if name.split(".")[-1] == path[-1]][:1]
    near = near or difflib.get_close_matches(key, tables(), n=1)
    hint = f" Did you mean {near[0]}?" if near else f" Tables are: {', '.join(tables())}."
    return f"unknown key {key} ({where}).{hint}"
