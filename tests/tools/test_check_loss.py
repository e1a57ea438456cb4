"""``crossent.check_loss``: losses that are right come out clean, and of wrong ones it is said what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import crossent
from crossent import check_loss
from crossent.tools.check.findings import REMARK
from crossent.tools.check.rules import LOSS_RULES
from crossent.tools.train import digits


def rules(report):
    return {finding.rule for finding in report.findings}


def found(report, rule):
    (finding,) = [finding for finding in report.findings if finding.rule == rule]
    return finding


# --- right ------------------------------------------------------------------------------------------------------------

RIGHT = {
    "torch": F.cross_entropy,
    "torch, a module": torch.nn.CrossEntropyLoss(),
    "torch, the sum": lambda x, t: F.cross_entropy(x, t, reduction="sum"),
    "torch, each row": lambda x, t: F.cross_entropy(x, t, reduction="none"),
    "torch, in float32": lambda x, t: F.cross_entropy(x.float(), t if t.dtype == torch.long else t.float()),
    "torch, in two steps": lambda x, t: F.nll_loss(x.log_softmax(1), t),
    "torch, binary": F.binary_cross_entropy_with_logits,
    "torch, binary, a module": torch.nn.BCEWithLogitsLoss(),
    "torch, hinge": F.multi_margin_loss,
    "crossent": crossent.cross_entropy,
    "crossent, a module": crossent.CrossEntropyLoss(),
    "crossent, eager": lambda x, t: crossent.cross_entropy(x, t, impl="eager"),
    "crossent, binary": crossent.binary_cross_entropy_with_logits,
    "crossent, focal": crossent.focal_loss,
    "crossent, sigmoid focal": crossent.sigmoid_focal_loss,
    "crossent, several labels": crossent.multilabel_cross_entropy,
    "crossent, poly": lambda x, t: crossent.cross_entropy(x, t, penalty=crossent.Poly1(1.0)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_loss_comes_out_clean(name):
    report = check_loss(RIGHT[name])
    assert report.findings == []
    assert report.ok
    assert len(report.trials) == len(LOSS_RULES)
    assert REMARK in str(report)


def test_the_kind_of_loss_is_measured():
    assert "as with a softmax; a mean over rows; takes class indices, one-hot rows, several" in str(
        check_loss(F.cross_entropy)
    )
    said = str(check_loss(F.binary_cross_entropy_with_logits))
    assert (
        "every logit for itself, as with a sigmoid; a mean over rows; takes one-hot rows, several labels a row" in said
    )
    assert "a sum over rows" in str(check_loss(RIGHT["torch, the sum"]))
    assert "not reduced" in str(check_loss(RIGHT["torch, each row"]))


# --- the three of the digits demo -------------------------------------------------------------------------------------


class Blog(torch.autograd.Function):
    """The implementation that is copied from page to page."""

    @staticmethod
    def forward(ctx, x, target):
        y = x.exp() / x.exp().sum(1, keepdim=True)
        ctx.save_for_backward(y, target)
        return -(target * y.log()).sum() / len(x)

    @staticmethod
    def backward(ctx, grad_output):
        y, target = ctx.saved_tensors
        return (y - target) / len(target), None


def test_the_blog_implementation_is_wrong_for_several_labels_and_unstable():
    report = check_loss(Blog)
    assert not report.ok
    gradient = found(report, "CE201")
    assert "several labels a row" in gradient.seen  # and only there: with one label a row it is right
    assert "M · p − t" in gradient.fix
    assert "t = 1/M" in gradient.fix
    assert "several labels a row" in found(report, "CE205").seen
    assert "100, −100" in found(report, "CE211").seen
    assert "nan" in found(report, "CE211").seen
    assert "log_softmax" in found(report, "CE211").fix
    assert "nan" in found(report, "CE212").seen
    assert "1 times" in found(report, "CE202").seen  # it ignores grad_output as well


def test_the_blog_implementation_is_right_for_one_label():
    x = torch.randn(7, 5, dtype=torch.double, requires_grad=True)
    t = F.one_hot(torch.arange(7) % 5, 5).double()
    grads = [torch.autograd.grad(loss(x, t), x)[0] for loss in (Blog.apply, F.cross_entropy)]
    torch.testing.assert_close(*grads)


def squash_and_subtract(logits, target):
    p = logits.sigmoid()
    return torch.where(target == 1, 1 - p, p).mean()


def test_sigmoid_and_difference_does_not_pull_where_it_is_wrong():
    finding = found(check_loss(squash_and_subtract), "CE207")
    assert "sigmoid and difference" in finding.seen
    assert "−log p" in finding.fix
    assert "binary_cross_entropy_with_logits" in finding.fix


def test_cross_entropy_after_a_softmax():
    report = check_loss(lambda x, t: F.cross_entropy(x.softmax(1), t))
    inside = found(report, "CE206")
    assert f"{crossent.double_softmax_floor(5):.4f}" in inside.seen
    assert "as they are" in inside.fix
    assert "CE207" in rules(report)


@pytest.mark.parametrize("loss", digits.JOB.candidates.values(), ids=lambda loss: loss.name)
def test_the_losses_of_the_digits_job(loss):
    wrong = {"sigmoid-difference": {"CE207"}, "ce-after-softmax": {"CE206", "CE207"}, "ce-smooth": {"CE212"}}
    assert rules(check_loss(loss.loss)) == wrong.get(loss.name, set())


# --- one wrong loss for every rule ------------------------------------------------------------------------------------


class Forgets(torch.autograd.Function):
    """A stable softmax cross entropy whose backward pass can be made wrong."""

    @staticmethod
    def forward(ctx, x, target):
        ctx.save_for_backward(x.softmax(1), target)
        return -(target * x.log_softmax(1)).sum() / len(x)

    @staticmethod
    def backward(ctx, grad_output):
        p, target = ctx.saved_tensors
        return grad_output * (target.sum(1, keepdim=True) * p - target) / len(p), None


class ForgetsN(Forgets):
    @staticmethod
    def backward(ctx, grad_output):
        p, target = ctx.saved_tensors
        return grad_output * (target.sum(1, keepdim=True) * p - target), None


class ForgetsGradOutput(Forgets):
    @staticmethod
    def backward(ctx, grad_output):
        return Forgets.backward(ctx, torch.ones_like(grad_output))


def writes(x, t):
    x.sub_(x.max(1, keepdim=True).values.detach())
    return F.cross_entropy(x, t)


def writes_labels(x, t):
    loss = F.cross_entropy(x, t)
    t.zero_()
    return loss


WRONG = {
    "CE201": (ForgetsN, "7 times the derivative"),
    "CE202": (ForgetsGradOutput, "grad_output"),
    "CE203": (Forgets, "once_differentiable"),
    "CE204": (lambda x, t: F.cross_entropy(x, t) + 0.01 * x.square().mean(), "dim=1"),
    "CE205": (lambda x, t: F.cross_entropy(x, t) + 0.01 * x.mean(), "mass"),
    "CE206": (lambda x, t: F.binary_cross_entropy_with_logits(x.sigmoid(), t), "as they are"),
    "CE207": (lambda x, t: -(x.softmax(1).gather(1, t[:, None]) + 1e-8).log().mean(), "−log p"),
    "CE208": (lambda x, t: (F.cross_entropy(x, t, reduction="none") * torch.arange(len(x))).mean(), "dim=1"),
    "CE209": (lambda x, t: F.cross_entropy(x, t, reduction="sum") / len(t), "ignore_index"),
    "CE210": (lambda x, t: F.cross_entropy(x, t, reduction="sum") / len(t) ** 2, "the sum over rows or by their mean"),
    "CE211": (lambda x, t: -(x.exp() / x.exp().sum(1, keepdim=True)).log().gather(1, t[:, None]).mean(), "log_softmax"),
    "CE212": (lambda x, t: -(F.one_hot(t, 5) * x.log_softmax(1)).sum(1).mean(), "torch.where"),
    "CE213": (writes, "copy"),
    "CE214": (lambda x, t: x.log_softmax(1).gather(1, t[:, None]).mean(), "The sign is missing"),
    "CE215": (lambda x, t: -(t * x.log_softmax(1)).mean(), "Sum over the classes first"),
    "CE216": (lambda x, t: F.binary_cross_entropy_with_logits(x, (t + 0.1) / 2), "ε/2 for a sigmoid"),
    "CE217": (lambda x, t: -(t * x.log_softmax(1)).sum(1).mean(), "multilabel_cross_entropy"),
}


@pytest.mark.parametrize("rule", LOSS_RULES)
def test_every_rule_sees_a_wrong_loss(rule):
    loss, fix = WRONG[rule]
    assert fix in found(check_loss(loss), rule).fix


def test_a_softmax_over_the_batch_mixes_rows():
    report = check_loss(lambda x, t: F.nll_loss(x.log_softmax(0), t))
    assert {"CE204", "CE205", "CE210"} <= rules(report)


def test_labels_that_are_written_to():
    report = check_loss(writes_labels)
    assert "the target" in found(report, "CE213").seen
    assert "modified by an inplace operation" in found(report, "CE201").seen
    assert "not tried: it raises" in str(report)


def test_no_second_derivative_is_better_than_a_wrong_one():
    class Once(Forgets):
        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad_output):
            p, target = ctx.saved_tensors
            return grad_output * (target.sum(1, keepdim=True) * p - target) / len(p), None

    report = check_loss(Once)
    assert "CE203" not in rules(report)
    assert "raises" in str(report)


def test_losses_against_wrong_labels_get_a_warning_that_names_them():
    finding = found(check_loss(lambda x, t: crossent.cross_entropy(x, t, penalty=crossent.MAE())), "CE207")
    assert finding.severity == "warning"
    assert "on purpose" in finding.fix


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_audited_is_refused():
    with pytest.raises(ValueError, match="takes neither class indices"):
        check_loss(lambda x, t: F.mse_loss(x, t[:, :3, None]))
    with pytest.raises(ValueError, match="differs from call to call"):
        check_loss(lambda x, t: F.cross_entropy(F.dropout(x, 0.5), t))
    with pytest.raises(ValueError, match="the two must differ, got 7 and 7"):
        check_loss(F.cross_entropy, num_classes=7)


def test_other_sizes_and_labels():
    assert check_loss(F.cross_entropy, num_classes=3, rows=10).ok
    assert (
        check_loss(lambda x, t: F.cross_entropy(x, t, ignore_index=0 - 1), ignore_index=-1, name="mine").name == "mine"
    )
    assert np.all([trial.result for trial in check_loss(F.cross_entropy).trials])


# --- what a loss is on purpose, and what it lacks ---------------------------------------------------------------------


def z_loss(x, t):
    return F.cross_entropy(x, t) + 1e-4 * x.logsumexp(1).square().mean()


def capped(x, t):
    return F.cross_entropy(30 * torch.tanh(x / 30), t)


def focal(x, t, detached=False):
    log_p = x.log_softmax(1).gather(1, t[:, None])
    factor = (1 - log_p.exp()) ** 2
    return -((factor.detach() if detached else factor) * log_p).mean()


ON_PURPOSE = {
    "z-loss": (z_loss, "a z-loss of 0.0001 · lse²"),
    "soft cap": (capped, "a soft cap of 30"),
    "both": (lambda x, t: z_loss(30 * torch.tanh(x / 30), t), "a soft cap of 30 and a z-loss of 0.0001"),
    "crossent, both": (
        lambda x, t: crossent.cross_entropy(x, t, z_loss=2e-3, softcap=15.0),
        "a soft cap of 15 and a z-loss of 0.002",
    ),
    "temperature": (lambda x, t: F.cross_entropy(x / 0.07, t), "a temperature of 0.07"),
    "focal": (focal, "focal loss, γ = 2"),
    "gce": (
        lambda x, t: ((1 - (0.7 * x.log_softmax(1).gather(1, t[:, None])).exp()) / 0.7).mean(),
        "generalised cross entropy, q = 0.7",
    ),
    "poly": (lambda x, t: crossent.cross_entropy(x, t, penalty=crossent.Poly1(2.0)), "Poly-1, ε = 2"),
    "smoothing": (lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1), "label smoothing 0.1"),
    "class weights": (lambda x, t: F.cross_entropy(x, t, x.new_tensor([1.0, 2, 3, 4, 5])), "class weights"),
    "pos_weight": (lambda x, t: F.binary_cross_entropy_with_logits(x, t, pos_weight=x.new_tensor(3.0)), "pos_weight 3"),
    "binary smoothing": (
        lambda x, t: F.binary_cross_entropy_with_logits(x, t * 0.9 + 0.05),
        "targets of 0.95 for yes and 0.05 for no",
    ),
}


@pytest.mark.parametrize("name", ON_PURPOSE)
def test_what_a_loss_does_on_purpose_is_recognised(name):
    loss, text = ON_PURPOSE[name]
    report = check_loss(loss)
    assert text in report.about
    assert not report.findings.errors, report


LACKING = {
    "sign": (lambda x, t: F.nll_loss(x.softmax(1), t) * -1, "CE214"),
    "sign, binary": (lambda x, t: -F.binary_cross_entropy_with_logits(x, t), "CE214"),
    "sign, a sum": (lambda x, t: x.log_softmax(1).gather(1, t[:, None]).sum(), "CE214"),
    "sign, one-hot": (lambda x, t: (t * x.log_softmax(1)).sum(1).mean(), "CE214"),
    "scale, indices": (lambda x, t: F.cross_entropy(x, t) / x.shape[1], "CE215"),
    "smoothing, sum": (lambda x, t: -((t + 0.1) * x.log_softmax(1)).sum(1).mean(), "CE216"),
    "smoothing, binary": (lambda x, t: F.binary_cross_entropy_with_logits(x, t * 0.9), "CE216"),
    "detached": (lambda x, t: focal(x, t, detached=True), None),
    "class means": (
        lambda x, t: torch.stack([F.cross_entropy(x[t == k], t[t == k]) for k in t.unique()]).mean(),
        "CE210",
    ),
    "ignored rows": (lambda x, t: F.cross_entropy(x, t, reduction="sum") / len(t), "CE209"),
}


@pytest.mark.parametrize("name", LACKING)
def test_what_a_loss_lacks_has_a_card(name):
    loss, rule = LACKING[name]
    report = check_loss(loss)
    if rule is None:
        assert "whose factor has no gradient, γ = 2" in report.about
        assert "is detached" in found(report, "CE201").fix
        return
    assert rule in rules(report), report
    said = {"class means": "mean of means", "ignored rows": "divide by them"}
    assert said.get(name, "") in found(report, rule).why.replace("but the mean divides", "divide")
    assert not report.ok
    assert "raises" not in str([trial.result for trial in report.trials if trial.rule == "CE207"])


# --- the same under mild disguises ------------------------------------------------------------------------------------


def picked(values, t):
    """The true class's value of each row, for indices and for one-hot rows."""
    return values.gather(1, t[:, None])[:, 0] if t.dim() == 1 else (t * values).sum(1)


