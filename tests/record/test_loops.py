"""Whether a text ends in a repeated n-gram, and where that begins."""

from __future__ import annotations

import pytest

from sparsity_core.record import loop_of


@pytest.mark.parametrize(
    ("ids", "loop"),
    [
        ([5, 6, 1, 2, 3, 1, 2, 3, 1, 2, 3], (2, 3)),
        ([5, 6, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2], (2, 3)),  # the last repetition is unfinished
        ([4, 4, 4, 4, 4, 4, 4, 4], (0, 1)),  # and not a loop of 4 4
        ([4, 4, 4, 4, 4, 4, 4], None),  # seven tokens may be a row of dots
        ([1, 2, 3, 4, 1, 2, 3, 4], None),  # twice is no loop
        ([1, 2, 1, 2, 1, 2, 1, 2, 9], None),  # it was left again
        ([3, 1, 2, 3, 1, 2, 3, 1, 2], (0, 3)),
        ([], None),
    ],
)
def test_a_loop_is_an_n_gram_that_ends_a_text_three_times_over(ids, loop):
    assert loop_of(ids) == loop


def test_how_often_and_how_long_can_be_asked_for():
    assert loop_of([1, 2, 3, 4, 1, 2, 3, 4], times=2) == (0, 4)
    assert loop_of([7, 4, 4, 4], least=3) == (1, 1)
