"""The package around the functions: lazy, typed, complete."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import crossent

HERE = Path(crossent.__file__).parent
ROOT = Path(__file__).parents[1]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_free():
    heavy = "{'torch', 'numpy', 'matplotlib', 'sklearn', 'rich', 'click'}"
    assert run(f"import crossent, sys; dir(crossent); print({heavy} & set(sys.modules))") == "set()"


def test_the_specification_needs_no_torch():
    assert run("import crossent.reference, sys; print('torch' in sys.modules)") == "False"


def test_every_name_is_there():
    for name in crossent.__all__:
        assert getattr(crossent, name) is not None
        assert name in dir(crossent)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        crossent.nothing  # noqa: B018


def test_stub_file_and_lazy_names_agree():
    stub = ast.parse((HERE / "__init__.pyi").read_text())
    imported = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(crossent.__all__)
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert set(listed) == set(crossent.__all__)
    assert (HERE / "py.typed").exists()


def test_the_stub_file_is_written_from_the_list_of_names():
    script = ROOT / "scripts" / "write_stub.py"
    written = runpy.run_path(str(script))["stub"]()
    assert (HERE / "__init__.pyi").read_text() == written, "run python scripts/write_stub.py"


def test_an_implementation_imports_neither_another_nor_the_public_layer():
    for name in ("eager", "native", "triton"):
        home = HERE / "impl" / name
        imported = set()
        for file in home.rglob("*.py") if home.is_dir() else [home.with_suffix(".py")]:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 0, file
                    package = node.module == "crossent"  # what is taken from it may be public
                    imported |= {f"crossent.{alias.name}" for alias in node.names} if package else {node.module}
        ours = {module for module in imported if module.split(".")[0] == "crossent"}
        assert "crossent.impl.protocol" in ours
        allowed = ("crossent._native", "crossent.core.", "crossent.impl.protocol", f"crossent.impl.{name}")
        assert {module for module in ours if not module.startswith(allowed)} == set()


def test_only_operators_and_collectives_know_autograd():
    knowing = {file.relative_to(HERE) for file in HERE.rglob("*.py") if "torch.autograd" in file.read_text("utf-8")}
    knowing.remove(Path("core/modes.py"))  # which asks whether forward mode is on, as it asks for every other mode
    parts = {file.parts[0] for file in knowing}
    assert "ops" in parts
    assert parts <= {"ops", "parallel", "tools"}  # collectives have derivatives; the tools use losses, and audit them


def test_implementations_are_known():
    known = crossent.implementations()
    assert known["eager"] is None
    assert all(reason is None or len(reason) > 10 for reason in known.values())
    import torch

    assert crossent.choose_implementation(torch.zeros(2, 3), "eager") == "eager"


def test_the_package_is_a_command():
    command = [sys.executable, "-m", "crossent", "--version"]
    assert crossent.__version__ in subprocess.run(command, capture_output=True, text=True, check=True).stdout
