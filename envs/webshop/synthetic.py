"""A synthetic catalogue in the schema of the official files, for use without them.

Products are invented from word lists (`vocabulary`), so nothing in them belongs to a real shop, but they are as many,
as long, as priced and as richly optioned as the 1,000 official ones: each thousand has exactly the official numbers of
categories, options per product, missing descriptions and prices, ranges, attributes and instructions, and about the
official lengths and price distribution. Product i depends on the seed and i alone.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from agentrl.envs.options import check_choice
from agentrl.envs.webshop import vocabulary
from agentrl.envs.webshop.synthetic_records import ProductKind, SyntheticProduct, assemble

BLOCK = 1000  # products whose numbers are balanced exactly
STYLES = ("full", "simple")
_CATEGORIES = {"beauty": 238, "electronics": 229, "garden": 216, "fashion": 200, "grocery": 117}
_NUM_OPTIONS = {0: 577, 1: 245, 2: 165, 3: 13}
_PRICING = {"one": 818, "range": 93, "none": 89}
_DESCRIBED = {True: 699, False: 301}
# (attributes, whether an instruction is written): counts
_NOTES = {
    (0, False): 185, (1, True): 97, (1, False): 94, (2, True): 96, (2, False): 93, (3, True): 68, (3, False): 66,
    (4, True): 61, (4, False): 59, (5, True): 40, (5, False): 38, (6, True): 53, (6, False): 50,
}  # fmt: skip
# share of the priced products below a price; with the unpriced ones, which count as 100, the official deciles
_PRICE_SHARES = (0.0, 0.11, 0.22, 0.33, 0.44, 0.55, 0.66, 0.77, 0.89, 0.97, 1.0)
_PRICES = (2.0, 9.0, 13.0, 16.0, 21.0, 29.0, 44.0, 75.0, 200.0, 300.0, 900.0)
_MOST_VALUES = {1: 40, 2: 24, 3: 8}  # of each option, by number of options: at most 576 combinations
_ASIN_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ASIN_STEP, _ASIN_START = 60_466_177_000_913, 31_415_926_535_897  # the step has no factor 2 or 3: no id comes twice


@dataclass(frozen=True)
class _Words:
    """The word lists, split."""

    kinds: dict[str, list[ProductKind]]
    attributes: dict[str, Sequence[Sequence[str]]]  # before the kind, after "with", after "for"
    nouns: frozenset[str]
    brands: list[str]


def synthesize(num_products: int, *, seed: int = 0, style: str = "full") -> Iterator[SyntheticProduct]:
    """Products 0 to `num_products` - 1 of the catalogue.

    `style` "simple" keeps the schema but has 20 kinds of products, 8 attributes, short titles, no descriptions and
    at most two options of a few values: a shop that a tiny model can learn.
    """
    check_choice("style", style, STYLES)
    make = _full_product if style == "full" else _simple_product
    return (make(number, seed) for number in range(num_products))


@lru_cache(maxsize=256)
def split_words(text: str) -> tuple[str, ...]:
    """The entries of a comma-separated word list."""
    return tuple(entry.strip() for entry in text.split(","))


def _plural(kind: str) -> str:
    if kind.endswith("~"):
        return kind[:-1]
    if re.search("(s|sh|ch|x)$", kind):
        return kind + "es"
    return kind[:-1] + "ies" if re.search("[^aeiou]y$", kind) else kind + "s"


@lru_cache(maxsize=1)
def _words() -> _Words:
    kinds: dict[str, list[ProductKind]] = {}
    nouns: set[str] = set()
    for category, paths in vocabulary.KINDS.items():
        for path, text in paths.items():
            for entry in split_words(text):
                plural, name = _plural(entry), entry.rstrip("~")
                kind = ProductKind(name, plural, category, f"{path} › {plural.title()}")
                kinds.setdefault(category, []).append(kind)
                nouns.update(name.split())
    attributes: dict[str, Sequence[Sequence[str]]] = {}
    for category, text in vocabulary.ATTRIBUTES.items():
        before, after_with, after_for = (split_words(part) for part in text.split("|"))
        attributes[category] = (before, after_with, after_for)
        nouns.update(word for attribute in after_with + after_for for word in attribute.split()[1:])
    nouns.update(split_words(vocabulary.AUDIENCES), ("pack", "set", "count", "inch", "ounce", "pound", "feet", "piece"))
    starts, ends = split_words(vocabulary.BRAND_STARTS), split_words(vocabulary.BRAND_ENDS)
    brands = [start + end for start in starts for end in ends]
    return _Words(kinds, attributes, frozenset(nouns), brands)


@lru_cache(maxsize=8)
def _plan(seed: int, block: int) -> list[tuple[str, int, str, bool, tuple[int, bool], int]]:
    """Category, options, pricing, description, notes and place in its category of each product of a block."""
    columns: list[list[Any]] = []
    generator = random.Random(f"plan {seed} {block}")
    for quota in (_CATEGORIES, _NUM_OPTIONS, _PRICING, _DESCRIBED, _NOTES):
        column = [value for value, count in quota.items() for _ in range(count)]
        generator.shuffle(column)
        columns.append(column)
    categories: list[str] = columns[0]
    places = {category: iter(range(BLOCK)) for category in _CATEGORIES}
    return list(zip(*columns, [next(places[category]) for category in categories], strict=True))


def _asin(number: int, seed: int) -> str:
    rest, digits = (_ASIN_START + 7919 * seed + number * _ASIN_STEP) % 36**9, ""
    for _ in range(9):
        rest, digit = divmod(rest, 36)
        digits += _ASIN_DIGITS[digit]
    return "B" + digits


def _full_product(number: int, seed: int) -> SyntheticProduct:
    words, generator = _words(), random.Random(f"product {seed} {number}")
    plan = _plan(seed, number // BLOCK)[number % BLOCK]
    category, num_options, pricing, is_described, (num_attributes, is_wanted), place = plan
    kind = words.kinds[category][place % len(words.kinds[category])]
    num_attributes += int(generator.expovariate(0.7)) if num_attributes == 6 else 0
    attributes = _pick_attributes(words.attributes[category], num_attributes, generator)
    brand = generator.choice(words.brands)
    label = _label(kind, words, generator)
    title = _title(brand, label, kind.category, attributes, words, generator)
    fill = {
        "kind": label,
        "attribute": attributes[0] if attributes else "practical",
        "material": generator.choice(split_words(vocabulary.MATERIALS[category])),
        "audience": generator.choice(split_words(vocabulary.AUDIENCES)),
    }
    return assemble(
        asin=_asin(number, seed),
        kind=kind,
        title=title,
        description=_paragraph(generator.randint(8, 13), fill, generator) if is_described else "",
        bullets=_bullets(attributes, fill, generator),
        pricing=_pricing(pricing, generator),
        options=_options(category, num_options, generator),
        attributes=attributes,
        wanted=generator.sample(attributes, min(len(attributes), generator.randint(1, 4))) if is_wanted else [],
        forms=words.attributes[category],
        nouns=[word for word in re.findall("[a-z]+", title.lower()) if word in words.nouns or word == brand.lower()],
        page=generator.randint(1, 400),
    )


def _pick_attributes(forms: Sequence[Sequence[str]], count: int, generator: random.Random) -> list[str]:
    everything = [attribute for form in forms for attribute in form]
    return generator.sample(everything, min(count, len(everything)))


def _label(kind: ProductKind, words: _Words, generator: random.Random) -> str:
    """What the maker calls the product: often its kind, sometimes less, sometimes something else, as in real shops."""
    choice = generator.random()
    if choice < 0.5:
        return kind.name
    return kind.name.split()[-1] if choice < 0.75 else generator.choice(words.kinds[kind.category]).name


def _title(
    brand: str, label: str, category: str, attributes: list[str], words: _Words, generator: random.Random
) -> str:
    """Brand, material, label, then comma-separated details: about 116 characters."""
    before, after_with, after_for = words.attributes[category]
    own = [attribute for attribute in attributes[:2] if generator.random() < 0.7]
    parts = [brand, *own[:1], generator.choice(split_words(vocabulary.MATERIALS[category])), label]
    parts += ["for", generator.choice(split_words(vocabulary.AUDIENCES))]
    details = [
        f"{generator.choice(before)} {label}",
        f"with {generator.choice(after_with)}",
        f"ideal for {generator.choice(after_for)}",
        f"{generator.choice(split_words(vocabulary.COLORS))}",
        *own[1:],
    ]
    chosen = generator.sample(details, min(len(details), generator.choice((2, 3, 3, 4, 4))))
    title = ", ".join([" ".join(parts), *chosen, generator.choice(split_words(vocabulary.NUMBERS))])
    return title.title() if generator.random() < 0.8 else title


def _paragraph(num_sentences: int, fill: dict[str, str], generator: random.Random) -> str:
    return " ".join(generator.sample(vocabulary.SENTENCES, num_sentences)).format_map(fill)


def _bullets(attributes: list[str], fill: dict[str, str], generator: random.Random) -> list[str]:
    heads = split_words(vocabulary.BULLET_HEADS)
    num_bullets = generator.choice((1, 3, 4, 5, 5, 5, 5, 5, 6, 7))
    bullets = [f"{generator.choice(heads)}: {_paragraph(1, fill, generator)}" for _ in range(num_bullets)]
    # what a product offers is said somewhere on its page
    for attribute in attributes[1:]:
        bullets[generator.randrange(num_bullets)] += f" {attribute.capitalize()}."
    return bullets


def _pricing(pricing: str, generator: random.Random) -> str:
    if pricing == "none":
        return ""

    share = generator.random()
    place = bisect_right(_PRICE_SHARES, share) - 1
    within = (share - _PRICE_SHARES[place]) / (_PRICE_SHARES[place + 1] - _PRICE_SHARES[place])
    price = float(round(_PRICES[place] + within * (_PRICES[place + 1] - _PRICES[place])))
    price -= generator.choice((0.01, 0.01, 0.05, 0.5))
    return f"${price:.2f}" if pricing == "one" else f"${price:.2f} - ${price * generator.uniform(1.1, 2.5):.2f}"


def _options(category: str, count: int, generator: random.Random) -> dict[str, Sequence[str]]:
    """Names and values of a product's options; a few products have very many values, as in real shops."""
    if count == 1:
        names = generator.choices(("color", "size", "style"), (52, 45, 3))
        if category == "grocery" and names == ["color"]:
            names = ["flavor name"] if generator.random() < 0.8 else ["size"]
    else:
        names = {0: [], 2: ["color", "size"], 3: ["fit type", "color", "size"]}[count]
        if count == 2 and generator.random() < 0.05:
            names = ["style", "color"]
    lists = {
        "color": vocabulary.COLORS,
        "size": vocabulary.SIZES[category],
        "style": vocabulary.STYLES,
        "flavor name": vocabulary.FLAVORS,
        "fit type": vocabulary.FITS,
    }
    options: dict[str, Sequence[str]] = {}
    for name in names:
        values = split_words(lists[name])
        most = min(len(values), _MOST_VALUES[len(names)])
        count = min(1 + int(generator.lognormvariate(0.6 if len(names) == 1 else 1.85, 0.9)), most)
        first = generator.randrange(len(values) - count + 1)
        # sizes come as a run of neighbours, the rest mixed
        options[name] = values[first : first + count] if name == "size" else generator.sample(values, count)
    return options


