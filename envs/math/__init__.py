"""Math problems with verifiable rewards: data, answer checking, environments.

Nothing is imported here; `env` holds the environment, `verifier` the answer check, and
`python -m agentrl.envs.math --help` the commands.
"""
