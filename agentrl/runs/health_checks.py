"""Signs that a run goes wrong though it may go on for long: pure, from its last batches, each with a remedy.

What a policy had and lost is compared with its own best, so that models which never reason, or environments whose first
observations are all alike, raise nothing; what is learned to the end (`SOLVED`) is no trouble.
"""

from collections.abc import Callable, Iterator

from agentrl.runs.evidence import Cause, Seen

FAILED = 0.05
"""Share of episodes that failed and were left out. One of twenty is more than chance faults of a server; which tasks
fail is not random, so what is learned from is no longer what was asked for. `rollout.max_failed_share` ends a run."""
NO_ROOM = 0.5
"""Share of episodes that end because the context is full. Their reward is of half an episode: noise to learn from, as
DAPO (arXiv 2503.14476, section 3.4) shows of cut answers. Where most end so the limit decides, not the policy."""
ENTROPY = 0.005
"""Nats a token below which sampling is as good as greedy: one in a thousand tokens is another one. Success is bought
with entropy and stays where that is gone (arXiv 2505.22617)."""
KEPT_ENTROPY = 0.05
"""Share of its own best below which entropy has fallen to nothing: imitation ends low, and learning goes on there."""
TELLING = 0.05
"""Nats a word that answers once said about their task, for their loss to mean anything: about a twentieth of what one
word in three says when it names one of 16 tasks."""
KEPT_INFORMATION = 0.1
"""Share of it that is left. RAGEN-2 (arXiv 2604.06268) finds mutual information, not entropy, to follow success."""
THINKING = 10
"""Words of a thought that make it one."""
KEPT_THOUGHT = 0.1
"""Share of them that are left. Without a reward of its own reasoning shortens until nothing is left of it (RAGEN,
arXiv 2504.20073); a model that learns to be brief halves it."""
PAID = 0.9
"""Mean reward, between the smallest and largest ever given, from which a reward is being collected; with it
`UNSUCCESSFUL`: what is optimized is not what is wanted (arXiv 2210.10760). Rewards for parts of an answer brought
models from scratch to 0.86 before the first success."""
UNSUCCESSFUL = 0.05
"""Success of which there is next to none: less than one of twenty episodes."""
ENGINE_KL = 0.01
"""k3 estimate of KL(engine || learner) at equal weights, nats a token, as Liu, Li et al. ("When Speed Kills Stability",
2025) measure it. Equal code has about 0, other kernels in bfloat16 about 0.001; ten times that is another model:
quantized, or with weights that did not arrive."""
UNUSED = 40
"""Batches in a row that the gate closed at once. A gate that judges by its history closes some (the longest stretch in
sixty runs of small environments was 23); one that closes all costs a gradient a batch and uses none."""

REMEMBERED = ("learner/entropy", "health/task_information", "health/think_words")
"""Numbers that are compared with their own best."""


def _failed(seen: Seen) -> Iterator[Cause]:
    share = seen.least("rollout/failed_share")
    if share >= FAILED:
        yield seen.find(
            "failed_episodes", f"at least {share:.1%} of the episodes failed and are left out.",
            "Each batch's lines say why. See what the environment raises (python -m agentrl.check_env "
            f"{seen.config.env.id}), raise rollout.step_timeout_s, or play fewer at once (rollout.max_concurrent).",
        )  # fmt: skip


def _no_room(seen: Seen) -> Iterator[Cause]:
    ended = seen.total("rollout/ended/token_limit") - seen.total("rollout/never_asked")
    if seen.episodes and ended >= NO_ROOM * seen.episodes:
        yield seen.find(
            "no_room", f"{ended:,.0f} of {seen.episodes:,} episodes ended in the middle, their context being full.",
            f"Raise rollout.max_context_tokens = {seen.config.rollout.max_context_tokens:,}, lower "
            'rollout.max_new_tokens, or forget old turns with rollout.context = "window".',
        )  # fmt: skip


def _certain(seen: Seen) -> Iterator[Cause]:
    entropy, best = seen.most("learner/entropy"), seen.highest["learner/entropy"]
    if entropy <= min(ENTROPY, KEPT_ENTROPY * best) and not seen.is_solved:
        yield seen.find(
            "no_entropy", f"entropy fell from {best:.2g} to {entropy:.2g} nats a token, while success is "
            f"{seen.most('rollout/success'):.0%}: nothing else is tried any more.",
            "Go back to a checkpoint with a lower learner.lr or learner.max_reuse, or raise loss.clip_high.",
        )  # fmt: skip


def _one_for_all(seen: Seen) -> Iterator[Cause]:
    told, best = seen.most("health/task_information"), seen.highest["health/task_information"]
    if best >= TELLING and told <= KEPT_INFORMATION * best and not seen.is_solved:
        yield seen.find(
            "template_collapse", "answers hardly depend on the task any more: a word of them tells "
            f"{max(0, told):.2g} nats about it, {best:.2g} before.",
            "Go back to a checkpoint with a lower learner.lr or learner.max_reuse, leave out groups of equal rewards "
            "(train.refill), and see whether one answer is paid for on every task.",
        )  # fmt: skip


def _no_thought(seen: Seen) -> Iterator[Cause]:
    words, best = seen.most("health/think_words"), seen.highest["health/think_words"]
    if best >= THINKING and words <= KEPT_THOUGHT * best and not seen.is_solved:
        yield seen.find(
            "no_thought", f"thoughts shortened from {best:.0f} words a turn to {words:.0f}.",
            "Reward them (env.reward), give more room (rollout.max_new_tokens), or go back to a checkpoint with a "
            "lower learner.lr.",
        )  # fmt: skip


def _paid_for_nothing(seen: Seen) -> Iterator[Cause]:
    low, high = seen.rewards
    mean, success = seen.least("rollout/reward"), seen.most("rollout/success")
    if high > low and mean - low >= PAID * (high - low) and success <= UNSUCCESSFUL and not seen.is_equal:
        yield seen.find(
            "reward_without_success", f"mean reward is at least {mean:.3g}, of {low:.3g} to {high:.3g}, and success at "
            f"most {success:.0%}: the reward is not what success is.",
            "Read episodes of high reward (report); weigh its parts anew (env.reward), or say what counts as success "
            "(info['success'], env.success_threshold).",
        )  # fmt: skip


def _engine_gap(seen: Seen) -> Iterator[Cause]:
    gap = seen.least("learner/engine_kl")
    if gap >= ENGINE_KL:
        yield seen.find(
            "engine_gap", f"the engine samples from another policy than is trained: KL {gap:.2g} nats a token or more, "
            "at equal weights.",
            "See the engine's type of numbers (rollout.engine_options), and that weights arrive; loss.tis_cap corrects "
            "small gaps.",
        )  # fmt: skip


def _never_reused(seen: Seen) -> Iterator[Cause]:
    if seen.unused >= UNUSED and seen.config.learner.max_reuse > 1:
        yield seen.find(
            "no_reuse", f"the gate closed each of the last {seen.unused} batches before it was used again.",
            f"Loosen gate.kind = {seen.config.gate.kind!r} (report shows what it looks at), lower learner.lr, or set "
            "learner.max_reuse = 1, which saves a gradient a batch.",
        )  # fmt: skip


HEALTH_CHECKS: tuple[Callable[[Seen], Iterator[Cause]], ...] = (
    _failed, _no_room, _certain, _one_for_all, _no_thought, _paid_for_nothing, _engine_gap, _never_reused,
)  # fmt: skip
