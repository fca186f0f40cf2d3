"""What is not a number ends a run with its position; no figure stands for a part of the text."""

from __future__ import annotations

import pytest
import torch

from sparsity_core import Pipeline, generate, methods, run
from sparsity_core.models import blocks_perplexity
from sparsity_core.models.loading import wrap
from sparsity_core.models.model import Model
from sparsity_core.models.numbers import NotANumber, check_rows
from tests import tiny

TEXT = "The 12 cats sat on Zoe." * 4  # the first Z is the token at 19
PIPELINES = [
    None,
    Pipeline(eviction=methods.Random(budget=8)),
    Pipeline(eviction=methods.SnapKV(budget=8, observation_window=4)),
    Pipeline(eviction=methods.H2O(budget=8)),
    Pipeline(eviction=methods.TOVA(budget=8)),
    Pipeline(decode=methods.get("quest")()),
]


def damaged(part: str = "embedding", value: float = float("nan")) -> Model:
    model = wrap(tiny.transformer("llama", torch.float32), tiny.tokenizer(), "damaged")
    if part == "embedding":
        model.hf.model.embed_tokens.weight[tiny.tokenizer()("Z")["input_ids"][0]] = value
    elif part == "head":
        model.hf.lm_head.weight[7] = value
    else:
        model.hf.model.layers[1].mlp.up_proj.weight[3, 3] = value
    return model


@pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
@pytest.mark.parametrize("against_dense", [True, False])
def test_a_run_says_which_position_is_not_a_number(pipeline, against_dense):
    with pytest.raises(ValueError, match="position 19 is not a number: weights of damaged are damaged"):
        run(damaged(), TEXT, pipeline, against_dense=against_dense)


@pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
def test_a_generation_says_so_too(pipeline):
    with pytest.raises(ValueError, match="position 19 is not a number"):
        generate(damaged(), TEXT, pipeline, max_new_tokens=4)


@pytest.mark.parametrize("part", ["layer", "head"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damage_in_a_layer_or_in_the_head(part, value):
    for pipeline in PIPELINES[:4]:
        with pytest.raises(ValueError, match="position 0 is not a number"):
            run(damaged(part, value), TEXT, pipeline)


def test_perplexity_is_not_computed_over_a_part():
    # The token at 19 is the fourth of the second block.
    with pytest.raises(ValueError, match="position 3 is not a number"):
        blocks_perplexity(damaged(), TEXT, block=16)


def test_the_first_row_is_told():
    check_rows(torch.ones(2, 3, 5, 4))
    x = torch.ones(2, 3, 5, 4)
    x[1, 2, 3, 0] = float("-inf")
    x[0, 0, 4, 1] = float("nan")
    with pytest.raises(NotANumber, match="position 3 is not a number"):
        check_rows(torch.ones(1, 5, 4), x)
