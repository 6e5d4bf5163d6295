"""The exception tree.

`UserError` and its children describe something the user can mend: one message, exit code 2. Everything else that
escapes is a bug of ours and keeps its traceback.
"""

from agentrl.installation import install_hint


class UserError(ValueError):
    """Bad input: the message says what was expected, what came, where, and what to do."""


class ConfigError(UserError):
    """A config file or an override holds a value that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint or run folder is missing, incomplete or damaged."""


class MissingExtraError(UserError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: {install_hint(extra)}")


class RunError(RuntimeError):
    """A run cannot go on for a reason outside the program's control (dead engine or retriever, full disk, NaN)."""


class InfrastructureError(RunError):
    """An environment, engine or retriever raised, hung or died while an episode was played."""
