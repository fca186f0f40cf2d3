"""One queue for all sessions: joined, in order, cancelled when nobody waits, and never stuck."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_core.models.refusals import ModelError
from sparsity_core.work import jobs as jobs_module
from sparsity_core.work.jobs import MOST_WAITING, Job, JobQueue, explain, most_seconds

PATIENCE = 20  # seconds until a stuck queue fails its test


def settled(*jobs: Job) -> None:
    deadline = time.monotonic() + PATIENCE
    while not all(job.finished for job in jobs):
        assert time.monotonic() < deadline, [job.status for job in jobs]
        time.sleep(0.002)


class Gate:
    """Work that reports once, then waits to be let through, reporting again until then where `watchful`."""

    def __init__(self, watchful: bool = False) -> None:
        self.began, self.open, self.calls, self.watchful = threading.Event(), threading.Event(), 0, watchful

    def __call__(self, report):
        self.calls += 1
        report(0.25, "half way to half way")
        self.began.set()
        deadline = time.monotonic() + PATIENCE
        while not self.open.wait(0.002):
            assert time.monotonic() < deadline
            if self.watchful:
                report(0.5, "waiting")
        return f"result {self.calls}"


@pytest.fixture
def queue() -> JobQueue:
    return JobQueue()


def test_work_is_done_and_its_result_found(queue):
    job = queue.submit("a", lambda report: 7, "me")
    settled(job)
    assert (job.status, job.result, job.error) == ("done", 7, "")
    assert queue.find("a") is job
    assert queue.find("b") is None


def test_equal_keys_are_one_job_while_it_waits_or_runs(queue):
    gate, second = Gate(), Gate()
    running = queue.submit("a", gate, "me")
    assert gate.began.wait(PATIENCE)
    waiting = queue.submit("b", second, "me")
    assert queue.submit("a", gate, "you") is running
    assert queue.submit("b", second, "you") is waiting
    gate.open.set()
    second.open.set()
    settled(running, waiting)
    assert (gate.calls, second.calls) == (1, 1)
    assert running.watchers == {"me", "you"}


def test_a_finished_key_is_worked_again(queue):
    first = queue.submit("a", lambda report: 1, "me")
    settled(first)
    second = queue.submit("a", lambda report: 2, "me")
    assert second is not first
    settled(second)
    assert queue.find("a").result == 2


def test_jobs_run_in_order_one_at_a_time_and_know_their_place(queue):
    gate, order = Gate(), []
    first = queue.submit("first", gate, "me")
    assert gate.began.wait(PATIENCE)
    others = [queue.submit(f"{i}", lambda report, i=i: order.append(i), "me") for i in range(4)]
    assert [queue.place(job) for job in (first, *others)] == [0, 1, 2, 3, 4]
    assert [job.status for job in (first, *others)] == ["running"] + ["queued"] * 4
    queue.cancel(others[1], "me")
    assert [queue.place(job) for job in others] == [1, 0, 2, 3]
    gate.open.set()
    settled(first, *others)
    assert order == [0, 2, 3]
    assert queue.place(first) == 0


def test_progress_never_falls_and_never_passes_one(queue):
    seen = []

    def work(report):
        for share in (0.1, 0.5, 0.3, 2.0):
            report(share, f"at {share}")
            seen.append((job.share, job.doing))

    start = threading.Event()
    job = queue.submit("a", lambda report: start.wait(PATIENCE) and work(report), "me")
    start.set()
    settled(job)
    assert seen == [(0.1, "at 0.1"), (0.5, "at 0.5"), (0.5, "at 0.3"), (1.0, "at 2.0")]


def test_time_left_is_told_once_there_is_something_to_go_by(queue):
    job = Job("a", lambda report: None)
    assert job.seconds_left() is None
    job.started, job.share = time.monotonic() - 3, 0.04
    assert job.seconds_left() is None
    job.share, job.reported = 0.75, time.monotonic()
    assert job.seconds_left() == pytest.approx(1.0, abs=0.3)  # 3 s were three quarters
    job.started, job.reported = job.started - 0.6, job.reported - 0.6
    assert job.seconds_left() == pytest.approx(0.4, abs=0.3)  # nothing new was told since, but time passed


def test_a_queued_job_is_cancelled_before_it_begins(queue):
    gate, never = Gate(), Gate()
    running = queue.submit("a", gate, "me")
    assert gate.began.wait(PATIENCE)
    queued = queue.submit("b", never, "me")
    queue.cancel(queued, "me")
    assert queued.status == "cancelled"
    gate.open.set()
    settled(running)
    settled(queue.submit("c", lambda report: None, "me"))
    assert never.calls == 0


def test_a_running_job_stops_at_its_next_report(queue):
    gate = Gate(watchful=True)
    job = queue.submit("a", gate, "me")
    assert gate.began.wait(PATIENCE)
    queue.cancel(job, "me")
    settled(job)
    assert (job.status, job.result, job.error) == ("cancelled", None, "")
    after = queue.submit("b", lambda report: "next", "me")
    settled(after)
    assert after.result == "next"


def test_one_of_two_who_wait_does_not_stop_the_other(queue):
    gate, second = Gate(watchful=True), Gate(watchful=True)
    running = queue.submit("a", gate, "me")
    queue.submit("a", gate, "you")
    queued = queue.submit("b", second, "me")
    queue.submit("b", second, "you")
    assert gate.began.wait(PATIENCE)
    queue.cancel(running, "me")
    queue.cancel(queued, "me")
    queue.cancel(running, "a stranger")
    gate.open.set()
    second.open.set()
    settled(running, queued)
    assert (running.status, running.result) == ("done", "result 1")
    assert (queued.status, queued.result) == ("done", "result 1")


def test_a_key_asked_for_again_after_its_cancel_is_worked_afresh(queue):
    gate = Gate(watchful=True)
    cancelled = queue.submit("a", gate, "me")
    assert gate.began.wait(PATIENCE)
    queue.cancel(cancelled, "me")
    again = queue.submit("a", lambda report: "afresh", "me")
    assert again is not cancelled
    settled(cancelled, again)
    assert (cancelled.status, again.status, again.result) == ("cancelled", "done", "afresh")
    assert queue.find("a") is again


def test_a_finished_job_cannot_be_cancelled(queue):
    job = queue.submit("a", lambda report: 1, "me")
    settled(job)
    queue.cancel(job, "me")
    assert (job.status, job.result) == ("done", 1)


class Stopped(BaseException):
    """As a framework raises to unwind a thread."""


@pytest.mark.parametrize(
    "error", [ValueError("the prompt is empty"), KeyError("x"), MemoryError(), SystemExit(1), Stopped()]
)
def test_the_worker_outlives_an_error_and_tells_it(queue, error):
    def work(report):
        raise error

    job = queue.submit("a", work, "me")
    settled(job)
    assert job.status == "failed"
    assert job.error.endswith(".") and "Traceback" not in job.error
    after = queue.submit("b", lambda report: "next", "me")
    settled(after)
    assert after.result == "next"


class Mute(RuntimeError):
    """An error that cannot say what it is."""

    def __str__(self):
        raise KeyError("no text")


class Odd(RuntimeError):
    def __str__(self):
        return 3


@pytest.mark.parametrize("error", [Mute(), Odd()])
def test_an_error_whose_text_cannot_be_made_does_not_end_the_queue(queue, error):
    def work(report):
        raise error

    job, after = queue.submit("a", work, "me"), queue.submit("b", lambda report: "next", "me")
    settled(job, after)
    assert (job.status, job.error) == ("failed", f"The run failed ({type(error).__name__}: no message).")
    assert after.result == "next"


def test_a_visitor_has_a_most_of_waiting_jobs(queue):
    gate = Gate()
    queue.submit("first", gate, "me")
    assert gate.began.wait(PATIENCE)
    mine = [queue.submit(f"{i}", lambda report: None, "me") for i in range(MOST_WAITING)]
    with pytest.raises(ValueError, match="you have 64 jobs waiting, the most a visitor may have: wait, or cancel some"):
        queue.submit("one more", lambda report: None, "me")
    other = queue.submit("theirs", lambda report: None, "you")
    queue.cancel(mine[0], "me")
    again = queue.submit("one more", lambda report: None, "me")
    gate.open.set()
    settled(other, again, *mine)


def test_visitors_take_turns(queue):
    """Sixty jobs of one visitor put the next at place 2: behind what runs and one more, not behind all."""
    gate, order = Gate(), []
    queue.submit("first", gate, "many")
    assert gate.began.wait(PATIENCE)
    work = [queue.submit(f"many {i}", lambda report, i=i: order.append(f"many {i}"), "many") for i in range(60)]
    few = [queue.submit(f"few {i}", lambda report, i=i: order.append(f"few {i}"), "few") for i in range(2)]
    late = queue.submit("late", lambda report: order.append("late"), "late")
    assert queue.place(few[0]) <= 2 and queue.place(late) <= 3
    expected = sorted([*work, *few, late], key=queue.place)
    gate.open.set()
    settled(*work, *few, late)
    assert order == [job.key for job in expected]
    assert set(order[:3]) == {"many 0", "few 0", "late"}


def test_a_visitor_who_asks_again_and_again_does_not_keep_another_waiting(queue):
    order, jobs, began = [], [], threading.Event()

    def again(n: int):
        def work(report):
            began.set()
            time.sleep(0.01)
            order.append("eager")
            if n:
                jobs.append(queue.submit(f"eager {n}", again(n - 1), "eager"))

        return work

    jobs += [queue.submit("eager", again(10), "eager"), queue.submit("eager too", again(10), "eager")]
    assert began.wait(PATIENCE)
    patient = queue.submit("patient", lambda report: order.append("patient"), "patient")
    settled(patient)
    assert order.index("patient") <= 2


def test_what_a_visitor_left_waiting_is_dropped(monkeypatch):
    monkeypatch.setattr(jobs_module, "_ABSENT", 0.05)
    there = {"stays": True, "leaves": True, "joins": True}
    queue, gate, never = JobQueue(present=there.__getitem__), Gate(), Gate()
    running = queue.submit("runs", gate, "leaves")
    assert gate.began.wait(PATIENCE)
    left = [queue.submit(f"left {i}", never, "leaves") for i in range(12)]
    shared = queue.submit("shared", lambda report: "shared", "leaves")
    queue.submit("shared", lambda report: "shared", "joins")
    stays = queue.submit("stays", lambda report: "here", "stays")
    there["leaves"] = False
    time.sleep(0.1)
    assert queue.place(stays) <= 2
    gate.open.set()
    settled(running, stays, shared, *left)
    assert [job.status for job in (running, stays, shared)] == ["done"] * 3  # what runs already is kept for the store
    assert {job.status for job in left} == {"cancelled"} and never.calls == 0


def test_a_sign_of_a_visitor_keeps_their_place_while_a_connection_is_lost(monkeypatch):
    monkeypatch.setattr(jobs_module, "_ABSENT", 0.5)
    queue, gate = JobQueue(present=lambda watcher: False), Gate()
    queue.submit("runs", gate, "me")
    assert gate.began.wait(PATIENCE)
    job = queue.submit("waits", lambda report: "here", "me")
    for _ in range(4):
        time.sleep(0.2)
        queue.see("me")
    assert queue.place(job) == 1
    gate.open.set()
    settled(job)
    assert job.result == "here"


def silent_loop(report):
    report(0.1, "begun")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        sum(range(1000))


def test_a_cancelled_job_that_never_reports_is_interrupted(queue, monkeypatch):
    monkeypatch.setattr(jobs_module, "_QUIET", 0.1)
    job, after = queue.submit("a", silent_loop, "me"), queue.submit("b", lambda report: "next", "you")
    while job.share == 0:
        time.sleep(0.01)
    began = time.monotonic()
    queue.cancel(job, "me")
    settled(job, after)
    assert (job.status, after.result) == ("cancelled", "next")
    assert time.monotonic() - began < 5


def test_a_job_that_takes_too_long_is_ended_whether_it_reports_or_not(queue, monkeypatch):
    monkeypatch.setenv("SPARSELENS_JOB_SECONDS", "0.3")

    def talks(report):
        while True:
            report(0.5, "going on")

    jobs = [queue.submit("mute", silent_loop, "me"), queue.submit("talks", talks, "me")]
    after = queue.submit("b", lambda report: "next", "you")
    settled(*jobs, after)
    for job in jobs:
        assert (job.status, job.result) == ("failed", None)
        assert job.error.startswith("The work was ended after 0 s, the most that a job may take here")
    assert after.result == "next" and queue.left_behind == 0


def test_a_job_stuck_outside_python_is_left_behind_and_the_next_one_runs(queue, monkeypatch):
    monkeypatch.setattr(jobs_module, "_QUIET", 0.05)
    monkeypatch.setattr(jobs_module, "_DEAF", 0.2)
    began, stuck = threading.Event(), threading.Lock()
    stuck.acquire()

    def work(report):
        began.set()
        with stuck:  # as a call into C that does not come back
            return "too late"

    job, after = queue.submit("a", work, "me"), queue.submit("b", lambda report: "next", "you")
    assert began.wait(PATIENCE)
    queue.cancel(job, "me")
    settled(job, after)
    assert (job.status, after.result, queue.left_behind) == ("cancelled", "next", 1)
    stuck.release()
    time.sleep(0.1)
    assert (job.status, job.result) == ("cancelled", None)


def test_a_job_is_not_interrupted_within_an_import(queue, monkeypatch, tmp_path):
    """A module that was interrupted half way, torch's among them, cannot be imported again."""
    monkeypatch.setattr(jobs_module, "_QUIET", 0.05)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slow_module.py").write_text("import time\nfor _ in range(60):\n    time.sleep(0.01)\nwhole = True\n")
    began, whole = threading.Event(), []

    def work(report):
        began.set()
        import slow_module

        whole.append(slow_module.whole)
        report(0.5, "imported")

    job = queue.submit("a", work, "me")
    assert began.wait(PATIENCE)
    queue.cancel(job, "me")
    settled(job)
    assert (job.status, whole) == ("cancelled", [True])


