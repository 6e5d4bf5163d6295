# %% [markdown]
# # An environment in a cell
#
# A class with `reset` and `step` is all it takes: text in, text out, a reward. It may stand in this very cell; then it
# is played in this process, and the run says so.

# %%
import gymnasium
from gymnasium.spaces import Text

import agentrl

COLOURS = ["red", "green", "blue", "white"]


class Echo(gymnasium.Env):
    """Say the colour that is shown, among whatever else."""

    observation_space = action_space = Text(1000)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.colour = str(self.np_random.choice(COLOURS))
        return f"Say {self.colour}.", {"category": self.colour}

    def step(self, action):
        is_right = self.colour in action
        return "", float(is_right), True, False, {"success": is_right}


# %% [markdown]
# `env=` takes the class. Everything else has a default; `overrides` are the keys of a config file. `on_batch` sees each
# batch as it is done, and ends the run when it returns `False`.


# %%
def until_it_can(record, groups):
    """Enough once four of five answers of a batch are right."""
    return record["rollout/success"] < 0.8


run = agentrl.train(
    env=Echo,
    overrides={
        "train.steps": 60, "rollout.max_turns": 1, "rollout.max_new_tokens": 4, "rollout.max_context_tokens": 64,
        "eval.tasks": 32, "eval.temperature": 1.0, "tracking.trackers": [],
    },
    on_batch=until_it_can,
)  # fmt: skip

# %% [markdown]
# The run as an object: numbers as a table, episodes, the best checkpoint, the folder that `agentrl report` opens.

# %%
print(run.metrics[["rollout/success", "rollout/reward", "eval/success"]].tail())
print("success", run.success, "after", len(run.batches), "batches; best weights in", run.best_checkpoint)
last = list(run.episodes())[-1]
print(last["first_observation"], "->", last["turns"][0]["action"], "reward", last["reward"])
