"""Paths as users write them."""

from pathlib import Path


def user_path(text: str) -> Path:
    """A path; `~` is the user's home, also after an equals sign, where no shell replaces it."""
    return Path(text).expanduser() if text.startswith("~") else Path(text)
