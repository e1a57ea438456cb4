"""The report of ``crossent train digits``: first the gradient, which is the reason, then what comes of it."""

from __future__ import annotations

from crossent.train import figure, findings, report, tables
from crossent.train.fit import Recipe
from crossent.train.losses import CANDIDATES
from crossent.train.network import network
from crossent.train.results import Results, Settings


def html(results: Results) -> str:
    """Lay out the report: first the gradient, which is the reason, then what comes of it, then how it was measured."""
    body = [
        report.heading("The model is sure, and wrong. What does the loss tell it?", 1),
        report.prose(opening(results), "lead"),
        *(report.prose(notice, "notice") for notice in notices(results)),
        report.table(tables.gradients(results)),
        _pictures(results),
        report.heading("What comes of it"),
        report.prose(findings.paragraph(results)),
        report.table(tables.scores(results)),
    ]
    if results.settings.swept:
        body += [report.heading("The learning rate of each loss"), report.table(tables.rates(results))]
    body += [report.heading("How this was measured"), report.facts(_facts(results))]
    return report.page("crossent train digits", body)


def opening(results: Results) -> str:
    """Ask the question in plain words, and answer it with the numbers of the losses at hand."""
    said = (
        "A network gives three classes the logits −1, 6 and −0.25: it is sure of the second, and the first is true. "
        "Training can only repair this through the gradient."
    )
    pushes = {loss.name: loss.push for loss in results.losses}
    if "ce" in pushes:
        up, down, _ = pushes["ce"].grad
        said += (
            f" Cross entropy has the gradient p − t: it lifts the true class with {-up:.3f} and, though only the "
            f"true class is in its formula, presses the wrong one down with {down:.3f}."
        )
    if "sigmoid-difference" in pushes:
        push = pushes["sigmoid-difference"]
        said += (
            f" Squashing with a sigmoid and taking the difference presses with {push.grad[1]:.4f}, "
            f"{1 / push.against_undecided:.0f} times less than if the network knew nothing: "
            "its gradient is σ(1 − σ), and the surer the mistake, the less is left of it."
        )
    return said


def _pictures(results: Results) -> str:
    push_light, push_dark = (figure.push_svg(results, theme) for theme in figure.THEMES)
    accuracy_light, accuracy_dark = (figure.accuracy_svg(results, theme) for theme in figure.THEMES)
    names = ", ".join(loss.name for loss in results.losses)
    push_words = f"The push on the true class against its probability, for {names}; the table above has numbers."
    accuracy_words = f"Validation accuracy by epoch for {names}; the tables below have numbers."
    shown = report.pictures((push_light, push_dark, push_words), (accuracy_light, accuracy_dark, accuracy_words))
    note = (
        "First picture: one wrong class competes with the true one, and p(true) is the softmax's and the sigmoid's "
        "alike; each push is divided by the same loss's push at 50%, because a constant factor is the learning rate's "
        "business. Second: mean over the seeds at each loss's own learning rate, in a band from lowest to highest."
    )
    return shown + report.prose(note, "note")


def _facts(results: Results) -> dict[str, str]:
    settings, recipe, sizes = results.settings, Recipe(results.settings.epochs), results.sizes
    seeds = ", ".join(str(settings.seed + i) for i in range(settings.seeds))
    return {
        "Data": "scikit-learn's load_digits: 1 797 handwritten digits of 8×8 grey levels. They carry no writer's name, "
        "so the same hand may be in every part and the accuracies are optimistic; compare them with each other.",
        "Split": f"{sizes['train']} images to train, {sizes['validation']} to choose the rate, {sizes['test']} to "
        f"report; stratified, fixed by seed {settings.seed}, the same for every loss and run",
        "Network": ", ".join(str(layer) for layer in network().children()),
        "Training": f"SGD, momentum {recipe.momentum:g}, batches of {recipe.batch_size}, {recipe.epochs} epochs, the "
        "rate falling linearly to zero from epoch to epoch; the weights after the last epoch are scored",
        "Learning rate": "chosen for each loss on the validation images, from the sweep above"
        if settings.swept
        else f"{settings.rates[0]:g}, given, the same for every loss",
        "Seeds": f"{seeds}: each fixes the first weights and the order of the images",
        "Losses": "; ".join(f"{loss.name}: {CANDIDATES[loss.name].formula}" for loss in results.losses),
        "Versions": ", ".join(f"{name} {number}" for name, number in results.versions.items()),
        "Time": f"{results.seconds:.0f} s on one thread",
        "Again": command(settings),
    }


def notices(results: Results) -> list[str]:
    """Say what a reader must know before any number."""
    said = []
    if results.settings.quick:
        said.append("A quick run: its figures are not meant to be compared.")
    if not results.complete:
        left = [name for name in results.settings.losses if name not in results]
        said.append(f"Interrupted: only the finished losses are here. Missing: {', '.join(left)}.")
    return said


def command(settings: Settings) -> str:
    """Write the command that runs the job again."""
    parts = ["crossent train digits", f"--losses {','.join(settings.losses)}", f"--epochs {settings.epochs}"]
    parts += [f"--seeds {settings.seeds}", f"--seed {settings.seed}"]
    parts += [] if settings.swept else [f"--lr {settings.rates[0]:g}"]
    return " ".join(parts + ["--quick"] * settings.quick)
