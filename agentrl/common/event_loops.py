"""Coroutines from code that is none, also where somebody else's event loop is running: a notebook, a web server."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`; under a running loop in a thread of its own, with this thread's number of torch threads."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    result: Future[T] = Future()
    num_threads = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(num_threads)
        try:
            result.set_result(asyncio.run(coroutine))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, name="agentrl", daemon=True).start()
    return result.result()
