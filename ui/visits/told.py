"""What the five guided examples tell. Every number is computed of the bundled results; tests hold what is said in words."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from sparsity_core import studies
from sparsity_core.kinds import WeightMethod
from sparsity_core.methods.decode.double_sparsity.channels import SHIPPED, Channels
from sparsity_core.record import Trace
from sparsity_core.studies import WeightStudy
from ui.address import EXAMPLE, GATED, PATTERNED
from ui.literal import code
from ui.visits.visit import Step, Visit, bundled

FORGETS = replace(EXAMPLE, generate=0)
CLINGS = replace(EXAMPLE, generate=0, pipeline="eviction=a2sf(budget=64, forgetting_factor=1.0)")
_FIRST = 16  # tokens of a text's start
_CODE = slice(122, 126)  # where the example's prompt says 7421
_CHANNELS = 16


def kept_of(trace: Trace, tokens: slice) -> float:
    """The share of these tokens that the cache still has at the end, over all layers and heads."""
    return float((trace.evicted_at[:, :, tokens] >= trace.n_tokens).mean())


def _measured(name: str) -> Step:
    """The last step: the paper's claim beside what the committed sweep measured."""
    claim = studies.claim_named(name)
    rows = studies.shipped_rows(claim)
    direction = studies.direction_of(claim, rows)
    verdict = {
        studies.SAME: "Every pair goes the same way here.",
        studies.OTHER: "At least one pair goes the other way here.",
        studies.OPEN: "At least one pair cannot be told apart here.",
    }.get(direction, "It names no two methods in an order, so there is none to confirm.")
    return Step(
        "reproduce",
        f"One text proves little. “{claim.says}” is the claim ({claim.paper}); it was measured on "
        f"{rows['line'].nunique()} passages. {verdict}",
        "The bars: each is the loss that a pipeline adds to the dense model's, with the interval of 95 % of resamples.",
        choices={"claim": name},
    )


@cache
def _a2sf() -> tuple[Step, ...]:
    forgets, clings = bundled(FORGETS), bundled(CLINGS)
    pair, names, last = (FORGETS, CLINGS), ("forgets", "clings"), forgets.n_tokens - 1
    start = [kept_of(trace, slice(_FIRST)) for trace in (forgets, clings)]
    needle = [kept_of(trace, _CODE) for trace in (forgets, clings)]
    worst = int(np.nanargmax(clings.kl_to_dense))
    return (
        Step(
            "tokens",
            "A and B keep 64 keys a head of the same prompt. Each adds up the attention that a key gets. B, with a factor of 1, "
            "forgets nothing, as in H2O (which keeps a recent window besides); A (A2SF) multiplies the sum by 0.3 at every "
            f"step. At the end A still has {start[0]:.0%} of the first {_FIRST} tokens, over all layers and "
            f"heads, and B {start[1]:.0%}.",
            "The left edge of the two atlases: filled cells are dropped. Old tokens had more steps to collect attention, and B "
            "hardly lets go of them.",
            pair,
            names,
            {"layer": 15, "head": 0, "token": 8, "step": last},
        ),
        Step(
            "scores",
            "The same rule, seen as numbers: without forgetting a score can only grow, so a late token starts far behind. With a "
            "factor of 0.3, what a key got ten steps ago counts less than a hundred-thousandth.",
            "In B every line only climbs. In A a line sinks as soon as nobody reads its token. A cross: it was dropped.",
            pair,
            names,
            {"layer": 15, "head": 0, "token": 0, "step": last},
        ),
        Step(
            "tokens",
            "What that costs on this text: the mean KL divergence to the dense model is "
            f"{np.nanmean(forgets.kl_to_dense):.2f} nats a token in A and {np.nanmean(clings.kl_to_dense):.2f} in B. "
            f"B's worst is token {worst}, {code(clings.tokens[worst])}.",
            "The curves under *Where forgetting hurts*, and the tokens that both strips disagree about.",
            pair,
            names,
            {"layer": 15, "head": 0, "token": worst, "step": worst},
        ),
        Step(
            "tokens",
            f"Neither is safe: the code that the question asks for stands at tokens {_CODE.start} to {_CODE.stop - 1}, and at "
            f"the end A has {needle[0]:.0%} of it and B {needle[1]:.0%}. No score of the past knows what will be asked.",
            "The sentence under each strip tells when the chosen digit was dropped, and while which token was read.",
            pair,
            names,
            {"layer": 15, "head": 0, "token": _CODE.start, "step": last},
        ),
        _measured("a2sf"),
    )


