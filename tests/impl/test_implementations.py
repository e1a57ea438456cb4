"""What an implementation is: a third one is a file with an object, and one line."""

from __future__ import annotations

import pytest
import torch

import crossent
from crossent import impl
from crossent.impl.protocol import Forward, Gradients, Implementation


class Tiny(Implementation):
    """Sums and means of plain cross entropy of class indices in float64, by the definition."""

    name = "tiny"

    def refuses(self, logits, target=None, described=None):
        if logits.dtype != torch.float64 or described is None or not described.plain or not described.indices:
            return "tiny takes plain cross entropy of class indices in float64"
        return None

    def cross_entropy_forward(self, logits, target, reduction):
        lse = torch.stack([logits.logsumexp(1), torch.zeros_like(logits.select(1, 0))])
        _, y, row_weight = target.labels(logits)
        loss = (row_weight * (lse[:1].movedim(0, 1) - logits.gather(1, y))).squeeze(1)
        row_weight = row_weight.squeeze(1)
        if reduction == "none":
            return Forward(loss, row_weight, lse)
        total, weight = loss.sum(), row_weight.sum()
        return Forward(total / weight if reduction == "mean" else total, weight, lse)

    def cross_entropy_backward(self, grad, logits, target, lse, needs, divisor=1.0, inplace=False):
        _, y, row_weight = target.labels(logits)
        g = row_weight * (grad / divisor if grad.dim() == 0 else grad.unsqueeze(1))
        hot = torch.zeros_like(logits).scatter_(1, y, 1.0)
        return Gradients(g * ((logits - lse.sum(0).unsqueeze(1)).exp() - hot))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(impl, "_LOADED", dict(impl._LOADED))
    impl.register(Tiny())


def test_a_third_implementation_is_chosen_named_and_refused(tiny):
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, -100, 3, 2, 1])
    assert crossent.implementations()["tiny"] is None
    assert crossent.choose_implementation(x, target=y) == "tiny"
    assert crossent.choose_implementation(x.float(), target=y) != "tiny"
    assert crossent.choose_implementation(x, target=y, penalty=crossent.Focal()) != "tiny"
    with pytest.raises(RuntimeError, match="impl='tiny' cannot run here: tiny takes plain"):
        crossent.cross_entropy(x, y, penalty=crossent.Focal(), impl="tiny")


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_third_implementation_gives_every_derivative(tiny, reduction):
    x, y = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, -100, 3, 2, 1])

    def loss(impl):
        return crossent.cross_entropy(x, y, torch.arange(1.0, 5.0).double(), reduction=reduction, impl=impl)

    torch.testing.assert_close(loss("tiny"), loss("eager"))
    (ours,), (theirs,) = (torch.autograd.grad(loss(name).sum(), x, create_graph=True) for name in ("tiny", "eager"))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(g.square().sum(), x)[0] for g in (ours, theirs)))


@pytest.mark.parametrize("name", sorted(crossent.implementations()))
def test_an_implementation_is_named_after_itself(name):
    reason = crossent.implementations()[name]
    if reason is not None:
        pytest.skip(reason)
    assert impl.load(name).name == name
