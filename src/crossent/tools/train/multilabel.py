"""``crossent train digits-multilabel``: a canvas holds none to three digits; is softmax or sigmoid to say which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crossent import binary_cross_entropy_with_logits, multilabel_cross_entropy, reference, sigmoid_focal_loss
from crossent.reference import Array, Bools
from crossent.tools.table import Table
from crossent.tools.train import data, metrics
from crossent.tools.train.candidates import SIGMOID, SOFTMAX, Candidate, by_name, log_softmax
from crossent.tools.train.canvases import BLOCKS, BLOCKS_DEFINITION, SEEDED, SIDE, SPLIT, Canvas, Canvases, Rows
from crossent.tools.train.catalogue import JOBS
from crossent.tools.train.conclusions import (
    compare,
    cost_of_one_rate,
    failures,
    have_learnt,
    joined,
    margin,
    percent,
    ranking,
)
from crossent.tools.train.data import Split, Subset
from crossent.tools.train.figure import dots, finish, over_categories
from crossent.tools.train.fit import Fitted, Standing, predict
from crossent.tools.train.job import Job, Measure, Results, Wording, seed_result
from crossent.tools.train.network import canvas_network
from crossent.tools.train.panel import Panel, Theme
from crossent.tools.train.results import LossResult, SeedResult
from crossent.tools.train.tables import over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES = 10
MOST = 3
"""The most digits on a canvas."""
CELLS = 4
SHOWN = 8
"""So many test canvases are shown with what the networks say."""


# --- rows -------------------------------------------------------------------------------------------------------------


def draw(number: int, pool: Rows, rng: np.random.Generator) -> Canvas:
    """Put none to three digits of different classes into the cells of a 2×2 canvas, as many canvases having each number.

    Every other free cell holds a digit whose pixels are shuffled: ink that is no digit, so that a canvas without a digit is
    not an empty sheet.
    """
    labels, images = _digits()
    position = np.full(CELLS, -1)
    ink = np.zeros((2 * SIDE, 2 * SIDE), np.float32)
    hot = np.zeros(CLASSES, np.float32)
    cells = rng.permutation(CELLS)
    for cell in cells[: number % (MOST + 1)]:
        position[cell] = rng.choice(pool[hot[labels[pool]] == 0])
        hot[labels[position[cell]]] = 1
        _cell(ink, cell)[:] = images[position[cell]]
    for cell in cells[number % (MOST + 1) :]:
        if rng.random() < 0.5:
            _cell(ink, cell)[:] = rng.permutation(images[rng.choice(pool)].ravel()).reshape(SIDE, SIDE)
    return Canvas(position, ink, hot)


def _digits() -> tuple[Rows, Array]:
    images, labels = data.digits()
    return labels.numpy(), images.numpy()


def _cell(ink: Any, cell: int) -> Any:
    row, column = divmod(int(cell), 2)
    return ink[SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1)]


# As a network is best given them: with the digits' mean at 0 and their standard deviation at 1.
CANVASES = Canvases(draw, sizes=(3000, 480, 560), zero=4.9, one=10.9)


# --- what is trained --------------------------------------------------------------------------------------------------


def focal(logits: Tensor, hot: Tensor) -> Tensor:
    """Compute the mean sigmoid focal loss."""
    loss: Tensor = sigmoid_focal_loss(logits, hot, reduction="mean")
    return loss


def _reference_focal(x: Array, hot: Array) -> reference.LossAndGradient:
    return reference.sigmoid_focal_loss(x, hot, reduction="mean")


def _with_na(values: Tensor, na: Tensor) -> Tensor:
    return torch.cat([values, na.to(values.dtype)], 1)


def with_na(logits: Tensor, hot: Tensor) -> Tensor:
    """Compute the softmax loss with an NA class, whose logit is 0, for canvases without a digit."""
    none = hot.sum(1, keepdim=True) == 0
    return multilabel_cross_entropy(_with_na(logits, torch.zeros_like(none)), _with_na(hot, none))


def _log_softmax_with_na(logits: Tensor) -> Tensor:
    return log_softmax(_with_na(logits, logits.new_zeros(len(logits), 1)))[:, :-1]


def _reference_with_na(x: Array, hot: Array) -> reference.LossAndGradient:
    none = np.sum(hot, 1, keepdims=True) == 0
    of_all = reference.multilabel_cross_entropy(np.append(x, 0.0 * none, 1), np.append(hot, none, 1))
    return reference.LossAndGradient(of_all.loss, of_all.grad[:, :-1])


CANDIDATES = by_name(
    Candidate(
        "softmax", "−1/M · sum over the M labels of log p; a canvas without a digit is ignored", multilabel_cross_entropy,
        *SOFTMAX, reference.multilabel_cross_entropy,
    ),
    Candidate(
        "softmax-na", "the same, with an NA class whose logit is 0, which is the label of a canvas without a digit", with_na,
        _log_softmax_with_na, "softmax of the logits and a 0", _reference_with_na,
    ),
    Candidate(
        "bce", "mean over classes of −log σ(x) if it is there, −log σ(−x) if not", binary_cross_entropy_with_logits,
        *SIGMOID, reference.binary_cross_entropy_with_logits,
    ),
    Candidate(
        "focal", "the same, times (1 − p)² and ¼ if it is there, ¾ if not, p being what is given to the truth", focal,
        *SIGMOID, _reference_focal,
    ),
)  # fmt: skip


# --- scores -----------------------------------------------------------------------------------------------------------


def _p(candidate: Candidate, logits: Tensor) -> Array:
    return candidate.log_probabilities(logits).exp().numpy()


def _hot(part: Subset) -> Bools:
    return part.labels.numpy() > 0


def judge(candidate: Candidate, logits: Tensor, labels: Tensor) -> Standing:
    """Judge by the share of canvases named exactly, at the best threshold, and among equals by the loss itself."""
    p, hot = _p(candidate, logits), labels.numpy() > 0
    right = metrics.exact(p, hot, metrics.best_threshold(p, hot))
    return Standing(float(right.mean()), float(candidate.loss(logits, labels)))


def examine(candidate: Candidate, fitted: Fitted, split: Split) -> SeedResult:
    """Score a trained model on the test canvases, at the threshold that is best for the validation canvases."""
    threshold = metrics.best_threshold(_p(candidate, predict(fitted.model, split.validation)), _hot(split.validation))
    p, hot = _p(candidate, predict(fitted.model, split.test)), _hot(split.test)
    right = metrics.exact(p, hot, threshold)
    shares = {
        "exact": metrics.block_means(right, BLOCKS),
        "told": metrics.block_means(metrics.exact_if_told(p, hot), BLOCKS),
        "map": metrics.jackknife(lambda keep: metrics.mean_average_precision(p[keep], hot[keep]), BLOCKS, len(p)),
    }
    for number in range(MOST + 1):
        shares[f"exact_{number}"] = metrics.block_means(right[hot.sum(1) == number], BLOCKS)
    details = {
        "threshold": threshold,
        "exact_by_block": tuple(shares["exact"].tolist()),
        "said_of_first": tuple(tuple(np.flatnonzero(row >= threshold).tolist()) for row in p[:SHOWN]),
    }
    # The mean of the jackknife's shares is this score but for a small bias.
    return seed_result(fitted, shares, details, {"map": metrics.mean_average_precision(p, hot)})


def definitions(results: Results) -> tuple[str, ...]:
    """Say what is scored."""
    return (
        "Exact: the share of canvases whose digits are all named and no other, the digits named being those with at least the "
        "threshold as probability; one threshold for each loss and run, tuned on its validation canvases. Told: the same, the "
        "number M of digits being told and the M most probable named. mAP: average precision, mean over the classes.",
        BLOCKS_DEFINITION,
    )


def threshold(loss: LossResult) -> str:
    """Average the threshold over the seeds."""
    return f"{loss.mean_of(lambda run: run.details['threshold']):.2f}"


def by_number(results: Results) -> Table:
    """Tabulate the exact canvases by the number of digits on them."""
    rows = tuple(
        (loss.name, *(f"{100 * loss.mean(f'exact_{number}'):.1f}" for number in range(MOST + 1)))
        for loss in results.losses
    )
    title = f"Exact in %, by the number of digits{over_seeds(results)}"
    return Table(title, ("digits", *map(str, range(MOST + 1))), rows)


# --- what is said -----------------------------------------------------------------------------------------------------


def opening(results: Results) -> str:
    """Say what the two readings of logits can express."""
    return (
        "A canvas holds none, one, two or three digits. Softmax shares one whole out among the classes: a digit that is there gets "
        "1/M of it, and if none is there, it must still go somewhere. A sigmoid answers for each class alone."
    )


def told(results: Results) -> str:
    """Say whether softmax lacks the number of the digits or the digits themselves."""
    if not have_learnt(results, "softmax", "bce"):
        return ""
    softmax, bce = results["softmax"], results["bce"]
    own, helped = compare(results, bce, softmax, "exact"), compare(results, bce, softmax, "told")
    numbers = f"Told how many digits there are, softmax gets {percent(softmax.mean('told'))} and bce {percent(bce.mean('told'))}"
    if not own.clear or own.mean < 0:
        return f"{numbers}."
    if helped.mean < own.mean / 2:
        return f"{numbers}: most of what softmax lacks is how many, not which."
    return f"{numbers}: softmax does not only lack how many, but also which."


def without_digit(results: Results) -> str:
    """Say what is done with canvases on which there is no digit."""
    if not have_learnt(results, "softmax"):
        return ""
    silent = joined(f"{percent(loss.mean('exact_0'))} with {loss.name}" for loss in results.learnt)
    return (
        "Softmax cross entropy learns nothing from canvases without a digit, where t = 0 and the row is ignored. Of those among "
        f"the test canvases, nothing is named on {silent}.{_na(results)}"
    )


def _na(results: Results) -> str:
    """Say what an NA class for them changes."""
    if not have_learnt(results, "softmax", "softmax-na", "bce"):
        return ""
    with_na, without = results["softmax-na"], results["softmax"]
    gained = compare(results, with_na, without, "exact")
    lacks = compare(results, results["bce"], with_na, "exact")
    still = " It still shares one whole out among the digits that are there." if lacks.clear and lacks.mean > 0 else ""
    return (
        f" An NA class for them changes exact match by {margin(gained)} against softmax (± two standard errors).{still}"
    )


def three_digits(results: Results) -> str:
    """Say what becomes of one threshold where a digit that is there has p = 1 alone and p = 1/3 among three."""
    if not have_learnt(results, "softmax", "bce"):
        return ""
    softmax, bce = results["softmax"], results["bce"]
    one, three = (percent(softmax.mean(f"exact_{number}")) for number in (1, 3))
    scores = f"softmax gets {one} of the canvases with one digit exactly, and {three} of those with three"
    falls, lacks = softmax.mean("exact_1") > softmax.mean("exact_3"), compare(results, bce, softmax, "exact_3")
    if falls and lacks.clear and lacks.mean > 0:
        return f"One threshold must do for p = 1 and p = 1/3: {scores} (bce {percent(bce.mean('exact_3'))})."
    return f"Though one threshold must do for p = 1 and p = 1/3, {scores} (bce {percent(bce.mean('exact_3'))})."


def focal_against_bce(results: Results) -> str:
    """Compare the focal loss with binary cross entropy."""
    if not have_learnt(results, "focal", "bce"):
        return ""
    exact, map_ = (compare(results, results["focal"], results["bce"], key) for key in ("exact", "map"))
    return f"The focal loss changes exact match by {margin(exact)} against bce, and mAP by {margin(map_)} (± two standard errors)."


# --- what is shown ----------------------------------------------------------------------------------------------------


def number_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the exact canvases over the number of digits on them."""

    def exact(run: SeedResult) -> list[float]:
        return [run.scores[f"exact_{number}"] for number in range(MOST + 1)]

    over_categories(axes, results, theme, exact, each_seed=True)
    axes.set_xticks(range(MOST + 1))
    finish(axes, theme, "Where each loss is exact", "test canvases named exactly, %")
    axes.set_xlabel("digits on the canvas", color=theme.ink)


