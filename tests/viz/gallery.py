"""Every figure of viz, of one trace made by hand: what holds for all of them is tried on these."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

import viz
from sparsity_core.evaluate import Needle, NeedleFound, profile_of
from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS, Channels
from sparsity_core.record.trace import Trace
from sparsity_core.studies import SHARES, AttentionLook, ChannelStudy, GateLook, History, JudgeStudy, Read, WeightStudy
from sparsity_core.studies.spectra_records import MEASURES
from tests.traces import named
from viz import (
    atlas,
    channels,
    compare,
    cost,
    gate,
    judges,
    patterns,
    pipeline,
    removed,
    reproduced,
    scores,
    shares,
    spectra,
    strip,
    sweep,
)

LAYERS, HEADS = 2, 2
_SIZES = {
    **{"pair_flops": np.full(LAYERS, 256), "neurons": np.full(LAYERS, 8), "neurons_left": np.full(LAYERS, 8)},
    **{"head_dim": 16, "ranked_channels": 16, "weight_bytes": 1000, "weight_bytes_left": 1000},
    **{"token_flops": 2000, "token_flops_left": 2000, "index_bytes": 0},
}


def plots_of_viz() -> dict[str, Callable[..., go.Figure]]:
    """Every function `plot_…` of every file of viz, by its name."""
    found = {}
    for module in pkgutil.walk_packages(viz.__path__, "viz."):
        inside = vars(importlib.import_module(module.name))
        own = {n: f for n, f in inside.items() if n.startswith("plot_") and f.__module__ == module.name}
        found |= own
    return found


def plots(made: Trace) -> dict[str, go.Figure]:
    """Each plot of viz, of one trace and of studies whose texts are the trace's tokens."""
    return (
        _of_traces(made)
        | _of_patterns(made)
        | _of_gates(made)
        | _of_channels(made)
        | _of_weights(made)
        | _of_judges(made)
    )


def _of_traces(made: Trace) -> dict[str, go.Figure]:
    beside = named("eviction=a2sf(budget=4)", tokens=made.tokens)
    table = atlas.atlas_table(made, "first", step=5)
    loss = {made.tokens[0]: cost.loss_table(made)}
    similar = cost.similarity_table({made.tokens[0]: made, made.tokens[1]: beside})
    looks = dict(zip(made.tokens, viz.distinct_looks(["a2sf", "a2sf"]), strict=False))
    runs = {f"A: {made.tokens[0]}": made, f"B: {made.tokens[1]}": beside}
    looks |= dict(zip(runs, looks.values(), strict=True))
    quality = compare.tradeoff_table(runs)
    tested = compare.tested_table({name: np.arange(4.0) * at for at, name in enumerate(runs)}, next(iter(runs)))
    behind = compare.behind_table(made, np.full((LAYERS, made.n_heads, 6), 1 / 6, np.float32), 5)
    needle = Needle(256, 0.5, "prompt", "1234567", 250, 100)
    sought = {name: [NeedleFound(needle, 0.5 * at, not at, made.tokens[at])] for at, name in enumerate(runs)}
    profiles = {name: [profile_of(made, 4), profile_of(beside, 4)] for name in runs}
    bands = compare.bands_table(profiles, {name: texts[0] for name, texts in profiles.items()})
    return {
        "plot_bands": compare.plot_bands(bands, looks, one=made.tokens[0]),
        "plot_haystack": compare.plot_haystack(compare.haystack_table(sought), (256, 0.5)),
        "plot_tradeoff": compare.plot_tradeoff(quality, looks, "kl", "held"),
        "plot_tested": compare.plot_tested(tested, looks),
        "plot_kl": compare.plot_kl(compare.kl_table(runs), 5),
        "plot_contested": compare.plot_contested(compare.contested_table(runs, "first", 5), 2, (0, 3)),
        "plot_agreement": compare.plot_agreement(compare.agreement_table(runs, next(iter(runs))), looks, "jaccard", 0),
        "plot_spans": compare.plot_spans(compare.spans_table(runs), looks, "kept"),
        "plot_behind": compare.plot_behind(behind),
        "plot_atlas": atlas.plot_atlas(table, n_prompt=6, step=5, selected=(0, 3)),
        "plot_overview": atlas.plot_overview(atlas.pooled_table(table, 4), (0, 4)),
        "plot_difference": atlas.plot_difference(
            atlas.difference_table(made, beside), cost.pair_colours(made, beside), (made.tokens[0], made.tokens[1])
        ),
        "plot_removed": removed.plot_removed(removed.removed_table(made)),
        "plot_pipeline": pipeline.plot_pipeline(
            pipeline.pipeline_table(made.replaced(**_SIZES), removed.removed_table(made))
        ),
        "plot_strip": strip.plot_strip(strip.strip_table(made, 0, 0, 5)),
        "plot_scores": scores.plot_scores(scores.score_table(made, 0, 0, [0, 1, 2, 3, 4]), step=5),
        "plot_similarity": cost.plot_similarity(similar, looks, "retained", 0),
        "plot_regret": cost.plot_regret({made.tokens[0]: cost.regret_table(made)}),
        "plot_loss": cost.plot_loss(loss, looks, 5),
        "plot_sweep": sweep.plot_sweep(
            sweep.sweep_table({0.1: made, 0.9: beside}), "regret", knob="α", method="a2sf", layer=0
        ),
        "plot_shares": shares.plot_shares(pd.DataFrame([[0.0, 0.5], [1.0, np.nan]]), "share", "share %{z:.0%}"),
    }


