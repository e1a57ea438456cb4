"""Tensors whose memory does not hold their numbers: views of conjugates, whose sign is changed later, and zeros to be written."""

import pytest
import torch

import crossent

N, C = 6, 5


def negative(t):
    return torch._neg_view(-t)


def zeros(t):
    return torch._efficientzerotensor(t.shape, dtype=t.dtype)


def imaginary(t):
    return torch.complex(torch.zeros_like(t), -t).conj().imag


def losses(kind, x, y, t, c, g):
    """Call what reads logits, probabilities, weights and incoming gradients, with the loss and gradients of each."""
    x = x.detach().requires_grad_()
    calls = {
        "index": lambda: crossent.cross_entropy(x, y, c),
        "sum": lambda: crossent.cross_entropy(x, y, c, reduction="sum", label_smoothing=0.1),
        "rows": lambda: crossent.cross_entropy(x, y, c, reduction="none"),
        "soft": lambda: crossent.cross_entropy(x, t, c, label_smoothing=0.1),
        "focal": lambda: crossent.focal_loss(x, y, logit_bias=c),
        "statistics": lambda: torch.stack(crossent.cross_entropy_stats(x, y)[:3]),
        "binary": lambda: crossent.binary_cross_entropy_with_logits(x, t, pos_weight=c),
        "binary rows": lambda: crossent.binary_cross_entropy_with_logits(x, t, weight=c, reduction="none"),
    }
    loss = calls[kind]()
    if not loss.requires_grad:
        return [loss]
    grad = g if loss.dim() == 0 else g.expand(loss.shape)
    return [loss, *torch.autograd.grad(loss, x, grad)]


KINDS = ("index", "sum", "rows", "soft", "focal", "statistics", "binary", "binary rows")


@pytest.mark.parametrize("deferred", [negative, imaginary, zeros])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [N, 4000])  # small, and not
@pytest.mark.parametrize("which", ["logits", "probabilities", "weights", "gradient"])
def test_numbers_are_read_as_they_are(kind, rows, which, deferred):
    x, y, t, c = torch.randn(rows, C), torch.randint(C, (rows,)), torch.rand(rows, C), torch.rand(C)
    tensors = {"logits": x, "probabilities": t, "weights": c, "gradient": torch.tensor(3.0)}
    if deferred is zeros and kind == "index" and which == "weights":
        pytest.skip("a mean over rows of no weight is nan")
    spoilt = deferred(tensors[which])
    right = {**tensors, which: spoilt.clone().resolve_neg()}
    ours = losses(kind, *_order({**tensors, which: spoilt}, y))
    theirs = losses(kind, *_order(right, y))
    torch.testing.assert_close(ours[0], theirs[0], equal_nan=True)
    if len(ours) == len(theirs) == 2:
        torch.testing.assert_close(ours[1], theirs[1], equal_nan=True)
    if which == "logits" and kind == "rows":
        torch.testing.assert_close(ours[0], torch.nn.functional.cross_entropy(spoilt, y, c, reduction="none"))


def _order(tensors, y):
    return tensors["logits"], y, tensors["probabilities"], tensors["weights"], tensors["gradient"]


@pytest.mark.parametrize("rows", [N, 4000])
def test_a_gradient_is_not_written_over_a_deferred_sign(rows):
    leaf, y = torch.randn(rows, C, requires_grad=True), torch.randint(C, (rows,))
    for loss in (
        lambda x: crossent.cross_entropy(x, y, inplace_backward=True),
        lambda x: crossent.binary_cross_entropy_with_logits(x, x.detach().sigmoid(), inplace_backward=True),
    ):
        ours = torch.autograd.grad(loss(torch._neg_view(-leaf)), leaf)[0]
        theirs = torch.autograd.grad(loss(leaf * 1.0), leaf)[0]
        torch.testing.assert_close(ours, theirs)


def test_a_target_in_the_memory_of_the_logits_survives_an_in_place_gradient():
    leaf = torch.rand(4000, C, requires_grad=True)
    for loss in (crossent.cross_entropy, crossent.binary_cross_entropy_with_logits):
        x = leaf * 1.0
        ours = torch.autograd.grad(loss(x, x.detach(), inplace_backward=True), leaf)[0]
        theirs = torch.autograd.grad(loss(leaf, leaf.detach()), leaf)[0]
        torch.testing.assert_close(ours, theirs)
