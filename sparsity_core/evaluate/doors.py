"""Where a sweep's cells are computed: processes of this machine, tasks of a Ray cluster, or Slurm jobs. No torch here."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sparsity_core.evaluate.cell_files import came_in, claimed, compute_cell, keep_cell
from sparsity_core.evaluate.cells import CellSpec, failure, run_cell
from sparsity_core.work import Engine, Progress, Task, most_bytes, packed

_LOOK = 0.02  # s from one look at the running cells to the next
_LOOK_AT_MEMORY = 0.5  # s
_WAIT = 1.0  # s that Ray is waited for before progress is told
_QUEUED = 2  # cells that wait at a cluster beside those that its cores are at
_PATIENCE = 5.0  # s that a cluster may take to answer
_TRIES = 2  # of a cell whose process dies

Note = Callable[[str], None]  # takes how a cell came in
Tell = Callable[[str], None]  # takes what is being done; raises to cancel
Work = Iterator[tuple[str, CellSpec]]


class _Worker:
    """A process that computes one cell after another and keeps its model between them."""

    def __init__(self, folder: Path, again: bool, threads: dict[str, str]) -> None:
        self._folder, self._again, self._threads = folder, again, threads
        self._engine = Engine(**threads)
        self.task: Task | None = None
        self.cell: tuple[str, CellSpec] | None = None
        self.tried, self.over_limit = 0, False
        self.doing = ""

    def begin(self, cell: tuple[str, CellSpec], tried: int = 0) -> None:
        if not self._engine.runs:
            self._engine = Engine(**self._threads)
        self.cell, self.tried, self.over_limit = cell, tried + 1, False
        self.task = self._engine.do(packed(partial(compute_cell, self._folder, *cell, self._again)), self._report)

    def _report(self, share: float, doing: str) -> None:
        self.doing = doing

    def limit(self, most: int) -> None:
        if self.task is not None and self._engine.n_bytes() > most:
            self.over_limit = True
            self._engine.end()

    def result(self, most: int) -> str | None:
        """How the cell came in; None where it is begun once more."""
        assert self.task is not None and self.cell is not None
        key, spec = self.cell
        how, found = self.task.outcome
        self.task = None
        if how == "done":
            return str(found)
        if how == "failed":  # the folder cannot be written: no cell of it can be kept
            raise ValueError(found)
        reason = self._engine.how_it_ended()
        if self.over_limit:
            reason = (
                f"The cell took more than {most / 2**30:.1f} GiB of memory, this process's part: choose fewer --processes, a "
                "smaller model or shorter texts, or raise SPARSELENS_JOB_GIB."
            )
        elif self.tried < _TRIES:
            self.begin(self.cell, self.tried)
            return None
        return keep_cell(self._folder, key, [failure(spec, reason)])

    def end(self) -> None:
        self._engine.end()


def by_this_process(work: Work, folder: Path, note: Note, tell: Tell, *, again: bool) -> None:
    """Computes cells here, one after another; one that takes all memory ends the sweep."""
    for key, spec in work:
        note(compute_cell(folder, key, spec, again, lambda share, doing: tell(doing)))


def by_processes(work: Work, folder: Path, processes: int, note: Note, tell: Tell, *, again: bool) -> None:
    """Computes cells in processes of this machine, started as they are needed; `again` those that failed before too.

    The machine's cores are shared out among them, unless OMP_NUM_THREADS says otherwise. Raises ValueError where the folder
    cannot be written.
    """
    most, workers, looked = most_bytes() // processes, list[_Worker](), 0.0
    cores = str(max(1, (os.cpu_count() or 1) // processes))
    started = partial(_Worker, folder, again, {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", cores)})
    try:
        while True:
            for worker in workers:
                if worker.task is not None and worker.task.over.is_set():
                    how = worker.result(most)
                    if how is not None:
                        note(how)
            _fill(work, workers, started, processes)
            running = [worker for worker in workers if worker.task is not None]
            if not running:
                return
            running[0].task.over.wait(_LOOK)  # type: ignore[union-attr]
            if time.monotonic() - looked > _LOOK_AT_MEMORY:
                looked = time.monotonic()
                tell(running[0].doing)
                for worker in running:
                    worker.limit(most)
    finally:
        for worker in workers:
            worker.end()


def _fill(waiting: Work, workers: list[_Worker], started: Callable[[], _Worker], processes: int) -> None:
    """Gives every idle process a cell; none twice, since a cell that another one is at comes in as busy."""
    while True:
        idle = next((worker for worker in workers if worker.task is None), None)
        if idle is None and len(workers) == processes:
            return
        cell = next(waiting, None)
        if cell is None:
            return
        if idle is None:
            idle = started()
            workers.append(idle)
        idle.begin(cell)


@dataclass(frozen=True)
class _Sent:
    """A cell that is at the cluster, and the lock by which no other sweep computes it meanwhile."""

    key: str
    spec: CellSpec
    lock: contextlib.ExitStack
    tried: int = 1


def by_ray(
    work: Work, folder: Path, address: str, options: dict[str, Any], note: Note, tell: Tell, *, again: bool
) -> None:
    """Computes cells as tasks of a Ray cluster, a few more at a time than it has cores; their files are written here.

    `options` are those of `ray.remote`, as num_gpus; a cell has a GPU where the cluster has any. Raises ValueError where Ray is
    not installed, the cluster cannot be reached, or has not what the options ask for.
    """
    ray = _joined(address)
    remote = _task(ray, options)
    running: dict[Any, _Sent] = {}
    try:
        while True:
            most = int(ray.cluster_resources().get("CPU", 1)) + _QUEUED
            while len(running) < most and (cell := next(work, None)) is not None:
                lock = contextlib.ExitStack()
                if not lock.enter_context(claimed(folder, cell[0])):
                    note("busy")  # an equal cell of this grid, or of another sweep
                elif how := came_in(folder, cell[0], again):  # since it was looked for
                    lock.close()
                    note(how)
                else:
                    running[remote.remote(cell[1])] = _Sent(*cell, lock)
            if not running:
                return
            ready, _ = ray.wait(list(running), timeout=_WAIT)
            tell(f"{len(running)} at work")
            for task in ready:
                sent = running.pop(task)
                try:
                    rows = ray.get(task)
                except ray.exceptions.RayError as error:  # its process or its node is gone, or had no memory left
                    if sent.tried < _TRIES:
                        running[remote.remote(sent.spec)] = replace(sent, tried=sent.tried + 1)
                        continue
                    rows = [failure(sent.spec, _lost(error))]
                with sent.lock:
                    kept = keep_cell(folder, sent.key, rows)
                note(kept)
    finally:
        for task, sent in running.items():
            sent.lock.close()
            ray.cancel(task, force=True)


def _task(ray: Any, options: dict[str, Any]) -> Any:
    """`run_cell` as a task. Raises ValueError for options that Ray does not know, and for more than the cluster has."""
    has = ray.cluster_resources()
    asked = {"num_gpus": 1 if has.get("GPU") else 0, **options}
    for name, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU"), ("memory", "memory")):
        if asked.get(name) and asked[name] > has.get(kind, 0):
            raise ValueError(f"a cell asks for {name}={asked[name]:g}, and all of the cluster has {has.get(kind, 0):g}")
    try:
        return ray.remote(max_retries=0, **asked)(run_cell)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Ray takes no such options: {str(error).splitlines()[0]}") from None


def _joined(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError("Ray is not installed: pip install 'sparselens[cluster]'") from None
    if not ray.is_initialized():
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, OSError, OverflowError) as error:
            raise ValueError(
                f"no Ray cluster answers at {address} ({str(error).splitlines()[0]}): start one with `ray start --head`, or "
                "check the address"
            ) from None
    return ray


def _knock(address: str) -> None:
    """Raises OSError where nothing answers at host:port, for which Ray itself would wait minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


