"""A trace as one HTML file that draws itself: no server, no network, nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import zlib
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from sparsity_core.record.removal import unseen

_MOST_SCORES = 3_000_000  # scores that a file holds; of the steps of a long trace every second, third, …
_MOST_BITS = 8 * 2**20  # bytes of what prefill and decode stages show each query, before they are packed
_PRECISION = 12  # bits of a float's fraction that are kept: 1 part in 8,192
_REMOVING = ("gate", "prefill", "eviction", "decode")


def page(trace: Any) -> bytes:
    """The file of a `Trace`, in UTF-8. Long traces hold fewer steps of scores, and say so."""
    parts = {name: files("sparsity_core.record").joinpath("page", name).read_text("utf-8") for name in _FILES}
    script = parts["page.js"] + parts["draw.js"]
    made = _told(trace)
    # In the JSON of a script element only "<" could begin anything; all else that is not ASCII is escaped as well.
    data = json.dumps(made, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    text = Template(parts["page.html"]).substitute(
        title=html.escape(made["title"]),
        style=parts["page.css"],
        script=script,
        hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=data,
    )
    return text.encode("utf-8", "replace")


_FILES = ("page.html", "page.css", "page.js", "draw.js")


def _told(trace: Any) -> dict[str, Any]:
    """What the page's script reads: plain values, and arrays by name."""
    stages = [text.partition("=")[0] for text in trace.stages]
    made, methods = trace.provenance, [text.partition("=")[2].partition("(")[0] for text in trace.stages]
    removing = [stage for stage in stages if stage in _REMOVING]
    arrays, notes, steps = _arrays(trace, removing)
    n = trace.n_tokens
    return {
        "title": f"What {' + '.join(methods)} dropped" if methods else "The dense model, which drops nothing",
        "lead": f"{made.model or 'A model'} read {trace.n_prompt:,} tokens"
        + (f" and wrote {n - trace.n_prompt:,} more" if n > trace.n_prompt else "")
        + f" under {made.pipeline}. {trace.n_layers} layers of {trace.n_kv_heads} KV heads each decide by themselves what stays "
        "in the cache.",
        "facts": facts_of(trace),
        "fields": list(made.fields.items()),
        "notes": [*trace.notes, *notes],
        "prompt": "".join(trace.texts[: trace.n_prompt]),
        "continuation": trace.continuation,
        "tokens": list(trace.tokens),
        "nPrompt": trace.n_prompt,
        "nLayers": trace.n_layers,
        "nKv": trace.n_kv_heads,
        "removing": removing,
        "nSink": trace.n_sink.tolist(),
        "recent": trace.recent.tolist(),
        "ruled": np.flatnonzero(trace.protected).tolist(),
        "steps": steps,
        "stepsTold": ""
        if len(steps) == len(trace.snapshot_steps)
        else f"{len(steps)} of {len(trace.snapshot_steps)} steps.",
        "arrays": {name: _packed(array) for name, array in arrays.items()},
    }


def facts_of(trace: Any) -> list[tuple[str, str, str]]:
    """(name, value, what it means) of what was measured."""
    found = [
        (
            "keys kept",
            f"{trace.density():.0%}",
            "share of the causal pairs of query and key that nothing dropped for good",
        )
    ]
    numbers = {
        "perplexity": (trace.perplexity, "{:.2f}", "of all tokens, under the pipeline"),
        "dense perplexity": (trace.dense_perplexity, "{:.2f}", "of all tokens, of the dense model"),
        "KL to dense, nats": (_mean(trace.kl_to_dense), "{:.3f}", "mean divergence of the next token's distribution"),
        "same top token": (
            _mean(trace.top1_agrees),
            "{:.0%}",
            "share of the tokens after which both would say the same",
        ),
        "regret": (_mean(trace.regret), "{:.1%}", "share of the dense model's attention that goes to evicted keys"),
    }
    return found + [
        (name, how.format(value), help) for name, (value, how, help) in numbers.items() if np.isfinite(value)
    ]


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _arrays(trace: Any, removing: list[str]) -> tuple[dict[str, np.ndarray], list[str], list[int]]:
    """The arrays that are drawn, what a reader should know of those left out, and the steps of the scores."""
    n, cells = trace.n_tokens, trace.n_layers * trace.n_kv_heads * trace.n_tokens
    small = np.uint16 if n < 2**16 else np.uint32
    found, notes = {"evictedAt": trace.evicted_at.astype(small), "threshold": _rounded(trace.threshold)}, []
    if trace.gated_at.size:
        found["gatedAt"] = trace.gated_at.astype(small)
    steps = trace.snapshot_steps
    if np.isfinite(trace.snapshots).any():
        every = -(-cells * len(steps) // _MOST_SCORES)
        chosen = np.arange(len(steps) - 1, -1, -every)[::-1]  # the last among them
        steps = steps[chosen]
        found["snapshots"] = _rounded(trace.snapshots[:, :, chosen])
    if np.isfinite(trace.kl_to_dense).any():
        found["kl"] = _rounded(trace.kl_to_dense)
    masks = {"prefill": ("unseen", _unseen), "decode": ("unread", _unread)}
    for stage, (name, bits) in masks.items():
        if stage in removing:
            made = bits(trace) if cells * n // 8 <= _MOST_BITS else None
            if made is None:
                notes.append(
                    f"What the {stage} stage left out of each query takes too much for one file, and is not in it."
                )
            else:
                found[name] = made
    return found, notes, steps.tolist()


def _unseen(trace: Any) -> np.ndarray | None:
    """uint8 [layer, kv_head, query, ⌈T/8⌉]: a bit for each key that the prefill stage does not show."""
    if trace.prefill is None:
        return None
    return np.stack([np.packbits(unseen(trace, layer, 0, trace.n_tokens), axis=-1) for layer in range(trace.n_layers)])


def _unread(trace: Any) -> np.ndarray | None:
    """The same of the keys that a decode stage does not read."""
    if trace.reading is None or not trace.reading.chosen.size:
        return None
    return np.asarray(~trace.reading.chosen)


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 with the last bits of each fraction at 0, which packs to half. nan and infinities stay."""
    kept = np.uint32(0xFFFFFFFF << (23 - _PRECISION) & 0xFFFFFFFF)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    half = np.uint32(1 << (22 - _PRECISION))
    near = np.where(np.isfinite(values), bits + half, bits)
    return (near & kept).view(np.float32)


def _packed(array: np.ndarray) -> dict[str, Any]:
    """Bytes in planes, the lowest of each number first, deflated: planes of like bytes pack better."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    planes = little.view(np.uint8).reshape(-1, little.itemsize).T
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(planes).tobytes())).decode()
    return {"kind": f"{little.dtype.kind}{little.itemsize}", "shape": list(array.shape), "data": data}
