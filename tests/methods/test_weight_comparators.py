"""Comparators of PruneNet against what they say, computed otherwise; and the model that they read."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsity_core import Pipeline, methods, run
from sparsity_core.methods.gate.dcp.adapter import Gate
from sparsity_core.methods.weights.slicegpt.rotation import turned
from sparsity_core.models.loading import wrap
from sparsity_core.weights import activations as activations
from sparsity_core.weights.activations import input_moments, mask_gradients, neuron_moments
from sparsity_core.weights.ffn import feed_forwards
from sparsity_core.weights.low_rank import nearest, nearest_for_inputs, rank_for
from tests import tiny

SHORT = {"samples": 2, "length": 24}
TURNING = ["llama", "mistral", "qwen2", "qwen3"]  # whose residual stream can be turned
EVERY = [
    methods.WandaSP(**SHORT),
    methods.FLAP(**SHORT),
    methods.LLMPruner(**SHORT),
    methods.SVDTruncation(),
    methods.SVDLLM(**SHORT),
    methods.HeadPruning(**SHORT, ratio=0.5),
    methods.HeadPruning(ratio=0.5, importance="norm"),
    methods.SliceGPT(**SHORT),
]
WINDOWS = torch.tensor([tiny.ids(24, seed) for seed in range(3)])
_NAMES = {  # up, down and output projection within a layer
    "phi": ("mlp.fc1", "mlp.fc2", "self_attn.dense"),
    "gpt2": ("mlp.c_fc", "mlp.c_proj", "attn.c_proj"),
    "opt": ("fc1", "fc2", "self_attn.out_proj"),
}


def modules(hf, family: str, which: int) -> list[torch.nn.Module]:
    name = _NAMES.get(family, ("mlp.up_proj", "mlp.down_proj", "self_attn.o_proj"))[which]
    return [layer.get_submodule(name) for layer in tiny.layers(hf)]


def read_by(family: str, which: int, windows: torch.Tensor) -> list[torch.Tensor]:
    """[tokens, width] of what each layer's projection reads, from transformers' own eager model."""
    hf = tiny.transformer(family)
    found: list[list[torch.Tensor]] = []
    for module in modules(hf, family, which):
        found.append(seen := [])
        module.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].flatten(0, -2)))
    hf(input_ids=windows, use_cache=False)
    return [torch.cat(seen) for seen in found]


def weight_times_gradient(family: str, which: int, window: torch.Tensor) -> list[torch.Tensor]:
    """[out, in] of each layer's projection: W · ∂L/∂W, L the mean next-token loss, by autograd on the weights themselves."""
    hf = tiny.transformer(family)
    weights = [module.weight.requires_grad_(True) for module in modules(hf, family, which)]
    hf(input_ids=window[None], labels=window[None], use_cache=False).loss.backward()
    found = [(w * w.grad).detach() for w in weights]
    return [w.T for w in found] if family == "gpt2" else found


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """As far as transformers' eager softmax in float32 lets two float64 models agree."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def digest(hf) -> str:
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in hf.state_dict().values())).hexdigest()


def hooks(hf) -> int:
    """Hooks on a model, but for those with which every loaded model shows recorders what its layers read."""
    found = [
        h
        for m in hf.modules()
        for of in (m._forward_pre_hooks, m._forward_hooks, m._backward_hooks)
        for h in of.values()
    ]
    return sum(getattr(h, "__module__", "") != "sparsity_core.models.seam" for h in found)


def logits(hf) -> torch.Tensor:
    with torch.inference_mode():
        return hf(input_ids=torch.tensor([tiny.ids(24)]), use_cache=False).logits


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_moments_are_those_of_what_the_down_projection_reads(family):
    for found, x in zip(neuron_moments(tiny.model(family), WINDOWS), read_by(family, 1, WINDOWS), strict=True):
        assert found.count == len(x) == WINDOWS.numel()
        close(found.mean, x.mean(0))
        close(found.variance, x.var(0, correction=0))
        close(found.norm, x.norm(dim=0))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_second_moments_are_the_same_however_many_layers_a_pass_serves(family, monkeypatch):
    together = list(input_moments(tiny.model(family), WINDOWS))
    monkeypatch.setattr(activations, "_MATRIX_BYTES", 1)
    alone = list(input_moments(tiny.model(family), WINDOWS))
    outer, inner = read_by(family, 0, WINDOWS), read_by(family, 1, WINDOWS)
    for a, b, x, h in zip(together, alone, outer, inner, strict=True):
        assert all(torch.equal(m, n) for m, n in zip(a, b, strict=True))
        close(a[0], x.T @ x / len(x))
        close(a[1], h.T @ h / len(h))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_masks_gradient_is_weight_times_gradient_summed_over_what_it_masks(family):
    model = tiny.model(family)
    for unit, which in (("neuron", 1), ("head", 2)):
        for window, found in zip(WINDOWS, mask_gradients(model, WINDOWS, unit), strict=True):
            for each, expected in zip(found, weight_times_gradient(family, which, window), strict=True):
                columns = expected.sum(0)
                close(each, columns if unit == "neuron" else columns.unflatten(0, (model.arch.n_heads, -1)).sum(1))


def test_a_masks_gradient_is_what_a_small_change_of_the_mask_does():
    model, h = tiny.model("llama"), 1e-4
    (found,) = mask_gradients(model, WINDOWS[:1], "head")

    def loss(layer: int, head: int, by: float) -> float:
        hf = tiny.transformer("llama")
        tiny.layers(hf)[layer].self_attn.o_proj.weight[:, head * 16 : (head + 1) * 16] *= 1 + by
        with tiny.plain_attention(hf):
            return float(tiny.nll(hf(input_ids=WINDOWS[:1]).logits[0], WINDOWS[0].tolist()).mean())

    for layer, head in ((0, 1), (1, 3), (2, 0)):
        slope = (loss(layer, head, h) - loss(layer, head, -h)) / (2 * h)
        assert float(found[layer][head]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_importances_by_their_equations(family):
    model = tiny.model(family)
    windows = methods.WandaSP(**SHORT).windows(model)
    downs = [m.weight.T if family == "gpt2" else m.weight for m in modules(tiny.transformer(family), family, 1)]
    read = read_by(family, 1, windows)

    def ranked(method) -> list[torch.Tensor]:
        return [r.importance for r in method.rank(model, feed_forwards(model), lambda share, doing: None)]

    for found, w, x in zip(ranked(methods.WandaSP(**SHORT)), downs, read, strict=True):
        close(
            found, torch.stack([sum(abs(w[j, i]) * x[:, i].norm() for j in range(len(w))) for i in range(w.shape[1])])
        )
    for found, w, x in zip(ranked(methods.FLAP(**SHORT)), downs, read, strict=True):
        close(found, ((x - x.mean(0)) ** 2).mean(0) * (w * w).sum(0))
    products = [weight_times_gradient(family, 1, window) for window in windows]
    for layer, found in enumerate(ranked(methods.LLMPruner(**SHORT))):
        close(found, torch.stack([p[layer].sum(0) for p in products]).mean(0).abs())


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2", "opt"])
def test_the_lost_neurons_mean_output_lowers_the_blocks_error(family):
    """On the text it was measured on, in the first layer, whose input is still the dense model's."""
    model, method = tiny.model(family), methods.FLAP(**SHORT, ratio=0.5)
    windows = method.windows(model)
    compressed = model.compress(method)
    (x, *_) = read_by(family, 1, windows)
    block = feed_forwards(model)[0]
    lost = torch.ones(block.n_neurons, dtype=torch.bool)
    lost[compressed.kept[0]] = False
    added = block.down[:, lost] @ x[:, lost].mean(0)

    before, after = (modules(hf, family, 1)[0].bias for hf in (model.hf, compressed.model.hf))
    close(after if before is None else after - before, added)
    gone = x[:, lost] @ block.down[:, lost].T
    assert (gone - added).square().mean() < gone.square().mean()


