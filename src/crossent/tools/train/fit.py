"""Training: one run, a sweep of learning rates, and the choice of one. Nothing here can see a test part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crossent.tools.train import metrics
from crossent.tools.train.candidates import Candidate, Loss
from crossent.tools.train.data import Subset


@dataclass(frozen=True)
class Recipe:
    """How every loss is trained: SGD with momentum, the rate falling linearly to zero."""

    epochs: int
    batch_size: int = 64
    momentum: float = 0.9


class Standing(NamedTuple):
    """How a model does on the validation part: a score to be high and, among equal scores, a cost to be low."""

    score: float
    cost: float


Judge = Callable[[Candidate, Tensor, Tensor], Standing]
"""Judges the logits that a loss's model gives to some rows, beside their labels."""


@dataclass(frozen=True)
class Task:
    """What is trained on what: a fresh model, the rows to learn from, and the rows to choose by."""

    build: Callable[[], nn.Module]
    train: Subset
    validation: Subset
    judge: Judge
    recipe: Recipe


def by_accuracy(candidate: Candidate, logits: Tensor, labels: Tensor) -> Standing:
    """Judge a classifier by its accuracy and, among equals, by the mean of −log p(true)."""
    log_p = candidate.log_probabilities(logits).numpy()
    return Standing(metrics.accuracy(log_p, labels.numpy()), metrics.nll(log_p, labels.numpy()))


class Epoch(NamedTuple):
    """What a run reports after each epoch."""

    rate: float
    seed: int
    number: int
    validation_score: float


@dataclass(frozen=True)
class Fitted:
    """A trained model and its history, an entry an epoch; ``validation_cost`` is nan if training diverged."""

    model: nn.Module
    rate: float
    seed: int
    train_loss: tuple[float, ...]
    validation_score: tuple[float, ...]
    validation_cost: float


OnEpoch = Callable[[Epoch], None]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: small models gain nothing from more, and their numbers would depend on how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(task: Task, candidate: Candidate, rate: float, seed: int, on_epoch: OnEpoch) -> Fitted:
    """Train a fresh model at one rate; the seed fixes its first weights and the order of the rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.build()
    order = torch.Generator().manual_seed(seed)
    epochs = task.recipe.epochs
    loss = candidate.on(task.train)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=task.recipe.momentum)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: 1 - done / epochs)
    losses: list[float] = []
    standings: list[Standing] = []
    for number in range(1, epochs + 1):
        # Weights of nan stay so: the epochs left would repeat the last one.
        if losses and math.isnan(losses[-1]):
            losses.append(losses[-1])
            standings.append(standings[-1])
        else:
            losses.append(train_epoch(model, loss, optimiser, batches(task, order)))
            decay.step()
            standings.append(task.judge(candidate, predict(model, task.validation), task.validation.labels))
        on_epoch(Epoch(rate, seed, number, standings[-1].score))
    scores = tuple(standing.score for standing in standings)
    return Fitted(model, rate, seed, tuple(losses), scores, standings[-1].cost)


def batches(task: Task, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Deal the training rows in a new random order."""
    rows = torch.randperm(len(task.train.labels), generator=order)
    yield from zip(
        task.train.inputs[rows].split(task.recipe.batch_size),
        task.train.labels[rows].split(task.recipe.batch_size),
        strict=True,
    )


def train_epoch(
    model: nn.Module, loss: Loss, optimiser: torch.optim.Optimizer, rows: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """Go through the rows once; return the mean of the batches' losses."""
    seen = []
    for inputs, labels in rows:
        optimiser.zero_grad()
        value = loss(model(inputs), labels)
        value.backward()
        optimiser.step()
        seen.append(value.detach())
    return float(torch.stack(seen).mean())


def predict(model: nn.Module, part: Subset) -> Tensor:
    """Compute a model's logits for the rows of a part."""
    with torch.no_grad():
        logits: Tensor = model(part.inputs)
    return logits


def sweep(task: Task, candidate: Candidate, rates: Sequence[float], seed: int, on_epoch: OnEpoch) -> tuple[Fitted, ...]:
    """Train once at each rate."""
    return tuple(fit(task, candidate, rate, seed, on_epoch) for rate in rates)


def choose(fitted: Sequence[Fitted]) -> Fitted:
    """Choose the run that ends with the best validation score; among equals, the lowest validation cost."""

    def merit(run: Fitted) -> tuple[float, float]:
        return run.validation_score[-1], -math.inf if math.isnan(run.validation_cost) else -run.validation_cost

    return max(fitted, key=merit)
