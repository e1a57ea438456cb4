"""Distillation with its options: forward and reverse, masks, penalty and z-loss, of logits and of a teacher's head."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from cases import DTYPES
from torch.autograd import gradcheck, gradgradcheck

import crossent
from crossent import reference

DOUBLE = {"dtype": torch.float64}
torch.manual_seed(0)
X, Z = torch.randn(6, 5, **DOUBLE) * 2, torch.randn(6, 5, **DOUBLE) * 2
SOME = torch.tensor([True, True, False, True, True])
EACH = torch.rand(6, 5) < 0.7
EACH[:, 0] = True
Y = torch.tensor([0, 1, -100, 3, 4, 0])
T = torch.rand(6, 5, **DOUBLE) * SOME
C, U = torch.rand(5, **DOUBLE), torch.rand(6, **DOUBLE)
TARGETS = {"no target": None, "indices": Y, "probabilities": T}
MASKS = {
    "no mask": None,
    "a mask": SOME,
    "a mask of each row": EACH | torch.nn.functional.one_hot(Y.clamp_min(0), 5).bool(),
}
reverses = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def as_reference(value):
    """Write tensors as arrays and a focal penalty as the specification's."""
    if isinstance(value, crossent.Focal):
        return reference.focal(value.gamma)
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    return value.double().numpy() if value.is_floating_point() else value.numpy()


def assert_close(got, expected, dtype, size=1.0):
    """Hold a result to the specification: a rounding to its dtype, and some of the arithmetic in float32 or float64."""
    wide = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    expected = np.asarray(expected)
    largest = max(np.abs(expected[np.isfinite(expected)]).max(initial=0.0), size)
    rtol = 3 * torch.finfo(dtype).eps + 64 * wide
    smallest = 2 * torch.finfo(dtype).eps * largest if dtype.itemsize < 4 else 0.0
    np.testing.assert_allclose(got.detach().double().numpy(), expected, rtol=rtol, atol=64 * wide * largest + smallest)


def settings_of(target, mask, reduction):
    settings = {"class_mask": mask, "z_loss": 0.1, "sample_weight": U, "reduction": reduction}
    if target is not None:
        settings |= {"penalty": crossent.Focal(1.5), "label_smoothing": 0.1, "weight": C}
    return settings


@reverses
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("kind", "masked"), list(itertools.product(TARGETS, MASKS)))
def test_value_and_gradients_are_those_of_the_specification(dtype, kind, masked, reverse):
    for reduction in ("none", "sum", "mean"):
        x, z = (v.to(dtype, copy=True).requires_grad_() for v in (X, Z))
        target = TARGETS[kind].to(dtype) if kind == "probabilities" else TARGETS[kind]
        if kind == "probabilities" and masked != "no mask":
            target = target * MASKS[masked]
        settings = settings_of(target, MASKS[masked], reduction)
        settings = {k: v.to(dtype) if k in ("weight", "sample_weight") else v for k, v in settings.items()}
        loss = crossent.distillation_loss(x, z, 2.0, target, 0.7, teacher_grad=True, reverse=reverse, **settings)
        loss.sum().backward()
        expected = reference.distillation_loss(
            *map(as_reference, (x, z)), 2.0, as_reference(target), 0.7, reverse=reverse,
            **{name: as_reference(value) for name, value in settings.items()},
        )  # fmt: skip
        assert loss.dtype == dtype
        assert_close(loss, expected.loss, dtype)
        assert_close(x.grad, expected.grad, dtype)
        assert_close(z.grad, expected.target_grad, dtype)


@reverses
@pytest.mark.parametrize(("kind", "reduction"), list(itertools.product(TARGETS, ["none", "sum", "mean"])))
def test_gradients_of_the_specification_are_slopes(kind, reduction, reverse):
    target = as_reference(TARGETS[kind])
    settings = {name: as_reference(v) for name, v in settings_of(target, SOME, reduction).items()}

    def f(x, z):
        return reference.distillation_loss(x, z, 2.0, target, 0.7, reverse=reverse, **settings)

    x, z = X.numpy(), Z.numpy()
    grads = f(x, z)[1:]
    for k, grad in enumerate(grads):
        for at in np.ndindex(x.shape):
            step = np.zeros(x.shape)
            step[at] = 1e-5
            there, back = (f(x + s, z) if k == 0 else f(x, z + s) for s in (step, -step))
            slope = np.sum(there.loss - back.loss) / 2e-5
            np.testing.assert_allclose(grad[at], slope, rtol=1e-6, atol=2e-9)


