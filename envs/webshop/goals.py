"""Goals: what a customer asks for, drawn once for a catalogue and then looked up by index.

A goal is a request (a product's instruction, with its price bound) and one combination of option values. The table
below holds all goals of a catalogue as flat arrays in the canonical order, so that millions of goals can be mapped
from disk and drawn one at a time.

Letters: P products, R requests, G goals.
"""

import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agentrl.envs.options import check_choice
from agentrl.envs.webshop.products import Instruction, Product

SHUFFLE_SEED = 233  # the original's; the splits are positions in this order
NO_BOUND = 1_000_000.0
_BOUNDS = [10.0 * step for step in range(1, 100)]
SPLITS = ("test", "eval", "train")
KINDS = ("synthetic", "human")
_SPLIT_ENDS = (500, 1500)  # test 0-499, eval 500-1499, train the rest (WebShop's author, issue 1 of the repository)
_PRODUCT_SHARES = (0.1, 0.2)  # of products in test, and in test and eval together, when split by product
ARRAYS = ("product", "slot", "price_upper", "weight", "request", "combination", "order", "cumulative_weight", "ends")


@dataclass(frozen=True)
class Goal:
    """One request with its price bound and wanted options."""

    index: int  # position in the canonical order
    target: Product  # the product it was written for
    text: str  # as the customer reads it
    attributes: tuple[str, ...]
    options: Mapping[str, str] | tuple[str, ...]  # by name in templates; values alone in people's requests
    price_upper: float


def requests_of(product: Product, kind: str) -> Sequence[Instruction]:
    """The usable instructions of one product."""
    written = product.human_instructions if kind == "human" else (product.instruction,)
    return [instruction for instruction in written if instruction and instruction.attributes]


def draw_prices(listed: Iterable[tuple[float, ...]], generator: random.Random) -> NDArray[np.float64]:
    """A price for each product [P]: the listed one, or a uniform draw from the listed range, in catalogue order."""
    prices = ((generator.uniform(*prices) if len(prices) == 2 else prices[0]) for prices in listed)
    return np.fromiter(prices, np.float64)


def draw_bound(price: float, generator: random.Random) -> float:
    """A price bound above a price: the larger of two of the next four multiples of ten; `NO_BOUND` near 1,000."""
    first = bisect_right(_BOUNDS, price)
    candidates = _BOUNDS[first : first + 4]
    return max(generator.sample(candidates, 2)) if len(candidates) >= 2 else NO_BOUND


