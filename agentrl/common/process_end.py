"""The end of a child process."""

from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess


def end_process(process: BaseProcess | None, pipe: Connection | None) -> None:
    """Stop a process and everything in it at once, wait for its end, and close the pipe to it."""
    if process is not None:
        process.kill()
        process.join()
    if pipe is not None:
        pipe.close()
