"""What `benchmarks/collapse.toml` needs: long answers that can be checked, and an engine of lower precision.

`LongSums` asks for a sum modulo 10 of many digits with every running total written down, so that one slip in a hundred
tokens spoils the answer. Its expert slips on purpose, which leaves learning something to mend, and has no ceiling.
`Bf16Engine` samples with a bfloat16 copy of the policy, as vLLM does beside a learner in float32.
"""

import copy
from typing import Any

import gymnasium
import torch
from gymnasium.spaces import Text

from agentrl.rollout.engines.local import LocalEngine


class LongSums(gymnasium.Env[str, str]):
    """`785=` is answered by `750`: the last digit of every running total; reward 1 where all digits are right.

    Args:
        digits: how many, at least 1; the answer has as many tokens.
        slip_prob: how likely the expert's total is one too high, at every digit.
        expert: any value: `info["expert_action"]` is offered.
    """

    observation_space = action_space = Text(1000)

    def __init__(self, digits: int = 100, slip_prob: float = 0.007, expert: str | None = None) -> None:
        self.digits, self.slip_prob, self.expert = digits, slip_prob, expert
        self._problem: list[int] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The problem."""
        super().reset(seed=seed)
        self._problem = self.np_random.integers(0, 10, self.digits).tolist()
        info = {} if self.expert is None else {"expert_action": self._work(self.slip_prob)}
        return " ".join(map(str, self._problem)), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The verdict."""
        is_right = action.strip() == self._work(0.0)
        return "", float(is_right), True, False, {"success": is_right}

    def _work(self, slip_prob: float) -> str:
        total, totals = 0, []
        for digit in self._problem:
            slip = int(slip_prob > 0 and self.np_random.random() < slip_prob)
            total = (total + digit + slip) % 10
            totals.append(str(total))
        return " ".join(totals)


class Bf16Engine(LocalEngine):
    """The embedded engine on a bfloat16 copy of the policy, whose log-probs differ from the learner's."""

    mismatches = False  # they differ on purpose

    def __init__(self, *, module: Any, tokenizer: Any, config: Any, rank: int, count: int) -> None:
        lower = copy.deepcopy(module).to(torch.bfloat16)
        lower.compute_dtype = torch.bfloat16
        super().__init__(
            lower, tokenizer, max_concurrent=config.max_concurrent, max_context_tokens=config.max_context_tokens,
            shares_weights=False,
        )  # fmt: skip
