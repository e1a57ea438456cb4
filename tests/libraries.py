"""The losses of other libraries in plain torch, under their names and with their arguments, for ``docs/test_migration_page.py``.

Written from their documentation and sources, of the versions that ``docs/migration.md`` names: formulas only, in whatever
precision the inputs have. A class is a library; what it holds is called as its users call it.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor


def pick(log_p: Tensor, target: Tensor, axis: int = -1) -> Tensor:
    """Take the entry of the target's class from each row."""
    return log_p.gather(axis, target.unsqueeze(axis)).squeeze(axis)


def reduced(loss: Tensor, reduction: str | None) -> Tensor:
    """Reduce as PyTorch's words say, dividing by the number of elements."""
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def along_second(weight: Tensor, loss: Tensor) -> Tensor:
    """Lay one number a class along the second axis."""
    return weight.view(-1, *[1] * (loss.dim() - 2))


def softplus(x: Tensor) -> Tensor:
    return x.clamp_min(0) + torch.log1p(torch.exp(-x.abs()))


def binary(x: Tensor, y: Tensor, pos_weight: Tensor | float = 1.0) -> Tensor:
    """Compute ``-(π y log σ(x) + (1 - y) log(1 - σ(x)))``, as TensorFlow writes it."""
    return (1 - y) * x + (1 + (pos_weight - 1) * y) * softplus(-x)


class Caffe:
    @staticmethod
    def normalizer(mode: str, outer: int, inner: int, valid: int) -> float:
        return max(1.0, float({"FULL": outer * inner, "VALID": valid, "BATCH_SIZE": outer, "NONE": 1}[mode]))

    @staticmethod
    def layer(prototxt: str, default: str) -> tuple[float, int | None, str]:
        """Read ``loss_weight``, ``ignore_label`` and the normalization from a layer's text."""

        def field(name: str, otherwise: str) -> str:
            found = re.search(rf"{name}: (\S+)", prototxt)
            return found[1] if found else otherwise

        old = {"true": "VALID", "false": "BATCH_SIZE", "": default}[field("normalize", "")]
        ignore = field("ignore_label", "")
        return float(field("loss_weight", "1")), int(ignore) if ignore else None, field("normalization", old)

    @staticmethod
    def SoftmaxWithLoss(prototxt: str, logits: Tensor, target: Tensor) -> Tensor:
        """Take ``-log`` of ``max(p, FLT_MIN)`` for every label that is not ignored."""
        loss_weight, ignore, mode = Caffe.layer(prototxt, "VALID")
        axis = re.search(r"axis: (\d)", prototxt)
        prob = logits.softmax(int(axis[1]) if axis else 1).movedim(int(axis[1]) if axis else 1, -1)
        valid = torch.ones_like(target, dtype=torch.bool) if ignore is None else target != ignore
        log_p = pick(prob, target.masked_fill(~valid, 0)).clamp_min(torch.finfo(torch.float32).tiny).log()
        return (
            -loss_weight
            * (log_p * valid).sum()
            / Caffe.normalizer(mode, len(target), target[0].numel(), int(valid.sum()))
        )

    @staticmethod
    def softmax_gradient(logits: Tensor, target: Tensor) -> Tensor:
        """Compute what its backward pass does, which knows nothing of FLT_MIN."""
        return (logits.softmax(1) - F.one_hot(target, logits.shape[1])) / len(target)

    @staticmethod
    def SigmoidCrossEntropyLoss(prototxt: str, logits: Tensor, labels: Tensor) -> Tensor:
        loss_weight, ignore, mode = Caffe.layer(prototxt, "BATCH_SIZE")
        valid = torch.ones_like(labels, dtype=torch.bool) if ignore is None else labels != ignore
        total = (binary(logits, labels) * valid).sum()
        return loss_weight * total / Caffe.normalizer(mode, len(labels), labels[0].numel(), int(valid.sum()))


