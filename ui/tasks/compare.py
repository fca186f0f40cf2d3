"""What the Compare page asks of the model: one query's dense attention, many texts, needles in haystacks, as jobs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sparsity_core.evaluate import NEW_TOKENS, Needle, NeedleFound, Profile, profile_of
from sparsity_core.record import RunSpec, Store, Trace
from sparsity_core.work import Progress

if TYPE_CHECKING:
    import numpy as np


def query_attention(spec: RunSpec, ids: tuple[int, ...], progress: Progress) -> np.ndarray:
    """The dense model's attention [L, H, T] of the last of these tokens, in every layer and head."""
    from sparsity_core.models import load
    from sparsity_core.studies import attention_of_last

    progress(0.0, f"loading {spec.model}")
    return attention_of_last(load(spec.model, device=spec.device, dtype=spec.dtype), ids, progress)


@dataclass(frozen=True, eq=False)
class Measured:
    """What a pipeline did on one of many texts."""

    loss: float  # mean −log p of its later half, nats a token
    row: dict[str, float]  # of viz.compare.text_row
    profile: Profile


def over_texts(spec: RunSpec, texts: tuple[str, ...], passages: int, length: int, progress: Progress) -> list[Measured]:
    """What a spec's pipeline does on each of these texts; where there are none, on the first passages of the evaluation text."""
    from sparsity_core.evaluate import later_loss, over_texts, passages_of
    from sparsity_core.models import evaluation_text, load
    from viz.compare import text_row

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    return over_texts(
        model,
        texts or passages_of(model, evaluation_text(), passages, length),
        lambda trace: Measured(later_loss(trace), text_row(trace), profile_of(trace)),
        spec.pipeline,
        seed=spec.seed,
        add_bos=spec.add_bos,
        progress=progress,
    )


def haystack(
    spec: RunSpec, lengths: tuple[int, ...], depths: tuple[float, ...], progress: Progress
) -> list[NeedleFound]:
    """What a spec's pipeline makes of a needle at each length and depth; each is a run that the store keeps."""
    from sparsity_core.evaluate import haystack
    from sparsity_core.inference import execute
    from sparsity_core.models import load

    def write(needle: Needle, told: Progress) -> Trace:
        own = needle_run(spec, needle)
        trace = Store().get(own)
        if trace is None:
            trace = execute(own, told)
            Store().put(own, trace)
        return trace

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    return haystack(
        model, spec.pipeline, lengths=lengths, depths=depths, seed=spec.seed, add_bos=spec.add_bos,
        question=spec.question, write=write, progress=progress,
    )  # fmt: skip


def needle_run(spec: RunSpec, needle: Needle) -> RunSpec:
    """The run of a needle's prompt, of which the store keeps the trace."""
    return replace(spec, prompt=needle.prompt, generate=NEW_TOKENS)
