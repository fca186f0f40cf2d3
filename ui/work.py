"""Model work from a page: submit specs, watch their progress, cancel, and show what came of them."""

from __future__ import annotations

import gc
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from sparsity_core.record import RunSpec, Store, Trace, key_of
from sparsity_core.work import Job, JobQueue, cache_dir, clear_leftovers, explain
from ui import shared
from ui.compat import is_connected, session_id
from ui.literal import literal
from ui.session import trace_of
from ui.trust import may_look_up


@st.cache_resource(show_spinner=False)
def queue() -> JobQueue:
    """The one queue of this process; every session's work goes through it."""
    sys.setswitchinterval(0.0005)  # s; a page takes its turn with a running job many times, and waits this long at each
    clear_leftovers(cache_dir())
    return JobQueue(present=_connected)


def _watcher() -> str:
    """This visitor's name in the queue, by which `_connected` finds the browser's session."""
    return st.session_state.setdefault("watcher", f"{uuid.uuid4().hex}/{session_id()}")


def _connected(watcher: str) -> bool:
    """Whether a visitor's browser is connected; work of the process itself always has its visitor."""
    _, _, session = watcher.partition("/")
    return not session or is_connected(session)


def run_spec(spec: RunSpec) -> Callable[[Callable[[float, str], None]], tuple[Trace | None, str | None]]:
    """The work of a spec: compute and keep. Returns the trace, and why, where it could not be kept."""

    def work(progress: Callable[[float, str], None]) -> tuple[Trace | None, str | None]:
        from sparsity_core.inference import execute

        trace = execute(spec, progress)
        problem = Store().put(spec, trace)
        return (None, None) if problem is None else (trace, problem)  # what is stored need not stay in memory as well

    return work


def submit(purpose: str, work: dict[str, Callable[[Callable[[float, str], None]], Any]]) -> None:
    """Queues pieces of work, by key, that a page waits for together under `purpose`."""
    jobs: dict[str, Job] = {}
    known = st.session_state.get("pending", {}).values()
    try:
        shared.check_jobs(len(work) + sum(not job.finished for waited in known for job in waited.values()))
        for key, piece in work.items():
            jobs[key] = queue().submit(key, piece, _watcher())
    except ValueError as error:  # too many wait already: all of these or none
        for job in jobs.values():
            queue().cancel(job, _watcher())
        st.session_state.setdefault("failures", {})[purpose] = explain(error)
        return
    st.session_state.setdefault("pending", {})[purpose] = jobs


def submit_specs(purpose: str, specs: list[RunSpec]) -> bool:
    """Queues those specs that are not in the store. Returns whether anything had to be queued."""
    missing = {key_of(spec): run_spec(spec) for spec in specs if trace_of(spec) is None}
    if missing:
        submit(purpose, missing)
    return bool(missing)


def is_under_way(spec: RunSpec) -> bool:
    """Whether a run waits or runs already, for whomever."""
    job = queue().find(key_of(spec)) if may_look_up(spec) else None
    return job is not None and not job.finished


def offer_specs(purpose: str, specs: Sequence[RunSpec], known: int, why: str, label: str, icon: str) -> None:
    """A button that runs those specs that are not known yet, with `why` above it, and their progress once it is pressed."""
    if known < len(specs) and not pending(purpose):
        st.caption(why)
        if st.button(label, key=f"run_{purpose}", icon=f":material/{icon}:"):
            submit_specs(purpose, list(specs))
            st.rerun()
    watch(purpose, keep_results)


def pending(purpose: str) -> bool:
    return purpose in st.session_state.get("pending", {})


def watch(purpose: str, done: Callable[[dict[str, Job]], None]) -> None:
    """Shows the progress of `purpose` with a cancel button, and calls `done` with its jobs once all of them finished."""
    if pending(purpose):
        _watch(purpose, done)
    failure = st.session_state.get("failures", {}).get(purpose)
    if failure:
        st.error(literal(shared.told(failure)), icon=":material/error:")


@st.fragment(run_every=0.4)
def _watch(purpose: str, done: Callable[[dict[str, Job]], None]) -> None:
    jobs: dict[str, Job] = st.session_state.get("pending", {}).get(purpose, {})
    if not jobs:
        return
    queue().see(_watcher())
    if all(job.finished for job in jobs.values()):
        del st.session_state.pending[purpose]
        failed = next((job.error for job in jobs.values() if job.status == "failed"), None)
        if failed is None and any(job.status == "cancelled" for job in jobs.values()):
            failed = "This page was away, and what it waited for was dropped: ask for it again."
        st.session_state.setdefault("failures", {})[purpose] = failed
        if all(job.status == "done" for job in jobs.values()):
            done(jobs)
        st.rerun()
    active = next((job for job in jobs.values() if not job.finished), None)
    share = sum(1.0 if job.finished else job.share for job in jobs.values()) / len(jobs)
    st.progress(min(1.0, share), text=_doing(active) if active else "")
    if st.button("Cancel", key=f"cancel_{purpose}", icon=":material/close:", width="stretch"):
        for job in jobs.values():
            queue().cancel(job, _watcher())
        del st.session_state.pending[purpose]
        st.rerun()


def _doing(job: Job) -> str:
    if job.status == "queued":
        before = queue().place(job)
        return f"waiting: {before} job{'s' if before != 1 else ''} before this one"
    left = job.seconds_left()
    return job.doing + (f" · about {left:.0f} s left" if left is not None and left >= 1 else "")


def keep_results(jobs: dict[str, Job]) -> None:
    """Keeps in the session what the store could not take, with its sentence, so that nothing computed is lost."""
    for key, job in jobs.items():
        trace, warning = job.result
        if trace is not None:
            st.session_state.setdefault("unsaved", {})[key] = trace
            st.session_state["warning"] = warning


def warm_up(model: str, start: bool) -> Job | None:
    """The loading of a model in the background, once a process, so that the first run need not wait for it.

    It begins with the first call whose `start` is true; None before.
    """

    def work(progress: Callable[[float, str], None]) -> None:
        gc.disable()  # imports make many objects, all to stay: to look through them takes a tenth of the time
        try:
            from sparsity_core.models import load

            load(model)
        finally:
            gc.enable()

    key = f"load {model}"
    return queue().find(key) or (queue().submit(key, work, "process") if start else None)
