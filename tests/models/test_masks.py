"""What the load probe reads of a model's masks, caches and positions, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sparsity_core import run
from sparsity_core.models import ModelError, wrap
from sparsity_core.models.masks import UnknownMask, sampled_rows, window_of
from tests import families, tiny

ROWS = torch.arange(12)
KEY, QUERY = torch.arange(12), torch.arange(12)[:, None]
CAUSAL = KEY <= QUERY


def test_a_window_is_read_from_a_mask():
    assert window_of(None, ROWS, 12, "layer 0") is None
    assert window_of(CAUSAL[None, None], ROWS, 12, "layer 0") is None
    assert window_of((CAUSAL & (KEY > QUERY - 5))[None, None], ROWS, 12, "layer 0") == 5
    added = torch.zeros(12, 12).masked_fill(~(CAUSAL & (KEY > QUERY - 5)), torch.finfo(torch.float32).min)
    assert window_of(added[None, None], ROWS, 12, "layer 0") == 5
    few = torch.tensor([0, 5, 11])
    assert window_of((CAUSAL & (KEY > QUERY - 5))[few][None, None], few, 12, "layer 0") == 5


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (CAUSAL & (KEY // 4 == QUERY // 4), "mask of layer 3 is not causal within a window"),  # chunks
        (KEY >= 0 * QUERY, "mask of layer 3 is not causal within a window"),  # both ways
        (CAUSAL & (KEY != 2), "mask of layer 3 is not causal within a window"),
        (torch.where(CAUSAL, 0.5, torch.finfo(torch.float32).min), "mask of layer 3 adds a bias to the logits"),
        ({"causal": CAUSAL}, "layer 3 takes a mask of its own kind"),
    ],
    ids=["chunked", "bidirectional", "a hole", "a bias", "a mapping"],
)
def test_another_mask_is_refused_with_its_layer(mask, sentence):
    with pytest.raises(UnknownMask, match=sentence):
        window_of(mask[None, None] if isinstance(mask, torch.Tensor) else mask, ROWS, 12, "layer 3")


def test_of_a_long_mask_a_sample_of_queries_is_looked_at():
    assert sampled_rows(512).tolist() == list(range(512))
    rows = sampled_rows(9000)
    assert len(rows) < 70 and rows[0] == 0 and rows[-3:].tolist() == [8997, 8998, 8999]
    key, query = torch.arange(9000), rows[:, None]
    chunks = (key <= query) & (key // 4096 == query // 4096)
    with pytest.raises(UnknownMask):
        window_of(chunks[None, None], rows, 9000, "layer 0")
    window = (key <= query) & (key > query - 4096)
    assert window_of(window[None, None], rows, 9000, "layer 0") == 4096


def windows(family: str) -> list[int | None]:
    return [layer.window for layer in wrap(families.network(family), tiny.tokenizer(), family).caches]


def test_a_layers_window_is_its_masks_whatever_the_layer_says():
    """PhiMoE's attention passes no window on, and Qwen2-MoE's layers differ."""
    assert windows("phimoe") == [tiny.WINDOW] * 3
    assert windows("qwen2_moe") == [tiny.WINDOW, None, None]
    assert windows("gemma3_text") == [tiny.WINDOW, None, tiny.WINDOW]
    assert windows("llama") == [None] * 3


@pytest.mark.parametrize("family", ["phimoe", "qwen2_moe", "gemma3_text"])
def test_losses_beyond_every_window_are_transformers_own(family):
    hf, ids = families.network(family), tiny.ids(families.LENGTH)
    with torch.inference_mode():
        plain = hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    found = run(wrap(hf, tiny.tokenizer(), family), ids)
    np.testing.assert_allclose(found.nll[:-1], tiny.nll(plain, ids), atol=families.LARGEST_GAP)


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        ("llama4_text", "the mask of layer 0 is not causal within a window"),
        ("doge", "the mask of layer 0 adds a bias to the logits"),
        ("deepseek_v32", "an indexer of its own chooses the keys"),
        ("moshi", "transformers' cache keeps 7 keys of layer 0, and its mask lets a query see all"),
        ("lfm2_moe", "1 of its 3 layers, the first of them layer 1, have no attention"),
    ],
)
def test_a_family_that_would_be_drawn_wrongly_is_refused(family, sentence):
    with pytest.raises(ModelError, match=sentence):
        wrap(families.network(family), tiny.tokenizer(), family)


def test_a_model_whose_indexer_chooses_blocks_of_keys_is_refused():
    """MiniMax M3 by its own configuration; without `layer_types` all its layers read everything, and it is drawn."""
    config = families.configuration("minimax_m3_vl_text")
    config.layer_types = ["full_attention", "minimax_m3_sparse", "full_attention"]
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with pytest.raises(ModelError, match="an indexer of its own chooses the keys"):
        wrap(hf, tiny.tokenizer(), "minimax_m3_vl_text")


def test_a_mask_that_changes_after_loading_is_refused_before_a_figure_is_drawn(monkeypatch):
    model = wrap(tiny.transformer("llama"), tiny.tokenizer(), "llama")
    hides = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril().index_fill(3, torch.tensor([4]), False)
    with pytest.raises(ValueError, match="mask of layer 0 is not causal within a window"):
        model_forward(model, hides)
    model_forward(model, torch.ones(1, 1, 20, 20, dtype=torch.bool).tril())


def model_forward(model, mask) -> None:
    from sparsity_core.models import recording
    from sparsity_core.models.probe import _Probe

    with recording(_Probe()), torch.inference_mode():
        model.hidden(torch.tensor([tiny.ids(20)]), attention_mask=mask, use_cache=False)


def test_the_probe_leaves_the_layers_as_they_were():
    hf = LlamaForCausalLM(LlamaConfig(**tiny.GROUPED)).eval()
    ids = torch.tensor([tiny.ids(20)])
    with torch.inference_mode():
        before = hf(input_ids=ids).logits
        wrap(hf, tiny.tokenizer(), "llama")
        assert all("forward" not in vars(layer) for layer in hf.model.layers)
        torch.testing.assert_close(hf(input_ids=ids).logits, before)
