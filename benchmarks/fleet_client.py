"""What a turn costs the process that asks vLLM servers for it: a connection for each client, or one client for all.

    OMP_NUM_THREADS=1 python benchmarks/fleet_client.py    # about five minutes

A server in a process of its own answers every turn after a tenth of a second with one token; 500 prompt tokens a turn,
as many turns at once as there are episodes. CPU-seconds are those of the asking process alone, both ways by turns, the
least of three.
"""

import asyncio
import json
import multiprocessing
import socket
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.vllm_servers import VllmServersEngine
from agentrl.rollout.engines.weight_sync import DiskSync

TURNS = 5


class OneClientEngine(VllmServersEngine):
    """All turns through one client, whose pool keeps all connections."""

    def _new_client(self) -> Any:
        return self._clients[0] if self._clients else super()._new_client()


async def answer(weights: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What a vLLM server says, without a model; `weights` keeps the name of those it was given."""
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode():
            route = head.split(" ")[1]
            length = next(
                (int(x.split(":")[1]) for x in head.split("\r\n") if x.lower().startswith("content-length")), 0
            )
            body = json.loads(await reader.readexactly(length) or b"null")
            told: Any = {}
            if route == "/update_weight_version":
                weights["version"] = body["new_version"]
            elif "generate" in route and body:
                await asyncio.sleep(0.1)
                told = {"choices": [{
                    "token_ids": [7], "logprobs": {"content": [{"logprob": -0.5}]}, "finish_reason": "stop",
                    "weight_versions": [weights],
                }]}  # fmt: skip
            text = json.dumps(told)
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
    except asyncio.IncompleteReadError:
        writer.close()


def serve(listening: socket.socket) -> None:
    """Until it is killed."""

    async def forever() -> None:
        await (await asyncio.start_server(partial(answer, {}), sock=listening, backlog=2048)).serve_forever()

    asyncio.run(forever())


def seconds_a_turn(kind: type[VllmServersEngine], url: str, episodes: int, folder: Path) -> float:
    """CPU-seconds a turn."""
    sync = DiskSync(folder)
    engine = kind([url], sync=sync, max_context_tokens=1024, patience_s=300.0)
    engine.load_weights([("weight", torch.zeros(1))], version=0)

    async def episode(number: int) -> None:
        for turn in range(TURNS):
            await engine.generate(list(range(500)), Sampling(max_new_tokens=8), key=(number, turn), session=str(number))

    async def play() -> None:
        await asyncio.gather(*map(episode, range(episodes)))

    asyncio.run(play())  # connects
    started = time.process_time()
    asyncio.run(play())
    spent = time.process_time() - started
    engine.close()
    return spent / episodes / TURNS


def main() -> None:
    """Command line."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = multiprocessing.get_context("fork").Process(target=serve, args=(listening,), daemon=True)
    server.start()
    print("| episodes at once | one client, ms a turn | a client each | |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for episodes in (16, 128, 512):
            rounds = [
                [seconds_a_turn(kind, url, episodes, Path(folder)) for kind in (OneClientEngine, VllmServersEngine)]
                for _ in range(3)
            ]
            one, each = (1000 * min(times) for times in zip(*rounds, strict=True))
            print(f"| {episodes} | {one:.2f} | {each:.2f} | {one / each:.1f}x |", flush=True)
    server.kill()


if __name__ == "__main__":
    main()