def _of_patterns(made: Trace) -> dict[str, go.Figure]:
    n = made.n_tokens
    even = np.tril(np.ones((HEADS, 1, 1), np.float32))
    look = AttentionLook(0, n, even, np.full((HEADS, n), 1 / n, np.float32))
    point = {"density": 0.5, "coverage": 0.75, "looks_ahead": 0.0}
    seen = patterns.hierarchy_table(made, 0, 0, n - 1)
    return {
        "plot_pattern": patterns.plot_pattern(patterns.pattern_table({made.tokens[0]: made}, 0, 0, look), 2),
        "plot_along": patterns.plot_along(patterns.along_table(made, look, 0, 0, n - 1), 2),
        "plot_segments": patterns.plot_segments(patterns.segments_table(made, look, 0, 0, n - 1)),
        "plot_hierarchy": patterns.plot_hierarchy(seen.assign(text=made.tokens[0]), 2),
        "plot_densities": patterns.plot_densities(patterns.densities_table({("assa", made.tokens[1]): point})),
    }


def _of_gates(made: Trace) -> dict[str, go.Figure]:
    gated = made.replaced(gated_at=made.evicted_at.min(axis=1))
    x = np.random.default_rng(0).normal(size=(made.n_tokens,) * 2).astype(np.float32)
    look = GateLook(0, 0, x)
    kept = gate.point_of(made)
    curve = {"curve": {"loss": [2.0, 1.5, 1.0], "kept": [1.0, 0.9, 0.8]}}
    return {
        "plot_links": gate.plot_links(gate.link_table(gated, 0, (0, made.n_tokens)), (0, made.n_tokens), selected=1),
        "plot_interactions": gate.plot_interactions(look, made.tokens, 5, 2),
        "plot_sigmoid": gate.plot_sigmoid(gate.sigmoid_table(), {made.tokens[0]: 0.5}, 0.0),
        "plot_kept": gate.plot_kept(gate.kept_table(made)),
        "plot_kinds": gate.plot_kinds(gate.kinds_table(made.replaced(classes=made.tokens))),
        "plot_family": gate.plot_family(
            gate.family_table({("dcp", made.tokens[0]): kept, ("h2o", made.tokens[1]): kept})
        ),
        "plot_training": gate.plot_training(gate.training_table(curve), distilled=True),
    }


def calibrated(dim: int = 8) -> Channels:
    rng = np.random.default_rng(0)
    values = {name: rng.lognormal(size=(LAYERS, 2 * HEADS, dim)).astype(np.float32) for name in STATISTICS}
    return Channels(values, HEADS)


def channel_study(counts: tuple[int, ...] = (4, 8)) -> ChannelStudy:
    found = np.random.default_rng(1).random((len(STATISTICS), LAYERS, HEADS, len(counts), len(SHARES)))
    return ChannelStudy(counts, np.arange(3, dtype=np.int32), found.astype(np.float32), found.astype(np.float32))


