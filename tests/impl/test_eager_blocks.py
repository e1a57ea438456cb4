"""The eager implementation in blocks: the same numbers as over all rows at once, and no more memory than torch's own operator."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import crossent
from crossent.impl import eager
from crossent.impl.eager import blocks
from crossent.losses import binary, named

SHAPES = {"rows": (50, 7), "images": (3, 5, 4, 6), "one image": (1, 5, 9, 8), "a row": (1, 300)}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "pixels apart": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 3 else x,
    "every second": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
}
OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "weights": {"weight": True},
    "no weight for some": {"weight": True, "zero": True},
    "z-loss": {"z_loss": 0.1},
    "temperature and cap": {"temperature": 2.0, "softcap": 3.0},
    "focal": {"penalty": crossent.Focal(2.0)},
    "bias": {"logit_bias": True},
    "mask": {"class_mask": True},
}


def problem(shape, layout, dtype, soft):
    generator = torch.Generator().manual_seed(5)
    x = LAYOUTS[layout](torch.randn(shape, generator=generator).mul(4).to(dtype))
    if soft:
        return x, torch.rand(shape, generator=generator).to(dtype)
    y = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    y.view(-1)[1::4] = -100
    return x, y


def written_out(options, shape, dtype):
    generator, given = torch.Generator().manual_seed(6), dict(options)
    zero = given.pop("zero", False)
    if given.get("weight"):
        given["weight"] = torch.rand(shape[1], generator=generator).to(dtype)
        if zero:
            given["weight"][::2] = 0.0
    if given.get("logit_bias"):
        given["logit_bias"] = torch.randn(shape[1], generator=generator).to(dtype)
    if given.get("class_mask"):
        given["class_mask"] = torch.arange(shape[1]) != 1
    return given


def everything(x, y, soft, **options):
    """Return the loss and the gradients of logits and of probabilities."""
    x, y = x.detach().requires_grad_(), y.clone().requires_grad_() if soft else y
    loss = crossent.cross_entropy(x, y, impl="eager", **options)
    grads = torch.autograd.grad(loss.sum(), [x, y] if soft else [x])
    return [loss.detach(), *grads]


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_the_whole(shape, name, reduction, soft, monkeypatch):
    size, dtype = SHAPES[shape], torch.float64
    options = written_out(OPTIONS[name], size, dtype) | {"reduction": reduction}
    for layout in LAYOUTS if name == "plain" else ("channels_last",):
        x, y = problem(size, layout, dtype, soft)
        monkeypatch.setattr(blocks, "_CACHED", 1 << 20)
        whole = everything(x, y, soft, **options)
        monkeypatch.setattr(blocks, "_CACHED", 11)
        parts = everything(x, y, soft, **options)
        monkeypatch.setattr(blocks, "takes", lambda *_: False)
        formula = everything(x, y, soft, **options)
        monkeypatch.undo()
        for a, b, c in zip(parts, whole, formula, strict=True):
            strides = zip(a.shape, a.stride(), b.stride(), c.stride(), strict=True)
            assert all(s == 1 or one == two == three for s, one, two, three in strides)
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(a, c, rtol=1e-11, atol=1e-13)


def gradients_of_all(x, y, soft, c, bias, statistics):
    """Return a loss or statistics with the gradients of everything that has some."""
    leaves = [x.detach().requires_grad_(), bias.detach().requires_grad_()]
    y = y.clone().requires_grad_() if soft else y
    c = c.clone().requires_grad_(soft)
    options = {"logit_bias": leaves[1], "temperature": 2.0, "impl": "eager"}
    if statistics:
        found = crossent.cross_entropy_stats(leaves[0], y, c, **options)
        values = [v.detach() for v in found]
        total = sum((k + 1) * each.square().sum() for k, each in enumerate(found[:4]))
    else:
        total = crossent.cross_entropy(leaves[0], y, c, **options)
        values = [total.detach()]
    return [*values, *torch.autograd.grad(total, [*leaves, *((y, c) if soft else ())])]


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("whole_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_of_everything_that_has_a_gradient_are_the_whole(shape, whole_bias, statistics, soft, monkeypatch):
    size = SHAPES[shape]
    x, y = problem(size, "channels_last" if len(size) == 4 else "contiguous", torch.float64, soft)
    generator = torch.Generator().manual_seed(7)
    c = torch.rand(size[1], generator=generator, dtype=torch.float64)
    bias = torch.randn(size if whole_bias else size[1:2], generator=generator, dtype=torch.float64)
    results = []
    for most in (1 << 20, 11):
        monkeypatch.setattr(blocks, "_CACHED", most)
        results.append(gradients_of_all(x, y, soft, c, bias, statistics))
    monkeypatch.setattr(blocks, "takes", lambda *_: False)
    results.append(gradients_of_all(x, y, soft, c, bias, statistics))
    for parts, whole, formula in zip(*results[::-1], strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(parts, formula, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_statistics_in_blocks_have_second_derivatives_and_forward_mode(soft, monkeypatch):
    monkeypatch.setattr(blocks, "_CACHED", 11)
    x, y = problem((5, 3), "contiguous", torch.float64, soft)
    of = lambda z: crossent.cross_entropy_stats(z, y, impl="eager")[:4]  # noqa: E731
    assert torch.autograd.gradgradcheck(of, x.requires_grad_())
    assert torch.autograd.gradcheck(of, x, check_forward_ad=True)


class Drawn(NamedTuple):
    """What composed losses are given: logits, a teacher's, class indices and probabilities, and weights of rows and classes."""

    x: torch.Tensor
    t: torch.Tensor
    y: torch.Tensor
    u: torch.Tensor
    soft: torch.Tensor
    c: torch.Tensor

    @classmethod
    def of(cls, shape, dtype):
        generator = torch.Generator().manual_seed(8)
        x, t, soft = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3))
        y = torch.randint(5, (shape[0], *shape[2:]), generator=generator)
        y.view(-1)[::4] = -100
        u, c = torch.rand(y.shape, generator=generator), torch.rand(5, generator=generator).to(dtype)
        return cls(x, t, y, u, soft.detach().exp().requires_grad_(), c.requires_grad_())


