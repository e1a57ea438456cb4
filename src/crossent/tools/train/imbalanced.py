"""``crossent train digits-imbalanced``: some classes are rare; what each loss finds of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crossent import class_weights, cross_entropy, reference
from crossent.reference import Array
from crossent.tools.table import Table
from crossent.tools.train import data, metrics
from crossent.tools.train.candidates import FOCAL, PLAIN, SOFTMAX, WEIGHTED, Candidate, by_name
from crossent.tools.train.catalogue import JOBS
from crossent.tools.train.conclusions import (
    Difference,
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
from crossent.tools.train.network import network
from crossent.tools.train.panel import Panel, Theme
from crossent.tools.train.results import LossResult, SeedResult, TrainSettings
from crossent.tools.train.tables import over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES = 10
FEW = 3
"""So many of the most frequent classes, and of the rarest, are looked at together."""


# --- rows -------------------------------------------------------------------------------------------------------------


def load(settings: TrainSettings, seed: int) -> Split:
    """Thin the training part; the run's seed says which rows stay. The others are as they were."""
    split = data.load_digits(settings.seed)
    return split._replace(train=thin(split.train, settings.options["ratio"], np.random.default_rng([seed, 2])))


def thin(part: Subset, ratio: float, rng: np.random.Generator) -> Subset:
    """Keep fewer and fewer rows of the classes 0 to 9, geometrically, so that 9 is so many times rarer than 0."""
    labels = part.labels.numpy()
    most = np.bincount(labels).min()
    kept = [
        rng.permutation(np.flatnonzero(labels == label))[: max(1, round(most * ratio ** (-label / (CLASSES - 1))))]
        for label in range(CLASSES)
    ]
    rows = torch.from_numpy(np.sort(np.concatenate(kept)))
    return Subset(part.position[rows], part.inputs[rows], part.labels[rows])


def counts(part: Subset) -> Tensor:
    """Count the rows of each class."""
    return torch.bincount(part.labels, minlength=CLASSES)


# --- what is trained --------------------------------------------------------------------------------------------------


def weights(train: Subset) -> dict[str, Any]:
    """Weigh each class by one over its frequency, an example 1 on average."""
    return {"weight": class_weights(counts(train))}


def log_prior(train: Subset) -> dict[str, Any]:
    """Add the log of each class's frequency to its logit while training, so that the network need not learn it."""
    return {"logit_bias": (counts(train) / len(train.labels)).log()}


CANDIDATES = by_name(
    PLAIN,
    replace(WEIGHTED, given=weights),
    Candidate(
        "adjusted", "−log softmax(x + log prior)(true)", cross_entropy, *SOFTMAX, reference.cross_entropy, log_prior
    ),
    FOCAL,
)


# --- scores -----------------------------------------------------------------------------------------------------------


def judge(candidate: Candidate, logits: Tensor, labels: Tensor) -> Standing:
    """Judge by the balanced accuracy and, among equals, by the mean of −log p(true)."""
    log_p = candidate.log_probabilities(logits).numpy()
    return Standing(
        float(np.nanmean(metrics.recalls(log_p.argmax(1), labels.numpy(), CLASSES))), metrics.nll(log_p, labels.numpy())
    )


def examine(candidate: Candidate, fitted: Fitted, split: Split) -> SeedResult:
    """Score a trained model on the test part: all classes, the most frequent and the rarest in training, and each."""
    labels = split.test.labels.numpy()
    predicted = candidate.log_probabilities(predict(fitted.model, split.test)).numpy().argmax(1)
    right = predicted == labels
    groups = {
        "balanced_accuracy": labels >= 0,
        "common": labels < FEW,
        "rare": labels >= CLASSES - FEW,
    }
    shares = {key: metrics.balanced_shares(right[rows], labels[rows]) for key, rows in groups.items()}
    details = {
        "recall": tuple(metrics.recalls(predicted, labels, CLASSES).tolist()),
        "training_images": tuple(counts(split.train).tolist()),
        "wrong": tuple(split.test.position.numpy()[~right].tolist()),
    }
    return seed_result(fitted, shares, details)


def definitions(results: Results) -> tuple[str, ...]:
    """Say what is scored."""
    return (
        "Balanced accuracy: the mean over the classes of the share of each that is found, its recall. Common, rare: the same "
        f"over the {FEW} classes that are most frequent in training, and the {FEW} rarest.",
    )


def training_images(results: Results) -> tuple[int, ...]:
    """Count the training images of each class, which are as many with every seed."""
    images: tuple[int, ...] = results.losses[0].runs[0].details["training_images"]
    return images


def recall(loss: LossResult) -> Array:
    """Average the recall of each class over the seeds."""
    return np.asarray(np.mean([run.details["recall"] for run in loss.runs], axis=0))


