"""A module as the head of a linear loss: the logits are those that the module would give, or it is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import crossent
from crossent.losses.heads import head_of

DOUBLE = {"dtype": torch.float64}
N, C, D, R = 12, 9, 6, 2
Y = torch.tensor([0, 1, -100, 3, 4, 8, 7, 0, 2, 5, -100, 6])
blocks = pytest.mark.parametrize("size", [{}, {"max_bytes": C * 8 * 5}], ids=["at once", "blocks"])


class LoRA(nn.Module):
    """What PEFT wraps a layer in, as far as it says what its logits are."""

    def __init__(self, base, scaling, dropout=0.0, bias=False, rank=R):
        super().__init__()
        self.base_layer, self.scaling = base, scaling
        out, features = base.weight.shape
        kind = {"dtype": base.weight.dtype}
        self.lora_A = nn.ModuleDict({name: nn.Linear(features, rank, bias=False, **kind) for name in scaling})
        self.lora_B = nn.ModuleDict({name: nn.Linear(rank, out, bias=bias, **kind) for name in scaling})
        self.lora_dropout = nn.ModuleDict(dict.fromkeys(scaling, nn.Dropout(dropout)))
        self.lora_variant, self.merged_adapters, self.disable_adapters = {}, [], False
        self.active_adapters = list(scaling)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        logits = self.base_layer(x)
        if self.disable_adapters or self.merged_adapters:
            return logits
        for name in self.active_adapters:
            if name in self.lora_A:
                low = self.lora_A[name](self.lora_dropout[name](x))
                logits = logits + self.lora_B[name](low) * self.scaling[name]
        return logits


class Cosine(nn.Linear):
    def forward(self, x):
        return super().forward(nn.functional.normalize(x, dim=-1))


class Named(nn.Linear):
    """A subclass that changes nothing of what is computed."""


def halved():
    return LoRA(nn.Linear(D, C, **DOUBLE), {"default": 0.5})


def two_adapters():
    head = LoRA(nn.Linear(D, C, bias=False, **DOUBLE), {"one": 0.5, "two": 3.0, "idle": 9.0})
    head.active_adapters = ["one", "two", "elsewhere"]
    return head


def frozen():
    head = halved()
    head.base_layer.requires_grad_(False)
    return head


def merged():
    head = halved()
    head.merged_adapters = ["default"]
    return head


def disabled():
    head = halved()
    head.disable_adapters = True
    return head


HEADS = {
    "Linear": lambda: nn.Linear(D, C, **DOUBLE),
    "Linear without a bias": lambda: nn.Linear(D, C, bias=False, **DOUBLE),
    "a subclass": lambda: Named(D, C, **DOUBLE),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(D, C, **DOUBLE)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(D, C, **DOUBLE)),
    "compiled": lambda: torch.compile(nn.Linear(D, C, **DOUBLE), backend="eager"),
    "LoRA": halved,
    "LoRA of a frozen layer": frozen,
    "two adapters": two_adapters,
    "adapters with a bias": lambda: LoRA(nn.Linear(D, C, **DOUBLE), {"default": 2.0}, bias=True),
    "LoRA with dropout that is off": lambda: LoRA(nn.Linear(D, C, **DOUBLE), {"default": 2.0}, dropout=0.5).eval(),
    "LoRA of a parametrised layer": lambda: LoRA(
        parametrizations.weight_norm(nn.Linear(D, C, **DOUBLE)), {"default": 2.0}
    ),
    "merged": merged,
    "disabled": disabled,
}


def made(name):
    torch.manual_seed(0)
    return HEADS[name](), torch.randn(N, D, **DOUBLE, requires_grad=True)


def gradients(loss, module, h):
    wanted = [h, *(p for p in module.parameters() if p.requires_grad)]
    return torch.autograd.grad(loss.sum(), wanted, allow_unused=True, create_graph=True)


@blocks
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_value_and_gradients_are_those_of_the_modules_logits(name, reduction, size):
    head, h = made(name)
    options = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.1}
    loss = crossent.linear_cross_entropy(h, head, Y, **options, **size)
    expected = crossent.cross_entropy(head(h), Y, **options)
    torch.testing.assert_close(loss, expected)
    first, theirs = gradients(loss, head, h), gradients(expected, head, h)
    for a, b in zip(first, theirs, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b) if a is not None else None
        assert a is not None or b is None or (b == 0).all()
    seconds = [
        torch.autograd.grad(sum(g.square().sum() for g in some if g is not None), h)[0] for some in (first, theirs)
    ]
    torch.testing.assert_close(*seconds)


@pytest.mark.parametrize("name", HEADS)
def test_statistics_and_the_plan_take_it_too(name):
    head, h = made(name)
    stats = crossent.linear_cross_entropy_stats(h, head, Y, max_bytes=C * 8 * 5)
    torch.testing.assert_close(tuple(stats), tuple(crossent.cross_entropy_stats(head(h), Y)))
    assert crossent.linear_plan(h, head, Y, max_bytes=C * 8 * 5).blocks > 1


def test_a_small_update_is_not_rounded_away_in_half_precision():
    torch.manual_seed(0)
    head = LoRA(nn.Linear(64, 30, bias=False, dtype=torch.bfloat16), {"default": 0.5}, rank=4)
    with torch.no_grad():
        head.base_layer.weight.fill_(1.0)
        head.lora_B["default"].weight.mul_(0.002)
    h = torch.randn(8, 64).bfloat16()
    A, B = (factors["default"].weight.double() for factors in (head.lora_A, head.lora_B))
    update = 0.5 * h.double() @ (B @ A).T
    parts = head_of(head, h)
    ours = parts.input.double() @ parts.weight.double().T - h.double() @ head.weight.double().T
    assert (ours - update).norm() < 0.01 * update.norm()
    # Added to the weight in bfloat16, the update would be lost.
    assert torch.equal(head.weight + 0.5 * (B @ A).bfloat16(), head.weight)


def test_dropout_of_an_adapter_drops_what_the_module_drops():
    torch.manual_seed(0)
    head, h = LoRA(nn.Linear(D, C, **DOUBLE), {"default": 2.0}, dropout=0.5), torch.randn(N, D, **DOUBLE)
    torch.manual_seed(7)
    loss = crossent.linear_cross_entropy(h, head, Y)
    torch.manual_seed(7)
    torch.testing.assert_close(loss, crossent.cross_entropy(head(h), Y))
    assert not torch.equal(loss, crossent.linear_cross_entropy(h, head, Y))


@blocks
def test_a_tied_embedding(size):
    torch.manual_seed(0)
    table = nn.Embedding(C, D, padding_idx=0, **DOUBLE)
    table.register_forward_hook(lambda module, args, out: out.requires_grad_())  # lookups are not what a head does
    h = table(torch.randint(1, C, (N,)))
    loss = crossent.linear_cross_entropy(h, table, Y, **size)
    expected = crossent.cross_entropy(h @ table.weight.T, Y)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, table.weight, retain_graph=True) for v in (loss, expected)))
    bias = torch.randn(C, **DOUBLE)
    torch.testing.assert_close(
        crossent.linear_cross_entropy(h, table, Y, linear_bias=bias, **size),
        crossent.cross_entropy(h @ table.weight.T + bias, Y),
    )


def test_with_more_dimensions_and_a_shift():
    head, _ = made("LoRA")
    h, y = torch.randn(2, 6, D, **DOUBLE), Y.view(2, 6)
    loss = crossent.linear_cross_entropy(h, head, y, shift=1)
    torch.testing.assert_close(loss, crossent.cross_entropy(head(h)[:, :-1].movedim(-1, 1), y[:, 1:]))


def test_a_teachers_head():
    head, h = made("LoRA")
    teacher, z = made("two adapters")
    loss = crossent.linear_cross_entropy(h, head, crossent.Teacher(z, teacher, temperature=2.0), max_bytes=C * 8 * 5)
    torch.testing.assert_close(loss, crossent.cross_entropy(head(h), (teacher(z) / 2).softmax(1).detach()))
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_the_module_of_the_loss_does_not_drop_an_adapter():
    torch.manual_seed(0)
    loss, h = crossent.LinearCrossEntropyLoss(D, C, bias=True, dtype=torch.float64), torch.randn(N, D, **DOUBLE)
    loss.linear = LoRA(loss.linear, {"default": 2.0})
    torch.testing.assert_close(loss(h, Y), crossent.cross_entropy(loss.linear(h), Y))
    loss(h, Y).backward()
    assert all((p.grad != 0).any() for p in loss.parameters())


def test_modules_to_save():
    class Wrapper(nn.Module):
        def __init__(self, original, copy):
            super().__init__()
            self.original_module, self.modules_to_save = original, nn.ModuleDict({"default": copy})
            self.active_adapters, self.disable_adapters = ["default"], False

    head, h = made("Linear")
    wrapper = Wrapper(nn.Linear(D, C, **DOUBLE), head)
    torch.testing.assert_close(crossent.linear_cross_entropy(h, wrapper, Y), crossent.cross_entropy(head(h), Y))
    wrapper.disable_adapters = True
    expected = crossent.cross_entropy(wrapper.original_module(h), Y)
    torch.testing.assert_close(crossent.linear_cross_entropy(h, wrapper, Y), expected)


@pytest.mark.parametrize("name", ["Linear", "LoRA"])
def test_one_graph_compiled(name):
    head, h = made(name)
    torch._dynamo.reset()

    def f(h):
        return crossent.linear_cross_entropy(h, head, Y)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h), f(h))
    for ours, theirs in zip(gradients(compiled(h), head, h), gradients(f(h), head, h), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_functional_call_sees_its_own_weights():
    head, h = made("Linear")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, h):
            return crossent.linear_cross_entropy(h, self.head, Y)

    double = {f"head.{name}": 2 * p for name, p in head.named_parameters()}
    expected = crossent.cross_entropy(2 * head(h), Y)
    torch.testing.assert_close(torch.func.functional_call(Model(), double, (h,)), expected)


# --- what is refused ----------------------------------------------------------------------------------------------------


def hooked(register):
    head = nn.Linear(D, C, **DOUBLE)
    getattr(head, register)(lambda *args: None)
    return head


def replaced():
    head = nn.Linear(D, C, **DOUBLE)
    head.forward = lambda x: x
    return head


def with_variant():
    head = halved()
    head.lora_variant = {"default": object()}
    return head


def with_dora():
    head = halved()
    head.use_dora = {"default": True}
    return head


def merged_and_disabled():
    head = merged()
    head.disable_adapters = True
    return head


def other_adapter():
    head = halved()
    del head.scaling
    return head


def with_rank():
    head = halved()
    head.lora_E = nn.Parameter(torch.ones(R, 1))
    return head


def quantised():
    head = nn.Linear(D, C, **DOUBLE)
    head.weight = nn.Parameter(torch.zeros(C, D, dtype=torch.int8), requires_grad=False)
    return head


def hooked_base():
    head = halved()
    head.base_layer.register_forward_hook(lambda *args: None)
    return head


def hooked_adapter():
    head = halved()
    head.lora_B["default"].register_forward_hook(lambda *args: None)
    return head


class Scaled(torch.Tensor):
    """A weight that stands for others, as torchao's."""

    def dequantize(self):
        return self


