"""python -m agentrl.warmstart CONFIG: imitate an environment's expert.

Makes a base policy where no pretrained one is at hand.

The expert plays through the same rollout code as the model later, so demonstrations have exactly the rows of RL. With
noise, a turn is now and then a random admissible action from which the expert recovers: the student sees mistakes and
stays short of the expert, which leaves RL something to improve. The environment's tokens are learned too: predicting
what a room holds teaches the names that actions copy.
"""

if __name__ == "__main__":
    from agentrl.command.parsers import answer_help

    answer_help("warmstart")  # before the imports below, which take seconds

import sys

from agentrl.command.guard import main_guard, parse_command_line
from agentrl.command.parsers import warmstart_parser
from agentrl.config.read import load_config
from agentrl.environment.pool import EnvPool
from agentrl.environment.spec import environment_spec, with_conventions
from agentrl.errors import UserError
from agentrl.imitation import warmstart
from agentrl.model.load import set_threads


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    options, overrides = parse_command_line(warmstart_parser(), argv)
    config = with_conventions(load_config(options.config, overrides))
    if not config.warmstart.episodes:
        raise UserError("warmstart.episodes is 0: nothing to imitate. Set it to some thousands.")
    pool = EnvPool.of(environment_spec(config), config.rollout)
    offers_expert = pool.capabilities().expert
    pool.close()
    if not offers_expert:
        raise UserError(f"{config.env.id} offers no expert with these options; train without a warm start.")
    set_threads(config.model.path)
    print(warmstart(config))
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main, outlives_readers=True))
