"""What goes into a paper beside a figure's file: its caption, LaTeX, BibTeX, and a script that makes the figure again."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sparsity_core.kinds import spelled_stages
from sparsity_core.models import PROMPTS
from sparsity_core.record import Provenance, RunSpec
from viz.paper.cite import bibtex, cite_keys
from viz.paper.tables import latex_text

PROMPT_FILE = "prompt.txt"
_LONGEST = 60  # letters of the pipelines in a file's name
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in a zip, so that equal contents are equal bytes
_STAGES = {
    "weights": "weights cut by",
    "gate": "tokens gated by",
    "prefill": "prompt attention by",
    "eviction": "keys evicted by",
    "decode": "keys read by",
}


def pipelines_of(provenance: Provenance) -> list[str]:
    """The pipelines of a figure as spelled, each once; none of a figure of a model's weights."""
    spelled = provenance.pipeline or (f"weights={method}" if (method := provenance.facts.get("method")) else "")
    return list(dict.fromkeys(text for text in spelled.split(" | ") if text))


def file_name(name: str, provenance: Provenance) -> str:
    """What a figure's files are called, without their ending: the figure, its pipelines, six digits of its prompt's hash."""
    stages = [spelled_stages(text) or [("", "dense")] for text in pipelines_of(provenance)]
    run = _plain("-".join(call for pipeline in stages for _, call in pipeline))
    short = run if len(run) <= _LONGEST else run[:_LONGEST].rpartition("-")[0]
    return "-".join(part for part in (name, short, _plain(provenance.prompt_hash[:6])) if part)


def _plain(text: str) -> str:
    """What LaTeX and every file system take: no dot, which LaTeX may read as the ending."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower().replace(".", "_")).strip("-_")


def caption(provenance: Provenance) -> str:
    """The caption's stub with the settings in words."""
    facts, seed = provenance.facts, provenance.seed
    tokens, generated = facts.get("tokens", ""), facts.get("generated", "0")
    length = f"{tokens} tokens" + (f", {generated} of them generated" if generated not in ("", "0") else "")
    model = provenance.model + (f" in {provenance.dtype}" if provenance.dtype else "")
    settings = [model, *map(_told, pipelines_of(provenance)), length if tokens else "", f"seed {seed}" if seed else ""]
    settings += [f"question {provenance.question}"] if provenance.question else []
    told = "; ".join(text for text in settings if text)
    return f"{provenance.caption} {told}." if told else provenance.caption


def _told(pipeline: str) -> str:
    """A pipeline in words: "keys evicted by a2sf (budget 64, forgetting factor 0.3)"."""
    stages = [f"{_STAGES.get(stage, stage)} {_told_call(call)}" for stage, call in spelled_stages(pipeline)]
    return ", ".join(stages) or "dense attention"


def _told_call(call: str) -> str:
    name, _, knobs = call.partition("(")
    told = re.sub(r"(?<=\w)=", " ", knobs.removesuffix(")").replace("_", " "))
    return name.replace("_", " ") + (f" ({told})" if told else "")


def latex(provenance: Provenance, file: str, width: float, *, across: bool = False) -> str:
    """A `figure` that takes the file at the width that it was made for, in inches; `across` both columns of a page."""
    environment, keys = "figure*" if across else "figure", cite_keys(pipelines_of(provenance))
    cited = f"~\\cite{{{','.join(keys)}}}" if keys else ""
    label = re.sub(r"[^A-Za-z0-9]+", "-", file.rpartition(".")[0]).strip("-").lower()
    text = latex_text(caption(provenance)).removesuffix(".")
    return (
        f"\\begin{{{environment}}}[t]\n  \\centering\n  \\includegraphics[width={width:.5g}in]{{{file}}}\n"
        f"  \\caption{{{text}{cited}.}}\n  \\label{{fig:{label}}}\n\\end{{{environment}}}\n"
    )


def references(provenance: Provenance) -> str:
    """BibTeX of the methods shown; empty where none of them has a paper."""
    return bibtex(pipelines_of(provenance))


def script(
    figure: str | None,
    runs: Mapping[str, RunSpec],
    provenance: Provenance,
    file: str,
    size: tuple[float, float],
    choices: Mapping[str, Any],
) -> str:
    """Python that computes the runs again by the library and, with a figure's name, writes the file of it.

    runs: by what a legend calls them. choices: of `viz.again.draw`, beside its width. size: inches.
    """
    prompt = next(iter(runs.values())).prompt
    known = next((name for name, text in PROMPTS.items() if text.text == prompt), None)
    what = (
        f"Makes {file} again."
        if figure
        else "Computes again what the figure shows; its drawing took choices of a page."
    )
    imports = [
        "from sparsity_core.inference import execute",
        *(["from sparsity_core.models import PROMPTS"] if known else []),
        f"from sparsity_core.record import {'Provenance, ' if figure else ''}RunSpec",
        *(["from sparsity_core.work import from_app"] if figure else []),
    ]
    text = f"PROMPTS[{known!r}].text" if known else f'Path(__file__).with_name("{PROMPT_FILE}").read_bytes().decode()'
    lines = [
        f'"""{what}"""',
        "",
        *(["from pathlib import Path", ""] if figure or not known else []),
        *imports,
        "",
        f"prompt = {text}",
        "specs = {",
        *(f"    {title!r}: {_spelled(spec)}," for title, spec in runs.items()),
        "}",
        "traces = {title: execute(spec) for title, spec in specs.items()}",
    ]
    shown = ["for title, trace in traces.items():", "    print(title, trace.perplexity)"]
    return "\n".join([*lines, *(_drawing(figure, provenance, file, size, choices) if figure else shown)]) + "\n"


def _drawing(
    figure: str, provenance: Provenance, file: str, size: tuple[float, float], choices: Mapping[str, Any]
) -> list[str]:
    given = "".join(f", {name}={value!r}" for name, value in choices.items())
    form = file.rpartition(".")[2]
    return [
        'again, paper = from_app("viz.again"), from_app("viz.paper")',
        f"drawn = again.draw({figure!r}, traces{given}, width={size[0]!r})",
        f"made = Provenance(model={provenance.model!r}, pipeline={provenance.pipeline!r}, caption={provenance.caption!r})",
        f"data = paper.export(drawn.figure, drawn.table, {form!r}, made, width={size[0]!r}, height={size[1]!r})",
        f'Path("{file}").write_bytes(data)',
    ]


def _spelled(spec: RunSpec) -> str:
    """The spec as Python, without what is at its default."""
    usual = asdict(RunSpec(model="", prompt=""))
    own = {name: value for name, value in asdict(spec).items() if name != "prompt" and value != usual[name]}
    return f"RunSpec(prompt=prompt, {', '.join(f'{name}={value!r}' for name, value in own.items())})"


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip of files by their names, the same bytes whenever it is made."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()
