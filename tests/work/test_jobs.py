"""One queue for all sessions: joined, in order, cancelled when nobody waits, and never stuck."""

from __future__ import annotations

import threading
import time

import pytest

from sparsity_core.models.refusals import ModelError
from sparsity_core.work.jobs import Job, JobQueue, explain

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
