"""Heads that FSDP2 shards: the recipes of docs/scale.md train what one process trains, and the rest is refused."""

import pytest
import torch
from ranks import pool
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from crossent import linear_cross_entropy, linear_cross_entropy_stats, linear_plan, shared_denominator

V, D, IN = 11, 6, 5

ranks = pool(2)


class Head(nn.Linear):
    """A head with a method that computes its loss."""

    def loss(self, h, y, count):
        return linear_cross_entropy(h, self.weight, y, linear_bias=self.bias, denominator=count)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Sequential(nn.Linear(IN, D), nn.Tanh())
        self.head = Head(D, V)

    def forward(self, x, loss=None):
        h = self.body(x)
        return h if loss is None else loss(self, h)


def _batch(rank):
    """Rows that differ by process, in number too."""
    generator = torch.Generator().manual_seed(20 + rank)
    x = torch.randn(4 + 3 * rank, IN, dtype=torch.float64, generator=generator)
    y = torch.randint(V, (len(x),), generator=generator)
    y[rank] = -100
    return x, y


def _one_process():
    model, (xs, ys) = Model().double(), zip(*map(_batch, range(2)), strict=True)
    x, y = torch.cat(xs), torch.cat(ys)
    loss = nn.functional.cross_entropy(model.head(model.body(x)), y)
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters()]


