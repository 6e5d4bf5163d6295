import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from agentrl.retriever.batching import Batcher
from agentrl.retriever.build import build
from agentrl.retriever.checks import Limits
from agentrl.retriever.client import Client
from agentrl.retriever.retrieval_errors import IndexFolderError, QueryError, RequestError
from agentrl.retriever.search import Retriever
from agentrl.retriever.serve import RetrieveService, _read_body, main, make_app

PASSAGES = [(str(i), f'"Book {word}"\nA story of the {word}.') for i, word in enumerate(("sea", "sky", "sun", "sand"))]


@pytest.fixture
def service() -> RetrieveService:
    return RetrieveService(Retriever.from_passages(PASSAGES))


def ask(service: RetrieveService, body: object) -> tuple[int, dict]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, content, _ = asyncio.run(service.answer(raw))
    return status, json.loads(content)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("with_scores", [True, False])
def test_retrieve_for_any_number_of_queries_answers_each_with_its_own_passages(service, count, with_scores):
    words = ["sea", "sky", "sun"][:count]
    status, answer = ask(service, {"queries": words, "topk": 1, "return_scores": with_scores})
    assert status == 200
    assert len(answer["result"]) == count
    for (item,), word in zip(answer["result"], words, strict=True):
        document = item["document"] if with_scores else item
        assert document["contents"] == f'"Book {word}"\nA story of the {word}.'
        assert not with_scores or item["score"] > 0


def test_retrieve_in_verl_agents_shape_gives_one_inner_list(service):
    status, answer = ask(service, {"query": "sea", "topk": 2, "return_scores": True})
    assert status == 200
    assert [item["document"]["id"] for item in answer["result"][0]] == ["0"]


def test_retrieve_with_topk_null_takes_the_servers_number():
    service = RetrieveService(Retriever.from_passages(PASSAGES), default_topk=2)
    assert len(ask(service, {"queries": ["book story"], "topk": None})[1]["result"][0]) == 2
    assert len(ask(service, {"queries": ["book story"]})[1]["result"][0]) == 2


def test_retrieve_the_same_query_again_comes_from_the_cache(service):
    first = ask(service, {"queries": ["sea", "sea"]})
    batches = service.batcher.statistics.num_queries
    assert ask(service, {"queries": ["sea", "sea"]}) == first
    assert (batches, service.batcher.statistics.num_queries) == (1, 1)


@pytest.mark.parametrize(
    ("body", "status", "code", "reason"),
    [
        (b"", 400, "malformed_body", "not JSON"),
        (b"{'queries': 1}", 400, "malformed_body", "not JSON"),
        (b"\xff\xfe\xfa", 400, "malformed_body", "not JSON"),
        (b"[" * 100_000, 400, "malformed_body", "not JSON"),
        ([1], 422, "bad_request", "expected an object"),
        ({}, 422, "bad_request", "give either"),
        ({"queries": ["a"], "query": "a"}, 422, "bad_request", "give either"),
        ({"queries": ["a"], "top_k": 3}, 422, "bad_request", "unknown field 'top_k'"),
        ({"queries": "a"}, 422, "bad_request", "list of strings"),
        ({"queries": [1]}, 422, "bad_request", "must be a string"),
        ({"queries": ["a"], "topk": 0}, 422, "bad_request", "topk must be"),
        ({"queries": ["a"], "topk": 10**9}, 422, "bad_request", "topk must be"),
        ({"queries": ["a"], "return_scores": "yes"}, 422, "bad_request", "return_scores"),
        ({"queries": [""]}, 422, "bad_query", "empty"),
        ({"queries": ["x" * (1 << 20)]}, 422, "bad_query", "1048576 characters"),
        ({"queries": ["\ud800"]}, 422, "bad_query", "surrogate"),
    ],
)
def test_retrieve_with_a_bad_request_is_refused_with_the_reason(service, body, status, code, reason):
    answered, content = ask(service, body)
    assert answered == status
    assert content["error"]["code"] == code
    assert reason in content["error"]["message"]


def test_retrieve_when_the_queue_is_full_answers_503_with_retry_after():
    gate = threading.Event()

    class Slow:
        def search(self, queries, *, topk):
            gate.wait(10)
            return [[] for _ in queries]

    batcher = Batcher(Slow(), max_wait_s=0, max_queue=1)
    service = RetrieveService(Retriever.from_passages(PASSAGES), batcher=batcher)
    waiting = [batcher.submit(["a"], topk=3)]
    while batcher._num_waiting:
        time.sleep(0.001)
    waiting.append(batcher.submit(["b"], topk=3))
    status, content, headers = asyncio.run(service.answer(b'{"queries": ["c"]}'))
    assert status == 503
    assert json.loads(content)["error"]["code"] == "overloaded"
    assert int(headers["Retry-After"]) >= 1
    gate.set()
    assert all(future.result(10) == [[]] for future in waiting)


