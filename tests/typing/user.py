"""A user's file that uses every public name. It is read by mypy (``make lint``) and pyright (``make types``), and is never run.

Both refuse a ``type: ignore`` that is not needed, so that each line at the end is held to be an error.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import crossent
from crossent import reference

x, y, t = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), torch.rand(4, 3)
W, h = torch.zeros(3, 8), torch.zeros(4, 8)
head: nn.Module = nn.Linear(8, 3)


class Mine(crossent.Penalty):
    """A penalty of one's own."""

    def f(self, log_p: Tensor) -> Tensor:
        return -log_p

    def s(self, log_p: Tensor) -> Tensor:
        return torch.ones_like(log_p)


# --- losses -----------------------------------------------------------------------------------------------------------

loss: Tensor = crossent.cross_entropy(x, y, torch.ones(3), ignore_index=-1, reduction="sum", label_smoothing=0.1)
loss = crossent.cross_entropy(x, y, sample_weight=torch.ones(4), denominator=4.0, empty="zero", out_dtype=torch.float32)
loss = crossent.cross_entropy(
    x, y, penalty=Mine(), temperature=2.0, softcap=30.0, logit_bias=torch.zeros(3), margin=0.1
)
loss = crossent.cross_entropy(
    x, y, class_mask=torch.ones(3, dtype=torch.bool), z_loss=1e-4, dim=-1, inplace_backward=True
)
loss = crossent.cross_entropy(x, y, impl="eager", softcap_after_temperature=True, inplace_forward=False)
loss = crossent.binary_cross_entropy_with_logits(x, t, pos_weight=torch.ones(3), reduction="none", mask=t > 0.5)
loss = crossent.binary_cross_entropy_with_logits(x, t, penalty=crossent.Asymmetric(), ignore_index=-1.0)
loss = crossent.focal_loss(x, y, 2.0, torch.ones(3), label_smoothing=0.1, reduction="mean")
loss = crossent.sigmoid_focal_loss(x, t, alpha=None, gamma=2.0, reduction="sum")
loss = crossent.multilabel_cross_entropy(x, [[0, 2], [], [1], [0]], reduction="none")
loss = crossent.distillation_loss(x, x, 2.0, y, 0.5, reverse=True, teacher_grad=False, z_loss=1e-4)
loss = crossent.contrastive_cross_entropy(h, h, scale=torch.tensor(10.0), symmetric=False)
loss = crossent.linear_cross_entropy(h, W, y, shift=0, max_bytes=2**20, temperature=2.0)
loss = crossent.linear_cross_entropy(h, head, crossent.Teacher(h, W, temperature=2.0))
plan: crossent.LinearPlan = crossent.linear_plan(h, W, y, reduction="sum")
blocks: int = plan.blocks
stats: crossent.CrossEntropyStats = crossent.cross_entropy_stats(x, y, reduction="mean", temperature=2.0)
stats = crossent.linear_cross_entropy_stats(h, W, y)
entropy: Tensor = stats.entropy

penalties: list[crossent.Penalty] = [
    crossent.Focal(2.0), crossent.Poly1(1.0), crossent.GCE(0.7), crossent.MAE(), crossent.SCE(), crossent.Taylor(2), Mine(),
]  # fmt: skip
pair: crossent.BinaryPenalty = crossent.BalancedFocal(gamma=2.0, alpha=0.25)
weights: Tensor = crossent.class_weights([1, 2, 3], scheme="effective")
floor: float = crossent.double_softmax_floor(10) + crossent.expected_initial_loss(10) + crossent.prior_entropy([1, 2])

# --- modules ----------------------------------------------------------------------------------------------------------

