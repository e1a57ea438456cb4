"""Install this checkout into the environment of the Python that runs this, and show how far the compiler is.

``python scripts/install.py EXTRA``; pip itself shows nothing while it compiles, or with ``-v`` far too much. All that it writes is
written to ``build/install.log``, and its end is shown where it fails.
"""

import re
import subprocess
import sys
from collections import deque
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEP = re.compile(r"(\[\d+/\d+\]) (?:.*CMakeFiles/([^/]+)\.dir/)?(?:.*[/ ])?([^/ ]+)$")
PACKAGE = re.compile(
    r"\s*(?:Running command )?"
    r"((?:Collecting|Downloading) \S+|Preparing editable metadata|Building editable|Installing collected packages)"
)


def install(extra: str) -> int:
    """Run pip, print a line for each step of the compiler, and return pip's exit code."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-v", "install", "--no-build-isolation"]
    log = ROOT / "build/install.log"
    log.parent.mkdir(exist_ok=True)
    end: deque[str] = deque(maxlen=40)
    print(
        f"installing crossent[{extra}]: pip first looks for packages, which may take minutes even if all are installed; then it "
        "compiles, which takes two minutes of processor time",
        flush=True,
    )
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            [*command, "-e", f".[{extra}]"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as pip,
    ):
        for line in pip.stdout or ():
            file.write(line)
            end.append(line)
            if step := STEP.search(line.rstrip()):  # of ninja: [3/18] Building CXX object CMakeFiles/TARGET.dir/FILE
                print(" ", *filter(None, step.groups()), flush=True)
            elif package := PACKAGE.match(line):
                print(" ", package[1], flush=True)
            elif re.search(r"CMake Warning|is installed without its compiled", line):
                print(line.rstrip(), flush=True)
    if pip.returncode:
        print("".join(end), f"pip failed; all it said is in {log}", sep="", file=sys.stderr)
    return pip.returncode


if __name__ == "__main__":
    sys.exit(install(sys.argv[1]))
