"""Numbers in every form: Python's, NumPy's, and the one element of a tensor or an array, for every option of every loss."""

import inspect

import numpy as np
import pytest
import torch
from cases import NUMBER_VALUES
from torch.autograd import forward_ad

import crossent
from crossent.core.settings import NUMBERS

FORMS = {
    "NumPy scalar": lambda v: np.int64(v) if isinstance(v, int) else np.float64(v),
    "short NumPy scalar": lambda v: np.int16(v) if isinstance(v, int) else np.float32(v),
    "array ()": np.array,
    "array (1,)": lambda v: np.array([v]),
    "tensor ()": torch.tensor,
    "tensor (1,)": lambda v: torch.tensor([v]),
    "tensor (1, 1)": lambda v: torch.tensor([[v]]),
    "short tensor": lambda v: torch.tensor(v, dtype=torch.int16 if isinstance(v, int) else torch.bfloat16),
}
NONE = {
    "True": True,
    "NumPy's True": np.bool_(True),
    "an array of True": np.array([True]),
    "a tensor of True": torch.tensor(True),
    "text": "1",
    "a list": [1],
    "complex": 1j,
    "two numbers": torch.tensor([1, 1]),
    "an array of two": np.array([1, 1]),
    "a tensor that learns": torch.tensor(1.0, requires_grad=True),
}
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 2])
T = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.5, 0.5], [1, 0, 0]])
YES = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 1, 1], [1, 0, 0]])
H, W = torch.eye(4, 5), X.new_tensor(np.linspace(-1, 2, 15)).reshape(3, 5)

OF_ROWS = {"denominator": 3.0}
OF_LOGITS = NUMBER_VALUES
TORCHS = {"ignore_index": 2, "label_smoothing": 0.25}
OF_BINARY = {"ignore_index": 1.0, "label_smoothing": 0.25, "dim": 1, **OF_ROWS}
OF_HEAD = {"shift": 1, "max_bytes": 64, "max_rows": 64, **OF_ROWS, **OF_LOGITS, **TORCHS}
PI = torch.tensor([1.0, 2.0, 3.0])

