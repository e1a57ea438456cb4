"""The family's members that have names of their own: a few lines each, over the two losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from crossent.core.checks import (
    check_devices,
    check_logits_dtype,
    check_tensor,
    check_tensors,
    class_axis,
    flag,
    gradient_place,
    integer,
    number,
    number_or_tensor,
    optional,
    without_autocast,
)
from crossent.core.messages import shape, type_error
from crossent.core.modes import plain, readable
from crossent.core.overrides import overridable
from crossent.core.penalties import BalancedFocal, Focal
from crossent.core.reduction import Reduction, compute_dtype, reduce_rows, result_dtype
from crossent.core.settings import (
    DistillationOptions,
    FocalOptions,
    MultilabelOptions,
    Settings,
    SigmoidFocalOptions,
    check_names,
    documented,
)
from crossent.core.target import Target, describe, stand_in
from crossent.impl import choose, formulas
from crossent.losses.binary import binary_cross_entropy_with_logits
from crossent.losses.softmax import cross_entropy, reduced_cross_entropy
from crossent.ops import softmax as ops
from crossent.ops.pairs import pair_losses
from crossent.ops.rows import row_losses, saves_memory, takes_blocks


@documented
def focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    **options: Unpack[FocalOptions],
) -> Tensor:
    """Compute the softmax focal loss, ``-(1-p)^γ log p`` of the target's class: cross entropy that cares less about what is known.

    ``cross_entropy`` with ``penalty=Focal(γ)``. A class weight multiplies the loss and leaves ``p`` what it is, soft targets
    mix the losses of the classes, and ``γ < 1`` is as finite as any.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices or probabilities, as in :func:`crossent.cross_entropy`.
        gamma: ``γ``, at least 0, where it is cross entropy.
        weight: ``(C)``, the paper's ``α``, one number a class.
        {options}

    Returns:
        The loss, as :func:`crossent.cross_entropy` returns it.

    >>> focal_loss(torch.tensor([[0.1, 0.7, 0.2]]).log(), torch.tensor([1]))
    tensor(0.0321)

    See also: :func:`sigmoid_focal_loss` for object detection; :class:`crossent.Focal`; :class:`crossent.FocalLoss`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017.
    """
    check_names(options, FocalOptions, "focal_loss")
    return cross_entropy(input, target, weight, penalty=Focal(gamma), **options)


@documented
def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: Literal["none", "mean", "sum"] = "none",
    **options: Unpack[SigmoidFocalOptions],
) -> Tensor:
    """Compute the focal loss of object detection: ``α t f(σ(x)) + (1-α) (1-t) f(σ(-x))`` with ``f = -(1-p)^γ log p``.

    The arguments are torchvision's, with its default of no reduction. For targets strictly between 0 and 1, where torchvision
    mixes the probabilities before it takes the power, this is the mixture of the losses.

    Args:
        input: logits of any shape.
        target: the probability of "yes" for each, floating, of the same shape.
        alpha: ``α`` in [0, 1]; None or, as in torchvision, a negative number for none.
        gamma: ``γ``, at least 0.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``. Object detectors divide the sum by the number of boxes:
            ``reduction="mean"`` with ``denominator``.
        weight: a factor on each element, broadcast to that shape; the mean's divisor does not see it.
        ignore_index: elements with this target count for nothing: no loss, no gradient, no share in the mean.
        {options}

    Returns:
        The loss of every element, or 0-d, in the dtype of the target.

    >>> sigmoid_focal_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))
    tensor([0.0433, 1.2376])

    See also: :func:`focal_loss` where exactly one class is true; :class:`crossent.SigmoidFocalLoss`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017; ``torchvision.ops.sigmoid_focal_loss``.
    """
    check_names(options, SigmoidFocalOptions, "sigmoid_focal_loss")
    penalty = sigmoid_focal(alpha, gamma)
    return binary_cross_entropy_with_logits(input, target, reduction=reduction, penalty=penalty, **options)


def sigmoid_focal(alpha: float | None, gamma: float) -> Focal | BalancedFocal:
    """Make the penalty of the sigmoid focal loss; with None or, as in torchvision, a negative ``α``, without ``α``."""
    alpha = None if alpha is None else number("alpha", alpha)
    return Focal(gamma) if alpha is None or alpha < 0 else BalancedFocal(gamma, alpha)


@overridable
@documented
def multilabel_cross_entropy(
    input: Tensor,
    labels: Tensor | Sequence[Iterable[int]],
    weight: Tensor | None = None,
    **options: Unpack[MultilabelOptions],
) -> Tensor:
    """Compute the softmax cross entropy of rows with several labels: ``t = 1/M`` on each of a row's M labels.

    Classes compete for one probability, so an image of two things is best described by one half each. Rows without a label are
    ignored: no loss, no gradient whatever their logits hold, no share in the mean.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        labels: zeros and ones of the logits' shape and any dtype, or any amounts, which are divided by their sum; or for logits
            ``(N, C)`` a list of N lists of class indices, of any length.
        weight: class weights ``c``, ``(C)``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, over the rows that have labels.
        {options}

    Returns:
        The loss, 0-d, or of the shape of the rows for ``reduction="none"``, in the dtype of the logits (promoted with labels that
        are floating).

    Raises:
        IndexError: a label out of range.
        RuntimeError: labels of another shape.

    >>> logits = torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]]).log()
    >>> multilabel_cross_entropy(logits, [[0, 2], []])
    tensor(1.9560)
    >>> multilabel_cross_entropy(logits, torch.tensor([[1, 0, 1], [0, 0, 0]]))
    tensor(1.9560)

    See also: :func:`crossent.binary_cross_entropy_with_logits`, in which classes do not compete;
    :class:`crossent.MultilabelCrossEntropyLoss`.

    Source: Mahajan et al., "Exploring the Limits of Weakly Supervised Pretraining", 2018.
    """
    check_names(options, MultilabelOptions, "multilabel_cross_entropy")
    check_tensors(input=input)
    check_logits_dtype(input)
    rows = Reduction.among(options.get("reduction", "mean"), options)
    dim, out_dtype = options.get("dim"), options.get("out_dtype")
    axis = class_axis(input, dim)
    if isinstance(labels, np.ndarray) and labels.dtype != object:  # it means the same as a tensor of its numbers
        labels = torch.as_tensor(labels, device=input.device)
    labels = labels if isinstance(labels, Tensor) else _multi_hot(labels, input)
    if labels.shape != input.shape:
        raise RuntimeError(
            f"labels must have the shape of the logits {shape(input)}, one number for every class, got {shape(labels)}: "
            "for class indices give a list with a list of them for every row"
        )
    wide, impl = compute_dtype(input, labels), options.get("impl")
    logits, described = describe(input, stand_in(input, wide), weight, dim, dict(options))
    labelled = labels if labels.dtype == torch.bool else labels != 0
    described = described.leaving_out(~labelled.any(axis, keepdim=input.dim() == 1))
    floating = (labels,) if labels.is_floating_point() else ()
    dtype = result_dtype(input, floating, out_dtype)
    place = gradient_place(options.get("inplace_backward", False), options.get("inplace_forward", False), input)
    amounts = labels.unsqueeze(0) if labels.dim() == 1 else labels.movedim(axis, 1)
    name = choose(logits, impl, described.values, described, "loss")
    of_amounts = described._replace(values=amounts)
    if takes_blocks(name, logits, of_amounts):
        (loss,) = row_losses(partial(_of_amounts, wide=wide), logits, of_amounts, inplace=place != "beside")
        return _reduced_rows(loss, input, described, rows).to(dtype)
    described = described._replace(values=_shares(amounts.to(wide)))
    return reduced_cross_entropy(input, logits, described, rows, dtype, place, name)


def _shares(amounts: Tensor) -> Tensor:
    """Divide amounts by their sum, which may be 0; here, so that a copy of them is gone before the loss takes memory."""
    total = amounts.sum(1, keepdim=True)
    return amounts / total.masked_fill(total == 0, 1.0)


def _of_amounts(logits: Tensor, target: Target, wide: torch.dtype) -> Iterator[Tensor]:
    """Compute the losses of rows in torch operations, of a target whose values are amounts."""
    target = target._replace(values=_shares(target.values.to(wide)))
    yield _row_losses(logits, target, formulas.IMPLEMENTATION.name)


def _reduced_rows(each: Tensor, input: Tensor, target: Target, rows: Reduction) -> Tensor:
    """Reduce the losses of a target's rows; logits of one axis were made a batch of one row."""
    shape = (*each.shape[:1], 1 if target.weight is None else len(target.weight), *each.shape[1:])
    row_weight = target.row_weights(each.new_empty(()).expand(shape)).squeeze(1)
    each, row_weight = (each.squeeze(0), row_weight.squeeze(0)) if input.dim() == 1 else (each, row_weight)
    return reduce_rows(each, row_weight, rows)


