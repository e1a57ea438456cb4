"""Install wheels in clean environments and try each there: ``python scripts/smoke_wheel.py dist/*.whl``.

Each wheel that fits a Python of this machine is installed with each version of torch (``--torch 2.13``) in a new environment, which
holds nothing else but what the wheel asks for, and tried by values known beforehand, on its kernels if it has them. torch is taken
as a build for the CPU or not at all, because others bring CUDA with them.

Where there is no such torch, and for arm64, the wheel is tried without torch: the package is imported, its specification computes
in NumPy, and the kernels compute on NumPy's arrays, on each instruction set. Where this machine lacks the Python, it is one of
Debian's (``debian_python.py``), and arm64 runs in qemu.

In such an environment the file runs itself with ``--inside`` or ``--inside --without-torch``; it needs nothing but the wheel then.
"""

import argparse
import ctypes
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
NO_TORCH = (
    "numpy",
    "click",
    "rich",
    "typing_extensions",
)  # what the package asks for beside torch, for the parts tried without it


# --- inside -----------------------------------------------------------------------------------------------------------


def close(got: Any, right: float) -> None:
    """Fail where a number is not the one it has to be."""
    if not math.isclose(float(got), right, rel_tol=1e-5, abs_tol=1e-7):
        raise AssertionError(f"{float(got)} instead of {right}")


def try_values(impl: str) -> int:
    """Compare calls with what they have to give, worked out by hand, and return how many."""
    import torch

    import crossent

    one, two = math.log(4), math.log(8)  # the losses of flat logits of four and of eight classes
    x, y = torch.zeros(2, 4), torch.tensor([0, 3])
    steep = torch.tensor([[math.log(3.0), 0.0]])  # p = (3/4, 1/4)
    soft = torch.full((2, 4), 0.25)
    ce = crossent.cross_entropy
    expected = [
        (ce(x, y, impl=impl), one),
        (ce(x, y, reduction="sum", impl=impl), 2 * one),
        (ce(torch.zeros(3, 8, dtype=torch.float64), torch.tensor([0, 5, 7]), impl=impl), two),
        (ce(x, soft, impl=impl), one),
        (ce(x, y, label_smoothing=0.1, impl=impl), one),
        (ce(x, torch.tensor([0, -100]), impl=impl), one),
        (ce(x, y, weight=torch.tensor([1.0, 1, 1, 3]), reduction="sum", impl=impl), 4 * one),
        (ce(steep, torch.tensor([0]), impl=impl), math.log(4 / 3)),
        (ce(steep, torch.tensor([1]), impl=impl), math.log(4)),
        (ce(steep, torch.tensor([0]), penalty=crossent.Focal(2.0), impl=impl), math.log(4 / 3) / 16),
        (ce(torch.zeros(2, 21, 3, 5), torch.ones(2, 3, 5, dtype=torch.int64), impl=impl), math.log(21)),
        (ce(torch.zeros(5, 1000, dtype=torch.bfloat16), torch.arange(5), impl=impl, reduction="sum") / 5, 6.90625),
        (crossent.binary_cross_entropy_with_logits(torch.zeros(40), torch.ones(40), impl=impl), math.log(2)),
        (crossent.cross_entropy_stats(x, y, impl=impl).entropy[0], one),
    ]
    for got, right in expected[:-3] + expected[-2:]:
        close(got, right)
    if abs(float(expected[-3][0]) - math.log(1000)) > 0.05:  # a sum in bfloat16 has eight bits
        raise AssertionError(f"{expected[-3][0]} instead of about log 1000")

    for logits in (torch.zeros(1, 4), torch.zeros(1, 200)):
        logits.requires_grad_()
        ce(logits, torch.tensor([2]), impl=impl).backward()
        classes = logits.shape[1]
        close(logits.grad[0, 2], 1 / classes - 1)
        close(logits.grad[0, 0], 1 / classes)
    return len(expected) + 2


