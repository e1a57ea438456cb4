"""Find out why a model does not learn: ``crossent.check`` on a batch, and ``crossent.debug`` while it trains.

python examples/find_a_bug.py [STEPS]        needs scikit-learn
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import crossent

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 200

pixels, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
pixels = pixels.float() / 16
BROKEN = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.Softmax(dim=1))  # a softmax too many
MENDED = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def train(model):
    """Train a model, and return its last loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        rows = torch.randint(len(labels), (128,))
        loss = crossent.cross_entropy(model(pixels[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


torch.manual_seed(0)
print(f"loss of the broken model: {train(BROKEN):.3f}")
print(f"chance is {crossent.expected_initial_loss(10):.3f}, and a softmax too many cannot go below", end=" ")
print(f"{crossent.double_softmax_floor(10):.3f}\n")

# A batch is enough to see it. The same works on a file: crossent check batch.npz
print(crossent.check(BROKEN(pixels[:256]).detach(), labels[:256]))

# Or let the losses of a program look for themselves, for its first calls.
print("\nThe same finding as a warning, from debug:", flush=True)
with crossent.debug(first_n=1):
    crossent.cross_entropy(BROKEN(pixels[:64]), labels[:64])

print(f"\nloss of the mended model: {train(MENDED):.3f}")
