"""How models talk to the shop: the protocol of verl-agent, that of the DGG paper, and a terse one for tiny models.

    env = make(protocol="verl-agent", split="train")

or, in a config, `env.id = "agentrl/WebShop-v0"` with
`env.format = "agentrl.envs.webshop.protocols:VerlAgent"`, which brings
context, lengths and penalty along.
"""

import re
from typing import Any, ClassVar

import gymnasium

from agentrl.envs.options import check_choice
from agentrl.envs.verl_agent import PromptWindow, project
from agentrl.envs.webshop.env import WebShopEnv
from agentrl.envs.webshop.pages import SEPARATOR
from agentrl.envs.webshop.products import Product
from agentrl.envs.webshop.session import Session
from agentrl.envs.wrappers import ThinkAction

_SYSTEM = (
    "You are shopping for a customer in a web shop. Find a product that meets the request, open it, choose the options "
    "that are asked for, and buy it. There are two kinds of actions: search[words] looks for products, and "
    "click[label] clicks something on the page: a button, a product id, or the value of an option. "
    "click[buy now] ends the visit."
)
_ROLE = "You are an expert autonomous agent operating in the WebShop e-commerce environment."
_FIRST = "{role}\nYour task is to: {task}.\nYour current observation is: {observation}.\n{actions}\n{instruction}"
_LATER = (
    "{role}\nYour task is to: {task}.\n"
    "So far you have taken {num_steps} step(s). The last {num_shown} observation(s) and the action taken on each:\n"
    "{history}\nYou are now at step {step} and your current observation is: {observation}.\n{actions}\n{instruction}"
)
_ACTIONS = "Your admissible actions of the current situation are: [\n{}\n]."
_INSTRUCTION = (
    "It is your turn to take one action. First reason step by step about the situation, within <think> </think> tags. "
    "Then choose one admissible action for this step and give it within <action> </action> tags."
)
_LONGEST_PROMPT = 13_000  # characters; a longer one leaves the history out
_FALLBACK_CHARACTERS = 20

TextWrapper = gymnasium.Wrapper[str, str, str, str]


def session_of(env: gymnasium.Env[str, str]) -> Session:
    """The visit behind the wrappers."""
    assert isinstance(env.unwrapped, WebShopEnv)
    return env.unwrapped.session


class Limited(TextWrapper):
    """A visit to the shop with at most `max_steps` actions; the limit truncates."""

    max_steps: ClassVar[int]

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        super().__init__(env)
        self._num_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a visit."""
        self._num_steps = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Pass an action on and count it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._num_steps += 1
        is_over = self._num_steps >= self.max_steps and not terminated
        return observation, float(reward), terminated, truncated or is_over, info


class VerlAgent(Limited):
    """Every observation is a complete prompt: role, task, last two steps, observation, actions, instruction.

    For a context that shows the model the current observation only. 15 steps; the reward is 10 for a purchase with a
    full score and 0 otherwise, `score` in info keeps the shop's own. `is_valid_action` says whether the answer was well
    formed; verl-agent subtracts 0.1 where it was not, which is left to the learner
    (`configs/webshop_verl_agent.toml`). `anchor`
    becomes the shown text, by which verl-agent groups steps, although it hides the chosen options. The structure of the
    prompts is verl-agent's, the wording is our own.
    """

    max_steps = 15
    success_reward = 10.0

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        super().__init__(env)
        self._window = PromptWindow(_FIRST, _LATER, history_length=2)
        self._shown = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The first prompt."""
        observation, info = super().reset(seed=seed, options=options)
        self._window.start()
        self._shown = self._quote(observation)
        return self._prompt(), info | {"anchor": self._shown}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send the action in the answer; returns the next prompt."""
        command, is_well_formed = project(action, fallback_characters=_FALLBACK_CHARACTERS)
        self._window.add_quoted(self._shown, command)
        observation, reward, terminated, truncated, info = super().step(command)
        self._shown = self._quote(observation)
        reward = self.success_reward if terminated and reward == 1.0 else 0.0
        info = info | {"is_valid_action": is_well_formed, "anchor": self._shown}
        return self._prompt(), reward, terminated, truncated, info

    def _quote(self, observation: str) -> str:
        """The parts after the task, each in single quotes; a page without the task as it is."""
        parts, task = observation.split(SEPARATOR), session_of(self).goal.text
        if task not in parts:
            return observation
        return SEPARATOR.join(f"'{part}'" for part in parts[parts.index(task) + 1 :])

    def _prompt(self) -> str:
        session = session_of(self)
        actions = (["search[<your query>]"] if session.has_search_bar else []) + [
            f"click[{label}]" for label in session.clickables
        ]
        return self._window.prompt(
            longest=_LONGEST_PROMPT,
            role=_ROLE,
            task=session.goal.text,
            observation=self._shown,
            actions=_ACTIONS.format("\n".join(f"'{action}'," for action in actions)),
            instruction=_INSTRUCTION,
        )


class Paper(Limited):
    """The setting of the DGG paper (Appendix G.1): 30 steps, rows of 4,096 prompt and 4,096 response tokens.

    The paper does not print its prompts: this is a conversation in the shop's own text with <think> and <action> tags,
    and the reward is the shop's score.
    """

    max_steps = 30

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        super().__init__(ThinkAction(env))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The first page, with the rules in `info["system"]`."""
        observation, info = super().reset(seed=seed, options=options)
        return observation, info | {"system": _SYSTEM}


