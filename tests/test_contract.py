"""Torch's rules, one by one: changing the import changes no result, shape, dtype or exception type."""

import itertools
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F

import crossent


def outcome(f, *args, **kwargs):
    """Run a call: its result and gradients, or the type of what it raised."""
    leaves = [
        a.clone().requires_grad_() if torch.is_tensor(a) and a.is_floating_point() and i == 0 else a
        for i, a in enumerate(args)
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = f(*leaves, **kwargs)
    except Exception as error:
        return type(error)
    if loss.grad_fn is None:
        return loss, None
    return loss.detach(), torch.autograd.grad(loss.sum(), leaves[0])[0]


def assert_same(ours, theirs, rounding=1.3e-6):
    """Hold an outcome to torch's, in everything but rounding, which both do: this asks for the same rule, not for digits."""
    if isinstance(theirs, type) or isinstance(ours, type):
        assert ours == theirs
        return
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            tolerance = max(rounding, 4 * torch.finfo(b.dtype).eps)
            torch.testing.assert_close(a, b, equal_nan=True, rtol=tolerance, atol=tolerance)  # shape and dtype too


SHAPES = [(5,), (4, 5), (4, 5, 3), (2, 5, 3, 4), (2, 5, 2, 1, 3), (4, 1), (0, 5), (4, 5, 0)]
GRID = list(itertools.product(SHAPES, ["none", "mean", "sum"], [0.0, 0.1, 1.0], [False, True], [-100, 2, 700, -3]))


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_every_setting_gives_what_torch_gives(soft):
    for shape, reduction, smoothing, weighted, ignore in GRID:
        x = torch.randn(shape, dtype=torch.float64)
        axis = min(len(shape) - 1, 1)
        t = (
            torch.rand(shape, dtype=torch.float64)
            if soft
            else torch.randint(shape[axis], shape[:axis] + shape[axis + 1 :])
        )
        if not soft and t.numel() > 2:
            t.view(-1)[1] = ignore
        weight = torch.rand(shape[axis], dtype=torch.float64) if weighted else None
        settings = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignore}
        ours, theirs = (outcome(f, x, t, weight, **settings) for f in (crossent.cross_entropy, F.cross_entropy))
        assert_same(ours, theirs)


