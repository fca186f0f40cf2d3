"""Lists of pipelines that the run bar offers at once, made from the one that is open."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from sparsity_core import methods
from sparsity_core.kinds import Pipeline
from ui.address import LETTERS

_FIRST = "eviction=streaming_llm(budget=64)"  # what stands beside the example; a trace of it ships
_BUDGET, _TOKENS, _RATIO = 64, 0.25, 0.1


def another(texts: list[str]) -> str:
    """The pipeline that is added to a list: an eviction method that is not in it yet, at the first one's budget."""
    if _FIRST not in texts:
        return _FIRST
    base = Pipeline.parse(texts[0])
    found = [*evictions(base), *prompt_cuts(base)]
    return next((text for text in found if text not in texts), texts[-1])


def evictions(base: Pipeline) -> list[str]:
    """Every eviction method that drops as it reads and fits, at this pipeline's budget; its other stages stay."""
    return _evictions(base, cut_once=False)


def prompt_cuts(base: Pipeline) -> list[str]:
    """Every eviction method that cuts when the prompt ends and fits, at this pipeline's budget; its other stages stay."""
    return _evictions(base, cut_once=True)


def _evictions(base: Pipeline, *, cut_once: bool) -> list[str]:
    found = _all_of("eviction", base, {"budget": base.eviction.budget if base.eviction else _BUDGET})
    first = found[: 1 if base.eviction else 0]
    chosen = [(text, Pipeline.parse(text).eviction) for text in found]
    return _unlike([*first, *(text for text, method in chosen if method and method.cuts_once == cut_once)])


def reads(base: Pipeline) -> list[str]:
    """Every decode method that reads a share of the context, at this pipeline's share; its other stages stay."""
    share = getattr(base.decode, "tokens", _TOKENS)
    return _unlike(_all_of("decode", base, {"tokens": share}))


def patterns(base: Pipeline) -> list[str]:
    """Every prefill method with its own settings; the pipeline's other stages stay."""
    return _unlike(_all_of("prefill", base, {}))


def cuts(base: Pipeline) -> list[str]:
    """Every method that cuts a ratio of the weights and needs no file, at this pipeline's ratio; its other stages stay."""
    return _unlike(_all_of("weights", base, {"ratio": getattr(base.weights, "ratio", _RATIO)}))


def budgets(base: Pipeline) -> list[str]:
    """This pipeline's eviction method at a half, once, twice and four times its budget."""
    method = base.eviction
    if method is None:
        return []
    sizes = [max(8, method.budget // 2), method.budget, 2 * method.budget, 4 * method.budget]
    return _unlike(_with(base, "eviction", method.name, {**_knobs(method), "budget": size}) for size in sizes)


def between(base: Pipeline) -> list[str]:
    """This pipeline between random keys, the floor, and the oracle's, the ceiling, as many of them; and the dense model."""
    budget = base.eviction.budget if base.eviction else _BUDGET
    own = (
        base
        if base.eviction
        else Pipeline.parse(f"{'' if base == Pipeline() else base} eviction=a2sf(budget={budget})")
    )
    floor = _with(own, "eviction", "random", {"budget": budget})
    ceiling = _with(replace(own, eviction=None), "decode", "oracle_top_k", {"keys": budget})
    return _unlike([str(own), floor, ceiling, "dense"])


def _all_of(stage: str, base: Pipeline, knobs: dict[str, Any]) -> list[str]:
    own = getattr(base, stage)
    first = [_with(base, stage, own.name, _knobs(own))] if own else []
    fit = [name for name in methods.names(stage) if set(knobs) <= {knob.name for knob in methods.get(name).knobs()}]
    return _each([*first, *(_with(base, stage, name, knobs) for name in fit if own is None or name != own.name)])


def _knobs(method: Any) -> dict[str, Any]:
    return {knob.name: getattr(method, knob.name) for knob in method.knobs()}


def _with(base: Pipeline, stage: str, name: str, knobs: dict[str, Any]) -> str | None:
    """The pipeline's text with another method in a stage; None where its knobs, or the stages, do not fit together."""
    try:
        chosen: dict[str, Any] = {stage: methods.get(name)(**knobs)}
        found = replace(base, **chosen)
        found.check(generates=True)
        return str(found)
    except ValueError:
        return None


def _each(texts: Iterable[str | None]) -> list[str]:
    """What there is of the texts, each once."""
    return list(dict.fromkeys(text for text in texts if text is not None))


def _unlike(texts: Iterable[str | None]) -> list[str]:
    """As `_each`, as many as a page holds."""
    return _each(texts)[: len(LETTERS)]


@dataclass(frozen=True)
class Preset:
    """A list of the run bar: what its button says, which stage it is about, and the list that it makes of a pipeline."""

    label: str
    stage: str
    made_of: Callable[[Pipeline], list[str]]


_PRESETS = {
    "evictions": Preset("Evictions as the text is read, at this budget", "eviction", evictions),
    "prompt_cuts": Preset("Evictions when the prompt ends, at this budget", "eviction", prompt_cuts),
    "budgets": Preset("This eviction at four budgets", "eviction", budgets),
    "between": Preset("This eviction between floor and ceiling", "eviction", between),
    "reads": Preset("All decode reads at this share", "decode", reads),
    "patterns": Preset("All prefill patterns", "prefill", patterns),
    "cuts": Preset("All cuts of weights at this ratio", "weights", cuts),
}


def presets(stage: str) -> dict[str, Preset]:
    """The lists by name, those about a page's stage alone where there are any."""
    return {name: preset for name, preset in _PRESETS.items() if preset.stage == stage} or _PRESETS
