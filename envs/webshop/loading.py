"""Opening a shop by what the user names: a folder of official files, a built folder, or the synthetic catalogue."""

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from agentrl.common.data_source import DataSource
from agentrl.common.fields import plain_name
from agentrl.envs.env_errors import DataError
from agentrl.envs.options import check_at_least, check_choice
from agentrl.envs.webshop import official
from agentrl.envs.webshop.goals import KINDS
from agentrl.envs.webshop.nouns import nouns_of_catalogue
from agentrl.envs.webshop.products import Product, clean_products
from agentrl.envs.webshop.shop import Shop, ShopBuilder
from agentrl.envs.webshop.store import is_store, open_store
from agentrl.envs.webshop.synthetic import SyntheticProduct, synthesize

DATA_VARIABLE = "WEBSHOP_DATA"
SYNTHETIC = "synthetic"  # as a data folder: the synthetic catalogue, whatever the variable says
DEFAULT_NUM_PRODUCTS = 1000  # of the synthetic catalogue
_LARGEST_IN_MEMORY = 20_000  # products; larger catalogues are built into a folder


def find_source(data_dir: str | None) -> str:
    """What `data_dir` stands for: itself, the folder in the environment variable WEBSHOP_DATA, or "synthetic"."""
    return os.path.expanduser(data_dir or os.environ.get(DATA_VARIABLE) or SYNTHETIC)


def open_shop(data_dir: str | None = None, **options: Any) -> Shop:
    """The shop in a folder (see `find_source`), loaded once per process and then shared.

    Options: `num_products` limits a catalogue to its first products; `kind` of the goals, "synthetic" or "human";
    `price_seed` of drawn prices and price bounds; `catalogue_seed` and `style` of the synthetic catalogue;
    `title_nouns` and `verify` of official files, see `WebShopEnv`.

    Raises DataError where files are missing, damaged or of another kind, MissingExtraError where the nouns of official
    titles are needed and spaCy is not installed, ValueError for arguments out of range.
    """
    return _open_shop(find_source(data_dir), **options)


@lru_cache(maxsize=8)
def _open_shop(
    place: str,
    *,
    num_products: int | None = None,
    kind: str = "synthetic",
    price_seed: int | None = None,
    catalogue_seed: int = 0,
    style: str = "full",
    title_nouns: str = "spacy",
    verify: bool = True,
) -> Shop:
    check_choice("goals", kind, KINDS)
    check_at_least("num_products", num_products)
    if place == SYNTHETIC:
        count = num_products or DEFAULT_NUM_PRODUCTS
        _check_size(count, "python -m agentrl.envs.webshop build --data-dir synthetic --num-products")
        products = synthetic_products(count, seed=catalogue_seed, style=style)
        source = DataSource("generated", count, about=synthetic_name(count, catalogue_seed, style))
        return _in_memory(products, source, kind=kind, price_seed=price_seed)
    folder = Path(place).expanduser()
    if is_store(folder):
        return open_store(folder, kind=kind, price_seed=price_seed, num_products=num_products)
    files = official.find_files(folder, num_products=num_products, needs_human=kind == "human")
    if files.is_full:
        count = num_products or official.FULL_SIZE
        _check_size(count, f"python -m agentrl.envs.webshop build --data-dir {folder} --num-products")
    cleaned = list(official_products(files, num_products=num_products, verify=verify))
    tagged = nouns_of_catalogue(cleaned, folder=folder, method=title_nouns)
    source = official_source(files, num_products=num_products, count=len(cleaned))
    return _in_memory(tagged, source, kind=kind, price_seed=price_seed)


def _check_size(num_products: int, command: str) -> None:
    if num_products > _LARGEST_IN_MEMORY:
        raise DataError(
            f"a catalogue of {num_products:,} products is too large to load each time. Build it once with "
            f"`{command} {num_products} --out FOLDER` and give that folder as data_dir."
        )


def _in_memory(products: Iterable[Product], source: DataSource, *, kind: str, price_seed: int | None) -> Shop:
    builder, kept = ShopBuilder(kinds=[kind]), []
    for product in products:
        builder.add(product)
        kept.append(product)
    prices, index, goals = builder.finish(price_seed=price_seed or 0)
    if kind not in goals:
        raise DataError(
            f"no product of the {source.about} has a {kind} instruction. "
            "Use more products, or files that belong together."
        )
    return Shop(source.about, kept, prices=prices, index=index, goals=goals[kind], kind=kind, source=source)


def synthetic_name(num_products: int, seed: int, style: str) -> str:
    """How a synthetic catalogue is called."""
    return f"synthetic catalogue ({style}, {num_products:,} products, seed {seed})"


def synthetic_products(num_products: int, *, seed: int, style: str) -> Iterator[Product]:
    """The synthetic catalogue, with nouns."""
    return map(_from_synthetic, synthesize(num_products, seed=seed, style=style))


def _from_synthetic(made: SyntheticProduct) -> Product:
    asin = made.record["asin"]
    (product,) = clean_products([made.record], {asin: made.notes}, {asin: made.requests}, {asin: made.nouns})
    return product


def official_source(files: official.OfficialFiles, *, num_products: int | None, count: int) -> DataSource:
    """What files are: official where all of them are used as published."""
    whole = num_products is None or num_products == (official.FULL_SIZE if files.is_full else 1000)
    kind = "official" if whole and official.are_official(files) else "files"
    name = f"{plain_name(files.products)} ({count:,} products)"
    return DataSource(kind, count, official.unpacked_sum(files.products), name)


def official_products(files: official.OfficialFiles, *, num_products: int | None, verify: bool) -> Iterator[Product]:
    """The products of official files, without nouns."""
    if verify:
        for path in files.used:
            official.check_sum(path)
    records = islice(official.read_records(files.products), num_products)
    notes = official.read_mapping(files.notes)
    human = official.read_mapping(files.human) if files.human is not None else {}
    return clean_products(records, notes, human)
