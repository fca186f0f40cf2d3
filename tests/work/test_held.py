"""What a process keeps in memory is bounded, and can be said."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from sparsity_core import Pipeline, methods
from sparsity_core.inference.stages import _pruned, pruned, release_pruned
from sparsity_core.work.held import Recent, held
from tests import tiny


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 120)), max_size=30))
def test_recent_values_fit_their_bytes_or_are_one(values):
    recent: Recent[bytes] = Recent(100, len)
    for key, size in values:
        assert recent.keep(key, bytes(size)) == recent.get(key) == bytes(size)
        assert recent.n_bytes() <= 100 or recent.n_bytes() == size


def test_what_was_looked_at_last_stays():
    recent: Recent[bytes] = Recent(3, len)
    for key in "abc":
        recent.keep(key, b"x")
    assert recent.get("a") == b"x"
    recent.keep("d", b"x")
    assert [key for key in "abcd" if recent.get(key)] == ["a", "c", "d"]


def test_one_pruned_copy_is_held_and_goes_with_its_model():
    release_pruned()
    model, other = tiny.model(), tiny.model("qwen2")
    first = pruned(model, Pipeline(weights=methods.RowNorm(ratio=0.25)))
    assert pruned(model, Pipeline(weights=methods.RowNorm(ratio=0.25))) is first
    shared, own = model.n_bytes(), first.n_bytes(beside=model)
    assert 0 < own < shared and held()["a pruned copy of it"] == own
    seen = []

    def told(share: float, doing: str) -> None:
        seen.append(len(_pruned))

    pruned(other, Pipeline(weights=methods.RowNorm(ratio=0.5)), told)
    assert len(_pruned) == 1 and set(seen) <= {0}  # none beside the one that is made
    release_pruned()
    gc.collect()
    assert "a pruned copy of it" not in held()
