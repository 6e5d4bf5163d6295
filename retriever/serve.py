"""Serve an index folder: `python -m agentrl.retriever.serve OUT`, then `POST /retrieve`."""

import argparse
import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from agentrl.common.extras import MissingExtraError
from agentrl.retriever.batching import Batcher
from agentrl.retriever.cache import CountingCache
from agentrl.retriever.checks import Limits, check_queries, check_topk
from agentrl.retriever.passages import Hit
from agentrl.retriever.retrieval_errors import MalformedBodyError, OverloadedError, RequestError, RetrieverError
from agentrl.retriever.search import Retriever

_FIELDS = ("queries", "query", "topk", "return_scores")


class RetrieveService:
    """Turns HTTP bodies into answers; knows nothing of the web framework.

    Args:
        retriever: what is served.
        default_topk: passages per query where the request names no number.
        batcher: shared by all requests.
    """

    def __init__(self, retriever: Retriever, *, default_topk: int = 3, batcher: Batcher | None = None) -> None:
        self.retriever, self.default_topk = retriever, check_topk(default_topk, retriever.limits)
        self.batcher = batcher or Batcher(retriever)
        self.started, self.num_errors = time.time(), 0
        # The JSON of one query's result: a rollout group asks the same question many times.
        self.fragments: CountingCache[tuple[str, int, bool], bytes] = CountingCache(8192)

    async def answer(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Status, JSON body and extra headers for the body of `POST /retrieve`."""
        try:
            queries, topk, with_scores = self.parse(body)
            keys = [(query, topk, with_scores) for query in queries]
            fragments = {key: self.fragments.get(key) for key in keys}
            missing = [key for key, fragment in fragments.items() if fragment is None]
            if missing:
                future = self.batcher.submit([key[0] for key in missing], topk=topk)
                found: list[list[Hit]] = await asyncio.wrap_future(future)
                for key, hits in zip(missing, found, strict=True):
                    fragment = fragments[key] = _to_json(hits, with_scores)
                    self.fragments.put(key, fragment)
            return 200, b'{"result":[' + b",".join(fragments[key] or b"[]" for key in keys) + b"]}", {}
        except OverloadedError as error:
            return 503, _error(error, "overloaded"), {"Retry-After": str(error.retry_after_s)}
        except RequestError as error:
            return error.status, _error(error), {}
        except Exception as error:  # one boundary: the client hears of it, the server lives on
            self.num_errors += 1
            return 500, _error(error, "internal"), {}

    def parse(self, body: bytes) -> tuple[list[str], int, bool]:
        """Queries, topk and return_scores of a request in Search-R1's or verl-agent's shape.

        Raises:
            RequestError: the body is not such a request; the message says what is wrong.
        """
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise MalformedBodyError(f"the body is not JSON: {str(error)[:200]}") from None
        if not isinstance(fields, dict):
            raise RequestError('expected an object like {"queries": ["..."], "topk": 3, "return_scores": true}')
        unknown = [name for name in fields if name not in _FIELDS]
        if unknown:
            raise RequestError(f"unknown field {unknown[0][:80]!r}; known: {', '.join(_FIELDS)}")
        if ("queries" in fields) == ("query" in fields):
            raise RequestError('give either "queries" (a list) or "query" (one string)')
        queries = fields["queries"] if "queries" in fields else [fields["query"]]
        topk = self.default_topk if fields.get("topk") is None else fields["topk"]
        with_scores = fields.get("return_scores", False)
        if not isinstance(with_scores, bool):
            raise RequestError(f"return_scores must be true or false, got {str(with_scores)[:40]}")
        limits = self.retriever.limits
        if not isinstance(queries, list):
            raise RequestError(f"queries must be a list of strings, got {type(queries).__name__}")
        return check_queries(queries, limits), check_topk(topk, limits), with_scores

    def health(self) -> dict[str, Any]:
        """What is served; a client checks it before a run."""
        return {
            "status": "ok",
            "index": self.retriever.name,
            "corpus_sha256": self.retriever.corpus_sha256,
            "num_passages": len(self.retriever.passages),
            "default_topk": self.default_topk,
            "limits": asdict(self.retriever.limits),
        }

    def metrics(self) -> dict[str, Any]:
        """Counters since the start, seconds as sums."""
        batches = asdict(self.batcher.statistics)
        batches = {key: round(value, 3) if isinstance(value, float) else value for key, value in batches.items()}
        own = {"up_s": round(time.time() - self.started, 1), "num_errors": self.num_errors}
        return {**own, **batches, "fragment_cache_hits": self.fragments.hits, **self.retriever.statistics()}


def _to_json(hits: Sequence[Hit], with_scores: bool) -> bytes:
    documents: list[Any] = [{"id": hit.id, "contents": hit.contents} for hit in hits]
    if with_scores:
        documents = [{"document": d, "score": hit.score} for d, hit in zip(documents, hits, strict=True)]
    return json.dumps(documents).encode()


def _error(error: Exception, code: str = "") -> bytes:
    code = code or getattr(error, "code", "error")
    return json.dumps({"error": {"code": code, "message": str(error) or type(error).__name__}}).encode()


def make_app(service: RetrieveService) -> Any:
    """The FastAPI application: `POST /retrieve`, `GET /health`, `GET /metrics`."""
    try:
        from fastapi import FastAPI, Request, Response
    except ImportError as error:
        raise MissingExtraError("fastapi", "search", "The retrieval server") from error
    app = FastAPI(title="retriever", description="Passage retrieval for search agents")
    too_large = _error(MalformedBodyError(f"the body is longer than {service.retriever.limits.max_body_bytes} bytes"))

    async def retrieve(request: Request) -> Response:
        body = await _read_body(request, service.retriever.limits)
        status, content, headers = (413, too_large, {}) if body is None else await service.answer(body)
        return Response(content, status, headers, media_type="application/json")

    # A plain route: FastAPI's own parsing of bodies costs more than a cached answer.
    app.add_route("/retrieve", retrieve, methods=["POST"])
    app.get("/health")(service.health)
    app.get("/metrics")(service.metrics)
    return app


async def _read_body(request: Any, limits: Limits) -> bytes | None:
    """The body, or None where it is too long (what is too long is not kept) or its sender has gone."""
    parts: list[bytes] = []
    size = 0
    from starlette.requests import ClientDisconnect

    try:
        async for part in request.stream():
            size += len(part)
            if size <= limits.max_body_bytes:
                parts.append(part)
    except ClientDisconnect:
        return None
    return None if size > limits.max_body_bytes else b"".join(parts)


def serve(service: RetrieveService, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until interrupted.

    Raises:
        OSError: the address is taken or not this machine's.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("uvicorn", "search", "The retrieval server") from error
    config = uvicorn.Config(make_app(service), log_level="warning", access_log=False)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listener:
        print(
            f"serving {service.retriever.name}, {len(service.retriever.passages):,} passages: "
            f"POST http://{host}:{listener.getsockname()[1]}/retrieve",
            file=sys.stderr,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.retriever.serve",
        description="Serve an index folder over HTTP: POST /retrieve, GET /health, GET /metrics.",
        epilog="""Example: curl -s http://127.0.0.1:8000/retrieve -H 'Content-Type: application/json' """
        """-d '{"queries": ["who wrote Emma"], "topk": 3, "return_scores": true}'""",
    )
    parser.add_argument("folder", metavar="OUT", help="a folder written by python -m agentrl.retriever.build")
    parser.add_argument("--index", help='"bm25" or "ENCODER/KIND" (default: the one built last)')
    parser.add_argument("--model", help="folder of the encoder's weights, if not where they were at build time")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port (default: %(default)s)")
    parser.add_argument("--topk", type=int, default=3, help="passages where a request names no number (default: 3)")
    parser.add_argument("--device", default="cpu", help="torch device of encoder and exact scan (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the encoder")
    parser.add_argument(
        "--scan-dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="precision of an exact scan; the result is exact in any (default: bfloat16 where the CPU has it)",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: half the cores)")
    parser.add_argument("--max-batch", type=int, default=64, help="queries searched together (default: %(default)s)")
    parser.add_argument("--max-wait-ms", type=float, default=3.0, help="wait for companions (default: %(default)s)")
    parser.add_argument("--max-queue", type=int, default=4096, help="queries that may wait (default: %(default)s)")
    return parser


