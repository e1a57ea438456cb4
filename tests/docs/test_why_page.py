"""The page ``docs/why-cross-entropy.md``: its code runs as doctests, and every other number on it is recomputed here.

``CLAIMS`` rebuilds the page's phrases from computed numbers. Each must stand on the page, and a number of the page outside
all of them must be a setting, such as the ε of an example. ``test_performance_page.py`` does the like for the page on performance.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import crossent
from crossent import reference as ref

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "why-cross-entropy.md").read_text("utf-8")
TEXT = " ".join(re.sub(r"```python\n.*?```", "", PAGE, flags=re.DOTALL).split())
X, T = (-6.0, 6.0, 0.0), np.array([1.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gradients_that_are_followed_belong_to_the_losses(figures):
    for x in (X, (0.3, -1.2, 2.0), (-10.0, 10.0, 0.0), (2.0, 1.0, -1.0)):
        p = ref.softmax(x)
        outer = ref.softmax_cross_entropy(p, T).grad
        twice = (np.diag(p) - np.outer(p, p)) @ outer
        torch_x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        torch.nn.functional.cross_entropy(torch_x.softmax(0), torch.tensor(0)).backward()
        expected = {
            "cross_entropy": ref.softmax_cross_entropy(x, T).grad,
            "binary_cross_entropy": ref.binary_cross_entropy_with_logits(x, T, reduction="sum").grad,
            "sigmoid_difference": ref.sigmoid_difference(x, T, reduction="sum").grad,
            "softmax_twice": twice,
        }
        np.testing.assert_allclose(twice, torch_x.grad, rtol=1e-6, atol=1e-15)
        for name, grad in expected.items():
            np.testing.assert_allclose(getattr(figures, name)(x), grad, rtol=1e-9, atol=1e-15, err_msg=name)


def same(*values: float) -> float:
    """Check that two computations of one number agree."""
    np.testing.assert_allclose(values, values[0], rtol=1e-9)
    return values[0]


def vector(values: np.ndarray, digits: int = 1) -> str:
    return "(" + ", ".join(f"{v:.{digits}f}" if v else "0" for v in values) + ")"


def the_other_classes() -> Iterator[str]:
    p = np.array([0.1, 0.7, 0.2])
    grad = ref.softmax_cross_entropy(np.log(p), T).grad
    x = np.log(p) - grad
    after = ref.softmax(x)
    then = ref.softmax(x - ref.softmax_cross_entropy(x, T).grad)
    yield f"Let the model say p = {vector(p)}"
    yield f"The true logit rises by {-grad[0]:.1f}. The others fall by {grad[1]:.1f} and {grad[2]:.1f}."
    assert same(-grad[0], grad[1:].sum())
    assert grad[2] > 0
    yield f"its probability rose from {p[2]:.1f} to {after[2]:.3f}"
    yield f"takes it down to {then[2]:.3f}"
    yield f"Three bars for p = {vector(p)}"
    yield f"is pushed up by {-grad[0]:.1f}, the others down by {grad[1]:.1f} and {grad[2]:.1f}"
    yield f"After one step p is {vector(after, 3)}"


def something_simpler(figures: ModuleType) -> Iterator[str]:
    starts = [X, (-10.0, 10.0, 0.0)]

    def steps(loss: str, rate: float = 1.0) -> list[str]:
        found = [figures.steps_to_right(getattr(figures, loss), x, rate) for x in starts]
        return ["more than 100,000" if n is None else f"{n:,}" for n in found]

    rows = {
        "cross entropy": steps("cross_entropy"),
        "binary cross entropy, summed over the classes": steps("binary_cross_entropy"),
        "sigmoid and difference, summed over the classes": steps("sigmoid_difference"),
        "sigmoid and difference, mean over the classes": steps("sigmoid_difference", 1 / 3),
        "cross entropy after a softmax": steps("softmax_twice"),
    }
    for name, (first, second) in rows.items():
        yield f"| {name} | {first} | {second} |"
    ce, bce, simple, _, twice = (first for first, _ in rows.values())
    assert ce == bce
    yield f"{ce} steps from (−6, 6, 0)"
    yield f"{simple} and {twice} steps."
    by_mean = steps("binary_cross_entropy", 1 / 3)[0]
    yield f"needs {bce} steps when summed over the classes and {by_mean} with the mean: three times as many"
    assert int(by_mean) == 3 * int(bce)

    p = ref.sigmoid(-6.0)
    yield f"p is {p:.4f}, so {1 - p:.4f} of a push becomes {same(p * (1 - p), -ref.sigmoid_difference([-6.0], [1]).grad[0]):.4f}"
    yield f"at its largest, {ref.sigmoid(0.0) * ref.sigmoid(-0.0):.2f}"

    # What each loss asks for, when class k is true with chance q_k: cross entropy q itself, the absolute error a corner.
    q = np.array([0.4, 0.3, 0.3])
    np.testing.assert_allclose(ref.softmax_cross_entropy(np.log(q), q).grad, 0, atol=1e-15)
    yield f"Cross entropy is smallest at p = {vector(q)}"
    yield f"a chance of {100 * q[0]:.0f} %, and classes 1 and 2 with {100 * q[1]:.0f} % each"

    def absolute(answer: np.ndarray, chance: np.ndarray) -> float:
        return sum(w * np.abs(answer - t).sum() for w, t in zip(chance, np.eye(len(chance)), strict=True))

    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * 3), -1).reshape(-1, 3)
    costs = [absolute(corner, q) for corner in corners]
    assert not corners[np.argmin(costs)].any()
    cost = absolute(np.array([1.0, 0.0, 0.0]), q)
    yield f'"no" to all three costs {min(costs):.1f} and "yes" to class 0 costs {cost:.1f}'
    yield f"costs a mere {absolute(np.zeros(10), np.full(10, 0.1)) / 10:.1f} in the mean"


def softmax_or_sigmoid() -> Iterator[str]:
    bias = -np.log(1000 - 1)
    assert same(float(ref.sigmoid(bias)), 1 / 1000)
    yield f"−ln(C − 1), which is {bias:.4f} for C = 1000".replace("-", "−")


def label_smoothing() -> Iterator[str]:
    t = ref.smooth(np.eye(10)[0], 0.1)
    floor = ref.softmax_cross_entropy(np.log(t), t)
    np.testing.assert_allclose(floor.grad, 0, atol=1e-15)
    np.testing.assert_allclose(ref.smooth([1.0, 0.0, 0.0], 0.03), [0.98, 0.01, 0.01])
    yield "The labels [0.98, 0.01, 0.01] are ε = 0.03"
    yield f"the best p is {t[0]:.2f}, with {t[1]:.2f} for each other class"
    lead = np.log(t[0] / t[1])
    yield f"stands ln {np.exp(lead):.0f} = {lead:.4f} above"
    yield f"does not go to 0 but to {floor.loss:.4f}"
    yield f"is announced with {t[0]:.2f}"
    tip = same(t[0] / t[1], 1 + 10 * (1 - 0.1) / 0.1)
    yield f"exceeds 1 + C(1 − ε)/ε, which is {tip:.0f} for C = 10 and ε = 0.1"

    for ratio, winner in ((tip * 0.999, 0), (tip * 1.001, 9)):
        c = np.ones(10)
        c[9] = ratio
        best = c * t / (c @ t)
        np.testing.assert_allclose(ref.softmax_cross_entropy(np.log(best), t, c).grad, 0, atol=1e-14)
        assert best.argmax() == winner

    # Sample weights leave the best p where it was.
    logits = torch.log(torch.tensor(np.stack([t, np.roll(t, 9)]))).requires_grad_()
    rare = torch.tensor([1.0, 100.0], dtype=torch.float64)
    target = torch.tensor([0, 9])
    crossent.cross_entropy(logits, target, label_smoothing=0.1, sample_weight=rare).backward()
    np.testing.assert_allclose(logits.grad, 0, atol=1e-15)
    yield f"the best p stays {t[0]:.2f}"

    q = np.array([0.6, 0.3, 0.1, 0, 0, 0, 0, 0, 0, 0])
    p = sum(chance * ref.smooth(row, 0.1) for chance, row in zip(q, np.eye(10), strict=True))
    np.testing.assert_allclose((p - 0.1 / 10) / (1 - 0.1), q, atol=1e-12)


def several_labels() -> Iterator[str]:
    p, t = ref.softmax([2.0, 1.0, 0.0, -1.0]), ref.multilabel_target([1, 1, 0, 0])
    np.testing.assert_allclose(ref.softmax_cross_entropy([2.0, 1.0, 0.0, -1.0], t).grad, p - t)
    assert p[0] > 0.5
    yield f"its p is {p[0]:.4f}, more than its half"
    both = ref.multilabel_target([[1, 1, 0]]).mean(0)
    either = ref.multilabel_target([[1, 0, 0], [0, 1, 0]]).mean(0)
    np.testing.assert_array_equal(both, either)
    yield f"have the same best p, {vector(both)}"
    four = ref.multilabel_target([1, 1, 1, 1, 0])[0]
    yield f"Four labels get {four:.2f} each, so a threshold must lie below {four:.2f}"
    unsure = np.array([0.7, 0.3, 0.0])
    assert sum(unsure > four) == 2
    assert four < 0.5 < unsure.max()
    yield f"p = {vector(unsure)}, that threshold finds two. For M = 1 you would want 0.5"


def before_training() -> Iterator[str]:
    sizes = [2, 10, 27, 1000, 50257]
    start = [float(ref.cross_entropy(np.zeros(size), 0).loss) for size in sizes]
    np.testing.assert_allclose(start, np.log(sizes), rtol=1e-9)
    yield "| C | " + " | ".join(map(str, sizes)) + " |"
    yield "| ln C | " + " | ".join(f"{loss:.4f}" for loss in start) + " |"
    yield f"start is ln 2 = {ref.binary_cross_entropy_with_logits([0.0], [1]).loss:.4f}"
    z = np.random.default_rng(0).normal(size=(40_000, 27))
    by_deviation = [np.mean(ref.surprisal(scale * z)[:, 0]) for scale in (1, 10)]
    yield "about {:.1f} if their standard deviation is 1, and about {:.0f} if it is 10".format(*by_deviation)
    perfect = np.eye(10)[0]
    floor = same(float(ref.softmax_cross_entropy(perfect, perfect).loss), float(np.log(np.e + 10 - 1) - 1))
    yield f"ln(e + C − 1) − 1. For C = 10 that is {floor:.4f}"


def short_answers() -> Iterator[str]:
    def works(logit: float) -> bool:
        y = torch.tensor([logit, 0.0, 0.0]).exp()
        return bool((y / y.sum()).isfinite().all())

    edge = next(x for x in range(200) if not works(x))
    yield f"{edge - 1} works, {edge} does not"
    assert torch.tensor(-110.0).exp() == 0
    assert torch.tensor(1000.0).exp().isinf()
    yield "In float32, e^1000 is infinite"
    yield "e^−110 is 0"
    x = [1.0, 0.0, 0.0]
    assert not ref.multiclass_hinge([x], [0]).grad.any()
    p = ref.softmax(x)[0]
    yield f"softmax says only {p:.4f}, and cross entropy goes on pushing with {-ref.cross_entropy(x, 0).grad[0]:.4f}"


def test_every_number_is_recomputed(figures):
    claims = [
        *the_other_classes(),
        *something_simpler(figures),
        *softmax_or_sigmoid(),
        *label_smoothing(),
        *several_labels(),
        *before_training(),
        *short_answers(),
    ]
    missing = [claim for claim in claims if claim not in TEXT]
    assert not missing
    rest = TEXT
    for claim in claims:
        rest = rest.replace(claim, " ")
    settings = [
        r"\(−6, 6, 0\)", r"\(−10, 10, 0\)", "a logit of −6 for", "At the logit −6", "picture at −6",
        "C = 10 and ε = 0.1", "27 classes",
        "PyTorch 1.10", "notes of 1.10", "issues?[ /]104776", r"\b(19|20)\d\d\b",
    ]  # fmt: skip
    for setting in settings:
        assert re.search(setting, rest), f"no longer on the page: {setting}"
        rest = re.sub(setting, " ", rest)
    unchecked = [rest[max(m.start() - 40, 0) : m.end() + 20] for m in re.finditer(r"\d+[.,]\d+|\d\d+|−\d(?! ?/)", rest)]
    assert not unchecked


def test_claims_without_a_number(figures):
    # In the best answers of the sigmoid the four kinds of pictures differ.
    kinds = [[[1, 0, 0]], [[1, 1, 0]], [[1, 0, 0], [0, 1, 0]], [[0, 0, 0]]]
    assert len({tuple(np.mean(labels, 0)) for labels in kinds}) == 4
    # With t = 1/M the do-it-yourself forward and backward agree.
    x = torch.tensor([[2.0, 1.0, 0.0, -1.0]], requires_grad=True)
    t = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    (-(t * x.softmax(1).log()).sum()).backward()
    torch.testing.assert_close(x.grad, (x.softmax(1) - t).detach())
    # With several ones it is M·y − t.
    x.grad = None
    ones = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    (-(ones * x.softmax(1).log()).sum()).backward()
    torch.testing.assert_close(x.grad, (2 * x.softmax(1) - ones).detach())
    # A softmax too many does not show at equal logits.
    assert same(float(ref.cross_entropy(ref.softmax(np.zeros(10)), 0).loss), float(np.log(10)))
    # One-hot integers are refused, values outside [0, 1] are not.
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        crossent.cross_entropy(torch.zeros(2, 3), torch.eye(3, dtype=torch.long)[:2])
    assert crossent.cross_entropy(torch.zeros(1, 3), torch.tensor([[2.0, -0.5, 0.0]])).isfinite()
    # With class weights the whole batch divides by c[y].sum().
    logits, y, c = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([1.0, 2.0, 5.0])
    parts = [crossent.cross_entropy(logits[s], y[s], c, denominator=c[y].sum()) for s in (slice(4), slice(4, None))]
    torch.testing.assert_close(sum(parts), crossent.cross_entropy(logits, y, c))


def test_pictures_are_drawn_and_shown(figures, tmp_path):
    shown = re.findall(r"!\[([^\]]+)\]\(img/([^)]+)\)", PAGE)
    assert sorted(name for _, name in shown) == sorted(f"{name}.png" for name in figures.PICTURES)
    assert all(len(alt) > 80 for alt, _ in shown)
    figures.main(tmp_path)
    for _, name in shown:
        drawn, kept = (folder / name for folder in (tmp_path, DOCS / "img"))
        assert drawn.read_bytes()[16:24] == kept.read_bytes()[16:24]  # width and height
        assert kept.stat().st_size < 200_000


def test_blank_line_ends_each_session():
    # Otherwise doctest takes the closing fence for output.
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        assert block.startswith(">>> ")
        assert block.endswith("\n\n")
