"""The reward of a purchase, with all its parts.

`compat` is the original's arithmetic to the last bit, its two oddities included: template goals compare the wanted
option as the pair of its name and value, while the bought value alone is reduced to a color name, so that buying
exactly what was asked can fail; and sizes are compared fuzzily, so that `large` passes for `x-large`. `fixed` reduces
both sides alike and wants sizes exactly.

Source: princeton-nlp/WebShop, web_agent_site/engine/goal.py and normalize.py.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from agentrl.envs.webshop.fuzzy import token_set_ratio
from agentrl.envs.webshop.goals import Goal
from agentrl.envs.webshop.products import Product

_FUZZY_MATCH = 85
# tried in this order; the first that occurs in a value stands for the whole value
_COLORS = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel "
    "camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry "
    "cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey "
    "heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight "
    "mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow "
    "red rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal "
    "tiger turquoise violet walnut wheat white wine yellow"
)
COLORS = _COLORS.split()


def normalize_color(value: str | tuple[str, str]) -> str | tuple[str, str]:
    """The first color name found in a text, or the text itself. In a tuple, a name must be a whole item."""
    return next((color for color in COLORS if color in value), value)


def type_reward(purchased: Product, target: Product) -> dict[str, Any]:
    """How far the bought product is of the wanted kind: `r_type` and what it follows from."""
    query_match = purchased.query == target.query
    category_match = len(_category_parts(purchased.product_category) & _category_parts(target.product_category)) >= 2
    # a noun repeated in the title counts again below the line, not above it
    common = len(set(purchased.nouns) & set(target.nouns))
    title_score = common / len(target.nouns) if target.nouns else 0.2
    r_type = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
    if title_score == 0.0:
        r_type = 0.0
    elif title_score < 0.1:
        r_type = 0.1
    return {
        "r_type": r_type,
        "query_match": query_match,
        "category_match": category_match,
        "title_score": title_score,
    }


@lru_cache(maxsize=1 << 12)
def _category_parts(product_category: str) -> frozenset[str]:
    return frozenset(part.strip() for part in product_category.split("›"))


def count_attributes(purchased: Product, goal: Goal) -> int:
    """How many wanted attributes the product has, in its attribute list or anywhere in its texts."""

    def has(wanted: str) -> bool:
        if any(token_set_ratio(attribute, wanted) > _FUZZY_MATCH for attribute in purchased.attributes):
            return True
        return any(wanted in text for text in purchased.searched_texts)

    return sum(map(has, goal.attributes))


def count_options_compat(chosen: Mapping[str, str], goal: Goal) -> int:
    """How many wanted options some chosen value matches, as the original counts."""
    values = [normalize_color(value) for value in chosen.values()]
    wanted = goal.options.items() if isinstance(goal.options, Mapping) else goal.options
    return sum(
        any(token_set_ratio(value, str(option)) > _FUZZY_MATCH for value in values)
        for option in map(normalize_color, wanted)
    )


def count_options_fixed(chosen: Mapping[str, str], goal: Goal) -> int:
    """How many wanted options were chosen: sizes exactly, other values by color name or closely.

    A template names the option, and only the value chosen for that name counts; people's requests name values alone,
    and any chosen value counts.
    """
    if isinstance(goal.options, Mapping):
        return sum(name in chosen and _same(name, chosen[name], value) for name, value in goal.options.items())
    return sum(any(_same(name, value, wanted.lower()) for name, value in chosen.items()) for wanted in goal.options)


def _same(name: str, chosen: str, wanted: str) -> bool:
    if chosen == wanted:
        return True
    if "size" in name:
        return False
    return token_set_ratio(normalize_color(chosen), normalize_color(wanted)) > _FUZZY_MATCH


OPTION_COUNTERS: dict[str, Callable[[Mapping[str, str], Goal], int]] = {
    "compat": count_options_compat,
    "fixed": count_options_fixed,
}


def purchase_reward(
    purchased: Product, goal: Goal, *, price: float, chosen: Mapping[str, str], mode: str = "compat"
) -> tuple[float, dict[str, Any]]:
    """Reward in [0, 1] of buying a product at a price with the chosen options (name to value), and its parts.

    R = (attributes met + options met + price met) / (attributes + options + 1) * r_type. The parts are those of the
    original: `r_type`, `r_att`, `r_option`, `r_price`, the weights `w_*`, and what `r_type` follows from.
    """
    kind = type_reward(purchased, goal.target)
    num_attributes, num_options = len(goal.attributes), len(goal.options)
    total = num_attributes + num_options + 1
    met_attributes = count_attributes(purchased, goal)
    met_options = OPTION_COUNTERS[mode](chosen, goal)
    r_price = bool(price <= goal.price_upper)
    parts = {
        "r_type": kind["r_type"],
        "r_att": met_attributes / num_attributes,
        "w_att": num_attributes / total,
        "query_match": kind["query_match"],
        "category_match": kind["category_match"],
        "title_score": kind["title_score"],
    }
    if num_options:
        parts |= {"r_option": met_options / num_options, "w_option": num_options / total}
    parts |= {"r_price": r_price, "w_price": 1 / total}
    return (met_attributes + met_options + r_price) / total * kind["r_type"], parts
