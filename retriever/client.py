"""One client for a retriever over HTTP or in this process: retries with back-off, bounded patience, checked answers."""

import json
import os
import random
import ssl
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from agentrl.common.fields import find_packed
from agentrl.retriever.index_folder import is_faiss_file, refuse_file
from agentrl.retriever.passages import Hit, read_corpus
from agentrl.retriever.retrieval_errors import QueryError, RequestError, RetrieverError, RetrieverUnavailable
from agentrl.retriever.search import Retriever

T = TypeVar("T")
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 5.0


class InProcess(Protocol):
    """A retriever in this process: `Retriever`, or a `Batcher` over one for many threads."""

    def search(self, queries: Sequence[str], *, topk: int) -> list[list[Hit]]:
        """The best passages of every query."""
        ...


class Client:
    """Search for passages, wherever they are.

        >>> client = Client.over_passages([("0", '"Emma"\\nEmma is a novel by Jane Austen.')])
        >>> client.search(["who wrote Emma"], topk=1)[0][0].title
        '"Emma"'

    Args:
        source: "http://host:port" (several, in a list, are asked in turn), the folder of an index ("FOLDER#bm25" names
            one of several), a corpus file (indexed now, with BM25), or a retriever.
        timeout_s: how long one attempt may take, the reading of its answer included.
        patience_s: how long one search may take, attempts and pauses together, before `RetrieverUnavailable`.
        sleep, clock: for tests.
    """

    def __init__(
        self,
        source: "str | Path | Sequence[str] | InProcess",
        *,
        timeout_s: float = 30.0,
        patience_s: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if timeout_s <= 0 or patience_s <= 0:
            raise RequestError(f"timeout_s and patience_s must be > 0, got {timeout_s} and {patience_s}")
        self.timeout_s, self.patience_s = timeout_s, patience_s
        self._sleep, self._clock = sleep, clock
        self._servers: list[_Address] = []
        self._local: InProcess | None = None
        self._turn = 0
        if isinstance(source, str | Path) and not str(source).startswith(("http://", "https://")):
            self._local = _open(str(source))
        elif isinstance(source, str | list | tuple):
            urls = [source] if isinstance(source, str) else source
            self._servers = [_Address(url) for url in urls]
        else:
            self._local = source  # type: ignore[assignment]

    @classmethod
    def over_passages(cls, passages: Iterable[tuple[str, str]]) -> "Client":
        """A client of a BM25 retriever in this process over `(id, contents)` pairs."""
        return cls(Retriever.from_passages(passages))

    def search(self, queries: Sequence[str], *, topk: int = 3) -> list[list[Hit]]:
        """The best `topk` passages of every query, best first; every passage has a text.

        Raises:
            QueryError: the text of a query is refused; asking again does not help.
            RequestError: something else in the request is.
            RetrieverUnavailable: no valid answer within `patience_s`.
        """
        if self._local is not None:
            return self._local.search(queries, topk=topk)
        if not queries:
            return []
        body = json.dumps({"queries": list(queries), "topk": topk, "return_scores": True}).encode()

        def attempt(server: "_Address", timeout_s: float) -> list[list[Hit]]:
            return _read_result(server.request("POST", "/retrieve", body, timeout_s), len(queries), topk)

        return self._ask(attempt)

    def check(self) -> dict[str, Any]:
        """Ask for the server's health, with the same patience; what is served. Call it before a run.

        A server without that route, such as Search-R1's own, is asked to search instead.
        """
        if self._local is not None:
            return {"status": "ok", "index": getattr(self._local, "name", "in-process")}
        try:
            return dict(self._ask(lambda server, timeout_s: _json(server.request("GET", "/health", b"", timeout_s))))
        except RequestError:
            self.search(["health"], topk=1)
            return {"status": "ok", "index": "unknown"}

    def served(self) -> dict[str, str]:
        """`corpus`: SHA-256 of its passages (empty where a server does not tell it), `index`: how they are searched."""
        told = self.check()
        corpus = told.get("corpus_sha256", "") if self._local is None else getattr(self._local, "corpus_sha256", "")
        return {"corpus": str(corpus), "index": str(told["index"])}

    def _ask(self, attempt: "Callable[[_Address, float], T]") -> T:
        start = self._clock()
        delay, num_attempts = _FIRST_DELAY_S, 0
        while True:
            server = self._servers[self._turn % len(self._servers)]
            self._turn += 1
            num_attempts += 1
            left = self.patience_s - (self._clock() - start)
            try:
                return attempt(server, min(self.timeout_s, max(left, 0.1)))
            except _TryAgainError as error:
                reason, pause = str(error), max(error.after_s, delay * random.uniform(0.5, 1.0))
            left = self.patience_s - (self._clock() - start)
            if left <= 0:
                raise RetrieverUnavailable(
                    f"the retriever at {server.url} gave no answer within {self.patience_s:g} s ({num_attempts} "
                    f"attempts; the last: {reason}). Start it with: python -m agentrl.retriever.serve OUT"
                )
            self._sleep(min(pause, left))
            delay = min(2 * delay, _LONGEST_DELAY_S)


def _open(path: str) -> InProcess:
    """A retriever over an index folder, or over the passages of a corpus file."""
    path = os.path.expanduser(path)
    if is_faiss_file(Path(path)):
        refuse_file(Path(path))
    if find_packed(Path(path)):
        return Retriever.from_passages(read_corpus(Path(path)))
    folder, _, index = path.partition("#")
    return Retriever.open(folder, index=index or None)


class _TryAgainError(RetrieverError):
    """An attempt failed in a way that time may heal."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


class _Address:
    """One server and its keep-alive connections, each with a client of its own.

    At every request httpx looks at all connections of its client, which costs more than all else once there are
    hundreds.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RequestError(f"a retriever's address looks like http://127.0.0.1:8000, got {url!r}")
        self.url = url
        self._base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/retrieve')}"
        self._process = os.getpid()
        self._certificates = ssl.create_default_context()  # the system's
        self._free = [self._connect()]

    def _connect(self) -> Any:
        import httpx  # here: a retriever in this process does not need it

        made = httpx.Client(
            headers={"Content-Type": "application/json"},
            verify=self._certificates,
            trust_env=False,  # no proxy stands between a run and its retriever
        )
        weakref.finalize(self, made.close)
        return made

    def request(self, method: str, path: str, body: bytes, timeout_s: float) -> bytes:
        """The body of a 200 answer; errors of the request are raised as such, everything else is worth a retry."""
        import httpx

        if os.getpid() != self._process:  # sockets of a parent process are not ours
            self._process, self._free = os.getpid(), []
        try:
            http = self._free.pop()
        except IndexError:
            http = self._connect()
        deadline = time.monotonic() + timeout_s
        try:
            with http.stream(method, self._base + path, content=body, timeout=timeout_s) as answer:
                content = b"".join(_until(deadline, answer.iter_bytes()))
        except (httpx.HTTPError, TimeoutError) as error:
            raise _TryAgainError(f"{type(error).__name__}: {error}") from error
        finally:
            self._free.append(http)
        if answer.status_code == 200:
            return content
        raise _refusal(answer.status_code, content, answer.headers.get("Retry-After"), self.url + path)


def _until(deadline: float, parts: Iterator[bytes]) -> Iterator[bytes]:
    """The parts of an answer: a server that sends a byte now and then cannot stretch an attempt for ever."""
    for part in parts:
        if time.monotonic() > deadline:
            raise TimeoutError("timed out in the middle of an answer")
        yield part


def _refusal(status: int, content: bytes, retry_after: str | None, where: str) -> Exception:
    try:
        error = json.loads(content)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "", content[:200].decode("utf-8", "replace")
    if status >= 500 or status in (408, 429):
        after_s = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
        return _TryAgainError(f"HTTP {status}: {message}", after_s)
    if code == QueryError.code:
        return QueryError(message)
    return RequestError(f"{where} answered HTTP {status}: {message}")


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise _TryAgainError(f"the answer is not JSON: {error}") from error


def _read_result(content: bytes, num_queries: int, topk: int) -> list[list[Hit]]:
    """The passages of an answer; an answer that is not one passage list per query is no answer."""
    try:
        result = _json(content)["result"]
        found = [[_read_hit(item) for item in items] for items in result]
    except (KeyError, TypeError, ValueError) as error:
        raise _TryAgainError(f"the answer has not the expected form: {error!r}") from error
    if len(found) != num_queries or any(len(hits) > topk for hits in found):
        raise _TryAgainError(f"the answer holds {len(found)} results for {num_queries} queries, topk {topk}")
    return found


def _read_hit(item: dict[str, Any]) -> Hit:
    document = item["document"]
    contents = document["contents"]
    if not isinstance(contents, str) or not contents.strip():
        raise ValueError("a passage without text")
    return Hit(str(document.get("id", "")), contents, float(item["score"]))
