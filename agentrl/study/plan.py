"""A study file -> the runs it asks for.

A study has one base experiment, arms (settings to compare) and stages (which arms, over which axes, on which seeds).
Stages follow each other: a value may be taken from an earlier stage, such as the learning rate that did best there.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from agentrl.config.describe import content_hash
from agentrl.config.read import load_config, read_toml
from agentrl.config.schema import Section
from agentrl.config.shipped import shipped_configs
from agentrl.errors import ConfigError, UserError

_NAME = re.compile(r"[a-z0-9][a-z0-9_.+-]*")
_REFERENCE = re.compile(r"(best|stops) of ([\w.+-]+) in ([\w.+-]+)")


class ArmConfig(Section):
    """One of the settings that are compared."""

    label: str = ""
    """How tables and figures call it; empty takes its name."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted config keys and their values. `"stops of ARM in STAGE"` is the measured share of reuse steps that ARM
    discarded in STAGE."""


class StageConfig(Section):
    """Arms x axes x seeds."""

    arms: list[str] = Field(min_length=1)
    """Names of arms."""
    seeds: list[int] = Field(min_length=1)
    """`train.seed` of the runs."""
    axes: dict[str, Any] = Field(default_factory=dict)
    """Dotted config key -> list of values, all combinations are run; or `"best of ARM in STAGE"`: the value with which
    ARM ended highest there. `"best of own in STAGE"` takes every arm's own best."""


class StudyConfig(Section):
    """One study."""

    title: str
    """Heading of its tables."""
    base: str
    """The experiment all runs share: a TOML file, relative to the study's."""
    results: str
    """JSON file that keeps what was measured, relative to the study file, in a shipped one to the working directory."""
    runs: str
    """Folder of the run folders, likewise."""
    reference: str
    """Name of the single-use arm, against which speedups are measured."""
    rollout_share: float = Field(0.8, gt=0, lt=1)
    """Share of a single-use step that rollouts take in the formula for time (paper: over 80 %)."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted config keys for all runs."""
    arms: dict[str, ArmConfig]
    """Name -> arm."""
    stages: dict[str, StageConfig]
    """Name -> stage, in the order in which they run."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    arm: str
    axes: tuple[tuple[str, Any], ...]
    """Axis values, by dotted key."""
    seed: int
    overrides: tuple[tuple[str, Any], ...]
    """Everything that differs from the base experiment, the seed left out."""
    base_hash: str
    """Names the base experiment's content."""

    @property
    def key(self) -> str:
        """Names the run folder: arm, hash of base and overrides, seed; equal exactly for equal runs."""
        return f"{self.arm}-{content_hash(self.base_hash, sorted(self.overrides, key=str))[:8]}-s{self.seed}"

    @property
    def setting(self) -> tuple[str, tuple[tuple[str, Any], ...]]:
        """What the seeds of a setting share."""
        return self.arm, self.axes


Lookup = Callable[[str, str, str, str], Any]
"""(kind, arm, stage, axis) -> value measured in an earlier stage, or None where it is not known yet."""


