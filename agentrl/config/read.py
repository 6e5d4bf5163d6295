"""A config from its sources: TOML files, shipped names, run folders, dotted overrides (`--learner.lr 1e-3`).

Unknown keys and values out of range are answered with one line that names the key, the file and the remedy.
"""

import copy
import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentrl.common.plugins import make_importable
from agentrl.config.defaults import without_defaults
from agentrl.config.describe import explain_problem, kinds_of_table, leaves
from agentrl.config.schema import Config, EnvConfig
from agentrl.config.section import shared_keys, tag_of
from agentrl.config.shipped import find_config, shipped_configs
from agentrl.console import note
from agentrl.errors import ConfigError

_SECRET = re.compile(
    r"(^|[._-])(secret|password|passwd|passphrase|credentials?|(api|secret|private|access)[_-]?keys?)$"
)
_TOKEN = re.compile(r"(^|[._-])(?P<kind>[a-z0-9]*)[_-]?token$")
_WORDS_OF_TOKENIZERS = {
    "stop", "end", "start", "begin", "eos", "bos", "pad", "unk", "sep", "cls", "mask", "eot", "eom", "special", "think",
    "image", "tool", "answer", "separator", "delimiter", "turn", "role", "prefix", "suffix", "first", "last",
}  # fmt: skip
"""What stands before `_token` where a token is a piece of text."""


def load_config(
    source: Path | str | dict[str, Any] | Config | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    notify: Callable[[str], None] = note,
) -> Config:
    """A config with dotted overrides on top.

    An `env.id` among the overrides that is not the source's also drops what the source says for its own environment
    alone: `env.options`, and an `env.format` that is a wrapper of somebody's; its `env.eval_split` counts as not given
    where the other environment has a word of its own.

    Args:
        source: TOML file or the name of a shipped one (modules of one's own beside the file can then be imported), the
            resolved tree of an earlier run, a config, or None for the defaults.
        overrides: `{"learner.lr": 1e-3}`, or command-line words: `["--learner.lr", "1e-3", "--train.seed=1"]`.
        notify: is told what was dropped, one line.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type, value out of range; one line per problem.
    """
    if isinstance(source, Config) and not overrides:
        return source
    where, tree = _read_source(source)
    origin = {key: where for key, _ in leaves(tree)}
    pairs = list(overrides.items()) if isinstance(overrides, Mapping) else parse_overrides(list(overrides or []))
    is_foreign = _drop_foreign_options(tree, dict(pairs).get("env.id"), notify)
    for table in ("gate", "loss"):
        _drop_keys_of_other_kinds(tree, table, dict(pairs).get(f"{table}.kind"), notify)
    for key, value in pairs:
        _assign(tree, key, value)
        origin[key] = "command line"
    config = build_config(tree, origin)
    if is_foreign and "env.eval_split" not in dict(pairs):
        config.env.model_fields_set.discard("eval_split")
    return config


def config_without_file(overrides: Sequence[str]) -> Path | None:
    """What a command without a config begins with: the shipped quickstart, or where its words name an environment or a
    model, None: the defaults, which suit any."""
    named = {key for key, _ in parse_overrides(list(overrides))} & {"env.id", "model.path"}
    return None if named else Path("quickstart")


def _read_source(source: Path | str | dict[str, Any] | Config | None) -> tuple[str, dict[str, Any]]:
    """(what to call it in messages, its tree); a file's folder becomes importable."""
    if isinstance(source, Config):
        return "config", without_defaults(source.model_dump(exclude_unset=True))
    if not isinstance(source, Path | str):
        return "run folder", without_defaults(_without_idle_keys(copy.deepcopy(source or {})))
    file = find_config(Path(source))
    tree = read_toml(file)
    if file.resolve() not in shipped_configs().values():
        make_importable(file.parent)
    return str(file), tree


