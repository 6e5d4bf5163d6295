"""A fleet of vLLM servers behind the Engine protocol: token ids in and out over HTTP.

Every server is one `vllm serve` with `--enable-scale-out --logprobs-mode processed_logprobs` (token ids over HTTP, at
the sampling temperature) and VLLM_SERVER_DEV_MODE=1 (weight updates). A server that fails spoils the turns it was busy
with (their episodes are played again) and gets no new ones until it is healthy and has the current weights. Every
answer names the weights that made it, so a server that was restarted behind our back, with the weights it once started
from, is caught too.
"""

import asyncio
import re
import threading
import time
import uuid
import zlib
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch

from agentrl.common.extras import MissingExtraError
from agentrl.errors import InfrastructureError, RunError, UserError
from agentrl.rollout.engines.base import CacheSize, Completion, Sampling
from agentrl.rollout.engines.patience import patiently
from agentrl.rollout.engines.vllm import request_parameters, score_parameters, scores_from_table
from agentrl.rollout.engines.weight_sync import WeightSync

_Result = TypeVar("_Result")
_GENERATE = "/inference/v1/generate"
_POLL_S = 0.5
_HEALTH_TIMEOUT_S = 5.0
_MAX_OPEN = 1024
"""Turns that a server is asked for at once; the others wait here, else a burst overruns its queue of new connections
(2,048 in vLLM's web server, less where the system allows less). No more are decoded at once by vLLM's own default."""
_KEEP_ALIVE_S = 2.0
"""How long a connection is kept for the next turn; vLLM hangs up after 5 s, and a turn sent just then would be lost."""


@dataclass(eq=False)
class _Server:
    url: str
    ready: bool = False
    """Healthy and with the current weights, as far as is known."""
    paused: bool = False
    """Answers nobody until it is told to go on."""
    mending: "asyncio.Task[None] | None" = None
    """Waits for a server that failed."""
    generated: float = -1.0
    """Tokens that it had generated when it was last looked at."""
    moved: float = 0.0
    """Moment at which that had changed."""
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_OPEN))
    free: list[Any] = field(default_factory=list)
    """Clients that no turn uses now, of one connection each: at every request httpx looks at all connections of its
    client, which costs more than all else once there are hundreds (`benchmarks/fleet_client.py`)."""


