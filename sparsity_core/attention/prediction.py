"""The next layer's query, predicted from this layer's residual stream."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sparsity_core.models import AttentionCall, Model

from sparsity_core.models import Enough, block_input, is_attention, recording, residual_stream


def predicted_query(model: Model, layer: int) -> torch.Tensor | None:
    """[1, H, Tq, D]: the next layer's query as this layer's own residual stream gives it; None where that is not seen.

    The stream moves little from a layer to the next (Lee et al., arXiv:2406.19707). To be called by a recorder, while it
    attends in `layer`.
    """
    seen, residual = block_input(), residual_stream()
    if seen is None or residual is None or layer + 1 >= model.arch.n_layers:
        return None
    following, name = model.layers[layer + 1], model.family.norm
    norm = None if name is None else following.get_submodule(name)
    attention = next((m for m in following.modules() if is_attention(m)), None)
    if norm is None or attention is None:
        return None
    catch = _CatchQuery()
    settings = {name: value for name, value in seen.settings.items() if "past" not in name}  # it must not be cached
    with recording(catch), contextlib.suppress(Enough):
        attention(hidden_states=norm(residual), **settings)
    return catch.query


class _CatchQuery:
    query: torch.Tensor | None = None

    def attend(self, call: AttentionCall) -> torch.Tensor:
        self.query = call.q
        raise Enough
