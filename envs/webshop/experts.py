"""A scripted shopper, and a random one: what a policy should beat, and what it should approach.

The shopper knows what a customer's agent can know: the request, the page before it, and what it did before. It never
looks at the product the request was written for. Its rules are few and regular, so that a small model can imitate
them: search for the request's words; of the first page of results open the first product within the price bound;
choose the options that the request names; buy.
"""

import random
import re

from agentrl.envs.webshop.products import Product
from agentrl.envs.webshop.session import Session

EXPERTS = ("default",)
_BOUND = re.compile(r",? and price lower than ([\d.]+) dollars$")
_OPENING = re.compile(r"^(find me|i am looking for|i need|i want|i would like)( an?| some)? ", re.IGNORECASE)


def expert_action(session: Session) -> str | None:
    """What the scripted shopper does next; None after the purchase."""
    request = session.goal.text
    if session.name == "done":
        return None
    if session.name == "index":
        return f"search[{_query(request)}]"
    if session.name == "results":
        return _from_results(session)
    if session.name == "item":
        return _from_item(session)
    return "click[< prev]"


def _query(request: str) -> str:
    """The request without its opening and its price bound, without brackets, which an action could not carry."""
    return re.sub(r"[\[\]\n]", " ", _OPENING.sub("", _BOUND.sub("", request)))


def _from_results(session: Session) -> str:
    if " ".join(session.keywords or ()) != _query(session.goal.text).lower():
        return "click[back to search]"
    if session.page != 1:
        return "click[< prev]" if session.page > 1 else "click[next >]"
    best = _best_result(session)
    return "click[back to search]" if best is None else f"click[{best.asin.lower()}]"


def _best_result(session: Session) -> Product | None:
    """The first product of the first page of results that is within the bound, or the first of all."""
    shown = [session.shop.products[number] for number in session.hits[: session.rules.page_size]]
    bound = _BOUND.search(session.goal.text)
    affordable = [product for product in shown if bound is None or product.prices[0] <= float(bound[1])]
    return next(iter(affordable or shown), None)


def _from_item(session: Session) -> str:
    shown = session.shown_product()
    if " ".join(session.keywords or ()) != _query(session.goal.text).lower() or shown != _best_result(session):
        return "click[< prev]"
    for name, values in shown.options.items():
        wanted = _wanted_value(session.goal.text, name, values)
        if wanted and session.options.get(name) != wanted:
            return f"click[{wanted}]"
    return "click[buy now]"


def _wanted_value(request: str, name: str, values: tuple[str, ...]) -> str | None:
    """The value the request names: the longest that follows `name: `, or else stands anywhere in it."""
    text = request.lower()
    clickable = [value for value in values if value.strip() and "[" not in value]
    named = [value for value in clickable if f"{name}: {value}" in text]
    return max(named or [value for value in clickable if value in text], key=len, default=None)


def random_action(admissible: list[str], generator: random.Random, *, request: str) -> str:
    """A random admissible action; a search takes a few words of the request."""
    action = generator.choice(admissible)
    words = request.split()
    query = " ".join(generator.sample(words, min(4, len(words))))
    return f"search[{query}]" if action.startswith("search[") else action
