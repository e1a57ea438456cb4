"""The rest of the specification: penalties, transformations of the logits, named losses, statistics and helpers.

Values are held to hand-computed tables, to loops over the formulas, to mpmath and to third parties; gradients to central
differences, alone and in many combinations; and members to each other where one is a special case of another.
"""

import itertools
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import PENALTY_NAMES
from closeness import assert_slope
from sklearn.utils.class_weight import compute_class_weight

from crossent import reference
from crossent.reference import cross_entropy

INF = float("inf")
HAND = np.log([0.1, 0.7, 0.2])


class Told(NamedTuple):
    """A penalty, the formula of the papers as a function of p in any arithmetic, and what it is where p is 0 and 1."""

    penalty: reference.Penalty
    formula: Any
    f_at_0: float
    s_at_0: float
    s_at_1: float


TOLD = {
    "ce": Told(reference.CROSS_ENTROPY, lambda p, log: -log(p), INF, 1, 1),
    "focal 0.5": Told(reference.focal(0.5), lambda p, log: -((1 - p) ** 0.5) * log(p), INF, 1, 0),
    "focal 2": Told(reference.focal(2.0), lambda p, log: -((1 - p) ** 2) * log(p), INF, 1, 0),
    "poly1": Told(reference.poly1(2.0), lambda p, log: -log(p) + 2 * (1 - p), INF, 1, 3),
    "poly1 -0.5": Told(reference.poly1(-0.5), lambda p, log: -log(p) - (1 - p) / 2, INF, 1, 0.5),
    "gce": Told(reference.gce(0.7), lambda p, log: (1 - p ** type(p)(0.7)) / type(p)(0.7), 1 / 0.7, 0, 1),
    "mae": Told(reference.mae(), lambda p, log: 1 - p, 1, 0, 1),
    "sce": Told(reference.sce(0.3, 0.7), lambda p, log: -0.3 * log(p) + 0.7 * 4 * (1 - p), INF, 0.3, 0.3 + 2.8),
    "taylor": Told(
        reference.taylor(3), lambda p, log: (1 - p) + (1 - p) ** 2 / 2 + (1 - p) ** 3 / 3, 1 + 1 / 2 + 1 / 3, 0, 1
    ),
}
PENALTIES = {name: told.penalty for name, told in TOLD.items()}
by_penalty = pytest.mark.parametrize("name", PENALTIES)


def numbers(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(size=shape) * scale


def shares(*shape, seed=1):
    return np.random.default_rng(seed).random(shape)


def assert_same(got, expected, rtol=1e-12):
    """Compare two losses with their gradients."""
    np.testing.assert_allclose(got.loss, expected.loss, rtol=rtol, atol=1e-15)
    np.testing.assert_allclose(got.grad, expected.grad, rtol=rtol, atol=1e-15)


def autograd(f, *arrays):
    """Compute a loss of torch tensors and its gradients."""
    leaves = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in arrays]
    loss = f(*leaves)
    grads = torch.autograd.grad(loss.sum(), leaves)
    return loss.detach().numpy(), *(g.numpy() for g in grads)


# --- the penalties ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("penalty", "f", "s"),
    [
        (reference.focal(2.0), 1.8650939253, 1.2244653167),
        (reference.gce(0.5), 1.3675444680, 0.3162277660),
        (reference.mae(), 0.9, 0.1),
        (reference.poly1(2.0), 4.1025850930, 1.2),
        (reference.sce(0.1, 1.0), 3.8302585093, 0.5),
        (reference.taylor(2), 1.305, 0.19),
    ],
)
def test_penalties_by_hand(penalty, f, s):
    loss, grad, _ = cross_entropy(HAND, 0, penalty=penalty)
    np.testing.assert_allclose(loss, f, rtol=1e-10)
    np.testing.assert_allclose(grad, s * np.array([-0.9, 0.7, 0.2]), rtol=1e-9)


@pytest.mark.parametrize("name", PENALTY_NAMES)
def test_every_penalty_of_the_library_is_here(name):
    assert hasattr(reference, name.lower()), f"reference.py needs a function {name.lower()}"
    assert any(each.split()[0] == name.lower() for each in TOLD), f"TOLD in this file needs an entry {name.lower()!r}"


@by_penalty
@pytest.mark.parametrize("log_p", [-1e-30, -1e-12, -1e-3, -0.1, -1.0, -5.0, -50.0, -700.0])
def test_penalties_in_many_digits(name, log_p):
    """``f`` is the paper's formula, and ``s`` minus its slope in ``log p``, from hopeless to certain."""
    penalty, formula = PENALTIES[name], TOLD[name].formula
    with mpmath.workdps(400):

        def f(z):
            return formula(mpmath.exp(z), mpmath.log)

        value, slope = f(mpmath.mpf(log_p)), -mpmath.diff(f, mpmath.mpf(log_p), h=mpmath.mpf(10) ** -200)
    z = np.array([log_p])
    np.testing.assert_allclose(penalty.f(z)[0], float(value), rtol=1e-14)
    np.testing.assert_allclose(penalty.s(z)[0], float(slope), rtol=1e-13)


@by_penalty
def test_penalties_at_the_ends(name):
    penalty = PENALTIES[name]
    ends = np.array([-np.inf, 0.0])
    f, s = penalty.f(ends), penalty.s(ends)
    assert f[1] == 0
    assert f[0] == TOLD[name].f_at_0
    np.testing.assert_allclose(s, [TOLD[name].s_at_0, TOLD[name].s_at_1], rtol=1e-15)
    np.testing.assert_array_equal(reference.sce(0.0, 1.0).f(ends), [4.0, 0.0])
    assert np.isnan(penalty.f(np.array([np.nan])) + penalty.s(np.array([np.nan]))).all()


def test_penalties_that_are_others():
    x, y = numbers(9, 5, scale=1.0), np.arange(9) % 5
    settings = {"weight": shares(5), "label_smoothing": 0.2, "z_loss": 0.1}

    def loss(penalty, factor=1.0):
        got = cross_entropy(x, y, penalty=penalty, **settings)
        return got._replace(loss=factor * got.loss, grad=factor * got.grad)

    plain, x_only = loss(None), loss(reference.CROSS_ENTROPY)
    assert_same(x_only, plain, 0)
    assert_same(loss(reference.focal(0.0)), plain)
    assert_same(loss(reference.poly1(0.0)), plain)
    assert_same(loss(reference.gce(0.0)), plain)
    assert_same(loss(reference.gce(1e-9)), plain, 1e-7)
    assert_same(loss(reference.sce(1.0, 0.0)), plain)
    assert_same(loss(reference.gce(1.0)), loss(reference.mae()))
    assert_same(loss(reference.taylor(1)), loss(reference.mae()))
    assert_same(loss(reference.taylor(4000)), plain, 1e-11)
    assert_same(loss(reference.sce(1.0, 0.5, A=-4.0)), loss(reference.poly1(2.0)))
    settings["z_loss"] = 0.0
    a, b = 0.3, 0.7
    assert_same(loss(reference.sce(a, b)), loss(reference.poly1(4 * b / a), a))
    assert_same(loss(reference.sce(0.0, b)), loss(reference.mae(), 4 * b))


def test_mae_is_the_mean_absolute_error():
    x, y = numbers(6, 4), np.arange(6) % 4
    half = np.abs(reference.softmax(x) - np.eye(4)[y]).sum(1) / 2
    np.testing.assert_allclose(cross_entropy(x, y, reduction="none", penalty=reference.mae()).loss, half, rtol=1e-13)
    x, t = numbers(20, scale=4), np.arange(20) % 2
    binary = reference.binary_cross_entropy_with_logits(x, t, penalty=reference.mae())
    assert_same(binary, reference.sigmoid_difference(x, t))


