"""Files: text that a user names or uploads, and results that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 5 * 1024**2
UNFINISHED = ".sparselens-"  # how names of files and folders begin that are renamed once they are whole
_PATIENCE = 10.0  # s that a pipe may take to give its next bytes
_LEFT_BEHIND = 3600.0  # s after which nobody writes an unfinished file any more
_GIVEN_UP = 30 * 86400.0  # s after which nobody goes on with an unfinished training


def read_file(path: Path) -> str:
    """The text of a regular file or a pipe, of which at most one byte beyond 5 MB is read.

    Raises ValueError for a file that cannot be read, is a device or a folder, is too large, or is no text; and for a pipe
    that nobody writes to, or that gives nothing for 10 s.
    """
    try:
        with open(path, "rb", buffering=0, opener=_at_once) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode):
                if status.st_size > MOST_BYTES:
                    raise ValueError(too_large(path.name, status.st_size))
                data = file.read(MOST_BYTES + 1)
            elif stat.S_ISFIFO(status.st_mode):
                data = _read_pipe(path, file.fileno())
            else:
                raise ValueError(f"{path} is a device: give a file of text, or a pipe")
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror})") from None
    return read_text(path.name, data)


def _at_once(path: str, flags: int) -> int:
    """Opens a pipe without waiting for somebody who writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_pipe(path: Path, pipe: int) -> bytes:
    data = b""
    while len(data) <= MOST_BYTES:
        try:
            read = os.read(pipe, MOST_BYTES + 1 - len(data))
        except BlockingIOError:  # somebody has it open for writing, and wrote nothing yet
            if not select.select([pipe], [], [], _PATIENCE)[0]:
                raise ValueError(
                    f"{path} has sent nothing for {_PATIENCE:.0f} s: give a file of text, or a pipe that ends"
                ) from None
            continue
        if not read:
            break
        data += read
    return data


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError for anything else, whose bytes may never end."""
    with open(path, "rb", opener=_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read()


def read_text(name: str, data: bytes) -> str:
    """An uploaded or named file as text. Raises ValueError for one that is too large, or is no UTF-8 text."""
    if len(data) > MOST_BYTES:
        raise ValueError(too_large(name, len(data)))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text: save it as plain text (UTF-8) first") from None
    if not text.strip():
        raise ValueError(f"{name} is empty: give a file with some text")
    if "\0" in text:
        raise ValueError(f"{name} is a binary file: give plain text")
    return text


def too_large(name: str, n_bytes: int) -> str:
    return f"{name} has {n_bytes / 1024**2:,.0f} MB: give a text of at most 5 MB, or the part that matters"


def hub_text(name: str) -> str:
    """A file of a dataset on the hub, owner/name/path: text as it is, of a table the column `text`.

    Raises ValueError for a name or file that cannot be read.
    """
    parts = name.split("/", 2)
    if len(parts) < 3:
        raise ValueError(f"a text of the hub is owner/name/file, for example owner/name/train.parquet; got {name}")
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset"))
    except Exception as error:  # offline, gated, absent: the hub has a class and a long text for each
        raise ValueError(
            f"{name} cannot be read from the hub ({type(error).__name__}): check the name, go online, or give a file"
        ) from error
    if path.suffix != ".parquet":
        return read_text(name, path.read_bytes())
    import pandas as pd

    try:
        return "\n".join(pd.read_parquet(path, columns=["text"])["text"])
    except (ValueError, KeyError, OSError, TypeError):
        raise ValueError(f"{name} has no column of text: give a text file, or a table with a column `text`") from None


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all. Raises OSError where the folder cannot be written."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def new_folder(path: Path) -> Path:
    """The path of a folder to come. Raises ValueError where it exists and holds something, or is a file."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists already: choose a folder that is new or empty")
    return path


@contextlib.contextmanager
def folder_whole(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` once it is filled, or is removed. An empty folder there keeps its mode.

    Raises OSError where the folder cannot be written, and ValueError where it exists and holds something.
    """
    new_folder(path).parent.mkdir(parents=True, exist_ok=True)
    clear_unfinished(path.parent)
    building = Path(tempfile.mkdtemp(dir=path.parent, prefix=UNFINISHED))
    filling = building / path.name
    try:
        filling.mkdir()  # with the user's own mode, not the private one of a temporary folder
        yield filling
        if path.exists():
            filling.chmod(stat.S_IMODE(path.stat().st_mode))
            path.rmdir()
        os.replace(filling, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Removes the files and folders that writers which were killed left here, an hour after their last byte."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith((UNFINISHED, "building-")) and _age(path) > _LEFT_BEHIND:
                _remove(path)


def clear_leftovers(cache: Path) -> None:
    """What a start removes from the cache: unfinished files, and trainings that nobody went on with for a month."""
    for folder, _, names in os.walk(cache):
        clear_unfinished(Path(folder))
        for path in (Path(folder, name) for name in names if name.endswith(".part")):
            if _age(path) > _GIVEN_UP:
                _remove(path)


def _age(path: Path) -> float:
    """Seconds since the last change of a file, or of anything in a folder; 0 where it has gone."""
    try:
        inside = (p.stat(follow_symlinks=False).st_mtime for p in path.rglob("*")) if path.is_dir() else ()
        return time.time() - max([path.stat(follow_symlinks=False).st_mtime, *inside])
    except OSError:
        return 0.0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
