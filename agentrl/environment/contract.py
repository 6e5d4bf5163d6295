"""What an environment may answer, checked once for runs and for `check_env`, and brought to plain Python.

What comes out is text, numbers, booleans, lists and dicts and nothing else: it can be sent to another process and be
stored, whatever an environment put into `info` (exceptions, tensors, open files, objects that unpickle nowhere).
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agentrl.errors import InfrastructureError

StepResult = tuple[str, float, bool, bool, dict[str, Any]]

_MOST_ITEMS = 10_000
"""Longest collection outside of the known keys that is kept; a longer one is described."""
_DEEPEST = 8
"""Collections inside collections; what lies deeper is described."""
_DESCRIBED = 500
"""Characters that are kept of what `info` holds and has no plain form."""


class ContractError(InfrastructureError):
    """An environment answered something that no run can use; the message says what was expected and what came."""

    def __init__(self, message: str, *, part: str = "contract") -> None:
        super().__init__(message)
        self.part = part
        """`info`, or `contract` for all else."""


def checked_reset(result: Any) -> tuple[str, dict[str, Any]]:
    """(observation, info) of what `reset` returned."""
    _refuse_coroutine(result, "reset")
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise ContractError(f"reset must return (observation, info), the environment returned {describe(result)}")
    return checked_text(result[0]), checked_info(result[1])


def checked_step(result: Any) -> StepResult:
    """Gymnasium's 5-tuple of what `step` returned, in Python's own types."""
    _refuse_coroutine(result, "step")
    if not isinstance(result, tuple | list) or len(result) != 5:
        raise ContractError(
            "step must return (observation, reward, terminated, truncated, info), "
            f"the environment returned {describe(result)}"
        )
    observation, reward, terminated, truncated, info = result
    text, number = checked_text(observation), _as_number(reward)
    if number is None or not math.isfinite(number):
        raise ContractError(f"a reward must be a finite number, got {describe(reward)}")
    ends = []
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(item := _scalar(value), bool):
            raise ContractError(f"{name} must be a bool, got {describe(value)}")
        ends.append(item)
    return text, number, ends[0], ends[1], checked_info(info)


def checked_text(observation: Any) -> str:
    """An observation as it reaches the model."""
    if not isinstance(observation, str):
        hint = " (an environment that answers with something else takes a wrapper: env.format = module:Wrapper)"
        raise ContractError(
            f"observations must be text (str), the environment returned {type(observation).__name__}"
            f": {describe(observation)}{hint}"
        )
    return _clean(observation)


def checked_info(info: Any) -> dict[str, Any]:
    """`info` in plain Python: keys that a run reads in the type it needs (None: not offered), the rest as it can be.

    Raises:
        ContractError: a key that a run reads holds what it cannot use.
    """
    if info is None:
        return {}
    if not isinstance(info, Mapping):
        raise ContractError(
            f"info must be a dict, the environment returned {type(info).__name__}: {describe(info)}", part="info"
        )
    checked: dict[str, Any] = {}
    for key, value in info.items():
        name = key if type(key) is str else _clean(key) if isinstance(key, str) else describe(key)
        read = _READERS.get(name)
        try:
            found = plain(value) if read is None else None if value is None else read(name, value)
        except ContractError:
            raise
        except Exception as error:  # an object of somebody's whose every method may raise
            if read is not None:
                raise ContractError(f"info[{name!r}] cannot be read: {type(error).__name__}", part="info") from error
            found = f"<{type(value).__name__}>"
        if found is not None or read is None:
            checked[name] = found
    return checked


def plain(value: Any, depth: int = 0) -> Any:
    """Numbers, text, None, lists and dicts of a value; anything else as a short text. Never raises for odd objects."""
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return _clean(value)
    item = _scalar(value)
    if item is not value and item is not None:
        return plain(item, depth + 1) if depth < _DEEPEST else describe(item, _DESCRIBED)
    if isinstance(value, int | float):  # enumerations and other kin
        return int(value) if isinstance(value, int) else float(value)
    if depth >= _DEEPEST:
        return describe(value, _DESCRIBED)
    if isinstance(value, Mapping) and len(value) <= _MOST_ITEMS:
        return {_clean(str(key)): plain(each, depth + 1) for key, each in list(value.items())}
    if isinstance(value, list | tuple) and len(value) <= _MOST_ITEMS:
        return [plain(each, depth + 1) for each in value]
    if _is_array(value) and _size(value) <= _MOST_ITEMS:
        return plain(value.tolist(), depth + 1)
    return describe(value, _DESCRIBED)


def describe(value: Any, most: int = 80) -> str:
    """A text of any object of at most `most` characters, even of one whose `repr` raises."""
    try:
        text = repr(value) if isinstance(value, str | bytes | list | tuple | dict | set) else str(value)
    except Exception:
        return f"<{type(value).__name__}>"
    text = _clean(text)
    return text if len(text) <= most else text[: most - 3] + "..."


def reset_env(env: Any, seed: int, options: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """`env.reset`, checked; `options` only where there are any: not every environment knows the word."""
    words: dict[str, Any] = {"seed": seed} if options is None else {"seed": seed, "options": options}
    try:
        result = env.reset(**words)
    except TypeError as error:
        missing = [word for word in words if f"unexpected keyword argument '{word}'" in str(error)]
        if not missing:
            raise
        raise ContractError(
            f"reset must take {missing[0]!r}: def reset(self, *, seed=None, options=None); every try at a task is "
            "started by the same seed"
        ) from error
    return checked_reset(result)


def step_env(env: Any, action: str) -> StepResult:
    """`env.step`, checked."""
    return checked_step(env.step(action))


def _read_flag(name: str, value: Any) -> bool:
    if not isinstance(item := _scalar(value), bool):
        raise _misfit(name, "bool", value)
    return item


def _read_score(name: str, value: Any) -> float | None:
    number = _as_number(value)
    if number is None or math.isinf(number):
        raise ContractError(f'info["{name}"] must be a finite number, got {describe(value)}', part="info")
    if math.isnan(number):
        return None  # an unscored episode
    if not 0 <= number <= 1:
        raise ContractError(f'info["{name}"] must be between 0 and 1, got {describe(value)}', part="info")
    return number


def _read_label(name: str, value: Any) -> str | None:
    """Text, numbers as text, NaN as nothing, collections as JSON."""
    found = plain(value)
    if isinstance(found, float) and math.isnan(found):
        return None
    return found if found is None or isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _read_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _misfit(name, "str", value)
    return _clean(value)


def _read_texts(name: str, value: Any) -> list[str]:
    if isinstance(value, set | frozenset):
        value = sorted(map(str, value))
    value = value.tolist() if _is_array(value) else value
    if not isinstance(value, list | tuple):
        raise _misfit(name, "list", value)
    return [_clean(each) if isinstance(each, str) else describe(each) for each in value]


def _read_list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _misfit(name, "list", value)
    return [plain(each, -_DEEPEST) for each in value]


def _read_dict(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ContractError(f'info["{name}"] must be a dict, got {describe(value)}', part="info")
    return {_clean(str(key)): plain(each, 1) for key, each in value.items()}


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "success": _read_flag, "is_valid_action": _read_flag, "score": _read_score, "category": _read_label,
    "task": _read_label, "anchor": _read_label, "answer": _read_label, "system": _read_text, "tools": _read_list,
    "admissible_actions": _read_texts, "random_actions": _read_texts, "expert_action": _read_label,
    "metadata": _read_dict,
}  # fmt: skip
KNOWN_INFO = tuple(_READERS)
"""What a run reads from `info`; of other keys nothing depends on what they hold."""


def _misfit(name: str, wanted: str, value: Any) -> ContractError:
    found = type(value).__name__
    return ContractError(f"info[{name!r}] must be {wanted}, got {found}: {describe(value)}", part="info")


def _as_number(value: Any) -> float | None:
    """A real number of any library as a float; None for what is no single number."""
    item = _scalar(value)
    if isinstance(item, bool | int | float):
        try:
            return float(item)
        except OverflowError:
            return math.inf
    if hasattr(item, "__float__") and not isinstance(item, str | bytes) and not _is_array(item):
        try:
            return float(item)  # Decimal, Fraction
        except (TypeError, ValueError):
            return None
    return None


def _scalar(value: Any) -> Any:
    """Python's own number or bool of a value of numpy's, torch's or kin with one element; else the value itself."""
    if type(value) in (bool, int, float) or isinstance(value, str | bytes):
        return value
    if isinstance(value, np.generic) or (_is_array(value) and _size(value) == 1):
        try:
            return value.item()
        except Exception:
            return value
    return value


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (hasattr(value, "tolist") and hasattr(value, "shape"))


def _size(array: Any) -> int:
    try:
        return math.prod(array.shape)
    except Exception:
        return _MOST_ITEMS + 1


def _clean(text: str) -> str:
    """Exactly `str`. Lone surrogates, as undecodable files leave them, are no characters: no tokens, not storable."""
    return str.__str__(text).encode("utf-8", "replace").decode()


def _refuse_coroutine(result: Any, method: str) -> None:
    if inspect.iscoroutine(result):
        result.close()
        raise ContractError(
            f"{method} is `async def`: it returned a coroutine, which nobody awaits. Write a plain `def {method}` "
            'with asyncio.run(...) inside, and say metadata["blocking"] = True if it waits'
        )
