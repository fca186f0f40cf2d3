"""Weights as int8 numbers, a scale for each row: torchao's weight-only quantisation."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace

import torch

from sparsity_core.models.compat import quiet
from sparsity_core.models.model import Model
from sparsity_core.models.refusals import ModelError

INT8 = "int8"


def in_int8(model: Model) -> Model:
    """The model with every linear layer's weights as int8 but the output head's, which embeddings may share.

    Changes the transformers model inside. Raises ModelError where torchao is not installed, and where there are no linear
    layers.
    """
    logger = logging.getLogger("torchao")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells which kernels for other machines it cannot load
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise ModelError("int8 weights need torchao: run `pip install sparselens[int8]`") from None
    finally:
        logger.setLevel(level)
    head = model.hf.get_output_embeddings()
    linear = {module for module in model.hf.modules() if isinstance(module, torch.nn.Linear) and module is not head}
    if not linear:
        raise ModelError(f"{model.name} ({model.arch.family}) has no plain linear layers: choose another number format")
    with quiet():
        quantize_(model.hf, Int8WeightOnlyConfig(), filter_fn=lambda module, _: module in linear)
    model.hf.requires_grad_(False)
    fingerprint = hashlib.sha256(f"{model.fingerprint} {INT8}".encode()).hexdigest()[:12]
    return replace(model, fingerprint=fingerprint, weights_in=INT8)
