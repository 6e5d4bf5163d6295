"""ALFWorld: household tasks as text games, with the stock engine's exact texts and about a thousand times its speed.

    import agentrl.envs, gymnasium
    env = gymnasium.make("agentrl/ALFWorld-v0", split="train")           # generated games, or ALFWORLD_DATA where set
    observation, info = env.reset(seed=0)

Modules: `env` the Gymnasium environment; `text_engine`, `game`, `goal_conditions`, `pddl`,
`texts` the rules; `official`, `packed`,
`generate` the games; `experts`, `planner` who plays them; `protocols` how other frameworks talk to them. The command
line is `python -m agentrl.envs.alfworld --help`.
"""
