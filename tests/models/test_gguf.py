"""GGUF files: converted once, whole or not at all, in a process that can be stopped; and the same model afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import SafetensorError

from sparsity_core import load, methods
from sparsity_core.models import gguf, loading
from sparsity_core.models.refusals import ModelError
from tests import ggufs

TEXT = "The 12 cats sat on 3 mats, and Ann saw them all. " * 4


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "_loaded", {})
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return ggufs.write(tmp_path_factory.mktemp("gguf") / "m.gguf")


@pytest.fixture
def here(monkeypatch):
    """Converts in this process, which spares a start of Python, and counts."""
    done = []

    def convert(file: Path, target: Path, *rest: object) -> None:
        done.append(file)
        gguf.build(file, target)

    monkeypatch.setattr(gguf, "convert", convert)
    return done


def refused(name: object) -> str:
    with pytest.raises(ModelError) as error:
        load(str(name), device="cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_is_converted_once_wherever_its_content_lies(file, here, tmp_path):
    first = load(str(file), device="cpu")
    copy = tmp_path / "another name.gguf"
    copy.write_bytes(file.read_bytes())
    second = load(str(copy), device="cpu")
    assert first.fingerprint == second.fingerprint and len(here) == 1
    other = load(str(ggufs.write(tmp_path / "other.gguf", seed=1)), device="cpu")
    assert other.fingerprint != first.fingerprint and len(here) == 2


def test_it_says_what_the_file_itself_says(file, here):
    model = load(str(file), device="cpu")
    plain = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        np.testing.assert_allclose(model.hf(ids).logits, plain(ids).logits, atol=1e-4)
    assert model.tokenizer.decode(model.encode("ab cab")) == "ab cab"


def test_a_cut_of_its_weights_saves_and_loads(file, here, tmp_path):
    cut = load(str(file), device="cpu").compress(methods.RowNorm(ratio=0.25))
    again = load(str(cut.save_pretrained(tmp_path / "cut", report=cut.report(text=TEXT))), device="cpu")
    assert again.hf.config.intermediate_size == ggufs.NEURONS * 3 // 4


def test_where_nothing_can_be_kept_a_cut_saves_all_the_same(file, tmp_path, monkeypatch):
    (tmp_path / "full").write_text("no folder")
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path / "full" / "below"))
    with pytest.warns(UserWarning, match="set SPARSELENS_CACHE to a folder you can write"):
        model = load(str(file), device="cpu")
    assert not hasattr(model.hf.config, "quantization_config")
    cut = model.compress(methods.RowNorm(ratio=0.25))
    assert (cut.save_pretrained(tmp_path / "cut", report=cut.report(text=TEXT)) / "model.safetensors").exists()


def test_it_is_converted_in_a_process_of_its_own_which_tells_how_long_it_takes(file, tmp_path):
    told = []
    gguf.convert(file, tmp_path / "m", "m", lambda share, doing: told.append(doing))
    assert gguf.intact(tmp_path / "m")
    assert any("converting m.gguf, once for this machine" in doing for doing in told)


def test_to_cancel_ends_the_process_and_leaves_nothing(file, tmp_path):
    class Stop(Exception):
        pass

    def progress(share: float, doing: str) -> None:
        if doing.startswith("converting"):
            raise Stop

    with pytest.raises(Stop):
        gguf.convert(file, tmp_path / "m", "m", progress)
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_is_whole_and_verified(file, tmp_path):
    target = tmp_path / "m"
    target.mkdir()
    (target / "left over").write_text("from an older version")
    gguf.build(file, target)
    assert gguf.intact(target) and not (target / "left over").exists()
    assert sorted(json.loads((target / "manifest.json").read_text())) == sorted(
        p.name for p in target.iterdir() if p.name != "manifest.json"
    )


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("I/O error: No space left")])
def test_a_conversion_that_breaks_off_leaves_what_was_there(file, tmp_path, monkeypatch, capsys, error):
    target = tmp_path / "m"
    gguf.build(file, target)
    before = {p.name: p.read_bytes() for p in target.iterdir()}

    def full(*args, **options):
        raise error

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", full)
    assert gguf.main(str(file), str(target)) == 1
    assert "No space left" in json.loads(capsys.readouterr().out.splitlines()[-1])["disk"]
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]  # nothing half built lies about


def test_a_header_of_more_layers_than_tensors(here, tmp_path):
    file = ggufs.write(tmp_path / "deep.gguf", layers=1_000_000)
    assert "deep.gguf says that it has 1,000,000 layers, and it holds 21 tensors" in refused(file)


def test_a_folder_of_one_language_model_and_its_projector(file, here, tmp_path):
    (tmp_path / "z.gguf").write_bytes(file.read_bytes())
    (tmp_path / "mmproj-a.gguf").write_bytes(b"GGUF")
    assert load(str(tmp_path), device="cpu").arch.n_layers == ggufs.LAYERS
    (tmp_path / "z.gguf").unlink()
    assert "holds only mmproj-a.gguf, which projects images" in refused(tmp_path)


def test_a_folder_of_several_language_models_asks_which(tmp_path):
    for name in ("b-Q8_0.gguf", "a-Q4_K.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert "holds 2 GGUF files: give one of them, a-Q4_K.gguf, b-Q8_0.gguf" in refused(tmp_path)


def test_a_file_in_parts_says_how_they_are_joined(tmp_path):
    for i in (1, 2):
        (tmp_path / f"m-0000{i}-of-00002.gguf").write_bytes(b"GGUF")
    assert "join them with `llama-gguf-split --merge`" in refused(tmp_path)


def test_the_command_of_the_process(file, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "sparsity_core.models.gguf", str(tmp_path / "none.gguf"), str(tmp_path / "m")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 1 and "cannot be loaded" in json.loads(found.stdout.splitlines()[-1])["model"]