@pytest.mark.parametrize("given", ["soon", "0", "-3", "nan"])
def test_a_time_limit_that_is_no_number_is_named(monkeypatch, given):
    monkeypatch.setenv("SPARSELENS_JOB_SECONDS", given)
    with pytest.raises(ValueError, match=f"SPARSELENS_JOB_SECONDS is a number of seconds above 0; got '{given}'"):
        most_seconds()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["submit", "cancel", "again"])), max_size=25))
def test_whatever_visitors_do_no_job_is_stuck(actions):
    queue, gate = JobQueue(), Gate(watchful=True)
    jobs, asked = [queue.submit("gate", gate, "a")], [("gate", "a")]
    for i, (visitor, action) in enumerate(actions):
        if action == "submit":
            asked.append((f"{visitor} {i}", visitor))
            jobs.append(queue.submit(f"{visitor} {i}", lambda report, key=f"{visitor} {i}": key, visitor))
        elif action == "again":
            queue.submit(asked[i % len(asked)][0], lambda report: None, visitor)
        else:
            queue.cancel(jobs[i % len(jobs)], visitor)
    places = [queue.place(job) for job in jobs if job.status == "queued"]
    assert len(set(places)) == len(places)
    gate.open.set()
    settled(*jobs)
    assert all(job.result == job.key for job in jobs[1:] if job.status == "done")


