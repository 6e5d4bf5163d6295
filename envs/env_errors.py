"""Errors that environments raise for their users."""

from agentrl.common.installation import install_hint


class DataError(ValueError):
    """Data files are missing, damaged, or of another kind than expected.

    The message says what was expected, what came, where, and what to do.
    """


class MissingExtraError(ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: {install_hint(extra)}")


class NoRoomError(ConnectionError):
    """A server plays as many episodes as it can and refuses another; `no_room` tells a training loop to wait."""

    no_room = True