def _multi_hot(labels: Sequence[Iterable[int]], logits: Tensor) -> Tensor:
    """Write one list of class indices a row as a row of zeros and ones."""
    if logits.dim() != 2 or isinstance(labels, (str, bytes)):
        raise RuntimeError(
            f"labels must be a tensor of the logits' shape {shape(logits)}: lists are for logits of shape (N, C) only"
        )
    num_rows, num_classes = logits.shape
    try:
        rows = [row.tolist() if isinstance(row, (Tensor, np.ndarray)) else list(row) for row in labels]
    except TypeError:  # a number in the place of a list
        type_error(
            "labels", "a tensor of the logits' shape, or a list with a list of class indices for every row", labels
        )
    if len(rows) != num_rows:
        raise RuntimeError(
            f"labels must have a list for every row of the logits {shape(logits)}, got {len(rows)} lists"
        )
    at = [(i, k if type(k) is int else integer(f"a label of row {i}", k)) for i, row in enumerate(rows) for k in row]
    for i, k in at:
        if not 0 <= k < num_classes:
            fix = "leave out what is no label" if k < 0 else "check the labels against the number of logits"
            if k == num_classes and min(label for _, label in at) == 1:
                fix = "if labels start at 1, subtract 1"
            raise IndexError(
                f"labels must lie in [0, {num_classes}) for logits with {num_classes} classes; got {k} in row {i}: {fix}"
            )
    hot = torch.zeros(num_rows, num_classes, dtype=torch.bool, device="cpu")
    if at:
        hot[tuple(torch.tensor(at, device="cpu").unbind(1))] = True
    return hot.to(logits.device)


