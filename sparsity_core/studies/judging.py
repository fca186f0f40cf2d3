"""Does the score know what matters? Drops some tokens one at a time, and holds every method's scores against the effects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsity_core.kinds import Pipeline
from sparsity_core.models import Model
from sparsity_core.studies.drops import Drop, effects_of
from sparsity_core.studies.judge_study import ALL_LAYERS, FORESIGHT, JudgeStudy
from sparsity_core.studies.judges import all_judges, attention_to_come, mean_ranks, scores_of
from sparsity_core.work import Progress, silent

_JUDGING = 0.1  # of the work, roughly


def study_judges(
    model: Model,
    ids: Sequence[int],
    step: int | None = None,
    *,
    drops: int = 32,
    width: int = 1,
    horizon: int = 32,
    layers: Sequence[int] | None = None,
    judges: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> JudgeStudy:
    """Drops sampled tokens after `step` from all layers, and from each of some layers, and measures what is lost.

    Args:
        step: the last query that sees all tokens; where None, so that `horizon` tokens of the text come after it.
        drops: how many places of the text are sampled, evenly at random and without repetition, of the tokens up to `step`.
        width: neighbouring tokens that leave together.
        horizon: queries after the step over which the effect is the mean; as many as the text has where it has fewer.
        layers: those from which tokens are dropped by themselves, beside the drop from all at once; all where None.
        judges: pipelines of one method each, as they are spelled; every method that has scores where None. A last judge
            knows the attention to come. One that gives no scores is left out, and the study says why.

    Raises ValueError for numbers that the text or the model cannot serve, and whatever `progress` raises to cancel.
    """
    ids, n = list(ids), len(ids)
    step = n - 2 - horizon if step is None else step
    model.check_length(n)
    _check(model, n, step, drops, width, horizon, layers)
    ids = ids[: step + 2 + horizon]
    starts = np.arange(0, step + 2 - width, width)
    chosen = np.sort(np.random.default_rng(seed).choice(starts, min(drops, len(starts)), replace=False)).astype(
        np.int32
    )
    places = np.array([ALL_LAYERS, *(range(model.arch.n_layers) if layers is None else layers)], np.int32)
    asked = all_judges() if judges is None else [str(Pipeline.parse(judge)) for judge in judges]
    names, ranks, left_out = _judged(model, ids, step, asked, progress)
    every = np.array([chosen + i for i in range(width)])  # [width, K]
    at = np.stack([ranks.mean(1) if place == ALL_LAYERS else ranks[:, place] for place in places], 1)  # [J, P, T]
    made = [Drop(tuple(every[:, i].tolist()), int(place)) for place in places for i in range(len(chosen))]
    kl, nll = effects_of(
        model, ids, step, [Drop(()), *made], lambda share, doing: progress(_JUDGING + (1 - _JUDGING) * share, doing)
    )
    shape = (len(places), len(chosen))
    return JudgeStudy(
        step=step,
        width=width,
        horizon=len(ids) - 2 - step,
        keys=chosen,
        places=places,
        kl=kl[1:].reshape(shape).astype(np.float32),
        nll=nll[1:].reshape(shape).astype(np.float32),
        noise=float(kl[0]),
        judges=names,
        ranks=at[:, :, every].mean(2),
        left_out=left_out,
    )


def _judged(
    model: Model, ids: list[int], step: int, judges: Sequence[str], progress: Progress
) -> tuple[tuple[str, ...], np.ndarray, tuple[tuple[str, str], ...]]:
    """(names, ranks [J, L, step + 1], those left out with the reason); the one that knows what comes is the last."""
    names, ranks, left_out = [], [], []
    for i, judge in enumerate(judges):
        progress(_JUDGING * i / len(judges), f"{judge.partition('=')[2].partition('(')[0]} judges")
        try:
            ranks.append(mean_ranks(scores_of(model, ids[: step + 1], judge)))
            names.append(judge)
        except ValueError as error:
            left_out.append((judge, str(error)))
    ranks.append(mean_ranks(attention_to_come(model, ids[:-1], step)))
    return (*names, FORESIGHT), np.stack(ranks), tuple(left_out)


def _check(model: Model, n: int, step: int, drops: int, width: int, horizon: int, layers: Sequence[int] | None) -> None:
    if horizon < 1 or not 8 <= step + 1 <= n - 2:
        raise ValueError(
            f"the text has {n} tokens: dropping after step {step} needs at least 8 up to it, and 2 after it; "
            "choose an earlier step, fewer tokens to look at, or a longer text"
        )
    if drops < 4:
        raise ValueError(f"at least 4 drops are needed for a correlation; got {drops}")
    if not 1 <= width <= (step + 1) // 4:
        raise ValueError(f"a drop takes 1 to {(step + 1) // 4} neighbouring tokens here; got {width}")
    wrong = [layer for layer in layers or () if not 0 <= layer < model.arch.n_layers]
    if wrong:
        raise ValueError(f"{model.name} has layers 0 to {model.arch.n_layers - 1}; got {wrong[0]}")
