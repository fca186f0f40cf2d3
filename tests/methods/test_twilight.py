"""Twilight: the fewest keys of another method's choice that hold a share of its attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparsity_core import generate, run
from sparsity_core.methods.decode.sparq.selector import QuerySelector
from sparsity_core.methods.decode.twilight.selector import TopPSelector
from tests import tiny
from tests.methods.qkv import best, dense_qkv

IDS = tiny.ids(40)
EXACT = "sparq(tokens=0.5, channels=16, dense_layers=0)"  # ranks by all channels, that is by the attention itself


def read(trace) -> np.ndarray:
    """bool [L, Hkv, T, T]: which keys each query read."""
    return np.unpackbits(trace.reading.chosen, axis=-1)[..., : trace.n_tokens].astype(bool)


def naive(head: int, query: int, mass: float) -> list[int]:
    """Of the half of the keys with most attention of the group, the fewest that hold the share of that half's."""
    q, k, _ = dense_qkv(tiny.model(), IDS)[0]
    keys = list(range(query + 1))
    whole = sum(torch.softmax(k[head, keys] @ q[2 * head + g, query] / 4, 0) for g in range(2))
    chosen = best(dict(zip(keys, whole.tolist(), strict=True)), math.ceil(len(keys) / 2))
    share = sum(torch.softmax(k[head, chosen] @ q[2 * head + g, query] / 4, 0) for g in range(2)) / 2
    found, held = [], 0.0
    for p, key in sorted(zip(share.tolist(), chosen, strict=True), reverse=True):
        if held >= mass:
            break
        found.append(key)
        held += p
    return sorted(found)


@pytest.mark.parametrize(("mass", "reads"), [(0.5, 1), (0.6, 2), (0.85, 2), (0.9, 3), (1.0, 3)])
def test_by_hand(mass, reads):
    """Logits ln 1, ln 2, ln 5, ln 8. The base takes three: shares of 2, 5 and 8 fifteenths; 8/15 is .53 and 13/15 is .87."""
    k = torch.tensor([1.0, 2, 5, 8]).log().view(1, 1, 4, 1)
    selector = TopPSelector(QuerySelector(1, "sum"), 0.75, mass, "fp16")
    selector.append(k)
    found = selector.scores(torch.ones(1, 1, 1, 1), k, scale=1.0)[0, :, 0]
    assert found[0, 0].tolist() == pytest.approx([0, 2 / 15, 5 / 15, 8 / 15], abs=1e-3)
    assert selector.count_by(found, torch.ones(1, 1, 4, dtype=torch.bool)).tolist() == [[reads]]


def test_the_fewest_keys_of_the_choice_that_hold_the_mass_are_read():
    trace = run(tiny.model(), IDS, f"decode=twilight(mass=0.7, base='{EXACT}', label_dtype=fp16)")
    for head in range(2):
        for query in (5, 17, 30, 39):
            assert np.flatnonzero(read(trace)[0, head, query]).tolist() == naive(head, query, 0.7)


@pytest.mark.parametrize("base", [EXACT, "quest(page=4, tokens=0.4, dense_layers=1, reduction=sum)"])
def test_the_whole_mass_is_the_base_itself(base):
    """Of query heads that choose pages together: of those that do not, a KV head's read what any of them chooses."""
    one = run(tiny.model(), IDS, f"decode=twilight(mass=1.0, base='{base}')")
    two = run(tiny.model(), IDS, f"decode={base}")
    first = 1 if "dense_layers=1" in base else 0
    far = read(one)[first:] != read(two)[first:]
    assert far.mean() < 0.002  # keys of an attention below 1e-6 of the whole
    np.testing.assert_allclose(one.nll[:-1], two.nll[:-1], atol=1e-3)


def test_less_mass_reads_fewer_keys_and_never_others():
    runs = [
        read(run(tiny.model(), IDS, f"decode=twilight(mass={p}, base='quest(page=4, tokens=0.5)')")) for p in (0.5, 0.9)
    ]
    pages = read(run(tiny.model(), IDS, "decode=quest(page=4, tokens=0.5)"))
    assert not (runs[0][2] & ~pages[2]).any() and not (runs[1][2] & ~pages[2]).any()  # two layers are dense before it
    assert 0 < runs[0][2].sum() < runs[1][2].sum() < pages[2].sum()


@pytest.mark.parametrize("base", [EXACT, "quest(page=4, tokens=0.5, dense_layers=0)"])
def test_a_generation_reads_what_one_forward_over_its_text_reads(base):
    method = f"decode=twilight(mass=0.8, base='{base}')"
    made = generate(tiny.model(), IDS[:20], method, max_new_tokens=8, n_prefill=1, against_dense=False)
    again = run(tiny.model(), made.trace.token_ids.tolist(), method, against_dense=False)
    np.testing.assert_allclose(made.trace.nll[:-1], again.nll[:-1], atol=1e-4)
    np.testing.assert_array_equal(read(made.trace)[:, :, 1:], read(again)[:, :, 1:])


def test_the_keys_that_estimate_are_counted():
    """27 tokens, 3 layers, 2 KV heads, 16 channels: 8 bytes in four bits and the number format's own scale beside them."""
    base = "sparq(tokens=0.5, channels=16, dense_layers=0)"
    sizes = {
        dtype: generate(
            tiny.model(),
            IDS[:20],
            f"decode=twilight(mass=0.8, base='{base}', label_dtype={dtype})",
            max_new_tokens=8,
            stop_at_eos=False,
            against_dense=False,
        ).kv_bytes
        for dtype in ("fp16", "int4")
    }
    cache = 27 * 3 * 2 * 2 * 16 * 8
    assert sizes["fp16"] == cache + 27 * 3 * 2 * 16 * 2
    assert cache + 27 * 3 * 2 * 8 < sizes["int4"] < sizes["fp16"]


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ("mass=0.0", "twilight: mass is a share of the attention, above 0 to 1; got 0"),
        ("mass=1.5", "twilight: mass is at most 1.0; got 1.5"),
        ("mass=-0.5", "mass is at least 0; got -0.5"),
        ("base=oracle_top_k", "base is a method that reads a share of the context, as quest; got oracle_top_k"),
        ("base='sparq(mean_value=True)'", "turn mean_value, offload and rerank off"),
        ("base=questt", "quest"),
        ("label_dtype=int3", "label_dtype is one of fp16, int8, int4"),
    ],
)
def test_what_does_not_fit_is_refused(knobs, said):
    with pytest.raises(ValueError, match=said):
        run(tiny.model(), IDS, f"decode=twilight({knobs})")


def test_pages_keep_every_key_under_it_too():
    with pytest.raises(ValueError, match="quest's pages keep every key"):
        run(tiny.model(), IDS, "eviction=h2o(budget=12) decode=twilight()")
