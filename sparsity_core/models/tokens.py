"""Tokens as people read them: pieces of text, made visible, grouped into characters and sorted into classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

_VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
_SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_JOINERS = {"\u200c", "\u200d"}  # they shape emoji and scripts, and are shown inside them
_FUNCTION_WORDS = frozenset(
    "a an the this that these those some any each every no not nor and or but so yet if then than because while of in on "
    "at by for from to with without into onto over under between among through during before after about as is are was "
    "were be been being am do does did have has had will would shall should can could may might must i you he she it we "
    "they me him her us them my your his its our their who whom whose which what when where why how there here".split()
)


def pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """The text that each token adds, and its group: tokens of one group spell one character together.

    A byte piece of a character has the text "" until the last piece of its group, which has the character.
    """

    def decode(part: Sequence[int]) -> str:
        return tokenizer.decode(list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    texts: list[str] = []
    groups: list[int] = []
    group = 0  # the first token of the group that is being read
    for i in range(len(ids)):
        # One token of context, because a first token may lose its leading space.
        before = decode(ids[max(0, group - 1) : group])
        text = decode(ids[max(0, group - 1) : i + 1])[len(before) :]
        groups.append(group)
        incomplete = text.endswith("\ufffd") and i + 1 < len(ids)
        texts.append("" if incomplete else text)
        if not incomplete:
            group = i + 1
        elif i - group >= 7:  # bytes that are no text, cut before the up to three that may begin a character
            begins = max((n for n in (1, 2, 3) if decode(ids[i + 1 - n : i + 1]).count("\ufffd") == 1), default=1)
            cut = i + 1 - begins
            texts[cut - 1] = decode(ids[max(0, group - 1) : cut])[len(before) :]
            groups[cut:] = [cut] * begins
            group = cut
    return texts, groups


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
    return [token_class(tokenizer.decode([i])) for i in ids]


def token_class(text: str) -> str:
    """number, punctuation, function (a closed-class English word), name (capitalised), word, or space.

    A rule on the token's own text: no tagger, so a sentence's first word counts as a name.
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
    return "name" if word[0].isupper() else "word"
