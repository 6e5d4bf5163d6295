"""How this package is installed, and how its extras are: the one place that knows the distribution's name."""

from contextlib import suppress
from pathlib import Path

DISTRIBUTION = "agentrl-dgg"
"""The name on the package index; `agentrl` there is another project."""


def install_hint(extra: str) -> str:
    """The command that brings an extra, as it is right here: into a checkout, or beside an installed package."""
    checkout = find_checkout()
    if checkout is None:
        return f"pip install '{DISTRIBUTION}[{extra}]'"
    here = None
    with suppress(OSError):  # the working directory is gone
        here = Path.cwd()
    return f"pip install -e '{'.' if checkout == here else checkout}[{extra}]'"


def find_checkout(root: Path | None = None) -> Path | None:
    """The folder of the source that runs, installed editable or not at all; None of a package made from a wheel.

    Args:
        root: the folder that holds the package; None: this one.
    """
    root = root or Path(__file__).resolve().parents[2]
    try:
        text = (root / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return root if f'\nname = "{DISTRIBUTION}"\n' in text else None
