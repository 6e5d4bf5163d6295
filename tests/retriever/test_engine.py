import threading
import time

import pytest

from agentrl.retriever.batching import Batcher
from agentrl.retriever.cache import CountingCache
from agentrl.retriever.checks import Limits
from agentrl.retriever.exact import ExactIndex
from agentrl.retriever.passages import Passages
from agentrl.retriever.retrieval_errors import (
    IndexFolderError,
    OverloadedError,
    QueryError,
    RequestError,
    RetrieverError,
)
from agentrl.retriever.search import DenseSearcher, Retriever
from agentrl.retriever.vectors import Vectors
from tests.retriever.conftest import WordEncoder

TEXTS = ["red apple", "green pear", "blue plum", "red plum"]


def dense(encoder: WordEncoder, **options) -> Retriever:
    vectors = Vectors([encoder.encode(TEXTS, role="passage")])
    passages = Passages([(str(i), text) for i, text in enumerate(TEXTS)])
    return Retriever(passages, DenseSearcher(ExactIndex(vectors), encoder), **options)


def test_search_with_repeated_queries_encodes_each_once(word_encoder):
    retriever = dense(word_encoder)
    before = word_encoder.num_encoded
    found = retriever.search(["red apple", "plum", "red apple", " plum "], topk=2)
    assert word_encoder.num_encoded - before == 2
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert [hit.contents for hit in found[0]] == ["red apple", "red plum"]


def test_search_again_comes_from_the_caches(word_encoder):
    retriever = dense(word_encoder)
    first = retriever.search(["plum"], topk=2)
    before = word_encoder.num_encoded
    assert retriever.search(["plum"], topk=2) == first
    retriever.search(["plum"], topk=1)  # another result, the same vector
    assert word_encoder.num_encoded == before
    statistics = retriever.statistics()
    assert (statistics["result_cache_hits"], statistics["vector_cache_hits"]) == (1, 1)


def test_search_result_changed_by_the_caller_stays_right_in_the_cache():
    retriever = Retriever.from_passages([("0", "apple")])
    retriever.search(["apple"], topk=1)[0].clear()
    assert len(retriever.search(["apple"], topk=1)[0]) == 1


@pytest.mark.parametrize("topk", [0, -1, 101, 10**9, True, 2.0, "3", None])
def test_search_with_topk_out_of_range_is_refused(topk):
    with pytest.raises(RequestError, match="topk must be an integer from 1 to 100"):
        Retriever.from_passages([("0", "apple")]).search(["apple"], topk=topk)


@pytest.mark.parametrize(
    ("queries", "kind", "reason"),
    [
        ([""], QueryError, "empty"),
        (["ok", " \n"], QueryError, "query 1 is empty"),
        (["x" * (1 << 20)], QueryError, "1048576 characters"),
        (["\ud800"], QueryError, "surrogate"),
        ([3], RequestError, "must be a string"),
        ("apple", RequestError, "list of strings"),
        (["a"] * 1025, RequestError, "at most 1024"),
    ],
)
def test_search_with_a_bad_query_says_what_is_wrong(queries, kind, reason):
    with pytest.raises(kind, match=reason):
        Retriever.from_passages([("0", "apple")]).search(queries, topk=1)


def test_search_for_more_than_there_is_returns_all(word_encoder):
    assert len(dense(word_encoder).search(["plum"], topk=50)[0]) == 4
    assert dense(word_encoder).search([], topk=3) == []


def test_retriever_with_other_passages_than_its_index_is_refused(word_encoder):
    searcher = dense(word_encoder).searcher
    with pytest.raises(IndexFolderError, match="4 rows, the corpus 1 passages"):
        Retriever(Passages([("0", "apple")]), searcher)
    with pytest.raises(IndexFolderError, match="64 dimensions, the index has 8"):
        DenseSearcher(ExactIndex(Vectors([WordEncoder(dimension=8).encode(TEXTS, role="passage")])), word_encoder)


def test_lru_cache_when_full_drops_the_entry_used_longest_ago():
    cache: CountingCache[str, int] = CountingCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("b"), cache.get("a"), cache.get("c")) == (None, 1, 3)
    assert (cache.hits, cache.misses) == (3, 1)
    nothing: CountingCache[str, int] = CountingCache(0)
    nothing.put("a", 1)
    assert (nothing.get("a"), len(nothing)) == (None, 0)


