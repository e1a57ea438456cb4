"""What the page shows of a run of ``crossent train digits``, as plain data; the run that comes with the library is kept so."""

from __future__ import annotations

from typing import Any

from crossent.tools.train.conclusions import paragraph
from crossent.tools.train.data import digits
from crossent.tools.train.job import Results
from crossent.tools.train.results import LossResult, plain


def digits_data(results: Results) -> dict[str, Any]:
    """Collect the scores, the sweeps and the images of a run."""
    settings, versions = results.settings, results.versions
    data: dict[str, Any] = plain(
        {
            "quick": paragraph(results) if settings.quick else "",
            "findings": paragraph(results),
            "measured": (
                f"Measured by crossent train digits: {settings.epochs} epochs, {settings.seeds} seed{'s' * (settings.seeds > 1)}, "
                f"torch {versions['torch']}, crossent {versions['crossent']}. The rates are chosen on validation images, the "
                "scores are those of test images."
            ),
            "losses": [_loss(loss) for loss in results.losses],
            "images": _images(results),
        }
    )
    return data


def _loss(loss: LossResult) -> dict[str, Any]:
    scores = {key: loss.mean(key) for key in ("accuracy", "nll", "calibration_error")}
    sweep = [{"rate": tried.rate, "accuracy": tried.score, **tried.noted} for tried in loss.sweep]
    return {"name": loss.name, "rate": loss.rate, **scores, "sweep": sweep}


def _images(results: Results) -> list[dict[str, Any]]:
    """Take the images that were recorded, with what the first run of each loss says of them."""
    of = {loss.name: loss.runs[0].details["pictures"] for loss in results.losses}
    first = next(iter(of.values()))
    ink = digits()[0]
    return [
        {
            "index": image["index"],
            "label": image["label"],
            "ink": ink[image["index"]].flatten().int().tolist(),
            "logits": {name: [round(x, 4) for x in pictures[k]["logits"]] for name, pictures in of.items()},
        }
        for k, image in enumerate(first)
    ]
