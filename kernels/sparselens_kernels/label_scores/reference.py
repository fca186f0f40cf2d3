"""Approximate scores as one product per KV head; a linear reduction goes over the queries before it."""

from __future__ import annotations

import torch

from sparselens_kernels.label_scores.labels import Labels, dequantise


def label_scores(q: torch.Tensor, labels: Labels, *, reduction: str, scale: float) -> torch.Tensor:
    batch, n_kv = labels.values.shape[:2]
    grouped = q.float().reshape(batch, n_kv, -1, q.shape[-1]) * scale  # [B, Hkv, G, r]
    keys = dequantise(labels).transpose(-1, -2)
    if reduction == "none":
        return (grouped @ keys).flatten(1, 2)
    if reduction == "softmax":
        return torch.softmax(grouped @ keys, dim=-1).sum(2)
    if reduction == "max":
        return (grouped @ keys).amax(2)
    together = grouped.sum(2, keepdim=True) if reduction == "sum" else grouped.mean(2, keepdim=True)
    return (together @ keys)[:, :, 0]
