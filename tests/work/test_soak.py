"""A day in short: visitors who run, look, cancel and leave, through the real queue, the real store and a real model."""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sparsity_core.inference import execute
from sparsity_core.kinds import Pipeline
from sparsity_core.record import RunSpec, Store, Trace, key_of
from sparsity_core.work import jobs as jobs_module
from sparsity_core.work.jobs import Job, JobQueue
from tests import tiny

SECONDS = 300.0  # of six visitors at random
ACTIONS, SETTLED = 200, 50  # of four visitors, and how many of them memory may grow in
PIPELINES = (
    "dense",
    "eviction=a2sf(budget=8)",
    "eviction=h2o(budget=12)",
    "weights=row_norm(ratio=0.25)",
    "weights=row_norm(ratio=0.5) eviction=streaming_llm(budget=8)",
    "decode=quest(tokens=0.5)",
)
TEXTS = tuple(f"Visitor {i} counts {i}, {i + 1}, {i + 2} and writes it down. " * 3 for i in range(6))


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path / "cache"))
    folder, made = tmp_path / "model", tiny.model()
    made.hf.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def specs(model: Path) -> list[list[RunSpec]]:
    """Each visitor's own."""
    base = RunSpec(model=str(model), prompt="")
    return [[replace(base, prompt=text, pipeline=p, seed=s) for p in PIPELINES for s in range(4)] for text in TEXTS]


def work_of(spec: RunSpec):
    def work(report):
        assert Store().put(spec, execute(spec, report)) is None

    return work


def is_of(trace: Trace, spec: RunSpec) -> bool:
    return trace.provenance.pipeline == str(Pipeline.parse(spec.pipeline)) and "".join(trace.texts).endswith(
        spec.prompt
    )


def settle(jobs: list[Job]) -> None:
    deadline = time.monotonic() + 120
    while not all(job.finished for job in jobs):
        assert time.monotonic() < deadline, [(job.key, job.status) for job in jobs if not job.finished]
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_six_visitors_who_run_cancel_and_leave_at_random(model, monkeypatch):
    monkeypatch.setattr(jobs_module, "_ABSENT", 0.5)
    rng, asked = random.Random(0), specs(model)
    there = dict.fromkeys(map(str, range(6)), True)
    queue = JobQueue(present=there.__getitem__)
    mine: list[list[tuple[RunSpec, Job]]] = [[] for _ in there]
    every: list[Job] = []
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        i = rng.randrange(6)
        name, action = str(i), rng.choices(("run", "cancel", "leave", "look"), (5, 2, 1, 3))[0]
        there[name] = action != "leave"
        if action == "run" and len(mine[i]) < 8:
            spec = rng.choice(asked[i])
            job = queue.submit(key_of(spec), work_of(spec), name)
            mine[i].append((spec, job))
            every.append(job)
        elif action == "cancel" and mine[i]:
            queue.cancel(mine[i].pop(rng.randrange(len(mine[i])))[1], name)
        elif action == "leave":
            mine[i].clear()
        for spec, job in [both for both in mine[i] if both[1].finished]:
            mine[i].remove((spec, job))
            assert job.status in ("done", "cancelled"), job.error
            if job.status == "done":
                trace = Store().get(spec)
                assert trace is not None and is_of(trace, spec)
        time.sleep(rng.random() / 20)
    there |= dict.fromkeys(there, True)
    last = queue.submit("last", lambda report: "reached", "last")
    there["last"] = True
    settle([*every, last])
    assert last.result == "reached" and queue.left_behind == 0
    assert not [job.error for job in every if job.error]


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read where Linux tells it")
def test_memory_is_flat_after_the_first_fifty_of_two_hundred_actions(model):
    rng, asked, queue, sizes = random.Random(1), specs(model)[:4], JobQueue(), []
    for n in range(ACTIONS):
        i = n % 4
        spec = rng.choice(asked[i])
        if rng.random() < 0.2:
            job = queue.submit(key_of(spec), work_of(spec), str(i))
            queue.cancel(job, str(i))
        else:
            job = queue.submit(key_of(spec), work_of(spec), str(i))
        settle([job])
        if job.status == "done":
            assert is_of(Store().get(spec), spec)
        sizes.append(resident())
    early, late = max(sizes[SETTLED // 2 : SETTLED]), max(sizes[-SETTLED:])
    assert late - early < 40 * 2**20, [size // 2**20 for size in sizes[::10]]
