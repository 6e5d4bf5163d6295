"""python -m agentrl.play ID: play an environment yourself, as a model would."""

import sys

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("play")  # before the imports below, which take seconds

from typing import Any

from agentrl.command.guard import main_guard, parse_command_line
from agentrl.command.parsers import play_parser
from agentrl.config.read import load_config
from agentrl.environment.calls import reset
from agentrl.environment.contract import step_env
from agentrl.environment.spec import environment_spec, with_conventions
from agentrl.rollout.human import show
from agentrl.types import Task


def play(env: Any, task: Task) -> float:
    """One episode on this terminal; the sum of its rewards."""
    observation, info = reset(env, task)
    total, ended = 0.0, False
    while True:
        show(observation, {} if ended else info)
        if ended:
            return total
        try:
            action = input("> ")
        except EOFError:
            return total
        observation, reward, terminated, truncated, info = step_env(env, action)
        total, ended = total + reward, terminated or truncated


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options, overrides = parse_command_line(play_parser(), argv)
    config = with_conventions(load_config(None, ["--env.id", options.env, *overrides]))
    env = environment_spec(config).make()
    try:
        total = play(env, Task(config.env.id, config.env.split, options.seed, options.task))
    finally:
        env.close()
    print(f"\nreward {total:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
