"""The HTML of the shop for people; see `shop_server`."""

from collections.abc import Sequence
from html import escape

from agentrl.envs.webshop.pages import SUB_PAGES
from agentrl.envs.webshop.products import Product
from agentrl.envs.webshop.session import Session, can_be_typed

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --accent: #0b6bcb; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin: .2rem 0; }
form { display: inline; }
button { font: inherit; padding: .3rem .8rem; border: 1px solid var(--line); border-radius: .4rem; cursor: pointer; }
button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: white; }
button.buy { background: #c45500; border-color: #c45500; color: white; }
button:focus-visible, input:focus-visible, summary:focus-visible { outline: 3px solid var(--accent); }
input { font: inherit; padding: .3rem .6rem; border: 1px solid var(--line); border-radius: .4rem; min-width: 0; }
main, pre { overflow-wrap: anywhere; }
.request { background: var(--soft); border-left: 4px solid var(--accent); padding: .6rem 1rem; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; margin: .8rem 0; align-items: center; }
.row input { flex: 1 1 16rem; }
.card, fieldset { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem 1rem; margin: .6rem 0; }
fieldset { display: flex; flex-wrap: wrap; gap: .4rem; }
pre { white-space: pre-wrap; background: var(--soft); padding: .6rem; }
table { border-collapse: collapse; } td, th { border: 1px solid var(--line); padding: .2rem .6rem; text-align: left; }
"""


def _document(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>'
        f'{escape(title)}</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="stylesheet" href="/style.css"><link rel="icon" href="data:,"></head><body>{body}</body></html>'
    )


def message(text: str) -> str:
    """A page that says one thing and leads back to the start."""
    return _document("WebShop", f'<h1>WebShop</h1><p>{escape(text)}</p><p><a href="/">Start page</a></p>')


def start(num_tasks: int) -> str:
    """The page where a person picks a task."""
    return _document(
        "WebShop",
        "<h1>WebShop</h1><p>You are given a request. Find a product that meets it, choose its options, and buy it. "
        "Every button is an action that an agent could take, and your score is computed as the agent's.</p>"
        '<form method="post" action="/start"><div class="row"><label for="task">'
        f'Task 0 to {num_tasks - 1} (empty: any)</label><input id="task" name="task" inputmode="numeric" autofocus>'
        '<button type="submit">Start</button></div></form>',
    )


def visit(session: Session, observation: str, log: Sequence[str], path: str, task: int) -> str:
    """The present page of a visit, and below it what an agent would see."""
    body = f'<h1>WebShop <small>task {task}</small></h1><p class="request" id="request">{escape(session.goal.text)}</p>'
    if session.name == "index":
        body += _search_bar(path)
    elif session.name == "results":
        body += _results(session, path)
    elif session.name == "item":
        body += _item(session, path)
    elif session.name == "done":
        body += _done(session)
    else:
        body += _sub_page(session, path)
    return _document(f"WebShop: {session.name}", f"<main>{body}</main>{_agent_view(observation, log, path)}")


def _button(label: str, path: str, *, text: str | None = None, css: str = "", pressed: bool | None = None) -> str:
    """A button that clicks what an agent would click as `label`."""
    state = "" if pressed is None else f' aria-pressed="{str(pressed).lower()}"'
    # the agent's language has no way to name some values; people cannot choose them either
    state += "" if can_be_typed(label) else ' disabled title="An agent cannot choose this value"'
    return (
        f'<form method="post" action="{escape(path)}"><button class="{css}" name="action"{state} '
        f'value="click[{escape(label)}]">{escape(label if text is None else text)}</button></form>'
    )


def _search_bar(path: str) -> str:
    return (
        f'<form method="post" action="{escape(path)}"><div class="row" role="search"><label for="query">Search</label>'
        '<input id="query" name="query" autofocus required><button type="submit">Search</button></div></form>'
    )


def _navigation(labels: Sequence[str], path: str) -> str:
    return f'<nav class="row">{"".join(_button(label.lower(), path, text=label) for label in labels)}</nav>'


def _results(session: Session, path: str) -> str:
    labels = ["Back to Search", *(["< Prev"] if session.page > 1 else []), "Next >"]
    body = _navigation(labels, path) + f"<h2>Page {session.page} (Total results: {len(session.hits)})</h2>"
    for number in session.hits_on_page():
        product = session.shop.products[number]
        seen = " (seen)" if product.asin in session.visited else ""
        body += (
            f'<article class="card"><h2>{escape(product.title)}</h2><div class="row"><span>{escape(product.price_tag)}'
            f"</span>{_button(product.asin.lower(), path, text=product.asin)}{seen}</div></article>"
        )
    return body


def _item(session: Session, path: str) -> str:
    product = session.shown_product()
    body = _navigation(["Back to Search", "< Prev"], path) + f"<h2>{escape(product.title)}</h2>"
    body += f"<p>Price: {escape(product.price_tag)}. Rating: N.A.</p>"
    for name, values in product.options.items():
        chosen = session.options.get(name)
        buttons = "".join(_button(value, path, pressed=value == chosen) for value in values)
        body += f"<fieldset><legend>{escape(name)}</legend>{buttons}</fieldset>"
    shown = SUB_PAGES if session.rules.show_attributes else SUB_PAGES[:3]
    return body + _navigation(shown, path) + _button("buy now", path, text="Buy Now", css="buy")


def _sub_page(session: Session, path: str) -> str:
    return (
        _navigation(["Back to Search", "< Prev"], path)
        + f"<h2>{escape(session.name)}</h2>"
        + "".join(f"<p>{escape(line)}</p>" for line in _sub_page_lines(session.shown_product(), session.name))
    )


def _sub_page_lines(product: Product, name: str) -> Sequence[str]:
    if name == "Description":
        return [product.description] if product.description else []
    if name == "Features":
        return product.bullets
    if name == "Attributes":
        return [*product.attributes, product.category, product.query, product.product_category]
    return []


def _done(session: Session) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in session.reward_parts.items()
    )
    chosen = ", ".join(f"{name}: {value}" for name, value in session.options.items()) or "no options"
    return (
        "<h2>Thank you for shopping with us!</h2>"
        f"<p>You bought {escape(session.shown_product().title)} ({escape(chosen)}).</p>"
        f'<p>Your score (0 to 1): <strong id="score">{session.score}</strong></p><table>{rows}</table>'
        '<p><a href="/">Another task</a></p>'
    )


def _agent_view(observation: str, log: Sequence[str], path: str) -> str:
    actions = "\n".join(log) or "(none yet)"
    return (
        f'<details><summary>What the agent sees</summary><pre id="observation">{escape(observation)}</pre>'
        f'<p>Actions so far:</p><pre id="log">{escape(actions)}</pre><form method="post" action="{escape(path)}">'
        '<div class="row"><label for="action">Action by hand</label><input id="action" name="action">'
        '<button type="submit">Act</button></div></form></details>'
    )
