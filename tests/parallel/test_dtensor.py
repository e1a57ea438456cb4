"""Losses of DTensors: values, placements and gradients are those of one process with all rows."""

import contextlib
import functools

import pytest
import torch
from ranks import pool
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import crossent

R = Replicate()
N, C, L = 7, 5, 3  # of which no number divides another, so that four processes have uneven parts

ranks = pool(4)


@functools.cache
def _mesh(*shape):
    return init_device_mesh("cpu", shape)


def _data(kind):
    """Logits and targets, the same on every process, which then takes its part; rows of every process differ."""
    generator = torch.Generator().manual_seed(len(kind))
    shape = {"rows": (N, C), "pixels": (N, C, L), "last": (N, L, C)}[kind.split()[0]]
    axis = len(shape) - 1 if kind.startswith("last") else 1
    rows = tuple(size for at, size in enumerate(shape) if at != axis)
    x = 4 * torch.randn(shape, dtype=torch.float64, generator=generator)
    if "soft" in kind:
        y = torch.rand(shape, dtype=torch.float64, generator=generator)
    else:
        y = torch.randint(C, rows, generator=generator)
        y.view(-1)[1] = -100
    weight = torch.rand(C, dtype=torch.float64, generator=generator) + 0.5
    u = torch.rand(rows, dtype=torch.float64, generator=generator)
    whole = torch.randn(shape, dtype=torch.float64, generator=generator)
    return {"input": x, "target": y, "weight": weight, "sample_weight": u, "logit_bias": whole, "axis": axis}


def _options(name, data):
    """Return the options of a case: tensors among them are distributed."""
    return {
        "plain": {},
        "weighted": {"weight": data["weight"], "label_smoothing": 0.1},
        "samples": {"sample_weight": data["sample_weight"], "weight": data["weight"]},
        "denominator": {"denominator": 6.5},
        "given": {"denominator": torch.tensor(6.5, dtype=torch.float64)},
        "family": {
            "label_smoothing": 0.2, "temperature": 1.5, "softcap": 9.0, "z_loss": 0.01, "penalty": crossent.Focal(2.0),
            "class_mask": torch.arange(C) != 3 if data["target"].is_floating_point() else torch.arange(C) < C,
            "logit_bias": data["weight"].log(),
        },
        "bias": {"logit_bias": data["logit_bias"], "margin": 0.3},
    }[name]  # fmt: skip


def _like(value, name, x, axis, placements):
    """Distribute a tensor as its dimensions that are the logits' are, and the rest to every process."""
    if value.shape == x.shape:
        dims = list(range(x.dim()))
    else:
        dims = [axis] if value.dim() == 1 and name not in ("target", "sample_weight") else []
        dims = dims or [each for each in range(x.dim()) if each != axis]
    placed = []
    for placement in placements:
        fits = isinstance(placement, Shard) and value.dim() and placement.dim in dims
        placed.append(Shard(dims.index(placement.dim)) if fits else R)
    return placed


LEAVES = ("input", "logit_bias", "sample_weight", "weight", "target")


def _leaves(call, soft):
    return [
        name
        for name, value in call.items()
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and name in LEAVES
        and (name != "weight" or soft)
    ]


def _reduce(result, factors):
    """Make one number of a result, to which every row matters in its own way."""
    return (result * factors).sum() if result.dim() else result * 3.0


def _gradients(function, call, leaves, factors, twice):
    """Return the result and the gradients of a call; ``twice``, those of the squares of the gradients instead."""
    call = {name: v.detach().requires_grad_() if name in leaves else v for name, v in call.items()}
    result = function(**call)
    inputs = [call[name] for name in leaves]
    grads = torch.autograd.grad(_reduce(result, factors), inputs, create_graph=twice)
    if twice:
        total = sum((g * g).sum() for g in grads)
        grads = torch.autograd.grad(total, inputs)
    return result, grads