@pytest.mark.parametrize("family", ["qwen2", "gemma"])
def test_a_family_without_a_bias_says_that_nothing_makes_up(family):
    compressed = tiny.model(family).compress(methods.FLAP(**SHORT))
    assert "could not be stored" in compressed.notes[0]
    plain = tiny.model(family).compress(methods.FLAP(**SHORT, compensate=False))
    assert torch.equal(logits(compressed.model.hf), logits(plain.model.hf))


@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (64, 96), (40, 40)])
def test_the_nearest_matrix_of_a_rank_is_the_truncated_decomposition(rows, columns):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    k = rank_for(rows, columns, 0.25)
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    found = nearest(w, k)
    torch.testing.assert_close(found, (u[:, :k] * s[:k]) @ v[:k], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((w - found).norm(), s[k:].norm())  # Eckart–Young
    torch.testing.assert_close(torch.linalg.matrix_norm(w - found, 2), s[k])


def test_a_rank_by_hand():
    # ¾ of 96 · 64 = 4608 numbers hold 28.8 rows of 96 and columns of 64
    assert rank_for(96, 64, 0.25) == rank_for(64, 96, 0.25) == 28
    assert rank_for(2, 2, 0.0) == 1
    assert rank_for(576, 1536, 0.5) * (576 + 1536) <= 576 * 1536 / 2
    with pytest.raises(ValueError, match="leaves no rank"):
        rank_for(4, 4, 0.75)


@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (64, 96)])
def test_whitened_truncation_is_that_of_w_s_times_the_inverse(rows, columns):
    generator = torch.Generator().manual_seed(2)
    w = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(500, columns, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, columns)
    c, k = x.T @ x / len(x), 20
    s = torch.linalg.cholesky(c)
    u, d, v = torch.linalg.svd(w @ s, full_matrices=False)
    found = nearest_for_inputs(w, c, k)
    torch.testing.assert_close(found, (u[:, :k] * d[:k]) @ v[:k] @ torch.linalg.inv(s), rtol=1e-5, atol=1e-6)
    assert torch.linalg.matrix_rank(found) == k
    assert ((w - found) @ x.T).norm() < ((w - nearest(w, k)) @ x.T).norm()


