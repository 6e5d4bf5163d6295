"""Signals that end a run: it saves a checkpoint and exits; a second Ctrl-C ends it on the spot.

Ctrl-C, SIGTERM (schedulers), SIGHUP (the terminal went away), SIGUSR1 (Slurm's warning before the time is up).
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # workers of environments take the signals from here, and need no torch
    from agentrl.model.processes import Processes

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""SIGHUP is left alone where it is ignored: `nohup`."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
        """What shells report for a command that this signal ended: 130, 143."""


class Stopped(Interrupted):
    """The run's own script said that it has seen enough: the run ends as one that is done."""

    def __init__(self) -> None:
        super().__init__(signal.SIGTERM)


class Interruption:
    """Turns signals into `Interrupted`, at moments when the state of a run is whole.

    In a thread or under a running event loop (a notebook) signals belong to somebody else and are left alone.
    Outside of `patiently` a signal raises at once. Inside it is kept for the next `check`, except in `at_once`
    stretches, whose work may be abandoned.

        >>> with Interruption() as interruption, interruption.patiently():
        ...     interruption.check()      # raises Interrupted where a signal has come

    Args:
        agree: for several processes: whether any of them (argument: this one) was asked. They then stop only at
            `check`, all at the same one.
    """

    def __init__(self, agree: Callable[[bool], bool] | None = None) -> None:
        self.agree = agree
        self._number: int | None = None
        self._patient = self._is_stopped = False
        self._before: dict[int, Any] = {}

    @classmethod
    def of(cls, processes: "Processes") -> "Interruption":
        """Where there are several processes, they stop together."""
        return cls() if processes.count == 1 else cls(agree=lambda asked: any(processes.gather(asked)))

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in _ours()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """Keep signals for `check`."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that a signal may cut off anywhere."""
        if self.agree is not None:
            yield
            return
        self.check()
        before, self._patient = self._patient, False
        try:
            yield
        finally:
            self._patient = before

    def check(self) -> None:
        """Raise `Interrupted` where a signal has come; all processes call this at the same places."""
        if self._is_stopped:
            self._is_stopped = False
            raise Stopped
        asked = self._number is not None
        if asked if self.agree is None else self.agree(asked):
            raise Interrupted(self._number or signal.SIGTERM)

    def stop_if(self, is_enough: bool) -> None:
        """End the run at the next `check`; all processes say the same."""
        self._is_stopped = self._is_stopped or is_enough

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Job schedulers send SIGTERM several times; a person who presses Ctrl-C again means it.
        again, self._number = self._number == number == signal.SIGINT, number
        if again:
            raise KeyboardInterrupt  # which saves nothing: weights may be in the middle of an update
        if not self._patient:
            raise Interrupted(number)


def _ours() -> list[signal.Signals]:
    """The signals that this thread may and should answer."""
    if threading.current_thread() is not threading.main_thread():
        return []
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        hangup = getattr(signal, "SIGHUP", None)
        return [n for n in SIGNALS if n != hangup or signal.getsignal(n) != signal.SIG_IGN]
    return []
