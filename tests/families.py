"""Every causal-LM family of the installed transformers, tried as a tiny random model.

`python -m tests.families` writes what it finds to docs/models.md. A family is drawn truly where the dense losses are
transformers' own on a text longer than every window, generation from a cache equals one forward over the whole text, an
eviction drops the same keys in both, and a model with fewer neurons reloads as it was.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from sparsity_core import Pipeline, generate, load, methods, run
from sparsity_core.models import ModelError, wrap
from tests import tiny

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
DOZEN = (
    "llama qwen2 gemma2 gemma3_text phimoe qwen2_moe phi3 deepseek_v3 gemma3n_text falcon_h1 doge llama4_text".split()
)

LENGTH, PROMPT = 44, 30  # tokens: over five windows
MOST = 2e7  # parameters; a configuration that stays larger is not tried
LARGEST_GAP = 2e-3  # nats, between two float32 passes of random weights

# What is asked of a configuration where it has a setting of the name.
SMALL: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 64,
    "d_model": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": tiny.MAX_POSITIONS,
    "n_positions": tiny.MAX_POSITIONS,
    "initializer_range": 0.2,
    "eos_token_id": tiny.END,
    "pad_token_id": tiny.PAD,
    "bos_token_id": 1,
    "sliding_window": tiny.WINDOW,
    "attention_chunk_size": tiny.WINDOW,
    "keep_window_size": tiny.WINDOW,
    "window_size": tiny.WINDOW,
    "global_window_size": tiny.WINDOW,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 8,
    "rotary_dim": 8,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_d_state": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "vocab_size_per_layer_input": 258,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 2,
    "laurel_rank": 8,
    "num_kv_shared_layers": 1,
    "activation_sparsity_pattern": None,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "reuse_cache_layers": 1,
}

# What some families need beside it.
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_FOUR = [_LOCAL, _GLOBAL, _LOCAL, _GLOBAL]
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": _FOUR,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {"num_hidden_layers": 4, "layer_types": _FOUR, "num_kv_shared_layers": 2},
    "gemma4_unified_text": {"num_hidden_layers": 4, "layer_types": _FOUR, "num_kv_shared_layers": 2},
    "gemma3_text": {"layer_types": [_LOCAL, _GLOBAL, _LOCAL]},
    "cohere2": {"layer_types": [_LOCAL, _GLOBAL, _LOCAL]},
    "llama4_text": {"no_rope_layers": [1, 0, 1], "layer_types": ["chunked_attention", _GLOBAL, "chunked_attention"]},
    "codegen": {"n_embd": 64, "n_head": 4, "n_layer": 3, "rotary_dim": 8},
    "gptj": {"n_embd": 64, "n_head": 4, "n_layer": 3, "rotary_dim": 8},
    "gpt_neo": {"num_layers": 3, "num_heads": 4, "attention_types": [[["global", "local", "global"], 1]]},
    "mamba2": {"num_heads": 8},
    "xlnet": {"d_head": 16, "n_head": 4, "n_layer": 3},
    "zamba2": {"layer_types": None, "num_hidden_layers": 54},
    "lfm2_moe": {"layer_types": [_GLOBAL, "conv", _GLOBAL]},
    "reformer": {"is_decoder": True},
    "plbart": {"decoder_attention_heads": 4, "encoder_attention_heads": 4},
    "whisper": {"decoder_attention_heads": 4, "encoder_attention_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 8, "first_k_dense_replace": 1},
    "deepseek_v2": {"num_key_value_heads": 4, "head_dim": 8, "first_k_dense_replace": 1},
    "deepseek_v32": {"num_key_value_heads": 4, "head_dim": 8},
    "glm4_moe_lite": {"num_key_value_heads": 4},
    "glm_moe_dsa": {"num_key_value_heads": 4, "head_dim": 8},
    "minicpm3": {"num_key_value_heads": 4, "head_dim": 8},
    "youtu": {"num_key_value_heads": 4, "head_dim": 8},
    "dots3_note_text": {"num_key_value_heads": 4},
    "rembert": {"input_embedding_size": 64, "output_embedding_size": 64},
    "electra": {"embedding_size": 64},
    "qwen2_moe": {"layer_types": [_LOCAL, _GLOBAL, _GLOBAL]},
}


OUTCOMES = ("drawn", "drawn, with limits", "refused", "not tried")
BEGIN, END = "<!-- families -->", "<!-- end of families -->"


UNCUT = "its feed-forward block is of a kind that weight methods do not cut"


class Found(NamedTuple):
    family: str
    outcome: str  # one of OUTCOMES
    note: str


class NotTried(Exception):
    """No tiny model of the family could be made."""


def configuration(family: str) -> Any:
    """The family's own configuration, small. Raises NotTried where it cannot be made small."""
    kind = CONFIG_MAPPING[family]
    return _small(kind, SPECIAL.get(family, {}))


