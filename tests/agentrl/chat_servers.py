"""Chat servers for tests: a small real one that speaks the faults of others."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, Any]]
"""(status, body)."""


def said(text: str | None, *, finish: str = "stop", tool_calls: list[Any] | None = None, **message: Any) -> Reply:
    """A chat completion."""
    told = {"role": "assistant", "content": text, "tool_calls": tool_calls, **message}
    body = {
        "id": "1", "object": "chat.completion", "created": 1, "model": "small-1", "system_fingerprint": "fp7",
        "choices": [{"index": 0, "message": told, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }  # fmt: skip
    return 200, body


def refused(status: int, message: str) -> Reply:
    """An error as servers tell it."""
    return status, {"error": {"message": message, "type": "error", "code": None}}


class ChatServer:
    """Answers `/v1/chat/completions` by a function of the request."""

    def __init__(self, answer: Callable[[dict[str, Any]], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests.append(body)
                    server.keys.append(self.headers.get("Authorization"))
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                status, told = answer(body)
                with lock:
                    server.at_once -= 1
                text = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                if status == 429:
                    self.send_header("Retry-After-Ms", "10")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                try:
                    self.wfile.write(text)
                except BrokenPipeError:  # the client's patience ended
                    return

            def log_message(self, *words: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def chat_server(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[ChatServer]:
    """A server for a moment."""
    server = ChatServer(answer)
    try:
        yield server
    finally:
        server.close()


def slowly(reply: Reply, seconds: float = 0.05) -> Reply:
    """The same after a while."""
    time.sleep(seconds)
    return reply
