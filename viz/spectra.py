"""What cutting neurons does to singular values: spectra before and after, their distances, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sparsity_core.kinds import Pipeline
from sparsity_core.studies import History, WeightStudy
from viz.theme import SEQUENTIAL, STATE_STYLE, method_colour, method_symbol, plain

VIEWS = {"distribution": "Distribution", "linear": "Linear", "log": "Logarithmic"}
DISTANCES = {
    "ks": "D",
    "scaled_ks": "D ÷ √(1 − ratio)",
    "wasserstein": "Wasserstein ÷ mean",
    "energy_lost": "energy lost",
}
_BEFORE, _BRACKET = "#8A93A3", "#CC79A7"
_CAP = 0.012  # half the length of a bracket's caps, in shares of the axis across it


def method_name(spelled: str) -> str:
    """The name of a weights method that is spelled with its knobs."""
    method = Pipeline.parse(f"weights={spelled}").weights
    return method.name if method else ""


# --- one matrix ---


def spectrum_table(before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """One row per singular value: state (before, after), rank, sigma, above (share of values larger), at_most (share ≤)."""
    frames = []
    for state, values in (("before", before), ("after", after)):
        ordered = np.sort(values)[::-1]
        ascending, n = ordered[::-1], len(ordered)
        at_most = np.searchsorted(ascending, ordered, side="right") / n
        frames.append(
            pd.DataFrame(
                {
                    "state": state,
                    "rank": np.arange(1, n + 1),
                    "sigma": ordered,
                    "above": 1.0 - at_most,
                    "at_most": at_most,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def risen(before: np.ndarray, after: np.ndarray) -> float:
    """The share of the singular values after a cut that are larger than the one of their rank before, beyond rounding."""
    whole, left = (np.sort(values)[::-1] for values in (before, after))
    return float(np.mean(left > whole[: len(left)] + 1e-4 * whole[0]))


def plot_spectrum(
    table: pd.DataFrame, measures: Mapping[str, float], *, method: str, view: str = "distribution"
) -> go.Figure:
    """Both spectra, with D as a bracket at the singular value where it is reached.

    `view`: "distribution" draws the empirical distribution functions, whose largest vertical gap is D. "linear" and "log"
    draw the values in descending order over the share of larger ones: there D lies level, at the height of that value.
    """
    figure = go.Figure()
    for state, colour, dash in (("before", _BEFORE, "6px,3px"), ("after", method_colour(method), "solid")):
        own = table[table["state"] == state].sort_values("sigma")
        flat = view == "distribution"
        figure.add_scatter(
            x=own["sigma"] if flat else own["above"],
            y=own["at_most"] if flat else own["sigma"],
            mode="lines",
            line={"color": colour, "dash": dash, "shape": "hv" if flat else "vh"},
            name=state,
            customdata=own["rank"],
            hovertemplate="σ %{x:.4g}: %{y:.1%} are at most so large" + f"<extra>{state}</extra>"
            if flat
            else "σ %{y:.4g}, number %{customdata}" + f"<extra>{state}</extra>",
        )
    _add_bracket(figure, table, measures, view)
    if view == "distribution":
        figure.update_xaxes(title="singular value σ", rangemode="tozero")
        figure.update_yaxes(title="share of values ≤ σ", range=[-0.01, 1.01], tickformat=".0%")
    else:
        positive = table.loc[table["sigma"] > 0, "sigma"]
        figure.update_xaxes(title="share of values above σ", range=[-0.01, 1.01], tickformat=".0%")
        figure.update_yaxes(title="singular value σ", type="log" if view == "log" else "linear", exponentformat="power")
        if view == "log" and len(positive):
            low = max(float(positive.min()), 1e-6 * float(positive.max()))
            figure.update_yaxes(range=[np.log10(low / 1.2), np.log10(float(positive.max()) * 1.2)], dtick="D2")
    return figure.update_layout(height=380, showlegend=True)


def _add_bracket(figure: go.Figure, table: pd.DataFrame, measures: Mapping[str, float], view: str) -> None:
    if measures["ks"] <= 0:
        return
    at = measures["ks_at"]
    # a stored spectrum is float32, and `at` is one of its values in float64
    shares = [float((own["sigma"] <= at * (1 + 1e-6)).mean()) for _, own in table.groupby("state", sort=False)]
    low, high = min(shares), max(shares)
    ends, level = ([low, high], [at, at]) if view == "distribution" else ([1 - high, 1 - low], [at, at])
    x, y = (level, ends) if view == "distribution" else (ends, level)
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line={"color": _BRACKET, "width": 3},
        marker={
            "symbol": "line-ew-open" if view == "distribution" else "line-ns-open",
            "size": 14,
            "color": _BRACKET,
            "line": {"width": 3, "color": _BRACKET},
        },
        name="D",
        hovertemplate=f"D = {measures['ks']:.4f} at σ = {at:.4g}<extra></extra>",
    )
    # below and right of both curves, or above and right of them: where neither passes
    flat = view == "distribution"
    figure.add_annotation(
        x=at if flat else ends[1],
        y=low if flat else (np.log10(at) if view == "log" and at > 0 else at),
        text=f"<b>D = {measures['ks']:.3f}</b> at σ = {at:.3g}",
        showarrow=False,
        xanchor="left",
        xshift=14,
        yanchor="top" if flat else "bottom",
        yshift=-2 if flat else 4,
    )


# --- every matrix ---


def distance_table(study: WeightStudy) -> pd.DataFrame:
    """One row per layer and matrix: every measure of the study, and the share of the layer's neurons that is cut."""
    layers, matrices = study.measures.shape[:2]
    cut = 1.0 - study.kept.mean(axis=1)
    table = pd.DataFrame(
        {
            "layer": np.repeat(np.arange(layers), matrices),
            "matrix": np.tile(np.asarray(study.matrices, dtype=object), layers),
            "cut": np.repeat(cut, matrices),
        }
    )
    for name in ("ks", "ks_at", "scaled_ks", "wasserstein", "energy_lost"):
        table[name] = study.measure(name).ravel()
    return table


