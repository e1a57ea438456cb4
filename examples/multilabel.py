"""Say which digits are in a picture of none to three, with three losses: sigmoid, its asymmetric form, and softmax.

python examples/multilabel.py [STEPS]        needs scikit-learn
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from crossent import Asymmetric, binary_cross_entropy_with_logits, multilabel_cross_entropy

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 1500

digits, kinds = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
digits = digits.float() / 16
order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(0))
test, train = order[:400], order[400:]


def pictures(of, count):
    """Put none to three digits into the three places of a picture. The target is a 1 for each digit that is there."""
    chosen = of[torch.randint(len(of), (count, 3))]
    there = torch.rand(count, 3) < 0.6
    target = torch.zeros(count, 10).scatter_reduce(1, kinds[chosen], there.float(), "amax")
    return (digits[chosen] * there.unsqueeze(2)).flatten(1), target


def sigmoid(logits, target):
    """Ask of each class by itself whether it is there."""
    return binary_cross_entropy_with_logits(logits, target)


def asymmetric(logits, target):
    """Ask the same, and care less about the many easy answers of no."""
    return binary_cross_entropy_with_logits(logits, target, penalty=Asymmetric(gamma_pos=0.0, gamma_neg=2.0))


for loss_fn in (sigmoid, asymmetric, multilabel_cross_entropy):  # the last shares one probability among the labels
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        picture, target = pictures(train, 64)
        loss = loss_fn(model(picture), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    picture, target = pictures(test, 1000)
    with torch.no_grad():
        logits = model(picture)
    yes = (logits > 0).float()  # a softmax has no such threshold: it cannot say how many labels there are
    ranks = (-logits).argsort(1).argsort(1)
    told = (ranks < target.sum(1, keepdim=True)).float()
    alone = "-" if loss_fn is multilabel_cross_entropy else f"{(yes == target).all(1).float().mean():.3f}"
    print(f"{loss_fn.__name__:25} all right: {alone:>5}   told how many: {(told == target).all(1).float().mean():.3f}")
