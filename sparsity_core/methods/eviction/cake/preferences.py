"""CAKE's layers: how wide and how unsteady the attention of the last queries is in each, and what each may keep for it."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch

from sparsity_core.kinds import HeldKeys
from sparsity_core.models import AttentionCall, Model, recording

_LEAST = 1e-10  # the authors' code adds it to every probability before its logarithm
_measured: WeakKeyDictionary[Model, tuple[tuple[tuple[int, ...], int], Spread]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Spread:
    """Of the attention of a prompt's last queries to the keys before them, of each layer, summed over its query heads."""

    entropy: np.ndarray  # float64 [L]: −Σ p log p over queries and keys
    variance: np.ndarray  # float64 [L]: Σ over keys of the variance among the queries

    def preferences(self, tau1: float, tau2: float) -> np.ndarray:
        """float64 [L]: P = H^(1/τ₁) · V^(1/τ₂), over the largest of each factor, so that no power runs out of range."""
        factors = [(self.entropy, tau1), (self.variance, tau2)]
        return np.prod([(x / max(x.max(), 1e-300)) ** (1 / tau) for x, tau in factors], axis=0)


def measured(model: Model, prompt: tuple[int, ...], window: int) -> Spread:
    """Read once for each prompt: the last one of each model is remembered."""
    asked = (prompt, window)
    if model not in _measured or _measured[model][0] != asked:
        _measured[model] = asked, measure(model, prompt, window)
    return _measured[model][1]


@torch.inference_mode()
def measure(model: Model, prompt: tuple[int, ...], window: int) -> Spread:
    """One dense forward over the prompt."""
    listener = _Listener(window)
    with recording(listener):
        model.hidden(torch.tensor([prompt]), use_cache=False)
    found = np.asarray([listener.found[i] for i in sorted(listener.found)])
    return Spread(found[:, 0], found[:, 1])


def shared_out(preferences: np.ndarray, each: int, room: int) -> list[int]:
    """`each` · L keys shared out in proportion to the preferences [L], no layer more than `room`; `each` where none is told.

    What a layer has no room for goes to the others in the same proportion. Rounded down, and the keys that are left over go
    where most was cut off.
    """
    total, n = each * len(preferences), len(preferences)
    if each >= room or not preferences.sum() > 0:
        return [each] * n
    shares, full = np.zeros(n), np.zeros(n, bool)
    while True:
        left = np.where(full, 0.0, preferences)
        if not left.sum() > 0:  # layers of no preference take what the others have no room for
            left = np.where(full, 0.0, 1.0)
        shares = np.where(full, float(room), (total - room * full.sum()) * left / left.sum())
        over = ~full & (shares > room)
        if not over.any():
            break
        full |= over
    whole = np.floor(shares + 1e-9).astype(int)
    for index in np.argsort(whole - shares, kind="stable")[: total - int(whole.sum())]:
        whole[index] += 1
    return [int(own) for own in whole]


class _Listener:
    """A recorder of the dense pass."""

    def __init__(self, window: int) -> None:
        self._window = window
        self.found: dict[int, tuple[float, float]] = {}  # (entropy, variance)

    def attend(self, call: AttentionCall) -> torch.Tensor:
        from sparselens_kernels import flash_column_score

        n = call.n_keys
        positions = torch.arange(n, device=call.k.device).expand(*call.k.shape[:2], n)
        q = call.q[:, :, -self._window :]
        held = HeldKeys(call.layer, q, call.k, call.v, positions, positions >= 0, n, **call.how)
        before = held.attention(self._window)[..., : max(0, n - self._window)].double()  # [1, Hkv, G, w, keys]
        variance = before.var(3).sum() if before.shape[3] > 1 else before.new_zeros(())
        self.found[call.layer] = (-float((before * (before + _LEAST).log()).sum()), float(variance))
        return flash_column_score(call.q, call.k, call.v, **call.how).out
