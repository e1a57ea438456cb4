"""Label every pixel of a picture, where the pixels at the edge of a digit have no label: ``ignore_index``.

python examples/segmentation.py [STEPS]        needs scikit-learn
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from crossent import CrossEntropyLoss

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 300
VOID = 255  # what data sets such as Pascal VOC and Cityscapes write where nobody knows

digits, kinds = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
digits = digits.reshape(-1, 8, 8).float() / 16
order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(0))
test, train = order[:400], order[400:]


def pictures(of, count):
    """Put two digits side by side. The label of a pixel is its digit, 10 for the ground, and VOID where the ink is thin."""
    pair = of[torch.randint(len(of), (count, 2))]
    ink = torch.cat([digits[pair[:, 0]], digits[pair[:, 1]]], dim=2)
    label = kinds[pair].repeat_interleave(8, dim=1).unsqueeze(1).expand(-1, 8, -1).clone()
    label[ink == 0] = 10
    label[(ink > 0) & (ink < 0.3)] = VOID
    return ink.unsqueeze(1), label  # (N, 1, 8, 16) and (N, 8, 16)


torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(),
    nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 11, 1),
)  # fmt: skip
loss_fn = CrossEntropyLoss(ignore_index=VOID)
print(loss_fn)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(STEPS):
    picture, label = pictures(train, 32)
    loss = loss_fn(model(picture), label)  # (N, 11, 8, 16) and (N, 8, 16): the classes are dimension 1
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:4}: loss {loss.item():.3f}")

picture, label = pictures(test, 300)
with torch.no_grad():
    right = loss_fn.predict(model(picture)) == label
counts = label != VOID
print(f"pixels without a label: {1 - counts.float().mean():.3f}")
print(f"pixels of ink that are right: {right[counts & (label < 10)].float().mean():.3f}")
