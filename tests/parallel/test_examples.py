"""The examples run as their first lines say, on two processes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["fsdp.py"])
def test_an_example_trains(name):
    text = (EXAMPLES / name).read_text()
    assert f"torchrun --nproc_per_node 2 examples/{name}" in text
    assert len(text.splitlines()) <= 60
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(EXAMPLES / name),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    losses = [float(loss) for loss in re.findall(r"step \d+: ([\d.]+) nats", ran.stdout)]
    assert len(losses) == 4
    assert losses[-1] < 0.2 * losses[0]
