"""The cache's byte budget: what was used longest ago goes, nothing else does, and no clock or neighbour changes that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsity_core.work.files import UNFINISHED, clear_leftovers
from sparsity_core.work.kept_prompts import keep_prompt, kept_prompt
from sparsity_core.work.shelf import SHELVES, byte_budget, entries, make_room, shelve, used

KIB = 1024


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    return tmp_path


def budget(monkeypatch, n_bytes: int) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE_GIB", repr(n_bytes / 2**30))
    assert byte_budget() == n_bytes


def names(cache: Path) -> set[str]:
    return {str(p.relative_to(cache)) for shelf in SHELVES for p in (cache / shelf).rglob("*") if p.is_file()}


def test_what_was_used_longest_ago_makes_room(cache, monkeypatch):
    for name in "abcd":
        shelve(cache / "traces" / f"{name}.npz", bytes(KIB))
    used(cache / "traces" / "a.npz")
    budget(monkeypatch, 3 * KIB)
    shelve(cache / "traces" / "e.npz", bytes(KIB))
    assert names(cache) == {"traces/a.npz", "traces/d.npz", "traces/e.npz"}


def test_a_result_beyond_the_whole_budget_is_refused_and_drops_nothing(cache, monkeypatch):
    budget(monkeypatch, 3 * KIB)
    shelve(cache / "traces" / "a.npz", bytes(KIB))
    with pytest.raises(OSError, match="set SPARSELENS_CACHE_GIB higher"):
        shelve(cache / "traces" / "large.npz", bytes(3 * KIB + 1))
    assert names(cache) == {"traces/a.npz"}
    shelve(cache / "traces" / "whole.npz", bytes(3 * KIB))
    assert names(cache) == {"traces/whole.npz"}


def test_all_kinds_of_results_share_one_budget(cache, monkeypatch):
    budget(monkeypatch, 2 * KIB)
    for shelf in SHELVES:
        shelve(cache / shelf / "below" / "x.bin", bytes(KIB))
    assert names(cache) == {f"{shelf}/below/x.bin" for shelf in SHELVES[-2:]}


def test_two_files_of_one_name_go_together(cache, monkeypatch):
    """A policy's weights without its card would be accepted by no run."""
    for name in ("old", "new"):
        shelve(cache / "policies" / f"{name}.json", bytes(10))
        shelve(cache / "policies" / f"{name}.safetensors", bytes(KIB))
    used(cache / "policies" / "old.json")  # either file stands for both
    budget(monkeypatch, 2 * KIB)
    make_room()
    assert names(cache) == {"policies/old.json", "policies/old.safetensors"}


def test_what_nobody_could_compute_again_is_no_part_of_it(cache, monkeypatch):
    kept = [cache / "gates" / "g.safetensors", cache / "models" / "m" / "w.safetensors", cache / "policies" / "p.part"]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(9 * KIB))
    budget(monkeypatch, KIB)
    shelve(cache / "traces" / "a.npz", bytes(KIB))
    assert all(path.exists() for path in (*kept, cache / "traces" / "a.npz"))


def test_a_clock_that_is_set_back_does_not_make_a_new_result_the_oldest(cache, monkeypatch):
    for name in "ab":
        shelve(cache / "traces" / f"{name}.npz", bytes(KIB))
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)  # 1970
    budget(monkeypatch, 2 * KIB)
    shelve(cache / "traces" / "c.npz", bytes(KIB))
    assert names(cache) == {"traces/b.npz", "traces/c.npz"}
    used(cache / "traces" / "b.npz")
    shelve(cache / "traces" / "d.npz", bytes(KIB))
    assert names(cache) == {"traces/b.npz", "traces/d.npz"}


@pytest.mark.parametrize("given", ["much", "-1", "nan", "inf"])
def test_a_budget_that_is_no_number_is_named(monkeypatch, given):
    monkeypatch.setenv("SPARSELENS_CACHE_GIB", given)
    with pytest.raises(ValueError, match=f"SPARSELENS_CACHE_GIB is a number of GiB, at least 0; got '{given}'"):
        byte_budget()


def test_long_prompts_are_bounded_like_everything_else(cache, monkeypatch):
    budget(monkeypatch, 10 * KIB)
    kept = [keep_prompt(f"{i} " * 2000) for i in range(6)]  # 4 kB each
    assert [kept_prompt(name) is not None for name in kept] == [False] * 4 + [True] * 2
    assert sum(entry.n_bytes for entry in entries()) <= 10 * KIB


def test_leftovers_of_killed_writers_go_after_an_hour_and_trainings_after_a_month(cache):
    now = time.time()
    ages = {
        f"traces/{UNFINISHED}abc": (2 * 3600, False),
        f"traces/{UNFINISHED}new": (60, True),
        "models/building-abc": (2 * 3600, False),
        "policies/p.part": (2 * 3600, True),
        "gates/g.part": (40 * 86400, False),
        "traces/a.npz": (400 * 86400, True),
        f"traces/{UNFINISHED}tomorrow": (-86400, True),  # the clock was set back
    }
    for name, (age, _) in ages.items():
        path = cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (now - age, now - age))
    building = cache / "checkpoints" / f"{UNFINISHED}def"  # old itself, and written in a minute ago
    building.mkdir(parents=True)
    (building / "model.safetensors").write_bytes(b"x")
    os.utime(building, (now - 7200, now - 7200))
    clear_leftovers(cache)
    assert {name: (cache / name).exists() for name in ages} == {name: stays for name, (_, stays) in ages.items()}
    assert building.exists()


WRITER = """
import random, sys
from pathlib import Path
from sparsity_core.work.cache import cache_dir
from sparsity_core.work.files import read_regular
from sparsity_core.work.shelf import shelve, used
rng = random.Random(sys.argv[1])
for _ in range(150):
    name = rng.randrange(30)
    path = cache_dir() / "traces" / f"{name}.npz"
    shelve(path, bytes([name]) * 1024)
    try:
        other = rng.randrange(30)
        data = read_regular(cache_dir() / "traces" / f"{other}.npz")
        used(cache_dir() / "traces" / f"{other}.npz")
        assert data == bytes([other]) * 1024
    except FileNotFoundError:
        pass
"""


def test_two_processes_share_one_cache(cache, monkeypatch):
    budget(monkeypatch, 10 * KIB)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, seed], stderr=subprocess.PIPE, env=os.environ) for seed in "12"
    ]
    assert [(w.communicate(timeout=120)[1], w.returncode) for w in writers] == [(b"", 0)] * 2
    assert 0 < sum(entry.n_bytes for entry in entries()) <= 10 * KIB
    assert not [p for p in (cache / "traces").iterdir() if p.suffix != ".npz"]
