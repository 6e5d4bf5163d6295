"""Why a run learns nothing, by its third rollout batch: pure, from its records and its config, each with a remedy.

What holds in three batches in a row is a finding; so is what goes wrong later (`health_checks`), and at once a learning
rate that fits another size of model. Tools that a chat template does not show are refused before the first batch
(`rollout.chat`).
"""

from collections.abc import Callable, Iterator, Sequence

from agentrl.config.schema import Config
from agentrl.runs.evidence import EPISODES, SOLVED, Cause, Evidence, Seen
from agentrl.runs.health_checks import HEALTH_CHECKS, REMEMBERED
from agentrl.types import Metrics

CUT_TURNS = 0.9
"""Share of turns without an end of their own. Models that reason are cut in a third of their turns while they learn to
be brief; where nine of ten are cut the limit, not the model, ends them."""
UNASKED = 0.05
"""Share of episodes whose first prompt leaves no room. A few giant observations are a choice; of twenty episodes not
one should be paid for and never played."""
INVALID_ACTIONS = 0.99
"""Share of invalid actions that counts as every one: among thousands of random answers some are valid by chance."""
MASKED_TOKENS = 0.99
"""Share of a first update's tokens that masks leave out. Policy and engine agree there: healthy runs are near 0."""
SMALL_MODEL = 20_000_000
"""Parameters below which a model is one of those that are trained from scratch: the tiny one has 0.2 million, the
smallest pretrained model in use 135."""
LR_OF_SMALL = 1e-3
"""What the shipped quickstarts take."""
SLOW_FOR_SMALL = 2e-5
"""A fiftieth of the tiny model's 1e-3. Adam moves a weight by about the rate a step: from scratch, where weights are
about 0.1, that takes thousands of steps at this one."""
FAST_FOR_LARGE = 1e-4
"""A hundred times the 1e-6 of published runs (verl-agent, Search-R1, DAPO), ten times the 1e-5 at which a model of 135
million parameters learns in the shipped runs."""
FAST_WITH_ADAPTERS = 1e-3
"""The best rate of adapters is about ten times that of full fine-tuning (LoRA Without Regret, Schulman et al. 2025)."""


def findings(records: Sequence[Metrics], config: Config, *, num_parameters: int | None = None) -> list[Cause]:
    """What keeps a run from learning, each cause once, in the order in which it was found.

    Findings of a run's beginning stay the first of the list, so what is new after a batch stands behind those known.

    Args:
        records: of metrics.jsonl so far, evaluations included.
        config: the experiment.
        num_parameters: of the policy, adapters aside; None: known for `model.path = "tiny"` alone, since a folder may
            hold a large model or a trained tiny one.
    """
    diagnosis = Diagnosis(config, num_parameters=num_parameters)
    for record in records:
        if record["kind"] == "train":
            diagnosis.take(record)
    return diagnosis.causes


class Diagnosis:
    """`findings`, batch by batch: each record is looked at once, and no more are kept than are evidence.

    Args:
        config: the experiment.
        num_parameters: see `findings`.
    """

    def __init__(self, config: Config, *, num_parameters: int | None = None) -> None:
        self.config = config
        self.causes = list(_of_settings(config, num_parameters))
        """What was found so far, each cause once."""
        self._evidence = Evidence(config, remembered=REMEMBERED)

    def take(self, record: Metrics) -> None:
        """Look at the record of the next rollout batch."""
        seen = self._evidence.take(record)
        if seen is None:
            return
        for cause in (found for check in (*_CHECKS, *HEALTH_CHECKS) for found in check(seen)):
            if all(cause.code != known.code for known in self.causes):
                self.causes.append(cause)


