"""The gate stage's engine: a trained gate lets each token drop earlier ones from all heads of a layer."""

from __future__ import annotations

import numpy as np
import torch
from sparselens_kernels import EMPTY, NEVER, gate_drops, staying

from sparsity_core.attention.step import LayerKeys, Stage, Step
from sparsity_core.kinds import Gate
from sparsity_core.models import attention_input
from sparsity_core.record import GateRecord


class GateStage(Stage):
    """Hides key k from query n on, for good, where the gate's x[n, k] ≤ threshold; `protected` keys stay in sight.

    Its own side of each key, [held, rank] in float16, is kept beside the cache until the key is dropped.
    """

    def __init__(
        self, gate: Gate, threshold: float, *, protected: torch.Tensor | None, dropped: torch.Tensor | None
    ) -> None:
        self.gate, self.threshold = gate, threshold
        self._protected, self._dropped = protected, dropped  # bool [1 or B, T]
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # [B, held, rank], int64 [B, held], of each layer
        self._keys: dict[int, LayerKeys] = {}

    def restrict(self, step: Step) -> torch.Tensor | None:
        layer, keys, device = step.layer, step.keys, step.call.k.device
        self._keys[layer] = keys
        gate_q, gate_k = self.gate.project(layer, attention_input(layer))
        held, at = self._held.get(layer) or (gate_k[:, :0].half(), keys.positions[:, 0, :0])
        at = torch.cat([at, step.new[:, 0]], dim=1)
        held = torch.cat([held, gate_k.half()], dim=1)  # rounded alike for every query
        bias = float(self.gate.bias[layer]) - self.threshold
        dropped_at = gate_drops(gate_q.float(), held.float(), bias=bias, start=step.start)
        if self._protected is not None:
            kept = self._protected.to(device).expand(len(at), -1).gather(1, at.clamp_min(0))
            dropped_at = dropped_at.masked_fill(kept, NEVER)
        if self.gate.propagate_in_depth and layer:
            dropped_at = dropped_at.minimum(self._keys[layer - 1].hidden(at))
        if self._dropped is not None:
            dropped_at = dropped_at.minimum(keys.hidden(at))
        dropped_at = dropped_at.masked_fill(at == EMPTY, NEVER)
        going = dropped_at != NEVER
        some_go = bool(going.any())
        if some_go:
            keys.hide(at, dropped_at)
            alive = ~going & (at != EMPTY)
            stay = staying(alive)
            held = held.gather(1, stay[..., None].expand(-1, -1, held.shape[2]))
            at = at.gather(1, stay).masked_fill(~alive.gather(1, stay), EMPTY)
        self._held[layer] = held, at
        if not (some_go and step.generating and step.call.n_queries == 1 and keys.alike):
            return None
        seen = keys.hidden(keys.positions[:, 0]) == NEVER
        return None if bool(seen.all()) else seen

    def nbytes(self, layer: int) -> int:
        return self._held[layer][0].nbytes if layer in self._held else 0

    def record(self, n: int) -> GateRecord:
        found = np.stack([self._keys[i].hidden_at[0].cpu().numpy()[:n] for i in sorted(self._keys)])
        if self._dropped is not None:
            found = np.where(self._dropped[0].numpy()[:n], n, found)
        return GateRecord(found.clip(max=n))
