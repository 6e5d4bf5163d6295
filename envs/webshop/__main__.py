"""Command line: serve, evaluate, build, synthesize, info."""

import argparse
import sys
from collections.abc import Sequence

from agentrl.common.paths import user_path
from agentrl.envs.env_errors import DataError
from agentrl.envs.webshop.goals import KINDS, SPLITS
from agentrl.envs.webshop.nouns import METHODS
from agentrl.envs.webshop.purchase_reward import OPTION_COUNTERS
from agentrl.envs.webshop.scripted_scores import POLICIES
from agentrl.envs.webshop.shop_commands import build, evaluate, info, serve, write_catalogue
from agentrl.envs.webshop.synthetic import STYLES

_EPILOG = """examples:
  python -m agentrl.envs.webshop serve                              shop by hand in the synthetic catalogue
  python -m agentrl.envs.webshop info --data-dir WebShop/data       check the official files, count their goals
  python -m agentrl.envs.webshop evaluate --policy expert           the scripted shopper on the 500 test goals
  python -m agentrl.envs.webshop build --data-dir WebShop/data --num-products 1181436 --out shop
                                                            index the full catalogue once, for all processes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 after a line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (DataError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.envs.webshop", description="WebShop: look at it, measure it, prepare its data.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("serve", help="the shop as a web page on this machine")
    command.add_argument("--port", type=int, default=8000, help="0 picks a free one (default: %(default)s)")
    _add_env_options(command)
    command.set_defaults(run=serve)

    command = commands.add_parser("evaluate", help="score and success of a scripted policy")
    command.add_argument("--policy", choices=POLICIES, default="expert")
    command.add_argument("--episodes", type=int, help="first tasks of the split (default: all, each once)")
    command.add_argument("--max-steps", type=int, default=15, help="actions per episode (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the random policy (default: %(default)s)")
    _add_env_options(command)
    command.set_defaults(run=evaluate)

    command = commands.add_parser("info", help="what a catalogue holds; checks official files")
    _add_env_options(command)
    command.set_defaults(run=info)

    command = commands.add_parser("build", help="index a large catalogue into a folder, once")
    command.add_argument(
        "--out", type=user_path, required=True, help="folder of the shop; an interrupted build goes on"
    )
    _add_data_options(command)
    command.set_defaults(run=build)

    command = commands.add_parser("synthesize", help="write a synthetic catalogue as official files")
    command.add_argument("--out", type=user_path, required=True, help="folder for the files")
    command.add_argument("--num-products", type=int, default=1000, help="(default: %(default)s)")
    command.add_argument("--catalogue-seed", type=int, default=0, help="(default: %(default)s)")
    command.add_argument("--style", choices=STYLES, default="full", help="(default: %(default)s)")
    command.set_defaults(run=write_catalogue)
    return parser


def _add_data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data-dir", metavar="DIR",
        help="official files, a built shop, or 'synthetic' (default: the folder in $WEBSHOP_DATA, else synthetic)",
    )  # fmt: skip
    command.add_argument("--num-products", type=int, help="only the first products")
    command.add_argument("--price-seed", type=int, help="of drawn prices and price bounds (default: 0)")
    command.add_argument("--catalogue-seed", type=int, default=0, help="of the synthetic catalogue (default: 0)")
    command.add_argument("--style", choices=STYLES, default="full", help="of the synthetic catalogue (default: full)")
    command.add_argument("--title-nouns", choices=METHODS, default="spacy", help="of official titles (default: spacy)")
    command.add_argument("--no-verify", dest="verify", action="store_false", help="accept files of unknown content")


def _add_env_options(command: argparse.ArgumentParser) -> None:
    _add_data_options(command)
    command.add_argument("--split", choices=SPLITS, default="test", help="(default: test)")
    command.add_argument("--split-by", choices=("goal", "product"), default="goal", help="(default: goal)")
    command.add_argument("--goals", choices=KINDS, default="synthetic", help="(default: synthetic)")
    command.add_argument("--reward", choices=tuple(OPTION_COUNTERS), default="compat", help="(default: compat)")


if __name__ == "__main__":
    sys.exit(main())
