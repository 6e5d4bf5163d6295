"""Exact search against a bare float32 matrix product and FAISS Flat: CPU milliseconds per query, one thread.

    OMP_NUM_THREADS=1 python benchmarks/retriever_exact.py                       # 100,000 x 768, about two minutes
    OMP_NUM_THREADS=1 python benchmarks/retriever_exact.py --rows 20000 --dimension 384

Vectors: seeded unit vectors around 4,000 centres in 96 dimensions, queries around the same centres. The bare product
is the fastest of numpy and torch in both orders, without any selection of results. "FAISS default" is IndexFlatIP as it
comes; "FAISS tuned" is the same with distance_compute_blas_threshold = 16. Recall@3 is against a float64 scan.
Ratios: product / ours (1 = the speed of the product alone) and FAISS default / ours.
"""

import argparse
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch

from agentrl.retriever.exact import ExactIndex, cpu_has_bfloat16
from agentrl.retriever.vectors import Vectors


def make_vectors(rng: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    vectors = centres[rng.integers(0, len(centres), count)]
    vectors = vectors + rng.standard_normal(vectors.shape, dtype=np.float32) * np.float32(0.5 / vectors.shape[1] ** 0.5)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def least_cpu_s(runs: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Least CPU seconds of each run; the runs take turns, so that a busy machine slows all of them alike."""
    least = dict.fromkeys(runs, np.inf)
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            if round_:  # the first round warms up
                least[name] = min(least[name], time.process_time() - begin)
    return least


def search_flat(flat: faiss.IndexFlatIP, queries: np.ndarray, threshold: int) -> np.ndarray:
    faiss.cvar.distance_compute_blas_threshold = threshold
    return flat.search(queries, 3)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="vectors (default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=768, help="dimensions (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128], help="queries per search")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, of which the fastest counts (default: 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4000, 96), dtype=np.float32) @ rng.standard_normal(
        (96, options.dimension), dtype=np.float32
    )
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = make_vectors(rng, centres, options.rows)
    tensor = torch.from_numpy(vectors)
    flat = faiss.IndexFlatIP(options.dimension)
    flat.add(vectors)
    ours = {"float32": ExactIndex(Vectors([vectors]), scan_dtype="float32")}
    if cpu_has_bfloat16():
        ours["bfloat16"] = ExactIndex(Vectors([vectors]), scan_dtype="bfloat16")
    default_threshold = faiss.cvar.distance_compute_blas_threshold
    for batch in options.batches:
        queries = make_vectors(rng, centres, batch)
        columns = torch.from_numpy(queries).T
        runs: dict[str, Callable[[], object]] = {
            "product 1": lambda q=queries: q @ vectors.T,
            "product 2": lambda q=queries: vectors @ q.T,
            "product 3": lambda c=columns: tensor @ c,
            "product 4": lambda c=columns: c.T @ tensor.T,
            "FAISS default": lambda q=queries: search_flat(flat, q, default_threshold),
            "FAISS tuned": lambda q=queries: search_flat(flat, q, 16),
            **{name: lambda i=index, q=queries: i.search(q, 3) for name, index in ours.items()},
        }
        times = {name: 1000 * t / batch for name, t in least_cpu_s(runs, rounds=options.rounds).items()}
        product = min(times[f"product {i}"] for i in range(1, 5))
        default, tuned = times["FAISS default"], times["FAISS tuned"]
        print(
            f"batch {batch:3}: bare float32 product {product:6.3f} ms/query, "
            f"FAISS default {default:6.3f}, FAISS tuned {tuned:6.3f}"
        )
        true = np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)[:, :3]
        for name, index in ours.items():
            recall = (np.sort(index.search(queries, 3)[1]) == np.sort(true)).mean()
            own = times[name]
            print(
                f"           ours, {name:8} {own:6.3f} ms/query, recall@3 {recall:.4f}, "
                f"{product / own:.2f} of the product's rate, {default / own:.1f}x FAISS default, "
                f"{tuned / own:.2f}x FAISS tuned",
                flush=True,
            )


if __name__ == "__main__":
    main()
