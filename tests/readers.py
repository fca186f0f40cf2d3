"""Small tokenizers of every kind that decoder models bring, trained in memory on a few sentences."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import PreTrainedTokenizerFast

_LESSON = [
    "The 12 cats sat on 3 mats, and Ann saw them all. The code of the blue door is 7421.",
    "the cats, the mats and the doors: all of them are here; is it so? It is the blue one!",
]
_BYTES = [f"<0x{code:02X}>" for code in range(256)]
_SPECIAL = ["<unk>", "<s>", "</s>"]


def _pieces_of(pre_tokenizer: Any, normalizer: Any = None) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of byte pairs that a few sentences teach, special tokens and byte tokens first."""
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        raw.normalizer = normalizer
    raw.train_from_iterator(_LESSON, trainers.BpeTrainer(vocab_size=500, special_tokens=_SPECIAL + _BYTES))
    model = json.loads(raw.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _with_fallback(normalizer: Any, pre_tokenizer: Any, decoder: Any) -> Tokenizer:
    """Characters that the vocabulary lacks are spelled by tokens of one byte each, <0x00> to <0xFF>."""
    vocabulary, merges = _pieces_of(pre_tokenizers.Metaspace(prepend_scheme="always"))
    raw = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer is not None:
        raw.normalizer = normalizer
    if pre_tokenizer is not None:
        raw.pre_tokenizer = pre_tokenizer
    raw.decoder = decoder
    return raw


def _unspaced(*after: Any) -> Any:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after])


def _llama2() -> Tokenizer:
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _with_fallback(normalizer, None, _unspaced(decoders.Strip(" ", 1, 0)))


def _mistral() -> Tokenizer:
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _with_fallback(None, metaspace, _unspaced(decoders.Strip(" ", 1, 0)))


def _gemma() -> Tokenizer:
    return _with_fallback(normalizers.Replace(" ", "▁"), None, _unspaced())


def _byte_level() -> Tokenizer:
    vocabulary, merges = _pieces_of(pre_tokenizers.ByteLevel(add_prefix_space=False))
    letters = {
        c: len(vocabulary) + i for i, c in enumerate(sorted({*pre_tokenizers.ByteLevel.alphabet()} - {*vocabulary}))
    }
    raw = Tokenizer(BPE({**vocabulary, **letters}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return raw


def _tidied() -> Tokenizer:
    """The decoder changes the text once it is whole, so that what a token adds depends on those after it."""
    raw = _byte_level()
    raw.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(" ,", ",")])
    return raw


def _suffixes() -> Tokenizer:
    """The end of a word is part of its last token, as in the first GPT."""
    raw = Tokenizer(BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=_SPECIAL, end_of_word_suffix="</w>")
    raw.train_from_iterator(_LESSON, trainer)
    return raw


def _unigram(byte_fallback: bool) -> Tokenizer:
    raw = Tokenizer(Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    special = _SPECIAL + (_BYTES if byte_fallback else [])
    raw.train_from_iterator(_LESSON, trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>"))
    vocabulary = [(piece, score) for piece, score in json.loads(raw.to_str())["model"]["vocab"]]
    own = Tokenizer(Unigram(vocabulary, unk_id=0, byte_fallback=byte_fallback))
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    own.decoder = _unspaced(decoders.Strip(" ", 1, 0)) if byte_fallback else decoders.Metaspace()
    return own


def _word_piece() -> Tokenizer:
    raw = Tokenizer(WordPiece(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    raw.train_from_iterator(_LESSON, trainers.WordPieceTrainer(vocab_size=120, special_tokens=_SPECIAL))
    return raw


_KINDS: dict[str, Callable[[], Tokenizer]] = {
    "llama2": _llama2,
    "mistral": _mistral,
    "gemma": _gemma,
    "byte level": _byte_level,
    "tidied": _tidied,
    "suffixes": _suffixes,
    "unigram": functools.partial(_unigram, byte_fallback=False),
    "unigram with bytes": functools.partial(_unigram, byte_fallback=True),
    "word piece": _word_piece,
}
KINDS = tuple(_KINDS)
WITH_BYTE_TOKENS = ("llama2", "mistral", "gemma", "unigram with bytes")


@functools.cache
def reader(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of this kind, as transformers wraps it; tests must not change it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_KINDS[kind](), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