def build_config(tree: dict[str, Any], origin: dict[str, str] | None = None) -> Config:
    """A checked Config from nested dictionaries; `origin` maps dotted keys to where they were written."""
    _refuse_secrets(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems = error.errors()
        if any(problem["loc"][0] == "mixture" for problem in problems):  # the first of them stands under `env` too
            problems = [problem for problem in problems if problem["loc"][0] != "env"]
        raise ConfigError("\n".join(explain_problem(problem, origin or {}) for problem in problems)) from None


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """(other words, overrides) of a command line: `--a.b value` and `--a.b=value` are overrides."""
    others, overrides = [], []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not (word.startswith("--") and "." in word.split("=")[0]):
            others.append(word)
            continue
        overrides.append(word)
        if "=" not in word and rest:
            overrides.append(rest.pop(0))
    return others, overrides


def parse_overrides(words: list[str]) -> list[tuple[str, Any]]:
    """`["--a.b", "1", "--c.d=x"]` -> `[("a.b", 1), ("c.d", "x")]`; values are TOML, bare words are strings."""
    pairs = []
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or "." not in word.split("=")[0]:
            raise ConfigError(f"expected an override such as --learner.lr 1e-3, got {word!r} (command line).")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise ConfigError(f"--{key} needs a value, e.g. --{key} 1 (command line).")
            value = words.pop(0)
        pairs.append((key.replace("-", "_"), _parse_value(value)))
    return pairs


def read_toml(path: Path) -> dict[str, Any]:
    """The tree of a TOML file; one clear line where it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], n=1)
        shipped = difflib.get_close_matches(path.as_posix(), list(shipped_configs()), n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else f" Did you mean {shipped[0]}?" if shipped else ""
        hint = hint or " The shipped ones are listed by agentrl train --list."
        raise ConfigError(f"no config file at {path}.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {path}: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None


def _refuse_secrets(tree: dict[str, Any]) -> None:
    """Run folders keep the whole config and the command: no place for passwords."""
    for key, value in leaves({"env": tree.get("env", {})}):
        if isinstance(value, str) and value and _looks_secret(key.lower(), value):
            raise ConfigError(
                f"{key} looks like a secret, and run folders keep all options. Put it into an environment variable and "
                "give the variable's name to the environment (token_variable of "
                "agentrl.envs.adapters.remote:RemoteEnv)."
            )


def _looks_secret(key: str, value: str) -> bool:
    """Whether a name is one that passwords have; a `stop_token` is text, and so is any token written as a mark."""
    if _SECRET.search(key):
        return True
    found = _TOKEN.search(key)
    is_mark = re.search(r"[<>\[\]{}|\s]", value) is not None or len(value) < 3
    return found is not None and found["kind"] not in _WORDS_OF_TOKENIZERS and not is_mark


def _drop_foreign_options(tree: dict[str, Any], env_id: Any, notify: Callable[[str], None]) -> bool:
    """Whether the tree was written for another environment; its options are then dropped."""
    env = tree.get("env")
    if env_id is None or not isinstance(env, dict):
        return False
    old = env.get("id", EnvConfig().id)
    foreign = [
        key
        for key in ("options", "format")
        if env.get(key) and (key == "options" or ":" in str(env[key])) and old != env_id
    ]
    for key in foreign:
        notify(f"env.{key} = {json.dumps(env.pop(key), default=str)} is for {old}, not for {env_id}: dropped")
    return bool(old != env_id)


def _without_idle_keys(tree: dict[str, Any]) -> dict[str, Any]:
    """A run's config without what says nothing for its kinds: earlier versions recorded the keys of all of them."""
    for table in ("gate", "loss"):
        section, known = tree.get(table), kinds_of_table(table)
        if isinstance(section, dict) and "kind" in section:
            kind = str(section["kind"])
            own = known.get(tag_of(kind))
            idle = {name for cls in known.values() for name in cls.model_fields} | {"kl_rate"}
            for key in [key for key in section if own is not None and key in idle and key not in own.model_fields]:
                former = section.pop(key)
                if key == "kl_rate" and kind == "kl_rate":
                    section.update(former)
    return tree


def _drop_keys_of_other_kinds(tree: dict[str, Any], table: str, kind: Any, notify: Callable[[str], None]) -> None:
    """Where an override names another kind, what the source says for its own kind alone goes."""
    section = tree.get(table)
    if kind is None or not isinstance(section, dict):
        return
    known = kinds_of_table(table)
    old = str(section.get("kind", Config.model_fields[table].default.kind))
    old_class, new_class = (known.get(tag_of(name)) for name in (old, kind))
    if old == kind or old_class is None or new_class is None:  # a wrong kind is told by the check of the whole
        return
    keep = {"kind", *shared_keys(old_class, new_class)}
    for key in [key for key in section if key in old_class.model_fields and key not in keep]:
        notify(f"{table}.{key} = {json.dumps(section.pop(key), default=str)} is for {table}.kind {old}: dropped")


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for place, parent in enumerate(parents):
        inner = tree.setdefault(parent, {})
        if isinstance(inner, list) and parent == "env":  # [[env]]
            number = parents[place + 1] if place + 1 < len(parents) else ""
            if not number.isdecimal() or int(number) >= len(inner):
                numbers = " or ".join(f"--env.{i}.{leaf}" for i in range(len(inner)))
                raise ConfigError(f"--{key}: there are {len(inner)} environments; say of which, {numbers}.")
            inner = {str(i): table for i, table in enumerate(inner)}
        if not isinstance(inner, dict):
            raise ConfigError(f"--{key}: {parent} is a value, not a table (command line).")
        tree = inner
    tree[leaf] = value


def _parse_value(text: str) -> Any:
    if text == "null":  # TOML has no word for it; `none` is a gate
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
