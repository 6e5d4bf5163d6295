import json
import socket
import threading
import time as clock
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat

import pytest

from agentrl.retriever.client import Client
from agentrl.retriever.passages import Hit
from agentrl.retriever.retrieval_errors import IndexFolderError, QueryError, RequestError, RetrieverUnavailable

GOOD = json.dumps({"result": [[{"document": {"id": "7", "contents": "text"}, "score": 0.5}]]}).encode()


class FakeTime:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


def http(status: int, body: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return head.encode() + body


@pytest.fixture
def scripted() -> Iterator[Callable[..., str]]:
    """Start a server that answers one connection after the other with the given bytes, the last one for ever."""
    listeners = []

    def start(*answers: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            for answer in chain(answers, repeat(answers[-1])):
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    if answer:
                        connection.recv(65536)
                        connection.sendall(answer)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


def make(address: str, time: FakeTime, **options) -> Client:
    return Client(address, sleep=time.sleep, clock=time.clock, **options)


def test_search_with_no_server_stops_after_the_stated_patience_with_one_message():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    time = FakeTime()
    with pytest.raises(RetrieverUnavailable) as stopped:
        make(address, time, patience_s=60).search(["a"])
    message = str(stopped.value)
    assert address in message
    assert "within 60 s" in message
    assert "Connection refused" in message
    assert "python -m agentrl.retriever.serve" in message
    assert stopped.value.fatal
    assert time.now == pytest.approx(60)
    assert all(b <= 5.0 for b in time.sleeps)
    assert time.sleeps[0] < time.sleeps[3] < time.sleeps[6]  # back-off


@pytest.mark.parametrize(
    "bad",
    [
        b"",  # closes at once: killed
        http(200, GOOD)[:-5],  # killed in mid-answer
        b"HTTP/1.1 200 X\r\n",
        http(500, b"oops"),
        http(503, b"{}"),
        http(200, b"<html>"),
        http(200, b"[]"),
        http(200, b'{"result": []}'),
        http(200, b'{"result": [[], []]}'),
        http(200, b'{"result": null}'),
        http(200, GOOD.replace(b'"text"', b'" "')),  # an empty passage
        http(200, GOOD.replace(b'"text"', b"null")),
        http(200, GOOD.replace(b"0.5", b'"high"')),
    ],
)
def test_search_after_a_broken_answer_asks_again(scripted, bad):
    time = FakeTime()
    assert make(scripted(bad, bad, http(200, GOOD)), time).search(["a"]) == [[Hit("7", "text", 0.5)]]
    assert len(time.sleeps) == 2


def test_search_with_only_broken_answers_never_returns_an_empty_passage(scripted):
    client = make(scripted(http(200, GOOD.replace(b'"text"', b'""'))), FakeTime(), patience_s=5)
    with pytest.raises(RetrieverUnavailable, match="passage without text"):
        client.search(["a"])


def test_search_when_overloaded_waits_as_long_as_the_server_says(scripted):
    time = FakeTime()
    busy = http(503, b'{"error": {"code": "overloaded", "message": "full"}}', "Retry-After: 7\r\n")
    assert make(scripted(busy, http(200, GOOD)), time).search(["a"])
    assert time.sleeps == [7]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (http(422, b'{"error": {"code": "bad_query", "message": "query 0 is empty"}}'), QueryError),
        (http(422, b'{"error": {"code": "bad_request", "message": "topk"}}'), RequestError),
        (http(404, b"not here"), RequestError),
        (http(413, b""), RequestError),
    ],
)
def test_search_that_is_refused_for_what_it_asks_is_not_repeated(scripted, answer, kind):
    time = FakeTime()
    with pytest.raises(kind):
        make(scripted(answer), time).search(["a"])
    assert not time.sleeps


def test_search_at_a_server_that_never_answers_gives_up_after_its_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts into its backlog and says nothing
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.1, patience_s=0.3)
        with pytest.raises(RetrieverUnavailable, match="ReadTimeout: timed out"):
            client.search(["a"])


def test_search_with_several_servers_takes_turns_and_survives_the_death_of_one(scripted):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
    client = Client([dead, scripted(http(200, GOOD))], sleep=lambda _: None)
    for _ in range(3):
        assert client.search(["a"])[0][0].contents == "text"


def test_client_of_a_corpus_file_or_an_index_folder_searches_in_process(corpus, tmp_path):
    from agentrl.retriever.build import build

    build(corpus, tmp_path / "out", index="bm25")
    expected = Client(str(tmp_path / "out")).search(["dracula 11"], topk=2)
    assert expected[0][0].id == "p11"
    assert Client(corpus).search(["dracula 11"], topk=2) == expected
    assert Client(f"{tmp_path / 'out'}#bm25").search(["dracula 11"], topk=2) == expected
    with pytest.raises(IndexFolderError, match="no index 'minilm/exact'; it has: bm25"):
        Client(f"{tmp_path / 'out'}#minilm/exact")
    with pytest.raises(IndexFolderError, match="not built"):
        Client(tmp_path / "nothing")


def test_check_of_a_server_without_a_health_route_searches_instead(scripted):
    # Search-R1's own server: 404 for /health, the same answers for /retrieve.
    assert make(scripted(http(404, b"{}"), http(200, GOOD)), FakeTime()).check() == {"status": "ok", "index": "unknown"}


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"patience_s": -1}])
def test_client_with_senseless_times_is_refused(options):
    with pytest.raises(RequestError, match="must be > 0"):
        Client("http://127.0.0.1:1", **options)


def test_client_with_a_senseless_address_is_refused():
    with pytest.raises(RequestError, match="looks like"):
        Client(["http://"])


def test_search_at_a_server_that_drips_its_answer_gives_up_in_time():
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    for byte in http(200, GOOD):
                        connection.sendall(bytes([byte]))
                        clock.sleep(0.02)
            except OSError:  # the client has gone, or the test is over
                if listener.fileno() < 0:
                    return

    threading.Thread(target=drip, daemon=True).start()
    with listener:
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.3, patience_s=0.8)
        begin = clock.monotonic()
        with pytest.raises(RetrieverUnavailable, match="TimeoutError"):
            client.search(["a"])
        assert clock.monotonic() - begin < 3


def test_searches_at_once_have_a_connection_each_and_hand_it_on():
    everybody, connections = threading.Barrier(4, timeout=60), set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            connections.add(self.client_address)
            everybody.wait()
            self.send_response(200)
            self.send_header("Content-Length", str(len(GOOD)))
            self.end_headers()
            self.wfile.write(GOOD)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    client = Client(f"http://127.0.0.1:{server.server_port}")
    for _ in range(3):
        with ThreadPoolExecutor(4) as threads:
            assert len(list(threads.map(lambda _: client.search(["a"], topk=1), range(4)))) == 4
    assert len(connections) == 4
    server.shutdown()
    server.server_close()
    thread.join()
