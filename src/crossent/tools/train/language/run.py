"""From a text to a trained model: the two ways side by side for some steps, then the rest without logits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import log
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossent import linear_cross_entropy
from crossent.tools.progress import ProgressBar
from crossent.tools.train.fit import one_thread
from crossent.tools.train.language import compressors, heads, model
from crossent.tools.train.language.heads import CROSSENT, TORCH, WAYS, Shape
from crossent.tools.train.language.model import CONTEXT, LanguageModel
from crossent.tools.train.language.text import Ids, Text, TextError, vocabulary
from crossent.tools.train.run import versions

STEPS = {"bytes": 1000, "words": 300}  # two to three times through Python's documentation
QUICK_STEPS = 16
COMPARED, QUICK_COMPARED = 60, 8
SEQUENCES = 8
EVALUATIONS, QUICK_EVALUATIONS = 8, 2
WARM_UP = 0.05  # of the training
CLIP = 1.0
SAMPLE_BYTES, QUICK_SAMPLE_BYTES, TEMPERATURE = 400, 80, 0.8
AT_ONCE = 64  # windows that are scored together


@dataclass(frozen=True)
class LanguageSettings:
    """What was asked; ``minutes``, of training, replaces the number of steps."""

    vocab: str = "bytes"
    text: str | None = None
    steps: int = STEPS["bytes"]
    minutes: float | None = None
    seed: int = 0
    quick: bool = False

    @property
    def compared(self) -> int:
        """Count the steps that are trained both ways."""
        return min(QUICK_COMPARED if self.quick else COMPARED, self.steps)


class Step(NamedTuple):
    """A step of training: its loss, in bits for a byte of its batch, and how long all of it and its head and loss took.

    ``other_way`` is the loss that the other way computes from the same weights and batch, where that was asked.
    """

    bits: float
    seconds: float
    head_seconds: float
    other_way: float | None = None


class Point(NamedTuple):
    """The held-out text scored on the way: bits per byte after so many steps and seconds of training."""

    step: int
    seconds: float
    bits: float


class Way(NamedTuple):
    """One way to compute head and loss: its steps, and how far it raises the peak memory, in bytes."""

    name: str
    steps: tuple[Step, ...]
    peak: int | None

    def median(self, what: str) -> float:
        """Return the median of ``seconds`` or ``head_seconds``; the first steps of many warm up and do not count."""
        return float(np.median([getattr(step, what) for step in self.steps[len(self.steps) // 8 :]]))


@dataclass(frozen=True)
class LanguageResults:
    """Everything that came of it; ``complete`` is false where the training was interrupted."""

    settings: LanguageSettings
    text: Text
    shape: Shape
    parameters: int
    tokens: tuple[int, int]  # of the training text and of the tail
    ways: tuple[Way, Way]
    steps: tuple[Step, ...]
    curve: tuple[Point, ...]
    compressed: tuple[compressors.Compressed, ...]
    frequencies: compressors.Frequencies
    sample: str
    complete: bool
    seconds: float
    threads: int
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def bits(self) -> float:
        """Return the bits that the trained model needs for a byte of the tail."""
        return self.curve[-1].bits

    @property
    def difference(self) -> float:
        """Return the largest difference of the two ways' losses at a step from the same weights, in bits per byte."""
        return max(abs(step.bits - step.other_way) for step in self.ways[1].steps if step.other_way is not None)

    @property
    def drift(self) -> float:
        """Return the largest difference of the two trainings' losses at a step, in bits per byte."""
        first, second = (way.steps for way in self.ways)
        return max(abs(a.bits - b.bits) for a, b in zip(first, second, strict=True))