def _lost(error: BaseException) -> str:
    told = " ".join(str(error).split())
    if "OutOfMemory" in type(error).__name__:
        return "The node ran out of memory: choose a smaller model or shorter texts, or nodes with more."
    return f"The work ended unexpectedly, twice ({type(error).__name__}: {told[:200]})."


def by_slurm(
    work: Callable[[tuple[int, int]], Any], folder: Path, jobs: int, options: dict[str, Any], progress: Progress
) -> list[Any]:
    """Submits so many Slurm jobs, each of which does the work of a shard (i, n), and waits until all have ended.

    Returns what those returned that ended well; the others' logs lie in `.submitit` within the folder. Raises ValueError where
    submitit or Slurm is missing, and for parameters that submitit does not know.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError("submitit is not installed: pip install 'sparselens[cluster]'") from None
    if jobs < 1:
        raise ValueError(f"slurm is a number of jobs, at least 1; got {jobs}")
    own = dict(options)
    try:
        executor = submitit.AutoExecutor(folder=str(folder / ".submitit"), cluster=own.pop("cluster", "slurm"))
        executor.update_parameters(name="sparselens-sweep", **own)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise ValueError(f"no Slurm jobs can be submitted: {str(error).splitlines()[0]}") from None
    submitted = executor.map_array(work, [(place, jobs) for place in range(1, jobs + 1)])
    while True:
        ended = [job for job in submitted if job.done()]
        progress(len(ended) / jobs, f"{len(ended)} of {jobs} jobs have ended")
        if len(ended) == jobs:
            return [job.result() for job in ended if job.exception() is None]
        time.sleep(_WAIT)
