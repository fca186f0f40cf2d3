"""KVzip's scores: how much of each key a model needs to repeat its prompt."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from sparsity_core.models import AttentionCall, Model, recording

INSTRUCTION = "\n\nRepeat the previous context exactly.\n\n"
_measured: WeakKeyDictionary[Model, tuple[tuple[int, ...], torch.Tensor]] = WeakKeyDictionary()


def measured(model: Model, prompt: tuple[int, ...]) -> torch.Tensor:
    """Read once for each prompt: the last one of each model is remembered."""
    if model not in _measured or _measured[model][0] != prompt:
        _measured[model] = prompt, measure(model, prompt)
    return _measured[model][1]


@torch.inference_mode()
def measure(model: Model, prompt: tuple[int, ...]) -> torch.Tensor:
    """[L, Hkv, T]: the largest attention that each key of the prompt gets while the model is told to repeat it, and does.

    Raises ValueError where the prompt, the instruction and the prompt again are more tokens than the model's positions.
    """
    ids = [*prompt, *model.tokenizer(INSTRUCTION, add_special_tokens=False)["input_ids"], *prompt]
    if len(ids) > model.arch.max_positions:
        raise ValueError(
            f"kvzip reads the prompt twice, {len(ids):,} tokens with its instruction, and {model.name} has "
            f"{model.arch.max_positions:,} positions: shorten the prompt, or choose another method"
        )
    listener = _Listener(len(prompt))
    with recording(listener):
        model.hidden(torch.tensor([ids]), use_cache=False)
    return torch.stack([listener.found[i] for i in sorted(listener.found)])


def counts(scores: torch.Tensor, each: int, n_sink: int) -> torch.Tensor:
    """int64 [L, Hkv]: how many of its keys each head keeps of L · Hkv · `each`, the highest of all `scores` [L, Hkv, T]."""
    if not scores.numel():
        return scores.new_zeros(scores.shape[:2], dtype=torch.int64)
    ranked = scores.clone()
    ranked[..., :n_sink] = float("inf")
    n = scores.shape[0] * scores.shape[1] * each
    chosen = ranked.flatten().topk(min(n, ranked.numel())).indices
    kept = torch.zeros(ranked.numel(), dtype=torch.bool, device=scores.device)
    kept[chosen] = True
    return kept.view_as(ranked).sum(2)


class _Listener:
    """A recorder of the dense pass over the prompt, the instruction and the prompt again."""

    def __init__(self, n: int) -> None:
        self._n = n
        self.found: dict[int, torch.Tensor] = {}  # [Hkv, n]

    def attend(self, call: AttentionCall) -> torch.Tensor:
        from sparselens_kernels import causal_rows

        q, k, v, n = call.q, call.k, call.v, self._n
        group = q.shape[1] // call.n_kv
        out = q.new_empty(*q.shape[:3], v.shape[3])
        largest = torch.zeros(call.n_kv, n, device=q.device)
        for tile in causal_rows(q, k, **call.how):
            own = slice(tile.heads.start * group, tile.heads.stop * group)
            out[:, own, tile.start : tile.end] = tile.attend(v)
            if tile.end > n:
                p = tile.probabilities()[0, :, :, max(0, n - tile.start) :, :n]  # [KV heads, G, R, n]
                largest[tile.heads] = largest[tile.heads].maximum(p.amax((1, 2)).to(largest.dtype))
        self.found[call.layer] = largest
        return out
