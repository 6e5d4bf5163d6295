"""Math problems with verifiable rewards: data, answer checking, environments.

Nothing is imported here; `envs.math.env` holds the environment, `envs.math.verifier` the answer check, and
`python -m envs.math --help` the commands.
"""
