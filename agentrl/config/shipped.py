"""The configs that come with the package, in a checkout and in a wheel: found by bare name, listed by purpose."""

import re
from pathlib import Path

_FOLDER = (Path(__file__).parents[1] / "configs").resolve()


def shipped_configs(folder: Path = _FOLDER) -> dict[str, Path]:
    """Name -> file: `quickstart`, `paper/math_qwen3_4b`; studies, which `agentrl study` reads, are among them."""
    files = sorted(folder.rglob("*.toml"), key=lambda path: (len(path.relative_to(folder).parts), path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def find_config(path: Path) -> Path:
    """The file itself, else the shipped one: `quickstart`, `quickstart.toml`, `configs/quickstart.toml`."""
    path = path.expanduser()
    if path.is_file() or path.is_absolute():
        return path
    name = path.as_posix().removeprefix("configs/").removesuffix(".toml")
    return shipped_configs().get(name, path)


def purpose(path: Path) -> str:
    """The first sentence of a config's first comment."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return re.split(r"(?<=[.?:])\s", " ".join(lines))[0].rstrip(":.")


def list_configs(*, studies: bool = False) -> str:
    """One line a config: its name and what it is for; experiments, or studies of many runs."""
    chosen = {name: path for name, path in shipped_configs().items() if name.startswith("study/") == studies}
    if studies:  # the base experiments that they vary are no studies
        chosen = {name: path for name, path in chosen.items() if not name.endswith("_base")}
    width = max(map(len, chosen), default=0)
    return "\n".join(f"{name:{width}}  {purpose(path)}" for name, path in chosen.items())
