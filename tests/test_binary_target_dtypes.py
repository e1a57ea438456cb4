"""Targets of the binary loss that are not floating: refused with the type of exception that the installed torch has for them."""

import pytest
import torch
import torch.nn.functional as F

import crossent
from crossent.core import checks

X = torch.zeros(4, 3)
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
CALLS = {
    "function": crossent.binary_cross_entropy_with_logits,
    "module": lambda x, t: crossent.BCEWithLogitsLoss()(x, t),
    "focal": crossent.sigmoid_focal_loss,
    "focal module": lambda x, t: crossent.SigmoidFocalLoss()(x, t),
    "weighted": lambda x, t: crossent.binary_cross_entropy_with_logits(x, t, pos_weight=torch.ones(3)),
    "no reduction": lambda x, t: crossent.binary_cross_entropy_with_logits(x, t, reduction="none"),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_refused_as_torch_refuses(call, dtype):
    target = torch.ones(4, 3).to(dtype)
    with pytest.raises(Exception) as theirs:
        F.binary_cross_entropy_with_logits(X, target)
    with pytest.raises(theirs.type, match="target must be floating") as ours:
        CALLS[call](X, target)
    assert ours.type is theirs.type
    right = CALLS[call](X, target.float())
    assert right.isfinite().all()


@pytest.mark.parametrize("kind", [NotImplementedError, RuntimeError, TypeError])
def test_another_torch_is_followed(monkeypatch, kind):
    def refuse(input, target):
        raise kind("as this version has it")

    monkeypatch.setattr(checks, "binary_cross_entropy_with_logits", refuse)
    with pytest.raises(kind, match="target must be floating") as caught:
        crossent.binary_cross_entropy_with_logits(X, X.bool())
    assert caught.type is kind


def test_a_torch_that_would_take_them_is_not_followed(monkeypatch):
    """What a bool target means is then to be seen: until it is, it stays refused."""
    monkeypatch.setattr(checks, "binary_cross_entropy_with_logits", lambda input, target: input)
    with pytest.raises(RuntimeError, match="target must be floating"):
        crossent.binary_cross_entropy_with_logits(X, X.bool())
