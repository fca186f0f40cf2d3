"""Which channels of a head's keys tell most about its logits: Double Sparsity's calibration (arXiv 2408.07092).

Over all calibration blocks, after the rotary embedding, with the queries of a KV head's G query heads together:

    q         mean |q_c|
    k         mean |k_c|
    qk        mean |q_c · k_c| of a token with itself
    variance  variance of q_c[t] · k_c[s] over all pairs s ≤ t

The authors' code takes q and k before the rotary embedding and keeps only the last block; this follows the paper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch

from sparsity_core.methods.decode.double_sparsity.channels import Channels, find_channels, keep_channels
from sparsity_core.models import AttentionCall, Model, calibration_text, recording, windows
from sparsity_core.work import Progress, silent


@torch.inference_mode()
def calibrate(
    model: Model,
    text: str | None = None,
    *,
    blocks: int = 8,
    length: int = 512,
    seed: int = 0,
    progress: Progress = silent,
) -> Channels:
    """The statistics over `blocks` random stretches of a text, ours where None.

    Raises ValueError for a text shorter than one stretch, and whatever `progress` raises to cancel.
    """
    text = calibration_text() if text is None else text
    if not text.strip():
        raise ValueError("the calibration text is empty: give some text")
    if blocks < 1 or not 2 <= length <= model.arch.max_positions:
        raise ValueError(f"calibration takes 1 block or more of 2 to {model.arch.max_positions:,} tokens")
    recorder = _Statistics(model)
    for i, ids in enumerate(windows(model, text, count=blocks, length=length, seed=seed)):
        progress(i / blocks, f"calibrating, block {i + 1} of {blocks}")
        with recording(recorder):
            model.hidden(ids[None], use_cache=False)
    progress(1.0, "the channels are ranked")
    recipe = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "text": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12],
        "blocks": blocks,
        "length": length,
        "seed": seed,
    }
    return Channels(recorder.magnitudes(), model.arch.n_kv_heads, recipe)


def channels_for(model: Model, source: str = "auto", progress: Progress = silent) -> Channels:
    """The calibration that a method asks for: a file, or "auto": the shipped one, one in the cache, or one made for it."""
    if source != "auto":
        found = Channels.load(source)
        found.check(model)
        return found
    known = find_channels(model.fingerprint)
    if known is not None:
        known.check(model)
        return known
    found = calibrate(model, length=min(512, model.arch.max_positions), progress=progress)
    keep_channels(found)  # where it cannot be kept it is made again the next time
    return found


class _Statistics:
    """A recorder that sums the statistics of each layer in float64, O(L · H · D)."""

    def __init__(self, model: Model) -> None:
        self._sums: dict[int, dict[str, torch.Tensor]] = {}
        self._n_heads = model.arch.n_heads

    def attend(self, call: AttentionCall) -> torch.Tensor:
        from sparselens_kernels import flash_column_score

        q, k = call.q, call.k
        group = q.shape[1] // k.shape[1]
        queries, keys = q[0].double(), k[0].double().repeat_interleave(group, 0)  # [H, T, D]
        n = queries.shape[1]
        pairs, squares = queries * keys.cumsum(1), queries.square() * keys.square().cumsum(1)
        found = {
            "tokens": torch.tensor(float(n)),
            "q": queries.abs().sum(1),
            "k": keys.abs().sum(1),
            "qk": (queries * keys).abs().sum(1),
            "pairs": torch.tensor(n * (n + 1) / 2),
            "sum": pairs.sum(1),
            "square": squares.sum(1),
        }
        own = self._sums.setdefault(call.layer, {})
        for name, value in found.items():
            own[name] = own.get(name, 0.0) + value.cpu()
        return flash_column_score(q, k, call.v, **call.how).out

    def magnitudes(self) -> dict[str, np.ndarray]:
        def stacked(of: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> np.ndarray:
            return np.stack([of(self._sums[i]).float().numpy() for i in sorted(self._sums)])

        return {
            "q": stacked(lambda s: s["q"] / s["tokens"]),
            "k": stacked(lambda s: s["k"] / s["tokens"]),
            "qk": stacked(lambda s: s["qk"] / s["tokens"]),
            "variance": stacked(lambda s: s["square"] / s["pairs"] - (s["sum"] / s["pairs"]).square()),
        }
