"""Tokens after prompts, a forward at a time: each text with its own recorder, cache and draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sparsity_core.attention import Offloaded, Recorder, forward
from sparsity_core.inference.words import Words
from sparsity_core.models import Model
from sparsity_core.record import token_classes


@dataclass
class Writing:
    """One text while it is written."""

    recorder: Recorder
    words: Words  # what is read at once; generation adds the classes of what follows
    ids: list[int]  # the whole prompt
    draws: torch.Generator
    offload: Offloaded | None = None
    new: list[int] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)  # hidden states [n, hidden] of each forward

    @property
    def cache(self) -> Any:
        return self.recorder.cache

    @property
    def feed(self) -> list[int]:
        """What is read next: the words, then a token at a time the rest of the prompt, then what was written."""
        at = self.recorder.start
        if not at:
            return self.words.ids
        return [self.ids[at]] if at < len(self.ids) else [self.new[-1]]

    @property
    def writes(self) -> bool:
        """Whether the whole prompt has been read."""
        return self.recorder.start >= len(self.ids)


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen, and when that ends."""

    most: int
    stops: set[int]
    temperature: float

    def ends(self, new: list[int]) -> bool:
        return len(new) == self.most or (bool(new) and new[-1] in self.stops)


def write(model: Model, texts: Sequence[Writing], choice: Choice, told: Callable[[int], None]) -> None:
    """Reads each text's prompt and adds new tokens to it until its choice ends; `told` the most that any text has."""
    going = list(texts)
    while going:
        fed = [(text.recorder, text.feed) for text in going]
        for text, (recorder, ids) in zip(going, fed, strict=True):
            if recorder.start:
                text.words.classes.extend(token_classes(model.tokenizer, ids))
        for text, states in zip(going, forward(model, fed, use_cache=True), strict=True):
            text.states.append(states)
        ready = [text for text in going if text.writes]
        if ready:
            logits = model.logits(torch.stack([text.states[-1][-1] for text in ready]))
            for text, row in zip(ready, logits, strict=True):
                text.new.append(_next_token(row, choice.temperature, text.draws))
            told(max(len(text.new) for text in ready))
        going = [text for text in going if not choice.ends(text.new)]
    for text in texts:
        text.recorder.check_fired(len(text.states))


def _next_token(logits: torch.Tensor, temperature: float, sampler: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    logits = logits.cpu().double()  # in float32 a temperature below 1e-45 would be 0
    weights = torch.softmax((logits - logits.max()) / temperature, -1)  # the largest is 0: nothing overflows
    return int(torch.multinomial(weights, 1, generator=sampler))
