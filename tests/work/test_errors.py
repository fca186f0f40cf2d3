"""Whatever fails is told as a sentence."""

from __future__ import annotations

import pytest

from sparsity_core.models.refusals import ModelError
from sparsity_core.work.errors import explain, explain_exit

NO_MEMORY = "The machine ran out of memory: shorten the prompt, choose a smaller model, or device=cpu."


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("the prompt is empty: type some"), "The prompt is empty: type some."),
        (ModelError("No model. Go on?"), "No model. Go on?"),
        (MemoryError(), NO_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to"), NO_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), NO_MEMORY),
        (KeyError("x"), "The run failed (KeyError: 'x')."),
        (RuntimeError("one\ntwo"), "The run failed (RuntimeError: one)."),
        (RuntimeError(), "The run failed (RuntimeError: no message)."),
        (ValueError(), "The run failed (ValueError: no message)."),
        (RuntimeError("\n"), "The run failed (RuntimeError: no message)."),
    ],
)
def test_an_error_is_a_sentence(error, sentence):
    assert explain(error) == sentence


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (-9, "ended by the system, most likely"),
        (-11, "(signal 11, SIGSEGV)"),
        (-64, "(signal 64"),
        (3, "(exit status 3)"),
    ],
)
def test_the_end_of_a_process_is_a_sentence(status, said):
    assert said in explain_exit(status) and explain_exit(status).endswith(".")
