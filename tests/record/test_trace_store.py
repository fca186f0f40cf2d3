"""A trace comes back as it was saved, or not at all with a sentence; and the store loses nothing."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from sparsity_core import Pipeline, Trace, generate, methods, run
from sparsity_core.record import store as store_module
from sparsity_core.record.spec import RunSpec
from sparsity_core.record.store import Store, key_of
from sparsity_core.record.trace import FORMAT
from sparsity_core.work import sealed
from sparsity_core.work.cache import ASSETS, cache_dir
from tests import tiny

SPEC = RunSpec(model="tiny", prompt="ab\ud800 🙂", pipeline="eviction=a2sf(budget=12)")  # half a pair too has a key
HALF = {"snapshots", "regret", "ideal_recall", "ideal_cosine", "ideal_mass"}
DAMAGED = "this is not a SparseLens trace, or it is damaged: run the spec again"


@functools.cache
def example() -> Trace:
    pipeline = Pipeline(eviction=methods.A2SF(budget=12, forgetting_factor={"number": 1, "other": 0.5}))
    trace = generate(
        tiny.model(), "The 12 cats 🙂 sat on 3 mats\u202e", pipeline, max_new_tokens=4, stop_at_eos=False
    ).trace
    return trace.with_notes("a note \ud83d of half a pair", "another")


def same(one: Trace, other: Trace) -> None:
    """Equal in everything; scores and the like, which are only drawn, to one part in 2,000."""
    assert one.flat().keys() == other.flat().keys()
    for name, a in one.flat().items():
        b = other.flat()[name]
        if isinstance(a, np.ndarray):
            assert a.shape == b.shape and a.dtype == b.dtype, name
            rtol, atol = (1 / 2000, 1e-7) if name in HALF else (0, 0)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)
        else:
            assert a == b and type(a) is type(b), name


def test_a_trace_comes_back_as_it_was(tmp_path):
    trace = example()
    assert trace.compared and np.isnan(trace.snapshots).any() and not np.isnan(trace.snapshots).all()
    trace.save(tmp_path / "t.npz")
    back = Trace.load(str(tmp_path / "t.npz"))
    same(back, trace)
    same(Trace.from_bytes(trace.to_bytes()), trace)
    assert back.provenance.backends == ("reference",)
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]


def test_a_trace_cannot_be_written_on():
    """Its metrics are computed once, and two sessions share it."""
    trace = example()
    with pytest.raises(ValueError, match="read-only"):
        trace.evicted_at[0, 0, 0] = 0
    mine = np.zeros(trace.n_tokens, np.float32)
    trace.replaced(nll=mine)
    mine[0] = 1  # the caller's own array stays theirs


def test_a_folder_is_no_trace(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read a trace at .* \(Is a directory\): name its .npz file"):
        Trace.load(tmp_path)


def test_a_trace_without_eviction_and_of_one_token_comes_back(tmp_path):
    for trace in (run(tiny.model(), [65]), run(tiny.model(), tiny.TEXT, snapshots=0, against_dense=False)):
        same(Trace.from_bytes(trace.to_bytes()), trace)


def test_scores_beyond_half_precision_stay_as_they_are():
    """A sink of a long text collects more than 65,504, the largest float16."""
    trace = example()
    large = trace.snapshots.copy()
    large[0, 0, -1, 0] = 1e6
    back = Trace.from_bytes(trace.replaced(snapshots=large).to_bytes())
    np.testing.assert_array_equal(back.snapshots, large)


def test_what_metrics_are_computed_from_is_stored_exactly():
    back = Trace.from_bytes(example().to_bytes())
    for name in ("nll", "dense_nll", "kl_to_dense", "threshold"):
        np.testing.assert_array_equal(getattr(back, name), getattr(example(), name))


@pytest.mark.filterwarnings("ignore")
def test_every_flipped_byte_is_refused_or_harmless():
    """2,000 damaged copies: each is refused with the sentence, or says the same as the original."""
    data, rng = example().to_bytes(), random.Random(0)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 8))):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            same(Trace.from_bytes(bytes(damaged)), example())
        except ValueError as error:
            assert str(error) == DAMAGED
            refused += 1
    assert refused > 1500


def test_every_cut_off_file_is_refused():
    data = example().to_bytes()
    for length in range(0, len(data), 97):
        with pytest.raises(ValueError, match=DAMAGED):
            Trace.from_bytes(data[:length])


def archive(meta: object = None, raw: bytes | None = None, **arrays: np.ndarray) -> bytes:
    raw = json.dumps(meta).encode() if raw is None else raw
    return sealed({"meta": np.frombuffer(raw, np.uint8), **arrays})


def plain_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


class Loud:
    """Sets a flag where it is unpickled."""

    ran = False

    def __reduce__(self):
        return (setattr, (Loud, "ran", True))


def pickled_array() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.array([Loud()], dtype=object))
    return buffer.getvalue()


FOREIGN = {
    "nothing": lambda: b"",
    "text": lambda: b"a,b\n1,2\n",
    "an array": plain_array,
    "an archive without meta": lambda: archive().replace(b"meta", b"mate"),
    "meta that is no JSON": lambda: archive(raw=b"{"),
    "meta that is no text": lambda: archive(raw=b"\xff\xfe"),
    "meta that is a list": lambda: archive([1]),
    "meta that is a number": lambda: archive(1),
    "meta that is nested without end": lambda: archive(raw=b"[" * 100_000),
    "no provenance": lambda: archive({"format": FORMAT}),
    "a provenance that is no object": lambda: archive({"format": FORMAT, "provenance": 3}),
    "fields of another kind": lambda: archive({"format": FORMAT, "provenance": {"backends": []}, "x": 1}),
    "a pickle": lambda: pickle.dumps(Loud()),
    "a pickled array": pickled_array,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused_with_a_sentence_and_never_unpickled(tmp_path, name):
    (tmp_path / "t.npz").write_bytes(FOREIGN[name]())
    with pytest.raises(ValueError, match=DAMAGED):
        Trace.load(tmp_path / "t.npz")
    assert not Loud.ran


def test_another_format_and_a_missing_file_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match=f"this trace is of another format than {FORMAT}: run the spec again"):
        Trace.from_bytes(archive({"format": FORMAT + 1}))
    with pytest.raises(ValueError, match=r"there is no trace at .*none"):
        Trace.load(tmp_path / "none.npz")


@pytest.mark.parametrize("broken", ["write", "rename"])
def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, broken):
    path = tmp_path / "t.npz"
    path.write_bytes(b"old")

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    if broken == "write":
        monkeypatch.setattr(Trace, "to_bytes", full)
    else:
        monkeypatch.setattr("sparsity_core.work.files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        example().save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]
    assert path.read_bytes() == b"old"


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    return Store(assets=tmp_path / "assets")


def test_what_is_put_is_found_by_its_spec_alone(store):
    assert store.get(SPEC) is None and not store.has(SPEC)
    assert store.put(SPEC, example()) is None
    assert store.has(SPEC)
    same(store.get(SPEC), example())
    for change in (
        {"prompt": "b"},
        {"seed": 1},
        {"pipeline": "dense"},
        {"generate": 1},
        {"dtype": "bfloat16"},
        {"model": "x"},
    ):
        other = dataclasses.replace(SPEC, **change)
        assert key_of(other) != key_of(SPEC)
        assert store.get(other) is None


def test_a_key_does_not_depend_on_the_process():
    """Written down from `printf '%s' FORMAT.RESULTS NEWLINE JSON | sha256sum` for a spec of plain ASCII."""
    import hashlib

    spec = '{"device": "cpu", "dtype": "float32", "generate": 0, "model": "m", "pipeline": "dense", "prompt": "p", "seed": 0}'
    if (FORMAT, store_module._RESULTS) == (1, 2):
        assert key_of(RunSpec(model="m", prompt="p")) == hashlib.sha256(f"1.2\n{spec}".encode()).hexdigest()[:32]


def test_a_damaged_file_counts_as_absent_and_is_removed(store):
    store.put(SPEC, example())
    (file,) = store.root.iterdir()
    file.write_bytes(file.read_bytes()[:-50])
    assert store.get(SPEC) is None
    assert list(store.root.iterdir()) == []
    store.put(SPEC, example())
    assert store.get(SPEC) is not None


def test_what_ships_with_the_library_is_found_and_never_removed(store):
    store.assets.mkdir()
    (store.assets / f"{key_of(SPEC)}.npz").write_bytes(example().to_bytes(SPEC.to_json()))
    assert store.has(SPEC)
    same(store.get(SPEC), example())
    assert not store.root.exists()
    store.put(SPEC, example())
    (store.root / f"{key_of(SPEC)}.npz").write_bytes(b"damaged")
    same(store.get(SPEC), example())  # in place of the user's damaged copy


def refuse(*args, **options):
    raise PermissionError(13, "Permission denied")


def test_a_folder_that_may_only_be_read_still_gives_its_traces(store, monkeypatch):
    store.put(SPEC, example())
    monkeypatch.setattr("sparsity_core.work.shelf.os.utime", refuse)
    same(store.get(SPEC), example())
    (file,) = store.root.iterdir()
    file.write_bytes(b"damaged")
    monkeypatch.setattr(Path, "unlink", refuse)
    assert store.get(SPEC) is None


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path / "file"))
    root = tmp_path / "file" / "traces"
    sentence = Store().put(SPEC, example())
    assert sentence is not None
    assert sentence.startswith(
        f"The result is shown but could not be kept in {root} (Not a directory): free some space"
    )
    assert "SPARSELENS_CACHE" in sentence
    assert Store(assets=tmp_path).get(SPEC) is None
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_full_disk_is_a_sentence_and_leaves_no_part(store, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    store.root.mkdir()
    monkeypatch.setattr("sparsity_core.work.files.os.replace", full)
    assert "(No space left on device): free some space" in str(store.put(SPEC, example()))
    assert list(store.root.iterdir()) == []


def test_the_cache_folder_is_the_users_to_choose(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    assert Store().root == tmp_path / "traces"
    monkeypatch.delenv("SPARSELENS_CACHE")
    assert cache_dir().name == "sparselens"


def test_the_traces_that_ship_can_be_read():
    for file in sorted((ASSETS / "traces").glob("*.npz")):
        trace = Trace.load(file)
        assert str(Pipeline.parse(trace.provenance.pipeline)) == trace.provenance.pipeline
        assert np.isfinite(trace.perplexity)


def test_a_trace_written_before_heads_had_budgets_of_their_own_is_read(tmp_path):
    example().replaced(budgets=np.array([3, 8, 5], np.int32)).save(tmp_path / "former.npz")
    assert Trace.load(tmp_path / "former.npz").budgets.tolist() == [[3, 3], [8, 8], [5, 5]]
    assert Trace.load(tmp_path / "former.npz").evicted_at.shape[1] == 2


@pytest.mark.parametrize("name", ["nll", "evicted_at", "budgets", "regret", "snapshots"])
def test_a_trace_whose_arrays_do_not_fit_each_other_is_refused(tmp_path, name):
    broken = example().replaced(**{name: getattr(example(), name)[..., :-1]})
    broken.save(tmp_path / "broken.npz")
    with pytest.raises(ValueError, match="damaged"):
        Trace.load(tmp_path / "broken.npz")
