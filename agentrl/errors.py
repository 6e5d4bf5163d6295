"""The exception tree.

`UserError` and its children describe something the user can mend: one message, exit code 2. Everything else that
escapes is a bug of ours and keeps its traceback.
"""


class UserError(ValueError):
    """Bad input: the message says what was expected, what came, where, and what to do."""


class ConfigError(UserError):
    """A config file or an override holds a value that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint or run folder is missing, incomplete or damaged."""


class RunError(RuntimeError):
    """A run cannot go on for a reason outside the program's control (dead engine or retriever, full disk, NaN)."""


class InfrastructureError(RunError):
    """An environment, engine or retriever raised, hung or died while an episode was played."""


class Unplayable(RunError):
    """So many episodes failed that a run does not go on; the message tells the cause.

    Args:
        message: for the user.
        everywhere: whether all processes of the run raise it at the same place.
    """

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere
