"""Score transcripts per data set: `python -m agentrl.envs.search_qa.score_transcripts TRANSCRIPTS.jsonl`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.common.fields import open_text, read_lines, texts_of
from agentrl.common.intervals import wilson_interval
from agentrl.common.paths import user_path
from agentrl.envs.env_errors import DataError
from agentrl.envs.search_qa.questions import PUBLISHED_SIZES, dataset_name
from agentrl.envs.search_qa.scoring import exact_match, f1_score, folded_exact_match, last_answer, own_turns

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Scored:
    """One scored answer: its data set, exact match, F1, and exact match after folding."""

    dataset: str
    em: bool
    f1: float
    folded_em: bool


def score(dataset: str, turns: Sequence[str], golden_answers: Sequence[str]) -> Scored:
    """Score the model's own turns of one episode."""
    prediction = last_answer(turns)
    return Scored(
        dataset,
        exact_match(prediction, golden_answers),
        f1_score(prediction, golden_answers),
        folded_exact_match(prediction, golden_answers),
    )


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Normal 95 % interval of a mean."""
    if len(values) < 2:
        return 0.0, 1.0
    half = _Z95 * float(np.std(values, ddof=1)) / sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def table(scored: Sequence[Scored]) -> str:
    """One line per data set and, with several, their unweighted mean: n, EM and F1 with 95 % intervals, folded EM."""
    lines = [f"{'data set':18} {'n':>6} {'of':>6}  {'EM':>6} {'95 %':>15}  {'F1':>6} {'95 %':>15}  {'folded EM':>9}"]
    rates = []
    for name in dict.fromkeys(s.dataset for s in scored):
        own = [s for s in scored if s.dataset == name]
        em, f1 = [s.em for s in own], [s.f1 for s in own]
        low, high = wilson_interval(sum(em), len(em))
        low_f1, high_f1 = mean_interval(f1)
        folded = np.mean([s.folded_em for s in own])
        lines.append(
            f"{name:18} {len(own):6} {PUBLISHED_SIZES.get(name, '-'):>6}  {np.mean(em):6.3f} [{low:.3f}, {high:.3f}]"
            f"  {np.mean(f1):6.3f} [{low_f1:.3f}, {high_f1:.3f}]  {folded:9.3f}"
        )
        rates.append((np.mean(em), np.mean(f1)))
    if len(rates) > 1:
        lines.append(f"{'mean of data sets':18} {len(scored):6} {'':6}  {np.mean([r[0] for r in rates]):6.3f}")
    return "\n".join(lines)


def read_transcripts(path: Path) -> list[Scored]:
    """Score the rows of a JSON-lines file.

    A row has `golden_answers` and either `turns` (the model's own, a list) or `response` (with `<information>` blocks;
    FlashRAG's `output.final_response` is read too), and optionally `dataset`.

    Raises:
        DataError: a row has neither.
    """
    scored = []
    with open_text(path) as lines:
        for number, line in read_lines(lines):
            try:
                row = json.loads(line)
                name = dataset_name(row.get("dataset", path.stem))
                scored.append(score(name, _turns(row), texts_of(row["golden_answers"])))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f'{path}, line {number}: expected {{"golden_answers": [...], "response": "..."}} ({error!r})'
                ) from error
    return scored


def _turns(row: dict[str, Any]) -> list[str]:
    if "turns" in row:
        return [str(turn) for turn in row["turns"]]
    return own_turns(row["response"] if "response" in row else row["output"]["final_response"])


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m agentrl.envs.search_qa.score_transcripts",
        description="Exact match and F1 of transcripts per data set, with 95 % intervals; the model's own text only.",
        epilog='A row: {"dataset": "nq", "golden_answers": ["..."], "response": "<search>...<answer>...</answer>"}',
    )
    parser.add_argument("transcripts", type=user_path, nargs="+", metavar="TRANSCRIPTS.jsonl")
    options = parser.parse_args(arguments)
    try:
        scored = [row for path in options.transcripts for row in read_transcripts(path)]
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(scored))
    return 0


if __name__ == "__main__":
    sys.exit(main())
