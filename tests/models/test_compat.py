"""What models/compat.py calls of transformers does what is said there; a new version fails here and not in a run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import transformers

from sparsity_core.models import compat
from tests import tiny

LIBRARY = Path(compat.__file__).parents[1]


def test_a_causal_language_model_is_told_from_others():
    assert compat.is_causal_lm(tiny.CONFIGS["llama"]())
    assert not compat.is_causal_lm(transformers.ViTConfig())


def test_the_known_quantisers():
    assert {"fp8", "gptq", "awq", "bitsandbytes", "compressed-tensors"} <= compat.quantisers()


def test_values_of_a_key_in_a_configuration():
    assert compat.values_of(tiny.CONFIGS["llama"](), "hidden_size") == {64}
    assert compat.values_of(tiny.CONFIGS["llama"](), "nothing") == {None}
    config = transformers.LlamaConfig(**tiny.GROUPED, per_layer_config={1: {"num_key_value_heads": 4}})
    assert compat.values_of(config, "num_key_value_heads") == {2, 4}


def test_quiet_puts_back_what_was():
    from transformers.utils import logging

    before = logging.get_verbosity()
    with compat.quiet():
        assert logging.get_verbosity() == logging.ERROR
    assert logging.get_verbosity() == before


@pytest.mark.parametrize("room", [p for p in LIBRARY.iterdir() if p.is_dir()], ids=lambda p: p.name)
def test_private_names_of_transformers_are_used_in_compat_alone(room):
    """Private: an attribute with a leading underscore of an object that is not our own."""
    for file in room.rglob("*.py"):
        if file == Path(compat.__file__):
            continue
        tree = ast.parse(file.read_text())
        if not any(
            isinstance(n, (ast.Import, ast.ImportFrom)) and "transformers" in ast.dump(n) for n in ast.walk(tree)
        ):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                assert owner in ("self", "cls") or node.attr == "_forward_pre_hooks", (
                    f"{file.name}:{node.lineno} {node.attr}"
                )
