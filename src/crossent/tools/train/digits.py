"""``crossent train digits``: losses side by side on handwritten digits, each at the learning rate that suits it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crossent import binary_cross_entropy_with_logits, cross_entropy, reference
from crossent.reference import Array, LossAndGradient
from crossent.tools.page.digits import digits_scene
from crossent.tools.page.scene import Scene
from crossent.tools.table import Table
from crossent.tools.train import data, metrics
from crossent.tools.train.candidates import (
    CE,
    CE_SMOOTH,
    NORMALISED_SIGMOID,
    SOFTMAX,
    SURE_AND_WRONG,
    Candidate,
    Labels,
    by_name,
    log_softmax,
    push_when_wrong,
)
from crossent.tools.train.catalogue import JOBS
from crossent.tools.train.conclusions import compare, cost_of_one_rate, have_learnt, percent, points, ranking
from crossent.tools.train.data import Split
from crossent.tools.train.digits_page import digits_data
from crossent.tools.train.figure import epoch_panel, push_panel
from crossent.tools.train.fit import Fitted, by_accuracy, predict
from crossent.tools.train.job import Job, Measure, Results, Wording, seed_result
from crossent.tools.train.network import network
from crossent.tools.train.panel import Panel
from crossent.tools.train.results import LossResult, SeedResult, TrainSettings

LEVEL = 0.9
"""The validation accuracy whose first epoch is reported."""
PICTURES = 12
"""The test images whose logits are recorded, to be looked at one by one."""


# --- what is trained --------------------------------------------------------------------------------------------------


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """Write class indices as rows of zeros and a one, in the shape and dtype of the logits."""
    return F.one_hot(labels, logits.shape[1]).to(logits.dtype)


def one_vs_rest(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute binary cross entropy of each class against the rest."""
    return binary_cross_entropy_with_logits(logits, one_hot(labels, logits))


def sigmoid_difference(logits: Tensor, labels: Tensor) -> Tensor:
    """Squash, and take the difference: the mean of ``1 - σ(x)`` where t = 1 and ``σ(x)`` elsewhere."""
    p = logits.sigmoid()
    return torch.where(one_hot(labels, logits) == 1, 1 - p, p).mean()


