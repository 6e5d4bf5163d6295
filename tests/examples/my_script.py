"""Train from a script or a notebook cell, with a gate, a loss and a reward of one's own."""

import sys

import agentrl

sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # my_env.py lies beside this file


class EveryOther:
    """A gate: use every batch, but no more than `uses` times."""

    def __init__(self, uses: int = 2) -> None:
        self.uses = uses

    def judge(self, signal: agentrl.StepSignal) -> agentrl.Verdict:
        return agentrl.Verdict(apply=True, stop=signal.reuse_index >= self.uses, reason="counted")

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def policy_gradient(logprobs, old, behaviour, advantages, row_index, scale=1.0):
    """A loss: plain importance-weighted policy gradient."""
    return -scale * (logprobs - old).exp() * advantages


def short_answers(trajectory: agentrl.Trajectory) -> float:
    """A reward: what the environment says, less for many words."""
    return trajectory.reward - 0.01 * sum(len(turn.action.split()) for turn in trajectory.turns)


def main(folder: str = "runs/mine") -> None:
    config = agentrl.load_config(
        None,
        {
            "env.id": "my_env:MyEnv",
            "env.reward": "my_script:short_answers",
            "env.success_threshold": 1.0,
            "gate.kind": "my_script:EveryOther",
            "gate.options": {"uses": 3},
            "loss.kind": "my_script:policy_gradient",
            "loss.options": {"scale": 0.5},
            "train.steps": 3,
            "train.groups_per_step": 4,
            "train.group_size": 4,
            "eval.tasks": 8,
        },
    )
    run = agentrl.train(config, run_dir=folder)
    print(f"{len(run.batches)} batches, success {run.success:.0%}")
    result = agentrl.evaluate(run.folder, {"eval.tasks": 4})
    print(f"again: {result.total.value:.0%} of {result.total.count}")


if __name__ == "__main__":  # environments run in processes, which import this file
    main(*sys.argv[1:])
