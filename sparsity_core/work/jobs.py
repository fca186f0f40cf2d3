"""One queue for all model work of a process: equal work joined, turns by visitor, progress, cancel, a time limit.

A model fills the machine, so one job runs at a time, whoever asked for it. Each job has a thread of its own, and a
dispatcher that starts it, waits for its end, and ends it where it does not end by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["queued", "running", "done", "failed", "cancelled"]
Work = Callable[[Callable[[float, str], None]], Any]

MOST_WAITING = 64  # jobs of one visitor; a page asks for a whole sweep, or for every method, at once
_REMEMBERED = 32  # finished jobs whose result a late poll still finds
_ABSENT = 20.0  # s without a sign of a visitor, after which their waiting jobs are dropped
_QUIET = 5.0  # s that a cancelled job has to report, before it is interrupted
_DEAF = 15.0  # s that an interrupted job has to end, before it is left behind
_LOOK = 0.1  # s from one look at the running job to the next


class Ended(BaseException):
    """Raised inside the work, once nobody waits for it or its time is over. No Exception: no handler of work keeps it."""


@dataclass(eq=False)
class Job:
    """One piece of work, shared by every session that asked for it. Read its fields; only the queue writes them."""

    key: str
    work: Work | None
    status: Status = "queued"
    share: float = 0.0
    doing: str = "waiting"
    result: Any = None
    error: str = ""
    watchers: set[str] = field(default_factory=set)
    started: float | None = None
    reported: float = 0.0  # when `share` was last told
    unwanted: float | None = None  # since when nobody waits for it

    @property
    def finished(self) -> bool:
        return self.status in ("done", "failed", "cancelled")

    def seconds_left(self) -> float | None:
        """An estimate from the share that is done; None until there is enough to go by."""
        if self.started is None or self.share < 0.05:
            return None
        told = self.reported - self.started  # between two reports the time left shrinks by what has passed
        return max(0.0, told * (1 - self.share) / self.share - (time.monotonic() - self.reported))


def most_seconds() -> float:
    """How long a job may run: SPARSELENS_JOB_SECONDS, two hours where it is not set. Raises ValueError for no number."""
    given = os.environ.get("SPARSELENS_JOB_SECONDS") or 7200.0
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f"SPARSELENS_JOB_SECONDS is a number of seconds above 0; got {given!r}")
    return seconds


def _everybody(watcher: str) -> bool:
    return True


class JobQueue:
    """`submit` from any thread. `present` tells whether a visitor is still there; one who is not seen for 20 s has left."""

    def __init__(self, present: Callable[[str], bool] = _everybody) -> None:
        self._lock = threading.Condition()
        self._waiting: list[Job] = []  # as they came
        self._running: Job | None = None
        self._finished: OrderedDict[str, Job] = OrderedDict()
        self._dispatcher: threading.Thread | None = None
        self._present = present
        self._seen: dict[str, float] = {}
        self._served: dict[str, int] = {}  # the visitors' latest turns, numbered
        self._turn = 0
        self.left_behind = 0  # jobs that no interrupt ended: their threads go on, and hold what they hold

    def submit(self, key: str, work: Work, watcher: str) -> Job:
        """The job of this key: the one that waits or runs already, or a new one, for which this visitor waits in turn.

        Raises ValueError where this visitor has 64 jobs waiting.
        """
        with self._lock:
            self._seen[watcher] = time.monotonic()
            self._drop_the_gone()
            job = next((j for j in self._unfinished() if j.key == key and j.watchers), None)
            if sum(watcher in j.watchers for j in self._waiting) >= MOST_WAITING and (
                job is None or job.status == "queued"
            ):
                raise ValueError(
                    f"you have {MOST_WAITING} jobs waiting, the most a visitor may have: wait, or cancel some"
                )
            if job is not None:
                job.watchers.add(watcher)
                return job
            job = Job(key, work, watchers={watcher})
            self._finished.pop(key, None)
            self._waiting.append(job)
            if self._dispatcher is None:
                self._dispatcher = threading.Thread(target=self._dispatch, name="sparselens-dispatcher", daemon=True)
                self._dispatcher.start()
            self._lock.notify_all()
            return job

    def see(self, watcher: str) -> None:
        """A sign that this visitor is there."""
        with self._lock:
            self._seen[watcher] = time.monotonic()

    def cancel(self, job: Job, watcher: str) -> None:
        """This visitor no longer waits; the work stops once nobody does."""
        with self._lock:
            job.watchers.discard(watcher)
            if not job.watchers:
                job.unwanted = time.monotonic() if job.unwanted is None else job.unwanted
                if job in self._waiting:
                    self._waiting.remove(job)
                    self._finish(job, "cancelled")

    def find(self, key: str) -> Job | None:
        """The job of this key that waits, runs, or finished lately."""
        with self._lock:
            return next((job for job in self._unfinished() if job.key == key), self._finished.get(key))

    def place(self, job: Job) -> int:
        """How many jobs run before this one; 0 where it runs or is finished."""
        with self._lock:
            self._drop_the_gone()
            return self._in_turn().index(job) + (self._running is not None) if job in self._waiting else 0

    def _unfinished(self) -> list[Job]:
        return [*self._waiting, *([self._running] if self._running else [])]

    def _in_turn(self) -> list[Job]:
        """The waiting jobs as they will run: each visitor's first, then each one's second; who was served last comes last."""
        ahead: Counter[str] = Counter()  # jobs of each visitor that came before
        order: list[tuple[int, int, int, Job]] = []
        for i, job in enumerate(self._waiting):
            best = min((ahead[watcher], self._served.get(watcher, 0)) for watcher in job.watchers)
            order.append((*best, i, job))
            ahead.update(job.watchers)
        return [job for *_, job in sorted(order, key=lambda item: item[:3])]

    def _drop_the_gone(self) -> None:
        now = time.monotonic()
        for job in list(self._waiting):
            gone = {w for w in job.watchers if now - self._seen.get(w, now) > _ABSENT and not self._present(w)}
            job.watchers -= gone
            if not job.watchers:
                self._waiting.remove(job)
                self._finish(job, "cancelled")

    def _dispatch(self) -> None:
        while True:
            with self._lock:
                self._drop_the_gone()
                if not self._waiting:
                    self._served.clear()
                    self._seen.clear()
                    self._lock.wait()
                    continue
                job = self._running = self._in_turn()[0]
                self._waiting.remove(job)
                self._turn += 1
                self._served |= dict.fromkeys(job.watchers, self._turn)
                job.status, job.started = "running", time.monotonic()
            status, job.error = self._done(job)
            with self._lock:
                self._running = None
                self._finish(job, status)
            del job
            _give_back()

    def _done(self, job: Job) -> tuple[Status, str]:
        """Runs a job to its end. Returns how it ended, and the sentence of an error."""
        outcome: list[tuple[Status, str]] = []
        interrupted: float | None = None
        try:
            limit = most_seconds()
            thread = threading.Thread(target=_do, args=(job, limit, outcome), name="sparselens-job", daemon=True)
            thread.start()
        except (ValueError, RuntimeError) as error:  # the latter where the machine gives no more threads
            return "failed", explain(error)
        while thread.is_alive():
            thread.join(_LOOK)
            now = time.monotonic()
            over = now - (job.started or now) > limit
            if interrupted is not None:
                if now - interrupted > _DEAF:
                    self.left_behind += 1
                    break
            elif (over or (job.unwanted is not None and now - job.unwanted > _QUIET)) and not _imports(thread):
                interrupted = now
                _interrupt(thread)
        ended: tuple[Status, str] = ("cancelled", "")
        if job.unwanted is None:
            ended = (
                "failed",
                f"The work was ended after {limit:,.0f} s, the most that a job may take here: ask for less, or set "
                "SPARSELENS_JOB_SECONDS higher.",
            )
        return outcome[0] if outcome else ended

    def _finish(self, job: Job, status: Status) -> None:
        job.status, job.work = status, None
        self._finished[job.key] = job
        while len(self._finished) > _REMEMBERED:
            self._finished.popitem(last=False)


def _do(job: Job, limit: float, outcome: list[tuple[Status, str]]) -> None:
    """A job's own thread. It leaves its outcome, or none where it was ended from outside."""

    def report(share: float, doing: str) -> None:
        now = time.monotonic()
        if job.finished or not job.watchers or now - (job.started or now) > limit:
            raise Ended
        if share > job.share:
            job.share, job.reported = min(1.0, share), now
        job.doing = doing

    try:
        assert job.work is not None
        result = job.work(report)
        if not job.finished:  # else it was left behind, and nobody waits for what it found
            job.result = result
            outcome.append(("done", ""))
    except Ended:
        pass
    except BaseException as error:  # the queue must outlive any job; the sentence goes to whoever asked
        outcome.append(("failed", explain(error)))


def _give_back() -> None:
    """Returns what a job freed to the system, which glibc's allocator otherwise keeps for this process."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _interrupt(thread: threading.Thread) -> None:
    """Raises `Ended` in a thread before its next line of Python; a call into C that does not return goes on."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Ended))


def _imports(thread: threading.Thread) -> bool:
    """Whether a thread is importing: a module that was interrupted half way cannot be imported again."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def explain(error: BaseException) -> str:
    """An error as a sentence with the next step; a ValueError of ours is one already."""
    text = _text_of(error)
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return "The machine ran out of memory: shorten the prompt, choose a smaller model, or device=cpu."
    if isinstance(error, ValueError) and text:
        if text.split()[0].isalpha():  # not a name's own spelling: meta-llama/…, n_sink, gpt2
            text = text[0].upper() + text[1:]
        return text + ("" if text.endswith((".", "?", "!")) else ".")
    return f"The run failed ({type(error).__name__}: {text.splitlines()[0] if text else 'no message'})."


def _text_of(error: BaseException) -> str:
    try:
        return str(error).strip()
    except BaseException:  # an exception of another library may fail to say what it is
        return ""