def _sharded(head_alone):
    mesh, model = init_device_mesh("cpu", (2,)), Model().double()
    fully_shard(model.body, mesh=mesh)
    if head_alone:
        fully_shard(model.head, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _module(model, h, y, count):
    return linear_cross_entropy(h, model.head, y, denominator=count)


def _unsharded(model, h, y, count):
    model.head.unshard()
    return linear_cross_entropy(h, model.head.weight, y, linear_bias=model.head.bias, denominator=count)


def _unsharded_module(model, h, y, count):
    model.head.unshard()
    return _module(model, h, y, count)


def _method(model, h, y, count):
    return model.head.loss(h, y, count)


def _gathered(model, h, y, count):
    average = [Partial("avg")]
    weight, bias = (p.full_tensor(grad_placements=average) for p in (model.head.weight, model.head.bias))
    return linear_cross_entropy(h, weight, y, linear_bias=bias, denominator=count)


RECIPES = {
    "the unit that owns the head reads it": (False, _module),
    "unshard": (True, _unsharded),
    "unshard, and the module": (True, _unsharded_module),
    "a method that FSDP knows": (True, _method),
    "gathered, with the gradients' average": (True, _gathered),
}


def trained(recipe, outside):
    head_alone, loss_of = RECIPES[recipe]
    model, (x, y) = _sharded(head_alone), _batch(dist.get_rank())
    if loss_of is _method:
        register_fsdp_forward_method(model.head, "loss")
    count = shared_denominator(y)
    if outside:
        loss = loss_of(model, model(x), y, count)
    else:
        loss = model(x, lambda m, h: loss_of(m, h, y, count))
    loss.backward()
    return loss.item(), [p.grad.full_tensor() for p in model.parameters()]


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(ranks, recipe, outside):
    wanted, gradients = _one_process()
    answers = ranks(trained, recipe, outside)
    assert sum(loss for loss, _ in answers) / 2 == pytest.approx(wanted, rel=1e-12)
    for _, got in answers:
        for grad, want in zip(got, gradients, strict=True):
            torch.testing.assert_close(grad, want, rtol=1e-12, atol=1e-14)


def wrapped():
    """The hidden states as a DTensor: the loss is that of the whole batch, whose gradients are to be added up."""
    model, (x, y) = _sharded(True), _batch(dist.get_rank())
    for unit in (model, model.body):
        unit.set_gradient_divide_factor(1.0)
    where = {"device_mesh": model.head.weight.device_mesh, "placements": [Shard(0)], "run_check": False}

    def loss_of(model, h):
        rows = DTensor.from_local(h[:4], **where)  # as many on each process, which from_local takes for granted
        return linear_cross_entropy(rows, model.head, DTensor.from_local(y[:4], **where))

    loss = model(x, loss_of)
    loss.backward()
    return loss.full_tensor().item(), [p.grad.full_tensor() for p in model.parameters()]


def test_wrapped_hidden_states(ranks):
    model, batches = Model().double(), list(map(_batch, range(2)))
    x, y = (torch.cat([batch[at][:4] for batch in batches]) for at in range(2))
    loss = nn.functional.cross_entropy(model.head(model.body(x)), y)
    loss.backward()
    for got, gradients in ranks(wrapped):
        assert got == pytest.approx(loss.item(), rel=1e-12)
        for grad, p in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(grad, p.grad, rtol=1e-12, atol=1e-14)


def refused():
    """Each of these is an error of torch's, or a silently wrong gradient, with no message of ours."""
    model, (x, y) = _sharded(True), _batch(dist.get_rank())
    ways = r"(?s)input must be a DTensor where linear_weight is one.*FSDP.*unshard\(\).*register_fsdp_forward_method.*from_local"
    for weight in (model.head, model.head.weight):
        for function in (linear_cross_entropy, linear_cross_entropy_stats, linear_plan):
            with pytest.raises(RuntimeError, match=ways):
                model(x, lambda m, h, f=function, w=weight: f(h, w, y))
    for function in (linear_cross_entropy, linear_cross_entropy_stats):
        with pytest.raises(RuntimeError, match=r"got full_tensor\(\) of a parameter that FSDP shards"):
            model(x, lambda m, h, f=function: f(h, m.head.weight.full_tensor(), y))
    h = model(x).detach()
    with torch.no_grad():
        linear_cross_entropy(h, model.head.weight.full_tensor(), y)
    # All rows on every process, as with tensor parallelism: then each process's gradient is all of it.
    mesh = model.head.weight.device_mesh
    weight = distribute_tensor(torch.randn(V, D, dtype=torch.float64), mesh, [Shard(0)]).requires_grad_()
    linear_cross_entropy(h, weight.full_tensor(), y).backward()
    hooked = nn.Linear(D, V).double()
    fully_shard(hooked, mesh=mesh).unshard()
    linear_cross_entropy(h, hooked, y)
    hooked.register_forward_hook(print)
    with pytest.raises(RuntimeError, match="with forward hooks, which would be lost"):
        linear_cross_entropy(h, hooked, y)


def test_what_would_be_wrong_is_refused(ranks):
    ranks.assert_holds(refused)


# --- what torch itself does ---------------------------------------------------------------------------------------------


class Hidden:
    """An output that autograd's hooks cannot look into."""

    def __init__(self, h):
        self.h = h


class Deferring(Model):
    def forward(self, x, hide):
        return Hidden(self.body(x)) if hide else self.body(x)


def hidden_output(hide):
    mesh = init_device_mesh("cpu", (2,))
    model, (x, y) = fully_shard(Deferring().double(), mesh=mesh), _batch(dist.get_rank())
    h = model(x, hide)
    h = h.h if hide else h
    linear_cross_entropy(h, model.head, y, denominator=shared_denominator(y)).backward()
    gradients = [p.grad for p in model.parameters()]
    return [g.full_tensor() if isinstance(g, DTensor) else g for g in gradients]


def test_fsdp_does_not_see_tensors_that_its_output_hides(ranks):
    """Whatever answers in the place of logits has to be a pytree node, or the gradients are never brought together."""
    _, wanted = _one_process()
    for gradients in ranks(hidden_output, False):
        for grad, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(grad, want, rtol=1e-12, atol=1e-14)
    for gradients in ranks(hidden_output, True):
        assert any(
            g is None or not torch.allclose(g, want, rtol=0.1) for g, want in zip(gradients, wanted, strict=True)
        )
