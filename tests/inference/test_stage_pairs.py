"""Every set of stages runs, in `run` and in `generate`, or is refused with the reason before anything runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparsity_core import Pipeline, generate, run
from tests import tiny
from tests.methods.gates import gate_file

IDS = tiny.ids(60)
EXAMPLES = {
    "weights": "weights=row_norm(ratio=0.25)",
    "gate": "gate=dcp",
    "prefill": "prefill=assa(block=16, window=5)",
    "eviction": "eviction=a2sf(budget=16)",
    "decode": "decode=sparq(tokens=0.25, dense_layers=0, channels=4)",
}
OTHERS = [
    "weights=slicegpt(ratio=0.25) eviction=h2o(budget=16)",
    "weights=svd_llm(ratio=0.25) prefill=strided(stride=5)",
    "weights=head_pruning(ratio=0.25) prefill=minference(vertical=5, slash=5, probes=8) eviction=tova(budget=16)",
    "prefill=minference(vertical=5, slash=5, probes=8) eviction=snapkv(budget=16, observation_window=4)",
    "prefill=lsh(buckets=8, rounds=1, window=3) eviction=random(budget=16)",
    "prefill=assa(block=16, window=5) eviction=snapkv(budget=16, observation_window=4, memory=mean)",
    "gate=dcp prefill=strided(stride=5) eviction=a2sf(budget=16, memory=mean)",
    "prefill=bigbird(block=8, window_blocks=1) decode=double_sparsity(tokens=0.25, channels=4, dense_layers=0)",
    "weights=row_norm(ratio=0.25) gate=dcp prefill=assa(block=16, window=5) eviction=a2sf(budget=16) decode=think(recent=4)",
    "eviction=streaming_llm(budget=16, re_rotate=True) decode=double_sparsity(tokens=0.5, channels=4, dense_layers=0)",
]
SETS = [" ".join(EXAMPLES[s] for s in chosen) for n in range(2, 6) for chosen in itertools.combinations(EXAMPLES, n)]
REFUSED = {
    "gate=dcp decode=quest": "quest's pages keep every key",
    "eviction=h2o decode=quest": "quest's pages keep every key",
    "eviction=h2o(budget=16, memory=mean) decode=sparq": "sparq chooses .* queries of h2o read a memory",
    "weights=slicegpt(ratio=0.25) gate=dcp": "changes the residual stream that the gate reads",
}


@pytest.mark.parametrize("pipeline", [*SETS, *OTHERS], ids=str)
def test_stages_run_together_and_what_they_take_adds_up(pipeline, tmp_path):
    model = tiny.model()
    pipeline = pipeline.replace("gate=dcp", f"gate=dcp(adapter={str(gate_file(tmp_path, model))!r})")
    asked = {"max_new_tokens": 6, "stop_at_eos": False}
    for trace in (run(model, IDS, pipeline), generate(model, IDS, pipeline, **asked).trace):
        assert np.isfinite(trace.nll[:-1]).all() != (
            "minference" in pipeline
        )  # which looked at the text it would judge
        taking = [text for text in trace.stages if not text.startswith("weights=")]
        assert len(taking) == len([m for m in Pipeline.parse(pipeline).methods if m != "weights"])
        pairs = trace.n_kv_heads * trace.n_tokens * (trace.n_tokens + 1) // 2
        for layer in range(trace.n_layers):
            lower = np.tril(np.ones((trace.n_tokens, trace.n_tokens), bool))
            found = trace.removed_by(layer)[:, lower]
            assert np.bincount(found.ravel(), minlength=1 + len(trace.stages)).sum() == pairs
            assert (found == 0).any()


@pytest.mark.parametrize(("pipeline", "reason"), REFUSED.items(), ids=str)
def test_what_cannot_run_together_says_why_before_anything_runs(pipeline, reason):
    with pytest.raises(ValueError, match=reason):
        Pipeline.parse(pipeline).check(generates=False)
    with pytest.raises(ValueError, match=reason):
        run(tiny.model(), IDS, pipeline)
    with pytest.raises(ValueError, match=reason):
        generate(tiny.model(), IDS, pipeline, max_new_tokens=2)