def test_the_specification_by_hand():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.1, 0.6, 0.3])
    x, z = np.log(p)[None] + 1, np.log(q)[None]
    kl = np.sum(p * np.log(p / q))
    np.testing.assert_allclose(reference.distillation_loss(x, z, reverse=True).loss, kl)
    np.testing.assert_allclose(reference.distillation_loss(x, z, reverse=True, z_loss=0.3).loss, kl + 0.3)  # lse = 1
    two = np.array([True, True, False])
    masked = reference.distillation_loss(x, z, class_mask=two).loss
    half, rest = np.array([1, 6]) / 7, np.array([2, 1]) / 3
    np.testing.assert_allclose(masked, np.sum(half * np.log(half / rest)))


@reverses
@pytest.mark.parametrize("kind", TARGETS)
def test_a_masked_class_is_as_if_it_were_not_there(kind, reverse):
    target, weight = TARGETS[kind], C
    fewer = torch.tensor([0, 1, 3, 4])
    x, z = X.clone(), Z.clone()
    x[:, 2], z[:, 2] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, 0, 1]), torch.nan
    x.requires_grad_()
    z.requires_grad_()
    options = {"reverse": reverse, "z_loss": 0.1, "label_smoothing": 0.2, "weight": weight, "teacher_grad": True}
    options |= {} if target is None else {"penalty": crossent.Focal()}
    loss = crossent.distillation_loss(x, z, 2.0, target, 0.3, class_mask=SOME, **options)
    there, theirs = X[:, fewer].requires_grad_(), Z[:, fewer].requires_grad_()
    if kind == "indices":
        target = torch.where(target > 2, target - 1, target)
    elif kind == "probabilities":
        target = target[:, fewer]
    options["weight"] = weight[fewer]
    without = crossent.distillation_loss(there, theirs, 2.0, target, 0.3, **options)
    torch.testing.assert_close(loss, without)
    for masked, small in zip(
        torch.autograd.grad(loss, (x, z)), torch.autograd.grad(without, (there, theirs)), strict=True
    ):
        assert (masked[:, 2] == 0).all()
        torch.testing.assert_close(masked[:, fewer], small)


@reverses
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("teacher_grad", [False, True])
def test_derivatives_of_any_order_and_mode(kind, reverse, teacher_grad):
    target = TARGETS[kind]
    settings = settings_of(target, MASKS["a mask of each row"], "none")
    settings.pop("sample_weight")
    if target is not None and target.is_floating_point():
        target = target * settings["class_mask"]

    def f(x, z):
        return crossent.distillation_loss(
            x, z, 2.0, target, 0.7, reverse=reverse, teacher_grad=teacher_grad, **settings
        )

    x, z = X.clone().requires_grad_(), Z.clone().requires_grad_(teacher_grad)
    assert gradcheck(f, (x, z), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(f, (x, z), check_fwd_over_rev=True, fast_mode=True)
    hessian = torch.func.hessian(lambda x: f(x, Z).sum())(X)
    torch.testing.assert_close(hessian, torch.func.jacrev(torch.func.jacrev(lambda x: f(x, Z).sum()))(X))
    (grad,) = torch.autograd.grad(f(x, z).sum(), x, create_graph=True)
    torch.testing.assert_close(hessian.sum((0, 1)), torch.autograd.grad(grad.sum(), x)[0])


@reverses
def test_no_distance_to_oneself_and_more_to_all_others(reverse):
    same = crossent.distillation_loss(X, X, 3.0, reverse=reverse, reduction="none", class_mask=SOME)
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-14, rtol=0)
    assert (crossent.distillation_loss(X, Z, 3.0, reverse=reverse, reduction="none", class_mask=SOME) > 0).all()


def test_reverse_is_the_distance_with_the_roles_exchanged():
    torch.testing.assert_close(
        crossent.distillation_loss(X, Z, 2.0, reverse=True), crossent.distillation_loss(Z, X, 2.0)
    )


def test_the_z_loss_is_added_once_whatever_alpha_is():
    extra = 0.1 * X[Y >= 0].logsumexp(1).square().mean()
    for alpha in (0.0, 0.4, 1.0):
        bare, more = (crossent.distillation_loss(X, Z, 3.0, Y, alpha, weight=C, z_loss=z) for z in (0.0, 0.1))
        torch.testing.assert_close(more, bare + extra)


@pytest.mark.parametrize("reverse", [False, True])
def test_layouts_agree(reverse):
    x, z = X.reshape(2, 3, 5), Z.reshape(2, 3, 5)
    options = {"reverse": reverse, "z_loss": 0.1, "temperature": 2.0, "reduction": "none"}
    mask = MASKS["a mask of each row"]
    rows = crossent.distillation_loss(X, Z, class_mask=mask, **options)
    last = crossent.distillation_loss(x, z, class_mask=mask.reshape(2, 3, 5), dim=-1, **options)
    torch.testing.assert_close(last, rows.view(2, 3))
    turned = [v.movedim(2, 1) for v in (x, z, mask.reshape(2, 3, 5))]
    torch.testing.assert_close(
        crossent.distillation_loss(*turned[:2], class_mask=turned[2], **options), rows.view(2, 3)
    )
    for n in range(6):
        one = crossent.distillation_loss(X[n], Z[n], class_mask=mask[n], **options)
        torch.testing.assert_close(one, rows[n])