@overridable
@documented
def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    target: Tensor | None = None,
    alpha: float = 0.5,
    **options: Unpack[DistillationOptions],
) -> Tensor:
    """Compute how far a student is from its teacher: ``T² KL(q‖p)``, ``q = softmax(teacher / T)``, ``p = softmax(student / T)``.

    The gradient is ``T (p - q)``: the factor ``T²`` keeps its size while T is tuned. A row is summed over its classes and the mean
    is over rows, as ``"batchmean"`` of ``torch.nn.KLDivLoss``, whose ``"mean"`` divides by the number of classes as well. Both
    arguments are logits, so that no ``log_softmax`` and no factor can be forgotten.

    ``reverse=True`` is ``T² KL(p‖q)``: the student may leave out what the teacher finds possible, and pays for what the teacher
    finds impossible.

    With a target it is ``α`` times that plus ``1 - α`` times the cross entropy of the student with the target, at temperature 1.

    Args:
        student_logits: ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        teacher_logits: of the same shape and any floating dtype. Taken as constant, whether or not they require grad, unless
            ``teacher_grad``: a teacher that is trained towards its student is rarely meant.
        temperature: ``T``, positive, of the first part.
        target: class indices or probabilities, of the second part.
        alpha: ``α`` in [0, 1], the share of the first part if there is a second.
        weight: class weights of the second part, whose mean they divide.
        ignore_index: rows with this index count for nothing, in both parts.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, of both parts. The first part's mean is over the rows that count.
        label_smoothing: ``ε`` of the second part.
        sample_weight: a factor for each row, in both parts.
        denominator: replaces what both means divide by.
        teacher_grad: differentiate in the teacher's logits too.
        reverse: exchange p and q in the first part.
        penalty: what a class costs in the second part, such as :class:`crossent.Focal`. The first part takes none: a distance is
            smallest at ``p = q``, and only ``-log p`` has its smallest ``Σ q f(p)`` there.
        class_mask: boolean, ``(C)`` or of the logits' shape, True for the classes that are allowed. Student and teacher are, in
            both parts, what they would be without the others.
        z_loss: ``λ``, at least 0, of ``λ lse²`` of the student's logits at temperature 1. It is added once, whatever ``α`` is, and
            reduced as the first part.
        {options}

    Returns:
        The loss, 0-d, or of the shape of the rows for ``reduction="none"``, in the dtype of the student's logits.

    Raises:
        ValueError: logits of different shapes; ``alpha`` outside [0, 1]; a ``penalty`` without a target.

    >>> distillation_loss(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.1, 0.9]]).log())
    tensor(0.3681)
    >>> distillation_loss(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.1, 0.9]]).log(), reverse=True)
    tensor(0.5108)

    See also: :func:`crossent.cross_entropy` with the teacher's probabilities as target: the same gradient, at T = 1, and a value
    that is larger by the teacher's entropy; :class:`crossent.Teacher` for heads whose logits are too many to be formed;
    :class:`crossent.DistillationLoss`.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; reverse: Gu et al., "MiniLLM: Knowledge
    Distillation of Large Language Models", 2024.
    """
    check_names(options, DistillationOptions, "distillation_loss")
    _check_teacher(student_logits, teacher_logits)
    alpha, temperature = number("alpha", alpha), number("temperature", temperature)
    for name in ("teacher_grad", "reverse"):
        flag(name, options.get(name, False))
    z_loss = number("z_loss", options.get("z_loss", 0.0))
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}: it is the share of the teacher's part")
    if target is None and options.get("penalty") is not None:
        raise ValueError(
            "penalty must come with a target, whose part it belongs to: with a penalty the teacher's part would not be smallest "
            f"where the student agrees, got {options['penalty']!r} and no target; give one, or leave penalty out"
        )
    dtype = result_dtype(student_logits, (), options.get("out_dtype"))
    rows = Reduction.among(options.get("reduction", "mean"), options)
    pair = _understand_pair(student_logits, teacher_logits, temperature, target, options)
    if options.get("reverse", False) or options.get("teacher_grad", False):
        pair = _without_garbage(pair, rows.sample_weight)
    reverse, impl = options.get("reverse", False), options.get("impl")
    of_target: dict[str, Any] = {name: value for name, value in options.items() if name not in _OF_THE_TEACHER}
    targets = [pair.target._replace(values=pair.teacher)]
    if target is not None:
        targets.append(describe(student_logits, target, options.get("weight"), options.get("dim"), of_target)[1])
    if _is_by_formula(pair, targets, reverse, impl):
        compute = partial(_row_parts, reverse=reverse, z_loss=z_loss)
        each = row_losses(compute, pair.student, *targets)
        described = (*targets, pair.target) if z_loss else targets
        parts = [_reduced_rows(part, student_logits, of, rows) for part, of in zip(each, described, strict=True)]
    else:
        parts = [_reduced_rows(_divergence(pair, reverse, impl), student_logits, pair.target, rows)]
        if target is not None:
            parts.append(cross_entropy(student_logits, target, **{**of_target, "out_dtype": parts[0].dtype}))
        if z_loss:
            parts.append(_reduced_rows(_z_losses(pair, z_loss, impl), student_logits, pair.target, rows))
    loss, *others = parts
    if target is not None:
        loss = alpha * loss + (1 - alpha) * others.pop(0)
    return (loss + others[0] if others else loss).to(dtype)


