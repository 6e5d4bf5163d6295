"""A bounded least-recently-used map, safe for threads, that counts."""

import threading
from typing import Generic, TypeVar

from cachetools import LRUCache

Key = TypeVar("Key")
Value = TypeVar("Value")


class CountingCache(Generic[Key, Value]):
    """Keeps the `capacity` entries used last; capacity 0 keeps nothing. Counts its hits and misses."""

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"the capacity of a cache must be >= 0, got {capacity}")
        self.hits = self.misses = 0
        self._entries: LRUCache[Key, Value] = LRUCache(capacity)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """The value, now the most recently used one, or None."""
        with self._lock:
            value = self._entries.get(key)
            self.hits += value is not None
            self.misses += value is None
            return value

    def put(self, key: Key, value: Value) -> None:
        """Store a value (never None); the least recently used one goes where there is no room."""
        with self._lock:
            if self._entries.maxsize:
                self._entries[key] = value
