"""``crossent.explain``: its numbers against finite differences and torch, its target, its plain data, and its faces."""

from __future__ import annotations

import builtins
import inspect
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import crossent
from crossent import reference
from crossent.explain import catalogue, losses, tables
from crossent.explain.catalogue import ALIASES, CARDS, DEFAULT
from crossent.explain.target import read_target
from crossent.train.catalogue import IMBALANCED_LOSSES

ASKED = np.log([0.1, 0.7, 0.2])
HOSTILE = ("</script><img src=x onerror=alert(1)>", "\x1b[31mred\x1b[0m\r\n\u202e", "[bold]$x^2$[/bold] & <b>")


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
    for name in CARDS:
        for kind, target in TARGETS.items():
            understood = read_target(target, 4, "0123")
            if losses.objection(CARDS[name], np.zeros(4), understood) is None:
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
        p_of = reference.sigmoid if loss.card.link == "sigmoid" else reference.softmax
        np.testing.assert_array_equal((loss.p, loss.p_after), (p_of(x), p_of(after)))
        assert len(loss.t) == len(loss.terms) == len(loss.gradient) == len(x)
        assert all(
            way == ("none", "down", "up")[int(np.sign(g))] for way, g in zip(loss.push, loss.gradient, strict=True)
        )
        if loss.card.link == "softmax":
            assert abs(loss.gradient_sum) < 1e-11  # what one class gains, the others lose
        assert loss.bits is None or not math.isfinite(loss.loss) or math.isclose(loss.bits * math.log(2), loss.loss)
    assert json.loads(e.to_json()) == e.to_dict()
    assert "nan" not in str(e)


def test_what_is_said_of_the_pull_is_so():
    """The catalogue's s(p), read off its words, is the pull on the true class over 1 - p."""
    said = {name: re.match(r"s\(p\) = (.*?):", card.why) for name, card in CARDS.items()}
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
    assert set(losses.PENALTIES) < set(CARDS)
    assert set(ALIASES.values()) <= set(CARDS)
    assert not set(ALIASES) & set(CARDS)
    assert set(DEFAULT) <= set(CARDS)
    assert CARDS["focal"].about == IMBALANCED_LOSSES["focal"]
    for card in CARDS.values():
        assert len(card.about) <= 56
        assert card.why.endswith(".")


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
        ("horse", "target 'horse' must name one class, and 0 are called so"),
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
        ({"step": "1"}, "step must be a finite number, not negative, got '1'"),
        ({"prior": [1, 2, 3]}, "prior must hold how many examples or what share each of the 2 classes has"),
        ({"prior": [1, -1]}, "none negative and not all zero, got [1, -1]"),
        ({"prior": [0, 0]}, "none negative and not all zero, got [0, 0]"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=re.escape(said)):
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


