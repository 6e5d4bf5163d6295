"""Command line of the shop."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentrl.common.paths import user_path
from agentrl.common.progress import track
from agentrl.envs.env_errors import DataError
from agentrl.envs.webshop import official
from agentrl.envs.webshop.env import WebShopEnv
from agentrl.envs.webshop.goals import KINDS, SPLITS
from agentrl.envs.webshop.loading import (
    DEFAULT_NUM_PRODUCTS,
    SYNTHETIC,
    find_source,
    official_products,
    open_shop,
    synthetic_name,
    synthetic_products,
)
from agentrl.envs.webshop.nouns import METHODS, nouns_of_stream
from agentrl.envs.webshop.purchase_reward import OPTION_COUNTERS
from agentrl.envs.webshop.scripted_scores import POLICIES, evaluate
from agentrl.envs.webshop.shop_server import ShopServer
from agentrl.envs.webshop.store import build_store
from agentrl.envs.webshop.synthetic import STYLES, synthesize

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
        print(f"webshop: {error}", file=sys.stderr)
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
    command.set_defaults(run=_serve)

    command = commands.add_parser("evaluate", help="score and success of a scripted policy")
    command.add_argument("--policy", choices=POLICIES, default="expert")
    command.add_argument("--episodes", type=int, help="first tasks of the split (default: all, each once)")
    command.add_argument("--max-steps", type=int, default=15, help="actions per episode (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the random policy (default: %(default)s)")
    _add_env_options(command)
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("info", help="what a catalogue holds; checks official files")
    _add_env_options(command)
    command.set_defaults(run=_info)

    command = commands.add_parser("build", help="index a large catalogue into a folder, once")
    command.add_argument(
        "--out", type=user_path, required=True, help="folder of the shop; an interrupted build goes on"
    )
    _add_data_options(command)
    command.set_defaults(run=_build)

    command = commands.add_parser("synthesize", help="write a synthetic catalogue as official files")
    command.add_argument("--out", type=user_path, required=True, help="folder for the files")
    command.add_argument("--num-products", type=int, default=1000, help="(default: %(default)s)")
    command.add_argument("--catalogue-seed", type=int, default=0, help="(default: %(default)s)")
    command.add_argument("--style", choices=STYLES, default="full", help="(default: %(default)s)")
    command.set_defaults(run=_synthesize)
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


def _make_env(options: argparse.Namespace, **more: Any) -> WebShopEnv:
    names = (
        "data_dir", "num_products", "price_seed", "catalogue_seed", "style", "title_nouns", "verify",
        "split", "split_by", "goals", "reward",
    )  # fmt: skip
    return WebShopEnv(**{name: getattr(options, name) for name in names}, **more)


def _check_positive(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {value}")


def _serve(options: argparse.Namespace) -> None:
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port must be in 0 .. 65535, got {options.port}")
    with ShopServer(lambda: _make_env(options), port=options.port) as server:
        print(f"The shop is open at {server.url} (Ctrl-C closes it)", flush=True)
        server.serve_forever()


def _evaluate(options: argparse.Namespace) -> None:
    _check_positive(options, "episodes", "max_steps")
    env = _make_env(options, expert="default" if options.policy == "expert" else None)
    result = evaluate(
        env, options.policy, episodes=options.episodes, max_steps=options.max_steps, seed=options.seed
    )  # fmt: skip
    print(
        f"{env.shop.name}, {options.goals} goals, {options.split} split by {options.split_by}, {options.reward} reward"
    )
    print(f"{options.policy}: {result.summary()}")


def _info(options: argparse.Namespace) -> None:
    shop = _make_env(options).shop
    print(f"{shop.name}: {len(shop.products):,} products, {len(shop.goals):,} {shop.kind} goals")
    for by in ("goal", "product"):
        sizes = ", ".join(f"{split} {len(shop.goals.split(split, by=by)):,}" for split in SPLITS)
        print(f"split by {by}: {sizes}")


def _build(options: argparse.Namespace) -> None:
    _check_positive(options, "num_products")
    source, seed, style = find_source(options.data_dir), options.catalogue_seed, options.style
    if source == SYNTHETIC:
        total = options.num_products or DEFAULT_NUM_PRODUCTS
        name, products = synthetic_name(total, seed, style), synthetic_products(total, seed=seed, style=style)
    else:
        files = official.find_files(Path(source), num_products=options.num_products)
        cleaned = official_products(files, num_products=options.num_products, verify=options.verify)
        products = nouns_of_stream(cleaned, folder=Path(source), method=options.title_nouns)
        total, name = options.num_products or (official.FULL_SIZE if files.is_full else 1000), files.products.name
    build_store(products, options.out, name=name, total=total, price_seed=options.price_seed or 0)
    shop = open_shop(data_dir=str(options.out))
    counts = f"{len(shop.products):,} products, {len(shop.goals):,} goals"
    print(f"{options.out}: {counts}; give it as --data-dir, or as data_dir in code")


def _synthesize(options: argparse.Namespace) -> None:
    _check_positive(options, "num_products")
    made = list(
        track(
            synthesize(options.num_products, seed=options.catalogue_seed, style=options.style),
            description="Products",
            total=options.num_products,
        )
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("items_shuffle_1000.json", [product.record for product in made]),
        ("items_ins_v2_1000.json", {product.record["asin"]: product.notes for product in made}),
        ("items_human_ins.json", {product.record["asin"]: product.requests for product in made if product.requests}),
        ("title_nouns.json", {product.record["asin"]: product.nouns for product in made}),
    ):
        (options.out / name).write_text(json.dumps(content, ensure_ascii=False))
    print(f"{options.out}: {len(made):,} products; give it as --data-dir, with --no-verify")
