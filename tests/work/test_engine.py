"""Work that no report can end: stuck in C, out of memory, aborted, or left by its server. The next job always runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from sparsity_core.work import jobs as jobs_module
from sparsity_core.work.held import held
from sparsity_core.work.jobs import JobQueue
from sparsity_core.work.limits import most_bytes, most_seconds
from sparsity_core.work.outside import plugins
from tests.work import errands
from tests.work.errands import PATIENCE, Gate, give, settled

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no signals")

SERVER = """
import sys, time
from sparsity_core.work.jobs import JobQueue
from tests.work import errands
queue = JobQueue()
if sys.argv[1] != "nothing":
    job = queue.submit("a", getattr(errands, sys.argv[1]), "me")
    while job.share == 0:
        time.sleep(0.01)
else:
    job = queue.submit("a", errands.number_of_process, "me")
    while not job.finished:
        time.sleep(0.01)
print(queue._engine.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    queue = JobQueue()
    yield queue
    queue.close()


def begun(job) -> None:
    deadline = time.monotonic() + PATIENCE
    while job.share == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("work", [errands.backtrack, errands.loop])
def test_cancel_ends_work_that_never_reports_and_the_next_job_runs(queue, monkeypatch, work):
    monkeypatch.setattr(jobs_module, "_QUIET", 0.2)
    job, after = queue.submit("a", work, "me"), queue.submit("b", partial(give, "next"), "you")
    begun(job)
    stuck = queue._engine.pid
    queue.cancel(job, "me")
    settled(job, after)
    assert (job.status, job.error, after.result, queue.engines) == ("cancelled", "", "next", 2)
    assert not psutil.pid_exists(stuck)  # nor as a zombie


def test_a_cancelled_job_has_time_to_end_by_itself(queue, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs_module, "_QUIET", 30.0)
    gate = Gate(tmp_path)
    job = queue.submit("a", gate.work, "me")
    gate.began()
    queue.cancel(job, "me")
    time.sleep(0.5)
    assert job.status == "running"
    gate.open()
    settled(job)
    assert (job.status, job.result, queue.engines) == ("done", "result 1", 1)


@pytest.mark.parametrize("work", [errands.backtrack, errands.talk])
def test_a_job_that_takes_too_long_is_ended_whether_it_reports_or_not(queue, monkeypatch, work):
    monkeypatch.setattr(jobs_module, "_QUIET", 0.2)
    monkeypatch.setenv("SPARSELENS_JOB_SECONDS", "0.5")
    job = queue.submit("a", work, "me")
    settled(job)
    monkeypatch.delenv("SPARSELENS_JOB_SECONDS")
    after = queue.submit("b", partial(give, "next"), "you")
    settled(after)
    assert (job.status, job.result, after.result) == ("failed", None, "next")
    assert job.error.startswith("The work was ended after 0 s, the most that a job may take here")


def test_a_job_that_eats_memory_is_ended_with_a_sentence(queue, monkeypatch):
    monkeypatch.setenv("SPARSELENS_JOB_GIB", "0.5")
    job, after = queue.submit("a", errands.eat, "me"), queue.submit("b", partial(give, "next"), "you")
    settled(job, after)
    assert (job.status, after.result) == ("failed", "next")
    assert job.error == (
        "The work was ended as it took more than 0.5 GiB of memory, the most that a job may take here: shorten the prompt, "
        "choose a smaller model, or set SPARSELENS_JOB_GIB higher."
    )


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (errands.abort, "The work ended unexpectedly (signal 6, SIGABRT)"),
        (partial(errands.leave, 3), "The work ended unexpectedly (exit status 3)"),
    ],
)
def test_work_that_takes_its_process_down_fails_alone(queue, work, said):
    job, after = queue.submit("a", work, "me"), queue.submit("b", partial(give, "next"), "you")
    settled(job, after)
    assert (job.status, after.status, after.result) == ("failed", "done", "next")
    assert job.error.startswith(said)


def test_a_kill_by_the_system_is_told_as_want_of_memory(queue, tmp_path):
    gate = Gate(tmp_path)
    job = queue.submit("a", gate.work, "me")
    gate.began()
    assert Path(f"/proc/{queue._engine.pid}/oom_score_adj").read_text() == "800\n" or sys.platform != "linux"
    os.kill(queue._engine.pid, signal.SIGKILL)
    settled(job)
    assert job.status == "failed" and "the machine ran out of memory" in job.error