class SlowSearcher:
    """A retriever that waits for leave and remembers the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.inner = Retriever.from_passages(
            [(str(i), text) for i, text in enumerate(TEXTS)],
        )

    def search(self, queries, *, topk):
        self.batches.append(list(queries))
        assert self.go.wait(10)
        return self.inner.search(queries, topk=topk)


def test_batcher_while_busy_gathers_what_comes_into_one_batch():
    searcher = SlowSearcher()
    batcher = Batcher(searcher, max_wait_s=0)
    first = batcher.submit(["apple"], topk=2)
    while not searcher.batches:
        time.sleep(0.001)
    later = [batcher.submit([query], topk=2) for query in ("pear", "plum", "pear")]
    searcher.go.set()
    assert first.result(10)[0][0].contents == "red apple"
    assert [future.result(10)[0][0].contents for future in later] == ["green pear", "blue plum", "green pear"]
    assert searcher.batches == [["apple"], ["pear", "plum", "pear"]]
    assert (batcher.statistics.num_requests, batcher.statistics.num_batches) == (4, 2)
    batcher.close()


def test_batcher_with_different_topk_answers_each_with_its_own():
    searcher = SlowSearcher()
    searcher.go.set()
    batcher = Batcher(searcher, max_wait_s=0.05)
    futures = [batcher.submit(["red"], topk=k) for k in (1, 2, 1)]
    assert [len(future.result(10)[0]) for future in futures] == [1, 2, 1]
    batcher.close()


def test_batcher_with_a_full_queue_refuses_with_a_waiting_time():
    searcher = SlowSearcher()
    batcher = Batcher(searcher, max_wait_s=0, max_queue=3)
    accepted = [batcher.submit(["apple"], topk=1)]
    while not searcher.batches:
        time.sleep(0.001)
    accepted += [batcher.submit(["pear", "plum"], topk=1)]
    with pytest.raises(OverloadedError) as refused:
        batcher.submit(["red", "green"], topk=1)
    assert refused.value.retry_after_s >= 1
    searcher.go.set()
    assert all(future.result(10) for future in accepted)
    assert batcher.statistics.num_refused == 1
    batcher.close()
    with pytest.raises(RetrieverError, match="shutting down"):
        batcher.submit(["apple"], topk=1)


def test_batcher_whose_searcher_fails_tells_the_callers_and_serves_on():
    class Fails:
        calls = 0

        def search(self, queries, *, topk):
            self.calls += 1
            if self.calls == 1:
                raise OSError("disk gone")
            return [[] for _ in queries]

    batcher = Batcher(Fails())
    with pytest.raises(OSError, match="disk gone"):
        batcher.search(["a"], topk=1)
    assert batcher.search(["a"], topk=1) == [[]]
    batcher.close()


def test_batcher_with_one_query_that_cannot_be_searched_answers_its_companions():
    searcher = SlowSearcher()
    inner = searcher.inner.search

    class Picky:
        def search(self, queries, *, topk):
            if "poison" in queries:
                raise ValueError("no vector for this text")
            return inner(queries, topk=topk)

    batcher = Batcher(Picky(), max_wait_s=0.2)
    futures = [batcher.submit([query], topk=1) for query in ("apple", "poison", "pear")]
    assert futures[0].result(10)[0][0].contents == "red apple"
    with pytest.raises(ValueError, match="no vector"):
        futures[1].result(10)
    assert futures[2].result(10)[0][0].contents == "green pear"
    batcher.close()


def test_batcher_serves_on_after_a_cancelled_request_and_after_a_short_answer():
    searcher = SlowSearcher()
    batcher = Batcher(searcher, max_wait_s=0)
    first = batcher.submit(["apple"], topk=1)
    while not searcher.batches:
        time.sleep(0.001)
    gone, later = batcher.submit(["plum"], topk=1), batcher.submit(["pear"], topk=1)
    assert gone.cancel()
    searcher.go.set()
    assert first.result(10)
    assert later.result(10)[0][0].contents == "green pear"
    assert searcher.batches == [["apple"], ["pear"]]
    searcher.inner = type("Short", (), {"search": lambda self, queries, topk: []})()
    with pytest.raises(RetrieverError, match="0 results for 1 queries"):
        batcher.submit(["red"], topk=1).result(10)
    batcher.close()


def test_limits_of_a_retriever_are_its_own():
    passages = Passages([("0", "apple")])
    retriever = Retriever(passages, Retriever.from_passages([("0", "apple")]).searcher, limits=Limits(max_topk=1))
    with pytest.raises(RequestError, match="from 1 to 1"):
        retriever.search(["apple"], topk=2)