def _calls():
    """List calls at the corners, as (name, arguments, keyword arguments)."""
    x, x3, x4 = torch.randn(4, 3), torch.randn(4, 3, 2), torch.randn(4, 3, 2, 2)
    y, t, c = torch.tensor([0, 1, 2, 0]), torch.rand(4, 3), torch.rand(3)
    long = {"dtype": torch.long}
    return [
        ("0-d input, index", (torch.tensor(1.0), torch.tensor(0)), {}),
        ("0-d input, float", (torch.tensor(1.0), torch.tensor(0.5)), {}),
        ("0-d input, 1-d target", (torch.tensor(1.0), torch.tensor([0])), {}),
        ("(C), ()", (torch.randn(3), torch.tensor(1)), {"reduction": "none"}),
        ("(C), (2)", (torch.randn(3), torch.tensor([1, 2])), {}),
        ("(C), (C) long", (torch.randn(3), torch.tensor([1, 2, 0])), {}),
        ("(C), (C)", (torch.randn(3), torch.rand(3)), {"reduction": "none"}),
        ("(N, C), (M)", (x, torch.zeros(5, **long)), {}),
        ("(N, C), ()", (x, torch.tensor(0)), {}),
        ("(N, C), (N, 1)", (x, y[:, None]), {}),
        ("(N, C), (N, 2)", (x, torch.zeros(4, 2, **long)), {}),
        ("(N, C), (1, C) floating", (x, torch.rand(1, 3)), {}),
        ("(N, C), one-hot long", (x, torch.eye(3)[y].long()), {}),
        ("(N, 1), (N, 1) long", (torch.randn(4, 1), torch.zeros(4, 1, **long)), {}),
        ("(N, 1), (N, 1) floating", (torch.randn(4, 1), torch.rand(4, 1)), {}),
        ("(N, C, d), (N)", (x3, y), {}),
        ("(N, C, d), (M, d)", (x3, torch.zeros(5, 2, **long)), {}),
        ("(N, C, d), (N, 1, d)", (x3, torch.zeros(4, 1, 2, **long)), {}),
        ("(N, C, d), (N, e)", (x3, torch.zeros(4, 7, **long)), {}),
        ("(N, C, d), ()", (x3, torch.tensor(0)), {}),
        ("(N, T, C) layout", (torch.randn(4, 7, 3), torch.zeros(4, 7, **long)), {}),
        ("(N, C, H, W), (N)", (x4, y), {}),
        ("(N, C, H, W), (M, H, W)", (x4, torch.zeros(5, 2, 2, **long)), {}),
        ("(N, C, H, W), (N, 1, H, W)", (x4, torch.zeros(4, 1, 2, 2, **long)), {}),
        ("(N, C, H, W), wrong pixels", (x4, torch.zeros(4, 7, 7, **long)), {}),
        ("label C", (x, torch.tensor([0, 3, 1, 1])), {}),
        ("label -1", (x, torch.tensor([0, -1, 1, 1])), {}),
        ("label C, smoothed, weighted", (x, torch.tensor([0, 3, 1, 1]), c), {"label_smoothing": 0.1}),
        ("label C in an image", (x4, torch.full((4, 2, 2), 3)), {}),
        ("no classes, index", (torch.randn(2, 0), torch.zeros(2, **long)), {}),
        ("no classes, ignored", (torch.randn(2, 0), torch.full((2,), -100)), {}),
        ("no classes, probabilities", (torch.randn(2, 0), torch.rand(2, 0)), {}),
        ("no classes, probabilities, none", (torch.randn(2, 0), torch.rand(2, 0)), {"reduction": "none"}),
        ("weight too short", (x, y, torch.rand(2)), {}),
        ("weight (1, C)", (x, y, torch.rand(1, 3)), {}),
        ("weight (1, C), images", (x4, torch.zeros(4, 2, 2, **long), torch.rand(1, 3)), {}),
        ("weight too short, probabilities", (x, t, torch.rand(2)), {}),
        ("weight (1, C), probabilities", (x3, torch.rand(4, 3, 2), torch.rand(1, 3)), {}),
        ("weight too short, (C)", (torch.randn(3), torch.tensor(1), torch.rand(2)), {}),
        ("weight of another dtype", (x, y, c.double()), {}),
        ("integer weight", (x, y, torch.tensor([1, 2, 3])), {}),
        ("integer weight, probabilities", (x, t, torch.tensor([1, 2, 3])), {}),
        ("float64 weight, probabilities", (x, t, c.double()), {}),
        ("weight requires grad", (x, y, c.clone().requires_grad_()), {}),
        ("weight requires grad, smoothed", (x, y, c.clone().requires_grad_()), {"label_smoothing": 0.1}),
        ("weight requires grad, probabilities", (x, t, c.clone().requires_grad_()), {}),
        ("all weights zero", (x, y, torch.zeros(3)), {"reduction": "sum"}),
        ("all weights zero, probabilities", (x, t, torch.zeros(3)), {}),
        ("floating index", (x, y.float()), {}),
        ("bool index", (x, y.bool()), {}),
        ("complex input", (x.to(torch.complex64), y), {}),
        ("integer input", (x.long(), y), {}),
        ("bool input", (x.bool(), y), {}),
        ("float8 input", (x.to(torch.float8_e4m3fn), y), {}),
        ("no target", (x, None), {}),
        ("list target", (x, [0, 1, 2, 0]), {}),
        ("numpy input", (x.numpy(), y), {}),
        ("list weight", (x, y, [1.0, 1.0, 1.0]), {}),
        ("float64 probabilities", (x, t.double()), {}),
        ("float16 probabilities", (x, t.half()), {}),
        ("bfloat16 and float16", (x.bfloat16(), t.half()), {}),
        ("probabilities and ignore_index", (x, t), {"ignore_index": 2}),
        ("probabilities and ignore_index 0", (x, t), {"ignore_index": 0}),
        ("probabilities and ignore_index -1", (x, t), {"ignore_index": -1}),
        ("smoothing above one", (x, y), {"label_smoothing": 1.5}),
        ("smoothing above one, probabilities", (x, t), {"label_smoothing": 1.5}),
        ("negative smoothing", (x, y), {"label_smoothing": -0.5}),
        ("smoothing nan", (x, y), {"label_smoothing": float("nan")}),
        ("smoothing True", (x, y), {"label_smoothing": True}),
        ("smoothing a tensor", (x, y), {"label_smoothing": torch.tensor(0.1)}),
        ("smoothing text", (x, y), {"label_smoothing": "0.1"}),
        ("smoothing None", (x, y), {"label_smoothing": None}),
        ("ignore_index a float", (x, y), {"ignore_index": 1.5}),
        ("ignore_index a bool", (x, y), {"ignore_index": True}),
        ("ignore_index None", (x, y), {"ignore_index": None}),
        ("reduction foo", (x, y), {"reduction": "foo"}),
        ("reduction None", (x, y), {"reduction": None}),
        ("reduction batchmean", (x, y), {"reduction": "batchmean"}),
        ("reduction first", (x, None), {"reduction": "foo"}),
        ("elementwise_mean", (x, y), {"reduction": "elementwise_mean"}),
        ("size_average over reduction", (x, y), {"reduction": "foo", "size_average": True}),
        *(
            (f"size_average={a}, reduce={b}", (x, y), {"size_average": a, "reduce": b})
            for a, b in itertools.product((None, True, False), repeat=2)
        ),
        ("positional", (x, y, c, None, 1, None, "sum", 0.1), {}),
        ("logits far away", (x * 1e30, y), {}),
        ("shifted by 1e4", (x + 1e4, y), {}),
        ("target impossible", (torch.tensor([[1.0, -torch.inf], [2.0, 1.0]]), torch.tensor([1, 0])), {}),
        ("smoothed, impossible", (torch.tensor([[1.0, -torch.inf]]), torch.tensor([0])), {"label_smoothing": 0.1}),
        ("nothing possible", (torch.full((2, 3), -torch.inf), torch.tensor([0, 0])), {"reduction": "none"}),
        ("infinite", (torch.tensor([[1.0, torch.inf], [1.0, torch.inf]]), torch.tensor([0, 1])), {"reduction": "none"}),
    ]  # fmt: skip


