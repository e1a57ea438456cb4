"""Time crossent beside torch and torch.compile, and measure the memory they take.

Peers run in one process, interleaved round by round, forward and backward, and each problem in a fresh one; what counts is
the median over the rounds and the ratios. The unit is one plain copy of the logits, or the bare matrix products for a head and
its loss. A full run writes its figures into the pages that quote them, too; ``--from-json`` writes table, plots and pages again
from stored results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from defer import measure_defer
from linear import CASES as LINEAR
from linear import measure_linear
from linear_accuracy import measure_accuracy
from linear_memory import measure_linear_memory
from machine import describe_machine, instruction_sets
from measure import measure_alone
from members import measure_members
from memory import measure_memory
from pages import available, measure_pages
from problems import CASES, OTHER_ISA, Case
from report import write_pages, write_report
from sweep import SWEEP, measure_sweep, summary, write_sweep

HERE = Path(__file__).resolve().parent
SECONDS, QUICK_SECONDS = 4.0, 0.5  # for each problem and number of threads, where five rounds fit into it
CELL_SECONDS = 0.02  # for each cell of the sweep
OTHERS = (
    "memory",
    "pages",
    "members",
    "sweep",
    "linear-memory",
    "linear-accuracy",
    "defer",
)  # names beside those of problems


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few problems, a moment each, with all threads")
    known = [*(case.name for case in (*CASES, *LINEAR)), *OTHERS]
    parser.add_argument(
        "--only", action="append", metavar="NAME", help=f"what contains NAME, repeatable: {', '.join(known)}"
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write to; benchmarks/results, but build/bench for a --quick or --only run"
    )
    parser.add_argument(
        "--second",
        action="store_true",
        help="a processor of another kind: put what was measured beside the results that there are",
    )
    parser.add_argument("--from-json", action="store_true", help="measure nothing, draw from the folder's results.json")
    args = parser.parse_args()
    if args.out is None:
        args.out = HERE.parent / "build" / "bench" if args.quick or args.only else HERE / "results"
    args.names = args.only or [""]
    if not any(name in each for name in args.names for each in known):
        parser.error(f"no problem is called {', '.join(args.names)}")
    return args


def chosen(names: list[str], quick: bool) -> list[Case]:
    """Return the problems to measure."""
    return [case for case in CASES if wanted(case.name, names) and (case.quick or not quick)]


def wanted(each: str, names: list[str]) -> bool:
    return any(name in each for name in names)


def say(row: dict) -> None:
    """Print a line for a row as soon as it is there."""
    times = "  ".join(f"{name} {ms:9.3f}" for name, ms in row["ms"].items())
    print(f"{row['title']:<58} {row['threads']} thr  {times} ms  {row['rounds']} rounds", flush=True)
    for name, why in row["failed"].items():
        print(f"    {name} did not run: {why}", flush=True)


def measure_head(names: list[str], quick: bool, threads: int) -> dict:
    """Measure what was asked for of a head and its loss, with all threads."""
    cases = [case for case in LINEAR if wanted(case.name, names) and (case.quick or not quick)]
    return {
        "rows": measure_linear(cases, threads),
        "memory": measure_linear_memory(quick) if wanted("linear-memory", names) else [],
        "accuracy": measure_accuracy() if wanted("linear-accuracy", names) else [],
    }


def measure_all(args: argparse.Namespace) -> dict:
    """Measure everything that was asked for."""
    machine = describe_machine()
    print(f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, load {machine['load']}")
    if not machine["idle"]:
        print("The machine is not idle: read the ratios with care, and do not publish them.")
    start, threads = time.perf_counter(), machine["threads"]
    memory = measure_memory(args.quick) if wanted("memory", args.names) else []
    seconds = QUICK_SECONDS if args.quick else SECONDS
    counts = [threads] if args.quick else sorted({1, threads})
    pages = []
    if wanted("pages", args.names) and available():
        pages = [measure_pages(count, seconds) for count in counts]
    members = []
    if wanted("members", args.names):
        members = [row for count in counts for row in measure_members(count, seconds)]
    sweep = []
    if wanted("sweep", args.names) and not args.quick:
        sweep = [row for count in counts for row in measure_sweep(count, CELL_SECONDS)]
        if machine["instruction_set"] not in (None, OTHER_ISA) and OTHER_ISA in instruction_sets():
            sweep += measure_sweep(1, CELL_SECONDS, OTHER_ISA)
        args.out.mkdir(parents=True, exist_ok=True)
        write_sweep(sweep, args.out / SWEEP)
    rows = []
    for case in chosen(args.names, args.quick):
        for count in counts:
            rows.append(measure_alone(case, count, seconds))
            say(rows[-1])
    linear = measure_head(args.names, args.quick, threads)
    defer = measure_defer(args.quick) if wanted("defer", args.names) else []
    torch.set_num_threads(threads)
    return {
        "schema": "crossent.bench/3",
        "machine": machine,
        "partial": bool(args.quick or (args.only and not args.second)),
        "seconds": time.perf_counter() - start,
        "rows": rows,
        "memory": memory,
        "pages": pages,
        "members": members,
        "sweep": summary(sweep, machine),
        "linear": linear,
        "defer": defer,
    }


def main() -> None:
    args = parse()
    path = args.out / "results.json"
    if args.from_json:
        results = json.loads(path.read_text())
    else:
        known = json.loads(path.read_text()) if path.exists() else {}
        measured = measure_all(args)
        results = known | {"second": measured} if args.second else measured
        if "second" in known:
            results.setdefault("second", known["second"])
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    written = [path, *write_report(results, args.out)]
    if args.out.resolve() == HERE / "results":
        written += write_pages(results, HERE.parent)
        subprocess.run([sys.executable, HERE.parent / "docs" / "figures_linear.py"], check=True)
    for file in written:
        print(file)


if __name__ == "__main__":
    main()
