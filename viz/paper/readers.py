"""Reads back what an export holds."""

from __future__ import annotations

import html
import io
import json
import re
import zipfile
from collections.abc import Callable

import pandas as pd
from PIL import Image
from pypdf import PdfReader

from sparsity_core.record import Provenance
from viz.paper.formats.csv import read_csv

__all__ = ["read_csv", "read_pdf", "read_provenance"]

_MOST_FILES, _MOST_BYTES = 1000, 64 * 1024**2  # of a zip, and of one file in it


def read_pdf(data: bytes) -> tuple[Provenance, pd.DataFrame]:
    """Provenance and table out of an exported PDF; ValueError where the file is no such PDF."""
    try:
        attached = PdfReader(io.BytesIO(data), strict=True).attachments
        return Provenance.from_json(attached["provenance.json"][0]), read_csv(attached["data.csv"][0])
    except Exception as error:  # whatever a broken PDF makes its reader raise
        raise ValueError("not a PDF exported by SparseLens, or its attachments are gone: export it again") from error


def read_provenance(data: bytes) -> Provenance:
    """Where an exported file comes from: a PDF, SVG, PNG, HTML, CSV or JSON, or a zip with one of them.

    Raises ValueError, as a sentence, for a file of others, a broken one, and one whose record was taken out on its way.
    """
    if not data:
        raise ValueError("the file is empty: choose a file that Export wrote")
    for kind, (begins, read) in _KINDS.items():
        if re.match(begins, data[:4096].lstrip(b"\xef\xbb\xbf \r\n\t")):
            try:
                return read(data)
            except _Said:
                raise
            except Exception as error:  # whatever a broken file makes its reader raise
                raise ValueError(
                    f"this {kind} is not from SparseLens, or it is broken, or another program took the record out of it: "
                    "choose the file as Export wrote it"
                ) from error
    raise ValueError(
        f"this is none of {', '.join(_KINDS)}: choose a file that Export wrote, as the PDF of a figure or the zip of all"
    )


class _Said(ValueError):
    """A sentence that needs no other."""


def _of_pdf(data: bytes) -> Provenance:
    return Provenance.from_json(PdfReader(io.BytesIO(data), strict=True).attachments["provenance.json"][0])


def _of_png(data: bytes) -> Provenance:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.load()  # what stands after the pixels is read with them
        return Provenance.from_json(image.text["provenance"])  # type: ignore[attr-defined]


def _of_text(pattern: str) -> Callable[[bytes], Provenance]:
    """The record between two marks of a text; no XML parser sees the file, which may be anyone's."""

    def read(data: bytes) -> Provenance:
        return Provenance.from_json(html.unescape(_found(re.search(pattern.encode(), data, re.DOTALL)).decode()))

    return read


def _of_html(data: bytes) -> Provenance:
    return Provenance.from_json(_found(re.search(rb'id="provenance">(.*?)</script>', data, re.DOTALL)))


def _of_csv(data: bytes) -> Provenance:
    return Provenance.from_json(_found(re.search(rb"^# provenance: (\{.*\})$", data, re.MULTILINE)))


def _found(match: re.Match[bytes] | None) -> bytes:
    if match is None:
        raise ValueError("there is no record")
    return match[1]


def _of_json(data: bytes) -> Provenance:
    return Provenance.from_json(json.dumps(json.loads(data)["provenance"]))


def _of_zip(data: bytes) -> Provenance:
    """The record of the first file in a zip that has one."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = archive.infolist()
        if len(files) > _MOST_FILES:
            raise _Said(
                f"the zip holds {len(files):,} files, and at most {_MOST_FILES:,} are looked at: choose one file"
            )
        for file in files:
            if file.file_size <= _MOST_BYTES and not file.filename.lower().endswith(".zip"):
                try:
                    return read_provenance(archive.read(file))
                except ValueError:
                    continue
    raise _Said("no file in this zip is from SparseLens: choose the zip as Export wrote it")


_KINDS: dict[str, tuple[bytes, Callable[[bytes], Provenance]]] = {
    "PDF": (rb"%PDF-", _of_pdf),
    "PNG": (rb"\x89PNG", _of_png),
    "zip": (rb"PK[\x03\x05]", _of_zip),
    "SVG": (rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", _of_text("<metadata>(.*?)</metadata>")),
    "HTML": (rb"(?i)<!doctype html|<html", _of_html),
    "JSON": (rb"\{", _of_json),
    "CSV": (rb"#", _of_csv),
}