def plot_distances(
    table: pd.DataFrame, measure: str = "ks", selected: tuple[int, str] | None = None, most: float | None = None
) -> go.Figure:
    """A measure of every layer and matrix; `selected` is framed; `most` fixes the end of the colour scale."""
    layers, matrices = np.unique(table["layer"]), list(dict.fromkeys(table["matrix"]))
    z = table[measure].to_numpy(np.float32).reshape(len(layers), len(matrices)).T
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=layers,
            y=np.arange(len(matrices)),
            customdata=np.tile(np.asarray(matrices, dtype=object)[:, None], (1, len(layers))),
            zmin=0,
            zmax=most or max(1e-6, float(np.nanmax(z))),
            colorscale=SEQUENTIAL,
            colorbar={"title": {"text": DISTANCES[measure]}},
            hovertemplate=f"layer %{{x}}, %{{customdata}}<br>{DISTANCES[measure]} %{{z:.4f}}<extra></extra>",
        )
    )
    if selected is not None:
        layer, matrix = selected
        row = matrices.index(matrix)
        for width, colour in ((4, "#FFFFFF"), (2, "#D55E00")):  # seen on any cell, whatever the theme
            figure.add_shape(
                type="rect",
                x0=layer - 0.5,
                x1=layer + 0.5,
                y0=row - 0.5,
                y1=row + 0.5,
                line={"width": width, "color": colour},
            )
    figure.update_xaxes(title="layer", range=[layers[0] - 0.5, layers[-1] + 0.5], dtick=max(1, len(layers) // 15))
    figure.update_yaxes(
        tickvals=list(range(len(matrices))),
        ticktext=matrices,
        range=[len(matrices) - 0.5, -0.5],
        showgrid=False,
    )
    return figure.update_layout(height=110 + 44 * len(matrices), dragmode=False)


# --- neurons ---


def neuron_table(importance: np.ndarray, row_norm: np.ndarray, leverage: np.ndarray, kept: np.ndarray) -> pd.DataFrame:
    """One row per neuron of a layer: neuron, importance (nan where the method ranks none), row_norm, leverage, kept."""
    return pd.DataFrame(
        {
            "neuron": np.arange(len(kept)),
            "importance": importance if len(importance) else np.full(len(kept), np.nan),
            "row_norm": row_norm,
            "leverage": leverage,
            "kept": kept,
        }
    )


def plot_neurons(table: pd.DataFrame, *, first: str) -> go.Figure:
    """Importance over row norm and over leverage; kept and cut neurons differ by symbol and colour.

    Where the method ranks no neurons, leverage over row norm. `first` is the matrix whose rows are measured.
    """
    axes = {"row_norm": f"row norm ‖w‖ in {first}", "leverage": f"leverage score in {first}"}
    ranked = bool(table["importance"].notna().any())
    panels = list(axes) if ranked else ["row_norm"]
    up = "importance" if ranked else "leverage"
    figure = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.04)
    for state, symbol, colour, size in (
        ("kept", "circle-open", STATE_STYLE["kept"].dark, 5),
        ("cut", "x-thin", STATE_STYLE["dropped"].dark, 6),
    ):
        own = table[table["kept"] == (state == "kept")]
        for column, axis in enumerate(panels, start=1):
            figure.add_scattergl(
                x=own[axis],
                y=own[up],
                mode="markers",
                marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 1.3, "color": colour}},
                customdata=own["neuron"],
                name=f"{state} ({len(own):,})",
                legendgroup=state,
                showlegend=column == 1,
                hovertemplate="neuron %{customdata}: row of gate and up, column of down<br>"
                f"{up} %{{y:.4g}}, {axes[axis].split(' in ')[0]} %{{x:.4g}}<extra>{state}</extra>",
                row=1,
                col=column,
            )
            figure.update_xaxes(title=axes[axis], row=1, col=column)
    spread = table.loc[table[up] > 0, up]
    wide = len(spread) == int(table[up].notna().sum()) and float(spread.max()) > 30 * float(spread.min())
    figure.update_yaxes(type="log" if wide else "linear", exponentformat="power")
    figure.update_yaxes(title=up if ranked else axes["leverage"], row=1, col=1)
    return figure.update_layout(height=360, showlegend=True)