def test_sce_is_the_authors_two_terms():
    x, y = numbers(6, 4), np.arange(6) % 4
    p, one_hot = reference.softmax(x), np.eye(4)[y]
    reverse = -(p * np.where(one_hot == 1, 0.0, -4.0)).sum(1)
    expected = 0.1 * -np.log((p * one_hot).sum(1)) + 1.0 * reverse
    np.testing.assert_allclose(cross_entropy(x, y, None, -100, "none", penalty=reference.sce()).loss, expected)


# --- the gradient of everything ---------------------------------------------------------------------------------------

OPTIONS = {
    "temperature": {"temperature": 2.5},
    "cold": {"temperature": 0.4},
    "softcap": {"softcap": 1.5},
    "softcap after the temperature": {"softcap": 1.5, "temperature": 2.5, "softcap_after_temperature": True},
    "bias": {"logit_bias": numbers(5, seed=3)},
    "bias of every logit": {"logit_bias": numbers(4, 5, seed=3)},
    "impossible class": {"logit_bias": np.array([0.0, 0.5, 0.0, 0.0, -INF])},
    "margin": {"margin": 0.7},
    "class mask": {"class_mask": np.array([True, True, False, True, False])},
    "class mask of every row": {"class_mask": shares(4, 5, seed=8) < 0.6},
    "z-loss": {"z_loss": 0.3},
    "everything": {
        "temperature": 1.7,
        "softcap": 3.0,
        "logit_bias": numbers(4, 5, seed=3),
        "margin": 0.4,
        "class_mask": np.array([True, True, False, True, True]),
        "z_loss": 0.2,
        "penalty": reference.focal(1.5),
    },
}
TARGETS = {
    "indices": (np.array([0, 1, -100, 3]), {}),
    "indices, weighted and smoothed": (
        np.array([0, 1, -100, 3]),
        {"weight": shares(5), "label_smoothing": 0.2, "sample_weight": shares(4)},
    ),
    "probabilities": (shares(4, 5), {}),
    "probabilities, weighted and smoothed": (
        shares(4, 5),
        {"weight": shares(5), "label_smoothing": 0.2, "sample_weight": shares(4)},
    ),
}
OPTIONS["class mask of every row"]["class_mask"][np.arange(4), [0, 1, 2, 3]] = True


def assert_gradients_are_slopes(x, target, **settings):
    """Hold the gradients of a call to central differences."""
    got = cross_entropy(x, target, **settings)
    assert_slope(got.grad, lambda x: cross_entropy(x, target, **settings).loss, x)
    if got.target_grad is not None:
        assert_slope(got.target_grad, lambda t: cross_entropy(x, t, **settings).loss, target)
    return got


@by_penalty
@pytest.mark.parametrize("target", TARGETS)
def test_gradient_of_every_penalty(name, target):
    target, settings = TARGETS[target]
    assert_gradients_are_slopes(numbers(4, 5), target, penalty=PENALTIES[name], **settings)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_gradient_of_every_option(option, target):
    (target, settings), options = TARGETS[target], OPTIONS[option]
    if target.ndim == 2:  # a row that wants what it does not allow costs infinitely much
        impossible = options.get("logit_bias", 0.0) == -INF
        target = target * options.get("class_mask", True) * ~np.asarray(impossible)
        if np.any(impossible):
            settings = settings | {"label_smoothing": 0.0}
    elif np.any(np.isinf(options.get("logit_bias", 0.0))):
        settings = settings | {"label_smoothing": 0.0}
    got = assert_gradients_are_slopes(numbers(4, 5), target, **settings, **options)
    assert np.isfinite(got.loss)
    assert np.isfinite(got.grad).all()


def plain_loops(x, target, name, s):
    """Compute the loss of ``(N, C)`` logits from the formulas, one number at a time."""
    log, total, divisor = np.log, 0.0, 0.0
    each = np.zeros(len(x))
    for i, row in enumerate(x):
        indices = target.ndim == 1
        if indices and target[i] == -100:
            continue
        t = np.eye(len(row))[target[i]] if indices else target[i]
        mask = np.broadcast_to(s.get("class_mask", True), x.shape)[i]
        bias = np.broadcast_to(s.get("logit_bias", 0.0), x.shape)[i]
        c = s.get("weight", np.ones(len(row)))
        u = s["sample_weight"][i] if "sample_weight" in s else 1.0
        z, loss = np.zeros(len(row)), 0.0
        for k in range(len(row)):
            capped = s["softcap"] * np.tanh(row[k] / s["softcap"]) if "softcap" in s else row[k]
            z[k] = (capped + bias[k] - s.get("margin", 0.0) * t[k]) / s.get("temperature", 1.0)
        sum_of_exponentials = np.exp(z[mask]).sum()
        for k in np.flatnonzero(mask):
            e = s.get("label_smoothing", 0.0)
            smoothed = (1 - e) * t[k] + e / mask.sum()
            loss += c[k] * smoothed * TOLD[name].formula(np.exp(z[k]) / sum_of_exponentials, log)
        row_weight = c[target[i]] if indices else 1.0
        loss += s.get("z_loss", 0.0) * row_weight * log(sum_of_exponentials) ** 2
        each[i] = u * loss
        total, divisor = total + u * loss, divisor + u * row_weight
    return {"none": each, "sum": total, "mean": total / divisor}[s["reduction"]]


@pytest.mark.parametrize("seed", range(60))
def test_any_combination(seed):
    rng = np.random.default_rng(seed)

    def sometimes(**option):
        return option if rng.random() < 0.5 else {}

    mask = (rng.random(5) if rng.random() < 0.5 else rng.random((4, 5))) < 0.7
    mask[..., :2] = True
    settings = {
        **sometimes(weight=rng.random(5)),
        **sometimes(label_smoothing=0.3),
        **sometimes(sample_weight=rng.random(4)),
        **sometimes(temperature=rng.uniform(0.5, 3)),
        **sometimes(softcap=rng.uniform(2, 5)),
        **sometimes(logit_bias=rng.normal(size=5) if rng.random() < 0.5 else rng.normal(size=(4, 5))),
        **sometimes(margin=0.5),
        **sometimes(class_mask=mask),
        **sometimes(z_loss=0.1),
        "reduction": ["none", "sum", "mean"][seed % 3],
    }
    name = list(PENALTIES)[rng.integers(len(PENALTIES))]
    x, target = rng.normal(size=(4, 5)) * 2, rng.integers(0, 2, 4)
    target[0] = -100 if rng.random() < 0.5 else 0
    if rng.random() < 0.5:
        target = rng.random((4, 5)) * np.broadcast_to(settings.get("class_mask", True), (4, 5))
    got = assert_gradients_are_slopes(x, target, penalty=PENALTIES[name], **settings)
    np.testing.assert_allclose(got.loss, plain_loops(x, target, name, settings), rtol=1e-12)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_layout(option):
    """Another class axis, more axes or none give the same rows."""
    options, y = OPTIONS[option], np.array([0, 1, -100, 3])
    x, c = numbers(4, 5), shares(5)
    expected = cross_entropy(x, y, c, reduction="none", **options)
    per_logit = {k: v for k, v in options.items() if np.shape(v) == (4, 5)}

    def call(reshape, y, **more):
        moved = options | {k: reshape(v) for k, v in per_logit.items()}
        return cross_entropy(reshape(x), y, c, reduction="none", **moved, **more)

    first = call(lambda v: v.T, y, dim=0)
    np.testing.assert_array_equal(first.loss, expected.loss)
    np.testing.assert_array_equal(first.grad.T, expected.grad)
    pixels = call(lambda v: v.T.reshape(1, 5, 2, 2), y.reshape(1, 2, 2))
    np.testing.assert_array_equal(pixels.loss.reshape(4), expected.loss)
    np.testing.assert_array_equal(pixels.grad.reshape(5, 4).T, expected.grad)
    last = call(lambda v: v.reshape(2, 2, 5), y.reshape(2, 2), dim=-1)
    np.testing.assert_array_equal(last.grad.reshape(4, 5), expected.grad)
    alone = [
        cross_entropy(x[i], y[i], c, reduction="none", **options | {k: v[i] for k, v in per_logit.items()}).loss
        for i in range(4)
    ]
    np.testing.assert_array_equal(alone, expected.loss)


