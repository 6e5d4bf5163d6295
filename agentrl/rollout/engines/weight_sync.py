"""How new weights reach vLLM servers, and the check that they arrived: both sides score the same tokens."""

import asyncio
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import torch
from safetensors.torch import save_file

from agentrl.common.event_loops import run_coroutine
from agentrl.common.extras import MissingExtraError
from agentrl.config.schema import RolloutConfig
from agentrl.errors import RunError
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.base import Completion, Engine, Sampling
from agentrl.types import Row

NamedTensors = Iterable[tuple[str, torch.Tensor]]
Score = Callable[[list[int], float], list[float]]
"""The learner's log-probs of a row at a temperature, [L - 1]."""

_PROBE_ROWS = 4
_SAMPLED_TOKENS = 16
_SCORED_TOKENS = 256


class WeightSync(Protocol):
    """Brings the learner's weights to a server."""

    model: str | None
    """Name by which requests ask for what was sent last; None: it is in the served model itself."""

    def offer(self, named_tensors: NamedTensors) -> None:
        """Take new weights; `send` may then be called several times, for servers that were away."""
        ...

    async def send(self, client: Any, url: str) -> None:
        """Give a server the weights of the last `offer`; raises httpx.HTTPError where it cannot.

        Args:
            client: an httpx.AsyncClient.
            url: base address of the server, which must not be decoding.
        """
        ...

    def close(self) -> None:
        """Delete what was stored."""
        ...


@dataclass(frozen=True)
class Host:
    """The processes of one machine, as far as a folder that all of them see is concerned."""

    writes: bool = True
    """Whether this process is the one that writes."""
    wait: Callable[[], None] = lambda: None
    """Returns once every process has come here."""


