"""Micro-batching: requests that arrive together are searched together."""

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from agentrl.retriever.passages import Hit
from agentrl.retriever.retrieval_errors import OverloadedError, RetrieverError


class Searcher(Protocol):
    """What is batched: `Retriever`."""

    def search(self, queries: Sequence[str], *, topk: int) -> list[list[Hit]]:
        """The best passages of every query."""
        ...


@dataclass
class BatchStatistics:
    """Counters of a `Batcher`.

    num_requests, num_queries, num_batches: taken up so far.
    num_refused: requests refused because the queue was full.
    queue_s, work_s: seconds requests waited, seconds batches took.
    """

    num_requests: int = 0
    num_queries: int = 0
    num_batches: int = 0
    num_refused: int = 0
    queue_s: float = 0.0
    work_s: float = 0.0


@dataclass
class _SearchRequest:
    queries: list[str]
    topk: int
    arrived: float
    result: "Future[list[list[Hit]]]" = field(default_factory=Future)


class Batcher:
    """Searches for concurrent callers on one thread, many queries at a time.

    While one batch is searched the next one gathers by itself; only a request that finds the thread idle is held back
    for `max_wait_s`, in which its companions arrive.

    Args:
        searcher: does the work, on the batcher's thread alone.
        max_batch: queries in a batch; a larger single request is one batch of its own.
        max_wait_s: how long the first request of an idle moment waits for others.
        max_queue: queries that may wait; beyond it requests are refused.
    """

    def __init__(
        self, searcher: Searcher, *, max_batch: int = 64, max_wait_s: float = 0.003, max_queue: int = 4096
    ) -> None:
        self.searcher, self.max_batch, self.max_wait_s, self.max_queue = searcher, max_batch, max_wait_s, max_queue
        self.statistics = BatchStatistics()
        self._waiting: deque[_SearchRequest] = deque()
        self._num_waiting = 0
        self._seconds_per_query = 0.01
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="retriever-batches", daemon=True)
        self._thread.start()

    def submit(self, queries: Sequence[str], *, topk: int) -> "Future[list[list[Hit]]]":
        """Queue a checked request.

        Raises:
            OverloadedError: the queue is full.
        """
        request = _SearchRequest(list(queries), topk, time.perf_counter())
        with self._changed:
            if self._closed:
                raise RetrieverError("the retriever is shutting down")
            if self._num_waiting and self._num_waiting + len(queries) > self.max_queue:
                self.statistics.num_refused += 1
                raise OverloadedError(max(1, math.ceil(self._num_waiting * self._seconds_per_query)))
            self._waiting.append(request)
            self._num_waiting += len(queries)
            self._changed.notify()
        return request.result

    def search(self, queries: Sequence[str], *, topk: int) -> list[list[Hit]]:
        """Search, waiting for the result: the same call as the searcher's own, for many threads."""
        return self.submit(queries, topk=topk).result()

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._take():
            begin = time.perf_counter()
            self.statistics.queue_s += sum(begin - request.arrived for request in batch)
            # A request whose caller has gone is not searched; from here on nobody can cancel the others.
            wanted = [request for request in batch if request.result.set_running_or_notify_cancel()]
            size = sum(len(request.queries) for request in batch)
            self._count(len(batch), size)  # before anybody is answered, who may look
            for topk in {request.topk for request in wanted}:
                self._search([request for request in wanted if request.topk == topk], topk)
            seconds = time.perf_counter() - begin
            self.statistics.work_s += seconds
            self._seconds_per_query += 0.1 * (seconds / max(size, 1) - self._seconds_per_query)

    def _take(self) -> list[_SearchRequest]:
        """The next batch; empty when closed and nothing waits."""
        with self._changed:
            if not self._waiting and not self._closed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self.max_wait_s > 0:
                    self._changed.wait_for(lambda: self._num_waiting >= self.max_batch or self._closed, self.max_wait_s)
            batch: list[_SearchRequest] = []
            size = 0
            while self._waiting and (not batch or size + len(self._waiting[0].queries) <= self.max_batch):
                batch.append(self._waiting.popleft())
                size += len(batch[-1].queries)
            self._num_waiting -= size
            return batch

    def _search(self, requests: list[_SearchRequest], topk: int) -> None:
        queries = [query for request in requests for query in request.queries]
        try:
            found = self.searcher.search(queries, topk=topk)
            if len(found) != len(queries):
                raise RetrieverError(f"the searcher gave {len(found)} results for {len(queries)} queries")
        except Exception as error:  # the callers get it; the thread serves on
            if len(requests) == 1:
                requests[0].result.set_exception(error)
            else:  # one query may have spoiled the batch: its companions are answered on their own
                for request in requests:
                    self._search([request], topk)
            return
        start = 0
        for request in requests:
            request.result.set_result(found[start : start + len(request.queries)])
            start += len(request.queries)

    def _count(self, num_requests: int, num_queries: int) -> None:
        self.statistics.num_batches += 1
        self.statistics.num_requests += num_requests
        self.statistics.num_queries += num_queries
