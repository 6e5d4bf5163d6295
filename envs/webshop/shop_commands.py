"""What the subcommands of `python -m agentrl.envs.webshop` do."""

import argparse
import json
from pathlib import Path
from typing import Any

from agentrl.common.data_source import DataSource
from agentrl.common.progress import track
from agentrl.envs.options import check_at_least
from agentrl.envs.webshop import official
from agentrl.envs.webshop.env import WebShopEnv
from agentrl.envs.webshop.goals import SPLITS
from agentrl.envs.webshop.loading import (
    DEFAULT_NUM_PRODUCTS,
    SYNTHETIC,
    find_source,
    official_products,
    official_source,
    open_shop,
    synthetic_name,
    synthetic_products,
)
from agentrl.envs.webshop.nouns import nouns_of_stream
from agentrl.envs.webshop.scripted_scores import evaluate as play_tasks
from agentrl.envs.webshop.shop_server import ShopServer
from agentrl.envs.webshop.store import build_store
from agentrl.envs.webshop.synthetic import synthesize


def _make_env(options: argparse.Namespace, **more: Any) -> WebShopEnv:
    names = (
        "data_dir", "num_products", "price_seed", "catalogue_seed", "style", "title_nouns", "verify",
        "split", "split_by", "goals", "reward",
    )  # fmt: skip
    return WebShopEnv(**{name: getattr(options, name) for name in names}, **more)


def _check_positive(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        check_at_least(f"--{name.replace('_', '-')}", getattr(options, name))


def serve(options: argparse.Namespace) -> None:
    """Open the shop as a web page until Ctrl-C."""
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port must be in 0 .. 65535, got {options.port}")
    with ShopServer(lambda: _make_env(options), port=options.port) as server:
        print(f"The shop is open at {server.url} (Ctrl-C closes it)", flush=True)
        server.serve_forever()


def evaluate(options: argparse.Namespace) -> None:
    """Print score and success of a scripted policy with 95 % intervals."""
    _check_positive(options, "episodes", "max_steps")
    env = _make_env(options, expert="default" if options.policy == "expert" else None)
    result = play_tasks(
        env, options.policy, episodes=options.episodes, max_steps=options.max_steps, seed=options.seed
    )  # fmt: skip
    print(
        f"{env.shop.name}, {options.goals} goals, {options.split} split by {options.split_by}, {options.reward} reward"
    )
    print(f"{options.policy}: {result.summary()}")


def info(options: argparse.Namespace) -> None:
    """Print what a catalogue holds: products, goals, sizes of the splits."""
    shop = _make_env(options).shop
    print(f"{shop.name}: {len(shop.products):,} products, {len(shop.goals):,} {shop.kind} goals")
    print(f"data: {shop.source.kind}" + (f", sha256 {shop.source.sha256}" if shop.source.sha256 else ""))
    for by in ("goal", "product"):
        sizes = ", ".join(f"{split} {len(shop.goals.split(split, by=by)):,}" for split in SPLITS)
        print(f"split by {by}: {sizes}")


def build(options: argparse.Namespace) -> None:
    """Index a catalogue into a folder."""
    _check_positive(options, "num_products")
    source, seed, style = find_source(options.data_dir), options.catalogue_seed, options.style
    if source == SYNTHETIC:
        total = options.num_products or DEFAULT_NUM_PRODUCTS
        products = synthetic_products(total, seed=seed, style=style)
        made_of = DataSource("generated", total, about=synthetic_name(total, seed, style))
    else:
        files = official.find_files(Path(source), num_products=options.num_products)
        cleaned = official_products(files, num_products=options.num_products, verify=options.verify)
        products = nouns_of_stream(cleaned, folder=Path(source), method=options.title_nouns)
        total = options.num_products or (official.FULL_SIZE if files.is_full else 1000)
        made_of = official_source(files, num_products=options.num_products, count=total)
    build_store(
        products, options.out, name=made_of.about, total=total, price_seed=options.price_seed or 0,
        kind=made_of.kind, sha256=made_of.sha256,
    )  # fmt: skip
    shop = open_shop(data_dir=str(options.out))
    counts = f"{len(shop.products):,} products, {len(shop.goals):,} goals"
    print(f"{options.out}: {counts}; give it as --data-dir, or as data_dir in code")


def write_catalogue(options: argparse.Namespace) -> None:
    """Write a synthetic catalogue as official files."""
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
