"""Time crossent beside torch and torch.compile, and weigh the memory they take.

Peers run in one process, interleaved round by round, forward and backward, and each problem in a fresh one; what counts is
the median over the rounds and the ratios. The unit is one plain copy of the logits. A full run writes its figures into the
pages that quote them, too; ``--from-json`` writes table, plot and pages again from stored results.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from cases import CASES, Case
from machine import describe_machine
from measure import measure_alone
from members import measure_members
from memory import measure_memory
from pages import available, measure_pages
from report import write_pages, write_report

HERE = Path(__file__).resolve().parent
SECONDS, QUICK_SECONDS = 4.0, 0.5  # for each problem and number of threads, where five rounds fit into it


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few problems, a moment each, with all threads")
    parser.add_argument(
        "--only", action="append", metavar="NAME",
        help=f"problems whose name contains NAME, repeatable: {', '.join(case.name for case in CASES)}, memory, pages, members",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, help="folder to write to; benchmarks/results, but build/bench for a --quick or --only run"
    )
    parser.add_argument("--from-json", action="store_true", help="measure nothing, draw from the folder's results.json")
    args = parser.parse_args()
    if args.out is None:
        args.out = HERE.parent / "build" / "bench" if args.quick or args.only else HERE / "results"
    args.names = args.only or [""]
    if not any(
        name in known for name in args.names for known in [*(case.name for case in CASES), "memory", "pages", "members"]
    ):
        parser.error(f"no problem is called {', '.join(args.names)}")
    return args


def chosen(names: list[str], quick: bool) -> list[Case]:
    """Return the problems to measure."""
    return [case for case in CASES if any(name in case.name for name in names) and (case.quick or not quick)]


def say(row: dict) -> None:
    """Print a line for a row as soon as it is there."""
    times = "  ".join(f"{name} {ms:9.3f}" for name, ms in row["ms"].items())
    print(f"{row['title']:<58} {row['threads']} thr  {times} ms  {row['rounds']} rounds", flush=True)
    for name, why in row["failed"].items():
        print(f"    {name} did not run: {why}", flush=True)


def measure_all(args: argparse.Namespace) -> dict:
    """Measure everything that was asked for."""
    machine = describe_machine()
    print(f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, load {machine['load']}")
    if not machine["idle"]:
        print("The machine is not idle: read the ratios with care, and do not publish them.")
    start, threads = time.perf_counter(), machine["threads"]
    memory = measure_memory(args.quick) if any(name in "memory" for name in args.names) else []
    seconds = QUICK_SECONDS if args.quick else SECONDS
    counts = [threads] if args.quick else sorted({1, threads})
    pages = []
    if any(name in "pages" for name in args.names) and available():
        pages = [measure_pages(count, seconds) for count in counts]
    members = []
    if any(name in "members" for name in args.names):
        members = [row for count in counts for row in measure_members(count, seconds)]
    rows = []
    for case in chosen(args.names, args.quick):
        for count in counts:
            rows.append(measure_alone(case, count, seconds))
            say(rows[-1])
    torch.set_num_threads(threads)
    return {
        "schema": "crossent.bench/2",
        "machine": machine,
        "partial": bool(args.quick or args.only),
        "seconds": time.perf_counter() - start,
        "rows": rows,
        "memory": memory,
        "pages": pages,
        "members": members,
    }


def main() -> None:
    args = parse()
    path = args.out / "results.json"
    if args.from_json:
        results = json.loads(path.read_text())
    else:
        results = measure_all(args)
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    written = [path, *write_report(results, args.out)]
    if args.out.resolve() == HERE / "results":
        written += write_pages(results, HERE.parent)
    for file in written:
        print(file)


if __name__ == "__main__":
    main()