# Each loss: a call, and the numbers it takes with a value that is exact in every dtype.
CALLS = {
    "cross_entropy": (lambda **o: crossent.cross_entropy(X, Y, **o), {"dim": 1, **OF_ROWS, **OF_LOGITS, **TORCHS}),
    "cross_entropy of probabilities": (
        lambda **o: crossent.cross_entropy(X, T, **o),
        {"dim": 1, "ignore_index": -3, "label_smoothing": 0.25, **OF_ROWS, **OF_LOGITS},
    ),
    "cross_entropy_stats": (
        lambda **o: torch.stack([t.float() for t in crossent.cross_entropy_stats(X, Y, **{"reduction": "mean", **o})]),
        {"dim": 1, **OF_ROWS, **OF_LOGITS, **TORCHS},
    ),
    "focal_loss": (
        lambda **o: crossent.focal_loss(X, Y, **o),
        {"gamma": 1.5, "dim": 1, **OF_ROWS, **OF_LOGITS, **TORCHS},
    ),
    "multilabel_cross_entropy": (
        lambda **o: crossent.multilabel_cross_entropy(X, [[0, 2], [], [1], [2]], **o),
        {"dim": 1, "label_smoothing": 0.25, **OF_ROWS, **OF_LOGITS},
    ),
    "distillation_loss": (
        lambda **o: crossent.distillation_loss(X, X.flip(0), target=Y, **o),
        {"temperature": 2.0, "alpha": 0.25, "dim": 1, **OF_ROWS, **TORCHS},
    ),
    "contrastive_cross_entropy": (
        lambda **o: crossent.contrastive_cross_entropy(H[:2], H, **o),
        {"scale": 2.0, "offset": 1, "label_smoothing": 0.25},
    ),
    "binary_cross_entropy_with_logits": (
        lambda **o: crossent.binary_cross_entropy_with_logits(X, YES, pos_weight=PI, **o),
        OF_BINARY,
    ),
    "sigmoid_focal_loss": (
        lambda **o: crossent.sigmoid_focal_loss(X, YES, pos_weight=PI, **{"reduction": "mean", **o}),
        {"alpha": 0.25, "gamma": 1.5, **OF_BINARY},
    ),
    "linear_cross_entropy": (lambda **o: crossent.linear_cross_entropy(H, W, Y, **o), OF_HEAD),
    "linear_cross_entropy in blocks": (
        lambda **o: crossent.linear_cross_entropy(H, W, Y, **{"max_bytes": 16, **o}),
        OF_HEAD,
    ),
    "linear_cross_entropy_stats": (
        lambda **o: torch.stack(
            [t.float() for t in crossent.linear_cross_entropy_stats(H, W, Y, **{"reduction": "mean", **o})]
        ),
        OF_HEAD,
    ),
    "linear_plan": (lambda **o: torch.tensor(crossent.linear_plan(H, W, Y, **o)[:3]), OF_HEAD),
    "Teacher": (
        lambda **o: crossent.linear_cross_entropy(H, W, crossent.Teacher(H, W, **o)),
        {"temperature": 2.0},
    ),
    "CrossEntropyLoss": (
        lambda **o: crossent.CrossEntropyLoss(**o)(X, Y),
        {"dim": 1, **OF_ROWS, **OF_LOGITS, **TORCHS},
    ),
    "CrossEntropyLoss.activation": (
        lambda **o: crossent.CrossEntropyLoss(**o).activation(X),
        {"dim": 1, "temperature": 2.0, "softcap": 4.0},
    ),
    "FocalLoss": (
        lambda **o: crossent.FocalLoss(**o)(X, Y),
        {"gamma": 1.5, "dim": 1, **OF_ROWS, **OF_LOGITS, **TORCHS},
    ),
    "MultilabelCrossEntropyLoss": (
        lambda **o: crossent.MultilabelCrossEntropyLoss(**o)(X, YES),
        {"dim": 1, "label_smoothing": 0.25, **OF_ROWS, **OF_LOGITS},
    ),
    "BCEWithLogitsLoss": (lambda **o: crossent.BCEWithLogitsLoss(pos_weight=PI, **o)(X, YES), OF_BINARY),
    "SigmoidFocalLoss": (
        lambda **o: crossent.SigmoidFocalLoss(**{"reduction": "mean", **o})(X, YES),
        {"alpha": 0.25, "gamma": 1.5, **OF_BINARY},
    ),
    "DistillationLoss": (
        lambda **o: crossent.DistillationLoss(**o)(X, X.flip(0), Y),
        {"temperature": 2.0, "alpha": 0.25, "dim": 1, **OF_ROWS, **TORCHS},
    ),
    "LinearCrossEntropyLoss": (
        lambda **o: _head(**o)(H, Y),
        {"in_features": 5, "num_classes": 3, **OF_HEAD},
    ),
    "class_weights": (lambda **o: crossent.class_weights([3, 2, 1], "effective", **o), {"beta": 0.5}),
    "expected_initial_loss": (lambda **o: torch.tensor(crossent.expected_initial_loss(**o)), {"num_classes": 3}),
    "double_softmax_floor": (lambda **o: torch.tensor(crossent.double_softmax_floor(**o)), {"num_classes": 3}),
    "Focal": (lambda **o: crossent.cross_entropy(X, Y, penalty=crossent.Focal(**o)), {"gamma": 2.0}),
    "Focal of a whole number": (lambda **o: crossent.cross_entropy(X, Y, penalty=crossent.Focal(**o)), {"gamma": 1}),
    "Poly1": (lambda **o: crossent.cross_entropy(X, Y, penalty=crossent.Poly1(**o)), {"epsilon": 2.0}),
    "GCE": (lambda **o: crossent.cross_entropy(X, Y, penalty=crossent.GCE(**o)), {"q": 0.5}),
    "SCE": (
        lambda **o: crossent.cross_entropy(X, Y, penalty=crossent.SCE(**o)),
        {"alpha": 0.5, "beta": 2.0, "A": -3.0},
    ),
    "Taylor": (lambda **o: crossent.cross_entropy(X, Y, penalty=crossent.Taylor(**o)), {"order": 3}),
    "Asymmetric": (
        lambda **o: crossent.binary_cross_entropy_with_logits(X, YES, penalty=crossent.Asymmetric(**o)),
        {"gamma_pos": 2.0, "gamma_neg": 3.0, "clip": 0.25},
    ),
    "BalancedFocal": (
        lambda **o: crossent.binary_cross_entropy_with_logits(X, YES, penalty=crossent.BalancedFocal(**o)),
        {"gamma": 1.5, "alpha": 0.75},
    ),
}
GIVEN = [(loss, option) for loss, (_, options) in CALLS.items() for option in options]


