"""Versions of what a run depends on, and the commit of this checkout."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agentrl.common.installation import DISTRIBUTION, find_checkout

_PACKAGES = (
    DISTRIBUTION,
    "torch",
    "transformers",
    "accelerate",
    "gymnasium",
    "numpy",
    "tokenizers",
    "safetensors",
    "vllm",
)


def describe_software() -> dict[str, Any]:
    """Versions of what a run depends on, and the git commit where there is one."""
    versions: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**versions, "git_commit": own_commit(Path(__file__).resolve().parents[2])}


def own_commit(root: Path) -> str | None:
    """The commit of a checkout of this project, `+changes` where files differ; None of an installed package.

    An environment inside somebody's repository, or a repository that holds a copy of this package, is not ours.
    """
    try:
        if find_checkout(root) is None or Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return _git(root, "rev-parse", "HEAD") + ("+changes" if _git(root, "status", "--porcelain") else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    surroundings = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # hooks set GIT_DIR
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True, env=surroundings)
    return done.stdout.strip()
