"""What an API has cost so far, and when enough is enough."""

import threading
from dataclasses import dataclass, fields

from agentrl.errors import RunError, UserError


class BudgetSpent(RunError):
    """The next request might cost more than is left; what was played is stored."""


@dataclass
class Usage:
    """Counts of one evaluation, over all its sittings."""

    requests: int = 0
    """Replies received."""
    prompt_tokens: int = 0
    """As the server counts them."""
    completion_tokens: int = 0
    """As the server counts them, hidden reasoning included."""
    refused: int = 0
    """Replies in which the server or the model declines."""
    truncated: int = 0
    """Replies cut at the token limit."""
    no_room: int = 0
    """Prompts that fill the server's context."""
    failed: int = 0
    """Requests given up after all retries."""
    uncounted: int = 0
    """Replies without a count of tokens; they enter by an estimate, a third of their bytes."""

    @property
    def tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Budget:
    """Prices and budget."""

    price_prompt: float | None = None
    """USD for a million prompt tokens."""
    price_completion: float | None = None
    """USD for a million completion tokens."""
    max_tokens_total: int | None = None
    """Most tokens, prompts and completions together."""
    max_cost: float | None = None
    """Most USD."""

    def __post_init__(self) -> None:
        if self.max_cost is not None and (self.price_prompt is None or self.price_completion is None):
            raise UserError(
                "--max-cost needs prices: give --price-prompt and --price-completion, USD per million tokens."
            )
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None and value < 0:
                raise UserError(f"--{entry.name.replace('_', '-')} must not be negative, got {value}.")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """USD; None without prices.

        >>> Budget(price_prompt=1.0, price_completion=4.0).cost(1_000_000, 500_000)
        3.0
        """
        if self.price_prompt is None or self.price_completion is None:
            return None
        return (prompt_tokens * self.price_prompt + completion_tokens * self.price_completion) / 1e6


class Meter:
    """Counts replies, and refuses a request that might go beyond the budget, requests under way included.

    Args:
        limits: prices and budget.
        usage: what earlier sittings counted.
    """

    def __init__(self, limits: Budget, usage: Usage | None = None) -> None:
        self.limits, self.usage = limits, usage or Usage()
        self._lock = threading.Lock()
        self._under_way = [0, 0]
        """Prompt and completion tokens that requests under way may still cost."""

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Set aside what a request may cost at most.

        Raises:
            BudgetSpent: it does not fit.
        """
        limits = self.limits
        with self._lock:
            prompt = self.usage.prompt_tokens + self._under_way[0] + prompt_tokens
            completion = self.usage.completion_tokens + self._under_way[1] + completion_tokens
            cost = limits.cost(prompt, completion)
            if limits.max_tokens_total is not None and prompt + completion > limits.max_tokens_total:
                raise BudgetSpent(
                    f"the budget is spent: {self.usage.tokens:,} tokens so far, and the next turn may go beyond "
                    f"--max-tokens-total {limits.max_tokens_total:,}."
                )
            if limits.max_cost is not None and cost is not None and cost > limits.max_cost:
                raise BudgetSpent(
                    f"the budget is spent: {self.cost or 0:.4f} USD so far, and the next turn may go beyond "
                    f"--max-cost {limits.max_cost:g}."
                )
            self._under_way[0] += prompt_tokens
            self._under_way[1] += completion_tokens

    def settle(self, reserved: tuple[int, int], spent: tuple[int, int], **counts: int) -> None:
        """A request is over: what it was given goes, what it took is counted."""
        with self._lock:
            for place in range(2):
                self._under_way[place] -= reserved[place]
            self.usage.prompt_tokens += spent[0]
            self.usage.completion_tokens += spent[1]
            for name, count in counts.items():
                setattr(self.usage, name, getattr(self.usage, name) + count)

    @property
    def cost(self) -> float | None:
        """USD so far; None without prices."""
        return self.limits.cost(self.usage.prompt_tokens, self.usage.completion_tokens)
