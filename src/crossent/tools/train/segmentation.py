"""``crossent train digits-segmentation``: a class for every pixel, most of them background."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossent import class_weights, cross_entropy
from crossent.reference import Array, Bools
from crossent.tools.table import Table
from crossent.tools.train import data, metrics
from crossent.tools.train.candidates import FOCAL, PLAIN, WEIGHTED, Candidate, Labels, by_name
from crossent.tools.train.canvases import BLOCKS, BLOCKS_DEFINITION, SEEDED, SIDE, SPLIT, Canvas, Canvases, Rows
from crossent.tools.train.catalogue import JOBS
from crossent.tools.train.conclusions import compare, cost_of_one_rate, failures, have_learnt, margin, percent, ranking
from crossent.tools.train.data import Split, Subset
from crossent.tools.train.figure import dots, finish, rate_panel
from crossent.tools.train.fit import Fitted, Standing, predict
from crossent.tools.train.job import Job, Measure, Results, Wording, seed_result
from crossent.tools.train.network import pixel_network
from crossent.tools.train.panel import Panel, Theme
from crossent.tools.train.results import LossResult, SeedResult
from crossent.tools.train.tables import over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 24
DIGITS = 3
BACKGROUND, FAINT = 10, 255
CLASSES = 11
DARK = 8
"""Ink from here on, of 16, has the class of its digit; fainter ink is ignored."""
SHOWN = 2
"""So many test canvases are shown with what the networks say."""


# --- rows -------------------------------------------------------------------------------------------------------------


def draw(number: int, pool: Rows, rng: np.random.Generator) -> Canvas:
    """Paste three digits onto a 24×24 canvas where they do not overlap; a pixel is of a digit, background or ignored."""
    images, labels = data.digits()
    position = rng.choice(pool, DIGITS)
    ink = np.zeros((WIDTH, WIDTH), np.float32)
    label = np.full((WIDTH, WIDTH), BACKGROUND)
    for digit, (row, column) in zip(position, corners(rng), strict=True):
        there = (slice(row, row + SIDE), slice(column, column + SIDE))
        ink[there] = images[digit].numpy()
        label[there] = np.where(ink[there] >= DARK, labels[digit].numpy(), np.where(ink[there] > 0, FAINT, BACKGROUND))
    return Canvas(position, ink, label)


def corners(rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose upper left corners at random until no two digits overlap."""
    while True:
        chosen = rng.integers(0, WIDTH - SIDE + 1, (DIGITS, 2))
        apart = np.abs(chosen[:, None] - chosen[None]).max(-1) >= SIDE
        if apart[np.triu_indices(DIGITS, 1)].all():
            return chosen


CANVASES = Canvases(draw, sizes=(800, 160, 240), zero=0.0, one=8.0)


def counts(part: Subset) -> Tensor:
    """Count the pixels of each class, without those that are ignored."""
    return torch.bincount(part.labels[part.labels != FAINT], minlength=CLASSES)


# --- what is trained --------------------------------------------------------------------------------------------------


def without_faint(train: Subset) -> dict[str, Any]:
    """Ignore faint ink."""
    return {"ignore_index": FAINT}


def weighted(train: Subset) -> dict[str, Any]:
    """Ignore faint ink, and weigh each class by one over its frequency, a pixel 1 on average."""
    return {"ignore_index": FAINT, "weight": class_weights(counts(train))}


CANDIDATES = by_name(
    replace(PLAIN, given=without_faint), replace(WEIGHTED, given=weighted), replace(FOCAL, given=without_faint)
)


# --- scores -----------------------------------------------------------------------------------------------------------


def named(logits: Tensor) -> Labels:
    """Name the most probable class of each pixel."""
    labels: Labels = logits.argmax(1).numpy()
    return labels


def judge(candidate: Candidate, logits: Tensor, labels: Tensor) -> Standing:
    """Judge by the mean IoU and, among equals, by the mean of −log p(true)."""
    confusion = metrics.confusions(named(logits), labels.numpy(), CLASSES, FAINT).sum(0)
    return Standing(
        float(np.nanmean(metrics.pixel_scores(confusion).iou)),
        float(cross_entropy(logits, labels, ignore_index=FAINT)),
    )


