"""Places on a server that plays only so many episodes at once: learnt from its refusals, waited for, given up."""

import asyncio
import math
import time
from contextlib import suppress

from agentrl.console import note

PROBE_S = 2.0
"""One place more is tried for every such while after a refusal: others may have left."""
PATIENCE_S = 600.0
"""How long all places of a server may be taken by others."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
"""Pauses after a refusal while none of our own episodes could end and make room."""


class Room:
    """How many episodes of one pool a server has places for.

    Args:
        name: the environment, for notes.
        patience_s: how long all places may be taken by others before an episode is given up.
    """

    def __init__(self, name: str, *, patience_s: float = PATIENCE_S) -> None:
        self.name, self.patience_s = name, patience_s
        self.capacity: float = math.inf
        """Episodes that were played at once when the server last refused one."""
        self.num_held, self.num_waiting = 0, 0
        self.num_refusals = 0
        self._refused_at, self._last_admitted = 0.0, 0.0
        self._freed: asyncio.Condition | None = None

    @property
    def is_scarce(self) -> bool:
        """Whether the server has ever refused an episode."""
        return self.num_refusals > 0

    def open(self) -> None:
        """Begin a batch, in an event loop of its own; what was learnt stays."""
        self.num_held = self.num_waiting = 0
        self._freed, self._last_admitted = asyncio.Condition(), time.monotonic()

    async def enter(self) -> None:
        """Wait for a place and take it."""
        assert self._freed is not None, "open comes before enter"
        self.num_waiting += 1
        try:
            async with self._freed:
                while self.num_held >= self._allowed():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(PROBE_S):
                            await self._freed.wait()
                self.num_held += 1
        finally:
            self.num_waiting -= 1

    async def leave(self) -> None:
        """Give a place back."""
        assert self._freed is not None
        self._last_admitted = time.monotonic()
        await self._free_one()

    async def refuse(self, tries: int) -> bool:
        """Take note that the server refused the holder of a place for the `tries`-th time; whether to try again."""
        await self._free_one()
        self.num_refusals += 1
        self.capacity, self._refused_at = max(1, self.num_held), time.monotonic()
        if self.num_refusals == 1:
            note(f"{self.name}: the server has no room for so many episodes at once; the others wait for a place")
        if self.num_held:
            return True  # one of ours ends some time
        await asyncio.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries, 10)))
        return time.monotonic() - self._last_admitted < self.patience_s

    def _allowed(self) -> float:
        return self.capacity + int((time.monotonic() - self._refused_at) / PROBE_S)

    async def _free_one(self) -> None:
        assert self._freed is not None
        self.num_held -= 1
        async with self._freed:
            self._freed.notify()