def ce_after_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Make the classic mistake: give probabilities to a loss that takes logits."""
    return cross_entropy(logits.softmax(1), labels)


# --- what defines it --------------------------------------------------------------------------------------------------


def _reference_one_vs_rest(x: Array, labels: Labels) -> LossAndGradient:
    return reference.binary_cross_entropy_with_logits(x, reference.index_target(labels, x.shape[-1]))


def _reference_sigmoid_difference(x: Array, labels: Labels) -> LossAndGradient:
    return reference.sigmoid_difference(x, reference.index_target(labels, x.shape[-1]))


CANDIDATES = by_name(
    CE,
    CE_SMOOTH,
    Candidate(
        "bce", "mean over classes of −log σ(x) if true, −log σ(−x) if not", one_vs_rest, *NORMALISED_SIGMOID,
        _reference_one_vs_rest,
    ),
    Candidate(
        "sigmoid-difference", "mean over classes of 1 − σ(x) if true, σ(x) if not",
        sigmoid_difference, *NORMALISED_SIGMOID, _reference_sigmoid_difference,
    ),
    Candidate(
        "hinge", "1/C · sum over the others of max(0, 1 − x(true) + x)", F.multi_margin_loss,
        *SOFTMAX, reference.multiclass_hinge,
    ),
    Candidate(
        "ce-after-softmax", "−log softmax(softmax(x))(true)", ce_after_softmax, log_softmax,
        "the softmax the model ends with", reference.cross_entropy_after_softmax,
    ),
)  # fmt: skip


# --- rows and scores --------------------------------------------------------------------------------------------------


def load(settings: TrainSettings, seed: int) -> Split:
    """Load the digits; every run has the same."""
    return data.load_digits(settings.seed)


def examine(candidate: Candidate, fitted: Fitted, split: Split) -> SeedResult:
    """Score a trained model on the test part, and note the positions in the data set of the rows it gets wrong."""
    labels = split.test.labels.numpy()
    log_p = candidate.log_probabilities(predict(fitted.model, split.test)).numpy()
    right = log_p.argmax(1) == labels
    scores = {
        "nll": metrics.nll(log_p, labels),
        "calibration_error": metrics.calibration_error(log_p, labels),
    }
    details = {
        "epochs_to_90_percent": metrics.epochs_to(fitted.validation_score, LEVEL),
        "wrong": tuple(split.test.position.numpy()[~right].tolist()),
        "pictures": logits_of_hard_images(fitted, split),
    }
    return seed_result(fitted, {"accuracy": right}, details, scores)


def hard_images(split: Split) -> list[int]:
    """Choose test images that look most like another digit: nearer to its mean image than to that of their own."""
    images, labels = split.test.inputs.flatten(1), split.test.labels
    known, known_labels = split.train.inputs.flatten(1), split.train.labels
    means = torch.stack([known[known_labels == k].mean(0) for k in range(10)])
    apart = torch.cdist(images, means)
    own = apart.gather(1, labels[:, None])[:, 0]
    nearest = apart.scatter(1, labels[:, None], float("inf")).amin(1)
    return (nearest - own).argsort(stable=True)[:PICTURES].tolist()


def logits_of_hard_images(fitted: Fitted, split: Split) -> list[dict[str, object]]:
    """Record what the model says of them, by their positions in the data set."""
    logits, chosen = predict(fitted.model, split.test), hard_images(split)
    return [
        {"index": int(split.test.position[row]), "label": int(split.test.labels[row]), "logits": logits[row].tolist()}
        for row in chosen
    ]


def note_calibration(candidate: Candidate, fitted: Fitted, split: Split) -> dict[str, float]:
    """Note of every model of the sweep how far its probabilities are from the truth, on the validation part."""
    log_p = candidate.log_probabilities(predict(fitted.model, split.validation)).numpy()
    if not np.isfinite(log_p).all():
        return {"calibration_error": float("nan")}
    return {"calibration_error": metrics.calibration_error(log_p, split.validation.labels.numpy())}


def epochs(loss: LossResult) -> str:
    """Average the epochs to the level over the seeds that reach it."""
    of_runs = [run.details["epochs_to_90_percent"] for run in loss.runs]
    reached = [epoch for epoch in of_runs if epoch is not None]
    if not reached:
        return "never"
    mean = f"{sum(reached) / len(reached):.1f}".removesuffix(".0")
    return mean if len(reached) == len(of_runs) else f"{mean} ({len(reached)} of {len(of_runs)})"


def definitions(results: Results) -> tuple[str, ...]:
    """Say what is scored."""
    return (
        f"NLL: mean of −log p(true), in nats. ECE: top-label calibration error over {metrics.BINS} equal-width bins of "
        f"confidence. Epochs to {LEVEL:.0%}: the first epoch that ends with that validation accuracy, averaged over "
        "the seeds.",
    )


# --- the gradient, which is the reason --------------------------------------------------------------------------------


def gradient(loss: LossResult) -> dict[str, object]:
    """Record the gradient that a loss gives to a prediction that is sure and wrong."""
    push = push_when_wrong(CANDIDATES[loss.name])
    return {"gradient": {"logits": SURE_AND_WRONG, "label": 0, **push._asdict()}}


def gradients(results: Results) -> Table:
    """Tabulate the gradient that each loss gives to a prediction that is sure and wrong."""
    pushes = {loss.name: push_when_wrong(CANDIDATES[loss.name]) for loss in results.losses}
    rows = tuple(
        (name, *(f"{g:+.4f}".replace("-", "−") for g in push.grad), f"× {push.against_undecided:.2g}")
        for name, push in pushes.items()
    )
    columns = ("loss", "true, at −1", "wrong, at 6", "wrong, at −0.25", "against undecided")
    worst = max(
        (abs(a - b) for push in pushes.values() for a, b in zip(push.grad, push.autograd, strict=True)), default=0.0
    )
    notes = (
        "A negative gradient raises the logit, a positive one lowers it. Against undecided: the push down on the wrong "
        "class, as a multiple of the push on it when all three logits are 0; the learning rate scales every other "
        "number of a row, and leaves this one.",
        "Computed by crossent.reference, the definition, in float64. Autograd of the very losses that were trained "
        f"gives the same; the largest difference is {f'{worst:.0e}' if worst else 0}.",
    )
    return Table("The gradient ∂L/∂x at logits (−1, 6, −0.25), the first class being true", columns, rows, notes)


def opening(results: Results) -> str:
    """Ask the question in plain words, and answer it with the numbers of the losses at hand."""
    sentences = (
        "A network gives three classes the logits −1, 6 and −0.25: it is sure of the second, and the first is true. "
        "Training can only repair this through the gradient."
    )
    if "ce" in results:
        up, down, _ = push_when_wrong(CANDIDATES["ce"]).grad
        sentences += (
            f" Cross entropy has the gradient p − t: it lifts the true class with {-up:.3f} and, though only the "
            f"true class is in its formula, presses the wrong one down with {down:.3f}."
        )
    if "sigmoid-difference" in results:
        push = push_when_wrong(CANDIDATES["sigmoid-difference"])
        sentences += (
            f" Squashing with a sigmoid and taking the difference presses with {push.grad[1]:.4f}, "
            f"{1 / push.against_undecided:.0f} times less than if the network knew nothing: "
            "its gradient is σ(1 − σ), and the surer the mistake, the less is left of it."
        )
    return sentences


# --- what is said -----------------------------------------------------------------------------------------------------


def failures(results: Results) -> str:
    """Say which losses have not learnt the task, and why where the numbers tell."""
    return " ".join(_failure(loss) for loss in results.losses if loss not in results.learnt)


def _failure(loss: LossResult) -> str:
    best = max((tried.score for tried in loss.sweep), default=None)
    if best is None:
        start = f"At this rate {loss.name} does not learn"
    elif best < JOB.learnt:
        start = (
            f"None of the {len(loss.sweep)} rates makes {loss.name} learn (best validation accuracy {percent(best)})"
        )
    else:
        start = f"{loss.name} learnt in the sweep and not with every seed"
    end = loss.mean_of(lambda run: run.train_loss[-1])
    if loss.name != "sigmoid-difference" or abs(end - 0.1) > 0.005:
        return f"{start}."
    return (
        f"{start}: its loss settles at {end:.4f}, and saying no to every class costs 1/10; "
        "there σ(1 − σ) is almost 0, and so is the gradient that would have to lead away."
    )


def double_softmax(results: Results) -> str:
    """Say what the second softmax costs."""
    if not have_learnt(results, "ce", "ce-after-softmax"):
        return ""
    loss = results["ce-after-softmax"]
    difference = compare(results, loss, results["ce"])
    end = loss.mean_of(lambda run: run.train_loss[-1])
    floor = float(reference.cross_entropy(np.eye(10)[0], 0).loss)
    return (
        f"The second softmax changes accuracy by {points(difference)} against ce, and holds the training loss at "
        f"{end:.2f}, which cannot fall below ln(e+9) − 1 = {floor:.2f}."
    )


def smoothing(results: Results) -> str:
    """Say what smoothing does to accuracy and calibration."""
    if not have_learnt(results, "ce", "ce-smooth"):
        return ""
    smooth, ce = results["ce-smooth"], results["ce"]
    difference = compare(results, smooth, ce)
    return (
        f"Smoothing changes accuracy by {points(difference)} against ce, and the calibration error from "
        f"{ce.mean('calibration_error'):.3f} to {smooth.mean('calibration_error'):.3f}."
    )


def probabilities(results: Results) -> str:
    """Name the best and the worst probabilities."""
    nll = {loss.name: loss.mean("nll") for loss in results.learnt if np.isfinite(loss.mean("nll"))}
    if len(nll) < 2:
        return ""
    best, worst = min(nll, key=nll.__getitem__), max(nll, key=nll.__getitem__)
    learnt = "" if len(nll) == len(results.losses) else " of those that learnt"
    return (
        f"As probabilities{learnt}, those of {best} are the best (NLL {nll[best]:.3f}) "
        f"and those of {worst} the worst ({nll[worst]:.3f})."
    )


def scene(results: Results) -> Scene:
    """Show the sweeps, and single images."""
    return digits_scene(digits_data(results))


JOB = Job(
    entry=JOBS["digits"],
    candidates=CANDIDATES,
    network=network,
    load=load,
    judge=by_accuracy,
    examine=examine,
    measures=(
        Measure("accuracy", "accuracy %"),
        Measure("nll", "NLL", scale=1, decimals=3, spread=False, unit="_nats"),
        Measure("calibration_error", "ECE", scale=1, decimals=3, spread=False),
    ),
    columns=((f"epochs to {LEVEL:.0%}", epochs),),
    cost="nll",
    rates=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    quick_rates=(0.1, 1.0),
    wording=Wording(
        row="image",
        rows="images",
        measured="accuracy",
        achieves="Of the {n} test images, {name} gets {score} right",
        validates="{name} gets {score} of the validation images right",
        cost="NLL",
        data="scikit-learn's load_digits: 1 797 handwritten digits of 8×8 grey levels. They carry no writer's name, "
        "so the same hand may be in every part and the accuracies are optimistic; compare them with each other.",
        split="stratified, fixed by the first seed, the same for every loss and run",
        seeded="the first weights and the order of the images",
    ),
    title="The model is sure, and wrong. What does the loss tell it?",
    opening=opening,
    reasons=(gradients,),
    sentences=(ranking, failures, double_softmax, smoothing, probabilities, cost_of_one_rate),
    definitions=definitions,
    panels=(
        Panel(
            push_panel, "The push on the true class against its probability, for {names}; the table above has numbers."
        ),
        Panel(epoch_panel, "Validation accuracy by epoch for {names}; the tables below have numbers."),
    ),
    note=note_calibration,
    scene=scene,
    caption="First picture: one wrong class competes with the true one, and p(true) is the softmax's and the sigmoid's "
    "alike; each push is divided by the same loss's push at 50%, because the learning rate makes up for "
    "a constant factor. Second: mean over the seeds at each loss's own learning rate, in a band from lowest to highest.",
    record=gradient,
)
