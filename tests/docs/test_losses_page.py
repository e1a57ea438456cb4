"""The page ``docs/losses.md``: its formulas, gradients and calls are read off it and held to each other.

Its code blocks run as doctests. Here every formula becomes an expression that is evaluated row by row, every call is run, and loss
and gradient must be those of the formulas. What the text claims is tried, and its numbers are recomputed.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import PENALTY_NAMES

import crossent
from crossent import reference as ref
from crossent.core.target import SPECIAL

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "losses.md").read_text("utf-8")
MIGRATION = sorted((DOCS / "migration").glob("*.md"))
TEXT = " ".join(re.sub(r"```python\n.*?```", "", PAGE, flags=re.DOTALL).split())
N, C = 6, 4


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    pytest.importorskip("matplotlib")
    return importlib.import_module("figures_losses")


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- the page ---------------------------------------------------------------------------------------------------------


def read_members() -> dict[str, dict[str, str]]:
    """Read every section that has a formula: ``{title: {"Formula": ..., "Gradient": ..., "Call": ..., ...}}``."""
    members = {}
    for part in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        title, body = part.split("\n", 1)
        fields = re.findall(r"^- \*\*([^*]+)\*\* (.*(?:\n  .*)*)", body, re.MULTILINE)
        if fields:
            members[title] = {name: " ".join(text.split()) for name, text in fields}
    return members


MEMBERS = read_members()
PENALTIES = {"Focal loss": {"γ": 2.0}, "Poly-1": {"ε": 2.0}, "Generalised cross entropy": {"q": 0.7}, "Mean absolute error": {},
             "Symmetric cross entropy": {"α": 0.1, "β": 1.0, "A": -4.0}, "Taylor cross entropy": {"n": 2}}  # fmt: skip


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def python(formula: str) -> str:
    """Write a formula of the page in Python: ``−(1 − p)^γ · log p`` is ``-(1 - p)**γ * log(p)``."""
    formula = re.sub(r"Σ\((.*), k = 1\.\.n\)", r"sum(\1 for k in range(1, n + 1))", formula)
    formula = re.sub(r"log (σ\(x\)|[a-z]+(?:\[y\])?)", r"log(\1)", formula)
    for sign, word in {"−": "-", "·": "*", "^": "**", "∞": "inf", "Σ": "total", "σ": "sigmoid", "'": "_"}.items():
        formula = formula.replace(sign, word)
    return formula


WORDS = {
    "log": np.log, "tanh": np.tanh, "sigmoid": ref.sigmoid, "total": np.sum, "where": np.where, "inf": np.inf, "min": np.minimum,
    "softmax": ref.softmax, "onehot": lambda y: np.eye(C)[y], "C": C,
}  # fmt: skip


def evaluate(formula: str, gradient: str, known: dict[str, object]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the loss and the gradient of one row as the page writes them; ``p`` is the softmax of x, or of x' if there is one."""
    steps = [python(step).split(" = ", 1) for step in code(formula)]
    names = WORDS | known
    names["p"], names["lse"] = ref.softmax(known["x"]), ref.log_sum_exp(known["x"])
    for name, expression in sorted(steps, key=lambda step: step[0] == "L"):  # what L is made of comes first
        names[name] = eval(expression, names)
        if name == "x_":
            names["p"] = ref.softmax(names["x_"])
    with np.errstate(invalid="ignore"):
        grad = eval(python(code(gradient)[0]), names)
    return names["L"], grad


