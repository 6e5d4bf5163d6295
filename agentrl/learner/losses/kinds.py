"""Per-token policy losses, each with its table of the config. Pure: tensors of N tokens in, [N] out.

Symbols as in `losses.token_loss`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from agentrl.learner.losses.token_loss import LossConfig

if TYPE_CHECKING:
    from torch import Tensor


class ClipRangeConfig(LossConfig):
    """A ratio clipped on both sides."""

    clip_low: float = Field(0.2, gt=0)
    """Ratio clip below 1."""
    clip_high: float = Field(0.2, gt=0)
    """Ratio clip above 1 (0.28 is DAPO's clip-higher)."""

    @property
    def clip_range(self) -> tuple[float, float]:
        """The keys."""
        return self.clip_low, self.clip_high


class ClipConfig(ClipRangeConfig):
    """PPO's clipped loss, GRPO's."""

    kind: Literal["clip"] = "clip"

    def token_losses(
        self, logprobs: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor
    ) -> Tensor:
        """`clip_loss`."""
        return clip_loss(logprobs, old, advantages, low=self.clip_low, high=self.clip_high)


class DualClipConfig(ClipRangeConfig):
    """The clipped loss with a bound for bad tokens."""

    kind: Literal["dual_clip"] = "dual_clip"
    dual_clip: float = Field(3.0, gt=1)
    """Bound on the ratio where the advantage is negative."""

    def token_losses(
        self, logprobs: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor
    ) -> Tensor:
        """`dual_clip_loss`."""
        low, high = self.clip_range
        return dual_clip_loss(logprobs, old, advantages, low=low, high=high, bound=self.dual_clip)


class GspoConfig(ClipRangeConfig):
    """The clipped loss on the ratio of whole rows."""

    kind: Literal["gspo"] = "gspo"

    def token_losses(
        self, logprobs: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor
    ) -> Tensor:
        """`gspo_loss`."""
        low, high = self.clip_range
        return gspo_loss(logprobs, old, advantages, row_index=row_index, low=low, high=high)


class CispoConfig(LossConfig):
    """Clipped weights instead of clipped gradients."""

    kind: Literal["cispo"] = "cispo"
    clip_high: float = Field(0.2, gt=0)
    """Weight clip above 1."""

    @property
    def clip_range(self) -> tuple[float, float]:
        """Below, what the other losses have."""
        return super().clip_range[0], self.clip_high

    def token_losses(
        self, logprobs: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor
    ) -> Tensor:
        """`cispo_loss`."""
        return cispo_loss(logprobs, old, advantages, high=self.clip_high)


class DecoupledConfig(ClipRangeConfig):
    """The clipped loss around a proximal policy."""

    kind: Literal["decoupled"] = "decoupled"

    def token_losses(
        self, logprobs: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor
    ) -> Tensor:
        """`decoupled_loss`.

        With `tis_cap` its weight is the same `mismatch_weights` that multiply every loss, so that it is left out here:
        cut or masked at the cap, and not squared.
        """
        low, high = self.clip_range
        if self.tis_cap:
            return clip_loss(logprobs, old, advantages, low=low, high=high)
        return decoupled_loss(logprobs, old, behaviour, advantages, low=low, high=high)


class M2poConfig(LossConfig):
    """No clip; the most drifted tokens are left out over the whole batch."""

    kind: Literal["m2po"] = "m2po"
    m2_threshold: float = Field(0.04, gt=0)
    """Largest mean squared log-ratio of the tokens kept."""

    def select(self, log_ratio: Tensor, advantages: Tensor) -> Tensor | None:
        """`m2po_mask`."""
        return m2po_mask(log_ratio, advantages, threshold=self.m2_threshold)

    def token_losses(
        self, logprobs: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor
    ) -> Tensor:
        """`m2po_loss`."""
        return m2po_loss(logprobs, old, advantages)


class DppoConfig(LossConfig):
    """No clip; a token is left out where its probability moved too far."""

    kind: Literal["dppo"] = "dppo"
    clip_low: float = Field(0.2, gt=0)
    """How far a token's probability may fall before it is left out."""
    clip_high: float = Field(0.2, gt=0)
    """How far a token's probability may rise before it is left out."""

    def mask(self, logprobs: Tensor, behaviour: Tensor, advantages: Tensor) -> Tensor | None:
        """`dppo_mask`."""
        return dppo_mask(logprobs, behaviour, advantages, low=self.clip_low, high=self.clip_high)

    def token_losses(
        self, logprobs: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor
    ) -> Tensor:
        """`dppo_loss`; with `tis_cap`, which corrects the mismatch apart, the ratio starts from `old`."""
        return dppo_loss(logprobs, old if self.tis_cap else behaviour, advantages)


def clip_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A).

    Source: PPO (arXiv 1707.06347), equation 7, as GRPO's token loss in the DGG paper, equation 1. `high` > `low` is
    clip-higher, DAPO (arXiv 2503.14476), equation 10.
    """
    ratio = (logprobs - old).exp()
    return -(ratio * advantages).minimum(ratio.clamp(1 - low, 1 + high) * advantages)


def dual_clip_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, *, low: float, high: float, bound: float
) -> Tensor:
    """The clipped loss, at most `-bound * A` where A < 0: inflated ratios of bad tokens stop to push.

    Source: Mastering Complex Control in MOBA Games (arXiv 1912.09729), equation 5.
    """
    clipped = clip_loss(logprobs, old, advantages, low=low, high=high)
    return clipped.minimum(-bound * advantages).where(advantages < 0, clipped)


def gspo_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, *, row_index: Tensor, low: float, high: float
) -> Tensor:
    """The clipped loss on the geometric-mean ratio of a row; gradients reach every token of the row.

    Source: GSPO (arXiv 2507.18071), equations 5 to 7, token form GSPO-token (equation 14).
    """
    log_ratio = logprobs - old
    num_rows = int(row_index.max()) + 1 if len(row_index) else 0
    nothing = log_ratio.detach().new_zeros(num_rows)
    counts = nothing.index_add(0, row_index, nothing.new_ones(len(log_ratio)))
    sums = nothing.index_add(0, row_index, log_ratio.detach())
    mean = (sums / counts)[row_index]
    # Value of the row's mean log-ratio, gradient of the token's own log-prob.
    return clip_loss(mean + logprobs - logprobs.detach(), old.new_zeros(len(old)), advantages, low=low, high=high)


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


def m2po_mask(log_ratio: Tensor, advantages: Tensor, *, threshold: float) -> Tensor:
    """Which tokens M2PO keeps, [N] bool: drops the largest squared log-ratios until their mean is <= threshold.

    Only tokens that push further away (log-ratio and advantage of one sign) can be dropped; the selection is made over
    the whole optimizer batch. Source: M2PO (arXiv 2510.01161), algorithm 1.
    """
    squares = log_ratio.detach().square()
    outward = (log_ratio.detach() * advantages) > 0
    keep = outward.new_ones(len(outward))
    candidates = outward.nonzero()[:, 0]
    if not len(candidates):
        return keep
    order = candidates[squares[candidates].argsort(descending=True, stable=True)]
    ordered = squares[order].double()
    # Mean of what would be left after dropping the first 0, 1, 2 ... of the candidates.
    before = ordered.new_zeros(len(ordered))
    before[1:] = ordered.cumsum(0)[:-1]
    means = (ordered.sum() - before) / ordered.new_ones(len(ordered)).cumsum(0).flip(0)
    num_dropped = int((means > threshold).sum())
    keep[order[:num_dropped]] = False
    return keep


def dppo_loss(logprobs: Tensor, anchor: Tensor, advantages: Tensor) -> Tensor:
    """-exp(logprobs - anchor) * A, without a clip: `dppo_mask`, multiplied in from outside, is the trust region.

    Source: Divergence PPO (arXiv 2602.04879). The anchor is the policy that sampled, not the one before the first
    update.
    """
    return -(logprobs - anchor).exp() * advantages


def dppo_mask(logprobs: Tensor, behaviour: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """Which tokens DPPO keeps, [N] bool: not those whose probability moved too far the way of their advantage.

    The total variation between current and sampling policy is estimated by its binary form, |p - p_behaviour| of the
    sampled token against all others. A token with A > 0 is left out where p - p_behaviour > high, any other where
    p - p_behaviour < -low. Source: Divergence PPO (arXiv 2602.04879), binary total variation, as in the authors' code
    (sail-sg/Stable-RL, `dppo_binary_tv`); their cut of the weight at 10 is left out.
    """
    shift = logprobs.detach().double().exp() - behaviour.double().exp()
    return (shift <= high).where(advantages > 0, shift >= -low)
