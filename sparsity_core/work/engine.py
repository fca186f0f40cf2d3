"""The process in which jobs run, seen from the one that has it: what it does can be ended, whatever it is stuck in.

It keeps the loaded model from one job to the next. A fault of the work, a kill by the system or a limit takes this process
alone away; the next job gets another.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import psutil

from sparsity_core.work.engine_process import settings
from sparsity_core.work.errors import explain, explain_exit
from sparsity_core.work.limits import own_bytes
from sparsity_core.work.progress import Progress, silent

_MOST_UNANSWERED = 32  # questions at once: more would fill the pipe to an engine that reads nothing
_WRITE = 1.0  # s that a question waits for another one to be written

Outcome = tuple[str, Any]  # "done" and the result, "failed" and its sentence, "cancelled" or "gone" and None


class Task:
    """What an engine was given to do."""

    def __init__(self, number: int, report: Progress) -> None:
        self.number, self.report = number, report
        self.outcome: Outcome = ("gone", None)
        self.over = threading.Event()


class Engine:
    """A process for work. On Linux it ends with the thread that started it, so let one that lasts start it.

    `variables` are set in its environment. Raises OSError where the machine starts no process.
    """

    def __init__(self, **variables: str) -> None:
        path = os.pathsep.join(map(os.path.abspath, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sparsity_core.work.engine_process", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **variables, "PYTHONPATH": path},
            process_group=0,  # its own, which ends together, and which no Ctrl-C in a terminal reaches
        )
        self._seen = psutil.Process(self._process.pid)
        self._writing = threading.Lock()
        self._numbers = itertools.count(1)
        self._tasks: dict[int, Task] = {}
        self._gone = False
        threading.Thread(target=self._listen, name="sparselens-engine", daemon=True).start()

    @property
    def runs(self) -> bool:
        return not self._gone

    @property
    def pid(self) -> int:
        return self._process.pid

    def do(self, work: bytes, report: Progress) -> Task:
        """Begins work, pickled with its settings (`packed`). One at a time: what comes meanwhile waits."""
        return self._send("do", work, report)

    def stop(self, task: Task) -> None:
        """Has the work end at its next report."""
        self._write("stop", task.number, None)

    def ask(self, question: Callable[[], Any], patience: float) -> Any | None:
        """What a function returns in the engine, whatever work goes on. None where it does not answer within `patience` s.

        Raises ValueError, with its sentence, where the function fails.
        """
        if len(self._tasks) > _MOST_UNANSWERED:
            return None
        task = self._send("ask", pickle.dumps(question), silent)
        task.over.wait(patience)
        how, found = task.outcome
        if how == "failed":
            raise ValueError(found)
        return found

    def n_bytes(self) -> int:
        """Its own memory."""
        try:
            return own_bytes(self._seen)
        except psutil.Error:
            return 0

    def end(self) -> None:
        """Ends the process, whatever it does, and those that it started."""
        if self._gone:  # its number may be another process's
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def how_it_ended(self) -> str:
        return explain_exit(self._process.wait())

    def _send(self, kind: str, content: bytes, report: Progress) -> Task:
        task = Task(next(self._numbers), report)
        self._tasks[task.number] = task
        self._write(kind, task.number, content)
        if self._gone:  # perhaps before it was among the tasks that end with the engine
            task.over.set()
        return task

    def _write(self, kind: str, number: int, content: bytes | None) -> None:
        assert self._process.stdin is not None
        message = pickle.dumps((kind, number, content))
        if not self._writing.acquire(timeout=-1 if kind == "do" else _WRITE):
            return  # a question has no answer then, and who wants a job to stop ends the engine next
        try:
            with contextlib.suppress(OSError, ValueError):  # it is gone, which `_listen` finds too
                self._process.stdin.write(message)
                self._process.stdin.flush()
        finally:
            self._writing.release()

    def _listen(self) -> None:
        """Takes the engine's messages until it has ended."""
        assert self._process.stdout is not None
        # The end of the line, a message cut short, no memory for one: whatever is wrong here, this engine is of no more use.
        with contextlib.suppress(Exception):
            while True:
                kind, number, content = pickle.load(self._process.stdout)
                task = self._tasks[number]
                if kind == "report":
                    task.report(*content)
                else:
                    task.outcome = _read(content)
                    del self._tasks[number]
                    task.over.set()
        self.end()
        self._gone = True
        self._process.wait()
        for task in list(self._tasks.values()):
            task.over.set()
        self._process.stdout.close()
        with self._writing, contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]


def packed(work: Callable[[Progress], Any]) -> bytes:
    """Work as an engine is sent it: a function of a module that it can import, with arguments that can be pickled."""
    return pickle.dumps((pickle.dumps(work), settings()))


def _read(outcome: Outcome) -> Outcome:
    how, content = outcome
    if how != "done":
        return how, content
    try:
        return how, pickle.loads(content)
    except Exception as error:
        return "failed", explain(error)