modules: list[nn.Module] = [
    crossent.CrossEntropyLoss(label_smoothing=0.1, temperature=2.0, penalty=crossent.Focal(2.0)),
    crossent.BCEWithLogitsLoss(pos_weight=torch.ones(3), ignore_index=-1.0),
    crossent.FocalLoss(2.0, reduction="sum"),
    crossent.SigmoidFocalLoss(alpha=None, reduction="mean"),
    crossent.MultilabelCrossEntropyLoss(z_loss=1e-4),
    crossent.DistillationLoss(temperature=4.0, alpha=0.5),
    crossent.LinearCrossEntropyLoss(8, 3, bias=True, shift=1, weight=torch.ones(3)),
]
torchs: nn.CrossEntropyLoss = crossent.CrossEntropyLoss(reduction="none")
probabilities: Tensor = crossent.CrossEntropyLoss().activation(x)
focal = crossent.FocalLoss()
focal.temperature, focal.z_loss, focal.penalty, focal.class_mask = 2.0, 1e-4, crossent.Focal(1.0), None
crossent.DistillationLoss().temperature = 3.0
smoothing: float = crossent.BCEWithLogitsLoss().label_smoothing
bytes_of_block: int | None = crossent.LinearCrossEntropyLoss(8, 3).max_bytes

# --- in the place of torch's ------------------------------------------------------------------------------------------

model = nn.Sequential(nn.Linear(8, 3))
deferred: nn.Sequential = crossent.defer(model)
same: nn.Sequential = crossent.undefer(model)
formed: bool = isinstance(model(h), crossent.Logits)
patched = crossent.patch()
crossent.unpatch()
mean: Tensor = crossent.shared_denominator(y, ignore_index=-100)

# --- tools ------------------------------------------------------------------------------------------------------------

available: dict[str, str | None] = crossent.implementations()
chosen: str = crossent.choose_implementation(x, target=y)
findings = crossent.check(x, y, label_smoothing=0.1)
worst: list[crossent.Finding] = list(findings)
broken: bool = findings.errors
audit: crossent.LossReport = crossent.check_loss(crossent.cross_entropy)
explanation: crossent.Explanation = crossent.explain([-6.0, 6.0, 0.0], 0)
accuracy = crossent.score(x, y).numbers["accuracy"]
with crossent.debug(first_n=1):
    loss = crossent.cross_entropy(x, y)
value = reference.cross_entropy(x.numpy(), y.numpy())
version: str = crossent.__version__
shard = crossent.VocabShard.even(1000)
loss = crossent.cross_entropy(x, y, shard=shard)

# --- what is an error ---------------------------------------------------------------------------------------------------

crossent.cross_entropy(x, y, reduction="avg")  # type: ignore  # not one of "none", "sum", "mean"
crossent.binary_cross_entropy_with_logits(x, t, reduction="avg")  # type: ignore  # the same
crossent.linear_cross_entropy(h, W, y, reduction="avg")  # type: ignore  # the same
crossent.focal_loss(x, y, reduction="avg")  # type: ignore  # behind **options too
crossent.cross_entropy_stats(x, y, reduction="avg")  # type: ignore  # the same
crossent.sigmoid_focal_loss(x, t, reduction="avg")  # type: ignore  # the same
crossent.CrossEntropyLoss(reduction="avg")  # type: ignore  # a module too
crossent.BCEWithLogitsLoss(reduction="avg")  # type: ignore  # the same
crossent.FocalLoss(reduction="avg")  # type: ignore  # the same
crossent.DistillationLoss(reduction="avg")  # type: ignore  # the same
crossent.LinearCrossEntropyLoss(8, 3, reduction="avg")  # type: ignore  # the same
crossent.cross_entropy(x, y, empty="one")  # type: ignore  # not one of "nan", "zero"
crossent.cross_entropy(x, y, temprature=2.0)  # type: ignore  # a misspelt option
crossent.focal_loss(x, y, temprature=2.0)  # type: ignore  # behind **options too
crossent.CrossEntropyLoss(temprature=2.0)  # type: ignore  # a module too
focal.z_loss = "little"  # type: ignore  # an attribute of a module
crossent.cross_entropy(x, y, label_smoothing="0.1")  # type: ignore  # a number
crossent.cross_entropy(x, [0, 1])  # type: ignore  # a tensor
nothing = crossent.nothing  # type: ignore  # no such name
