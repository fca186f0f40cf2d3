"""Which keys somebody else's run kept, as what the parts of a trace hold. What was not measured there is nan."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sparsity_core.record.provenance import Provenance
from sparsity_core.record.tokens import pieces, shown, token_class, token_classes

_METHOD = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_MOST_ID = 2**31 - 1


def kept_fields(
    token_ids: Sequence[int],
    kept: Any,
    *,
    tokenizer: Any = None,
    texts: Sequence[str] | None = None,
    n_prompt: int | None = None,
    dropped_at: Any = None,
    n_heads: int | None = None,
    method: str = "imported",
    model: str = "",
) -> dict[str, Any]:
    """What `Trace.from_kept` makes a trace of, by the names of the trace's fields. Raises ValueError."""
    ids = _ids(token_ids)
    n = len(ids)
    n_prompt = n if n_prompt is None else n_prompt
    if not 1 <= n_prompt <= n:
        raise ValueError(f"n_prompt is {n_prompt}, and the text has {n} tokens: give 1 to {n}")
    if not _METHOD.fullmatch(method):
        raise ValueError(f"a method's name is a letter, then letters, digits and _, all small; got {method!r}")
    mask = _mask(kept, n)
    n_layers, n_kv_heads = mask.shape[:2]
    n_heads = n_kv_heads if n_heads is None else n_heads
    if n_heads < 1 or n_heads % n_kv_heads:
        raise ValueError(f"n_heads is {n_heads}, and {n_kv_heads} KV heads share them: give a multiple of {n_kv_heads}")
    if mask.ndim == 4:
        if dropped_at is not None:
            raise ValueError("a mask of queries and keys says itself when each key is dropped: leave dropped_at out")
        stage, found, notes = _of_queries(mask, n_prompt, n_heads)
    else:
        stage, found, notes = "eviction", *_of_end(mask, dropped_at)
    unknown = np.full(n, np.nan, np.float32)
    nowhere = np.full((n_layers, n_kv_heads, n), np.nan, np.float32)
    return {
        "provenance": Provenance(
            model=model,
            pipeline=f"{stage}={method}",
            prompt_hash=hashlib.sha256(ids[:n_prompt].tobytes()).hexdigest()[:12],
        ),
        **_words(ids, tokenizer, texts),
        "n_prompt": n_prompt,
        "continuation": "",
        "n_heads": n_heads,
        **dict.fromkeys(("nll", "dense_nll", "kl_to_dense", "top1_agrees"), unknown),
        "n_prefill": 0,
        "n_sink": np.zeros(n_layers, np.int32),
        "recent": np.zeros(n_layers, np.int32),
        "threshold": nowhere,
        "snapshot_steps": np.zeros(0, np.int32),
        "snapshots": np.zeros((n_layers, n_kv_heads, 0, n), np.float32),
        "kv_bytes": 0,
        "kv_bytes_dense": 0,
        "notes": ("These selections were made elsewhere; losses and scores are not known.", *notes),
        **found,
    }


def _ids(token_ids: Sequence[int]) -> np.ndarray:
    """int64 [T]."""
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.size:
        raise ValueError("token_ids is a list of whole numbers, one for each token of the text")
    if ids.min() < 0 or ids.max() > _MOST_ID:
        raise ValueError(f"a token id is 0 to {_MOST_ID}; got {ids.min() if ids.min() < 0 else ids.max()}")
    return ids.astype(np.int64)


