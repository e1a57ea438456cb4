"""``linear_cross_entropy`` beside torch 2.13's own operator in chunks: each test shows what torch does, and that ours does not.

If the first half of a test fails, torch has changed, and the page and the README may claim less.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import crossent
from crossent.impl import head as blocks

pytestmark = pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="tells what torch 2.13 does")

N, D, V = 1024, 32, 600
NONE_COUNT = torch.full((N,), -100)


def in_chunks(count: int = 4, **settings: object) -> dict[str, object]:
    """Return how torch is told to use its operator, with so many chunks."""
    return {"options": nn.LinearCrossEntropyOptions(batch_chunk_size=N // count, **settings)}


def in_blocks(count: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Return how ours is told to take its rows in so many blocks."""
    return {"max_bytes": V * dtype.itemsize * N // count}


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(N, D).requires_grad_(), torch.randn(V, D).requires_grad_(), torch.randint(V, (N,))


@pytest.fixture(autouse=True)
def no_logits_are_few(monkeypatch):
    monkeypatch.setattr("crossent.losses.head_ways.FEW", 0)


@pytest.fixture
def half(problem) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    h, w, y = problem
    return h.detach().bfloat16().requires_grad_(), w.detach().bfloat16().requires_grad_(), y


def exact(h: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the loss and the head's gradient in float64."""
    h, w = h.detach().double(), w.detach().double().requires_grad_()
    loss = F.cross_entropy(F.linear(h, w), y)
    return loss.detach(), torch.autograd.grad(loss, w)[0]


def off(found: torch.Tensor, right: torch.Tensor) -> float:
    return ((found.double() - right).norm() / right.norm()).item()


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_bfloat16_loss_does_not_depend_on_the_number_of_blocks(half):
    right, _ = exact(*half)
    theirs = {k: off(F.linear_cross_entropy(*half, **in_chunks(k)).detach(), right) for k in (1, 64, 256)}
    assert theirs[1] < 0.004
    assert max(theirs[64], theirs[256]) > 0.02  # the chunks' losses are summed in bfloat16
    ours = [crossent.linear_cross_entropy(*half, **in_blocks(k, torch.bfloat16)).detach() for k in (1, 64, 256)]
    assert max(off(loss, right) for loss in ours) < 2**-8  # the rounding of the result, and nothing else
    assert ours[0] == ours[1] == ours[2]
    wide = crossent.linear_cross_entropy(*half, **in_blocks(256, torch.bfloat16), out_dtype=torch.float32)
    assert off(wide.detach(), right) < 1e-4


def test_autocast_returns_float32(half):
    h, _, y = half
    w = torch.randn(V, D)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear_cross_entropy(h, w, y).dtype == torch.float32
        assert F.linear_cross_entropy(h, w, y, **in_chunks()).dtype == torch.bfloat16
        assert crossent.linear_cross_entropy(h, w, y, **in_blocks()).dtype == torch.float32


def test_head_gradient_does_not_lose_digits_with_the_number_of_blocks(half):
    h, w, y = half
    _, right = exact(h, w, y)

    def error(f, **settings: object) -> float:
        return off(torch.autograd.grad(f(h, w, y, **settings), w)[0], right)

    theirs = [error(F.linear_cross_entropy, **in_chunks(k)) for k in (1, 8, 64, 512)]
    assert theirs == sorted(theirs)
    assert theirs[-1] > 2 * theirs[0]
    ours = [error(crossent.linear_cross_entropy, **in_blocks(k, torch.bfloat16)) for k in (1, 8, 64, 512)]
    assert max(ours) < 1.01 * ours[0]
    assert max(ours) < 1.2 * error(F.linear_cross_entropy)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_gradients_are_zero_where_every_row_is_ignored(problem):
    h, w, _ = problem
    theirs = F.linear_cross_entropy(h, w, NONE_COUNT, **in_chunks())
    assert theirs.isnan()
    assert all(g.isnan().any() for g in torch.autograd.grad(theirs, (h, w)))
    assert not any(g.any() for g in torch.autograd.grad(F.linear_cross_entropy(h, w, NONE_COUNT), (h, w)))
    ours = crossent.linear_cross_entropy(h, w, NONE_COUNT, **in_blocks())
    assert ours.isnan()  # as eager; empty="zero" makes it 0
    assert not any(g.any() for g in torch.autograd.grad(ours, (h, w)))


def test_a_target_longer_than_the_batch_is_refused(problem):
    h, w, y = problem
    longer = torch.cat([y, y[:7]])
    with pytest.raises(ValueError, match="batch_size"):
        F.linear_cross_entropy(h, w, longer)
    theirs = F.linear_cross_entropy(h, w, longer, **in_chunks())  # the sum over the batch by the length of the target
    torch.testing.assert_close(theirs, F.linear_cross_entropy(h, w, y, **in_chunks()) * N / (N + 7))
    with pytest.raises(ValueError, match="batch sizes 1024 and 1031 differ"):
        crossent.linear_cross_entropy(h, w, longer, **in_blocks())


def test_more_dimensions_and_small_integers_are_taken(problem):
    h, w, y = problem
    for settings in ({}, in_chunks()):
        with pytest.raises(RuntimeError, match="dimensionality 1 or 2, got 3"):
            F.linear_cross_entropy(h.view(4, -1, D), w, y.view(4, -1), **settings)
    with pytest.raises(RuntimeError, match="Long or Byte"):
        F.linear_cross_entropy(h, w, y.int())
    expected = crossent.linear_cross_entropy(h, w, y, **in_blocks())
    assert crossent.linear_cross_entropy(h.view(4, -1, D), w, y.view(4, -1).int(), **in_blocks()) == expected


# --- derivatives ------------------------------------------------------------------------------------------------------


def test_forward_mode_is_not_silently_zero(problem):
    h, w, y = (t.detach() for t in problem)

    def tangent(f, **settings: object) -> torch.Tensor:
        return torch.func.jvp(lambda h: f(h, w, y, **settings), (h,), (torch.ones_like(h),))[1]

    right = tangent(F.linear_cross_entropy)
    assert right.abs() > 1e-3
    assert tangent(F.linear_cross_entropy, **in_chunks()) == 0
    torch.testing.assert_close(tangent(crossent.linear_cross_entropy, **in_blocks()), right)


def test_create_graph_is_not_dropped(problem):
    h, w, y = problem

    def gradient(f, **settings: object) -> torch.Tensor:
        return torch.autograd.grad(f(h, w, y, **settings), h, create_graph=True)[0]

    assert not gradient(F.linear_cross_entropy, **in_chunks()).requires_grad
    second = [
        torch.autograd.grad(g.square().sum(), (h, w))
        for g in (gradient(F.linear_cross_entropy), gradient(crossent.linear_cross_entropy, **in_blocks()))
    ]
    torch.testing.assert_close(second[1], second[0])


def test_a_second_backward_works(problem):
    h, w, y = problem

    def twice(f, **settings: object) -> list[torch.Tensor]:
        loss = f(h, w, y, **settings)
        return [torch.autograd.grad(loss, h, g, retain_graph=True)[0] for g in (torch.tensor(3.0), torch.tensor(0.5))]

    with pytest.raises(RuntimeError, match="called twice"):
        twice(F.linear_cross_entropy, **in_chunks())
    first, second = twice(crossent.linear_cross_entropy, **in_blocks())
    torch.testing.assert_close(first, 6 * second)


def test_func_grad_works(problem):
    h, w, y = (t.detach() for t in problem)

    def gradient(f, **settings: object) -> torch.Tensor:
        return torch.func.grad(lambda w: f(h, w, y, **settings))(w)

    with pytest.raises(RuntimeError, match="setup_context"):
        gradient(F.linear_cross_entropy, **in_chunks())
    torch.testing.assert_close(gradient(crossent.linear_cross_entropy, **in_blocks()), gradient(F.linear_cross_entropy))


def test_it_compiles_without_a_graph_break(problem):
    h, w, y = problem
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="warn"):
        torch.compile(F.linear_cross_entropy, fullgraph=True, backend="aot_eager")(h, w, y, **in_chunks())
    torch._dynamo.reset()
    ours = torch.compile(crossent.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(ours(h, w, y, **in_blocks()), (h, w))
    torch.testing.assert_close(found, torch.autograd.grad(F.linear_cross_entropy(h, w, y), (h, w)))


# --- what is formed ---------------------------------------------------------------------------------------------------


@pytest.fixture
def formed(monkeypatch) -> list[torch.Size]:
    """Collect the shapes of the matrices that blocks make room for."""
    shapes = []
    new = blocks.new

    def watched(*arguments: object) -> torch.Tensor:
        made = new(*arguments)
        shapes.append(made.shape)
        return made

    monkeypatch.setattr(blocks, "new", watched)
    return shapes


@pytest.mark.parametrize("asked", ["smoothing", "probabilities"])
def test_smoothing_and_probabilities_keep_the_blocks(asked, problem, formed):
    h, w, y = problem
    settings = {"label_smoothing": 0.1} if asked == "smoothing" else {}
    y = y if asked == "smoothing" else torch.randn(N, V).softmax(1)
    with pytest.warns(UserWarning, match="``options`` ignored"):
        right = F.linear_cross_entropy(h, w, y, **in_chunks(), **settings)
    ours = crossent.linear_cross_entropy(h, w, y, **in_blocks(), **settings)
    torch.testing.assert_close(ours, right)
    torch.testing.assert_close(torch.autograd.grad(ours, (h, w)), torch.autograd.grad(right, (h, w)))
    (block,) = (rows for rows, columns in formed if columns == V)
    assert block <= N // 4


def test_without_options_torch_forms_all_logits(problem):
    """Torch's default saves nothing; ours does."""
    h, w, y = problem
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.shape), x)[1], lambda x: x):
        F.linear_cross_entropy(h, w, y)
        assert (N, V) in saved
        saved.clear()
        crossent.linear_cross_entropy(h, w, y)
        assert (N, V) not in saved
        assert saved


def test_options_are_accepted(problem):
    h, w, y = problem
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=64, acc_policy="accurate")
    assert crossent.linear_cross_entropy(h, w, y, options=options) == crossent.linear_cross_entropy(h, w, y)


def test_the_module_is_torchs(problem):
    h, _, y = problem
    theirs, ours = nn.LinearCrossEntropyLoss(D, V, bias=True), crossent.LinearCrossEntropyLoss(D, V, bias=True)
    assert isinstance(ours, nn.LinearCrossEntropyLoss)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(h, y), theirs(h, y))