# --- x' ---------------------------------------------------------------------------------------------------------------


def test_transformations_by_hand():
    assert cross_entropy([2.0, 0.0], 0, margin=2.0).loss == np.log(2)
    assert cross_entropy([2.0, 0.0], np.array([0.5, 0.0]), margin=4.0).loss == np.log(2) / 2
    assert cross_entropy([4.0, 0.0], 1, temperature=2.0).loss == cross_entropy([2.0, 0.0], 1).loss
    # all at once: (2 tanh(4/2) + 1 - 3) / 2 against 2 tanh(0) / 2
    loss = cross_entropy([4.0, 0.0], 0, softcap=2.0, logit_bias=[1.0, 0.0], margin=3.0, temperature=2.0).loss
    np.testing.assert_allclose(loss, np.log1p(np.exp(-(np.tanh(2.0) - 1.0))), rtol=1e-14)


def test_soft_cap_by_hand():
    loss, grad, _ = cross_entropy([1e9, -1e9], 1, softcap=1.0)
    np.testing.assert_allclose(loss, 2.1269280110, rtol=1e-10)  # log(1 + e²): as wrong as it can be
    assert (grad == 0).all()
    loss, grad, _ = cross_entropy([-INF, 0.0], 1, softcap=1.0)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-1.0)), rtol=1e-14)
    np.testing.assert_allclose(grad, [0.0, -1 / (1 + np.e)], rtol=1e-14)


def test_z_loss_by_hand():
    loss, grad, _ = cross_entropy([0.0, 0.0], 0, z_loss=0.5)
    np.testing.assert_allclose(loss, 0.9333736875, rtol=1e-9)
    np.testing.assert_allclose(grad, [0.5 * 1.6931471806 - 1, 0.5 * 1.6931471806], rtol=1e-9)


def test_z_loss_is_weighted_like_its_row():
    x, y, c, u = numbers(4, 5), np.array([0, 1, -100, 3]), shares(5), shares(4)
    square = torch.logsumexp(torch.from_numpy(x), 1).numpy() ** 2

    def extra(target, **settings):
        without = cross_entropy(x, target, **settings).loss
        return cross_entropy(x, target, z_loss=0.1, **settings).loss - without

    c_y = np.where(y >= 0, c[y.clip(0)], 0.0)
    each = 0.1 * c_y * u * square
    settings = {"weight": c, "sample_weight": u}
    np.testing.assert_allclose(extra(y, reduction="none", **settings), each, rtol=1e-12)
    np.testing.assert_allclose(extra(y, **settings), each.sum() / (c_y * u).sum(), rtol=1e-12)
    probabilities = extra(shares(4, 5), weight=c, sample_weight=u)
    np.testing.assert_allclose(probabilities, 0.1 * (u * square).sum() / u.sum(), rtol=1e-11)
    # the gradient with a z-loss is that of the identity with a larger mass
    got = cross_entropy(x, y, c, reduction="sum", z_loss=0.1).grad - cross_entropy(x, y, c, reduction="sum").grad
    lse = np.sqrt(square) * np.sign(torch.logsumexp(torch.from_numpy(x), 1).numpy())
    expected = (0.2 * lse * c_y)[:, None] * reference.softmax(x)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("target", TARGETS)
def test_transformations_that_do_nothing(target):
    target, settings = TARGETS[target]
    x = numbers(4, 5)
    plain = cross_entropy(x, target, **settings)
    nothing = {
        "temperature": 1.0,
        "logit_bias": np.zeros(5),
        "margin": 0.0,
        "class_mask": np.ones((4, 5), bool),
        "z_loss": 0.0,
    }
    for name, value in nothing.items():
        assert_same(cross_entropy(x, target, **settings, **{name: value}), plain, 0)
    assert_same(cross_entropy(x, target, softcap=1e7, **settings), plain, 1e-11)


@pytest.mark.parametrize("target", TARGETS)
def test_transformations_that_users_write_themselves(target):
    target, settings = TARGETS[target]
    x, bias = numbers(4, 5), numbers(4, 5, seed=3)
    divided = cross_entropy(x / 3, target, **settings)
    assert_same(cross_entropy(x, target, temperature=3.0, **settings), divided._replace(grad=divided.grad / 3))
    assert_same(cross_entropy(x, target, logit_bias=bias, **settings), cross_entropy(x + bias, target, **settings))
    t = target if target.ndim == 2 else reference.index_target(target, 5)
    assert_same(cross_entropy(x, target, margin=0.7, **settings), cross_entropy(x - 0.7 * t, target, **settings))
    capped = cross_entropy(2 * np.tanh(x / 2), target, **settings)
    slope = 1 - np.tanh(x / 2) ** 2
    assert_same(cross_entropy(x, target, softcap=2.0, **settings), capped._replace(grad=capped.grad * slope))


@pytest.mark.parametrize("penalty", [None, reference.focal(0.5), reference.gce()])
def test_a_mask_is_a_slice(penalty):
    x, c, mask = numbers(6, 7), shares(7), np.array([True, False, True, True, False, True, False])
    y = np.array([0, 1, 2, 3, -100, 3])
    settings = {"label_smoothing": 0.3, "penalty": penalty, "z_loss": 0.1, "temperature": 1.3}
    inside = np.where(y >= 0, np.flatnonzero(mask)[y.clip(0)], -100)
    part = cross_entropy(x[:, mask], y, c[mask], **settings)
    whole = cross_entropy(x, inside, c, class_mask=mask, **settings)
    np.testing.assert_allclose(whole.loss, part.loss, rtol=1e-14)
    np.testing.assert_allclose(whole.grad[:, mask], part.grad, rtol=1e-13)
    assert (whole.grad[:, ~mask] == 0).all()
    t = shares(6, 7) * mask
    part = cross_entropy(x[:, mask], t[:, mask], c[mask], **settings)
    whole = cross_entropy(x, t, c, class_mask=mask, **settings)
    np.testing.assert_allclose(whole.loss, part.loss, rtol=1e-14)
    np.testing.assert_allclose(whole.target_grad[:, mask], part.target_grad, rtol=1e-13)


def test_a_mask_does_not_look_at_what_it_hides():
    x, mask = numbers(3, 5), np.array([True, False, True, True, False])
    expected = cross_entropy(x, [0, 2, 3], class_mask=mask, label_smoothing=0.1, softcap=4.0)
    x[:, ~mask] = [[np.nan, INF], [-INF, 1e300], [np.nan, np.nan]]
    assert_same(cross_entropy(x, [0, 2, 3], class_mask=mask, label_smoothing=0.1, softcap=4.0), expected, 0)


def test_a_row_that_wants_what_it_does_not_allow():
    mask, x = [False, True, True], np.stack([HAND, HAND])
    loss, grad, _ = cross_entropy(x, [0, 1], reduction="none", class_mask=mask)
    np.testing.assert_allclose(loss, [INF, np.log(9 / 7)], rtol=1e-14)
    np.testing.assert_allclose(grad[0], [0, 7 / 9, 2 / 9], rtol=1e-14)
    as_weights = cross_entropy(x, np.eye(3)[[0, 1]], reduction="none", class_mask=mask)
    assert_same(as_weights, reference.LossAndGradient(loss, grad), 1e-15)
    bounded = cross_entropy(x, [0, 1], reduction="none", class_mask=mask, penalty=reference.gce(0.5))
    assert bounded.loss[0] == 2.0
    assert (bounded.grad[0] == 0).all()
    nothing = cross_entropy(x, [0, 1], reduction="none", class_mask=[[False] * 3, [True] * 3])
    np.testing.assert_allclose(nothing.loss, [0, cross_entropy(x[1], 1).loss], rtol=1e-14)  # a row that allows nothing
    assert (nothing.grad[0] == 0).all()


