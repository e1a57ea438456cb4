"""Install wheels in clean environments and try each there: ``python scripts/smoke_wheel.py dist/*.whl``.

Each wheel that fits a Python of this machine is installed with each version of torch (``--torch 2.13``) in a new environment, which
holds nothing else but what the wheel asks for, and tried by values known beforehand, on its kernels if it has them. torch is taken
as a build for the CPU or not at all: what would bring CUDA is left out, with the reason.

In such an environment the file runs itself with ``--inside``; it needs nothing but the wheel then.
"""

import argparse
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


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


def inside(kernels: bool) -> None:
    """Try the crossent that is installed here."""
    import torch

    import crossent
    from crossent.tools.cli import main

    here = Path(crossent.__file__).parent
    if not here.is_relative_to(sys.prefix):
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


def fits(wheel: Path, version: str) -> bool:
    """Whether a wheel is for this Python and this machine."""
    python, abi, platform = wheel.stem.split("-")[2:]
    mine = os.uname().machine if hasattr(os, "uname") else "amd64"
    if platform != "any" and mine not in platform:
        return False
    number = tuple(map(int, version.split(".")))
    if abi == "abi3":
        return number >= (int(python[2]), int(python[3:]))
    return python in ("py3", "cp" + version.replace(".", ""))


def said(*command: object, cwd: str | None = None) -> tuple[int, str]:
    """Run a command apart from this environment; return its exit code and all it says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CROSSENT"))}
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
    cuda = sys.platform == "linux" and platform.machine() == "x86_64"  # elsewhere what has no label is for the CPU
    return next((name for name in fitting if name.endswith("+cpu") or ("+" not in name and not cuda)), None)


def smoke(wheel: Path, interpreter: str, torch: str) -> str:
    """Try one wheel with one Python and one torch; return a line that says how it went and begins with ok, left out or FAILED."""
    with tempfile.TemporaryDirectory() as folder:
        said(interpreter, "-m", "venv", f"{folder}/env")
        python = Path(folder, "env/bin/python")
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install")
        version = cpu_build(python, torch)
        if not version:
            return "left out: no index here has a build of it for the CPU and this Python"
        code, text = said(*pip, "--quiet", f"torch=={version}", wheel)
        if code:
            return f"FAILED to install:\n{text[-3000:]}"
        kernels = "--kernels" if "-none-any" not in wheel.name else "--no-kernels"
        code, text = said(python, "-W", "error", Path(__file__).resolve(), "--inside", kernels, cwd=folder)
        last = text.strip().rsplit("\n", 1)[-1]
        return last.replace("SMOKED", "ok:") if not code and last.startswith("SMOKED") else f"FAILED:\n{text[-3000:]}"


def main() -> None:
    """Try wheels outside, or what is installed inside."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("wheels", nargs="*", type=Path)
    options.add_argument("--torch", action="append", metavar="X.Y", help="2.13 unless told; may be given several times")
    options.add_argument("--python", action="append", metavar="X.Y", help="all that are here unless told")
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--kernels", action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.inside:
        return inside(given.kernels)

    from build_wheels import interpreter

    tried = failed = 0
    for version in given.python or PYTHONS:
        found = interpreter(version)
        for wheel in (wheel.resolve() for wheel in given.wheels if fits(wheel, version)):
            for torch in given.torch or ["2.13"]:
                line = smoke(wheel, found, torch) if found else "left out: this Python is not installed here"
                print(f"{wheel.name}, Python {version}, torch {torch}: {line}", flush=True)
                tried, failed = tried + line.startswith("ok"), failed + line.startswith("FAILED")
    print(f"{tried} tried and good, {failed} failed")
    if failed or not tried:
        sys.exit(1)


if __name__ == "__main__":
    main()
