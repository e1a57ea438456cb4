"""What can be trained, as far as the command line must know it before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """A number that one job alone takes."""

    name: str
    default: float
    least: float
    most: float
    help: str


@dataclass(frozen=True)
class JobEntry:
    """A job's name, the module whose ``JOB`` it is, its losses by the name a user types, and its defaults."""

    name: str
    module: str
    summary: str
    about: str
    losses: dict[str, str]
    epochs: int
    seeds: int
    options: tuple[Option, ...] = ()


DIGITS_LOSSES = {
    "ce": "cross entropy",
    "ce-smooth": "cross entropy with label smoothing 0.1",
    "bce": "binary cross entropy, one class against the rest",
    "sigmoid-difference": "squash with a sigmoid and take the difference",
    "hinge": "multi-class hinge",
    "ce-after-softmax": "cross entropy of a softmax: the softmax twice",
}

MULTILABEL_LOSSES = {
    "softmax": "softmax cross entropy with t = 1/M on each of M labels",
    "softmax-na": "the same with an NA class, its logit 0, for canvases without a digit",
    "bce": "binary cross entropy, every class for itself",
    "focal": "sigmoid focal loss, gamma 2, alpha 0.25",
}

SEGMENTATION_LOSSES = {
    "plain": "cross entropy of every pixel",
    "weighted": "the same with class weights against the frequency",
    "focal": "focal loss, gamma 2",
}

NOISY_LOSSES = {
    "ce": "cross entropy",
    "ce-smooth": "cross entropy with label smoothing 0.1",
    "gce": "generalised cross entropy, q 0.7",
    "sce": "symmetric cross entropy, alpha 0.1, beta 1",
    "mae": "mean absolute error of the probability",
}

IMBALANCED_LOSSES = {
    "plain": "cross entropy",
    "weighted": "cross entropy with class weights against the frequency",
    "adjusted": "cross entropy with the log prior added to the logits",
    "focal": "focal loss, gamma 2",
}

JOBS = {
    entry.name: entry
    for entry in (
        JobEntry(
            "digits",
            "digits",
            "Losses side by side on handwritten digits.",
            "Each loss has its learning rate chosen on validation images; accuracy, likelihood and calibration are of test "
            "images that nothing has seen. Takes about a minute.",
            DIGITS_LOSSES,
            epochs=15,
            seeds=3,
        ),
        JobEntry(
            "digits-multilabel",
            "multilabel",
            "Several labels a picture: softmax or sigmoid?",
            "A canvas holds none to three digits, and the network says which. Train, validation and test canvases share no "
            "digit. Takes a minute or two.",
            MULTILABEL_LOSSES,
            epochs=20,
            seeds=3,
        ),
        JobEntry(
            "digits-segmentation",
            "segmentation",
            "A class for every pixel, most of them background.",
            "Three digits lie on a larger canvas, and the network says for each pixel which digit it belongs to, if any; "
            "faint ink is ignored. Takes a minute or two.",
            SEGMENTATION_LOSSES,
            epochs=15,
            seeds=3,
        ),
        JobEntry(
            "digits-noisy",
            "noisy",
            "Training labels of which a share is wrong.",
            "Part of the training and validation labels are flipped, the test labels are not. Shows what each loss learns "
            "of the wrong ones, and lists the suspects. Takes about a minute.",
            NOISY_LOSSES,
            epochs=40,
            seeds=5,
            options=(Option("flipped", 0.4, 0.05, 0.85, "Share of the labels that are flipped."),),
        ),
        JobEntry(
            "digits-imbalanced",
            "imbalanced",
            "Classes of which some are rare.",
            "The training images of the digits 0 to 9 get fewer and fewer; the test images do not. Shows how much of each "
            "class each loss finds. Takes about a minute.",
            IMBALANCED_LOSSES,
            epochs=40,
            seeds=10,
            options=(Option("ratio", 50, 1, 100, "How many times rarer than 0 the digit 9 is."),),
        ),
    )
}
"""The jobs of ``crossent train`` by name."""
