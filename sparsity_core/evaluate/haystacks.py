"""A needle at many depths of haystacks of many lengths, asked of a model under a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from sparsity_core.evaluate.needles import DEPTHS, LENGTHS, NEW_TOKENS, Needle, NeedleFound, needle_of
from sparsity_core.evaluate.ruler import string_match
from sparsity_core.inference import asked_of_prompt, generate, pipeline_of, whole
from sparsity_core.kinds import Pipeline
from sparsity_core.models import Model
from sparsity_core.record import Trace
from sparsity_core.work import Progress, silent

_WRITING = 2 / 3  # of a cell's time, where it is compared with the dense model; the rest is feeding the answer

Write = Callable[[Needle, Progress], Trace]


def haystack(
    model: Model,
    pipeline: Pipeline | str | None = None,
    *,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    seed: int = 0,
    add_bos: str = "auto",
    question: str = "auto",
    write: Write | None = None,
    progress: Progress = silent,
) -> list[NeedleFound]:
    """Whether a number hidden at each depth of a haystack of each length is found, and how unlikely it was.

    The pipeline reads the prompt, and then writes at most `NEW_TOKENS` tokens greedily from the cache that it left. `loss` is
    over the answer's own tokens: where others were written, the answer is fed from that same cache instead. RULER (Hsieh et al.,
    arXiv:2404.06654) scores `found` alone, and draws the depth.

    Args:
        lengths, depths: of the grid, which is measured length by length.
        seed: of the number and its key, the same in all cells, and of random eviction.
        question: as in `generate`: "unknown" reads at once what stands before the prompt's question.
        write: makes a needle's `Trace` in place of `generate`, such as one that looks into a `Store`; it is to be of the same
            pipeline and seed.

    Raises ValueError for what `needles_of` and `generate` refuse.
    """
    chosen, found, done = pipeline_of(pipeline), list[NeedleFound](), 0
    needles = needles_of(model, lengths, depths, seed=seed, add_bos=add_bos)
    total = sum(needle.n_tokens for needle in needles)
    for needle in needles:
        begun, own = done / total, needle.n_tokens / total
        told = partial(_tell, progress, needle, begun, own * _WRITING)
        feeding = partial(_tell, progress, needle, begun + own * _WRITING, own * (1 - _WRITING))
        if write is not None:
            written = write(needle, told)
        else:
            written = generate(
                model, needle.prompt, chosen, max_new_tokens=NEW_TOKENS, seed=seed, add_bos=add_bos, snapshots=0,
                question=question, against_dense=False, progress=told,
            ).trace  # fmt: skip
        match = string_match({"answers": [needle.answer]}, [written.continuation])
        loss = answer_loss(
            model, chosen, needle, written, seed=seed, add_bos=add_bos, question=question, progress=feeding
        )
        found.append(NeedleFound(needle, loss, bool(match["string_match"]), written.continuation))
        done += needle.n_tokens
    return found


def needles_of(
    model: Model, lengths: Sequence[int], depths: Sequence[float], *, seed: int = 0, add_bos: str = "auto"
) -> list[Needle]:
    """The needles of a grid, length by length. Raises ValueError for a grid with no cell, and for lengths that do not fit."""
    lengths, most = [whole("a length", length) for length in lengths], model.arch.max_positions - NEW_TOKENS
    for name, values in (("lengths", lengths), ("depths", list(depths))):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} are different numbers, at least one; got {values}")
    if max(lengths) > most:
        raise ValueError(
            f"{model.name} reads at most {model.arch.max_positions:,} tokens, of which the answer takes up to {NEW_TOKENS}: "
            f"choose a length of at most {most:,}; got {max(lengths):,}"
        )
    start = len(model.encode("a", add_bos)) - len(model.encode_all("a"))  # special tokens

    def count(text: str) -> int:
        return start + len(model.encode_all(text))

    return [needle_of(count, length, depth, seed) for length in lengths for depth in depths]


def _tell(progress: Progress, needle: Needle, before: float, own: float, share: float, doing: str) -> None:
    progress(before + own * share, f"{needle.length:,} tokens, depth {needle.depth:.0%}: {doing}")


def answer_loss(
    model: Model,
    pipeline: Pipeline,
    needle: Needle,
    written: Trace,
    *,
    seed: int = 0,
    add_bos: str = "auto",
    question: str = "auto",
    progress: Progress = silent,
) -> float:
    """The mean −log p of the answer's tokens after the prompt, in nats; `written` is what was generated after it."""
    prompt = model.encode(needle.prompt, add_bos)
    answer = model.encode(f"{needle.prompt} {needle.answer}", add_bos)[len(prompt) :]
    n, end = len(prompt), len(prompt) + len(answer)
    if written.token_ids[n:end].tolist() != answer:
        cut = asked_of_prompt(model, prompt, question, None) or n
        written = generate(
            model, [*prompt, *answer], pipeline, n_prefill=cut, max_new_tokens=1, seed=seed, snapshots=0, against_dense=False,
            progress=progress,
        ).trace  # fmt: skip
    return float(written.nll[n - 1 : end - 1].astype(np.float64).mean())