def one_case(kind, option, reduction, shape, placements, twice=False, function="cross_entropy"):
    mesh, data = _mesh(*shape), _data(kind)
    axis, x = data["axis"], data["input"]
    call = {"input": x, "target": data["target"], **_options(option, data)}
    more = {} if axis == 1 else {"dim": axis}
    if reduction != "mean" and "denominator" in call:
        return
    leaves = _leaves(call, "soft" in kind)
    rows = torch.linspace(-1, 2, data["sample_weight"].numel(), dtype=torch.float64).view(data["sample_weight"].shape)
    run = functools.partial(getattr(crossent, function), reduction=reduction, **more)
    wanted, of_one = _gradients(run, call, leaves, rows, twice)

    placed = {
        name: distribute_tensor(value, mesh, _like(value, name, x, axis, placements), src_data_rank=None)
        if isinstance(value, torch.Tensor) else value
        for name, value in call.items()
    }  # fmt: skip
    own = distribute_tensor(rows, mesh, _like(rows, "target", x, axis, placements), src_data_rank=None)
    got, grads = _gradients(run, placed, leaves, own, twice)
    close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-13)
    assert type(got) is DTensor
    close(got.full_tensor(), wanted)
    without_classes = [R if p == Shard(axis) else p for p in placements]
    if reduction != "none":
        assert got.placements == (R,) * mesh.ndim
    elif without_classes == list(placements):
        assert got.placements == tuple(_like(rows, "target", x, axis, placements))
    for name, grad, want in zip(leaves, grads, of_one, strict=True):
        assert grad.placements == placed[name].placements, name
        assert grad.shape == want.shape
        close(grad.full_tensor(), want, msg=lambda words, name=name: f"{name}: {words}")


MESHES = {
    "R": ((4,), [R]),
    "S0": ((4,), [Shard(0)]),
    "S0 S0": ((2, 2), [Shard(0), Shard(0)]),
    "R S0": ((2, 2), [R, Shard(0)]),
}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("option", ["plain", "weighted", "samples", "denominator", "given", "family", "bias"])
def test_rows(ranks, mesh, option):
    for kind in ("rows", "rows soft"):
        for reduction in ("mean", "sum", "none"):
            ranks.assert_holds(one_case, kind, option, reduction, *MESHES[mesh])


@pytest.mark.parametrize("kind", ["pixels", "pixels soft", "last"])
@pytest.mark.parametrize("option", ["plain", "samples", "bias"])
def test_pixels(ranks, kind, option):
    middle = 1 if kind == "last" else 2
    for reduction in ("mean", "none"):
        ranks.assert_holds(one_case, kind, option, reduction, (4,), [Shard(middle)])
        ranks.assert_holds(one_case, kind, option, reduction, (2, 2), [Shard(0), Shard(middle)])


@pytest.mark.parametrize("kind", ["rows", "rows soft", "pixels"])
def test_sharded_classes(ranks, kind):
    for option in ("plain", "weighted", "bias"):
        for reduction in ("mean", "sum", "none"):
            ranks.assert_holds(one_case, kind, option, reduction, (4,), [Shard(1)])
            ranks.assert_holds(one_case, kind, option, reduction, (2, 2), [Shard(0), Shard(1)])


@pytest.mark.parametrize("placements", [[Shard(0)], [R], [Shard(1)]])
def test_second_derivatives(ranks, placements):
    for kind, option in (("rows", "weighted"), ("rows soft", "bias"), ("rows", "samples")):
        for reduction in ("mean", "none"):
            ranks.assert_holds(one_case, kind, option, reduction, (4,), placements, True)
    ranks.assert_holds(one_case, "rows", "plain", "mean", (2, 2), [Shard(0), R], True)


def statistics_case(kind, option, reduction, shape, placements):
    mesh, data = _mesh(*shape), _data(kind)
    axis, x = data["axis"], data["input"].clone().requires_grad_()
    call = {"target": data["target"], **_options(option, data)}
    more = {} if axis == 1 else {"dim": axis}
    wanted = crossent.cross_entropy_stats(x, **call, reduction=reduction, **more)

    def placed(name, value):
        if not isinstance(value, torch.Tensor):
            return value
        return distribute_tensor(value.detach(), mesh, _like(value, name, x, axis, placements), src_data_rank=None)

    h = placed("input", x).requires_grad_()
    got = crossent.cross_entropy_stats(
        h, **{name: placed(name, v) for name, v in call.items()}, reduction=reduction, **more
    )
    for name in wanted._fields:
        one, many = getattr(wanted, name), getattr(got, name)
        assert many.dtype == one.dtype, name
        torch.testing.assert_close(many.full_tensor(), one, rtol=1e-12, atol=1e-13)

    def total(stats):
        return sum(
            (stats[at] * 1.5).sum().full_tensor() if isinstance(stats[at], DTensor) else 1.5 * stats[at].sum()
            for at in range(4)
        )

    (grad,) = torch.autograd.grad(total(got), h)
    (want,) = torch.autograd.grad(total(wanted), x)
    assert grad.placements == h.placements
    torch.testing.assert_close(grad.full_tensor(), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["rows", "rows soft", "pixels"])