def test_the_package_is_the_function_whatever_is_imported_first():
    code = (
        "import sys, crossent{}\nassert crossent.explain([0., 0.], 0, 'ce').losses[0].gradient == (-.5, .5)\n"
        "from crossent.explain import catalogue\nassert crossent.explain is sys.modules['crossent.explain']\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    for first in ("", ".explain", ".explain.explanation", ".cli"):
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


# --- in the terminal --------------------------------------------------------------------------------------------------


def many(count=1000, **arguments):
    x = 3 * np.random.default_rng(0).normal(size=count)
    return crossent.explain(x, **{"target": 17, "losses": "all", **arguments})


@pytest.mark.parametrize(
    "e",
    [
        crossent.explain(ASKED, 0, "all", class_names=HOSTILE),
        crossent.explain([1e4, -1e4, 123.456], {1, 2}, "all"),
        crossent.explain([-math.inf, 0.0], 0, "all"),
        crossent.explain([1e308, -1e308], 1, "all", step=1e300),
        crossent.explain([-1e-7], 0),
        crossent.explain([0.0, 0.0], []),
        many(),
        many(target=set(range(50))),
        many(100_000, losses="ce,bce"),
    ],
    ids=["hostile", "wild", "impossible", "overflowing", "one class", "no label", "many", "many labels", "100 000"],
)
def test_text_fits_80_columns_and_loses_nothing(e):
    text = str(e)
    assert repr(e) == text
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "\u202e" not in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    side_by_side = [tables.comparison(e)] if len(e.losses) > 1 else []
    for grid in [*(tables.loss_table(e, loss) for loss in e.losses), *side_by_side]:
        for first, *numbers in grid.rows:  # only a class name may be cut
            end = " ".join(filter(None, numbers))
            assert any(line.startswith(first[:13]) and line.endswith(end) for line in lines), first


def test_tables_hold_the_numbers():
    text = str(crossent.explain(ASKED, 0, "ce"))
    assert re.search(r"^0 +−2\.303 +0\.1000 +1 +2\.3026 +−0\.9000 +▲{12} +0\.3248$", text, re.MULTILINE)
    assert re.search(r"^1 +−0\.3567 +0\.7000 +0 +0 +\+0\.7000 +▼{9} +0\.4590$", text, re.MULTILINE)
    assert re.search(r"^Σ +1\.0000 +1 +2\.3026 +0 +1\.0000$", text, re.MULTILINE)
    assert "L = 2.3026 nats = 3.3219 bits = −Σ t log p\n" in text
    assert "Side by side" not in text
    assert "ln C = 1.0986 nats" in text
    assert "H(prior)" not in text
    assert "H(prior) = 0.8018" in str(crossent.explain(ASKED, 0, "ce", prior=[7, 1, 2]))


def test_bars_of_all_losses_have_one_scale():
    text = str(crossent.explain([-6.0, 6.0, 0.0], 0, "bce,mnist"))
    side = text[text.index("Side by side") :]
    assert re.search(r"^bce +12\.6981 +−0\.9975 +▲{12} ", side, re.MULTILINE)
    assert re.search(r"^sigmoid-difference +2\.4951 +−0\.0025 +△ ", side, re.MULTILINE)


def test_of_many_classes_those_that_matter_are_shown_and_the_others_added_up():
    e = many()
    classes = tables.shown(e)
    assert len(classes) == 8
    assert classes == sorted(classes)
    assert set(classes) == {17, *np.argsort(e.logits)[-7:].tolist()}
    for loss in e.losses:
        *rows, others, total = tables.loss_table(e, loss).rows
        assert (len(rows), others[0], total[0]) == (8, "992 others", "Σ")
        rest = np.delete(loss.p, classes).sum()
        assert others[2] == tables.number(rest)
        assert total[4] == tables.number(loss.loss)
    text = str(many(losses=None))
    assert len(text.splitlines()) <= len(str(many(12, target=1, losses=None)).splitlines())
    assert text.count("992 others") == 6


def test_labels_and_rivals_are_both_among_the_classes_shown():
    e = many(target=set(range(50)), losses="ce")
    labels = [k for k in tables.shown(e) if k < 50]
    assert len(labels) >= 5
    assert len(tables.shown(e)) == 8
    assert set(tables.shown(e)) - set(labels)
    assert "class 0, class 1, class 2, class 3, class 4 and 45 more (t = 1/50 each" in " ".join(str(e).split())


def test_rich_shows_pushes_in_colour_and_by_sign():
    from rich.console import Console

    console = Console(force_terminal=True, color_system="standard", width=80, legacy_windows=False, record=True)
    with console.capture() as captured:
        console.print(crossent.explain(ASKED, 0, "ce", class_names=HOSTILE))
    shown = captured.get()
    assert "\x1b[36m▲▲▲" in shown
    assert "\x1b[31m▼▼▼" in shown
    assert "\x1b[31mred" not in shown
    assert "[bold]$x^2$[/…" in shown


def test_a_narrow_terminal_loses_no_number():
    from rich.console import Console

    from crossent.explain.terminal import show

    console = Console(width=40, color_system=None)
    with console.capture() as captured:
        show(crossent.explain(ASKED, 0, "ce"), console)
    assert re.search(r"^0 +−2\.303 +0\.1000 +1 +2\.3026 +−0\.9000 +▲{12} +0\.3248", captured.get(), re.MULTILINE)
    assert console.width == 40


# --- in a notebook ----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collect tags, attributes, and the text of cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.cells, self.open = set(), set(), [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag in ("td", "th"):
            self.open = ""

    def handle_data(self, data):
        if self.open is not None:
            self.open += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cells.append(self.open)
            self.open = None


def test_html_is_static_and_escapes_everything():
    page = Page(crossent.explain(ASKED, 0, "all", class_names=HOSTILE)._repr_html_())
    assert page.tags == {"div", "p", "table", "caption", "b", "br", "tr", "th", "td"}
    assert page.attributes == {"style", "scope"}
    assert HOSTILE[0] in page.cells
    assert HOSTILE[2] in page.cells
    assert r"\x1b[31mred\x1b[0m\r\n\u202e" in page.cells


def test_html_says_what_the_terminal_says():
    e = crossent.explain([-6.0, 6.0, 0.0], 0, prior=[1, 2, 3])
    html = e._repr_html_()
    cells = Page(html).cells
    grids = [*(tables.loss_table(e, loss) for loss in e.losses), tables.comparison(e)]
    assert cells == [cell for grid in grids for row in (grid.columns, *grid.rows) for cell in row]
    plain = " ".join(
        re.sub(r"<[^>]*>", " ", html).replace("&lt;", "<").replace("&gt;", ">").replace("&#x27;", "'").split()
    )
    for said in (tables.heading(e), tables.legend(e), tables.references(e), *(n for g in grids for n in g.notes)):
        assert " ".join(said.split()) in plain
    assert len(many(losses=None)._repr_html_()) < 120_000


# --- as a picture -----------------------------------------------------------------------------------------------------


def test_plot_draws_the_push_of_each_loss_on_each_class():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    e = crossent.explain(ASKED, 0, "ce,bce", class_names=HOSTILE)
    display = e.plot()
    assert display.figure_ is display.ax_.get_figure()
    assert [bars.get_label() for bars in display.bars_] == ["ce", "bce"]
    for bars, loss in zip(display.bars_, e.losses, strict=True):
        np.testing.assert_allclose([bar.get_height() for bar in bars], np.negative(loss.gradient))
    names = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert names == ["</script><img…\nx = −2.303", r"\x1b[31mred\x…" + "\nx = −0.3567", "[bold]$x^2$[/…\nx = −1.609"]
    display.figure_.canvas.draw()
    pyplot.close("all")


def test_plot_draws_on_the_axes_it_is_given_and_says_what_it_leaves_out():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure, ax = pyplot.subplots()
    display = many(losses="ce").plot(ax)
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert len(display.bars_[0]) == 8
    assert ax.get_title().endswith("992 not shown")
    assert pyplot.get_fignums() == [figure.number]
    assert display.plot(ax) is display
    pyplot.close("all")


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=re.escape("plot needs matplotlib: pip install 'crossent[plot]'")):
        crossent.explain(ASKED, 0).plot()


def test_every_card_has_its_numbers():
    assert set(BY_TORCH) == set(catalogue.CARDS)