@cache
def _dcp() -> tuple[Step, ...]:
    trace = bundled(GATED)
    gone = trace.gated_at < trace.n_tokens
    of_layer = gone.mean(1)
    layer = int(of_layer.argmax())
    by = trace.dropped_by(layer).max(axis=0)
    dropper = int(np.bincount(by[by >= 0], minlength=trace.n_tokens).argmax())
    dropped = int((by == dropper).sum())
    specs, last = (GATED,), trace.n_tokens - 1
    return (
        Step(
            "gate",
            "A trained gate (dynamic context pruning) asks of each pair of tokens: may the later drop the earlier, for good and "
            f"from all heads of this layer? Here it dropped {gone.mean():.0%} of the tokens, over all "
            f"layers; {of_layer[layer]:.0%} in layer {layer}.",
            "The map of the layer's logits of each pair, and a cross at the first query that drops each key.",
            specs,
            view={"layer": layer, "head": 0, "token": dropper, "step": last},
        ),
        Step(
            "tokens",
            f"In layer {layer} token {dropper}, {code(trace.tokens[dropper])}, drops {dropped} earlier tokens by itself, more "
            "than any other token there.",
            "*Which token dropped which*, near the foot of the page: the arcs from each cross to the triangle that dropped it.",
            specs,
            view={"layer": layer, "head": 0, "token": dropper, "step": last},
        ),
        Step(
            "gate",
            f"The layers differ: {int((of_layer < 0.01).sum())} of {trace.n_layers} drop less than one token in a hundred, "
            f"{int((of_layer > 0.3).sum())} drop more than three in ten.",
            "*What is kept, and of what kind*: which layers keep their context, and which kinds of tokens go.",
            specs,
            view={"layer": int(of_layer.argmin()), "head": 0, "token": dropper, "step": last},
        ),
        _measured("dcp"),
    )


@cache
def _double_sparsity() -> tuple[Step, ...]:
    calibrated = Channels.load(SHIPPED / bundled(EXAMPLE).provenance.fingerprint)
    layer, dim = 15, calibrated.magnitudes["qk"].shape[2]
    values = np.sort(calibrated.per_kv_head("qk")[layer, 0])[::-1]
    held = float(values[:_CHANNELS].sum() / values.sum())
    shared = {s: float(calibrated.overlap(calibrated, "qk", s, _CHANNELS).mean()) for s in ("q", "k")}
    nearest = max(shared, key=lambda s: shared[s])
    view = {"layer": layer, "head": 0}
    chosen = {"statistic": "qk", "r": str(_CHANNELS), "share": "0.25"}
    return (
        Step(
            "channels",
            "Which channels tell how large q·k will be? Double Sparsity measures that once, on a text of its own. In layer "
            f"{layer}, KV head 0, the {_CHANNELS} largest of {dim} channels hold {held:.0%} of what all of them have.",
            "The circles: the channels that a label cache would keep. Each row is relative to its own median.",
            view=view,
            choices=chosen,
        ),
        Step(
            "channels",
            f"Ranked by the keys alone, or the queries alone, other channels win: of the {_CHANNELS} by q·k, those by q share "
            f"{shared['q']:.0%} and those by k {shared['k']:.0%}, the mean over layers and heads. By chance it would be "
            f"{_CHANNELS / dim:.0%}.",
            f"*Do the statistics agree?* The pair that is nearer to q·k is {nearest}. The circles above are now those of k.",
            view=view,
            choices={**chosen, "statistic": "k"},
        ),
        Step(
            "channels",
            f"A step then reads {_CHANNELS} of {dim} channels of every key to choose, and a quarter of the keys and values "
            f"whole: {(_CHANNELS / dim + 0.25 * 2) / 2:.1%} of what dense attention reads.",
            "The sliders *Channels r* and *Share read*; the buttons below measure what each pair costs on this text.",
            view=view,
            choices=chosen,
        ),
        _measured("double_sparsity"),
    )


def _study(method: WeightMethod) -> WeightStudy:
    uncut = studies.bundled_uncut(EXAMPLE.model, EXAMPLE.dtype)
    found = None if uncut is None else studies.find_study(uncut.fingerprint, uncut.dtype, method)
    if found is None:
        raise LookupError(f"the bundled study of {method} is not there: run `make assets`")
    return found


def ffn_studies() -> dict[str, WeightStudy]:
    """What ships of every method that cuts FFN neurons at the bundled ratio, as spelled."""
    found = {str(method): _study(method) for method in studies.contenders(studies.RATIO)}
    return {name: study for name, study in found.items() if mean_gap(study) > 0}  # head pruning leaves the FFN alone