def examine(candidate: Candidate, fitted: Fitted, split: Split) -> SeedResult:
    """Score a trained model on the test canvases."""
    predicted, labels = named(predict(fitted.model, split.test)), split.test.labels.numpy()
    confusion = metrics.confusions(predicted, labels, CLASSES, FAINT)

    def scores(keep: Bools) -> dict[str, float]:
        each = metrics.pixel_scores(confusion[keep].sum(0))
        return {
            "mean_iou": float(np.nanmean(each.iou)),
            "recall": float(np.nanmean(each.recall[:BACKGROUND])),
            "precision": float(np.nanmean(each.precision[:BACKGROUND])),
        }

    def share(key: str) -> Array:
        return metrics.jackknife(lambda keep: scores(keep)[key], BLOCKS, len(labels))

    whole = scores(np.ones(len(labels), bool))
    details = {
        "iou": tuple(metrics.pixel_scores(confusion.sum(0)).iou.tolist()),
        "confusion": tuple(map(tuple, confusion.sum(0).tolist())),
        "first_canvases": tuple(written(canvas) for canvas in predicted[:SHOWN]),
    }
    return seed_result(fitted, {key: share(key) for key in whole}, details, whole)


def written(canvas: Labels) -> tuple[str, ...]:
    """Write a canvas of classes as lines, a character a pixel.

    >>> written(np.array([[10, 255], [3, 10]]))
    ('.~', '3.')
    """
    signs = {BACKGROUND: ".", FAINT: "~"}
    return tuple("".join(signs.get(label, str(label)) for label in row) for row in canvas.tolist())


def definitions(results: Results) -> tuple[str, ...]:
    """Say what is scored."""
    return (
        "Mean IoU: of the pixels that are or are called a class, the share that are and are called so; mean over background and "
        "the ten digits. Recall, precision: of a digit's pixels the share called so, and of those called so the share that are; "
        "mean over the ten digits. Faint ink is not counted.",
        BLOCKS_DEFINITION,
    )


def iou(loss: LossResult) -> NDArray[np.float64]:
    """Average the IoU of each class over the seeds."""
    return np.asarray(np.mean([run.details["iou"] for run in loss.runs], axis=0))


def by_class(results: Results) -> Table:
    """Tabulate the IoU of each class."""
    rows = tuple((loss.name, *(f"{100 * each:.1f}" for each in np.roll(iou(loss), 1))) for loss in results.losses)
    title = f"IoU of each class in %{over_seeds(results)}"
    return Table(title, ("class", "background", *map(str, range(BACKGROUND))), rows)


# --- what is said -----------------------------------------------------------------------------------------------------


def opening(results: Results) -> str:
    """Say how the pixels are divided, counted on the canvases of the first seed."""
    labels = results.job.load(results.settings, results.settings.seed).train.labels
    pixels = {"background": labels == BACKGROUND, "faint": labels == FAINT}
    background, faint = (float(there.double().mean()) for there in pixels.values())
    return (
        f"Three digits lie on a canvas of 24 by 24 pixels, and each pixel is to be named. {percent(background)} of the training "
        f"pixels are background, {percent(faint)} faint ink that is ignored, and the ten digits share the other "
        f"{percent(1 - background - faint)}. A network can be right almost everywhere without knowing a digit."
    )


def weights(results: Results) -> str:
    """Say what class weights do to what is found, and to what is right of it."""
    return _against_plain(results, "weighted", "Class weights against the frequency change")


def focal(results: Results) -> str:
    """Say what the focal loss does."""
    return _against_plain(results, "focal", "The focal loss changes")


def _against_plain(results: Results, name: str, start: str) -> str:
    if not have_learnt(results, "plain", name):
        return ""
    iou_, recall, precision = (
        margin(compare(results, results[name], results["plain"], key)) for key in ("mean_iou", "recall", "precision")
    )
    return (
        f"{start} mean IoU by {iou_}, the recall of the digits' pixels by {recall} and their precision by {precision} "
        "(against plain, ± two standard errors)."
    )


# --- what is shown ----------------------------------------------------------------------------------------------------

INKS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#111111", "#bcbd22", "#17becf")
"""A colour for each digit."""


