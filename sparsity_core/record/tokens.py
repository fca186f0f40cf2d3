"""Tokens as people read them: pieces of text, made visible, grouped into characters and sorted into classes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

_VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
_SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_JOINERS = {"\u200c", "\u200d"}  # they shape emoji and scripts, and are shown inside them
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # how tokenizers with byte fallback spell a byte
_LONGEST = 8  # tokens that are read together in search of one character
_CONTEXT = 8  # tokens before a group that are decoded with it, where those nearer have no text
_FUNCTION_WORDS = frozenset(
    "a an the this that these those some any each every no not nor and or but so yet if then than because while of in on "
    "at by for from to with without into onto over under between among through during before after about as is are was "
    "were be been being am do does did have has had will would shall should can could may might must i you he she it we "
    "they me him her us them my your his its our their who whom whose which what when where why how there here".split()
)


def pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """The text that each token adds to the decoded text, and its group: tokens of one group spell one character together.

    A piece of a character has the text "" until the last piece of its group, which has the character. The texts joined
    are the decoded text, for every kind of tokenizer.
    """
    reader = _Reader(tokenizer, ids)
    texts: list[str] = []
    groups: list[int] = []
    while len(texts) < len(ids):
        start = len(texts)
        sizes, spelled = _characters(reader, start) if reader.byte(start) is not None else _grown(reader, start)
        for size, text in zip(sizes, spelled, strict=True):
            groups += [len(texts)] * size
            texts += [*[""] * (size - 1), text]
    whole = reader.decode(0, len(ids))
    return (texts, groups) if "".join(texts) == whole else (_aligned(reader, whole), list(range(len(ids))))


class _Reader:
    """Some token ids, and what stretches of them decode to."""

    def __init__(self, tokenizer: Any, ids: Sequence[int]) -> None:
        self.ids = [int(i) for i in ids]
        known = sorted(set(self.ids))
        names = dict(zip(known, tokenizer.convert_ids_to_tokens(known), strict=True))
        self.names: list[str | None] = [names[i] for i in self.ids]
        self._tokenizer = tokenizer
        self._read: dict[tuple[int, ...], str] = {}  # words come back, and a decoder's call costs more than finding it

    def decode(self, start: int, end: int) -> str:
        asked = tuple(self.ids[start:end])
        # `_aligned` reads every beginning of a text, once: kept, they would take the square of its length.
        if len(asked) > _CONTEXT:
            return _decoded(self._tokenizer, asked)
        if asked not in self._read:
            self._read[asked] = _decoded(self._tokenizer, asked)
        return self._read[asked]

    def added(self, start: int, end: int) -> str:
        """The text of tokens `start` to `end` within the whole text, whose first token may lose its leading space."""
        before, context = "", start
        while context and not before and start - context < _CONTEXT:
            context -= 1
            before = self.decode(context, start)
        return self.decode(context, end)[len(before) :]

    def byte(self, at: int) -> int | None:
        """The value of a token that is spelled <0xE4> and decoded as that byte; None of every other token."""
        found = _BYTE.fullmatch(self.names[at] or "") if at < len(self.ids) else None
        return int(found[1], 16) if found and self.decode(at, at + 1) != found[0] else None


def _characters(reader: _Reader, start: int) -> tuple[list[int], list[str]]:
    """(tokens of each character, its text) of a run of byte tokens, which a decoder takes as a whole or not at all."""
    values: list[int] = []
    while (value := reader.byte(start + len(values))) is not None:
        values.append(value)
    text = reader.added(start, start + len(values))
    try:
        characters = bytes(values).decode()
    except UnicodeDecodeError:
        signs = len(text) == len(values)  # one replacement sign a byte
        return ([1] * len(values), list(text)) if signs else ([len(values)], [text])
    lost = len(characters) - len(text)  # a leading space that the decoder strips
    return [len(c.encode()) for c in characters], ["" if i < lost else c for i, c in enumerate(characters)]


def _grown(reader: _Reader, start: int) -> tuple[list[int], list[str]]:
    """(tokens, text) of the next group, which grows until its text does not end within a character."""
    for end in range(start + 1, len(reader.ids) + 1):
        text = reader.added(start, end)
        inside = text.endswith("\ufffd") and "\ufffd" not in (reader.names[end - 1] or "")
        if not inside or end == len(reader.ids):
            return [end - start], [text]
        if end - start == _LONGEST:  # bytes that are no text, cut before the up to three that may begin a character
            begins = (n for n in (1, 2, 3) if reader.decode(end - n, end).count("\ufffd") == 1)
            cut = end - max(begins, default=1)
            return [cut - start], [reader.added(start, cut)]
    raise IndexError(f"there are {len(reader.ids)} tokens; token {start} is none of them")


def _aligned(reader: _Reader, whole: str) -> list[str]:
    """Each token's text where decoding looks further than to the token before: up to where the text so far agrees."""
    ends = [0]
    for end in range(1, len(reader.ids)):
        ends.append(max(ends[-1], _agreeing(reader.decode(0, end), whole)))
    return [whole[a:b] for a, b in pairwise([*ends, len(whole)])]


def _agreeing(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def shown(texts: Sequence[str], groups: Sequence[int]) -> list[str]:
    """Each token as it is displayed: spaces, line ends and control characters visible, pieces numbered (🙂₁ 🙂₂)."""
    whole = {group: visible(text) for text, group in zip(texts, groups, strict=True)}
    size: dict[int, int] = {}
    for group in groups:
        size[group] = size.get(group, 0) + 1
    return [
        whole[group] + (str(i - group + 1).translate(_SUBSCRIPT) if size[group] > 1 else "")
        for i, group in enumerate(groups)
    ]


def visible(text: str) -> str:
    """`text` with every character that has no ink of its own replaced by one that has."""
    return "".join(_visible_character(c, alone=len(text) == 1) for c in text) or "∅"


def _visible_character(c: str, alone: bool) -> str:
    if c in _VISIBLE:
        return _VISIBLE[c]
    code, category = ord(c), unicodedata.category(c)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    hidden = category in {"Cc", "Cf", "Co", "Cn", "Zl", "Zp", "Cs"} or (category == "Zs" and c != " ")
    return f"⟨U+{code:04X}⟩" if hidden and (alone or c not in _JOINERS) else c


def token_classes(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The class of each token on its own, so that no later token changes an earlier one's."""
    classes = {i: token_class(_decoded(tokenizer, [i])) for i in dict.fromkeys(ids)}
    return [classes[i] for i in ids]


def token_class(text: str) -> str:
    """number, punctuation, function (a closed-class English word), capitalised, word, or space.

    A rule on the token's own text alone: a sentence's first word is capitalised as a name is.
    """
    word = text.strip()
    if not word:
        return "space"
    if any(c.isdigit() for c in word):
        return "number"
    if not any(c.isalpha() or c == "\ufffd" for c in word):  # a piece of a character counts as a letter
        return "punctuation"
    if word.lower() in _FUNCTION_WORDS:
        return "function"
    return "capitalised" if word[0].isupper() else "word"
