"""Of a LoRA policy only the factors travel to vLLM servers, as an adapter beside the base that they serve."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from agentrl.errors import UserError
from agentrl.model.weights import LORA_SCALE
from agentrl.rollout.engines.weight_sync import DiskSync, NamedTensors

_MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`."""


class AdapterSync(DiskSync):
    """The factors go through a folder in PEFT's format; servers multiply with base and factors.

    Servers serve the learner's own base. Every version has a name of its own: keys and values that an older one
    computed are never taken for its own. Whole weights (an evaluation's) go the way of `DiskSync`.
    """

    def offer(self, named_tensors: NamedTensors) -> None:
        """Write the factors, `adapter_model.safetensors` and `adapter_config.json`."""
        tensors = list(named_tensors)
        is_adapter = any("lora_" in name for name, _ in tensors)
        self.model = self._name(self._count + 1) if is_adapter else None
        super().offer(tensors)

    def _write(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        if self.model is None:
            super()._write(folder, tensors)
            return
        settings = adapter_settings(tensors)
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
        save_file(
            {f"base_model.model.{name.replace('.default.', '.')}": tensor for name, tensor in tensors.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )

    async def send(self, client: Any, url: str) -> None:
        """Let a server load the adapter.

        Raises:
            UserError: it was not started for adapters, or not for ones of this rank.
        """
        if self.model is None:
            await super().send(client, url)
            return
        assert self._current is not None, "an adapter is offered before it is sent"
        # The version before, and this one where the server was away and has not died: others answer with a mere 404.
        for name in (self._name(self._count - 1), self.model):
            await client.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": name})
        body = {"lora_name": self.model, "lora_path": str(self._current.resolve())}
        answer = await client.post(f"{url}/v1/load_lora_adapter", json=body)
        # vLLM answers 500 where adapters are not enabled or have a smaller rank; a server that is dying does too.
        if answer.is_client_error or (answer.is_error and "lora" in answer.text.lower()):
            rank = json.loads((self._current / "adapter_config.json").read_text(encoding="utf-8"))["r"]
            raise UserError(
                f"rollout.endpoints: {url} does not take the adapter ({' '.join(answer.text.split())[:300]}). Start it "
                "where it sees the folder, with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora --max-lora-rank "
                f'{served_rank(rank)}; or send merged weights: rollout.engine_options.weight_sync = "disk".'
            )
        answer.raise_for_status()

    def _name(self, count: int) -> str:
        return f"{self.folder.name}-{count}"


def served_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` of vLLM that holds adapters of a rank."""
    return next((limit for limit in _MAX_RANKS if rank <= limit), rank)


def adapter_settings(factors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What PEFT's `adapter_config.json` says of some factors: A is [rank, in], B [out, rank]."""
    (rank,) = {tensor.shape[0] for name, tensor in factors.items() if ".lora_A." in name}
    targets = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in factors})
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": LORA_SCALE * rank,
        "target_modules": targets, "bias": "none", "lora_dropout": 0.0, "inference_mode": True,
    }  # fmt: skip