def _head(in_features=5, num_classes=3, **options):
    torch.manual_seed(0)
    return crossent.LinearCrossEntropyLoss(in_features, num_classes, **options)


def test_every_number_of_every_signature_is_here():
    """A number that is added to a signature has to be added to this law."""
    names = NUMBERS | {"denominator", "gamma", "alpha", "beta", "scale", "offset", "num_classes"}
    for loss, (_, options) in CALLS.items():
        function = getattr(crossent, loss.split()[0].split(".")[0])
        taken = {
            name: parameter
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
        if ".activation" not in loss:
            assert names & set(taken) <= set(options), loss


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("loss", "option"), GIVEN, ids=lambda name: name.replace(" ", "-"))
def test_every_form_of_a_number_is_the_number(loss, option, form):
    call, options = CALLS[loss]
    value = options[option]
    given = FORMS[form](value)
    assert torch.equal(call(**{option: given}), call(**{option: value}))


@pytest.mark.parametrize("form", NONE)
@pytest.mark.parametrize(("loss", "option"), GIVEN, ids=lambda name: name.replace(" ", "-"))
def test_what_is_no_number_is_refused(loss, option, form):
    call, _ = CALLS[loss]
    given = NONE[form]
    learned = option in ("denominator", "scale") and isinstance(given, torch.Tensor) and given.is_floating_point()
    true = option == "label_smoothing" and "True" in form  # torch takes it
    if learned or true:
        assert call(**{option: given}).isfinite().all()
        return
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**{option: given})
    assert option in str(caught.value)
    if loss not in ("Focal", "Poly1", "GCE", "SCE", "Taylor") and option != "denominator":
        assert "ambiguous" not in str(caught.value)


@pytest.mark.parametrize("option", [*OF_LOGITS, "label_smoothing"])
def test_no_tangent_is_lost_in_a_number(option):
    """A forward-mode tangent, like a gradient, would be dropped where a tensor is read as a number."""
    with forward_ad.dual_level():
        number = forward_ad.make_dual(torch.tensor(0.5), torch.tensor(1.0))
        with pytest.raises(TypeError, match="derivative"):
            crossent.cross_entropy(X, Y, **{option: number})
    with pytest.raises(TypeError, match="derivative"):
        torch.func.grad(lambda v: crossent.cross_entropy(X, Y, **{option: v}))(torch.tensor(0.5))
    with pytest.raises(TypeError, match="derivative"):  # a value that is the default is no exception
        crossent.cross_entropy(X, Y, temperature=torch.tensor(1.0, requires_grad=True))


