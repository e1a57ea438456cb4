"""What is compiled and shipped: the numbers of the kernels, each instruction set's object, the wheel with and without kernels."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
ARM = shutil.which("aarch64-linux-gnu-g++")
STRICT = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name)]
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

needs_compiler = pytest.mark.skipif(not COMPILER, reason="there is no C++ compiler")
needs_arm = pytest.mark.skipif(not ARM, reason="there is no compiler for arm64 (g++-aarch64-linux-gnu)")


def run(*command, **more):
    """Run a command and return what it writes, or fail with all that it has said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False, **more)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-4000:]
    return done.stdout


def options(name):
    """Read a list of compiler options from CMakeLists.txt."""
    (words,) = re.findall(rf"set\({name} (.*)\)", (ROOT / "CMakeLists.txt").read_text())
    return [flag for word in words.split() for flag in (options(word[2:-1]) if word.startswith("${") else [word])]


def flags_of(isa):
    return [] if isa in ("none", "baseline") else options(f"flags_{isa}")


def instruction_sets():
    """List those that this build has and this processor runs."""
    try:
        from crossent import _native
    except ImportError:
        return []
    return _native.isas()


# --- numbers ----------------------------------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """The program that tries csrc/numbers.h, and whether it has fused multiply-add."""

    program: Path
    fused: bool


@pytest.fixture(scope="module", params=instruction_sets() or ["none"])
def numbers(request, tmp_path_factory):
    """Compile numbers.cpp as the kernels are compiled."""
    if not COMPILER:
        pytest.skip("there is no C++ compiler")
    program = tmp_path_factory.mktemp("numbers") / "numbers"
    flags = flags_of(request.param)
    run(COMPILER, *STRICT, *options("arithmetic"), *flags, ROOT / "tests/numbers.cpp", "-o", program)
    return Numbers(program, "-mfma" in flags or platform.machine() in ("aarch64", "arm64"))


# The page on performance says how far off the floats may be; these are the largest errors over all of them, rounded up.
DOCUMENTED = {
    "exp": "`exp`",
    "expm1": "`expm1`",
    "log1p": "`log1p`",
    "log1p_unit": "`log1p`, without a division",
    "inverse_unit": "`1 / (1 + x)`, without a division",
}
DOUBLES = {"exp64": 1.6, "expm164": 1.2, "log1p64": 0.8}  # not all were tried


def documented_bounds(fused):
    page, bounds = (ROOT / "docs/performance.md").read_text("utf-8"), dict(DOUBLES)
    for name, label in DOCUMENTED.items():
        line = re.search(rf"^\| {re.escape(label)} \| .* \| (.*) \| (.*) \|$", page, re.MULTILINE)
        bounds[name] = float(line[1 if fused else 2])
    return bounds


def assert_errors_are_documented(report, fused):
    *errors, ends, nan = (line.split() for line in report.decode().splitlines())
    bounds = documented_bounds(fused)
    assert {name for name, _, _ in errors} == set(bounds)
    for name, error, where in errors:
        assert 0.4 < float(error) <= bounds[name], f"{name}({where}) is {error} units of the last place off"
    assert ends == ["ends", "1", "0", "0", "-1", "0"]
    assert nan == ["nan", "111"]


def test_elementary_functions_are_as_exact_as_they_say(numbers):
    assert_errors_are_documented(run(numbers.program, 1009), numbers.fused)


def test_what_the_header_says_is_what_the_page_says():
    header = " ".join((ROOT / "csrc/numbers.h").read_text().replace("//", " ").split())
    fused, unfused = documented_bounds(True), documented_bounds(False)
    for name, claim in {
        "exp": "Error at most {} ulp with fused multiply-add, {} without",
        "log1p": "at most {} ulp.",
        "log1p_unit": "at most {} ulp with fused multiply-add, {} without",
    }.items():
        assert claim.format(fused[name], unfused[name]) in header, name


@needs_arm
@pytest.mark.skipif(not QEMU, reason="there is no qemu-aarch64 to run arm64 programs")
def test_elementary_functions_on_arm(tmp_path):
    run(ARM, *STRICT, *options("arithmetic"), "-static", ROOT / "tests/numbers.cpp", "-o", tmp_path / "numbers")
    assert_errors_are_documented(run(QEMU, tmp_path / "numbers", 10007), fused=True)


def test_every_half_and_bfloat16_number_widens_and_narrows_back(numbers):
    wide = np.frombuffer(run(numbers.program, "widen"), np.float32)
    narrow = np.frombuffer(run(numbers.program, "narrow", input=wide.tobytes()), np.uint16).reshape(2, 65536, 2)
    patterns = torch.arange(65536).to(torch.uint16)
    for kind, dtype in enumerate((torch.float16, torch.bfloat16)):
        expected = patterns.view(dtype).float().numpy()
        ours, number = wide.reshape(2, -1)[kind], ~np.isnan(expected)
        np.testing.assert_array_equal(ours, expected)
        assert (np.signbit(ours) == np.signbit(expected)).all()
        np.testing.assert_array_equal(narrow[kind, number, kind], patterns.numpy()[number])