def log_p(x, t):
    return picked(x.log_softmax(1), t)


def one_hot(t):
    return F.one_hot(t, 5) if t.dim() == 1 else t


def masked_mean(rows):
    def loss(x, t):
        if t.dim() != 1:
            return rows(x, t).mean()
        counts = t != -100
        return (rows(x, torch.where(counts, t, 0)) * counts).sum() / counts.sum()

    return loss


class OfRows(torch.nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, logits, target):
        return self.rows(logits, target).mean()


def in_float32(rows):
    return lambda x, t: rows(x.float(), t.float() if t.is_floating_point() else t)


DISGUISES = {
    "sum": lambda rows: lambda x, t: rows(x, t).sum(),
    "rows": lambda rows: rows,
    "module": OfRows,
    "lambda of a module": lambda rows: lambda x, t: OfRows(rows)(x, t),
    "masked mean": masked_mean,
    "float32": lambda rows: lambda x, t: in_float32(rows)(x, t).mean(),
    "float32, returned as float64": lambda rows: lambda x, t: in_float32(rows)(x, t).mean().double(),
    "half of it": lambda rows: lambda x, t: rows(x, t).mean() / 2,
    "a column": lambda rows: lambda x, t: rows(x, t)[:, None],
}

RIGHT_ROWS = {  # and what each is recognised as
    "cross entropy": (lambda x, t: -log_p(x, t), "cross entropy"),
    "log-softmax twice": (lambda x, t: -log_p(x.log_softmax(1), t), "cross entropy"),
    "z-loss": (lambda x, t: -log_p(x, t) + 1e-3 * x.logsumexp(1) ** 2, "a z-loss of 0.001"),
    "soft cap": (lambda x, t: -log_p(20 * torch.tanh(x / 20), t), "a soft cap of 20"),
    "both": (
        lambda x, t: -log_p(y := 20 * torch.tanh(x / 20), t) + 1e-3 * y.logsumexp(1) ** 2,
        "a soft cap of 20 and a z-loss of 0.001",
    ),
    "temperature": (lambda x, t: -log_p(x / 2, t), "a temperature of 2"),
    "distillation's temperature": (lambda x, t: -4 * log_p(x / 2, t), "a temperature of 2"),
    "smoothing": (lambda x, t: -0.9 * log_p(x, t) - 0.1 * x.log_softmax(1).mean(1), "label smoothing 0.1"),
    "focal": (lambda x, t: -((1 - log_p(x, t).exp()) ** 2) * log_p(x, t), "focal loss, γ = 2"),
    "focal, α": (lambda x, t: -0.25 * (1 - log_p(x, t).exp()) ** 1.5 * log_p(x, t), "focal loss, γ = 1.5"),
    "GCE": (lambda x, t: (1 - (0.7 * log_p(x, t)).exp()) / 0.7, "generalised cross entropy, q = 0.7"),
    "MAE": (lambda x, t: 2 - 2 * log_p(x, t).exp(), "1 − p, the mean absolute error"),
    "Poly-1": (lambda x, t: -log_p(x, t) + 1.5 * (1 - log_p(x, t).exp()), "Poly-1, ε = 1.5"),
    "SCE": (lambda x, t: -0.1 * log_p(x, t) + 4 * (1 - log_p(x, t).exp()), "symmetric cross entropy"),
    "Taylor": (
        lambda x, t: sum((1 - log_p(x, t).exp()) ** k / k for k in range(1, 7)),
        "Taylor cross entropy of 6 terms",
    ),
    "margin": (lambda x, t: -log_p(x - 0.35 * one_hot(t), t), "a margin of 0.35 on the true class"),
    "bias": (lambda x, t: -log_p(x + x.new_tensor([0.5, 0.2, 0.1, 0.15, 0.05]).log(), t), "a logit bias"),
    "class weights": (
        lambda x, t: -log_p(x, t) * x.new_tensor([1.0, 2, 3, 4, 5])[t if t.dim() == 1 else t.argmax(1)],
        "class weights",
    ),
    "binary": (lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1), "binary cross entropy"),
    "binary smoothing": (
        lambda x, t: F.binary_cross_entropy_with_logits(x, t * 0.9 + 0.05, reduction="none").sum(1),
        "0.95 for yes and 0.05 for no",
    ),
}


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("name", RIGHT_ROWS)
def test_right_losses_are_recognised_in_any_disguise(name, disguise):
    rows, text = RIGHT_ROWS[name]
    report = check_loss(DISGUISES[disguise](rows), name="mine")
    several = {
        finding.rule for finding in report.findings if finding.severity == "error" and "several labels" in finding.seen
    }
    wrong = {finding.rule for finding in report.findings if finding.severity == "error"} - several
    assert not wrong, report
    assert text in report.about


