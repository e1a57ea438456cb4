"""``Logits`` beside plain logits: the same values, gradients, shapes and dtypes, and not a logit formed."""

from __future__ import annotations

import inspect

import cases
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import crossent
from crossent.models.defer import Logits

B, T, D, V = 2, 6, 5, 40
DOUBLE = {"dtype": torch.float64}
Y = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(3))
MASKED = Y.masked_fill(torch.arange(T) < 2, -100)
KEEP = torch.rand(B, T, generator=torch.Generator().manual_seed(4)) > 0.4
ROWS = torch.rand(B, T, 1, generator=torch.Generator().manual_seed(5), **DOUBLE)
CLASSES = torch.randn(V, generator=torch.Generator().manual_seed(6), **DOUBLE)
MASK = torch.arange(V) % 7 == 3
LABELS = Y.masked_fill(MASK[Y], 0)


@pytest.fixture(autouse=True)
def _counted():
    Logits.reset()


def heads(bias=True, size=3 * V * 8, **kind):
    """Return deferred logits and plain ones, and the leaves that both have."""
    torch.manual_seed(0)
    kind = DOUBLE | kind
    h, W, b = (torch.randn(s, **kind, requires_grad=True) for s in ((B, T, D), (V, D), (V,)))
    leaves = [h, W, b] if bias else [h, W]
    return Logits.of(h, W, b if bias else None, max_bytes=size), F.linear(*leaves), leaves


def assert_same(ask, *, bias=True, formed=0, grad=True, **kind):
    """Hold what is asked of deferred logits, and its gradients, to what plain ones answer."""
    deferred, plain, leaves = heads(bias, **kind)
    ours, theirs = ask(deferred), ask(plain)
    for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True):
        assert isinstance(a, torch.Tensor)
        torch.testing.assert_close(a, b)
        if grad and b.requires_grad:
            seed = torch.rand(b.shape, generator=torch.Generator().manual_seed(9), dtype=b.dtype)
            got, right = (torch.autograd.grad(x, leaves, seed, retain_graph=True, allow_unused=True) for x in (a, b))
            for x, y in zip(got, right, strict=True):
                torch.testing.assert_close(torch.zeros(()) if x is None else x, torch.zeros(()) if y is None else y)
    assert Logits.formed == formed, Logits.report()
    assert formed or Logits.blocked


