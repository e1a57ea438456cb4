"""What a job hands over when it has ended: for the terminal, and for the directory of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from crossent.tools.table import Table


class Output(NamedTuple):
    """A job's results as they are shown and written."""

    name: str
    notices: list[str]
    tables: list[Table]
    paragraphs: list[str]
    document: dict[str, Any]
    page: str
    picture: bytes


def as_text(document: dict[str, Any]) -> str:
    """Write a document as JSON."""
    return json.dumps(document, indent=1, allow_nan=False)


def write(output: Output, out: Path, html: Path | None = None) -> list[Path]:
    """Write the page, which may go elsewhere, the picture and the numbers; return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [html or out / "report.html", out / f"{output.name}.png", out / "results.json"]
    paths[0].write_text(output.page, encoding="utf-8")
    paths[1].write_bytes(output.picture)
    paths[2].write_text(as_text(output.document) + "\n", encoding="utf-8")
    return paths