def score_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the scores: a dot a seed."""
    dots(axes, results, theme, {"exact": "exact", "exact, told\nhow many": "told", "mAP": "map"})
    finish(axes, theme, "How many, or which?", "test canvases, %; a dot a seed")


def canvas_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Show the first test canvases with what each loss's first network names on them."""
    part = results.job.load(results.settings, results.settings.seed).test
    step = 21.0
    text: dict[str, Any] = {"fontsize": 10, "va": "center", "color": theme.ink}
    heights = [-3.0 - 4.2 * i for i in range(1 + len(results.losses))]
    names = ["is", *(loss.name for loss in results.losses)]
    for name, y in zip(names, heights, strict=True):
        axes.text(-1.5, y, name, ha="right", **text)
    for i in range(SHOWN):
        ink, hot = part.inputs[i, 0].numpy(), _hot(part)[i]
        axes.imshow(ink, cmap="gray_r", extent=(step * i, step * i + 16, 0, 16))
        truth = np.flatnonzero(hot).tolist()
        axes.text(step * i + 8, heights[0], _said(truth), ha="center", weight="bold", **text)
        for loss, y in zip(results.losses, heights[1:], strict=True):
            named = list(loss.runs[0].details["said_of_first"][i])
            axes.text(step * i + 8, y, f"{'✓' if named == truth else '✗'} {_said(named)}", ha="center", **text)
    axes.set_xlim(-16, step * SHOWN)
    axes.set_ylim(heights[-1] - 2, 17)
    finish(axes, theme, "What the networks say", f"the first test canvases, seed {results.settings.seed}")
    axes.set_axis_off()


