"""What all commands share: one clear line and exit code 2 for bad input, 130 for Ctrl-C."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext

from agentrl.common.streams import outliving_readers, print_anything
from agentrl.config.describe import describe_fields
from agentrl.config.read import split_overrides
from agentrl.errors import RunError, UserError


def main_guard(main: Callable[[], int], *, outlives_readers: bool = False) -> int:
    """Run a command's `main`; users' errors become one message on stderr and an exit code.

    2: bad input or a full disk; 3: a run that could not go on; 130: Ctrl-C; 143: SIGTERM, 129: SIGHUP, 138: SIGUSR1.
    Everything else is a bug and keeps its traceback.

    Args:
        main: the command.
        outlives_readers: whether it goes on when nobody reads its log any more (runs, evaluations).
    """
    print_anything()
    with outliving_readers() if outlives_readers else nullcontext():
        return _guarded(main)


def _guarded(main: Callable[[], int]) -> int:
    try:
        return main()
    except (UserError, ValueError, ImportError) as error:
        if not _is_user_error(error):
            raise
        return _fail(str(error), 2)
    except BrokenPipeError:  # somebody reads no further: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"the disk is full: {error}. Free some room; the last whole checkpoint is intact.", 2)
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return _fail(f"no permission: {error}", 2)
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            return _fail(f"a file stands where a folder should, or a folder where a file should: {error}", 2)
        raise
    except RunError as error:
        return _fail(str(error), 3)
    except KeyboardInterrupt as signal:
        return _fail("interrupted", getattr(signal, "exit_code", 130))


def parse_command_line(
    parser: argparse.ArgumentParser, argv: list[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """(options, config overrides) of a command line; `argv` defaults to the process's own.

    Raises:
        UserError: words that are neither; a key given without its table is told in full.
    """
    words, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    options, unknown = parser.parse_known_args(words)
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        full = [f"--{key}" for key, _, _ in describe_fields() if key.split(".")[-1] == name]
        hint = f"Did you mean {' or '.join(full)}?" if full else f"{parser.prog} --help lists what it takes."
        raise UserError(f"unknown argument {unknown[0]!r}. {hint}")
    return options, overrides


def _is_user_error(error: Exception) -> bool:
    """Our own errors, and those of `envs` and `retriever`, which do not know ours."""
    return isinstance(error, UserError) or type(error).__module__.startswith(("agentrl.envs.", "agentrl.retriever."))


def _fail(message: str, code: int) -> int:
    who = f" [process {os.environ['RANK']}]" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    for line in message.splitlines():
        print(f"error{who}: {line}", file=sys.stderr)
    return code
