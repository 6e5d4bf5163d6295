"""Where a run's policy comes from, and what becomes of it before training: a device, adapters, shards."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agentrl.config.schema import Config
from agentrl.console import say
from agentrl.environment.calls import Offer
from agentrl.imitation import vocabulary_texts, warmstart
from agentrl.model.anatomy import head_form
from agentrl.model.load import load_model
from agentrl.model.logprobs import check_fidelity
from agentrl.model.processes import Processes
from agentrl.model.weights import add_lora, compute_dtype, shard
from agentrl.runs.checkpoint import load_adapter


@dataclass
class Models:
    """The modules of a run."""

    policy: Any
    """What the learner trains."""
    replica: Any
    """What an embedded engine decodes with: the policy itself, or where that is cut into shards a whole copy.
    For vLLM the copy has a shape and no weights."""
    initial: Any | None
    """The model before training where training goes on, on the CPU; None: `policy` still is that."""
    reference: Any | None
    """What a KL is measured to, where one is asked for: a frozen copy in the type of the products, cut as the policy
    is, or with adapters the policy itself, whose adapters are then switched off."""
    tokenizer: Any


def load_models(config: Config, offer: Offer, *, folder: Path, checkpoint: Path | None, processes: Processes) -> Models:
    """Load the policy of a run, or of its checkpoint, ready for training on all processes.

    Args:
        config: the experiment.
        offer: whether the training environment has an expert, for a warm start.
        folder: run folder, which keeps the initial weights.
        checkpoint: what to go on from.
        processes: the first makes a warm start, the others then find it.
    """
    if not processes.is_first:
        processes.wait()
    try:
        # Adapters resume on the frozen weights they began with.
        module, tokenizer = _load(
            config, offer, folder / "initial" if checkpoint and config.model.lora_rank else checkpoint
        )
    finally:
        if processes.is_first:
            processes.wait()
    module.to(processes.device)
    initial = None
    if checkpoint is not None:
        first = config.model.model_copy(update={"path": str(folder / "initial")})
        initial = load_model(first, device=torch.device("cpu"))[0]
    reference = None
    if config.loss.kl_coef and not config.model.lora_rank:
        reference = frozen_copy(initial or module, processes.device)
    replica = module
    if config.learner.shard and processes.count > 1:
        # vLLM holds its own weights and asks for the shape alone.
        replica = without_weights(module) if config.rollout.engine == "vllm" else copy.deepcopy(module)
    head_form(module)  # measured while the module is whole; wrapped ones keep it
    if config.learner.shard and processes.count > 1:
        limit = config.rollout.max_context_tokens
        check_fidelity(module, pad_id=tokenizer.pad_token_id or 0, max_context_tokens=limit)
    add_lora(module, config.model, seed=config.train.seed)
    if checkpoint is not None and config.model.lora_rank:
        load_adapter(checkpoint, module)
    if config.loss.kl_coef and config.model.lora_rank:
        reference = module
    if replica is not module:
        shard(module)
        if reference is not None and reference is not module:
            shard(reference)
    return Models(module, replica, initial, reference, tokenizer)


def frozen_copy(module: Any, device: torch.device) -> Any:
    """A copy that is never trained, in the type of its products: autocast would keep casts of what can be trained."""
    frozen = copy.deepcopy(module).requires_grad_(False).to(device, compute_dtype(module))
    head_form(frozen)  # as for the policy: measured while it is whole
    return frozen


def without_weights(module: Any) -> Any:
    """A copy that has the module's shape and settings alone, ties included; nothing is allocated for it."""
    hollow: dict[int, Any] = {id(p): torch.nn.Parameter(p.detach().to("meta")) for p in module.parameters()}
    hollow |= {id(b): b.to("meta") for b in module.buffers()}
    return copy.deepcopy(module, hollow)


def _load(config: Config, offer: Offer, path: Path | None) -> tuple[Any, Any]:
    """(module, tokenizer): from a folder, a warm start, or the model the config names."""
    if path is None and config.warmstart.episodes:
        if offer.expert:
            path = warmstart(config)
        else:
            say(f"warm start skipped: {config.env.id} offers no expert")
    if path is not None:
        return load_model(config.model.model_copy(update={"path": str(path)}))
    texts = vocabulary_texts(config) if config.model.path == "tiny" else ()
    return load_model(config.model, texts=texts, seed=config.train.seed)