@pytest.fixture
def v() -> SimpleNamespace:
    """Make everything that the calls on the page name."""
    draw = np.random.default_rng(0)
    x, y = 3 * draw.normal(size=(N, C)), np.array([0, 1, 2, 3, 0, 2])
    holes, labels = y.copy(), (draw.random((N, C)) < 0.5).astype(float)
    holes[[1, 4]] = -1
    labels[np.arange(N), y] = 1.0  # multi-label softmax ignores rows without a label
    return SimpleNamespace(
        logits=torch.tensor(x, requires_grad=True), target=torch.tensor(y), holes=torch.tensor(holes),
        t=torch.tensor(draw.random((N, C))), labels=torch.tensor(labels), c=torch.tensor(draw.random(C) + 0.5),
        u=torch.tensor(draw.random(N)), pi=torch.tensor(3 * draw.random(C)), prior=torch.tensor(draw.dirichlet(np.ones(C))),
        allowed=torch.tensor([True, True, True, True]), known=torch.tensor(draw.random((N, C)) < 0.7),
        teacher=torch.tensor(draw.normal(size=(N, C))), a=torch.tensor(draw.normal(size=(N, 3)), requires_grad=True),
        b=torch.tensor(draw.normal(size=(N, 3))),
    )  # fmt: skip


def run(call: str, v: SimpleNamespace) -> torch.Tensor:
    return eval(call, {"crossent": crossent, "torch": torch, **vars(v)})


# --- every section ----------------------------------------------------------------------------------------------------


def test_every_member_says_everything():
    assert len(MEMBERS) == 27, "count here the sections of docs/losses.md that have a formula"
    for title, fields in MEMBERS.items():
        assert list(fields) == ["Formula", "Gradient", "Call", "Use it", "Not", "Source"], title
        *plain, _ = code(fields["Call"])
        assert plain in ([], [code(fields["Call"])[-1].replace(", denominator=len(target)", "")]), title
        assert re.search(r"(19|20)\d\d\.?|`|Caffe|Keras|PyTorch|optax", fields["Source"]), title


@pytest.mark.parametrize("title", list(PENALTIES))
def test_penalty(title, v):
    """f and s of the page are those of the call, whose gradient is the identity; and s is -f' p."""
    f, s = (python(code(MEMBERS[title][name])[0]).split(" = ", 1)[1] for name in ("Formula", "Gradient"))
    p = np.linspace(0.001, 0.999, 999)

    def value(expression: str, p: np.ndarray) -> np.ndarray:
        return eval(expression, {**WORDS, **PENALTIES[title], "p": p}) + 0 * p

    step = 1e-6
    slope = (value(f, p * (1 + step)) - value(f, p * (1 - step))) / (2 * step)
    np.testing.assert_allclose(value(s, p), -slope, rtol=1e-6, atol=1e-8)
    loss = run(code(MEMBERS[title]["Call"])[-1], v)
    (grad,) = torch.autograd.grad(loss, v.logits)
    prob = ref.softmax(v.logits.detach().numpy())
    chosen = prob[np.arange(N), v.target.numpy()]
    np.testing.assert_allclose(loss.item(), value(f, chosen).mean(), rtol=1e-9)
    expected = value(s, chosen)[:, None] * (prob - np.eye(C)[v.target.numpy()]) / N
    np.testing.assert_allclose(grad, expected, rtol=1e-9, atol=1e-15)


