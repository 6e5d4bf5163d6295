"""The Engine protocol: token ids in, sampled ids with log-probs out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch  # takes seconds, and listing panels needs none of it


@dataclass(frozen=True)
class Sampling:
    """How one turn is sampled."""

    max_new_tokens: int
    """Most tokens generated."""
    temperature: float = 1.0
    """0 is greedy; log-probs are at this temperature (at 1 when greedy)."""
    stop: tuple[str, ...] = ()
    """Strings that end the turn; the token that completes one is kept whole."""
    stop_ids: frozenset[int] = field(default_factory=frozenset)
    """Token ids that end the turn; kept."""


@dataclass(frozen=True)
class Completion:
    """One sampled turn."""

    ids: list[int]
    """Sampled ids, the stopping one included."""
    logprobs: list[float]
    """Log-probs of those ids under the policy at the sampling temperature."""
    finish: str
    """`stop` or `length`; of a server behind an API also `refused`, or `no_room` (the prompt fills its context)."""
    counted: tuple[int, int] | None = None
    """(prompt, generated) tokens as a server behind an API counts them, whose ids nobody sees."""


@dataclass(frozen=True)
class CacheSize:
    """Room for keys and values, given out in blocks as rows grow."""

    tokens: int
    """Of all rows together."""
    block: int
    """Tokens of a block."""


class Engine(Protocol):
    """What rollouts need from a generator of tokens. Embedded and vLLM engines pass the same tests.

    One that gives out its cache in blocks may say how large that is (`cache`, a `CacheSize`): then as many episodes are
    begun as fit.
    """

    version: int
    """Number of weight updates loaded."""
    shares_weights: bool
    """Whether the learner's own module decodes, so that `load_weights` need not look at the tensors."""
    needs_shape_only: bool
    """Whether it holds weights of its own, so that the module it is made with may be a mere shape."""
    mismatches: bool
    """Whether it computes by other code than the learner, so that log-probs may differ and every sync is checked."""
    can_run_ahead: bool
    """Whether it can play beside a learner on a GPU; on a CPU every engine can, in a process of its own."""

    async def generate(
        self, ids: list[int], sampling: Sampling, *, key: tuple[int, ...], session: str | None = None
    ) -> Completion:
        """Sample one turn.

        Args:
            ids: the whole row so far.
            sampling: how to sample.
            key: integers that alone determine the random numbers of this turn.
            session: name of a growing row; its keys and values are kept between calls until `release`.
        """
        ...

    def release(self, session: str) -> None:
        """Free what is kept for a session."""
        ...

    async def score(self, ids: list[int], *, temperature: float = 1.0) -> list[float]:
        """Log-prob of every id but the first given those before it, [L - 1]."""
        ...

    def load_weights(self, named_tensors: Iterable[tuple[str, "torch.Tensor"]], *, version: int) -> None:
        """Use new weights from now on; keys and values of older weights are dropped."""
        ...

    def pause(self) -> None:
        """Give memory back until the next turn or weights, where the platform can: the rollout is over."""
        ...

    def counts(self) -> dict[str, float]:
        """What was counted since it was made: tokens generated, tokens prefilled ... Reading changes nothing."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


def random_stream(key: tuple[int, ...], count: int) -> NDArray[np.float64]:
    """`count` uniform numbers in [0, 1) that depend on `key` alone (a counter-based generator, Philox)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(count)
