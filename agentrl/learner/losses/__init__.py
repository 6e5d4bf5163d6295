"""What is minimized: policy losses per token, and what is added to or taken from every one of them."""

from functools import partial
from typing import Any

from pydantic import Field

from agentrl.common.plugins import find_callable
from agentrl.learner.losses.kinds import ClipConfig
from agentrl.learner.losses.token_loss import Loss, LossConfig, TokenLoss

__all__ = ["ClipConfig", "Loss", "LossConfig", "OwnLossConfig", "TokenLoss"]


class OwnLossConfig(LossConfig):
    """A loss of one's own."""

    kind: str
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of a loss of one's own."""

    def policy_loss(self) -> Loss:
        """The user's function with its options."""
        return partial(find_callable(self.kind, "loss.kind"), **self.options)
