import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.retriever import exact
from agentrl.retriever.exact import ExactIndex
from agentrl.retriever.vectors import BLOCK_ROWS, Vectors

SCAN_DTYPES = ("float32", "bfloat16")


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.arange(len(vectors))
    return np.array([np.lexsort((rows, -row))[:k] for row in scores])


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.standard_normal(shape, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("scan_dtype", SCAN_DTYPES)
@given(
    num_rows=st.integers(1, 700),
    dimension=st.integers(1, 24),
    num_queries=st.integers(1, 5),
    k=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_search_on_any_shape_equals_a_float64_scan(scan_dtype, num_rows, dimension, num_queries, k, seed):
    rng = np.random.default_rng(seed)
    vectors, queries = unit(rng, num_rows, dimension), unit(rng, num_queries, dimension)
    scores, rows = ExactIndex(Vectors([vectors]), scan_dtype=scan_dtype).search(queries, k)
    true = brute_force(vectors, queries, min(k, num_rows))
    assert (rows == true).all()
    exact = np.take_along_axis(queries.astype(np.float64) @ vectors.T.astype(np.float64), true, axis=1)
    assert np.allclose(scores, exact, atol=1e-6)


@pytest.mark.parametrize("scan_dtype", SCAN_DTYPES)
def test_search_where_scores_differ_less_than_bfloat16_resolves_stays_exact(scan_dtype):
    rng = np.random.default_rng(0)
    centre = unit(rng, 1, 64)
    vectors = centre + 2e-4 * rng.standard_normal((3000, 64), dtype=np.float32)
    queries = centre + 1e-3 * rng.standard_normal((4, 64), dtype=np.float32)
    rows = ExactIndex(Vectors([vectors]), scan_dtype=scan_dtype).search(queries, 5)[1]
    assert (rows == brute_force(vectors, queries, 5)).all()


@pytest.mark.parametrize("scan_dtype", SCAN_DTYPES)
def test_search_with_equal_vectors_returns_the_lower_rows_first(scan_dtype):
    vectors = np.tile(np.float32([[0.6, 0.8]]), (100, 1))
    rows = ExactIndex(Vectors([vectors]), scan_dtype=scan_dtype).search(np.float32([[1, 0]]), 3)[1]
    assert rows.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("in_torch", [False, True])
@pytest.mark.parametrize("scan_dtype", SCAN_DTYPES)
def test_search_over_several_blocks_and_shards_finds_planted_rows(scan_dtype, in_torch, monkeypatch):
    monkeypatch.setattr(exact, "_torch_is_faster", lambda vectors: in_torch)
    rng = np.random.default_rng(1)
    vectors = 0.1 * unit(rng, 2 * BLOCK_ROWS + 5, 4)
    planted = [0, BLOCK_ROWS - 1, BLOCK_ROWS, 2 * BLOCK_ROWS + 4]
    for strength, row in enumerate(planted, start=2):
        vectors[row] = [strength, 0, 0, 0]
    shards = [vectors[:BLOCK_ROWS], vectors[BLOCK_ROWS : 2 * BLOCK_ROWS], vectors[2 * BLOCK_ROWS :]]
    for shard in shards:
        shard.flags.writeable = False  # as a memory-mapped file
    index = ExactIndex(Vectors(shards, shard_rows=BLOCK_ROWS), scan_dtype=scan_dtype)
    for num_queries in (1, 3):
        scores, rows = index.search(np.float32([[1, 0, 0, 0]] * num_queries), 4)
        assert rows.tolist() == [planted[::-1]] * num_queries
        assert scores.tolist() == [[5, 4, 3, 2]] * num_queries


def test_vectors_with_shards_of_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="multiple of 8192"):
        Vectors([np.zeros((10, 2), np.float32)] * 2, shard_rows=10)
