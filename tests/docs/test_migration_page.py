"""``docs/migration.md`` and its pages of origins: both sides of every row are run, and must give the same loss and gradient.

The other libraries are not needed: ``libraries.py`` has their formulas under their names, and is held here to the numbers that
their own documentation prints.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import libraries as lib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossent

DOCS = Path(__file__).parents[2] / "docs"
INDEX = (DOCS / "migration.md").read_text("utf-8")
PAGES = {page.stem: page.read_text("utf-8") for page in sorted((DOCS / "migration").glob("*.md"))}
N, C, H, W = 5, 4, 3, 2


# --- the pages --------------------------------------------------------------------------------------------------------


def sections(page: str) -> dict[str, str]:
    heads = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return dict(zip(heads[1::2], heads[2::2], strict=True))


def table(section: str) -> list[list[str]]:
    rows = [line[2:-2].split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows]


def code(cell: str) -> str:
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found, f"not one piece of code: {cell}"
    return found[1]


SECTIONS = {
    "PyTorch": {"F": F, "nn": nn, "torch": torch},
    "Caffe": {},
    "TensorFlow": lib.names(lib.TensorFlow),
    "Keras": lib.names(lib.Keras),
    "optax": lib.names(lib.optax),
    "timm": lib.names(lib.timm),
    "fastai": lib.names(lib.fastai),
    "MONAI": lib.names(lib.MONAI),
    "segmentation-models-pytorch": lib.names(lib.smp),
    "torchvision": lib.names(lib.torchvision),
    "Liger": lib.names(lib.Liger),
    "transformers": lib.names(lib.transformers),
    "sentence-transformers": {**lib.names(lib.sentence_transformers), "torch": torch},
    "TRL": lib.names(lib.TRL),
    "scikit-learn": lib.names(lib.sklearn),
}
ORIGINS = {  # a page's libraries, which are its headings if there are several
    "pytorch": ["PyTorch"], "caffe": ["Caffe"], "tensorflow": ["TensorFlow", "Keras"], "jax": ["optax"], "timm": ["timm"],
    "fastai": ["fastai"], "monai": ["MONAI"], "segmentation-models": ["segmentation-models-pytorch"],
    "torchvision": ["torchvision"], "liger": ["Liger"], "cut-cross-entropy": [],
    "huggingface": ["transformers", "sentence-transformers", "TRL"], "scikit-learn": ["scikit-learn"],
}  # fmt: skip
ROWS = [
    (name, code(theirs), code(ours))
    for page, names in ORIGINS.items()
    for name in names
    for theirs, ours in table(sections(PAGES[page])["The calls" if len(names) == 1 else name])
    if ours != "crossent"
]
OTHER_ROWS = [
    (theirs if ": `" in theirs else f"{ORIGINS[page][0]}: {theirs}", code(here))
    for page, text in PAGES.items()
    for theirs, _, here in table(sections(text).get("Where theirs is another loss", ""))[1:]
]

# --- the inputs: what the page calls them -----------------------------------------------------------------------------

LAYOUTS = {
    "PyTorch": ("rows",), "Caffe": ("first",), "TensorFlow": ("rows", "last"), "Keras": ("rows", "last"), "optax": ("rows", "last"),
    "timm": ("rows",), "fastai": ("rows", "first"), "MONAI": ("first",), "segmentation-models-pytorch": ("first",),
    "torchvision": ("rows", "first"), "Liger": ("rows",), "transformers": ("last",), "sentence-transformers": ("rows",),
    "TRL": ("rows", "last"), "scikit-learn": ("rows",),
}  # fmt: skip
LEAVES = ("logits", "p", "last", "logits_with_inf", "p_wrong", "pooled", "other", "a", "b", "hard")


@pytest.fixture(autouse=True)
def double_precision():
    """For the tensors that the calls on the page make."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def inputs(layout: str, scale: float = 1.0, seed: int = 0) -> SimpleNamespace:
    """Make everything the page names; ``layout`` says where a library has the class axis."""
    draw = torch.Generator().manual_seed(seed)
    shape = {"rows": (N, C), "first": (N, C, H, W), "last": (N, H, C)}[layout]
    axis = {"rows": 1, "first": 1, "last": 2}[layout]
    rows = shape[:axis] + shape[axis + 1 :]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw)

    def positive(*size: int) -> Tensor:
        return 0.3 + 2 * torch.rand(*size, generator=draw)

    def some(share: float, size: tuple[int, ...] = shape) -> Tensor:
        return torch.rand(size, generator=draw) < share

    target = torch.randint(C, rows, generator=draw)
    target.view(-1)[:C] = torch.arange(C)
    hole = some(0.3, rows)
    hole.view(-1)[:2] = torch.tensor([True, False])
    one_hot = F.one_hot(target, C).movedim(-1, axis).to(torch.float64)
    labels = some(0.4).to(torch.float64)
    u = positive(*rows)
    u.view(-1)[2] = 0.0
    allowed = some(0.6) | (one_hot == 1)
    return SimpleNamespace(
        C=C, target=target, holes=target.masked_fill(hole, 255), one_hot=one_hot, labels=labels,
        logits=(scale * normal(*shape)).requires_grad_(), teacher=scale * normal(*shape),
        last=(scale * normal(N, H, W, C)).requires_grad_(), target_of_last=torch.randint(C, (N, H, W), generator=draw),
        some_rows=u != 0, some_allowed=allowed & (u != 0).unsqueeze(axis),
        p=normal(*shape).softmax(axis).requires_grad_(), t=normal(*shape).softmax(axis), soft=torch.rand(shape, generator=draw),
        marked=labels.masked_fill(some(0.3), -1.0), c=positive(C), u=u, pi=positive(C), allowed=allowed,
        logits_with_inf=normal(*shape).masked_fill(~allowed, -torch.inf).requires_grad_(), t_elsewhere=one_hot,
        p_wrong=torch.tensor([[1e-9, 0.5, 0.5]]).requires_grad_(), t_true=torch.tensor([[1.0, 0.0, 0.0]]),
        counts=torch.tensor([1000, 100, 10, 1]), n=1111, gaps=target.masked_fill(hole, -100), blob=target.unsqueeze(1).double(),
        pooled=(scale * normal(N, C)).requires_grad_(), other=(scale * normal(N, C)).requires_grad_(),
        classes=torch.randint(C, (N,), generator=draw), beyond=torch.tensor([0, C, 2, C, 1]), yes=some(0.4, (N, C)).double(),
        config=SimpleNamespace(num_labels=C, problem_type="single_label_classification"),
        config_of_labels=SimpleNamespace(num_labels=C, problem_type="multi_label_classification"),
        a=normal(3, 6).requires_grad_(), b=normal(3, 6).requires_grad_(), hard=normal(2, 6).requires_grad_(),
    )  # fmt: skip