def test_the_prior_as_a_bias_is_balanced_softmax():
    x, y, n = numbers(6, 4), np.arange(6) % 4, np.array([1000, 100, 10, 1])
    logits = torch.from_numpy(x)
    count = torch.from_numpy(n).double()
    theirs = F.cross_entropy(logits + count.unsqueeze(0).expand(6, -1).log(), torch.from_numpy(y))
    ours = cross_entropy(x, y, logit_bias=np.log(n / n.sum())).loss
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_margin_and_scale_are_am_softmax():
    cosine, y, m, s = np.tanh(numbers(6, 4)), np.arange(6) % 4, 0.35, 30.0
    one_hot = np.eye(4)[y]
    theirs = F.cross_entropy(torch.from_numpy(s * (cosine - m * one_hot)), torch.from_numpy(y))
    np.testing.assert_allclose(cross_entropy(cosine, y, margin=m, temperature=1 / s).loss, theirs, rtol=1e-13)


# --- extreme inputs ---------------------------------------------------------------------------------------------------

EXTREME = np.array(
    [
        [60.0, 0.0, 0.0],
        [1e4, 0.0, -1e4],
        [-1e4, 0.0, 1e4],
        [1.0, -INF, 0.0],
        [1.0, -INF, -INF],
        [0.0, 0.0, 0.0],
        [37.0, 36.0, -300.0],
    ]
)


@by_penalty
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.1},
        {"softcap": 30.0},
        {"z_loss": 1e-4},
        {"margin": 5.0},
        {"logit_bias": [0.0, -INF, 0.0]},
        {"class_mask": [True, False, True]},
    ],
)
def test_extreme_logits_have_finite_gradients(name, options):
    target, smoothed = np.zeros(7, int), np.array([[0.8, 0.0, 0.2]] * 4 + [[1.0, 0.0, 0.0]] + [[0.8, 0.0, 0.2]] * 2)
    for t in (target, smoothed):
        loss, grad, _ = cross_entropy(EXTREME, t, reduction="none", penalty=PENALTIES[name], **options)
        assert np.isfinite(loss).all()
        assert np.isfinite(grad).all()
    if "softcap" not in options:
        assert (grad[3:5, 1] == 0).all()


@by_penalty
@pytest.mark.parametrize("margin", [1.0, 10.0, 20.0, 40.0, 300.0])
@pytest.mark.parametrize("smoothed", [False, True])
def test_confident_rows_in_many_digits(name, margin, smoothed):
    """Rows that are sure keep their relative accuracy, loss and every gradient, right or wrong."""
    t = [[0.6, 0.4], [0.4, 0.6]] if smoothed else [[1.0, 0.0], [0.0, 1.0]]
    got = cross_entropy([[margin, 0.0]] * 2, np.array(t), reduction="none", penalty=PENALTIES[name])
    formula = TOLD[name].formula
    for i, row in enumerate(t):
        with mpmath.workdps(300):

            def loss(x, row=row):
                both = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
                return sum(w * formula(p, mpmath.log) for w, p in zip(row, both, strict=True) if w)

            value, slope = loss(mpmath.mpf(margin)), mpmath.diff(loss, mpmath.mpf(margin), h=mpmath.mpf(10) ** -120)
        np.testing.assert_allclose(got.loss[i], float(value), rtol=1e-13)
        np.testing.assert_allclose(got.grad[i], [float(slope), -float(slope)], rtol=1e-12)


def test_focal_with_weights_keeps_p():
    """A class weight multiplies the loss; it is no power of the probability."""
    c = np.array([5.0, 1.0, 1.0])
    loss = cross_entropy(HAND, 0, c, reduction="sum", penalty=reference.focal(2.0)).loss
    np.testing.assert_allclose(loss, 5 * 0.9**2 * -np.log(0.1), rtol=1e-14)


def test_half_focal_where_subtraction_gives_nan():
    x, t = np.array([18.0, 40.0, 800.0, INF]), np.ones(4)
    _, theirs = autograd(lambda x: torchvision_focal(x.float(), torch.ones(4), -1, 0.5), x)
    assert np.isnan(theirs).all()
    got = reference.sigmoid_focal_loss(x, t, None, 0.5)
    u = reference.sigmoid(-x)
    np.testing.assert_allclose(got.loss, u**1.5, rtol=1e-7)  # to first order in u = 1 - p
    np.testing.assert_allclose(got.grad, -1.5 * u**1.5, rtol=1e-7)


@pytest.mark.parametrize("option", OPTIONS)
def test_ignored_rows_may_hold_anything(option):
    options = OPTIONS[option] | {"weight": shares(5), "label_smoothing": 0.0 if option == "impossible class" else 0.1}
    x, y = numbers(4, 5), np.array([0, 1, -100, 3])
    for kind in ("none", "sum", "mean"):
        expected = cross_entropy(x, y, reduction=kind, **options)
        for garbage in (np.nan, INF, -INF, 1e300):
            spoilt = x.copy()
            spoilt[2] = garbage
            changed = {}
            for name in ("logit_bias", "class_mask"):
                if np.shape(options.get(name)) == (4, 5):
                    changed[name] = np.array(options[name])
                    changed[name][2] = False if name == "class_mask" else garbage
            got = cross_entropy(spoilt, y, reduction=kind, **options | changed)
            assert_same(got, expected, 0)
            assert (got.grad[2] == 0).all()


WEIGHTLESS = {
    "cross_entropy": (cross_entropy, lambda: np.array([0, 1, 2, 3, 4, 0])),
    "probabilities": (cross_entropy, lambda: shares(6, 5)),
    "statistics": (reference.cross_entropy_stats, lambda: np.array([0, 1, 2, 3, 4, 0])),
    "multilabel": (reference.multilabel_cross_entropy, lambda: np.round(shares(6, 5) * 0.9) + np.eye(6, 5)),
    "distillation": (reference.distillation_loss, lambda: numbers(6, 5, seed=3)),
    "reverse distillation": (
        lambda *a, **o: reference.distillation_loss(*a, reverse=True, z_loss=0.1, **o),
        lambda: numbers(6, 5, seed=3),
    ),
    "binary": (reference.binary_cross_entropy_with_logits, lambda: shares(6, 5)),
    "sigmoid focal": (reference.sigmoid_focal_loss, lambda: shares(6, 5)),
}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("garbage", [np.nan, INF, -INF])
@pytest.mark.parametrize("member", WEIGHTLESS)
def test_rows_whose_sample_weight_is_0_are_not_there(member, garbage, reduction):
    loss, target = WEIGHTLESS[member]
    x, y, u = numbers(6, 5), target(), np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.0])
    few = loss(x[u > 0], y[u > 0], sample_weight=u[u > 0], reduction=reduction)
    x[1], x[4, :2], x[4, 2:] = garbage, 0.5, garbage
    got = loss(x, y, sample_weight=u, reduction=reduction)
    np.testing.assert_allclose(got.loss, few.loss, rtol=1e-14)
    if hasattr(got, "grad"):
        np.testing.assert_allclose(got.grad[u > 0], few.grad, rtol=1e-13)
        assert (got.grad[u == 0] == 0).all()


def test_a_mean_of_nothing():
    for options in OPTIONS.values():
        nothing = cross_entropy(numbers(4, 5), [-100] * 4, **options)
        assert np.isnan(nothing.loss)
        assert (nothing.grad == 0).all()
        assert cross_entropy(numbers(4, 5), [-100] * 4, empty="zero", **options).loss == 0
    none = cross_entropy(np.zeros((3, 0)), np.zeros((3, 0)), reduction="none", z_loss=1.0, penalty=reference.mae())
    assert (none.loss == 0).all()


