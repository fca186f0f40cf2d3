"""Label scores and sparse decoding against float64 written out, and the Triton kernels against both."""

from __future__ import annotations

import pytest
import torch
from sparselens_kernels import dequantise, label_scores, quantise, sparse_decode
from sparselens_kernels.label_scores import LABEL_DTYPES

from tests.kernels.backends import DEVICE

SHAPES = [(1, 1, 1, 8, 64), (2, 2, 3, 63, 64), (1, 2, 4, 123, 80), (1, 1, 8, 300, 128)]  # B, Hkv, G, T, D
ATOL = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def made(batch, n_kv, group, n, dim, dtype=torch.float32):
    torch.manual_seed(n)
    q = torch.randn(batch, n_kv * group, dim).to(DEVICE, dtype)
    k, v = (torch.randn(batch, n_kv, n, dim).to(DEVICE, dtype) for _ in range(2))
    return q, k, v


def chosen(*shape):
    """Each row a random order of its columns."""
    return torch.rand(*shape).argsort(-1).to(DEVICE)


def exact(q, k, v, index, n_selected=None):
    """One head at a time, in float64."""
    q, k, v, index = q.cpu(), k.cpu(), v.cpu(), index.cpu()
    batch, n_heads, dim = q.shape
    n_kv = k.shape[1]
    out = torch.zeros(batch, n_heads, v.shape[3], dtype=torch.float64)
    for b in range(batch):
        for h in range(n_heads):
            kv = h // (n_heads // n_kv)
            count = index.shape[2] if n_selected is None else int(n_selected[b, kv])
            rows = index[b, kv, :count].long()
            if count:
                p = (k[b, kv, rows].double() @ q[b, h].double() / dim**0.5).softmax(0)
                out[b, h] = p @ v[b, kv, rows].double()
    return out


def test_labels_are_quantised_as_by_hand():
    keys = torch.tensor([[[[7.0, -3.5, 0.4, 2.0]]]])
    eight, four = quantise(keys, "int8"), quantise(keys, "int4")
    assert float(four.scale) == 1.0  # 7 / 7
    assert dequantise(four).flatten().tolist() == [7, -4, 0, 2]  # −3.5 rounds to the even −4
    assert four.values.flatten().tolist() == [0x7 | (0xC << 4), 0x0 | (0x2 << 4)]
    torch.testing.assert_close(dequantise(eight), keys, atol=float(eight.scale) / 2 + 1e-3, rtol=0)
    assert torch.equal(dequantise(quantise(keys, "fp16")), keys.half().float())


@pytest.mark.parametrize("dtype", LABEL_DTYPES)
def test_keys_of_nought_have_labels_of_nought(dtype):
    assert not dequantise(quantise(torch.zeros(1, 1, 3, 4), dtype)).any()


