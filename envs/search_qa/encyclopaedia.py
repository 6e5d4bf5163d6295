"""A generated encyclopaedia with questions that need two or more searches; no files, no network.

People, works and towns have one passage each, in the corpus format of Search-R1. Every question is answered along a
chain of passages: the title to look up next stands in the question or in a passage found before, and the answer stands
only in the last ones. Two styles:

* "full": one encyclopaedia with unique names and prose of several sentences, divided into a training part and a
  held-out part that share no entity; both are in one corpus, so that any retriever can serve it.
* "compact": many small encyclopaedias ("worlds") that use the same single-word names for other facts, with one short
  sentence a passage, for models of a few hundred thousand parameters. Worlds are divided into training and held-out
  ones; each is a corpus of its own.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from agentrl.common.paths import user_path
from agentrl.envs.search_qa import names
from agentrl.envs.search_qa.questions import Question

Style = Literal["full", "compact"]
KINDS = ("bridge", "compositional", "comparison")
WORKS = {"novel": "author", "opera": "composer", "film": "director", "painting": "painter"}
NUM_WORLDS = {"train": 64, "test": 16}
_FULL_SIZES = {"train": (300, 300, 60), "test": (100, 100, 20)}  # people, works, towns
_COMPACT_SIZES = (12, 12, 6)
_FILLERS = (
    "Little else is known of the early years.",
    "A small museum keeps letters and other papers.",
    "Several later accounts disagree about the details.",
    "The name also appears in a number of travel books.",
    "A commemorative stamp was issued a century later.",
    "Contemporary newspapers reported on it at length.",
    "An annual lecture is held in remembrance.",
    "Local archives were damaged by fire and only partly restored.",
)


@dataclass(frozen=True)
class Person:
    """name, town of birth, year of birth, occupation, and the name of the teacher."""

    name: str
    town: str
    year: int
    occupation: str
    teacher: str


@dataclass(frozen=True)
class Work:
    """title, kind (novel, opera, film, painting), name of its maker, year."""

    title: str
    kind: str
    maker: str
    year: int


@dataclass(frozen=True)
class Town:
    """name, country, year of foundation, river."""

    name: str
    country: str
    year: int
    river: str


@dataclass(frozen=True)
class Part:
    """A closed set of entities: nothing in it refers to an entity outside."""

    people: dict[str, Person]
    works: dict[str, Work]
    towns: dict[str, Town]


@dataclass(frozen=True)
class Encyclopaedia:
    """passages: `(id, contents)` of the corpus. questions: per split."""

    passages: tuple[tuple[str, str], ...]
    questions: dict[str, tuple[Question, ...]]


@lru_cache(maxsize=4)
def full_encyclopaedia(seed: int = 0) -> Encyclopaedia:
    """The encyclopaedia of style "full": 880 passages, training and held-out questions."""
    rng = np.random.default_rng((seed, 1))
    people = _pairs(rng, names.GIVEN_NAMES, names.SURNAMES)
    titles = _pairs(rng, names.TITLE_ADJECTIVES, names.TITLE_NOUNS)
    towns = iter([f"{a}{b}" for a, b in _product(rng, names.TOWN_STEMS, names.TOWN_ENDINGS)])
    passages: list[str] = []
    questions: dict[str, tuple[Question, ...]] = {}
    for split, sizes in _FULL_SIZES.items():
        taken = [
            [next(source) for _ in range(size)] for source, size in zip((people, titles, towns), sizes, strict=True)
        ]
        part = _make_part(rng, *taken)
        passages += _full_passages(rng, part)
        questions[split] = _questions(rng, part, f"generated-{seed}/{split}", has_dates=True)
    order = rng.permutation(len(passages))
    return Encyclopaedia(tuple((str(i), passages[j]) for i, j in enumerate(order)), questions)


@lru_cache(maxsize=256)
def compact_world(split: str, world: int, seed: int = 0) -> Encyclopaedia:
    """One small encyclopaedia of style "compact": 30 passages, about 90 questions."""
    rng = np.random.default_rng((seed, 2, list(NUM_WORLDS).index(split), world))
    pools = (names.GIVEN_NAMES[:32], names.COMPACT_TITLES, names.COMPACT_TOWNS)
    taken = [[str(x) for x in rng.permutation(pool)[:size]] for pool, size in zip(pools, _COMPACT_SIZES, strict=True)]
    part = _make_part(rng, *taken)
    passages = _compact_passages(part)
    questions = _questions(rng, part, f"compact-{seed}/{split}/{world}", has_dates=False)
    order = rng.permutation(len(passages))
    return Encyclopaedia(tuple((str(i), passages[j]) for i, j in enumerate(order)), {split: questions})


def _product(rng: np.random.Generator, first: Sequence[str], second: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [(a, b) for a in first for b in second]
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _pairs(rng: np.random.Generator, first: Sequence[str], second: Sequence[str]) -> Iterator[str]:
    return (f"{a} {b}" for a, b in _product(rng, first, second) if a != b)


def _make_part(rng: np.random.Generator, people: list[str], titles: list[str], town_names: list[str]) -> Part:
    """Seeded facts. A teacher is older than the pupil; only the oldest person taught themself, and has none."""

    def pick(options: Sequence[str]) -> str:
        return str(options[int(rng.integers(len(options)))])

    towns = {n: Town(n, pick(names.COUNTRIES), int(rng.integers(1100, 1700)), pick(names.RIVERS)) for n in town_names}
    years = np.sort(rng.choice(np.arange(1700, 1700 + max(200, len(people))), size=len(people), replace=False))
    occupations = list(WORKS.values())
    made: dict[str, Person] = {}
    for i, name in enumerate(people):
        teacher = people[int(rng.integers(i))] if i else ""
        made[name] = Person(name, pick(town_names), int(years[i]), pick(occupations), teacher)
    works = {}
    for title in titles:
        kind = pick(list(WORKS))
        makers = [p for p in people if made[p].occupation == WORKS[kind]] or people
        maker = pick(makers)
        works[title] = Work(title, kind, maker, made[maker].year + int(rng.integers(20, 60)))
    return Part(made, works, towns)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _full_passages(rng: np.random.Generator, part: Part) -> list[str]:
    def entry(title: str, *sentences: str) -> str:
        filler = [str(_FILLERS[i]) for i in rng.choice(len(_FILLERS), size=2, replace=False)]
        return f'"{title}"\n' + " ".join([*sentences, *filler])

    texts = []
    for p in part.people.values():
        taught = f"{p.name} studied under {p.teacher}." if p.teacher else f"{p.name} was self-taught."
        texts.append(entry(p.name, f"{p.name} was {_a(p.occupation)}, born in {p.town} in {p.year}.", taught))
    for w in part.works.values():
        role = WORKS[w.kind]
        texts.append(entry(w.title, f"{w.title} is {_a(w.kind)} of {w.year}.", f"Its {role} is {w.maker}."))
    for t in part.towns.values():
        where = f"{t.name} is a town in {t.country}, on the river {t.river}."
        texts.append(entry(t.name, where, f"It was founded in {t.year}."))
    return texts


def _compact_passages(part: Part) -> list[str]:
    texts = []
    for p in part.people.values():
        taught = f" taught by {p.teacher}" if p.teacher else ""
        texts.append(f'"{p.name}"\n{p.name} was born in {p.town}{taught}')
    texts += [f'"{w.title}"\n{w.title} is {_a(w.kind)} by {w.maker}' for w in part.works.values()]
    texts += [f'"{t.name}"\n{t.name} lies in {t.country}' for t in part.towns.values()]
    return texts


def _questions(rng: np.random.Generator, part: Part, prefix: str, *, has_dates: bool) -> tuple[Question, ...]:
    made = [*_bridge(part), *_compositional(part), *_comparison(rng, part, has_dates)]
    if has_dates:
        made += _bridge_to_dates(part)
    return tuple(
        Question(f"{prefix}/{number}", text, (answer,), "generated", kind, tuple(dict.fromkeys(chain)))
        for number, (kind, text, answer, chain) in enumerate(made[i] for i in rng.permutation(len(made)))
    )


_Made = tuple[str, str, str, tuple[str, ...]]  # kind, question, answer, titles in the order they become known


def _bridge(part: Part) -> Iterator[_Made]:
    for w in part.works.values():
        maker = part.people[w.maker]
        yield "bridge", f"Where was the {WORKS[w.kind]} of {w.title} born?", maker.town, (w.title, w.maker)
        if maker.teacher:
            yield "bridge", f"Who taught the {WORKS[w.kind]} of {w.title}?", maker.teacher, (w.title, w.maker)
    for p in part.people.values():
        yield "bridge", f"In which country was {p.name} born?", part.towns[p.town].country, (p.name, p.town)


def _bridge_to_dates(part: Part) -> Iterator[_Made]:
    for w in part.works.values():
        text = f"In which year was the {WORKS[w.kind]} of {w.title} born?"
        yield "bridge", text, str(part.people[w.maker].year), (w.title, w.maker)
    for p in part.people.values():
        yield "bridge", f"When was the birthplace of {p.name} founded?", str(part.towns[p.town].year), (p.name, p.town)


def _compositional(part: Part) -> Iterator[_Made]:
    for w in part.works.values():
        maker = part.people[w.maker]
        text = f"In which country was the {WORKS[w.kind]} of {w.title} born?"
        yield "compositional", text, part.towns[maker.town].country, (w.title, w.maker, maker.town)
        if maker.teacher:
            text = f"Where was the teacher of the {WORKS[w.kind]} of {w.title} born?"
            yield "compositional", text, part.people[maker.teacher].town, (w.title, w.maker, maker.teacher)


def _comparison(rng: np.random.Generator, part: Part, has_dates: bool) -> Iterator[_Made]:
    """Pairs of works whose makers are compared: by their towns (half of the pairs share one), or by their age."""
    works = list(part.works.values())
    for i, first in enumerate(works):
        others = [w for w in works if w.maker != first.maker]
        town, want_same = part.people[first.maker].town, i % 2 == 0
        matching = [w for w in others if (part.people[w.maker].town == town) == want_same]
        if matching:
            second = matching[int(rng.integers(len(matching)))]
            text = f"Were the makers of {first.title} and {second.title} born in the same town?"
            yield "comparison", text, "yes" if want_same else "no", _comparison_chain(first, second)
        if has_dates:
            second = others[int(rng.integers(len(others)))]
            older = min((first, second), key=lambda w: part.people[w.maker].year)
            text = f"Which of {first.title} and {second.title} is by the maker who was born first?"
            yield "comparison", text, older.title, _comparison_chain(first, second)


def _comparison_chain(first: Work, second: Work) -> tuple[str, ...]:
    return first.title, first.maker, second.title, second.maker


def main(arguments: list[str] | None = None) -> int:
    """Write the corpus, and the questions, of the full encyclopaedia for any retriever and any trainer."""
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.envs.search_qa.encyclopaedia",
        description="Write the generated encyclopaedia: corpus.jsonl, questions_train.jsonl, questions_test.jsonl.",
        epilog="Then: python -m agentrl.retriever.build OUT/corpus.jsonl INDEX --index minilm/exact",
    )
    parser.add_argument("out", type=user_path, metavar="OUT", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of names and facts (default: %(default)s)")
    options = parser.parse_args(arguments)
    made = full_encyclopaedia(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    _write(options.out / "corpus.jsonl", ({"id": i, "contents": contents} for i, contents in made.passages))
    for split, questions in made.questions.items():
        _write(options.out / f"questions_{split}.jsonl", (q.to_json() for q in questions))
    counts = ", ".join(f"{len(questions)} {split} questions" for split, questions in made.questions.items())
    print(f"{options.out}: {len(made.passages)} passages, {counts}", file=sys.stderr)
    return 0


def _write(path: Path, rows: Iterator[dict[str, object]]) -> None:
    dump: Callable[[object], str] = json.dumps
    path.write_text("".join(dump(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
