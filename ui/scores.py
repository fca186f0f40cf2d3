"""Which tokens' scores are drawn, and how finely."""

from __future__ import annotations

import numpy as np
import streamlit as st

from sparsity_core.kinds import Pipeline
from sparsity_core.record import Trace, key_of
from sparsity_core.work import Job
from ui import work
from ui.session import Shown
from ui.view import View

_MOST_LINES = 6


def choose_tokens(trace: Trace, at: View) -> list[int]:
    """The tokens to draw, chosen on the page: at first the followed token and some that tell a story."""
    suggested = _suggest(trace, at)
    key = f"tokens_{trace.provenance.prompt_hash}_{at.layer}_{at.token}"
    return st.multiselect(
        "Tokens",
        range(trace.n_tokens),
        default=suggested,
        format_func=lambda i: f"{i} {trace.tokens[i]}",
        max_selections=_MOST_LINES,
        key=key,
        help="at most six; the token chosen above is the first",
    )


def _suggest(trace: Trace, at: View) -> list[int]:
    """The followed token, the key that held out longest before it fell, a late survivor, and the first token."""
    head = at.head if isinstance(at.head, int) else 0
    evicted_at = trace.evicted_at[at.layer, head]
    lifetime = np.where(evicted_at < trace.n_tokens, evicted_at - np.arange(trace.n_tokens), -1)
    survivors = np.flatnonzero(evicted_at >= trace.n_tokens)
    picks = [at.token, 0, int(lifetime.argmax()), *survivors[len(survivors) // 2 : len(survivors) // 2 + 1].tolist()]
    return list(dict.fromkeys(int(p) for p in picks))[:4]


def refilled_scores(item: Shown, layer: int) -> tuple[np.ndarray, np.ndarray] | None:
    """This layer's scores at every step, once asked for; the trace's own snapshots serve until then."""
    key = f"refill {key_of(item.spec)} {layer}"
    filled = st.session_state.setdefault("refilled", {})
    if key in filled:
        return filled[key]

    def compute(progress):  # type: ignore[no-untyped-def]
        from sparsity_core.inference import refill
        from sparsity_core.models import load

        progress(0.1, f"loading {item.spec.model}")
        model = load(item.spec.model, device=item.spec.device, dtype=item.spec.dtype)
        progress(0.3, f"running up to layer {layer}")
        return refill(model, item.trace, Pipeline.parse(item.spec.pipeline), layer)

    def keep(jobs: dict[str, Job]) -> None:
        filled.update({k: job.result for k, job in jobs.items()})
        while len(filled) > 2:  # a layer of A and one of B: a long text's scores are large
            del filled[next(iter(filled))]

    n = len(item.trace.snapshot_steps)
    offered = n < item.trace.n_tokens and not work.pending(key)
    if offered and st.button(
        f"{item.letter}: every step of this layer",
        key=f"button_{key}",
        icon=":material/timeline:",
        help=f"the trace keeps the scores at {n} steps; this runs the layers up to {layer} again",
    ):
        work.submit(key, {key: compute})
        st.rerun()
    work.watch(key, keep)
    return None
