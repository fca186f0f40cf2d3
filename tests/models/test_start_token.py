"""A text never starts with two start tokens, and whether it starts with one can be said."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from sparsity_core import generate, run
from sparsity_core.evaluate import perplexity
from sparsity_core.models.loading import wrap
from sparsity_core.models.model import Model
from sparsity_core.record import RunSpec, key_of
from tests import readers, tiny

BOS = 1
TEMPLATE = "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }} {% endfor %}"


@pytest.fixture(scope="module")
def model() -> Model:
    """Its tokenizer begins every text with the start token, as Llama's and Gemma's do."""
    tokenizer = deepcopy(readers.reader("gemma"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.chat_template = TEMPLATE
    hf = tiny.transformer("llama", torch.float32)
    hf.resize_token_embeddings(len(tokenizer))
    return wrap(hf, tokenizer, "starting")


def plain(model: Model, text: str) -> list[int]:
    return model.encode_all(text)


def test_a_text_that_a_chat_template_rendered_starts_once(model):
    rendered = model.tokenizer.apply_chat_template([{"role": "user", "content": "the cats"}], tokenize=False)
    assert rendered.startswith("<s>")
    assert list(model.tokenizer(rendered)["input_ids"][:2]) == [BOS, BOS]  # what transformers does with it
    for add_bos in ("auto", "yes", "no"):  # the text itself spells its start
        assert model.encode(rendered, add_bos) == plain(model, rendered)
        assert model.encode(rendered, add_bos).count(BOS) == 1


def test_whether_a_text_starts_with_the_start_token_can_be_said(model):
    words = plain(model, "the cats")
    assert model.encode("the cats") == model.encode("the cats", "yes") == [BOS, *words]
    assert model.encode("the cats", "no") == words
    with pytest.raises(ValueError, match="add_bos is one of auto, yes, no; got 'maybe'"):
        model.encode("the cats", "maybe")


def test_a_tokenizer_that_adds_none_adds_one_when_asked():
    model = wrap(tiny.transformer("llama", torch.float32), readers.reader("byte level"), "silent")
    assert model.encode("the", "yes") == [BOS, *model.encode("the")]
    assert model.encode("the") == model.encode("the", "no")


def test_a_tokenizer_without_a_start_token_says_so():
    with pytest.raises(ValueError, match="has no start token: leave add_bos at auto or no"):
        tiny.model().encode("the", "yes")
    with pytest.raises(ValueError, match="has no start token"):
        perplexity(tiny.model(), tiny.TEXT, block=8, add_bos="yes")


def test_runs_and_generations_take_it_and_their_provenance_says_it(model):
    for add_bos, n in (("auto", 1), ("yes", 1), ("no", 0)):
        trace = run(model, "the cats sat", add_bos=add_bos)
        assert (trace.token_ids == BOS).sum() == n
        assert trace.provenance.add_bos == add_bos
        out = generate(model, "the cats sat", max_new_tokens=1, add_bos=add_bos, stop_at_eos=False)
        assert out.trace.token_ids.tolist() == trace.token_ids.tolist()
        assert out.trace.provenance.add_bos == add_bos


def test_blocks_start_with_it_only_where_asked(model):
    """With it, the first token of a block is predicted too."""
    text = "the cats sat on the mats and the doors " * 4
    bare, started = (perplexity(model, text, block=8, most_blocks=2, add_bos=a) for a in ("auto", "yes"))
    assert (bare.tokens, started.tokens) == (14, 16)
    assert "no BOS" in bare.convention and "a start token before each" in started.convention
    words = plain(model, text)
    losses = [run(model, [BOS, *words[i : i + 8]], against_dense=False).nll[:-1] for i in (0, 8)]
    expected = torch.tensor([float(x) for part in losses for x in part], dtype=torch.float64).mean().exp()
    assert started.perplexity == pytest.approx(float(expected), rel=1e-6)


def test_a_spec_that_says_nothing_keeps_its_key_and_one_that_says_it_has_its_own():
    auto, yes, no = (RunSpec("m", "p", add_bos=a) for a in ("auto", "yes", "no"))
    assert "add_bos" not in auto.to_json() and '"add_bos": "yes"' in yes.to_json()
    assert len({key_of(spec) for spec in (auto, yes, no)}) == 3
