"""Rewards of a group -> advantages. Pure functions; G trajectories a group, T turns a trajectory."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agentrl.config.schema import AdvantageConfig
from agentrl.types import Group

Floats = NDArray[np.float64]
_EPSILON = 1e-6


def grpo(rewards: Floats, *, ddof: int = 1) -> Floats:
    """(reward - group mean) / (group std + 1e-6), [G] -> [G]; equal rewards give zeros.

    Source: GRPO, DeepSeekMath (arXiv 2402.03300), section 4.1.2. `ddof` 1 is the sample, 0 the population deviation.
    """
    centered = dr_grpo(rewards)
    if not centered.any():
        return centered
    return centered / (rewards.std(ddof=ddof) + _EPSILON)


def dr_grpo(rewards: Floats) -> Floats:
    """reward - group mean, [G] -> [G]; no division by the deviation.

    Source: Dr. GRPO, Understanding R1-Zero-Like Training (arXiv 2503.20783), section 3.2.
    """
    if np.ptp(rewards) == 0:
        return np.zeros_like(rewards)
    return rewards - rewards.mean()


def rloo(rewards: Floats) -> Floats:
    """reward - mean of the other rewards of the group, [G] -> [G], G >= 2.

    Source: RLOO, Back to Basics (arXiv 2402.14740), equation 8.
    """
    return dr_grpo(rewards) * (len(rewards) / (len(rewards) - 1))


def reinforce_pp(groups: list[Floats], *, other_ranks: Sequence[Floats] = (), ddof: int = 1) -> list[Floats]:
    """Group mean subtracted, then divided by the deviation over the whole batch, `other_ranks` included.

    Source: REINFORCE++ with group baseline (arXiv 2501.03262), equation 10.
    """
    centered = [dr_grpo(rewards) for rewards in groups]
    everything = np.concatenate([*centered, *(dr_grpo(rewards) for rewards in other_ranks)])
    if not everything.any():
        return centered
    return [values / (everything.std(ddof=ddof) + _EPSILON) for values in centered]


def gigpo_steps(group: Group, *, discount: float, ddof: int = 1) -> list[Floats]:
    """Step-level advantages: discounted returns compared among turns of a group that began in the same state.

    Turns with equal `anchor` form a step group; a turn without an anchor, or alone in its state, gets 0.
    Returns one array [T] a trajectory. Source: GiGPO (arXiv 2505.10978), section 4.2, equations 6 to 8.
    """
    returns = [discounted_returns([turn.reward for turn in t.turns], discount) for t in group.trajectories]
    states: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, trajectory in enumerate(group.trajectories):
        for j, turn in enumerate(trajectory.turns):
            if turn.anchor is not None:
                states[turn.anchor].append((i, j))
    steps = [np.zeros(len(t.turns)) for t in group.trajectories]
    for places in states.values():
        if len(places) > 1:
            values = grpo(np.array([returns[i][j] for i, j in places]), ddof=ddof)
            for (i, j), value in zip(places, values, strict=True):
                steps[i][j] = value
    return steps


def penalized_rewards(groups: Sequence[Group], penalties: Sequence[Floats] | None = None) -> list[Floats]:
    """Rewards less penalties, [G] a group."""
    if penalties is None:
        return [group.rewards for group in groups]
    return [group.rewards - penalty for group, penalty in zip(groups, penalties, strict=True)]


def discounted_returns(rewards: list[float], discount: float) -> Floats:
    """Sum of discounted rewards from each turn on, [T]. `([0, 1], 0.5)` -> `[0.5, 1]`."""
    returns = np.zeros(len(rewards))
    following = 0.0
    for i in range(len(rewards) - 1, -1, -1):
        following = rewards[i] + discount * following
        returns[i] = following
    return returns


def advantages(
    groups: list[Group],
    config: AdvantageConfig,
    *,
    penalties: Sequence[Floats] | None = None,
    other_ranks: Sequence[Floats] = (),
) -> list[list[Floats]]:
    """One advantage a turn: for every group, for every trajectory, an array [T].

    The penalty for invalid actions is subtracted last, so that it is never scaled by a deviation, which is 0 where a
    whole group fails.

    Args:
        groups: what was played.
        config: which estimator.
        penalties: taken from the rewards before anything else, [G] a group (a KL to the reference).
        other_ranks: rewards, less penalties, of the groups that other processes played; for estimators that look at the
            whole batch.
    """
    rewards = penalized_rewards(groups, penalties)
    if config.estimator == "reinforce_pp":
        values = reinforce_pp(rewards, other_ranks=other_ranks, ddof=config.ddof)
    elif config.estimator == "rloo":
        values = [rloo(r) for r in rewards]
    elif config.estimator == "dr_grpo":
        values = [dr_grpo(r) for r in rewards]
    else:
        values = [grpo(r, ddof=config.ddof) for r in rewards]
    result = []
    for group, per_trajectory in zip(groups, values, strict=True):
        turns = [np.full(len(t.turns), v) for t, v in zip(group.trajectories, per_trajectory, strict=True)]
        if config.estimator == "gigpo":
            steps = gigpo_steps(group, discount=config.discount, ddof=config.ddof)
            turns = [t + config.step_weight * s for t, s in zip(turns, steps, strict=True)]
        invalid = [np.array([not turn.is_valid for turn in t.turns], dtype=float) for t in group.trajectories]
        result.append([t - config.invalid_action_penalty * i for t, i in zip(turns, invalid, strict=True)])
    return result
