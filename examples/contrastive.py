"""Train two networks to find the other half of a picture: ``contrastive_cross_entropy``, the loss of CLIP.

python examples/contrastive.py [STEPS]        needs scikit-learn
"""

import math
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import normalize

from crossent import contrastive_cross_entropy

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 500

pictures = torch.as_tensor(load_digits().images).float() / 16
order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
test, train = pictures[order[:200]], pictures[order[200:]]


def tower():
    """Make a network that turns half a picture into a vector of length 1."""
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 32))


def vectors(of):
    return normalize(upper(of[:, :4]), dim=-1), normalize(lower(of[:, 4:]), dim=-1)


torch.manual_seed(0)
upper, lower = tower(), tower()
log_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # one over the temperature, learned
optimizer = torch.optim.AdamW([*upper.parameters(), *lower.parameters(), log_scale], lr=3e-3)
for step in range(STEPS):
    a, b = vectors(train[torch.randint(len(train), (128,))])
    loss = contrastive_cross_entropy(a, b, log_scale.exp())  # row i of a belongs to row i of b
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step:4}: loss {loss.item():.3f}, and {math.log(128):.3f} is chance")

with torch.no_grad():
    a, b = vectors(test)
ranks = (-(a @ b.T)).argsort(1).argsort(1).diagonal()
print(f"the right half of {len(test)} is the first: {(ranks == 0).float().mean():.3f}")
print(f"it is among the first ten: {(ranks < 10).float().mean():.3f}")
