"""One queue for all model work of a process: equal specs joined, progress, a place in the queue, cancel.

A model fills the machine, so one worker runs one job at a time, whoever asked for it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["queued", "running", "done", "failed", "cancelled"]
Work = Callable[[Callable[[float, str], None]], Any]
_REMEMBERED = 32  # finished jobs whose result a late poll still finds


class Cancelled(Exception):
    """Raised inside the work, at its next progress report, once nobody waits for it any more."""


@dataclass
class Job:
    """One piece of work, shared by every session that asked for it. Read its fields; only the queue writes them."""

    key: str
    work: Work
    status: Status = "queued"
    share: float = 0.0
    doing: str = "waiting"
    result: Any = None
    error: str = ""
    watchers: set[str] = field(default_factory=set)
    started: float | None = None
    reported: float = 0.0  # when `share` was last told

    @property
    def finished(self) -> bool:
        return self.status in ("done", "failed", "cancelled")

    def seconds_left(self) -> float | None:
        """An estimate from the share that is done; None until there is enough to go by."""
        if self.started is None or self.share < 0.05:
            return None
        told = self.reported - self.started  # between two reports the time left shrinks by what has passed
        return max(0.0, told * (1 - self.share) / self.share - (time.monotonic() - self.reported))


class JobQueue:
    """`submit` from any thread; one worker thread does the work in order."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._finished: OrderedDict[str, Job] = OrderedDict()
        self._worker: threading.Thread | None = None

    def submit(self, key: str, work: Work, watcher: str) -> Job:
        """The job of this key: the one that waits or runs already, or a new one at the end of the queue."""
        with self._lock:
            for job in (*self._waiting, *([self._running] if self._running else [])):
                if job.key == key and not job.finished and job.watchers:
                    job.watchers.add(watcher)
                    return job
            job = Job(key, work, watchers={watcher})
            self._finished.pop(key, None)
            self._waiting.append(job)
            if self._worker is None:
                self._worker = threading.Thread(target=self._serve, name="sparselens-worker", daemon=True)
                self._worker.start()
            self._lock.notify_all()
            return job

    def cancel(self, job: Job, watcher: str) -> None:
        """This watcher no longer waits; the work stops once nobody does."""
        with self._lock:
            job.watchers.discard(watcher)
            if not job.watchers and job in self._waiting:
                self._waiting.remove(job)
                self._finish(job, "cancelled")

    def find(self, key: str) -> Job | None:
        """The job of this key that waits, runs, or finished lately."""
        with self._lock:
            for job in (*self._waiting, *([self._running] if self._running else [])):
                if job.key == key:
                    return job
            return self._finished.get(key)

    def place(self, job: Job) -> int:
        """How many jobs run before this one; 0 where it runs or is finished."""
        with self._lock:
            return self._waiting.index(job) + (self._running is not None) if job in self._waiting else 0

    def _serve(self) -> None:
        while True:
            with self._lock:
                while not self._waiting:
                    self._lock.wait()
                job = self._running = self._waiting.popleft()
                job.status, job.started = "running", time.monotonic()

            def report(share: float, doing: str, job: Job = job) -> None:
                if not job.watchers:
                    raise Cancelled
                if share > job.share:
                    job.share, job.reported = min(1.0, share), time.monotonic()
                job.doing = doing

            status: Status = "done"
            try:
                job.result = job.work(report)
            except Cancelled:
                status = "cancelled"
            except BaseException as error:  # the worker must outlive any job; the sentence goes to whoever asked
                status, job.error = "failed", explain(error)
            with self._lock:
                self._running = None
                self._finish(job, status)

    def _finish(self, job: Job, status: Status) -> None:
        job.status = status
        self._finished[job.key] = job
        while len(self._finished) > _REMEMBERED:
            self._finished.popitem(last=False)


def explain(error: BaseException) -> str:
    """An error as a sentence with the next step; a ValueError of ours is one already."""
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error):
        return "The machine ran out of memory: shorten the prompt, choose a smaller model, or device=cpu."
    text = str(error).strip()
    if isinstance(error, ValueError) and text:
        if text.split()[0].isalpha():  # not a name's own spelling: meta-llama/…, n_sink, gpt2
            text = text[0].upper() + text[1:]
        return text + ("" if text.endswith((".", "?", "!")) else ".")
    return f"The run failed ({type(error).__name__}: {text.splitlines()[0] if text else 'no message'})."
