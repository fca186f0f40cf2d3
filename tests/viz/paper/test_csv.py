"""A CSV file gives every cell back and acts in no spreadsheet."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record import Provenance
from tests.viz.paper.nasty import PROVENANCE
from viz import paper


def test_csv_gives_back_every_cell_and_dtype(table: pd.DataFrame) -> None:
    data = paper.export(go.Figure(), table, "csv", PROVENANCE)
    pd.testing.assert_frame_equal(paper.read_csv(data), table)


def test_csv_starts_with_provenance_and_pandas_skips_it(table: pd.DataFrame) -> None:
    data = paper.export(go.Figure(), table, "csv", PROVENANCE)
    lines = data.decode().splitlines()
    assert "# model: smollm2-135m" in lines and "# prompt hash: 9f86d081" in lines
    assert "# command: sparselens export \\\n#     --prompt" in data.decode()
    guessed = pd.read_csv(io.BytesIO(data), comment="#")
    assert list(guessed.columns) == list(table.columns)
    assert guessed["position"].tolist() == table["position"].tolist()
    assert guessed["#token"][7] == "# comment"


def test_csv_of_an_empty_table_keeps_its_columns(table: pd.DataFrame) -> None:
    empty = table.iloc[:0]
    pd.testing.assert_frame_equal(paper.read_csv(paper.export(go.Figure(), empty, "csv", PROVENANCE)), empty)


FORMULAS = ["=1+1", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "＝1", "'=1", "''@x", '=HYPERLINK("http://x")']


def test_no_cell_of_text_is_a_formula_to_a_spreadsheet_and_each_comes_back() -> None:
    cells = [*FORMULAS, "plain", "a=b", "'quoted'", "-", ""]
    table = pd.DataFrame({"token": cells, "score": np.arange(len(cells)) - 3.5})
    data = paper.export(go.Figure(), table, "csv", PROVENANCE)
    pd.testing.assert_frame_equal(paper.read_csv(data), table)
    rows = [row for row in csv.reader(io.StringIO(data.decode(), newline="")) if row and not row[0].startswith("#")]
    for token, score in rows[1:]:
        assert not token.startswith(("=", "+", "-", "@", "\t", "\r", "＝")), token
        float(score)
    assert b"# text: text that begins with" in data


def test_provenance_begins_no_cell_that_acts() -> None:
    provenance = Provenance.of_fields("caption,=1+1", {"command": "run 'a,=HYPERLINK(1)'\n;@x"})
    text = paper.export(go.Figure(), pd.DataFrame({"a": [1]}), "csv", provenance).decode()
    for line in filter(lambda line: line.startswith("#"), text.splitlines()):
        for cell in re.split("[,;\t]", line)[1:]:
            assert not cell.startswith(("=", "+", "-", "@")), line


def test_a_csv_without_formulas_says_nothing_of_them() -> None:
    assert b"# text:" not in paper.export(go.Figure(), pd.DataFrame({"token": ["a"]}), "csv", PROVENANCE)
