"""Command line: look at game data, pack it, play a game, score a scripted policy."""

import argparse
import sys
from collections.abc import Callable

from agentrl.common.extras import MissingExtraError
from agentrl.common.paths import user_path
from agentrl.envs.alfworld.commands import pack, play, score, stats
from agentrl.envs.alfworld.official import SPLITS

_DATA_HELP = (
    'official folder or zip archive, packed file, or "generated"; '
    "default: the variable ALFWORLD_DATA, else generated games"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit code (2 for bad input, with one line on stderr)."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
    except (ValueError, OSError, MissingExtraError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.envs.alfworld",
        description="ALFWorld: household tasks as text games, official or generated.",
        epilog="Example: python -m agentrl.envs.alfworld pack DOWNLOADED_FOLDER alfworld.zip && "
        "ALFWORLD_DATA=alfworld.zip python -m agentrl.envs.alfworld play --split valid_seen",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("stats", help="what a folder or packed file holds, split by split")
    command.add_argument("data", nargs="?", metavar="DATA", help=_DATA_HELP)
    command.set_defaults(run=stats)

    command = commands.add_parser(
        "pack", help="put the games of a folder into one file that opens in a moment", description=pack.__doc__
    )
    command.add_argument(
        "source", type=user_path, help="official folder, or an archive of one (.zip, .tar, .tar.xz, .tar.gz)"
    )
    command.add_argument("target", type=user_path, help="file to write, e.g. alfworld.zip")
    command.set_defaults(run=pack)

    command = commands.add_parser("play", help="play a game in the terminal", description=play.__doc__)
    _add_game_options(command)
    command.add_argument("--task", help="number or name of the task; default: a random one")
    command.add_argument("--seed", type=int, help="seed of the random choice")
    command.add_argument("--hint", action="store_true", help="show what the exploring expert would do")
    command.set_defaults(run=play)

    command = commands.add_parser("score", help="success rate of a scripted policy", description=score.__doc__)
    _add_game_options(command)
    command.add_argument("--policy", choices=["exploring", "walkthrough", "random"], default="exploring")
    command.add_argument("--games", type=int, help="play only the first so many")
    command.add_argument("--max-steps", type=int, default=50, help="step limit (default 50)")
    command.add_argument("--seed", type=int, default=0, help="seed of the random policy (default 0)")
    command.set_defaults(run=score)
    return parser


def _add_game_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help=_DATA_HELP)
    parser.add_argument("--split", choices=SPLITS, default="valid_seen", help="default: valid_seen")
    parser.add_argument("--grammar", choices=["move", "put"], default="move", help="wording (default: move)")
    parser.add_argument("--room-size", choices=["small", "official"], help="for generated games (default: small)")


if __name__ == "__main__":
    sys.exit(main())
