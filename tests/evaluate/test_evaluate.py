"""Perplexity by the convention of papers, against transformers' own loss."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch

from sparsity_core import Pipeline
from sparsity_core.cli.main import main
from sparsity_core.evaluate.perplexities import perplexity

TEXT = (
    "The clerk counted the ropes, wrote the day into a green book, and closed the office before the lamps came on. " * 6
)


def test_perplexity_is_transformers_own_loss_over_the_blocks(smollm):
    ids = smollm.tokenizer(TEXT)["input_ids"]
    block = 48
    losses = []
    for start in range(0, len(ids) - block + 1, block):
        part = torch.tensor([ids[start : start + block]])
        with torch.inference_mode():
            losses.append(float(smollm.hf(input_ids=part, labels=part).loss))
    found = perplexity(smollm, TEXT, block=block)
    assert found.blocks == len(ids) // block == len(losses) > 1
    assert found.tokens == found.blocks * (block - 1)
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert found.of_blocks == pytest.approx(losses, rel=1e-4)
    spread = statistics.stdev(losses) / math.sqrt(len(losses))
    assert found.stderr == pytest.approx(found.perplexity * spread, rel=1e-3)
    assert math.isnan(perplexity(smollm, TEXT, block=block, most_blocks=1).stderr)


def test_eviction_starts_afresh_in_each_block(smollm):
    pipeline = Pipeline.parse("eviction=local_window(budget=16)")
    short = smollm.tokenizer.decode(smollm.tokenizer(TEXT)["input_ids"][:40])
    once = perplexity(smollm, short, pipeline, block=40)
    twice = perplexity(smollm, short, pipeline, block=40, most_blocks=1)
    dense = perplexity(smollm, short, Pipeline.parse("eviction=local_window(budget=40)"), block=40)
    assert once == twice
    assert (
        once.perplexity != dense.perplexity == pytest.approx(perplexity(smollm, short, block=40).perplexity, rel=1e-5)
    )


@pytest.mark.parametrize(
    ("block", "sentence"), [(1, "block is 2 to"), (9000, "block is 2 to"), (4096, "fewer than one block")]
)
def test_a_block_that_does_not_fit_is_refused(smollm, block, sentence):
    with pytest.raises(ValueError, match=sentence):
        perplexity(smollm, TEXT, block=block)


@pytest.mark.parametrize("most", [0, -1])
def test_a_number_of_blocks_that_is_none_is_refused(smollm, most):
    with pytest.raises(ValueError, match=f"most_blocks is at least 1; got {most}"):
        perplexity(smollm, TEXT, block=48, most_blocks=most)


def test_the_command_prints_one_json_object(smollm, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    assert main(["eval", "--file", str(path), "--block", "48", "--device", "cpu", "--dtype", "float32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["perplexity"] == pytest.approx(perplexity(smollm, TEXT, block=48).perplexity, rel=1e-6)
    assert found["block"] == 48