def test_forms_of_torchs_own_numbers_are_taken_as_torch_takes_them():
    """Whatever form torch takes, we take, with the same result; a bool index is refused by both."""
    for option, value in TORCHS.items():
        for form in FORMS.values():
            try:
                theirs = torch.nn.functional.cross_entropy(X, Y, **{option: form(value)})
            except TypeError:
                continue
            torch.testing.assert_close(crossent.cross_entropy(X, Y, **{option: form(value)}), theirs)
    for function in (torch.nn.functional.cross_entropy, crossent.cross_entropy):
        with pytest.raises(TypeError):
            function(X, Y, ignore_index=True)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_denominator_stays_a_tensor(shape):
    """On the meta device nothing can be read; a GPU need not be waited for either. Its gradient is the quotient's."""
    x, y, n = X.to("meta"), Y.to("meta"), torch.empty(shape, device="meta")
    assert crossent.cross_entropy(x, y, denominator=n).shape == ()
    assert crossent.cross_entropy_stats(x, y, reduction="mean", denominator=n).loss.shape == ()
    assert crossent.binary_cross_entropy_with_logits(x, T.to("meta"), denominator=n).shape == ()
    assert crossent.CrossEntropyLoss(denominator=n).denominator is n
    learned = torch.full(shape, 3.0, requires_grad=True)
    total = crossent.cross_entropy(X, Y, reduction="sum")
    for loss in (
        crossent.cross_entropy(X, Y, denominator=learned),
        crossent.linear_cross_entropy(X, torch.eye(3), Y, denominator=learned, max_bytes=12),
        crossent.linear_cross_entropy_stats(X, torch.eye(3), Y, reduction="mean", denominator=learned).loss,
    ):
        torch.testing.assert_close(loss, total / 3)
        (grad,) = torch.autograd.grad(loss, learned)
        torch.testing.assert_close(grad, torch.full(shape, -total.item() / 9))


def test_labels_in_lists_are_integers_of_any_kind():
    expected = crossent.multilabel_cross_entropy(X, [[0, 2], [], [1], [2]])
    for lists in (
        [[np.int64(0), torch.tensor(2)], [], [np.array(1)], [torch.tensor([2])]],
        [np.array([0, 2]), np.array([], dtype=int), torch.tensor([1]), (2,)],
        [{0, 2}, [], range(1, 2), np.array([2], dtype=np.uint8)],
    ):
        assert torch.equal(crossent.multilabel_cross_entropy(X, lists), expected)
    for wrong in (1.0, True, "1", np.float64(1), np.bool_(True), None):
        with pytest.raises(TypeError, match="row 1 must be an int"):
            crossent.multilabel_cross_entropy(X, [[0], [wrong], [1], [2]])


def test_an_array_of_labels_means_what_a_tensor_means():
    """Zeros and ones in an array of the logits' shape are no class indices."""
    assert torch.equal(
        crossent.multilabel_cross_entropy(X, YES.numpy().astype(int)), crossent.multilabel_cross_entropy(X, YES.long())
    )
    with pytest.raises(RuntimeError, match="labels must have the shape of the logits"):
        crossent.multilabel_cross_entropy(X, np.zeros((4, 2), dtype=int))


def test_penalties_keep_numbers_of_pythons():
    """So that equal penalties are equal, print alike and travel through operators."""
    for given in (np.float64(1.5), np.float32(1.5), torch.tensor(1.5), torch.tensor([1.5]), np.array(1.5)):
        penalty = crossent.Focal(given)
        assert repr(penalty) == "Focal(gamma=1.5)"
        assert penalty == crossent.Focal(1.5)
        assert hash(penalty) == hash(crossent.Focal(1.5))
    assert repr(crossent.Focal(np.int64(1))) == "Focal(gamma=1)"
    assert repr(crossent.CrossEntropyLoss(temperature=np.float64(2.0), ignore_index=np.int64(3))) == repr(
        crossent.CrossEntropyLoss(temperature=2.0, ignore_index=3)
    )


def test_numpys_numbers_compile():
    """Torch takes NumPy's numbers in a compiled function, and so do we."""
    compiled = torch.compile(
        lambda x, y, n: crossent.cross_entropy(x, y, ignore_index=n), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(X, Y, 2), crossent.cross_entropy(X, Y, ignore_index=2))
    index, cap = np.int64(2), np.float64(4.0)
    for of in (
        lambda x, y: crossent.cross_entropy(x, y, ignore_index=index, softcap=cap),
        lambda x, y: crossent.cross_entropy(x, y, denominator=y.sum(0, keepdim=True)),
        lambda x, y: crossent.cross_entropy(x, y, denominator=x.shape[0]),
    ):
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(of, backend="eager", fullgraph=True)(X, Y), of(X, Y))