def _of_settings(config: Config, num_parameters: int | None) -> Iterator[Cause]:
    """The learning rate, which fits one size of model."""
    rate, is_tiny = config.learner.lr, config.model.path == "tiny"
    if num_parameters is None and not is_tiny:
        return
    size = "the tiny model" if num_parameters is None else f"a model of {num_parameters / 1e6:,.1f} M parameters"
    adapters = config.model.lora_rank > 0
    if is_tiny or (num_parameters or 0) < SMALL_MODEL:
        if rate < SLOW_FOR_SMALL:
            yield Cause(
                "learning_rate", 0, f"learner.lr = {rate:g} is a rate for large models; {size} hardly moves at it.",
                f"Set learner.lr to {LR_OF_SMALL:g}.",
            )  # fmt: skip
    elif rate >= (FAST_WITH_ADAPTERS if adapters else FAST_FOR_LARGE):
        right = "1e-5 to 1e-4, which suits adapters" if adapters else "1e-6, at most 1e-5"
        yield Cause(
            "learning_rate", 0, f"learner.lr = {rate:g} is a rate for models from scratch, not for {size}.",
            f"Set learner.lr to {right}.",
        )  # fmt: skip


def _cut_turns(seen: Seen) -> Iterator[Cause]:
    share, limit = seen.least("rollout/cut_turns"), seen.config.rollout.max_new_tokens
    if share < CUT_TURNS:
        return
    if seen.config.model.path == "tiny":
        remedy = (
            "Where answers are short, set rollout.max_new_tokens to their length in tokens: a model from scratch does "
            "not end its turns, and each token too many costs time; where they are long, raise it."
        )
    else:
        remedy = f"Raise rollout.max_new_tokens, to {4 * limit:,} say, or ask for shorter answers with env.system."
    yield seen.find(
        "cut_turns", f"at least {share:.0%} of the turns were cut at rollout.max_new_tokens = {limit:,}.", remedy
    )


def _long_prompts(seen: Seen) -> Iterator[Cause]:
    unasked = sum(record.get("rollout/never_asked", 0) for record in seen.batches)
    if unasked < UNASKED * seen.episodes or not unasked:
        return
    longest = max(record.get("rollout/longest_unasked", 0) for record in seen.batches)
    yield seen.find(
        "long_prompt",
        f"{unasked:,} of {seen.episodes:,} episodes were never asked: the first prompt has up to {longest:,} tokens, a "
        f"row holds {seen.config.rollout.max_context_tokens:,}.",
        f"Raise rollout.max_context_tokens above {longest + seen.config.rollout.max_new_tokens:,}, or let the "
        "environment say less.",
    )


def _invalid_actions(seen: Seen) -> Iterator[Cause]:
    share = seen.least("rollout/invalid_actions")
    if share < INVALID_ACTIONS:
        return
    if seen.is_from_scratch:
        remedy = (
            "A model from scratch does not hit upon this environment's notation: let it imitate an expert first "
            "(warmstart.episodes), take a pretrained model.path, or read answers more leniently."
        )
    else:
        remedy = (
            f"Compare what the model says (report) with what env.format = {seen.config.env.format!r} reads, and say in "
            "env.system how an answer looks."
        )
    yield seen.find("invalid_actions", f"the environment called {share:.1%} of the actions invalid.", remedy)


