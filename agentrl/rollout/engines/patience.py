"""Patience with an engine: a turn that waits its turn is not late."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_LOOKS = 10
"""How often it is asked within one patience whether there is a queue."""


async def patiently(
    work: Coroutine[Any, Any, _Result], patience_s: float, is_queueing: Callable[[], Awaitable[bool]]
) -> _Result:
    """The result of some work, which is given up when its patience is over.

    Args:
        work: a turn.
        patience_s: how long it may take, counted from the moment at which there was last a queue.
        is_queueing: whether the engine moves and has more to do than it can do at once.

    Raises:
        TimeoutError: the patience was over; the work is cancelled.
    """
    task = asyncio.ensure_future(work)
    deadline = time.monotonic() + patience_s
    try:
        while not (await asyncio.wait({task}, timeout=patience_s / _LOOKS))[0]:
            if await is_queueing():
                deadline = time.monotonic() + patience_s
            elif time.monotonic() >= deadline:
                raise TimeoutError
        return task.result()
    finally:
        task.cancel()