def test_statistics(ranks, kind):
    for option in ("weighted", "samples"):
        for reduction in ("none", "sum", "mean"):
            ranks.assert_holds(statistics_case, kind, option, reduction, (4,), [Shard(0)])
            ranks.assert_holds(statistics_case, kind, option, reduction, (2, 2), [Shard(0), Shard(1)])


def binary_case(option, reduction, shape, placements, twice=False):
    mesh, data = _mesh(*shape), _data("rows soft")
    x, y, c, u = data["input"], data["target"], data["weight"], data["sample_weight"]
    call = {
        "plain": {},
        "weighted": {"weight": c, "pos_weight": c * 2},
        "rows": {"weight": u[:, None]},
        "samples": {"sample_weight": u},
        "mask": {"mask": x > -1, "label_smoothing": 0.1},
        "ignored": {"ignore_index": float(y[0, 0]), "denominator": None if reduction != "mean" else 7.0},
    }[option]
    call = {"input": x, "target": y, **call}

    def placements_of(value):
        first = x.dim() - value.dim() if value is not u else 0
        fits = [
            isinstance(p, Shard) and first <= p.dim < first + value.dim() and value.shape[p.dim - first] > 1
            for p in placements
        ]
        return [Shard(p.dim - first) if fit else R for p, fit in zip(placements, fits, strict=True)]

    placed = {
        name: distribute_tensor(value, mesh, placements_of(value), src_data_rank=None)
        if isinstance(value, torch.Tensor) else value
        for name, value in call.items()
    }  # fmt: skip
    leaves = ["input", "target", *(["sample_weight"] if option == "samples" else [])]
    run = functools.partial(crossent.binary_cross_entropy_with_logits, reduction=reduction)
    factors = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view(x.shape)
    wanted, of_one = _gradients(run, call, leaves, factors, twice)
    own = distribute_tensor(factors, mesh, placements, src_data_rank=None)
    got, grads = _gradients(run, placed, leaves, own, twice)
    assert got.placements == (tuple(placements) if reduction == "none" else (R,) * mesh.ndim)
    torch.testing.assert_close(got.full_tensor(), wanted, rtol=1e-12, atol=1e-13)
    for name, grad, want in zip(leaves, grads, of_one, strict=True):
        assert grad.placements == placed[name].placements
        torch.testing.assert_close(grad.full_tensor(), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("option", ["plain", "weighted", "rows", "samples", "mask", "ignored"])
def test_binary(ranks, option):
    for reduction in ("mean", "sum", "none"):
        for at in ([Shard(0)], [Shard(1)], [R]):
            ranks.assert_holds(binary_case, option, reduction, (4,), at)
        ranks.assert_holds(binary_case, option, reduction, (2, 2), [Shard(0), Shard(1)])
    ranks.assert_holds(binary_case, option, "mean", (4,), [Shard(0)], True)


def _placed(x, y, placements, mesh):
    return (
        distribute_tensor(x, mesh, placements, src_data_rank=None).requires_grad_(x.is_floating_point()),
        distribute_tensor(y, mesh, placements, src_data_rank=None),
    )


def pending_case():
    """Logits that are a sum still to be made, as a row-parallel layer leaves them."""
    mesh, data = _mesh(4), _data("rows")
    x, y = data["input"], data["target"]
    parts = [x * (rank + 1) / 10 for rank in range(4)]
    logits = DTensor.from_local(parts[dist.get_rank()].requires_grad_(), mesh, [Partial()], run_check=False)
    loss = crossent.cross_entropy(logits, distribute_tensor(y, mesh, [R]))
    one = x.clone().requires_grad_()
    wanted = crossent.cross_entropy(one, y)
    torch.testing.assert_close(loss.full_tensor(), wanted, rtol=1e-12, atol=1e-13)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(parts[dist.get_rank()].grad, one.grad, rtol=1e-12, atol=1e-13)


def test_pending_sums(ranks):
    ranks.assert_holds(pending_case)


def few_rows_case():
    """Two rows on four processes, then none that counts."""
    mesh, data = _mesh(4), _data("rows")
    x, y = data["input"][:2], torch.tensor([2, 4])
    logits, labels = _placed(x, y, [Shard(0)], mesh)
    loss = crossent.cross_entropy(logits, labels)
    loss.backward()
    one = x.clone().requires_grad_()
    crossent.cross_entropy(one, y).backward()
    torch.testing.assert_close(logits.grad.full_tensor(), one.grad, rtol=1e-12, atol=1e-13)
    nothing = distribute_tensor(torch.full((2,), -100), mesh, [Shard(0)], src_data_rank=None)
    assert crossent.cross_entropy(logits, nothing).full_tensor().isnan()
    zero = crossent.cross_entropy(logits, nothing, empty="zero")
    assert torch.autograd.grad(zero, logits)[0].full_tensor().abs().sum() == zero.full_tensor() == 0


def test_processes_without_rows(ranks):
    ranks.assert_holds(few_rows_case)


def twice_over_few_rows_case(reduction):
    """Second derivatives of one row on four processes, of which three have none, and send what belongs to it all the same."""
    mesh, data = _mesh(4), _data("rows")
    x, y, weight = data["input"][:1], torch.tensor([3]), data["weight"]
    options = {"reduction": reduction, "z_loss": 0.1}
    logits, labels = _placed(x, y, [Shard(0)], mesh)
    placed_weight = distribute_tensor(weight, mesh, [R], src_data_rank=None)
    found = []
    for leaf, target, c in ((x.clone().requires_grad_(), y, weight), (logits, labels, placed_weight)):
        total = crossent.cross_entropy(leaf, target, weight=c, **options).sum() * 1.7
        (grad,) = torch.autograd.grad(total, leaf, create_graph=True)
        found.append(torch.autograd.grad((grad * grad).sum(), leaf)[0])
    torch.testing.assert_close(found[1].full_tensor(), found[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_second_derivatives_reach_processes_without_rows(ranks, reduction):
    ranks.assert_holds(twice_over_few_rows_case, reduction)


def other_losses_case():
    mesh, data = _mesh(2, 2), _data("rows")
    x, y, weight = data["input"], data["target"], data["weight"]
    logits, labels = _placed(x, y, [Shard(0), R], mesh)
    module = crossent.CrossEntropyLoss(weight, label_smoothing=0.1)
    torch.testing.assert_close(module(logits, labels).full_tensor(), module(x, y), rtol=1e-12, atol=0)
    focal = crossent.focal_loss(logits, labels, gamma=2.0).full_tensor()
    torch.testing.assert_close(focal, crossent.focal_loss(x, y, gamma=2.0), rtol=1e-12, atol=0)
    short = crossent.cross_entropy(logits.bfloat16(), labels)
    assert short.dtype == torch.bfloat16
    torch.testing.assert_close(short.full_tensor(), crossent.cross_entropy(x.bfloat16(), y))
    crossent.cross_entropy(logits * 1.0, labels, inplace_backward=True).backward()
    wanted, logits.grad = logits.grad, None
    crossent.cross_entropy(logits * 1.0, labels, inplace_forward=True).backward()
    torch.testing.assert_close(logits.grad.full_tensor(), wanted.full_tensor())


def test_modules_and_named_losses(ranks):
    ranks.assert_holds(other_losses_case)


def collectives_case():
    mesh = _mesh(2, 2)
    x, y = torch.randn(8, C, dtype=torch.float64), torch.arange(8) % C
    counted = []
    for placements in ([R, R], [Shard(0), R], [Shard(0), Shard(0)]):
        logits, labels = _placed(x, y, placements, mesh)
        for forward, options in ((True, {}), (True, {"reduction": "none"}), (False, {})):
            loss = crossent.cross_entropy(logits, labels, **options)
            with CommDebugMode() as mode:
                if forward:
                    crossent.cross_entropy(logits, labels, **options)
                else:
                    loss.backward()
            counted.append(mode.get_total_counts())
    return counted


def test_one_collective_a_mesh_dimension_and_none_backward(ranks):
    for counted in ranks(collectives_case):
        assert counted == [0, 0, 0, 1, 0, 0, 2, 0, 0]


def same_bits_case():
    mesh, data = _mesh(4), _data("rows")
    logits, labels = _placed(data["input"], data["target"], [Shard(0)], mesh)
    return [crossent.cross_entropy(logits, labels).to_local().item() for _ in range(2)]


def test_the_same_bits_on_every_process_and_twice(ranks):
    assert len({bits for answer in ranks(same_bits_case) for bits in answer}) == 1


def wrong_arguments_case():
    mesh, data = _mesh(4), _data("rows")
    x, y = data["input"], data["target"]
    logits, labels = _placed(x, y, [Shard(0)], mesh)
    loss, bce = crossent.cross_entropy, crossent.binary_cross_entropy_with_logits
    with pytest.raises(RuntimeError, match="target must be a DTensor where input is one, got a plain tensor"):
        loss(logits, y)
    with pytest.raises(RuntimeError, match="input must be a DTensor where target is one, got Tensor"):
        loss(x, labels)
    with pytest.raises(RuntimeError, match="sample_weight must be a DTensor"):
        loss(logits, labels, sample_weight=data["sample_weight"])
    with pytest.raises(RuntimeError, match=r"logit_bias must be a DTensor .* \[Replicate\(\)\] for placements if"):
        loss(logits, labels, logit_bias=data["weight"].requires_grad_())
    with pytest.raises(RuntimeError, match="target must be on the mesh of input"):
        loss(logits, distribute_tensor(y, _mesh(2, 2), [R, R], src_data_rank=None))
    short = distribute_tensor(y[:-1], mesh, [Shard(0)], src_data_rank=None)  # the other processes' parts fit
    with pytest.raises(ValueError, match="batch size"):
        loss(logits, short)
    with pytest.raises(ValueError, match="target must have the shape of the logits"):
        bce(logits, distribute_tensor(x[:-1], mesh, [Shard(0)], src_data_rank=None))
    wrong = y.clone()
    wrong[3] = C  # on the second process alone
    for function in (crossent.cross_entropy, crossent.cross_entropy_stats):
        with pytest.raises(IndexError, match="target"):
            function(logits, distribute_tensor(wrong, mesh, [Shard(0)], src_data_rank=None), reduction="mean")
    own = pytest.raises(IndexError, match="target") if dist.get_rank() == 1 else torch.enable_grad()
    with own:  # nobody waits for rows that are kept apart
        loss(logits, distribute_tensor(wrong, mesh, [Shard(0)], src_data_rank=None), reduction="none")
    with pytest.raises(RuntimeError, match="leaf"):
        loss(logits, labels, inplace_backward=True)


def test_wrong_arguments_raise_on_every_process(ranks):
    ranks.assert_holds(wrong_arguments_case)


def test_plain_tensors_import_nothing():
    import subprocess
    import sys

    words = (
        "import sys, torch, crossent\n"
        "x = torch.randn(4, 3, requires_grad=True)\n"
        "for more in ({}, {'temperature': 2.0}, {'reduction': 'none'}):\n"
        "    crossent.cross_entropy(x, torch.tensor([0, 1, 2, 0]), **more).sum().backward()\n"
        "crossent.linear_cross_entropy(x, torch.randn(5, 3), torch.tensor([0, 1, 2, 0])).backward()\n"
        "assert not [name for name in sys.modules if name.startswith('torch.distributed.tensor')]\n"
        "assert not [name for name in sys.modules if name.startswith('crossent.parallel')]\n"
    )
    subprocess.run([sys.executable, "-c", words], check=True, timeout=240)


# --- what torch itself does ---------------------------------------------------------------------------------------------


def torchs_means_case():
    torch.manual_seed(0)
    mesh, x, y = _mesh(4), torch.randn(8, 10, dtype=torch.float64) * 4, torch.arange(8)
    y[1] = -100
    logits, labels = _placed(x, y, [Shard(0)], mesh)
    torchs = torch.nn.functional.cross_entropy(logits, labels).full_tensor()
    ours = crossent.cross_entropy(logits, labels).full_tensor()
    own = [torch.nn.functional.cross_entropy(a, b) for a, b in zip(x.chunk(4), y.chunk(4), strict=True)]
    return [value.item() for value in (torchs, ours, sum(own) / 4, torch.nn.functional.cross_entropy(x, y))]


def test_torch_returns_the_mean_of_means(ranks):
    for torchs, ours, of_means, whole in ranks(torchs_means_case):
        assert torchs == pytest.approx(of_means)
        assert ours == pytest.approx(whole)
        assert abs(torchs - whole) > 0.01 * whole


def loss_parallel_case():
    from torch.distributed.tensor.parallel import loss_parallel

    torch.manual_seed(0)
    mesh, x = _mesh(4), torch.randn(8, 12, dtype=torch.float64) * 4
    t = torch.randn(8, 12, dtype=torch.float64).softmax(1)
    one = x.clone().requires_grad_()
    torch.nn.functional.cross_entropy(one, t).backward()
    errors = []
    for function in (torch.nn.functional.cross_entropy, crossent.cross_entropy):
        logits = distribute_tensor(x, mesh, [Shard(1)], src_data_rank=None).requires_grad_()
        soft = distribute_tensor(t, mesh, [Shard(1)], src_data_rank=None)
        with loss_parallel() if function is torch.nn.functional.cross_entropy else torch.enable_grad():
            loss = function(logits, soft)
            loss.backward()
        errors.append((logits.grad.full_tensor() - one.grad).abs().max().item() / one.grad.abs().max().item())
    return errors


def test_loss_parallel_has_another_gradient_for_probabilities(ranks):
    for torchs, ours in ranks(loss_parallel_case):
        assert torchs > 0.1
        assert ours < 1e-12


def loss_parallels_faults_case():
    """What loss_parallel does with smoothing, with a label out of range and with an exception inside, and what is done here."""
    from torch.distributed.tensor.parallel import loss_parallel

    torch.manual_seed(0)
    mesh, x, y = _mesh(4), torch.randn(8, 12, dtype=torch.float64) * 4, torch.arange(8)
    torchs = torch.nn.functional.cross_entropy
    logits, labels = (distribute_tensor(t, mesh, [at], src_data_rank=None) for t, at in ((x, Shard(1)), (y, R)))
    with loss_parallel(), pytest.raises(RuntimeError):
        torchs(logits, labels, label_smoothing=0.1)
    smoothed = crossent.cross_entropy(logits, labels, label_smoothing=0.1).full_tensor()
    torch.testing.assert_close(smoothed, torchs(x, y, label_smoothing=0.1), rtol=1e-12, atol=0)

    wrong = distribute_tensor(y.index_fill(0, torch.tensor([3]), 12), mesh, [R], src_data_rank=None)
    with loss_parallel():
        silent = torchs(logits, wrong, reduction="sum").full_tensor()
    others = torch.arange(8) != 3
    torch.testing.assert_close(silent, torchs(x[others], y[others], reduction="sum"))  # the row costs nothing
    with pytest.raises(IndexError, match="target must lie in"):
        crossent.cross_entropy(logits, wrong, reduction="sum")

    handlers = DTensor._op_dispatcher._custom_op_handlers
    before = set(handlers)
    with contextlib.suppress(KeyError), loss_parallel():
        raise KeyError
    left = set(handlers) - before
    with loss_parallel():  # which takes its own away in the end
        pass
    assert set(handlers) == before
    with contextlib.suppress(IndexError):
        crossent.cross_entropy(logits, wrong)
    assert set(handlers) == before
    return len(left)


def test_loss_parallel_refuses_smoothing_and_leaves_things_behind(ranks):
    assert min(ranks(loss_parallels_faults_case)) > 0