CALLS = _calls()


@pytest.mark.parametrize(("args", "kwargs"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_corner(args, kwargs):
    halves = [torch.finfo(a.dtype).eps for a in args if torch.is_tensor(a) and a.is_floating_point()]
    ours, theirs = (outcome(f, *args, **kwargs) for f in (crossent.cross_entropy, F.cross_entropy))
    assert_same(ours, theirs, max([1.3e-6, *halves]))


def test_one_row_with_its_class_in_a_vector():
    # torch takes this shape forward, and fails backward
    x, y = torch.randn(3, requires_grad=True), torch.tensor([1])
    for reduction in ("none", "mean"):
        loss = crossent.cross_entropy(x, y, reduction=reduction)
        torch.testing.assert_close(loss, F.cross_entropy(x, y, reduction=reduction))
        torch.testing.assert_close(torch.autograd.grad(loss, x)[0], x.softmax(0) - torch.tensor([0.0, 1, 0]))


def _binary_calls():
    x, t, c = torch.randn(4, 3), torch.rand(4, 3), torch.rand(3)
    return [
        ("plain", (x, t), {}),
        ("0-d", (x[0, 0], t[0, 0]), {"reduction": "none"}),
        ("empty", (x[:0], t[:0]), {}),
        ("empty sum", (x[:0], t[:0]), {"reduction": "sum"}),
        ("positional", (x, t, c, None, None, "sum", 2 * c), {}),
        ("weight rows", (x, t, torch.rand(4, 1)), {}),
        ("weight number", (x, t, torch.tensor(2.0)), {"pos_weight": torch.tensor(3.0)}),
        ("weight too long", (x, t, torch.rand(5)), {}),
        ("weight too deep", (x, t, torch.rand(2, 4, 3)), {}),
        ("pos_weight too long", (x, t), {"pos_weight": torch.rand(5)}),
        ("pos_weight too deep", (x, t), {"pos_weight": torch.rand(2, 4, 3)}),
        ("weight requires grad", (x, t, c.clone().requires_grad_()), {}),
        ("pos_weight requires grad", (x, t), {"pos_weight": c.clone().requires_grad_()}),
        ("pos_weight a number", (x, t), {"pos_weight": 2.0}),
        ("other shape", (x, t[:, :1]), {}),
        ("other rank", (x, t.reshape(-1)), {}),
        ("integer target", (x, t.long()), {}),
        ("bool target", (x, t > 0.5), {}),
        ("integer input", (x.long(), t), {}),
        ("float64 target", (x, t.double()), {}),
        ("float64 input", (x.double(), t), {}),
        ("float16 target", (x, t.half(), c.double()), {}),
        ("target outside [0, 1]", (x, t * 255), {}),
        ("reduction foo", (x, t), {"reduction": "foo"}),
        ("size_average", (x, t), {"size_average": False}),
        ("huge", (x * 1e4, t.round()), {}),
    ]


BINARY = _binary_calls()


@pytest.mark.parametrize(("args", "kwargs"), [c[1:] for c in BINARY], ids=[c[0] for c in BINARY])
def test_binary_corner(args, kwargs):
    ours, theirs = crossent.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits
    assert_same(outcome(ours, *args, **kwargs), outcome(theirs, *args, **kwargs))


@pytest.mark.parametrize("impl", [None, "eager"])
@pytest.mark.parametrize("ignore_index", [2**63, -(2**63) - 1, 2**70, -(2**70)])
def test_an_index_that_no_tensor_can_hold_is_refused_as_torch_does(ignore_index, impl):
    x, y = torch.randn(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="Overflow"):
        F.cross_entropy(x, y, ignore_index=ignore_index)
    with pytest.raises(ValueError, match=f"ignore_index must fit into 64 bits, got {ignore_index}: give"):
        crossent.cross_entropy(x, y, ignore_index=ignore_index, impl=impl)
    for largest in (2**63 - 1, -(2**63)):
        assert crossent.cross_entropy(x, y, ignore_index=largest, impl=impl) == crossent.cross_entropy(x, y, impl=impl)


def test_deprecated_arguments_warn():
    x, y = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)
    with pytest.warns(UserWarning, match="please use reduction='sum' instead"):
        crossent.cross_entropy(x, y, size_average=False)
    with pytest.warns(UserWarning, match="please use reduction='none' instead"):
        crossent.binary_cross_entropy_with_logits(x, x.sigmoid(), reduce=False)


def test_autocast_returns_float32():
    x, y, t, c = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.rand(4, 3), torch.rand(3)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            for args in ((x.to(dtype), y), (x.to(dtype), y, c), (x.to(dtype), t.to(dtype)), (x.double(), y), (x, y)):
                assert_same(outcome(crossent.cross_entropy, *args), outcome(F.cross_entropy, *args))
            ours = outcome(crossent.binary_cross_entropy_with_logits, x.to(dtype), t.to(dtype))
            assert_same(ours, outcome(F.binary_cross_entropy_with_logits, x.to(dtype), t.to(dtype)))


def test_a_probability_target_and_its_weight_are_differentiable():
    x, t, c = (torch.randn(4, 3), torch.rand(4, 3), torch.rand(3))
    for reduction in ("mean", "sum", "none"):
        grads = []
        for f in (crossent.cross_entropy, F.cross_entropy):
            leaves = [v.clone().requires_grad_() for v in (x, t, c)]
            loss = f(*leaves, reduction=reduction, label_smoothing=0.1)
            grads.append(torch.autograd.grad(loss.sum(), leaves))
        torch.testing.assert_close(*grads)


BETTER = [
    # (name, arguments, keyword arguments, what torch returns, what is right)
    (
        "0 · inf, one-hot",
        (torch.tensor([[1.0, 2.0, -torch.inf]]), torch.tensor([[1.0, 0.0, 0.0]])),
        {},
        torch.nan,
        1.3132616,
    ),
    (
        "0 · inf, class weight",
        (torch.tensor([[1.0, 2.0, -torch.inf]]), torch.tensor([0]), torch.tensor([1.0, 1.0, 0.0])),
        {"label_smoothing": 0.3},
        torch.nan,
        0.7 * 1.3132616 + 0.1 * (1.3132616 + 0.3132616),
    ),
    ("confident", (torch.tensor([[20.0, 0.0]]), torch.tensor([0])), {}, 0.0, 2.0611537e-09),
]


@pytest.mark.parametrize(("args", "kwargs", "theirs", "right"), [b[1:] for b in BETTER], ids=[b[0] for b in BETTER])
def test_better_than_torch(args, kwargs, theirs, right):
    torch.testing.assert_close(F.cross_entropy(*args, **kwargs), torch.tensor(theirs), equal_nan=True)
    torch.testing.assert_close(crossent.cross_entropy(*args, **kwargs), torch.tensor(right), atol=0, rtol=1e-6)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_better_than_torch_wide_class_weights(half, wide):
    """A deliberate difference: torch refuses weights wider than logits in half precision where the target holds indices."""
    x, y, c = torch.randn(4, 3).to(half), torch.tensor([0, 1, 2, 0]), torch.tensor([0.1, 0.2, 0.7], dtype=wide)
    assert outcome(F.cross_entropy, x, y, c) is RuntimeError
    loss, _ = outcome(crossent.cross_entropy, x, y, c)
    assert loss.dtype == half
    torch.testing.assert_close(loss, F.cross_entropy(x.to(wide), y, c).to(half))
    # narrower weights, and those of another half precision, are refused as ever
    other = {torch.bfloat16: torch.float16, torch.float16: torch.bfloat16}[half]
    for logits, weight in ((x.to(wide), c.to(half)), (x, c.to(other)), (x, c.long()), (x.float(), c.double())):
        assert outcome(crossent.cross_entropy, logits, y, weight) is RuntimeError
        assert outcome(F.cross_entropy, logits, y, weight) is RuntimeError


def test_better_than_torch_ignored_garbage():
    x = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]])
    y = torch.tensor([0, -100])
    assert outcome(F.cross_entropy, x, y)[1][1].isnan().all()
    assert (outcome(crossent.cross_entropy, x, y)[1][1] == 0).all()


