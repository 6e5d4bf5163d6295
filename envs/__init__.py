"""Text environments under Gymnasium: ALFWorld, WebShop, search-augmented QA, math.

Importing this package registers the ids below with Gymnasium and nothing else; each environment's module is
loaded by the first `gymnasium.make`. They are plain Gymnasium environments.

    import agentrl.envs, gymnasium
    env = gymnasium.make("agentrl/ALFWorld-v0", split="train")
"""

from gymnasium.envs.registration import register, registry

# id -> (entry point, step limit of the benchmark; None where the environment ends by itself)
ENVIRONMENTS: dict[str, tuple[str, int | None]] = {
    "agentrl/ALFWorld-v0": ("agentrl.envs.alfworld.env:ALFWorldEnv", 50),
    "agentrl/WebShop-v0": ("agentrl.envs.webshop.env:WebShopEnv", None),
    "agentrl/SearchQA-v0": ("agentrl.envs.search_qa.env:SearchQAEnv", None),
    "agentrl/Math-v0": ("agentrl.envs.math.env:MathEnv", None),
    "agentrl/ReasoningGym-v0": ("agentrl.envs.math.reasoning_gym_env:ReasoningGymEnv", None),
}

for _id, (_entry_point, _max_episode_steps) in ENVIRONMENTS.items():
    if _id not in registry:
        register(_id, entry_point=_entry_point, max_episode_steps=_max_episode_steps)