LOSSES = {
    "cross entropy": lambda x: F.cross_entropy(x.view(-1, V), Y.view(-1)),
    "by keyword": lambda x: F.cross_entropy(target=MASKED.view(-1), input=x.reshape(-1, V), reduction="sum"),
    "none, smoothed": lambda x: F.cross_entropy(x.flatten(0, 1), Y.flatten(), label_smoothing=0.1, reduction="none"),
    "class weights": lambda x: F.cross_entropy(x.view(B * T, -1), MASKED.view(-1), CLASSES.abs()),
    "classes second": lambda x: F.cross_entropy(x.transpose(1, 2), MASKED),
    "classes second, permuted": lambda x: F.cross_entropy(x.permute(0, 2, 1).contiguous(), Y, reduction="none"),
    "ignoring a class": lambda x: F.cross_entropy(x.view(-1, V), Y.view(-1), ignore_index=3),
    "one row": lambda x: F.cross_entropy(x[0, 0], Y[0, 0]),
    "module": lambda x: nn.CrossEntropyLoss(label_smoothing=0.2)(x.view(-1, V), Y.view(-1)),
    "our module": lambda x: crossent.CrossEntropyLoss(z_loss=0.1)(x.view(-1, V), Y.view(-1)),
    "ours": lambda x: crossent.cross_entropy(x, MASKED, dim=-1, softcap=3.0, denominator=7.0),
    "ours, wide": lambda x: crossent.cross_entropy(x, MASKED, dim=-1, temperature=2.0, sample_weight=ROWS[..., 0]),
    "our statistics": lambda x: crossent.cross_entropy_stats(x, MASKED, dim=-1),
    "focal": lambda x: crossent.focal_loss(x.view(-1, V), Y.view(-1)),
    "probabilities": lambda x: F.cross_entropy(x.view(-1, V), torch.eye(V, **DOUBLE)[Y.view(-1)] * 0.5),
    "log_softmax, nll_loss": lambda x: F.nll_loss(F.log_softmax(x, -1).view(-1, V), MASKED.view(-1)),
    "log_softmax, NLLLoss": lambda x: nn.NLLLoss(reduction="sum")(x.log_softmax(dim=2).transpose(1, 2), MASKED),
    "LogSoftmax": lambda x: F.nll_loss(nn.LogSoftmax(1)(x.view(-1, V)), Y.view(-1), reduction="none"),
    "of log-probabilities": lambda x: F.cross_entropy(x.log_softmax(-1).view(-1, V), Y.view(-1)),
    "gathered": lambda x: torch.gather(x.log_softmax(-1), 2, Y.unsqueeze(-1)).squeeze(-1),
    "gathered probabilities": lambda x: x.softmax(-1).gather(-1, Y.unsqueeze(-1)),
    "gathered logits": lambda x: x.gather(-1, Y.unsqueeze(-1)) - x.logsumexp(-1, keepdim=True),
    "taken along": lambda x: torch.take_along_dim(x.log_softmax(-1), Y.unsqueeze(-1), -1),
    "indexed": lambda x: x.view(-1, V).log_softmax(1)[torch.arange(B * T), Y.view(-1)],
    "a few gathered": lambda x: x.log_softmax(-1).gather(-1, torch.stack([Y, (Y + 1) % V], -1)),
    "first of the rows gathered": lambda x: x.log_softmax(-1).gather(-1, Y[:1, :4].unsqueeze(-1)),
    "lse": lambda x: torch.logsumexp(x, dim=-1),
    "lse row by row": lambda x: torch.stack([torch.logsumexp(row, dim=-1) for row in x]),
    "z-loss": lambda x: F.cross_entropy(x.view(-1, V), Y.view(-1)) + x.logsumexp(-1).square().mean(),
    "entropy": lambda x: -(x.softmax(-1) * x.log_softmax(-1)).sum(-1),
    "entropy, TRL's": lambda x: torch.cat([-(torch.exp(p) * p).sum(-1) for p in x.view(-1, V).log_softmax(-1).split(5)]),
    "argmax": lambda x: x.argmax(-1),
    "accuracy": lambda x: (x[:, :-1].argmax(dim=-1) == Y[:, 1:]).float().mean(),
    "max": lambda x: tuple(x.max(-1)),
    "largest probability": lambda x: x.softmax(-1).max(dim=-1, keepdim=True)[0],
    "amax": lambda x: x.amax(-1),
    "sums of log-probabilities": lambda x: x.log_softmax(-1).sum(-1, keepdim=True),
    "means of log-probabilities": lambda x: (-x.log_softmax(-1)).mean(-1),
    "mean logit": lambda x: x.mean(-1),
    "yes or no": lambda x: x[:, -1, [3, 7]].log_softmax(-1).gather(-1, Y[:, :1] % 2),
    "one class": lambda x: x[..., 3] + 0 * x.logsumexp(-1),
    "unlikelihood": lambda x: torch.log1p(-x.softmax(-1).gather(-1, Y.unsqueeze(-1))),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [3 * V * 8, None], ids=["blocks", "at once"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_what_is_asked_is_what_plain_logits_answer(name, size, bias):
    assert_same(LOSSES[name], bias=bias, size=size)


@pytest.mark.parametrize("name", cases.SPECIAL)
@pytest.mark.parametrize("function", [crossent.cross_entropy, crossent.cross_entropy_stats])
def test_every_option_is_taken_over(name, function):
    """What the record has, with class weights and smoothing; nothing may be lost between deferred logits and the head."""
    _, y, given = cases.tensors(next(case for case in cases.FAMILY if case.name == name), torch.float64)
    given |= {"weight": torch.linspace(0.5, 2, 5, **DOUBLE)}
    if name != "impossible class":
        given["label_smoothing"] = 0.1
    torch.manual_seed(0)
    leaves = [torch.randn(shape, **DOUBLE, requires_grad=True) for shape in ((7, D), (5, D), (5,))]
    found = [function(x, y, **given) for x in (Logits.of(*leaves, max_bytes=100), F.linear(*leaves))]
    if function is crossent.cross_entropy_stats:
        found = [stats.loss.sum() + stats.lse.sum() for stats in found]
    torch.testing.assert_close(*found)
    for ours, theirs in zip(*(torch.autograd.grad(loss, leaves) for loss in found), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert Logits.formed == 0, Logits.report()
    assert Logits.blocked


def set_masked(x):
    x = x.clone()
    x[:, :, MASK] = torch.finfo(x.dtype).min
    return x


def scaled_in_place(x):
    x = x.clone()
    x /= 3.0
    x.mul_(0.5)
    return x


CHANGES = {
    "shifted": lambda x: x[..., :-1, :].contiguous(),
    "sliced": lambda x: x[:, 1:4],
    "a mask of positions": lambda x: x[KEEP],
    "positions": lambda x: x[torch.tensor([1, 0]), torch.tensor([3, 5])],
    "last": lambda x: x[:, -1],
    "a new dimension": lambda x: x[:, None].unsqueeze(0).squeeze(),
    "reshaped": lambda x: x.reshape(B, T // 2, 2, V).flatten(1, 2).unflatten(1, (3, 2)),
    "permuted": lambda x: x.permute(1, 0, 2).movedim(0, 1).transpose(0, 1),
    "there and back": lambda x: x.transpose(1, 2).mT,
    "in parts": lambda x: torch.cat([*x.split(2, dim=1)][::-1], dim=1),
    "in chunks": lambda x: torch.stack(x.chunk(2)),
    "unbound": lambda x: torch.stack(list(x), dim=1),
    "narrowed": lambda x: x.narrow(1, 1, 3).select(0, 1),
    "rows by number": lambda x: x.index_select(1, torch.tensor([4, 4, 0])),
    "rolled and flipped": lambda x: x.roll(1, 1).flip(0),
    "float": lambda x: x.float().double(),
    "to": lambda x: x.to(torch.float32).to("cpu", torch.float64).type_as(x),
    "to another's": lambda x: x.to(CLASSES),
    "scaled": lambda x: -0.5 * (x * 3 / 2),
    "scaled by a tensor": lambda x: x * torch.tensor(0.3, **DOUBLE) / torch.tensor([2.0], **DOUBLE),
    "scaled in place": scaled_in_place,
    "capped": lambda x: 3.0 * torch.tanh(x / 3.0),
    "capped, as Gemma": lambda x: torch.tanh(x / 2.0) * 2.0,
    "capped and scaled": lambda x: (x / 2.0).tanh() * -2.0 / 0.7 + CLASSES,
    "a bias more": lambda x: x + CLASSES,
    "a bias of logits' rank": lambda x: CLASSES.view(1, 1, -1) + x - 0.5,
    "a scale a class": lambda x: x * CLASSES / CLASSES.exp(),
    "fewer classes": lambda x: x[..., :30],
    "fewer classes of some": lambda x: x[:, ::2, :30].narrow(-1, 0, 29),
    "detached": lambda x: x.detach(),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_done_since_is_in_the_loss(name):
    def losses(x):
        changed = CHANGES[name](x)
        rows = changed.reshape(-1, changed.shape[-1])
        labels = torch.arange(rows.shape[0]) % 29
        return F.cross_entropy(rows, labels), rows.log_softmax(-1).gather(1, labels.unsqueeze(1)), rows.argmax(1)

    assert_same(losses)


@pytest.mark.parametrize("name", CHANGES)
def test_logits_that_are_formed_are_the_right_ones(name):
    deferred, plain, _ = heads()
    changed, right = CHANGES[name](deferred), CHANGES[name](plain)
    assert (changed.shape, changed.dtype, changed.ndim, len(changed)) == (
        right.shape,
        right.dtype,
        right.ndim,
        len(right),
    )
    assert (changed.numel(), changed.size(), changed.size(-1), changed.dim()) == (
        right.numel(), right.size(), right.size(-1), right.dim(),
    )  # fmt: skip
    assert Logits.formed == 0
    with pytest.warns(UserWarning, match="to_tensor formed the logits of a deferred head"):
        torch.testing.assert_close(changed.to_tensor(), right)
    assert Logits.formed == 1


def test_one_scale_a_position():
    assert_same(lambda x: F.cross_entropy((x * ROWS).view(-1, V), Y.view(-1)), bias=False)


@pytest.mark.parametrize("mask", [set_masked, lambda x: x.masked_fill(MASK, -torch.inf)], ids=["set", "filled"])
def test_masked_classes(mask):
    assert_same(
        lambda x: (F.cross_entropy(mask(x).view(-1, V), LABELS.view(-1)), mask(x).logsumexp(-1), mask(x).argmax(-1))
    )


def test_a_learned_scale_learns():
    scale = torch.tensor(0.7, **DOUBLE, requires_grad=True)
    deferred, plain, _ = heads()
    losses = [F.cross_entropy((x * scale.exp()).view(-1, V), Y.view(-1)) for x in (deferred, plain)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, scale) for loss in losses))


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean"])
@pytest.mark.parametrize("log_target", [False, True])
def test_a_teachers_logits(reduction, log_target):
    torch.manual_seed(1)
    z, U = torch.randn(B, T, 3, **DOUBLE), torch.randn(V, 3, **DOUBLE)

    def loss(x):
        teacher = Logits.of(z, U) if isinstance(x, Logits) else z @ U.T
        q = (F.log_softmax if log_target else F.softmax)(teacher / 2, -1)
        return F.kl_div(F.log_softmax(x / 2, -1), q, reduction=reduction, log_target=log_target)

    assert_same(loss)


def test_a_teacher_whose_logits_are_there():
    t = torch.randn(B, T, V, **DOUBLE).softmax(-1)
    assert_same(lambda x: F.kl_div(x.log_softmax(-1), t, reduction="batchmean"))


def test_a_teacher_that_learns_is_formed():
    """Its gradient is not that of a constant."""
    torch.manual_seed(1)
    z, U = torch.randn(B, T, 3, **DOUBLE, requires_grad=True), torch.randn(V, 3, **DOUBLE)
    deferred, plain, _ = heads()
    with pytest.warns(UserWarning, match="kl_div formed"):
        ours = F.kl_div(deferred.log_softmax(-1), Logits.of(z, U).softmax(-1), reduction="sum")
    theirs = F.kl_div(plain.log_softmax(-1), (z @ U.T).softmax(-1), reduction="sum")
    torch.testing.assert_close(*(torch.autograd.grad(x, z) for x in (ours, theirs)))


def test_smoothing_as_transformers_writes_it():
    def smoothed(x):
        log_p = -F.log_softmax(x[..., :-1, :].contiguous(), dim=-1)
        labels = MASKED[..., 1:].unsqueeze(-1)
        masked = labels.eq(-100)
        nll = log_p.gather(dim=-1, index=labels.clamp(min=0))
        spread = log_p.sum(dim=-1, keepdim=True, dtype=torch.float32)
        nll.masked_fill_(masked, 0.0)
        spread.masked_fill_(masked, 0.0)
        return 0.9 * nll.sum() / 7 + 0.1 * spread.sum() / (7 * log_p.shape[-1])

    assert_same(smoothed)


# One value for each keyword of ours, by which a result changes, or which only says how it is computed.
OWN = {
    "sample_weight": {"sample_weight": ROWS.view(-1)},
    "denominator": {"denominator": 7.0},
    "empty": {"empty": "zero", "ignore_index": 3},
    "out_dtype": {"out_dtype": torch.float32},
    "dim": {"dim": -1},
    "penalty": {"penalty": crossent.Poly1(0.5)},
    "temperature": {"temperature": 0.5},
    "softcap": {"softcap": 2.0},
    "logit_bias": {"logit_bias": CLASSES},
    "margin": {"margin": 0.4},
    "class_mask": {"class_mask": ~MASK},
    "z_loss": {"z_loss": 0.3},
    "softcap_after_temperature": {"softcap": 2.0, "temperature": 0.5, "softcap_after_temperature": True},
    "inplace_backward": {"inplace_backward": True},
    "inplace_forward": {"inplace_forward": True},
    "impl": {"impl": "eager"},
}  # fmt: skip
ELSEWHERE = {"shard"}  # test_defer_sharded.py has it, which takes processes


@pytest.mark.parametrize("name", OWN)
def test_no_option_of_ours_is_lost(name):
    labels = (LABELS if name == "class_mask" else Y).view(-1)
    deferred, plain, leaves = heads()
    results = []
    for x in (deferred, plain):
        loss = crossent.cross_entropy(x.view(-1, V), labels, **OWN[name])
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (Logits.formed, Logits.blocked) == (0, 1)


@pytest.mark.parametrize("loss", [crossent.cross_entropy, crossent.cross_entropy_stats])
def test_every_option_of_ours_is_tried(loss):
    names = {name for name, p in inspect.signature(loss).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert names <= set(OWN) | ELSEWHERE
    assert loss is crossent.cross_entropy_stats or names == set(OWN) | ELSEWHERE


def test_an_option_that_is_not_known_forms_the_logits():
    """One that a later version has is not lost, either."""
    deferred, *_ = heads()
    with pytest.warns(UserWarning, match="cross_entropy formed"), pytest.raises(TypeError, match="novelty"):
        torch.overrides.handle_torch_function(
            crossent.cross_entropy, (deferred,), deferred.view(-1, V), Y.view(-1), novelty=3
        )


# --- what is not followed -----------------------------------------------------------------------------------------------

FORMING = {
    "sigmoid": lambda x: x.sigmoid(),
    "a product": lambda x: x @ torch.ones(V, 2, **DOUBLE),
    "a comparison": lambda x: x > 0,
    "a sum over positions": lambda x: x.sum(1),
    "standard deviation": lambda x: torch.std(x, dim=-1),
    "flat": lambda x: x.view(-1),
    "one number a logit": lambda x: x + torch.ones(B, T, V, **DOUBLE),
    "rows scaled before a bias": lambda x: x * ROWS,
    "softmax over positions": lambda x: x.softmax(1),
    "where": lambda x: torch.where(KEEP.unsqueeze(-1), x, 0.0),
    "mse": lambda x: F.mse_loss(x, torch.zeros(B, T, V, **DOUBLE)),
    "double reversed": lambda x: 2 - x,
    "reciprocal": lambda x: 1 / x,
    "KL of each": lambda x: F.kl_div(x.log_softmax(-1), torch.full((B, T, V), 1 / V, **DOUBLE), reduction="none"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMING)
def test_anything_else_forms_the_logits_and_says_where(name):
    with pytest.warns(UserWarning, match="the result is right, and saves no memory"):
        assert_same(FORMING[name], formed=1)
    ((place, count),) = Logits.places.items()
    assert count == 1
    assert __file__ in place
    assert place in Logits.report()


def test_a_place_warns_once_and_counts_always():
    deferred, *_ = heads()
    with pytest.warns(UserWarning, match="sigmoid formed") as told:
        _ = [deferred.sigmoid() for _ in range(3)]
    assert len(told) == 1
    assert Logits.formed == 3
    assert list(Logits.places.values()) == [3]


def test_errors_are_torchs():
    deferred, plain, _ = heads()
    for ask in (
        lambda x: F.cross_entropy(x.view(-1, V), torch.full((B * T,), V)),
        lambda x: F.cross_entropy(x.view(-1, V), Y.view(-1), reduction="average"),
        lambda x: x.log_softmax(-1).gather(-1, MASKED.unsqueeze(-1)),
        lambda x: x.frobnicate(),
    ):
        with pytest.raises(Exception) as right:
            ask(plain)
        with pytest.raises((IndexError, type(right.value))):
            ask(deferred)


def test_writing_to_what_others_have_seen_is_refused():
    deferred, *_ = heads()
    view = deferred[:, :-1]
    deferred.div_(2.0)
    with pytest.raises(RuntimeError, match="were changed in place"):
        F.cross_entropy(view.flatten(0, 1), Y[:, :-1].flatten())
    F.cross_entropy(deferred.flatten(0, 1), Y.flatten())


def rows_set(x):
    x[:, 0] = -3.0


def some_set(x):
    x[..., 5] = torch.arange(B * T, **DOUBLE).view(B, T)


WRITES = {
    "sigmoid_": lambda x: x.sigmoid_(),
    "add_": lambda x: x.add_(torch.ones(B, T, V, **DOUBLE)),
    "copy_": lambda x: x.copy_(torch.arange(V, **DOUBLE)),
    "clamp_": lambda x: torch.clamp_(x, -0.5, 0.5),
    "relu": lambda x: F.relu(x, inplace=True),
    "out": lambda x: torch.exp(torch.ones(B, T, V, **DOUBLE), out=x),
    "rows set": rows_set,
    "some set": some_set,
    "masked positions": lambda x: x.masked_fill_(KEEP.unsqueeze(-1), 0.25),
    "twice": lambda x: x.clamp_(max=0.5).mul_(2.0).add_(1.0),
    "initialised": lambda x: nn.init.constant_(x, 0.5),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*saves no memory")
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_to_logits_stays_written(name, inference):
    """Also where nothing takes the place of the variable, and the logits had to be formed for it."""
    deferred, plain, leaves = heads()
    if name == "out" or inference:
        deferred, plain = deferred.detach(), plain.detach()
    results = []
    with torch.inference_mode(inference):
        for x in (deferred, plain):
            x = x.clone()
            WRITES[name](x)
            row = F.cross_entropy(x.view(-1, V), Y.view(-1), reduction="none")
            results.append([row, x.argmax(-1), x.std(-1), x[:, 1:].logsumexp(-1), torch.cat([x, x], 1).mean(-1)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
        if theirs.requires_grad:
            got, right = (
                torch.autograd.grad(r.sum(), leaves, retain_graph=True, allow_unused=True) for r in (ours, theirs)
            )
            torch.testing.assert_close(got, right)
    assert Logits.formed == 1, Logits.report()


class Fused(torch.autograd.Function):
    """A loss of somebody's own, as kernels bring it."""

    @staticmethod
    def forward(ctx, x, scale):
        return x.logsumexp(-1) * scale

    @staticmethod
    def backward(ctx, g):
        return None, None


def test_a_function_that_would_lose_the_gradient_is_refused():
    """To an autograd.Function what is no tensor is a constant."""
    deferred, *_ = heads()
    with pytest.raises(RuntimeError, match=r"given deferred logits, .* pass logits\.to_tensor\(\)"):
        Fused.apply(deferred, torch.tensor(2.0, **DOUBLE, requires_grad=True))
    with torch.no_grad():
        assert deferred.argmax(-1).shape == (B, T)
    Fused.apply(deferred.detach(), torch.tensor(2.0, **DOUBLE, requires_grad=True))
    with pytest.warns(UserWarning, match="to_tensor formed"):
        Fused.apply(deferred.to_tensor(), torch.tensor(2.0, **DOUBLE, requires_grad=True))


@pytest.mark.filterwarnings("ignore:.*saves no memory")
def test_writing_what_had_to_be_formed_is_known_to_others():
    for write, read in ((0, 1), (1, 0)):
        deferred, *_ = heads()
        both = (deferred, deferred[:, 1:])
        both[write].sigmoid_()
        with pytest.raises(RuntimeError, match="were changed in place"):
            both[read].argmax(-1)
        leaves, spec = pytree.tree_flatten(both[write])
        again = pytree.tree_unflatten(leaves, spec)
        torch.testing.assert_close(again.to_tensor(), both[write].to_tensor())
        assert again.to_tensor().max() < 1


# --- dtypes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_dtypes_and_nearly_the_values(half):
    deferred, plain, leaves = heads(dtype=half, size=3 * V * 2)
    for ask in (
        lambda x: F.cross_entropy(x.view(-1, V), Y.view(-1)),
        lambda x: F.cross_entropy(x.float().view(-1, V), Y.view(-1)),
        lambda x: x.log_softmax(-1).gather(-1, Y.unsqueeze(-1)),
        lambda x: F.log_softmax(x, -1, dtype=torch.float32).gather(-1, Y.unsqueeze(-1)),
        lambda x: x.logsumexp(-1),
        lambda x: (x * torch.tensor([0.5])).logsumexp(-1),
    ):
        ours, theirs = ask(deferred), ask(plain)
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.05)
        got, right = (torch.autograd.grad(x.sum(), leaves, retain_graph=True) for x in (ours, theirs))
        for a, b in zip(got, right, strict=True):
            torch.testing.assert_close(a, b, rtol=0.05, atol=0.1)
    assert Logits.formed == 0


def test_autocast_is_that_of_the_head():
    """The product is the head's, wherever the loss is computed."""
    torch.manual_seed(0)
    head, h = nn.Linear(D, V), torch.randn(B, T, D)
    plain = nn.Linear(D, V)
    plain.load_state_dict(head.state_dict())
    crossent.defer(head, max_bytes=3 * V * 2)
    results = []
    for module in (head, plain):
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(h)
            inside = F.cross_entropy(logits.view(-1, V), Y.view(-1))
        outside = F.cross_entropy(logits.view(-1, V), Y.view(-1))
        assert logits.dtype == torch.bfloat16
        assert (inside.dtype, outside.dtype) == (torch.float32, torch.bfloat16)
        results.append((inside, outside, *torch.autograd.grad(inside + outside, list(module.parameters()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    assert Logits.formed == 0


# --- who looks at it ------------------------------------------------------------------------------------------------------


def test_it_is_a_node_of_pytrees_and_a_dataclass():
    """FSDP looks for the tensors of an output in the one way, DDP in the other."""
    from torch.nn.parallel.distributed import _find_tensors

    deferred, _, (h, *_) = heads()
    leaves, spec = pytree.tree_flatten({"logits": deferred, "loss": None})
    assert any(leaf is h for leaf in leaves)
    back = pytree.tree_unflatten(leaves, spec)["logits"]
    assert isinstance(back, Logits)
    assert (back.form, back.shape) == (deferred.form, deferred.shape)
    cast = pytree.tree_map(lambda t: t.float() if isinstance(t, torch.Tensor) else t, heads(dtype=torch.bfloat16)[0])
    assert cast.dtype == cast.hidden.dtype == cast.weight.dtype == torch.float32
    assert any(t is h for t in _find_tensors(deferred))
    assert all(
        t.grad_fn is not None for t in _find_tensors(deferred) if t is not h
    )  # a leaf's bucket would count as unused


def test_what_a_tensor_says_of_itself():
    deferred, plain, _ = heads()
    for name in ("requires_grad", "device", "layout", "is_cuda", "is_leaf", "is_sparse", "is_meta", "is_nested"):
        assert getattr(deferred, name) == getattr(plain, name), name
    for name in ("element_size", "is_floating_point", "is_complex", "is_contiguous", "nelement", "ndimension"):
        assert getattr(deferred, name)() == getattr(plain, name)(), name
    assert deferred.new_zeros(2, 3).dtype == torch.float64
    assert "Logits(shape=(2, 6, 40)" in repr(deferred)
    assert {deferred: 1}[deferred] == 1
    assert Logits.formed == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("name", ["capped", "entropy", "accuracy", "masked"])
def test_one_graph_compiled(name):
    asked = LOSSES | {
        "capped": lambda x: F.cross_entropy(CHANGES["capped"](x[:, :-1]).flatten(0, 1), Y[:, 1:].flatten()),
        "masked": lambda x: F.cross_entropy(x[KEEP].float(), Y[KEEP]),
    }
    torch.manual_seed(0)
    head, h = nn.Linear(D, V, **DOUBLE), torch.randn(B, T, D, **DOUBLE, requires_grad=True)
    expected = asked[name](head(h))
    crossent.defer(head, max_bytes=3 * V * 8)
    torch._dynamo.reset()
    compiled = torch.compile(lambda h: asked[name](head(h)), fullgraph=name != "masked", backend="aot_eager")
    loss = compiled(h)
    torch.testing.assert_close(loss, expected)
    if loss.requires_grad:
        wanted = [h, *head.parameters()]
        torch.testing.assert_close(torch.autograd.grad(loss.sum(), wanted), torch.autograd.grad(expected.sum(), wanted))
    assert Logits.formed == 0
