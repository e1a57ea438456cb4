"""Properties of any input, found and shrunk by hypothesis."""

import numpy as np
import pytest
import torch
from cases import IMPLEMENTATIONS
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import crossent
from crossent import reference

settings.register_profile("crossent", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("crossent")

NUMBERS = st.floats(-1e4, 1e4, width=32) | st.floats(-5, 5, width=32) | st.just(-np.inf)
ANY = NUMBERS | st.sampled_from([np.inf, np.nan])


@st.composite
def problems(draw, numbers=NUMBERS):
    """Draw logits, a target of either kind and settings."""
    n, c = draw(st.integers(0, 5)), draw(st.integers(1, 9))
    x = draw(hnp.arrays(np.float32, (n, c), elements=numbers))
    if draw(st.booleans()):
        target = draw(hnp.arrays(np.int64, (n,), elements=st.integers(0, c - 1) | st.just(-100)))
    else:
        target = draw(hnp.arrays(np.float32, (n, c), elements=st.sampled_from([0.0, 0.25, 1.0, 2.0])))
        if c == 1:
            target = target.reshape(n, 1)
    more = {
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.0, 0.1, 1.0])),
    }
    if draw(st.booleans()):
        more["weight"] = draw(hnp.arrays(np.float32, (c,), elements=st.sampled_from([0.0, 0.5, 1.0, 3.0])))
    return x, target, more


def compute(x, target, more, impl):
    """Compute the loss and its gradients; that of class indices is None."""
    x, target = torch.from_numpy(x.copy()).requires_grad_(), torch.from_numpy(target.copy())
    if target.is_floating_point():
        target.requires_grad_()
    more = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in more.items()}
    loss = crossent.cross_entropy(x, target, impl=impl, **more)
    loss.sum().backward()
    return loss.detach(), x.grad, target.grad


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(problem=problems(ANY))
def test_any_input_gives_what_the_reference_gives(impl, problem):
    x, target, more = problem
    loss, grad, target_grad = compute(x, target, more, impl)
    expected = reference.cross_entropy(x, target, **more)
    assert_close(loss, expected.loss, torch.float32, terms=0)
    # where all terms cancel, the largest entry says nothing of their size: they are shares of 1
    term_size = np.abs(expected.grad[np.isfinite(expected.grad)]).max(initial=0.4)
    assert_close(grad, expected.grad, torch.float32, term_size=term_size)
    if expected.target_grad is not None:
        assert_close(target_grad, expected.target_grad, torch.float32, terms=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(problem=problems(), seed=st.integers(0, 2**31))
def test_permutation_and_shift(impl, problem, seed):
    x, target, more = problem
    more = more | {"reduction": "none"}
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(x))
    loss, grad, _ = compute(x, target, more, impl)
    moved_loss, moved_grad, _ = compute(x[rows], target[rows], more, impl)
    np.testing.assert_array_equal(moved_loss, loss[rows])
    np.testing.assert_array_equal(moved_grad, grad[rows])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(
    x=hnp.arrays(np.float32, st.integers(0, 12), elements=ANY),
    t=st.sampled_from([0.0, 0.3, 1.0]),
    pi=st.sampled_from([0.0, 1.0, 2.5]),
)
def test_any_binary_input_gives_what_the_reference_gives(impl, x, t, pi):
    target = np.full_like(x, t)
    here = torch.from_numpy(x.copy()).requires_grad_()
    loss = crossent.binary_cross_entropy_with_logits(
        here, torch.from_numpy(target), reduction="none", pos_weight=torch.tensor(pi), impl=impl
    )
    loss.sum().backward()
    expected = reference.binary_cross_entropy_with_logits(x, target, reduction="none", pos_weight=np.float32(pi))
    assert_close(loss, expected.loss, torch.float32, roundings=15, terms=0)
    # elements have nothing to do with each other, so that only the rounding of p stands beside what p - t keeps
    assert_close(here.grad, expected.grad, torch.float32, terms=0.8, term_size=1)


@given(target=hnp.arrays(np.int64, (4,), elements=st.integers(-5, 12)))
def test_out_of_range_is_always_found(target):
    x = torch.zeros(4, 6)
    valid = (target == -1) | ((target >= 0) & (target < 6))
    if valid.all():
        crossent.cross_entropy(x, torch.from_numpy(target), ignore_index=-1)
    else:
        with pytest.raises(IndexError, match=rf"got {target[~valid][0]} at target\[{np.argmin(valid)}\]"):
            crossent.cross_entropy(x, torch.from_numpy(target), ignore_index=-1)