_OF_THE_TEACHER = ("teacher_grad", "reverse", "z_loss")  # options that the target's part does not take


def _check_teacher(student_logits: Tensor, teacher_logits: Tensor) -> None:
    check_tensors(student_logits=student_logits, teacher_logits=teacher_logits)
    check_devices(student_logits, teacher_logits=teacher_logits)
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits must have the shape of student_logits {shape(student_logits)}, got {shape(teacher_logits)}"
        )
    if not teacher_logits.is_floating_point():
        raise RuntimeError(f"teacher_logits must be floating, got {teacher_logits.dtype}: give class indices as target")


class _Pair(NamedTuple):
    """Student and teacher laid out as operators want them, and what holds for both: mask, rows that count, temperature."""

    student: Tensor
    teacher: Tensor
    target: Target


def _understand_pair(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, target: Tensor | None, options: Any
) -> _Pair:
    """Lay a student and its teacher out; the rows that the target ignores do not count."""
    dim, mask = options.get("dim"), options.get("class_mask")
    axis = class_axis(student_logits, dim)
    of_both = {"temperature": temperature, "class_mask": mask}
    student, described = describe(student_logits, student_logits, None, dim, of_both)
    teacher = teacher_logits if options.get("teacher_grad", False) else teacher_logits.detach()
    teacher = teacher.unsqueeze(0) if teacher.dim() == 1 else teacher.movedim(axis, 1)
    if target is not None:
        numbers: dict[str, Any] = {
            name: options[name] for name in ("ignore_index", "label_smoothing") if name in options
        }
        _, hard = describe(student_logits, target, options.get("weight"), dim, numbers)
        ignored = hard.ignored_rows()
        described = described if ignored is None else described.leaving_out(ignored.squeeze(1))
    return _Pair(student, teacher, described)