@reverses
def test_one_graph_compiled(reverse):
    def f(x, z, y, m):
        return crossent.distillation_loss(
            x, z, 2.0, y, 0.3, reverse=reverse, class_mask=m, penalty=crossent.Focal(1.5), z_loss=0.1
        )

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    x = X.float().requires_grad_()
    ours, same = compiled(x, Z.float(), Y, SOME), f(x, Z.float(), Y, SOME)
    torch.testing.assert_close(ours, same)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (ours, same)))


def test_a_penalty_without_a_target_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"penalty must come with a target.*smallest where the student agrees.*Focal"):
        crossent.distillation_loss(X, Z, penalty=crossent.Focal())


def test_a_watcher_sees_the_student(monkeypatch):
    from crossent.core import watch

    seen = []
    monkeypatch.setattr(watch, "current", lambda: lambda _, logits, *rest: seen.append(logits))
    crossent.distillation_loss(X, Z, 2.0, z_loss=0.1)
    crossent.distillation_loss(X, Z, 2.0, reverse=True, z_loss=0.1)
    assert all(torch.equal(logits, X) for logits in seen)


def test_the_module_takes_the_same():
    options = {"reverse": True, "penalty": crossent.Focal(), "z_loss": 0.1}
    loss = crossent.DistillationLoss(2.0, 0.7, class_mask=SOME, **options)
    expected = crossent.distillation_loss(X, Z, 2.0, Y, 0.7, class_mask=SOME, **options)
    torch.testing.assert_close(loss(X, Z, Y), expected)
    assert "class_mask" not in loss.state_dict()
    assert "reverse=True" in repr(loss)
    assert "z_loss=0.1" in repr(loss)
    everywhere = crossent.DistillationLoss(2.0, 0.7, **options)
    torch.testing.assert_close(everywhere(X, Z, Y, class_mask=SOME), expected)


@pytest.mark.parametrize("blocks", [False, True], ids=["at once", "blocks"])
@pytest.mark.parametrize("masked", ["a mask", "a mask of each row"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_teachers_head_with_every_option(blocks, masked, reduction):
    torch.manual_seed(1)
    h, W, b = torch.randn(6, 4, **DOUBLE), torch.randn(5, 4, **DOUBLE), torch.randn(5, **DOUBLE)
    h.requires_grad_()
    W.requires_grad_()
    teacher = crossent.Teacher(torch.randn(6, 3, **DOUBLE), torch.randn(5, 3, **DOUBLE), temperature=2.0)
    mask = MASKS[masked]
    options = {
        "class_mask": mask,
        "z_loss": 0.1,
        "penalty": crossent.Focal(1.5),
        "reduction": reduction,
        "temperature": 2.0,
    }
    small = {"max_bytes": 100} if blocks else {}
    loss = crossent.linear_cross_entropy(h, W, teacher, linear_bias=b, **options, **small)
    grads = torch.autograd.grad(loss.sum(), (h, W))
    q = (teacher.input @ teacher.weight.T / 2).masked_fill(~mask, -torch.inf).softmax(1)
    expected = crossent.cross_entropy(h @ W.T + b, q, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), (h, W)))
    plan = crossent.linear_plan(h, W, teacher, linear_bias=b, **options, **small)
    assert (plan.blocks > 1) == blocks
    # with cross entropy's own penalty it is the distance, but for the teacher's entropy
    del options["penalty"]
    loss = crossent.linear_cross_entropy(h, W, teacher, **{**options, "z_loss": 0.0}, **small)
    entropy = -(q * q.masked_fill(q == 0, 1.0).log()).sum(1)
    distance = crossent.distillation_loss(
        h @ W.T, teacher.input @ teacher.weight.T, 2.0, class_mask=mask, reduction=reduction
    )
    torch.testing.assert_close(loss - (entropy if reduction == "none" else entropy.mean()), distance / 4)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_a_teacher_learns_nothing_of_a_row_without_weight(garbage, reverse):
    x, z = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    x[1], z[1, :2] = garbage, garbage
    leaves, few = (x.requires_grad_(), z.requires_grad_()), [t.detach()[[0, 2]].requires_grad_() for t in (x, z)]
    options = {"reverse": reverse, "teacher_grad": True}
    loss = crossent.distillation_loss(*leaves, 2.0, sample_weight=torch.tensor([1.0, 0.0, 1.0]), **options)
    expected = crossent.distillation_loss(*few, 2.0, **options)
    torch.testing.assert_close(loss, expected)
    for got, right in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, few), strict=True):
        torch.testing.assert_close(got[[0, 2]], right)
        assert (got[1] == 0).all()