def test_narrowing_rounds_as_torch_does(numbers):
    every = torch.arange(65536).to(torch.uint16)
    bits = torch.randint(-(2**31), 2**31, (400_000,)).to(torch.int32)
    common = [
        bits.view(torch.float32),
        torch.randn(100_000),
        torch.tensor([65519.99, 65520.0, 65504.0, 2.0**-25, 1e-45]),
    ]
    for dtype in (torch.float16, torch.bfloat16):
        value = every.view(dtype).float()
        value = value[value.isfinite()].sort().values
        tie = (value[1:] + value[:-1]) / 2
        inf = torch.full_like(tie, torch.inf)
        common += [value, tie, torch.nextafter(tie, inf), torch.nextafter(tie, -inf)]
    x = torch.cat(common)
    ours = torch.from_numpy(
        np.frombuffer(run(numbers.program, "narrow", input=x.numpy().tobytes()), np.uint16).copy()
    ).view(-1, 2)
    for kind, dtype in enumerate((torch.float16, torch.bfloat16)):
        expected, got = x.to(dtype), ours[:, kind].contiguous().view(dtype)
        assert (got.isnan() == x.isnan()).all()
        number = ~x.isnan()
        assert (got[number].view(torch.int16) == expected[number].view(torch.int16)).all()


# --- objects and wheels -----------------------------------------------------------------------------------------------


@needs_arm
def test_kernels_compile_for_arm(tmp_path):
    run(ARM, *STRICT, "-DISA=baseline", "-c", ROOT / "csrc/isa.cpp", "-o", tmp_path / "isa.o")
    made = (tmp_path / "isa.o").read_bytes()
    assert made[:4] == b"\x7fELF"
    assert int.from_bytes(made[18:20], "little") == 183  # EM_AARCH64
    assert b"\0kernels_baseline\0" in made


def compiled(compiler, isa, to, *more):
    """Compile one instruction set's kernels as CMakeLists.txt has it, and return all that the compiler says."""
    flags = ["-std=c++17", *options("warnings"), *options("arithmetic"), *flags_of(isa), *more]
    command = [compiler, *flags, f"-DISA={isa}", "-fPIC", "-fvisibility=hidden", "-c", ROOT / "csrc/isa.cpp", "-o", to]
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("isa", instruction_sets() or ["none"])
@pytest.mark.parametrize("compiler", COMPILERS or ["none"])
def test_no_compiler_has_anything_to_say(compiler, isa, tmp_path):
    if "none" in (compiler, isa):
        pytest.skip("there is no compiler or there are no kernels")
    assert compiled(compiler, isa, tmp_path / "isa.o", "-O1") == ""
    check_symbols(tmp_path / "isa.o")


@pytest.mark.parametrize("compiler", COMPILERS or ["none"])
def test_nor_about_the_binding(compiler, tmp_path):
    nanobind = pytest.importorskip("nanobind")
    headers = Path(sysconfig.get_path("include"))
    if compiler == "none" or not (headers / "Python.h").exists():
        pytest.skip("there is no compiler or there are no headers of Python")
    paths = ["-isystem", nanobind.include_dir(), "-isystem", headers]
    source = ROOT / "csrc/binding.cpp"
    flags = ["-std=c++17", "-fvisibility=hidden", *options("warnings"), "-Werror", "-fsyntax-only"]
    assert run(compiler, *flags, *paths, source) == b""


def build(to, *settings, **more):
    """Build a wheel with the tools of this environment and return its path."""
    tools = [name for name in ("scikit_build_core", "nanobind") if importlib.util.find_spec(name) is None]
    tools += [name for name in ("cmake", "ninja") if not (importlib.util.find_spec(name) or shutil.which(name))]
    if tools:
        pytest.skip(f"no wheel can be built here without {', '.join(tools)}; make test installs them")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    run(*command, "--no-index", "--wheel-dir", to, *settings, ROOT, **more)
    (wheel,) = to.glob("*.whl")
    return wheel


def install(wheel, to):
    """Install a wheel in a fresh environment, which sees torch and the other packages of this one; return its Python."""
    venv.create(to, with_pip=False)
    python = to / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = sysconfig.get_path("purelib", vars={"base": str(to), "platbase": str(to)})
    zipfile.ZipFile(wheel).extractall(site)
    # What a .pth file adds to the path comes after the wheel, and the .pth files in the folders it names are not read, such as
    # that of an editable install of this package.
    (Path(site) / "shared.pth").write_text(f"{Path(torch.__file__).parents[1]}\n{Path(np.__file__).parents[1]}\n")
    return python


