"""An episode so far in words, for players that take messages instead of ids."""

from dataclasses import dataclass
from typing import Any

from agentrl.rollout.chat import PastTurn


@dataclass(frozen=True)
class EpisodeInWords:
    """What a player is asked."""

    system: str | None
    """System message."""
    tools: list[dict[str, Any]]
    """Schemas of the environment's tools, as chat templates take them."""
    past: tuple[PastTurn, ...]
    """Turns taken; none in the `window` context, whose prompt tells them."""
    observation: str
    """What is to be answered."""