def run(call: str, v: SimpleNamespace, names: dict[str, object] | None = None) -> Tensor:
    known = {"crossent": crossent, "torch": torch, "F": F} if names is None else names
    return torch.as_tensor(eval(call, {**known, **vars(v)}))


def run_theirs(library: str, call: str, v: SimpleNamespace) -> Tensor:
    if library == "Caffe":
        if call.startswith("SigmoidCrossEntropyLoss"):
            labels = v.soft if "real labels" in call else v.labels
            return lib.Caffe.SigmoidCrossEntropyLoss(call, v.logits, v.marked if "ignore_label" in call else labels)
        if "label blob" in call:
            return lib.Caffe.SoftmaxWithLoss(call, v.logits, v.blob[:, 0].trunc().long())
        last = "axis: 3" in call
        return lib.Caffe.SoftmaxWithLoss(call, v.last if last else v.logits, v.target_of_last if last else v.target)
    if call.startswith("model.fit"):
        loss = lib.Keras.SparseCategoricalCrossentropy(from_logits=True)
        fit = lambda _, class_weight: loss(v.target, v.logits, sample_weight=class_weight[v.target])  # noqa: E731
        return run(call, v, {"model": SimpleNamespace(fit=fit)})
    return run(call, v, SECTIONS[library])