def test_only_the_latest_finished_jobs_are_remembered(queue):
    jobs = [queue.submit(f"{i}", lambda report, i=i: i, "me") for i in range(40)]
    settled(*jobs)
    assert [i for i in range(40) if queue.find(f"{i}")] == list(range(8, 40))
    again = queue.submit("8", lambda report: "again", "me")
    more = [queue.submit(f"{i}", lambda report: None, "me") for i in range(40, 50)]
    settled(again, *more)
    assert queue.find("8") is again  # the latest to finish, although its key is an old one


def test_many_threads_submit_one_key_and_it_runs_once(queue):
    gate, got, start = Gate(), [], threading.Barrier(16)

    def ask(name: str) -> None:
        start.wait()
        got.append(queue.submit("a", gate, name))

    threads = [threading.Thread(target=ask, args=(f"{i}",)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gate.open.set()
    settled(*got)
    assert len({id(job) for job in got}) == 1
    assert gate.calls == 1 and len(got[0].watchers) == 16


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("the prompt is empty: type some"), "The prompt is empty: type some."),
        (ModelError("No model. Go on?"), "No model. Go on?"),
        (MemoryError(), "The machine ran out of memory: shorten the prompt, choose a smaller model, or device=cpu."),
        (
            RuntimeError("CUDA out of memory. Tried to"),
            "The machine ran out of memory: shorten the prompt, choose a smaller model, or device=cpu.",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "The machine ran out of memory: shorten the prompt, choose a smaller model, or device=cpu.",
        ),
        (KeyError("x"), "The run failed (KeyError: 'x')."),
        (RuntimeError("one\ntwo"), "The run failed (RuntimeError: one)."),
        (RuntimeError(), "The run failed (RuntimeError: no message)."),
        (ValueError(), "The run failed (ValueError: no message)."),
        (RuntimeError("\n"), "The run failed (RuntimeError: no message)."),
    ],
)
def test_an_error_is_a_sentence(error, sentence):
    assert explain(error) == sentence
