"""How many failed episodes a run goes on with."""

from collections import Counter
from collections.abc import Sequence

from agentrl.errors import Unplayable
from agentrl.types import Trajectory


class FailureLimit:
    """Ends a run in which too many episodes of two batches in a row failed.

    A run that goes on with a few of its episodes learns from what happens to work, at the price of all of them.

    Args:
        limit: share of a batch's episodes that may fail (`rollout.max_failed_share`).
        before: share of the batch before.
        run: what to resume, for the message.
    """

    def __init__(self, limit: float, *, before: float, run: object) -> None:
        self.limit, self.before, self.run = limit, before, run

    def check(self, step: int, share: float, failures: Sequence[Trajectory]) -> None:
        """Take note of a batch.

        Args:
            step: its number.
            share: of its episodes that failed.
            failures: those episodes, of all processes.

        Raises:
            Unplayable: this batch and the one before exceed the limit.
        """
        before, self.before = self.before, share
        if min(before, share) <= self.limit:
            return
        causes = Counter(trajectory.error for trajectory in failures)
        cause, count = causes.most_common(1)[0]
        raise Unplayable(
            f"{before:.0%} and {share:.0%} of the episodes of batches {step - 1} and {step} failed, more than "
            f"rollout.max_failed_share = {self.limit:g} allows. The cause of {count} of the last {causes.total()}: "
            f"{cause}. Mend it and go on with --resume {self.run}, or allow more with --rollout.max_failed_share 1.",
            everywhere=True,
        )