def _mask(kept: Any, n: int) -> np.ndarray:
    """bool [L, Hkv, T], or [L, Hkv, T, T] as it was given."""
    kept = kept.cpu() if hasattr(kept, "cpu") else kept  # a tensor
    array = np.asarray(kept) if hasattr(kept, "__array__") else None
    if array is not None and array.dtype == bool and array.ndim == 4:
        if array.shape[2:] != (n, n) or not array.size:
            raise ValueError(
                f"the mask is {list(array.shape)}, and the text has {n} tokens: give [layer, kv_head, {n}, {n}]"
            )
        return array
    layers = [list(_listed(layer, "layer")) for layer in _listed(kept, "text")]
    if not layers or not layers[0]:
        raise ValueError("kept is empty: give what each layer's KV heads keep, [layer][kv_head]")
    for i, layer in enumerate(layers):
        if len(layer) != len(layers[0]):
            raise ValueError(
                f"layer {i} has {len(layer)} KV heads, and layer 0 has {len(layers[0])}: give as many in each"
            )
    return np.asarray([[_row(head, n, i, h) for h, head in enumerate(layer)] for i, layer in enumerate(layers)])


def _listed(value: Any, of: str) -> Iterable[Any]:
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        raise ValueError(f"what a {of} keeps is a list, [layer][kv_head][key]; got {type(value).__name__}")
    return value


def _row(head: Any, n: int, layer: int, kv_head: int) -> np.ndarray:
    """bool [T]: the keys that one KV head keeps, given as such or as indices."""
    where = f"layer {layer}, KV head {kv_head}"
    head = head.cpu() if hasattr(head, "cpu") else head
    try:
        given = np.asarray(head)
    except ValueError:  # lists of several lengths
        given = np.zeros((0, 0))
    if given.ndim != 1 or given.dtype.kind not in ("biu" if given.size else "biuf"):
        raise ValueError(
            f"{where} keeps a list of whole numbers, the places of keys, or one of true and false for each token"
        )
    if given.dtype == bool:
        if len(given) != n:
            raise ValueError(f"{where} has {len(given)} entries of true and false, and the text has {n} tokens")
        return given
    given = given.astype(np.int64)
    if given.size and given.min() < 0:
        raise ValueError(f"{where} keeps key {given.min()}: places count from 0, the text's first token")
    if given.size and given.max() >= n:
        raise ValueError(
            f"{where} keeps key {given.max()}, and the text has {n} tokens: count places from 0, and give all token ids, "
            "those that were generated too"
        )
    places, counts = np.unique(given, return_counts=True)
    if counts.size and counts.max() > 1:
        raise ValueError(f"{where} keeps key {places[counts.argmax()]} twice: give each key once")
    row = np.zeros(n, bool)
    row[given] = True
    return row


def _of_end(kept: np.ndarray, dropped_at: Any) -> tuple[dict[str, Any], list[str]]:
    """What is dropped of bool [L, Hkv, T], at a query that is given, or else at the last."""
    n, notes = kept.shape[2], []
    if dropped_at is None:
        at = np.full(kept.shape, n - 1, np.int64)
        at[..., -1] = n  # the last query reads its own key
        notes.append("When each key was dropped is not known: all are gone at the last token, and not before.")
    else:
        given = np.asarray(dropped_at)
        if given.dtype.kind not in "iu" or given.shape not in ((), kept.shape):
            raise ValueError(
                f"dropped_at is the number of a query, or one for each of {list(kept.shape)}: layer, KV head, key"
            )
        at = np.broadcast_to(given, kept.shape)
        wrong = np.argwhere(~kept & ((at <= np.arange(n)) | (at > n)))
        if wrong.size:
            layer, head, key = wrong[0]
            raise ValueError(
                f"layer {layer}, KV head {head} drops key {key} at query {at[layer, head, key]}: the first without it comes "
                f"after its own, so {key + 1} to {n}; dropped_at may be given for each layer, KV head and key"
            )
    late = int((~kept & (at == n)).sum())
    if late:
        notes.append(f"{late} of the dropped keys went after the text's last query, and so are drawn as kept.")
    evicted_at = np.where(kept, n, at).astype(np.int32)
    return {"evicted_at": evicted_at, "budgets": kept.sum(2).astype(np.int32)}, notes


