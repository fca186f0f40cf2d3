"""The record of one run: what every table, figure and metric reads. It never refers to a model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsity_core.record.provenance import Provenance
from sparsity_core.work import opened, read_regular, sealed, write_whole

FORMAT = 1  # raised when a stored trace can no longer be read as it was meant


def _nothing() -> np.ndarray:
    return np.zeros((0, 0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Trace:
    """What one pipeline did to one text. L layers, H query heads, Hkv KV heads, T tokens, S snapshots, P probes."""

    provenance: Provenance
    n_prompt: int
    n_prefill: int  # leading tokens that a one-cut method read densely; 0 where eviction runs from the first token
    n_heads: int
    budgets: np.ndarray  # int32 [L]: keys kept per KV head; T where the layer is dense
    n_sink: np.ndarray  # int32 [L]
    recent: np.ndarray  # int32 [L]
    token_ids: np.ndarray  # int32 [T]
    texts: list[str]
    tokens: list[str]
    groups: np.ndarray  # int32 [T]: tokens of one group spell one character together
    classes: list[str]
    evicted_at: np.ndarray  # int32 [L, Hkv, T]: first query that no longer sees the key; T where never
    threshold: np.ndarray  # float32 [L, Hkv, T]: score of the key dropped at each query; nan where none
    snapshot_steps: np.ndarray  # int32 [S]
    snapshots: np.ndarray  # float32 [L, Hkv, S, T]: accumulated scores; nan where the key is not in the cache
    nll: np.ndarray  # float32 [T]: −log p of the next token; nan on the last
    dense_nll: np.ndarray  # float32 [T]; nan where the run was not compared with the dense model
    kl_to_dense: np.ndarray  # float32 [T], nats; nan where not compared
    top1_agrees: (
        np.ndarray
    )  # float32 [T]: 1 where dense and pruned would say the same next token; nan where not compared
    regret: np.ndarray  # float32 [L, H, T]: dense attention on keys already evicted; empty where not compared
    probe_steps: np.ndarray  # int32 [P]: queries at which the kept set is compared with the ideal one
    ideal_recall: np.ndarray  # float32 [L, Hkv, P]: share of the dense model's top keys that is kept
    ideal_cosine: np.ndarray  # float32 [L, Hkv, P]: cosine of the two masks, weighted by the dense attention
    ideal_mass: np.ndarray  # float32 [L, Hkv, P]: dense attention that the ideal set of equal size would retain
    kv_bytes: int  # held by the cache at the end: realised by generate, counted by run
    kv_bytes_dense: int
    continuation: str  # what generate wrote, its last token included; "" for run
    notes: tuple[str, ...] = field(default=())
    # Of a decode stage; empty without one. Layers that read everything hold nan.
    selected: np.ndarray = field(default_factory=_nothing)  # float32 [L, Hkv, T]: how many queries read each key
    selected_mass: np.ndarray = field(
        default_factory=_nothing
    )  # float32 [L, H, T]: exact attention that each query read
    selected_recall: np.ndarray = field(
        default_factory=_nothing
    )  # float32 [L, Hkv, T]: share of the exact top keys read
    protected: np.ndarray = field(
        default_factory=lambda: np.zeros(0, bool)
    )  # bool [T]: tokens that the user's own rules keep; empty without such rules
    # Of a decode stage that ranks its channels again while it runs; empty without one.
    drift_steps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # int32 [R]: tokens read by then
    drift: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 0), np.float32)
    )  # float32 [L, R]: share of the calibrated channels that are still chosen; nan where a layer reads everything
    # Of an offloaded generation; empty and 0 without one.
    prefetch_hits: np.ndarray = field(
        default_factory=lambda: np.zeros(0, np.float32)
    )  # float32 [L]: share of the rows that a decode step read that had been fetched ahead; nan where none were
    bytes_ahead: int = 0  # fetched from host memory by prediction
    bytes_late: int = 0  # and by what the prediction missed
    # Of a gate stage; empty without one.
    gated_at: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 0), np.int32)
    )  # int32 [L, T]: the token whose gate dropped the key; T where none did

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                own = value.view()
                own.flags.writeable = False
                object.__setattr__(self, item.name, own)

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def n_layers(self) -> int:
        return self.evicted_at.shape[0]

    @property
    def n_kv_heads(self) -> int:
        return self.evicted_at.shape[1]

    @property
    def compared(self) -> bool:
        """Whether the dense model was run beside this pipeline."""
        return self.regret.size > 0

    @property
    def perplexity(self) -> float:
        """exp of the mean −log p over every token but the first."""
        return float(np.exp(np.nanmean(self.nll))) if self.n_tokens > 1 else float("nan")

    @property
    def dense_perplexity(self) -> float:
        known = self.dense_nll[~np.isnan(self.dense_nll)]
        return float(np.exp(known.mean())) if known.size else float("nan")

    def keep(self, layer: int) -> np.ndarray:
        """bool [kv_head, query, key]: query q attends to key k, k ≤ q < evicted_at[k]."""
        query = np.arange(self.n_tokens)[None, :, None]
        key = np.arange(self.n_tokens)[None, None, :]
        return (key <= query) & (query < self.evicted_at[layer][:, None, :])

    def dropped_by(self, layer: int) -> np.ndarray:
        """int32 [kv_head, key]: the token whose gate dropped the key; −1 elsewhere (eviction has no such token)."""
        if not self.gated_at.size:
            return np.full((self.n_kv_heads, self.n_tokens), -1, dtype=np.int32)
        at = self.gated_at[layer]
        first = (at < self.n_tokens) & (at <= self.evicted_at[layer])  # not where eviction came before the gate
        return np.where(first, at, -1).astype(np.int32)

    def dropped_at(self, head: int | str) -> np.ndarray:
        """int32 [L, T]: `evicted_at` of one KV head, or of the "first" or the "last" head that drops the key."""
        if head == "first":
            return self.evicted_at.min(axis=1)
        return self.evicted_at.max(axis=1) if head == "last" else self.evicted_at[:, int(head)]

    def dropped_in(self, head: int | str) -> np.ndarray:
        """int32 [L, T]: the step that dropped each key, as `dropped_at` takes heads; T − 1 or T where none did.

        An eviction method drops after its query has looked, so that the next one misses the key; a gate drops before.
        """
        at = self.dropped_at(head)
        return at - 1 + (self.gated_at == at if self.gated_at.size else 0)

    def visible_at(self, step: int) -> np.ndarray:
        """bool [L, Hkv, T]: the keys that query `step` attends to, its own included."""
        return (np.arange(self.n_tokens) <= step) & (step < self.evicted_at)

    def density(self) -> float:
        """Share of the causal (query, key) pairs that stay visible, over all layers and heads."""
        t = self.n_tokens
        lifetime = np.minimum(self.evicted_at, t) - np.arange(t)
        return float(lifetime.mean() / ((t + 1) / 2))

    def _check_shapes(self) -> None:
        """Raises ValueError where an array does not have the shape that its field declares."""
        t, (layers, heads, _) = len(self.token_ids), self.evicted_at.shape
        s, p = len(self.snapshot_steps), len(self.probe_steps)
        per_token = ("token_ids", "groups", "nll", "dense_nll", "kl_to_dense", "top1_agrees")
        shapes: dict[str, tuple[int, ...]] = {name: (t,) for name in per_token}
        shapes |= {name: (layers,) for name in ("budgets", "n_sink", "recent")}
        shapes |= {name: (layers, heads, t) for name in ("evicted_at", "threshold")}
        shapes["snapshots"] = (layers, heads, s, t)
        if self.compared:
            shapes["regret"] = (layers, self.n_heads, t)
            shapes |= {name: (layers, heads, p) for name in ("ideal_recall", "ideal_cosine", "ideal_mass")}
        if self.selected.size:
            shapes |= {"selected": (layers, heads, t), "selected_recall": (layers, heads, t)}
            shapes["selected_mass"] = (layers, self.n_heads, t)
        if self.protected.size:
            shapes["protected"] = (t,)
        if self.drift.size:
            shapes["drift"] = (layers, len(self.drift_steps))
        if self.prefetch_hits.size:
            shapes["prefetch_hits"] = (layers,)
        if self.gated_at.size:
            shapes["gated_at"] = (layers, t)
        whole = {"token_ids", "groups", "budgets", "n_sink", "recent", "evicted_at", "gated_at"}
        kinds = {name: "iu" if name in whole else "b" if name == "protected" else "f" for name in shapes}
        found = {name: getattr(self, name) for name in shapes}
        wrong = [name for name, shape in shapes.items() if found[name].shape != shape]
        wrong += [name for name, kind in kinds.items() if found[name].dtype.kind not in kind]
        if not (isinstance(self.n_prompt, int) and 1 <= self.n_prompt <= t):
            wrong.append("n_prompt")
        if not wrong and not (self.evicted_at.min() >= 0 and self.evicted_at.max() <= t):
            wrong.append("evicted_at")
        if wrong or not len(self.texts) == len(self.tokens) == len(self.classes) == t:
            raise ValueError(f"{wrong or 'the tokens'} do not fit the trace")

    def with_notes(self, *notes: str) -> Trace:
        return replace(self, notes=(*self.notes, *notes))

    def save(self, path: str | Path) -> None:
        """Writes the trace whole or not at all. Raises OSError where the folder cannot be written."""
        write_whole(Path(path), self.to_bytes())

    def to_bytes(self, about: str = "") -> bytes:
        """The trace as a sealed .npz file, which names `about` as what it is of."""
        arrays: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                arrays[item.name] = _compact(item.name, value)
            else:
                plain[item.name] = asdict(value) if isinstance(value, Provenance) else value
        meta = json.dumps({"format": FORMAT, **plain}, ensure_ascii=False)
        return sealed({"meta": np.frombuffer(meta.encode("utf-8", "surrogatepass"), np.uint8), **arrays}, about)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Reads a saved trace. Raises ValueError for a file that is no trace, is damaged, or is of another format."""
        try:
            return cls.from_bytes(read_regular(Path(path)))
        except FileNotFoundError:
            raise ValueError(f"there is no trace at {path}") from None
        except OSError as error:
            raise ValueError(f"cannot read a trace at {path} ({error.strerror}): name its .npz file") from None

    @classmethod
    def from_bytes(cls, data: bytes, about: str | None = None) -> Trace:
        """What `to_bytes` gave. Raises ValueError for bytes that were changed, or are of something other than `about`."""
        try:
            stored = opened(data, about)
            meta = dict(json.loads(stored.pop("meta").tobytes().decode("utf-8", "surrogatepass")))
            arrays: dict[str, Any] = {name: _widen(value) for name, value in stored.items()}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError("this is not a SparseLens trace, or it is damaged: run the spec again") from error
        if meta.pop("format", None) != FORMAT:
            raise ValueError(f"this trace is of another format than {FORMAT}: run the spec again")
        try:
            source = meta.pop("provenance")
            provenance = Provenance(**{**source, "backends": tuple(source["backends"])})
            trace = cls(provenance=provenance, **{**meta, "notes": tuple(meta["notes"])}, **arrays)
            trace._check_shapes()
            return trace
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError("this is not a SparseLens trace, or it is damaged: run the spec again") from error


_HALF = {"snapshots", "regret", "ideal_recall", "ideal_cosine", "ideal_mass"}


def _compact(name: str, value: np.ndarray) -> np.ndarray:
    """Drawn-only arrays are stored in half precision (1 part in 2,000); what metrics are computed from is not.

    Scores too large for it (a sink's, of a long text) stay as they are.
    """
    fits = name in _HALF and not (np.abs(value) > np.finfo(np.float16).max).any()
    return value.astype(np.float16) if fits else value


def _widen(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == np.float16 else value
