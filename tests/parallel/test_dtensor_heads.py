"""Heads of DTensors: hidden states and matrix each whole or split, and what moves."""

import functools
import re

import pytest
import torch
from ranks import pool
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import crossent

R, S0, S1 = Replicate(), Shard(0), Shard(1)
N, V, D, B, L = 11, 9, 6, 3, 5
F64 = torch.float64

ranks = pool(4)


@functools.cache
def _mesh(*shape):
    return init_device_mesh("cpu", shape)


def _put(value, mesh, placements):
    return distribute_tensor(value, mesh, placements, src_data_rank=None)


def _data(*lead):
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(*lead, D, dtype=F64, generator=generator)
    w, b = torch.randn(V, D, dtype=F64, generator=generator), torch.randn(V, dtype=F64, generator=generator)
    y = torch.randint(V, lead, generator=generator)
    y.view(-1)[1] = -100
    return h, w, b, y


def _rows(placements):
    """Place what has one number a row beside the hidden states."""
    return [p if isinstance(p, Shard) and p.dim == 0 else R for p in placements]


def _close(got, want, **how):
    torch.testing.assert_close(got.full_tensor(), want, rtol=1e-12, atol=1e-13, **how)


OPTIONS = {
    "plain": lambda b, u: {},
    "bias": lambda b, u: {"linear_bias": b, "label_smoothing": 0.1, "weight": b.abs()},
    "samples": lambda b, u: {"sample_weight": u, "z_loss": 0.01},
    "denominator": lambda b, u: {"denominator": 6.0},
}


def one_case(option, reduction, shape, of_h, of_w, blocks=False, twice=False, n=N):
    """Compare with one process; with ``blocks``, a block of the logits is so small that there are several."""
    mesh, (h, w, b, y) = _mesh(*shape), _data(n)
    options = OPTIONS[option](b, torch.linspace(0.2, 2, n, dtype=F64))
    if reduction != "mean":
        options.pop("denominator", None)
    more = {"reduction": reduction, **({"max_bytes": 8 * V * 2} if blocks else {})}
    rows = _rows(of_h)

    def place(name, value):
        if name in ("h", "sample_weight"):
            return _put(value, mesh, of_h if name == "h" else rows)
        return _put(value, mesh, of_w if name == "w" else [R] * mesh.ndim)

    one = {"h": h, "w": w, **options}
    many = {name: place(name, v) if isinstance(v, torch.Tensor) else v for name, v in one.items()}
    leaves = [
        "h",
        "w",
        *(["linear_bias"] if option == "bias" else []),
        *(["sample_weight"] if option == "samples" else []),
    ]
    factors = torch.linspace(-1, 2, n, dtype=F64)
    results = []
    for call, labels, by in ((one, y, factors), (many, _put(y, mesh, rows), _put(factors, mesh, rows))):
        call = {k: v.detach().requires_grad_() if k in leaves else v for k, v in call.items()}
        inputs = [call[name] for name in leaves]
        loss = crossent.linear_cross_entropy(call.pop("h"), call.pop("w"), labels, **call, **more)
        total = (loss * by).sum() if loss.dim() else loss * 2.0
        grads = torch.autograd.grad(total, inputs, create_graph=twice)
        if twice:
            grads = torch.autograd.grad(sum((g * g).sum() for g in grads), inputs)
        results.append((loss, grads, inputs))
    (want, wanted, _), (got, grads, placed) = results
    _close(got, want)
    if reduction != "none":
        assert got.placements == (R,) * mesh.ndim
    elif S1 not in of_h:
        assert got.placements == tuple(rows)
    for name, grad, expected, leaf in zip(leaves, grads, wanted, placed, strict=True):
        assert grad.placements == leaf.placements, name
        _close(grad, expected, msg=lambda words, name=name: f"{name}: {words}")


