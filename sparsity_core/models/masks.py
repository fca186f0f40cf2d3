"""What each layer lets a query see: all earlier keys, or those of a window, as the masks say that transformers builds.

Recording assumes causal ∧ window: query q sees key k where q − window < k ≤ q. Whether that is what a model does is read
from its masks at load, at a length beyond every window that its configuration names, with no layer computed; and again
from the mask of every text that is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from transformers.masking_utils import sdpa_mask

_ALL_ROWS = 512  # up to so many queries are all looked at, of longer masks a sample
_LIMITS = ("window", "chunk", "local", "attention_size", "block")  # in the names of settings that limit attention

_rows: ContextVar[torch.Tensor | None] = ContextVar("sparselens_mask_rows", default=None)


class UnknownMask(ValueError):
    """A layer's mask is not causal within a window; the message completes "cannot be recorded: "."""


def build_mask(**wanted: Any) -> torch.Tensor | None:
    """The mask function of the hook: SDPA's; while windows are looked for, only its rows that are looked at."""
    rows = _rows.get()
    if rows is None:
        return sdpa_mask(**wanted)
    of_all = wanted["mask_function"]

    def of_rows(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return of_all(batch, head, rows.to(query.device)[query], key)

    return sdpa_mask(**wanted | {"mask_function": of_rows, "q_length": len(rows), "allow_is_causal_skip": False})


@contextlib.contextmanager
def outputs_of(layers: Sequence[Any]) -> Iterator[dict[int, Any]]:
    """Collects what each of the layers puts out, by its place among them."""
    outputs: dict[int, Any] = {}
    handles = [
        layer.register_forward_hook(lambda module, args, output, i=i: outputs.update({i: output}))
        for i, layer in enumerate(layers)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def layer_windows(
    hf: Any, of: Any, layers: Sequence[Any], outputs: Mapping[int, Any], max_positions: int
) -> list[int | None]:
    """How many keys a query of each layer sees, its own included; None where it sees all earlier ones.

    The model's forward runs over a text beyond every window, with layers that only take what they are given.

    Args:
        of: the part of the model that runs the layers.
        outputs: what each layer put out before, whose form it keeps.

    Raises UnknownMask for a layer whose mask is something else.
    """
    n = 2 + max((limit for limit in _limits(hf.config.to_dict()) if limit + 2 <= max_positions), default=6)
    rows = sampled_rows(n)
    ids = torch.full((1, n), min(1000, hf.get_input_embeddings().weight.shape[0] // 2), device=hf.device)
    masks: list[Any] = []
    with _handing_on(layers, outputs, masks), _looking_at(rows):
        of(input_ids=ids, use_cache=False)
    if len(masks) != len(layers):
        raise UnknownMask("its layers do not run once each, in order")
    return [window_of(mask, rows, n, f"layer {i}") for i, mask in enumerate(masks)]


def window_of(mask: Any, rows: torch.Tensor, n: int, what: str) -> int | None:
    """The window of a mask [.., rows, n] or [.., n, n] over n keys, True or 0 where a query sees a key; None: causal.

    Raises UnknownMask for a mask that is not causal within a window.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.shape[-1] < n:
        raise UnknownMask(f"{what} takes a mask of its own kind")
    visible = visible_in(mask, what)
    visible = visible[..., :n] if visible.shape[-2] == len(rows) else visible[..., rows.to(mask.device), :n]
    key, query = torch.arange(n, device=mask.device), rows.to(mask.device)[:, None]
    reach = int(visible.flatten(0, -3)[0, -1].sum()) if visible.ndim > 2 else int(visible[-1].sum())
    window = None if reach >= n else reach
    expected = key <= query
    if window is not None:
        expected = expected & (key > query - window)
    if not bool((visible == expected).all()):
        raise UnknownMask(f"the mask of {what} is not causal within a window")
    return window


def visible_in(mask: torch.Tensor, what: str) -> torch.Tensor:
    """bool like mask: where a query sees a key. Raises UnknownMask for a mask that adds anything else to the logits."""
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        raise UnknownMask(f"{what} takes a mask of its own kind")
    visible = mask == 0
    if not bool((visible | (mask <= torch.finfo(mask.dtype).min / 2)).all()):
        raise UnknownMask(f"the mask of {what} adds a bias to the logits")
    return visible


def check_mask(mask: Any, n_queries: int, n_keys: int, window: int | None, layer: int) -> None:
    """Raises UnknownMask where the mask of a recorded forward is not what is assumed of the layer."""
    if not isinstance(mask, torch.Tensor):
        return
    what = f"layer {layer}"
    if n_queries == n_keys:
        found = window_of(mask, sampled_rows(n_keys), n_keys, what)
        if found != (None if window is None or window >= n_keys else window):
            raise UnknownMask(
                f"{what} lets a query see {found or n_keys} keys of this text, and {window or 'all'} at load"
            )
    elif n_queries == 1 and window is None and mask.shape[-1] == n_keys and not bool(visible_in(mask, what).all()):
        raise UnknownMask(f"{what} hides keys of its cache by a mask of its own")


def sampled_rows(n: int) -> torch.Tensor:
    """int64: every query of a short text; of a longer one some all over it and the last."""
    if n <= _ALL_ROWS:
        return torch.arange(n)
    spread = torch.linspace(0, n - 1, 61).round().long()
    return torch.cat([spread, torch.arange(n - 3, n)]).unique()


def _limits(config: Mapping[str, Any]) -> Iterator[int]:
    """Every number of a configuration, and of those within it, that may limit what a query sees."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _limits(value)
        elif isinstance(name, str) and any(word in name for word in _LIMITS):
            values = value if isinstance(value, (list, tuple)) else [value]
            yield from (v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0)


@contextlib.contextmanager
def _looking_at(rows: torch.Tensor) -> Iterator[None]:
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


@contextlib.contextmanager
def _handing_on(layers: Sequence[Any], outputs: Mapping[int, Any], masks: list[Any]) -> Iterator[None]:
    """Layers that hand on the hidden states and compute nothing; collects the mask that each is given."""

    def replaced(output: Any) -> Callable[..., Any]:
        def forward(*args: Any, **given: Any) -> Any:
            masks.append(given.get("attention_mask"))
            hidden = given["hidden_states"] if "hidden_states" in given else args[0]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return forward

    before = [vars(layer).get("forward") for layer in layers]  # what spreads a model over devices puts one there
    for i, layer in enumerate(layers):
        layer.forward = replaced(outputs.get(i))
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own