@dataclass
class GoalTable:
    """All goals of one catalogue and kind, in canonical order.

    By request: `product` [R], `slot` [R] which of the product's instructions, `price_upper` [R], `weight` [R].
    By goal: `request` [G], `combination` [G] number of the option combination. For splits by product: `order` [G]
    goal indices arranged by split. `cumulative_weight` [2, G + 1] running sums of the weights in canonical order and in
    `order`. `ends` [2, 3] where test, eval and train end in either arrangement.
    """

    product: NDArray[np.int32]
    slot: NDArray[np.int32]
    price_upper: NDArray[np.float64]
    weight: NDArray[np.float64]
    request: NDArray[np.int32]
    combination: NDArray[np.int64]
    order: NDArray[np.int32]
    cumulative_weight: NDArray[np.float64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.request)

    def save(self, folder: Path) -> None:
        """Write each array to its own file in the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def open(cls, folder: Path) -> "GoalTable":
        """Map a saved table into memory."""
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in ARRAYS})

    def split(self, name: str, *, by: str = "goal") -> "Split":
        """The goals of one split: by position in the canonical order, or such that splits share no product."""
        check_choice("split", name, SPLITS)
        check_choice("split_by", by, ("goal", "product"))
        arrangement = ("goal", "product").index(by)
        ends = [0, *self.ends[arrangement].tolist()]
        position = SPLITS.index(name)
        return Split(self, arrangement, ends[position], ends[position + 1])


@dataclass(frozen=True)
class Split:
    """A contiguous piece of one arrangement of the goals."""

    table: GoalTable
    arrangement: int  # 0 canonical, 1 by product
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    def goal_index(self, position: int) -> int:
        """Canonical index of the goal at a position of the split."""
        place = self.begin + position
        return int(self.table.order[place]) if self.arrangement else place

    def draw(self, uniform: float) -> int:
        """Position of a goal drawn by weight, for a uniform number in [0, 1)."""
        sums = self.table.cumulative_weight[self.arrangement]
        low, high = float(sums[self.begin]), float(sums[self.end])
        place = int(np.searchsorted(sums, low + uniform * (high - low), side="right")) - 1
        return min(max(place, self.begin), self.end - 1) - self.begin


@dataclass
class GoalTableBuilder:
    """Collects requests while a catalogue streams by; `finish` draws bounds and the canonical order."""

    kind: str
    _product: list[int] = field(default_factory=list)
    _slot: list[int] = field(default_factory=list)
    _combinations: list[int] = field(default_factory=list)
    _attributes: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, number: int, product: Product) -> None:
        """Note the requests of product `number`."""
        combinations = math.prod(len(values) for values in product.options.values()) if self.kind == "synthetic" else 1
        for slot, instruction in enumerate(requests_of(product, self.kind)):
            self._product.append(number)
            self._slot.append(slot)
            self._combinations.append(combinations)
            self._attributes.append(instruction.attributes)

    def __len__(self) -> int:
        """Number of goals so far."""
        return sum(self._combinations)

    def finish(self, prices: NDArray[np.float64], generator: random.Random) -> GoalTable:
        """Draw the bounds in catalogue order, shuffle, and lay out the splits."""
        bounds = [draw_bound(prices[product], generator) for product in self._product]
        combinations = np.array(self._combinations, np.int64)
        total = int(combinations.sum())
        permutation = list(range(total))
        random.Random(SHUFFLE_SEED).shuffle(permutation)
        canonical = np.array(permutation, np.int64)
        request = np.repeat(np.arange(len(combinations), dtype=np.int32), combinations)
        first = np.cumsum(combinations) - combinations
        combination = np.arange(total) - first[request]
        weight = self._weights()
        request, combination = request[canonical], combination[canonical]
        products = np.array(self._product, np.int32)
        order, product_ends = _arrange_by_product(products[request])
        goal_ends = [min(end, total) for end in (*_SPLIT_ENDS, total)]
        in_order = weight[request]
        return GoalTable(
            product=products,
            slot=np.array(self._slot, np.int32),
            price_upper=np.array(bounds),
            weight=weight,
            request=request,
            combination=combination,
            order=order,
            cumulative_weight=np.stack([_running_sums(in_order), _running_sums(in_order[order])]),
            ends=np.array([goal_ends, product_ends], np.int64),
        )

    def _weights(self) -> NDArray[np.float64]:
        """Weights [R]: people's requests count alike, templates by how rare their attributes are among all goals."""
        if self.kind == "human":
            return np.ones(len(self._product))
        occurrences: Counter[str] = Counter()
        for attributes, combinations in zip(self._attributes, self._combinations, strict=True):
            for attribute in attributes:
                occurrences[attribute] += combinations
        return np.array(
            [
                # a product with an empty list of option values has no goals, and perhaps attributes nobody wants
                sum(1.0 / max(occurrences[attribute], 1) for attribute in attributes) / len(attributes)
                for attributes in self._attributes
            ]
        )


def _running_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values)])


def _arrange_by_product(products: NDArray[np.int32]) -> tuple[NDArray[np.int32], list[int]]:
    """Goal indices arranged by split of their product, canonical order within; and where each split ends.

    Products go to the splits in the order of a fixed shuffle, so the division depends on the catalogue alone.
    """
    distinct = np.unique(products)
    shuffled = distinct.tolist()
    random.Random(SHUFFLE_SEED).shuffle(shuffled)
    split_of = np.zeros(int(distinct[-1]) + 1, np.int8)
    for place, product in enumerate(shuffled):
        split_of[product] = bisect_right(_PRODUCT_SHARES, place / len(shuffled))
    splits = split_of[products]
    order = np.argsort(splits, kind="stable").astype(np.int32)
    return order, np.cumsum(np.bincount(splits, minlength=3)).tolist()


def make_goal(table: GoalTable, index: int, products: Sequence[Product], *, kind: str) -> Goal:
    """Look up goal `index` of the canonical order and write out its text."""
    request = int(table.request[index])
    target = products[int(table.product[request])]
    instruction = requests_of(target, kind)[int(table.slot[request])]
    bound = float(table.price_upper[request])
    options: Mapping[str, str] | tuple[str, ...]
    if kind == "human":
        text, options = instruction.text.strip("."), instruction.options
    else:
        options = combine(target.options, int(table.combination[index]))
        wanted = ", and ".join(f"{name}: {value}" for name, value in options.items())
        text = instruction.text + (f" with {wanted}" if wanted else "")
    if bound != NO_BOUND:
        text += f", and price lower than {bound:.2f} dollars"
    return Goal(index, target, text, instruction.attributes, options, bound)


def combine(options: Mapping[str, Sequence[str]], number: int) -> dict[str, str]:
    """The option combination `number` in the order of `itertools.product` over the sorted names.

    >>> combine({"size": ["s", "m"], "color": ["red", "blue"]}, 1)
    {'color': 'red', 'size': 'm'}
    """
    chosen = {}
    for name in sorted(options, reverse=True):  # the last name varies fastest
        number, place = divmod(number, len(options[name]))
        chosen[name] = options[name][place]
    return dict(sorted(chosen.items()))
