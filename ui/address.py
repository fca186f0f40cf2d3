"""The address: the settings that a link asks for, and the link that brings settings back.

`read_address` is the one gate of all that a link brings. It touches no file that the link names: `places_of` says which
those are, and `ui.trust` when they may be looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparsity_core.kinds import Pipeline
from sparsity_core.models import ADD_BOS, PROMPTS, QUESTION
from sparsity_core.record import RunSpec
from sparsity_core.work import EMBEDDED, keep_prompt, kept_prompt

EXAMPLE = RunSpec(
    model=EMBEDDED,
    prompt=PROMPTS["needle"].text,
    pipeline="eviction=a2sf(budget=64)",
    generate=24,
)
# All five stages at once, on the same prompt.
FIVE_STAGES = replace(
    EXAMPLE,
    pipeline="weights=flap(ratio=0.05) gate=dcp(gamma=0.03) prefill=assa(max_ratio=0.5, segment=block, block=32, window=32) "
    "eviction=a2sf(budget=160) decode=double_sparsity(tokens=0.5)",
)
# One stage alone, on the same prompt: what the guided examples of a gate and of a prefill pattern show.
GATED = replace(EXAMPLE, pipeline="gate=dcp(gamma=0.03)")
PATTERNED = replace(EXAMPLE, pipeline="prefill=assa(max_ratio=0.5, segment=block, block=32, window=32)")
VIEW = ("layer", "head", "token", "step")
LETTERS = "ABCDEFGH"  # of the pipelines side by side: no more fit on a page
MOST_NAME = 40  # letters of a pipeline's own name
MOST_NEW, MOST_SEED = 512, 2**31 - 1
_MODEL_LETTERS = 1024
_LONGEST_LINK = 1500  # characters of prompt; browsers and chat programs cut longer addresses
_DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,2})?")
_DTYPES = ("float32", "bfloat16", "float16", "float64", "int8")
_BESIDE = re.compile(r"beside([0-9]*)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Asked:
    """What an address asks for: one run, or several side by side, and where to look in them."""

    specs: tuple[RunSpec, ...] = (EXAMPLE,)
    names: tuple[str, ...] = ()  # of the pipelines, by their place; "" of one without
    view: tuple[tuple[str, str], ...] = ()  # layer, head, token and step as far as they are given


def read_address(parameters: Mapping[str, str]) -> Asked:
    """Raises ValueError, as a sentence, for an address that asks for what cannot be."""
    view = tuple((name, parameters[name][:20]) for name in VIEW if name in parameters)
    if not {"pipeline", "prompt", "text", "model"} & set(parameters):
        return Asked(view=view)
    spec = RunSpec(
        model=read_model(parameters.get("model", EXAMPLE.model)),
        prompt=_prompt(parameters),
        pipeline=str(Pipeline.parse(parameters.get("pipeline", "dense"))),
        device=parameters.get("device", "cpu"),
        dtype=parameters.get("dtype", "float32"),
        generate=_number(parameters.get("generate", "0"), MOST_NEW),
        seed=_number(parameters.get("seed", "0"), MOST_SEED),
        add_bos=parameters.get("add_bos", EXAMPLE.add_bos),
        question=parameters.get("question", EXAMPLE.question),
    )
    if spec.add_bos not in ADD_BOS:
        raise ValueError(f"add_bos is one of {', '.join(ADD_BOS)}; got {spec.add_bos[:40]!r}")
    if spec.question not in QUESTION:
        raise ValueError(f"question is one of {', '.join(QUESTION)}; got {spec.question[:40]!r}")
    if not _DEVICE.fullmatch(spec.device):
        raise ValueError(f"a device is cpu, cuda or cuda:1; got {spec.device[:40]!r}")
    if spec.dtype not in _DTYPES:
        raise ValueError(f"a number format is one of {', '.join(_DTYPES)}; got {spec.dtype[:40]!r}")
    specs = (spec, *(replace(spec, pipeline=str(Pipeline.parse(text))) for text in _beside(parameters)))
    return Asked(specs, _names(parameters.get("names", ""), len(specs)), view)


def _beside(parameters: Mapping[str, str]) -> list[str]:
    """The pipelines beside the first: those of `beside`, `beside2`, `beside3` and so on."""
    found = {int(m[1] or 1): text for name, text in parameters.items() if (m := _BESIDE.fullmatch(name[:20]))}
    if found and max(found) >= len(LETTERS):
        raise ValueError(
            f"a page compares at most {len(LETTERS)} pipelines, that is pipeline, beside and beside2 to "
            f"beside{len(LETTERS) - 1}; this link goes to beside{max(found)}"
        )
    return [text for _, text in sorted(found.items())]


def _names(given: str, pipelines: int) -> tuple[str, ...]:
    """The pipelines' own names, one | between two; none where the address gives none."""
    names = given.split("|") if given else []
    if len(names) > pipelines:
        raise ValueError(f"the link names {len(names)} pipelines and has {pipelines}: one | stands between two names")
    for name in names:
        check_name(name)
    return tuple(names) if any(names) else ()


