"""``crossent.explain``: its numbers against finite differences and torch, its target, and its plain data."""

from __future__ import annotations

import inspect
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import crossent
from crossent import reference
from crossent.tools.explain import loss_terms
from crossent.tools.explain.catalogue import ALIASES, DEFAULT, LOSSES
from crossent.tools.explain.row_target import read_target
from crossent.tools.train.catalogue import IMBALANCED_LOSSES

ASKED = np.log([0.1, 0.7, 0.2])


# --- the questions ----------------------------------------------------------------------------------------------------


def test_how_the_negatives_go_down():
    ce = crossent.explain(ASKED, 0)["ce"]
    np.testing.assert_allclose(ce.p, (0.1, 0.7, 0.2), rtol=1e-12)
    np.testing.assert_allclose(ce.gradient, (-0.9, 0.7, 0.2), rtol=1e-12)
    np.testing.assert_allclose(ce.p_after, (0.325, 0.459, 0.216), atol=5e-4)
    assert ce.push == ("up", "down", "down")
    assert abs(ce.gradient_sum) < 1e-15


def test_why_not_sigmoid_and_difference():
    e = crossent.explain([-6.0, 6.0, 0.0], 0, ("mnist", "bce"))
    assert [loss.name for loss in e.losses] == ["sigmoid-difference", "bce"]
    assert [round(loss.gradient[0], 4) for loss in e.losses] == [-0.0025, -0.9975]


def test_one_row_of_27_classes_costs_ln_27_before_training():
    e = crossent.explain(np.zeros(27), 5, "ce", prior=[90, 10] + 25 * [0])
    assert round(e["ce"].loss, 4) == round(e.references.ln_classes, 4) == 3.2958
    assert round(e.references.prior_entropy, 4) == 0.3251
    assert round(e.references.double_softmax_floor, 4) == 2.3575


# --- the numbers ------------------------------------------------------------------------------------------------------

TARGETS = {
    "index": 1,
    "last": 3,
    "several": {0, 2},
    "none": [],
    "soft": [0.1, 0.2, 0.3, 0.4],
    "heavy": [0.0, 2.5, 0.5, 0.0],
}


def cases():
    for name in LOSSES:
        for kind, target in TARGETS.items():
            understood = read_target(target, 4, "0123")
            if loss_terms.objection(LOSSES[name], np.zeros(4), understood) is None:
                yield pytest.param(name, target, id=f"{name}-{kind}")


@pytest.mark.parametrize(("name", "target"), list(cases()))
def test_terms_add_up_and_gradients_are_finite_differences(name, target):
    h = 1e-6
    for x in ([0.3, -0.2, 1.1, 0.0], [4.0, -3.0, 0.5, -7.0]):
        loss = crossent.explain(x, target, name)[name]
        np.testing.assert_allclose(sum(loss.terms), loss.loss, rtol=1e-13)
        for k in range(4):
            up, down = (crossent.explain(x + s * h * np.eye(4)[k], target, name)[name].loss for s in (1, -1))
            np.testing.assert_allclose(loss.gradient[k], (up - down) / (2 * h), rtol=1e-5, atol=1e-8)


def with_soft(loss):
    """Give a softmax loss its t: 1/M on each of M labels."""
    return lambda x, t: loss(x, t / t.sum() if set(t.tolist()) <= {0.0, 1.0} and t.any() else t)


def penalised(penalty):
    return with_soft(lambda x, t: crossent.cross_entropy(x, t, penalty=penalty))


def binary(**options):
    return lambda x, t: crossent.binary_cross_entropy_with_logits(x, t, reduction="sum", **options)


BY_TORCH = {
    "ce": with_soft(F.cross_entropy),
    "ce-smooth": with_soft(lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1)),
    "bce": lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="sum"),
    "sigmoid-difference": lambda x, t: torch.where(t == 1, 1 - x.sigmoid(), x.sigmoid()).sum(),
    "hinge": lambda x, t: F.multi_margin_loss(x, t.argmax()),
    "ce-after-softmax": with_soft(lambda x, t: F.cross_entropy(x.softmax(0), t)),
    "focal": penalised(crossent.Focal(2.0)),
    "gce": penalised(crossent.GCE(0.7)),
    "mae": penalised(crossent.MAE()),
    "sce": penalised(crossent.SCE(0.1, 1.0)),
    "poly1": penalised(crossent.Poly1(1.0)),
    "taylor": penalised(crossent.Taylor(2)),
    "sigmoid-focal": lambda x, t: crossent.sigmoid_focal_loss(x, t, reduction="sum"),
    "asymmetric": binary(penalty=crossent.Asymmetric()),
}