def painted(lines: tuple[str, ...]) -> NDArray[np.float64]:
    """Paint a canvas of classes, as ``written`` writes it."""
    from matplotlib.colors import to_rgb

    colours = {".": "#ffffff", "~": "#cccccc", **{str(digit): ink for digit, ink in enumerate(INKS)}}
    return np.array([[to_rgb(colours[sign]) for sign in line] for line in lines])


def score_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the scores: a dot a seed."""
    groups = {"mean IoU": "mean_iou", "recall\nof the digits": "recall", "precision\nof the digits": "precision"}
    dots(axes, results, theme, groups)
    finish(axes, theme, "What is found, and what of it is right", "test pixels, %; a dot a seed")


def canvas_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Show test canvases: the ink, what it is, and what each loss's first network names."""
    part = results.job.load(results.settings, results.settings.seed).test
    step = WIDTH + 3
    names = ["the ink", "what it is", *(loss.name for loss in results.losses)]
    text: dict[str, Any] = {"fontsize": 10, "color": theme.ink}
    for j in range(SHOWN):
        ink = np.repeat(1 - part.inputs[j, 0].numpy()[..., None] * CANVASES.one / 16, 3, axis=2)
        predicted = [loss.runs[0].details["first_canvases"][j] for loss in results.losses]
        truth = written(part.labels[j].numpy())
        for i, image in enumerate([ink, *map(painted, [truth, *predicted])]):
            x, y = float(step * i), float(-step * j)
            axes.imshow(image, extent=(x, x + WIDTH, y, y + WIDTH))
            axes.plot(
                [x, x + WIDTH, x + WIDTH, x, x], [y, y, y + WIDTH, y + WIDTH, y], color=theme.faint, linewidth=0.8
            )
            if j == 0:
                axes.text(x, WIDTH + 1, names[i], va="bottom", **text)
    for digit, colour in enumerate(INKS):
        x, y = step * len(names) + 1, WIDTH - 2.0 - 4.8 * digit
        axes.add_patch(_square(x, y - 1.5, colour))
        axes.text(x + 4.5, y, str(digit), va="center", **text)
    axes.set_xlim(-1, step * len(names) + 9)
    axes.set_ylim(-step * (SHOWN - 1) - 1, WIDTH + 5)
    finish(axes, theme, "What the networks see", f"the first test canvases, seed {results.settings.seed}")
    axes.set_axis_off()


def _square(x: float, y: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 3, 3, color=colour, linewidth=0)


JOB = Job(
    entry=JOBS["digits-segmentation"],
    candidates=CANDIDATES,
    network=pixel_network,
    load=CANVASES.load,
    judge=judge,
    examine=examine,
    measures=(
        Measure("mean_iou", "mean IoU %"),
        Measure("recall", "recall %"),
        Measure("precision", "precision %"),
    ),
    cost="nll",
    rates=(0.03, 0.1, 0.3, 1.0, 3.0),
    quick_rates=(0.1, 1.0),
    wording=Wording(
        row="canvas",
        rows="canvases",
        measured="mean IoU",
        achieves="On the {n} test canvases, {name} has a mean IoU of {score}",
        validates="{name} has a mean IoU of {score} on the validation canvases",
        cost="NLL",
        data="scikit-learn's load_digits, 1 797 handwritten digits of 8×8 grey levels, three of them pasted onto a canvas of 24×24 "
        f"where they do not overlap. A pixel with ink from {DARK} to 16 has the class of its digit, one without ink is background, "
        "and fainter ink is ignored (ignore_index=255).",
        split=SPLIT,
        seeded=SEEDED,
    ),
    title="Most pixels are background. Who finds the digits?",
    opening=opening,
    sentences=(ranking, failures, weights, focal, cost_of_one_rate),
    definitions=definitions,
    details=(by_class,),
    panels=(
        Panel(score_panel, "Mean IoU, recall and precision for {names}; the table below has numbers."),
        Panel(rate_panel, "Validation mean IoU by learning rate for {names}; the tables below have numbers."),
        Panel(canvas_panel, "Test canvases, what they are, and what the networks make of them.", wide=True, height=5.2),
    ),
    caption="First picture: each loss at its own learning rate, a dot a seed, a line at their mean. Second: one run at each rate. "
    "Third: grey is faint ink, which is ignored.",
    learnt=0.3,
    batch_size=16,
)
