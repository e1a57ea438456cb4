"""Write ``src/crossent/__init__.pyi`` from the list of public names in ``src/crossent/__init__.py``.

Type checkers do not follow names that are imported when first used. The list stands once, in ``__init__.py``; run this file after
changing it. A test holds the two equal.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "crossent"


def homes() -> dict[str, str]:
    """Read which module each public name lives in."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOME":
            names: dict[str, str] = ast.literal_eval(node.value)
            return names
    raise SystemExit("src/crossent/__init__.py has no _HOME")


def _constant_first(name: str) -> tuple[int, str]:
    """Order names as an import sorter does: CONSTANTS, Classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def stub() -> str:
    """Write the stub file's text."""
    names = homes()
    imports = sorted({"_version": "", **dict.fromkeys(names.values(), "")})
    lines = []
    for home in imports:
        for name in sorted((n for n in names if names[n] == home), key=_constant_first):
            lines.append(f"from crossent.{home} import {name} as {name}")
        if home == "_version":
            lines.append("from crossent._version import __version__ as __version__")
    listed = sorted((*names, "__version__"), key=_constant_first)
    return "\n".join([*lines, "", "__all__ = [", *(f'    "{name}",' for name in listed), "]", ""])


if __name__ == "__main__":
    (PACKAGE / "__init__.pyi").write_text(stub())
