"""Environments from elsewhere, unmodified, behind the contract of this package.

    agentrl.train --env.id agentrl.envs.adapters.textarena:TextArenaEnv --env.options.game GuessTheNumber-v0
    agentrl.train --env.id agentrl.envs.adapters.remote:RemoteEnv --env.options.url http://127.0.0.1:8000

reasoning-gym is `agentrl/ReasoningGym-v0`; whatever is registered with Gymnasium needs no adapter.
"""
