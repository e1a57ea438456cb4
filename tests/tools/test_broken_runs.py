"""Six runs on real digits that are broken in a usual way. ``check`` names each from what a person would have saved of it.

The healthy run beside them has the same data, network and files, and nothing is found in it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

import crossent
from crossent.tools.cli import main
from crossent.tools.train import data

TRAINED = 1437  # the others are left to look at


def digits() -> tuple[Tensor, Tensor]:
    images, labels = data.digits()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    return images[order] / 16, labels[order]


def network(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trained(
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    lr: float = 0.1,
    epochs: int = 8,
    hidden: int = 64,
) -> tuple[nn.Module, list[float]]:
    """Train a small network and keep the losses of its batches."""
    torch.manual_seed(0)
    model, losses = network(x.shape[1], hidden, 10), []
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            value = loss(model(x[batch]), y[batch])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
    return model, losses


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> np.ndarray:
    return model(x).numpy()


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Save what a person saves, and ask ``crossent check`` about it."""
    monkeypatch.chdir(tmp_path)

    def ask(x, y, losses=(), *options: str) -> dict[str, str]:
        np.savez("saved.npz", logits=np.asarray(x), labels=np.asarray(y))
        rows = [f"{step // 23},{step},{value!r}" for step, value in enumerate(losses)]
        (tmp_path / "metrics.csv").write_text("\n".join(["epoch,step,train_loss", *rows]) + "\n")
        course = ("--losses", "metrics.csv") if len(losses) else ()
        ran = CliRunner().invoke(main, ["check", "saved.npz", "--json", *course, *options])
        assert ran.exit_code in (0, 1), ran.output
        return {finding["rule"]: finding["seen"] for finding in json.loads(ran.stdout)["findings"]}

    return ask


def test_a_healthy_run_is_left_in_peace(named):
    x, y = digits()
    x = x.flatten(1)
    model, losses = trained(x[:TRAINED], y[:TRAINED], F.cross_entropy)
    saved = logits(model, x[TRAINED:])
    assert (saved.argmax(1) == y[TRAINED:].numpy()).mean() > 0.9
    assert named(saved, y[TRAINED:], losses) == {}
    assert named(logits(model, x[:TRAINED]), y[:TRAINED], losses) == {}


def test_a_learning_rate_of_5(named):
    x, y = digits()
    x = x.flatten(1)
    model, losses = trained(x[:TRAINED], y[:TRAINED], F.cross_entropy, lr=5.0)
    findings = named(logits(model, x[TRAINED:]), y[TRAINED:], losses)
    assert "the loss goes from 2.3" in findings["CE128"]
    assert "CE122" in findings or "CE119" in findings  # the same logits for every row, unlike or like the frequencies


def test_masks_that_are_all_background(named):
    rng = np.random.default_rng(1)
    masks = np.full((25, 48, 48), 10)
    saved = rng.normal(size=(25, 11, 48, 48)).astype(np.float32)
    assert "all 57,600 labels are class 10, of 11 classes" in named(saved, masks)["CE124"]
    with warnings.catch_warnings(), crossent.debug() as watching:
        warnings.simplefilter("ignore")
        crossent.cross_entropy(torch.from_numpy(saved[:4]), torch.from_numpy(masks[:4]))
    assert "CE124" in {finding.rule for finding in watching.findings}


def test_a_class_weight_of_1000(named):
    x, y = digits()
    x = x.flatten(1)
    weight = torch.where(torch.arange(10) == 3, 1000.0, 1.0)
    model, losses = trained(x[:TRAINED], y[:TRAINED], lambda a, b: F.cross_entropy(a, b, weight), lr=0.02, epochs=4)
    saved = logits(model, x[TRAINED:])
    assert (saved.argmax(1) == 3).mean() > 0.995
    assert "class 3 is predicted in" in named(saved, y[TRAINED:], losses)["CE123"]
    given = ",".join(f"{value:g}" for value in weight)
    assert "class 3 weighs 1000" in named(saved, y[TRAINED:], losses, "--weight", given)["CE131"]


def test_padding_that_is_counted(named):
    """Rows of digits of uneven length, padded by 0: the labels of a model of language, whose text is the digits' classes."""
    images, y = digits()
    rng = np.random.default_rng(2)
    length = rng.integers(6, 18, 70)
    labels, inputs = np.zeros((70, 20), int), torch.zeros(70, 20, 64)
    for row, many in enumerate(length):
        rows = rng.integers(0, len(y), many)
        labels[row, :many] = 1 + y[rows].numpy() % 9
        inputs[row, :many] = images[rows].flatten(1)
    flat = torch.from_numpy(labels).reshape(-1)
    model, _ = trained(inputs.reshape(-1, 64), flat, F.cross_entropy, epochs=2)
    saved = logits(model, inputs.reshape(-1, 64)).reshape(70, 20, 10)
    seen = named(saved, labels, (), "--task", "lm")["CE126"]
    assert "are a 0 at the end of a row" in seen
    assert "CE126" not in named(saved, labels, (), "--task", "lm", "--ignore-index", "0")


def test_background_that_was_ignored_in_training(named):
    """Pixels with ink are digits, the others background; the loss was told to ignore those."""
    images, y = digits()
    masks = torch.where(images > 0.3, y[:, None, None], 10)
    x = torch.cat(
        [images.reshape(len(y), -1, 1).expand(-1, -1, 64), images.reshape(len(y), 1, 64).expand(-1, 64, -1)], 2
    )
    x, flat = x[:300].reshape(-1, 128), masks[:300].reshape(-1)
    torch.manual_seed(0)
    model = network(128, 32, 11)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for batch in torch.randperm(len(x)).split(256):
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), flat[batch], ignore_index=10).backward()
        optimizer.step()
    saved = logits(model, x).reshape(300, 8, 8, 11).transpose(0, 3, 1, 2)
    findings = named(saved, masks[:300])
    assert "class 10 is the label of" in findings["CE132"]
    assert "CE127" in findings
    assert "CE132" not in named(saved, masks[:300], (), "--ignore-index", "10")


@pytest.mark.parametrize(("hidden", "epochs"), [(64, 3), (64, 40), (512, 60)], ids=["begun", "a third", "half"])
@pytest.mark.parametrize("rows", [1, -2])
def test_labels_rolled_while_training(named, hidden, epochs, rows):
    """A network learns the labels of other rows by heart, to a degree, and still tells its inputs apart."""
    x, y = digits()
    x, y = x.flatten(1)[:TRAINED], y[:TRAINED].roll(rows)
    model, losses = trained(x, y, F.cross_entropy, epochs=epochs, hidden=hidden)
    findings = named(logits(model, x), y, losses)
    there = f"{abs(rows)} row{'s' * (abs(rows) > 1)} {'up' if rows > 0 else 'down'}"
    assert f" of the labels {there}" in findings["CE125"]


def test_labels_rolled_while_evaluating(named):
    x, y = digits()
    x = x.flatten(1)
    model, losses = trained(x[:TRAINED], y[:TRAINED], F.cross_entropy)
    assert "labels 1 row up" in named(logits(model, x[TRAINED:]), y[TRAINED:].roll(1), losses)["CE125"]
