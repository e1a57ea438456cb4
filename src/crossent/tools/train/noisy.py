"""``crossent train digits-noisy``: a share of the labels is false; what each loss learns of them, and which it finds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossent import GCE, MAE, SCE, cross_entropy, reference
from crossent.reference import Array, Bools, LossAndGradient
from crossent.tools.table import Table
from crossent.tools.train import data, metrics
from crossent.tools.train.candidates import CE, CE_SMOOTH, SOFTMAX, Candidate, Labels, by_name
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
from crossent.tools.train.figure import colour, finish, over_probability, over_rates, rate_panel
from crossent.tools.train.fit import Fitted, by_accuracy, predict
from crossent.tools.train.job import Job, Measure, Results, Wording, seed_result
from crossent.tools.train.network import wide_network
from crossent.tools.train.panel import Panel, Theme
from crossent.tools.train.results import LossResult, SeedResult, TrainSettings
from crossent.tools.train.tables import over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LISTED = 20
"""How many suspects are written down of each run."""
LITTLE = 0.1
"""A smaller share of the flipped labels learnt by heart is not worth a comparison."""


# --- rows -------------------------------------------------------------------------------------------------------------


def load(settings: TrainSettings, seed: int) -> Split:
    """Flip labels of the training and the validation part; the run's seed says which. Those of the test part stay."""
    split = data.load_digits(settings.seed)
    rng = np.random.default_rng([seed, 1])
    share = settings.options["flipped"]
    return split._replace(train=flip(split.train, share, rng), validation=flip(split.validation, share, rng))


def flip(part: Subset, share: float, rng: np.random.Generator) -> Subset:
    """Give this share of each class's rows the label of another class, each of the others being equally likely."""
    labels = part.labels.numpy().copy()
    for label in range(10):
        rows = rng.permutation(np.flatnonzero(part.labels.numpy() == label))
        rows = rows[: round(share * len(rows))]
        labels[rows] = (label + rng.integers(1, 10, len(rows))) % 10
    return part._replace(labels=torch.from_numpy(labels))


def truth(part: Subset) -> Labels:
    """Look up the labels as they were before any was flipped."""
    labels: Labels = data.digits()[1][part.position].numpy()
    return labels


# --- what is trained --------------------------------------------------------------------------------------------------


