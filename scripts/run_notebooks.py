"""Run the notebooks of examples/ and keep what they print, as text and small pictures.

What a notebook shows as HTML is left out of the file: it is larger than all the rest, and whoever runs the notebook sees it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(path: Path) -> Any:
    """Run a notebook in a kernel of its own and return it with what it printed."""
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    return book


def tidy(book: Any) -> Any:
    """Leave out what is large or differs from run to run without meaning anything."""
    for cell in book.cells:
        cell.metadata.clear()
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("text/html", None)
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return book


def main() -> None:
    """Write every notebook anew, or those that are named."""
    for path in map(Path, sys.argv[1:] or sorted(EXAMPLES.glob("*.ipynb"))):
        nbformat.write(tidy(run(path)), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
