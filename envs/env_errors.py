"""Errors that environments raise for their users."""


class DataError(ValueError):
    """What a user gave cannot be used: an option, or data files that are missing, damaged or of another kind.

    The message says what was expected, what came, where, and what to do.
    """


class NoRoomError(ConnectionError):
    """A server plays as many episodes as it can and refuses another; `no_room` tells a training loop to wait."""

    no_room = True
