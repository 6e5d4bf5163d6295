"""Training the topmost blocks alone: what lies below them is frozen, and its output is kept while a batch is reused."""

from collections.abc import Callable
from typing import Any

import torch

from agentrl.errors import UserError
from agentrl.model.anatomy import blocks, head, hidden_states, is_tied, one_line, standing_in
from agentrl.model.fidelity import random_rows

Kept = torch.Tensor
"""Output of the topmost frozen block for the rows of a micro-batch, [B, L, D]."""


def freeze_lower_layers(module: Any, num_trained: int) -> None:
    """Train the `num_trained` topmost blocks, the last norm and the head, in place; 0 does nothing.

    A head that is tied to the embedding becomes a matrix of its own, which begins as a copy: the embedding stays as it
    is below frozen blocks.

    Raises:
        UserError: the module has no list of blocks, or not so many.
    """
    if not num_trained:
        return
    found = blocks(module)
    if found is None or num_trained > len(found):
        raise UserError(
            f"model.train_layers = {num_trained}: {type(module).__name__} has {len(found or ())} blocks in a list. "
            "Take at most so many, or 0 to train all weights."
        )
    if is_tied(module):
        _untie(module)
    for part in (module.get_input_embeddings(), *found[: len(found) - num_trained]):
        part.requires_grad_(False)


class FrozenBlocks:
    """The blocks of a module below its lowest trained parameter.

    Args:
        module: Hugging Face causal LM whose frozen parameters ask for no gradient.

    Raises:
        UserError: an architecture in which more than one tensor goes from block to block.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.blocks = _frozen_below(module)
        if self.blocks:
            self._check()

    def hidden_states(self, ids: torch.Tensor, kept: Kept | None) -> tuple[torch.Tensor, Kept | None]:
        """(states [B, L, D] as `anatomy.hidden_states` gives them, what to pass as `kept` for the same rows again).

        Args:
            ids: rows, [B, L].
            kept: of an earlier call with these ids; None computes the frozen blocks.
        """
        if not self.blocks:
            return hidden_states(self.module, ids), None
        if kept is not None:
            *lower, top = self.blocks
            with standing_in([*((block, _returns_first) for block in lower), (top, _returns(kept))]):
                return hidden_states(self.module, ids), kept
        seen: list[Any] = []
        hook = self.blocks[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            states = hidden_states(self.module, ids)
        finally:
            hook.remove()
        return states, seen[0]

    @torch.no_grad()
    def _check(self) -> None:
        """Whether states above kept outputs are the same as above computed ones, to the last bit."""
        device = self.module.get_input_embeddings().weight.device
        ids = torch.tensor(random_rows(self.module, [8, 8]), device=device)
        with one_line(self.module, "keeping the frozen blocks' output (model.train_layers)"):
            states, kept = self.hidden_states(ids, None)
            again, _ = self.hidden_states(ids, kept)
        if not isinstance(kept, torch.Tensor) or not torch.equal(states, again):
            raise UserError(
                f"model.train_layers: in {type(self.module).__name__} more than one tensor goes from block to block. "
                "Set it to 0."
            )


def _frozen_below(module: Any) -> list[Any]:
    if any(p.requires_grad for p in module.get_input_embeddings().parameters()):
        return []
    frozen: list[Any] = []
    for block in blocks(module) or ():
        if any(p.requires_grad for p in block.parameters()):
            break
        frozen.append(block)
    return frozen


def _untie(module: Any) -> None:
    layer = head(module)
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    module.config.tie_word_embeddings = False
    module.all_tied_weights_keys = {}  # what saving and loading ask (transformers)


def _returns_first(states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return states


def _returns(output: Kept) -> Callable[..., Kept]:
    return lambda *_, **__: output
