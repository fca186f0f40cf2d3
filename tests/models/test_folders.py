"""A folder from anyone: what it may name, how large it may be, and that it fits itself, before a weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from sparsity_core import run
from sparsity_core.models import loading, preflight
from sparsity_core.models.loading import load, wrap
from sparsity_core.models.refusals import ModelError
from tests import tiny


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setattr(loading, "_loaded", {})


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "m"
    tiny.transformer("llama", torch.float32).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy to damage."""
    shutil.copytree(saved, tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def no_pickle(monkeypatch):
    """Fails a test that reads a pickle."""

    def reached(*args: Any, **options: Any) -> None:
        raise AssertionError("torch.load was reached")

    monkeypatch.setattr(torch, "load", reached)


def refused(name: object) -> str:
    with pytest.raises(ModelError) as error:
        load(str(name), device="cpu")
    sentence = str(error.value)
    assert sentence and "\n" not in sentence
    return sentence


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def sharded(folder: Path, to: Any) -> dict[str, Any]:
    """The folder's weights under an index, whose first entry names `to`."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    index = {"metadata": {}, "weight_map": {key: "decoy.safetensors" for key in weights}}
    index["weight_map"][next(iter(weights))] = to
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weights


def test_shards_of_the_folder_load(folder):
    sharded(folder, "decoy.safetensors")
    assert load(str(folder), device="cpu").fingerprint == tiny.model("llama", torch.float32).fingerprint


def test_an_index_may_not_name_a_pickle_beside_a_decoy(folder, no_pickle):
    weights = sharded(folder, "good.bin")
    torch.save(weights, folder / "good.bin")
    assert 'wants its weights from "good.bin", and only *.safetensors in its own folder' in refused(folder)


@pytest.mark.parametrize(
    "to", ["../other/model.safetensors", "/tmp/model.safetensors", "a\\b.safetensors", 7, "x.txt", ""]
)
def test_an_index_may_not_leave_the_folder(folder, no_pickle, to):
    sharded(folder, to)
    shutil.copytree(folder, folder.parent / "other")
    assert "only *.safetensors in its own folder are read" in refused(folder)


@pytest.mark.parametrize("held", ['{"weight_map": {}}', '{"weight_map": []}', "{}", "[]", "{", '{"weight_map": 1}'])
def test_an_index_that_names_nothing(folder, held):
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    (folder / "model.safetensors.index.json").write_text(held)
    assert "model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize(
    "to", ["adapter_model.bin", "../m/model.safetensors", "../x.safetensors.index.json", "a/b.json"]
)
def test_a_configuration_may_not_name_its_weights_elsewhere(folder, no_pickle, to):
    torch.save(load_file(folder / "model.safetensors"), folder / "adapter_model.bin")
    edit(folder / "config.json", transformers_weights=to)
    assert "save" in refused(folder)


def test_shards_of_a_distributed_training(folder, no_pickle):
    shutil.copy(folder / "model.safetensors", folder / "shard-00000-model-00001-of-00001.safetensors")
    assert "holds the shards of a distributed training" in refused(folder)


@pytest.mark.parametrize(
    "theirs", ["somebody/attention", "kernels-community/flash-attn", "flash_attention_2", 7, {"": "x/y"}]
)
def test_the_attention_that_a_configuration_asks_for_is_not_fetched(folder, monkeypatch, theirs):
    def asked(*args: Any, **options: Any) -> None:
        raise AssertionError("a kernel was asked for")

    monkeypatch.setattr(transformers.modeling_utils, "lazy_import_flash_attention", asked)
    edit(folder / "config.json", attn_implementation=theirs, experts_implementation="sonicmoe", use_kernels=True)
    assert run(load(str(folder), device="cpu"), tiny.TEXT).nll.shape


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_position_embeddings": "8192"}, 'max_position_embeddings = "8192", which must be a whole number'),
        (
            {"num_hidden_layers": 1_000_000},
            "num_hidden_layers = 1000000, which must be a whole number of at most 2,048",
        ),
        ({"num_hidden_layers": 2000}, "num_hidden_layers = 2,000 and weights of 30 tensors"),
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1"),
        ({"num_hidden_layers": True}, "num_hidden_layers = true"),
        ({"hidden_size": 64.5}, "hidden_size = 64.5"),
        ({"num_attention_heads": 10**9}, "num_attention_heads = 1000000000"),
        ({"vocab_size": 10**12}, "vocab_size = 1000000000000"),
        ({"intermediate_size": [96, "x"]}, 'intermediate_size = "x"'),
        ({"text_config": {"num_experts": 10**7}}, "num_experts = 10000000"),
    ],
)
def test_an_implausible_configuration_is_refused(folder, changes, said):
    edit(folder / "config.json", **changes)
    assert said in refused(folder)


def nested(levels: int) -> str:
    return '{"model_type": "llama", "x": ' + "[" * levels + "]" * levels + "}"


@pytest.mark.parametrize("levels", [30, 2_000, 100_000])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_deeply_nested_file(folder, file, levels):
    (folder / file).write_text(nested(levels))
    assert f"has a {file} nested more than 24 levels deep" in refused(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "\ufeff{}", "{} {}"])
def test_a_damaged_configuration(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json" in refused(folder)


def test_a_configuration_that_is_too_large_is_not_parsed(folder):
    (folder / "config.json").write_bytes(b"[" * (33 * 1024**2))
    assert "has a config.json of 33 MB, and at most 32 are read" in refused(folder)


def test_a_folder_without_a_configuration(folder):
    (folder / "config.json").unlink()
    assert "has no config.json, which says what its weights mean" in refused(folder)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer(folder, content):
    (folder / "tokenizer.json").write_text(content)
    assert "has a tokenizer.json that cannot be used" in refused(folder)


def with_pattern(folder: Path, pattern: str) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def test_a_tokenizer_that_panics_on_a_common_text(folder):
    with_pattern(folder, "(a+)+$")
    assert "has a tokenizer.json that cannot be used" in refused(folder)


def test_a_tokenizer_that_takes_for_ever_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(preflight, "_TOKENIZE", "while True: pass")
    monkeypatch.setattr(preflight, "_SECONDS", 1)
    assert "takes more than 2 s for a short text" in refused(folder)


def test_a_tokenizer_that_panics_on_one_text_alone_is_a_sentence_there(folder):
    with_pattern(folder, "(Q+)+$")
    model = load(str(folder), device="cpu")
    with pytest.raises(ValueError, match="has a tokenizer that breaks down"):
        run(model, "Q" * 60 + "R")
    assert run(model, tiny.TEXT).nll.shape


@pytest.mark.parametrize("name", ["~nosuchuser", "~nosuchuser/x", "m" * 300, "o/" + "m" * 300, "/" + "m" * 5000])
def test_a_name_of_no_model_is_a_sentence(name):
    refused(name)


# Weights that the model does not use


def rewritten(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def test_layers_left_over_are_refused(folder):
    edit(folder / "config.json", num_hidden_layers=2)
    assert (
        "holds model.layers.2.input_layernorm.weight and 8 more, which the model of its config.json does not use"
        in refused(folder)
    )


def test_a_width_of_another_model_names_the_weight_and_both_shapes(folder):
    edit(folder / "config.json", intermediate_size=80)
    said = refused(folder)
    assert (
        "holds model.layers.0.mlp.down_proj.weight in the shape (64, 96) and its config.json asks for (64, 80)" in said
    )


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn, torch.uint8])
@pytest.mark.parametrize("method", [None, "their_own"])
def test_coded_weights_without_a_known_quantiser_are_refused(folder, kind, method):
    key = "model.layers.1.mlp.up_proj.weight"
    rewritten(folder, lambda w: w | {key: w[key].to(kind)})
    if method:
        edit(folder / "config.json", quantization_config={"quant_method": method})
    said = refused(folder)
    assert f"holds {key} as " in said and ("their_own" in said) == bool(method)


def test_scales_left_over_are_refused(folder):
    rewritten(folder, lambda w: w | {"model.layers.1.mlp.up_proj.weight_scale": torch.ones(1)})
    assert "holds model.layers.1.mlp.up_proj.weight_scale, which the model" in refused(folder)


def test_keys_that_transformers_declares_ignorable_stay_so(tmp_path):
    folder = tmp_path / "m"
    tiny.transformer("gpt2", torch.float32).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    rewritten(folder, lambda w: w | {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)})
    assert load(str(folder), device="cpu").fingerprint == tiny.model("gpt2", torch.float32).fingerprint


def test_fine_grained_fp8_goes_on_working(folder):
    plain = tiny.transformer("llama", torch.float32)
    coded = {}

    def quantised(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for key, weight in weights.items():
            if "_proj.weight" in key:
                coded[key] = weight.to(torch.float8_e4m3fn)
                coded[key.replace(".weight", ".weight_scale_inv")] = torch.full((1, 1), 0.5)
                plain.get_parameter(key).data = coded[key].float() * 0.5
            else:
                coded[key] = weight
        return coded

    rewritten(folder, quantised)
    edit(folder / "config.json", quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    found = run(load(str(folder), device="cpu"), tiny.TEXT).nll
    expected = run(wrap(plain, tiny.tokenizer(), "plain"), tiny.TEXT).nll
    assert found[:-1] == pytest.approx(expected[:-1], abs=0.05)


# Adapters


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_not_attached_in_silence(folder, beside):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "somebody/base"}')
    if not beside:
        (folder / "config.json").unlink()
    said = refused(folder)
    assert "holds a PEFT adapter" in said and "merge it into its base model first (merge_and_unload" in said
    assert ("move adapter_config.json away" in said) == beside


def test_the_sample_that_tokenizers_are_tried_on_is_read_by_one_that_is_sound():
    sound: Tokenizer = tiny.tokenizer().backend_tokenizer
    assert sound.decode(sound.encode(preflight._SAMPLE).ids) == preflight._SAMPLE