@pytest.mark.parametrize("hostile", [torch.nan, -torch.inf])
def test_better_than_torch_a_yes_without_weight(hostile):
    x, t, pi = torch.tensor([hostile, 1.0]), torch.tensor([1.0, 0.0]), torch.zeros(2)
    assert outcome(F.binary_cross_entropy_with_logits, x, t, pos_weight=pi)[0].isnan()
    loss, grad = outcome(crossent.binary_cross_entropy_with_logits, x, t, pos_weight=pi)[:2]
    torch.testing.assert_close(loss, torch.tensor(1.3132616875182228 / 2))
    torch.testing.assert_close(grad, torch.tensor([0.0, 0.7310585786300049 / 2]))


def test_better_than_torch_binary_infinities():
    x, t = torch.tensor([-torch.inf, torch.inf, -torch.inf]), torch.tensor([0.0, 1.0, 1.0])
    assert F.binary_cross_entropy_with_logits(x, t, reduction="none").isnan().all()
    loss = crossent.binary_cross_entropy_with_logits(x, t, reduction="none")
    assert loss.tolist() == [0.0, 0.0, torch.inf]


def test_modules_are_torchs():
    weight = torch.rand(3)
    ours = crossent.CrossEntropyLoss(weight, ignore_index=2, label_smoothing=0.1)
    theirs = torch.nn.CrossEntropyLoss(weight, ignore_index=2, label_smoothing=0.1)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert isinstance(ours, torch.nn.CrossEntropyLoss)
    torch.testing.assert_close(ours(x, y), theirs(x, y))
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight"]
    ours.reduction = theirs.reduction = "none"
    torch.testing.assert_close(ours(x, y), theirs(x, y))
    again = pickle.loads(pickle.dumps(ours.double()))
    assert again.weight.dtype == torch.float64
    torch.testing.assert_close(again(x.double(), y), theirs(x, y).double())
    assert list(ours.parameters()) == []

    ours = crossent.BCEWithLogitsLoss(weight, pos_weight=weight)
    theirs = torch.nn.BCEWithLogitsLoss(weight, pos_weight=weight)
    assert isinstance(ours, torch.nn.BCEWithLogitsLoss)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(ours(x, x.sigmoid()), theirs(x, x.sigmoid()))
    torch.testing.assert_close(pickle.loads(pickle.dumps(ours))(x, x.sigmoid()), theirs(x, x.sigmoid()))