class Compact(TextWrapper):
    """The shop in few words, for tiny models: the request once, no boilerplate, results by number.

    Actions are `search WORDS`, `click item 2` for a result and `click LABEL` for the rest; so are `expert_action` and
    `admissible_actions`. Prices are rounded. The reward is the shop's score. Give the environment a small `page_size`.

        find soft shirt with color: red below 40 -> search soft shirt
        item 1 soft classic shirt price 35       -> click item 1
        soft classic shirt price 35 color: red blue size: small large -> click red
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The request."""
        _, info = self.env.reset(seed=seed, options=options)
        return _shorten_request(session_of(self).goal.text), self._translate_info(info)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send one terse action."""
        _, reward, terminated, truncated, info = self.env.step(self._expand(action))
        return self._page(), float(reward), terminated, truncated, self._translate_info(info)

    def _items(self) -> dict[str, Product]:
        """The shown results by name."""
        session = session_of(self)
        numbers = session.hits_on_page() if session.name == "results" else []
        return {f"item {place}": session.shop.products[number] for place, number in enumerate(numbers, 1)}

    def _page(self) -> str:
        session = session_of(self)
        if session.name == "results":
            return "\n".join(f"{name} {_headline(product)}" for name, product in self._items().items()) or "no results"
        if session.name == "item":
            product = session.shown_product()
            lines = [_headline(product)]
            for name, values in product.options.items():
                chosen = f" (chosen {session.options[name]})" if name in session.options else ""
                lines.append(f"{name}: {' '.join(values)}{chosen}")
            return "\n".join(lines)
        if session.name in ("index", "done"):
            return session.name
        return "\n".join(piece.text.strip() for piece in session.pieces[4:])  # behind the request and two buttons

    def _expand(self, action: str) -> str:
        verb, _, rest = action.strip().partition(" ")
        items = self._items()
        return f"{verb}[{items[rest].asin if rest in items else rest}]"

    def _shrink(self, action: str) -> str:
        verb, _, rest = action[:-1].partition("[")
        names = {product.asin.lower(): name for name, product in self._items().items()}
        return f"{verb} {names.get(rest, rest)}"

    def _translate_info(self, info: dict[str, Any]) -> dict[str, Any]:
        info = info | {"admissible_actions": [self._shrink(action) for action in info["admissible_actions"]]}
        if "expert_action" in info:
            info["expert_action"] = self._shrink(info["expert_action"])
        return info


def _headline(product: Product) -> str:
    return f"{product.title.lower()} price {product.prices[0]:.0f}"


def _shorten_request(request: str) -> str:
    return re.sub(r",? and price lower than (\d+)\.00 dollars$", r" below \1", re.sub("^Find me ", "find ", request))


PROTOCOLS: dict[str, type[Limited]] = {"verl-agent": VerlAgent, "paper": Paper}


def make(
    protocol: str = "verl-agent", *, split: str = "train", expert: str | None = None, **options: Any
) -> gymnasium.Env[str, str]:
    """The shop under a protocol; `options` are those of `WebShopEnv`."""
    check_choice("protocol", protocol, PROTOCOLS)
    return PROTOCOLS[protocol](WebShopEnv(split, expert=expert, **options))
