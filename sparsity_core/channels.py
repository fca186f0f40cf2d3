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
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from sparsity_core.calibration import calibration_text, windows
from sparsity_core.files import write_whole
from sparsity_core.method import Progress, silent
from sparsity_core.models import Model
from sparsity_core.record import recording
from sparsity_core.store import cache_dir

STATISTICS = ("qk", "q", "k", "variance")
_ASSETS = Path(__file__).parent / "assets" / "channels"


@dataclass(frozen=True, eq=False)
class Channels:
    """The calibration of one model: a magnitude per statistic, layer, query head and channel."""

    magnitudes: dict[str, np.ndarray]  # float32 [L, H, D] each
    n_kv_heads: int
    recipe: dict[str, Any] = field(default_factory=dict)  # model, fingerprint, text's hash, blocks, length, seed

    def per_kv_head(self, statistic: str) -> np.ndarray:
        """float32 [L, Hkv, D]: the mean over the query heads that share a KV head."""
        values = self.magnitudes[statistic]
        return values.reshape(values.shape[0], self.n_kv_heads, -1, values.shape[2]).mean(2)

    def order(self, statistic: str, layer: int, *, per_head: bool = False) -> np.ndarray:
        """int64 [Hkv, D], or [H, D] for each query head: the channels, the most telling first."""
        values = self.magnitudes[statistic][layer] if per_head else self.per_kv_head(statistic)[layer]
        return np.argsort(-values, axis=-1, kind="stable")

    def overlap(self, other: Channels, statistic: str, beside: str, r: int) -> np.ndarray:
        """float64 [L, Hkv]: share of the top r channels by `statistic` here that are among the top r by `beside` there."""
        found = []
        for layer in range(self.magnitudes[statistic].shape[0]):
            mine, theirs = self.order(statistic, layer)[:, :r], other.order(beside, layer)[:, :r]
            found.append([len(np.intersect1d(a, b)) / r for a, b in zip(mine, theirs, strict=True)])
        return np.asarray(found)

    def save(self, path: str | Path) -> None:
        """Writes <path>.safetensors and <path>.json. Raises OSError where the folder cannot be written."""
        path = Path(path)
        data = save_arrays({name: np.ascontiguousarray(values) for name, values in self.magnitudes.items()})
        note = {**self.recipe, "n_kv_heads": self.n_kv_heads, "blake2b": hashlib.blake2b(data).hexdigest()}
        write_whole(path.with_suffix(".safetensors"), data)
        write_whole(path.with_suffix(".json"), (json.dumps(note, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Channels:
        """Raises ValueError for files that are missing, damaged or no calibration."""
        path = Path(path)
        try:
            data = path.with_suffix(".safetensors").read_bytes()
            note = dict(json.loads(path.with_suffix(".json").read_text()))
            intact = note.pop("blake2b") == hashlib.blake2b(data).hexdigest()
            magnitudes = load_arrays(data)
            n_kv_heads = int(note.pop("n_kv_heads"))
        except OSError as error:
            raise ValueError(
                f"there is no calibration at {path} ({error.strerror}): calibrate the model first"
            ) from None
        except (ValueError, KeyError, TypeError, SafetensorError):
            intact = False
        if not intact or set(magnitudes) != set(STATISTICS):
            raise ValueError(f"{path} is no calibration, or it is damaged: calibrate the model again")
        return cls(magnitudes, n_kv_heads, note)

    def check(self, model: Model) -> None:
        """Raises ValueError where this is another model's calibration."""
        shape = self.magnitudes["qk"].shape
        own = (model.arch.n_layers, model.arch.n_heads, model.arch.head_dim)
        if self.recipe.get("fingerprint") != model.fingerprint or shape != own:
            raise ValueError(
                f"the calibration is of {self.recipe.get('model', 'another model')} (layers, heads, channels {shape}) and not "
                f"of {model.name} {own}: calibrate {model.name}"
            )


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
    progress(1.0, "done")
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
    for folder in (_ASSETS, cache_dir() / "channels"):
        path = folder / f"{model.fingerprint}.safetensors"
        if path.exists():
            try:
                found = Channels.load(path)
                found.check(model)
                return found
            except ValueError:
                continue  # a damaged file is made again
    length = min(512, model.arch.max_positions)
    found = calibrate(model, length=length, progress=progress)
    try:
        (cache_dir() / "channels").mkdir(parents=True, exist_ok=True)
        found.save(cache_dir() / "channels" / model.fingerprint)
    except OSError:
        pass  # made again the next time
    return found


class _Statistics:
    """A recorder that sums the statistics of each layer in float64, O(L · H · D)."""

    def __init__(self, model: Model) -> None:
        self._sums: dict[int, dict[str, torch.Tensor]] = {}
        self._n_heads = model.arch.n_heads

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        from kernels import flash_column_score

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
        own = self._sums.setdefault(layer, {})
        for name, value in found.items():
            own[name] = own.get(name, 0.0) + value.cpu()
        return flash_column_score(q, k, v, scale=scale, softcap=softcap, window=window).out

    def magnitudes(self) -> dict[str, np.ndarray]:
        def stacked(of: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> np.ndarray:
            return np.stack([of(self._sums[i]).float().numpy() for i in sorted(self._sums)])

        return {
            "q": stacked(lambda s: s["q"] / s["tokens"]),
            "k": stacked(lambda s: s["k"] / s["tokens"]),
            "qk": stacked(lambda s: s["qk"] / s["tokens"]),
            "variance": stacked(lambda s: s["square"] / s["pairs"] - (s["sum"] / s["pairs"]).square()),
        }
