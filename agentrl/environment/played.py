"""The environments of a run as they are played: a pool each, how an episode begins, how it is judged."""

from collections.abc import Mapping
from dataclasses import dataclass

from agentrl.config.schema import Config
from agentrl.environment.pool import EnvPool
from agentrl.environment.reward import OwnRewards
from agentrl.environment.spec import environment_spec


@dataclass(frozen=True)
class PlayedEnvironment:
    """One of them."""

    pool: EnvPool
    """Its environments."""
    system: str | None = None
    """System message; None uses what the environment offers."""
    rewards: OwnRewards | None = None
    """Judge whole episodes in its place (`env.reward`)."""
    success_threshold: float = 1.0
    """Its return from which an episode is a success, where it gives no `info["success"]`."""

    @classmethod
    def of(cls, config: Config, split: str, *, expert: bool = False) -> "PlayedEnvironment":
        """The environment of a config that has one.

        Args:
            config: the experiment.
            split: `train` or `eval`.
            expert: whether the expert is asked for.
        """
        env = config.env
        rewards = None if env.reward is None else OwnRewards(env.reward)
        pool = EnvPool.of(environment_spec(config, split, expert=expert), config.rollout)
        return cls(pool, env.system, rewards, env.success_threshold)


def played_environments(config: Config, split: str, *, expert: bool = False) -> dict[str, PlayedEnvironment]:
    """All of a run, by their names (`Config.environments`)."""
    members = config.environments()
    return {name: PlayedEnvironment.of(member, split, expert=expert) for name, member in members.items()}


def close_all(environments: Mapping[str, PlayedEnvironment]) -> None:
    """Stop their processes."""
    for environment in environments.values():
        environment.pool.close()
