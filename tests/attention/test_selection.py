"""Decode selection: dense where everything is read, exact where all channels rank, and the same simulated and physical."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sparselens_kernels import quantise

from sparsity_core import Pipeline, Trace, generate, methods, run
from sparsity_core.attention.selection import Selected, attend_selected, best_keys, decode_selected
from sparsity_core.kinds import SelectionMethod
from sparsity_core.methods.decode.double_sparsity.labels import LabelSelector
from sparsity_core.methods.decode.quest.selector import PageSelector
from sparsity_core.methods.decode.sparq.selector import QuerySelector
from sparsity_core.models import AttentionCall
from sparsity_core.models.loading import wrap
from tests import tiny

IDS = tiny.ids(60)
DECODE = [name for name in methods.names("decode") if issubclass(methods.get(name), SelectionMethod)]


def made(name: str, **knobs) -> Pipeline:
    """A decode method that fits a head of 16 channels and a text of 60 tokens."""
    if name == "quest":
        knobs["page"] = 4
    if name == "double_sparsity":
        knobs["channels"] = 8
    return Pipeline(decode=methods.get(name)(**knobs))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("name", DECODE)
def test_reading_everything_is_the_dense_model_bit_by_bit(name, family):
    model = tiny.model(family)
    dense, whole = run(model, IDS), run(model, IDS, made(name, tokens=1.0, dense_layers=0))
    assert np.array_equal(dense.nll[:-1], whole.nll[:-1])
    np.testing.assert_allclose(whole.selected_mass, 1, atol=1e-6)
    assert (whole.selected_recall == 1).all()
    sees = 60 if family != "mistral" else tiny.WINDOW
    np.testing.assert_array_equal(
        whole.selected[0, 0], np.minimum(60 - np.arange(60), sees)
    )  # by its own query and later


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_row_of_a_batch_reads_what_it_reads_alone(share):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 1, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40, 16)

    def read(*rows):
        selector = LabelSelector(torch.arange(8).expand(2, -1), "fp16", "softmax")
        selector.append(k[list(rows)])
        return decode_selected(q[list(rows)], k[list(rows)], v[list(rows)], selector, share=share, scale=0.25)[0]

    torch.testing.assert_close(read(0, 1), torch.cat([read(0), read(1)]))


@pytest.mark.parametrize("name", DECODE)
def test_simulated_selection_is_physical_selection(name):
    """The same tokens read in one forward, and one by one from a cache."""
    model = tiny.model()
    pipeline = made(name, tokens=0.4, dense_layers=1)
    out = generate(model, IDS[:40], pipeline, max_new_tokens=16, stop_at_eos=False)
    whole = run(model, [*IDS[:40], *out.token_ids[:-1]], pipeline)
    # The prompt is dense in generate, so later layers see other keys there: the first sparse layer alone must agree.
    first = whole.selected_recall[1][:, 40:]
    assert np.isfinite(first).all()
    counted = generate(model, IDS[:1], pipeline, max_new_tokens=16, stop_at_eos=False)
    again = run(model, [IDS[0], *counted.token_ids[:-1]], pipeline)
    np.testing.assert_allclose(again.nll[:-1], counted.trace.nll[:-1], atol=1e-5)
    np.testing.assert_allclose(again.selected[1:, :, 1:], counted.trace.selected[1:, :, 1:])


@pytest.mark.parametrize("dtype", ["fp16", "int8", "int4"])
def test_selection_and_eviction_together_are_the_same_simulated_and_physical(dtype):
    model = tiny.model()
    pipeline = Pipeline.parse(
        f"eviction=a2sf(budget=9) decode=double_sparsity(tokens=0.5, channels=8, label_dtype={dtype}, dense_layers=0)"
    )
    out = generate(model, IDS[11:12], pipeline, max_new_tokens=30, stop_at_eos=False)
    assert tiny.PAD not in out.token_ids  # its embedding is nought, with which all keys tie
    again = run(model, [IDS[11], *out.token_ids[:-1]], pipeline)
    np.testing.assert_array_equal(again.evicted_at, out.trace.evicted_at)
    assert again.kv_bytes == out.kv_bytes  # labels of what was dropped are gone too
    np.testing.assert_allclose(again.nll[:-1], out.trace.nll[:-1], atol=1e-5)
    np.testing.assert_allclose(
        again.selected[..., 1:], out.trace.selected[..., 1:]
    )  # the prompt's token is read densely


@pytest.mark.parametrize("name", DECODE)
def test_a_later_token_changes_no_earlier_choice(name):
    model = tiny.model()
    pipeline = made(name, tokens=0.3, dense_layers=0)
    one, other = run(model, IDS, pipeline), run(model, [*IDS[:50], *tiny.ids(10, seed=9)], pipeline)
    np.testing.assert_allclose(one.nll[:49], other.nll[:49], atol=1e-9)
    np.testing.assert_array_equal(one.selected_recall[..., :50], other.selected_recall[..., :50])


def test_all_channels_rank_as_the_exact_logits_do():
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 5, 16), torch.randn(1, 2, 30, 16)
    selector = LabelSelector(torch.arange(16).flip(0).expand(2, -1), "fp16", "sum")
    selector.append(k.half().float())
    exact = q @ k.half().float().transpose(-1, -2)
    torch.testing.assert_close(selector.scores(q, k, scale=1.0)[:, :, 0], exact, atol=1e-4, rtol=1e-4)


def test_the_label_cache_grows_and_shrinks_with_the_cache():
    torch.manual_seed(0)
    k, q = torch.randn(1, 2, 12, 16), torch.randn(1, 4, 1, 16)
    channels = torch.tensor([[3, 1, 4, 15], [9, 2, 6, 5]])
    grown, once = (LabelSelector(channels, "int4", "sum") for _ in range(2))
    for part in k.split([5, 1, 6], dim=2):
        grown.append(part)
    once.append(k)
    assert torch.equal(grown.scores(q, k, scale=1.0), once.scores(q, k, scale=1.0))
    columns = torch.tensor([[[0, 3, 11], [2, 3, 4]]])
    grown.keep(columns)
    kept = once.scores(q, k, scale=1.0)[:, :, 0, 0].gather(2, columns)
    assert torch.equal(grown.scores(q, k[:, :, :3], scale=1.0)[:, :, 0, 0], kept)
    assert grown.nbytes == quantise(torch.zeros(1, 2, 3, 4), "int4").nbytes == 2 * 3 * (2 + 2)


@pytest.mark.parametrize("rows", [1, 4])
def test_softmax_sums_each_query_heads_own_attention(rows):
    torch.manual_seed(3)
    q, k = torch.randn(1, 6, rows, 16), torch.randn(1, 2, 20, 16).half().float()
    channels = torch.tensor([[3, 1, 4, 15], [9, 2, 6, 5]])
    selector = LabelSelector(channels, "fp16", "softmax")
    selector.append(k)
    query = torch.arange(20 - rows, 20)
    found = selector.scores(q, k, scale=0.25, visible=torch.arange(20) <= query[:, None])[0, :, 0]
    for kv in range(2):
        c = channels[kv]
        expected = torch.zeros(rows, 20)
        for head in range(3 * kv, 3 * kv + 3):
            logits = 0.25 * q[0, head][:, c] @ k[0, kv][:, c].T
            expected += logits.masked_fill(torch.arange(20) > query[:, None], float("-inf")).softmax(-1)
        torch.testing.assert_close(found[kv], expected, atol=1e-5, rtol=1e-4)


def test_sparq_scores_are_the_papers():
    torch.manual_seed(1)
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 1, 6, 8)
    found = QuerySelector(3, "sum").scores(q, k, scale=1.0)[0, 0, 0, 0]
    expected = torch.zeros(6)
    for head in q[0, :, 0]:
        top = head.abs().topk(3).indices
        temperature = (8 * head[top].abs().sum() / head.abs().sum()).sqrt()
        expected += (k[0, 0][:, top] @ head[top] / temperature).softmax(0)
    torch.testing.assert_close(found, expected)


def test_sparqs_query_heads_may_choose_channels_together():
    """By hand: |q| sums to 4, 5 and 3, so both heads look at the second channel alone."""
    q = torch.tensor([[[[4.0, 2.0, 0.0]], [[0.0, 3.0, 3.0]]]])
    k = torch.tensor([[[[9.0, 1.0, 9.0], [0.0, 2.0, 0.0]]]])
    found = QuerySelector(1, "sum", shared=True).scores(q, k, scale=1.0)[0, 0, 0, 0]
    logits = [
        (size / (3 * size / 6) ** 0.5 * np.asarray([1.0, 2.0])) for size in (2.0, 3.0)
    ]  # q / √(D · ‖q_r‖₁ / ‖q‖₁)
    expected = sum(np.exp(each) / np.exp(each).sum() for each in logits)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_quest_ranks_pages_by_a_bound_that_no_logit_of_theirs_passes():
    torch.manual_seed(2)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 21, 8)
    found = PageSelector(4, "sum").scores(q, k, scale=1.0)[0, 0, 0, 0]
    assert found[20] > found[:20].max()  # the page that is being filled
    pages = k[0, 0, :20].view(5, 4, 8)
    bound = torch.maximum(q.flatten() * pages.amin(1), q.flatten() * pages.amax(1)).sum(-1)
    assert (bound[:, None] >= pages @ q.flatten() - 1e-5).all()
    order = found[:20].argsort(descending=True)
    expected = torch.cat([torch.arange(4) + 4 * page for page in bound.argsort(descending=True)])
    assert order.tolist() == expected.tolist()


def test_quest_as_its_authors_have_it_reads_whole_pages_of_each_query_heads_own_choice():
    """22 keys in pages of 4, a half: the two keys of the page that is being filled, and the two whole pages that rank highest."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((heads, n, 8)).astype(np.float32) for heads, n in ((4, 1), (2, 22), (2, 22)))
    selector = PageSelector(4, "none")
    out, chosen = decode_selected(*(torch.from_numpy(x)[None] for x in (q, k, v)), selector, share=0.5, scale=0.35)
    picks = set()
    for head in range(4):
        keys, values = k[head // 2], v[head // 2]
        pages = keys[:20].reshape(5, 4, 8)
        bound = np.maximum(q[head] * pages.min(1), q[head] * pages.max(1)).sum(-1)
        best = np.argsort(-bound)[:2]
        picks.add(tuple(sorted(best)))
        read = [*(4 * page + i for page in sorted(best) for i in range(4)), 20, 21]
        assert sorted(chosen.columns[0, head].tolist()) == read
        weights = np.exp(0.35 * keys[read] @ q[head, 0])
        np.testing.assert_allclose(out[0, head, 0], weights @ values[read] / weights.sum(), atol=1e-5)
    assert len(picks) > 1  # heads differ


def test_a_choice_of_pages_that_query_heads_share_is_not_the_loudest_heads():
    """One head whose bounds are a hundred times another's has one vote, as the other has."""
    k = torch.eye(4).repeat_interleave(4, 0)[None, None]  # pages 0 to 3 point four ways
    q = torch.tensor([[[100.0, 90.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 3.0]]])[None]
    found = PageSelector(4, "sum").scores(q, torch.cat([k, k[:, :, :1]], dim=2), scale=1.0)[0, 0, 0, 0]
    assert found[:16].view(4, 4)[:, 0].argsort(descending=True)[:2].tolist() == [0, 3]


@pytest.mark.parametrize("name", DECODE)
def test_a_dense_step_every_third_reads_everything_then_and_only_then(name):
    model = tiny.model()
    pipeline = made(name, tokens=0.2, dense_layers=0, dense_every=3)
    out = generate(model, IDS[:1], pipeline, max_new_tokens=20, stop_at_eos=False)
    again = run(model, [IDS[0], *out.token_ids[:-1]], pipeline)
    np.testing.assert_allclose(again.nll[:-1], out.trace.nll[:-1], atol=1e-5)
    dense = np.arange(20) % 3 == 0
    np.testing.assert_allclose(again.selected_mass[..., dense], 1, atol=1e-6)
    assert again.selected_mass[..., ~dense][..., 8:].max() < 1


def test_ties_are_broken_to_exactly_the_count():
    assert best_keys(torch.zeros(2, 5), torch.tensor([2, 4])).sum(-1).tolist() == [2, 4]


def test_better_channels_read_more_of_the_attention():
    """All channels against one: the labels must matter."""
    model = tiny.model()
    mass = [
        np.nanmean(run(model, IDS, Pipeline(decode=methods.DoubleSparsity(tokens=0.2, channels=r))).selected_mass)
        for r in (1, 16)
    ]
    assert mass[0] < mass[1] <= 1


def test_a_trace_with_selection_comes_back(tmp_path):
    trace = run(tiny.model(), IDS, Pipeline(decode=methods.DoubleSparsity(tokens=0.5, channels=8)))
    trace.save(tmp_path / "t.npz")
    again = Trace.load(tmp_path / "t.npz")
    np.testing.assert_array_equal(again.selected, trace.selected)
    np.testing.assert_allclose(again.selected_recall, trace.selected_recall)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("decode=double_sparsity(tokens=0.0)", "above 0 to 1"),
        ("decode=double_sparsity(tokens=1.5)", "at most 1"),
        ("decode=double_sparsity(channels=17)", "at most 16"),
        ("decode=double_sparsity(channels=7, label_dtype=int4)", "even number"),
        ("decode=sparq(channels=17)", "at most 16"),
        ("eviction=tova(budget=9) decode=quest", "quest's pages keep every key"),
        ("decode=double_sparsity(channels=8, calibration='/no/such/file')", "no calibration"),
    ],
)
def test_what_does_not_fit_is_refused(spelling, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny.model(), IDS, Pipeline.parse(spelling), max_new_tokens=2)
    with pytest.raises(ValueError, match=message):
        run(tiny.model(), IDS, Pipeline.parse(spelling))


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f not in ("mistral", "gemma2", "gemma3")])
def test_an_offloaded_cache_reads_the_same_keys_from_host_memory(family, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    model = tiny.model(family)
    here, there = (
        generate(
            model,
            IDS[:40],
            made("double_sparsity", tokens=0.4, offload=offload, **more),
            max_new_tokens=12,
            stop_at_eos=False,
        )
        for offload, more in ((False, {"dense_layers": 1}), (True, {"dense_layers": 1}))
    )
    assert here.token_ids == there.token_ids
    np.testing.assert_allclose(here.trace.nll, there.trace.nll, atol=1e-6)
    np.testing.assert_array_equal(here.trace.selected, there.trace.selected)
    hits = there.trace.prefetch_hits
    assert np.isnan(hits[0]) and (hits[1:] > 0.4).all()  # by chance two in five
    assert hits[1:].max() <= 1 and here.trace.prefetch_hits.size == 0
    row = 2 * model.arch.head_dim * 8  # a key and a value in float64
    read = sum(math.ceil(0.4 * n) for n in range(41, 52)) * model.arch.n_kv_heads
    late = sum(1 - h for h in hits[1:]) * read * row
    assert 0 < there.trace.bytes_late <= 1.1 * late + row * 11 * 2 * model.arch.n_kv_heads
    assert there.trace.bytes_ahead >= 0.9 * read * row * 2
    assert there.kv_bytes == here.kv_bytes


def test_a_query_is_predicted_from_the_layer_before():
    """In a model whose layers add nothing to the stream the prediction is the query itself, and every row is ready."""
    hf = tiny.transformer("llama")
    for layer in tiny.layers(hf):
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model = wrap(hf, tiny.tokenizer(), "still")
    out = generate(model, IDS[:40], made("double_sparsity", tokens=0.4, offload=True, dense_layers=1), max_new_tokens=8)
    assert out.trace.prefetch_hits[1:].min() > 0.9  # a token more is read than was there to predict


def test_offloading_is_refused_where_it_cannot_be_had(tmp_path):
    model = tiny.model()
    offloaded = "decode=double_sparsity(tokens=0.4, channels=8, offload=True"
    with pytest.raises(ValueError, match="keeps every key"):
        generate(model, IDS[:20], Pipeline.parse(f"eviction=a2sf(budget=9) {offloaded})"), max_new_tokens=2)
    with pytest.raises(ValueError, match="turn per_head and rerank off"):
        Pipeline.parse(f"{offloaded}, per_head=True)")
    with pytest.raises(ValueError, match="sliding window cannot be offloaded"):
        generate(tiny.model("mistral"), IDS[:20], Pipeline.parse(f"{offloaded})"), max_new_tokens=3, stop_at_eos=False)


def test_a_share_and_channels_for_each_layer():
    model = tiny.model()
    spelled = "decode=sparq(tokens=0.9, dense_layers=0, layer_tokens='1, 0.5, 0.25')"
    trace = run(model, IDS, Pipeline.parse(spelled))
    assert str(Pipeline.parse(spelled)) == spelled.replace(", dense_layers", ", dense_layers")
    read = trace.selected.sum((1, 2)) / (model.arch.n_kv_heads * sum(range(1, 61)))
    np.testing.assert_allclose(read, [1, 0.5, 0.25], atol=0.02)
    lists = methods.DoubleSparsity(tokens=0.5, layer_channels="8, 4", dense_layers=0)
    from sparsity_core.methods.decode.double_sparsity.calibration import channels_for

    channels_for(model)
    make = lists.selectors(model, lambda share, doing: None)
    assert [make(layer)._channels.shape[1] for layer in range(3)] == [8, 4, 4]
    for wrong, message in [
        ("layer_tokens='1, 2'", "layer_tokens are shares"),
        ("layer_tokens='half'", "is a list of numbers"),
        ("layer_channels='0'", "layer_channels are at least 1"),
        ("layer_channels='8, 3', label_dtype=int4", "int4 labels are stored in pairs"),
    ]:
        with pytest.raises(ValueError, match=message):
            Pipeline.parse(f"decode=double_sparsity({wrong})")


def test_the_mean_value_stands_in_for_what_is_not_read_by_hand():
    """Scores .5 .3 .2 over values 4, 0, 5; two keys read: 0.8 of softmax over them, 2, and 0.2 of the mean value 3."""

    class Scores(QuerySelector):
        def scores(self, q, k, *, scale, heads=slice(None), visible=None):
            return torch.tensor([0.5, 0.3, 0.2]).view(1, 1, 1, 1, 3)

    q = torch.zeros(1, 1, 1, 2)
    k, v = torch.zeros(1, 1, 3, 2), torch.tensor([4.0, 0.0, 5.0]).view(1, 1, 3, 1)
    out, chosen = decode_selected(q, k, v, Scores(1, "sum"), share=0.6, scale=1.0, mean_value=True)
    assert sorted(chosen.columns[0, 0].tolist()) == [0, 1]
    assert float(out) == pytest.approx(0.8 * 2.0 + 0.2 * 3.0)
    record = Selected.empty(1, 1, 3, keeps=False)
    whole = attend_selected(
        AttentionCall(0, q, k, v, scale=1.0), Scores(1, "sum"), share=0.6, start=2, record=record,
        positions=torch.arange(3)[None], mean_value=True,
    )  # fmt: skip
    assert float(whole) == pytest.approx(float(out))


@pytest.mark.parametrize("name", ["sparq", "double_sparsity"])
@pytest.mark.parametrize("more", [{"mean_value": True}, {"rerank": 4}])
def test_corrections_and_new_rankings_are_the_same_simulated_and_physical(name, more, tmp_path, monkeypatch):
    if name == "sparq" and "rerank" in more:
        pytest.skip("SparQ ranks channels anew for every query")
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    model = tiny.model()
    pipeline = made(name, tokens=0.4, dense_layers=1, **more)
    out = generate(model, IDS[:1], pipeline, max_new_tokens=20, stop_at_eos=False)
    again = run(model, [IDS[0], *out.token_ids[:-1]], pipeline)
    np.testing.assert_allclose(again.nll[:-1], out.trace.nll[:-1], atol=1e-5)
    np.testing.assert_allclose(again.selected[1:, :, 1:], out.trace.selected[1:, :, 1:])
    plain = run(model, [IDS[0], *out.token_ids[:-1]], made(name, tokens=0.4, dense_layers=1))
    assert np.abs(plain.nll[:-1] - again.nll[:-1]).max() > 1e-6
    if "rerank" in more:
        assert again.drift_steps.tolist() == out.trace.drift_steps.tolist() == [4, 8, 12, 16, 20]
        np.testing.assert_array_equal(again.drift, out.trace.drift)
        assert np.isnan(again.drift[0]).all() and (again.drift[1:] <= 1).all() and (again.drift[1:] < 1).any()
        with pytest.raises(ValueError, match="turn per_head and rerank off"):
            made(name, rerank=4, offload=True)


def test_the_channels_ranked_again_are_those_that_were_largest_in_what_was_read(tmp_path, monkeypatch):
    torch.manual_seed(1)
    selector = LabelSelector(torch.arange(4).expand(2, -1), "fp16", "sum", rerank=8)
    q, k = torch.randn(1, 4, 8, 16), torch.randn(1, 2, 8, 16)
    selector.append(k)
    selector.follow(q[:, :, :3], k[:, :, :3])
    selector.follow(q[:, :, 3:], k[:, :, 3:])
    selector.rank_again(k, 8)
    for head in range(2):
        product = (q[0, 2 * head : 2 * head + 2] * k[0, head]).abs().sum((0, 1))
        assert set(selector._channels[head].tolist()) == set(product.topk(4).indices.tolist())
    stayed = np.mean([len({0, 1, 2, 3} & set(selector._channels[h].tolist())) / 4 for h in range(2)])
    assert selector.drift == [(8, pytest.approx(stayed))]
