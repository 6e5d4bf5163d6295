"""Several samples a task: mean@k, pass@k and majority@k as tables, and the samples as JSON lines."""

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table

from agentrl.analysis.sampling import Accuracy, Estimate, ProblemSamples
from agentrl.config.schema import Config
from agentrl.errors import UserError
from agentrl.runs.episodes import as_json, describe_trajectory, read_trajectory
from agentrl.types import Metrics, Status, Trajectory


def problem_samples(trajectories: Iterable[Trajectory]) -> list[ProblemSamples]:
    """The samples of every task; one that could not be played counts as wrong."""
    by_task: dict[int, list[Trajectory]] = {}
    for trajectory in sorted(trajectories, key=lambda t: (t.task.position, t.member)):
        by_task.setdefault(trajectory.task.position, []).append(trajectory)
    return [
        ProblemSamples(tuple(t.success for t in members), tuple(t.answer for t in members), _labels(members))
        for members in by_task.values()
    ]


def _labels(members: list[Trajectory]) -> dict[str, object]:
    """What the environment sorts a task by, else its category; taken from a sample that was played."""
    played = next((t for t in members if t.status is not Status.FAILED), members[0])
    told = {key: _as_label(value) for key, value in played.metadata.items() if key != "template"}
    labels = {key: value for key, value in told.items() if value is not None}
    category = {"category": played.category} if played.category else {}
    return labels or {"benchmark": played.task.env_id, **category}


def _as_label(value: Any) -> object:
    """A value that rows of a table can be sorted by: numbers and text themselves, else as JSON; None for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False, default=str)


def describe_sampling(
    config: Config, trajectories: list[Trajectory], *, samples: int, scorer: str | None
) -> dict[str, Any]:
    """What a number depends on besides the weights; printed and stored with it.

    Args:
        config: of the evaluation.
        trajectories: its episodes.
        samples: episodes per task.
        scorer: distribution that judges answers, whose version matters.
    """
    members = config.mixture or [config.env]
    limits, turns = config.rollout, [t.turns[-1] for t in trajectories if t.turns]
    templates = {str(t.metadata["template"]) for t in trajectories if "template" in t.metadata}
    described = {
        "samples": samples,
        "temperature": config.eval.temperature,
        "top_p": 1.0,
        "max_new_tokens": limits.max_new_tokens,
        "max_context_tokens": limits.max_context_tokens,
        "max_turns": limits.max_turns,
        "template": ", ".join(sorted(templates)) or ", ".join(dict.fromkeys(env.format for env in members)),
        "system": members[0].system if len(members) == 1 else [env.system for env in members],
        "options": members[0].options if len(members) == 1 else [env.options for env in members],
        "scorer": _installed(scorer),
        "truncated": sum(turn.finish == "length" for turn in turns) / max(1, len(turns)),
        "unanswered": sum(not turn.is_valid for turn in turns) / max(1, len(turns)),
        "failed": sum(t.status is Status.FAILED for t in trajectories),
        "refused": sum(turn.finish == "refused" for t in trajectories for turn in t.turns) or None,
        "timeouts": sum(t.num_verdict_timeouts for t in trajectories) or None,
    }
    return {key: value for key, value in described.items() if value is not None}


def _installed(distribution: str | None) -> str | None:
    try:
        return f"{distribution} {version(distribution)}" if distribution else None
    except PackageNotFoundError:
        return None


def sampling_line(described: dict[str, Any]) -> str:
    """`describe_sampling` in words."""
    words = {**described, "truncated": f"{described['truncated']:.1%}", "unanswered": f"{described['unanswered']:.1%}"}
    return ", ".join(f"{key} {json.dumps(value) if isinstance(value, dict) else value}" for key, value in words.items())


def accuracy_view(table: dict[str, Accuracy], *, samples: int, title: str) -> Table:
    """mean@k, pass@k and majority@k per benchmark, level and subject, with 95 % bootstrap intervals over problems."""
    # Narrow enough for a terminal of 80 columns, where rich would cut numbers.
    view = Table(title=f"{title}, in %", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    view.add_column("benchmark")
    for name in ("n", f"mean@{samples}", f"pass@{samples}", f"majority@{samples}"):
        view.add_column(name, justify="right", no_wrap=True)
    for name, accuracy in table.items():
        benchmark, _, part = name.partition(", ")
        if not part:
            view.add_row()
        view.add_row(
            f" {part.removeprefix('subject ')}" if part else benchmark,
            str(accuracy.mean.count),
            *(_percent(value) for value in (accuracy.mean, accuracy.passes[samples], accuracy.majority)),
            style=None if part else "bold",
        )
    return view


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    mean, low, high = (f"{100 * x:.1f}".replace("100.0", "100") for x in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def accuracy_record(table: dict[str, Accuracy]) -> Metrics:
    """The same as nested JSON: name -> estimate -> `[mean, low, high]`, and the number of problems."""

    def values(estimate: Estimate) -> list[float]:
        return [estimate.mean, estimate.low, estimate.high]

    return {
        name: {
            "problems": accuracy.mean.count,
            "mean": values(accuracy.mean),
            **{f"pass@{n}": values(estimate) for n, estimate in accuracy.passes.items()},
            **({"majority": values(accuracy.majority)} if accuracy.majority else {}),
        }
        for name, accuracy in table.items()
    }


class SampleFile:
    """`samples.jsonl`: one sample a line in the form of a run's episodes (`agentrl.runs.episodes`).

    Written as it comes, so that a stopped evaluation keeps what it has.
    """

    def __init__(self, folder: Path, *, goes_on: bool = False) -> None:
        self.folder = folder
        self._decode: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not goes_on:
                (folder / "samples.jsonl").unlink(missing_ok=True)
            self._file: TextIO = (folder / "samples.jsonl").open("a", encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"--out: cannot write into {folder}: {error.strerror}. Name another folder.") from None

    @classmethod
    @contextmanager
    def into(cls, folder: Path, *, goes_on: bool = False) -> "Iterator[SampleFile]":
        """The file of a folder, closed in the end, and gone where it is empty. One may go on with a file."""
        file = cls(folder, goes_on=goes_on)
        try:
            yield file
        finally:
            file.close()
            if not (folder / "samples.jsonl").stat().st_size:
                (folder / "samples.jsonl").unlink()
                shutil.rmtree(folder / "tokenizer", ignore_errors=True)

    def keep_tokenizer(self, tokenizer: Any) -> None:
        """Store the tokenizer beside the samples, whose tokens a report then shows."""
        self._decode = tokenizer.decode
        tokenizer.save_pretrained(self.folder / "tokenizer")

    def write(self, trajectory: Trajectory) -> None:
        """Append a sample."""
        record = describe_trajectory(trajectory, decode=self._decode)
        self._file.write(json.dumps(record, ensure_ascii=False, default=as_json) + "\n")
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()


def read_samples(lines: Iterable[str]) -> Iterator[Trajectory]:
    """Samples as `SampleFile` wrote them."""
    for line in lines:
        yield read_trajectory(json.loads(line))