def by_class(results: Results) -> Table:
    """Tabulate the recall of each class."""
    rows = [("training images", *(str(n) for n in training_images(results)))]
    rows += [(loss.name, *(f"{100 * share:.0f}" for share in recall(loss))) for loss in results.losses]
    title = f"Found of each class in %{over_seeds(results)}"
    return Table(title, ("class", *map(str, range(CLASSES))), tuple(rows))


# --- what is said -----------------------------------------------------------------------------------------------------


def opening(results: Results) -> str:
    """Say what the training part looks like, and what the losses do about it."""
    images = training_images(results)
    sentences = (
        f"There are {images[0]} training images of the digit 0 and {images[-1]} of the digit 9, and the test asks for all "
        "alike. A network that is rarely shown a class can lower its loss by rarely naming it."
    )
    ways = {
        "weighted": "class weights count a rare image many times",
        "adjusted": "logit adjustment adds the log of the class frequencies to the logits while training, so that the network "
        "itself is left with what does not depend on them",
        "focal": "the focal loss turns away from what is known already, rare or not",
    }
    return (
        f"{sentences} Ways out: {joined(what for name, what in ways.items() if name in results)}."
        if len(results.losses) > 1
        else sentences
    )


def against_plain(results: Results) -> str:
    """Say for each way out what it gains where images are rare, and what it pays where they are not."""
    if not have_learnt(results, "plain"):
        return ""
    plain, images = results["plain"], training_images(results)
    others = [loss for loss in results.learnt if loss is not plain]
    few = joined(str(n) for n in images[-FEW:])
    sentences = [
        f"Of the test images of the {FEW} rarest classes ({few} training images) plain finds {percent(plain.mean('rare'))}."
    ]
    for loss in others:
        rare, common = (compare(results, loss, plain, key) for key in ("rare", "common"))
        sentences.append(
            f"{loss.name} finds {_more(rare)} of them ({margin(rare)}), and {_more(common)} of the {FEW} most frequent "
            f"({margin(common)})."
        )
    return " ".join(sentences + ["± is two standard errors."] * bool(others))


def _more(difference: Difference) -> str:
    return ("" if difference.clear else "not clearly ") + ("more" if difference.mean >= 0 else "fewer")


# --- what is shown ----------------------------------------------------------------------------------------------------


def recall_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the recall of each class, from the most frequent to the rarest: the seeds' mean."""
    over_categories(axes, results, theme, lambda run: run.details["recall"], markersize=4)
    images = training_images(results)
    axes.set_xticks(range(CLASSES), [f"{label}\n{n}" for label, n in enumerate(images)])
    finish(axes, theme, "What is found of each class", "test images found, %")
    axes.set_xlabel("class, and its training images", color=theme.ink)


def score_panel(axes: Axes, results: Results, theme: Theme) -> None:
    """Plot the recall of all classes, of the most frequent and of the rarest: a dot a seed."""
    groups = {"all classes": "balanced_accuracy", f"{FEW} most frequent": "common", f"{FEW} rarest": "rare"}
    dots(axes, results, theme, groups)
    finish(axes, theme, "What is gained, and what is paid", "mean of the classes' shares found, %; a dot a seed")


JOB = Job(
    entry=JOBS["digits-imbalanced"],
    candidates=CANDIDATES,
    network=network,
    load=load,
    judge=judge,
    examine=examine,
    measures=(
        Measure("balanced_accuracy", "balanced acc. %"),
        Measure("common", "common %"),
        Measure("rare", "rare %"),
    ),
    cost="nll",
    rates=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    quick_rates=(0.01, 0.1),
    wording=Wording(
        row="image",
        rows="images",
        measured="balanced accuracy",
        achieves="On the {n} test images, {name} has a balanced accuracy of {score}",
        validates="{name} has a balanced accuracy of {score} on the validation images",
        cost="NLL",
        data="scikit-learn's load_digits, 1 797 handwritten digits. Only the training part is thinned: the validation and test "
        "parts have as many images of each class as there are.",
        split="stratified before the thinning, fixed by the first seed, the test part the same for every loss and run",
        seeded="which training images are kept, the first weights and the order of the images",
    ),
    title="Some classes are rare. What of them is found?",
    opening=opening,
    sentences=(ranking, failures, against_plain, cost_of_one_rate),
    definitions=definitions,
    details=(by_class,),
    panels=(
        Panel(recall_panel, "The share found of each class for {names}; the table below has numbers."),
        Panel(
            score_panel,
            "The share found of all classes, the most frequent and the rarest, for {names}; see the tables.",
        ),
    ),
    caption="Each loss at its own learning rate. First picture: mean over the seeds. Second: a dot a seed, a line at their mean.",
)
