"""One queue for all sessions: joined, in order, cancelled when nobody waits, and never stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsity_core.work import jobs as jobs_module
from sparsity_core.work.jobs import MOST_WAITING, Job, JobQueue
from tests.work.errands import Gate, Mute, Odd, Stopped, fail, give, note, noted, settled, tell


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    queue = JobQueue()
    yield queue
    queue.close()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def test_work_is_done_and_its_result_found(queue):
    job = queue.submit("a", partial(give, 7), "me")
    settled(job)
    assert (job.status, job.result, job.error) == ("done", 7, "")
    assert queue.find("a") is job
    assert queue.find("b") is None


def test_equal_keys_are_one_job_while_it_waits_or_runs(queue, gate, tmp_path):
    second = Gate(tmp_path, "second")
    running = queue.submit("a", gate.work, "me")
    gate.began()
    waiting = queue.submit("b", second.work, "me")
    assert queue.submit("a", gate.work, "you") is running
    assert queue.submit("b", second.work, "you") is waiting
    gate.open()
    second.open()
    settled(running, waiting)
    assert (gate.calls, second.calls) == (1, 1)
    assert running.watchers == {"me", "you"}


def test_a_finished_key_is_worked_again(queue):
    first = queue.submit("a", partial(give, 1), "me")
    settled(first)
    second = queue.submit("a", partial(give, 2), "me")
    assert second is not first
    settled(second)
    assert queue.find("a").result == 2


def test_jobs_run_in_order_one_at_a_time_and_know_their_place(queue, gate, tmp_path):
    first = queue.submit("first", gate.work, "me")
    gate.began()
    others = [queue.submit(f"{i}", partial(note, tmp_path / "order", f"{i}"), "me") for i in range(4)]
    assert [queue.place(job) for job in (first, *others)] == [0, 1, 2, 3, 4]
    assert [job.status for job in (first, *others)] == ["running"] + ["queued"] * 4
    queue.cancel(others[1], "me")
    assert [queue.place(job) for job in others] == [1, 0, 2, 3]
    gate.open()
    settled(first, *others)
    assert noted(tmp_path / "order") == ["0", "2", "3"]
    assert queue.place(first) == 0


@pytest.mark.parametrize(
    ("shares", "found"), [((0.1, 0.5, 0.3), (0.5, "at 0.3")), ((0.5, 2.0), (1.0, "at 2.0")), ((), (0.0, "starting"))]
)
def test_progress_never_falls_and_never_passes_one(queue, gate, shares, found):
    job = queue.submit("a", partial(tell, shares, gate.folder), "me")
    gate.began()  # the reports were written before this sign, and are read in order
    deadline = time.monotonic() + 10
    while (job.share, job.doing) != found and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (job.share, job.doing) == found
    gate.open()
    settled(job)


def test_time_left_is_told_once_there_is_something_to_go_by():
    job = Job("a", b"")
    assert job.seconds_left() is None
    job.started, job.share = time.monotonic() - 3, 0.04
    assert job.seconds_left() is None
    job.share, job.reported = 0.75, time.monotonic()
    assert job.seconds_left() == pytest.approx(1.0, abs=0.3)  # 3 s were three quarters
    job.started, job.reported = job.started - 0.6, job.reported - 0.6
    assert job.seconds_left() == pytest.approx(0.4, abs=0.3)  # nothing new was told since, but time passed


def test_a_queued_job_is_cancelled_before_it_begins(queue, gate, tmp_path):
    never = Gate(tmp_path, "never")
    running = queue.submit("a", gate.work, "me")
    gate.began()
    queued = queue.submit("b", never.work, "me")
    queue.cancel(queued, "me")
    assert queued.status == "cancelled"
    gate.open()
    settled(running)
    settled(queue.submit("c", partial(give, None), "me"))
    assert never.calls == 0


def test_a_running_job_stops_at_its_next_report_and_the_engine_stays(queue, tmp_path):
    gate = Gate(tmp_path, watchful=True)
    job = queue.submit("a", gate.work, "me")
    gate.began()
    queue.cancel(job, "me")
    settled(job)
    assert (job.status, job.result, job.error) == ("cancelled", None, "")
    after = queue.submit("b", partial(give, "next"), "me")
    settled(after)
    assert (after.result, queue.engines) == ("next", 1)


def test_one_of_two_who_wait_does_not_stop_the_other(queue, tmp_path):
    gate, second = Gate(tmp_path, watchful=True), Gate(tmp_path, "second", watchful=True)
    running = queue.submit("a", gate.work, "me")
    queue.submit("a", gate.work, "you")
    queued = queue.submit("b", second.work, "me")
    queue.submit("b", second.work, "you")
    gate.began()
    queue.cancel(running, "me")
    queue.cancel(queued, "me")
    queue.cancel(running, "a stranger")
    gate.open()
    second.open()
    settled(running, queued)
    assert (running.status, running.result) == ("done", "result 1")
    assert (queued.status, queued.result) == ("done", "result 1")


def test_a_key_asked_for_again_after_its_cancel_is_worked_afresh(queue, tmp_path):
    gate = Gate(tmp_path, watchful=True)
    cancelled = queue.submit("a", gate.work, "me")
    gate.began()
    queue.cancel(cancelled, "me")
    again = queue.submit("a", partial(give, "afresh"), "me")
    assert again is not cancelled
    settled(cancelled, again)
    assert (cancelled.status, again.status, again.result) == ("cancelled", "done", "afresh")
    assert queue.find("a") is again


def test_a_finished_job_cannot_be_cancelled(queue):
    job = queue.submit("a", partial(give, 1), "me")
    settled(job)
    queue.cancel(job, "me")
    assert (job.status, job.result) == ("done", 1)


@pytest.mark.parametrize(
    "error", [ValueError("the prompt is empty"), KeyError("x"), MemoryError(), SystemExit(1), Stopped()]
)
def test_the_engine_outlives_an_error_and_tells_it(queue, error):
    job = queue.submit("a", partial(fail, error), "me")
    settled(job)
    assert job.status == "failed"
    assert job.error.endswith(".") and "Traceback" not in job.error
    after = queue.submit("b", partial(give, "next"), "me")
    settled(after)
    assert (after.result, queue.engines) == ("next", 1)


@pytest.mark.parametrize("error", [Mute(), Odd()])
def test_an_error_whose_text_cannot_be_made_does_not_end_the_queue(queue, error):
    job, after = queue.submit("a", partial(fail, error), "me"), queue.submit("b", partial(give, "next"), "me")
    settled(job, after)
    assert (job.status, job.error) == ("failed", f"The run failed ({type(error).__name__}: no message).")
    assert after.result == "next"


def test_a_result_is_kept_before_its_job_counts_as_done_and_a_failure_to_keep_it_is_told(queue):
    kept, seen = [], []

    def keep(result: object) -> None:
        seen.append(queue.find("a").status)
        kept.append(result)

    job = queue.submit("a", partial(give, 7), "me", keep=keep)
    settled(job)
    assert (kept, seen) == ([7], ["running"])

    def refuse(result: object) -> None:
        raise ValueError("there is no room")

    refused = queue.submit("b", partial(give, 7), "me", keep=refuse)
    settled(refused)
    assert (refused.status, refused.error) == ("failed", "There is no room.")


def test_a_visitor_has_a_most_of_waiting_jobs(queue, gate):
    nothing = partial(give, None)
    queue.submit("first", gate.work, "me")
    gate.began()
    mine = [queue.submit(f"{i}", nothing, "me") for i in range(MOST_WAITING)]
    with pytest.raises(ValueError, match="you have 64 jobs waiting, the most a visitor may have: wait, or cancel some"):
        queue.submit("one more", nothing, "me")
    other = queue.submit("theirs", nothing, "you")
    queue.cancel(mine[0], "me")
    again = queue.submit("one more", nothing, "me")
    gate.open()
    settled(other, again, *mine)


def test_visitors_take_turns(queue, gate, tmp_path):
    """Sixty jobs of one visitor put the next at place 2: behind what runs and one more, not behind all."""
    order = tmp_path / "order"
    queue.submit("first", gate.work, "many")
    gate.began()
    work = [queue.submit(f"many-{i}", partial(note, order, f"many-{i}"), "many") for i in range(60)]
    few = [queue.submit(f"few-{i}", partial(note, order, f"few-{i}"), "few") for i in range(2)]
    late = queue.submit("late", partial(note, order, "late"), "late")
    assert queue.place(few[0]) <= 2 and queue.place(late) <= 3
    expected = sorted([*work, *few, late], key=queue.place)
    gate.open()
    settled(*work, *few, late)
    assert noted(order) == [job.key for job in expected]
    assert set(noted(order)[:3]) == {"many-0", "few-0", "late"}


def test_a_visitor_who_asks_again_and_again_does_not_keep_another_waiting(queue, gate, tmp_path):
    order, jobs = tmp_path / "order", []

    def again(n: int, result: object) -> None:
        if n:
            jobs.append(queue.submit(f"eager {n}", partial(note, order, "eager"), "eager", keep=partial(again, n - 1)))

    jobs += [queue.submit("eager", gate.work, "eager", keep=partial(again, 10))]
    jobs += [queue.submit("eager too", partial(note, order, "eager"), "eager", keep=partial(again, 10))]
    gate.began()
    patient = queue.submit("patient", partial(note, order, "patient"), "patient")
    gate.open()
    settled(patient)
    assert noted(order).index("patient") <= 2


def test_what_a_visitor_left_waiting_is_dropped(gate, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "_ABSENT", 0.05)
    there = {"stays": True, "leaves": True, "joins": True}
    queue, never = JobQueue(present=there.__getitem__), Gate(tmp_path, "never")
    running = queue.submit("runs", gate.work, "leaves")
    gate.began()
    left = [queue.submit(f"left {i}", never.work, "leaves") for i in range(12)]
    shared = queue.submit("shared", partial(give, "shared"), "leaves")
    queue.submit("shared", partial(give, "shared"), "joins")
    stays = queue.submit("stays", partial(give, "here"), "stays")
    there["leaves"] = False
    time.sleep(0.1)
    assert queue.place(stays) <= 2
    gate.open()
    settled(running, stays, shared, *left)
    assert [job.status for job in (running, stays, shared)] == ["done"] * 3  # what runs already is kept for the store
    assert {job.status for job in left} == {"cancelled"} and never.calls == 0
    queue.close()


def test_a_sign_of_a_visitor_keeps_their_place_while_a_connection_is_lost(gate, monkeypatch):
    monkeypatch.setattr(jobs_module, "_ABSENT", 0.5)
    queue = JobQueue(present=lambda watcher: False)
    queue.submit("runs", gate.work, "me")
    gate.began()
    job = queue.submit("waits", partial(give, "here"), "me")
    for _ in range(4):
        time.sleep(0.2)
        queue.see("me")
    assert queue.place(job) == 1
    gate.open()
    settled(job)
    assert job.result == "here"
    queue.close()


@pytest.fixture(scope="module")
def lasting() -> Iterator[JobQueue]:
    queue = JobQueue()
    yield queue
    queue.close()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["submit", "cancel", "again"])), max_size=25))
def test_whatever_visitors_do_no_job_is_stuck(lasting, tmp_path_factory, actions):
    gate = Gate(tmp_path_factory.mktemp("gate"), watchful=True)
    jobs, again, asked = [lasting.submit("gate", gate.work, "a")], [], [("gate", "a")]
    for i, (visitor, action) in enumerate(actions):
        if action == "submit":
            asked.append((f"{visitor} {i}", visitor))
            jobs.append(lasting.submit(f"{visitor} {i}", partial(give, f"{visitor} {i}"), visitor))
        elif action == "again":
            again.append(lasting.submit(asked[i % len(asked)][0], partial(give, None), visitor))
        else:
            lasting.cancel(jobs[i % len(jobs)], visitor)
    places = [lasting.place(job) for job in jobs if job.status == "queued"]
    assert len(set(places)) == len(places)
    gate.open()
    last = lasting.submit("last", partial(give, "reached"), "e")
    settled(*jobs, *again, last)  # the next example asks for the same keys
    assert all(job.result == job.key for job in jobs[1:] if job.status == "done")
    assert last.result == "reached"


def test_only_the_latest_finished_jobs_are_remembered(queue):
    jobs = [queue.submit(f"{i}", partial(give, i), "me") for i in range(40)]
    settled(*jobs)
    assert [i for i in range(40) if queue.find(f"{i}")] == list(range(8, 40))
    again = queue.submit("8", partial(give, "again"), "me")
    more = [queue.submit(f"{i}", partial(give, None), "me") for i in range(40, 50)]
    settled(again, *more)
    assert queue.find("8") is again  # the latest to finish, although its key is an old one


def test_many_threads_submit_one_key_and_it_runs_once(queue, gate):
    got, start = [], threading.Barrier(16)

    def ask(name: str) -> None:
        start.wait()
        got.append(queue.submit("a", gate.work, name))

    threads = [threading.Thread(target=ask, args=(f"{i}",)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gate.open()
    settled(*got)
    assert len({id(job) for job in got}) == 1
    assert gate.calls == 1 and len(got[0].watchers) == 16


def test_a_closed_queue_ends_what_runs_and_cancels_what_waits(gate):
    queue = JobQueue()
    running = queue.submit("a", gate.work, "me")
    gate.began()
    waiting = queue.submit("b", partial(give, 1), "me")
    queue.close()
    assert (running.status, waiting.status) == ("cancelled", "cancelled")
    assert not queue._engine.runs