LAYOUTS = {
    "R R": ((4,), [R], [R]),
    "S0 R": ((4,), [S0], [R]),
    "R S0": ((4,), [R], [S0]),
    "S0 S0": ((4,), [S0], [S0]),
    "S1 S1": ((4,), [S1], [S1]),
    "S1 R": ((4,), [S1], [R]),
    "R S1": ((4,), [R], [S1]),
    "S0 R, R S0": ((2, 2), [S0, R], [R, S0]),
    "S0 S0, S0 S0": ((2, 2), [S0, S0], [S0, S0]),
    "R R, S0 R": ((2, 2), [R, S0], [S0, R]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("blocks", [False, True])
def test_heads(ranks, layout, blocks):
    for option in OPTIONS:
        for reduction in ("mean", "sum", "none"):
            ranks.assert_holds(one_case, option, reduction, *LAYOUTS[layout], blocks)


@pytest.mark.parametrize("layout", ["S0 S0", "S0 R, R S0", "S0 S0, S0 S0"])
@pytest.mark.parametrize("blocks", [False, True])
def test_heads_with_fewer_rows_than_classes(ranks, layout, blocks):
    for option in OPTIONS:
        for reduction in ("mean", "sum", "none"):
            ranks.assert_holds(one_case, option, reduction, *LAYOUTS[layout], blocks, False, 5)


@pytest.mark.parametrize("layout", ["S0 R", "R S0", "S0 S0"])
def test_second_derivatives(ranks, layout):
    for blocks in (False, True):
        for reduction in ("mean", "none"):
            ranks.assert_holds(one_case, "bias", reduction, *LAYOUTS[layout], blocks, True)
            ranks.assert_holds(one_case, "samples", reduction, *LAYOUTS[layout], blocks, True, 5)


def sequences_case(reduction, shape, of_h, sample_weight):
    """Labels shift over the borders between processes that share a sequence."""
    mesh, (h, w, _, y) = _mesh(*shape), _data(B, L)
    rows = [p if isinstance(p, Shard) and p.dim < 2 else R for p in of_h]
    u = torch.linspace(0.1, 1, B * (L - 1), dtype=F64).view(B, L - 1)
    one, many = {}, {}
    if sample_weight:
        one, many = {"sample_weight": u}, {"sample_weight": _put(u, mesh, rows)}
    h1, h2 = h.clone().requires_grad_(), _put(h, mesh, of_h).requires_grad_()
    for max_bytes in (None, 8 * V * 2):
        more = {"reduction": reduction, "shift": 1, "max_bytes": max_bytes}
        want = crossent.linear_cross_entropy(h1, w, y, **one, **more)
        got = crossent.linear_cross_entropy(h2, _put(w, mesh, [R] * mesh.ndim), _put(y, mesh, rows), **many, **more)
        _close(got, want)
        (expected,) = torch.autograd.grad(want.square().sum(), h1)
        (grad,) = torch.autograd.grad(got.square().sum(), h2)
        _close(grad, expected)


@pytest.mark.parametrize("sample_weight", [False, True])
def test_shifted_sequences(ranks, sample_weight):
    for reduction in ("mean", "none"):
        ranks.assert_holds(sequences_case, reduction, (4,), [S0], sample_weight)
        ranks.assert_holds(sequences_case, reduction, (4,), [S1], sample_weight)
        ranks.assert_holds(sequences_case, reduction, (2, 2), [S0, S1], sample_weight)


def statistics_case(shape, of_h, of_w):
    mesh, (h, w, b, y) = _mesh(*shape), _data(N)
    call = _put(h, mesh, of_h).requires_grad_(), _put(w, mesh, of_w), _put(y, mesh, _rows(of_h))
    one = h.clone().requires_grad_()
    for reduction in ("none", "sum", "mean"):
        for max_bytes in (None, 8 * V * 2):
            more = {"reduction": reduction, "max_bytes": max_bytes}
            got = crossent.linear_cross_entropy_stats(*call, linear_bias=_put(b, mesh, [R] * mesh.ndim), **more)
            want = crossent.linear_cross_entropy_stats(one, w, y, linear_bias=b, **more)
            for name in want._fields:
                _close(getattr(got, name), getattr(want, name), msg=name)
            (grad,) = torch.autograd.grad(got.entropy.sum() * 2.0, call[0])
            (expected,) = torch.autograd.grad(want.entropy.sum() * 2.0, one)
            _close(grad, expected)


def test_statistics(ranks):
    for layout in ("S0 R", "R S0", "S0 S0", "S0 R, R S0"):
        ranks.assert_holds(statistics_case, *LAYOUTS[layout])


def other_targets_case():
    """Probabilities, a teacher, options of the logits' shape, pending sums, and the module."""
    mesh, (h, w, b, y) = _mesh(4), _data(N)
    t, bias = torch.rand(N, V, dtype=F64), torch.randn(N, V, dtype=F64)
    hs, ws, ys = _put(h, mesh, [S0]), _put(w, mesh, [S0]), _put(y, mesh, [S0])
    loss = crossent.linear_cross_entropy
    _close(loss(hs, ws, _put(t, mesh, [S0])), loss(h, w, t))
    _close(loss(hs, ws, ys, logit_bias=_put(bias, mesh, [S0])), loss(h, w, y, logit_bias=bias))
    _close(loss(hs, ws, ys, class_mask=torch.arange(V) < V), loss(h, w, y))
    taught = loss(hs, ws, crossent.Teacher(hs, _put(w.flip(0), mesh, [S0]), None, 2.0))
    _close(taught, loss(h, w, crossent.Teacher(h, w.flip(0), None, 2.0)))
    parts = h * (dist.get_rank() + 1) / 10
    _close(loss(DTensor.from_local(parts, mesh, [Partial()], run_check=False), ws, _put(y, mesh, [R])), loss(h, w, y))
    linear = nn.Linear(D, V).double()
    with torch.no_grad():
        linear.weight.copy_(w)
        linear.bias.copy_(b)
    placed = torch.distributed.tensor.distribute_module(linear, mesh)
    _close(loss(hs, placed, ys), loss(h, w, y, linear_bias=b))


def test_other_targets(ranks):
    ranks.assert_holds(other_targets_case)


def masked_and_taught_case(layout, n, twice):
    """The classes stay where they are beside a mask, of a row or of all, and beside a teacher."""
    mesh_shape, of_h, of_w = LAYOUTS[layout]
    mesh, (h, w, b, y) = _mesh(*mesh_shape), _data(n)
    rows = _rows(of_h)
    generator = torch.Generator().manual_seed(9)
    of_rows = torch.rand(n, V, generator=generator) < 0.6
    of_rows[torch.arange(n), y.clamp(min=0)] = True
    of_rows[2] = False
    of_classes = torch.arange(V) % 4 != 1
    th, tw, tb = (torch.randn(size, generator=generator, dtype=F64) for size in ((n, 3), (V, 3), (V,)))
    t = torch.rand(n, V, generator=generator, dtype=F64) * of_rows
    u = torch.linspace(0.2, 2, n, dtype=F64)
    one_teacher = crossent.Teacher(th, tw, tb, 1.5)
    teacher = crossent.Teacher(_put(th, mesh, rows), _put(tw, mesh, of_w), _put(tb, mesh, of_w), 1.5)
    cases = [
        (y.masked_fill(~of_classes[y.clamp(min=0)], -100), {"class_mask": of_classes, "label_smoothing": 0.1}),
        (y, {"class_mask": of_rows, "weight": b.abs(), "sample_weight": u}),
        (t, {"class_mask": of_rows}),
        (one_teacher, {"class_mask": of_rows}),
        (one_teacher, {"penalty": crossent.Focal(2.0), "label_smoothing": 0.1, "sample_weight": u}),
    ]
    for target, options in cases:
        for reduction in ("mean", "none"):
            results = []
            for many in (False, True):
                leaves, given, labels = [h, w], dict(options), target
                if many:
                    leaves = [_put(h, mesh, of_h), _put(w, mesh, of_w)]
                    labels = teacher if target is one_teacher else _put(target, mesh, rows)
                    for name in ("sample_weight", "class_mask", "weight"):
                        if name in given and given[name] is not of_classes:
                            given[name] = _put(given[name], mesh, rows if name != "weight" else [R] * mesh.ndim)
                leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
                loss = crossent.linear_cross_entropy(*leaves, labels, reduction=reduction, **given)
                grads = torch.autograd.grad(loss.sum() * 2.0, leaves, create_graph=twice)
                if twice:
                    grads = torch.autograd.grad(sum((g * g).sum() for g in grads), leaves)
                stats = crossent.linear_cross_entropy_stats(*leaves, labels, reduction=reduction, **given)
                results.append((loss, *grads, stats.loss, stats.entropy, stats.correct))
            for want, got in zip(*results, strict=True):
                _close(got, want)


@pytest.mark.parametrize("layout", ["R S0", "S0 S0", "S0 R, R S0", "S0 S0, S0 S0"])
def test_masks_and_teachers_leave_the_classes_where_they_are(ranks, layout):
    ranks.assert_holds(masked_and_taught_case, layout, N, False)
    ranks.assert_holds(masked_and_taught_case, layout, 5, layout == "S0 S0")


def what_moves_case():
    """With 5 rows the hidden states move, and the matrix stays, also beside a mask and a teacher."""
    mesh, (h, w, _, y) = _mesh(4), _data(5)
    hs, ws, ys = _put(h, mesh, [S0]), _put(w, mesh, [S0]), _put(y, mesh, [S0])
    return [
        crossent.linear_plan(hs, ws, ys, class_mask=torch.arange(V) < V).moved,
        crossent.linear_plan(hs, ws, crossent.Teacher(hs, ws)).moved,
    ]


def test_the_smaller_one_moves_beside_a_mask_and_a_teacher(ranks):
    assert ranks(what_moves_case) == [["input", "input"]] * 4


def plan_case():
    mesh, (h, w, _, y) = _mesh(4), _data(N)
    few = tuple(_put(t, mesh, [S0]) for t in (h[:5], w, y[:5]))
    assert crossent.linear_plan(*few).moved == "input"  # the smaller of the two
    ys = _put(y, mesh, [R])
    return [
        crossent.linear_plan(_put(h, mesh, [a]), _put(w, mesh, [b]), ys).moved
        for a, b in ((R, R), (S0, R), (R, S0), (S0, S0), (R, S1), (S1, R), (S1, S1))
    ]


def test_the_plan_says_what_moves(ranks):
    for moved in ranks(plan_case):
        assert moved == ["", "", "", "weight", "weight", "input", "input and weight"]
    assert crossent.linear_plan(*_data(N)[:2], _data(N)[3]).moved == ""


def wrong_arguments_case():
    mesh, (h, w, b, y) = _mesh(4), _data(N)
    hs, ws, ys = _put(h, mesh, [S0]), _put(w, mesh, [S0]), _put(y, mesh, [S0])
    loss = crossent.linear_cross_entropy
    for function in (loss, crossent.linear_cross_entropy_stats, crossent.linear_plan):
        with pytest.raises(
            RuntimeError, match=r"input must be a DTensor .*Under tensor parallelism.*from_local"
        ) as error:
            function(h, ws, y)
        (advice,) = re.findall(r"DTensor\.from_local\(.*?\)\]\)", str(error.value))
        names = {"DTensor": DTensor, "Replicate": Replicate, "linear_weight": ws}
        function(eval(advice, names | {"input": h}), ws, eval(advice, names | {"input": y}))  # the advice, followed
        with pytest.raises(RuntimeError, match="linear_weight must be a DTensor where input is one"):
            function(hs, w, ys)
    with pytest.raises(RuntimeError, match="target must be a DTensor"):
        loss(hs, ws, y)
    with pytest.raises(RuntimeError, match="input and linear_weight must be DTensors"):
        loss(h, w, ys)
    with pytest.raises(RuntimeError, match="linear_bias must be a DTensor"):
        loss(hs, ws, ys, linear_bias=b.clone().requires_grad_())
    with pytest.raises(ValueError, match="batch size"):
        loss(hs, ws, _put(y[:-1], mesh, [S0]))
    wrong = y.clone()
    wrong[4] = V
    for max_bytes in (None, 8 * V * 2):
        with pytest.raises(IndexError, match="target"):
            loss(hs, ws, _put(wrong, mesh, [S0]), max_bytes=max_bytes)
        few = _put(h[:6], mesh, [S0]), ws, _put(wrong[:6], mesh, [S0])  # the classes stay, and the rows come to them
        with pytest.raises(IndexError, match="target"):
            loss(*few, max_bytes=max_bytes)


def test_wrong_arguments_raise_on_every_process(ranks):
    ranks.assert_holds(wrong_arguments_case)
