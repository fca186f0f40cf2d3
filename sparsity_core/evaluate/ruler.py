"""Six tasks of RULER (Hsieh et al., arXiv:2404.06654), made from a seed, as lm-evaluation-harness words and scores them.

They need no corpus: the haystack is one sentence over and over, other needles, or words. Words come from the text that ships with
the library, in place of RULER's lists of nouns, adjectives and verbs. A prompt and its answer have at most `length` tokens. No
torch.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import string
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sparsity_core.models import calibration_text, evaluation_text

LENGTH = 4096  # tokens, the shortest of RULER's tables
MOST_EXAMPLES = 500  # of a task, as in RULER

_GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_SENTENCES = re.split(r"(?<=\.) ", _GRASS)
_NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
_HOPS = 4
_EXAMPLE_LENGTH = 500  # tokens of the solved example of `vt`


@dataclass(frozen=True)
class Example:
    """A prompt is context, question and prefix, with which the answer begins; each of `answers` is to be found in it."""

    context: str
    question: str
    prefix: str
    answers: tuple[str, ...]


Make = Callable[[random.Random, int, int], Example]  # of so many units of filler, for a length in tokens
Count = Callable[[str], int]  # the tokens of a text


@dataclass(frozen=True)
class RulerTask:
    """How an example is made, and how many new tokens its answer may have."""

    make: Make
    new_tokens: int
    least: int = 1  # units of filler
    apart: str = " "  # what stands between question and prefix
    example: Callable[[random.Random, Count], str] | None = None  # a solved one, put before the prompt


def _key(drawn: random.Random) -> str:
    return "-".join(drawn.choice(words()) for _ in range(2))


def _number(drawn: random.Random) -> str:
    return str(drawn.randint(10**6, 10**7 - 1))


def _uuid(drawn: random.Random) -> str:
    return str(uuid.UUID(int=drawn.getrandbits(128), version=4))


def _needle(
    kind: str,
    key_of: Callable[[random.Random], str],
    value_of: Callable[[random.Random], str],
    others: bool,
    depth: float | None = None,
) -> Make:
    """A needle among other needles, or in five sentences over and over; where it stands is drawn.

    With a depth from 0 to 1 it stands there, to half a line, and a unit of filler is one of the five sentences.
    """

    def make(drawn: random.Random, units: int, _: int) -> Example:
        key, value = key_of(drawn), value_of(drawn)
        lines = [_GRASS] * units
        if others:
            keys = [k for k in (key_of(drawn) for _ in range(units)) if k != key]
            lines = [_NEEDLE.format(kind=kind, key=k, value=value_of(drawn)) for k in keys]
        if depth is not None:
            full, rest = divmod(units, len(_SENTENCES))
            lines = [_GRASS] * full + ([" ".join(_SENTENCES[:rest])] if rest else [])
        place = drawn.randrange(len(lines)) if depth is None else round(depth * len(lines))
        lines.insert(place, _NEEDLE.format(kind=kind, key=key, value=value))
        told = (
            f"A special magic {kind} is hidden within the following text. Make sure to memorize it. "
            f"I will quiz you about the {kind} afterwards."
        )
        asked = f"\nWhat is the special magic {kind} for {key} mentioned in the provided text?"
        prefix = f"The special magic {kind} for {key} mentioned in the provided text is"
        return Example("\n".join([told, *lines]), asked, prefix, (value,))

    return make


def _chain(drawn: random.Random, units: int, _: int = 0, letters: int = 5) -> Example:
    """Variables that are assigned one another, scattered over a sentence that is repeated."""
    names: list[str] = []
    while len(names) <= _HOPS:
        name = "".join(drawn.choices(string.ascii_uppercase, k=letters))
        names += [name] if name not in names else []
    value = drawn.randint(10000, 99998)
    chain = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in itertools.pairwise(names))]
    sentences = [f"{_GRASS}\n"] * units
    for earlier, (place, assigned) in enumerate(
        zip(sorted(drawn.sample(range(units), len(chain))), chain, strict=True)
    ):
        sentences.insert(place + earlier, assigned)
    told = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    asked = f"\nQuestion: Find all variables that are assigned the value {value} in the text above."
    prefix = (  # RULER's own spelling
        f"Answer: According to the chain(s) of variable assignment in the text above, {len(names)} variables are assgined the "
        f"value {value}, they are:"
    )
    return Example(told + " ".join(sentences).replace(". \n", ".\n"), asked, prefix, tuple(names))


def _solved_chain(drawn: random.Random, count: Count) -> str:
    def solved(units: int) -> str:
        found = _chain(random.Random(state), units, letters=3)
        return f"{found.context}{found.question} {found.prefix}  {' '.join(found.answers)}\n\n\n\n"

    state = drawn.getrandbits(64)
    return solved(_most(lambda units: count(solved(units)) <= _EXAMPLE_LENGTH, _HOPS + 2))


def _common_words(drawn: random.Random, units: int, length: int) -> Example:
    """A numbered list in which ten words come up more often than all others."""
    often, seldom = (6, 1) if length < LENGTH else (30, 3)
    chosen = drawn.sample(words(), min(units, len(words())))
    listed = chosen[:10] * often + chosen[10:] * seldom
    drawn.shuffle(listed)
    told = (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n"
    )
    return Example(
        told + " ".join(f"{place}. {word}" for place, word in enumerate(listed, 1)),
        "\nQuestion: What are the 10 most common words in the above list?",
        "Answer: The top 10 words that appear most often in the list are:",
        tuple(chosen[:10]),
    )


def _frequent_words(drawn: random.Random, units: int, length: int) -> Example:
    """Made-up words, the k-th of which comes up units · k⁻² / ζ(2) times; dots are the first."""
    made: dict[str, None] = {}
    while len(made) < max(5, length // 50):
        made["".join(drawn.choices(string.ascii_lowercase, k=6))] = None
    ranked = ["...", *list(made)[1:]]
    listed = [word for k, word in enumerate(ranked, 1) for _ in range(int(units * k**-2 * 6 / math.pi**2))]
    drawn.shuffle(listed)
    told = (
        "Read the following coded text and track the frequency of each coded word. "
        "Find the three most frequently appeared coded words. "
    )
    asked = (
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared "
        "words in the above coded text?"
    )
    prefix = "Answer: According to the coded text above, the three most frequently appeared words are:"
    return Example(told + " ".join(listed), asked, prefix, tuple(ranked[1:4]))


RULER_TASKS = {
    "niah_single_1": RulerTask(_needle("number", _key, _number, others=False), 128),
    "niah_multikey_2": RulerTask(_needle("number", _key, _number, others=True), 128, least=2),
    "niah_multikey_3": RulerTask(_needle("uuid", _uuid, _uuid, others=True), 128, least=2),
    "vt": RulerTask(_chain, 30, least=_HOPS + 2, example=_solved_chain),
    "cwe": RulerTask(_common_words, 120, least=20, apart="\n\n"),
    "fwe": RulerTask(_frequent_words, 50, least=100),
}


@lru_cache(maxsize=1)
def words() -> list[str]:
    """The words of 4 to 12 small letters of the text that ships with the library."""
    return sorted(set(re.findall(r"\b[a-z]{4,12}\b", calibration_text() + evaluation_text())))


def ruler_rows(name: str, count: Count, *, length: int, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` examples of a task, each of as much filler as `length` tokens hold beside the answer.

    Raises ValueError for a length that holds none.
    """
    task = RULER_TASKS[name]
    room = length - task.new_tokens

    def row(place: int, units: int) -> dict[str, Any]:
        drawn = random.Random(f"{seed} {name} {place}")
        solved = "" if task.example is None else task.example(drawn, count)
        found = task.make(drawn, units, length)
        before = solved + found.context
        return {
            "before": before,
            "asked": before + found.question,
            "prefix": found.prefix,
            "answers": list(found.answers),
        }

    def n_tokens(row: Mapping[str, Any]) -> int:
        return count(f"{row['asked']}{task.apart}{row['prefix']}")

    shortest = n_tokens(row(0, task.least))
    if shortest > room:
        needed = shortest + task.new_tokens
        raise ValueError(f"{name} does not fit {length:,} tokens: its shortest prompt and answer have {needed:,}")
    most, rows = _most(lambda units: n_tokens(row(0, units)) <= room, task.least), []
    for place in range(n):
        units, found = most, row(place, most)
        while n_tokens(found) > room and units > task.least:
            units -= max(1, units // 50)
            found = row(place, units)
        rows.append(found)
    return rows


def haystack_row(count: Count, *, length: int, depth: float, seed: int) -> dict[str, Any]:
    """The first example of `niah_single_1` with its needle at a depth, and as many sentences as a prompt of `length` holds.

    Key and number are those of `ruler_rows` for the seed, whatever the length and the depth. `before` goes up to the question,
    and `needle` is the line that hides the number.

    Raises ValueError for a length that holds no sentence.
    """
    name = "niah_single_1"
    make = _needle("number", _key, _number, others=False, depth=depth)

    def row(sentences: int) -> dict[str, Any]:
        found = make(random.Random(f"{seed} {name} 0"), sentences, length)
        (needle,) = (line for line in found.context.split("\n") if found.answers[0] in line)
        prompt = f"{found.context}{found.question}{RULER_TASKS[name].apart}{found.prefix}"
        return {"before": found.context, "needle": needle, "prompt": prompt, "answers": list(found.answers)}

    shortest = count(row(1)["prompt"])
    if shortest > length:
        raise ValueError(f"a haystack has at least {shortest} tokens with its question; got {length:,}")
    return row(_most(lambda sentences: count(row(sentences)["prompt"]) <= length, 1))


def _most(fits: Callable[[int], bool], least: int) -> int:
    """The most units that fit, where `least` do: doubled until they do not, then halved in between."""
    high = 2 * least
    while fits(high) and high < 10**6:
        high *= 2
    low = max(least, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def string_match(row: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """The share of the answers that stand in what the model wrote, whatever their case."""
    written = results[0].lower()
    return {"string_match": sum(answer.lower() in written for answer in row["answers"]) / len(row["answers"])}


def ruler_config(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The task as lm-evaluation-harness is told of it."""
    import datasets

    task = RULER_TASKS[name]
    return {
        "task": name,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "asked",
        "doc_to_target": "answers",
        "gen_prefix": "prefix",
        "target_delimiter": task.apart,
        "process_results": string_match,
        "metric_list": [{"metric": "string_match", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"do_sample": False, "max_gen_toks": task.new_tokens, "until": []},
        "metadata": {"version": 1.0},
    }
