"""The examples run as their first lines say, on two processes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
LOSSES = {
    "fsdp.py": (4, 0.2),
    "tensor_parallel.py": (3, 0.3),
}  # how many each prints, and what the last is of the first
PAGE = EXAMPLES.parent / "docs" / "scale.md"


def _run(path, *options):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        *options,
        str(path),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    return ran.stdout


@pytest.mark.parametrize("name", LOSSES)
def test_an_example_trains(name):
    text = (EXAMPLES / name).read_text()
    assert f"torchrun --nproc_per_node 2 examples/{name}" in text
    assert len(text.splitlines()) <= 60
    losses = [float(loss) for loss in re.findall(r"step \d+: ([\d.]+) nats", _run(EXAMPLES / name))]
    count, share = LOSSES[name]
    assert len(losses) == count
    assert losses[-1] < share * losses[0]


def test_the_head_of_the_page_runs(tmp_path):
    """What docs/scale.md says is all of a file is so, and is the loss of one process."""
    (text,) = re.findall(r"```python\n(import torch\nimport torch.distributed.*?)```", PAGE.read_text(), re.DOTALL)
    script = tmp_path / "head.py"
    script.write_text(text)
    _run(script, "--redirects", "1", "--log-dir", str(tmp_path))  # a file for each, for two may write at the same time
    ranks = dict(path.read_text().split(" ", 1) for path in tmp_path.rglob("stdout.log"))
    torch.manual_seed(0)
    body, whole, tokens = torch.nn.Embedding(1001, 64), torch.randn(1001, 64), torch.randint(1001, (8, 33))
    logits = torch.nn.functional.linear(body(tokens), whole)[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    loss.backward()
    for rank, shape in (("0", "(501, 64)"), ("1", "(500, 64)")):
        found, rest = ranks[rank].split(" ", 1)
        assert float(found) == pytest.approx(loss.item(), rel=1e-5)
        assert rest.startswith(shape)
        assert float(rest.rsplit(" ", 1)[1]) == pytest.approx(body.weight.grad.sum().item(), abs=1e-4)
