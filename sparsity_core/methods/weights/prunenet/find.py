"""The policy that serves a model: a file, the shipped one, or one trained on first use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError

from sparsity_core.methods.weights.prunenet.policy import Policy
from sparsity_core.methods.weights.prunenet.training import train_policy
from sparsity_core.models import EMBEDDED, Model
from sparsity_core.work import ASSETS, Progress, cache_dir, make_room, read_checkpoint, silent, used

SHIPPED = ASSETS / "policies"


def find_policy(model: Model, variant: str, name: str = "auto", progress: Progress = silent) -> Policy:
    """The policy of a file; or for "auto" the one that ships for this model, or was trained before, or is trained now.

    One that is trained here (ratio 0.25, seed 0, 20 episodes) is kept in the user's cache, and so is an unfinished training.
    """
    if name != "auto":
        return Policy.load(os.path.expanduser(name))
    shipped = SHIPPED / f"{EMBEDDED}-{variant}.safetensors"
    if shipped.exists():
        policy = Policy.load(shipped)
        # Its fingerprint is of float32 weights; the embedded model is the same in any other dtype.
        rounded = model.name == EMBEDDED and model.dtype != torch.float32
        if rounded or policy.recipe["fingerprint"] == model.fingerprint:
            return policy
    own = cache_dir() / "policies" / f"{model.fingerprint}-{variant}.safetensors"
    with contextlib.suppress(ValueError):  # absent or damaged: trained again
        policy = Policy.load(own)
        used(own)
        return policy
    checkpoint: Path | None = own.with_suffix(".part")
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            read_checkpoint(own.with_suffix(".part"))
    except OSError:
        checkpoint = None
    except SafetensorError:  # the cache is ours, so nobody is asked
        own.with_suffix(".part").unlink(missing_ok=True)
    policy = train_policy(model, variant=variant, progress=progress, checkpoint=checkpoint)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the training again, no more
        policy.save(own)
        used(own)
        make_room()
        own.with_suffix(".part").unlink(missing_ok=True)
    return policy
