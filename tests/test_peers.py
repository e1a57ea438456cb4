"""Rows of ``docs/migration/`` beside the libraries themselves, where they are installed: ``make peers`` installs them.

``docs/test_migration_page.py`` runs every row against a formula. This holds the formulas to what the libraries do today.
"""

from __future__ import annotations

import os
import re
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import crossent
from docs import test_migration_page as page

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when keras is imported


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def rows(library: str) -> list[tuple[str, str]]:
    return [(theirs, ours) for name, theirs, ours in page.ROWS if name == library]


def named(row: str) -> str:
    return re.sub(r"\W+", "-", row)[:60]


def inputs(library: str):
    for layout in page.LAYOUTS[library]:
        for scale, seed in ((1.0, 0), (2.0, 1)):
            yield page.inputs(layout, scale, seed)


# --- optax ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theirs", "ours"), rows("optax"), ids=named)
def test_optax(theirs, ours):
    """Value and the gradient for the logits, which jax differentiates."""
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    names = {name: getattr(optax.losses, name) for name in dir(optax.losses) if not name.startswith("_")}
    names |= {"log_softmax": jax.nn.log_softmax, "jnp": jax.numpy}
    for v in inputs("optax"):
        (leaf,) = {name for name in ("logits", "logits_with_inf") if re.search(rf"\b{name}\b", theirs)}
        arrays = {k: jax.numpy.asarray(t.detach().numpy()) for k, t in vars(v).items() if isinstance(t, Tensor)}
        got = page.run(ours, v)
        weights = torch.linspace(0.5, 1.5, got.numel()).reshape(got.shape)

        def total(x, given=arrays, at=leaf, by=weights):
            value = eval(theirs, {**names, **given, at: x})
            return (value * by.numpy()).sum(), value

        (_, value), grad = jax.value_and_grad(total, has_aux=True)(arrays[leaf])
        np.testing.assert_allclose(got.detach().numpy(), value, rtol=1e-6, atol=1e-9)
        (mine,) = torch.autograd.grad((got * weights).sum(), getattr(v, leaf))
        if "inf" not in leaf:
            np.testing.assert_allclose(mine.numpy(), grad, rtol=1e-6, atol=1e-9)


# --- Keras on torch ---------------------------------------------------------------------------------------------------


@pytest.fixture
def keras() -> ModuleType:
    module = pytest.importorskip("keras")
    if module.backend.backend() != "torch":
        pytest.skip("keras was imported with another backend than torch")
    module.config.set_floatx("float64")
    yield module
    module.config.set_floatx("float32")


KERAS_ROWS = [row for row in rows("Keras") if not row[0].startswith("model.fit")]


@pytest.mark.parametrize(("theirs", "ours"), KERAS_ROWS, ids=named)
def test_keras(keras, theirs, ours):
    names = {name: getattr(keras.losses, name) for name in dir(keras.losses) if not name.startswith("_")}
    names["softmax"] = lambda x: x.softmax(-1)
    for v in inputs("Keras"):
        expected, got = torch.as_tensor(eval(theirs, {**names, **vars(v)})), page.run(ours, v)
        torch.testing.assert_close(got, expected.double(), rtol=1e-5, atol=1e-6)  # some compute in float32
        for mine, other in zip(page.gradients(got, v), page.gradients(expected, v), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


# --- scikit-learn and torchmetrics ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theirs", "ours"), rows("scikit-learn"), ids=named)
def test_sklearn(theirs, ours):
    metrics = pytest.importorskip("sklearn.metrics")
    for v in inputs("scikit-learn"):
        arrays = {k: t.detach().numpy() for k, t in vars(v).items() if isinstance(t, Tensor)}
        expected = eval(theirs, {"log_loss": lambda *a, **k: metrics.log_loss(*a, labels=range(page.C), **k), **arrays})
        assert page.run(ours, v).item() == pytest.approx(expected, rel=1e-12)


def test_torchmetrics():
    """Perplexity is e to the mean loss, accuracy the mean of ``correct``; both know labels to be ignored."""
    metrics = pytest.importorskip("torchmetrics.functional")
    for v in inputs("transformers"):
        stats = crossent.cross_entropy_stats(v.logits, v.gaps, dim=-1, reduction="mean")
        perplexity = metrics.text.perplexity(v.logits.detach(), v.gaps, ignore_index=-100)
        torch.testing.assert_close(stats.loss.exp().detach(), perplexity.double(), rtol=1e-5, atol=0)
        accuracy = metrics.classification.multiclass_accuracy(
            v.logits.detach().reshape(-1, page.C), v.gaps.reshape(-1), page.C, average="micro", ignore_index=-100
        )
        torch.testing.assert_close(stats.correct.float(), accuracy.float())


def test_the_rows_are_there():
    assert isinstance(page.inputs("rows"), SimpleNamespace)
    assert len(rows("optax")) >= 14
    assert len(KERAS_ROWS) >= 20
    assert len(rows("scikit-learn")) == 4
