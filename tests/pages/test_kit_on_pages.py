"""The Export panel's kit on a page: texts that fit the figure, one zip of all, widths that no file can have."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from sparsity_core.record import Store
from tests.pages.test_pages import PAIR, opened
from ui import kit
from ui.session import EXAMPLE
from viz import again, paper


def unfolded(at: AppTest, *names: str) -> AppTest:
    for name in names:
        at.session_state[f"export_{name}"] = at.session_state[f"kit_{name}"] = True
    at.run()
    assert not at.exception
    return at


@pytest.mark.parametrize(("link", "names"), [({}, ("atlas_A", "loss")), (PAIR, ("atlas_B", "difference", "loss"))])
def test_each_figure_brings_caption_latex_bibtex_and_a_script_that_draws_it(
    tmp_path: Path, link: dict[str, str], names: tuple[str, ...]
) -> None:
    at = unfolded(opened(tmp_path, **link), *names)
    code = [block.value for block in at.code]
    scripts = [text for text in code if "again.draw(" in text]
    assert len(scripts) == len(names)
    for text, name in zip(scripts, names, strict=True):
        compile(text, name, "exec")
        assert re.search(rf'"{name}-[a-z0-9_-]+\.pdf"', text) and "PROMPTS['needle'].text" in text
    assert sum("\\includegraphics[width=5.5in]" in text for text in code) == len(names)
    assert sum("@misc{" in text for text in code) == len(names)


def test_a_width_that_no_file_can_have_is_told(tmp_path: Path) -> None:
    at = unfolded(opened(tmp_path), "atlas_A")
    at.selectbox(key="width_atlas_A").set_value("own").run()
    at.number_input(key="inches_atlas_A").set_value(0.0).run()
    assert any("width is 0; allowed is 0.5 to 40 inches" in warning.value for warning in at.warning)
    assert not at.get("download_button")


def test_the_zip_holds_every_format_and_what_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "can_render", lambda: False)
    monkeypatch.setattr(kit, "shown", list)
    trace = Store().get(EXAMPLE)
    assert trace is not None
    drawn = again.draw("atlas", {"A": trace})
    made = kit.paper.kit
    item = kit.Item("atlas_A", lambda width: (drawn.figure, None), drawn.table, trace.provenance)
    with zipfile.ZipFile(io.BytesIO(kit.everything(item, 3.25))) as archive:
        names = set(archive.namelist())
        own = f"atlas_A-a2sf-budget-64-{trace.provenance.prompt_hash[:6]}"
        assert names == {f"{own}.{ending}" for ending in ("html", "csv", "json", "txt", "tex")} | {"references.bib"}
        assert f"{{{own}.pdf}}" in archive.read(f"{own}.tex").decode()
        assert archive.read("references.bib").decode() == made.references(trace.provenance)
