"""Faults on purpose: a process killed at its worst moment, and a bit flipped in every kind of file that ships."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsity_core.record.spec import RunSpec
from sparsity_core.record.store import Store, key_of
from sparsity_core.record.trace import Trace
from sparsity_core.studies.spectra_records import SHIPPED_SPECTRA, Ranked, Uncut, WeightStudy
from sparsity_core.work.cache import ASSETS
from sparsity_core.work.files import UNFINISHED, clear_leftovers, read_regular
from sparsity_core.work.shelf import entries
from tests import tiny

PATIENCE = 240  # s for a process that loads a model on a busy machine

SAVING = """
import itertools, sys
from sparsity_core.work.cache import cache_dir
from sparsity_core.work.shelf import shelve
for i in itertools.count():
    shelve(cache_dir() / "traces" / f"{i % 7}.npz", bytes([i % 7]) * 8_000_000)
    print(i, flush=True)
"""

FILLING = """
import sys, time
from pathlib import Path
from sparsity_core.work.files import folder_whole
with folder_whole(Path(sys.argv[1])) as building:
    (building / "config.json").write_text("{}")
    print("begun", flush=True)
    time.sleep(600)
"""

EXPORTING = """
import pandas as pd, plotly.graph_objects as go
from sparsity_core.record import Provenance
from viz.paper import export
while True:
    export(go.Figure(go.Scatter(y=[1, 3, 2])), pd.DataFrame({"y": [1, 3, 2]}), "pdf", Provenance())
    print("drawn", flush=True)
"""

DYING = """
import os, signal, sys
from pathlib import Path
import numpy as np
from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS, Channels
replace, left = os.replace, [int(sys.argv[2])]
def dying(*names):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)
os.replace = dying
Channels({name: np.ones((1, 2, 4), np.float32) for name in STATISTICS}, 1, {"fingerprint": "f"}).save(Path(sys.argv[1]))
"""


def aged(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)


def killed(code: str, *arguments: str, seconds: float = 0.0, running: Callable[[], Any] = lambda: True) -> None:
    """Runs Python until its first line of output, and some seconds longer, and kills it once `running` holds."""
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    deadline = time.monotonic() + PATIENCE
    while not running():
        assert process.poll() is None and time.monotonic() < deadline
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_kill_in_a_save_leaves_whole_files_and_what_a_start_removes(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    rng = random.Random(0)
    for _ in range(6):
        killed(SAVING, seconds=rng.random() / 4)
        for entry in entries():
            (file,) = entry.files
            assert read_regular(file) == bytes([int(file.stem)]) * 8_000_000
    (tmp_path / "traces" / f"{UNFINISHED}left").write_bytes(b"half")
    aged(tmp_path)
    clear_leftovers(tmp_path)
    assert all(path.suffix == ".npz" for path in (tmp_path / "traces").iterdir())


def test_a_kill_while_a_folder_is_filled_leaves_the_name_free(tmp_path):
    target = tmp_path / "out"
    killed(FILLING, str(target))
    assert not target.exists() and len(list(tmp_path.iterdir())) == 1
    aged(tmp_path)
    from sparsity_core.work.files import folder_whole

    with folder_whole(target):
        pass
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("files", [0, 1])
def test_a_kill_between_two_files_of_a_pair_leaves_no_weights_without_their_card(tmp_path, files):
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path / "c"), str(files)], env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "c.safetensors").exists()
    whole = subprocess.run([sys.executable, "-c", DYING, str(tmp_path / "c"), "9"], env=os.environ)
    assert whole.returncode == 0
    from sparsity_core.methods.decode.double_sparsity.channels import Channels

    assert Channels.load(tmp_path / "c").recipe == {"fingerprint": "f"}


def browsers_of(folder: Path) -> list[int]:
    """The processes of browsers that keep their files in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in (process / "cmdline").read_text():
                found.append(int(process.name))
        except OSError:
            pass
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="this system does not list its processes in files")
def test_a_kill_in_an_export_leaves_no_browser(monkeypatch):
    from viz.paper import can_render

    if not can_render():
        pytest.skip("no Chromium or Chrome is installed")
    # not tmp_path, whose name is so long that Chromium cannot open its socket there
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as short:
        monkeypatch.setenv("TMPDIR", short)
        killed(EXPORTING, seconds=0.05, running=lambda: browsers_of(Path(short)))
        deadline = time.monotonic() + 60
        while browsers_of(Path(short)):
            assert time.monotonic() < deadline, "the browser outlives the process that drew with it"
            time.sleep(0.1)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sparsity_core", *arguments, "--device", "cpu", "--json"]


