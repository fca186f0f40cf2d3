"""Settings that must stand before the first import of torch, transformers or triton, and the embedded model."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
# One folder for all sessions: converting the embedded model takes 30 s, and is done once a machine.
os.environ.setdefault("SPARSELENS_CACHE", str(Path(tempfile.gettempdir()) / "sparselens-test-cache"))

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Tensors here are tiny: on a busy machine a second thread makes each operation wait 3 ms at a barrier, 20 times the work.
torch.set_num_threads(1)

settings.register_profile("sparselens", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("sparselens")

if TYPE_CHECKING:
    from sparsity_core.models.model import Model


@pytest.fixture(scope="session")
def smollm() -> Model:
    """The embedded model in float32 on the CPU, whatever else the machine has."""
    from sparsity_core.models.loading import load
    from sparsity_core.models.refusals import ModelError

    try:
        model = load(device="cpu", dtype="float32")
    except ModelError as error:
        warnings.warn(f"the embedded model is not tested: {error}", stacklevel=1)  # a skip alone is easily overlooked
        pytest.skip(str(error))
    return model
