"""A whole shop: products, prices, search index and goals; read-only, and shared by all its customers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agentrl.common.data_source import DataSource
from agentrl.envs.webshop.goals import Goal, GoalTable, GoalTableBuilder, draw_prices, make_goal
from agentrl.envs.webshop.products import Product
from agentrl.retriever.lexical.bm25 import LexicalIndex
from agentrl.retriever.lexical.index_builder import IndexBuilder

NUM_RESULTS = 50  # of a search


@dataclass(frozen=True)
class Shop:
    """Everything that stays the same while customers come and go."""

    name: str  # of the catalogue, for people
    products: Sequence[Product]
    prices: NDArray[np.float64]
    index: LexicalIndex
    goals: GoalTable
    kind: str  # of the goals: "synthetic" or "human"
    source: DataSource  # of the products, which it counts

    def search(self, query: str) -> list[int]:
        """Numbers of the products found, best first."""
        return self.index.search(query, k=NUM_RESULTS)

    def goal(self, index: int) -> Goal:
        """Goal by its place in the canonical order."""
        return make_goal(self.goals, index, self.products, kind=self.kind)

    def number_of(self, asin: str) -> int:
        """Number of the product with an id; KeyError where there is none."""
        by_id = np.argsort(self.index.tie_ranks)  # the index ranks the products by id
        low, high = 0, len(by_id)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.products[int(by_id[middle])].asin < asin else (low, middle)
        if low == len(by_id) or self.products[int(by_id[low])].asin != asin:
            raise KeyError(asin)
        return int(by_id[low])


class ShopBuilder:
    """Takes products one by one and turns them into a shop."""

    def __init__(self, *, kinds: Sequence[str], folder: Path | None = None) -> None:
        self._index = IndexBuilder(folder)
        self._goals = {kind: GoalTableBuilder(kind) for kind in kinds}
        self._asins: list[str] = []
        self._listed: list[tuple[float, ...]] = []

    def add(self, product: Product) -> None:
        """Add the next product."""
        self._index.add(product.searchable_text)
        for builder in self._goals.values():
            builder.add(len(self._asins), product)
        self._asins.append(product.asin)
        self._listed.append(product.prices)

    def finish(self, *, price_seed: int) -> tuple[NDArray[np.float64], LexicalIndex, dict[str, GoalTable]]:
        """Prices, index, and the goals of each kind that has any.

        Prices come first from the generator, then the bounds of the goals: the order of the original, whose global
        generator, seeded alike before loading, gives the same numbers.
        """
        generator = random.Random(price_seed)
        prices = draw_prices(self._listed, generator)
        after_prices = generator.getstate()
        tables = {}
        for kind, builder in self._goals.items():
            generator.setstate(after_prices)
            if len(builder):
                tables[kind] = builder.finish(prices, generator)
        return prices, self._index.finish(self._asins), tables
