"""Verifications per CPU-second: this project's checker and math-verify alone, on the same pairs.

    OMP_NUM_THREADS=1 python benchmarks/math_verify_speed.py --data-dir FOLDER_WITH_MATH500

Two mixes: integers, decimals and fractions (gold answer and boxed prediction, half of them equal, no pair twice), and
MATH500 (each official solution against its own answer and against another problem's). CPU seconds of this process and
of its workers, whose start is left out for both sides. math-verify runs in this process with its time-outs off.
"""

import argparse
import os
import random
import time
from collections.abc import Callable, Iterable
from fractions import Fraction

import psutil

from agentrl.envs.math.answers import extract_answers
from agentrl.envs.math.checker import initialise, library_equal
from agentrl.envs.math.problems import load_problems
from agentrl.envs.math.verifier import library_verdict, verify

Pair = tuple[str, str]


def number_pairs(count: int, *, seed: int) -> list[Pair]:
    """(gold, response) pairs of integers, decimals and fractions in mixed writings; half of them equal."""
    draw = random.Random(seed)
    pairs = []
    for i in range(count):
        value = draw.choice(
            [Fraction(draw.randint(-9999, 9999)), Fraction(draw.randint(-999, 999), draw.choice([2, 4, 5, 8, 3, 7]))]
        )
        other = value if i % 2 else value + Fraction(draw.randint(1, 50), draw.choice([1, 2, 4]))
        pairs.append((write(value, draw), rf"The answer is $\boxed{{{write(other, draw)}}}$."))
    return pairs


def write(value: Fraction, draw: random.Random) -> str:
    """One of the usual writings of a number."""
    top, bottom = value.numerator, value.denominator
    if bottom == 1:
        return draw.choice([str(top), f"{top}.0", f"{top:,}"])
    sign = "-" if top < 0 else ""
    forms = [f"{top}/{bottom}", rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}", rf"{sign}\dfrac{{{abs(top)}}}{{{bottom}}}"]
    if bottom in (2, 4, 5, 8):
        forms.append(str(float(value)))
    return draw.choice(forms)


def math500_pairs(data_dir: str | None, *, seed: int) -> list[Pair]:
    """Every official solution against its own gold answer and against that of another problem."""
    problems = load_problems("math500", data_dir=data_dir).problems
    others = list(problems)
    random.Random(seed).shuffle(others)
    right = [(p.answer, rf"... \boxed{{{p.answer}}}") for p in problems]
    return right + [(p.answer, rf"... \boxed{{{q.answer}}}") for p, q in zip(problems, others, strict=True)]


def cpu_seconds() -> float:
    """CPU seconds of this process and of all its living and dead descendants."""
    total = sum(psutil.Process().cpu_times()[:4])
    for child in psutil.Process().children(recursive=True):
        total += sum(child.cpu_times()[:4])
    return total


def rate(check: Callable[[str, str], bool], pairs: Iterable[Pair]) -> tuple[float, int, list[bool]]:
    """(verifications per CPU-second, how many, the verdicts)."""
    started = cpu_seconds()
    verdicts = [check(gold, response) for gold, response in pairs]
    return len(verdicts) / max(1e-9, cpu_seconds() - started), len(verdicts), verdicts


def alone(gold: str, response: str) -> bool:
    """math-verify on the last box, as others call it."""
    answers = extract_answers(response)
    return bool(answers) and library_equal(gold, answers[0])


def compare(name: str, pairs: list[Pair], *, num_alone: int) -> None:
    """Print both rates and in how many pairs the verdicts differ."""
    ours, count, verdicts = rate(lambda g, r: verify(g, r).correct, pairs)
    theirs, count_alone, verdicts_alone = rate(alone, pairs[:num_alone])
    different = sum(a != b for a, b in zip(verdicts, verdicts_alone, strict=False))
    print(
        f"{name:<28} {ours:>12,.0f} {theirs:>12,.0f} {ours / theirs:>8,.1f}x {count:>8,} {different:>6}/{count_alone:,}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000, help="pairs of the number mix (default 20,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", default=os.environ.get("MATH_DATA"), help="folder of math500.jsonl")
    options = parser.parse_args()
    initialise()
    library_verdict("x", "y")  # starts the worker
    time.sleep(0.1)
    columns = f"{'this project':>12} {'math-verify':>12} {'ratio':>9} {'pairs':>8} {'differ':>9}"
    print(f"{'verifications / CPU-second':<28} {columns}")
    compare("warm-up", number_pairs(500, seed=options.seed + 1), num_alone=100)
    compare("integer, decimal, fraction", number_pairs(options.pairs, seed=options.seed), num_alone=1000)
    if options.data_dir:
        compare("MATH500 mix", math500_pairs(options.data_dir, seed=options.seed), num_alone=10_000)


if __name__ == "__main__":
    main()
