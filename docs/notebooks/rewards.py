# %% [markdown]
# # Rewards as functions
#
# The math environment gives 1 for a right answer. What else counts is said here, without an environment of one's own: a
# function takes a finished episode (`agentrl.Trajectory`) and returns a number. Several are added up with weights, and
# each is logged under its own name.

# %%
import agentrl


def brief(episode):
    """1 for an answer of at most 20 characters, less for each further one."""
    return max(0.0, 1.0 - max(0, len(episode.turns[-1].action) - 20) / 20)


def ends_by_itself(episode):
    """Whether the answer ended before it was cut at `rollout.max_new_tokens`."""
    return float(episode.turns[-1].finish == "stop")


run = agentrl.train(
    "math_quickstart",
    {
        "warmstart.episodes": 2000, "warmstart.passes": 1, "train.steps": 4, "train.groups_per_step": 8,
        "eval.tasks": 40, "eval.every": 0, "tracking.trajectories_every": 1, "tracking.trackers": [],
    },
    reward={"environment": 1.0, brief: 0.2, ends_by_itself: 0.1},
)  # fmt: skip

# %% [markdown]
# `reward/NAME` is the mean of a function before its weight; `rollout/reward` is what was trained on. Success stays the
# environment's word.

# %%
columns = ["reward/environment", "reward/brief", "reward/ends_by_itself", "rollout/reward", "rollout/success"]
print(run.metrics[columns].dropna())

# %% [markdown]
# Every stored episode has its values, and its advantage: what its tokens were worth next to those of its group.

# %%
episode = next(episode for episode in run.episodes() if episode["source"].startswith("step-"))
print(episode["first_observation"], "->", episode["turns"][0]["action"])
print(episode["rewards"], "reward", episode["reward"], "advantage", episode["advantage"])
