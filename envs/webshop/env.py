"""The shop as a Gymnasium environment."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium

from agentrl.common.data_source import DataSource
from agentrl.envs.env_errors import DataError
from agentrl.envs.options import check_at_least, check_choice, check_task
from agentrl.envs.spaces import FreeText
from agentrl.envs.webshop.experts import EXPERTS, expert_action
from agentrl.envs.webshop.goals import KINDS, SPLITS, Goal, Split
from agentrl.envs.webshop.loading import SYNTHETIC, find_source, open_shop
from agentrl.envs.webshop.nouns import METHODS
from agentrl.envs.webshop.official import find_files
from agentrl.envs.webshop.purchase_reward import OPTION_COUNTERS
from agentrl.envs.webshop.session import Rules, Session
from agentrl.envs.webshop.shop import Shop
from agentrl.envs.webshop.store import is_store
from agentrl.envs.webshop.synthetic import STYLES

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "split": SPLITS,
    "split_by": ("goal", "product"),
    "reward": tuple(OPTION_COUNTERS),
    "observation": ("text", "text_rich"),
    "goals": KINDS,
    "style": STYLES,
    "title_nouns": METHODS,
    "expert": (None, *EXPERTS),
}


class WebShopEnv(gymnasium.Env[str, str]):
    """Find and buy what a customer asks for: `search[words]`, then `click[something on the page]`.

    An episode ends with `click[buy now]`; the reward, between 0 and 1, tells how well the product, its options and its
    price meet the request. There is no step limit of its own (protocols set one). The text, the transitions and the
    reward are those of princeton-nlp/WebShop.

    Info: `admissible_actions`, `anchor`, `is_valid_action` (understood and available), `success`, `score`; at reset
    `task` and `category`; after the purchase `reward_parts` (see `purchase_reward`); with `expert`,
    `expert_action`.

    Reset options: `{"task": i}` plays task i of the split. `{"goal": {...}}` plays a goal given in full, with the keys
    of the original (`asin`, `instruction_text`, `attributes`, `goal_options`, `price_upper`), and with
    `"prices": {asin: price}` at these prices: for replaying episodes of other runs.

    Args:
        split: "train", "eval" or "test": goals 1500-, 500-1499 and 0-499 of the canonical order.
        split_by: "goal", or "product" for splits that share no product (10 % test, 10 % eval, 80 % train).
        data_dir: folder of the official files or of a built shop; by default the one in WEBSHOP_DATA, and without it
            (or with "synthetic") a synthetic catalogue.
        num_products: use only the first products of the catalogue.
        goals: "synthetic" (templates) or "human" requests.
        reward: "compat", the original's to the last bit, or "fixed", see `purchase_reward`.
        observation: "text", or "text_rich", which marks what can be clicked.
        show_attributes: item pages have a fourth sub-page with the product's attributes.
        page_size: results on a page; the original's 10, or fewer for small models.
        compat_observation: the page after the purchase tells the score, and the original's back-door queries (`<r>`,
            `<c> category`, `<q> kind`) work.
        price_seed: of drawn prices and price bounds.
        catalogue_seed: of the synthetic catalogue.
        style: of the synthetic catalogue, "full" or "simple".
        title_nouns: "spacy", or "words" for an approximation without it; official files only.
        verify: refuse files whose content is not what their official names say.
        expert: "default" to have `expert_action` in every info, see `experts`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own declaration)
        "render_modes": [], "eval_split": "test", "expert": "shopper who never sees the wanted product, no ceiling",
    }  # fmt: skip

    def __init__(
        self,
        split: str = "train",
        *,
        split_by: str = "goal",
        data_dir: str | None = None,
        num_products: int | None = None,
        goals: str = "synthetic",
        reward: str = "compat",
        observation: str = "text",
        show_attributes: bool = False,
        page_size: int = 10,
        compat_observation: bool = False,
        price_seed: int | None = None,
        catalogue_seed: int = 0,
        style: str = "full",
        title_nouns: str = "spacy",
        verify: bool = True,
        expert: str | None = None,
    ) -> None:
        given = {
            "split": split, "split_by": split_by, "reward": reward, "observation": observation, "goals": goals,
            "style": style, "title_nouns": title_nouns, "expert": expert,
        }  # fmt: skip
        for name, value in given.items():
            check_choice(name, value, _CHOICES[name])
        check_at_least("page_size", page_size)
        self.observation_space, self.action_space = FreeText(), FreeText()
        self._split_name, self._split_by, self._expert = split, split_by, expert
        self._is_rich = observation == "text_rich"
        self._rules = Rules(
            reward=reward, show_attributes=show_attributes, operators=compat_observation,
            show_score=compat_observation, page_size=page_size,
        )  # fmt: skip
        self._source: dict[str, Any] = {
            "data_dir": None if data_dir is None else str(data_dir), "num_products": num_products, "kind": goals,
            "price_seed": price_seed, "catalogue_seed": catalogue_seed, "style": style, "title_nouns": title_nouns,
            "verify": verify,
        }  # fmt: skip
        self._session: Session | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the visit: the shop behind it is loaded again where it is needed."""
        return self.__dict__ | {"_session": None}

    @property
    def data_source(self) -> DataSource:
        """What the goals are drawn from."""
        return replace(self.shop.source, count=self.num_tasks)

    @property
    def shop(self) -> Shop:
        """The shop; loaded at first use, shared by all environments of the process with the same source."""
        return open_shop(**self._source)

    @property
    def _split(self) -> Split:
        return self.shop.goals.split(self._split_name, by=self._split_by)

    @property
    def num_tasks(self) -> int:
        """Number of tasks in the split."""
        return len(self._split)

    @property
    def session(self) -> Session:
        """The present visit."""
        if self._session is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        return self._session

    def task_content(self) -> list[Any]:
        """What determines the score of the present task: the goal, and what its product is in this catalogue."""
        goal = self.session.goal
        wanted = goal.options if isinstance(goal.options, tuple) else dict(goal.options)
        product = goal.target
        return [
            goal.text, goal.attributes, wanted, goal.price_upper, product.asin, product.title, product.category,
            float(self.shop.prices[self.shop.number_of(product.asin)]),
        ]  # fmt: skip

    def data_files(self) -> dict[str, Path]:
        """The official files behind the shop, by name; none of a synthetic or built one."""
        source = find_source(self._source["data_dir"])
        if source == SYNTHETIC or is_store(Path(source)):
            return {}
        files = find_files(Path(source), num_products=self._source["num_products"], needs_human=False)
        return {path.name: path for path in (files.products, files.notes)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a visit; without a task in `options`, one is drawn by the goals' weights."""
        super().reset(seed=seed)
        options = options or {}
        _check_reset_options(options)
        prices: dict[int, float] = {}
        if "goal" in options:
            goal, prices = _given_goal(self.shop, options["goal"], options.get("prices", {}))
        else:
            goal = self.shop.goal(self._pick(options.get("task")))
        self._session = Session(
            self.shop,
            goal,
            rules=self._rules,
            session_id=str(goal.index),
            generator=random.Random(int(self.np_random.integers(1 << 32))),
            prices=prices,
        )
        return self._observe(), self._info(is_valid=True) | {
            "task": f"{self.shop.kind}/{goal.index}",
            "category": goal.target.category,
        }

    def _pick(self, task: object) -> int:
        """Canonical index of the goal to play."""
        split = self._split
        if len(split) == 0:
            raise DataError(
                f"the {self.shop.name} has {len(self.shop.goals)} goals, none in split {self._split_name!r}. "
                "Use more products, or split_by='product'."
            )
        if task is None:
            return split.goal_index(split.draw(float(self.np_random.random())))
        return split.goal_index(check_task(task, len(split)))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do what the action says; what is not understood or not on the page changes nothing."""
        outcome = self.session.act(action)
        return self._observe(), outcome.reward, outcome.done, False, self._info(is_valid=outcome.is_valid)

    def available_actions(self) -> dict[str, Any]:
        """What the original's `get_available_actions` returns: `has_search_bar` and `clickables`."""
        return {"has_search_bar": self.session.has_search_bar, "clickables": list(self.session.clickables)}

    def _observe(self) -> str:
        return self.session.rich_text() if self._is_rich else self.session.text()

    def _info(self, *, is_valid: bool) -> dict[str, Any]:
        session = self.session
        info = {
            "admissible_actions": session.admissible_actions(),
            "anchor": session.anchor(),
            "is_valid_action": is_valid,
            "success": session.score == 1.0,
            "score": session.score,
        }
        if session.done:
            info["reward_parts"] = session.reward_parts
        if self._expert is not None and not session.done:
            info["expert_action"] = expert_action(session)
        return info


def _check_reset_options(options: Mapping[str, Any]) -> None:
    """A task that is misspelled must not become a random one."""
    unknown = options.keys() - {"task", "goal", "prices"}
    if unknown or ("task" in options and "goal" in options) or ("prices" in options and "goal" not in options):
        raise ValueError(
            f"reset options are 'task', or 'goal' and perhaps 'prices', got {', '.join(map(repr, options))}"
        )


def _given_goal(shop: Shop, goal: Mapping[str, Any], prices: Mapping[str, float]) -> tuple[Goal, dict[int, float]]:
    """The goal of another run, and its prices by product number."""
    try:
        options = goal["goal_options"]
        given = Goal(
            index=0,
            target=shop.products[shop.number_of(goal["asin"])],
            text=goal["instruction_text"],
            attributes=tuple(goal["attributes"]),
            options=dict(options) if isinstance(options, Mapping) else tuple(options),
            price_upper=float(goal["price_upper"]),
        )
        return given, {shop.number_of(asin): price for asin, price in prices.items()}
    except KeyError as error:
        raise ValueError(
            f"the given goal lacks {error}, or it or its prices name a product that the {shop.name} does not have"
        ) from None
