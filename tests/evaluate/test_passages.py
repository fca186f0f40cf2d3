"""The losses of passages, the units of a paired test."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_core import run
from sparsity_core.evaluate import passage_losses
from tests import tiny

TEXT = "a few words of a text that goes on for some time, and then on and on again. " * 8


def test_a_passages_loss_is_that_of_its_own_run_over_its_later_half() -> None:
    model = tiny.model("llama")
    found = passage_losses(model, TEXT, "eviction=h2o(budget=6)", passages=3, length=16)
    ids = model.encode_all(TEXT)
    for at, loss in enumerate(found):
        nll = run(model, ids[16 * at : 16 * at + 16], "eviction=h2o(budget=6)", against_dense=False).nll
        np.testing.assert_allclose(loss, nll[8:15].mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("asked", "pipeline", "sentence"),
    [
        ({"passages": 10**6}, None, "the text has .* tokens"),
        ({"length": 2}, None, "at least 4 tokens"),
        ({"passages": 2, "length": 16}, "prefill=minference()", "looks ahead"),
    ],
)
def test_passages_that_cannot_be_are_a_sentence(asked: dict, pipeline: str | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        passage_losses(tiny.model("llama"), TEXT, pipeline, **asked)