def gce(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute generalised cross entropy, between cross entropy and the mean absolute error."""
    return cross_entropy(logits, labels, penalty=GCE(0.7))


def sce(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute symmetric cross entropy: a little cross entropy, and more of the mean absolute error."""
    return cross_entropy(logits, labels, penalty=SCE(0.1, 1.0))


def mae(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean absolute error of the probability."""
    return cross_entropy(logits, labels, penalty=MAE())


def _reference_gce(x: Array, labels: Labels) -> LossAndGradient:
    return reference.cross_entropy(x, labels, penalty=reference.gce(0.7))


def _reference_sce(x: Array, labels: Labels) -> LossAndGradient:
    return reference.cross_entropy(x, labels, penalty=reference.sce(0.1, 1.0))


def _reference_mae(x: Array, labels: Labels) -> LossAndGradient:
    return reference.cross_entropy(x, labels, penalty=reference.mae())


CANDIDATES = by_name(
    CE,
    CE_SMOOTH,
    Candidate("gce", "(1 − p(label)^0.7) / 0.7", gce, *SOFTMAX, _reference_gce),
    Candidate("sce", "−0.1 log p(label) + 4 (1 − p(label))", sce, *SOFTMAX, _reference_sce),
    Candidate("mae", "1 − p(label)", mae, *SOFTMAX, _reference_mae),
)


# --- scores -----------------------------------------------------------------------------------------------------------


class Suspect(NamedTuple):
    """A training row whose label the network does not believe: its place in the data set, and who says what."""

    position: int
    label: int
    p_label: float
    predicted: int
    p_predicted: float
    true: int


def examine(candidate: Candidate, fitted: Fitted, split: Split) -> SeedResult:
    """Score a trained model on the test part, and on the false labels of the training part."""
    test_labels = split.test.labels.numpy()
    right = _log_p(candidate, fitted, split.test).argmax(1) == test_labels

    labels, true = split.train.labels.numpy(), truth(split.train)
    log_p = _log_p(candidate, fitted, split.train)
    false = labels != true
    suspicion = -log_p[np.arange(len(labels)), labels]
    order = np.argsort(-suspicion, kind="stable")
    shares = {
        "accuracy": right,
        "by_heart": learnt_by_heart(log_p, labels, true),
        "found": np.isin(np.flatnonzero(false), order[: false.sum()]),
    }
    details = {
        "wrong": tuple(split.test.position.numpy()[~right].tolist()),
        "flipped": int(false.sum()),
        "flipped_by_suspicion": "".join("1" if each else "0" for each in false[order]),
        "suspects": suspects(split.train, log_p, true, order[:LISTED]),
    }
    return seed_result(fitted, shares, details)


def note(candidate: Candidate, fitted: Fitted, split: Split) -> dict[str, float]:
    """Note of a model of the sweep the share of the flipped training labels that it has learnt by heart."""
    log_p = _log_p(candidate, fitted, split.train)
    return {"by_heart": float(learnt_by_heart(log_p, split.train.labels.numpy(), truth(split.train)).mean())}


def learnt_by_heart(log_p: Array, labels: Labels, true: Labels) -> Bools:
    """Say of the flipped labels which the network gives back."""
    return np.asarray((log_p.argmax(1) == labels)[labels != true])


def _log_p(candidate: Candidate, fitted: Fitted, part: Subset) -> Array:
    return candidate.log_probabilities(predict(fitted.model, part)).numpy()


def suspects(train: Subset, log_p: Array, true: Labels, rows: NDArray[np.int64]) -> tuple[Suspect, ...]:
    """Describe these training rows."""
    predicted = log_p.argmax(1)
    return tuple(
        Suspect(
            position=int(train.position[row]),
            label=int(train.labels[row]),
            p_label=float(np.exp(log_p[row, train.labels[row]])),
            predicted=int(predicted[row]),
            p_predicted=float(np.exp(log_p[row, predicted[row]])),
            true=int(true[row]),
        )
        for row in rows
    )


def hits(run: SeedResult) -> Bools:
    """Say of the training rows, the most suspicious first, which are flipped."""
    return np.array([each == "1" for each in run.details["flipped_by_suspicion"]])


def best_finder(results: Results) -> LossResult:
    """Choose the loss that finds most of the false labels."""
    return max(results.losses, key=lambda loss: loss.mean("found"))


def definitions(results: Results) -> tuple[str, ...]:
    """Say what is scored."""
    flipped = results.losses[0].runs[0].details["flipped"] if results.losses else 0
    share = results.settings.options["flipped"]
    return (
        "Accuracy: on the test images, whose labels are right. By heart: the share of the flipped training labels that the "
        f"trained network gives back. Found: with the training labels sorted by −log p(label), the share of flipped ones "
        f"among the first {flipped}, as many as were flipped, so that it is precision and recall in one; chance finds "
        f"{share:.0%}.",
    )


# --- tables -----------------------------------------------------------------------------------------------------------


def sorting(results: Results) -> Table:
    """Tabulate how many of the most suspicious labels are false, and how many of the false are among them."""
    flipped = results.losses[0].runs[0].details["flipped"]
    cuts = [round(part * flipped) for part in (0.25, 0.5, 1, 1.5)]
    rows = []
    for loss in results.losses:
        found = np.mean([[metrics.precision_and_recall(hits(run), k) for k in cuts] for run in loss.runs], axis=0)
        rows.append((loss.name, *(f"{100 * precision:.0f} / {100 * recall:.0f}" for precision, recall in found)))
    columns = ("precision / recall in %", *(f"first {k}" for k in cuts))
    title = f"Of the labels sorted by loss, the first ones{over_seeds(results)}"
    notes = ("Precision: how many of these are flipped. Recall: how many of the flipped ones are among these.",)
    return Table(title, columns, tuple(rows), notes)


def most_suspicious(results: Results) -> Table:
    """List the labels that the best finder believes least."""
    loss = best_finder(results)
    run = loss.runs[0]
    rows = tuple(
        (
            str(each.position), str(each.label), f"{100 * each.p_label:.2g}%",
            str(each.predicted), f"{100 * each.p_predicted:.0f}%", str(each.true),
            "flipped" if each.label != each.true else "as it was",
        )
        for each in run.details["suspects"][:10]
    )  # fmt: skip
    columns = ("image", "label", "p(label)", "network says", "p", "in truth", "the label is")
    return Table(f"The ten labels that the network of {loss.name} believes least, seed {run.seed}", columns, rows)


# --- what is said -----------------------------------------------------------------------------------------------------


def opening(results: Results) -> str:
    """Say why false labels hurt, with the push of the losses at hand."""
    share = results.settings.options["flipped"]
    sentence = (
        f"Of the training labels, {share:.0%} are false. A network that begins to see the digits gives such a label a small "
        "probability, and the loss decides what that means."
    )
    pushes = {loss.name: push_at(CANDIDATES[loss.name], 0.01) for loss in results.losses}
    names = {"ce": "cross entropy", "mae": "the mean absolute error", "gce": "generalised cross entropy"}
    parts = [f"{what} pulls it up with {pushes[name]:.2f}" for name, what in names.items() if name in pushes]
    return f"{sentence} At p(label) = 1%, {joined(parts)}." if parts else sentence


def push_at(candidate: Candidate, p: float) -> float:
    """Compute how hard a loss pulls a label of this probability up, when one other class has the rest."""
    return float(-candidate.reference(np.log([[p, 1 - p]]), np.array([0])).grad[0, 0])


def by_heart(results: Results) -> str:
    """Say who learnt the false labels, at the rates that were chosen."""
    if not results.learnt:
        return ""
    most = max(results.learnt, key=lambda loss: loss.mean("by_heart"))
    least = min(results.learnt, key=lambda loss: loss.mean("by_heart"))
    heart = {loss.name: percent(loss.mean("by_heart")) for loss in (most, least)}
    if most.mean("by_heart") < LITTLE:
        return f"At the rates chosen, no more than {heart[most.name]} of the flipped labels were learnt by heart."
    if most is least or not compare(results, most, least, "by_heart").clear:
        return (
            f"At the rates chosen, up to {heart[most.name]} of the flipped labels were learnt by heart ({most.name})."
        )
    return (
        f"At the rates chosen, {most.name} learnt {heart[most.name]} of the flipped labels by heart and {least.name} "
        f"{heart[least.name]}."
    )


def against_ce(results: Results) -> str:
    """Compare the losses made for false labels with cross entropy, each at its own rate."""
    if not have_learnt(results, "ce") or len(results.learnt) < 2:
        return ""
    ce = results["ce"]
    differences = [(loss.name, compare(results, loss, ce)) for loss in results.learnt if loss is not ce]
    changes = joined(f"{margin(difference)} with {name}" for name, difference in differences)
    return f"Against ce, each at its own rate, accuracy changes by {changes} (± two standard errors)."


def leeway(results: Results) -> str:
    """Say what ten times the chosen rate does to each loss."""
    falls = []
    for loss in results.learnt:
        more = next((tried for tried in loss.sweep if math.isclose(tried.rate, 10 * loss.rate)), None)
        if more is None:
            continue
        fall = f"of {loss.name} from {percent(loss.at(loss.rate).score)} to {percent(more.score)}"
        falls.append(f"{fall} ({percent(more.noted['by_heart'])} by heart)")
    if not falls:
        return ""
    return (
        f"Ten times the chosen rate takes the validation accuracy {joined(falls)}, each in one run; in brackets the share of the "
        "flipped training labels."
    )


def finding(results: Results) -> str:
    """Say how many of the flipped labels the losses find."""
    best = best_finder(results)
    flipped, total = best.runs[0].details["flipped"], results.sizes["train"]
    sentence = (
        f"Sorted by loss, the first {flipped} of the {total} training labels hold {percent(best.mean('found'))} of the "
        f"{flipped} flipped ones with {best.name}"
    )
    worst = min(results.losses, key=lambda loss: loss.mean("found"))
    if worst is best:
        return f"{sentence}."
    clear = compare(results, best, worst, "found").clear
    least = f"{percent(worst.mean('found'))} with {worst.name}"
    return f"{sentence}, and {least}." if clear else f"{sentence}; no loss finds clearly fewer (the fewest: {least})."


# --- what is shown ----------------------------------------------------------------------------------------------------


def label_push_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the push on a label that the network believes less and less."""
    over_probability(axes, results, theme)
    finish(axes, theme, "How hard the loss pulls the label up", "pull, as a multiple of the pull at 50%")
    axes.set_xlabel("← believed           p(label)           not believed →", color=theme.ink)


def ceiling_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the validation accuracy over the rate, below what can be expected of a network that is always right."""
    ceiling = 100 * (1 - results.settings.options["flipped"])
    rate_panel(axes, results, theme, min(102, ceiling + 12))
    axes.axhline(ceiling, color=theme.ink, linewidth=1, linestyle=(0, (2, 2)))
    axes.text(
        0.02, ceiling + 1.5, "all that a faultless network can get right: the other labels are false",
        transform=axes.get_yaxis_transform(), color=theme.ink, fontsize=9,
    )  # fmt: skip


def by_heart_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the share of the flipped labels learnt by heart over the rate; without a sweep, one bar a loss."""
    if results.settings.swept:
        over_rates(axes, results, theme, lambda tried: tried.noted["by_heart"])
    else:
        for i, loss in enumerate(results.losses):
            axes.bar(i, 100 * loss.mean("by_heart"), color=colour(loss, theme))
        axes.set_xticks(range(len(results.losses)), [loss.name for loss in results.losses])
        axes.set_ylim(0, 102)
    finish(axes, theme, "What each learns by heart", "flipped training labels that the network gives back, %")


def suspects_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Show the most suspicious images with their labels, what the network says, and whether they were flipped."""
    loss = best_finder(results)
    run = loss.runs[0]
    images = data.digits()[0].numpy()
    text: dict[str, Any] = {"color": theme.ink, "fontsize": 10, "ha": "center"}
    for i, each in enumerate(run.details["suspects"][:10]):
        x, y = 10.5 * (i % 5), -18.5 * (i // 5)
        axes.imshow(images[each.position], cmap="gray_r", extent=(x, x + 8, y, y + 8), vmin=0, vmax=16)
        axes.text(x + 4, y + 8.7, "✓ flipped" if each.label != each.true else "✗ as it was", va="bottom", **text)
        axes.text(x + 4, y - 0.7, f"label {each.label}\nnetwork {each.predicted}", va="top", **text)
    axes.set_xlim(-0.5, 50.5)
    axes.set_ylim(-25, 13)
    finish(axes, theme, f"The ten labels that {loss.name} believes least", f"training images, seed {run.seed}")
    axes.set_axis_off()


JOB = Job(
    entry=JOBS["digits-noisy"],
    candidates=CANDIDATES,
    network=wide_network,
    load=load,
    judge=by_accuracy,
    examine=examine,
    measures=(
        Measure("accuracy", "accuracy %"),
        Measure("by_heart", "by heart %"),
        Measure("found", "found %"),
    ),
    cost="nll",
    rates=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    quick_rates=(0.01, 0.1),
    wording=Wording(
        row="image",
        rows="images",
        measured="accuracy",
        achieves="Of the {n} test images, whose labels are right, {name} gets {score} right",
        validates="{name} gives {score} of the validation labels, false ones among them",
        cost="NLL",
        data="scikit-learn's load_digits, 1 797 handwritten digits. In the training and validation part a share of each class "
        "has the label of another class, any of them; a user has no better labels to choose a rate by.",
        split="stratified, fixed by the first seed, the same for every loss and run",
        seeded="which labels are flipped, the first weights and the order of the images",
    ),
    title="Some of the labels are false. Which loss believes them?",
    opening=opening,
    sentences=(ranking, failures, against_ce, by_heart, leeway, cost_of_one_rate, finding),
    definitions=definitions,
    details=(sorting, most_suspicious),
    panels=(
        Panel(label_push_panel, "The pull on the label against its probability, for {names}."),
        Panel(ceiling_panel, "Validation accuracy by learning rate for {names}; the tables have numbers."),
        Panel(by_heart_panel, "The share of the flipped labels learnt by heart, by learning rate, for {names}."),
        Panel(suspects_panel, "The ten most suspicious images with their labels; the table has them in words."),
    ),
    note=note,
    caption="First picture: one class competes with the label's, and each pull is divided by the same loss's pull at 50%. A "
    "network that has understood the digits believes a false label little. Second: the validation labels are as false as the "
    "training labels. Second and third: one run at each rate, the dot at the rate chosen. Fourth: ✓ a label that was flipped, "
    "✗ one that was not.",
)