class _TensorFlowSoftmax(torch.autograd.Function):
    """The value is ``-Σ t log p``, the gradient ``p - t``, which the documentation calls incorrect unless t sums to 1."""

    @staticmethod
    def forward(ctx, logits, t):
        ctx.save_for_backward(logits, t)
        return -(t * logits.log_softmax(-1)).sum(-1)

    @staticmethod
    def backward(ctx, grad):
        logits, t = ctx.saved_tensors
        return grad.unsqueeze(-1) * (logits.softmax(-1) - t), None


class TensorFlow:
    @staticmethod
    def sparse(labels: Tensor, logits: Tensor) -> Tensor:
        return logits.logsumexp(-1) - pick(logits, labels)

    @staticmethod
    def softmax(labels: Tensor, logits: Tensor) -> Tensor:
        return _TensorFlowSoftmax.apply(logits, labels)

    @staticmethod
    def by_nonzero_weights(losses: Tensor, weights: Tensor | float = 1.0) -> Tensor:
        weights = torch.as_tensor(weights).expand_as(losses)
        return (losses * weights).sum() / (weights != 0).sum()

    tf = SimpleNamespace(
        reduce_mean=torch.mean,
        nn=SimpleNamespace(
            sparse_softmax_cross_entropy_with_logits=lambda labels, logits: TensorFlow.sparse(labels, logits),
            softmax_cross_entropy_with_logits=lambda labels, logits: TensorFlow.softmax(labels, logits),
            sigmoid_cross_entropy_with_logits=lambda labels, logits: binary(logits, labels),
            weighted_cross_entropy_with_logits=lambda labels, logits, pos_weight: binary(logits, labels, pos_weight),
        ),
        compat=SimpleNamespace(v1=SimpleNamespace(losses=SimpleNamespace(
            sparse_softmax_cross_entropy=lambda labels, logits, weights=1.0: TensorFlow.by_nonzero_weights(
                TensorFlow.sparse(labels, logits), weights
            ),
            softmax_cross_entropy=lambda labels, logits, weights=1.0, label_smoothing=0.0: TensorFlow.by_nonzero_weights(
                TensorFlow.softmax(labels * (1 - label_smoothing) + label_smoothing / labels.shape[-1], logits), weights
            ),
            sigmoid_cross_entropy=lambda labels, logits, weights=1.0, label_smoothing=0.0: TensorFlow.by_nonzero_weights(
                binary(logits, labels * (1 - label_smoothing) + 0.5 * label_smoothing), weights
            ),
        ))),
    )  # fmt: skip


