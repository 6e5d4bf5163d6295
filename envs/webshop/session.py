"""One visit to the shop: the state of the original's server for one customer, and its transitions.

The rules are those of princeton-nlp/WebShop (web_agent_site/envs/web_agent_text_env.py) with every corner: a search is
accepted on any page, the last `[` of an action splits it, going back to the results forgets the chosen options, and
which page `< Prev` leads to is decided by words in the page's address, so that a query such as `item_page` confuses it.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrl.envs.webshop import pages
from agentrl.envs.webshop.goals import Goal
from agentrl.envs.webshop.products import Product
from agentrl.envs.webshop.purchase_reward import purchase_reward
from agentrl.envs.webshop.shop import Shop

BASE_URL = "http://127.0.0.1:3000"  # the original's own; part of the rich text's meaning, never contacted
OPERATORS = ("<r>", "<c>", "<q>")  # first word of the original's back-door queries; `<a>` always failed
_URL_WORDS = ("search_results", "item_page", "item_sub_page", "done")


@dataclass(frozen=True)
class Rules:
    """Variants of the shop."""

    reward: str = "compat"  # or "fixed", see `purchase_reward`
    show_attributes: bool = False  # item pages have a fourth sub-page
    operators: bool = False  # the original's back-door queries work
    show_score: bool = False  # the page after the purchase tells the score
    page_size: int = 10  # results on a page


@dataclass
class ActionOutcome:
    """What one action did."""

    reward: float = 0.0
    done: bool = False
    is_valid: bool = True  # the action was understood and available


def parse_action(text: str) -> tuple[str, str] | None:
    """Name and argument of an action, or None: the original's greedy match of `(.+)\\[(.+)\\]` in linear time.

    >>> parse_action("search[red shoes] please"), parse_action("click[a[b]"), parse_action("search[]")
    (('search', 'red shoes'), ('click[a', 'b'), None)
    """
    line = text.split("\n", 1)[0]
    end = line.rfind("]")
    start = line.rfind("[", 1, max(end - 1, 0))
    return (line[:start], line[start + 1 : end]) if start > 0 else None


@dataclass
class Session:
    """A customer with a goal, moving through the shop."""

    shop: Shop
    goal: Goal
    rules: Rules = Rules()
    session_id: str = "0"  # part of addresses
    generator: random.Random = field(default_factory=lambda: random.Random(0))  # of the query `<r>`
    prices: Mapping[int, float] = field(default_factory=dict)  # override the shop's, by product number

    done: bool = field(default=False, init=False)
    score: float = field(default=0.0, init=False)
    reward_parts: dict[str, Any] = field(default_factory=dict, init=False)
    name: str = field(default="index", init=False)  # the kind of page shown
    keywords: list[str] | None = field(default=None, init=False)  # of the last search
    page: int = field(default=0, init=False)  # of its results, from 1
    product: int | None = field(default=None, init=False)  # number of the one that is looked at
    visited: set[str] = field(default_factory=set, init=False)  # products opened, by `asin`
    options: dict[str, str] = field(default_factory=dict, init=False)  # chosen values by name
    hits: list[int] = field(default_factory=list, init=False)  # numbers of the products found
    pieces: list[pages.Piece] = field(default_factory=list, init=False)  # of the page
    clickables: list[str] = field(default_factory=list, init=False)
    _hits_of: list[str] | None = field(default=None, init=False)  # the keywords that `hits` belong to

    def __post_init__(self) -> None:
        self._show_index()

    # The pages. Each sets the state and draws the page; `name` is the kind of page shown.

    def _show_index(self) -> None:
        self.name, self.keywords, self.page, self.product = "index", None, 0, None
        self.visited, self.options, self.hits, self._hits_of = set(), {}, [], None
        self.pieces = pages.index_page(self.goal.text)
        self.clickables = ["search"]

    def _show_results(self, keywords: list[str], page: int) -> None:
        if keywords != self._hits_of or keywords[0] == "<r>":
            self.hits = self._search(keywords)
            self._hits_of = keywords
        self.name, self.keywords, self.page, self.product, self.options = "results", keywords, page, None, {}
        shown = [self.shop.products[number] for number in self.hits_on_page()]
        self.pieces = pages.results_page(self.goal.text, shown, page=page, total=len(self.hits))
        self.clickables = pages.clickables(self.pieces, {})

    def hits_on_page(self) -> list[int]:
        """Numbers of the products on the present page of results."""
        size = self.rules.page_size
        return self.hits[(self.page - 1) * size : self.page * size]

    def _show_item(self) -> None:
        self.name = "item"
        product = self.shown_product()
        self.pieces = pages.item_page(self.goal.text, product, show_attributes=self.rules.show_attributes)
        self.clickables = pages.clickables(self.pieces, product.options)

    def _show_sub_page(self, name: str) -> None:
        self.name = name
        self.pieces = pages.sub_page(self.goal.text, self.shown_product(), name=name)
        self.clickables = pages.clickables(self.pieces, {})

    def shown_product(self) -> Product:
        """The product whose page, sub-page or purchase is shown."""
        assert self.product is not None
        return self.shop.products[self.product]

    # The actions.

    def act(self, text: str) -> ActionOutcome:
        """Do what an action says; anything not understood or not available changes nothing."""
        match parse_action(text):
            case "search", query:
                return self._do_search(query.lower().split(" "))
            case "click", target if (label := target.lower()) in self.clickables and label != "search":
                return self._click(label)
        return ActionOutcome(is_valid=False)

    def _do_search(self, keywords: list[str]) -> ActionOutcome:
        if self.rules.operators and (keywords[0] == "<a>" or keywords == ["<c>"]):
            return ActionOutcome(is_valid=False)  # these two crash the original
        self._show_results(keywords, 1)
        return ActionOutcome()

    def _search(self, keywords: list[str]) -> list[int]:
        if not self.rules.operators or keywords[0] not in OPERATORS:
            return self.shop.search(" ".join(keywords))
        products = self.shop.products
        if keywords[0] == "<r>":
            return self.generator.sample(range(len(products)), k=min(50, len(products)))
        if keywords[0] == "<c>":
            return [number for number, product in enumerate(products) if product.category == keywords[1].strip()]
        query = " ".join(keywords[1:]).strip()
        return [number for number, product in enumerate(products) if product.query == query]

    def _click(self, label: str) -> ActionOutcome:
        came_from = next((word for word in _URL_WORDS if word in self.url), "") if label in ("< prev", "next >") else ""
        match label, came_from:
            case "buy now", _:
                return self._buy()
            case "back to search", _:
                self._show_index()
            case "next >", "search_results":
                self._show_results(self.keywords or [], self.page + 1)
            case "< prev", "search_results":
                self._show_results(self.keywords or [], self.page - 1)
            case "< prev", "item_page":
                self._show_results(self.keywords or [], self.page)
            case "< prev", "item_sub_page":
                self._show_item()
            case (("description" | "features" | "reviews" | "attributes"), _):
                self._show_sub_page(label.capitalize())
            case _:
                self._choose(label)
        return ActionOutcome()

    def _choose(self, label: str) -> None:
        """Open a product of the results, or choose an option value; the product's page is shown."""
        if self.name == "results":
            self.product = next(
                number for number in self.hits_on_page() if self.shop.products[number].asin.lower() == label
            )
            self.visited.add(self.shown_product().asin)
        else:
            self.options[self.shown_product().option_of[label]] = label
        self._show_item()

    def _buy(self) -> ActionOutcome:
        assert self.product is not None
        product = self.shown_product()
        price = self.prices.get(self.product, self.shop.prices[self.product])
        self.score, self.reward_parts = purchase_reward(
            product, self.goal, price=float(price), chosen=self.options, mode=self.rules.reward
        )
        self.done = True
        self.name = "done"
        score = str(self.score) if self.rules.show_score else "None"
        self.pieces = pages.done_page(product, _html_safe_json(self.options), score)
        self.clickables = []
        return ActionOutcome(reward=self.score, done=True)

    # What can be seen.

    @property
    def has_search_bar(self) -> bool:
        """Whether the page has the field for a query (queries are accepted without it, too)."""
        return self.name == "index"

    def admissible_actions(self) -> list[str]:
        """Actions that do something here; the search stands with a placeholder for its words."""
        search = ["search[<your query>]"] if self.has_search_bar else []
        return search + [f"click[{label}]" for label in self.clickables if can_be_typed(label)]

    def anchor(self) -> str:
        """A key that is equal for equal states: what is shown, and where the way back leads."""
        if self.name == "index":
            return "index"
        options = json.dumps(self.options, sort_keys=True)
        asin = "" if self.product is None else self.shown_product().asin
        return " | ".join([self.name, " ".join(self.keywords or ()), str(self.page), asin, options])

    @property
    def url(self) -> str:
        """The page's address in the original."""
        query, options = "+".join(self.keywords or ()), self.options
        if self.name == "index":
            return f"{BASE_URL}/{self.session_id}"
        if self.name == "results":
            return f"{BASE_URL}/search_results/{self.session_id}/{query}/{self.page}"
        asin = self.shown_product().asin
        if self.name == "done":
            return f"{BASE_URL}/done/{self.session_id}/{asin}/{options}"
        if self.name == "item":
            return f"{BASE_URL}/item_page/{self.session_id}/{asin}/{query}/{self.page}/{json.dumps(options)}"
        return f"{BASE_URL}/item_sub_page/{self.session_id}/{asin}/{query}/{self.page}/{self.name}/{options}"

    def text(self) -> str:
        """The `text` observation of the page."""
        return pages.as_text(self.pieces)

    def rich_text(self) -> str:
        """The `text_rich` observation of the page."""
        return pages.as_rich_text(self.pieces, url=self.url, visited=self.visited)


def can_be_typed(label: str) -> bool:
    """Whether `click[label]` clicks it; the index page's own button does nothing."""
    return bool(label) and label != "search" and "[" not in label and "\n" not in label


def _html_safe_json(options: Mapping[str, str]) -> str:
    """JSON as Flask writes it into a page: sorted keys, ASCII, and no character that HTML knows."""
    text = json.dumps(options, sort_keys=True)
    for character in "<>&'":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