class Managed(ctypes.Structure):
    """DLPack's DLManagedTensor, whose strides NumPy leaves out before 2.3 where the numbers lie one after another."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class Borrowed:
    """An array of NumPy's with the methods by which the kernels ask a tensor for its memory."""

    def __init__(self, array: Any) -> None:
        """Describe an array, which has to live as long."""
        numbers = ctypes.c_int64 * array.ndim
        code, bits = {"i": 0, "f": 2}[array.dtype.kind], 8 * array.itemsize
        shape, strides = numbers(*array.shape), numbers(*(step // array.itemsize for step in array.strides))
        cpu = (ctypes.c_int32 * 2)(1, 0)
        self.managed = Managed(array.ctypes.data, cpu, array.ndim, code, bits, 1, shape, strides, 0, None, None)

    def detach(self) -> "Borrowed":
        """Return itself, for an array has no gradient."""
        return self

    def __dlpack__(self) -> object:
        """Hand the memory over."""
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return capsule(ctypes.byref(self.managed), b"dltensor", None)


def try_kernels(native: Any) -> int:
    """Compare what the kernels in use compute with what is worked out by hand, and return how many numbers."""
    import numpy as np

    tried = 0
    for dtype in (np.float32, np.float64):
        for rows, classes in ((2, 4), (33, 10), (3, 1000)):  # few and many to a row, and no whole number of vectors
            logits, target = np.zeros((rows, classes), dtype), np.arange(rows) % classes
            logits[0, 0] = math.log(3 * (classes - 1))  # p = 3/4 there, and all others share a quarter
            loss, grad, lse = np.empty(rows, dtype), np.empty_like(logits), np.empty((2, rows), dtype)
            x, y, kept = Borrowed(logits), Borrowed(target), Borrowed(lse)
            native.softmax_forward(x, y, None, -100, 0.0, native.REDUCTIONS["none"], Borrowed(loss), None, kept)
            ones = Borrowed(np.ones(rows, dtype))
            native.softmax_backward(ones, 1.0, x, y, None, kept, -100, 0.0, Borrowed(grad), None)
            close(loss[0], math.log(4 / 3))
            close(grad[0, 0], -1 / 4)
            close(grad[0, -1], 1 / 4 / (classes - 1))
            close(loss[-1], math.log(classes))
            close(grad[-1, target[-1]], 1 / classes - 1)
            close(grad[-1, (target[-1] + 1) % classes], 1 / classes)
            tried += 6
    return tried


def without_torch(kernels: bool) -> None:
    """Try what of the crossent on the path needs no torch."""
    import crossent
    from crossent import reference

    here = Path(crossent.__file__).parent
    if str(here.parent) not in os.environ["PYTHONPATH"].split(os.pathsep):
        raise AssertionError(f"this is not the wheel's crossent: {here}")
    close(reference.cross_entropy([[math.log(3), 0]], [0])[0], math.log(4 / 3))
    instruction_sets, values = [], 1
    if kernels:
        from crossent import _native

        for name in _native.isas():
            _native.use_isa(name)
            values += try_kernels(_native)
            instruction_sets.append(name)
    elif list(here.glob("_native.*[od]")):
        raise AssertionError("there are kernels where none should be")
    python, machine = ".".join(map(str, sys.version_info[:3])), platform.machine()
    sets = ", ".join(instruction_sets) or "no kernels"
    print(f"SMOKED Python {python} on {machine}, without torch, {sets}, {values} values")


def inside(kernels: bool) -> None:
    """Try the crossent that is installed here."""
    import torch

    import crossent
    from crossent.tools.cli import main

    here = Path(crossent.__file__).parent
    if not here.resolve().is_relative_to(Path(sys.prefix).resolve()):
        raise AssertionError(f"this is not the wheel's crossent: {here}")
    impl = crossent.choose_implementation(torch.zeros(2, 3))
    if impl != ("native" if kernels else "eager"):
        raise AssertionError(f"{impl} would run")
    instruction_sets = []
    calls = try_values(impl)
    if kernels:
        from crossent import _native

        for name in _native.isas():
            _native.use_isa(name)
            try_values(impl)
            instruction_sets.append(name)
    if not (here / "py.typed").exists():
        raise AssertionError("there is no py.typed: type checkers would see nothing")
    main(["info"], standalone_mode=False)
    page = Path("x.html")
    main(["explore", "--out", str(page), "--no-open"], standalone_mode=False)
    if "<script" not in page.read_text("utf-8") or page.stat().st_size < 50_000:
        raise AssertionError("the page of explore lacks its parts")
    python = ".".join(map(str, sys.version_info[:3]))
    sets = ", ".join(instruction_sets) or "no kernels"
    print(f"SMOKED Python {python}, torch {torch.__version__}, {impl} ({sets}), {calls} values")


# --- outside ----------------------------------------------------------------------------------------------------------


def machine_of(wheel: Path) -> str:
    """Name the machine that a wheel is for, as its tag does; one without kernels runs on this one."""
    system = wheel.stem.rpartition("-")[2]
    mine = platform.machine().lower()
    return next((name for name in ("aarch64", "x86_64", "arm64", "amd64") if system.endswith(name)), mine)


def fits(wheel: Path, version: str) -> bool:
    """Whether a wheel is for this Python and a machine that can be tried here: on Linux another one too, in qemu."""
    python, abi, system = wheel.stem.split("-")[2:]
    mine = {"linux": "manylinux", "darwin": "macosx", "win32": "win"}.get(sys.platform, "no wheels")
    if system != "any":
        if not system.startswith(mine):
            return False
        if mine != "manylinux" and machine_of(wheel) != platform.machine().lower():
            return False
    number = tuple(map(int, version.split(".")))
    if abi == "abi3":
        return number >= (int(python[2]), int(python[3:]))
    return python in ("py3", "cp" + version.replace(".", ""))


def said(*command: object, cwd: str | None = None, **env: str) -> tuple[int, str]:
    """Run a command apart from this environment; return its exit code and all it says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CROSSENT"))} | env
    parts = [str(part) for part in command]
    done = subprocess.run(
        parts, cwd=cwd, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def cpu_build(python: Path, torch: str) -> str | None:
    """Return the version of a build of torch for the CPU; pip would fetch gigabytes to say what another one asks for."""
    _, text = said(python, "-m", "pip", "--disable-pip-version-check", "index", "versions", "torch")
    listed = re.search(r"Available versions: (.*)", text)
    fitting = [name for name in (listed[1].split(", ") if listed else []) if name.startswith(f"{torch}.")]
    bare = sys.platform != "linux"  # there what has no label is for CUDA, on arm64 too
    return next((name for name in fitting if name.endswith("+cpu") or ("+" not in name and bare)), None)


def judged(code: int, text: str) -> str:
    """Say how a trial inside went."""
    last = text.strip().rsplit("\n", 1)[-1]
    return last.replace("SMOKED", "ok:") if not code and last.startswith("SMOKED") else f"FAILED:\n{text[-3000:]}"


def smoke(wheel: Path, version: str, torch: str) -> str:
    """Try one wheel with one Python and one torch; return a line that says how it went and begins with ok, left out or FAILED."""
    from build_wheels import interpreter

    python = interpreter(version) if machine_of(wheel) == platform.machine() else None
    with tempfile.TemporaryDirectory() as folder:
        if python and not said(python, "-m", "venv", f"{folder}/env")[0]:
            inner = Path(folder, "env/bin/python")
            build = cpu_build(inner, torch)
            if build:
                pip = (inner, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
                code, text = said(*pip, f"torch=={build}", wheel)
                if code:
                    return f"FAILED to install:\n{text[-3000:]}"
                return judged(*said(inner, "-W", "error", HERE, "--inside", kernels_of(wheel), cwd=folder))
        return smoke_without_torch(wheel, version, python, Path(folder))


def smoke_without_torch(wheel: Path, version: str, python: str | None, folder: Path) -> str:
    """Try what of a wheel needs no torch, with the Python named or one of Debian's; return a line as ``smoke`` does."""
    from debian_python import launcher

    machine = machine_of(wheel)
    if not python:
        python, why = launcher(machine, version)
        if not python:
            return f"left out: {why}"
    packages = folder / "packages"
    tags = [f"--platform={system}_{machine}" for system in ("manylinux2014", "manylinux_2_28", "manylinux_2_34")]
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        packages,
    )
    code, text = said(*pip, "--only-binary=:all:", f"--python-version={version}", *tags, *NO_TORCH, wheel)
    if code:
        return f"FAILED to install:\n{text[-3000:]}"
    inside = (HERE, "--inside", "--without-torch", kernels_of(wheel))
    return judged(*said(python, "-W", "error", *inside, cwd=str(folder), PYTHONPATH=str(packages)))


def kernels_of(wheel: Path) -> str:
    """Return the option that says whether a wheel has kernels."""
    return "--no-kernels" if "-none-any" in wheel.name else "--kernels"


def main() -> None:
    """Try wheels outside, or what is installed inside."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("wheels", nargs="*", type=Path)
    options.add_argument("--torch", action="append", metavar="X.Y", help="2.13 unless told; may be given several times")
    options.add_argument("--python", action="append", metavar="X.Y", help="all that are here unless told")
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--without-torch", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--kernels", action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.inside:
        return (without_torch if given.without_torch else inside)(given.kernels)

    count = {"ok, with torch": 0, "ok, without torch": 0, "failed": 0, "left out": 0}
    for version in given.python or PYTHONS:
        for wheel in (wheel.resolve() for wheel in given.wheels if fits(wheel, version)):
            for torch in given.torch or ["2.13"]:
                line = smoke(wheel, version, torch)
                print(f"{wheel.name}, Python {version}, torch {torch}: {line}", flush=True)
                good = "ok, without torch" if "without torch" in line else "ok, with torch"
                count[good if line.startswith("ok") else "failed" if line.startswith("FAILED") else "left out"] += 1
    print("; ".join(f"{what}: {number}" for what, number in count.items()))
    if count["failed"] or not (count["ok, with torch"] or count["ok, without torch"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
