"""The files of ``benchmarks/``, as modules: tests hold what they measure with and what they write into the pages."""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"


def benchmark(name):
    """Import ``benchmarks/NAME.py`` beside its neighbours, as a script finds them."""
    sys.path.insert(0, str(FOLDER))
    try:
        module = importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
    assert Path(module.__file__).parent == FOLDER, f"{name} is also the name of {module.__file__}"
    return module