def check_name(name: str) -> None:
    """Raises ValueError for what can be no name of a pipeline."""
    if len(name) > MOST_NAME or (name and not name.isprintable()) or "|" in name:
        raise ValueError(
            f"a pipeline's name has at most {MOST_NAME} printable characters and no |; got {name[:MOST_NAME]!r}"
        )


def write_address(specs: Sequence[RunSpec], view: Mapping[str, Any], names: Sequence[str] = ()) -> dict[str, str]:
    """The parameters of an address that brings these runs and this view back. Keeps a prompt too long for a link on disk."""
    spec, *rest = specs
    parameters = {
        "model": spec.model,
        "pipeline": spec.pipeline,
        **{f"beside{at if at > 1 else ''}": own.pipeline for at, own in enumerate(rest, 1)},
        **({"names": "|".join(names)} if any(names) else {}),
        "generate": str(spec.generate),
        "seed": str(spec.seed),
        "device": spec.device,
        "dtype": spec.dtype,
        **({"add_bos": spec.add_bos} if spec.add_bos != EXAMPLE.add_bos else {}),
        **({"question": spec.question} if spec.question != EXAMPLE.question else {}),
    }
    known = next((name for name, prompt in PROMPTS.items() if prompt.text == spec.prompt), None)
    if known is not None:
        parameters["prompt"] = known
    elif len(spec.prompt) <= _LONGEST_LINK:
        parameters["text"] = spec.prompt
    else:
        parameters["prompt"] = keep_prompt(spec.prompt)
    return parameters | {name: str(value) for name, value in view.items()}


def places_of(model: str, pipeline: str) -> frozenset[str]:
    """What a run names that may lie anywhere on this machine's disk: a model that is no hub id, and files of its methods."""
    named = {path for method in Pipeline.parse(pipeline).methods.values() for path in method.files().values()}
    return frozenset(named if is_hub_id(model) else {model, *named})


def is_hub_id(model: str) -> bool:
    """Whether a model's name is the embedded one's, or could be that of a model on the hub: name or owner/name."""
    return _HUB_ID.fullmatch(model) is not None and not model.endswith((".gguf", ".git")) and ".." not in model


def read_model(given: str) -> str:
    """A model's name as it was typed or linked. Raises ValueError for what can be none."""
    name = given.strip()
    if not name or len(name) > _MODEL_LETTERS or not name.isprintable():
        raise ValueError(
            f"a model is a hub id, a folder or {EMBEDDED}, in at most {_MODEL_LETTERS:,} printable characters; "
            f"got {given[:40]!r}"
        )
    return name


def _prompt(parameters: Mapping[str, str]) -> str:
    if "text" in parameters:
        return parameters["text"]
    name = parameters.get("prompt", "needle")
    text = PROMPTS[name].text if name in PROMPTS else kept_prompt(name)
    if text is None:
        raise ValueError(
            f"there is no prompt {name[:40]!r} in the library, and one too long for a link is found again only where it was run"
        )
    return text


def _number(given: str, most: int) -> int:
    if not re.fullmatch("[0-9]{1,10}", given) or int(given) > most:
        raise ValueError(
            f"generate and seed are whole numbers, at most {MOST_NEW} and {MOST_SEED:,}; got {given[:40]!r}"
        )
    return int(given)
