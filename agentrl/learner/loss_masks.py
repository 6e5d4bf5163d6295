"""Masks that leave tokens or whole rows out of the loss. Pure; N tokens, all of them constants for the gradient.

What is masked stays in the denominator: leaving out a drifted token does not make the others weigh more.
"""

import torch
from torch import Tensor

from agentrl.config.schema import LossConfig


def dppo_mask(logprobs: Tensor, behaviour: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """Which tokens DPPO keeps, [N] bool: not those whose probability moved too far the way of their advantage.

    The total variation between current and sampling policy is estimated by its binary form, |p - p_behaviour| of the
    sampled token against all others. A token with A > 0 is left out where p - p_behaviour > high, any other where
    p - p_behaviour < -low. Source: Divergence PPO (arXiv 2602.04879), binary total variation, as in the authors' code
    (sail-sg/Stable-RL, `dppo_binary_tv`); their cut of the weight at 10 is left out.
    """
    shift = logprobs.detach().double().exp() - behaviour.double().exp()
    return torch.where(advantages > 0, shift <= high, shift >= -low)


def sequence_mask(logprobs: Tensor, behaviour: Tensor, row_index: Tensor, *, kind: str, limit: float) -> Tensor:
    """Which tokens belong to rows within the trust region, [N] bool: a row is kept or left out as a whole.

    With d = logprobs - behaviour, a row is kept where max(d^2 / 2) <= limit (`max`), or mean(exp(d) - 1 - d) <= limit
    (`mean`). Source: Trust Region Masking (arXiv 2512.23075): k2 for the largest token divergence of a sequence, since
    it sees both directions, k3 for the mean. A row is a sequence: an episode of a conversation, one turn of a window.
    The policy that sampled is the rollout engine's, as in the paper.
    """
    drift = (logprobs.detach() - behaviour).double()
    divergence = drift.square() / 2 if kind == "max" else drift.exp() - 1 - drift
    num_rows = int(row_index.max()) + 1 if len(row_index) else 0
    reduction = "amax" if kind == "max" else "mean"
    rows = divergence.new_zeros(num_rows).scatter_reduce(0, row_index, divergence, reduction, include_self=False)
    return (rows <= limit)[row_index]  # what is not a number is within no limit


def token_mask(
    config: LossConfig, logprobs: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor
) -> Tensor | None:
    """The tokens that a config keeps, [N] bool; None where it keeps all."""
    keep = None
    if config.kind == "dppo":
        keep = dppo_mask(logprobs, behaviour, advantages, low=config.clip_low, high=config.clip_high)
    if config.sequence_mask != "off":
        kind, limit = config.sequence_mask, config.sequence_limit
        rows = sequence_mask(logprobs, behaviour, row_index, kind=kind, limit=limit)
        keep = rows if keep is None else keep & rows
    return keep
