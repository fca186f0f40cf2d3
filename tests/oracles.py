"""Slow, plain implementations in float64 that share no code with what they check."""

from __future__ import annotations

import torch


def attention_probabilities(q, k, scale=None):
    """Dense causal probabilities [B, H, Tq, Tk] with KV heads repeated."""
    group = q.shape[1] // k.shape[1]
    q, k = q.double(), k.double().repeat_interleave(group, dim=1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * torch.einsum("bhqd,bhkd->bhqk", q, k)
    past = k.shape[2] - q.shape[2]
    query = torch.arange(q.shape[2])[:, None] + past
    return scores.masked_fill(torch.arange(k.shape[2])[None, :] > query, float("-inf")).softmax(-1)


def evict_step_by_step(
    q,
    k,
    v,
    *,
    budget,
    decay=1.0,
    n_sink=0,
    recent=0,
    scored=True,
    weight=None,
    initial=0.0,
    reduction="sum",
    softcap=None,
    remembers=False,
):
    """One query, one head, one key at a time. Returns out [B, H, T, D], evicted_at [B, Hkv, T], threshold, rows kept.

    Where it `remembers`, one more key stands for those that were evicted.
    """
    q, k, v = q.double(), k.double(), v.double()
    n_batch, n_heads, n_tokens, dim = q.shape
    n_kv = k.shape[1]
    group = n_heads // n_kv
    decay = torch.as_tensor(decay, dtype=torch.float64).expand(n_batch, n_kv, n_tokens)
    weight = torch.as_tensor(1.0 if weight is None else weight, dtype=torch.float64).expand(n_batch, n_kv, n_tokens)
    initial = torch.as_tensor(initial, dtype=torch.float64).expand(n_batch, n_kv, n_tokens)
    out = torch.zeros(n_batch, n_heads, n_tokens, v.shape[-1], dtype=torch.float64)
    evicted_at = torch.full((n_batch, n_kv, n_tokens), 2**31 - 1)  # never
    threshold = torch.full((n_batch, n_kv, n_tokens), float("nan"), dtype=torch.float64)
    final = torch.full((n_batch, n_kv, n_tokens), float("nan"), dtype=torch.float64)
    for b in range(n_batch):
        for h in range(n_kv):
            kept: list[int] = []
            gone: list[int] = []
            score: dict[int, float] = {}
            for t in range(n_tokens):
                kept.append(t)
                score[t] = float(initial[b, h, t])
                rows = []
                for g in range(group):
                    head = h * group + g
                    keys, values, times = k[b, h, kept], v[b, h, kept], [1] * len(kept)
                    if remembers and gone:
                        keys = torch.cat([keys, k[b, h, gone].mean(0, keepdim=True)])
                        values, times = torch.cat([values, v[b, h, gone].mean(0, keepdim=True)]), [*times, len(gone)]
                    x = keys @ q[b, head, t] / dim**0.5
                    x = x if softcap is None else softcap * torch.tanh(x / softcap)
                    p = torch.tensor(times) * x.exp()
                    p = p / p.sum()
                    out[b, head, t] = p @ values
                    rows.append(p[: len(kept)])
                together = torch.stack(rows)
                row = {"sum": together.sum(0), "mean": together.mean(0), "max": together.max(0).values}[reduction]
                if scored:
                    for i, key in enumerate(kept):
                        score[key] = float(decay[b, h, key]) * score[key] + float(weight[b, h, key]) * float(row[i])
                while len(kept) > budget:
                    open_to_drop = [key for key in kept if key >= n_sink and key <= t - recent]
                    victim = min(open_to_drop, key=lambda key: (score[key], key))
                    kept.remove(victim)
                    gone.append(victim)
                    evicted_at[b, h, victim] = t + 1
                    threshold[b, h, t] = score.pop(victim)
            for key in kept:
                final[b, h, key] = score[key]
    return out, evicted_at, threshold, final


def gate_step_by_step(x):
    """Which query drops each key, one pair at a time, of gate logits x [T, T]; 2**31 − 1: none."""
    n = x.shape[0]
    dropped_at = [2**31 - 1] * n
    for query in range(n):
        for key in range(query):
            if dropped_at[key] > query and float(x[query, key]) <= 0:
                dropped_at[key] = query
    return torch.tensor(dropped_at)


def gate_product(x, sparse_sigmoid):
    """I[n, k] = Π_{m = k+1 … n} σ(x[m, k]), as the paper writes it; 1 on the diagonal, 0 above it."""
    n = x.shape[0]
    out = torch.zeros(n, n, dtype=torch.float64)
    for query in range(n):
        for key in range(query + 1):
            product = 1.0
            for m in range(key + 1, query + 1):
                product *= sparse_sigmoid(float(x[m, key]))
            out[query, key] = product
    return out
