"""Load on two retrieval servers in turn: ours, and one in the manner of Search-R1's (retriever_baseline.py).

Same encoder (queries are really encoded), same index of seeded vectors, same client, one thread per server.

    OMP_NUM_THREADS=1 python benchmarks/retriever_load.py                    # about four minutes
    OMP_NUM_THREADS=1 python benchmarks/retriever_load.py --passages 20000 --rounds 1

Streams: "unique" - every query is new, 32 clients with one query a request; "group" - every query comes 8 times within
a second, as from a rollout group. Printed per server: server CPU ms per query (the number to compare: wall times move
with whatever else the machine does), queries/s, p50 and p95 latency; then the ratios.

"ours float32" encodes and scans in float32; "ours default" scans in bfloat16 where the CPU has it and scores the
candidates again, which changes no result; "ours bfloat16" encodes in bfloat16 too. Recall@3 of each is checked against
a float64 scan with the float32 encoder's query vectors.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from agentrl.retriever.encoder import ENCODERS, Encoder, probe_vector
from agentrl.retriever.index_folder import FORMAT, fingerprints, write_json
from agentrl.retriever.passages import write_passages
from agentrl.retriever.search import Retriever

NAMES = ("Alder", "Birch", "Cedar", "Dunmore", "Elstow", "Farley", "Garrick", "Hollis", "Ingram", "Jarrow", "Kendal")
WORDS = ("river", "bridge", "novel", "painter", "composer", "treaty", "harbour", "engine", "planet", "castle", "island")
QUESTIONS = (
    "Who wrote the {w1} about the {w2} of {n1} that was published before {y}?",
    "In which year was the {w1} near {n1} opened by {n2} {n3}?",
    "Which {w1} is older, the one in {n1} or the {w2} of {n2} built in {y}?",
    "What is the birthplace of the {w1} who designed the {n1} {w2} with {n2}?",
)


def make_folder(folder: Path, num_passages: int) -> None:
    """An index folder with seeded clustered unit vectors instead of encoded passages."""
    rng = np.random.default_rng(0)
    encoder = Encoder(ENCODERS["minilm"])
    filler = " ".join(rng.choice(WORDS + NAMES, 80))
    count, digest = write_passages(
        ((str(i), f'"{NAMES[i % 11]} {i}"\n{filler[i % 40 :]}') for i in range(num_passages)), folder / "corpus"
    )
    # Around the vectors of real queries, so that the scores have the spread of a real search.
    centres = encoder.encode(make_queries(1000, seed=7), role="query")
    vectors = centres[rng.integers(0, len(centres), num_passages)]
    vectors += 0.08 * rng.standard_normal(vectors.shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    part = folder / "minilm"
    part.mkdir()
    vectors.astype("<f4").tofile(part / "vectors-00000.f32")
    own = {"encoder": encoder.spec.to_json(), "dimension": encoder.dimension, "shard_rows": 1 << 18}
    own |= {"corpus_sha256": digest, "probe": probe_vector(encoder)}
    write_json(part / "manifest.json", {**own, "files": fingerprints(part, ["vectors-00000.f32"])})
    corpus = {"source": "seeded", "source_stamp": [], "sha256": digest, "num_passages": count}
    corpus["files"] = fingerprints(folder / "corpus", ["passages.jsonl", "offsets.npy"])
    write_json(folder / "manifest.json", {"format": FORMAT, "corpus": corpus, "default": "minilm/exact"})


def make_queries(count: int, *, seed: int) -> list[str]:
    """Distinct question-like texts of about 20 tokens."""
    rng = np.random.default_rng(seed)
    queries: dict[str, None] = {}
    while len(queries) < count:
        w1, w2 = rng.choice(WORDS, 2)
        n1, n2, n3 = rng.choice(NAMES, 3)
        text = str(rng.choice(QUESTIONS)).format(w1=w1, w2=w2, n1=n1, n2=n2, n3=n3, y=rng.integers(1200, 2000))
        queries[text] = None
    return list(queries)


def group_stream(queries: list[str], *, seed: int) -> list[str]:
    """Every query 8 times, shuffled within windows of 16 queries."""
    rng = np.random.default_rng(seed)
    stream: list[str] = []
    for start in range(0, len(queries), 16):
        window = queries[start : start + 16] * 8
        stream += [window[i] for i in rng.permutation(len(window))]
    return stream


class Server:
    """A server in a subprocess, limited to one thread."""

    def __init__(self, name: str, command: list[str], port: int) -> None:
        self.name, self.port = name, port
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen([sys.executable, *command], env=env, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 180
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not start")
            time.sleep(0.2)

    def answers(self) -> bool:
        """Whether the server is up."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def cpu_s(self) -> float:
        """CPU seconds of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def load(self, stream: list[str], num_clients: int) -> dict[str, float]:
        """Send a stream from concurrent keep-alive connections; CPU ms per query, queries/s, latencies in ms."""
        latencies: list[float] = []
        failures: list[str] = []
        todo, lock = iter(stream), threading.Lock()

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            while True:
                with lock:
                    query = next(todo, None)
                if query is None:
                    return
                body = json.dumps({"queries": [query], "topk": 3, "return_scores": True})
                begin = time.perf_counter()
                connection.request("POST", "/retrieve", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                latencies.append(time.perf_counter() - begin)
                if answer.status != 200 or content.count(b'"score"') != 3:
                    failures.append(f"{answer.status}: {content[:100]!r}")

        cpu, wall = self.cpu_s(), time.perf_counter()
        threads = [threading.Thread(target=client) for _ in range(num_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall, cpu = time.perf_counter() - wall, self.cpu_s() - cpu
        if failures or len(latencies) != len(stream):
            raise SystemExit(f"{self.name}: {len(failures)} failures, first {failures[:1]}")
        p50, p95 = np.percentile(latencies, [50, 95]) * 1000
        return {"cpu_ms": 1000 * cpu / len(stream), "qps": len(stream) / wall, "p50": p50, "p95": p95}


def check_recall(folder: Path, num_queries: int) -> None:
    """Print recall@3 of the exact index in both precisions, against a float64 scan of the same query vectors."""
    queries = make_queries(num_queries, seed=11)
    vectors = np.fromfile(folder / "minilm" / "vectors-00000.f32", "<f4").reshape(-1, 384)
    own = Encoder(ENCODERS["minilm"]).encode(queries, role="query").astype(np.float64)
    true = np.argsort(-(own @ vectors.T.astype(np.float64)), axis=1)[:, :3]
    for encode_dtype, scan_dtype in (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")):
        retriever = Retriever.open(folder, encode_dtype=encode_dtype, scan_dtype=scan_dtype)
        found = [[int(hit.id) for hit in hits] for hits in retriever.search(queries, topk=3)]
        recall = np.mean([len(set(f) & set(t)) / 3 for f, t in zip(found, true, strict=True)])
        print(f"recall@3, {encode_dtype} encoder, {scan_dtype} scan, against float64: {recall:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000, help="passages of the index (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=32, help="concurrent clients (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=512, help="queries per stream and round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, servers in turn; the best counts (default: 2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_folder(folder, options.passages)
        check_recall(folder, 100)
        ours = ["-m", "agentrl.retriever.serve", str(folder), "--threads", "1"]
        baseline = str(Path(__file__).with_name("retriever_baseline.py"))
        servers = [
            Server("baseline", [baseline, str(folder), "minilm", "8431"], 8431),
            Server("ours float32", [*ours, "--scan-dtype", "float32", "--port", "8432"], 8432),
            Server("ours default", [*ours, "--port", "8433"], 8433),
            Server("ours bfloat16", [*ours, "--dtype", "bfloat16", "--port", "8434"], 8434),
        ]
        try:
            compare(servers, options)
        finally:
            for server in servers:
                server.process.terminate()


def compare(servers: list[Server], options: argparse.Namespace) -> None:
    best: dict[tuple[str, str], dict[str, float]] = {}
    for round_ in range(options.rounds):
        streams = {
            "unique": make_queries(options.queries, seed=100 + round_),
            "group": group_stream(make_queries(options.queries // 4, seed=200 + round_), seed=round_),
        }
        for stream_name, stream in streams.items():
            for server in servers:
                server.load(make_queries(32, seed=300), options.clients)  # warm
                row = server.load(stream, options.clients)
                key = (stream_name, server.name)
                if key not in best or row["cpu_ms"] < best[key]["cpu_ms"]:
                    best[key] = row
    for (stream_name, name), row in best.items():
        base = best[stream_name, "baseline"]
        ratios = f"{base['cpu_ms'] / row['cpu_ms']:5.2f}x CPU  {row['qps'] / base['qps']:5.2f}x queries/s"
        print(
            f"{stream_name:7} {name:14} {row['cpu_ms']:6.2f} CPU ms/query  {row['qps']:7.1f} queries/s  "
            f"p50 {row['p50']:7.1f} ms  p95 {row['p95']:7.1f} ms  {ratios}",
            flush=True,
        )


if __name__ == "__main__":
    main()
