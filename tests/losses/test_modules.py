"""Every module × every option: an attribute there, shown by repr, obeyed as the function obeys it, kept by pickle and deepcopy."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import get_type_hints

import pytest
import torch
from cases import NUMBER_VALUES

import crossent
from crossent.core.settings import names_of

N, C, D = 6, 5, 4
torch.manual_seed(0)
X, H = torch.randn(N, C), torch.randn(N, D)
Y, Y2 = torch.tensor([0, 1, 2, 3, 4, 1]), torch.randn(N, C)
T = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]] * N)
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 1.5, 3.0])

# What each option is set to: a value that changes the result, or at least its kind.
VALUES = {
    "weight": WEIGHT,
    "pos_weight": WEIGHT,
    "ignore_index": 1,
    "reduction": "sum",
    "label_smoothing": 0.1,
    "denominator": 7.0,
    "empty": "zero",
    "out_dtype": torch.float64,
    "impl": "eager",
    "dim": 0,
    "inplace_backward": True,
    "inplace_forward": True,
    "penalty": crossent.Focal(1.5),
    **NUMBER_VALUES,
    "softcap_after_temperature": True,
    "logit_bias": torch.arange(5.0),
    "class_mask": torch.tensor([True, True, True, True, True]),
    "teacher_grad": True,
    "reverse": True,
    "sample_weight": torch.arange(1.0, 7.0),
    "shift": 1,
    "max_bytes": 1 << 10,
    "options": None,
}
UNSEEN = {
    "softcap_after_temperature",
    "empty",
    "impl",
    "inplace_backward",
    "inplace_forward",
    "teacher_grad",
    "class_mask",
    "max_bytes",
    "options",
}  # change no value here


def distillation(student, teacher, target, **options):
    return crossent.distillation_loss(student, teacher, target=target, **options)


def sigmoid_focal(logits, target, reduction="mean", **options):
    return crossent.sigmoid_focal_loss(logits, target, reduction=reduction, **options)


# The logits are square in rows and classes, so that either may be the class dimension.
CASES = {
    crossent.CrossEntropyLoss: (crossent.cross_entropy, (X[:5], Y[:5])),
    crossent.FocalLoss: (crossent.focal_loss, (X[:5], Y[:5])),
    crossent.MultilabelCrossEntropyLoss: (crossent.multilabel_cross_entropy, (X[:5], T[:5])),
    crossent.BCEWithLogitsLoss: (crossent.binary_cross_entropy_with_logits, (X[:5], T[:5])),
    crossent.SigmoidFocalLoss: (sigmoid_focal, (X[:5], T[:5])),
    crossent.DistillationLoss: (distillation, (X[:5], Y2[:5], Y[:5])),
    crossent.LinearCrossEntropyLoss: (crossent.linear_cross_entropy, (H, Y)),
}
REDUCTION = {crossent.SigmoidFocalLoss: {"reduction": "mean"}}
ELEMENTWISE = [(crossent.BCEWithLogitsLoss, "dim"), (crossent.SigmoidFocalLoss, "dim")]  # it lays a pos_weight only
ARGUMENTS = {crossent.LinearCrossEntropyLoss: (D, C)}


def options_of(module):
    """List what a module takes at its construction, beside torch's deprecated arguments and what makes its head."""
    signature = inspect.signature(module.__init__)
    names = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            names += names_of(get_type_hints(module.__init__)[name].__args__[0])
        else:
            names.append(name)
    return [name for name in dict.fromkeys(names) if name in VALUES]


def run(module, loss, value):
    """Compute a loss by its function, with the head of the module where it has one."""
    function, (x, *target) = CASES[module]
    if module is crossent.LinearCrossEntropyLoss:
        return function(x, loss.linear.weight, *target, **value)
    return function(x, *target, **value)


PAIRS = [(module, name) for module in CASES for name in options_of(module)]


