"""One record a family: what is cut is what the family's own code then runs, and a saved cut is read again as it was."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import transformers

from sparsity_core import load, methods, run
from sparsity_core.models.families import FAMILIES
from sparsity_core.models.loading import wrap
from sparsity_core.models.model import Model
from sparsity_core.models.refusals import ModelError
from tests import tiny

TEXT = tiny.TEXT * 3
OTHERS = {
    "arcee": transformers.ArceeConfig,
    "bitnet": transformers.BitNetConfig,
    "internlm3": getattr(transformers, "InternLM3Config", None),
    "granite": transformers.GraniteConfig,
    "nemotron": transformers.NemotronConfig,
    "smollm3": transformers.SmolLM3Config,
    "seed_oss": transformers.SeedOssConfig,  # no record of its own
}


def brought(family: str) -> Model:
    torch.manual_seed(3)
    config = OTHERS[family](**tiny.GROUPED)
    return wrap(transformers.AutoModelForCausalLM.from_config(config), tiny.tokenizer(), f"tiny-{family}")


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("method", [methods.RowNorm(ratio=0.25), methods.FLAP(ratio=0.25, samples=2, length=32)])
def test_a_cut_of_a_family_that_users_bring_is_read_again_as_it_was(family, method, tmp_path):
    model = brought(family)
    cut = model.compress(method)
    folder = cut.save_pretrained(tmp_path / "cut", report=cut.report(text=TEXT))
    again = load(folder, device="cpu")
    assert again.hf.config.intermediate_size == 72
    assert run(again, TEXT).nll[:-1] == pytest.approx(run(cut.model, TEXT).nll[:-1], rel=1e-4)


def test_a_norm_over_neurons_is_cut_as_if_the_others_were_zero():
    model = brought("bitnet")
    cut = model.compress(methods.RowNorm(ratio=0.25))
    zeroed = brought("bitnet")
    with torch.no_grad():
        for layer, kept in zip(zeroed.layers, cut.kept, strict=True):
            gone = sorted(set(range(96)) - set(kept.tolist()))
            layer.mlp.gate_proj.weight[gone] = 0.0
    assert run(cut.model, TEXT).nll[:-1] == pytest.approx(run(zeroed, TEXT).nll[:-1], rel=1e-3)


def test_a_block_with_weights_that_are_not_known_is_not_cut():
    torch.manual_seed(3)
    config = transformers.Qwen2MoeConfig(
        **tiny.GROUPED,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    model = wrap(transformers.AutoModelForCausalLM.from_config(config), tiny.tokenizer(), "experts")
    with pytest.raises(ModelError, match="no feed-forward block that is known here"):
        model.compress(methods.RowNorm(ratio=0.25))


def test_the_names_of_a_record_are_parts_of_its_models():
    for name in set(tiny.FAMILIES) | set(OTHERS):
        model = tiny.model(name) if name in tiny.FAMILIES else brought(name)
        record, layer = model.family, model.layers[0]
        parts = [
            record.norm,
            record.ffn_norm,
            record.neuron_norm,
            *(record.feed_forward or ()),
            *(record.attention or ()),
        ]
        for part in filter(None, parts):
            assert layer.get_submodule(part) is not None, (name, part)
        for key in filter(None, (record.width, record.mlp_bias)):
            assert hasattr(model.hf.config, key), (name, key)


def test_families_are_told_apart_in_one_file():
    """Adding a family touches one place: no other file of the library names one in a table."""
    library = Path(__file__).parents[2] / "sparsity_core"
    allowed = {library / "models" / "families.py"}
    for file in set(library.rglob("*.py")) - allowed:
        for node in ast.walk(ast.parse(file.read_text())):
            words = set(node.value.split()) if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
            if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
                words = {e.value for e in node.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)}
            if isinstance(node, ast.Dict):
                words = {e.value for e in node.keys if isinstance(e, ast.Constant) and isinstance(e.value, str)}
            assert len(words & set(FAMILIES)) < 3, f"{file.name}:{node.lineno} lists families"


def test_layers_with_heads_of_different_sizes_are_refused_with_a_sentence():
    config = transformers.Gemma4TextConfig(
        **tiny.GROUPED,
        head_dim=16,
        global_head_dim=32,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        vocab_size_per_layer_input=258,
        hidden_size_per_layer_input=8,
    )
    hf = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=r"has layers of different head_dim \(16, 32\).*choose another model"):
        wrap(hf, tiny.tokenizer(), "gemma4")
