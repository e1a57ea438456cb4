"""Teach a small network by a large one that has seen more: ``Teacher`` as the target of a head.

python examples/distillation.py [STEPS]        needs scikit-learn
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from crossent import Teacher, linear_cross_entropy

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 600
LABELLED = 60  # the student has few labels, and many pictures without

pixels, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
pixels = pixels.float() / 16
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
test, train = order[:450], order[450:]


class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def accuracy(self):
        with torch.no_grad():
            return (self.head(self.body(pixels[test])).argmax(1) == labels[test]).float().mean().item()


def trained(width, pictures, target):
    torch.manual_seed(0)
    model = Network(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        rows = pictures[torch.randint(len(pictures), (64,))]
        loss = linear_cross_entropy(model.body(pixels[rows]), model.head, target(rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


teacher = trained(256, train, lambda rows: labels[rows])


def taught(rows):
    """Describe what the teacher thinks of some pictures. Its probabilities are formed a block at a time, like the student's."""
    with torch.no_grad():
        return Teacher(teacher.body(pixels[rows]), teacher.head)


print(f"teacher, {len(train)} labels:           {teacher.accuracy():.3f}")
alone = trained(24, train[:LABELLED], lambda rows: labels[rows])
print(f"student alone, {LABELLED} labels:       {alone.accuracy():.3f}")
print(f"student of the teacher, no labels: {trained(24, train, taught).accuracy():.3f}")