def test_modules_know_their_link_function():
    x = torch.randn(2, 5, 3)
    loss = crossent.CrossEntropyLoss()
    torch.testing.assert_close(loss.activation(x), x.softmax(1))
    torch.testing.assert_close(loss.predict(x), x.argmax(1))
    torch.testing.assert_close(loss.decodes(loss.activation(x)), x.argmax(1))
    last = crossent.CrossEntropyLoss(dim=-1)
    torch.testing.assert_close(last.activation(x).sum(-1), torch.ones(2, 5))
    assert last.predict(x[0, 0]).shape == ()
    binary = crossent.BCEWithLogitsLoss()
    torch.testing.assert_close(binary.activation(x), x.sigmoid())
    assert torch.equal(binary.predict(x), x.sigmoid() >= 0.5)
    assert torch.equal(binary.decodes(binary.activation(x)), binary.predict(x))


def test_modules_say_what_they_divide_by():
    assert "number of rows not ignored" in repr(crossent.CrossEntropyLoss())
    assert "Σ weight[target] of rows not ignored" in repr(crossent.CrossEntropyLoss(torch.ones(3)))
    assert "mean over 7" in repr(crossent.CrossEntropyLoss(denominator=7))
    assert "reduction='sum'" in repr(crossent.CrossEntropyLoss(reduction="sum"))
    settings = crossent.CrossEntropyLoss(
        empty="zero", dim=-1, ignore_index=0, label_smoothing=0.1, out_dtype=torch.float32
    )
    for said in ("empty='zero'", "dim=-1", "ignore_index=0", "label_smoothing=0.1", "out_dtype=torch.float32"):
        assert said in repr(settings)
    assert "number of elements" in repr(crossent.BCEWithLogitsLoss())


def test_module_settings_reach_the_function():
    x, y, u = torch.randn(2, 3, 5), torch.randint(5, (2, 3)), torch.rand(2, 3)
    loss = crossent.CrossEntropyLoss(dim=-1, denominator=7.0, label_smoothing=0.1, out_dtype=torch.float64)
    expected = crossent.cross_entropy(x, y, dim=-1, denominator=7.0, label_smoothing=0.1, out_dtype=torch.float64)
    torch.testing.assert_close(loss(x, y), expected)
    given = crossent.cross_entropy(
        x, y, dim=-1, denominator=3, label_smoothing=0.1, sample_weight=u, out_dtype=torch.float64
    )
    torch.testing.assert_close(loss(x, y, sample_weight=u, denominator=3), given)
    binary = crossent.BCEWithLogitsLoss(denominator=7.0)
    torch.testing.assert_close(
        binary(x, x.sigmoid()) * 7, crossent.binary_cross_entropy_with_logits(x, x.sigmoid(), reduction="sum")
    )