def test_int4_labels_of_a_quarter_of_the_channels_take_an_eighth_of_half_precision_keys():
    keys = torch.randn(1, 3, 100, 64, dtype=torch.float16)
    labels = quantise(keys[..., :16], "int4")
    assert labels.nbytes == 3 * 100 * (16 / 2 + 2)
    assert labels.nbytes <= keys.nbytes / 8


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "softmax", "none"])
@pytest.mark.parametrize("dtype", LABEL_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_label_scores_are_the_product_with_the_stored_labels(shape, dtype, reduction, backend):
    batch, n_kv, group, n, _ = shape
    q, k, _ = made(*shape)
    labels = quantise(k[..., :16], dtype)
    found = label_scores(q[..., :16].contiguous(), labels, reduction=reduction, scale=0.25, backend=backend)
    per_head = 0.25 * q[..., :16].double().view(batch, n_kv, group, 16) @ dequantise(labels).double().transpose(-1, -2)
    expected = {"sum": per_head.sum(2), "mean": per_head.mean(2), "max": per_head.amax(2)}
    expected = (expected | {"softmax": per_head.softmax(-1).sum(2), "none": per_head.flatten(1, 2)})[reduction]
    across = labels._replace(values=labels.values.mT.contiguous().mT)  # channel by channel, as the label cache has them
    again = label_scores(q[..., :16].contiguous(), across, reduction=reduction, scale=0.25, backend=backend)
    torch.testing.assert_close(again, found)
    assert found.shape == (batch, n_kv * group if reduction == "none" else n_kv, n)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", list(ATOL))
@pytest.mark.parametrize("shape", SHAPES)
def test_sparse_decode_is_attention_over_the_selected_keys(shape, dtype, backend):
    q, k, v = made(*shape, dtype)
    n = k.shape[2]
    index = chosen(*k.shape[:3])[..., : max(1, n // 2)]
    found = sparse_decode(q, k, v, index, backend=backend)
    torch.testing.assert_close(found.cpu().double(), exact(q, k, v, index), atol=ATOL[dtype], rtol=ATOL[dtype])


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_query_may_lie_in_memory_in_any_order(backend):
    q, k, v = made(2, 2, 3, 63, 64)
    index, labels = chosen(2, 2, 63)[..., :20], quantise(k, "int8")
    for strided in (q.mT.contiguous().mT, q.transpose(0, 1).contiguous().transpose(0, 1)):
        assert not strided.is_contiguous()
        assert_close = torch.testing.assert_close
        assert_close(sparse_decode(strided, k, v, index, backend=backend), sparse_decode(q, k, v, index))
        assert_close(label_scores(strided, labels, backend=backend), label_scores(q, labels), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_unused_and_empty_selections_count_for_nothing(backend):
    q, k, v = made(2, 2, 3, 600, 64)
    index = chosen(2, 2, 600)
    n_selected = torch.tensor(
        [[600, 300], [1, 0]], device=DEVICE
    )  # several splits, an empty second split, one key, none
    found = sparse_decode(q, k, v, index, n_selected=n_selected, backend=backend)
    torch.testing.assert_close(found.cpu().double(), exact(q, k, v, index, n_selected), atol=1e-5, rtol=1e-5)
    assert not found[1, 3:].any()


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_all_keys_selected_is_dense_attention(backend):
    q, k, v = made(1, 3, 3, 123, 64)
    index = torch.arange(123, device=DEVICE).expand(1, 3, -1)
    dense = torch.nn.functional.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]
    torch.testing.assert_close(sparse_decode(q, k, v, index, backend=backend), dense, atol=1e-5, rtol=1e-5)


def test_the_kernel_reads_no_memory_that_was_never_written(monkeypatch):
    empty = torch.empty

    def poisoned(*shape, **options):
        made = empty(*shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
    q, k, v = made(1, 2, 3, 123, 80)
    index = torch.arange(123, device=DEVICE).expand(1, 2, -1)
    assert sparse_decode(q, k, v, index, backend="triton").isfinite().all()
    assert label_scores(q[..., :16].contiguous(), quantise(k[..., :16], "int4"), backend="triton").isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k, v: quantise(k, "int3"), "fp16, int8, int4"),
        (lambda q, k, v: quantise(k[..., :15], "int4"), "even number"),
        (lambda q, k, v: label_scores(q, quantise(k[..., :16], "int8")), "16 channels"),
        (lambda q, k, v: label_scores(q, quantise(k, "int8"), reduction="median"), "sum, mean, max"),
        (lambda q, k, v: sparse_decode(q, k, v, torch.zeros(1, 2, dtype=torch.long)), "index is"),
        (lambda q, k, v: sparse_decode(q[:, :1], k, v, torch.zeros(1, 2, 4, dtype=torch.long)), "multiple of KV heads"),
        (lambda q, k, v: sparse_decode(q.double(), k, v, torch.zeros(1, 2, 4).long(), backend="triton"), "float64"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*made(1, 2, 3, 20, 64))
