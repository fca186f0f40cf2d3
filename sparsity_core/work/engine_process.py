"""The engine's process, which does the work of jobs: `python -m sparsity_core.work.engine_process PARENT`.

It reads pickled messages (kind, number, content) from what was its standard input and writes others to what was its standard
output. One thread works, one reads, and one answers questions while the first works. It ends when its parent does.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import pickle
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, cast

from sparsity_core.work.errors import explain
from sparsity_core.work.outside import PLUGINS, Kind, plugins

_TURN = 0.0005  # s; a question takes its turn with a running job many times, and waits this long at each
_KILLED_FIRST = 800  # of 1000: where memory runs out, the system ends this process before the one that started it


class Ended(BaseException):
    """Raised inside the work, once nobody waits for it. No Exception: no handler of work keeps it."""


class _Desk:
    """What the three threads share: the line to the parent, and which job is no longer wanted."""

    def __init__(self, read: BinaryIO, write: BinaryIO) -> None:
        self._read, self._write, self._writing = read, write, threading.Lock()
        self._jobs: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
        self._questions: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
        self._unwanted = 0  # the number of the job that is to stop

    def listen(self) -> None:
        """Takes the parent's messages until there is no parent."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                kind, number, content = pickle.load(self._read)
                if kind == "do":
                    self._jobs.put((number, content))
                elif kind == "ask":
                    self._questions.put((number, content))
                else:
                    self._unwanted = number
        _end_all()

    def work(self) -> None:
        while True:
            number, content = self._jobs.get()
            self._tell("end", number, self._done(number, content))
            _give_back()

    def answer(self) -> None:
        while True:
            number, content = self._questions.get()
            try:
                answered: tuple[str, Any] = "done", pickle.dumps(_unpickled(content)())
            except BaseException as error:
                answered = "failed", explain(error)
            self._tell("end", number, answered)

    def _done(self, number: int, content: bytes) -> tuple[str, Any]:
        """Does a job. Returns how it ended, and its pickled result or the sentence of its error."""

        def report(share: float, doing: str) -> None:
            if self._unwanted == number:
                raise Ended
            self._tell("report", number, (share, doing))

        try:
            work, told = pickle.loads(content)
            _take(told)
            return "done", pickle.dumps(_unpickled(work)(report))
        except Ended:
            return "cancelled", None
        except BaseException as error:  # the engine must outlive any job; the sentence goes to whoever asked
            return "failed", explain(error)

    def _tell(self, kind: str, number: int, content: Any) -> None:
        message = pickle.dumps((kind, number, content))
        with self._writing:
            self._write.write(message)
            self._write.flush()


def main() -> None:
    _end_with(int(sys.argv[1]))
    _stand_behind()
    desk = _Desk(*_own_pipes())
    sys.setswitchinterval(_TURN)
    for thread in (desk.listen, desk.answer):
        threading.Thread(target=thread, daemon=True).start()
    desk.work()


def settings() -> dict[str, str]:
    """What this process is told by variables of its environment, which a job is told too."""
    return {name: value for name, value in os.environ.items() if name.startswith("SPARSELENS_")}


def _take(given: dict[str, str]) -> None:
    for name in settings().keys() - given.keys():
        del os.environ[name]
    os.environ.update(given)


class _Unpickler(pickle.Unpickler):
    """Finds what plug-ins define in files, which no import finds."""

    def find_class(self, module: str, name: str) -> Any:
        package, *kind = module.split(".", 2)
        if package == PLUGINS and module not in sys.modules:
            plugins(cast(Kind, kind[0]))
        return super().find_class(module, name)


def _unpickled(content: bytes) -> Any:
    return _Unpickler(io.BytesIO(content)).load()


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The two ends that the parent holds the others of. What reads or prints from here on does so elsewhere."""
    read, write = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return os.fdopen(read, "rb"), os.fdopen(write, "wb")


def _end_with(parent: int) -> None:
    """Lets the system end this process with its parent, whatever it does then; elsewhere than on Linux, `listen` does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            _end_all()


def _end_all() -> None:
    """Ends this process, and those that it started."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _stand_behind() -> None:
    with contextlib.suppress(OSError):  # no such file but on Linux
        Path("/proc/self/oom_score_adj").write_text(str(_KILLED_FIRST))


def _give_back() -> None:
    """Returns what a job freed to the system, which glibc's allocator otherwise keeps for this process."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    main()
