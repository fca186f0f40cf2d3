"""What ships about the embedded model's weights: the slider of the Spectra page answers from it without the model."""

from __future__ import annotations

import pytest

from sparsity_core import studies
from sparsity_core.kinds import get, names
from sparsity_core.methods.weights.neurons import NeuronMethod
from sparsity_core.models import EMBEDDED

DTYPE = "float32"
BY_DEFAULT = [studies.at_ratio(get(name)(), studies.RATIO) for name in names("weights")]
RANKING = [method for method in BY_DEFAULT if isinstance(method, NeuronMethod)]


@pytest.mark.parametrize("method", RANKING, ids=str)
def test_every_method_that_ranks_neurons_ships_its_ranking(method):
    uncut = studies.bundled_uncut(EMBEDDED, DTYPE)
    assert uncut is not None
    ranked = studies.find_ranked(uncut.fingerprint, DTYPE, method)
    assert ranked is not None
    assert studies.kept_neurons(ranked.importance[0], method).sum() == method.n_kept(ranked.importance.shape[1])
