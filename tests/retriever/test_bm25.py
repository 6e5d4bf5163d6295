import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agentrl.retriever.bm25_search import Bm25Searcher, index_texts
from agentrl.retriever.lexical import index_builder
from agentrl.retriever.lexical.analyzer import terms
from agentrl.retriever.lexical.bm25 import LexicalIndex

WORDS = ("whale", "sea", "ship", "storm", "harbor", "captain")


def searcher(texts: list[str]) -> Bm25Searcher:
    return Bm25Searcher(index_texts(texts))


def naive_scores(texts: list[str], query: str) -> list[float]:
    documents = [terms(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in terms(query):
            df = sum(term in other for other in documents)
            tf = document.count(term)
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(document) / mean)) if tf else 0.0
        scores.append(score)
    return scores


def test_search_by_one_word_scores_as_computed_by_hand():
    # One of two texts holds the word, twice; both texts have the mean length: idf = ln(1 + 1.5 / 1.5) = ln 2.
    index = searcher(["whale whale", "sea ship"])
    [(scores, rows)] = index.search(["whale"], 3)
    assert rows.tolist() == [0]
    assert scores[0] == np.float32(math.log(2) * 2 / (2 + 0.9))


@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join), min_size=1, max_size=12),
    query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join),
)
def test_search_in_any_corpus_ranks_by_the_formula(texts, query):
    true = naive_scores(texts, query)
    [(scores, rows)] = searcher(texts).search([query], len(texts))
    assert sorted(rows.tolist()) == [i for i, score in enumerate(true) if score > 0]
    assert np.allclose(scores, [true[row] for row in rows], atol=1e-5)
    assert all(a > b - 1e-6 for a, b in itertools.pairwise(scores))


def test_search_with_ties_beyond_k_returns_the_lower_rows():
    [(_, rows)] = searcher(["sea"] * 20).search(["sea"], 3)
    assert rows.tolist() == [0, 1, 2]


def test_search_without_a_known_word_finds_nothing():
    [(scores, rows)] = searcher(["sea ship"]).search(["the zebra"], 3)
    assert len(scores) == len(rows) == 0


def test_search_for_a_question_leaves_out_the_words_that_only_ask():
    index = searcher(["who did what", "whale"])
    [(_, rows), (_, none)] = index.search(["who is the whale?", "what, when and where"], 2)
    assert rows.tolist() == [1]
    assert len(none) == 0


def test_search_over_passages_without_a_word_finds_nothing(tmp_path):
    for folder in (None, tmp_path / "index"):
        [(_, rows)] = Bm25Searcher(index_texts(["the", "..."], folder=folder)).search(["the whale"], 3)
        assert len(rows) == 0


def test_search_does_not_depend_on_word_order_or_earlier_queries():
    index = searcher([" ".join(WORDS[: i % 6 + 1]) for i in range(50)])
    first = index.search(["storm whale sea"], 10)[0]
    index.search(["captain harbor"], 10)
    again = index.search(["sea storm whale"], 10)[0]
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()


def test_build_in_blocks_on_disk_equals_build_in_memory(tmp_path, monkeypatch):
    texts = [" ".join(np.random.default_rng(i).choice(WORDS, 5)) for i in range(40)]
    whole = searcher(texts)
    monkeypatch.setattr(index_builder, "_BLOCK_TOKENS", 23)
    index_texts(texts, folder=tmp_path / "index")
    loaded = Bm25Searcher(LexicalIndex.open(tmp_path / "index"))
    for query in set(texts):
        for a, b in zip(whole.search([query], 5)[0], loaded.search([query], 5)[0], strict=True):
            assert (a == b).all()