distil, labels = crossent.distillation_loss, crossent.multilabel_cross_entropy
COMPOSED = {  # by the tensors that have gradients
    "distillation": ("x", lambda d, **o: distil(d.x, d.t, 2.0, sample_weight=d.u, **o)),
    "reverse": ("x", lambda d, **o: distil(d.x, d.t, 2.0, reverse=True, sample_weight=d.u, **o)),
    "with labels": (
        "x",
        lambda d, **o: distil(
            d.x,
            d.t,
            2.0,
            d.y,
            z_loss=0.1,
            label_smoothing=0.1,
            weight=torch.arange(5).to(d.x) + 1,
            penalty=crossent.Focal(2.0),
            **o,
        ),
    ),
    "teacher": ("x t", lambda d, **o: distil(d.x, d.t, 2.0, teacher_grad=True, **o)),
    "reverse teacher": (
        "x t",
        lambda d, **o: distil(
            d.x, d.t, 2.0, d.y, reverse=True, teacher_grad=True, class_mask=torch.arange(5) != 1, **o
        ),
    ),
    "a target that learns": (
        "x soft",
        lambda d, **o: distil(d.x, d.t, 2.0, d.soft, z_loss=0.1, sample_weight=d.u, **o),
    ),
    "all that learns": (
        "x t soft c",
        lambda d, **o: distil(d.x, d.t, 2.0, d.soft, weight=d.c, teacher_grad=True, penalty=crossent.Poly1(), **o),
    ),
    "weights that learn, reverse": (
        "x c",
        lambda d, **o: distil(d.x, d.t, 2.0, d.soft.detach(), weight=d.c, reverse=True, label_smoothing=0.1, **o),
    ),
    "a tensor twice": ("x t", lambda d, **o: distil(d.x, d.t, 2.0, d.t, weight=d.c, teacher_grad=True, **o)),
    "several labels": (
        "x t",
        lambda d, **o: labels(d.x, d.t.abs(), label_smoothing=0.1, margin=0.2, sample_weight=d.u, **o),
    ),
    "yes and no": ("x", lambda d, **o: labels(d.x, d.t > 0, penalty=crossent.MAE(), **o)),
}


def composed(name, shape, dtype, reduction):
    """Return a composed loss, its first derivatives, and a second one."""
    names, of = COMPOSED[name]
    drawn = Drawn.of(shape, dtype)
    loss, leaves = of(drawn, impl="eager", reduction=reduction).sum(), [getattr(drawn, n) for n in names.split()]
    grads = torch.autograd.grad(loss, leaves, retain_graph=True)
    again = torch.autograd.grad(loss, leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in again), leaves)
    return loss.detach(), *grads, *(g.detach() for g in again), *second


