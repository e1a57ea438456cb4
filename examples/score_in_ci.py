"""Let a CI job fail where a model became worse: ``crossent score`` with ``--fail-if``.

python examples/score_in_ci.py [STEPS]        needs scikit-learn

In a workflow the last step is one line: crossent score predictions.npz --fail-if 'accuracy<0.9' --fail-if 'ece>0.1'
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import crossent

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 300

pixels, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
pixels = pixels.float() / 16
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
test, train = order[:450], order[450:]

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(STEPS):
    rows = train[torch.randint(len(train), (128,))]
    loss = crossent.cross_entropy(model(pixels[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    file = Path(folder) / "predictions.npz"
    logits = model(pixels[test])
    np.savez(file, logits=logits.numpy(), labels=labels[test].numpy())
    for condition in ("accuracy<0.5", "nll>0.0001"):  # the first asks for little, the second for too much
        command = [sys.executable, "-m", "crossent", "score", str(file), "--json", "--fail-if", condition]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"--fail-if '{condition}' exits with {ran.returncode}: {ran.stderr.splitlines()[-1]}")

# The same numbers in Python, without a file.
report = crossent.score(logits, labels[test])
print(f"accuracy {report.numbers['accuracy']:.3f}, calibration error {report.numbers['calibration_error']:.3f}")