def gradients(loss: Tensor, v: SimpleNamespace) -> list[Tensor]:
    """Differentiate with respect to whatever the page lets a model put out."""
    if not loss.requires_grad:
        return []
    weights = torch.linspace(0.5, 1.5, loss.numel()).reshape(loss.shape)
    leaves = [getattr(v, name) for name in LEAVES]
    return list(torch.autograd.grad((loss * weights).sum(), leaves, allow_unused=True, materialize_grads=True))


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-9))


def all_close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(close(x, y) for x, y in zip(a, b, strict=True))


# --- the rows that are equal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("library", "theirs", "ours"), ROWS, ids=lambda text: re.sub(r"\W+", "-", text)[:50])
def test_row(library, theirs, ours):
    for layout in LAYOUTS[library]:
        for scale, seed in ((1.0, 0), (1.0, 1), (4.0, 2)):
            v = inputs(layout, scale, seed)
            if library == "Caffe" and "ignore_label: 255" in theirs:
                v.target = v.holes
            assert_same_loss_and_gradient(library, theirs, ours, v)
            if library in ("Caffe", "Keras") and "ignore" in theirs:  # nothing left, which is 0 there
                v.target, v.holes, v.marked = (
                    torch.full_like(t, i) for t, i in ((v.target, 255), (v.holes, 255), (v.marked, -1))
                )
                assert_same_loss_and_gradient(library, theirs, ours, v)


def assert_same_loss_and_gradient(library: str, theirs: str, ours: str, v: SimpleNamespace) -> None:
    expected, got = run_theirs(library, theirs, v), run(ours, v)
    assert close(got, expected), (got, expected)
    assert all_close(gradients(got, v), gradients(expected, v))


def test_every_library_and_mode_is_there():
    theirs = "\n".join(f"{library}: {call}" for library, call, _ in ROWS)
    wanted = """
        ignore_label, normalization: FULL, normalization: VALID, normalization: BATCH_SIZE, normalization: NONE, axis,
        tf.nn.sparse_softmax_cross_entropy_with_logits, tf.nn.softmax_cross_entropy_with_logits,
        tf.nn.sigmoid_cross_entropy_with_logits, tf.nn.weighted_cross_entropy_with_logits,
        Keras: CategoricalCrossentropy(from_logits=True, label_smoothing, Keras: CategoricalCrossentropy()(t p),
        Keras: SparseCategoricalCrossentropy(from_logits=True, Keras: SparseCategoricalCrossentropy()(target p), sample_weight=u,
        Keras: BinaryCrossentropy(from_logits=True, Keras: BinaryFocalCrossentropy, Keras: CategoricalFocalCrossentropy,
        optax: softmax_cross_entropy(, optax: softmax_cross_entropy_with_integer_labels, optax: sigmoid_binary_cross_entropy,
        optax: sigmoid_focal_loss, optax: poly_loss_cross_entropy, optax: safe_softmax_cross_entropy,
        timm: LabelSmoothingCrossEntropy, timm: SoftTargetCrossEntropy, timm: BinaryCrossEntropy, timm: AsymmetricLossMultiLabel,
        timm: AsymmetricLossSingleLabel, fastai: CrossEntropyLossFlat, fastai: LabelSmoothingCrossEntropy, fastai: FocalLoss,
        MONAI: FocalLoss(gamma=1.5)(, use_softmax=True, segmentation-models-pytorch: FocalLoss("binary", FocalLoss("multiclass",
        torchvision: sigmoid_focal_loss, Liger: LigerCrossEntropyLoss()(, lse_square_scale, softcap, return_z_loss=True,
        transformers: LabelSmoother, ForCausalLMLoss, num_items_in_batch, ForQuestionAnsweringLoss, a label blob of floats,
        real labels, sentence-transformers: MultipleNegativesRankingLoss, TRL: selective_log_softmax, scikit-learn: log_loss
    """
    missing = [want for want in re.split(r",\s+", wanted.strip()) if want not in theirs.replace(", p)", " p)")]
    assert not missing
    assert len(ROWS) > 100