class VllmServersEngine:
    """Decodes on vLLM servers; this process alone uses them.

    All requests run in an event loop of the engine's own, in a thread, so that connections outlive a rollout.

    Args:
        urls: base addresses, such as `http://node1:8000`; all serve the same model.
        sync: how weights reach them.
        max_context_tokens: longest row.
        patience_s: longest turn on a server where no other waits for room, and how long the fleet may be without a
            single working server before the run stops.

    Raises:
        MissingExtraError: httpx is not installed.
        RunError: a server does not answer.
        UserError: a server lacks the routes for reinforcement learning.
    """

    shares_weights = False
    needs_shape_only = True
    mismatches = True
    can_run_ahead = True

    def __init__(self, urls: list[str], *, sync: WeightSync, max_context_tokens: int, patience_s: float) -> None:
        try:
            import httpx
        except ModuleNotFoundError:
            raise MissingExtraError("httpx", None, "rollout.endpoints") from None
        self.version = 0
        self.max_context_tokens, self.patience_s = max_context_tokens, patience_s
        self._httpx = httpx
        self._sync = sync
        self._servers = [_Server(url.rstrip("/")) for url in urls]
        self._run = uuid.uuid4().hex[:8]
        self._counts = self._no_counts()
        self.cache: CacheSize | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet", daemon=True)
        self._thread.start()
        try:
            self._wait_for(self._connect())
        except BaseException:
            self.close()
            raise

    async def generate(
        self, ids: list[int], sampling: Sampling, *, key: tuple[int, ...], session: str | None = None
    ) -> Completion:
        """Sample one turn; see `Engine.generate`. The turns of a session go to one server, whose cache knows them.

        Raises:
            InfrastructureError: the server failed or was restarted.
            RunError: no server came back within `patience_s`.
        """
        parameters = request_parameters(sampling, num_ids=len(ids), max_context_tokens=self.max_context_tokens, key=key)
        answer = await self._hand_over(self._ask(ids, parameters, affinity=session or repr(key)))
        choice = answer["choices"][0]
        logprobs = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
        self._counts["generated_tokens"] += len(logprobs)
        return Completion(list(choice["token_ids"]), logprobs, choice["finish_reason"])

    def release(self, session: str) -> None:
        """Servers drop by themselves what they no longer need."""

    async def score(self, ids: list[int], *, temperature: float = 1.0) -> list[float]:
        """Log-probs of a row, [L - 1]; see `VllmEngine.score`."""
        answer = await self._hand_over(self._ask(ids, score_parameters(temperature), affinity=repr(ids)))
        table = [{int(i): entry["logprob"] for i, entry in at.items()} for at in answer["prompt_logprobs"][1:]]
        return scores_from_table(table, ids, temperature)

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], *, version: int) -> None:
        """Bring the servers to new weights and drop their keys and values; those that are away get them later.

        Raises:
            RunError: not one server could be brought to them within `patience_s`.
        """
        for server in self._servers:
            server.ready = False
        self._sync.offer(named_tensors)
        self.version = version
        self._wait_for(self._give_weights_to_all())

    def pause(self) -> None:
        """Servers keep their memory: it is theirs alone."""

    def counts(self) -> dict[str, float]:
        """Tokens generated, failed requests, and servers that came back."""
        return dict(self._counts)

    def close(self) -> None:
        """Close connections; the servers live on."""
        if self._thread.is_alive():
            self._wait_for(self._disconnect())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._sync.close()

    @staticmethod
    def _no_counts() -> dict[str, float]:
        return {"generated_tokens": 0.0, "failed_requests": 0.0, "returned_servers": 0.0}

    @property
    def _label(self) -> str:
        """Name of the current weights; another run's never has the same."""
        return f"{self._run}-{self.version}"

    def _wait_for(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _hand_over(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run something in the engine's loop; cancelling the caller cancels it there, and with it the request."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    # Everything below runs in the engine's loop.

    async def _connect(self) -> None:
        self._certificates = self._httpx.create_ssl_context(trust_env=False)
        self._clients: list[Any] = []
        self._client = self._new_client()
        self._changed = asyncio.Condition()
        for server in self._servers:
            await self._wait_until_healthy(server)
            await self._check_routes(server)
        self.cache = total_cache([cache_of_metrics(await self._metrics(server)) for server in self._servers])

    def _new_client(self) -> Any:
        limits = self._httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_ALIVE_S
        )
        client = self._httpx.AsyncClient(
            timeout=self.patience_s, limits=limits, trust_env=False, verify=self._certificates
        )
        self._clients.append(client)
        return client

    async def _check_routes(self, server: _Server) -> None:
        """Whether a server has what an ordinary one hides: token ids over HTTP, and weight updates."""
        weights = await self._client.get(f"{server.url}/weight_info")
        tokens = await self._client.post(server.url + _GENERATE, json={})  # 400 or 422 where it is there
        if weights.status_code != 200 or tokens.status_code in (403, 404, 405):
            raise UserError(
                f"rollout.endpoints: {server.url} takes no weights or no token ids. Start it with: "
                "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs "
                '--generation-config vllm --hf-overrides \'{"head_dtype": "float32"}\''
            )

    async def _disconnect(self) -> None:
        for server in self._servers:
            if server.mending is not None:
                server.mending.cancel()
            if server.paused:  # it refused the weights, or the run was interrupted: the next to ask must not wait
                with suppress(self._httpx.HTTPError):
                    await self._client.post(f"{server.url}/resume", timeout=_HEALTH_TIMEOUT_S)
        for client in self._clients:
            await client.aclose()

    async def _ask(self, ids: list[int], parameters: dict[str, Any], *, affinity: str) -> dict[str, Any]:
        while True:
            server = await self._pick(affinity)
            async with server.room:
                if server.ready:  # else it failed while this turn waited for room
                    body = {"token_ids": ids, "sampling_params": parameters, "model": self._sync.model}
                    return await self._ask_server(server, body)

    async def _ask_server(self, server: _Server, body: dict[str, Any]) -> dict[str, Any]:
        label = self._label
        try:
            post = self._post_turn(server, body)
            response = await patiently(post, self.patience_s, partial(self._is_queueing, server))
        except TimeoutError:
            raise self._failure(server, f"it has not answered within {self.patience_s:g} s") from None
        except self._httpx.TransportError as error:
            raise self._failure(server, f"{type(error).__name__}: {error}") from None
        if response.status_code == 404 and self._sync.model is not None:
            raise self._failure(server, "it has no such adapter: it was restarted")
        if 400 <= response.status_code < 500:
            raise RunError(f"{server.url} refuses a request: {response.text[:500]}")
        if response.status_code != 200:
            raise self._failure(server, f"status {response.status_code}: {response.text[:200]}")
        answer: dict[str, Any] = response.json()
        choice = answer["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            raise self._failure(server, f"the turn ended with {choice['finish_reason']!r}")
        versions = {span["version"] for span in choice["weight_versions"] or ()}
        if versions != {label}:
            raise self._failure(server, f"it answered with the weights {sorted(versions)} instead of {label}")
        return answer

    async def _post_turn(self, server: _Server, body: dict[str, Any]) -> Any:
        """The response to a turn, asked for once more where its connection broke: the same key gives the same turn."""
        timeout = self._httpx.Timeout(self.patience_s, read=None)
        client = server.free.pop() if server.free else self._new_client()
        post = partial(client.post, server.url + _GENERATE, json=body, timeout=timeout)
        try:
            return await post()
        except (self._httpx.ReadError, self._httpx.WriteError, self._httpx.RemoteProtocolError):
            return await post()
        finally:
            server.free.append(client)

    async def _is_queueing(self, server: _Server) -> bool:
        """Whether a server still generates and has rows for which there is no room yet."""
        text = await self._metrics(server)
        generated = _metric(text, "generation_tokens_total")
        if generated != server.generated:
            server.generated, server.moved = generated, time.monotonic()
        return _metric(text, "num_requests_waiting") > 0 and time.monotonic() - server.moved < self.patience_s

    async def _metrics(self, server: _Server) -> str:
        """What a server tells of itself; nothing where it does not."""
        try:
            answer = await self._client.get(f"{server.url}/metrics", timeout=_HEALTH_TIMEOUT_S)
        except self._httpx.HTTPError:
            return ""
        return str(answer.text) if answer.status_code == 200 else ""

    async def _pick(self, affinity: str) -> _Server:
        """The server that knows a session, or while it is away another one."""
        await self._wait_for_any()
        ready = [server for server in self._servers if server.ready]
        place = zlib.crc32(affinity.encode())
        known = self._servers[place % len(self._servers)]
        return known if known.ready else ready[place % len(ready)]

    async def _wait_for_any(self) -> None:
        try:
            async with asyncio.timeout(self.patience_s), self._changed:
                await self._changed.wait_for(lambda: any(server.ready for server in self._servers))
        except TimeoutError:
            urls = ", ".join(server.url for server in self._servers)
            raise RunError(f"no vLLM server has come back within {self.patience_s:g} s: {urls}") from None

    def _failure(self, server: _Server, reason: str) -> InfrastructureError:
        """Take a server out of service and have it looked after."""
        self._counts["failed_requests"] += 1
        if server.ready:
            server.ready = False
            self._look_after(server)
        return InfrastructureError(f"vLLM server {server.url}: {reason}")

    def _look_after(self, server: _Server) -> None:
        server.mending = asyncio.get_running_loop().create_task(self._mend(server))

    async def _mend(self, server: _Server) -> None:
        """Wait, as long as it takes, for a server to be healthy and to take the current weights."""
        while not server.ready:
            await asyncio.sleep(_POLL_S)
            try:
                (await self._client.get(f"{server.url}/health", timeout=_HEALTH_TIMEOUT_S)).raise_for_status()
                await self._give_weights(server)
            except (self._httpx.HTTPError, UserError):  # also one that came back started otherwise
                continue
            self._counts["returned_servers"] += 1

    async def _give_weights_to_all(self) -> None:
        for server in self._servers:
            if server.mending is not None:
                server.mending.cancel()
        results = await asyncio.gather(*map(self._give_weights, self._servers), return_exceptions=True)
        for server, error in zip(self._servers, results, strict=True):
            if isinstance(error, self._httpx.HTTPError):
                self._look_after(server)
            elif error is not None:
                raise error
        await self._wait_for_any()

    async def _give_weights(self, server: _Server) -> None:
        # Turns that are still being decoded would mix old and new weights.
        server.paused = True
        await self._post(server, "/pause?mode=abort")
        await self._sync.send(self._client, server.url)
        await self._post(server, "/reset_prefix_cache")
        await self._post(server, "/update_weight_version", {"new_version": self._label})
        await self._post(server, "/resume")
        server.paused = False
        async with self._changed:
            server.ready = True
            self._changed.notify_all()

    async def _post(self, server: _Server, route: str, body: dict[str, Any] | None = None) -> None:
        (await self._client.post(server.url + route, json=body)).raise_for_status()

    async def _wait_until_healthy(self, server: _Server) -> None:
        until, last = time.monotonic() + self.patience_s, ""
        while time.monotonic() < until:
            try:
                if (await self._client.get(f"{server.url}/health", timeout=_HEALTH_TIMEOUT_S)).status_code == 200:
                    return
            except self._httpx.HTTPError as error:
                last = f"{type(error).__name__}: {error}"
            await asyncio.sleep(_POLL_S)
        raise RunError(f"the vLLM server {server.url} has not answered for {self.patience_s:g} s ({last}).")


def cache_of_metrics(text: str) -> CacheSize | None:
    """A server's cache of keys and values, from its Prometheus metrics; those of its data-parallel engines together."""
    sizes = []
    for labels in re.findall(r"^vllm:cache_config_info\{(.*)\}", text, re.MULTILINE):
        found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        tokens, block = found.get("kv_cache_size_tokens", ""), found.get("block_size", "")
        if not (tokens.isdecimal() and block.isdecimal()):
            return None
        sizes.append(CacheSize(int(tokens) - int(block), int(block)))  # one block is vLLM's own
    return total_cache(sizes)


def total_cache(sizes: Sequence[CacheSize | None]) -> CacheSize | None:
    """Several caches as one; None where one is unknown."""
    known = [size for size in sizes if size is not None]
    if not known or len(known) < len(sizes):
        return None
    return CacheSize(sum(size.tokens for size in known), max(size.block for size in known))


def _metric(text: str, name: str) -> float:
    return sum(map(float, re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", text, re.MULTILINE)))
