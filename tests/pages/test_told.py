"""Sentences with numbers in them: each number is measured, or the sentence says that it was not."""

from __future__ import annotations

import numpy as np

from tests import traces
from ui.channels import tell_fetched
from ui.tokens import tell_mass


def test_the_mass_that_was_read_is_measured_or_said_not_to_be() -> None:
    mass = np.full((2, 4, 8), np.nan, np.float32)
    unknown = traces.trace(selected=np.ones((2, 2, 8), np.float32), selected_mass=mass)
    assert "was not measured here" in tell_mass(unknown) and "%" not in tell_mass(unknown)
    known = traces.trace(selected=unknown.selected, selected_mass=np.where(np.arange(8) > 5, 0.25, mass))
    assert tell_mass(known) == "In the layers that choose, what was read held 25% of the exact attention."


def test_of_nothing_fetched_no_share_came_late() -> None:
    assert tell_fetched(traces.trace()) == "Nothing was fetched from the host's memory."
    assert tell_fetched(traces.trace(bytes_ahead=3 * 2**20, bytes_late=2**20)).startswith("4.0 MiB were fetched")
    assert "25% of it only when" in tell_fetched(traces.trace(bytes_ahead=3 * 2**20, bytes_late=2**20))