@pytest.fixture
def many_blocks(monkeypatch):
    """Let calls on the CPU go by blocks of two rows or a few pixels, as large ones do on a device."""
    monkeypatch.setattr(eager.Eager, "fuses", lambda *_: False)
    monkeypatch.setattr(blocks, "_CACHED", 11)
    return monkeypatch


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(13, 5), (2, 5, 3, 4)], ids=["rows", "images"])
@pytest.mark.parametrize("name", COMPOSED)
def test_targets_that_a_loss_makes_are_made_in_blocks(name, shape, reduction, many_blocks):
    """Whole, they are a graph of torch operations; in blocks, no more than a block of them is kept."""
    formed = []
    many_blocks.setattr(eager, "composed_rows", lambda *a: formed.append(1) or blocks.composed_rows(*a))
    parts = composed(name, shape, torch.float64, reduction)
    assert formed
    many_blocks.setattr(named, "takes_blocks", lambda *_: False)
    for part, whole in zip(parts, composed(name, shape, torch.float64, reduction), strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["all that learns", "weights that learn, reverse", "several labels"])
def test_losses_of_blocks_have_second_derivatives_in_all_that_learns(name, many_blocks):
    drawn = Drawn.of((4, 5), torch.float64)
    names, of = COMPOSED[name]

    def f(*leaves):
        return of(drawn._replace(**dict(zip(names.split(), leaves, strict=True))), impl="eager")

    leaves = tuple(getattr(drawn, n) for n in names.split())
    assert torch.autograd.gradgradcheck(f, leaves)
    assert torch.autograd.gradcheck(f, leaves, check_batched_grad=True)


def test_a_gradient_of_half_precision_that_has_several_parts_is_rounded_once(many_blocks):
    """That of a target that learns, of weights that are summed over many blocks, and of logits in two parts of a loss."""
    found = {}
    for dtype in (torch.bfloat16, torch.float64):
        generator = torch.Generator().manual_seed(8)
        x, t, soft = (torch.randn((600, 5), generator=generator).bfloat16().to(dtype) for _ in range(3))
        leaves = [x.requires_grad_(), soft.abs().requires_grad_(), torch.ones(5, dtype=dtype).requires_grad_()]
        loss = distil(leaves[0], t, 2.0, leaves[1], weight=leaves[2], reduction="sum", impl="eager")
        found[dtype] = torch.autograd.grad(loss, leaves)
    for half, exact in zip(found[torch.bfloat16], found[torch.float64], strict=True):
        torch.testing.assert_close(half.double(), exact, rtol=2**-8, atol=1e-6)


IN_PLACE = {
    "amounts": lambda x, t, **o: labels(x, t.abs(), **o),
    "yes and no": lambda x, t, **o: labels(x, t > 0, z_loss=0.1, **o),
    "everything": lambda x, t, **o: labels(
        x, t.abs(), label_smoothing=0.1, softcap=3.0, logit_bias=t, sample_weight=t[:, 0].abs(), **o
    ),
}