def _of_channels(made: Trace) -> dict[str, go.Figure]:
    found, n = calibrated(), made.n_tokens
    quality = channels.quality_table(channel_study())
    exact = np.tril(np.ones((n, n), np.float32)) / np.arange(1, n + 1)[:, None]
    rank = np.where(np.tri(n, dtype=bool), np.arange(n), n)
    read = Read(np.arange(n, dtype=np.int32), np.stack([exact] * HEADS), np.stack([rank] * HEADS).astype(np.int32))
    lost = np.arange(n) == 1
    points = {(f"double_sparsity {made.tokens[0]}", 0.5): channels.curve_point(made)}
    reads = made.replaced(
        selected=np.ones((LAYERS, HEADS, n), np.float32),
        selected_mass=np.ones((LAYERS, made.n_heads, n), np.float32),
        selected_recall=np.ones((LAYERS, HEADS, n), np.float32),
        bytes_ahead=1,
        bytes_late=1,
        drift=np.full((LAYERS, 2), 0.75, np.float32),
        drift_steps=np.asarray([3, 6], np.int32),
        prefetch_hits=np.asarray([np.nan, 0.5], np.float32),
    )
    return {
        "plot_magnitudes": channels.plot_magnitudes(channels.magnitude_table(found, "qk"), 4, "qk", selected=1),
        "plot_overlap": channels.plot_overlap(channels.overlap_table(found, 4), 0.5),
        "plot_quality": channels.plot_quality(quality, "mass", 4),
        "plot_surface": channels.plot_surface(quality, "recall", "qk"),
        "plot_read": channels.plot_read(channels.read_table(read, made.tokens, 0, n - 1, 0.5, lost)),
        "plot_curve": channels.plot_curve(channels.curve_table(points)),
        "plot_selected": channels.plot_selected(channels.selected_table(reads, 0, (0, n)), selected=(1, 2)),
        "plot_drift": channels.plot_drift(channels.drift_table(reads)),
        "plot_prefetch": channels.plot_prefetch(channels.prefetch_table(reads, lambda layer: 0.25)),
    }


def weight_study(method: str, ks: float, perplexity: float) -> WeightStudy:
    measures = np.zeros((LAYERS, 1, len(MEASURES)))
    measures[:, :, MEASURES.index("ks")] = ks
    return WeightStudy(
        model="hand-made", fingerprint="0", dtype="float32", method=method, ratio=0.25, matrices=("up",), n_neurons=8,
        measures=measures, after=np.zeros((0, 0, 0), np.float32), bits=np.zeros((LAYERS, 1), np.uint8), true_cut=0.1,
        perplexity=perplexity, dense_perplexity=10.0, convention="a text", seconds=1.0,
    )  # fmt: skip


def _of_weights(made: Trace) -> dict[str, go.Figure]:
    values = np.asarray([4.0, 3.0, 2.0, 1.0])
    study = [weight_study("leverage(ratio=0.25)", 0.25, 12.0), weight_study("row_norm(ratio=0.25)", 0.5, 200.0)]
    history = History(ks=(0.5, 0.375), reward=(3.0, 3.25), starts={made.tokens[0]: 0.75}, ratio=0.25)
    distances = spectra.distance_table(replace(study[0], matrices=(made.tokens[0],)))
    neurons = spectra.neuron_table(values, values, values, values > 1)
    return {
        "plot_spectrum": spectra.plot_spectrum(
            spectra.spectrum_table(values, values[:3] / 1.5), {"ks": 0.5, "ks_at": 2.0}, method="leverage"
        ),
        "plot_distances": spectra.plot_distances(distances, "ks", (1, made.tokens[0])),
        "plot_neurons": spectra.plot_neurons(neurons, first=made.tokens[0]),
        "plot_history": spectra.plot_history(spectra.history_table(history), method="x", starts=history.starts),
        "plot_comparison": spectra.plot_comparison(
            spectra.comparison_table(study, "up"), made.tokens[0], "leverage(ratio=0.25)"
        ),
    }


def _of_judges(made: Trace) -> dict[str, go.Figure]:
    drops = np.arange(5)
    study = JudgeStudy(
        step=5,
        width=1,
        horizon=2,
        keys=(drops % made.n_tokens).astype(np.int32),
        places=np.array([-1, 0, 1], np.int32),
        kl=np.array([[1e-3, 2e-3, 5e-2, 1e-6, 0.4]] * 3, np.float32),
        nll=np.array([[1e-3, -2e-3, 5e-2, 1e-6, 0.4]] * 3, np.float32),
        noise=1e-12,
        judges=("eviction=a2sf(budget=256)", "gate=dcp()", "attention to come"),
        ranks=np.tile(drops / 4, (3, 3, 1)).astype(np.float32),
        left_out=(),
    )
    names = ["dense", "eviction=a2sf(budget=8)", "gate=dcp"]
    rows = pd.DataFrame(
        [(name, line, 9.0 + at + line, 100, 1.0) for at, name in enumerate(names) for line in (1, 2, 3)],
        columns=["pipeline", "line", "value", "n", "kv_share"],
    )
    return {
        "plot_reproduced": reproduced.plot_reproduced(reproduced.reproduced_table(rows)),
        "plot_verdicts": judges.plot_verdicts(judges.verdicts_table(study, -1)),
        "plot_judge_layers": judges.plot_judge_layers(judges.judge_layers_table(study, study.judges), 1),
        "plot_drops": judges.plot_drops(judges.drops_table(study, made.tokens, study.judges[0], 0)),
    }
