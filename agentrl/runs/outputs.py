"""Files and folders that a command writes: theirs before the work begins, whole or not there at its end."""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from safetensors import SafetensorError

from agentrl.common.paths import user_path
from agentrl.errors import UserError

if TYPE_CHECKING:
    from agentrl.model.processes import Processes  # imports torch, which takes seconds


@contextmanager
def output_file(path: Path | None, option: str) -> Iterator[Callable[[str], None]]:
    """A function that writes the text of a file, which is opened now and replaces an older one at the end.

    Args:
        path: the file; folders above it are made. None: nothing is written.
        option: how the user named it, for the error message.

    Raises:
        UserError: it cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    special = path.exists() and not path.is_file() and not path.is_dir()  # /dev/stdout
    draft = path if special else path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        file = draft.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{option}: cannot write {path}: {error.strerror}. Name another file.") from None
    texts: list[str] = []
    try:
        with file:
            yield texts.append
            file.writelines(texts)
        if texts and not special:
            draft.replace(path)
    finally:
        if not special:
            draft.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path, *, errors: str = "strict") -> Iterator[TextIO]:
    """A text file that stands in `path`'s place once it is whole; several machines may write one at a time."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.writing")
    try:
        with draft.open("w", encoding="utf-8", errors=errors) as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that becomes `folder`, in place of an older one, once everything is in it.

    Raises:
        OSError: it could not be written, whichever library wrote.
    """
    draft = draft_of(folder)
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with system_errors(folder):
            yield draft
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_of(folder: Path) -> Path:
    """What `whole_folder` gives to write in."""
    return folder.with_name(f".{folder.name}.writing")


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """What the system said to safetensors, which tells it as text ("... (os error 28)"), as the OSError that it is."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1))


def claim_folder(name: str, *, parent: Path = Path("runs")) -> Path:
    """`runs/NAME-YYYYMMDD-HHMMSS`, made now and by nobody else; with a number behind it where that is taken.

    Raises:
        UserError: folders cannot be made here.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        folder = parent / f"{name}-{stamp}{'' if number == 1 else f'-{number}'}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            if not parent.is_dir():
                raise UserError(f"{parent} is a file; a folder of this name is needed for results.") from None
            continue
        except OSError as error:
            raise UserError(
                f"cannot make the folder {folder}: {error.strerror}. Start from a folder that you can write to, or "
                "name one with --run-dir (train) or --out (evaluate)."
            ) from None
        return folder
    raise AssertionError("unreachable: numbers do not end")


def require_empty(folder: Path) -> None:
    """Refuse a folder that something lies in, before the work.

    Raises:
        UserError: it is not empty, or a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Give another --run-dir.")
    if folder.exists() and any(folder.iterdir()):
        raise not_empty(folder)


def not_empty(folder: Path) -> UserError:
    """What is wrong with a folder that something lies in."""
    return UserError(f"{folder} is not empty. Give another --run-dir, or continue it with --resume {folder}.")


@contextmanager
def run_folder(
    run_dir: Path | str | None, resume: Path | str | None, name: str, processes: "Processes"
) -> Iterator[Path]:
    """The folder of a run, the same for all processes; a new one goes again where nothing comes of it.

    Args:
        run_dir: where the user wants it.
        resume: an earlier run to go on in.
        name: for a folder of its own under `runs`.
        processes: the first one makes it.
    """
    claimed = None
    if processes.is_first and not resume:
        if run_dir:
            require_empty(user_path(str(run_dir)))
        else:
            claimed = claim_folder(re.sub(r"[^\w.+-]+", "-", name.split("/")[-1].removeprefix("__main__:")))
    given = resume or run_dir
    folder = processes.from_first(user_path(str(given)) if given else claimed)
    assert folder is not None, "the first process has claimed one"
    with given_back_if_empty(claimed):
        yield folder


@contextmanager
def given_back_if_empty(folder: Path | None) -> Iterator[None]:
    """Work that may fail before it has written anything: then the claimed folder goes again."""
    try:
        yield
    except BaseException:
        if folder is not None:
            for path in (folder, folder.parent if folder.parent.name == "runs" else folder):
                with suppress(OSError):  # not empty, or gone
                    path.rmdir()
        raise