@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (64, 96)])
def test_inputs_of_few_directions_need_no_more_rank(rows, columns):
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(300, 10, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(10, columns, generator=generator, dtype=torch.float64)
    found = nearest_for_inputs(w, x.T @ x / len(x), 12)
    assert ((w - found) @ x.T).norm() < 1e-3 * (w @ x.T).norm()
    assert torch.isfinite(nearest_for_inputs(w, torch.zeros(columns, columns), 12)).all()


def test_svd_llm_whitens_each_matrix_with_what_it_reads():
    model, method = tiny.model("llama"), methods.SVDLLM(**SHORT)
    windows = method.windows(model)
    outer, inner = (read_by("llama", which, windows) for which in (0, 1))
    before, after = feed_forwards(model), feed_forwards(model.compress(method).model)
    for a, b, x, h in zip(before, after, outer, inner, strict=True):
        for name, rows in (("gate", x), ("up", x), ("down", h)):
            w = getattr(a, name)
            u, _, _ = torch.linalg.svd(w @ rows.T, full_matrices=False)
            u = u[:, :28]
            error = ((w - getattr(b, name)) @ rows.T).norm()
            assert float(error) == pytest.approx(float((w @ rows.T - u @ u.T @ w @ rows.T).norm()), rel=1e-3, abs=1e-5)


def test_a_low_rank_says_what_it_spares():
    compressed = tiny.model("llama").compress(methods.SVDTruncation(ratio=0.25))
    spared = 3 * 3 * (96 * 64 - 28 * (96 + 64))  # layers, matrices
    assert compressed.true_cut == spared / sum(p.numel() for p in tiny.model("llama").hf.parameters())
    assert "saved size does not shrink" in compressed.notes[0]
    assert compressed.extra["rank"] == {"gate": 28, "up": 28, "down": 28}
    for item in compressed.spectra:
        assert item.after[27] > 0.1 * item.after[0] > 1e6 * item.after[28]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", EVERY, ids=str)
def test_a_ratio_of_nought_is_the_same_model(family, method):
    model = tiny.model("mistral" if family == "gpt2" and method.name == "slicegpt" else family)
    compressed = model.compress(type(method)(ratio=0.0))
    assert torch.equal(logits(compressed.model.hf), logits(model.hf))
    assert compressed.true_cut == 0 and not compressed.notes


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("method", [methods.FLAP(**SHORT), methods.SVDTruncation(), methods.SliceGPT(**SHORT)], ids=str)
def test_others_load_what_is_saved_bit_for_bit(family, method, tmp_path):
    if method.name == "slicegpt" and family not in TURNING:
        with pytest.raises(ValueError, match=f"of the family {family}.*: choose another method"):
            tiny.model(family).compress(method)
        return
    compressed = tiny.model(family, torch.float32).compress(method)
    compressed.save_pretrained(tmp_path / "out", report=compressed.report(text=tiny.TEXT))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False, dtype=torch.float32)
    saved, found = compressed.model.hf.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[name], found[name]) for name in saved)
    loaded.eval().set_attn_implementation(compressed.model.hf.config._attn_implementation)
    assert torch.equal(logits(loaded), logits(compressed.model.hf))