class Trainer:
    """A model in training one way; equal seeds give equal weights and equal batches."""

    def __init__(self, way: str, corpus: Corpus, seed: int) -> None:
        self.loss, self.corpus = WAYS[way], corpus
        self.model = model.build(len(corpus.vocabulary), seed)
        self.optimisers = model.optimisers(self.model)
        self.rates = [optimiser.param_groups[0]["lr"] for optimiser in self.optimisers]
        self.order = torch.Generator().manual_seed(seed)
        self.steps: list[Step] = []

    def step(self, progress: float, other: str | None = None) -> None:
        """Train on the next batch; the rates follow the progress from 0 to 1. Another way may compute the same loss, to compare."""
        tokens = self.corpus.batch(self.order)
        factor = min(1.0, 0.02 + progress / WARM_UP) * (1 - 0.95 * min(progress, 1.0))
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            optimiser.param_groups[0]["lr"] = factor * rate
            optimiser.zero_grad()
        began = time.perf_counter()
        hidden = self.model(tokens)
        at_head = time.perf_counter()
        cut = hidden.detach().requires_grad_()  # so that the head's backward is timed apart from the layers'
        loss = self.loss(cut, self.model.head, tokens)
        loss.backward()
        paused = time.perf_counter()
        head = self.model.head.detach()
        seen = None if other is None else self._bits(WAYS[other](cut.detach(), head, tokens), tokens)
        resumed = time.perf_counter()
        hidden.backward(cut.grad)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for optimiser in self.optimisers:
            optimiser.step()
        seconds = time.perf_counter() - resumed + paused - began
        self.steps.append(Step(self._bits(loss, tokens), seconds, paused - at_head, seen))

    def _bits(self, loss: Tensor, tokens: Tensor) -> float:
        return self.corpus.bits_per_byte(loss.item(), tokens)

    @property
    def seconds(self) -> float:
        """Sum up the time of the steps."""
        return sum(step.seconds for step in self.steps)


class Corpus:
    """A text as classes."""

    def __init__(self, text: Text, kind: str) -> None:
        self.text, self.vocabulary = text, vocabulary(kind, text.train)
        self.train, self.tail = (torch.from_numpy(self.vocabulary.encode(part).copy()) for part in text[1:3])
        self.lengths = torch.from_numpy(self.vocabulary.lengths)
        if len(self.train) <= 2 * CONTEXT:
            raise TextError(
                f"{text.name} must have more than {2 * CONTEXT} {kind} to learn from, got {len(self.train)}: it repeats too much"
            )

    def batch(self, order: torch.Generator) -> Tensor:
        """Draw sequences ``(B, T)`` from anywhere in the training text."""
        starts = torch.randint(len(self.train) - CONTEXT + 1, (SEQUENCES, 1), generator=order)
        return self.train[starts + torch.arange(CONTEXT)]

    def bits_per_byte(self, nats: float, tokens: Tensor) -> float:
        """Turn the mean loss of a batch's predicted tokens, all but each sequence's first, into bits per byte."""
        predicted = tokens[:, 1:]
        return nats * predicted.numel() / log(2) / int(self.lengths[predicted].sum())

    @torch.no_grad()
    def score(self, trained: LanguageModel) -> float:
        """Return the bits for a byte of the tail, each of its tokens seen once, with half a context or more before it."""
        half = CONTEXT // 2
        tokens = torch.cat([self.train[-half:], self.tail])
        padding = -len(self.tail) % half
        tokens = torch.nn.functional.pad(tokens, (0, padding)).unfold(0, CONTEXT, half)
        target = tokens.clone()
        target[:, :half] = -100
        target[-1, CONTEXT - padding :] = -100
        nats = 0.0
        for seen, to_predict in zip(tokens.split(AT_ONCE), target.split(AT_ONCE), strict=True):
            nats += linear_cross_entropy(trained(seen), trained.head, to_predict, shift=1, reduction="sum").item()
        return nats / log(2) / len(self.text.tail)

    @torch.no_grad()
    def sample(self, trained: LanguageModel, seed: int, size: int) -> str:
        """Continue the training text, with the probabilities of a temperature."""
        order = torch.Generator().manual_seed(seed)
        tokens = self.train[-CONTEXT:]
        written: Ids = np.empty(0, np.int64)
        while self.vocabulary.lengths[written].sum() < size:
            logits = trained(tokens[None, -CONTEXT:])[0, -1] @ trained.head.T
            drawn = torch.multinomial((logits / TEMPERATURE).softmax(0), 1, generator=order)
            tokens = torch.cat([tokens, drawn])
            written = np.append(written, drawn.item())
        # what is no text or would move a terminal's cursor is shown as U+FFFD
        text = self.vocabulary.decode(written).decode("utf-8", errors="replace")
        return "".join(each if each.isprintable() or each == "\n" else "\ufffd" for each in text)


