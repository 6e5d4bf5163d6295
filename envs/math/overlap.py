"""How much of a benchmark stands in a training set: exact repeats, shared 13-grams and 8-grams of words.

Words are `[a-z0-9]+` of the lower-cased text (the rule of open-r1 and s1). Most 8-gram hits are stock phrases ("find
the number of ordered pairs of"); exact repeats are what must not be trained on.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> tuple[str, ...]:
    """Words of a problem; a text without any (another script) is one word."""
    return tuple(_WORD.findall(text.lower())) or (" ".join(text.split()),)


def ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    """All runs of `n` words."""
    tokens = words(text)
    return (tokens[i : i + n] for i in range(len(tokens) - n + 1))


@dataclass(frozen=True)
class Overlap:
    """Positions of the benchmark's problems that the training set repeats.

    Attributes:
        num_problems: size of the benchmark.
        exact: same words in the same order.
        ngrams: n -> positions that share a run of n words.
        train_exact: positions in the training set of the exact repeats.
    """

    num_problems: int
    exact: list[int]
    ngrams: dict[int, list[int]]
    train_exact: list[int]


def exact_repeats(train: Sequence[str], benchmark: Iterable[str]) -> list[int]:
    """Positions of the training problems that also stand in the benchmark."""
    known = {words(text) for text in benchmark}
    return [i for i, text in enumerate(train) if words(text) in known]


def find_overlap(train: Sequence[str], benchmark: Sequence[str], *, sizes: Sequence[int] = (13, 8)) -> Overlap:
    """Compare two lists of problem texts."""
    seen = {words(text) for text in train}
    shared = {}
    for n in sizes:
        # the smaller side is kept: the benchmark's runs, each with the problems it stands in
        where: dict[tuple[str, ...], set[int]] = {}
        for i, text in enumerate(benchmark):
            for run in ngrams(text, n):
                where.setdefault(run, set()).add(i)
        hits: set[int] = set()
        for text in train:
            for run in ngrams(text, n):
                hits |= where.get(run, set())
        shared[n] = sorted(hits)
    exact = [i for i, text in enumerate(benchmark) if words(text) in seen]
    return Overlap(len(benchmark), exact, shared, exact_repeats(train, benchmark))