SOFTMAX = {
    "Class indices": {}, "Probabilities": {}, "Label smoothing": {"ε": 0.1}, "Several labels": {}, "Class weights": {},
    "Sample weights": {}, "Ignored rows": {}, "Temperature": {"T": 2.0}, "Soft cap": {"cap": 2.0}, "Logit bias": {},
    "Margin": {"m": 0.5}, "Class mask": {}, "z-loss": {"λ": 1e-2}, "Distillation": {"T": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("title", list(SOFTMAX))
def test_softmax_member(title, v):
    fields = MEMBERS[title]
    if title == "Class mask":
        v.allowed = torch.tensor([True, False, True, True])
        v.target = torch.tensor([0, 2, 2, 3, 0, 3])
    loss = run(code(fields["Call"])[-1], v)
    (grad,) = torch.autograd.grad(loss, v.logits)
    rows = []
    for i in range(N):
        y = int(v.target[i])
        onehot = title in ("Label smoothing", "Class weights")
        row = {
            "x": v.logits[i].detach().numpy(), "t": np.eye(C)[y] if onehot else v.t[i].numpy(), "c": v.c.numpy(),
            "u": v.u[i].item(), "k": float(v.holes[i] != -1), "z": v.teacher[i].numpy(), "b": v.prior.log().numpy(),
            "a": v.allowed.numpy(), "y": v.labels[i].numpy() if title == "Several labels" else y,
        }  # fmt: skip
        with np.errstate(divide="ignore", invalid="ignore"):
            rows.append(evaluate(fields["Formula"], fields["Gradient"], {**row, **SOFTMAX[title]}))
    np.testing.assert_allclose(loss.item(), np.mean([row[0] for row in rows]), rtol=1e-9)
    np.testing.assert_allclose(grad, np.array([row[1] for row in rows]) / N, rtol=1e-8, atol=1e-14)


BINARY = {
    "Binary cross entropy": {}, "Positive weight": {}, "Binary label smoothing": {"ε": 0.1}, "Binary mask": {},
    "Sigmoid focal loss": {"α": 0.25, "γ": 2.0}, "Asymmetric loss": {"γp": 1.0, "γn": 4.0, "clip": 0.05},
}  # fmt: skip


@pytest.mark.parametrize("title", list(BINARY))
def test_binary_member(title, v):
    fields = MEMBERS[title]
    loss = run(code(fields["Call"])[-1], v)
    (grad,) = torch.autograd.grad(loss, v.logits)
    s = python(code(MEMBERS["Focal loss"]["Gradient"])[0]).split(" = ", 1)[1]
    pulls = {
        name: lambda p, γ=γ: np.where(p < 1, eval(s, {**WORDS, "p": np.minimum(p, 1 - 1e-12), "γ": γ}), 0.0)
        for name, γ in (("s", 2.0), ("sp", 1.0), ("sn", 4.0))
    }
    row = {"x": v.logits.detach().numpy(), "y": v.labels.numpy(), "π": v.pi.numpy(), "k": v.known.numpy(), **pulls}
    expected, slope = evaluate(fields["Formula"], fields["Gradient"], {**row, **BINARY[title]})
    np.testing.assert_allclose(loss.item(), expected.mean(), rtol=1e-9)
    np.testing.assert_allclose(grad, slope / (N * C), rtol=1e-8, atol=1e-12)


def test_contrastive(v):
    fields = MEMBERS["Contrastive cross entropy"]
    steps = dict(python(step).split(" = ", 1) for step in code(fields["Formula"]))
    names = {"a": v.a, "b": v.b, "scale": 5.0, "N": N, "softmax": torch.softmax, "eye": torch.eye}
    names["x"] = x = eval(steps["x"], names)
    names |= {"rows": F.cross_entropy(x, torch.arange(N)), "columns": F.cross_entropy(x.T, torch.arange(N))}
    loss = run(code(fields["Call"])[-1], v)
    torch.testing.assert_close(loss, eval(steps["L"], names))
    torch.testing.assert_close(torch.autograd.grad(loss, v.a)[0], eval(python(code(fields["Gradient"])[0]), names))


def test_every_penalty_and_option_has_a_section():
    """The page says that it has every loss of this library."""
    calls = " ".join(fields["Call"] for fields in MEMBERS.values())
    for name in PENALTY_NAMES:
        assert f"{name}(" in PAGE, f"docs/losses.md lacks {name}"
    for name in SPECIAL["cross_entropy"]:
        assert f"{name}=" in calls or f"{name}=" in PAGE, f"docs/losses.md has no call with {name}="


def test_every_member_is_tested():
    assert {*PENALTIES, *SOFTMAX, *BINARY, "Contrastive cross entropy"} == MEMBERS.keys()


def test_the_one_line():
    """The identity at the top, with everything at once, against automatic differentiation."""
    lines = re.findall(r"(L|w|mass|∂L/∂x) = (.*?)(?:   |$)", PAGE.split("```")[1].split("\n\n")[1].strip())
    steps = {
        name: python(text.replace("Σ w · t", "Σ(w · t)").replace("Σ c · t · f(p)", "Σ(c · t · f(p))"))
        for name, text in lines
    }
    assert list(steps) == ["L", "w", "mass", "∂L/∂x"]
    x, t, c = torch.randn(C, requires_grad=True), torch.rand(C), torch.rand(C) + 0.5
    p = x.softmax(0)
    names = {"p": p, "t": t, "c": c, "total": torch.sum}
    names |= {"f": lambda p: -((1 - p) ** 2) * p.log(), "s": lambda p: (1 - p) ** 2 - 2 * p * (1 - p) * p.log()}
    for name in ("L", "w", "mass"):
        names[name] = eval(steps[name], names)
    torch.testing.assert_close(
        torch.autograd.grad(names["L"], x, retain_graph=True)[0], eval(steps["∂L/∂x"], names).detach()
    )
    here = crossent.cross_entropy(x, t, c, penalty=crossent.Focal(2.0))
    torch.testing.assert_close(here, names["L"])


def test_the_order_of_the_transformations(v):
    found = re.search(r"x′ = (\(cap · .*?\) / T), and then −∞ for the masked classes", TEXT)
    names = {
        **WORDS,
        "x": v.logits.detach().numpy(),
        "bias": v.prior.log().numpy(),
        "t": np.eye(C)[v.target],
        "cap": 3.0,
        "m": 0.4,
    }
    x = eval(python(found[1]), {**names, "T": 0.7})
    allowed = np.array([True, False, True, True]) | (np.eye(C)[v.target] == 1)
    expected = F.cross_entropy(torch.tensor(np.where(allowed, x, -np.inf)), v.target)
    got = crossent.cross_entropy(
        v.logits,
        v.target,
        softcap=3.0,
        logit_bias=v.prior.log(),
        margin=0.4,
        temperature=0.7,
        class_mask=torch.tensor(allowed),
    )
    torch.testing.assert_close(got, expected)


# --- what the text says -----------------------------------------------------------------------------------------------


def best(penalty: crossent.Penalty | None, chance: float) -> float:
    """Find the p of the first of two classes that costs least if it is true with this chance."""
    p = torch.linspace(0, 1, 100_001)
    f = torch.neg if penalty is None else penalty.f
    cost = torch.nan_to_num(chance * f(p.log()), nan=0.0) + torch.nan_to_num((1 - chance) * f((1 - p).log()), nan=0.0)
    return p[cost.argmin()].item()


def push(penalty: crossent.Penalty | None, p: float) -> float:
    x = torch.tensor([p, 1 - p]).log().requires_grad_()
    (grad,) = torch.autograd.grad(crossent.cross_entropy(x, torch.tensor(0), penalty=penalty), x)
    return -grad[0].item()


def test_table_of_penalties():
    rows = re.findall(
        r"^\| (cross entropy|`[^`]+`) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE
    )
    assert len(rows) == 7
    for name, *numbers in rows:
        penalty = None if name == "cross entropy" else eval(name.strip("`"), vars(crossent) | _public())
        expected = [f"{push(penalty, p):.4f}" for p in (0.01, 0.5, 0.99)] + [f"{best(penalty, 0.9):.3f}"]
        assert numbers == expected, name


def _public() -> dict[str, object]:
    return {name: getattr(crossent, name) for name in crossent.__all__}


def test_numbers():
    claims = [
        f"it asks for {best(crossent.Focal(2.0), 0.9):.3f} where 0.9 is true",
        f"at p = 1/1000 and q = 0.7 the push is {push(crossent.GCE(0.7), 1e-3):.4f}",
        f"with ε = −βA/α, here {1.0 * 4.0 / 0.1:.0f}",
        f"it is −{-crossent.SCE().A:.0f} unless given",
        f"They are {crossent.expected_initial_loss(27):.4f}, {crossent.prior_entropy([90, 10]):.4f} and "
        f"{crossent.double_softmax_floor(10):.4f}.",
    ]
    rest = TEXT
    for claim in claims:
        assert claim in rest, claim
        rest = rest.replace(claim, " ")
    rest = re.sub(r"`[^`]*`|\]\([^)]*\)|!\[[^\]]*\]|\| [\d. |]+ \|", " ", rest)
    settings = [
        r"\b(19|20)\d\d\b", "with a chance of 0.9", "push at p = 0.01", "at p = 0.5 ", "at p = 0.99", "chance of 0.9", "γ = 0",
        "α < 0.5", "caps around 30", "1e-4 is usual", "found 0.25 to go best", 'Gemma 2', r"\[−1, 1\]", "bfloat16", "float32",
    ]  # fmt: skip
    for setting in settings:
        assert re.search(setting, rest), f"no longer on the page: {setting}"
        rest = re.sub(setting, " ", rest)
    unchecked = [rest[max(m.start() - 40, 0) : m.end() + 20] for m in re.finditer(r"\d+[.,]\d+|\d\d+", rest)]
    assert not unchecked


def test_claims_about_the_best_p():
    q, c = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, 2.0, 4.0])

    def gradient(x: torch.Tensor, **options: object) -> torch.Tensor:
        """Differentiate the expected loss, when class k is true with the chance q_k."""
        x = x.expand(3, 3).clone().requires_grad_()
        loss = crossent.cross_entropy(x, torch.arange(3), sample_weight=q, reduction="sum", **options)
        return torch.autograd.grad(loss, x)[0].sum(0)

    def zero(grad: torch.Tensor) -> bool:
        return bool(grad.abs().max() < 1e-12)

    assert zero(gradient(q.log()))  # cross entropy asks for the chances
    assert zero(gradient((c * q).log(), weight=c))  # class weights: as if class k were c[k] times as frequent
    assert not zero(gradient(q.log(), weight=c))
    likelihood = torch.tensor([0.2, 0.5, 0.9])
    posterior = q * likelihood / (q * likelihood).sum()
    q = posterior  # a bias of log π: the logits used without it are those of equally frequent classes
    prior = torch.tensor([0.5, 0.3, 0.2])
    assert zero(gradient(likelihood.log(), logit_bias=prior.log()))
    # positive weight: the odds come out π times too large
    x = torch.tensor([math.log(3.0 * 0.2 / 0.8)] * 2, requires_grad=True)
    loss = crossent.binary_cross_entropy_with_logits(
        x, torch.tensor([1.0, 0.0]), torch.tensor([0.2, 0.8]), pos_weight=torch.tensor(3.0), reduction="sum"
    )
    assert zero(torch.autograd.grad(loss, x)[0].sum())