@pytest.mark.parametrize(("name", "target"), list(cases()))
def test_loss_and_gradient_are_those_of_torch(name, target):
    x = torch.tensor([4.0, -3.0, 0.5, -1.0], dtype=torch.float64, requires_grad=True)
    e = crossent.explain(x, target, name)
    theirs = BY_TORCH[name](x, torch.tensor(e.weights, dtype=torch.float64))
    (grad,) = torch.autograd.grad(theirs, x)
    np.testing.assert_allclose(e[name].loss, theirs.item(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(e[name].gradient, grad, rtol=1e-11, atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    x=st.lists(st.floats(-1e4, 1e4) | st.just(-math.inf), min_size=1, max_size=9).filter(lambda x: max(x) > -math.inf),
    data=st.data(),
    step=st.sampled_from([0.0, 0.1, 1.0, 1e9]),
)
def test_laws(x, data, step):
    target = data.draw(st.integers(0, len(x) - 1) | st.sets(st.integers(0, len(x) - 1)))
    e = crossent.explain(x, target, "all", step=step)
    for loss in e.losses:
        after = np.subtract(x, step * np.array(loss.gradient))
        np.testing.assert_array_equal(loss.logits_after, after)
        p_of = reference.sigmoid if loss.description.link == "sigmoid" else reference.softmax
        np.testing.assert_array_equal((loss.p, loss.p_after), (p_of(x), p_of(after)))
        assert len(loss.t) == len(loss.terms) == len(loss.gradient) == len(x)
        assert all(
            way == ("none", "down", "up")[int(np.sign(g))] for way, g in zip(loss.push, loss.gradient, strict=True)
        )
        if loss.description.link == "softmax":
            assert abs(loss.gradient_sum) < 1e-11  # what one class gains, the others lose
        assert loss.bits is None or not math.isfinite(loss.loss) or math.isclose(loss.bits * math.log(2), loss.loss)
    assert json.loads(e.to_json()) == e.to_dict()
    assert "nan" not in str(e)


def test_what_is_said_of_the_pull_is_so():
    """The catalogue's s(p), read off its words, is the pull on the true class over 1 - p."""
    said = {name: re.match(r"s\(p\) = (.*?):", description.why) for name, description in LOSSES.items()}
    read = {name: found[1] for name, found in said.items() if found}
    assert set(read) == {"focal", "gce", "mae", "sce", "poly1", "taylor"}
    for name, formula in read.items():
        code = formula.replace("−", "-").replace("^", "**").replace("²", "**2").replace("log p", "log(p)")
        code = re.sub(r"(?<=[\dp)]) ?(?=[p(l])", "*", code)  # 4p, and a product of brackets
        for p in (0.01, 0.4, 0.99):
            loss = crossent.explain(np.log([p, 1 - p]), 0, name)[name]
            assert math.isclose(-loss.gradient[0] / (1 - p), eval(code, {"p": p, "log": math.log}), rel_tol=1e-9)


def test_the_gradient_formula_counts_the_target():
    assert crossent.explain(ASKED, 0, "ce")["ce"].gradient_formula == "p − t"
    ce = crossent.explain(ASKED, [0.5, 2.5, 0.0], "ce")["ce"]
    assert ce.gradient_formula == "m · p − t with m = Σ t"
    np.testing.assert_allclose(ce.gradient, 3 * np.array(ce.p) - ce.t, rtol=1e-12)


def test_the_catalogue_is_complete_and_speaks_as_the_training_jobs_do():
    assert set(loss_terms.PENALTIES) < set(LOSSES)
    assert set(ALIASES.values()) <= set(LOSSES)
    assert not set(ALIASES) & set(LOSSES)
    assert set(DEFAULT) <= set(LOSSES) == set(BY_TORCH)
    assert LOSSES["focal"].about == IMBALANCED_LOSSES["focal"]
    for description in LOSSES.values():
        assert len(description.about) <= 56
        assert description.why.endswith(".")


# --- the arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "labels", "weights"),
    [
        (2, (2,), (0, 0, 1)),
        (2.0, (2,), (0, 0, 1)),
        (np.int16(1), (1,), (0, 1, 0)),
        (torch.tensor(1), (1,), (0, 1, 0)),
        (torch.tensor([1]), (1,), (0, 1, 0)),
        ("fish", (2,), (0, 0, 1)),
        ({"fish", "cat"}, (0, 2), (1, 0, 1)),
        ({0, 2}, (0, 2), (1, 0, 1)),
        ([2, 0], (0, 2), (1, 0, 1)),
        ({0, 1, 2}, (0, 1, 2), (1, 1, 1)),
        ([1, 0, 1], (0, 2), (1, 0, 1)),
        (np.array([True, False, True]), (0, 2), (1, 0, 1)),
        ([0.0, 0.0, 0.0], (), (0, 0, 0)),
        ([], (), (0, 0, 0)),
        (set(), (), (0, 0, 0)),
        ([0.0, 1.0, 0.0], (1,), (0, 1, 0)),
        ([0.25, 0.75, 0.0], None, (0.25, 0.75, 0)),
        ([0.0, 1.0, 2.0], None, (0, 1, 2)),
        (torch.tensor([0.25, 0.75, 0.0], dtype=torch.bfloat16), None, (0.25, 0.75, 0)),
    ],
)
def test_a_target_is_understood(target, labels, weights):
    e = crossent.explain(ASKED, target, class_names=["cat", "dog", "fish"])
    assert (e.labels, e.weights) == (labels, tuple(map(float, weights)))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (3, "target must lie in [0, 3), got 3: labels start at 0; if these start at 1, subtract 1"),
        (-1, "target must lie in [0, 3), got -1"),
        (-100, "got -100: an ignored row has no loss"),
        ([0, 1, 2], "target (0, 1, 2) has one entry a class and may be labels or weights: pass a set for labels"),
        ([0.5, 0.5], "one weight for each of the 3 classes, got (0.5, 0.5)"),
        ([0.5, -0.5, 1.0], "target weights must be finite and not negative, got (0.5, -0.5, 1.0)"),
        ([0.5, math.nan, 1.0], "target weights must be finite and not negative"),
        ([[1, 0, 0]], "target must belong to one row, got a nested list of length 1: pass target[i]"),
        ("horse", "target must name one class, and 'horse' is none of the classes (0, 1, 2)"),
        (0.5, "target must be a class index, a set of them, or one weight for each of the 3 classes, got (0.5)"),
        (math.inf, "target must be a class index"),
        (None, "target must be a class index"),
        (True, "target must be a class index"),
    ],
)
def test_a_target_that_is_unclear_is_refused(target, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        crossent.explain(ASKED, target)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"logits": [[1.0, 2.0]]}, "logits must be one row of shape (C,), got (1, 2): pass logits[i] and target[i]"),
        ({"logits": 1.0}, "logits must be one row of shape (C,), got ()"),
        ({"logits": []}, "logits must be one row of shape (C,), got (0,)"),
        ({"logits": ["a", "b"]}, "logits must be numbers, one a class, got ['a', 'b']"),
        ({"logits": [1.0, math.nan]}, "logits must be finite, or -inf for an impossible class, got nan for class 1"),
        ({"logits": [math.inf, 0.0]}, "got inf for class 0"),
        ({"logits": [-math.inf] * 2}, "got -inf for all: such a row has no softmax"),
        ({"losses": "mnsit"}, "no loss is called 'mnsit': did you mean 'mnist'? It must be one of ce, ce-smooth, bce"),
        ({"losses": ["square"]}, "no loss is called 'square': choose from ce, ce-smooth, bce"),
        ({"losses": ()}, "losses must name at least one loss"),
        ({"losses": " , "}, "losses must name at least one loss"),
        ({"losses": "hinge", "target": {0, 1}}, "hinge needs one label, got 2"),
        ({"losses": "hinge", "target": [0.2, 0.8]}, "hinge needs labels, not weights"),
        ({"losses": "hinge", "logits": [0.0, -math.inf]}, "hinge needs finite logits"),
        ({"losses": "mnist", "target": [0.2, 0.8]}, "sigmoid-difference needs labels, not weights"),
        ({"class_names": ["cat"]}, "class_names must hold one name for each of the 2 classes, got 1"),
        ({"class_names": "ab"}, "class_names must hold one name for each of the 2 classes, got 1"),
        ({"step": -1.0}, "step must be a finite number, not negative, got -1.0"),
        ({"step": math.inf}, "step must be a finite number, not negative, got inf"),
        ({"step": "1"}, "step must be a number, got builtins.str: '1'"),
        ({"prior": [1, 2, 3]}, "prior must hold how many examples or what share each of the 2 classes has"),
        ({"prior": [1, -1]}, "none negative and not all zero, got [1, -1]"),
        ({"prior": [0, 0]}, "none negative and not all zero, got [0, 0]"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        crossent.explain(**{"logits": [0.0, 1.0], "target": 0, **arguments})


def test_a_default_loss_that_cannot_take_the_row_is_left_out_and_said_so():
    e = crossent.explain(ASKED, [0.5, 0.5, 0.0])
    assert [loss.name for loss in e.losses] == ["ce", "ce-smooth", "bce", "ce-after-softmax"]
    assert e.notes == (
        "Left out: sigmoid-difference needs labels, not weights.", "Left out: hinge needs labels, not weights.",
    )  # fmt: skip
    assert all(note in str(e) and note in e._repr_html_() for note in e.notes)


@pytest.mark.parametrize(
    "logits",
    [
        [0.5, -1.0, 2.0],
        (0.5, -1, 2),
        np.array([0.5, -1.0, 2.0], np.float16),
        np.array([[0.5, 9.0], [-1.0, 9.0], [2.0, 9.0]])[:, 0],
        torch.tensor([0.5, -1.0, 2.0], requires_grad=True),
        torch.tensor([0.5, -1.0, 2.0], dtype=torch.bfloat16),
    ],
)
def test_logits_come_as_lists_arrays_or_tensors(logits):
    assert crossent.explain(logits, 0) == crossent.explain([0.5, -1.0, 2.0], 0)


def test_losses_are_found_by_any_of_their_names():
    e = crossent.explain(ASKED, 0, "ce+ls, mnist,ce-smooth")
    assert [loss.name for loss in e.losses] == ["ce-smooth", "sigmoid-difference"]
    assert e["ce+ls"] is e["ce-smooth"] is e.losses[0]
    with pytest.raises(KeyError, match="bce was not explained, only ce-smooth, sigmoid-difference"):
        e["bce"]


def test_explain_is_a_function_whatever_is_imported_first():
    code = (
        "import inspect, sys, crossent{}\nassert crossent.explain([0., 0.], 0, 'ce').losses[0].gradient == (-.5, .5)\n"
        "from crossent.tools.explain import catalogue\nassert inspect.isfunction(crossent.explain)\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    for first in ("", ".tools.explain", ".tools.explain.explanation", ".tools.cli"):
        subprocess.run([sys.executable, "-c", code.format(first)], check=True, timeout=60)
    assert list(inspect.signature(crossent.explain).parameters)[:3] == ["logits", "target", "losses"]
    assert isinstance(crossent.explain([0.0, 1.0], 1), crossent.Explanation)


# --- plain data -------------------------------------------------------------------------------------------------------

FROZEN = {
    "schema": "crossent.explanation/1",
    "computed_by": "crossent.reference, float64",
    "classes": 2,
    "class_names": ["no", "yes"],
    "logits": [0.0, 0.0],
    "target": {"labels": [1], "weights": [0.0, 1.0]},
    "step": 2.0,
    "references": {
        "ln_classes": 0.693147180560, "prior_entropy": 0.562335144619, "double_softmax_floor": 0.313261687518,
    },
    "losses": [
        {
            "name": "ce",
            "about": "cross entropy",
            "formula": "−Σ t log p",
            "gradient_formula": "p − t",
            "probabilities": "softmax",
            "loss": 0.693147180560,
            "unit": "nats",
            "bits": 1.0,
            "gradient_sum": 0.0,
            "p": [0.5, 0.5],
            "t": [0.0, 1.0],
            "terms": [0.0, 0.693147180560],
            "gradient": [0.5, -0.5],
            "push": ["down", "up"],
            "logits_after": [-1.0, 1.0],
            "p_after": [0.119202922022, 0.880797077978],
        },
        {
            "name": "sigmoid-difference",
            "about": "squash with a sigmoid and take the difference",
            "formula": "Σ [1 − σ(x) if t = 1, else σ(x)]",
            "gradient_formula": "∓σ(x)(1 − σ(x))",
            "probabilities": "sigmoid",
            "loss": 1.0,
            "unit": None,
            "bits": None,
            "gradient_sum": 0.0,
            "p": [0.5, 0.5],
            "t": [0.0, 1.0],
            "terms": [0.5, 0.5],
            "gradient": [0.25, -0.25],
            "push": ["down", "up"],
            "logits_after": [-0.5, 0.5],
            "p_after": [0.377540668798, 0.622459331202],
        },
    ],
    "notes": [],
}  # fmt: skip


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return round(value, 12) if isinstance(value, float) else value


def test_the_schema_is_frozen():
    e = crossent.explain([0.0, 0.0], 1, "ce,mnist", class_names=["no", "yes"], step=2.0, prior=[3, 1])
    assert rounded(e.to_dict()) == FROZEN
    assert [list(part) for part in (e.to_dict(), e.to_dict()["losses"][0])] == [list(FROZEN), list(FROZEN["losses"][0])]


def test_what_is_not_finite_is_null():
    document = crossent.explain([0.0, -math.inf], 1, "ce").to_dict()
    assert document["logits"] == [0.0, None]
    (ce,) = document["losses"]
    assert (ce["loss"], ce["bits"], ce["terms"]) == (None, None, [0.0, None])
    assert ce["gradient"] == [1.0, -1.0]
    assert crossent.explain([0.0, 1.0], [0.5, 0.5], "ce").to_dict()["target"]["labels"] is None


def test_it_cannot_be_changed():
    e = crossent.explain(ASKED, 0)
    with pytest.raises(AttributeError):
        e.step = 2.0
    with pytest.raises(AttributeError):
        e["ce"].loss = 0.0