@pytest.mark.parametrize("place", ["inplace_backward", "inplace_forward"])
@pytest.mark.parametrize("shape", [(13, 5), (2, 5, 3, 4)], ids=["rows", "images"])
@pytest.mark.parametrize("name", IN_PLACE)
def test_shares_of_labels_in_place_are_those_beside(name, shape, place, many_blocks):
    generator = torch.Generator().manual_seed(8)
    leaf, t = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    leaf.requires_grad_()
    whole = torch.autograd.grad(IN_PLACE[name](leaf, t, impl="eager"), leaf)[0]
    x = leaf * 1
    loss = IN_PLACE[name](x, t, impl="eager", **{place: True})
    assert torch.equal(x, leaf)  # until backward
    (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert gradient.data_ptr() == x.data_ptr()
    assert torch.equal(gradient, whole)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x)
    with pytest.raises(RuntimeError, match=f"{place}=True would write the gradient over a leaf"):
        IN_PLACE[name](leaf, t, impl="eager", **{place: True})
    loss = IN_PLACE[name](x := leaf * 1, t, impl="eager", **{place: True})
    other, (gradient,) = x.square().sum(), torch.autograd.grad(loss, x, create_graph=True)
    assert torch.equal(x, leaf)  # which a second derivative needs
    torch.testing.assert_close(gradient, whole, rtol=1e-11, atol=1e-13)
    torch.autograd.grad(gradient.square().sum(), leaf, retain_graph=True)
    torch.autograd.grad(loss, x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


def test_shares_of_labels_are_not_written_over_what_is_still_needed(many_blocks):
    """Logits that overlap, that share their memory with the labels, or that were changed after the loss."""
    row = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    x = (row * 1).expand(13, 5)
    t = torch.rand(13, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(labels(x, t, impl="eager", inplace_backward=True), x)
    assert gradient.data_ptr() != x.data_ptr()
    torch.testing.assert_close(gradient, torch.autograd.grad(labels(x, t, impl="eager"), x)[0], rtol=1e-11, atol=0)
    leaf = torch.rand(13, 5, dtype=torch.float64, requires_grad=True)
    x = leaf * 1
    shared = x.detach()
    (gradient,) = torch.autograd.grad(labels(x, shared, impl="eager", inplace_backward=True), x)
    assert gradient.data_ptr() != x.data_ptr()
    assert torch.equal(gradient, torch.autograd.grad(labels(x, shared, impl="eager"), x)[0])
    loss = labels(x, t, impl="eager", inplace_backward=True)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x)


@pytest.mark.parametrize("learned", ["student", "teacher"])
def test_what_a_part_of_a_loss_does_not_depend_on_has_no_gradient_of_it(learned, monkeypatch):
    """The labels' part and the z-loss know nothing of the teacher."""
    found = []
    for most in (1 << 20, 11):
        monkeypatch.setattr(blocks, "_CACHED", most)
        monkeypatch.setattr(eager.Eager, "fuses", lambda *_, most=most: most > 11)
        x, t = torch.randn((2, 13, 5), generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        leaf = (x if learned == "student" else t).requires_grad_()
        y = torch.arange(13) % 5
        loss = crossent.distillation_loss(x, t, 2.0, y, z_loss=0.1, teacher_grad=True, impl="eager")
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        found.append((torch.autograd.grad(loss, leaf, retain_graph=True)[0], gradient.detach()))
        found[-1] += torch.autograd.grad(gradient.square().sum(), leaf)
    for parts, whole in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-13)


def test_a_wrong_label_is_named_where_it_is_among_all_rows(monkeypatch):
    monkeypatch.setattr(eager.Eager, "fuses", lambda *_: False)
    monkeypatch.setattr(blocks, "_CACHED", 11)
    y = torch.zeros(13, dtype=torch.int64)
    y[9] = 5
    x = torch.randn(13, 5, requires_grad=True)
    with pytest.raises(IndexError, match=r"got 5 at target\[9\]"):
        crossent.distillation_loss(x, x.detach(), 2.0, y, impl="eager")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weights", [(), (50,), (50, 7)], ids=["one", "rows", "elements"])
def test_weights_of_rows_of_a_binary_loss_are_those_of_elements(weights, reduction):
    generator = torch.Generator().manual_seed(9)
    x, t = (torch.rand((50, 7), generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    u = torch.rand(weights, generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.rand((50, 7), generator=generator) > 0.2
    each = crossent.binary_cross_entropy_with_logits(x, t, reduction="none", mask=mask, impl="eager")
    wide = u.reshape(*weights, *(1 for _ in range(2 - len(weights))))
    right = {"none": wide * each, "sum": (wide * each).sum(), "mean": (wide * each).sum() / (wide * mask).sum()}
    for weight in (u, u.detach()):
        ours = crossent.binary_cross_entropy_with_logits(
            x, t, reduction=reduction, mask=mask, sample_weight=weight, impl="eager"
        )
        torch.testing.assert_close(ours, right[reduction], rtol=1e-12, atol=1e-14)
        leaves = [x, t, u] if weight.requires_grad else [x, t]
        grads = (torch.autograd.grad(of.square().sum(), leaves, retain_graph=True) for of in (ours, right[reduction]))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


ELEMENTS = {
    "plain": {},
    "weights": {"weight": True, "pos_weight": True, "ignore_index": -1.0},
    "weights of elements": {"weight": "whole", "label_smoothing": 0.1, "mask": True},
    "asymmetric": {"penalty": crossent.Asymmetric()},
}


def elements(name, shape, dtype):
    """Return logits, a target, and the options of a binary loss."""
    generator, given = torch.Generator().manual_seed(9), dict(ELEMENTS[name])
    x, t = torch.randn(shape, generator=generator).to(dtype), torch.rand(shape, generator=generator).to(dtype)
    if given.get("ignore_index"):
        t.view(-1)[::4] = -1.0
    if given.get("weight"):
        of = torch.rand(shape if given["weight"] == "whole" else shape[-1:], generator=generator)
        given["weight"] = of.to(dtype)
    if given.get("pos_weight"):
        given["pos_weight"] = torch.rand(shape[-1:], generator=generator).to(dtype)
    if given.get("mask"):
        given["mask"] = torch.rand(shape, generator=generator) > 0.2
    return x.requires_grad_(), t.requires_grad_(), given


def elementwise(x, t, u, factor, **options):
    """Return losses that are not reduced, their gradients, and second derivatives."""
    leaves = [each for each in (x, t, u) if each is not None and each.requires_grad]

    def loss():
        return crossent.binary_cross_entropy_with_logits(
            x, t, reduction="none", sample_weight=u, impl="eager", **options
        )

    grads = torch.autograd.grad(loss(), leaves, factor)
    again = torch.autograd.grad(loss(), leaves, factor, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in again), leaves)
    return loss().detach(), *grads, *(g.detach() for g in again), *second


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize(
    ("shape", "rows"),
    [((13, 5), None), ((13, 5), ()), ((13, 5), (13,)), ((4, 3, 6), (4, 3)), ((9,), (9,)), ((), ())],
    ids=str,
)
@pytest.mark.parametrize("name", ELEMENTS)
def test_losses_of_elements_in_blocks_are_the_whole(name, shape, rows, learned, many_blocks):
    if name != "plain" and len(shape) == 0:
        pytest.skip("no weights of one element")
    x, t, options = elements(name, shape, torch.float64)
    generator = torch.Generator().manual_seed(10)
    u = None if rows is None else torch.rand(rows, generator=generator).double()
    if u is not None and u.dim():
        u[1] = 0.0
    u = u if u is None else u.requires_grad_(learned)
    factor = torch.randn(shape, generator=generator, dtype=torch.float64)
    formed = []
    many_blocks.setattr(eager, "weighed_elements", lambda *a: formed.append(1) or blocks.weighed_elements(*a))
    parts = elementwise(x, t, u, factor, **options)
    assert formed
    many_blocks.setattr(binary, "takes_blocks", lambda *_: False)
    formed.clear()
    for part, whole in zip(parts, elementwise(x, t, u, factor, **options), strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-11, atol=1e-13)
    assert not formed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("out_dtype", [None, torch.float32, torch.float64])
def test_losses_of_elements_in_blocks_have_the_dtype_of_the_result(dtype, out_dtype, many_blocks):
    x, t, options = elements("weights", (13, 5), dtype)
    u = torch.rand(13, generator=torch.Generator().manual_seed(10)).requires_grad_()
    found = []
    for _ in range(2):
        loss = crossent.binary_cross_entropy_with_logits(
            x, t, reduction="none", sample_weight=u, out_dtype=out_dtype, impl="eager", **options
        )
        assert loss.dtype == out_dtype or (out_dtype is None and loss.dtype == dtype)
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), [x, t, u])))
        many_blocks.setattr(binary, "takes_blocks", lambda *_: False)
    for parts, whole in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-6 if whole.dtype == torch.float32 else 0, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "weights of elements"])