def _small(kind: Any, special: dict[str, Any]) -> Any:
    known = set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "attribute_map", {}))
    if dataclasses.is_dataclass(kind):
        known |= {f.name for f in dataclasses.fields(kind)}
    wanted = {name: value for name, value in SMALL.items() if name in known} | special
    for part in ("text_config", "decoder_config"):
        sub = getattr(kind, "sub_configs", {}).get(part)
        if sub is not None and hasattr(sub, "model_type"):
            wanted[part] = _small(sub, SPECIAL.get(sub.model_type, {})).to_dict()
    for _ in range(len(wanted)):  # a setting that the family checks otherwise is left as it comes
        try:
            return kind(**wanted)
        except Exception as error:
            refused = [name for name in wanted if name not in special and re.search(rf"\b{name}\b", str(error))]
            if not refused:
                raise NotTried(_line(error)) from error
            for name in refused:
                del wanted[name]
    raise NotTried("no small configuration")


def network(family: str) -> Any:
    """A tiny model of the family in float32, with the same random weights at each call. Raises NotTried."""
    config = configuration(family)
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
        if size > MOST:
            raise NotTried(f"its smallest configuration here has {size / 1e6:,.0f} million parameters")
        torch.manual_seed(7)
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    except NotTried:
        raise
    except Exception as error:
        raise NotTried(_line(error)) from error
    return hf.eval().requires_grad_(False)


def tried(family: str) -> Found:
    """What SparseLens makes of a family."""
    try:
        hf = network(family)
    except NotTried as why:
        return Found(family, "not tried", str(why))
    ids = tiny.ids(LENGTH)
    plain = None
    with contextlib.suppress(Exception), torch.inference_mode():
        plain = hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    try:
        model = wrap(hf, tiny.tokenizer(), family)
    except ModelError as error:
        if plain is None:
            return Found(family, "not tried", "transformers' own pass fails on a small configuration")
        return Found(family, "refused", _reason(family, str(error)))
    assert plain is not None, f"{family} is drawn, and transformers' own pass fails"
    limits = [check(model, ids, plain) for check in (losses_agree, generation_agrees, eviction_agrees, reloads)]
    noted = [limit for limit in limits if limit]
    return Found(family, OUTCOMES[bool(noted)], "; ".join(_reason(family, limit) for limit in noted))


def tried_or_crashed(family: str) -> Found:
    """As `tried`, and a family that ends in an error of another kind than a check's is not tried."""
    try:
        return tried(family)
    except AssertionError:
        raise
    except Exception as error:
        return Found(family, "not tried", _line(error))


def losses_agree(model: Any, ids: list[int], plain: torch.Tensor) -> str:
    """Asserts that the dense losses are transformers' own."""
    gap = np.abs(run(model, ids).nll[:-1] - tiny.nll(plain, ids)).max()
    assert gap < LARGEST_GAP, f"{model.arch.family}: losses off by {gap:.3g} nats"
    return ""


def generation_agrees(model: Any, ids: list[int], plain: torch.Tensor) -> str:
    """Asserts that dense generation equals one forward over its tokens, or gives the sentence that refuses it."""
    try:
        out = _generated(model, ids, None)
    except ValueError as error:
        return _limit(str(error))
    _same(out, run(model, ids[:PROMPT] + out.token_ids[:-1]), model)
    return ""


