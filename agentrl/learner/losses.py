"""Per-token policy losses. Pure: tensors of N tokens in, [N] out; the caller weighs and sums them.

Symbols: logprobs = current policy (carries the gradient), old = policy before the first update on the batch,
behaviour = policy that sampled (the engine's log-probs), ratio = exp(logprobs - old).
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from agentrl.common.plugins import find_callable
from agentrl.config.schema import LossConfig


class Loss(Protocol):
    """A policy loss; one of your own is named `loss.kind = "module:function"`, with `loss.options` as keywords."""

    def __call__(
        self, logprobs: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor
    ) -> Tensor:
        """The loss of every trained token, [N]; weights, masks and the mean are taken outside.

        Args:
            logprobs: of the current policy, [N]; carries the gradient.
            old: of the policy before the first update on the batch, [N].
            behaviour: of the policy that sampled, by the engine, [N].
            advantages: [N].
            row_index: number of the row that a token belongs to, [N].
        """
        ...


def clip_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A).

    Source: PPO (arXiv 1707.06347), equation 7, as GRPO's token loss in the DGG paper, equation 1. `high` > `low` is
    clip-higher, DAPO (arXiv 2503.14476), equation 10.
    """
    ratio = (logprobs - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def dual_clip_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, *, low: float, high: float, bound: float
) -> Tensor:
    """The clipped loss, at most `-bound * A` where A < 0: inflated ratios of bad tokens stop to push.

    Source: Mastering Complex Control in MOBA Games (arXiv 1912.09729), equation 5.
    """
    clipped = clip_loss(logprobs, old, advantages, low=low, high=high)
    return torch.where(advantages < 0, torch.minimum(clipped, -bound * advantages), clipped)


def gspo_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, *, row_index: Tensor, low: float, high: float
) -> Tensor:
    """The clipped loss on the geometric-mean ratio of a row; gradients reach every token of the row.

    Source: GSPO (arXiv 2507.18071), equations 5 to 7, token form GSPO-token (equation 14).
    """
    log_ratio = logprobs - old
    num_rows = int(row_index.max()) + 1 if len(row_index) else 0
    counts = (
        torch.zeros(num_rows, dtype=log_ratio.dtype)
        .to(log_ratio.device)
        .index_add_(0, row_index, torch.ones_like(log_ratio))
    )
    sums = torch.zeros_like(counts).index_add(0, row_index, log_ratio.detach())
    mean = (sums / counts)[row_index]
    # Value of the row's mean log-ratio, gradient of the token's own log-prob.
    return clip_loss(mean + logprobs - logprobs.detach(), torch.zeros_like(old), advantages, low=low, high=high)


def cispo_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, *, high: float) -> Tensor:
    """-stopgrad(min(ratio, 1 + high)) * A * logprob: weights are clipped, no token loses its gradient.

    Source: CISPO, MiniMax-M1 (arXiv 2506.13585), equations 4 and 5, with the upper clip only, as used there.
    """
    weight = (logprobs.detach() - old).exp().clamp(max=1 + high)
    return -weight * advantages * logprobs


def decoupled_loss(
    logprobs: Tensor, proximal: Tensor, behaviour: Tensor, advantages: Tensor, *, low: float, high: float
) -> Tensor:
    """The clipped loss around a proximal policy, weighted by exp(proximal - behaviour).

    Source: decoupled PPO (arXiv 2110.00641), as in AReaL (arXiv 2505.24298), equation 5.
    """
    weight = (proximal - behaviour).exp()
    return weight * clip_loss(logprobs, proximal, advantages, low=low, high=high)


