"""Classify digits of which some are rare, in three ways: plainly, with class weights, and with the classes' prior as a logit bias.

python examples/image_classifier.py [STEPS]        needs scikit-learn
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from crossent import class_weights, cross_entropy

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 400
RARE = 12  # how many pictures there are of each of the digits 5 to 9, where 0 to 4 have some 130

pixels, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
pixels = pixels.float() / 16
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
test, rest = order[:450], order[450:]
train = torch.cat([rest[labels[rest] == k][: RARE if k >= 5 else None] for k in range(10)])
counts = labels[train].bincount(minlength=10)
prior = (counts / counts.sum()).log()

WAYS = {
    "plain": {},
    "class weights": {"weight": class_weights(counts)},
    # The model learns what is left when the frequencies are known, and is used without the bias.
    "logit bias": {"logit_bias": prior},
}


def recalls(options):
    """Train a small network with a loss, and measure which share of the common and of the rare digits it finds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        batch = train[torch.randint(len(train), (128,))]
        loss = cross_entropy(model(pixels[batch]), labels[batch], **options)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = model(pixels[test]).argmax(1) == labels[test]
    rare = labels[test] >= 5
    return right[~rare].float().mean().item(), right[rare].float().mean().item()


print(f"pictures of each digit: {counts.tolist()}")
for name, options in WAYS.items():
    common, rare = recalls(options)
    print(f"{name:15} common digits found: {common:.3f}   rare digits found: {rare:.3f}")
