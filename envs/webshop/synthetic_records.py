"""Products of the synthetic catalogue in the schema of the official files."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class SyntheticProduct(NamedTuple):
    """One product as the official files would hold it."""

    record: dict[str, Any]  # an entry of items_shuffle.json
    notes: dict[str, Any]  # its value in items_ins_v2.json
    requests: list[dict[str, Any]]  # its value in items_human_ins.json
    nouns: list[str]  # of the title


class ProductKind(NamedTuple):
    """What a product is called, one and many, and where it stands: category and path of categories."""

    name: str
    plural: str
    category: str
    path: str


def assemble(
    *,
    asin: str,
    kind: ProductKind,
    title: str,
    description: str,
    bullets: list[str],
    pricing: str,
    options: Mapping[str, Sequence[str]],
    attributes: list[str],
    wanted: list[str],
    forms: Sequence[Sequence[str]],
    nouns: list[str],
    page: int,
) -> SyntheticProduct:
    """Put the parts into the official schema, and write the instructions for the wanted attributes."""
    record = {
        "name": title,
        "full_description": description,
        "pricing": pricing,
        "images": [""],
        "product_category": kind.path,
        "average_rating": "",
        "small_description": bullets,
        "customization_options": {name: [_option(value) for value in values] for name, values in options.items()} or "",
        "asin": asin,
        "category": kind.category,
        "query": kind.plural,
        "page": page,
    }
    notes: dict[str, Any] = {"attributes": attributes}
    requests = []
    if wanted:
        notes |= {"instruction": _instruction(kind.plural, wanted, forms), "instruction_attributes": wanted}
        values = [values[bisect_right(values, asin) % len(values)] for values in options.values()]
        requests.append(_request(asin, kind.name, wanted, values, attributes))
    return SyntheticProduct(record, notes, requests, nouns)


def _option(value: str) -> dict[str, Any]:
    return {"is_selected": False, "url": None, "value": value, "price_string": "", "price": 0, "image": None}


def _instruction(kinds: str, wanted: list[str], forms: Sequence[Sequence[str]]) -> str:
    """`Find me soft, warm shirts with long sleeve for gym workout`."""
    before, after_with, after_for = ([attribute for attribute in wanted if attribute in form] for form in forms)
    text = " ".join(["Find me", *([", ".join(before)] if before else []), kinds])
    text += f" with {', '.join(after_with)}" if after_with else ""
    return text + (f" for {', '.join(after_for)}" if after_for else "")


def _request(asin: str, kind: str, wanted: list[str], values: list[str], attributes: list[str]) -> dict[str, Any]:
    """A request as a person might put it, in the schema of items_human_ins.json."""
    text = f"i am looking for a {kind} that is {' and '.join(wanted)}"
    return {
        "asin": asin,
        "instruction": text + (f", and i would like it in {' and '.join(values)}." if values else "."),
        "attributes": attributes,
        "options": [""],
        "instruction_attributes": wanted,
        "instruction_options": values,
    }