def test_every_page_and_library_is_tried():
    """The tables of heads, Cut Cross-Entropy's among them, are tried in ``test_linear_page.py``."""
    assert ORIGINS.keys() == PAGES.keys()
    assert {name for names in ORIGINS.values() for name in names} == SECTIONS.keys() == LAYOUTS.keys()
    assert [page for page in PAGES if f"](migration/{page}.md)" not in INDEX] == []
    calls = sum(line.startswith("| ") and "crossent." in line for text in PAGES.values() for line in text.splitlines())
    heads = [sections(PAGES[page])["The head and its loss"] for page in ("pytorch", "liger")]
    of_heads = [*table("".join(heads)), *table(PAGES["cut-cross-entropy"])]
    assert calls == len(ROWS) + len(OTHER_ROWS) + sum("crossent." in row[-1] for row in of_heads)


# --- the rows that are not --------------------------------------------------------------------------------------------


def value_with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    return other + (value - other).detach()


def p_to_the_weight(v: SimpleNamespace) -> Tensor:
    power = lib.pick(v.logits.softmax(1), v.target) ** v.c[v.target]
    return ((1 - power) ** 2 * -power.log()).sum() / N


def two_means(v: SimpleNamespace) -> Tensor:
    uniform = crossent.cross_entropy(v.logits, torch.full((N, C), 1 / C))
    return 0.9 * crossent.cross_entropy(v.logits, v.target, v.c) + 0.1 * uniform


def added_for_wrong_classes(v: SimpleNamespace) -> Tensor:
    p = v.logits.softmax(1)
    cost = p**4 * -p.log()
    slope = torch.autograd.grad(cost.sum(), p, retain_graph=True)[0]
    assert (slope[p < 0.77] > 0).all()  # descending pushes p down
    true = (0.9 + 0.1 / C) * (1 - p) * -p.log()
    return (v.one_hot * true + (1 - v.one_hot) * 0.1 / C * cost).sum() / N


def constant_powers(v: SimpleNamespace) -> Tensor:
    yes, no = v.logits.sigmoid(), (1 - v.logits.sigmoid() + 0.05).clamp(max=1)
    each = torch.where(v.labels == 1, yes.log() * (1 - yes.detach()), no.log() * (1 - no.detach()) ** 4)
    penalty = crossent.Asymmetric(1.0, 4.0, 0.05)
    right = crossent.binary_cross_entropy_with_logits(v.logits, v.labels, penalty=penalty, denominator=N)
    return value_with_gradient_of(right, -each.sum() / N)


def p_minus_labels(v: SimpleNamespace) -> Tensor:
    right = crossent.cross_entropy(v.logits, 2 * v.t, reduction="none")
    return value_with_gradient_of(right, v.logits.logsumexp(1) - (2 * v.t * v.logits).sum(1))


def mixed_first(logits: Tensor, y: Tensor) -> Tensor:
    p = logits.sigmoid()
    mixture = crossent.binary_cross_entropy_with_logits(logits, y, reduction="none")
    return (y * (1 - p) + (1 - y) * p) ** 2 * mixture


SAYS: dict[str, Callable[[SimpleNamespace], Tensor]] = {
    "fastai: `FocalLoss(gamma": p_to_the_weight,
    "fastai: `LabelSmoothing": two_means,
    "segmentation-models-pytorch: `FocalLoss": lambda v: crossent.sigmoid_focal_loss(
        v.logits, v.one_hot, alpha=None, reduction="mean"
    ),
    "timm: `AsymmetricLossSingle": added_for_wrong_classes,
    "timm: `AsymmetricLossMulti": constant_powers,
    "TensorFlow": p_minus_labels,
    "torchvision": lambda v: (0.25 * v.soft + 0.75 * (1 - v.soft)) * mixed_first(v.logits, v.soft),
    "Keras: `BinaryFocal": lambda v: mixed_first(v.logits, 0.9 * v.labels + 0.05).mean(),
    "Liger": lambda v: crossent.cross_entropy(v.logits, v.target, v.c) + 1e-2 * v.logits.logsumexp(1).square().mean(),
    "Keras: `Categorical": lambda v: 0 * v.p_wrong.sum() + 7 * torch.log(torch.tensor(10.0)),
}