def mean_gap(study: WeightStudy) -> float:
    """D of the first matrix, the mean over the layers."""
    return float(study.measure("ks")[:, 0].mean())


@cache
def _prunenet() -> tuple[Step, ...]:
    method = next(m for m in studies.contenders(studies.RATIO) if m.name == "prunenet")
    own, found = _study(method), ffn_studies()
    chance = [study for name, study in found.items() if name.startswith("random_neurons")]
    cheapest = min(found, key=lambda name: found[name].perplexity)
    gaps = own.measure("ks")[:, 0]
    layer = int(gaps.argmax())
    low, high = min(s.perplexity for s in chance), max(s.perplexity for s in chance)
    choices = {"weights": str(method), "matrix": own.matrices[0], "layer": str(layer)}
    return (
        Step(
            "spectra",
            "PruneNet learns from the weights alone which neurons to cut, so that each matrix keeps its spectrum. At a ratio of "
            f"{own.ratio:.0%} the largest gap D between the singular values' distribution functions is {gaps[layer]:.2f} in "
            f"layer {layer}, more than in any other layer.",
            "The two curves, and the bracket where they are furthest apart. The slider *Ratio* draws others at once.",
            choices=choices,
        ),
        Step(
            "spectra",
            f"It does what it was trained for: over the layers D is {mean_gap(own):.3f} in the mean, and "
            f"{np.mean([mean_gap(study) for study in chance]):.3f} where the neurons are drawn at random.",
            "*Every layer and matrix*: the map of D. A click on a cell shows its spectrum above.",
            choices=choices,
        ),
        Step(
            "spectra",
            f"The model pays for it: its perplexity goes from {own.dense_perplexity:.1f} to {own.perplexity:,.0f}, with random "
            f"neurons to between {low:,.0f} and {high:,.0f}. {code(cheapest)} costs least of all here, "
            f"{found[cheapest].perplexity:.1f}, with a D of {mean_gap(found[cheapest]):.3f}. "
            "A spectrum that stays is no sign of a model that works.",
            "*Every method at a ratio*, near the foot of the page: D against the rise in perplexity, on a logarithmic axis.",
            choices=choices,
        ),
        _measured("prunenet"),
    )


@cache
def _assa() -> tuple[Step, ...]:
    trace = bundled(PATTERNED)
    record = trace.prefill
    if record is None:
        raise LookupError("the bundled run of a pattern has no prefill stage: run `make assets`")
    shown = record.shown[..., : trace.n_prompt].mean((1, 2)) / ((trace.n_prompt + 1) / 2)
    coverage = np.nanmean(record.coverage, axis=(1, 2))
    low, high = int(coverage.argmin()), int(coverage.argmax())
    specs, step = (PATTERNED,), trace.n_prompt - 1
    return (
        Step(
            "patterns",
            "Adaptive structured sparse attention shows each query of the prompt a window and some blocks of 32 keys that it "
            f"chooses. Here it shows {shown.mean():.0%} of the prompt's pairs, and these hold {coverage.mean():.0%} of the dense "
            f"attention. Layer {low} has the least, {coverage[low]:.0%}.",
            "Grey is the dense attention, the tint what is shown: grey without tint is lost.",
            specs,
            view={"layer": low, "head": 0, "token": 0, "step": step},
        ),
        Step(
            "patterns",
            f"Layer {high} loses least: it shows {shown[high]:.0%} of the pairs, and these hold {coverage[high]:.1%} of its "
            "dense attention.",
            "The same map for this layer: where its grey lies, and how little of it has no tint.",
            specs,
            view={"layer": high, "head": 0, "token": 0, "step": step},
        ),
        Step(
            "tokens",
            "What is hidden is not gone: all keys stay in the cache, and what the model writes after the prompt sees them. So a "
            "pattern saves operations while the prompt is read, and no memory.",
            "The atlas: a bar is hidden from the query at this step. Move the step beyond the prompt, and the bars are gone.",
            specs,
            view={"layer": low, "head": 0, "token": 0, "step": step},
        ),
        _measured("assa"),
    )


VISITS = {
    visit.name: visit
    for visit in (
        Visit("a2sf", "A2SF", "A2SF forgets the start that H2O clings to", _a2sf),
        Visit("dcp", "DCP", "A gate learns which tokens may go", _dcp),
        Visit("double_sparsity", "Double Sparsity", "A few channels find the keys that matter", _double_sparsity),
        Visit("prunenet", "PruneNet", "A spectrum that stays, and what it is worth", _prunenet),
        Visit("assa", "ASSA", "Each prompt query sees a pattern", _assa),
    )
}
