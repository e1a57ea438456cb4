"""The digits scene: what each loss made of handwritten digits at every learning rate, and single images to look into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from crossent.reference import sigmoid, softmax
from crossent.tools.html import element
from crossent.tools.page.numbers import at, fixed, percent
from crossent.tools.page.picture import png
from crossent.tools.page.scene import Scene, legend
from crossent.tools.page.words import WORDS

INK = 16  # the darkest level of an image
LEARNT = 0.5  # right, from which a loss is said to have learnt
FULL = 0.5  # the calibration error that fills its bar

BARS = (
    "Bars up: how many validation images are right at each learning rate. Bars down: the calibration error. "
    "★: the rate chosen."
)

Data = Mapping[str, Any]


def digits_scene(data: Data) -> Scene:
    """Lay out a recorded run of ``crossent train digits``.

    ``data`` holds ``quick`` (what to say of a run that shows nothing, or nothing),
    ``findings``, ``measured``, ``losses`` (name, rate, accuracy, nll, calibration_error, and a sweep of rate,
    accuracy and calibration_error), and ``images`` (index, label, 64 levels of ink, and the logits of each loss).
    """
    body = [
        element("h2", "What does a loss make of ten digits?"),
        element("p", escape(data["quick"] or _lead(data["losses"])), class_="legend"),
        element("p", BARS, class_="note"),
        element("div", "".join(map(_card, data["losses"])), class_="panels"),
        _table(data["losses"]),
        element("details", element("summary", "What this shows") + element("p", escape(data["findings"]))),
        element("h3", "Twelve images that look like another digit"),
        element("div", "".join(_image(k, image) for k, image in enumerate(data["images"])), class_="digits"),
        _said(data),
        element("div", legend(), class_="opened", hidden="hidden"),
        element("p", escape(data["measured"]), class_="note"),
    ]
    # What the script needs of an image is its label and the logits.
    images = [{key: image[key] for key in ("index", "label", "logits")} for image in data["images"]]
    names = [loss["name"] for loss in data["losses"] if loss["name"] in WORDS]
    asked = "Hinge trained to a higher accuracy, and smoothing helps. So why cross entropy?"
    return Scene("digits", asked, "".join(body), {"images": images, "losses": names})


def _lead(losses: Sequence[Data]) -> str:
    """Say who is right most often, who knows best how sure to be, and who does not learn."""
    learnt = [loss for loss in losses if loss["accuracy"] >= LEARNT]
    sentences = []
    if learnt:
        first = max(learnt, key=lambda loss: loss["accuracy"])
        sure = min(learnt, key=lambda loss: loss["calibration_error"])
        sentences.append(
            f"Each loss has the learning rate that suits it. Most often right is {_title(first)}, {percent(first['accuracy'])}, "
            f"with a calibration error of {fixed(first['calibration_error'], 3)}."
        )
        if sure is not first:
            sentences.append(
                f"Best at knowing how sure it may be is {_title(sure)}, {fixed(sure['calibration_error'], 3)}."
            )
    sentences += [
        f"{_title(loss).capitalize()} learns at no rate." for loss in losses if loss not in learnt and loss["sweep"]
    ]
    return " ".join(sentences)


def _title(loss: Data) -> str:
    return WORDS[loss["name"]].title if loss["name"] in WORDS else str(loss["name"])


def _card(loss: Data) -> str:
    """Draw a bar up for the accuracy and a bar down for the calibration error at each rate."""
    sweep = sorted(loss["sweep"], key=lambda tried: tried["rate"])
    bars = "".join(_bars(k / len(sweep), 0.7 / len(sweep), tried, loss["rate"]) for k, tried in enumerate(sweep))
    line = element("line", "", class_="tick", x1="0%", x2="100%", y1="80", y2="80")
    name = _title(loss)
    summary = (
        f"{name}: {percent(loss['accuracy'])} of the test images right, calibration error {fixed(loss['calibration_error'], 3)}, "
        f"at the rate {loss['rate']:g}"
    )
    picture = element("svg", bars + line, role="img", aria_label=summary, width="100%", height="150")
    title = element("h3", element("span", escape(name), class_="title"))
    sentence = element(
        "p",
        f"{percent(loss['accuracy'])} right, calibration error {fixed(loss['calibration_error'], 3)}",
        class_="sentence",
    )
    return (
        element("section", title + sentence + picture, class_="panel sweep")
        if sweep
        else element("section", title + sentence, class_="panel")
    )


def _bars(x: float, width: float, tried: Data, chosen: float) -> str:
    accuracy, error = (tried[key] or 0.0 for key in ("accuracy", "calibration_error"))
    high, low = 72 * accuracy, 44 * min(error / FULL, 1.0)
    mark = " chosen" if tried["rate"] == chosen else ""
    shapes = [
        element(
            "rect", "", class_=f"accuracy{mark}", x=at(x), y=fixed(80 - high, 1), width=at(width), height=fixed(high, 1)
        ),
        element("rect", "", class_=f"miscalibrated{mark}", x=at(x), y="81", width=at(width), height=fixed(low, 1)),
        element(
            "text",
            f"{tried['rate']:g}" + "★" * bool(mark),
            class_="said",
            x=at(x + width / 2),
            y="146",
            text_anchor="middle",
        ),
    ]
    return "".join(shapes)


def _table(losses: Sequence[Data]) -> str:
    columns = ("loss", "best rate", "right", "−log p", "calibration error")
    head = element("tr", "".join(element("th", name, scope="col") for name in columns))
    rows = "".join(
        element(
            "tr",
            element("th", escape(loss["name"]), scope="row")
            + "".join(
                element("td", text)
                for text in (
                    f"{loss['rate']:g}", percent(loss["accuracy"]), fixed(loss["nll"], 3), fixed(loss["calibration_error"], 3)
                )
            ),
        )
        for loss in losses
    )  # fmt: skip
    caption = element("caption", "On the test images, each loss at the rate that is best for it")
    return element("div", element("table", caption + element("thead", head) + element("tbody", rows)), class_="scroll")


def _image(k: int, image: Data) -> str:
    ink = [[image["ink"][8 * i + j] / INK for j in range(8)] for i in range(8)]
    picture = element("img", "", src=png(ink, (0, 0, 0)), alt=f"a handwritten {image['label']}").removesuffix("</img>")
    return element("span", picture + element("span", str(image["label"])), class_="digit", data_image=str(k))


def _said(data: Data) -> str:
    """Tabulate what each model says of each image."""
    names = [loss["name"] for loss in data["losses"]]
    head = element("tr", "".join(element("th", escape(name), scope="col") for name in ("image", *names)))
    rows = []
    for image in data["images"]:
        cells = "".join(element("td", _verdict(name, image)) for name in names)
        rows.append(element("tr", element("th", f"a {image['label']}, number {image['index']}", scope="row") + cells))
    table = element("table", element("thead", head) + element("tbody", "".join(rows)))
    inside = element("summary", "What each model says of them") + element("div", table, class_="scroll")
    return element("details", inside)


def _verdict(name: str, image: Data) -> str:
    x = image["logits"][name]
    p = sigmoid(x) if name in WORDS and WORDS[name].sigmoid else softmax(x)
    first = int(p.argmax())
    return f"{'✓' if first == image['label'] else '✗'} {first}, {percent(float(p[first]))}"
