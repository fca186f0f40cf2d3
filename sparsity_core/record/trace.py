"""The record of one run: what every table, figure and metric reads. It never refers to a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from sparsity_core.kinds import class_named, spelled_stages
from sparsity_core.record.eviction import EvictionRecord
from sparsity_core.record.gate import GateRecord
from sparsity_core.record.kept import kept_fields
from sparsity_core.record.kept_files import read_kept
from sparsity_core.record.losses import Comparison, Losses
from sparsity_core.record.notebook import notebook_table
from sparsity_core.record.offload import OffloadRecord
from sparsity_core.record.part import Axes, Part
from sparsity_core.record.portable import facts_of, page
from sparsity_core.record.prefill import PrefillRecord
from sparsity_core.record.provenance import Provenance
from sparsity_core.record.reading import DriftRecord, ReadingRecord
from sparsity_core.record.removal import removed_rows, unseen
from sparsity_core.record.sizes import SizeRecord
from sparsity_core.record.text import TextRecord
from sparsity_core.record.thinning import ThinningRecord
from sparsity_core.work import opened, read_regular, sealed, write_whole

FORMAT = 1  # raised when a stored trace can no longer be read as it was meant


class _Of:
    """A field of one of the trace's parts, by its own name; `empty` where the trace does not have the part."""

    def __init__(self, part: str, empty: Any = None) -> None:
        self.part, self.empty = part, empty

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, trace: Any, owner: type) -> Any:
        if trace is None:
            return self
        part = getattr(trace, self.part)
        return self.empty if part is None else getattr(part, self.name)