@pytest.mark.parametrize(("module", "name"), PAIRS, ids=[f"{m.__name__}-{n}" for m, n in PAIRS])
def test_an_option_is_kept_shown_and_obeyed(module, name):
    value = VALUES[name]
    usual = module(*ARGUMENTS.get(module, ()), **REDUCTION.get(module, {}))
    loss = module(*ARGUMENTS.get(module, ()), **{**REDUCTION.get(module, {}), name: value})
    kept = getattr(loss, name)
    assert kept is value or (isinstance(value, torch.Tensor) and torch.equal(kept, value))
    if value is not None and name != "sample_weight":
        assert name in repr(loss) or str(value) in repr(loss)
    _, given = CASES[module]
    expected = run(module, loss, {name: value})
    torch.testing.assert_close(loss(*given), expected)
    if name not in UNSEEN and (module, name) not in ELEMENTWISE and expected.dim() == usual(*given).dim():
        if module is crossent.LinearCrossEntropyLoss:
            usual.linear = loss.linear
        other = usual(*given)
        assert other.dtype != expected.dtype or not torch.allclose(other.double(), expected.double()), (
            "it changes nothing"
        )
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(again(*given), expected)
        assert repr(again) == repr(loss)
    usual.load_state_dict(loss.state_dict(), strict=name not in ("weight", "pos_weight"))


@pytest.mark.parametrize("module", CASES, ids=[m.__name__ for m in CASES])
def test_a_misspelt_option_is_refused_and_the_right_one_named(module):
    with pytest.raises(TypeError, match=r"there is no argument 'out_dtyp'; did you mean out_dtype\?"):
        module(*ARGUMENTS.get(module, ()), out_dtyp=torch.float64)


def test_a_module_refuses_what_its_function_does_not_take():
    with pytest.raises(TypeError, match="ignore_index"):
        crossent.MultilabelCrossEntropyLoss(ignore_index=1)
    with pytest.raises(TypeError, match="penalty"):
        crossent.FocalLoss(penalty=crossent.MAE())
    assert crossent.LinearCrossEntropyLoss(8, 27, temperature=2.0).temperature == 2.0


FUNCTIONS = [
    (crossent.focal_loss, (X, Y), {}),
    (crossent.sigmoid_focal_loss, (X, torch.zeros(N, C)), {}),
    (crossent.multilabel_cross_entropy, (X, torch.ones(N, C)), {}),
    (crossent.distillation_loss, (X, Y2), {}),
    (crossent.cross_entropy_stats, (X, Y), {}),
    (crossent.linear_cross_entropy, (H, torch.randn(C, D), Y), {}),
    (crossent.linear_cross_entropy_stats, (H, torch.randn(C, D), Y), {}),
    (crossent.linear_plan, (H, torch.randn(C, D), Y), {}),
]


@pytest.mark.parametrize(("function", "given", "_"), FUNCTIONS, ids=[f.__name__ for f, *_ in FUNCTIONS])
def test_functions_name_the_argument_that_was_meant(function, given, _):
    with pytest.raises(TypeError, match=r"there is no argument 'out_dtyp'; did you mean out_dtype\?"):
        function(*given, out_dtyp=torch.float64)


PUBLIC = [
    getattr(crossent, name)
    for name in crossent.__all__
    if name.endswith(("loss", "entropy", "stats", "logits", "plan"))
]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__name__)
def test_every_option_is_documented_where_it_applies(function):
    names = []
    for name, parameter in inspect.signature(function).parameters.items():
        keywords = parameter.kind is inspect.Parameter.VAR_KEYWORD
        names += names_of(get_type_hints(function)[name].__args__[0]) if keywords else [name]
    assert "{options}" not in function.__doc__
    if function.__name__ in ("linear_cross_entropy_stats", "linear_plan"):
        assert "linear_cross_entropy" in function.__doc__  # whose arguments they take
        return
    assert names
    for name in names:
        assert f"\n        {name}:" in function.__doc__, name