@pytest.mark.parametrize(("theirs", "here"), OTHER_ROWS, ids=lambda text: re.sub(r"\W+", "-", text)[:50])
def test_other_row(theirs, here):
    """Their formula is what the page says of it, and not the loss on the right."""
    library, call = theirs.split(": ", 1)
    says = [formula for start, formula in SAYS.items() if theirs.startswith(start)]
    assert len(says) == 1
    for seed in range(3):
        v = inputs("rows", seed=seed)
        losses = (
            run_theirs(library, code(call), v),
            says[0](v),
            run(here, v),
        )
        formula, described, got = [gradients(loss, v) for loss in losses]
        assert close(losses[0], losses[1])
        assert all_close(formula, described)
        assert not all_close(formula, got)
        assert close(losses[0], losses[2]) == (library == "TensorFlow" or "disable_torch_grad" in call)


def test_every_other_row_is_described():
    assert len(SAYS) == len(OTHER_ROWS)


# --- the four things --------------------------------------------------------------------------------------------------


def test_what_the_mean_divides_by():
    v = inputs("first")
    valid, y = v.holes != 255, v.holes.where(v.holes != 255, 0)
    each = F.cross_entropy(v.logits, v.holes, ignore_index=255, reduction="none")
    expected = {
        "the rows not ignored, each counted c[y] times": (v.c[y] * each).sum() / (v.c[y] * valid).sum(),
        "the rows not ignored": each.sum() / valid.sum(),
        "all rows, ignored or not": each.sum() / (N * H * W),
        "the batch size, not the pixels": each.sum() / N,
        "rows times classes": each.sum() / (N * C * H * W),
        "the rows, however they are weighted": (each * v.u).sum() / (N * H * W),
        "the sum of the sample weights": (each * v.u).sum() / (v.u * valid).sum(),
        "the rows whose weight is not 0": (each * v.u).sum() / (v.u != 0).sum(),
        "nothing: one loss a row": each,
    }
    rows = [row for row in table(sections(INDEX)["Four things to look at first"]) if row[0] in expected]
    assert [row[0] for row in rows] == list(expected)
    v.target = v.holes
    for divisor, _, here in rows:
        weight = "c" if "c[y]" in divisor else "None"
        option = "" if here.startswith("the default") else code(here)
        also = ", sample_weight=u" if divisor.endswith(("weighted", "not 0")) else ""
        assert close(
            run(f"crossent.cross_entropy(logits, target, {weight}, ignore_index=255, {option}{also})", v),
            expected[divisor],
        )


def test_what_smoothing_means():
    rows = table(sections(INDEX)["Four things to look at first"])
    rows = rows[[row[0] for row in rows].index("their smoothing") + 1 :]
    assert len(rows) == 5
    for name, true_class, here in rows:
        eps, x = 0.12, torch.randn(1, C)
        on = eval(true_class.translate(str.maketrans({"−": "-", "ε": "e"})), {"e": eps, "C": C})
        if here.startswith("none"):  # the true class and the others would need two different values
            of_two = eval(true_class.translate(str.maketrans({"−": "-", "ε": "e"})), {"e": eps, "C": 2})
            assert abs((1 - on) * 2 - eps / C * 2) > 1e-3
            assert abs((1 - of_two) * 2 - eps / 2 * 2) < 1e-9
            continue
        smoothing = eval(code(here), {"eps": eps, "C": C})
        if name.startswith("binary"):
            got = crossent.binary_cross_entropy_with_logits(x, torch.ones_like(x), label_smoothing=smoothing)
            assert close(got, F.binary_cross_entropy_with_logits(x, torch.full_like(x, on)))
        else:
            soft = torch.full_like(x, (1 - on) / (C - 1))
            soft[0, 0] = on
            assert close(
                crossent.cross_entropy(x, torch.tensor([0]), label_smoothing=smoothing), F.cross_entropy(x, soft)
            )


