"""Results are stored under the content of what they were made of, so that none outlives it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsity_core import methods, studies
from sparsity_core.inference import pruned
from sparsity_core.kinds import Pipeline
from sparsity_core.methods.weights.prunenet.policy import Policy
from sparsity_core.models import texts
from sparsity_core.record import RunSpec, key_of
from sparsity_core.work import digests
from tests import tiny

SPEC = RunSpec("smollm2-135m", "some text")
NAMING = {
    "policy": "weights=prunenet(ratio=0.25, policy={!r})",
    "adapter": "gate=dcp(adapter={!r})",
    "calibration": "decode=double_sparsity(tokens=0.25, calibration={!r})",
}


def spec_of(pipeline: str) -> RunSpec:
    return replace(SPEC, pipeline=str(Pipeline.parse(pipeline)))


@pytest.mark.parametrize("knob", NAMING)
def test_a_file_written_again_at_the_same_path_is_another_result(knob, tmp_path):
    path = tmp_path / "trained.safetensors"
    spec = spec_of(NAMING[knob].format(str(path)))
    absent = key_of(spec)
    path.write_bytes(b"first")
    first = key_of(spec)
    path.write_bytes(b"other")  # as long as the first
    os.utime(path, ns=(1, 1))
    other = key_of(spec)
    path.write_bytes(b"first")
    os.utime(path, ns=(2, 2))
    assert len({absent, first, other}) == 3
    assert key_of(spec) == first  # the content alone tells
    path.with_suffix(".json").write_text("{}")
    assert key_of(spec) not in {absent, first, other}


@pytest.mark.parametrize("knob", NAMING)
def test_a_file_may_be_named_without_its_ending(knob, tmp_path):
    (tmp_path / "trained.safetensors").write_bytes(b"first")
    spec = spec_of(NAMING[knob].format(str(tmp_path / "trained")))
    first = key_of(spec)
    (tmp_path / "trained.safetensors").write_bytes(b"second")
    assert key_of(spec) != first


def test_a_file_that_did_not_change_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "trained.safetensors"
    path.write_bytes(b"first")
    spec, opened = spec_of(NAMING["adapter"].format(str(path))), []
    monkeypatch.setattr(digests, "open", lambda *a: opened.append(a[0]) or open(*a), raising=False)  # noqa: SIM115
    assert len({key_of(spec) for _ in range(3)}) == 1
    assert opened == [str(path)]


@pytest.mark.parametrize("path", ["~nosuchuser/x", "/", ".", "\0", "x" * 4000])
def test_a_path_that_is_none_has_a_key_too(path):
    assert len(key_of(spec_of(NAMING["adapter"].format(path)))) == 32


@pytest.fixture
def another_text(monkeypatch) -> Iterator[Callable[[], None]]:
    """Called, it puts another text in the place of the one that ships."""

    def forget() -> None:
        texts.calibration_digest.cache_clear()
        texts.evaluation_digest.cache_clear()

    def change() -> None:
        monkeypatch.setattr(texts, "_reference", lambda: "Another text, of some other version.")
        forget()

    yield change
    forget()


def test_a_calibration_on_another_text_is_another_result(another_text):
    reading = ["weights=flap(ratio=0.25)", "decode=double_sparsity(tokens=0.25)", "weights=head_pruning(ratio=0.25)"]
    blind = ["eviction=a2sf(budget=64)", "weights=row_norm(ratio=0.25)", "weights=head_pruning(importance=norm)"]
    before = {pipeline: key_of(spec_of(pipeline)) for pipeline in reading + blind}
    another_text()
    changed = [pipeline for pipeline, key in before.items() if key_of(spec_of(pipeline)) != key]
    assert changed == reading


def test_a_hub_model_of_another_commit_is_another_result(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    spec = replace(SPEC, model="owner/name")
    absent = key_of(spec)
    ref = tmp_path / "models--owner--name" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("a" * 40)
    first = key_of(spec)
    ref.write_text("b" * 40)
    assert len({absent, first, key_of(spec)}) == 3


def test_the_pruned_model_in_memory_follows_the_policy_file(tmp_path):
    model, path = tiny.model(), tmp_path / "policy.safetensors"
    pipeline = Pipeline(weights=methods.PruneNet(ratio=0.25, policy=str(path)))
    d_ff, d = 96, 64
    found = []
    for sign in (1.0, -1.0):
        parameters = torch.zeros(6 + d)
        parameters[0] = sign  # by row norm, the largest kept or the smallest
        recipe = {"model": model.name, "fingerprint": model.fingerprint, "ratio": 0.25, "seed": 0, "episodes": 1}
        Policy("corrected", parameters, (d_ff, d), recipe, torch.ones(3, d_ff, dtype=torch.bool)).save(path)
        found.append(pruned(model, pipeline))
    assert pruned(model, pipeline) is found[1]
    assert found[0].fingerprint != found[1].fingerprint


def test_studies_that_ship_are_found_and_those_of_another_text_are_not(monkeypatch, tmp_path, another_text):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    uncut = studies.bundled_uncut("smollm2-135m", "float32")
    assert uncut is not None
    who, method = (uncut.fingerprint, uncut.dtype), methods.FLAP(ratio=0.25)
    found = studies.find_study(*who, method)
    assert found is not None and studies.find_ranked(*who, method) is not None
    assert found.inputs == studies.study_inputs(method)
    another_text()
    assert studies.find_study(*who, method) is None


def test_a_study_by_a_file_is_not_found_once_the_file_has_changed(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    path = Path(tmp_path / "policy.safetensors")
    path.write_bytes(b"first")
    method = methods.PruneNet(ratio=0.25, policy=str(path))
    uncut = studies.bundled_uncut("smollm2-135m", "float32")
    assert uncut is not None
    who = (uncut.fingerprint, uncut.dtype)
    shipped = studies.find_study(*who, methods.PruneNet(ratio=0.25))
    assert shipped is not None
    own = replace(shipped, method=str(method), inputs=studies.study_inputs(method))
    assert studies.keep_record(own, *who) is None
    assert studies.find_study(*who, method) is not None
    path.write_bytes(b"second")
    assert studies.find_study(*who, method) is None