class Keras:
    EPSILON = 1e-7

    @staticmethod
    def reduce(
        losses: Tensor, reduction: str | None, sample_weight: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        u = sample_weight
        if mask is not None:
            mask = mask.to(losses.dtype)
            if reduction in ("mean", "sum_over_batch_size"):
                mask = mask * (mask.numel() / mask.sum() if mask.any() else 0.0)
            u = mask if u is None else u * mask
        losses = losses if u is None else losses * u
        if reduction is None or reduction == "sum":
            return reduced(losses, reduction)
        weighted = reduction == "mean_with_sample_weight" and u is not None
        return losses.sum() / (u.sum() if weighted else losses.numel())

    @staticmethod
    def log(output: Tensor, from_logits: bool) -> Tensor:
        if from_logits:
            return output.log_softmax(-1)
        return (output / output.sum(-1, keepdim=True)).clamp(Keras.EPSILON, 1 - Keras.EPSILON).log()

    @staticmethod
    def SparseCategoricalCrossentropy(from_logits=False, ignore_class=None, reduction="sum_over_batch_size"):
        def call(y_true, y_pred, sample_weight=None):
            valid = torch.ones_like(y_true, dtype=torch.bool) if ignore_class is None else y_true != ignore_class
            loss = -pick(Keras.log(y_pred, from_logits), y_true.where(valid, 0)) * valid
            return Keras.reduce(loss, reduction, sample_weight, None if ignore_class is None else valid)

        return call

    @staticmethod
    def CategoricalCrossentropy(from_logits=False, label_smoothing=0.0, reduction="sum_over_batch_size"):
        def call(y_true, y_pred, sample_weight=None):
            t = y_true * (1 - label_smoothing) + label_smoothing / y_true.shape[-1]
            return Keras.reduce(-(t * Keras.log(y_pred, from_logits)).sum(-1), reduction, sample_weight)

        return call

    @staticmethod
    def CategoricalFocalCrossentropy(
        alpha=0.25, gamma=2.0, from_logits=False, label_smoothing=0.0, reduction="sum_over_batch_size"
    ):
        def call(y_true, y_pred, sample_weight=None):
            t = y_true * (1 - label_smoothing) + label_smoothing / y_true.shape[-1]
            log_p = Keras.log(y_pred.softmax(-1) if from_logits else y_pred, False)
            return Keras.reduce((alpha * (1 - log_p.exp()) ** gamma * -t * log_p).sum(-1), reduction, sample_weight)

        return call

    @staticmethod
    def CategoricalGeneralizedCrossEntropy(q=0.5, reduction="sum_over_batch_size"):
        return lambda y_true, y_pred: Keras.reduce((1 - pick(y_pred, y_true) ** q) / q, reduction)

    @staticmethod
    def BinaryCrossentropy(from_logits=False, label_smoothing=0.0, reduction="sum_over_batch_size"):
        def call(y_true, y_pred, sample_weight=None):
            y = y_true * (1 - label_smoothing) + 0.5 * label_smoothing
            if from_logits:
                loss = binary(y_pred, y)
            else:
                p = y_pred.clamp(Keras.EPSILON, 1 - Keras.EPSILON)
                loss = -(y * p.log() + (1 - y) * (1 - p).log())
            return Keras.reduce(loss.mean(-1), reduction, sample_weight)

        return call

    @staticmethod
    def BinaryFocalCrossentropy(
        apply_class_balancing=False,
        alpha=0.25,
        gamma=2.0,
        from_logits=False,
        label_smoothing=0.0,
        reduction="sum_over_batch_size",
    ):
        def call(y_true, y_pred, sample_weight=None):
            y = y_true * (1 - label_smoothing) + 0.5 * label_smoothing
            p = y_pred.sigmoid() if from_logits else y_pred
            clipped = p.clamp(Keras.EPSILON, 1 - Keras.EPSILON)
            bce = -(y * clipped.log() + (1 - y) * (1 - clipped).log())
            loss = (1 - (y * p + (1 - y) * (1 - p))) ** gamma * bce
            if apply_class_balancing:
                loss = (y * alpha + (1 - y) * (1 - alpha)) * loss
            return Keras.reduce(loss.mean(-1), reduction, sample_weight)

        return call

    softmax = staticmethod(lambda x: x.softmax(-1))


class optax:
    @staticmethod
    def softmax_cross_entropy(logits: Tensor, labels: Tensor, axis: int = -1, where: Tensor | None = None) -> Tensor:
        if where is None:
            return -(labels * logits.log_softmax(axis)).sum(axis)
        log_p = logits.masked_fill(~where & where.any(axis, keepdim=True), -torch.inf).log_softmax(axis)
        return -(labels * log_p).masked_fill(~where, 0.0).sum(axis)

    @staticmethod
    def softmax_cross_entropy_with_integer_labels(
        logits: Tensor, labels: Tensor, where: Tensor | None = None
    ) -> Tensor:
        if where is None:
            return logits.logsumexp(-1) - pick(logits, labels)
        some = where.any(-1)
        kept = logits.masked_fill(~where & some.unsqueeze(-1), -torch.inf)
        return (kept.logsumexp(-1) - pick(logits, labels)).masked_fill(~some, 0.0)

    @staticmethod
    def smooth_labels(labels: Tensor, alpha: float, where: Tensor | None = None) -> Tensor:
        return (1 - alpha) * labels + alpha / (labels.shape[-1] if where is None else where.sum(-1, keepdim=True))

    @staticmethod
    def safe_softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1).masked_fill(labels == 0, 0.0)
        return -torch.where(labels != 0, labels * log_p, 0.0).sum(-1)

    @staticmethod
    def poly_loss_cross_entropy(logits: Tensor, labels: Tensor, epsilon: float = 2.0) -> Tensor:
        return optax.softmax_cross_entropy(logits, labels) + epsilon * (labels * (1 - logits.softmax(-1))).sum(-1)

    @staticmethod
    def kl_divergence_with_log_targets(log_predictions: Tensor, log_targets: Tensor) -> Tensor:
        return (log_targets.exp() * (log_targets - log_predictions)).sum(-1)

    @staticmethod
    def sigmoid_binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        return -labels * F.logsigmoid(logits) - (1 - labels) * F.logsigmoid(-logits)

    @staticmethod
    def sigmoid_focal_loss(logits: Tensor, labels: Tensor, alpha: float | None = None, gamma: float = 2.0) -> Tensor:
        one_minus_pt = (1 - labels) * logits.sigmoid() + labels * (-logits).sigmoid()
        loss = optax.sigmoid_binary_cross_entropy(logits, labels) * one_minus_pt**gamma
        return loss if alpha is None else (alpha * labels + (1 - alpha) * (1 - labels)) * loss

    log_softmax = staticmethod(lambda x: x.log_softmax(-1))
    jnp = SimpleNamespace(mean=lambda x, where: x[where].mean())


