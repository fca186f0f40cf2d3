"""What goes with a figure into a paper: words, LaTeX, references, and a script that makes the figure again."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from sparsity_core import methods
from sparsity_core.record import Provenance, RunSpec
from viz import again, paper
from viz.paper.cite import bibtex, cite_keys

ROOT = Path(__file__).parents[3]
A2SF = "eviction=a2sf(budget=64, forgetting_factor=0.3)"
MADE = Provenance(
    model="smollm2-135m",
    pipeline=A2SF,
    dtype="float32",
    seed=3,
    caption="When each layer dropped 100% of its tokens.",
    facts={"tokens": "90", "generated": "24"},
)


def test_a_caption_tells_the_settings_in_words() -> None:
    assert paper.kit.caption(MADE) == (
        "When each layer dropped 100% of its tokens. smollm2-135m in float32; keys evicted by a2sf (budget 64, "
        "forgetting factor 0.3); 90 tokens, 24 of them generated; seed 3."
    )
    several = replace(MADE, pipeline=f"dense | gate=dcp(gamma=0.03) {A2SF}")
    assert "dense attention; tokens gated by dcp (gamma 0.03), keys evicted by a2sf" in paper.kit.caption(several)


def test_latex_has_the_exact_width_and_escapes_what_tex_reads() -> None:
    text = paper.kit.latex(MADE, "atlas_A.pdf", paper.venue_width("aaai"))
    assert "\\includegraphics[width=3.3125in]{atlas_A.pdf}" in text
    assert "dropped 100\\% of its tokens" in text and "seed 3~\\cite{jo2024a2sf}.}" in text
    assert text.startswith("\\begin{figure}[t]") and "\\label{fig:atlas-a}" in text
    assert paper.kit.latex(MADE, "a.pdf", 7.0, across=True).startswith("\\begin{figure*}[t]")


def test_every_method_with_a_paper_has_an_entry_with_an_author_and_baselines_have_none() -> None:
    for name in methods.names():
        method = methods.get(name)
        entries = bibtex([f"{method.stage}={name}()"])
        if "arXiv" in method.source or re.search(r"\(\d{4}\)", method.source):
            assert "author = {" in entries, f"{name}'s source {method.source} has no entry in viz/paper/references.bib"
            for number in re.findall(r"arXiv:([\d.]+\d)", method.source):
                assert f"eprint = {{{number}}}" in entries
        else:
            assert entries == "", name
    text = (ROOT / "viz/paper/references.bib").read_text()
    assert len(re.findall("^@", text, re.MULTILINE)) == len(set(re.findall(r"^@\w+\{(\w+),", text, re.MULTILINE)))
    for entry in text.split("\n\n"):
        assert entry.count("{") == entry.count("}")


def test_references_are_told_once_and_a_trace_of_others_cites_nothing() -> None:
    assert cite_keys([A2SF, A2SF, "decode=quest()"]) == ["jo2024a2sf", "tang2024quest"]
    assert bibtex(["dense", "eviction=their_press(budget=3)"]) == ""


def test_a_zip_is_the_same_bytes_whenever_it_is_made() -> None:
    files = {"a.txt": b"a", "é.csv": b"1"}
    assert paper.kit.zipped(files) == paper.kit.zipped(files)
    with zipfile.ZipFile(io.BytesIO(paper.kit.zipped(files))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


@pytest.mark.slow
def test_the_script_draws_the_same_figure_in_a_process_of_its_own(tmp_path: Path) -> None:
    from sparsity_core.inference import execute

    name = "atlas"
    spec = RunSpec("smollm2-135m", "a b c a b c a", "eviction=streaming_llm(budget=8, n_sink=1)", generate=3)
    trace = execute(spec)
    choices = {"layer": 4, "head": "first", "token": 2, "step": 5}
    drawn = again.draw(name, {"A: it": trace}, **choices)
    text = paper.kit.script(name, {"A: it": spec}, MADE, f"{name}.json", (5.5, 3.0), choices)
    (tmp_path / "again.py").write_text(text)
    (tmp_path / "prompt.txt").write_text(spec.prompt)
    subprocess.run(
        [sys.executable, "again.py"],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/kernels"},
    )
    found = json.loads((tmp_path / f"{name}.json").read_text())
    wanted = json.loads(paper.export(drawn.figure, drawn.table, "json", MADE, width=5.5, height=3.0))
    assert found["figure"] == wanted["figure"] and found["table"] == wanted["table"]


def test_a_script_of_what_needs_choices_of_a_page_computes_the_runs_and_says_so() -> None:
    spec = RunSpec("smollm2-135m", "a text", "dense", seed=2)
    text = paper.kit.script(None, {"A": spec}, MADE, "a.pdf", (5.5, 3), {})
    compile(text, "again.py", "exec")
    assert "choices of a page" in text and "seed=2" in text and "from_app" not in text


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ("eviction=a2sf(budget=64, forgetting_factor=0.3)", "loss-a2sf-budget-64-forgetting_factor-0_3-abcdef"),
        ("dense | eviction=h2o(budget=64)", "loss-dense-h2o-budget-64-abcdef"),
        ("", "loss-abcdef"),
    ],
)
def test_a_files_name_carries_the_run(pipeline: str, expected: str) -> None:
    made = Provenance(pipeline=pipeline, prompt_hash="abcdef012345")
    assert paper.kit.file_name("loss", made) == expected
    several = " | ".join(f"eviction=a2sf(budget={n})" for n in range(64, 80))
    assert len(paper.kit.file_name("loss", Provenance(pipeline=several))) < 80
