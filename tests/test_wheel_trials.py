"""How wheels are tried: which torch is taken, which wheel goes with which Python, and what is tried without torch."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import debian_python
import smoke_wheel

SCRIPTS = sys.path.pop(0)

WHEELS = [
    Path(f"crossent-0.1.0-{tag}.whl")
    for tag in (
        "cp310-cp310-manylinux_2_34_x86_64",
        "cp311-cp311-manylinux_2_34_aarch64",
        "cp312-abi3-manylinux_2_34_x86_64",
        "cp312-abi3-macosx_11_0_arm64",
        "py3-none-any",
    )
]


@pytest.mark.parametrize(
    ("system", "listed", "chosen"),
    [
        ("linux", "2.14.0, 2.13.0+cpu, 2.13.0, 2.12.1", "2.13.0+cpu"),
        ("linux", "2.14.0, 2.13.0, 2.12.1", None),  # what has no label there brings CUDA, on every machine
        ("linux", "2.14.0+cpu", None),
        ("linux", "2.13.1+cu130, 2.13.0+cpu", "2.13.0+cpu"),
        ("darwin", "2.14.0, 2.13.1, 2.13.0", "2.13.1"),
        ("win32", "2.13.1+cu130, 2.13.0", "2.13.0"),
    ],
)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_only_a_build_for_the_cpu_is_taken(monkeypatch, system, listed, chosen, machine):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(smoke_wheel, "said", lambda *_: (0, f"torch (2.14.0)\nAvailable versions: {listed}\n"))
    assert smoke_wheel.cpu_build(Path("python"), "2.13") == chosen


def test_a_wheel_goes_with_the_pythons_that_its_name_says(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    goes = {version: [wheel for wheel in WHEELS if smoke_wheel.fits(wheel, version)] for version in smoke_wheel.PYTHONS}
    own, arm, stable, _, pure = WHEELS
    expected = [[own, pure], [arm, pure], [stable, pure], [stable, pure], [stable, pure]]
    assert list(goes.values()) == expected
    assert list(map(smoke_wheel.machine_of, (own, arm, stable, pure))) == ["x86_64", "aarch64", "x86_64", "x86_64"]


def test_the_kernels_are_tried_on_each_instruction_set_without_torch():
    """In a process of its own: once torch is there, the kernels ask a tensor's type of what they are given."""
    pytest.importorskip("crossent._native")
    script = """
import sys
import smoke_wheel
from crossent import _native
for name in _native.isas():
    _native.use_isa(name)
    assert smoke_wheel.try_kernels(_native) == 36
print("torch" in sys.modules)
"""
    path = os.pathsep.join([SCRIPTS, *filter(None, sys.path)])
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "False\n"), ran.stderr


def test_kernels_that_compute_something_else_are_found_out():
    class Wrong:
        REDUCTIONS = {"none": 0}  # noqa: RUF012

        def softmax_forward(self, *arguments):
            torch.from_dlpack(Array(arguments[6])).fill_(0.25)

        def softmax_backward(self, *arguments):
            torch.from_dlpack(Array(arguments[8])).fill_(0.25)

    with pytest.raises(AssertionError, match=r"0\.25 instead of 0\.28"):
        smoke_wheel.try_kernels(Wrong())


class Array:
    """What torch asks of a stranger's array."""

    def __init__(self, borrowed):
        self.borrowed = borrowed

    def __dlpack__(self, **_):
        return self.borrowed.__dlpack__()

    def __dlpack_device__(self):
        return 1, 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_another_library_reads_what_is_lent_to_the_kernels(dtype):
    array = np.arange(12, dtype=dtype).reshape(3, 4)[:, ::2]
    assert torch.from_dlpack(Array(smoke_wheel.Borrowed(array))).tolist() == [[0, 2], [4, 6], [8, 10]]


def test_a_python_that_cannot_be_had_has_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(debian_python, "ROOT", tmp_path)
    monkeypatch.setattr(debian_python.shutil, "which", lambda _: None)
    command, reason = debian_python.launcher("aarch64", "3.14")
    assert command is None
    assert reason == "this Python is not installed here, and not among Debian's packages for aarch64"
    other = "aarch64" if platform.machine() != "aarch64" else "x86_64"
    assert debian_python.launch(other, "3.14", tmp_path) is None
