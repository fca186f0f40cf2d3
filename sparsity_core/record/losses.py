"""What a run cost against the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from sparsity_core.record.part import Axes, Part


@dataclass(frozen=True, eq=False)
class Losses(Part):
    """At each token, the loss of the model's prediction of the next one."""

    nll: Annotated[np.ndarray, Axes("float", "key")]  # −log p of the next token; nan on the last
    dense_nll: Annotated[np.ndarray, Axes("float", "key")]  # nan where the run was not compared with the dense model
    kl_to_dense: Annotated[np.ndarray, Axes("float", "key")]  # nats; nan where not compared
    top1_agrees: Annotated[
        np.ndarray, Axes("float", "key")
    ]  # 1 where both would say the same next token; nan where not compared


@dataclass(frozen=True, eq=False)
class Comparison(Part):
    """What the dense model's own attention says of the keys that were dropped, at P probed queries."""

    regret: Annotated[
        np.ndarray, Axes("float", "layer", "head", "key")
    ]  # dense attention on keys already evicted, per query
    probe_steps: Annotated[
        np.ndarray, Axes("int", "probe")
    ]  # queries at which the kept set is compared with the ideal one
    ideal_recall: Annotated[
        np.ndarray, Axes("float", "layer", "kv_head", "probe")
    ]  # share of the dense top keys that is kept
    ideal_cosine: Annotated[
        np.ndarray, Axes("float", "layer", "kv_head", "probe")
    ]  # of both masks, weighted by dense attention
    ideal_mass: Annotated[
        np.ndarray, Axes("float", "layer", "kv_head", "probe")
    ]  # dense attention that the ideal set retains