WRONG_ROWS = {
    "sign": (log_p, "CE214"),
    "sign of a likelihood": (lambda x, t: F.nll_loss(-x.log_softmax(1), t, reduction="none"), "CE214"),
    "sign, binary": (lambda x, t: -F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1), "CE214"),
    "sign, focal": (lambda x, t: (1 - log_p(x, t).exp()) ** 2 * log_p(x, t), "CE214"),
    "scale": (lambda x, t: -log_p(x, t) / x.shape[1], "CE215"),
    "softmax twice": (lambda x, t: -log_p(x.softmax(1), t), "CE206"),
    "sigmoid twice": (
        lambda x, t: F.binary_cross_entropy_with_logits(x.sigmoid(), t, reduction="none").mean(1),
        "CE206",
    ),
    "log of softmax": (lambda x, t: -picked(x.softmax(1).log(), t), "CE211"),
    "log of a ratio": (lambda x, t: -picked((x.exp() / x.exp().sum(1, keepdim=True)).log(), t), "CE211"),
    "log of sigmoid": (lambda x, t: -(t * x.sigmoid().log() + (1 - t) * (1 - x.sigmoid()).log()).mean(1), "CE211"),
    "clipped": (lambda x, t: -picked(x.softmax(1).clamp(1e-7, 1).log(), t), "CE207"),
    "smoothing t + ε": (lambda x, t: -((one_hot(t) + 0.1) * x.log_softmax(1)).sum(1), "CE216"),
    "smoothing t(1 − ε) + ε": (lambda x, t: -((one_hot(t) * 0.9 + 0.1) * x.log_softmax(1)).sum(1), "CE216"),
    "smoothing, binary": (
        lambda x, t: F.binary_cross_entropy_with_logits(x, (t + 0.1) / 2, reduction="none").mean(1),
        "CE216",
    ),
    "detached": (lambda x, t: -((1 - log_p(x, t).exp().detach()) ** 2) * log_p(x, t), "CE201"),
    "missing 1/M": (lambda x, t: -(t * x.log_softmax(1)).sum(1), "CE217"),
}
# Half of a wrong scale is another scale, and half of targets that sum to 1.5 may be targets that do not.
NO_LONGER = {("scale", "half of it"), ("smoothing t + ε", "half of it"), ("smoothing t(1 − ε) + ε", "half of it")}
NO_LONGER |= {("missing 1/M", disguise) for disguise in ("rows", "half of it", "a column")}


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("name", WRONG_ROWS)
def test_wrong_losses_are_found_in_any_disguise(name, disguise):
    rows, rule = WRONG_ROWS[name]
    if (name, disguise) in NO_LONGER:
        return
    report = check_loss(DISGUISES[disguise](rows), name="mine")
    assert rule in rules(report), report
    if "smoothing t" in name:
        assert "a smoothing of ε = 0.3333" in found(report, rule).why or "1 − ε" in name
    if rule == "CE214":
        assert "not tried: it raises" not in [trial.result for trial in report.trials]


def test_a_default_device_is_not_that_of_the_audit():
    with torch.device("meta"):
        report = crossent.check_loss(torch.nn.CrossEntropyLoss())
    assert report.ok