@dataclass(frozen=True)
class Study:
    """A study file that was read and checked."""

    config: StudyConfig
    base: Path
    """The base experiment's file."""
    base_hash: str
    """Names its content; a changed base experiment means new runs."""

    def cells(self, stage: str, lookup: Lookup) -> list[Cell] | None:
        """The runs of a stage, arms interleaved within a seed; None where an earlier stage must end first."""
        found: dict[str, Cell] = {}
        settings = self.config.stages[stage]
        for seed in settings.seeds:
            combinations = [list(self._combinations(stage, arm, lookup)) for arm in settings.arms]
            for round_ in itertools.zip_longest(*combinations):
                for arm, axes in zip(settings.arms, round_, strict=True):
                    if axes is None:
                        continue
                    cell = self._cell(arm, axes, seed, lookup)
                    if cell is None:
                        return None
                    found.setdefault(cell.key, cell)
        return list(found.values())

    def _combinations(self, stage: str, arm: str, lookup: Lookup) -> Iterator[tuple[tuple[str, Any], ...]]:
        axes = self.config.stages[stage].axes
        values = [self._axis_values(value, axis, arm, lookup) for axis, value in axes.items()]
        for combination in itertools.product(*values):
            yield tuple(zip(axes, combination, strict=True))

    def _axis_values(self, value: Any, axis: str, arm: str, lookup: Lookup) -> list[Any]:
        if isinstance(value, str) and (match := _REFERENCE.fullmatch(value)):
            kind, source, stage = match.groups()
            return [lookup(kind, arm if source == "own" else source, stage, axis)]
        return list(value) if isinstance(value, list) else [value]

    def _cell(self, arm: str, axes: tuple[tuple[str, Any], ...], seed: int, lookup: Lookup) -> Cell | None:
        merged = {**self.config.set, **self.config.arms[arm].set, **dict(axes)}
        for key, value in merged.items():
            if isinstance(value, str) and (match := _REFERENCE.fullmatch(value)):
                merged[key] = lookup(match[1], match[2], match[3], key)
            if merged[key] is None:
                return None
        return Cell(arm, axes, seed, tuple(merged.items()), self.base_hash)


def load_study(path: Path) -> Study:
    """Read a study file, and check every arm against the config tree.

    Its paths are relative to it; where a shipped study writes is relative to the working directory.

    Raises:
        ConfigError: unknown key, arm or stage, or a value that cannot be used.
    """
    config = _build(read_toml(path), path)
    if path.resolve() not in shipped_configs().values():
        written = {name: str(path.parent / Path(getattr(config, name)).expanduser()) for name in ("results", "runs")}
        config = config.model_copy(update=written)
    base = path.parent / Path(config.base).expanduser()
    study = Study(config, base, content_hash(read_toml(base)))
    for name, arm in config.arms.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"arm names are letters, digits and _ . + -, got {name!r} ({path}).")
        plain = {key: value for key, value in arm.set.items() if not _is_reference(value)}
        load_config(study.base, as_words({**config.set, **plain}), notify=lambda _: None)  # an arm's kind is on purpose
    for name, stage in config.stages.items():
        _check_stage(name, stage, config, path)
    if config.reference not in config.arms:
        raise ConfigError(f"reference must be one of {', '.join(config.arms)}; got {config.reference!r} ({path}).")
    return study


def require_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names of arms or stages (`what`) that are not there.

    Raises:
        UserError: which, and which there are.
    """
    there = list(known)
    unknown = [name for name in names if name not in there]
    if unknown:
        raise UserError(f"no {what} {', '.join(unknown)}; there are {', '.join(there)}.")


def as_words(overrides: dict[str, Any]) -> list[str]:
    """Overrides as command-line words: `{"learner.lr": 1e-3}` -> `["--learner.lr", "0.001"]`."""
    words: list[str] = []
    for key, value in overrides.items():
        text = {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
        words += [f"--{key}", text]
    return words


def _build(tree: dict[str, Any], path: Path) -> StudyConfig:
    try:
        return StudyConfig.model_validate(tree)
    except ValueError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]  # type: ignore[attr-defined]
        raise ConfigError("\n".join(f"{line} ({path})." for line in lines)) from None


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def _check_stage(name: str, stage: StageConfig, config: StudyConfig, path: Path) -> None:
    earlier = list(config.stages)[: list(config.stages).index(name)]
    for arm in stage.arms:
        if arm not in config.arms:
            raise ConfigError(f"stage {name}: no arm {arm!r}; there are {', '.join(config.arms)} ({path}).")
    values = [*stage.axes.values(), *(v for arm in stage.arms for v in config.arms[arm].set.values())]
    for value in values:
        match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match and match[3] not in earlier:
            raise ConfigError(f"stage {name}: {value!r} must name an earlier stage ({path}).")