class DiskSync:
    """Weights go through a folder that learner and servers both see (`/dev/shm` on one machine).

    Args:
        folder: rewritten at every sync; half of it is the copy that servers read meanwhile. The same for all processes
            of a machine.
        dtype: type in which they are written: the one the servers compute in.
        host: of all processes of a machine one writes, and all servers read that copy.
    """

    model: str | None = None

    def __init__(self, folder: Path, *, dtype: torch.dtype | None = None, host: Host | None = None) -> None:
        self.folder, self.dtype, self.host = folder, dtype, host or Host()
        self._current: Path | None = None
        self._count = 0

    def offer(self, named_tensors: NamedTensors) -> None:
        """Write one safetensors file; a tied head is written out, since vLLM would keep its old one otherwise."""
        self._count += 1
        folder = self.folder / f"weights-{self._count}"
        if self.host.writes:
            folder.mkdir(parents=True)
            # A tied head shares memory with the embedding, which the format forbids.
            self._write(folder, {name: in_type(tensor, self.dtype).cpu().clone() for name, tensor in named_tensors})
        else:
            for _ in named_tensors:  # shards are gathered by all processes together
                pass
        self.host.wait()
        previous, self._current = self._current, folder
        if previous is not None and self.host.writes:
            shutil.rmtree(previous)

    def _write(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    async def send(self, client: Any, url: str) -> None:
        """Let the server's workers read the folder."""
        assert self._current is not None, "weights are offered before they are sent"
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(self._current.resolve())}}
        (await client.post(f"{url}/collective_rpc", json=body)).raise_for_status()

    def close(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class NcclSync:
    """Weights go from the learner's GPU to the server's by vLLM's weight-transfer API (NCCL broadcasts).

    Servers are started with `--weight-transfer-config '{"backend": "nccl"}'`. A restarted server gets a new group.

    Args:
        address: address of this machine as the servers see it; None takes the one from which a server is reached.
        device: the learner's GPU.
        dtype: type in which weights travel: the one the servers compute in.
    """

    model: str | None = None

    def __init__(
        self, address: str | None = None, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.address, self.device, self.dtype = address, device or torch.device("cuda"), dtype
        self._tensors: list[tuple[str, torch.Tensor]] = []
        self._senders: dict[str, Any] = {}

    def offer(self, named_tensors: NamedTensors) -> None:
        """Keep a copy on the host: a server may ask again while the learner is elsewhere."""
        self._tensors = [(name, in_type(tensor, self.dtype).cpu()) for name, tensor in named_tensors]

    async def send(self, client: Any, url: str) -> None:
        """Broadcast; where the group is broken or new, set it up first."""
        world_size = (await client.get(f"{url}/get_world_size")).raise_for_status().json()["world_size"]
        if url in self._senders:
            try:
                await asyncio.to_thread(self._on_device, self._senders[url].send_weights)
                return
            except Exception:  # the server at the other end is a new one
                del self._senders[url]
        self._senders[url] = await asyncio.to_thread(self._on_device, self._connect, url, world_size)
        await asyncio.to_thread(self._on_device, self._senders[url].send_weights)

    def close(self) -> None:
        """Drop groups and copy."""
        self._senders.clear()
        self._tensors = []

    def _on_device(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do something with the learner's GPU as the current one; a fresh thread starts with the machine's first."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        return work(*arguments)

    def _connect(self, url: str, world_size: int) -> Any:
        try:
            from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
            from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
            from vllm.utils.network_utils import get_open_port
        except ModuleNotFoundError:
            raise MissingExtraError("vllm", "vllm", 'weight_sync = "nccl"') from None
        address = self.address or address_towards(url)
        start = NCCLTrainerInitInfo(address, get_open_port(), 1 + world_size, rank=0)
        return WeightTransferTrainerFactory.trainer_init(
            start, client=HTTPVLLMWeightSyncClient(url), source=self.source()
        )

    def source(self) -> Any:
        """The tensors of the last offer, as vLLM wants to be given them: 0.32 calls `metadata`, 0.33 reads it."""
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

        sync = self

        class OfferedTensors(WeightSource):
            """The tensors of the last offer."""

            def _describe(self) -> list[Any]:
                """Names, types and shapes, in the order of iteration."""
                return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sync._tensors]

            metadata: Any = cached_property(_describe) if hasattr(WeightSource, "iter_full") else _describe

            def iter_full(self) -> Any:
                """Every tensor, on the learner's GPU."""
                return ((name, tensor.to(sync.device)) for name, tensor in sync._tensors)

            __iter__ = iter_full

        return OfferedTensors()


def in_type(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """The tensor without its graph; floating-point numbers in the given type."""
    tensor = tensor.detach()
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def address_towards(url: str) -> str:
    """This machine's address on the way to a server; asking sends nothing."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])


class HoldsWeights(Protocol):
    """Whatever learns, as far as engines are concerned."""

    num_updates: int
    """Version of the weights."""

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Named whole tensors; an engine that shares the learner's module does not look at them."""
        ...

    def adapter(self) -> dict[str, torch.Tensor]:
        """The factors of a LoRA policy, whole, by name."""
        ...

    def score(self, ids: list[int], temperature: float) -> list[float]:
        """Log-prob of every id but the first given those before it, [L - 1]."""
        ...

    def rest(self) -> None:
        """Leave the device's memory to an engine until the weights are asked for again, where that is wanted."""
        ...


def bring_weights(
    engine: Engine, learner: HoldsWeights, rows: Sequence[Row], config: RolloutConfig
) -> dict[str, float]:
    """Bring the learner's weights to an engine; where that computes by other code, both score how it continues `rows`.

    Args:
        engine: of this process.
        learner: where the weights come from.
        rows: sampled rows to check with.
        config: temperature and tolerance.

    Returns:
        Metrics of the check and the seconds it all took; nothing for an engine that computes as the learner does.

    Raises:
        RunError: the gap exceeds the tolerance.
    """
    started = time.perf_counter()
    adapts = config.engine_options.get("weight_sync") == "adapter"
    engine.load_weights(learner.adapter().items() if adapts else learner.weights(), version=learner.num_updates)
    if not engine.mismatches:
        return {}
    gaps = check_sync(engine, rows, learner.score, temperature=config.temperature, tolerance=config.sync_tolerance)
    if engine.needs_shape_only and not config.endpoints:  # it plays where the learner computes
        learner.rest()
    return {**gaps, "time/sync_s": time.perf_counter() - started}


def check_sync(
    engine: Engine, rows: Sequence[Row], score: Score, *, temperature: float, tolerance: float
) -> dict[str, float]:
    """Let engine and learner score the same tokens: how the engine continues a few rows, and how these rows begin.

    Rows of the last rollout are cut where the policy last spoke: their keys and values would still be cached if a sync
    had forgotten to drop them, and what follows comes from the very path that rollouts use. A confident policy, though,
    finds its own words certain under any weights; the beginnings, mostly the environment's words, are not.

    Args:
        engine: has just got its weights.
        rows: sampled rows, from which a few are taken at even distances.
        score: the learner's side.
        temperature: of the rollouts.
        tolerance: largest mean gap of either kind, in nats.

    Returns:
        `sync/gap`: the larger of both mean absolute differences of log-probs; `sync/gap_max`: the largest difference;
        `sync/tokens`: how many were compared.

    Raises:
        RunError: the gap exceeds the tolerance.
    """
    chosen = [rows[i * len(rows) // _PROBE_ROWS] for i in range(_PROBE_ROWS)]
    prefixes = [row.ids[: _last_turn(row)].tolist() for row in chosen]
    openings = [row.ids[:_SCORED_TOKENS].tolist() for row in chosen]
    sampling = Sampling(max_new_tokens=_SAMPLED_TOKENS, temperature=temperature)

    async def ask_engine() -> tuple[list[Completion], list[list[float]]]:
        turns = [engine.generate(ids, sampling, key=(i,)) for i, ids in enumerate(prefixes)]
        return await asyncio.gather(*turns), [await engine.score(ids) for ids in openings]

    turns, scores = run_coroutine(ask_engine())
    sampled = [
        abs(a - b)
        for ids, turn in zip(prefixes, turns, strict=True)
        for a, b in zip(score(ids + turn.ids, temperature)[len(ids) - 1 :], turn.logprobs, strict=True)
    ]
    scored = [
        abs(a - b)
        for ids, theirs in zip(openings, scores, strict=True)
        for a, b in zip(score(ids, 1.0), theirs, strict=True)
    ]
    gap = max(sum(sampled) / len(sampled), sum(scored) / len(scored))
    if not gap <= tolerance:
        raise RunError(
            f"learner and engine disagree after a weight sync: their log-probs differ by {gap:.3g} nats a token, "
            f"rollout.sync_tolerance is {tolerance:g}. Either the weights did not arrive, or the engine computes in "
            "another precision, or it was started without --logprobs-mode processed_logprobs, or for an adapter with "
            "another base than the learner's."
        )
    both = [*sampled, *scored]
    return {"sync/gap": gap, "sync/gap_max": max(both), "sync/tokens": float(len(both))}


def opening_row(chat: Chat) -> Row:
    """A row to check a first sync with, when nothing has been played yet."""
    ids = np.array([*chat.open("Which way?"), chat.end_id], np.int32)
    trained = np.zeros(len(ids), np.bool_)
    trained[-1] = True
    return Row(ids, trained, np.zeros(len(ids), np.float32))


def _last_turn(row: Row) -> int:
    """Position at which the last run of trained tokens begins."""
    starts = row.trained & ~np.concatenate([[False], row.trained[:-1]])
    return int(starts.nonzero()[0][-1])
