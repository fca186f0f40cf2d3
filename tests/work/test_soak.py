"""A day in short: visitors who run, look, cancel and leave, through the real queue, the real store and a real model."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from sparsity_core.kinds import Pipeline
from sparsity_core.record import RunSpec, Store, Trace, key_of
from sparsity_core.work import jobs as jobs_module
from sparsity_core.work.jobs import Job, JobQueue
from tests import tiny
from tests.work.errands import give, run_and_store, settled

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


def is_of(trace: Trace, spec: RunSpec) -> bool:
    return trace.provenance.pipeline == str(Pipeline.parse(spec.pipeline)) and "".join(trace.texts).endswith(
        spec.prompt
    )


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
            job = queue.submit(key_of(spec), partial(run_and_store, spec), name)
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
    last = queue.submit("last", partial(give, "reached"), "last")
    there["last"] = True
    settled(*every, last, most=120)
    assert last.result == "reached" and queue.engines == 1
    queue.close()
    assert not [job.error for job in every if job.error]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_is_flat_after_the_first_fifty_of_two_hundred_actions(model):
    rng, asked, queue = random.Random(1), specs(model)[:4], JobQueue()
    server: list[int] = []
    engine: list[int] = []
    for n in range(ACTIONS):
        i = n % 4
        spec = rng.choice(asked[i])
        if rng.random() < 0.2:
            job = queue.submit(key_of(spec), partial(run_and_store, spec), str(i))
            queue.cancel(job, str(i))
        else:
            job = queue.submit(key_of(spec), partial(run_and_store, spec), str(i))
        settled(job, most=120)
        if job.status == "done":
            assert is_of(Store().get(spec), spec)
        server.append(psutil.Process().memory_info().rss)
        engine.append(queue._engine.n_bytes() if queue._engine else 0)
    assert queue.engines == 1
    queue.close()
    for sizes in (server, engine):
        early, late = max(sizes[SETTLED // 2 : SETTLED]), max(sizes[-SETTLED:])
        assert late - early < 40 * 2**20, [size // 2**20 for size in sizes[::10]]