def _simple_product(number: int, seed: int) -> SyntheticProduct:
    """A product of the small vocabulary: every attribute is in the title, and every product is wanted."""
    generator = random.Random(f"simple product {seed} {number}")
    kinds = [(category, kind) for category, text in vocabulary.SIMPLE_KINDS.items() for kind in split_words(text)]
    category, name = kinds[number % len(kinds)]
    kind = ProductKind(name, name, category, f"{category.title()} › {name.title()}")
    everything = split_words(vocabulary.SIMPLE_ATTRIBUTES)
    attributes = generator.sample(everything, 2)
    names = generator.choice((["color"], ["size"], ["color", "size"], ["color", "size"]))
    colors, sizes = split_words(vocabulary.SIMPLE_COLORS), split_words(vocabulary.SIMPLE_SIZES)
    values: dict[str, Sequence[str]] = {"color": generator.sample(colors, 3), "size": sizes}
    return assemble(
        asin=_asin(number, seed),
        kind=kind,
        title=f"{' '.join(attributes)} {name}",
        description="",
        bullets=[name],
        pricing=f"${generator.randint(1, 9) * 10 - 5}",
        options={option: values[option] for option in names},
        attributes=attributes,
        wanted=attributes,
        forms=(everything, [], []),
        nouns=[name],
        page=1,
    )
