"""The numbers of each run at a glance, and what was computed how."""

from __future__ import annotations

import numpy as np
import streamlit as st

from ui.literal import code, literal
from ui.session import Shown
from viz.cost import label


def summary(shown: list[Shown]) -> None:
    """A row of figures for each pipeline."""
    for item in shown:
        trace = item.trace
        st.markdown((f"**{item.letter}** · " if len(shown) > 1 else "") + code(label(trace)))
        columns = st.columns(6)
        columns[0].metric("Tokens", f"{trace.n_prompt} + {trace.n_tokens - trace.n_prompt}", help="prompt + generated")
        columns[1].metric(
            "Perplexity",
            f"{trace.perplexity:.2f}",
            f"{trace.perplexity - trace.dense_perplexity:+.2f} to dense" if trace.compared else None,
            delta_color="inverse",
            help="of this text under the pipeline: exp of the mean −log p, no token counted before the second",
        )
        columns[2].metric(
            "KV cache",
            _bytes(trace.kv_bytes),
            f"{trace.kv_bytes / max(1, trace.kv_bytes_dense):.0%} of dense",
            delta_color="off",
            delta_arrow="off",
            help="bytes that the keys and values of every layer hold at the end",
        )
        columns[3].metric(
            "Keys visible", f"{trace.density():.0%}", help="share of the causal (query, key) pairs that stay"
        )
        if trace.compared:
            columns[4].metric("Regret", f"{trace.regret.mean():.1%}", help="dense attention that went to evicted keys")
            columns[5].metric(
                "Same top token",
                f"{np.nanmean(trace.top1_agrees):.0%}",
                help="positions where dense and pruned agree on the next token",
            )
        if trace.continuation:
            st.caption("The model went on:")
            st.text(trace.continuation)  # not st.code, whose highlighter the browser would load before any chart
        for note in trace.notes:
            st.info(note)
    made = shown[0].trace.provenance
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in made.seconds.items())
    st.caption(
        f"{literal(made.model)} · weights {made.fingerprint} · {made.dtype} on {made.device} · "
        f"{', '.join(made.backends)} kernels · {seconds}, computed when this trace was made"
    )


def _bytes(n: int) -> str:
    return f"{n / 2**20:.1f} MiB" if n >= 2**20 else f"{n / 2**10:.0f} KiB"