def test_logits_of_probabilities():
    p = torch.tensor([[0.1, 0.7, 0.2]])
    torch.testing.assert_close(p.log().softmax(1), p)
    torch.testing.assert_close(p.logit().sigmoid(), p)


# --- what the text says -----------------------------------------------------------------------------------------------


def test_caffes_loss_stops_and_its_gradient_does_not():
    assert f"{torch.finfo(torch.float32).tiny:.2e}" == "1.18e-38"
    assert "max(p, 1.18 · 10⁻³⁸) and never exceeds 87.34" in PAGES["caffe"]
    logits, target = torch.tensor([[0.0, 200.0], [1.0, 0.0]], requires_grad=True), torch.tensor([0, 0])
    assert f"{lib.Caffe.SoftmaxWithLoss('', logits[:1], target[:1]).item():.2f}" == "87.34"
    loss = crossent.cross_entropy(logits, target)
    assert loss > 100
    assert close(torch.autograd.grad(loss, logits)[0], lib.Caffe.softmax_gradient(logits, target))
    nothing = torch.full((2,), 255)
    assert lib.Caffe.SoftmaxWithLoss("ignore_label: 255", logits, nothing) == 0
    assert crossent.cross_entropy(logits, nothing, ignore_index=255, empty="zero") == 0


