"""Products of the shop: the raw schema of the official files, cleaned as the original loader cleans it."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from agentrl.envs.errors import DataError

DEFAULT_PRICE = 100.0  # of products without a price


@dataclass(frozen=True)
class Instruction:
    """A request for a product, written by a template or by a person."""

    text: str  # without options and price bound
    attributes: tuple[str, ...]
    options: tuple[str, ...] = ()  # wanted option values; people name them, templates draw them later


@dataclass(frozen=True)
class Product:
    """One product, as the pages show it."""

    asin: str  # the shop's product id, up to 10 characters
    title: str
    description: str
    bullets: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]  # option name -> values, in the order of the page
    prices: tuple[float, ...]  # one price, or the two ends of a range
    category: str  # beauty, electronics, garden, fashion, grocery
    query: str  # the kind of product, in a few words
    product_category: str  # path of categories, separated by ›
    attributes: tuple[str, ...]
    instruction: Instruction | None = None  # the template's request
    human_instructions: tuple[Instruction, ...] = ()
    nouns: tuple[str, ...] = ()  # of the title, lower-cased, in order, repeated where the title repeats them

    @cached_property
    def price_tag(self) -> str:
        """The price as shown: `$34.0` or `$9.99 to $19.99`."""
        return " to ".join(f"${price}" for price in self.prices)

    @cached_property
    def searchable_text(self) -> str:
        """What the search engine indexes."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        return " ".join([self.title, self.description, *self.bullets[:1], options]).lower()

    @cached_property
    def option_of(self) -> dict[str, str]:
        """Option value -> its name; of two names with the same value the later one wins, as on the page."""
        return {value: name for name, values in self.options.items() for value in values}

    @cached_property
    def searched_texts(self) -> tuple[str, str, str]:
        """Lower-cased title, bullet points and description, where the reward looks for attributes."""
        return self.title.lower(), " ".join(self.bullets).lower(), self.description.lower()


def to_json(product: Product) -> str:
    """One line that `from_json` reads back."""
    values = [getattr(product, field.name) for field in fields(Product)]
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"), default=_instruction_values)


def _instruction_values(instruction: Instruction) -> list[Any]:
    return [instruction.text, instruction.attributes, instruction.options]


def from_json(line: str | bytes) -> Product:
    """The product of a line written by `to_json`."""
    asin, title, text, bullets, options, prices, category, query, path, attributes, template, human, nouns = json.loads(
        line
    )

    def instruction(values: list[Any]) -> Instruction:
        return Instruction(values[0], tuple(values[1]), tuple(values[2]))

    return Product(
        asin=asin,
        title=title,
        description=text,
        bullets=tuple(bullets),
        options={name: tuple(values) for name, values in options.items()},
        prices=tuple(prices),
        category=category,
        query=query,
        product_category=path,
        attributes=tuple(attributes),
        instruction=instruction(template) if template else None,
        human_instructions=tuple(map(instruction, human)),
        nouns=tuple(nouns),
    )


def clean_products(
    raw: Iterable[Mapping[str, Any]],
    attributes: Mapping[str, Mapping[str, Any]],
    human_instructions: Mapping[str, Any] | None = None,
    nouns: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Product]:
    """Products from raw records: bad ids and repeated ids are skipped, the rest is normalised.

    `attributes` is the content of items_ins_v2*.json, `human_instructions` that of items_human_ins.json, both keyed by
    product id; so are the `nouns` of the titles, where they are known.
    """
    seen = set()
    human_instructions, nouns = human_instructions or {}, nouns or {}
    for number, record in enumerate(raw):
        try:
            asin = record["asin"]
            if asin == "nan" or len(asin) > 10 or asin in seen:
                continue
            seen.add(asin)
            yield _clean(record, attributes.get(asin, {}), human_instructions.get(asin, ()), nouns.get(asin, ()))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            name = record.get("asin") if isinstance(record, Mapping) else str(record)[:100]
            raise DataError(
                f"product number {number} ({name}) does not have the schema of the official files: "
                f"{type(error).__name__} {error}. Give the folder of the files as they were downloaded."
            ) from error


def _clean(
    record: Mapping[str, Any], notes: Mapping[str, Any], requests: Iterable[Mapping[str, Any]], nouns: Iterable[str]
) -> Product:
    bullets = record["small_description"]
    instruction = None
    if notes.get("instruction") is not None:
        instruction = Instruction(notes["instruction"], tuple(notes["instruction_attributes"]))
    return Product(
        asin=record["asin"],
        title=_text(record["name"]),
        description=_text(record["full_description"]),
        bullets=tuple(map(_text, bullets if isinstance(bullets, list) else [bullets])),
        options=_clean_options(record["customization_options"]),
        prices=parse_prices(record.get("pricing")),
        category=_text(record["category"]),
        query=_text(record["query"]).lower().strip(),
        product_category=_text(record["product_category"]),
        attributes=tuple(notes.get("attributes", ("DUMMY_ATTR",))),
        instruction=instruction,
        human_instructions=tuple(_human_instruction(request) for request in requests),
        nouns=tuple(nouns),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    return value


def _human_instruction(request: Mapping[str, Any]) -> Instruction:
    attributes, options = request["instruction_attributes"], request["instruction_options"]
    return Instruction(request["instruction"], tuple(attributes), tuple(options))


def _clean_options(raw: Mapping[str, Any] | str | None) -> dict[str, tuple[str, ...]]:
    if not raw:
        return {}
    if not isinstance(raw, Mapping):
        raise TypeError(f"customization_options must be a mapping, got {type(raw).__name__}")
    return {
        name.lower(): tuple(content["value"].strip().replace("/", " | ").lower() for content in contents)
        for name, contents in raw.items()
        if contents is not None
    }


def parse_prices(pricing: str | None) -> tuple[float, ...]:
    """One or two prices from a text such as `$19.99 - $27.99`; the default where there is none.

    >>> parse_prices("$1,299.00"), parse_prices("$5 - $7.5"), parse_prices("")
    ((1299.0,), (5.0, 7.5), (100.0,))
    """
    if not pricing:
        return (DEFAULT_PRICE,)
    prices = tuple(float(re.sub(r"[^\d.]", "", piece)) for piece in pricing.split("$")[1:])
    if not prices:
        raise ValueError(f"a price must contain a dollar sign, got {pricing!r}")
    return prices[:2]
