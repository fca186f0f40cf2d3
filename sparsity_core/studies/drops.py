"""What the model's predictions lose when given tokens leave its cache at a step, measured by making each drop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sparselens_kernels import NEVER, flash_column_score

from sparsity_core.models import AttentionCall, Model, new_cache, recording
from sparsity_core.studies.judge_study import ALL_LAYERS
from sparsity_core.work import Progress, silent

_ROWS = 1024  # queries of a batch of drops


@dataclass(frozen=True)
class Drop:
    """Tokens that leave the cache of one layer, or of all, for good."""

    tokens: tuple[int, ...]
    layer: int = ALL_LAYERS


@torch.inference_mode()
def effects_of(
    model: Model, ids: Sequence[int], step: int, drops: Sequence[Drop], progress: Progress = silent
) -> tuple[np.ndarray, np.ndarray]:
    """(KL to dense, added −log p), float64 [drop] each, nats: means over the queries after `step`, which miss the tokens.

    The last token of `ids` is predicted and not read. Dense is one plain forward. The cache of the tokens up to `step` is
    computed once, with nothing dropped; several drops are rows of one batch.

    Raises ValueError where the model cannot read on from a cache, and whatever `progress` raises to cancel.
    """
    read, following = list(ids[:-1]), torch.tensor(list(ids[step + 2 :]))
    if not 0 <= step < len(read) - 1:
        raise ValueError(f"the step is 0 to {len(read) - 2}, so that a query after it predicts a token; got {step}")
    model.check_steps(step + 1, len(read), drops=False)
    cache, first, later = new_cache(model.hf), torch.tensor([read[: step + 1]]), read[step + 1 :]
    model.hidden(
        first, past_key_values=cache, position_ids=torch.arange(step + 1)[None].to(model.device), use_cache=True
    )
    dense = torch.log_softmax(
        model.logits(model.hidden(torch.tensor([read]), use_cache=False)[0, step + 1 :]).double(), -1
    )
    own = -dense.gather(1, following.to(dense.device)[:, None])[:, 0]
    kl, nll, most = np.zeros(len(drops)), np.zeros(len(drops)), max(1, _ROWS // len(later))
    for start in range(0, len(drops), most):
        progress(start / len(drops), f"drop {start + 1:,} of {len(drops):,}")
        batch = drops[start : start + most]
        for i, row in enumerate(_after(model, cache, later, step, batch), start):
            other = torch.log_softmax(row.double(), -1)
            kl[i] = float((dense.exp() * (dense - other)).sum(-1).mean())
            nll[i] = float((-other.gather(1, following.to(other.device)[:, None])[:, 0] - own).mean())
    return kl, nll


def _after(model: Model, cache: Any, later: list[int], step: int, drops: Sequence[Drop]) -> list[torch.Tensor]:
    """The logits [Q, vocabulary] of the queries after the step, for each drop."""
    batch = copy.deepcopy(cache)
    batch.batch_repeat_interleave(len(drops))
    at = torch.arange(step + 1, step + 1 + len(later), device=model.device)[None]
    with recording(_Missing(drops, step + 1)):
        hidden = model.hidden(
            torch.tensor([later] * len(drops)),
            past_key_values=batch,
            position_ids=at.expand(len(drops), -1),
            use_cache=True,
        )
    return [model.logits(row) for row in hidden]


class _Missing:
    """A recorder of queries from `start` on, each row of whose batch misses the tokens of its own drop."""

    def __init__(self, drops: Sequence[Drop], start: int) -> None:
        self._drops, self._start = drops, start

    def attend(self, call: AttentionCall) -> torch.Tensor:
        until = torch.full((len(self._drops), 1, call.n_keys), NEVER, dtype=torch.int32)
        for row, drop in enumerate(self._drops):
            if drop.layer in (ALL_LAYERS, call.layer):
                until[row, 0, list(drop.tokens)] = self._start
        until = until.expand(-1, call.n_kv, -1).to(call.k.device)
        return flash_column_score(call.q, call.k, call.v, until=until, **call.how).out