def test_claims_about_targets(v):
    # ones on M classes pull M times as hard
    x = v.logits[0].detach()
    ones = torch.tensor([1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(crossent.cross_entropy(x, ones), 2 * crossent.multilabel_cross_entropy(x, ones))
    # 2 is the row twice and 0 the row left out, in the mean's divisor too
    twice = crossent.cross_entropy(v.logits[[0, 0, 2]], v.target[[0, 0, 2]])
    torch.testing.assert_close(
        crossent.cross_entropy(v.logits[:3], v.target[:3], sample_weight=torch.tensor([2.0, 0, 1])), twice
    )
    # ignored rows may hold nan; t is differentiable, and so are sample weights
    x = v.logits.detach().clone()
    x[1] = math.nan
    x.requires_grad_()
    t, u = v.t.clone().requires_grad_(), v.u.clone().requires_grad_()
    (grad,) = torch.autograd.grad(crossent.cross_entropy(x, v.holes, ignore_index=-1), x)
    assert grad.isfinite().all()
    assert torch.autograd.grad(crossent.cross_entropy(v.logits, t, sample_weight=u), (t, u))[1].any()
    assert crossent.cross_entropy(x, torch.full((N,), -1), ignore_index=-1, empty="zero") == 0
    # smoothing over the allowed classes only
    mask = torch.tensor([True, True, False, False])
    smoothed = crossent.cross_entropy(v.logits[0], torch.tensor(0), label_smoothing=0.2, class_mask=mask)
    torch.testing.assert_close(smoothed, F.cross_entropy(v.logits[0, :2], torch.tensor([0.9, 0.1])))


def test_claims_about_penalties():
    p = torch.linspace(0.001, 0.999, 99)
    log_p = p.log()
    torch.testing.assert_close(crossent.SCE(0.1, 1.0).f(log_p), 0.1 * crossent.Poly1(40.0).f(log_p))
    torch.testing.assert_close(crossent.GCE(1.0).f(log_p), crossent.MAE().f(log_p))
    torch.testing.assert_close(crossent.GCE(1e-7).f(log_p), -log_p, rtol=1e-5, atol=0)
    torch.testing.assert_close(crossent.Taylor(1).f(log_p), crossent.MAE().f(log_p))
    torch.testing.assert_close(crossent.Focal(0.0).f(log_p), -log_p)
    assert crossent.Poly1(-1.01).s(torch.tensor(0.0)) < 0 <= crossent.Poly1(-1.0).s(torch.tensor(0.0))
    assert (crossent.GCE(0.7).f(torch.tensor([-1e9, -5.0])) <= 1 / 0.7).all()
    assert crossent.Focal(0.5).s(torch.tensor([0.0, -1e-300])).abs().max() < 1e-9
    # MAE is half of Σ |t - p| for a one-hot target
    x = torch.randn(C)
    half = (torch.eye(C)[1] - x.softmax(0)).abs().sum() / 2
    torch.testing.assert_close(crossent.cross_entropy(x, torch.tensor(1), penalty=crossent.MAE()), half)


def test_claims_about_logits(v):
    x, y = v.logits, v.target
    # temperature: a model that multiplies its logits by T has the same loss
    torch.testing.assert_close(crossent.cross_entropy(2 * x, y, temperature=2.0), crossent.cross_entropy(x, y))
    # only z-loss sees a number that is added to all logits
    torch.testing.assert_close(crossent.cross_entropy(x + 5, y), crossent.cross_entropy(x, y))
    assert crossent.cross_entropy(x + 5, y, z_loss=1e-2) > crossent.cross_entropy(x, y, z_loss=1e-2)
    # a masked logit may hold nan; a row that wants a masked class costs infinity
    holed = x.detach().clone()
    holed[:, 1] = math.nan
    mask = torch.arange(C) != 1
    loss = crossent.cross_entropy(holed, y, class_mask=mask, reduction="none")
    assert loss[y != 1].isfinite().all()
    assert loss[y == 1].isinf().all()
    # the soft cap makes -∞ possible, and a logit far outside gets no gradient
    far = torch.tensor([0.0, -1e3, 1.0], requires_grad=True)
    assert torch.autograd.grad(crossent.cross_entropy(far, torch.tensor(1), softcap=5.0), far)[0][1].abs() < 1e-100
    assert crossent.cross_entropy(torch.tensor([0.0, -torch.inf]), torch.tensor(1), softcap=5.0).isfinite()
    # a bias a row, and its gradient
    bias = torch.randn(N, C, requires_grad=True)
    assert torch.autograd.grad(crossent.cross_entropy(x, y, logit_bias=bias), bias)[0].any()


def test_claims_about_binary_losses(v):
    same = crossent.sigmoid_focal_loss(v.logits, v.labels, 0.3, 1.5, "mean")
    for alpha, penalty in ((0.3, crossent.BalancedFocal(1.5, 0.3)), (None, crossent.Focal(1.5))):
        same = crossent.sigmoid_focal_loss(v.logits, v.labels, alpha, 1.5, "mean")
        torch.testing.assert_close(crossent.binary_cross_entropy_with_logits(v.logits, v.labels, penalty=penalty), same)
    for chance in (0.01, 0.5):
        assert math.isclose(ref.sigmoid(-math.log((1 - chance) / chance)), chance)
    # multiplying with zeros leaves the missing ones in the mean, and nan · 0 is nan
    x = v.logits.detach().masked_fill(~v.known, math.nan)
    assert (crossent.binary_cross_entropy_with_logits(x, v.labels, reduction="none") * v.known).mean().isnan()
    assert crossent.binary_cross_entropy_with_logits(x, v.labels, mask=v.known).isfinite()
    # asymmetric: negatives that the model is sure are yes are given up
    sure = torch.tensor([20.0], requires_grad=True)
    no = torch.zeros(1)
    given_up = crossent.binary_cross_entropy_with_logits(sure, no, penalty=crossent.Asymmetric())
    assert torch.autograd.grad(given_up, sure)[0].abs() < 1e-6


def test_claims_about_two_sets_of_logits(v):
    # KLDivLoss "mean" divides by C as well; T² keeps the size of the gradient while T grows
    x, z = v.logits, v.teacher
    one = crossent.distillation_loss(x, z)
    with pytest.warns(UserWarning, match="support size"):
        theirs = F.kl_div(x.log_softmax(1), z.softmax(1), reduction="mean")
    torch.testing.assert_close(theirs * C, one)

    def size(loss: torch.Tensor) -> float:
        return torch.autograd.grad(loss, x)[0].abs().max().item()

    sizes = [size(crossent.distillation_loss(x, z, temperature=T)) for T in (20.0, 40.0)]
    assert abs(sizes[1] / sizes[0] - 1) < 0.05
    bare = [size(crossent.distillation_loss(x, z, temperature=T) / T**2) for T in (20.0, 40.0)]
    assert abs(bare[0] / bare[1] / 4 - 1) < 0.05
    # a second copy of the partner is pushed away
    a = F.normalize(torch.randn(3, 8), dim=1)
    b = a.clone()
    b[2] = b[0]
    similarity = (10 * a @ b.T).requires_grad_()
    (grad,) = torch.autograd.grad(crossent.cross_entropy(similarity, torch.arange(3)), similarity)
    assert grad[0, 2] > 0.1
    # with offset, the rows only
    partners = crossent.contrastive_cross_entropy(v.a[2:4], v.b, offset=2)
    torch.testing.assert_close(partners, F.cross_entropy(v.a[2:4] @ v.b.T, torch.tensor([2, 3])))


def test_sums_and_counts_make_the_big_batch_and_means_do_not():
    x, y = torch.randn(64, C, requires_grad=True), torch.randint(C, (64,))
    y[::3] = -100
    c, u = torch.rand(C) + 0.5, torch.rand(64)
    whole = crossent.cross_entropy(x, y, c, sample_weight=u)
    parts = [slice(0, 7), slice(7, 40), slice(40, 64)]
    stats = [crossent.cross_entropy_stats(x[s], y[s], c, reduction="sum", sample_weight=u[s]) for s in parts]
    total = sum(part.weight_sum for part in stats)
    torch.testing.assert_close(sum(part.loss for part in stats) / total, whole)
    assert sum(part.count for part in stats) == (y != -100).sum()
    means = [crossent.cross_entropy(x[s], y[s], c, sample_weight=u[s]) for s in parts]
    assert abs(sum(means) / 3 - whole) > 1e-3
    accumulated = sum(
        torch.autograd.grad(crossent.cross_entropy(x[s], y[s], c, sample_weight=u[s], denominator=total), x)[0]
        for s in parts
    )
    torch.testing.assert_close(accumulated, torch.autograd.grad(whole, x)[0])


def test_which_statistics_are_differentiable():
    x, y = torch.randn(3, C, requires_grad=True), torch.tensor([0, 1, 2])
    stats = crossent.cross_entropy_stats(x, y)
    assert [value.requires_grad for value in stats] == [True] * 4 + [False] * 4
    listed = re.search(r"gives a `CrossEntropyStats`: (.*?), of each row", TEXT)[1]
    assert code(listed) == list(stats._fields)


def test_claims_about_class_weights():
    counts = torch.tensor([5000, 500, 50])
    weights = crossent.class_weights(counts)
    torch.testing.assert_close(weights * counts, torch.full((3,), counts.sum() / 3))
    torch.testing.assert_close((weights * counts).sum() / counts.sum(), torch.tensor(1.0))
    many = crossent.class_weights([100_000, 10_000, 10], "effective", beta=0.999)
    torch.testing.assert_close(many[0], many[1], rtol=1e-3, atol=0)
    torch.testing.assert_close(many.sum(), torch.tensor(3.0))
    assert crossent.class_weights([3, 0])[1] == 0


# --- completeness, links and pictures ---------------------------------------------------------------------------------


def test_every_public_name_and_argument_is_on_a_page():
    others = {"__version__", "choose_implementation", "implementations"}
    pages = ("tools", "linear", "scale", "clients", "defer")
    elsewhere = "".join((DOCS / f"{page}.md").read_text("utf-8") for page in pages)
    missing = [
        name for name in crossent.__all__ if name not in others and not re.search(rf"\b{name}\b", PAGE + elsewhere)
    ]
    assert not missing
    for function in (crossent.cross_entropy, crossent.binary_cross_entropy_with_logits):
        ours = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        missing = [name for name in ours if f"{name}=" not in PAGE]
        assert not missing


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.replace("`", "")).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize(
    "page", ["losses.md", "migration.md", "drop-in.md", "scale.md", *(f"migration/{path.name}" for path in MIGRATION)]
)
def test_links_lead_somewhere(page):
    text = (DOCS / page).read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", " ".join(text.split()))
    assert links
    for file, anchor in links:
        path = (DOCS / page).parent / file if file else DOCS / page
        assert path.exists(), file
        assert not anchor or anchor in anchors(path), (file, anchor)


def test_pictures_are_drawn_and_shown(figures, tmp_path):
    shown = re.findall(r"!\[([^\]]+)\]\(img/([^)]+)\.png\)", PAGE)
    assert sorted(name for _, name in shown) == sorted(figures.PICTURES)
    assert all(len(alt) > 80 for alt, _ in shown)
    pages = "".join(path.read_text("utf-8") for path in (*DOCS.glob("*.md"), DOCS.parent / "README.md"))
    assert all(f"img/{path.name})" in pages for path in (DOCS / "img").iterdir())
    figures.main(tmp_path)
    for name in figures.PICTURES:
        drawn, kept = (folder / f"{name}.png" for folder in (tmp_path, DOCS / "img"))
        assert drawn.read_bytes()[16:24] == kept.read_bytes()[16:24]  # width and height
        assert kept.stat().st_size < 100_000


def test_pictures_say_what_they_show(figures):
    """Every panel has a title, and the curves of penalties are the push and the loss of the library's calls."""
    for draw in figures.PICTURES.values():
        for ax in draw().axes:
            assert ax.get_title() or ax.get_subplotspec().rowspan.start > 0
    for draw, value in ((figures.penalties_push, push), (figures.penalties_loss, cost)):
        for ax in draw().axes:
            plain, *curves = ax.get_lines()
            assert len(curves) == len(ax.get_legend().get_texts())
            for line, penalty in zip([plain, *curves], [None, *DRAWN[ax.get_title()]], strict=True):
                for i in (4, 249, 494):
                    p, y = line.get_xdata()[i], line.get_ydata()[i]
                    assert abs(value(penalty, p) - y) < 1e-9, ax.get_title()


def cost(penalty: crossent.Penalty | None, p: float) -> float:
    return crossent.cross_entropy(torch.tensor([p, 1 - p]).log(), torch.tensor(0), penalty=penalty).item()


DRAWN = {
    "focal": [crossent.Focal(0.5), crossent.Focal(2.0), crossent.Focal(5.0)],
    "Poly-1": [crossent.Poly1(-1.0), crossent.Poly1(1.0), crossent.Poly1(2.0)],
    "generalised CE": [crossent.GCE(0.3), crossent.GCE(0.5), crossent.GCE(0.7)],
    "MAE": [crossent.MAE()],
    "symmetric CE": [crossent.SCE(0.1, 1.0), crossent.SCE(1.0, 0.25)],
    "Taylor CE": [crossent.Taylor(1), crossent.Taylor(2), crossent.Taylor(6)],
}


def test_blank_line_ends_each_session():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        assert block.startswith(">>> ")
        assert block.endswith("\n\n")
