"""One queue for all model work of a process: equal work joined, turns by visitor, progress, cancel, limits.

A model fills the machine, so one job runs at a time, whoever asked for it, in a process of its own (`engine.py`). A dispatcher
hands it the next job, waits for its end, and ends the process where the job does not end by itself.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from sparsity_core.work.engine import Engine, Task, packed
from sparsity_core.work.errors import explain
from sparsity_core.work.limits import most_bytes, most_seconds
from sparsity_core.work.progress import Progress

Status = Literal["queued", "running", "done", "failed", "cancelled"]
Work = Callable[[Progress], Any]
Keep = Callable[[Any], None]

MOST_WAITING = 64  # jobs of one visitor; a page asks for a whole sweep, or for every method, at once
_REMEMBERED = 32  # finished jobs whose result a late poll still finds
_ABSENT = 20.0  # s without a sign of a visitor, after which their waiting jobs are dropped
_QUIET = 10.0  # s that a job has to report and so to end, before its process is ended; a step of a training takes 5
_LOOK = 0.1  # s from one look at the running job to the next
_ANSWER = 1.0  # s that a question to the engine may take


@dataclass(eq=False)
class Job:
    """One piece of work, shared by every session that asked for it. Read its fields; only the queue writes them."""

    key: str
    work: bytes | None  # pickled
    status: Status = "queued"
    share: float = 0.0
    doing: str = "waiting"
    result: Any = None
    error: str = ""
    watchers: set[str] = field(default_factory=set)
    started: float | None = None
    reported: float = 0.0  # when `share` was last told
    unwanted: float | None = None  # since when nobody waits for it
    keep: Keep | None = None

    @property
    def finished(self) -> bool:
        return self.status in ("done", "failed", "cancelled")

    def seconds_left(self) -> float | None:
        """An estimate from the share that is done; None until there is enough to go by."""
        if self.started is None or self.share < 0.05:
            return None
        told = self.reported - self.started  # between two reports the time left shrinks by what has passed
        return max(0.0, told * (1 - self.share) / self.share - (time.monotonic() - self.reported))


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
        self._engine: Engine | None = None
        self._standing: tuple[str, bytes] | None = None
        self._closed = False
        self.engines = 0  # how many were started: one, and another after each that ended

    def submit(
        self, key: str, work: Work, watcher: str, *, keep: Keep | None = None, in_every_engine: bool = False
    ) -> Job:
        """The job of this key: the one that waits or runs already, or a new one, for which this visitor waits in turn.

        Args:
            work: a function of a module, with arguments that can be pickled, or a `partial` of one. It runs in another
                process: what it returns is the job's result, and what it changes in its arguments is lost.
            keep: given the result in this process, before the job counts as done.
            in_every_engine: the work is done again in an engine that takes the place of one that ended.

        Raises ValueError where this visitor has 64 jobs waiting, and what pickle raises for work that it does not know.
        """
        content = packed(work)
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
            if in_every_engine:
                self._standing = key, content
            return self._queued(Job(key, content, watchers={watcher}, keep=keep))

    def _queued(self, job: Job) -> Job:
        self._finished.pop(job.key, None)
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

    def ask(self, question: Callable[[], Any], patience: float = _ANSWER) -> Any | None:
        """What a function of a module returns in the engine, beside the job that runs there.

        None where no engine runs, or it does not answer within `patience` s. Raises ValueError where the function fails.
        """
        engine = self._engine
        return None if engine is None else engine.ask(question, patience)

    def close(self) -> None:
        """Ends the engine and with it the job that runs; those that wait are cancelled. A closed queue does no more work."""
        with self._lock:
            self._closed = True
            for job in self._waiting:
                self._finish(job, "cancelled")
            self._waiting.clear()
            self._lock.notify_all()
        if self._engine is not None:
            self._engine.end()
        if self._dispatcher is not None:
            self._dispatcher.join()

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
                if self._closed:
                    return
                if not self._waiting:
                    self._served.clear()
                    self._seen.clear()
                    self._lock.wait()
                    continue
                job = self._running = self._in_turn()[0]
                self._waiting.remove(job)
                self._turn += 1
                self._served |= dict.fromkeys(job.watchers, self._turn)
                job.status, job.doing, job.started = "running", "starting", time.monotonic()
            status, job.error = self._done(job)
            with self._lock:
                self._running = None
                self._finish(job, status)
                self._prepare_another(job)
            del job

    def _done(self, job: Job) -> tuple[Status, str]:
        """Runs a job to its end. Returns how it ended, and the sentence of an error."""
        assert job.work is not None
        try:
            seconds, n_bytes = most_seconds(), most_bytes()
            engine = self._running_engine()
        except Exception as error:  # a limit that is no number, or no process to be had: the queue goes on
            return "failed", explain(error)
        task = engine.do(job.work, partial(_tell, job))
        why = self._watched(job, engine, task, seconds, n_bytes)
        how, found = task.outcome
        if how == "done":
            try:
                if job.keep is not None:
                    job.keep(found)
            except Exception as error:
                return "failed", explain(error)
            job.result = found
            return "done", ""
        if how == "failed":
            return "failed", found
        if why:
            return "failed", why
        return ("cancelled", "") if job.unwanted is not None or self._closed else ("failed", engine.how_it_ended())

    def _watched(self, job: Job, engine: Engine, task: Task, seconds: float, n_bytes: int) -> str:
        """Waits for a job's end, and ends it where it is unwanted or takes too much. Returns why, but where it is unwanted."""
        why, stopped = "", None
        while not task.over.wait(_LOOK):
            now = time.monotonic()
            if engine.n_bytes() > n_bytes:
                why = (
                    f"The work was ended as it took more than {n_bytes / 2**30:,.1f} GiB of memory, the most that a job may take "
                    "here: shorten the prompt, choose a smaller model, or set SPARSELENS_JOB_GIB higher."
                )
                engine.end()
            elif stopped is None and (job.unwanted is not None or now - (job.started or now) > seconds):
                stopped = now
                if job.unwanted is None:
                    why = (
                        f"The work was ended after {seconds:,.0f} s, the most that a job may take here: ask for less, or set "
                        "SPARSELENS_JOB_SECONDS higher."
                    )
                engine.stop(task)
            elif self._closed or (stopped is not None and now - stopped > _QUIET):
                engine.end()
        return why

    def _running_engine(self) -> Engine:
        if self._engine is None or not self._engine.runs:
            self._engine = None
            self._engine = Engine()
            self.engines += 1
        return self._engine

    def _prepare_another(self, job: Job) -> None:
        """Begins what every engine does first, where the last one has ended: the next job then finds it done."""
        if self._standing is None or self._closed or (self._engine is not None and self._engine.runs):
            return
        key, work = self._standing
        if key != job.key and not any(waiting.key == key for waiting in self._waiting):  # it may be what ended it
            self._queued(Job(key, work, watchers={"the queue"}))

    def _finish(self, job: Job, status: Status) -> None:
        job.status, job.work, job.keep = status, None, None
        self._finished[job.key] = job
        while len(self._finished) > _REMEMBERED:
            self._finished.popitem(last=False)


def _tell(job: Job, share: float, doing: str) -> None:
    if share > job.share:
        job.share, job.reported = min(1.0, share), time.monotonic()
    job.doing = doing