def test_an_engine_that_was_lost_while_nothing_ran_is_replaced(queue):
    first = queue.submit("a", errands.number_of_process, "me")
    settled(first)
    os.kill(first.result, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while psutil.pid_exists(first.result):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert queue.ask(held) is None
    second = queue.submit("b", errands.number_of_process, "me")
    settled(second)
    assert second.status == "done" and second.result != first.result and queue.engines == 2


def test_what_every_engine_does_first_is_done_again_after_a_loss_but_not_for_ever(queue, tmp_path):
    book = tmp_path / "book"
    settled(queue.submit("load", partial(errands.note, book, "loaded"), "process", in_every_engine=True))
    settled(queue.submit("a", errands.abort, "me"))
    deadline = time.monotonic() + PATIENCE
    while errands.noted(book) != ["loaded", "loaded"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    bad = queue.submit("bad", errands.abort, "process", in_every_engine=True)
    settled(bad)
    settled(queue.submit("b", partial(give, 1), "me"))
    assert queue.engines == 3


@pytest.mark.parametrize("work", ["nothing", "backtrack", "talk"])
def test_an_engine_does_not_outlive_a_server_that_is_killed(work):
    server = subprocess.Popen([sys.executable, "-c", SERVER, work], stdout=subprocess.PIPE, env=environment())
    engine = int(server.stdout.readline())
    assert psutil.pid_exists(engine)
    server.kill()
    server.wait()
    server.stdout.close()
    deadline = time.monotonic() + PATIENCE
    while psutil.pid_exists(engine) and psutil.Process(engine).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_a_question_is_answered_while_a_job_runs_and_says_what_the_engine_holds(queue, tmp_path):
    gate = Gate(tmp_path)
    assert queue.ask(errands.number_of_process) is None  # no engine yet
    job = queue.submit("a", gate.work, "me")
    gate.began()
    assert queue.ask(errands.number_of_process) == queue._engine.pid != os.getpid()
    assert queue.ask(held) == {}
    with pytest.raises(ValueError, match="The prompt is empty"):
        queue.ask(partial(errands.fail, ValueError("the prompt is empty"), None))
    gate.open()
    settled(job)


def test_a_question_to_an_engine_that_cannot_answer_is_given_up(queue, monkeypatch):
    monkeypatch.setattr(jobs_module, "_QUIET", 0.1)
    job = queue.submit("a", errands.backtrack, "me")
    begun(job)
    assert queue.ask(errands.number_of_process, 0.3) is None
    for _ in range(2000):  # more than a pipe holds
        assert queue.ask(errands.number_of_process, 0.0) is None
    queue.cancel(job, "me")
    settled(job)


def test_a_result_that_no_message_can_hold_is_a_failure(queue):
    job, after = queue.submit("a", errands.make_unpicklable, "me"), queue.submit("b", partial(give, "next"), "me")
    settled(job, after)
    assert job.status == "failed" and "pickle" in job.error
    assert (after.result, queue.engines) == ("next", 1)


def test_work_that_cannot_be_sent_is_refused_at_once(queue):
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        queue.submit("a", lambda report: 1, "me")
    assert queue.find("a") is None


def test_work_of_a_plug_in_s_file_is_found(queue, monkeypatch, tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "mine.py").write_text("def seven(report):\n    return 7\n")
    monkeypatch.setenv("SPARSELENS_PLUGINS", str(tmp_path))
    (page,) = plugins("pages")
    job = queue.submit("a", page.seven, "me")
    settled(job)
    assert (job.result, job.error) == (7, "")


def test_a_folder_that_the_server_stands_in_is_not_imported_from(queue, monkeypatch, tmp_path):
    (tmp_path / "sparsity_core.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    job = queue.submit("a", partial(give, 7), "me")
    settled(job)
    assert (job.result, job.error) == (7, "")


def test_a_job_sees_the_settings_of_when_it_was_asked_for(queue, monkeypatch):
    name, found = "SPARSELENS_CACHE", []
    for value in ("/one", "/two", None):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
        found.append(queue.submit(str(value), partial(errands.setting, name), "me"))
    settled(*found)
    assert [job.result for job in found] == ["/one", "/two", None]


@pytest.mark.parametrize("given", ["soon", "0", "-3", "nan", "inf"])
@pytest.mark.parametrize(
    ("name", "limit", "of"),
    [("SPARSELENS_JOB_SECONDS", most_seconds, "seconds"), ("SPARSELENS_JOB_GIB", most_bytes, "GiB")],
)
def test_a_limit_that_is_no_number_is_named(queue, monkeypatch, name, limit, of, given):
    monkeypatch.setenv(name, given)
    with pytest.raises(ValueError, match=f"{name} is a number of {of} above 0; got '{given}'"):
        limit()
    job = queue.submit("a", partial(give, 1), "me")
    settled(job)
    assert (job.status, job.error) == ("failed", f"{name} is a number of {of} above 0; got '{given}'.")


def test_the_limits_where_none_is_set(monkeypatch):
    for name in ("SPARSELENS_JOB_SECONDS", "SPARSELENS_JOB_GIB"):
        monkeypatch.delenv(name, raising=False)
    assert most_seconds() == 7200
    assert 0.1 * psutil.virtual_memory().total < most_bytes() <= 0.8 * psutil.virtual_memory().total