def test_retrieve_when_the_search_fails_answers_500_and_serves_on():
    class Fails:
        def search(self, queries, *, topk):
            raise MemoryError("no memory for 3 blocks")

    service = RetrieveService(Retriever.from_passages(PASSAGES), batcher=Batcher(Fails()))
    assert ask(service, {"queries": ["a"]}) == (
        500, {"error": {"code": "internal", "message": "no memory for 3 blocks"}},
    )  # fmt: skip
    assert service.metrics()["num_errors"] == 1
    assert ask(service, {"queries": []}) == (200, {"result": []})


@pytest.fixture
def address() -> Iterator[str]:
    """A real server in a thread."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    app = make_app(RetrieveService(Retriever.from_passages(PASSAGES)))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.001)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def test_server_over_http_answers_the_client_like_the_object_in_process(address):
    remote, local = Client(address), Client(Retriever.from_passages(PASSAGES))
    for queries in (["sea"], ["story", "sun and sky"], ["zebra"], []):
        assert remote.search(queries, topk=3) == local.search(queries, topk=3)
    assert remote.check()["num_passages"] == 4
    with pytest.raises(QueryError, match="empty"):
        remote.search([""], topk=3)
    with pytest.raises(RequestError, match=r"HTTP 422.*topk"):
        remote.search(["sea"], topk=101)
    with pytest.raises(RequestError, match="HTTP 404"):
        Client(address + "/nowhere").search(["sea"])


def test_server_with_a_body_beyond_the_limit_refuses_it(address):
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request("POST", "/retrieve", b"x" * ((8 << 20) + 1))
    answer = connection.getresponse()
    assert answer.status == 413
    assert "longer than" in json.loads(answer.read())["error"]["message"]
    connection.request("GET", "/metrics")
    assert json.loads(connection.getresponse().read())["num_errors"] == 0
    connection.close()


def test_command_line_with_a_port_that_is_taken_explains_itself(tmp_path, capsys):
    (tmp_path / "corpus.jsonl").write_text('{"id": "0", "contents": "text"}\n')
    build(tmp_path / "corpus.jsonl", tmp_path / "out", index="bm25")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([str(tmp_path / "out"), "--port", str(taken.getsockname()[1])]) == 2
    assert "error: " in capsys.readouterr().err


def test_command_line_without_an_index_explains_itself(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "python -m agentrl.retriever.build" in capsys.readouterr().err


def test_body_whose_sender_has_gone_is_no_error_of_the_server():
    requests = pytest.importorskip("starlette.requests")

    async def stream():
        yield b"half a bo"
        raise requests.ClientDisconnect

    assert asyncio.run(_read_body(SimpleNamespace(stream=stream), Limits())) is None


@pytest.mark.parametrize(
    ("option", "value"),
    [("--port", "99999"), ("--max-queue", "0"), ("--max-batch", "-1"), ("--max-wait-ms", "-5"), ("--threads", "-3")],
)
def test_command_line_with_a_senseless_number_names_the_option(option, value, tmp_path, capsys):
    assert main([str(tmp_path), option, value]) == 2
    assert f"error: {option} must be from " in capsys.readouterr().err


def write_corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": i, "contents": text}) + "\n" for i, text in PASSAGES))
    return path


def write_faiss(path, factory="Flat"):
    faiss = pytest.importorskip("faiss")
    vectors = np.random.default_rng(0).normal(size=(256, 16)).astype("f4")
    index = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    path.parent.mkdir(exist_ok=True)
    faiss.write_index(index, str(path))
    return path


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8", "SQ8", "OPQ4,IVF2,PQ4x4"])
def test_serve_when_given_a_foreign_faiss_file_then_one_line_says_what_to_build(tmp_path, capsys, factory):
    path = write_faiss(tmp_path / "e5_Flat.index", factory)
    assert main([str(path), "--port", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "FAISS index made by another tool" in line
    assert "agentrl.retriever.build CORPUS.jsonl OUT" in line
    with pytest.raises(IndexFolderError, match="FAISS index made by another tool"):
        Client(str(path))


def test_serve_when_given_a_corpus_then_one_line_says_how_to_build_from_it(tmp_path, capsys):
    path = write_corpus(tmp_path)
    assert main([str(path), "--port", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"agentrl.retriever.build {path} OUT --index bm25" in line


def test_serve_when_a_foreign_faiss_file_lies_in_the_folder_then_names_it(tmp_path, capsys):
    build(write_corpus(tmp_path), tmp_path / "out", index="bm25")
    write_faiss(tmp_path / "out" / "minilm" / "flat.faiss")
    assert main([str(tmp_path / "out"), "--index", "minilm/flat", "--port", "0"]) == 2
    assert "minilm/flat.faiss was made by another tool" in capsys.readouterr().err
    write_faiss(tmp_path / "loose" / "wiki.index")
    assert main([str(tmp_path / "loose"), "--port", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "wiki.index was made by another tool" in line
