"""The specification itself, held to hand-computed tables, finite differences and third parties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import SIGMOID, SOFTMAX, law
from closeness import assert_slope
from scipy.special import rel_entr
from sklearn.metrics import log_loss

from crossent import reference

HAND = np.log([0.1, 0.7, 0.2])


def test_one_label_by_hand():
    loss, grad, _ = reference.cross_entropy(HAND, 0)
    np.testing.assert_allclose(loss, 2.302585092994046, rtol=1e-15)
    np.testing.assert_allclose(grad, [-0.9, 0.7, 0.2], rtol=1e-14)


def test_one_step_of_gradient_descent_by_hand():
    p = reference.softmax(HAND - reference.cross_entropy(HAND, 0).grad)
    np.testing.assert_allclose(p.round(3), [0.325, 0.459, 0.216])


def test_several_labels_by_hand():
    # gradient p - 1/M on the M positives and p on the negatives
    t = reference.multilabel_target([1, 0, 1])
    loss, grad, _ = reference.cross_entropy(HAND, t)
    np.testing.assert_allclose(loss, -(np.log(0.1) + np.log(0.2)) / 2, rtol=1e-15)
    np.testing.assert_allclose(grad, [0.1 - 0.5, 0.7, 0.2 - 0.5], rtol=1e-14)
    np.testing.assert_allclose(reference.multilabel_target([3.0, 0.0, 1.0]), [0.75, 0, 0.25])


def test_binary_by_hand():
    x = np.array([-6.0, 0.0, 2.0])
    loss, grad, _ = reference.binary_cross_entropy_with_logits(x, [1.0, 0.0, 1.0], reduction="sum")
    p = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(grad, p - [1, 0, 1], rtol=1e-13)
    np.testing.assert_allclose(loss, -np.log([p[0], 1 - p[1], p[2]]).sum(), rtol=1e-13)


def test_untrained_models():
    assert reference.cross_entropy(np.zeros(27), 3).loss.round(4) == 3.2958
    assert reference.cross_entropy(reference.softmax([1e9] + [0] * 9), 0).loss.round(4) == 1.4612


def test_smoothing_is_the_forums_soft_label():
    np.testing.assert_allclose(reference.smooth([1, 0, 0], 0.03), [0.98, 0.01, 0.01], rtol=1e-15)


def test_vanishing_gradient_of_the_difference():
    np.testing.assert_allclose(reference.sigmoid_difference([-6.0], [1]).grad, -0.0024665, rtol=1e-4)
    np.testing.assert_allclose(reference.binary_cross_entropy_with_logits([-6.0], [1]).grad, -0.9975274, rtol=1e-6)


def test_class_weights_by_hand():
    x, c = np.stack([HAND, HAND]), [2.0, 1.0, 4.0]
    indices = reference.cross_entropy(x, [0, 2], c).loss
    np.testing.assert_allclose(indices, (2 * -np.log(0.1) + 4 * -np.log(0.2)) / 6, rtol=1e-15)
    one_hot = reference.cross_entropy(x, np.eye(3)[[0, 2]], c).loss
    np.testing.assert_allclose(one_hot, indices * 6 / 2, rtol=1e-15)


def test_smoothing_multiplies_every_class_by_its_own_weight():
    c, e = np.array([2.0, 1.0, 4.0]), 0.3
    loss = reference.cross_entropy(HAND[None], [0], c, label_smoothing=e, reduction="sum").loss
    by_hand = (1 - e) * 2 * -np.log(0.1) + e / 3 * (c * -np.log([0.1, 0.7, 0.2])).sum()
    np.testing.assert_allclose(loss, by_hand, rtol=1e-15)


SMOOTH_SOFTMAX = [
    c for c in SOFTMAX if c.logits.size <= 200 and np.isfinite(c.logits).all() and np.abs(c.logits).max(initial=0) < 20
]
SMOOTH_SIGMOID = [c for c in SIGMOID if np.isfinite(c.logits).all()]


@law(SMOOTH_SOFTMAX)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_softmax_gradients_are_finite_differences(case, reduction):
    def loss(x, t):
        return reference.cross_entropy(x, t, reduction=reduction, **case.settings).loss

    got = reference.cross_entropy(case.logits, case.target, reduction=reduction, **case.settings)
    if np.isnan(got.loss).any():
        assert (got.grad == 0).all()
        return
    assert_slope(got.grad, lambda x: loss(x, case.target), case.logits)
    if got.target_grad is not None:
        assert_slope(got.target_grad, lambda t: loss(case.logits, t), case.target)


@law(SMOOTH_SIGMOID)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_sigmoid_gradients_are_finite_differences(case, reduction):
    def loss(x, t):
        return reference.binary_cross_entropy_with_logits(x, t, reduction=reduction, **case.settings).loss

    got = reference.binary_cross_entropy_with_logits(case.logits, case.target, reduction=reduction, **case.settings)
    assert_slope(got.grad, lambda x: loss(x, case.target), case.logits)
    assert_slope(got.target_grad, lambda t: loss(case.logits, t), case.target)


@pytest.mark.parametrize(
    "loss", [reference.sigmoid_difference, reference.multiclass_hinge, reference.cross_entropy_after_softmax]
)
def test_comparison_gradients_are_finite_differences(loss):
    x = np.random.default_rng(0).normal(size=(6, 4)) * 2
    target = np.eye(4)[[0, 1, 2, 3, 0, 1]] if loss is reference.sigmoid_difference else [0, 1, 2, 3, 0, 1]
    assert_slope(loss(x, target).grad, lambda x: loss(x, target).loss, x, atol=1e-9)


def test_a_second_softmax_cannot_go_below_its_floor():
    for num_classes in (2, 10, 1000):
        x = 1e3 * np.eye(num_classes)[0]
        loss = reference.cross_entropy_after_softmax(x, 0).loss
        np.testing.assert_allclose(loss, reference.double_softmax_floor(num_classes), rtol=1e-14)


def test_terms_of_the_hinge_add_up_to_it():
    x, y = np.random.default_rng(0).normal(size=(6, 4)) * 2, [0, 1, 2, 3, 0, 1]
    terms = reference.hinge_terms(x, y)
    np.testing.assert_allclose(terms.sum(1), reference.multiclass_hinge(x, y, "none").loss, rtol=1e-15)
    assert (terms[range(6), y] == 0).all()


def test_torch_in_float64():
    rng = np.random.default_rng(0)
    x, y, c = rng.normal(size=(9, 5, 3)), rng.integers(0, 5, (9, 3)), rng.random(5)
    y[0, 1] = 2
    settings = {"label_smoothing": 0.2, "ignore_index": 2}
    theirs = F.cross_entropy(*map(torch.from_numpy, (x, y, c)), **settings)
    np.testing.assert_allclose(reference.cross_entropy(x, y, c, **settings).loss, theirs, rtol=1e-13)
    t = rng.random((9, 5, 3))
    theirs = F.cross_entropy(*map(torch.from_numpy, (x, t, c)), label_smoothing=0.2)
    np.testing.assert_allclose(reference.cross_entropy(x, t, c, label_smoothing=0.2).loss, theirs, rtol=1e-13)
    pi = rng.random((5, 1)) * 3
    theirs = F.binary_cross_entropy_with_logits(*map(torch.from_numpy, (x, t, t)), pos_weight=torch.from_numpy(pi))
    ours = reference.binary_cross_entropy_with_logits(x, t, t, pos_weight=pi).loss
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)
    hinge = F.multi_margin_loss(torch.from_numpy(x[:, :, 0]), torch.from_numpy(y[:, 0]))
    np.testing.assert_allclose(reference.multiclass_hinge(x[:, :, 0], y[:, 0]).loss, hinge, rtol=1e-13)


def test_scikit_learn_and_scipy():
    rng = np.random.default_rng(0)
    x, y, u = rng.normal(size=(50, 6)), rng.integers(0, 6, 50), rng.random(50)
    p = reference.softmax(x)
    np.testing.assert_allclose(reference.cross_entropy(x, y).loss, log_loss(y, p, labels=range(6)), rtol=1e-12)
    weighted = reference.cross_entropy(x, y, sample_weight=u).loss
    np.testing.assert_allclose(weighted, log_loss(y, p, labels=range(6), sample_weight=u), rtol=1e-12)
    q = reference.softmax(rng.normal(size=(50, 6)))
    entropy = -(q * np.log(q)).sum(1)
    kl = reference.cross_entropy(x, q, reduction="none").loss - entropy
    np.testing.assert_allclose(kl, rel_entr(q, p).sum(1), rtol=1e-9)


def test_onnx_operator():
    import onnx
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(0)
    x, y, c = rng.normal(size=(4, 5, 3)), rng.integers(0, 5, (4, 3)), rng.random(5)
    y[1, 2] = -1
    for reduction in ("none", "sum", "mean"):
        node = onnx.helper.make_node(
            "SoftmaxCrossEntropyLoss", ["x", "y", "c"], ["loss"], reduction=reduction, ignore_index=-1
        )
        made = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in ("x", "c", "loss")]
        made.insert(1, onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, None))
        graph = onnx.helper.make_graph([node], "g", made[:3], made[3:])
        (theirs,) = ReferenceEvaluator(onnx.helper.make_model(graph)).run(None, {"x": x, "y": y, "c": c})
        ours = reference.cross_entropy(x, y, c, reduction=reduction, ignore_index=-1).loss
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_stable_at_any_logit():
    x = np.array([[1e4, 0.0, -1e4], [-1e300, 0.0, 1.0], [700.0, 710.0, 705.0]])
    loss, grad, _ = reference.cross_entropy(x, [0, 0, 1], reduction="none")
    assert loss[0] == 0
    assert loss[1] == 1e300
    assert np.isfinite(grad).all()
    tiny = reference.cross_entropy([[40.0, 0.0]], [0])
    np.testing.assert_allclose([tiny.loss, -tiny.grad[0, 0]], np.exp(-40.0), rtol=1e-13)


def test_sigmoid_is_softmax_over_x_and_zero():
    x, t = np.array([-30.0, -1.0, 0.0, 2.0, 50.0]), np.array([0.0, 0.3, 1.0, 0.9, 1.0])
    pair = np.stack([x, np.zeros(5)], 1)
    ours = reference.cross_entropy(pair, np.stack([t, 1 - t], 1), reduction="none")
    binary = reference.binary_cross_entropy_with_logits(x, t, reduction="none")
    np.testing.assert_allclose(binary.loss, ours.loss, rtol=1e-14)
    np.testing.assert_allclose(binary.grad, ours.grad[:, 0], rtol=1e-13)


def test_descent_to_the_right_answer():
    """Count steps of plain gradient descent until a confidently wrong model is right: the thread's question, in numbers."""

    def steps(start, gradient, limit):
        x = np.array(start, np.float64)
        for step in range(limit):
            if x.argmax() == 0:
                return step
            x = x - gradient(x)
        return None

    one_hot = np.array([1.0, 0, 0])

    def cross_entropy(x):
        return reference.softmax(x) - one_hot

    def difference(x):
        p = 1 / (1 + np.exp(-x))
        return np.where(one_hot == 1, -1, 1) * p * (1 - p)

    def after_softmax(x):
        e = np.exp(x - x.max())
        p = e / e.sum()
        q = np.exp(p) / np.exp(p).sum() - one_hot
        return p * (q - (p * q).sum())

    np.testing.assert_allclose(
        difference(np.array([-6.0, 6, 0])), reference.sigmoid_difference([-6.0, 6, 0], [1, 0, 0], "sum").grad
    )
    assert steps([-6, 6, 0], cross_entropy, 100) == 7
    assert steps([-6, 6, 0], difference, 1000) == 418
    assert steps([-6, 6, 0], lambda x: difference(x) / 3, 2000) == 1249
    assert steps([-6, 6, 0], after_softmax, 20000) == 9854
    assert steps([-10, 10, 0], cross_entropy, 100) == 11
    assert steps([-10, 10, 0], difference, 30000) == 22051


@pytest.mark.parametrize("cut", [(0, 7), (3, 4), (1, 1, 5), (7, 0), (2, 0, 5)], ids=str)
def test_shards_of_the_classes_are_the_whole(cut):
    rng = np.random.default_rng(3)
    x, w = 5 * rng.normal(size=(6, 7)), rng.random((6, 7))
    x[1] = [60, 0, 0, 0, 0, 0, 0]  # nothing else is likely
    w[1], w[2] = np.eye(7)[0], 0.0
    x[3, :2] = -np.inf
    w[3, :2] = 0.0
    ends = np.cumsum(cut)
    places = [slice(end - size, end) for end, size in zip(ends, cut, strict=True)]
    whole = reference.combine(reference.partial(x[:, place], w[:, place]) for place in places)
    loss, grad, _ = reference.softmax_cross_entropy(x, w)
    np.testing.assert_allclose(whole.loss, loss, rtol=1e-13, atol=0)
    np.testing.assert_allclose(whole.top + whole.log_sum, reference.log_sum_exp(x), rtol=1e-14)
    for place in places:
        ours = reference.shard_gradient(x[:, place], w[:, place], whole)
        np.testing.assert_allclose(ours, grad[:, place], rtol=1e-12, atol=1e-15)
