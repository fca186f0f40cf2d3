"""Every name of transformers that is called here although its documentation does not promise it.

`tests/models/test_compat.py` says what each must do, so that a new version of transformers fails there and not in a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars and advice, which would mix with ours."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def is_causal_lm(config: Any) -> bool:
    """Whether AutoModelForCausalLM has a class for this configuration."""
    from transformers import AutoModelForCausalLM

    return type(config) in AutoModelForCausalLM._model_mapping


def values_of(config: Any, key: str) -> set[Any]:
    """What a configuration gives for a key: one value, or those of its layers where they differ; None where it has none."""
    try:
        return {getattr(config, key, None)}
    except RuntimeError:  # what a configuration raises whose layers differ in the key
        return {getattr(layer, key, None) for layer in config.per_layer_config}


def quantisers() -> frozenset[str]:
    """What `quant_method` may be in a configuration, for transformers to undo or run the quantisation."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return frozenset({*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"})
