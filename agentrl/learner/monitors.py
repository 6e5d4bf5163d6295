"""Monitors of a batch under reuse: how far the policy has moved since the first pass over it. Pure."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from agentrl.model.processes import Processes

TAIL = 0.01
"""Probability below which a token counts as one of the tail."""


@dataclass(frozen=True)
class RatioStatistics:
    """Sums over tokens and rows from which a batch's monitors are computed; they add up over parts and processes.

    ratio = exp(logprobs - old); the weight of a row is the product of its ratios.
    """

    tokens: float = 0.0
    """Trained tokens."""
    ratio: float = 0.0
    """Sum of the ratios."""
    ratio_squared: float = 0.0
    """Sum of the squared ratios."""
    kl: float = 0.0
    """Sum of k3 estimates of KL(old || current)."""
    clipped: float = 0.0
    """Tokens whose ratio went beyond the clip range the way of their advantage."""
    log_ratio_squared: float = 0.0
    """Sum of the squared log-ratios."""
    surprise: float = 0.0
    """Sum of -logprob of the sampled tokens, in nats."""
    rows: float = 0.0
    """Rows."""
    row_weight: float = 0.0
    """Sum of the rows' weights."""
    row_weight_squared: float = 0.0
    """Sum of the rows' squared weights."""
    masked: float = 0.0
    """Tokens that the loss left out."""
    tail: float = 0.0
    """Tokens that had a probability below `TAIL` at the first pass."""
    weight: float = 0.0
    """Sum of ratio x |advantage|, by which a token's score enters the policy gradient (paper, equation 2)."""
    tail_weight: float = 0.0
    """That of the tail."""
    largest_ratio: float = 0.0
    """Combined by a maximum."""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        logprobs: Tensor,
        old: Tensor,
        advantages: Tensor,
        row_index: Tensor,
        *,
        clip_range: tuple[float, float],
        kept: Tensor | None = None,
    ) -> RatioStatistics:
        """Those of one micro-batch.

        The log of a row's weight is held within -300 .. 300, so that no sum overflows.

        Args:
            logprobs: of the current policy, [N].
            old: of the policy at the first pass over the batch, [N].
            advantages: [N].
            row_index: [N].
            clip_range: how far below and above 1 a ratio may lie.
            kept: tokens that count in the loss, [N]; None: all.
        """
        if not len(logprobs):
            return cls()
        low, high = clip_range
        log_ratio = (logprobs - old).double()
        ratio = log_ratio.exp()
        clipped = ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))
        tokens, total = (log_ratio.new_zeros(int(row_index.max()) + 1) for _ in range(2))
        tokens.index_add_(0, row_index, torch.ones_like(log_ratio))
        total.index_add_(0, row_index, log_ratio)
        weights = total[tokens > 0].clamp(-300, 300).exp()
        in_tail, pull = old < math.log(TAIL), ratio * advantages.abs()
        sums = [
            ratio.sum(),
            ratio.square().sum(),
            (ratio - 1 - log_ratio).sum(),
            clipped.double().sum(),
            log_ratio.square().sum(),
            -logprobs.double().sum(),
            ratio.new_tensor(float(len(weights))),
            weights.sum(),
            weights.square().sum(),
            ratio.new_zeros(()) if kept is None else (~kept).double().sum(),
            in_tail.double().sum(),
            pull.sum(),
            pull[in_tail].sum(),
            ratio.max(),
        ]
        values = [float(len(ratio)), *torch.stack(sums).tolist()]
        return cls(*values)

    def __add__(self, other: RatioStatistics) -> RatioStatistics:
        """Those of both parts together."""
        *sums, largest = zip(astuple(self), astuple(other), strict=True)
        values = [*(a + b for a, b in sums), max(largest)]
        return RatioStatistics(*values)

    def reduce(self, processes: Processes) -> RatioStatistics:
        """Those of all processes together; all must ask."""
        *sums, largest = astuple(self)
        added, most = torch.tensor(sums, dtype=torch.float64), torch.tensor([largest], dtype=torch.float64)
        processes.sum_([added])
        processes.max_(most)
        values = [*added.tolist(), float(most)]
        return RatioStatistics(*values)

    @property
    def sequence_ess(self) -> float:
        """(sum w)^2 / (n sum w^2) of the rows' weights; 1 without any row."""
        return self.row_weight * self.row_weight / (self.rows * self.row_weight_squared) if self.rows else 1.0

    def metrics(self) -> dict[str, float]:
        """Means of a whole batch.

        kl: k3 estimate of KL(old || current); chi_square: mean(ratio^2) - 1 (paper, Theorem 2);
        ess: (sum r)^2 / (n sum r^2); m2: mean squared log-ratio; surprise: mean -logprob of the sampled tokens, an
        estimate of the entropy; tail_share: tokens of the tail among all; tail_weight: their share of the sum of
        ratio x |advantage|, before any clipping, 0 where that sum is.
        """
        count = self.tokens
        return {
            "kl": self.kl / count,
            "chi_square": self.ratio_squared / count - 1,
            "ess": self.ratio * self.ratio / (count * self.ratio_squared) if self.ratio_squared else 1.0,
            "clip_fraction": self.clipped / count,
            "m2": self.log_ratio_squared / count,
            "surprise": self.surprise / count,
            "max_ratio": self.largest_ratio,
            "sequence_ess": self.sequence_ess,
            "tail_share": self.tail / count,
            "tail_weight": self.tail_weight / self.weight if self.weight else 0.0,
        }

    def lag_metrics(self) -> dict[str, float]:
        """Of statistics between the policy that played (`old`) and the learner before its first update on the batch.

        lag_kl: k3 estimate of KL(played || learner); lag_ess: effective share of the tokens under the weights that
        would correct it, 1 without lag; lag_max_ratio: the largest such weight.
        """
        metrics = self.metrics()
        return {f"lag_{name}": metrics[name] for name in ("kl", "ess", "max_ratio")}
