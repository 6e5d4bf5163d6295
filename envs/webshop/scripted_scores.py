"""What scripted policies reach: the brackets around a model's score.

`random` clicks and searches at random, `expert` is the scripted shopper (`experts`), `oracle` buys the product that the
request was written for with the options it asks for, which is the ceiling of the reward.
"""

import math
import random
from dataclasses import dataclass

from agentrl.common.intervals import wilson_interval
from agentrl.common.progress import track
from agentrl.envs.options import check_choice
from agentrl.envs.webshop.env import WebShopEnv
from agentrl.envs.webshop.experts import random_action
from agentrl.envs.webshop.purchase_reward import purchase_reward

POLICIES = ("random", "expert", "oracle")


@dataclass(frozen=True)
class Result:
    """Scores in [0, 1] of a policy's episodes; an episode without a purchase scores 0."""

    scores: list[float]
    num_steps: int

    @property
    def success(self) -> float:
        """Share of episodes with a full score."""
        return sum(score == 1.0 for score in self.scores) / len(self.scores)

    @property
    def score(self) -> float:
        """Mean score."""
        return sum(self.scores) / len(self.scores)

    def summary(self) -> str:
        """Score and success in percent with 95 % intervals (normal for the mean, Wilson for the share)."""
        count = len(self.scores)
        variance = sum((score - self.score) ** 2 for score in self.scores) / max(count - 1, 1)
        low, high = wilson_interval(sum(score == 1.0 for score in self.scores), count)
        return (
            f"score {100 * self.score:.1f} ± {100 * 1.96 * math.sqrt(variance / count):.1f}, "
            f"success {100 * self.success:.1f} % ({100 * low:.1f} to {100 * high:.1f}), "
            f"{count} episodes of {self.num_steps / count:.1f} steps"
        )


def evaluate(
    env: WebShopEnv, policy: str, *, episodes: int | None = None, max_steps: int = 15, seed: int = 0
) -> Result:
    """Play the first `episodes` tasks of the split (all by default), each once, `max_steps` actions at most."""
    check_choice("policy", policy, POLICIES)
    count = min(episodes or env.num_tasks, env.num_tasks)
    scores, num_steps = [], 0
    for task in track(range(count), description=f"{policy} policy", total=count):
        if policy == "oracle":
            scores.append(oracle_score(env, task))
            continue
        generator = random.Random(f"{seed} {task}")
        _, info = env.reset(options={"task": task})
        for _ in range(max_steps):
            action = _act(policy, env, info, generator)
            _, _, is_done, _, info = env.step(action)
            num_steps += 1
            if is_done:
                break
        scores.append(info["score"])
    return Result(scores, num_steps)


def _act(policy: str, env: WebShopEnv, info: dict[str, list[str]], generator: random.Random) -> str:
    if policy == "random":
        return random_action(info["admissible_actions"], generator, request=env.session.goal.text)
    return str(info["expert_action"])


def oracle_score(env: WebShopEnv, task: int) -> float:
    """The reward of buying exactly what was asked for."""
    env.reset(options={"task": task})
    goal, shop = env.session.goal, env.shop
    if isinstance(goal.options, tuple):
        names = goal.target.option_of
        chosen = {names[value.lower()]: value.lower() for value in goal.options if value.lower() in names}
    else:
        chosen = dict(goal.options)
    price = float(shop.prices[shop.number_of(goal.target.asin)])
    return purchase_reward(goal.target, goal, price=price, chosen=chosen, mode=env.session.rules.reward)[0]
