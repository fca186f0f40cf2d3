"""The gate stage's engine: a trained gate lets each token drop earlier ones from all heads of a layer."""

from __future__ import annotations

import numpy as np
import torch
from sparselens_kernels import NEVER, gate_drops

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
        self._protected, self._dropped = protected, dropped  # bool [T]
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # [1, held, rank] and int64 [held], of each layer
        self._keys: dict[int, LayerKeys] = {}

    def restrict(self, step: Step) -> torch.Tensor | None:
        layer, keys, device = step.layer, step.keys, step.call.k.device
        self._keys[layer] = keys
        gate_q, gate_k = self.gate.project(layer, attention_input(layer))
        held, at = self._held.get(layer) or (gate_k[:, :0].half(), torch.empty(0, dtype=torch.int64, device=device))
        at = torch.cat([at, step.new[0, 0]])
        held = torch.cat([held, gate_k.half()], dim=1)  # rounded alike for every query
        bias = float(self.gate.bias[layer]) - self.threshold
        dropped_at = gate_drops(gate_q.float(), held.float(), bias=bias, start=step.start)[0]
        if self._protected is not None:
            dropped_at = dropped_at.masked_fill(self._protected.to(device)[at], NEVER)
        if self.gate.propagate_in_depth and layer:
            dropped_at = dropped_at.minimum(self._keys[layer - 1].hidden_at[at])
        if self._dropped is not None:
            dropped_at = dropped_at.minimum(keys.hidden_at[at])
        going = dropped_at != NEVER
        some_go = bool(going.any())
        if some_go:
            keys.hide(at[going], dropped_at[going])
            held, at = held[:, ~going], at[~going]
        self._held[layer] = held, at
        if not (some_go and step.generating and step.call.n_queries == 1 and keys.alike):
            return None
        stay = (keys.hidden_at[keys.positions[0, 0]] == NEVER).nonzero()[:, 0]
        return stay if len(stay) < keys.positions.shape[2] else None

    def nbytes(self, layer: int) -> int:
        return self._held[layer][0].nbytes if layer in self._held else 0

    def record(self, n: int) -> GateRecord:
        found = np.stack([self._keys[i].hidden_at.cpu().numpy()[:n] for i in sorted(self._keys)])
        if self._dropped is not None:
            found = np.where(self._dropped.numpy()[:n], n, found)
        return GateRecord(found.clip(max=n))