# --- the sigmoid family -----------------------------------------------------------------------------------------------

BINARY = {
    **{name: {"penalty": penalty} for name, penalty in PENALTIES.items()},
    "asymmetric": {"penalty": reference.asymmetric(0.5, 3.0, 0.05)},
    "asymmetric, not clipped": {"penalty": reference.asymmetric(0.0, 1.0, 0.0)},
    "asymmetric, only clipped": {"penalty": reference.asymmetric(0.0, 0.0, 0.3)},
    "smoothed": {"label_smoothing": 0.2},
    "masked": {"mask": shares(4, 5, seed=9) < 0.6},
    "masked rows": {"mask": np.array([[True], [False], [True], [True]])},
    "ignored": {"ignore_index": -1},
    "along dim": {"dim": 0, "pos_weight": 3 * shares(4)},
    "everything": {
        "label_smoothing": 0.1,
        "mask": shares(4, 5, seed=9) < 0.6,
        "ignore_index": -1,
        "weight": shares(5),
        "dim": 1,
        "pos_weight": 3 * shares(5),
        "penalty": reference.asymmetric(),
        "sample_weight": shares(4),
    },
}


@pytest.mark.parametrize("option", BINARY)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_binary_gradient_of_every_option(option, reduction):
    options, x, t = BINARY[option], numbers(4, 5), shares(4, 5)
    t[0, 1:3] = -1 if "ignore_index" in options else t[0, 1:3]
    loss = reference.binary_cross_entropy_with_logits
    got = loss(x, t, reduction=reduction, **options)
    assert_slope(got.grad, lambda x: loss(x, t, reduction=reduction, **options).loss, x)
    counted = t != -1
    there = loss(x, t + 1e-5 * counted, reduction=reduction, **options).loss
    back = loss(x, t - 1e-5 * counted, reduction=reduction, **options).loss
    np.testing.assert_allclose((got.target_grad * counted).sum(), np.sum(there - back) / 2e-5, rtol=1e-7)
    each = loss(x, t, reduction="none", **options)
    bumped = loss(x, t + 1e-5 * counted, reduction="none", **options).loss
    np.testing.assert_allclose(each.target_grad * counted, (bumped - each.loss) / 1e-5, rtol=1e-6, atol=1e-8)


@by_penalty
def test_binary_penalties_are_those_of_softmax_over_x_and_zero(name):
    x, t = np.array([-300.0, -30.0, -1.0, 0.0, 2.0, 50.0]), np.array([0.0, 1.0, 0.3, 1.0, 0.9, 1.0])
    pair, both = np.stack([x, np.zeros(6)], 1), np.stack([t, 1 - t], 1)
    softmax = cross_entropy(pair, both, reduction="none", penalty=PENALTIES[name], label_smoothing=0.1)
    binary = reference.binary_cross_entropy_with_logits(
        x, t, reduction="none", penalty=PENALTIES[name], label_smoothing=0.1
    )
    np.testing.assert_allclose(binary.loss, softmax.loss, rtol=1e-14)
    np.testing.assert_allclose(binary.grad, softmax.grad[:, 0], rtol=1e-12)


def test_binary_leaves_out_what_does_not_count():
    x, t, w = numbers(4, 5), np.round(shares(4, 5)), shares(4, 5, seed=4)
    mask = shares(4, 5, seed=9) < 0.6
    settings = {"weight": w, "label_smoothing": 0.1}
    kept = reference.binary_cross_entropy_with_logits(x[mask], t[mask], w[mask], label_smoothing=0.1)
    ignored, upper = np.where(mask, t, 255), np.arange(4)[:, None] < 2
    x[~mask] = np.nan
    for got in (
        reference.binary_cross_entropy_with_logits(x, t, mask=mask, **settings),
        reference.binary_cross_entropy_with_logits(x, ignored, ignore_index=255, **settings),
        reference.binary_cross_entropy_with_logits(
            x, np.where(upper, ignored, t), ignore_index=255, mask=mask | upper, **settings
        ),
    ):
        np.testing.assert_allclose(got.loss, kept.loss, rtol=1e-14)
        np.testing.assert_allclose(got.grad[mask], kept.grad, rtol=1e-14)
        assert (got.grad[~mask] == 0).all()
        assert (got.target_grad[~mask] == 0).all()
    nothing = reference.binary_cross_entropy_with_logits(x, t, mask=False)
    assert np.isnan(nothing.loss)
    assert (nothing.grad == 0).all()
    assert reference.binary_cross_entropy_with_logits(x, t, mask=False, empty="zero").loss == 0


def test_pos_weight_along_the_class_axis():
    x, t, pi = numbers(2, 3, 4, 3), shares(2, 3, 4, 3), np.array([1.0, 2.0, 5.0])
    bound = reference.binary_cross_entropy_with_logits(x, t, pos_weight=pi, dim=1)
    by_hand = reference.binary_cross_entropy_with_logits(x, t, pos_weight=pi[:, None, None])
    trailing = reference.binary_cross_entropy_with_logits(x, t, pos_weight=pi)
    assert_same(bound, by_hand, 0)
    assert_same(reference.binary_cross_entropy_with_logits(x, t, pos_weight=pi, dim=-1), trailing, 0)
    assert abs(bound.loss - trailing.loss) > 1e-3


def test_conventions_of_smoothing():
    x, y, e = numbers(6, 4), np.round(shares(6, 4)), 0.1
    loss = reference.binary_cross_entropy_with_logits
    keras = loss(x, y * (1 - e) + 0.5 * e).loss
    np.testing.assert_allclose(loss(x, y, label_smoothing=e).loss, keras, rtol=1e-14)
    smp = loss(x, (1 - y) * e + y * (1 - e)).loss
    np.testing.assert_allclose(loss(x, y, label_smoothing=2 * e).loss, smp, rtol=1e-14)
    timm = loss(x, np.where(y == 1, 1 - e + e / 4, e / 4)).loss
    np.testing.assert_allclose(loss(x, reference.smooth(y, e)).loss, timm, rtol=1e-14)


def torchvision_focal(inputs, targets, alpha, gamma):
    p = torch.sigmoid(inputs)
    ce_loss = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = ce_loss * ((1 - p_t) ** gamma)
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss


@pytest.mark.parametrize("alpha", [0.25, 0.0, 1.0, -1])
def test_torchvisions_sigmoid_focal(alpha):
    x, t = numbers(6, 4), np.round(shares(6, 4))
    loss, grad = autograd(lambda x: torchvision_focal(x, torch.from_numpy(t), alpha, 2.0), x)
    ours = reference.sigmoid_focal_loss(x, t, alpha)
    np.testing.assert_allclose(ours.loss, loss, rtol=1e-12)
    np.testing.assert_allclose(ours.grad, grad, rtol=1e-11)
    if 0 <= alpha < 1:
        weighted = reference.binary_cross_entropy_with_logits(
            x, t, np.array(1 - alpha), "none", np.array(alpha / (1 - alpha)), penalty=reference.focal(2.0)
        )
        assert_same(ours, weighted)


def asymmetric_loss(x, y, gamma_neg, gamma_pos, clip, eps=1e-30):
    """The authors' code (and timm's), element by element."""
    xs_pos = torch.sigmoid(x)
    xs_neg = 1 - xs_pos
    if clip > 0:
        xs_neg = (xs_neg + clip).clamp(max=1)
    loss = y * torch.log(xs_pos.clamp(min=eps)) + (1 - y) * torch.log(xs_neg.clamp(min=eps))
    pt = xs_pos * y + xs_neg * (1 - y)
    return -loss * torch.pow(1 - pt, gamma_pos * y + gamma_neg * (1 - y))


