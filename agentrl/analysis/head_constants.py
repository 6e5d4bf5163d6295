"""C_struct of the paper's Theorem 1, measured: how much an architecture shields its inner layers from the head's error.

For a token i and a linear layer y = W x inside the blocks: activation ratio ||x||^2 / ||h||^2 (h enters the head), and
sensitivity C = max(E_{j ~ pi} ||dz_j/dy||^2, ||dz_a/dy||^2) of the logits z to the layer's output, a the sampled token.
Quantiles run over (token, layer) pairs; C_struct = 4 * ratio * C of the same quantile, as in Table 2 (whose last column
is four times the product of the others).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Structure:
    """Measurements of one model, one value per (token, layer) pair, [P]."""

    ratio: NDArray[np.float64]
    """||x||^2 / ||h||^2: beta_max / alpha_min of Lemma 1."""
    sensitivity: NDArray[np.float64]
    """C of Assumption 1."""
    gradient_ratio: NDArray[np.float64]
    """||G_int||_F^2 / ||G_lm||_F^2 of the sampled token, which Theorem 1 bounds."""
    bound: NDArray[np.float64]
    """4 * ratio * C / (1 - pi(a))^2 of the same pair."""

    def quantiles(self, share: float) -> tuple[float, float, float]:
        """(ratio, C, C_struct) at a quantile, 0.5 or 0.95 in Table 2."""
        ratio, sensitivity = (float(np.quantile(values, share)) for values in (self.ratio, self.sensitivity))
        return ratio, sensitivity, 4 * ratio * sensitivity


def measure_structure(
    module: Any, contexts: Sequence[tuple[Sequence[int], int]], *, num_samples: int = 4, seed: int = 0
) -> Structure:
    """Forward and backward passes over contexts, one token each.

    Args:
        module: Hugging Face causal LM with `.model` and `.lm_head`.
        contexts: (ids before the token, the token), at least one id each.
        num_samples: logit rows j drawn from the policy for the expectation over j.
        seed: of those draws.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [_measure_token(module, ids, token, num_samples, generator) for ids, token in contexts]
    return Structure(*(np.concatenate([part[i] for part in parts]) for i in range(4)))


def _measure_token(
    module: Any, ids: Sequence[int], token: int, num_samples: int, generator: torch.Generator
) -> tuple[NDArray[np.float64], ...]:
    inputs, outputs = [], []

    def keep(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        inputs.append(args[0][0, -1].detach())
        outputs.append(output)

    layers = [layer for layer in module.model.modules() if isinstance(layer, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with torch.enable_grad():
            embedded = module.get_input_embeddings()(torch.tensor([list(ids)])).detach().requires_grad_()
            hidden = module.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[0, -1]
            logits = hidden @ module.lm_head.weight.detach().t()
    finally:
        for hook in hooks:
            hook.remove()
    probs = logits.detach().double().softmax(-1)
    rows = torch.multinomial(probs, num_samples, replacement=True, generator=generator).tolist()
    expected = np.mean([_row_energies(logits[j], outputs) for j in rows], axis=0)
    sensitivity = np.maximum(expected, _row_energies(logits[token], outputs))
    head, size = float(hidden.detach().double().square().sum()), [float(x.double().square().sum()) for x in inputs]
    ratio = np.array(size) / head
    error = -probs
    error[token] += 1
    inner = _row_energies((logits * error.to(logits.dtype)).sum(), outputs) * size
    outer = head * float(error.square().sum())
    slack = max(1e-12, 1 - float(probs[token])) ** 2
    return ratio, sensitivity, inner / max(outer, 1e-300), 4 * ratio * sensitivity / slack


def _row_energies(value: torch.Tensor, outputs: list[torch.Tensor]) -> NDArray[np.float64]:
    """||d value / d y||^2 at the last position, per layer."""
    gradients = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
    return np.array([0.0 if g is None else float(g[0, -1].double().square().sum()) for g in gradients])