_NONE = np.zeros((0, 0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Trace(Part):
    """What one pipeline did to one text. L layers, H query heads, Hkv KV heads, T tokens.

    A trace is its parts: what every run has, and for each stage that ran that stage's own record. `Trace.of(…)` makes one
    from the parts' fields by name, and `replaced(…)` another that differs in some.

    Of a key that is dropped, `…_at` is the first query that no longer sees it, `…_in` the step in which that was decided, and
    `…_by` who decided it.
    """

    provenance: Provenance
    text: TextRecord
    n_heads: int
    evicted_at: Annotated[
        np.ndarray, Axes("int", "layer", "kv_head", "key")
    ]  # first query that no longer sees the key; T: never
    losses: Losses
    eviction: EvictionRecord
    # Held by the cache at the end: realised by generate, whose heads are all as wide as the one that holds most; counted by run,
    # key by key.
    kv_bytes: int  # 0, as the next, where it is not known
    kv_bytes_dense: int
    notes: tuple[str, ...] = ()
    protected: np.ndarray = field(
        default_factory=lambda: np.zeros(0, bool)
    )  # bool [T]: kept by the user's rules; or empty
    comparison: Comparison | None = None  # with the dense model's attention
    gate: GateRecord | None = None
    prefill: PrefillRecord | None = None
    reading: ReadingRecord | None = None
    drift_record: DriftRecord | None = None
    thinning: ThinningRecord | None = None
    offload: OffloadRecord | None = None
    sizes: SizeRecord | None = None

    token_ids, texts, tokens, groups = _Of("text"), _Of("text"), _Of("text"), _Of("text")
    classes, n_prompt, continuation = _Of("text"), _Of("text"), _Of("text")
    nll, dense_nll, kl_to_dense, top1_agrees = _Of("losses"), _Of("losses"), _Of("losses"), _Of("losses")
    n_prefill, budgets, n_sink, recent = _Of("eviction"), _Of("eviction"), _Of("eviction"), _Of("eviction")
    threshold, snapshot_steps, snapshots = _Of("eviction"), _Of("eviction"), _Of("eviction")
    regret, ideal_recall = _Of("comparison", _NONE), _Of("comparison", _NONE)
    ideal_cosine, ideal_mass = _Of("comparison", _NONE), _Of("comparison", _NONE)
    probe_steps = _Of("comparison", np.zeros(0, np.int32))
    gated_at = _Of("gate", np.zeros((0, 0), np.int32))
    selected, selected_mass = _Of("reading", _NONE), _Of("reading", _NONE)
    selected_recall = _Of("reading", _NONE)
    drift_steps, drift = _Of("drift_record", np.zeros(0, np.int32)), _Of("drift_record", np.zeros((0, 0), np.float32))
    prefetch_hits = _Of("offload", np.zeros(0, np.float32))
    bytes_ahead, bytes_late = _Of("offload", 0), _Of("offload", 0)

    @classmethod
    def of(cls, **values: Any) -> Trace:
        """A trace from its own fields and those of its parts, by name; a part that is not given, or whose first array is
        empty, is left out.

        Raises TypeError for a name that no part has, and for a part given by half.
        """
        own: dict[str, Any] = {}
        for name, kind in _PARTS.items():
            found = {f.name: values.pop(f.name) for f in fields(kind) if f.name in values}
            arrays = [value for value in found.values() if isinstance(value, np.ndarray)]
            if found and (not arrays or arrays[0].size):
                own[name] = kind(**found)
        return cls(**own, **values)

    @classmethod
    def from_kept(cls, token_ids: Sequence[int], kept: Any, **about: Any) -> Trace:
        """A trace of which keys a run kept that was made elsewhere, by kvpress, a server or a script of one's own.

        `token_ids` are all T tokens of the text. `kept` tells for each layer and KV head either which keys are kept in the
        end, as lists of places [layer][kv_head][…] or as bool [layer, kv_head, T], or which keys each query reads, as bool
        [layer, kv_head, T, T]: an eviction where no key returns, and a choice of the decode stage otherwise.

        `about` may have `tokenizer` (of transformers or tokenizers; without one, and without the `texts` of the tokens, a
        token is shown as its id), `n_prompt` (T), `dropped_at` (the first query that no longer reads what is dropped: a
        number, or int [layer, kv_head, T]; the last query where it is not given), `n_heads` (query heads; as many as KV
        heads), `method` ("imported") and `model` (names that are shown). What was not measured is nan.

        Raises ValueError, naming layer and head, for places outside the text, twice the same, or of no fit.
        """
        made = cls.of(**kept_fields(token_ids, kept, **about))
        made._check()
        return made

    @classmethod
    def from_kept_file(cls, path: str | Path, tokenizer: Any = None) -> Trace:
        """`from_kept` of a JSON or .npz file that holds its arguments by name. Raises ValueError."""
        return cls.from_kept(**read_kept(path), tokenizer=tokenizer)

    def flat(self) -> dict[str, Any]:
        """Every field of the trace and of its parts by name, as `of` takes them."""
        found: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in _PARTS:
                found |= {} if value is None else {f.name: getattr(value, f.name) for f in fields(value)}
            else:
                found[item.name] = value
        return found

    def replaced(self, **changes: Any) -> Trace:
        """The trace with other values for some fields, of its own or of its parts."""
        return Trace.of(**{**self.flat(), **changes})

    @property
    def stages(self) -> list[str]:
        """The stages that ran, in order, as the pipeline's text spells them, such as `eviction=h2o(budget=64)`."""
        return [f"{stage}={call}" for stage, call in spelled_stages(self.provenance.pipeline)]

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def n_at_once(self) -> int:
        """The leading tokens that were read at once: the prompt, or what of it stands before a question that was not known."""
        return self.text.n_at_once or self.n_prompt

    @property
    def n_bytes(self) -> int:
        """What its arrays take in memory."""
        return sum(v.nbytes for f in fields(self) if isinstance(v := getattr(self, f.name), np.ndarray))

    @property
    def n_layers(self) -> int:
        return int(self.evicted_at.shape[0])

    @property
    def n_kv_heads(self) -> int:
        return int(self.evicted_at.shape[1])

    @property
    def compared(self) -> bool:
        """Whether the dense model was run beside this pipeline."""
        return self.comparison is not None

    @property
    def perplexity(self) -> float:
        """exp of the mean −log p over every token but the first."""
        known = self.nll[~np.isnan(self.nll)]
        return float(np.exp(known.mean())) if known.size else float("nan")

    @property
    def dense_perplexity(self) -> float:
        known = self.dense_nll[~np.isnan(self.dense_nll)]
        return float(np.exp(known.mean())) if known.size else float("nan")

    def keep(self, layer: int) -> np.ndarray:
        """bool [kv_head, query, key]: query q may read key k: k ≤ q < evicted_at[k], and a prefill's mask shows it.

        What a decode stage chooses among these is in `removed_by`.
        """
        query, key = np.arange(self.n_tokens)[:, None], np.arange(self.n_tokens)
        kept = (key <= query) & (query < self.evicted_at[layer][:, None, :])
        return np.asarray(kept if self.prefill is None else kept & ~unseen(self, layer, 0, self.n_tokens))

    def removed_by(self, layer: int) -> np.ndarray:
        """uint8 [kv_head, query, key]: 0 where the query reads the key, else 1 + the place in `stages` of the first stage
        that removed it: gate, prefill, eviction, decode. Causal pairs only; entries after the query's own key are 0.

        A key counts as read by a KV head where any of its query heads reads it. Keys beyond a layer's own window are charged
        to no stage. Raises ValueError where a decode stage's choices were not kept, which long texts have too many of.
        """
        return removed_rows(self, layer, 0, self.n_tokens)

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
            return np.asarray(self.evicted_at.min(axis=1))
        return np.asarray(self.evicted_at.max(axis=1) if head == "last" else self.evicted_at[:, int(head)])

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

    def _check(self) -> None:
        """Raises ValueError where an array does not have the shape that its field declares."""
        sizes = {"key": len(self.text.token_ids), "head": self.n_heads}
        wrong = self.check(sizes)
        for name in _PARTS:
            part = getattr(self, name)
            wrong += [] if part is None else part.check(sizes)
        if self.protected.size and (self.protected.dtype.kind != "b" or self.protected.shape != (self.n_tokens,)):
            wrong.append("protected")
        if not wrong and not (self.evicted_at.min() >= 0 and self.evicted_at.max() <= self.n_tokens):
            wrong.append("evicted_at")
        if wrong:
            raise ValueError(f"{wrong} do not fit the trace")

    def with_notes(self, *notes: str) -> Trace:
        return self.replaced(notes=(*self.notes, *notes))

    def save(self, path: str | Path) -> None:
        """Writes the trace whole or not at all. Raises OSError where the folder cannot be written."""
        write_whole(Path(path), self.to_bytes())

    def to_html(self, path: str | Path) -> None:
        """Writes the trace as one HTML file that needs no server, no network and no other file to be looked at.

        It shows the atlas, the text, scores and losses where they were measured, and where the trace comes from. Raises
        OSError where the file cannot be written.
        """
        write_whole(Path(path), page(self))

    def _repr_html_(self) -> str:
        """How a notebook shows the trace: what ran, and what was measured."""
        about = [("model", self.provenance.model), ("pipeline", self.provenance.pipeline)]
        about.append(("tokens", f"{self.n_tokens:,}, of which the prompt has {self.n_prompt:,}"))
        about.append(("layers × KV heads", f"{self.n_layers} × {self.n_kv_heads}"))
        facts = [*about, *((name, value) for name, value, _ in facts_of(self))]
        return notebook_table(
            "Trace", facts, (*self.notes, "trace.to_html('trace.html') writes a page that shows all of it.")
        )

    def to_bytes(self, about: str = "") -> bytes:
        """The trace as a sealed .npz file, which names `about` as what it is of."""
        arrays: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for name, value in self.flat().items():
            if isinstance(value, np.ndarray):
                arrays[name] = _compact(name, value)
            else:
                plain[name] = value.to_plain() if isinstance(value, Provenance) else value
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
            provenance = Provenance.of_plain(meta.pop("provenance"))
            if arrays["budgets"].ndim == 1 and arrays["evicted_at"].ndim == 3:  # written before each head had its own
                arrays["budgets"] = np.repeat(arrays["budgets"][:, None], arrays["evicted_at"].shape[1], axis=1)
            meta |= {"notes": tuple(meta["notes"]), "classes": [class_named(name) for name in meta["classes"]]}
            trace = cls.of(provenance=provenance, **meta, **arrays)
            trace._check()
            return trace
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError("this is not a SparseLens trace, or it is damaged: run the spec again") from error


_PARTS: dict[str, type[Part]] = {
    "text": TextRecord,
    "losses": Losses,
    "eviction": EvictionRecord,
    "comparison": Comparison,
    "gate": GateRecord,
    "prefill": PrefillRecord,
    "reading": ReadingRecord,
    "drift_record": DriftRecord,
    "thinning": ThinningRecord,
    "offload": OffloadRecord,
    "sizes": SizeRecord,
}
_HALF = {"snapshots", "regret", "ideal_recall", "ideal_cosine", "ideal_mass"}


def _compact(name: str, value: np.ndarray) -> np.ndarray:
    """Drawn-only arrays are stored in half precision (1 part in 2,000); what metrics are computed from is not.

    Scores too large for it (a sink's, of a long text) stay as they are.
    """
    fits = name in _HALF and not (np.abs(value) > np.finfo(np.float16).max).any()
    return value.astype(np.float16) if fits else value


def _widen(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == np.float16 else value
