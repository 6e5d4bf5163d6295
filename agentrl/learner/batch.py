"""Trajectories -> token-budgeted micro-batches. Pure; B rows, L positions, N trained tokens of a micro-batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agentrl.types import Group

MAX_PADDING = 0.05
"""Share of padding among the tokens of all micro-batches of a batch."""


@dataclass
class BatchRow:
    """One token sequence with what its tokens are worth."""

    ids: NDArray[np.int32]
    """Token ids, [L]."""
    trained: NDArray[np.bool_]
    """Sampled tokens, [L]."""
    advantages: NDArray[np.float32]
    """Advantage of each trained token, 0 elsewhere, [L]."""
    logprobs: NDArray[np.float32]
    """Rollout log-probs of the trained tokens, 0 elsewhere, [L]."""


@dataclass
class Batch:
    """Everything one rollout batch teaches."""

    rows: list[BatchRow]
    """All rows with trained tokens, those of groups of equal outcomes included unless they are dropped."""
    num_trained_tokens: int
    """Denominator of the token mean: trained tokens of all rows."""
    num_groups: int
    """Groups in the batch."""
    num_mixed_groups: int
    """Groups whose rewards differ."""


@dataclass
class MicroBatch:
    """Rows that share one forward pass, right-padded; causal attention never looks at the padding."""

    ids: torch.Tensor
    """[B, L], padded with `pad_id`."""
    predecessors: torch.Tensor
    """Flat index into [B * L] of the position that predicts each trained token, [N]."""
    targets: torch.Tensor
    """Trained token ids, [N]."""
    advantages: torch.Tensor
    """[N]."""
    rollout_logprobs: torch.Tensor
    """[N]."""
    row_index: torch.Tensor
    """Row of each trained token, [N], 0 .. B - 1."""
    weights: torch.Tensor
    """Factor of each token's loss, [N]; over all micro-batches and processes they sum to 1 (for a mean)."""
    rows: list[int]
    """Place of each row in the batch, [B]."""
    old_logprobs: torch.Tensor | None = None
    """Log-probs before the first update on this batch, [N]; set by the learner's first pass."""
    reference_logprobs: torch.Tensor | None = None
    """Log-probs under the reference policy, [N], where a KL to it is asked for."""
    kept: torch.Tensor | None = None
    """Output of the frozen blocks, [B, L, D], where there are some and the batch is reused; set by the first pass."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on a device."""
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in vars(self).items()}
        return MicroBatch(**moved)


def empty_micro_batch(pad_id: int) -> MicroBatch:
    """Nothing to learn from: keeps a process company with others that still compute."""
    none, floats = torch.zeros(0, dtype=torch.long), torch.zeros(0)
    return MicroBatch(torch.full((1, 2), pad_id), none, none, floats, floats, none, floats, [])


def assemble(
    groups: Sequence[Group], advantages: Sequence[Sequence[NDArray[np.float64]]], *, drop_equal: bool = False
) -> Batch:
    """Join groups with one advantage a turn into rows with one advantage a token.

    Args:
        groups: what was played.
        advantages: for every group, for every trajectory, an array [T] (`learner.advantage.advantages`).
        drop_equal: leave groups of equal outcomes out, of the denominators too (DAPO's dynamic sampling, arXiv
            2503.14476, section 3.2).
    """
    rows = []
    mixed = [group.rewards_differ for group in groups]
    for group, per_trajectory in zip(groups, advantages, strict=True):
        if drop_equal and not group.outcomes_differ:
            continue
        for trajectory, per_turn in zip(group.trajectories, per_trajectory, strict=True):
            advantages_of = [np.zeros(len(row.ids), np.float32) for row in trajectory.rows]
            for turn, value in zip(trajectory.turns, per_turn, strict=True):
                advantages_of[turn.row][turn.start : turn.end] = value
            rows += [
                BatchRow(row.ids, row.trained, value, row.logprobs)
                for row, value in zip(trajectory.rows, advantages_of, strict=True)
                if row.num_trained_tokens
            ]
    return Batch(rows, sum(int(row.trained.sum()) for row in rows), len(groups), sum(mixed))


def token_weights(
    rows: Sequence[BatchRow], *, normalization: str, num_tokens: int, num_rows: int, row_tokens: int
) -> list[float]:
    """Factor of the loss of a row's tokens under a normalization, one a row.

    Args:
        rows: rows to weigh.
        normalization: `token_mean` 1 / num_tokens; `sequence_mean` 1 / (num_rows * tokens of the row); `constant`
            1 / (num_rows * row_tokens) (Dr. GRPO, arXiv 2503.20783).
        num_tokens: trained tokens over all processes.
        num_rows: rows over all processes.
        row_tokens: constant length of `constant`.
    """
    if normalization == "token_mean":
        return [1.0 / num_tokens] * len(rows)
    if normalization == "sequence_mean":
        return [1.0 / (num_rows * int(row.trained.sum())) for row in rows]
    return [1.0 / (num_rows * row_tokens)] * len(rows)


def micro_batches(
    rows: Sequence[BatchRow], weights: Sequence[float], *, budget: int, pad_id: int, keep: Callable[[BatchRow], bool]
) -> list[MicroBatch]:
    """Length-sorted micro-batches of at most `budget` tokens, padding included (a longer row stands alone).

    Padding is at most 5 % of all tokens, whatever the lengths, their number and the budget: a part ends early where its
    next row would cost more.

    Args:
        rows: rows of the batch.
        weights: loss factor of each row's tokens.
        budget: tokens of one forward pass.
        pad_id: id for the padding.
        keep: rows for which this is False are left out: they cannot contribute a gradient.
    """
    kept = sorted((i for i, row in enumerate(rows) if keep(row)), key=lambda i: (-len(rows[i].ids), i))
    parts: list[list[int]] = []
    tokens = padding = 0
    for i in kept:
        # Rows come longest first, so the first row of a part sets its width.
        width = len(rows[parts[-1][0]].ids) if parts else 0
        gap, allowed = width - len(rows[i].ids), MAX_PADDING * (tokens + width)
        if parts and (len(parts[-1]) + 1) * width <= budget and padding + gap <= allowed:
            parts[-1].append(i)
        else:
            parts.append([i])
            width = len(rows[i].ids)
        tokens, padding = tokens + width, padding + width - len(rows[i].ids)
    return [_pad([rows[i] for i in part], [weights[i] for i in part], part, pad_id) for part in parts]


def _pad(rows: list[BatchRow], weights: list[float], places_in_batch: list[int], pad_id: int) -> MicroBatch:
    width = len(rows[0].ids)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.from_numpy(row.ids.astype(np.int64))
    places = [np.flatnonzero(row.trained) for row in rows]
    assert all(place.size and place[0] > 0 for place in places), "a trained token has a predecessor"
    counts = [len(place) for place in places]
    return MicroBatch(
        ids=ids,
        predecessors=torch.from_numpy(np.concatenate([p - 1 + i * width for i, p in enumerate(places)])),
        targets=torch.from_numpy(
            np.concatenate([r.ids[p] for r, p in zip(rows, places, strict=True)]).astype(np.int64)
        ),
        advantages=torch.from_numpy(np.concatenate([r.advantages[p] for r, p in zip(rows, places, strict=True)])),
        rollout_logprobs=torch.from_numpy(np.concatenate([r.logprobs[p] for r, p in zip(rows, places, strict=True)])),
        row_index=torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts)),
        weights=torch.repeat_interleave(torch.tensor(weights, dtype=torch.float64), torch.tensor(counts)),
        rows=places_in_batch,
    )
