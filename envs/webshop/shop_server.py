"""The shop as a web page on this machine, for people.

Every button sends one action of the agent's language to a `WebShopEnv` and the page shows the state it then has, so a
person meets the same shop, and gets the same score, as a model. Plain HTML without scripts; loopback only.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from urllib.parse import parse_qs

from cachetools import LRUCache

from agentrl.envs.env_errors import DataError
from agentrl.envs.webshop import html_pages
from agentrl.envs.webshop.env import WebShopEnv

_MOST_VISITS = 200  # kept at a time; those not looked at for longest are forgotten
_MOST_BYTES = 1 << 16  # of a form
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass
class Visit:
    """One person's episode."""

    env: WebShopEnv
    task: int
    observation: str
    log: list[str] = field(default_factory=list)  # actions so far, as the agent would write them


class ShopServer(ThreadingHTTPServer):
    """Serves visits to one shop.

    Args:
        make_env: a new environment for each visit.
        port: 0 picks a free one, see `url`.

    Raises DataError where the port cannot be used.
    """

    daemon_threads = True

    def __init__(self, make_env: Callable[[], WebShopEnv], *, port: int = 8000) -> None:
        self._make_env = make_env
        self._visits: LRUCache[str, Visit] = LRUCache(_MOST_VISITS)
        self.lock = Lock()  # one request at a time: a visit is not made for two
        self.num_tasks = make_env().num_tasks  # also loads the shop before the first visitor waits
        try:
            super().__init__(("127.0.0.1", port), _ShopHandler)
        except OSError as error:
            raise DataError(f"port {port} cannot be used: {error.strerror}. Give another one, or 0 for any.") from error

    @property
    def url(self) -> str:
        """Address of the start page."""
        return f"http://127.0.0.1:{self.server_port}/"

    def start_visit(self, task: int) -> str:
        """Start an episode of a task; returns the key of the visit."""
        env = self._make_env()
        observation, _ = env.reset(options={"task": task})
        key = secrets.token_urlsafe(9)
        self._visits[key] = Visit(env, task, observation)
        return key

    def find_visit(self, key: str) -> Visit | None:
        """The visit with a key, if it is still kept."""
        visit: Visit | None = self._visits.get(key)
        return visit


class _ShopHandler(BaseHTTPRequestHandler):
    """Start page, visits and the style sheet."""

    server: ShopServer
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds for a request to arrive, and between two

    def do_GET(self) -> None:
        with self.server.lock:
            self._get()

    def do_POST(self) -> None:
        form = self._read_form()  # before the lock: a client that sends slowly keeps nobody waiting
        if form is not None:
            with self.server.lock:
                self._post(form)

    def _get(self) -> None:
        if not self._is_local():
            return
        if self.path == "/":
            self._send(html_pages.start(self.server.num_tasks))
        elif self.path == "/style.css":
            self._send(html_pages.STYLE, content_type="text/css")
        elif self.path.startswith("/visit/"):
            visit = self.server.find_visit(self.path.removeprefix("/visit/"))
            if visit is None:
                self._fail(HTTPStatus.NOT_FOUND, "This visit is over. Start a new one.")
            else:
                self._send(html_pages.visit(visit.env.session, visit.observation, visit.log, self.path, visit.task))
        else:
            self._fail(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _read_form(self) -> dict[str, list[str]] | None:
        """The fields of the form that was sent; None, answered, where it cannot be read."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            status, reason = HTTPStatus.LENGTH_REQUIRED, "The length of the form must be given."
        elif len(length) > 9 or int(length) > _MOST_BYTES:
            status, reason = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "That is too long."
        else:
            return parse_qs(self.rfile.read(int(length)).decode("utf-8", "replace"), keep_blank_values=True)
        self.close_connection = True
        self._fail(status, reason)
        return None

    def _post(self, form: dict[str, list[str]]) -> None:
        if not self._is_local():
            return
        if self.path == "/start":
            self._start(form.get("task", [""])[0])
        elif (visit := self.server.find_visit(self.path.removeprefix("/visit/"))) is not None:
            self._act(visit, form)
        else:
            self._fail(HTTPStatus.NOT_FOUND, "This visit is over. Start a new one.")

    def _start(self, task: str) -> None:
        last = self.server.num_tasks - 1
        number = secrets.randbelow(last + 1) if not task else int(task) if task.isdecimal() and len(task) < 10 else -1
        if 0 <= number <= last:
            self._redirect(f"/visit/{self.server.start_visit(number)}")
        else:
            self._fail(HTTPStatus.BAD_REQUEST, f"The task must be a number from 0 to {last}.")

    def _act(self, visit: Visit, form: dict[str, list[str]]) -> None:
        """Play one action: a button's own, the query of the search bar, or one written by hand."""
        action = f"search[{form['query'][0]}]" if "query" in form else form.get("action", [""])[0]
        visit.observation, *_ = visit.env.step(action)
        visit.log.append(action)
        self._redirect(self.path)

    def _is_local(self) -> bool:
        """Whether the request was meant for this server: other sites' pages must not reach it through a browser."""
        hosts = (f"127.0.0.1:{self.server.server_port}", f"localhost:{self.server.server_port}")
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in hosts and origin in (None, "null", *(f"http://{host}" for host in hosts)):
            return True
        self._fail(HTTPStatus.FORBIDDEN, "Open this shop from the machine that serves it.")
        return False

    def _redirect(self, path: str) -> None:
        # seeing the new state is a request of its own, so that reloading the page does not act again
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _fail(self, status: HTTPStatus, message: str) -> None:
        self._send(html_pages.message(message), status=status)

    def _send(self, content: str, *, status: HTTPStatus = HTTPStatus.OK, content_type: str = "text/html") -> None:
        body = content.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are not logged."""