@pytest.mark.parametrize("family", TURNING)
def test_a_stream_in_other_axes_says_the_same(family):
    model = tiny.model(family)
    q = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).Q
    torch.testing.assert_close(logits(turned(model, q)), logits(model.hf), rtol=0, atol=1e-10)


def test_the_stream_keeps_its_leading_axes():
    """On a stream that spans 40 of 64 channels, cutting the other 24 changes nothing: the axes are those of the text."""
    plain = tiny.transformer("llama")
    span = torch.linalg.qr(torch.randn(64, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).Q
    flat = span @ span.T
    plain.model.embed_tokens.weight.data = plain.model.embed_tokens.weight @ flat
    for layer in tiny.layers(plain):
        for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writer.weight.data = flat @ writer.weight
    model = wrap(plain, tiny.tokenizer(), "flat")
    compressed = model.compress(methods.SliceGPT(ratio=24 / 64, multiple=1, samples=8, length=64))
    assert compressed.model.arch.hidden_size == 40
    torch.testing.assert_close(logits(compressed.model.hf), logits(model.hf), rtol=0, atol=1e-6)
    one_less = model.compress(methods.SliceGPT(ratio=25 / 64, multiple=1, samples=8, length=64))
    assert (logits(one_less.model.hf) - logits(model.hf)).abs().max() > 1e-3


def test_a_sliced_stream_has_no_gate(tmp_path):
    model = tiny.model("llama")
    weights = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(6))
    recipe = {"model": model.name, "fingerprint": model.fingerprint}
    Gate(weights, weights, torch.ones(3), recipe=recipe).save(tmp_path / "gate")
    pipeline = Pipeline(weights=methods.SliceGPT(**SHORT), gate=methods.DCP(adapter=str(tmp_path / "gate")))
    with pytest.raises(ValueError, match="residual stream that the gate reads: leave one of the two out"):
        run(model, tiny.ids(24), pipeline)
    plain = run(model, tiny.ids(24), Pipeline(weights=methods.SliceGPT(**SHORT), eviction=methods.TOVA(budget=8)))
    assert np.isfinite(plain.nll[:-1]).all()


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_the_shared_model_is_as_it_was_even_after_a_cancel(method):
    model = tiny.model("llama")
    before = digest(model.hf)
    model.compress(method)

    def cancel(share: float, doing: str) -> None:
        if share > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.compress(model, cancel)
    assert digest(model.hf) == before
    assert hooks(model.hf) == 0
    assert not any(p.requires_grad or p.grad is not None for p in model.hf.parameters())


def test_threads_do_not_meet():
    """Two methods at once on one model, while a third thread reads it."""
    model = tiny.model("llama")
    pair = [methods.LLMPruner(**SHORT), methods.HeadPruning(**SHORT, ratio=0.5)]
    alone = [logits(model.compress(m).model.hf) for m in pair]
    dense, together, wrong, done = logits(model.hf), {}, [], threading.Event()

    def read() -> None:
        while not done.is_set():
            if not torch.equal(logits(model.hf), dense):
                wrong.append(True)

    reader = threading.Thread(target=read)
    workers = [
        threading.Thread(target=lambda i=i, m=m: together.update({i: logits(model.compress(m).model.hf)}))
        for i, m in enumerate(pair)
    ]
    for thread in (reader, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    reader.join()
    assert not wrong
    assert all(torch.equal(together[i], expected) for i, expected in enumerate(alone))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="at most 320 tokens, the positions of tiny-llama; got 512"):
        tiny.model("llama").compress(methods.WandaSP(length=512))
    with pytest.raises(ValueError, match=r"ratio is at most 0\.999; got 1\.0"):
        methods.SVDLLM(ratio=1.0)
    with pytest.raises(ValueError, match="samples is at least 1"):
        methods.FLAP(samples=0)
    assert str(methods.SVDLLM(ratio=0.5, seed=2)) == "svd_llm(ratio=0.5, seed=2)"
