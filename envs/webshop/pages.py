"""What the pages of the shop contain, and how they read as text.

A page is a list of pieces of visible text in document order. The `text` observation joins them, `text_rich` marks
which of them can be clicked; the list of clickables follows from the page too. Spellings are the original's
("instuction" included).
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from agentrl.envs.webshop.products import Product

SEPARATOR = " [SEP] "
BACK_TO_SEARCH, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews", "Attributes")
_BLANKS = " \n\t\f\r"


class Kind(Enum):
    """What a piece of visible text is."""

    TEXT = "text"
    BUTTON = "button"
    PRODUCT = "product"  # a product id that links to its page
    OPTION = "option"  # the value of an option


class Piece(NamedTuple):
    """One piece of visible text."""

    text: str
    kind: Kind = Kind.TEXT


def visible(text: str, kind: Kind = Kind.TEXT) -> list[Piece]:
    """The piece a text makes: none if empty or blank lines only, a blank if blanks only (as an HTML parser has it)."""
    if text.strip(_BLANKS):
        return [Piece(text, kind)]
    return [Piece(" ", kind)] if text and "\n" not in text else []


def _buttons(*labels: str) -> list[Piece]:
    return [Piece(label, Kind.BUTTON) for label in labels]


def _instruction(instruction: str) -> list[Piece]:
    return [Piece("Instruction:"), *visible(instruction)]


def index_page(instruction: str) -> list[Piece]:
    """The page with the search bar."""
    # this page alone has a blank between the colon and the line break
    return [Piece("WebShop"), Piece("Instruction: "), *visible(instruction), *_buttons("Search")]


def results_page(instruction: str, products: Sequence[Product], *, page: int, total: int) -> list[Piece]:
    """One page of results; `products` are those of this page, `total` counts all pages."""
    pieces = [*_instruction(instruction), *_buttons(BACK_TO_SEARCH), Piece(f"Page {page} (Total results: {total})")]
    pieces += _buttons(PREVIOUS, NEXT) if page > 1 else _buttons(NEXT)
    for product in products:
        pieces += [Piece(product.asin, Kind.PRODUCT), *visible(product.title), Piece(product.price_tag)]
    return pieces


def item_page(instruction: str, product: Product, *, show_attributes: bool) -> list[Piece]:
    """The page of a product with its options."""
    pieces = [*_instruction(instruction), *_buttons(BACK_TO_SEARCH, PREVIOUS)]
    for name, values in product.options.items():
        pieces += visible(name)
        for value in values:
            pieces += visible(value, Kind.OPTION)
    pieces += [*visible(product.title), Piece(f"Price: {product.price_tag}"), Piece("Rating: N.A.")]
    return [*pieces, *_buttons(*(SUB_PAGES if show_attributes else SUB_PAGES[:3]), BUY)]


def sub_page(instruction: str, product: Product, *, name: str) -> list[Piece]:
    """The description, features, reviews (always empty) or attributes of a product."""
    pieces = [*_instruction(instruction), *_buttons(BACK_TO_SEARCH, PREVIOUS)]
    if name == "Description":
        return pieces + visible(product.description)
    for line in {"Features": product.bullets, "Attributes": product.attributes}.get(name, ()):
        pieces += visible(f" {line}")
    if name == "Attributes":
        for line in (product.category, product.query, product.product_category):
            pieces += visible(line)
    return pieces


def done_page(product: Product, options_json: str, score: str) -> list[Piece]:
    """The page after the purchase; what the original leaves out reads `None`."""
    heads = ["Thank you for shopping with us!", "Your code: ", "None", " (Paste it in your MTurk interface.)"]
    purchased = ["Purchased", "asin", product.asin, "options", options_json]
    purchased += ["attrs", "None", "category", "None", "query", "None", "product category", "None"]
    target = ["Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category"]
    tail = ["query", "Goal ", "None", "Reward", "Your score (min 0.0, max 1.0)", score, "Reward Details ", "None"]
    return [Piece(text) for text in heads + purchased + target + tail]


def as_text(pieces: Sequence[Piece]) -> str:
    """The `text` observation."""
    return SEPARATOR.join([text.strip() for text, _ in pieces])


def as_rich_text(pieces: Sequence[Piece], *, url: str, visited: set[str]) -> str:
    """The `text_rich` observation: what can be clicked, and what of it was.

    An option counts as clicked when it stands in double quotes in the page's address, which is how the original finds
    out; so values with quotes or beyond ASCII never do, and words of the query may.
    """
    clicked, lines = [], []
    for text, kind in pieces:
        if kind is Kind.BUTTON:
            text = f"[button] {text} [button_]"
        elif kind is Kind.OPTION and f'"{text}"' in url:
            clicked.append(f"You have clicked {text}.\n")
            text = f"  [clicked button] {text} [clicked button_]"
        elif kind is Kind.OPTION:
            text = f"  [button] {text} [button_]"
        elif kind is Kind.PRODUCT:
            mark = "clicked button" if text in visited else "button"
            text = f"\n[{mark}] {text} [{mark}_]"
        lines.append(text + "\n")
    return "".join(clicked[::-1] + lines)


def clickables(pieces: Sequence[Piece], options: Mapping[str, Sequence[str]]) -> list[str]:
    """What can be clicked, in the original's order: buttons, products, option values, each once."""
    names = [text.lower() for text, kind in pieces if kind is Kind.BUTTON]
    names += [text.lower() for text, kind in pieces if kind is Kind.PRODUCT]
    for values in options.values():
        names += values
    return list(dict.fromkeys(names))
