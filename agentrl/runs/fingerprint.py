"""What an environment is made of, as hashes: its code, and the data that its options and variables name."""

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA_VARIABLES = ("ALFWORLD_DATA", "WEBSHOP_DATA", "MATH_DATA")
"""Environment variables that name data of the built-in environments."""
_CODE = {".py", ".pyi"}
_MANY = 20_000
"""Files of one folder that are looked into; beyond it, size and time of change must do."""
_LARGE = 2 << 30
"""Bytes of one file that are read; beyond it, the same."""


def fingerprint(module_names: list[str], values: Any) -> dict[str, str]:
    """Name -> hash of the code of modules, of files that it names, and of files and folders among option values.

    Args:
        module_names: imported modules of an environment and its wrapper; what lies beside them and is loaded counts
            too, and the files that their texts name.
        values: options, nested; texts that name something that exists count as data.
    """
    files = {file for name in module_names for file in _code_of(name)}
    own = {file for name in module_names if (file := _source_of(name))}
    named = {data for file in own for data in _named_files(file)}
    parts = [sorted(f"{file.name} {_hash_file(file)}" for file in kind) for kind in (files, named)]
    code, data = (hashlib.sha256("\n".join(part).encode("utf-8", "surrogateescape")).hexdigest() for part in parts)
    found = {"code": code, "data that the code names": data}
    variables = {name: os.environ[name] for name in DATA_VARIABLES if os.environ.get(name)}
    for text in _texts([values, variables]):
        path = Path(os.path.expanduser(text))
        try:
            if path.exists():
                found[f"data {text}"] = _hash_tree(path)
        except OSError:  # too long for a path, no permission: no data that can be read
            continue
    return found


def _code_of(name: str) -> set[Path]:
    """Source files of a module, of those beside it in its package, and of what is loaded from its folder or package."""
    file = _source_of(name)
    if file is None:
        return set()
    top, _, inside = name.partition(".")
    if top == "agentrl":  # a built-in environment: all of its room
        return {path.resolve() for path in list(file.parent.rglob("*.py"))[:_MANY]}
    found = {file} | ({path.resolve() for path in file.parent.glob("*.py")} if inside else set())
    for other, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if not origin or Path(origin).suffix not in _CODE:
            continue
        path = Path(origin).resolve()
        if other.partition(".")[0] == top or path.parent == file.parent:
            found.add(path)
    return found


def _source_of(name: str) -> Path | None:
    spec = sys.modules[name].__spec__ if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or not spec.origin or not os.path.isfile(spec.origin):
        return None
    return Path(spec.origin).resolve()


def _named_files(file: Path) -> Iterator[Path]:
    """Files that the code names in a text, relative to itself or to the working directory."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 200):
            continue
        for path in (file.parent / node.value, Path(os.path.expanduser(node.value))):
            try:
                if path.is_file():
                    yield path.resolve()
                    break
            except (OSError, ValueError):
                continue


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value and "\0" not in value and "\n" not in value:
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _hash_tree(path: Path) -> str:
    """Hash of a file, or of the names and contents of a folder's files."""
    if path.is_file():
        return _hash_file(path)
    digest = hashlib.sha256()
    for number, file in enumerate(sorted(p for p in path.rglob("*") if p.is_file())):
        digest.update(f"{file.relative_to(path)}\0".encode("utf-8", "surrogateescape"))
        digest.update((_stamp(file) if number > _MANY else _hash_file(file)).encode())
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    if path.stat().st_size > _LARGE:
        return _stamp(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> str:
    known = path.stat()
    return f"{known.st_size} {known.st_mtime_ns}"