def test_losses_of_elements_in_blocks_have_all_derivatives(name, many_blocks):
    x, t, options = elements(name, (4, 3), torch.float64)
    u = torch.rand(4, generator=torch.Generator().manual_seed(10), dtype=torch.float64).requires_grad_()

    def f(x, t, u):
        return crossent.binary_cross_entropy_with_logits(
            x, t, reduction="none", sample_weight=u, impl="eager", **options
        )

    assert torch.autograd.gradcheck(f, (x, t, u), check_batched_grad=True)
    assert torch.autograd.gradcheck(f, (x, t, u), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, (x, t, u))
    per_row = torch.func.vmap(torch.func.grad(lambda *each: f(*each).sum(), (0, 1, 2)))
    alone = per_row(x.unsqueeze(1), t.unsqueeze(1), u.unsqueeze(1)) if name == "plain" else None
    if alone is not None:
        for ours, rows in zip(torch.autograd.grad(f(x, t, u).sum(), [x, t, u]), alone, strict=True):
            torch.testing.assert_close(rows.reshape(ours.shape), ours)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("learned", [True, False])
def test_rows_without_weight_may_hold_anything_in_blocks(learned, value, many_blocks):
    x, t, _ = elements("plain", (13, 5), torch.float64)
    x.data[3], x.data[7, 0], x.data[10, 1] = value, value, value
    u = torch.ones(13, dtype=torch.float64)
    u[3] = u[7] = 0.0
    parts = []
    for _ in range(2):
        u = u.detach().requires_grad_(learned)
        loss = crossent.binary_cross_entropy_with_logits(x, t, reduction="none", sample_weight=u, impl="eager")
        parts.append((loss.detach(), *torch.autograd.grad(loss.sum(), [x, u] if learned else [x])))
        many_blocks.setattr(binary, "takes_blocks", lambda *_: False)
    for ours, whole in zip(*parts, strict=True):
        there = torch.arange(13) % 4 != 3  # left to autograd, the weights' own gradient is nan elsewhere
        torch.testing.assert_close(ours[there], whole[there], rtol=1e-11, atol=1e-13, equal_nan=True)
    assert not parts[0][1][[3, 7]].any()
    assert not learned or parts[0][2][[3, 7]].isfinite().all()


