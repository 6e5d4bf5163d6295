"""Groups -> batch: what every sampled token is worth."""

from agentrl.config.schema import Config
from agentrl.learner.advantage import advantages, penalized_rewards
from agentrl.learner.batch import Batch, assemble
from agentrl.learner.protocol import Learner
from agentrl.model.processes import Processes
from agentrl.types import Group


def assign_credit(groups: list[Group], config: Config, *, learner: Learner, processes: Processes) -> Batch:
    """This process's groups as a batch; what concerns the whole batch is asked of the other processes.

    Args:
        groups: what this process played.
        config: the experiment.
        learner: asked for the KL where that is taken from the reward.
        processes: who shares the batch.
    """
    in_reward = config.loss.kl_coef > 0 and config.loss.kl_in == "reward"
    penalties = learner.kl_penalties(groups) if in_reward else None
    everywhere = processes.gather(penalized_rewards(groups, penalties))
    others = [r for rank, rewards in enumerate(everywhere) if rank != processes.rank for r in rewards]
    values = advantages(groups, config.advantage, penalties=penalties, other_ranks=others)
    for group, of_group in zip(groups, values, strict=True):
        for trajectory, turns in zip(group.trajectories, of_group, strict=True):
            trajectory.advantage = float(turns.mean()) if len(turns) else None
    return assemble(groups, values, drop_equal=config.train.refill is not None)
