"""What deferred heads say, and make others say: no alarm without a reason, and an advice that an installed user can follow."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from ranks import pool
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import crossent
from crossent.models.defer import Logits
from crossent.models.logits import FOLLOWED

V, D = 40, 5
ranks = pool(1)


@pytest.fixture(autouse=True)
def _counted():
    Logits.reset()


def logits(rows=6):
    return crossent.defer(nn.Linear(D, V))(torch.randn(rows, D))


# --- FSDP2 -------------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A model that returns the logits of some positions, which are a view of what it computes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.lm_head = nn.Embedding(V, D), nn.Linear(D, V)

    def forward(self, ids):
        return self.lm_head(self.tokens(ids).cumsum(1).tanh())[:, :-1]


def trained_without_a_warning(units):
    """FSDP2 warns of an output that is a view, since an operation in place would lose its hook; ours has no such operation."""
    model, plain = Model(), Model()
    crossent.defer(model.lm_head, max_bytes=3 * V * 4)
    ids = torch.randint(V, (3, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in units:
            fully_shard(getattr(model, name))
        fully_shard(model)
        x = model(ids)
        x /= 2.0
        loss = F.cross_entropy(x.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
    right = F.cross_entropy(plain(ids).flatten(0, 1) / 2.0, ids[:, 1:].flatten())
    right.backward()
    torch.testing.assert_close(loss, right)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad.full_tensor(), q.grad)
    assert Logits.formed == 0


@pytest.mark.parametrize("units", [[], ["lm_head"]], ids=["root", "head apart"])
def test_fsdp_has_nothing_to_warn_of(ranks, units):
    ranks.assert_holds(trained_without_a_warning, units)


# --- the warning that logits were formed --------------------------------------------------------------------------------


def test_the_advice_is_installed_with_the_package():
    with pytest.warns(UserWarning, match="sigmoid formed the logits") as told:
        logits().sigmoid()
    (message,) = (str(each.message) for each in told)
    assert "help(crossent.Logits)" in message
    assert "docs/" not in message


def test_the_help_names_what_is_followed():
    listed = Logits.__doc__.partition("a block\n    of rows at a time")[2].partition("Positions may be")[0]
    calls = re.findall(r"(?:``|\.)([a-z_]+)(?=``|\()", listed)
    assert set(calls) >= {"cross_entropy", "nll_loss", "log_softmax", "gather", "logsumexp", "amax", "kl_div"}
    assert [name for name in calls if name not in FOLLOWED] == []


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x[0, :3].tolist(),
        lambda x: x[0].sigmoid(),
        lambda x: x[2:3, :].sigmoid(),
        lambda x: x.log_softmax(-1)[2].exp().numpy(force=True),
    ],
    ids=["three numbers", "a row", "a row of a batch", "probabilities of a row"],
)
def test_a_few_numbers_are_no_alarm(look):
    """A block is a row at least, so that nothing could be saved. It is counted."""
    look(logits())
    assert Logits.formed == 1
    (place,) = Logits.places
    assert __file__ in place


@pytest.mark.parametrize("look", [lambda x: x[:2].sigmoid(), lambda x: x[:, :3].sigmoid()], ids=["rows", "classes"])
def test_more_numbers_are(look):
    with pytest.warns(UserWarning, match="saves no memory"):
        look(logits())


# --- PEFT --------------------------------------------------------------------------------------------------------------


def test_a_head_adapted_after_it_was_deferred_is_told_of_the_order():
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(D, D), nn.Linear(D, V))
    crossent.defer(model[1])
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["1"], r=2))
    h, y = torch.randn(6, D), torch.randint(V, (6,))
    with pytest.warns(UserWarning, match=r"call crossent\.defer after get_peft_model"):
        loss = F.cross_entropy(adapted(h), y)
    torch.testing.assert_close(loss, F.cross_entropy(crossent.undefer(adapted)(h), y))


def test_a_head_that_a_plan_holds_is_told_what_computes_its_loss():
    head = nn.Linear(D, V)
    head.forward = head.forward
    with pytest.raises(
        RuntimeError, match=r"leave the head out of the plan.*linear_cross_entropy.*shard= or of DTensors"
    ):
        crossent.defer(head)
