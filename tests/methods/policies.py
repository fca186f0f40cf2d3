"""Policies trained on a tiny model, one a setting, and a training that is cancelled."""

from __future__ import annotations

import functools
import itertools

import torch

from sparsity_core.methods.weights.prunenet.policy import Policy
from sparsity_core.methods.weights.prunenet.training import train_policy
from tests import tiny

VARIANTS = ("corrected", "official")


@functools.cache
def trained(variant: str = "corrected", seed: int = 0, episodes: int = 3) -> Policy:
    return train_policy(tiny.model(), variant=variant, seed=seed, episodes=episodes)


def equal(a: Policy, b: Policy) -> bool:
    return torch.equal(a.parameters, b.parameters) and torch.equal(a.kept, b.kept) and a.recipe == b.recipe


class Cancelled(Exception):
    pass


def cancelling(after: int):
    calls = itertools.count(1)

    def progress(share: float, doing: str) -> None:
        if next(calls) == after:
            raise Cancelled

    return progress