def smoke(interpreter, cwd, *arguments, **more):
    """Try what is installed by values known beforehand, and return what that says; it fails where it is not the wheel."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CROSSENT"))} | more
    script = ROOT / "scripts/smoke_wheel.py"
    said = run(interpreter, "-W", "error", script, "--inside", *arguments, cwd=cwd, env=clean).decode().splitlines()
    assert said[-1].startswith("SMOKED")
    return said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if not instruction_sets():
        pytest.skip("the compiled kernels are not installed")
    return build(tmp_path_factory.mktemp("wheel"))


def test_no_instruction_set_offers_its_code_to_another(wheel):
    # The linker keeps one copy of a weak symbol for all: it could be one that this processor cannot run.
    objects = list((ROOT / "build" / sys.implementation.cache_tag).glob("CMakeFiles/kernels_*.dir/csrc/isa.cpp.o*"))
    assert {path.parts[-3] for path in objects} >= {f"kernels_{isa}.dir" for isa in instruction_sets()}
    for path in objects:
        check_symbols(path)


def check_symbols(path):
    if not shutil.which("nm"):
        pytest.skip("there is no nm")
    symbols = [line.split(maxsplit=2)[1:] for line in run("nm", "-C", "--defined-only", path).decode().splitlines()]
    assert len(symbols) > 16
    assert [name for kind, name in symbols if kind in "WVu"] == []
    assert len([name for kind, name in symbols if kind.isupper()]) == 1, "the table of kernels, and nothing else"


def test_the_wheel_has_everything_and_works(wheel, tmp_path):
    version = sys.version_info[:2]
    tag = "cp312-abi3" if version >= (3, 12) else "cp{0}{1}-cp{0}{1}".format(*version)
    assert f"-{tag}-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    sources = {
        str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/crossent").rglob("*.py*") if path.suffix != ".pyc"
    }
    assert sources | {"crossent/py.typed"} <= set(names)
    assert len([name for name in names if re.fullmatch(r"crossent/_native\..*(so|pyd)", name)]) == 1
    interpreter = install(wheel, tmp_path / "environment")
    said = smoke(interpreter, tmp_path, "--kernels")
    assert f"native ({', '.join(instruction_sets())})" in said[-1]
    packages = sysconfig.get_path("purelib", vars=dict.fromkeys(("base", "platbase"), str(tmp_path / "environment")))
    bare = smoke(interpreter, tmp_path, "--without-torch", "--kernels", PYTHONPATH=packages)
    assert f"without torch, {', '.join(instruction_sets())}, " in bare[-1]


def test_the_wheel_without_kernels_is_for_every_machine_and_the_same_each_time(tmp_path):
    settings = ["--config-settings=wheel.cmake=false", "--config-settings=wheel.py-api=py3"]
    dated = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    one, two = (build(tmp_path / name, *settings, env=dated) for name in ("one", "two"))
    assert one.name.endswith("-py3-none-any.whl")
    assert one.read_bytes() == two.read_bytes()
    interpreter = install(one, tmp_path / "environment")
    assert "eager (no kernels)" in smoke(interpreter, tmp_path, "--no-kernels")[-1]
    packed = os.environ | {"PYTHONPATH": str(one)}  # as it is, a zip: the page's parts are read from within
    where = run(interpreter, "-c", "import crossent; print(crossent.__file__)", cwd=tmp_path, env=packed).decode()
    assert where.startswith(str(one))
    page = tmp_path / "packed.html"
    run(interpreter, "-m", "crossent", "explore", "--no-open", "--out", page, cwd=tmp_path, env=packed)
    assert page.stat().st_size > 50_000
    script = (ROOT / "scripts/build_wheels.py").read_text("utf-8")
    assert all(setting.split("=", 1)[1] in script for setting in settings)


@pytest.mark.slow
def test_kernels_of_another_build_are_linked_as_they_are(wheel, tmp_path):
    kernels = ROOT / "build" / sys.implementation.cache_tag
    settings = [
        f"--config-settings=build-dir={tmp_path / 'objects'}",
        f"--config-settings=cmake.define.CROSSENT_KERNELS={kernels}",
    ]
    linked = build(tmp_path / "wheel", *settings)
    assert not list(tmp_path.rglob("isa.cpp.o*"))
    one, two = (
        [(name, archive.read(name)) for name in sorted(archive.namelist()) if "_native." in name]
        for archive in map(zipfile.ZipFile, (wheel, linked))
    )
    assert one == two


def test_without_a_compiler_the_package_is_installed_and_eager(tmp_path):
    settings = ["--config-settings=build-dir=" + str(tmp_path / "objects")]
    blind = os.environ | {"CC": "/nonexistent", "CXX": "/nonexistent"}
    wheel = build(tmp_path / "wheel", *settings, env=blind)
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "_native." in name and not name.endswith(".pyi")]
    said = smoke(install(wheel, tmp_path / "environment"), tmp_path, "--no-kernels")
    assert any(re.match(" *native +no: the compiled CPU kernels are not installed", line) for line in said)
