"""Processes that run the cases of distributed tests: they start once for a file, and a case that hangs is stopped and fails.

    ranks = pool(2)

    def test_sum(ranks):
        assert ranks(own_sum, 3.0) == [6.0, 6.0]

A case such as ``own_sum`` is a function at the top of the test's file. It runs in every process, with gloo between them, and
what it returns on each comes back as a list. ``ranks.assert_holds(case)`` runs one that asserts in every process what there is
to see, and returns nothing.
"""

from __future__ import annotations

import datetime
import faulthandler
import importlib.util
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

SECONDS = 120  # for a case; the first one includes the start of the processes

# Imported once, in a process that has no threads and of which all others are forks: importing takes 8 s in each of them.
IMPORTS = [
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "pytest",
    "ranks",
]
_context = torch.multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(IMPORTS)


def _function(file: str, name: str) -> Any:
    key = f"case_of_{Path(file).stem}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, file)
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return getattr(sys.modules[key], name)


def _serve(rank: int, world: int, store: str, pipe: Any) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=SECONDS)
    torch.distributed.init_process_group("gloo", f"file://{store}", wait, world, rank)
    while (case := pipe.recv()) is not None:
        file, name, arguments = case
        try:
            torch.manual_seed(0)
            pipe.send((True, _function(file, name)(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class Ranks:
    """As many processes as ``world`` says, which know each other."""

    def __init__(self, world: int, directory: Path) -> None:
        self.world, self.directory, self.processes, self.pipes, self.started = world, directory, [], [], 0
        self.again = False  # whether a case is run for the second time

    def _start(self) -> None:
        self.started += 1
        store = str(self.directory / f"store{self.started}")
        for rank in range(self.world):
            ours, theirs = _context.Pipe()
            process = _context.Process(target=_serve, args=(rank, self.world, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.pipes = [], []

    def __call__(self, function: Any, *arguments: Any) -> list[Any]:
        if not self.processes:
            self._start()
        end, answers = time.monotonic() + SECONDS, []
        for pipe in self.pipes:
            pipe.send((function.__code__.co_filename, function.__name__, arguments))
        waiting = dict(enumerate(self.pipes))
        while waiting:
            for rank, pipe in list(waiting.items()):
                if pipe.poll(0.02):
                    try:
                        answers.append((rank, *pipe.recv()))
                    except EOFError:
                        self.processes[rank].join(5)
                        answers.append((rank, False, f"the process ended, exit code {self.processes[rank].exitcode}"))
                    del waiting[rank]
            if waiting and time.monotonic() > end:
                self._fail(answers, f"ranks {sorted(waiting)} had not answered after {SECONDS} s")
            if waiting and not all(well for _, well, _ in answers):  # the others may wait for it
                end = min(end, time.monotonic() + 5)
        ended = any(not well and answer.startswith("the process ended") for _, well, answer in answers)
        if ended and not self.again:
            # A run of the whole suite lost a process once, without a trace, and two hundred repetitions of its case lost none.
            # A case that ends its process by itself does so twice.
            print(f"a process ended, and the case is run again: {answers}", file=sys.stderr)
            self.stop()
            self.again = True
            try:
                return self(function, *arguments)
            finally:
                self.again = False
        if not all(well for _, well, _ in answers):
            self._fail(answers, "a case failed")
        return [answer for _, _, answer in sorted(answers, key=lambda each: each[0])]

    def assert_holds(self, case: Any, *arguments: Any) -> None:
        """Run a case that asserts on every process what there is to see."""
        self(case, *arguments)

    def _fail(self, answers: list[Any], what: str) -> None:
        self.stop()
        told = "\n".join(f"rank {rank}: {answer}" for rank, well, answer in answers if not well)
        raise AssertionError(f"{what}\n{told}")


def pool(world: int) -> Any:
    """Make a fixture of a file's processes."""

    @pytest.fixture(scope="module")
    def ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
        made = Ranks(world, tmp_path_factory.mktemp("ranks"))
        yield made
        made.stop()

    return ranks
