"""Where each family keeps its parts."""

from __future__ import annotations

from typing import Any

import torch

from sparsity_core.models.refusals import ModelError
from sparsity_core.models.seam import backbone


def decoder_layers(hf: Any, n_layers: int) -> torch.nn.ModuleList:
    """The decoder's layers, whatever the family calls them."""
    for module in backbone(hf).modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers:
            return module
    raise ModelError("the model has no list of decoder layers that could be pruned")