class timm:
    @staticmethod
    def LabelSmoothingCrossEntropy(smoothing=0.1):
        def call(x, target):
            log_p = x.log_softmax(-1)
            return (-(1 - smoothing) * pick(log_p, target) - smoothing * log_p.mean(-1)).mean()

        return call

    @staticmethod
    def SoftTargetCrossEntropy():
        return lambda x, target: (-target * x.log_softmax(-1)).sum(-1).mean()

    @staticmethod
    def PolyCrossEntropy(epsilon=2.0, smoothing=0.0):
        def call(x, target):
            t = F.one_hot(target, x.shape[-1]) * (1 - smoothing) + smoothing / x.shape[-1]
            log_p = x.log_softmax(-1)
            return (-(t * log_p).sum(-1) + epsilon * (1 - (t * log_p.exp()).sum(-1))).mean()

        return call

    @staticmethod
    def BinaryCrossEntropy(
        smoothing=0.1, target_threshold=None, weight=None, sum_classes=False, pos_weight=None, smooth_dense=False
    ):
        def call(x, target):
            if target.shape != x.shape:
                off = smoothing / x.shape[-1]
                target = torch.full_like(x, off).detach().scatter_(1, target.view(-1, 1), 1 - smoothing + off)
            elif smooth_dense:
                target = target * (1 - smoothing) + 0.5 * smoothing
            if target_threshold is not None:
                target = (target > target_threshold).to(target.dtype)
            loss = binary(x, target, 1.0 if pos_weight is None else pos_weight)
            loss = loss if weight is None else weight * loss
            return loss.sum(-1).mean() if sum_classes else loss.mean()

        return call

    @staticmethod
    def PolyBinaryCrossEntropy(epsilon=2.0, smoothing=0.0):
        def call(x, target):
            y, p = target * (1 - smoothing) + 0.5 * smoothing, x.sigmoid()
            return (binary(x, y) + epsilon * (1 - (y * p + (1 - y) * (1 - p)))).mean()

        return call

    @staticmethod
    def AsymmetricLossMultiLabel(
        gamma_neg=4, gamma_pos=1, clip=0.05, eps=1e-8, disable_torch_grad_focal_loss=False, reduction="batchmean"
    ):
        def call(x, y):
            yes, no = x.sigmoid(), (1 - x.sigmoid() + clip).clamp(max=1)
            loss = y * yes.clamp(min=eps).log() + (1 - y) * no.clamp(min=eps).log()
            power = (1 - (yes * y + no * (1 - y))) ** (gamma_pos * y + gamma_neg * (1 - y))
            loss = -loss * (power.detach() if disable_torch_grad_focal_loss else power)
            return loss.sum() / len(x) if reduction == "batchmean" else reduced(loss, reduction)

        return call

    @staticmethod
    def AsymmetricLossSingleLabel(gamma_pos=1, gamma_neg=4, eps=0.1):
        def call(x, target):
            log_p, t = x.log_softmax(-1), F.one_hot(target, x.shape[-1]).to(x.dtype)
            p = log_p.exp()
            power = (1 - p * t - (1 - p) * (1 - t)) ** (gamma_pos * t + gamma_neg * (1 - t))
            return -((t * (1 - eps) + eps / x.shape[-1]) * log_p * power).sum(-1).mean()

        return call

    @staticmethod
    def compute_class_weights(counts: Tensor, num_samples: int, method: str, beta: float) -> Tensor:
        assert method == "effective_num"
        weights = (1 - beta) / (1 - beta ** counts.double())
        return weights / weights.mean()