@pytest.mark.parametrize(("gamma_pos", "gamma_neg", "clip"), [(1, 4, 0.05), (0, 4, 0.05), (2, 2, 0.0), (1, 1, 0.2)])
def test_the_authors_asymmetric_loss(gamma_pos, gamma_neg, clip):
    x, y = numbers(8, 5, scale=3), np.round(shares(8, 5))
    loss, grad = autograd(lambda x: asymmetric_loss(x, torch.from_numpy(y), gamma_neg, gamma_pos, clip), x)
    penalty = reference.asymmetric(gamma_pos, gamma_neg, clip)
    ours = reference.binary_cross_entropy_with_logits(x, y, reduction="none", penalty=penalty)
    np.testing.assert_allclose(ours.loss, loss, rtol=1e-10, atol=1e-16)
    np.testing.assert_allclose(ours.grad, grad, rtol=1e-9, atol=1e-14)


def test_asymmetric_by_hand():
    x = np.log([0.8 / 0.2, 0.8 / 0.2, 0.04 / 0.96, 1.0])
    penalty = reference.asymmetric(1.0, 2.0, 0.05)
    loss = reference.binary_cross_entropy_with_logits(x, [1.0, 0.0, 0.0, 0.0], reduction="none", penalty=penalty)
    by_hand = [0.2 * -np.log(0.8), 0.75**2 * -np.log(0.25), 0.0, 0.45**2 * -np.log(0.55)]
    np.testing.assert_allclose(loss.loss, by_hand, rtol=1e-13, atol=1e-16)
    assert loss.grad[2] == 0
    symmetric = reference.binary_cross_entropy_with_logits(x, np.ones(4) / 3, penalty=reference.asymmetric(2.0, 2.0, 0))
    assert_same(
        symmetric, reference.binary_cross_entropy_with_logits(x, np.ones(4) / 3, penalty=reference.focal(2.0)), 0
    )


@pytest.mark.parametrize("option", BINARY)
def test_extreme_binary_logits(option):
    x = np.array([[INF, -INF, 1e4, -1e4, 40.0]] * 4)
    t = np.array([[1.0, 0.0, 0.0, 1.0, 1.0]] * 4)
    smoothed = "label_smoothing" in BINARY[option]
    got = reference.binary_cross_entropy_with_logits(x, t, reduction="none", **BINARY[option])
    assert np.isfinite(got.grad).all()
    assert np.isfinite(got.loss[:, 2:]).all()
    assert smoothed or (got.loss[:, :2] == 0).all()


# --- named members ----------------------------------------------------------------------------------------------------


def test_focal_loss_is_a_penalty():
    x, y, c = numbers(6, 4), np.arange(6) % 4, shares(4)
    assert_same(reference.focal_loss(x, y, 0.0, c), cross_entropy(x, y, c))
    theirs = reference.focal_loss(x, y, 2.0, c, reduction="none").loss
    p = reference.softmax(x)[np.arange(6), y]
    np.testing.assert_allclose(theirs, c[y] * (1 - p) ** 2 * -np.log(p), rtol=1e-13)


def test_optax_poly_loss():
    x, labels = numbers(6, 4), shares(6, 4)
    p = reference.softmax(x)
    theirs = -(labels * np.log(p)).sum(-1) + 2.0 * (labels * (1 - p)).sum(-1)
    np.testing.assert_allclose(cross_entropy(x, labels, reduction="none", penalty=reference.poly1(2.0)).loss, theirs)


