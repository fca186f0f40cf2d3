"""Reads back what an export holds."""

from __future__ import annotations

import io

import pandas as pd
from pypdf import PdfReader
from pypdf.errors import PyPdfError

from sparsity_core.record import Provenance
from viz.paper.formats.csv import read_csv

__all__ = ["read_csv", "read_pdf"]


def read_pdf(data: bytes) -> tuple[Provenance, pd.DataFrame]:
    """Provenance and table out of an exported PDF; ValueError where the file is no such PDF."""
    try:
        attached = PdfReader(io.BytesIO(data)).attachments
        return Provenance.from_json(attached["provenance.json"][0]), read_csv(attached["data.csv"][0])
    except (PyPdfError, KeyError, IndexError) as error:
        raise ValueError("not a PDF exported by SparseLens, or its attachments are gone: export it again") from error
