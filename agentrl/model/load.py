"""Module and tokenizer of a policy: from a folder, a hub name, or a tiny shape with a tokenizer of its own."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from agentrl.config.schema import ModelConfig
from agentrl.model.pretrained import load_pretrained
from agentrl.model.tiny import build_tiny_model, build_tokenizer

_SMALL_BYTES = 100 * 2**20  # weights on disk below which one thread is the fastest


def compute_device() -> torch.device:
    """Where this process computes: the GPU that it has made its own, else the CPU. The one place that decides it."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_model(
    config: ModelConfig, *, texts: Iterable[str] | None = None, seed: int = 0, device: torch.device | None = None,
    weights: bool = True,
) -> tuple[Any, Any]:  # fmt: skip
    """(module, tokenizer) of a policy, in evaluation mode (no dropout).

    `module.compute_dtype` tells whoever runs it the type of its matrix products (`weights.computing`).

    Args:
        config: what to load.
        texts: corpus for the tiny model's vocabulary; ignored for pretrained models.
        seed: initial weights of the tiny model.
        device: where it lies; None is `compute_device()`.
        weights: whether they are needed; else the module is a shape on the device `meta`, wherever a folder or hub
            name has weights that others can read as they are.

    Raises:
        UserError: the folder or name holds no causal LM.
    """
    module: Any
    stored, products = ("float32", "bfloat16") if config.dtype == "mixed" else (config.dtype, config.dtype)
    dtype = getattr(torch, stored)
    if config.path == "tiny":
        tokenizer = build_tokenizer(texts or (), entity_names=config.tiny.entity_names)
        module = build_tiny_model(config.tiny, tokenizer, seed=seed).to(dtype)
    else:
        module, tokenizer = load_pretrained(config.path, dtype=dtype, weights=weights)
    if module.device.type != "meta":
        module.to(device or compute_device())
    module.compute_dtype = getattr(torch, products)
    if config.gradient_checkpointing:
        recompute_activations(module)
    return module.eval(), tokenizer


def recompute_activations(module: Any) -> None:
    """Keep no activations inside the blocks; backward computes them again."""
    # The method's name before and since transformers 5.2x; both take the keyword arguments first.
    enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def set_threads(path: str) -> None:
    """One CPU thread of torch for a small model, which more only slow down; else what `OMP_NUM_THREADS` says.

    Args:
        path: `model.path`.
    """
    if _is_small(path):
        torch.set_num_threads(1)


def _is_small(path: str) -> bool:
    files = list(Path(path).expanduser().glob("*.safetensors"))
    return path == "tiny" or 0 < sum(file.stat().st_size for file in files) < _SMALL_BYTES