def test_multilabel_by_hand():
    x = np.stack([HAND, HAND, HAND])
    loss, grad, _ = reference.multilabel_cross_entropy(x, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(loss, (-(np.log(0.1) + np.log(0.2)) / 2 - np.log(0.7)) / 2, rtol=1e-14)
    np.testing.assert_allclose(grad * 2, [[-0.4, 0.7, -0.3], [0, 0, 0], [0.1, -0.3, 0.2]], rtol=1e-13)


def test_multilabel_rows_without_labels_are_not_there():
    x, labels = numbers(6, 5), np.round(shares(6, 5) * 0.9)
    labels[[1, 4]] = 0
    labels[0, 0] = 1
    keep = labels.any(1)
    u = shares(6, seed=5)
    options = {"weight": shares(5), "label_smoothing": 0.2, "z_loss": 0.1, "penalty": reference.focal(1.0)}
    few = reference.multilabel_cross_entropy(x[keep], labels[keep], sample_weight=u[keep], **options)
    x[1], x[4] = np.nan, INF
    all_rows = reference.multilabel_cross_entropy(x, labels, sample_weight=u, **options)
    np.testing.assert_allclose(all_rows.loss, few.loss, rtol=1e-14)
    np.testing.assert_allclose(all_rows.grad[keep], few.grad, rtol=1e-14)
    np.testing.assert_allclose(all_rows.target_grad[keep], few.target_grad, rtol=1e-12)
    assert (all_rows.grad[~keep] == 0).all()
    assert (all_rows.target_grad[~keep] == 0).all()
    nobody = reference.multilabel_cross_entropy(x, np.zeros((6, 5)))
    assert np.isnan(nobody.loss)
    assert (nobody.grad == 0).all()
    assert reference.multilabel_cross_entropy(x, np.zeros((6, 5)), empty="zero").loss == 0


def test_multilabel_is_cross_entropy_of_shares():
    x, labels = numbers(2, 5, 3), shares(2, 5, 3)
    ours = reference.multilabel_cross_entropy(x, labels, label_smoothing=0.1, margin=0.5)
    t = labels / labels.sum(1, keepdims=True)
    assert_same(ours, cross_entropy(x, t, label_smoothing=0.1, margin=0.5))
    assert_slope(
        ours.target_grad,
        lambda v: reference.multilabel_cross_entropy(x, v, label_smoothing=0.1, margin=0.5).loss,
        labels,
    )
    one = reference.multi_hot([[2], [0], [4]], 5)
    assert_same(reference.multilabel_cross_entropy(x[0].T, one), cross_entropy(x[0].T, [2, 0, 4]))


def test_multi_hot():
    np.testing.assert_array_equal(reference.multi_hot([[], [1, 1], range(3)], 3), [[0, 0, 0], [0, 1, 0], [1, 1, 1]])
    assert reference.multi_hot([], 4).shape == (0, 4)
    with pytest.raises(IndexError, match=r"\[0, 3\)"):
        reference.multi_hot([[3]], 3)


def torch_distillation(student, teacher, temperature):
    p, q = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return F.kl_div(p, q, reduction="batchmean", log_target=True) * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_torchs_kl_div(temperature):
    student, teacher = numbers(6, 4), numbers(6, 4, seed=1)
    loss, grad, teacher_grad = autograd(lambda x, z: torch_distillation(x, z, temperature), student, teacher)
    ours = reference.distillation_loss(student, teacher, temperature)
    np.testing.assert_allclose(ours.loss, loss, rtol=1e-12)
    np.testing.assert_allclose(ours.grad, grad, rtol=1e-11)
    np.testing.assert_allclose(ours.target_grad, teacher_grad, rtol=1e-11)


def test_distillation_of_one_hot_is_cross_entropy():
    x, y = numbers(6, 4), np.arange(6) % 4
    for certain in (INF, 1e4):
        teacher = np.where(np.eye(4)[y] == 1, 0.0, -certain)
        assert_same(reference.distillation_loss(x, teacher), cross_entropy(x, y))
        hot = cross_entropy(x, y, temperature=3.0)
        expected = hot._replace(loss=9 * hot.loss, grad=9 * hot.grad)
        assert_same(reference.distillation_loss(x, teacher, 3.0), expected)


def test_distillation_mixes_a_hard_part():
    x, z, y, c = numbers(4, 5), numbers(4, 5, seed=1), np.array([0, 1, -100, 3]), shares(5)
    options = {"weight": c, "label_smoothing": 0.1, "sample_weight": shares(4)}
    hard = cross_entropy(x, y, **options)
    soft = reference.distillation_loss(x[y >= 0], z[y >= 0], 2.0, sample_weight=shares(4)[y >= 0])
    mixed = reference.distillation_loss(x, z, 2.0, y, 0.7, **options)
    np.testing.assert_allclose(mixed.loss, 0.7 * soft.loss + 0.3 * hard.loss, rtol=1e-13)
    np.testing.assert_allclose(mixed.grad[y >= 0], 0.7 * soft.grad + 0.3 * hard.grad[y >= 0], rtol=1e-12)
    assert_same(reference.distillation_loss(x, z, 2.0, y, 0.0, **options), hard)
    x[2], z[2] = np.nan, INF
    assert_same(reference.distillation_loss(x, z, 2.0, y, 0.7, **options), mixed, 0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("target", [None, np.array([[0, 1], [4, -100]]), shares(2, 5, 2)])
def test_gradient_of_distillation(reduction, target):
    x, z = numbers(2, 5, 2), numbers(2, 5, 2, seed=1)
    options = {"reduction": reduction, "sample_weight": shares(2, 2)}
    got = reference.distillation_loss(x, z, 2.0, target, 0.7, **options)
    assert_slope(got.grad, lambda x: reference.distillation_loss(x, z, 2.0, target, 0.7, **options).loss, x)
    assert_slope(got.target_grad, lambda z: reference.distillation_loss(x, z, 2.0, target, 0.7, **options).loss, z)


def test_distillation_at_its_limits():
    x, z = numbers(6, 4), numbers(6, 4, seed=1)
    same = reference.distillation_loss(x, x, 2.0)
    assert same.loss == 0
    assert (same.grad == 0).all()
    # hot: the student's logits are pulled towards the teacher's, both without their means
    hot = reference.distillation_loss(x, z, 1e6, reduction="sum").grad
    centred = (x - x.mean(1, keepdims=True)) - (z - z.mean(1, keepdims=True))
    np.testing.assert_allclose(hot, centred / 4, rtol=1e-5)
    # classes that both find impossible
    x[:, 1] = z[:, 1] = -INF
    without = reference.distillation_loss(np.delete(x, 1, 1), np.delete(z, 1, 1))
    got = reference.distillation_loss(x, z)
    np.testing.assert_allclose(got.loss, without.loss, rtol=1e-14)
    assert (got.grad[:, 1] == 0).all()
    # both sure: the difference of two numbers next to 1 is not what is computed
    sure = reference.distillation_loss([[40.0, 0.0]], [[41.0, 0.0]])
    p, q = np.exp(-40.0), np.exp(-41.0)
    np.testing.assert_allclose(sure.grad, [[q - p, p - q]], rtol=1e-12)
    np.testing.assert_allclose(sure.loss, p - q - q, rtol=1e-12)  # p φ(q/p) with φ(r) = r log r - r + 1, log r = -1
    far = reference.distillation_loss([[800.0, 0.0], [1e4, 0.0]], [[0.0, 800.0], [0.0, 1e4]])
    assert np.isfinite(far.loss)
    assert np.isfinite(far.grad).all()


def open_clip_loss(image, text, scale):
    logits = scale * image @ text.T
    labels = torch.arange(len(image))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def test_contrastive_is_clips():
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (numbers(6, 3), numbers(6, 3, seed=1)))
    ours = reference.contrastive_cross_entropy(a, b, 14.3)
    for mine, theirs in zip(ours, autograd(open_clip_loss, a, b, np.array(14.3)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11)
    other_way = reference.contrastive_cross_entropy(b, a, 14.3)
    np.testing.assert_allclose(other_way.loss, ours.loss, rtol=1e-14)
    np.testing.assert_allclose(other_way.b_grad, ours.a_grad, rtol=1e-12)


def test_contrastive_over_machines():
    a, b = numbers(6, 3), numbers(6, 3, seed=1)
    whole = reference.contrastive_cross_entropy(a, b, 2.0)
    halves = [
        reference.contrastive_cross_entropy(mine[i : i + 3], everybodys, 2.0, offset=i)
        for i in (0, 3)
        for mine, everybodys in ((a, b), (b, a))
    ]
    np.testing.assert_allclose(np.mean([h.loss for h in halves]), whole.loss, rtol=1e-13)
    own, others = np.concatenate([halves[0].a_grad, halves[2].a_grad]), halves[1].b_grad + halves[3].b_grad
    np.testing.assert_allclose((own + others) / 4, whole.a_grad, rtol=1e-12)
    shard = halves[2]
    assert_slope(shard.a_grad, lambda v: reference.contrastive_cross_entropy(v, b, 2.0, 3).loss, a[3:])
    assert_slope(shard.b_grad, lambda v: reference.contrastive_cross_entropy(a[3:], v, 2.0, 3).loss, b)
    assert_slope(shard.scale_grad, lambda s: reference.contrastive_cross_entropy(a[3:], b, s, 3).loss, 2.0)
    with pytest.raises(IndexError):
        reference.contrastive_cross_entropy(a[:3], b, 2.0, offset=4)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_statistics_by_hand():
    x, y = np.stack([HAND, HAND + 3, HAND, HAND]), np.array([0, 1, -100, 2])
    c = np.array([2.0, 1.0, 4.0])
    stats = reference.cross_entropy_stats(x, y, c, sample_weight=[1.0, 2.0, 5.0, 1.0])
    entropy = -(0.1 * np.log(0.1) + 0.7 * np.log(0.7) + 0.2 * np.log(0.2))
    np.testing.assert_allclose(stats.loss, [-2 * np.log(0.1), -2 * np.log(0.7), 0, -4 * np.log(0.2)], rtol=1e-14)
    np.testing.assert_allclose(stats.lse, [0, 3, 0, 0], atol=1e-15)
    np.testing.assert_allclose(stats.target_log_prob, [np.log(0.1), np.log(0.7), 0, np.log(0.2)], rtol=1e-14)
    np.testing.assert_allclose(stats.entropy, [entropy, entropy, 0, entropy], rtol=1e-14)
    np.testing.assert_array_equal(stats.correct, [False, True, False, False])
    np.testing.assert_array_equal(stats.count, [1, 1, 0, 1])
    np.testing.assert_array_equal(stats.weight_sum, [2, 2, 0, 4])
    np.testing.assert_array_equal(stats.predicted, [1, 1, -100, 1])
    total = reference.cross_entropy_stats(x, y, c, reduction="sum", sample_weight=[1.0, 2.0, 5.0, 1.0])
    for each, one in zip(stats[:7], total[:7], strict=True):
        np.testing.assert_allclose(one, each.sum(), rtol=1e-14)
    assert total.predicted == -100
    mean = reference.cross_entropy_stats(x, y, c, reduction="mean", sample_weight=[1.0, 2.0, 5.0, 1.0])
    np.testing.assert_allclose(mean.loss, total.loss / 8, rtol=1e-14)
    np.testing.assert_allclose(
        mean[1:5], [1.0, total.target_log_prob / 3, entropy, 1 / 3], rtol=1e-14, err_msg="divided by the count"
    )
    assert (mean.count, mean.weight_sum) == (3, 8)


def test_statistics_see_what_the_loss_sees():
    x, t = numbers(4, 5), shares(4, 5)
    options = {"temperature": 2.0, "logit_bias": numbers(5, seed=3), "margin": 0.3, "softcap": 4.0}
    stats = reference.cross_entropy_stats(x, t, label_smoothing=0.2, penalty=reference.mae(), z_loss=0.1, **options)
    expected = cross_entropy(
        x, t, reduction="none", label_smoothing=0.2, penalty=reference.mae(), z_loss=0.1, **options
    )
    np.testing.assert_array_equal(stats.loss, expected.loss)
    z = (4 * np.tanh(x / 4) + options["logit_bias"] - 0.3 * t) / 2
    p = reference.softmax(z)
    np.testing.assert_allclose(stats.lse, torch.logsumexp(torch.from_numpy(z), 1), rtol=1e-13)
    np.testing.assert_allclose(stats.target_log_prob, (t * np.log(p)).sum(1), rtol=1e-13)
    np.testing.assert_allclose(stats.entropy, -(p * np.log(p)).sum(1), rtol=1e-13)
    np.testing.assert_array_equal(stats.correct, z.argmax(1) == t.argmax(1))


def test_who_is_correct():
    def correct(x, target, **options):
        return reference.cross_entropy_stats(x, target, **options).correct.tolist()

    assert correct([[1.0, 1.0]] * 2, [0, 1]) == [True, False]  # the first of equals is the answer
    assert correct([[1.0, 0.0]] * 2, [0, 0], margin=0.5) == [True, True]
    assert correct([[1.0, 0.0]] * 2, [0, 0], margin=1.5) == [False, False]
    assert correct([[5.0, 1.0, 0.0]] * 2, [1, 2], class_mask=[False, True, True]) == [True, False]
    assert correct([[1.0, 0.0]] * 3, np.array([[0.6, 0.4], [0.4, 0.6], [0.0, 0.0]])) == [True, False, False]
    assert correct([[np.nan, 0.0], [0.0, 1.0]], [0, 1]) == [False, True]


def test_entropy_of_impossible_and_certain_classes():
    x = [[0.0, -INF, 0.0], [1e4, 0.0, 0.0], [50.0, 0.0, -INF]]
    stats = reference.cross_entropy_stats(x, [0, 0, 0])
    np.testing.assert_allclose(stats.entropy, [np.log(2), 0, 51 * np.exp(-50.0)], rtol=1e-12)


@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_of_statistics(option):
    options = {k: v for k, v in OPTIONS[option].items() if k not in ("penalty", "z_loss")}
    x = numbers(4, 5)
    for target in (np.array([0, 1, -100, 3]), shares(4, 5)):
        if target.ndim == 2:
            target = target * options.get("class_mask", True) * (options.get("logit_bias", np.zeros(5)) > -INF)
        grads = reference.cross_entropy_stats_gradients(x, target, **options)
        for name, grad in grads._asdict().items():
            assert_slope(grad, lambda x: getattr(reference.cross_entropy_stats(x, target, **options), name), x)  # noqa: B023


def test_totals_add_up_and_means_do_not():
    x, y, c = numbers(12, 5), np.arange(12) % 5, shares(5)
    y[[0, 1, 2, 4]] = -100
    batches = [slice(0, 5), slice(5, 12)]
    parts = [reference.cross_entropy_stats(x[b], y[b], c, reduction="sum") for b in batches]
    whole = cross_entropy(x, y, c)
    np.testing.assert_allclose(sum(p.loss for p in parts) / sum(p.weight_sum for p in parts), whole.loss, rtol=1e-14)
    mean_of_means = np.mean([cross_entropy(x[b], y[b], c).loss for b in batches])
    assert abs(mean_of_means - whole.loss) > 0.05
    denominator = sum(p.weight_sum for p in parts)
    grads = [cross_entropy(x[b], y[b], c, denominator=denominator).grad for b in batches]
    np.testing.assert_allclose(np.concatenate(grads), whole.grad, rtol=1e-13)


def test_statistics_of_nothing():
    for empty, expected in (("nan", np.nan), ("zero", 0.0)):
        stats = reference.cross_entropy_stats(numbers(3, 5), [-100] * 3, reduction="mean", empty=empty)
        np.testing.assert_array_equal(stats[:5], [expected] * 5)
        assert (stats.count, stats.weight_sum) == (0, 0)
    *values, predicted = reference.cross_entropy_stats(np.full((3, 5), np.nan), [-100] * 3)
    for value in values:
        assert (value == 0).all()
    assert (predicted == -100).all()


# --- helpers ----------------------------------------------------------------------------------------------------------


def test_balanced_weights_are_scikit_learns():
    y = np.repeat(np.arange(4), [70, 20, 9, 1])
    counts = np.bincount(y)
    ours = reference.class_weights(counts)
    np.testing.assert_allclose(ours, compute_class_weight("balanced", classes=np.arange(4), y=y), rtol=1e-14)
    np.testing.assert_allclose((ours * counts).sum(), counts.sum(), rtol=1e-14)
    np.testing.assert_allclose(reference.class_weights(np.insert(counts, 2, 0)), np.insert(ours, 2, 0), rtol=1e-14)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_effective_weights_are_the_authors(beta):
    counts = np.array([5000, 300, 20, 1])
    effective = 1.0 - np.power(beta, counts)
    weights = (1.0 - beta) / effective
    theirs = weights / np.sum(weights) * 4
    np.testing.assert_allclose(reference.class_weights(counts, "effective", beta), theirs, rtol=1e-11)
    with_nobody = reference.class_weights(np.insert(counts, 2, 0), "effective", beta)
    np.testing.assert_allclose(with_nobody, np.insert(theirs, 2, 0), rtol=1e-11)


def test_effective_weights_go_from_equal_to_inverse():
    counts = np.array([5000, 300, 20, 1])
    np.testing.assert_allclose(reference.class_weights(counts, "effective", 0.0), np.ones(4), rtol=1e-14)
    inverse = 1 / counts / (1 / counts).sum() * 4
    np.testing.assert_allclose(reference.class_weights(counts, "effective", 1 - 1e-12), inverse, rtol=1e-6)
    with pytest.raises(ValueError, match="'balanced' or 'effective', got 'sqrt'"):
        reference.class_weights(counts, "sqrt")


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_floors(num_classes):
    uniform = cross_entropy(np.zeros(num_classes), 0).loss
    np.testing.assert_allclose(reference.expected_initial_loss(num_classes), uniform, rtol=1e-14)
    twice = cross_entropy(np.eye(num_classes)[0], 0).loss  # probabilities as logits, at their best
    np.testing.assert_allclose(reference.double_softmax_floor(num_classes), twice, rtol=1e-12)
    np.testing.assert_allclose(reference.prior_entropy(np.ones(num_classes)), uniform, rtol=1e-14)


def test_prior_entropy_is_what_a_constant_answer_reaches():
    counts = np.array([70, 20, 0, 10])
    y = np.repeat(np.arange(4), counts)
    with np.errstate(divide="ignore"):
        constant = np.broadcast_to(np.log(counts / counts.sum()), (100, 4))
    loss, grad, _ = cross_entropy(constant, y)
    np.testing.assert_allclose(reference.prior_entropy(counts), loss, rtol=1e-14)
    np.testing.assert_allclose(grad.sum(0), 0, atol=1e-15)


def test_laws_of_the_identity():
    """Every member: shift invariance, ``Σ_k ∂L/∂x_k = 0``, permutation, one-hot = index, with any penalty."""
    x, y, c = numbers(6, 5), np.arange(6) % 5, shares(5)
    order = np.array([3, 0, 4, 1, 2])
    for (name, penalty), smoothing in itertools.product(PENALTIES.items(), (0.0, 0.2)):
        settings = {"penalty": penalty, "label_smoothing": smoothing, "reduction": "sum"}
        got = cross_entropy(x, y, c, **settings)
        np.testing.assert_allclose(got.grad.sum(1), 0, atol=1e-14, err_msg=name)
        assert_same(cross_entropy(x + 64, y, c, **settings), got, 1e-11)
        assert_same(cross_entropy(x, np.eye(5)[y], c, **settings), got, 1e-14)
        permuted = cross_entropy(x[:, order], np.argsort(order)[y], c[order], **settings)
        np.testing.assert_allclose(permuted.loss, got.loss, rtol=1e-14)
        np.testing.assert_allclose(permuted.grad, got.grad[:, order], rtol=1e-12)
