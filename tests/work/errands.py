"""Work for jobs, which an engine imports by name: its signs are files, since it runs in another process."""

from __future__ import annotations

import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

from sparsity_core.record import RunSpec, Store
from sparsity_core.work.jobs import Job

PATIENCE = 60  # seconds until a stuck queue fails its test


def settled(*jobs: Job, most: float = PATIENCE) -> None:
    deadline = time.monotonic() + most
    while not all(job.finished for job in jobs):
        assert time.monotonic() < deadline, [job.status for job in jobs]
        time.sleep(0.002)


def awaited(sign: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not sign.exists():
        assert time.monotonic() < deadline, sign
        time.sleep(0.002)


class Gate:
    """Work that reports once, then waits to be let through, reporting again until then where `watchful`."""

    def __init__(self, folder: Path, name: str = "gate", watchful: bool = False) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.work = partial(wait_to_be_let_through, self.folder, watchful)

    def began(self) -> None:
        awaited(self.folder / "1")

    def open(self) -> None:
        (self.folder / "open").touch()

    @property
    def calls(self) -> int:
        return len(list(self.folder.glob("[0-9]*")))


def wait_to_be_let_through(folder: Path, watchful: bool, report: Any) -> str:
    call = len(list(folder.glob("[0-9]*"))) + 1
    report(0.25, "half way to half way")
    (folder / str(call)).touch()
    while not (folder / "open").exists():
        time.sleep(0.002)
        if watchful:
            report(0.5, "waiting")
    return f"result {call}"


def give(value: Any, report: Any) -> Any:
    return value


def note(book: Path, word: str, report: Any) -> None:
    with book.open("a") as file:
        file.write(f"{word}\n")


def noted(book: Path) -> list[str]:
    return book.read_text().split()


def tell(shares: tuple[float, ...], last: Path, report: Any) -> None:
    for share in shares:
        report(share, f"at {share}")
    wait_to_be_let_through(last, False, lambda share, doing: None)


def fail(error: BaseException, report: Any) -> None:
    raise error


class Mute(RuntimeError):
    """An error that cannot say what it is."""

    def __str__(self):
        raise KeyError("no text")


class Odd(RuntimeError):
    def __str__(self):
        return 3


class Stopped(BaseException):
    """As a framework raises to unwind a thread."""


def number_of_process(report: Any = None) -> int:
    return os.getpid()


def backtrack(report: Any) -> None:
    """A call into C that comes back in years, and keeps every other thread of its process from running."""
    report(0.1, "begun")
    re.match("(a+)+$", "a" * 64 + "b")


def loop(report: Any) -> None:
    report(0.1, "begun")
    while True:
        sum(range(1000))


def talk(report: Any) -> None:
    while True:
        report(0.5, "going on")


def abort(report: Any) -> None:
    os.abort()


def leave(status: int, report: Any) -> None:
    os._exit(status)


def eat(report: Any) -> None:
    held = []
    while True:
        held.append(bytes(range(256)) * 2**16)
        report(0.5, f"{len(held) * 16} MiB")


def make_unpicklable(report: Any) -> Any:
    return lambda: None


def setting(name: str, report: Any) -> str | None:
    return os.environ.get(name)


def run_and_store(spec: RunSpec, report: Any) -> None:
    from sparsity_core.inference import execute

    assert Store().put(spec, execute(spec, report)) is None
