"""Train a small language model of bytes whose head and loss never store the logits: ``linear_cross_entropy`` with ``shift=1``.

python examples/language_model.py [STEPS]
"""

import argparse
import inspect
import math
import sys

import torch
from torch import nn

from crossent import linear_cross_entropy, linear_cross_entropy_stats, linear_plan

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 150
VOCABULARY, WIDTH, LENGTH = 256, 96, 64

text = torch.tensor(list(inspect.getsource(argparse).encode()))  # a text that every Python brings
train, test = text[: -len(text) // 10], text[-len(text) // 10 :]


class Model(nn.Module):
    """A recurrent network that returns hidden states, and no logits."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.body = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens):
        return self.body(self.embedding(tokens))[0]


def batch(of, rows=16):
    starts = torch.randint(len(of) - LENGTH, (rows, 1))
    return of[starts + torch.arange(LENGTH)]


torch.manual_seed(0)
model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
tokens = batch(train)
print(linear_plan(model(tokens), model.head, tokens, shift=1))  # how many blocks, and how large
for step in range(STEPS):
    tokens = batch(train)
    # The state at position t predicts the token at t + 1. Labels are the inputs: nothing is shifted by hand.
    loss = linear_cross_entropy(model(tokens), model.head, tokens, shift=1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:4}: {loss.item() / math.log(2):.2f} bits a byte")

with torch.no_grad():
    tokens = batch(test, 64)
    stats = linear_cross_entropy_stats(model(tokens), model.head, tokens, shift=1, reduction="mean")
print(f"text it has not seen: {stats.loss.item() / math.log(2):.2f} bits a byte, of 8")
