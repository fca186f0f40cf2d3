"""The report card of a compressed model."""

from __future__ import annotations

from typing import Any


def report_card(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# {report['model']}, {report['method']}", ""]
    lines += [
        f"Made by SparseLens from weights {report['weights']}. Method: {report['source']}.",
        "",
        "| | |",
        "|---|---|",
    ]
    rows = {
        "FFN neurons cut, as asked": f"{report['nominal_cut_of_ffn']:.1%}",
        "parameters cut, of the whole model": f"{report['true_cut_of_model']:.1%}",
        "perplexity before": f"{report['perplexity_before']:.3f}",
        "perplexity after": f"{report['perplexity_after']:.3f}",
        "convention": report["perplexity_convention"],
        "calibration text": "yes" if report["calibrated"] else "no",
        "seconds": report["seconds"],
    }
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    names = list(report["ks_by_layer"])
    lines += [
        "",
        "KS distance of the singular values, by layer:",
        "",
        f"| layer | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
    ]
    for layer, values in enumerate(zip(*report["ks_by_layer"].values(), strict=True)):
        lines.append(f"| {layer} | {' | '.join(f'{v:.4f}' for v in values)} |")
    return "\n".join([*lines, "", *report["notes"], ""])
