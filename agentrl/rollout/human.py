"""Somebody at this terminal plays."""

from typing import Any

from agentrl.errors import RunError
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.base import Completion
from agentrl.rollout.scripted import Answer, PlayerWithoutEngine, TurnRequest
from agentrl.types import Trajectory


class HumanPlayer(PlayerWithoutEngine):
    """Shows what a policy would read and takes what is typed; one episode at a time.

    Args:
        chat: turns words into ids.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    async def answer(self, asked: TurnRequest) -> Answer:
        """The next line.

        Raises:
            RunError: the input ended (Ctrl-D).
        """
        show(asked.conversation().observation, asked.info)
        try:
            said = self.chat.answer_ids(input("> "))
        except EOFError:
            raise RunError("the input ended in the middle of an episode; what was played before it is kept.") from None
        return Answer(Completion(said, [0.0] * len(said), "stop"))


def show(observation: str, info: dict[str, Any]) -> None:
    """What an environment says, and what can be done where it tells."""
    print(f"\n{observation}")
    actions = info.get("admissible_actions")
    if actions:
        print(f"[possible: {', '.join(map(str, actions))}]")


def show_end(trajectory: Trajectory) -> None:
    """The last observation of an episode and what it was worth."""
    last = trajectory.turns[-1].observation if trajectory.turns else trajectory.error
    print(f"\n{last}\n\n{'solved' if trajectory.success else 'not solved'}, reward {trajectory.reward:g}")
