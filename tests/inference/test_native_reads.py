"""What a model's own indexer lets each query read is what transformers' attention gets to see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sparsity_core.inference import native_reads
from tests import families, tiny

TOP, IDS = 5, tiny.ids(24)


def network(family: str, **settings):
    config = families.configuration(family)
    for name, value in settings.items():
        setattr(config, name, value)
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


@pytest.mark.parametrize(
    ("family", "settings"),
    [("deepseek_v32", {}), ("glm_moe_dsa", {}), ("glm_moe_dsa", {"indexer_types": ["full", "shared", "full"]})],
    ids=str,
)
def test_each_query_reads_what_attention_was_shown(family, settings, monkeypatch):
    hf, shown = network(family, index_topk=TOP, **settings), {}
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module, q, k, v, mask, **how):
        shown[module.layer_idx] = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] > torch.finfo(mask.dtype).min
        return plain(module, q, k, v, mask, **how)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", attend)
    trace = native_reads(hf, IDS)
    read = np.unpackbits(trace.reading.chosen, axis=-1)[..., : len(IDS)].astype(bool)
    assert read.shape == (3, 1, len(IDS), len(IDS)) and trace.n_heads == 4
    for layer in range(3):
        np.testing.assert_array_equal(read[layer, 0], shown[layer].numpy())
    assert (read.sum(-1) == np.minimum(np.arange(len(IDS)) + 1, TOP)).all()
    assert np.array_equal(read[0], read[1]) == bool(settings)


def test_a_model_without_an_indexer_is_refused():
    with pytest.raises(ValueError, match="llama has no indexer that chooses keys in its first layer"):
        native_reads(tiny.transformer("llama"), IDS)


def test_a_text_whose_choices_do_not_fit_is_refused_before_it_is_read():
    with pytest.raises(
        ValueError, match="3 layers choose for 20,000 tokens does not fit 1 GiB: give at most 18,918 tokens"
    ):
        native_reads(tiny.transformer("llama"), [1] * 20_000)