def _without_garbage(pair: _Pair, sample_weight: Tensor | None) -> _Pair:
    """Leave out the rows of weight 0 whose logits are not finite, where what the targets are made of has a gradient.

    Such a target is nan, and so is its gradient, whatever the gradient is with which the row's loss enters.
    """
    if sample_weight is None or pair.student.shape[1] == 0:
        return pair
    u = sample_weight.unsqueeze(0) if sample_weight.dim() == 0 else sample_weight
    if u.shape != pair.student.shape[:1] + pair.student.shape[2:]:
        return pair  # what is wrong with the weights is said where they are used
    weightless = u.detach() == 0
    if readable(weightless) and not weightless.any():
        return pair  # without a pass over the logits
    # The largest magnitude of a row is finite if all are, and takes no copy of the logits.
    largest = [torch.linalg.vector_norm(x.detach(), torch.inf, 1) for x in (pair.student, pair.teacher)]
    garbage = weightless & ~torch.stack([rows.isfinite() for rows in largest]).all(0)
    if readable(garbage) and not garbage.any():
        return pair
    return pair._replace(target=pair.target.leaving_out(garbage))


def _divergence(pair: _Pair, reverse: bool, impl: str | None) -> Tensor:
    """Compute ``T² KL(q‖p)`` of each row, or ``T² KL(p‖q)``: a cross entropy less the entropy of its target.

    The entropy is computed as the cross entropy is, so that equal logits are exactly 0 apart.
    """
    logits, of_target = (pair.teacher, pair.student) if reverse else (pair.student, pair.teacher)
    t = formulas.distribution(of_target, pair.target)
    described = pair.target._replace(values=t)
    entropy = _row_losses(of_target, described, impl)
    if reverse:  # crossent.debug is not shown the teacher's logits: it is to see the student's
        cross = _row_losses(logits, described, impl)
    else:
        cross = reduced_cross_entropy(logits, logits, described, Reduction("none"), t.dtype, impl=impl)
    return pair.target.settings.temperature**2 * (cross - entropy)


def _is_by_formula(pair: _Pair, targets: list[Target], reverse: bool, impl: str | None) -> bool:
    """Whether all parts of a distillation are computed by torch operations, and in blocks; the teacher is ``targets[0]``."""
    if not saves_memory(pair.student):  # takes_blocks says so too, but a small call need not choose first
        return False
    values = stand_in(pair.student, compute_dtype(pair.student if reverse else pair.teacher))
    t = pair.target._replace(values=values)
    calls = [(pair.student, t), (pair.teacher, t), *((pair.student, hard) for hard in targets[1:])]
    names = {choose(logits, impl, target.values, target) for logits, target in calls}
    return len(names) == 1 and takes_blocks(names.pop(), pair.student, *targets)


def _row_parts(student: Tensor, of_teacher: Target, *hard: Target, reverse: bool, z_loss: float) -> Iterator[Tensor]:
    """Compute the parts of a distillation for each row in torch operations: the divergence, that of a target, and ``λ lse²``."""
    pair, impl = _Pair(student, of_teacher.values, of_teacher), formulas.IMPLEMENTATION.name
    yield _divergence(pair, reverse, impl)
    for target in hard:
        yield _row_losses(student, target, impl)
    if z_loss:
        yield _z_losses(pair, z_loss, impl)


def _z_losses(pair: _Pair, z_loss: float, impl: str | None) -> Tensor:
    """Compute ``λ lse²`` of each row of the student's logits: the loss with a target of no mass and a z-loss."""
    zeros = pair.student.new_zeros(()).expand(pair.student.shape)
    nothing = pair.target._replace(values=zeros, settings=Settings.of(z_loss=z_loss))
    return _row_losses(pair.student, nothing, impl)


def _row_losses(logits: Tensor, target: Target, impl: str | None) -> Tensor:
    return ops.cross_entropy(logits, target, "none", choose(logits, impl, target.values, target))[0]


