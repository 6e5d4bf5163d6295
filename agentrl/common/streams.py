"""Consoles that never end a good run: any character can be printed, and a reader that went away is not missed."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO, errno.ESHUTDOWN, errno.ENXIO, errno.EBADF)
"""What a write meets when the reader of a pipe or the terminal is gone."""


class Lasting:
    """A text stream that swallows what nobody reads any more: `| head -1`, a terminal that was closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or let go."""
        return self._try(self._stream.write, text) or len(text)

    def flush(self) -> None:
        """Flush, or let go."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except ValueError:  # closed
            return None
        except OSError as error:
            if error.errno not in _GONE:
                raise
            with suppress(OSError, ValueError):  # what is still buffered shall not fail at the end of the program
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            return None


def tell(text: str) -> None:
    """Print to a reader who may read no further (`| head`)."""
    try:
        print(text, end="\n" if text else "", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_anything() -> None:
    """What a console's encoding lacks becomes a question mark instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", "") in ("strict", "surrogateescape"):
            with suppress(ValueError, OSError):
                reconfigure(errors="replace")


@contextmanager
def outliving_readers() -> Iterator[None]:
    """Standard output and error that outlive their readers, for work of hours; None (`pythonw`) becomes nowhere."""
    before = sys.stdout, sys.stderr
    # Kept open for what was given the stream meanwhile.
    nowhere = open(os.devnull, "w") if None in before else None  # noqa: SIM115
    sys.stdout, sys.stderr = (Lasting(stream or nowhere) for stream in before)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