def _of_queries(mask: np.ndarray, n_prompt: int, n_heads: int) -> tuple[str, dict[str, Any], list[str]]:
    """The stage and what it did: an eviction where no key returns, else a choice of each query's own."""
    n_layers, n_kv_heads, n, _ = mask.shape
    key, query = np.arange(n), np.arange(n)[:, None]
    evicted_at = np.empty((n_layers, n_kv_heads, n), np.int32)
    for_good = True
    for layer, own in enumerate(mask):
        ahead = np.argwhere(own & (key > query))
        if ahead.size:
            head, q, k = ahead[0]
            raise ValueError(
                f"in layer {layer}, KV head {head}, query {q} keeps key {k}, which comes after it: a mask is [query, key]"
            )
        evicted_at[layer] = key + own.sum(1)
        for_good &= bool(np.array_equal(own, (key <= query) & (query < evicted_at[layer][:, None])))
    if for_good and (evicted_at > key).all():
        held = mask.sum(3).max(2)
        return "eviction", {"evicted_at": evicted_at, "budgets": held.astype(np.int32)}, []
    chooses = mask[:, :, n_prompt if n_prompt < n else 0 :]
    read = chooses.sum(2).astype(np.float32)
    read[(mask == (key <= query)).all((1, 2, 3))] = 0  # as in a layer that reads everything
    found = {
        "evicted_at": np.full((n_layers, n_kv_heads, n), n, np.int32),
        "budgets": np.full((n_layers, n_kv_heads), n, np.int32),
        "selected": read,
        "selected_mass": np.full((n_layers, n_heads, n), np.nan, np.float32),
        "selected_recall": np.full((n_layers, n_kv_heads, n), np.nan, np.float32),
        "chosen": np.packbits(mask, axis=-1),
    }
    return (
        "decode",
        found,
        ["Some keys return, so this is what each query chose to read, and nothing is dropped for good."],
    )


def _words(ids: np.ndarray, tokenizer: Any, texts: Sequence[str] | None) -> dict[str, Any]:
    """The tokens as people read them: from a tokenizer, from their texts, or else their ids."""
    plain = {"token_ids": ids.astype(np.int32), "groups": np.arange(len(ids), dtype=np.int32)}
    if texts is not None:
        if len(texts) != len(ids) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts is one text for each of the {len(ids)} tokens; got {len(texts)}")
        names = shown(texts, range(len(ids)))
        return {**plain, "texts": list(texts), "tokens": names, "classes": [token_class(text) for text in texts]}
    if tokenizer is None:
        return {
            **plain,
            "texts": [f"{i} " for i in ids],
            "tokens": [str(i) for i in ids],
            "classes": ["unknown"] * len(ids),
        }
    reader, listed = _Reader(tokenizer), ids.tolist()
    known = reader.convert_ids_to_tokens(listed)
    if None in known:
        raise ValueError(
            f"the tokenizer has no token {listed[known.index(None)]}: give the tokenizer of the model that ran"
        )
    spelled, groups = pieces(reader, listed)
    return {
        "token_ids": plain["token_ids"],
        "groups": np.asarray(groups, np.int32),
        "texts": spelled,
        "tokens": shown(spelled, groups),
        "classes": token_classes(reader, listed),
    }


class _Reader:
    """A tokenizer of `transformers` or of `tokenizers`, asked in one way."""

    def __init__(self, tokenizer: Any) -> None:
        self._own = tokenizer
        self._bare = hasattr(tokenizer, "id_to_token")
        if not self._bare and not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise ValueError(
                f"a tokenizer is one of transformers or tokenizers, or None; got {type(tokenizer).__name__}"
            )

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        try:
            return [self._own.id_to_token(i) for i in ids] if self._bare else list(self._own.convert_ids_to_tokens(ids))
        except (IndexError, KeyError, OverflowError):  # of tokenizers that are written in Python
            raise ValueError(
                "the tokenizer lacks some of the tokens: give the tokenizer of the model that ran"
            ) from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        own = {} if self._bare else {"clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        return str(self._own.decode(ids, skip_special_tokens=skip_special_tokens, **own))