def m2po_loss(logprobs: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """-ratio * A, without a clip: `m2po_mask`, multiplied in from outside, holds the ratios in their place.

    Source: M2PO, Prosperity before Collapse (arXiv 2510.01161), section 5.2, equation 5; masked tokens stay in the
    denominator (footnote 2).
    """
    return -(logprobs - old).exp() * advantages


def dppo_loss(logprobs: Tensor, anchor: Tensor, advantages: Tensor) -> Tensor:
    """-exp(logprobs - anchor) * A, without a clip: `masks.dppo_mask`, multiplied in from outside, is the trust region.

    Source: Divergence PPO (arXiv 2602.04879). The anchor is the policy that sampled, not the one before the first
    update.
    """
    return -(logprobs - anchor).exp() * advantages


def m2po_mask(log_ratio: Tensor, advantages: Tensor, *, threshold: float) -> Tensor:
    """Which tokens M2PO keeps, [N] bool: drops the largest squared log-ratios until their mean is <= threshold.

    Only tokens that push further away (log-ratio and advantage of one sign) can be dropped; the selection is made over
    the whole optimizer batch. Source: M2PO (arXiv 2510.01161), algorithm 1.
    """
    squares = log_ratio.detach().square()
    outward = (log_ratio.detach() * advantages) > 0
    keep = torch.ones_like(outward)
    candidates = outward.nonzero()[:, 0]
    if not len(candidates):
        return keep
    order = candidates[squares[candidates].argsort(descending=True, stable=True)]
    ordered = squares[order].double()
    # Mean of what would be left after dropping the first 0, 1, 2 ... of the candidates.
    left = ordered.sum() - torch.cat([ordered.new_zeros(1), ordered.cumsum(0)[:-1]])
    means = left / torch.arange(len(order), 0, -1, device=order.device)
    num_dropped = int((means > threshold).sum())
    keep[order[:num_dropped]] = False
    return keep


def kl_estimate(logprobs: Tensor, reference: Tensor, kind: str) -> Tensor:
    """Per-token estimate of KL(current || reference) from current samples, [N].

    k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d with d = logprobs - reference. Source: Schulman, Approximating KL
    Divergence (joschu.net/blog/kl-approx.html).
    """
    difference = logprobs - reference
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    return (-difference).exp() - 1 + difference


def mismatch_weights(old: Tensor, behaviour: Tensor, *, cap: float, kind: str = "truncate") -> Tensor:
    """exp(old - behaviour), [N], corrects the gap between learner and engine, not reuse.

    `truncate`: at most `cap` (truncated importance sampling, Your Efficient RL Framework Secretly Brings You Off-Policy
    RL Training, fengyao.notion.site, 2025). `mask`: tokens beyond 1 / cap .. cap weigh 0 (IcePop, ringtech.notion.site,
    2025; one-sided in TRL's `token_mask`).
    """
    weights = (old - behaviour).exp()
    if kind == "mask":
        return weights * ((weights <= cap) & (weights >= 1 / cap))
    return weights.clamp(max=cap)


def policy_loss(config: LossConfig) -> Loss | Callable[..., Tensor]:
    """The loss that a config names, as f(logprobs, old, behaviour, advantages, row_index) -> [N].

    With `tis_cap` the weight of `decoupled` is the same `mismatch_weights` that then multiply every loss, so that it is
    left out here: cut or masked at the cap, and not squared. So with `dppo`, whose ratio then starts from `old`.
    """

    if ":" in config.kind:
        return partial(find_callable(config.kind, "loss.kind"), **config.options)

    def loss(logprobs: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor) -> Tensor:
        low, high = config.clip_low, config.clip_high
        if config.kind == "dual_clip":
            return dual_clip_loss(logprobs, old, advantages, low=low, high=high, bound=config.dual_clip)
        if config.kind == "gspo":
            return gspo_loss(logprobs, old, advantages, row_index=row_index, low=low, high=high)
        if config.kind == "cispo":
            return cispo_loss(logprobs, old, advantages, high=high)
        if config.kind == "m2po":
            return m2po_loss(logprobs, old, advantages)
        if config.kind == "dppo":
            return dppo_loss(logprobs, old if config.tis_cap else behaviour, advantages)
        if config.kind == "decoupled" and not config.tis_cap:
            return decoupled_loss(logprobs, old, behaviour, advantages, low=low, high=high)
        return clip_loss(logprobs, old, advantages, low=low, high=high)

    return loss


@torch.no_grad()
def ratio_sums(logprobs: Tensor, old: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """Sums over tokens from which `ratio_metrics` is computed, [8] float64; they add up over parts and processes.

    Order: tokens, ratio, ratio^2, k3, clipped tokens, log-ratio^2, -logprob, and last the largest ratio, which is
    combined by a maximum instead.
    """
    if not len(logprobs):
        return torch.zeros(8, dtype=torch.float64)
    log_ratio = (logprobs - old).double()
    ratio = log_ratio.exp()
    clipped = ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))
    return torch.stack(
        [
            ratio.new_tensor(float(len(ratio))),
            ratio.sum(),
            ratio.square().sum(),
            (ratio - 1 - log_ratio).sum(),
            clipped.double().sum(),
            log_ratio.square().sum(),
            -logprobs.double().sum(),
            ratio.max(),
        ]
    ).cpu()


@torch.no_grad()
def sequence_sums(logprobs: Tensor, old: Tensor, row_index: Tensor) -> Tensor:
    """Rows, sum of w and sum of w^2, [3] float64, w a row's product of ratios; they add up over parts and processes.

    The log of a weight is held within -300 .. 300, so that no sum overflows.
    """
    if not len(logprobs):
        return torch.zeros(3, dtype=torch.float64)
    num_rows = int(row_index.max()) + 1
    log_ratio = (logprobs - old).double()
    tokens, total = (log_ratio.new_zeros(num_rows) for _ in range(2))
    tokens.index_add_(0, row_index, torch.ones_like(log_ratio))
    total.index_add_(0, row_index, log_ratio)
    weights = total[tokens > 0].clamp(-300, 300).exp()
    return torch.stack([weights.new_tensor(float(len(weights))), weights.sum(), weights.square().sum()]).cpu()


def sequence_ess(sums: Tensor) -> float:
    """(sum w)^2 / (n sum w^2) from added `sequence_sums`; 1 without any row."""
    count, weights, squares = (float(x) for x in sums)
    return weights * weights / (count * squares) if count else 1.0


def ratio_metrics(sums: Tensor) -> dict[str, float]:
    """Means of a whole batch from added `ratio_sums`.

    kl: k3 estimate of KL(old || current); chi_square: mean(ratio^2) - 1 (paper, Theorem 2);
    ess: (sum r)^2 / (n sum r^2); m2: mean squared log-ratio; surprise: mean -logprob of the sampled tokens, an
    estimate of the entropy.
    """
    count, ratio, squares, k3, clipped, m2, surprise, largest = (float(x) for x in sums)
    return {
        "kl": k3 / count,
        "chi_square": squares / count - 1,
        "ess": ratio * ratio / (count * squares) if squares else 1.0,
        "clip_fraction": clipped / count,
        "m2": m2 / count,
        "surprise": surprise / count,
        "max_ratio": largest,
    }