def eviction_agrees(model: Any, ids: list[int], plain: torch.Tensor) -> str:
    """Asserts that what is dropped from a cache is what is masked in one forward, or gives the sentence that refuses it."""
    pipeline = Pipeline(eviction=methods.A2SF(budget=6))
    try:
        out = _generated(model, ids, pipeline)
    except ValueError as error:
        return _limit(str(error))
    masked = run(model, ids[:PROMPT] + out.token_ids[:-1], pipeline)
    np.testing.assert_array_equal(out.trace.evicted_at, masked.evicted_at, err_msg=model.arch.family)
    _same(out, masked, model)
    return ""


def reloads(model: Any, ids: list[int], plain: torch.Tensor) -> str:
    """Asserts that a model with fewer neurons loads again as it was, or gives the sentence that refuses the cut."""
    try:
        cut = model.compress(methods.RandomNeurons(ratio=0.25))
    except ValueError as error:
        return UNCUT if "feed-forward block" in str(error) else _limit(str(error))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "cut"
        cut.save_pretrained(place, report=cut.report(text=tiny.TEXT, block=32, blocks=1))
        try:
            again = load(place, device="cpu")
        except ModelError as error:
            return f"does not load again once saved ({_limit(str(error))})"
        np.testing.assert_allclose(run(again, ids).nll, run(cut.model, ids).nll, atol=LARGEST_GAP)
    return ""


def _generated(model: Any, ids: list[int], pipeline: Any) -> Any:
    return generate(model, ids[:PROMPT], pipeline, max_new_tokens=LENGTH - PROMPT, stop_at_eos=False)


def _same(out: Any, masked: Any, model: Any) -> None:
    gap = np.abs(out.trace.nll[:-1] - masked.nll[:-1]).max()
    assert gap < LARGEST_GAP, f"{model.arch.family}: generation off by {gap:.3g} nats"
    assert out.kv_bytes == masked.kv_bytes, f"{model.arch.family}: {out.kv_bytes} bytes held, {masked.kv_bytes} counted"


def _line(error: BaseException) -> str:
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = said[1] if len(said) > 1 and "alidation error" in said[0] else (said[0] if said else "")
    return f"{type(error).__name__}: {text}"[:160]


def _reason(family: str, sentence: str) -> str:
    """The sentence without the family's own name, which the table gives, and without the folder of a test."""
    short = re.sub(rf"^(the model )?{re.escape(family)}( \(\S+\))? (cannot be recorded: )?", "", sentence)
    return re.sub(r"/\S+/cut\b", "the folder", short)


def _limit(sentence: str) -> str:
    return sentence.split(": ")[0] if len(sentence) > 160 else sentence


def table(found: list[Found]) -> str:
    """The document's table of families, and how many there are of each outcome."""
    counts = {outcome: sum(each.outcome == outcome for each in found) for outcome in OUTCOMES}
    lines = [
        f"{len(found)} families: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) + ".",
        "",
        "| family | outcome | limits, or the reason |",
        "|---|---|---|",
        *(f"| `{each.family}` | {each.outcome} | {each.note.replace('|', '/')} |" for each in found),
    ]
    return "\n".join(lines)


def committed() -> str:
    """The table as docs/models.md has it."""
    return DOCUMENT.read_text().split(BEGIN)[1].split(END)[0].strip()


def main() -> None:
    torch.set_num_threads(1)
    quiet()
    found, wrong = [], []
    for family in sys.argv[1:] or FAMILIES:
        try:
            found.append(tried_or_crashed(family))
        except AssertionError as error:  # drawn wrongly, which no row of the table may say in silence
            wrong.append(family)
            print(family, "WRONG", _line(error), sep="\t", flush=True)
        else:
            print(*found[-1], sep="\t", flush=True)
    if wrong:
        raise SystemExit(f"The table is left as it is: {', '.join(wrong)} would be drawn wrongly.")
    if not sys.argv[1:]:
        text = DOCUMENT.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")


def quiet() -> None:
    """Without the advice that transformers gives on odd configurations."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()


if __name__ == "__main__":
    main()
