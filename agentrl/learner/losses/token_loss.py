"""What every policy loss shares: its table of the config, engine-mismatch weights, masks, KL. Pure; N tokens.

Symbols: logprobs = current policy (carries the gradient), old = policy before the first update on the batch,
behaviour = policy that sampled (the engine's log-probs), ratio = exp(logprobs - old). What is masked stays in the
denominator: leaving out a drifted token does not make the others weigh more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field

from agentrl.config.section import Section

if TYPE_CHECKING:  # the config is read by commands that never need torch
    from torch import Tensor

    from agentrl.learner.batch import MicroBatch


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


class LossConfig(Section):
    """The table `[loss]`: what is minimized. A loss is a subclass with a `kind`, its own keys, and `token_losses`."""

    kind: str
    """Which loss, or `module:function` of one's own: f(logprobs, old, behaviour, advantages, row_index,
    **loss.options) -> a loss per token."""
    sequence_mask: Literal["off", "max", "mean"] = "off"
    """Trust-region masking: leaves out whole rows in which one token (`max`) or the mean token drifted too far from the
    policy that sampled them; goes with every loss."""
    sequence_limit: float = Field(0.05, gt=0)
    """sequence_mask: largest KL estimate of a kept row, of its worst token (log-ratio squared / 2) or mean (k3)."""
    normalization: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """`token_mean`: over all trained tokens; `sequence_mean`: mean of per-row means; `constant`: Dr.GRPO, sum over
    rows divided by the number of rows times `rollout.max_context_tokens`. A tiny model from scratch has
    `sequence_mean`."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the KL to the reference policy (the model at the start); 0.02 for a tiny model from scratch."""
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL; `k2` for a tiny model from scratch."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether that KL is added to the loss of every token or taken from the reward of its trajectory."""
    tis_cap: float | None = Field(None, ge=0)
    """Truncated importance sampling: cap on the engine-mismatch weight; 0 is off; None: 2 with vLLM, else off."""
    tis_kind: Literal["truncate", "mask"] = "truncate"
    """What happens beyond the cap: the weight is cut there, or the token is left out (also below 1 / cap)."""

    def token_losses(
        self, logprobs: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor
    ) -> Tensor:
        """The loss of every token before weights, masks and KL, [N] each; see `Loss`."""
        raise NotImplementedError

    def policy_loss(self) -> Loss:
        """`token_losses`, or what stands in its place."""
        return self.token_losses

    def mask(self, logprobs: Tensor, behaviour: Tensor, advantages: Tensor) -> Tensor | None:
        """The tokens that this kind keeps, [N] bool; None where it keeps all."""
        return None

    def select(self, log_ratio: Tensor, advantages: Tensor) -> Tensor | None:
        """A choice over all tokens of the whole batch, [N] bool, made at k > 1; None for kinds that make none."""
        return None

    @property
    def selects(self) -> bool:
        """Whether this kind has a `select` of its own."""
        return type(self).select is not LossConfig.select

    @property
    def masks(self) -> bool:
        """Whether tokens may be left out."""
        return self.selects or type(self).mask is not LossConfig.mask or self.sequence_mask != "off"

    @property
    def clip_range(self) -> tuple[float, float]:
        """How far below and above 1 a ratio may lie before the monitors count its token as clipped."""
        return 0.2, 0.2


class TokenLoss:
    """The whole loss of every trained token: the policy's, times mismatch weights, plus the KL, behind the masks.

    Args:
        config: the table `[loss]`.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config, self._policy_loss = config, config.policy_loss()

    def __call__(
        self, logprobs: Tensor, part: MicroBatch, selected: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(losses [N], which tokens count in them [N] bool; None where all do).

        Args:
            logprobs: of the current policy, [N].
            part: the tokens, with `old_logprobs`, and `reference_logprobs` where a KL is part of the loss.
            selected: this part of what `LossConfig.select` chose over the whole batch.
        """
        config, old = self.config, part.old_logprobs
        assert old is not None, "set by the first pass over a batch"
        losses = self._policy_loss(logprobs, old, part.rollout_logprobs, part.advantages, part.row_index)
        if config.tis_cap:
            losses = losses * mismatch_weights(old, part.rollout_logprobs, cap=config.tis_cap, kind=config.tis_kind)
        if config.kl_coef and config.kl_in == "loss":
            assert part.reference_logprobs is not None
            losses = losses + config.kl_coef * kl_estimate(logprobs, part.reference_logprobs, config.kl_kind)
        kept = token_mask(config, logprobs, part.rollout_logprobs, part.advantages, part.row_index)
        kept = selected if kept is None else kept if selected is None else selected & kept
        return (losses, None) if kept is None else (losses * kept, kept)


def token_mask(
    config: LossConfig, logprobs: Tensor, behaviour: Tensor, advantages: Tensor, row_index: Tensor
) -> Tensor | None:
    """The tokens that a config keeps of a micro-batch, [N] bool; None where it keeps all."""
    keep = config.mask(logprobs, behaviour, advantages)
    if config.sequence_mask != "off":
        kind, limit = config.sequence_mask, config.sequence_limit
        rows = sequence_mask(logprobs, behaviour, row_index, kind=kind, limit=limit)
        keep = rows if keep is None else keep & rows
    return keep


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
