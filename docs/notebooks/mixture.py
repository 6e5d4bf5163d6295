# %% [markdown]
# # Several environments in one run
#
# Household tasks and shopping (`configs/mixture_quickstart.toml`, here much shortened: the real one learns, this one
# shows where things are). `env.1.weight` is a key of the second environment; equal weights: as many groups of each.

# %%
import agentrl

config = agentrl.load_config(
    "mixture_quickstart",
    {
        "env.1.weight": 2, "warmstart.episodes": 200, "warmstart.passes": 1, "rollout.max_turns": 6, "train.steps": 2,
        "train.groups_per_step": 4, "train.group_size": 4, "eval.tasks": 4, "eval.every": 1,
        "tracking.trajectories_every": 1, "tracking.trackers": [],
    },
)  # fmt: skip
run = agentrl.train(config)

# %% [markdown]
# Success of each environment, in training and held out. A group is of one environment, so rewards of different scales
# are never compared with each other.

# %%
names = list(config.environments())
print(run.metrics[[f"{side}/success/{name}" for side in ("rollout", "eval") for name in names]])

# %%
for name in names:
    episodes = [episode for episode in run.episodes() if episode["task"]["environment"] == name]
    print(name, len(episodes), "episodes, e.g.", episodes[-1]["turns"][0]["action"])

# %% [markdown]
# The weights go on from their checkpoint, task for task as if nothing had happened; and an evaluation plays each.

# %%
longer = agentrl.train(resume=run.folder, overrides={"train.steps": 3})
print(len(longer.batches), "batches; best weights in", longer.best_checkpoint)
result = agentrl.evaluate(run.folder, {"eval.tasks": 4})
print({name: rate.value for name, rate in result.rates.items()}, "mean reward", result.metrics()["eval/reward"])