def _said(labels: list[int]) -> str:
    return " ".join(map(str, labels)) or "nothing"


JOB = Job(
    entry=JOBS["digits-multilabel"],
    candidates=CANDIDATES,
    network=canvas_network,
    load=CANVASES.load,
    judge=judge,
    examine=examine,
    measures=(Measure("exact", "exact %"), Measure("told", "told %"), Measure("map", "mAP %")),
    columns=(("threshold", threshold),),
    cost="loss",
    rates=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    quick_rates=(0.1, 1.0),
    wording=Wording(
        row="canvas",
        rows="canvases",
        measured="exact match",
        achieves="Of the {n} test canvases, {name} gets {score} exactly right",
        validates="{name} gets {score} of the validation canvases exactly right",
        cost="loss",
        data="scikit-learn's load_digits, 1 797 handwritten digits of 8×8 grey levels, pasted into the cells of 2×2 canvases: "
        "none, one, two or three of different classes, as many canvases of each number. By chance, every other free cell holds one "
        "whose pixels are shuffled, so that a canvas without a digit is not an empty sheet.",
        split=SPLIT,
        seeded=SEEDED,
    ),
    title="Several labels a picture: softmax or sigmoid?",
    opening=opening,
    sentences=(ranking, failures, told, three_digits, without_digit, focal_against_bce, cost_of_one_rate),
    definitions=definitions,
    details=(by_number,),
    panels=(
        Panel(number_panel, "Exact canvases by the number of digits for {names}; a table below has numbers."),
        Panel(
            score_panel, "Exact match, exact match if told how many, and mAP for {names}; the table below has numbers."
        ),
        Panel(canvas_panel, "Test canvases with what the networks name on them.", wide=True, height=3.3),
    ),
    caption="Each loss at its own learning rate. First picture: the seeds in thin lines, their mean in a thick one. Second: a "
    "dot a seed, a line at their mean. Third: ✓ exactly right, ✗ not.",
    learnt=0.35,
)