def contrastive_cross_entropy(
    a: Tensor,
    b: Tensor,
    scale: float | Tensor = 1.0,
    offset: int = 0,
    *,
    symmetric: bool | None = None,
    label_smoothing: float = 0.0,
    impl: str | None = None,
) -> Tensor:
    """Find every vector's partner: the cross entropy of the logits ``scale · a bᵀ``, where row i belongs to column ``i + offset``.

    With as many ``a`` as ``b`` the loss is the mean of that and of the same with a and b exchanged, as in CLIP. With more ``b``
    than ``a`` (one machine's vectors against everybody's, ``offset`` vectors before its own) it is that of the rows only:
    exchange the two sets yourself and average. ``symmetric=False`` is always that of the rows only, InfoNCE.

    The logits are formed in float32 or wider from vectors of any floating dtype, and are not rounded before the loss.

    Args:
        a: ``(N, D)``, usually of length 1: ``torch.nn.functional.normalize(a, dim=-1)``.
        b: ``(M, D)`` with ``M >= N``.
        scale: one over the temperature; a 0-d tensor to learn it, such as ``log_scale.exp()``.
        offset: the column of the first row's partner.
        symmetric: whether columns look for their row too, and the two losses are averaged; by default where there are as many of
            both.
        label_smoothing: ``ε`` in [0, 1].
        impl: as in :func:`crossent.cross_entropy`.

    Returns:
        The mean loss, 0-d, in the dtype of the vectors, float32 under autocast.

    Raises:
        ValueError: shapes that do not fit; ``symmetric=True`` with more ``b`` than ``a``.
        IndexError: partners beyond the columns.

    >>> contrastive_cross_entropy(torch.eye(3), torch.eye(3), scale=10.0)
    tensor(9.0796e-05)
    >>> a, b = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    >>> contrastive_cross_entropy(a, b), contrastive_cross_entropy(a, b, symmetric=False)
    (tensor(0.3616), tensor(0.3133))

    See also: :func:`crossent.cross_entropy` with ``logit_bias`` for negatives that are sampled with known frequencies.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; the rows only: van den
    Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018.
    """
    for name, value in (("a", a), ("b", b)):
        check_tensor(name, value, "a torch.Tensor of shape (N, D)")
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must have shapes (N, D) and (M, D), got {shape(a)} and {shape(b)}: one vector a row")
    offset = integer("offset", offset)
    scale = number_or_tensor("scale", scale)
    if not 0 <= offset <= b.shape[0] - a.shape[0]:
        raise IndexError(
            f"the partners of the {a.shape[0]} rows of a must lie among the {b.shape[0]} rows of b, "
            f"got offset={offset}: it is the number of rows in b before the partner of a's first"
        )
    optional(flag)("symmetric", symmetric)
    check_devices(a, b=b)
    if symmetric is None:
        symmetric = a.shape[0] == b.shape[0]
    elif symmetric and a.shape[0] != b.shape[0]:
        raise ValueError(
            f"symmetric=True needs as many a as b, since every column looks for its row, got {shape(a)} and {shape(b)}: "
            "call it a second time with your own b and everybody's a, and average the two"
        )
    vectors = torch.promote_types(a.dtype, b.dtype)
    wide = torch.promote_types(vectors, torch.float32)
    dtype = result_dtype(a.new_empty(0, dtype=vectors), (), None) if vectors.is_floating_point else wide
    a, b = scale * a.to(wide), b.to(wide)  # and not the logits, which are more
    partner = torch.arange(offset, offset + a.shape[0], device=a.device)
    compute = partial(_of_pairs, partner=partner, symmetric=symmetric, label_smoothing=label_smoothing)
    if plain(a, b):
        logits = a.new_empty(()).expand(len(a), len(b))  # what they will be like
        target = describe(logits, partner, None, None, {"label_smoothing": label_smoothing})[1]
        # Torch's own operator, left to autograd, takes sixteen bytes a logit: where there are blocks, it has to be named.
        name = choose(logits, impl, partner, target, "loss")
        if takes_blocks(name, logits, target):
            return pair_losses(partial(compute, impl=name), a, b, target, symmetric).to(dtype)
    return compute(a, b, impl=impl).to(dtype)


def _of_pairs(
    a: Tensor, b: Tensor, partner: Tensor, symmetric: bool, label_smoothing: float, impl: str | None
) -> Tensor:
    """Compute the loss of logits that are formed whole."""
    logits = _similarity(a, b)
    loss = cross_entropy(logits, partner, label_smoothing=label_smoothing, impl=impl)
    if symmetric:
        loss = (loss + cross_entropy(logits.T, partner, label_smoothing=label_smoothing, impl=impl)) / 2
    return loss


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    """Compute ``a bᵀ`` in their dtype, also under autocast."""
    with without_autocast(a.device):
        return a @ b.T