def _equal_groups(seen: Seen) -> Iterator[Cause]:
    """Groups in which nobody did better: nothing to learn from."""
    if not seen.is_equal or (seen.learned and seen.is_solved):
        return
    reward, size = seen.reward, seen.config.train.group_size
    all_of_them = f"all {seen.episodes:,} episodes got reward"
    nothing = "so no answer was better than another and nothing is learned."
    if seen.learned:
        each = f"the {size} episodes of each task" if reward is None else f"all {seen.episodes:,} episodes"
        yield seen.find(
            "broke_down", f"{each} got the same reward, {nothing} Before, they differed.",
            "The policy has become certain of bad answers: go back to a checkpoint with a lower learner.lr or "
            "learner.max_reuse.",
        )  # fmt: skip
    elif reward is None:
        yield seen.find(
            "equal_groups", f"the {size} episodes of each task got the same reward, {nothing}",
            "The reward seems to depend on the task alone. See that it judges the answer; else raise "
            "rollout.temperature or train.group_size.",
        )  # fmt: skip
    elif seen.least("rollout/success") == 1 and reward == 1:
        yield seen.find(
            "all_one", f"{all_of_them} 1, {nothing}",
            "The tasks are too easy for this model, or the reward is always given: take harder tasks (env.split, "
            "env.options), or see what the reward judges.",
        )  # fmt: skip
    elif any(record["rollout/success"] for record in seen.batches) or reward > 0:
        yield seen.find(
            "constant_reward", f"{all_of_them} {reward:g}, {nothing}",
            "The reward does not depend on the answer: see what the environment's step returns, or env.reward.",
        )  # fmt: skip
    elif seen.is_from_scratch:
        yield seen.find(
            "cannot_start", f"{all_of_them} {reward:g}: a model from scratch does not hit upon a right answer.",
            "Give reward for parts of an answer, read answers leniently, offer info['expert_action'] and set "
            "warmstart.episodes = 500, or take a pretrained model.path.",
        )  # fmt: skip
    else:
        yield seen.find(
            "all_zero", f"{all_of_them} {reward:g}, {nothing}",
            f"Play a task yourself (python -m agentrl.play {seen.config.env.id}), read episodes in the report; begin "
            "with easier tasks, more train.group_size or a longer warmstart, or give reward for parts of an answer.",
        )  # fmt: skip


def _idle_members(seen: Seen) -> Iterator[Cause]:
    """Environments of a mixture that take rollouts and teach nothing, while others do."""
    if not seen.config.mixture or seen.is_equal:
        return
    for name in seen.config.environments():
        episodes = seen.total(f"rollout/episodes/{name}")
        success = seen.total(f"rollout/success/{name}") / len(
            seen.batches
        )  # of few episodes, so no single batch decides
        if (
            episodes < EPISODES / 2 or seen.most(f"batch/mixed_groups/{name}") or success >= SOLVED
        ):  # older records lack it
            continue
        yield seen.find(
            f"idle_{name}", f"in {episodes:,.0f} episodes of {name} none did better than another of its task (mean "
            f"reward {seen.batches[-1].get(f'rollout/reward/{name}', 0):.3g}): they teach nothing.",
            "Begin with easier tasks of it or a longer warmstart, give reward for parts of an answer, or train on it "
            "alone first.",
        )  # fmt: skip


def _untrained_tokens(seen: Seen) -> Iterator[Cause]:
    masked = seen.least("learner/masked")
    if not seen.spent("cost/generated_tokens"):
        yield seen.find(
            "no_trained_tokens", f"the model was never asked for a token in {seen.episodes:,} episodes.",
            "Raise rollout.max_context_tokens, and see with python -m agentrl.check_env what the environment says "
            "first.",
        )  # fmt: skip
    elif masked >= MASKED_TOKENS:
        yield seen.find(
            "no_trained_tokens", f"masks left out {masked:.0%} of the tokens of each first update.",
            f"Engine and learner disagree, or loss.sequence_limit = {seen.config.loss.sequence_limit:g} is too small: "
            'raise it, or set loss.sequence_mask = "off".',
        )  # fmt: skip
    elif not seen.is_equal and not seen.spent("cost/trained_tokens"):
        yield seen.find(
            "no_trained_tokens", f"rewards differ, but none of {seen.spent('cost/generated_tokens'):,.0f} tokens was "
            "trained on.",
            "Every advantage is zero: see advantage.estimator, and loss.kind where it is your own.",
        )  # fmt: skip


_CHECKS: tuple[Callable[[Seen], Iterator[Cause]], ...] = (
    _long_prompts, _untrained_tokens, _equal_groups, _idle_members, _invalid_actions, _cut_turns,
)  # fmt: skip