def saved_model(folder: Path) -> Path:
    model = tiny.model()
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def kill_once(arguments: list[str], there: Path) -> None:
    """Starts a command, and kills it once a file exists."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not there.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_policy(tmp_path):
    model = saved_model(tmp_path / "model")
    train = ["train", "prunenet", "--model", str(model), "--episodes", "40", "--out"]
    kill_once(command(*train, str(tmp_path / "killed")), tmp_path / "killed" / "training.part")
    assert [p.name for p in (tmp_path / "killed").iterdir() if not p.name.startswith(UNFINISHED)] == ["training.part"]
    found = {}
    for name in ("killed", "whole"):
        done = subprocess.run(command(*train, str(tmp_path / name)), capture_output=True, timeout=PATIENCE, check=True)
        found[name] = json.loads(done.stdout)["recipe"]["history"]
        assert not (tmp_path / name / "training.part").exists()
    assert found["killed"] == found["whole"]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["run", "compress"])
def test_a_command_that_is_killed_leaves_nothing_that_another_trips_over(tmp_path, what):
    model, out = saved_model(tmp_path / "model"), tmp_path / "out"
    arguments = {
        "run": ["run", "--prompt", "a " * 150, "--out", str(out)],
        "compress": ["compress", "--weights", "row_norm(ratio=0.5)", "--out", str(out)],
    }[what]
    asked = command(*arguments, "--model", str(model))
    process = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(random.Random(what).uniform(5, 12))
    process.kill()
    process.wait()
    for path in tmp_path.glob("out*"):  # where it was done before
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = subprocess.run(asked, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr


# --- files that ship ---


def flipped(source: Path, target: Path, rng: random.Random) -> None:
    data = bytearray(source.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    target.write_bytes(data)


def test_a_damaged_trace_that_ships_counts_as_absent(tmp_path, monkeypatch):
    from ui.session import EXAMPLE

    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path / "cache"))
    name, rng = f"{key_of(EXAMPLE)}.npz", random.Random(1)
    whole = Store().get(EXAMPLE)
    assert whole is not None
    for _ in range(20):
        flipped(ASSETS / "traces" / name, tmp_path / name, rng)
        found = Store(assets=tmp_path).get(EXAMPLE)
        assert found is None or found.nll.tobytes() == whole.nll.tobytes()
    (tmp_path / name).write_bytes((ASSETS / "traces" / name).read_bytes()[:-1000])
    assert Store(assets=tmp_path).get(EXAMPLE) is None


def test_a_trace_of_another_spec_counts_as_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    from ui.session import EXAMPLE

    trace, other = Store().get(EXAMPLE), RunSpec(model=EXAMPLE.model, prompt="another text")
    assert trace is not None and Store().put(EXAMPLE, trace) is None
    (tmp_path / "traces" / f"{key_of(EXAMPLE)}.npz").rename(tmp_path / "traces" / f"{key_of(other)}.npz")
    assert Store().get(other) is None
    assert list((tmp_path / "traces").iterdir()) == []


KINDS = {"uncut": Uncut, "ranked": Ranked, "study": WeightStudy}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_study_is_refused_with_a_sentence(tmp_path, kind):
    source, rng = next(SHIPPED_SPECTRA.glob(f"*/{kind}*.npz")), random.Random(kind)
    folder = tmp_path / source.parent.name
    folder.mkdir()
    refused = 0
    for _ in range(60):
        flipped(source, folder / source.name, rng)
        try:
            KINDS[kind].load(folder / source.name)
        except ValueError as error:
            refused += 1
            assert f"{source.name} cannot be read (the file" in str(error)
            assert "delete it, it is computed again" in str(error)
    assert refused > 40
    shutil.copy(source, folder / "study-another.npz")
    with pytest.raises(ValueError, match="the file is of something else"):
        KINDS[kind].load(folder / "study-another.npz")


@pytest.mark.parametrize("kind", ["policies", "gates", "channels"])
@pytest.mark.parametrize("part", ["safetensors", "json"])
def test_damaged_weights_and_cards_that_ship_are_refused_with_a_sentence(tmp_path, kind, part):
    from sparsity_core.methods.decode.double_sparsity.channels import Channels
    from sparsity_core.methods.gate.dcp.adapter import Gate
    from sparsity_core.methods.weights.prunenet.policy import Policy

    load = {"policies": Policy.load, "gates": Gate.load, "channels": Channels.load}[kind]
    source, rng = next((ASSETS / kind).glob("*.safetensors")), random.Random(kind)
    for name in ("safetensors", "json"):
        shutil.copy(source.with_suffix(f".{name}"), tmp_path)
    whole = load(tmp_path / source.name)
    refused = 0
    for _ in range(12):
        flipped(source.with_suffix(f".{part}"), (tmp_path / source.name).with_suffix(f".{part}"), rng)
        try:
            found = load(tmp_path / source.name)
        except ValueError as error:
            refused += 1
            assert "again" in str(error) or "train" in str(error), str(error)
        else:  # a letter of the recipe, which no digest covers
            assert part == "json" and type(found) is type(whole)
    assert refused == 12 or part == "json"


def test_a_trace_file_that_ships_can_be_opened_by_name():
    for path in (ASSETS / "traces").glob("*.npz"):
        Trace.load(path)
