"""vLLM in this process and real vLLM servers for the tests; each takes its time to start, so tests share them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from agentrl.learner.learner import TorchLearner
from agentrl.rollout.engines.vllm import VllmEngine
from agentrl.rollout.engines.vllm_servers import VllmServersEngine
from agentrl.rollout.engines.weight_sync import DiskSync
from tests.agentrl.helpers import tiny_policy, toy_config

MAX_CONTEXT_TOKENS = 400
PATIENCE_S = 900.0  # machines that run tests may be busy with other things
MODULE, TOKENIZER = tiny_policy(hidden_size=64)  # vLLM's attention on CPU wants heads of at least 32


def weights(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """What the learner sends to an engine."""
    return TorchLearner(module, toy_config(), pad_id=0).weights()


def start_vllm(module: Any = MODULE, **options: Any) -> VllmEngine:
    """An embedded vLLM with the shape of `module`."""
    limits = {"max_concurrent": 64, "max_context_tokens": MAX_CONTEXT_TOKENS, "patience_s": PATIENCE_S}
    return VllmEngine(module, TOKENIZER, **limits, options=options)


class Server:
    """One `vllm serve` that can be killed and started again at the same address."""

    def __init__(self, folder: Path, *options: str, **settings: str) -> None:
        self.folder, self.options, self.settings = folder, options, settings
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return at once; the fleet waits for health."""
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder),
            "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager",
            "--max-model-len", str(MAX_CONTEXT_TOKENS), "--max-num-seqs", "64", "--max-logprobs", "-1",
            "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--no-enable-chunked-prefill",
            "--enable-scale-out", *self.options,
        ]  # fmt: skip
        settings = {
            "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **self.settings,
        }  # fmt: skip
        with (self.folder / f"server-{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, how: int = signal.SIGKILL) -> None:
        """Signal the server and its engine process alike."""
        if self.process is not None:
            os.killpg(self.process.pid, how)
            if how in (signal.SIGKILL, signal.SIGTERM):
                self.process.wait()

    def pause(self) -> None:
        """Make it hang."""
        self.kill(signal.SIGSTOP)

    def proceed(self) -> None:
        """End a pause."""
        self.kill(signal.SIGCONT)


def start_fleet(servers: list[Server], folder: Path, *, patience_s: float = PATIENCE_S) -> VllmServersEngine:
    """A fleet engine on some servers, which may still be starting."""
    urls = [server.url for server in servers]
    sync = DiskSync(folder)
    return VllmServersEngine(urls, sync=sync, max_context_tokens=MAX_CONTEXT_TOKENS, patience_s=patience_s)