def subclassed():
    head = nn.Linear(D, C, **DOUBLE)
    head.weight = nn.Parameter(head.weight.detach().as_subclass(Scaled), requires_grad=False)
    return head


REFUSED = {
    "a forward hook": (
        lambda: hooked("register_forward_hook"),
        RuntimeError,
        "with forward hooks, which would be lost",
    ),
    "a forward pre-hook": (lambda: hooked("register_forward_pre_hook"), RuntimeError, "forward pre-hooks"),
    "a backward hook": (lambda: hooked("register_full_backward_hook"), RuntimeError, "backward hooks"),
    "pruning": (
        lambda: prune.l1_unstructured(nn.Linear(D, C, **DOUBLE), "weight", 3),
        RuntimeError,
        "parametrizations in",
    ),
    "a hook below": (hooked_base, RuntimeError, "forward hooks"),
    "a hook of an adapter": (hooked_adapter, RuntimeError, "forward hooks"),
    "a forward that was replaced": (replaced, RuntimeError, "forward was replaced"),
    "a forward of its own": (lambda: Cosine(D, C, **DOUBLE), TypeError, "Cosine, a Linear with a forward of its own"),
    "quantised": (quantised, RuntimeError, "quantised weight, whose scales would be lost"),
    "a quantised tensor": (subclassed, RuntimeError, "quantised weight"),
    "a variant": (with_variant, RuntimeError, "variant of LoRA, object, and the adapter would be lost"),
    "DoRA": (with_dora, RuntimeError, "variant of LoRA, DoRA"),
    "another adapter": (other_adapter, RuntimeError, "it is not LoRA, and the adapter would be lost"),
    "an adapted rank": (with_rank, RuntimeError, "its rank is adapted"),
    "merged and disabled": (merged_and_disabled, RuntimeError, "call its unmerge"),
    "a sequence": (
        lambda: nn.Sequential(nn.LayerNorm(D), nn.Linear(D, C)),
        TypeError,
        "Sequential: pass the Linear inside",
    ),
    "a convolution": (lambda: nn.Conv1d(D, C, 1), TypeError, "Conv1d"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_where_something_would_be_lost(name):
    make, kind, words = REFUSED[name]
    head = make()
    for call in (crossent.linear_cross_entropy, crossent.linear_cross_entropy_stats, crossent.linear_plan):
        with pytest.raises(kind, match=words):
            call(torch.randn(N, D, **DOUBLE), head, Y)


def test_features_that_do_not_fit_are_refused_as_those_of_a_matrix():
    for head in (made("Linear")[0], made("LoRA")[0]):
        with pytest.raises(RuntimeError, match=r"must have the same last dimension, got \(12, 7\) and \(9, 6\)"):
            crossent.linear_cross_entropy(torch.randn(N, 7, **DOUBLE), head, Y)


def test_two_biases_are_refused():
    head, h = made("Linear")
    for call in (crossent.linear_cross_entropy, crossent.linear_cross_entropy_stats):
        with pytest.raises(
            ValueError, match="linear_bias must be left out where linear_weight is a module with a bias"
        ):
            call(h, head, Y, linear_bias=torch.zeros(C, **DOUBLE))


# --- PEFT itself --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["Linear", "Embedding"])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_bias": True}], ids=str)
def test_pefts_layers(base, settings):
    peft = pytest.importorskip("peft")
    if base == "Embedding" and "lora_bias" in settings:
        pytest.skip("PEFT has none")
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(D, C, **DOUBLE) if base == "Linear" else nn.Embedding(C, D, **DOUBLE)

        def forward(self, x):
            return self.head(x)

    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["head"], init_lora_weights=False, **settings)
    model = peft.get_peft_model(Model(), config)
    head, h = model.base_model.model.head, torch.randn(N, D, **DOUBLE)
    delta = head.get_delta_weight("default")
    bias = head.base_layer.bias if base == "Linear" else None
    if settings.get("lora_bias"):
        bias = bias + head.scaling["default"] * head.lora_B["default"].bias
    logits = nn.functional.linear(h, head.base_layer.weight + delta, bias)
    loss, expected = crossent.linear_cross_entropy(h, head, Y), crossent.cross_entropy(logits, Y)
    torch.testing.assert_close(loss, expected)
    if base == "Linear":
        torch.testing.assert_close(loss, crossent.cross_entropy(head(h), Y))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) >= 2
    torch.testing.assert_close(torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained))
    without = crossent.cross_entropy(
        nn.functional.linear(h, head.base_layer.weight, getattr(head.base_layer, "bias", None)), Y
    )
    with model.disable_adapter():
        torch.testing.assert_close(crossent.linear_cross_entropy(h, head, Y), without)
    if "lora_bias" not in settings:
        head.merge()
        torch.testing.assert_close(crossent.linear_cross_entropy(h, head, Y), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_pefts_dora(bias, dropout):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["0"], use_dora=True, init_lora_weights=False, r=2, lora_dropout=dropout)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(D, C, bias=bias, **DOUBLE)), config).double()
    head, h, losses = model.base_model.model[0], torch.randn(N, D, **DOUBLE, requires_grad=True), []
    with torch.no_grad():
        head.lora_magnitude_vector["default"].weight.mul_(1.3)
    for loss in (lambda: crossent.linear_cross_entropy(h, head, Y), lambda: crossent.cross_entropy(head(h), Y)):
        torch.manual_seed(1)
        losses.append(loss())
    torch.testing.assert_close(*losses)
    trained = [h, *(p for p in model.parameters() if p.requires_grad)]
    torch.testing.assert_close(*(torch.autograd.grad(loss, trained) for loss in losses))


@pytest.mark.parametrize("make", ["ia3", "loha", "adalora"])
def test_pefts_other_adapters_are_refused(make):
    peft = pytest.importorskip("peft")
    configs = {
        "ia3": lambda: peft.IA3Config(target_modules=["0"], feedforward_modules=[]),
        "loha": lambda: peft.LoHaConfig(target_modules=["0"]),
        "adalora": lambda: peft.AdaLoraConfig(target_modules=["0"], total_step=10),
    }
    head = peft.get_peft_model(nn.Sequential(nn.Linear(D, C)), configs[make]()).base_model.model[0]
    with pytest.raises(RuntimeError, match="the adapter would be lost"):
        crossent.linear_cross_entropy(torch.randn(N, D), head, Y)
