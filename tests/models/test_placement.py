"""Cards that are too few, too small or not there, by description: a sentence that says what would fit."""

from __future__ import annotations

import pytest
import torch
from sparselens_kernels import Card

from sparsity_core.models import loading
from sparsity_core.models.refusals import ModelError

GIB = 2**30


def card(free, name="RTX 3060", bfloat16=True):
    return Card(name, (8, 6), free, bfloat16)


def has(monkeypatch, *found):
    monkeypatch.setattr(loading, "cards", lambda: list(found))


def test_a_model_fits_up_to_the_last_free_byte():
    assert loading.too_large(4 * GIB, torch.float16, [card(8 * GIB)]) is None
    assert loading.too_large(4 * GIB, torch.float16, [card(8 * GIB - 1)]) is not None


def test_a_card_that_is_too_small_is_named_with_what_would_fit():
    # Four Gi parameters are 16 GiB in float32 and 8 in float16; 0.8 · 10 GiB of 2 bytes are 4.3 billion.
    said = loading.too_large(4 * GIB, torch.float32, [card(10 * GIB)])
    assert said == (
        "takes 16.0 GiB for its weights in float32, and RTX 3060 has 10.0 GiB free: use dtype=float16 (8.0 GiB), device=cpu, "
        "or a model of at most 4.3 billion parameters in half precision"
    )


def test_a_smaller_dtype_is_advised_only_where_it_fits():
    assert "dtype=" not in loading.too_large(4 * GIB, torch.float32, [card(7 * GIB)])
    assert "dtype=" not in loading.too_large(4 * GIB, torch.bfloat16, [card(7 * GIB)])


def test_two_cards_count_together():
    pair = [card(6 * GIB, "A"), card(4 * GIB, "B")]
    assert loading.too_large(5 * GIB, torch.float16, pair) is None
    assert "A and B have 10.0 GiB free" in loading.too_large(6 * GIB, torch.float16, pair)


def test_a_card_that_is_not_there(monkeypatch):
    has(monkeypatch, card(GIB), card(GIB))
    assert loading.resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelError, match="no device 'cuda:2' among this machine's 2: use cuda:0, cuda:1, cpu or auto"):
        loading.resolve_device("cuda:2")


def test_auto_asks_the_card_it_runs_on_for_its_dtype(monkeypatch):
    has(monkeypatch, card(GIB), card(GIB, bfloat16=False))
    assert loading.resolve_device("auto") == torch.device("cuda")
    assert loading.resolve_dtype("auto", torch.device("cuda")) == "bfloat16"
    assert loading.resolve_dtype("auto", torch.device("cuda:1")) == "float16"


def test_weights_are_placed_on_one_card_on_all_or_refused(monkeypatch):
    from tests import tiny

    config = tiny.transformer("llama", torch.float32).config
    need = 4 * sum(p.numel() for p in tiny.transformer("llama", torch.float32).parameters())

    def placed(device, *free):
        has(monkeypatch, *(card(n) for n in free))
        return loading._placement(config, "tiny", torch.device(device), torch.float32)["device_map"]

    assert placed("cuda", 2 * need) == {"": "cuda"}
    assert placed("cuda", 2 * need, need) == {"": "cuda"}
    assert placed("cuda", need, need) == "auto"
    assert placed("cuda:1", 1, 2 * need) == {"": "cuda:1"}
    with pytest.raises(ModelError, match=r"^tiny takes .* RTX 3060 has .* free: use dtype=float16"):
        placed("cuda:0", need - 1, 2 * need)