def test_clipped_probabilities_have_no_gradient():
    assert f"the loss {-np.log(1e-7):.2f}, and no gradient" in PAGES["tensorflow"]
    logits, t = torch.tensor([[-20.0, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    theirs = lib.Keras.CategoricalFocalCrossentropy(from_logits=True)(t, logits)
    assert not torch.autograd.grad(theirs, logits)[0].any()
    assert torch.autograd.grad(crossent.focal_loss(logits, t), logits)[0][0, 0] < -0.9
    logits, y = torch.tensor([[-20.0]], requires_grad=True), torch.ones(1, 1)
    there = torch.autograd.grad(lib.timm.AsymmetricLossMultiLabel()(logits, y), logits)[0]
    here = crossent.binary_cross_entropy_with_logits(logits, y, penalty=crossent.Asymmetric(), denominator=1)
    assert abs(there) < 1e-6
    assert torch.autograd.grad(here, logits)[0] < -0.9


def test_without_background_nothing_teaches_its_logit():
    v = inputs("first")
    loss = lib.MONAI.FocalLoss(include_background=False, to_onehot_y=True, use_softmax=True)(
        v.logits, v.target[:, None]
    )
    grad = torch.autograd.grad(loss, v.logits)[0]
    assert not grad[:, 0].any()
    assert grad[:, 1:].any()


def test_soft_labels_are_mixtures_here_and_not_there():
    x, ones = torch.randn(N, C), torch.ones(N, C)
    here = [
        lambda y: crossent.sigmoid_focal_loss(x, y),
        lambda y: crossent.binary_cross_entropy_with_logits(x, y, penalty=crossent.Asymmetric(), reduction="none"),
        lambda y: crossent.binary_cross_entropy_with_logits(x, y),
    ]
    there = [
        lambda y: lib.torchvision.sigmoid_focal_loss(x, y),
        lambda y: lib.Keras.BinaryFocalCrossentropy(from_logits=True)(y, x),
        lambda y: lib.optax.sigmoid_focal_loss(x, y),
        lambda y: lib.timm.AsymmetricLossMultiLabel()(x, y),
        lambda y: lib.smp.FocalLoss("binary")(x, y),
    ]
    for loss in here + there:
        mixture = 0.3 * loss(ones) + 0.7 * loss(0 * ones)
        assert close(loss(0.3 * ones), mixture) == (loss in here)


@pytest.mark.parametrize("library", ["torchvision", "fastai", "MONAI"])
def test_focal_losses_that_break_below_gamma_one(library):
    """Two rows in float32, one of them confident, and a weight of the model that both share."""
    weight = torch.ones((), dtype=torch.float32, requires_grad=True)
    x = weight * torch.tensor([[40.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float32)
    target, y = torch.tensor([0, 0]), torch.tensor([[1.0, 0, 0, 0]] * 2, dtype=torch.float32)
    theirs, here = {
        "torchvision": lambda: (
            lib.torchvision.sigmoid_focal_loss(x, y, gamma=0.5, reduction="sum"),
            crossent.sigmoid_focal_loss(x, y, gamma=0.5, reduction="sum"),
        ),
        "fastai": lambda: (lib.fastai.FocalLoss(gamma=0.5)(x, target), crossent.focal_loss(x, target, gamma=0.5)),
        "MONAI": lambda: (lib.MONAI.softmax_focal(x, y, 0.5).mean(), crossent.focal_loss(x, target, gamma=0.5)),
    }[library]()
    assert torch.autograd.grad(theirs, weight, retain_graph=True)[0].isnan()
    assert torch.autograd.grad(here, weight)[0].isfinite()


def test_optax_without_safe_is_nan_at_a_masked_class():
    x, t = torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert lib.optax.softmax_cross_entropy(x, t).isnan()
    assert close(crossent.cross_entropy(x, t, reduction="none"), lib.optax.safe_softmax_cross_entropy(x, t))


def test_no_smooth_factor_is_a_type_error():
    with pytest.raises(TypeError):
        lib.smp.SoftCrossEntropyLoss()(torch.zeros(1, C, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long))


# --- the formulas against the numbers that the libraries print in their documentation ---------------------------------


def test_formulas_give_the_numbers_of_keras_documentation():
    y, x = torch.tensor([0.0, 1, 0, 0]), torch.tensor([-18.6, 0.51, 2.94, -12.8])
    y2, x2, u = y.view(2, 2), x.view(2, 2), torch.tensor([0.8, 0.2])
    one_hot, indices, u3 = torch.tensor([[0.0, 1, 0], [0, 0, 1]]), torch.tensor([1, 2]), torch.tensor([0.3, 0.7])
    p = torch.tensor([[0.05, 0.95, 0], [0.1, 0.8, 0.1]])
    bce, focal = lib.Keras.BinaryCrossentropy, lib.Keras.BinaryFocalCrossentropy
    cce, sparse, cfc = (
        lib.Keras.CategoricalCrossentropy,
        lib.Keras.SparseCategoricalCrossentropy,
        lib.Keras.CategoricalFocalCrossentropy,
    )
    printed = {
        0.8654: bce(from_logits=True)(y, x),
        0.243: bce(from_logits=True)(y2, x2, sample_weight=u),
        1.730: bce(from_logits=True, reduction="sum")(y2, x2),
        0.691: focal(gamma=2, from_logits=True)(y, x),
        0.51: focal(apply_class_balancing=True, gamma=2, from_logits=True)(y, x),
        0.647: focal(gamma=3, from_logits=True)(y2, x2),
        0.133: focal(gamma=3, from_logits=True)(y2, x2, sample_weight=u),
        0.482: focal(apply_class_balancing=True, gamma=3, from_logits=True)(y2, x2),
        1.177: cce()(one_hot, p),
        0.814: sparse()(indices, p, sample_weight=u3),
        2.354: sparse(reduction="sum")(indices, p),
        0.23315276: cfc()(one_hot, p),
        0.1632: cfc()(one_hot, p, sample_weight=u3),
    }
    for number, value in printed.items():
        assert abs(value.item() - number) < 1e-3, number  # some are cut off, not rounded


def test_formulas_give_the_numbers_of_optax_documentation():
    logits, printed = torch.tensor([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]]), torch.tensor([0.2761, 2.9518])
    for loss in (
        lib.optax.softmax_cross_entropy(logits, torch.eye(3)[:2]),
        lib.optax.softmax_cross_entropy_with_integer_labels(logits, torch.tensor([0, 1])),
    ):
        torch.testing.assert_close(loss, printed, atol=5e-5, rtol=0)