def test_torchs_operator_gives_losses_of_elements_that_nothing_weighs():
    x, t, u = (torch.empty(s, device="meta", requires_grad=True) for s in ((6, 4), (6, 4), (6,)))
    for impl, weight, name in (
        (None, u, "ElementLossesBackward"),
        (None, None, "BinaryCrossEntropyWithLogitsBackward0"),
        ("torch", u, "MaskedFillBackward0"),
        ("eager", None, "ElementLossesBackward"),
    ):
        loss = crossent.binary_cross_entropy_with_logits(x, t, reduction="none", sample_weight=weight, impl=impl)
        assert loss.grad_fn.name() == name


@pytest.mark.parametrize("place", ["inplace_backward", "inplace_forward"])
def test_losses_of_elements_in_place_are_those_beside(place, many_blocks):
    leaf, t, options = elements("weights", (13, 5), torch.float64)
    u = torch.rand(13, generator=torch.Generator().manual_seed(10), dtype=torch.float64).requires_grad_()

    def f(x, t, **more):
        return crossent.binary_cross_entropy_with_logits(
            x, t, reduction="none", sample_weight=u, impl="eager", **options, **more
        )

    whole = torch.autograd.grad(f(leaf, t).sum(), [leaf, t, u])
    loss = f(x := leaf * 1, t, **{place: True})
    assert torch.equal(x, leaf)  # until backward
    found = torch.autograd.grad(loss.sum(), [x, t, u], retain_graph=True)
    assert found[0].data_ptr() == x.data_ptr()
    for ours, beside in zip(found, whole, strict=True):
        assert torch.equal(ours, beside)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()
    with pytest.raises(RuntimeError, match=f"{place}=True would write the gradient over a leaf"):
        f(leaf, t, **{place: True})
    loss = f(x := leaf * 1, t, **{place: True})
    (gradient,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
    assert torch.equal(x, leaf)  # which a second derivative needs
    torch.testing.assert_close(gradient.detach(), whole[0])
    x = leaf * 1
    (gradient,) = torch.autograd.grad(f(x, x.detach(), **{place: True}).sum(), x)
    assert gradient.data_ptr() != x.data_ptr()  # which is the target, too


def test_a_sum_over_blocks_is_rounded_once(monkeypatch):
    """The gradient of class weights and of a bias: what each block adds is not rounded to half precision."""
    monkeypatch.setattr(blocks, "_CACHED", 5)
    x, t = problem((2000, 5), "contiguous", torch.bfloat16, True)
    c, bias = torch.ones(5, dtype=torch.bfloat16), torch.zeros(5, dtype=torch.bfloat16)
    ours = [c.requires_grad_(), bias.requires_grad_()]
    exact = [each.detach().double().requires_grad_() for each in ours]
    for leaves, logits, target in ((ours, x, t), (exact, x.double(), t.double())):
        loss = crossent.cross_entropy(
            logits, target, leaves[0], logit_bias=leaves[1], reduction="sum", out_dtype=torch.float32, impl="eager"
        )
        loss.backward()
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=2**-7, atol=0.05)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(50, 7), (40,), (2, 3, 4)])
def test_binary_blocks_are_the_whole(shape, reduction, monkeypatch):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    t = torch.rand(shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    more = {"weight": t.roll(1), "pos_weight": x[..., :1].exp() if x.dim() > 1 else x.exp(), "mask": t > 0.2}
    results = []
    for size in (1 << 20, 3):
        monkeypatch.setattr(blocks, "_CACHED", size)
        leaves = [x.clone().requires_grad_(), t.clone().requires_grad_()]
        loss = crossent.binary_cross_entropy_with_logits(*leaves, reduction=reduction, impl="eager", **more)
        results.append([loss.detach(), *torch.autograd.grad(loss.sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("margin", [0.0, 16.0, 17.0, 40.0, 60.0])
def test_a_confident_row_keeps_its_accuracy(margin, dtype):
    """To a few roundings of float32, or the one of the dtype in which the result comes."""
    x = torch.zeros(3, 5, dtype=dtype)
    x[:, 0] = margin
    y = torch.tensor([0, 0, 1])
    exact = x.double().requires_grad_()
    x.requires_grad_()
    ours = crossent.cross_entropy(x, y, reduction="sum", impl="eager")
    right = torch.where(y == 0, (4 * torch.tensor(-margin).double().exp()).log1p(), exact[:, 0] - exact[:, 1])
    right = right + torch.where(y == 0, 0.0, (4 * torch.tensor(-margin).double().exp()).log1p())
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0.0}
    torch.testing.assert_close(ours.double(), right.sum(), **tolerance)
    (on_x,), rest = torch.autograd.grad(ours, x), torch.tensor(-margin).double().exp()
    p = torch.cat([torch.ones(1).double(), rest.expand(4)]) / (1 + 4 * rest)
    torch.testing.assert_close(on_x[0].double(), torch.cat([-4 * p[1:2], p[1:]]), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(
    "shape", [(2, 2786), (129, 33), (3, 1001, 4), (1, 2047, 5), (40, 100, 37), (7, 1000, 33)], ids=str
)
def test_bits_hang_neither_on_threads_nor_on_when_the_gradient_is_formed(shape, dtype):
    x, y = problem(shape, "contiguous", dtype, soft=False)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for more in ({}, {"inplace_backward": True}, {"inplace_forward": True}):
                leaf = x.clone().requires_grad_()
                loss = crossent.cross_entropy(leaf * 1, y, impl="eager", **more)
                found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in found:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=["rows", "images"])
def test_a_row_without_a_softmax_has_no_loss(classes, value, shape):
    x = torch.zeros((2, classes, *shape), requires_grad=True)
    with torch.no_grad():
        x[1] = value
    y = torch.zeros((2, *shape), dtype=torch.int64)
    for reduction in ("sum", "none"):
        loss = crossent.cross_entropy(x, y, reduction=reduction, impl="eager").sum()
        assert loss.isnan()
        assert torch.autograd.grad(loss, x)[0][1].isnan().all()


def test_an_ignored_row_may_hold_anything():
    x = torch.randn(4, 3, dtype=torch.float32)
    x[1], x[2, 0] = torch.nan, torch.inf
    y, c = torch.tensor([0, -100, 2, 1]), torch.tensor([1.0, 1.0, 0.0])  # row 2 has no weight
    for reduction in ("mean", "sum"):
        a = x.clone().requires_grad_()
        loss = crossent.cross_entropy(a, y, c, reduction=reduction, impl="eager")
        assert loss.isfinite()
        (gradient,) = torch.autograd.grad(loss, a)
        assert not gradient[1:3].any()
        assert gradient[[0, 3]].isfinite().all()


CHILD = """
import sys
import torch
import crossent
from crossent import impl

# As on a device without kernels, where torch's operator runs for a plain call.
impl._LOADED.pop("native", None)
type(impl._LOADED["torch"]).chosen_for = lambda self, logits: True

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

def draw(n, c):
    dtype = getattr(torch, sys.argv[1])
    x = torch.randn(n, c).to(dtype) + torch.zeros(c, dtype=dtype, requires_grad=True)  # no leaf, so it may be written over
    return x, torch.randint(c, (n,)) if sys.argv[2] == "indices" else x.detach().softmax(1), torch.ones(n)

def step(x, y, u):
    eval(sys.argv[3]).sum().backward()

torch.set_num_threads(1)
step(*draw(16, 4000))  # what libraries take once
x, y, u = draw(4096, 4000)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
step(x, y, u)
print((peak() - before) / x.numel())
"""
PLAIN = "crossent.cross_entropy(x, y)"
EAGER = "crossent.cross_entropy(x, y, impl='eager')"
ALL_DTYPES = ["float32", "float64", "bfloat16", "float16"]
needs_peaks = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks are read as Linux tells them"
)


def with_options(call: str, options: str) -> str:
    """Add options to a call."""
    return f"{call[:-1]}, {options})"


@cache
def bytes_an_element(dtype: str, call: str, target: str = "indices") -> float:
    command = [sys.executable, "-c", CHILD, dtype, target, call]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@needs_peaks
@pytest.mark.parametrize(
    "call",
    [
        "crossent.multilabel_cross_entropy(x, y)",
        "crossent.multilabel_cross_entropy(x, y, label_smoothing=0.1, z_loss=1e-4)",
        "crossent.distillation_loss(x, y, 2.0)",
        "crossent.distillation_loss(x, y, 2.0, reverse=True, z_loss=0.1)",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_targets_that_a_loss_makes_take_at_most_eight_bytes(call, dtype):
    assert bytes_an_element(dtype, call, "probabilities") <= 8


@needs_peaks
@pytest.mark.parametrize(
    ("call", "target", "dtype"),
    [
        *((EAGER, target, d) for target in ("indices", "probabilities") for d in ALL_DTYPES),
        *((with_options(EAGER, "label_smoothing=0.1"), "indices", d) for d in ("float32", "bfloat16")),
        *((PLAIN, target, "float32") for target in ("indices", "probabilities")),
    ],
)
def test_a_plain_call_takes_no_more_than_torchs(call, target, dtype):
    torchs = bytes_an_element(dtype, "torch.nn.functional.cross_entropy(x, y)", target)
    assert bytes_an_element(dtype, call, target) <= 1.1 * torchs


@needs_peaks
@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("indices", "penalty=crossent.Focal(2.0), label_smoothing=0.1"),
        ("indices", "softcap=30.0, z_loss=1e-4, class_mask=torch.arange(4000) > 3"),
        ("probabilities", "temperature=2.0"),
        ("indices", "sample_weight=u"),
        ("probabilities", "sample_weight=u"),
        ("indices", "sample_weight=u, reduction='none'"),
        ("indices", "sample_weight=u.requires_grad_()"),
        ("indices", "sample_weight=u, denominator=3.0, label_smoothing=0.1"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_family_takes_eight_bytes_an_element_at_most(target, options, dtype):
    assert bytes_an_element(dtype, with_options(PLAIN, options), target) <= 8


@needs_peaks
@pytest.mark.parametrize(
    "options",
    [
        "sample_weight=u",
        "sample_weight=u, pos_weight=torch.ones(4000, dtype=x.dtype)",
        "sample_weight=u, reduction='none'",
        "sample_weight=u.requires_grad_(), pos_weight=torch.ones(4000, dtype=x.dtype), reduction='none'",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sigmoid_losses_that_rows_weigh_take_eight_bytes_an_element_and_the_losses(options, dtype):
    call = with_options("crossent.binary_cross_entropy_with_logits(x, y)", options)
    # Losses of elements are given, and so is their gradient here: the sum of such losses has one of the same size.
    given = 2 * getattr(torch, dtype).itemsize if "none" in options else 0
    assert bytes_an_element(dtype, call, "probabilities") <= max(8.1, 8.1 - 4 + given)


@needs_peaks
@pytest.mark.parametrize("options", ["inplace_backward=True", "inplace_forward=True, sample_weight=u"])
def test_a_plain_call_in_place_takes_the_memory_of_blocks_alone(options):
    assert bytes_an_element("float32", with_options(PLAIN, options)) <= 2
    assert bytes_an_element("bfloat16", with_options(PLAIN, options)) <= 2