def _check_options(options: argparse.Namespace) -> None:
    for name, least, most in (
        ("port", 0, 65_535), ("threads", 0, 4096), ("max_batch", 1, 1 << 20), ("max_queue", 1, 1 << 30),
        ("max_wait_ms", 0, 60_000),
    ):  # fmt: skip
        if not least <= getattr(options, name) <= most:
            shown = f"--{name.replace('_', '-')}"
            raise RequestError(f"{shown} must be from {least} to {most}, got {getattr(options, name)}")


def _limit_threads(count: int) -> None:
    count = count or int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, (os.cpu_count() or 2) // 2)
    os.environ["OMP_NUM_THREADS"] = str(count)  # read by torch and FAISS, which are loaded after this


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _check_options(options)
        _limit_threads(options.threads)
        retriever = Retriever.open(
            options.folder,
            index=options.index,
            model=options.model,
            device=options.device,
            encode_dtype=options.dtype,
            scan_dtype=options.scan_dtype,
        )
        batcher = Batcher(
            retriever,
            max_batch=options.max_batch,
            max_wait_s=options.max_wait_ms / 1000,
            max_queue=options.max_queue,
        )
        service = RetrieveService(retriever, default_topk=options.topk, batcher=batcher)
        serve(service, host=options.host, port=options.port)
    except (RetrieverError, MissingExtraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
