"""Ten thousand requests under load with a restart in the middle."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from agentrl.retriever.build import build
from agentrl.retriever.client import Client
from agentrl.retriever.retrieval_errors import QueryError, RequestError
from agentrl.retriever.search import Retriever

pytestmark = pytest.mark.slow
NUM_REQUESTS, NUM_CLIENTS = 10_000, 16
WORDS = [f"{a}{b}" for a in ("al", "ber", "cor", "dun", "el") for b in ("ford", "ham", "stead", "wick")]


def start(out: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "agentrl.retriever.serve", str(out), "--port", str(port), "--max-queue", "8"]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)


def test_mixed_requests_with_a_restart_in_the_middle_are_all_answered_or_refused(tmp_path):
    pytest.importorskip("uvicorn")
    rng = np.random.default_rng(0)
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "out"
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(400)]
    corpus.write_text(
        "".join(json.dumps({"id": str(i), "contents": f'"T{i}"\n{t}'}) + "\n" for i, t in enumerate(texts))
    )
    build(corpus, out, index="bm25")
    local = Retriever.open(out)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = start(out, port)
    client = Client(f"http://127.0.0.1:{port}", timeout_s=10, patience_s=90)
    client.check()
    wrong: list[str] = []
    answered = refused = 0
    lock, numbers, restarted = threading.Lock(), iter(range(NUM_REQUESTS)), threading.Event()

    def one(number: int) -> bool:
        """Send request `number`; whether it was answered (and not refused)."""
        own = np.random.default_rng((1, number))
        kind = number % 10
        queries = [" ".join(own.choice(WORDS, int(own.integers(1, 4)))) for _ in range(int(own.integers(1, 4)))]
        topk = int(own.integers(1, 6))
        if kind < 8:
            if client.search(queries, topk=topk) != local.search(queries, topk=topk):
                wrong.append(f"request {number}: {queries}")
            return True
        if kind == 8:
            bad = [([""], 3), (["x" * 100_000], 3), (["ok"], 0), (["ok"], 10**9), (["ok"] * 2000, 1)][number // 10 % 5]
            try:
                client.search(bad[0], topk=bad[1])
                wrong.append(f"request {number}: not refused")
            except (QueryError, RequestError):
                pass
            return False
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("POST", "/retrieve", [b"{", b'{"queries": [1]}', b'{"q": 1}'][number // 10 % 3])
            if connection.getresponse().status not in (400, 422):
                wrong.append(f"request {number}: malformed but accepted")
        except (OSError, http.client.HTTPException):
            pass  # during the restart nobody listens
        finally:
            connection.close()
        return False

    def work() -> None:
        nonlocal answered, refused
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            was_answered = one(number)
            with lock:
                answered, refused = answered + was_answered, refused + (not was_answered)
                half = answered + refused == NUM_REQUESTS // 2
            if half:
                restarted.set()

    threads = [threading.Thread(target=work) for _ in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    assert restarted.wait(120)
    server.kill()
    server.wait()
    time.sleep(0.5)
    server = start(out, port)
    for thread in threads:
        thread.join(120)
    server.kill()
    server.wait()
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong, wrong[:3]
    assert (answered, refused) == (8000, 2000)
