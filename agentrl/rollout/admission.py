"""How many episodes are played at once: as many as the engine's keys and values have room for, as far as one can tell.

An engine that is given more rows than its cache holds drops some in the middle of a turn and computes them anew, and
between two turns loses what it knew of a row. So an episode is begun when its blocks, too, are likely to fit.
"""

import math

from agentrl.rollout.engines.base import CacheSize
from agentrl.types import Trajectory


def rows_that_fit(cache: CacheSize, row_tokens: int) -> int:
    """How many rows of a length a cache of whole blocks holds; at least one, which is then played alone."""
    return max(1, cache.tokens // cache.block // math.ceil(row_tokens / cache.block))


class Admission:
    """Places for episodes.

    Rows are taken to be as long as they may be until as many episodes have ended as fit on that assumption (those that
    end first are short); from then on, to be as long as the longest that was played.

    Args:
        cache: the engine's; None where it keeps no blocks, or does not say how many.
        most: episodes that are asked to be played at once (`rollout.max_concurrent`).
        row_tokens: longest row (`rollout.max_context_tokens`).
    """

    def __init__(self, cache: CacheSize | None, *, most: int, row_tokens: int) -> None:
        self.cache, self.most = cache, most
        self.places = self._fitting(row_tokens)
        self._num_first = self.places
        self._num_ended, self._longest = 0, 0

    def learn(self, trajectory: Trajectory) -> int:
        """Take note of an episode that is over; how many places there are more than before, never fewer than none."""
        self._num_ended += 1
        self._longest = max([self._longest, *(len(row.ids) for row in trajectory.rows)])
        if self._num_ended < self._num_first or not self._longest:
            return 0
        before, self.places = self.places, self._fitting(self._longest)
        return max(0, self.places - before)

    def _fitting(self, row_tokens: int) -> int:
        return self.most if self.cache is None else min(self.most, rows_that_fit(self.cache, row_tokens))
