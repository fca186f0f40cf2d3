"""What others kept becomes a trace that says neither less nor more."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sparsity_core import Trace
from sparsity_core.record import RunSpec, Store
from sparsity_core.record.kept_files import read_kept
from tests import tiny, traces
from viz import atlas, channels, cost, scores, strip
from viz.atlas import plot_atlas
from viz.removed import plot_removed, removed_table

GUIDE = Path(__file__).parents[2] / "docs" / "portable.md"


def test_places_kept_in_the_end_by_hand():
    """Four tokens, one layer, two KV heads; what is dropped is gone from query 2 on."""
    trace = Trace.from_kept([5, 6, 7, 8], [[[0, 2, 3], [2, 3]]], n_prompt=2, dropped_at=2, method="snapkv")
    np.testing.assert_array_equal(trace.evicted_at, [[[4, 2, 4, 4], [2, 2, 4, 4]]])
    np.testing.assert_array_equal(trace.budgets, [[3, 2]])
    assert trace.stages == ["eviction=snapkv"] and trace.n_prompt == 2 and trace.n_heads == 2
    assert trace.tokens == ["5", "6", "7", "8"] and trace.classes == ["unknown"] * 4
    unmeasured = (trace.nll, trace.dense_nll, trace.kl_to_dense, trace.top1_agrees, trace.threshold)
    assert all(np.isnan(array).all() for array in unmeasured)
    assert not trace.snapshot_steps.size and not trace.compared and np.isnan(trace.perplexity)


def test_without_a_step_all_are_gone_at_the_last_token_and_the_trace_says_so():
    mask = np.asarray([[[True, False, False, True, False]]])
    trace = Trace.from_kept(range(5), mask)
    np.testing.assert_array_equal(trace.evicted_at, [[[5, 4, 4, 5, 5]]])
    assert any("When each key was dropped is not known" in note for note in trace.notes)
    assert any("1 of the dropped keys went after the text's last query" in note for note in trace.notes)


def test_lists_arrays_masks_and_tensors_say_the_same():
    import torch

    places = [[[0, 3], [1, 3]], [[2, 3], [0, 1]]]
    mask = np.zeros((2, 2, 4), bool)
    for layer, heads in enumerate(places):
        for head, own in enumerate(heads):
            mask[layer, head, own] = True
    given = [places, np.asarray(places), np.asarray(places, np.uint8), torch.tensor(places), mask, torch.tensor(mask)]
    found = [Trace.from_kept([1, 2, 3, 4], kept).evicted_at for kept in given]
    assert all(np.array_equal(each, found[0]) for each in found)


def test_our_own_traces_come_back_from_their_masks():
    trace = traces.trace()
    mask = np.stack([trace.keep(layer) for layer in range(trace.n_layers)])
    back = Trace.from_kept(trace.token_ids, mask, texts=trace.texts, n_prompt=trace.n_prompt, n_heads=trace.n_heads)
    np.testing.assert_array_equal(back.evicted_at, trace.evicted_at)
    assert back.tokens == trace.tokens and back.texts == trace.texts and back.n_heads == trace.n_heads


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(*(st.integers(1, n) for n in (2, 2)), st.just(5), st.just(5))))
def test_any_mask_of_queries_is_told_again_exactly(mask):
    mask &= np.tril(np.ones((5, 5), bool))
    trace = Trace.from_kept(range(5), mask)
    for layer in range(mask.shape[0]):
        read = (trace.removed_by(layer) == 0) & np.tril(np.ones((5, 5), bool))
        np.testing.assert_array_equal(read, mask[layer])


def test_what_was_read_and_not_kept_is_a_choice_of_the_decode_stage():
    """Query 2 does not read key 0, and query 3 does again; the second layer reads everything."""
    mask = np.tril(np.ones((2, 1, 4, 4), bool))
    mask[0, 0, 2, 0] = False
    trace = Trace.from_kept(range(4), mask, n_heads=2, method="quest")
    assert trace.stages == ["decode=quest"] and (trace.evicted_at == 4).all()
    np.testing.assert_array_equal(trace.selected, [[[3, 3, 2, 1]], [[0, 0, 0, 0]]])
    table = channels.selected_table(trace, 0, (0, 4))
    np.testing.assert_allclose(table["share"], [3 / 4, 1, 1, 1, 1, 1, 1, 1])


def test_tokenizers_of_both_libraries_name_the_tokens():
    text = "The 12 cats 🙂 sat"
    ids = tiny.tokenizer()(text)["input_ids"]
    kept = [[range(len(ids))]]
    fast = Trace.from_kept(ids, kept, tokenizer=tiny.tokenizer())
    bare = Trace.from_kept(ids, kept, tokenizer=tiny.tokenizer().backend_tokenizer)
    assert fast.tokens == bare.tokens and fast.classes == bare.classes
    assert "".join(fast.texts) == "".join(bare.texts) and text in "".join(fast.texts)
    with pytest.raises(ValueError, match="the tokenizer has no token 99999"):
        Trace.from_kept([99999], [[[0]]], tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kept": [[[0], [4]]]}, "layer 0, KV head 1 keeps key 4, and the text has 4 tokens: count places from 0"),
        ({"kept": [[[0], [-1]]]}, "layer 0, KV head 1 keeps key -1: places count from 0"),
        ({"kept": [[[0]], [[2, 1, 2]]]}, "layer 1, KV head 0 keeps key 2 twice"),
        ({"kept": [[[0], [1]], [[0]]]}, "layer 1 has 1 KV heads, and layer 0 has 2: give as many in each"),
        ({"kept": [[[0.5]]]}, "layer 0, KV head 0 keeps a list of whole numbers"),
        ({"kept": [[[[0], [1, 2]]]]}, "layer 0, KV head 0 keeps a list of whole numbers"),
        ({"kept": [["ab"]]}, "layer 0, KV head 0 keeps a list of whole numbers"),
        ({"kept": [0, 1]}, r"what a layer keeps is a list, \[layer\]\[kv_head\]\[key\]; got int"),
        ({"kept": {"0": [[1]]}}, "what a text keeps is a list"),
        ({"kept": []}, "kept is empty"),
        ({"kept": [[]]}, "kept is empty"),
        ({"kept": np.ones((1, 1, 3), bool)}, "has 3 entries of true and false, and the text has 4 tokens"),
        ({"kept": np.ones((1, 1, 4, 3), bool)}, r"the mask is \[1, 1, 4, 3\], and the text has 4 tokens"),
        ({"kept": np.ones((1, 1, 4, 4), bool)}, "query 0 keeps key 1, which comes after it"),
        ({"dropped_at": 3}, "drops key 3 at query 3: the first without it comes after its own, so 4 to 4"),
        ({"dropped_at": 5}, "drops key 1 at query 5"),
        ({"dropped_at": [1, 2]}, "dropped_at is the number of a query"),
        ({"token_ids": []}, "token_ids is a list of whole numbers"),
        ({"token_ids": ["a"]}, "token_ids is a list of whole numbers"),
        ({"token_ids": [1, -2, 3, 4]}, "a token id is 0 to 2147483647; got -2"),
        ({"n_prompt": 5}, "n_prompt is 5, and the text has 4 tokens"),
        ({"n_heads": 3, "kept": [[[0], [1]]]}, "n_heads is 3, and 2 KV heads share them"),
        ({"method": "Snap KV"}, "a method's name is a letter"),
        ({"texts": ["a"]}, "texts is one text for each of the 4 tokens; got 1"),
        ({"tokenizer": 3}, "a tokenizer is one of transformers or tokenizers, or None; got int"),
    ],
)
def test_what_does_not_fit_is_a_sentence(changes, said):
    given = {"token_ids": [1, 2, 3, 4], "kept": [[[0, 2]]], **changes}
    with pytest.raises(ValueError, match=said):
        Trace.from_kept(**given)


def test_it_is_saved_stored_and_drawn(tmp_path):
    for trace in (
        Trace.from_kept(range(6), [[[0, 4, 5], [2, 3, 5]]] * 3, dropped_at=5, n_prompt=4, method="kvpress"),
        Trace.from_kept(range(6), np.tril(np.ones((3, 2, 6, 6), bool)) & (np.arange(6) != 2), method="skylight"),
    ):
        trace.save(tmp_path / "t.npz")
        back = Trace.load(tmp_path / "t.npz")
        np.testing.assert_array_equal(back.evicted_at, trace.evicted_at)
        assert back.notes == trace.notes and back.tokens == trace.tokens
        spec = RunSpec("theirs", "their text", trace.provenance.pipeline)
        assert Store().put(spec, trace) is None
        assert Store().get(spec).provenance == trace.provenance
        assert cost.label(trace) == cost.method_of(trace) == trace.stages[0].partition("=")[2]
        table = atlas.atlas_table(trace)
        assert len(table) == 18 and plot_atlas(table, stages=[trace.stages[0].partition("=")[0]]).data
        assert strip.plot_strip(strip.strip_table(trace, 0)).data
        assert plot_removed(removed_table(trace)).data
        assert len(scores.score_table(trace, 0, 0, [2])) <= 1


def test_a_file_says_the_same_in_json_and_npz(tmp_path):
    plain = {
        "token_ids": [5, 6, 7],
        "kept": [[[0, 2], [1, 2]]],
        "texts": ["a", " b", " c"],
        "method": "mine",
        "dropped_at": 2,
    }
    (tmp_path / "kept.json").write_text(json.dumps(plain))
    np.savez_compressed(tmp_path / "kept.npz", **{**plain, "kept": [[[True, False, True], [False, True, True]]]})
    for name in ("kept.json", "kept.npz"):
        trace = Trace.from_kept_file(tmp_path / name)
        np.testing.assert_array_equal(trace.evicted_at, [[[3, 2, 3], [2, 3, 3]]])
        assert trace.tokens == ["a", "·b", "·c"] and trace.stages == ["eviction=mine"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x00\x01", "neither JSON nor .npz"),
        (b"[" * 100_000, "neither JSON nor .npz"),
        (b"[1]", "one JSON object"),
        (b'{"token_ids": [1]}', "has no 'kept'"),
        (b'{"token_ids": [1], "kept": [[[0]]], "keep": 1}', "has 'keep': a file of kept keys has token_ids and kept"),
        (b"PK\x03\x04 and so on", r"a damaged .npz file"),
    ],
)
def test_a_file_that_is_none_is_a_sentence(tmp_path, data, said):
    (tmp_path / "kept").write_bytes(data)
    with pytest.raises(ValueError, match=said):
        Trace.from_kept_file(tmp_path / "kept")
    with pytest.raises(ValueError, match="cannot read"):
        Trace.from_kept_file(tmp_path)


def guide() -> dict:
    """The functions that the guide defines."""
    found: dict = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        if "\ndef " in block:
            exec(block, found)
    return found


def test_the_guide_s_importer_of_a_log_runs():
    lines = [
        '{"step": 2, "layer": 0, "kv_head": 1, "evicted": [0, 1]}',
        '{"step": 3, "layer": 0, "kv_head": 0, "evicted": [2]}',
    ]
    kept, dropped_at = guide()["from_log"](lines, range(5), n_layers=1, n_kv_heads=2)
    trace = Trace.from_kept(range(5), kept, dropped_at=dropped_at)
    np.testing.assert_array_equal(trace.evicted_at, [[[5, 5, 4, 5, 5], [3, 3, 5, 5, 5]]])


def test_the_guide_s_importer_of_kvpress_notes_what_a_press_keeps():
    """A press scores by the norm of keys, and keeps half of them."""
    import torch

    class Press:
        compression_ratio = 0.5

        def score(self, module, hidden_states, keys, values, attentions, kwargs):
            return keys.norm(dim=-1)

        def compress(self, *given):
            return "compressed"

    press, kept = Press(), {}
    module = type("Module", (), {"layer_idx": 3})
    keys = torch.tensor([[[[1.0], [4.0], [2.0], [3.0]], [[4.0], [1.0], [0.0], [2.0]]]])
    with guide()["noting"](press, kept):
        assert press.compress(module, None, keys, keys, None, {}) == "compressed"
    assert {layer: [sorted(head) for head in heads] for layer, heads in kept.items()} == {3: [[1, 3], [0, 3]]}
    assert "compress" not in vars(press)


def test_whatever_byte_of_an_npz_is_wrong_it_is_read_or_refused_by_a_sentence(tmp_path):
    whole = io.BytesIO()
    np.savez_compressed(whole, kept=np.arange(2000) % 97)
    rng, path, refused = np.random.default_rng(0), tmp_path / "kept.npz", 0
    for at in rng.integers(0, len(whole.getvalue()), 150):
        data = bytearray(whole.getvalue())
        data[at] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        try:
            read_kept(path)
        except ValueError as error:
            assert "kept.npz" in str(error)
            refused += 1
    assert refused > 50
