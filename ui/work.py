"""Model work from a page: submit specs, watch their progress, cancel, and show what came of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st

from sparsity_core.record import RunSpec, key_of
from sparsity_core.work import Job, JobQueue, Progress, cache_dir, clear_leftovers, explain, held
from ui import shared
from ui.compat import is_connected, session_id
from ui.literal import literal
from ui.session import trace_of
from ui.tasks import runs
from ui.trust import may_look_up


@st.cache_resource(show_spinner=False)
def queue() -> JobQueue:
    """The one queue of this process; every session's work goes through it."""
    clear_leftovers(cache_dir())
    return JobQueue(present=_connected)


def _watcher() -> str:
    """This visitor's name in the queue, by which `_connected` finds the browser's session."""
    return st.session_state.setdefault("watcher", f"{uuid.uuid4().hex}/{session_id()}")


def _connected(watcher: str) -> bool:
    """Whether a visitor's browser is connected; work of the process itself always has its visitor."""
    _, _, session = watcher.partition("/")
    return not session or is_connected(session)


def submit(
    purpose: str, pieces: Mapping[str, Callable[[Progress], Any]], keep: Callable[[str, Any], None] | None = None
) -> None:
    """Queues pieces of work, by key, that a page waits for together under `purpose`.

    Each is a function of `ui.tasks`, or of another module without Streamlit, with its arguments. `keep` is given the key and
    the result of each, in this process and outside of any session.
    """
    jobs: dict[str, Job] = {}
    known = st.session_state.get("pending", {}).values()
    try:
        shared.check_jobs(len(pieces) + sum(not job.finished for waited in known for job in waited.values()))
        for key, piece in pieces.items():
            jobs[key] = queue().submit(key, piece, _watcher(), keep=None if keep is None else partial(keep, key))
    except ValueError as error:  # too many wait already: all of these or none
        for job in jobs.values():
            queue().cancel(job, _watcher())
        st.session_state.setdefault("failures", {})[purpose] = explain(error)
        return
    st.session_state.setdefault("pending", {})[purpose] = jobs


def submit_specs(purpose: str, specs: list[RunSpec]) -> bool:
    """Queues those specs that are not in the store. Returns whether anything had to be queued."""
    missing = {key_of(spec): partial(runs.run_spec, spec) for spec in specs if trace_of(spec) is None}
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
    """The loading of a model in the background, once an engine, so that the first run need not wait for it.

    It begins with the first call whose `start` is true; None before.
    """
    key = f"load {model}"
    found = queue().find(key)
    if found is None and start:
        return queue().submit(key, partial(runs.load_model, model), "process", in_every_engine=True)
    return found


def memory_held() -> str:
    """What this server and its engine keep in memory for all visitors, in a sentence."""
    answered = queue().ask(held)
    sizes = held() | (answered or {})
    parts = [f"{what} ({size / 2**20:,.0f} MB)" for what, size in sorted(sizes.items(), key=lambda item: -item[1])]
    silent = " What the running job holds is not known yet." if answered is None and queue().engines else ""
    return f"In this server's memory: {', '.join(parts) or 'no model and no run'}.{silent}"