class fastai:
    @staticmethod
    def flat(x: Tensor, y: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Exchange the class axis and the last one, in logits and target, and flatten."""
        x = x.transpose(axis, -1).contiguous()
        y = y.transpose(axis, -1).contiguous() if y.dim() > 1 else y
        return x.view(-1, x.shape[-1]), y.view(-1)

    @staticmethod
    def CrossEntropyLossFlat(axis=-1, weight=None):
        return lambda x, y: F.cross_entropy(*fastai.flat(x, y, axis), weight=weight)

    @staticmethod
    def BCEWithLogitsLossFlat():
        return lambda x, y: F.binary_cross_entropy_with_logits(x.view(-1), y.view(-1))

    @staticmethod
    def LabelSmoothingCrossEntropy(eps=0.1, weight=None):
        def call(x, target):
            log_p = x.log_softmax(1)
            return -log_p.sum(1).mean() * eps / x.shape[1] + (1 - eps) * F.nll_loss(log_p, target, weight=weight)

        return call

    @staticmethod
    def FocalLoss(gamma=2.0, weight=None):
        def call(x, target):
            ce = F.cross_entropy(x, target, weight=weight, reduction="none")
            return ((1 - (-ce).exp()) ** gamma * ce).mean()

        return call


class MONAI:
    @staticmethod
    def FocalLoss(
        include_background=True, to_onehot_y=False, gamma=2.0, alpha=None, weight=None, reduction="mean", use_softmax=False,
        ignore_index=None,
    ):  # fmt: skip
        def call(x, y):
            mask = None if ignore_index is None else (y != ignore_index).to(x.dtype)
            if to_onehot_y:
                y = F.one_hot(y[:, 0].masked_fill(y[:, 0] == 255, 0), x.shape[1]).movedim(-1, 1).to(x.dtype)
            if not include_background:
                x, y = x[:, 1:], y[:, 1:]
            if mask is not None:
                x, y = x * mask, y * mask
            loss = (MONAI.softmax_focal if use_softmax else MONAI.sigmoid_focal)(x, y, gamma, alpha)
            loss = loss if mask is None else loss * mask
            loss = loss if weight is None else along_second(weight, loss) * loss
            if reduction == "sum":
                return loss.mean((2, 3)).sum()
            return loss.sum() / mask.sum() if mask is not None else loss.mean()

        return call

    @staticmethod
    def sigmoid_focal(x: Tensor, y: Tensor, gamma: float, alpha: float | None = None) -> Tensor:
        loss = (F.logsigmoid(-x * (y * 2 - 1)) * gamma).exp() * (x - x * y - F.logsigmoid(x))
        return loss if alpha is None else (y * alpha + (1 - y) * (1 - alpha)) * loss

    @staticmethod
    def softmax_focal(x: Tensor, y: Tensor, gamma: float, alpha: float | None = None) -> Tensor:
        """Compute one number for every class of every pixel, zeros where it is not the class."""
        log_p = x.log_softmax(1)
        loss = -((1 - log_p.exp()) ** gamma) * log_p * y
        if alpha is None:
            return loss
        return along_second(torch.tensor([1 - alpha] + [alpha] * (x.shape[1] - 1), dtype=x.dtype), loss) * loss


class smp:
    """segmentation-models-pytorch."""

    @staticmethod
    def focal(x: Tensor, y: Tensor, gamma: float, alpha: float | None) -> Tensor:
        bce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        loss = (1 - (-bce).exp()) ** gamma * bce
        return (loss if alpha is None else (alpha * y + (1 - alpha) * (1 - y)) * loss).mean()

    @staticmethod
    def FocalLoss(mode, alpha=None, gamma=2.0, ignore_index=None):
        def call(x, y):
            if mode == "binary":
                kept = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
                return smp.focal(x[kept], y[kept], gamma, alpha)
            classes = [(x[:, k], (y == k).to(x.dtype) if mode == "multiclass" else y[:, k]) for k in range(x.shape[1])]
            return torch.stack([smp.focal(*pair, gamma, alpha) for pair in classes]).mean()

        return call

    @staticmethod
    def SoftCrossEntropyLoss(smooth_factor=None, ignore_index=-100):
        def call(x, y):
            log_p, hole = x.log_softmax(1), (y == ignore_index).unsqueeze(1)
            true = -log_p.gather(1, y.unsqueeze(1).masked_fill(hole, 0)).masked_fill(hole, 0.0)
            uniform = -log_p.sum(1, keepdim=True).masked_fill(hole, 0.0)
            return (1 - smooth_factor) * true.mean() + smooth_factor / x.shape[1] * uniform.mean()

        return call

    @staticmethod
    def SoftBCEWithLogitsLoss(ignore_index=-100, smooth_factor=None):
        def call(x, y):
            soft = y if smooth_factor is None else (1 - y) * smooth_factor + y * (1 - smooth_factor)
            return (F.binary_cross_entropy_with_logits(x, soft, reduction="none") * (y != ignore_index)).mean()

        return call


class torchvision:
    @staticmethod
    def sigmoid_focal_loss(
        x: Tensor, y: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "none"
    ) -> Tensor:
        p = x.sigmoid()
        bce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        loss = bce * (1 - (p * y + (1 - p) * (1 - y))) ** gamma
        return reduced((alpha * y + (1 - alpha) * (1 - y)) * loss if alpha >= 0 else loss, reduction)


class Liger:
    @staticmethod
    def LigerCrossEntropyLoss(
        weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, reduction="mean", softcap=None,
        return_z_loss=False, return_token_accuracy=False,
    ):  # fmt: skip
        def call(x, target):
            x = x if softcap is None else softcap * torch.tanh(x / softcap)
            kept = target != ignore_index
            x, y = x[kept], target[kept]
            w = torch.ones(x.shape[1], dtype=x.dtype) if weight is None else weight
            lse = x.logsumexp(-1)
            uniform = label_smoothing / x.shape[1] * (w.sum() * lse - (w * x).sum(1))
            loss = (1 - label_smoothing) * w[y] * (lse - pick(x, y)) + uniform
            z = lse_square_scale * lse**2  # not weighted, a TODO in the source
            if reduction == "mean":
                loss, z = loss / w[y].sum(), z / len(y)
            total, z_loss = (loss + z).sum(), z.sum()
            if not (return_z_loss or return_token_accuracy):
                return total
            return SimpleNamespace(loss=total, z_loss=z_loss, token_accuracy=(x.argmax(1) == y).to(x.dtype).mean())

        return call


class transformers:
    @staticmethod
    def LabelSmoother(epsilon=0.1, ignore_index=-100):
        def call(model_output, labels, shift_labels=False):
            x = model_output["logits"]
            if shift_labels:
                x, labels = x[..., :-1, :], labels[..., 1:]
            cost, padding = -x.log_softmax(-1), labels == ignore_index
            nll = pick(cost, labels.clamp(min=0)).masked_fill(padding, 0.0)
            smoothed = cost.sum(-1).masked_fill(padding, 0.0)
            active = padding.numel() - padding.sum()
            return (1 - epsilon) * nll.sum() / active + epsilon * smoothed.sum() / (active * x.shape[-1])

        return call

    @staticmethod
    def fixed(x, target, num_items_in_batch=None, ignore_index=-100):
        loss = F.cross_entropy(
            x, target, ignore_index=ignore_index, reduction="mean" if num_items_in_batch is None else "sum"
        )
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    @staticmethod
    def ForCausalLMLoss(logits, labels, vocab_size, num_items_in_batch=None, ignore_index=-100):
        labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        return transformers.fixed(logits.view(-1, vocab_size), labels.reshape(-1), num_items_in_batch, ignore_index)

    @staticmethod
    def ForMaskedLMLoss(logits, labels, vocab_size, num_items_in_batch=None, ignore_index=-100):
        return transformers.fixed(logits.view(-1, vocab_size), labels.view(-1), num_items_in_batch, ignore_index)

    @staticmethod
    def ForTokenClassification(logits, labels, config, num_items_in_batch=None):
        return transformers.fixed(logits.view(-1, config.num_labels), labels.view(-1), num_items_in_batch)

    @staticmethod
    def ForSequenceClassificationLoss(labels, pooled_logits, config):
        if config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(pooled_logits, labels)
        return transformers.fixed(pooled_logits.view(-1, config.num_labels), labels.view(-1))

    @staticmethod
    def ForQuestionAnsweringLoss(start_logits, end_logits, start_positions, end_positions):
        beyond = start_logits.size(1)
        pairs = ((start_logits, start_positions), (end_logits, end_positions))
        return sum(transformers.fixed(x, y.clamp(0, beyond), ignore_index=beyond) for x, y in pairs) / 2


class sentence_transformers:
    @staticmethod
    def MultipleNegativesRankingLoss(scale=20.0):
        def call(anchors, candidates):
            scores = scale * F.cosine_similarity(anchors[:, None], candidates[None], dim=-1)
            return F.cross_entropy(scores, torch.arange(len(anchors)))

        return call

    @staticmethod
    def MultipleNegativesSymmetricRankingLoss(scale=20.0):
        def call(anchors, candidates):
            scores = scale * F.cosine_similarity(anchors[:, None], candidates[None], dim=-1)
            right = torch.arange(len(anchors))
            return (F.cross_entropy(scores, right) + F.cross_entropy(scores[:, : len(anchors)].T, right)) / 2

        return call


class TRL:
    @staticmethod
    def selective_log_softmax(logits, index):
        return pick(logits, index) - logits.logsumexp(-1)


class sklearn:
    @staticmethod
    def log_loss(y_true, y_pred, *, normalize=True, sample_weight=None):
        loss = -pick(
            (y_pred / y_pred.sum(-1, keepdim=True)).log(), y_true
        )  # only so do numbers that sum to 1 have a gradient
        loss = loss if sample_weight is None else sample_weight * loss
        if not normalize:
            return loss.sum()
        return loss.mean() if sample_weight is None else loss.sum() / sample_weight.sum()


def names(library: type) -> dict[str, object]:
    """List what a library holds, for ``eval``."""
    return {name: getattr(library, name) for name in vars(library) if not name.startswith("_")}
