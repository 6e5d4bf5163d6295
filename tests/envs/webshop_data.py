"""Shared by the WebShop tests: the real files, unpacked, and a shop of three products small enough to check by hand."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from agentrl.common.data_source import DataSource
from agentrl.envs.webshop.goals import Goal
from agentrl.envs.webshop.loading import _in_memory
from agentrl.envs.webshop.products import Product, clean_products
from agentrl.envs.webshop.shop import Shop

SYNTHETIC = {"data_dir": "synthetic"}


def record(asin: str, name: str, **fields: Any) -> dict[str, Any]:
    """A raw product record with defaults."""
    defaults = {
        "full_description": "", "pricing": "$10.00", "images": [""], "product_category": "A › B › C",
        "average_rating": "", "small_description": ["bullet"], "customization_options": "", "category": "garden",
        "query": "lamps", "page": 1,
    }  # fmt: skip
    return defaults | {"asin": asin, "name": name} | fields


def options(**values: list[str]) -> dict[str, list[dict[str, str]]]:
    """Raw customization options."""
    return {name.replace("_", " "): [{"value": value} for value in given] for name, given in values.items()}


def three_products() -> list[Product]:
    """Two lamps and a mug; the first lamp has options and is wanted."""
    records = [
        record(
            "B000000001", "Red Lamp", pricing="$25.50", full_description="A warm lamp.",
            small_description=["Bright light", "Easy clean"],
            customization_options=options(Color=["Red", "Navy/Blue"], Size=["small", "large"]),
        ),
        record("B000000002", "Blue lamp stand", pricing="$9 - $12.5"),
        record("B000000003", "Coffee mug", pricing="", query=" Mugs ", product_category="D › E", category="grocery"),
    ]  # fmt: skip
    notes = {
        "B000000001": {
            "attributes": ["easy clean", "warm light"],
            "instruction": "Find me easy clean lamps",
            "instruction_attributes": ["easy clean"],
        },
        "B000000002": {"attributes": ["long cord"]},
    }
    requests = {
        "B000000002": [
            {
                "instruction": "i want a lamp stand.",
                "instruction_attributes": ["long cord"],
                "instruction_options": ["Navy"],
            },
            {"instruction": "skipped", "instruction_attributes": [], "instruction_options": []},
        ]
    }
    nouns = {"B000000001": ["red", "lamp"], "B000000002": ["lamp", "stand"], "B000000003": ["coffee", "mug"]}
    return list(clean_products(records, notes, requests, nouns))


def small_shop(kind: str = "synthetic") -> Shop:
    """The three products as a shop."""
    return _in_memory(three_products(), DataSource("files", 3, about="test catalogue"), kind=kind, price_seed=0)


def goal_for(target: Product, **fields: Any) -> Goal:
    """A goal for a product, with defaults."""
    defaults: dict[str, Any] = {
        "index": 0, "text": "Find me easy clean lamps", "attributes": ("easy clean",), "options": {},
        "price_upper": 30.0,
    }  # fmt: skip
    return Goal(target=target, **(defaults | fields))


@pytest.fixture(scope="session")
def official_folder(reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real small catalogue under its official names, with the nouns of its titles."""
    source, folder = reference_data / "webshop", tmp_path_factory.mktemp("webshop")
    if not source.is_dir():
        pytest.skip(f"no WebShop data at {source}")
    (folder / "items_shuffle_1000.json").write_bytes(
        lzma.decompress((source / "items_shuffle_1000.json.xz").read_bytes())
    )
    (folder / "items_ins_v2_1000.json").write_bytes((source / "items_ins_v2_1000.json").read_bytes())
    (folder / "items_human_ins.json").write_bytes((source / "items_human_ins_13.json").read_bytes())
    (folder / "title_nouns.json.gz").write_bytes((source / "title_nouns.json.gz").read_bytes())
    return folder


def read_packed(path: Path) -> Any:
    """The content of a packed JSON file."""
    content = path.read_bytes()
    return json.loads(lzma.decompress(content) if path.suffix == ".xz" else gzip.decompress(content))