# --- a policy's training ---


def history_table(history: History) -> pd.DataFrame:
    """One row per episode: episode, and the means over the layers of ks (of the policy's choice) and reward."""
    return pd.DataFrame(
        {
            "episode": np.arange(1, len(history.ks) + 1),
            "ks": np.asarray(history.ks),
            "reward": np.asarray(history.reward),
        }
    )


def plot_history(table: pd.DataFrame, *, method: str, starts: Mapping[str, float] | None = None) -> go.Figure:
    """Mean D and mean reward by episode, side by side; `starts` are the mean D of what training set out from, dotted."""
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    for column, (name, title) in enumerate((("ks", "mean D of the policy's choice"), ("reward", "mean reward")), 1):
        figure.add_scatter(
            x=table["episode"],
            y=table[name],
            mode="lines+markers",
            line={"color": method_colour(method)},
            name="policy",
            showlegend=column == 1,
            hovertemplate=f"episode %{{x}}: {title} %{{y:.4g}}<extra></extra>",
            row=1,
            col=column,
        )
        figure.update_xaxes(title="episode", row=1, col=column)
        figure.update_yaxes(title=title, row=1, col=column)
    for dash, (name, value) in zip(("2px,2px", "6px,3px", "9px,2px,1.5px,2px"), (starts or {}).items(), strict=False):
        figure.add_scatter(
            x=[1, max(1, len(table))],
            y=[value, value],
            mode="lines",
            line={"color": _BEFORE, "dash": dash, "width": 1.5},
            name=f"keeping the largest {plain(name)}",
            hovertemplate=f"largest {plain(name)}: mean D %{{y:.4f}}<extra></extra>",
            row=1,
            col=1,
        )
    return figure.update_layout(height=320, showlegend=True)


# --- methods against each other ---


def comparison_table(studies: Sequence[WeightStudy], matrix: str) -> pd.DataFrame:
    """One row per study: method, spelled, ratio, mean D of the matrix over the layers, perplexity, its rise, true cut."""
    rows = [
        {
            "method": method_name(study.method),
            "spelled": study.method,
            "ratio": study.ratio,
            "mean_ks": float(study.measure("ks")[:, study.matrices.index(matrix)].mean()),
            "perplexity": study.perplexity,
            "perplexity_rise": study.perplexity - study.dense_perplexity,
            "cut_of_model": study.true_cut,
        }
        for study in studies
    ]
    return pd.DataFrame(rows)


def plot_comparison(table: pd.DataFrame, matrix: str, chosen: str | None = None) -> go.Figure:
    """Mean D against the rise in perplexity, a mark per method; several seeds of one are a mean with its extremes.

    `chosen` is the spelling of the study that a ring marks.
    """
    figure = go.Figure()
    rises = table["perplexity_rise"]
    for method, rows in table.groupby("method", sort=True):
        colour = method_colour(str(method))
        x, y = float(rows["mean_ks"].mean()), float(rows["perplexity_rise"].mean())
        many = len(rows) > 1
        name = plain(str(method)) + (f" ({len(rows)} seeds)" if many else "")
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            marker={"symbol": method_symbol(str(method)), "size": 12, "color": colour},
            error_x=spread_visible(rows["mean_ks"], x, colour) if many else None,
            error_y=spread_visible(rows["perplexity_rise"], y, colour) if many else None,
            name=name,
            hovertemplate=f"{plain(str(rows['spelled'].iloc[0])) if not many else name}<br>mean D %{{x:.4f}}"
            "<br>perplexity +%{y:,.4g}<extra></extra>",
        )
    own = table[table["spelled"] == chosen]
    if len(own):
        figure.add_scatter(
            x=own["mean_ks"],
            y=own["perplexity_rise"],
            mode="markers",
            marker={"symbol": "circle-open", "size": 24, "color": _BEFORE, "line": {"width": 2}},
            name="chosen",
            hoverinfo="skip",
        )
    log = bool((rises > 0).all()) and float(rises.max()) > 10 * float(rises.min())
    figure.update_xaxes(title=f"mean D of {matrix} over the layers", rangemode="tozero")
    figure.update_yaxes(title="rise in perplexity", type="log" if log else "linear", exponentformat="power")
    if log:
        figure.update_yaxes(dtick=1, minor={"ticks": "outside", "ticklen": 2})
    return figure.update_layout(height=420, showlegend=True)


def spread_visible(values: pd.Series, mean: float, colour: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [float(values.max()) - mean],
        "arrayminus": [mean - float(values.min())],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }
