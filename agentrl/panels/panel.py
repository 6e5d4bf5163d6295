"""A panel: tasks, seeds, protocol, limits, sampling, and digests of what determines the score."""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentrl.errors import UserError
from agentrl.types import Task

LISTS = Path(__file__).parent / "lists"


class Panel(BaseModel):
    """One file of `agentrl/panels/lists`, or of one's own. It holds names, numbers and digests, never texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    """Without the version."""
    version: int = Field(ge=0)
    """From 1; 0 where something that determines the score is not known to the panel (`unknown`)."""
    about: str
    """What it is, in a line."""
    source: str
    """Where its data come from."""
    settings: dict[str, dict[str, Any]]
    """Keys of the config that belong to it: environment, protocol, limits, sampling."""
    num_tasks: int = Field(ge=1)
    """How many tasks."""
    indices: list[int] | None = None
    """Task numbers in the order of play; None: 0 to `num_tasks` - 1, or tasks known by their seeds alone."""
    is_enumerable: bool = True
    """Whether tasks have numbers."""
    first_seed: int = 2**30
    """Seed of the first task; the others follow one by one."""
    names: list[str] | None = None
    """What the environment calls each task, where that is an identifier."""
    digests: list[str] | None = None
    """First 8 hexadecimal digits of each task's sha256 (`agentrl.panels.digests`)."""
    content: str | None = None
    """sha256 over all tasks' digests, in full length."""
    files: dict[str, str] = {}
    """sha256 of files that are known as files; `corpus` and `index` of a retriever."""
    engine: str | None = None
    """sha256 of what the environment answers to a seeded walk: our engine's behaviour, on these data."""
    unknown: list[str] = []
    """What else determines the score and was not at hand when the panel was made."""

    @model_validator(mode="after")
    def _is_whole(self) -> "Panel":
        if bool(self.unknown) != (self.version == 0):
            raise ValueError("version 0 and `unknown` belong together")
        for name in ("indices", "names", "digests"):
            values = getattr(self, name)
            if values is not None and len(values) != self.num_tasks:
                raise ValueError(f"{name} must have {self.num_tasks} entries, has {len(values)}")
        return self

    @property
    def id(self) -> str:
        """`alfworld-seen@1`."""
        return f"{self.name}@{self.version}"

    @property
    def freezing(self) -> str:
        """The command that makes version 1 of a panel of version 0, on a machine that has its data."""
        env, file = str(self.settings["env"]["id"]), f"{self.name}.json"
        variable = {"agentrl/ALFWorld-v0": "ALFWORLD_DATA=FOLDER ", "agentrl/Math-v0": "MATH_DATA=FOLDER "}.get(env, "")
        asked = f" --env.options.questions.{self.name.split('-')[0]} FILE --env.options.retriever INDEX"
        words = asked if env == "agentrl/SearchQA-v0" else ""
        return f"{variable}python -m agentrl.panels make {self.id} --version 1 --out {file}{words}"

    def digest(self) -> str:
        """sha256 of the panel itself."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()

    def tasks(self) -> list[Task]:
        """What is played."""
        env = self.settings["env"]
        indices: list[int] | list[None] = [None] * self.num_tasks
        if self.is_enumerable:
            indices = self.indices if self.indices is not None else list(range(self.num_tasks))
        return [
            Task(env["id"], env["eval_split"], self.first_seed + place, index, place)
            for place, index in enumerate(indices)
        ]


def shipped_panels() -> dict[str, Panel]:
    """All panels that come with the package, by `name@version`."""
    panels = [read_panel(path) for path in sorted(LISTS.glob("*.json"))]
    return {panel.id: panel for panel in panels}


def find_panel(name: str) -> Panel:
    """A shipped panel by `name@version` (or its name alone, where there is one version), or one in a file.

    Raises:
        UserError: there is none.
    """
    if name.endswith(".json"):
        return read_panel(Path(name).expanduser())
    panels = shipped_panels()
    found = [panel for panel in panels.values() if name in (panel.id, panel.name)]
    if len(found) == 1:
        return found[0]
    near = difflib.get_close_matches(name, panels, n=3, cutoff=0.3)
    raise UserError(f"--panel: no panel {name!r}. Did you mean {' or '.join(near) or 'one of ' + ', '.join(panels)}?")


def read_panel(path: Path) -> Panel:
    """A panel's file.

    Raises:
        UserError: it is missing or no panel.
    """
    try:
        return Panel.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--panel: {path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--panel: {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None


def write_panel(panel: Panel, path: Path) -> None:
    """Write a panel, long lists on lines of their own."""
    told = {key: value for key, value in panel.model_dump().items() if value not in (None, {}, [])}
    text = ",\n".join(f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in told.items())
    path.write_text("{\n" + text + "\n}\n", encoding="utf-8")
