"""Double Sparsity's approximate scores: queries against a few channels of each key, kept in a label cache of few bits."""

from __future__ import annotations

import torch

from sparselens_kernels.dispatch import Backend, check_reduction, choose
from sparselens_kernels.label_scores.labels import LABEL_DTYPES, Labels, dequantise, quantise

__all__ = ["LABEL_DTYPES", "Labels", "dequantise", "label_scores", "quantise"]


def label_scores(
    q: torch.Tensor, labels: Labels, *, reduction: str = "sum", scale: float = 1.0, backend: Backend = "auto"
) -> torch.Tensor:
    """s[b, h, t] = R_g scale · Σ_c q[b, h, g, c] · label[b, h, t, c], float32 [B, Hkv, T] (arXiv 2408.07092).

    Without a reduction, each query head's own scores, [B, H, T]. "softmax" adds up Σ_g of each head's softmax over the T.

    Args:
        q: [B, H, r], the chosen channels of one query per head; the G query heads of a KV head share its channels.
        reduction: R over those G heads: sum, mean, max, softmax or none.

    Raises ValueError for shapes that do not fit, and for backend="triton" where the kernel cannot take the call.
    """
    if reduction not in ("none", "softmax"):
        check_reduction(reduction)
    batch, n_kv, _, _ = labels.values.shape
    if q.ndim != 3 or q.shape[0] != batch or q.shape[1] % n_kv or q.shape[2] != labels.n_channels:
        raise ValueError(
            f"q is [batch, heads, channels] for {batch} × {n_kv} KV heads of {labels.n_channels} channels; got {tuple(q.shape)}"
        )
    if choose(backend, q.device, None) == "triton":
        from sparselens_kernels.label_scores import kernel

        return kernel.label_scores(q, labels, reduction=reduction, scale=scale)
    from sparselens_kernels.label_scores import reference

    return reference.label_scores(q, labels, reduction=reduction, scale=scale)
