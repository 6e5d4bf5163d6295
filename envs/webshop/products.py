"""Products of the shop: the raw schema of the official files, cleaned as the original loader cleans it.

Texts stay as they are. What is no text is read as `agentrl.common.fields` rules (numbers as digits, lists joined); a
field that the shop cannot do without (title, description, bullet points, category, query) is refused where it holds
nothing.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from agentrl.common.fields import is_missing, text_of
from agentrl.envs.env_errors import DataError

DEFAULT_PRICE = 100.0  # of products without a price
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"(\d{1,3}(?:[. ]\d{3})*|\d+),(\d{1,2})(?!\d)")


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
            asin = record["asin"] if isinstance(record["asin"], str) else text_of(record["asin"]) or "nan"
            if asin == "nan" or len(asin) > 10 or asin in seen:
                continue
            seen.add(asin)
            record = {**record, "asin": asin}
            yield _clean(record, attributes.get(asin, {}), human_instructions.get(asin, ()), nouns.get(asin, ()))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            name = record.get("asin") if isinstance(record, Mapping) else str(record)[:100]
            reason = f"the field {error} is missing" if isinstance(error, KeyError) else error
            raise DataError(
                f"product number {number} ({name}) does not have the schema of the official files: "
                f"{reason}. Give the folder of the files as they were downloaded."
            ) from error


def _clean(
    record: Mapping[str, Any], notes: Mapping[str, Any], requests: Iterable[Mapping[str, Any]], nouns: Iterable[str]
) -> Product:
    instruction = None
    if notes.get("instruction") is not None:
        instruction = Instruction(notes["instruction"], tuple(notes["instruction_attributes"]))
    return Product(
        asin=record["asin"],
        title=_text(record, "name"),
        description=_text(record, "full_description"),
        bullets=_bullets(record["small_description"]),
        options=_clean_options(record["customization_options"]),
        prices=parse_prices(record.get("pricing")),
        category=_text(record, "category"),
        query=_text(record, "query").lower().strip(),
        product_category=_text(record, "product_category"),
        attributes=tuple(notes.get("attributes", ("DUMMY_ATTR",))),
        instruction=instruction,
        human_instructions=tuple(_human_instruction(request) for request in requests),
        nouns=tuple(nouns),
    )


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record[field]
    if isinstance(value, str):
        return value
    if is_missing(value):
        raise ValueError(f"{field} holds no text, but {value!r}")
    return text_of(value)


def _bullets(value: Any) -> tuple[str, ...]:
    """One text, or a list whose empty places are left out."""
    if is_missing(value) and not isinstance(value, str | list):
        raise ValueError(f"small_description holds no text, but {value!r}")
    points = value if isinstance(value, list) else [value]
    return tuple(p if isinstance(p, str) else text_of(p) for p in points if isinstance(p, str) or not is_missing(p))


def _human_instruction(request: Mapping[str, Any]) -> Instruction:
    attributes, options = request["instruction_attributes"], request["instruction_options"]
    return Instruction(request["instruction"], tuple(attributes), tuple(options))


def _clean_options(raw: Mapping[str, Any] | str | None) -> dict[str, tuple[str, ...]]:
    if not raw:
        return {}
    if not isinstance(raw, Mapping):
        raise TypeError(f"customization_options must be a mapping, got {type(raw).__name__}")
    kept = {name: contents for name, contents in raw.items() if contents is not None and contents == contents}  # no NaN
    return {name.lower(): _option_values(contents) for name, contents in kept.items()}


def _option_values(contents: Any) -> tuple[str, ...]:
    """The values in `[{"value": "Red", ...}, ...]`, or given alone; what holds nothing is left out."""
    items = contents if isinstance(contents, list | tuple) else [contents]
    values = [item["value"] if isinstance(item, Mapping) else item for item in items]
    texts = [v if isinstance(v, str) else text_of(v) for v in values if isinstance(v, str) or not is_missing(v)]
    return tuple(text.strip().replace("/", " | ").lower() for text in texts)


def parse_prices(pricing: str | float | None) -> tuple[float, ...]:
    """One or two prices from a text such as `$19.99 - $27.99`; the default where there is none.

    Without a dollar sign (`19.99`, `€19,99`) the numbers in the text are the prices; a comma before one or two last
    digits is a decimal one.

    >>> parse_prices("$1,299.00"), parse_prices("$5 - $7.5"), parse_prices(""), parse_prices("€ 1.299,50")
    ((1299.0,), (5.0, 7.5), (100.0,), (1299.5,))
    """
    if is_missing(pricing):
        return (DEFAULT_PRICE,)
    if not isinstance(pricing, str):
        return (float(text_of(pricing)),)
    pieces = pricing.split("$")[1:] if "$" in pricing else _NUMBER.findall(_with_points(pricing))
    prices = [float(digits) for digits in (re.sub(r"[^\d.]", "", piece) for piece in pieces) if digits]
    if not prices:
        raise ValueError(f"a price must contain a number, such as $19.99; got {pricing!r}")
    return tuple(prices[:2])


def _with_points(pricing: str) -> str:
    """`1.299,50` as `1299.50`."""
    return _DECIMAL_COMMA.sub(lambda m: m[1].replace(".", "").replace(" ", "") + "." + m[2], pricing)