@one_thread()
def run(settings: LanguageSettings, text: Text, bar: ProgressBar) -> LanguageResults | None:
    """Train, and score beside what others need; None if it was interrupted before the two ways were compared."""
    started = time.perf_counter()
    corpus = Corpus(text, settings.vocab)
    shape = Shape(SEQUENCES, CONTEXT, model.FEATURES, len(corpus.vocabulary))
    trainers = {way: Trainer(way, corpus, settings.seed) for way in WAYS}
    ours = trainers[CROSSENT]
    curve: list[Point] = []
    complete = False
    try:
        peaks = heads.measure_peaks(shape)
        with bar:
            compare(trainers, settings, bar)
            for point in train(ours, settings, bar):
                curve.append(point)
        complete = True
    except KeyboardInterrupt:
        if len(ours.steps) < settings.compared or len(trainers[TORCH].steps) < settings.compared:
            return None
    if not complete:
        curve.append(Point(len(ours.steps), ours.seconds, corpus.score(ours.model)))
    compared = {way: tuple(trainer.steps[: settings.compared]) for way, trainer in trainers.items()}
    return LanguageResults(
        settings=settings,
        text=text,
        shape=shape,
        parameters=sum(weight.numel() for weight in ours.model.parameters()),
        tokens=(len(corpus.train), len(corpus.tail)),
        ways=(Way(TORCH, compared[TORCH], peaks[TORCH]), Way(CROSSENT, compared[CROSSENT], peaks[CROSSENT])),
        steps=tuple(ours.steps),
        curve=tuple(curve),
        compressed=compressors.compressors(text),
        frequencies=compressors.frequencies(text),
        sample=corpus.sample(ours.model, settings.seed, QUICK_SAMPLE_BYTES if settings.quick else SAMPLE_BYTES),
        complete=complete,
        seconds=time.perf_counter() - started,
        threads=torch.get_num_threads(),
        versions=versions(),
    )


def compare(trainers: dict[str, Trainer], settings: LanguageSettings, bar: ProgressBar) -> None:
    """Train the first steps both ways, in turns, so that a busy machine hinders both alike."""
    for step in range(settings.compared):
        progress = _progress(trainers[CROSSENT], settings)
        for way in (TORCH, CROSSENT)[:: 1 if step % 2 else -1]:
            trainers[way].step(progress, other=TORCH if way == CROSSENT else None)
        tell(trainers[CROSSENT], progress, bar, "both ways")


def train(trainer: Trainer, settings: LanguageSettings, bar: ProgressBar) -> Iterator[Point]:
    """Train on, and score the held-out text now and then; the last point is that of the trained model."""
    evaluations = QUICK_EVALUATIONS if settings.quick else EVALUATIONS
    scored = 0
    while True:
        progress = _progress(trainer, settings)
        if int(progress * evaluations) > scored:
            scored = int(progress * evaluations)
            point = Point(len(trainer.steps), trainer.seconds, trainer.corpus.score(trainer.model))
            bar.leave(
                f"step {point.step:>5}  {point.seconds:6.1f} s of training  held out {point.bits:6.3f} bits per byte"
            )
            yield point
        if progress >= 1:
            return
        trainer.step(progress)
        tell(trainer, progress, bar, "training")


def _progress(trainer: Trainer, settings: LanguageSettings) -> float:
    if settings.minutes is not None:
        return trainer.seconds / (60 * settings.minutes)
    return len(trainer.steps) / settings.steps


def tell(trainer: Trainer, progress: float, bar: ProgressBar, what: str) -> None:
    """Show the mean loss of the last steps."""
    last = [step.bits for step in trainer.steps[-20:]]
    bar(f"{what}  step {len(trainer.steps)}  {sum(last) / len(last):5.3f} bits per byte", progress, 1.0)
