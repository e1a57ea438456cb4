"""``crossent.defer`` on plain PyTorch models: the same losses and gradients, whatever is done with the model, and no logits."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import crossent
from crossent.models.defer import Logits

spec = importlib.util.spec_from_file_location("nanogpt", Path(__file__).with_name("nanogpt.py"))
nanogpt = importlib.util.module_from_spec(spec)
sys.modules["nanogpt"] = nanogpt  # where pickles look for the class
spec.loader.exec_module(nanogpt)
NanoGPT, batch = nanogpt.NanoGPT, nanogpt.batch
BLOCK = 5 * 1000 * 4  # bytes of five rows of logits
KINDS = {"tied": {}, "bias": {"tied": False, "bias": True}, "capped": {"softcap": 3.0}}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _counted():
    Logits.reset()


def made(kind="tied"):
    torch.manual_seed(0)
    return NanoGPT(**KINDS[kind])


def deferred(kind="tied", **options):
    model = made(kind)
    crossent.defer(model.lm_head, max_bytes=BLOCK, **options)
    return model


def step(model):
    model.zero_grad()
    _, loss = model(*batch())
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def assert_trains_the_same(model, plain, formed=0):
    before = Logits.blocked
    torch.testing.assert_close(step(model), step(plain))
    assert (Logits.formed, Logits.blocked > before) == (formed, True), Logits.report()


@kinds
def test_losses_and_gradients_are_the_models_own(kind):
    assert_trains_the_same(deferred(kind), made(kind))


def test_it_is_the_same_object_and_its_files_are_the_plain_models():
    plain, model = made(), made()
    head = model.lm_head
    assert crossent.defer(head) is head
    assert isinstance(head, nn.Linear)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert model.lm_head.weight is model.tokens.weight
    assert not head._forward_hooks
    plain.load_state_dict(model.state_dict())


@kinds
def test_copies_and_pickles_are_deferred_and_have_a_head_of_their_own(kind):
    model = deferred(kind)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert type(other.lm_head) is type(model.lm_head)
        assert (other.lm_head.weight is other.tokens.weight) == (kind != "bias")
        with torch.no_grad():
            other.lm_head.weight.mul_(2)
            model_loss, loss = (m(*batch())[1] for m in (model, other))
        assert model_loss != loss
        plain = made(kind)
        with torch.no_grad():
            plain.lm_head.weight.mul_(2)
        assert_trains_the_same(other, plain)


def test_undefer_gives_the_plain_head_back():
    plain, model = made(), deferred()
    assert type(model.lm_head) is not nn.Linear
    assert crossent.undefer(model) is model
    assert type(model.lm_head) is nn.Linear
    assert vars(model.lm_head).keys() == vars(plain.lm_head).keys()
    torch.testing.assert_close(step(model), step(plain))
    assert Logits.blocked == 0
    crossent.undefer(crossent.undefer(model))


def test_as_a_context_manager():
    model = made()
    with crossent.defer(model.lm_head) as head:
        assert head is model.lm_head
        assert isinstance(model(*batch())[0], Logits)
    assert isinstance(model(*batch())[0], torch.Tensor)
    with pytest.raises(KeyError), crossent.defer(model.lm_head):
        raise KeyError
    assert type(model.lm_head) is nn.Linear


def test_when_it_answers_with_an_object():
    model, (idx, _) = deferred(), batch()
    assert isinstance(model(idx)[0], Logits)
    with torch.no_grad():
        assert type(model(idx)[0]) is torch.Tensor
    with torch.inference_mode():
        assert type(model(idx)[0]) is torch.Tensor
    crossent.defer(model.lm_head, always=True)
    with torch.no_grad():
        logits = model(idx)[0]
    assert isinstance(logits, Logits)
    assert isinstance(logits, torch.Tensor)  # evaluation loops gather what is one
    assert not logits.requires_grad


def test_generating_is_the_plain_models():
    results = []
    for model in (deferred(), made()):
        torch.manual_seed(1)
        results.append(model.generate(batch()[0][:, :3], 5))
    assert torch.equal(*results)
    assert Logits.formed == 0


def test_forward_may_be_called_directly():
    """As PEFT does, which knows no hooks."""
    model, h = deferred(), torch.randn(2, 3, 16)
    assert isinstance(model.lm_head.forward(h), Logits)


def test_a_hook_of_the_user_runs():
    model, seen = deferred(), []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    assert_trains_the_same(model, made())
    assert seen == [(3, 12, 1000)]


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_parametrized_head(order):
    models = [made("bias"), made("bias")]
    model, plain = models
    if order == "before":
        crossent.defer(model.lm_head, max_bytes=BLOCK)
    for each in models:
        parametrizations.weight_norm(each.lm_head)
    if order == "after":
        crossent.defer(model.lm_head, max_bytes=BLOCK)
    assert_trains_the_same(model, plain)


class Scaled(nn.Linear):
    """A head with a forward of its own around the Linear's, as some models of transformers have."""

    def forward(self, h):
        return super().forward(h / 2).float() * 3.0


class Opaque(nn.Linear):
    def forward(self, h):
        return F.linear(h, self.weight, self.bias)


def test_a_head_that_goes_on_from_its_linear():
    models = [made("bias"), made("bias")]
    for each in models:
        each.lm_head.__class__ = Scaled
    crossent.defer(models[0].lm_head, max_bytes=BLOCK)
    assert_trains_the_same(*models)


def test_a_head_whose_call_cannot_be_seen_is_refused():
    with pytest.raises(TypeError, match=r"Opaque, which does not call super\(\)\.forward"):
        crossent.defer(Opaque(3, 4))


def test_what_is_no_head_is_refused_with_a_way_out():
    with pytest.raises(TypeError, match=r"got NanoGPT: pass its head, perhaps crossent\.defer\(model\.lm_head\)"):
        crossent.defer(made())
    with pytest.raises(TypeError, match=r"got Conv1d$"):
        crossent.defer(nn.Conv1d(3, 3, 1))
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        crossent.defer(torch.zeros(3))
    head = nn.Linear(3, 4)
    head.forward = head.forward
    with pytest.raises(RuntimeError, match="a forward of its own instance"):
        crossent.defer(head)


def test_undefer_refuses_what_was_changed_since():
    model = deferred("bias")
    parametrizations.weight_norm(model.lm_head)
    with pytest.raises(RuntimeError, match="undefer must undo the last change"):
        crossent.undefer(model)


def test_bf16_autocast():
    results = []
    for model in (deferred("bias"), made("bias")):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(step(model))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0.03, atol=0.003)
    assert Logits.formed == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_body_head_and_loss(reentrant):
    model, plain = deferred("bias"), made("bias")

    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, idx, targets):
            anchor = torch.zeros(1, requires_grad=True)
            return None, checkpoint(lambda a: self.inner(idx, targets)[1] + a.sum(), anchor, use_reentrant=reentrant)

    torch.testing.assert_close(step(Checkpointed(model)), step(Checkpointed(plain)))
    assert Logits.formed == 0


def test_accumulated_micro_batches():
    models = [deferred(), made()]
    for model in models:
        for seed in range(3):
            idx, targets = batch(seed=seed)
            logits, _ = model(idx)
            (
                F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum") / 100
            ).backward()
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert Logits.formed == 0


class Answers(nn.Module):
    """A model with an output embedding, as those of transformers have it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.lm_head = nn.Embedding(60, 6), nn.Linear(6, 60)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, idx, labels=None):
        logits = self.logits(self.tokens(idx).tanh())
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}

    def logits(self, h):
        return self.lm_head(h)


class PassesBy(Answers):
    def logits(self, h):
        return h @ self.lm_head.weight.t() + self.lm_head.bias


IDX = torch.arange(12).view(2, 6)


def test_the_report_tells_of_each_head_and_of_calls_that_are_answered_plainly():
    student, teacher, alone = crossent.defer(Answers()), crossent.defer(Answers()), crossent.defer(nn.Linear(7, 50))
    student(IDX, labels=IDX)
    with torch.no_grad():
        student(IDX, labels=IDX)
        student(IDX)
    teacher(IDX)["logits"].argmax(-1)
    with pytest.warns(UserWarning, match="std formed the logits"):
        alone(torch.randn(2, 7)).std()
    with torch.no_grad():
        alone(torch.randn(2, 7))
    first, second, third = Logits.heads
    assert (first, second) == ("Answers.lm_head", "Answers.lm_head (2)")
    assert third == "Linear(7, 50)"
    plainly = ", 1 call without gradients and labels answered plainly"
    assert Logits.report().splitlines()[:4] == [
        "deferred heads: 3 results computed in blocks, logits formed 1 time",
        f"  Answers.lm_head: 2 results computed in blocks, logits formed 0 times{plainly}",
        "  Answers.lm_head (2): 1 result computed in blocks, logits formed 0 times",
        f"  Linear(7, 50): nothing computed in blocks, logits formed 1 time{plainly}",
    ]
    assert Logits.heads[third] == {"formed": 1, "plain": 1}
    del student, teacher
    assert crossent.defer(Answers()).lm_head._crossent_name == "Answers.lm_head"
    Logits.reset()
    assert Logits.heads == {}


@pytest.mark.parametrize("grad", [True, False])
def test_a_model_that_passes_its_head_by_is_told_of(grad):
    model, plain = crossent.defer(PassesBy()), PassesBy()
    with torch.set_grad_enabled(grad), pytest.warns(UserWarning, match=r"The model never called its head") as told:
        losses = [m(IDX, labels=IDX)["loss"] for m in (model, plain)]
    assert len(told) == 1
    torch.testing.assert_close(*losses)
    assert Logits.formed == 1
    (place,) = Logits.places
    assert __file__ in place
    with torch.set_grad_enabled(grad):
        model(IDX)
    assert Logits.formed == 1  # nobody asked for a loss


@pytest.mark.parametrize("grad", [True, False])
def test_a_forward_of_the_models_instance_still_tells_of_labels(grad):
    """Trainers put one there, and may do so before the model is deferred."""
    model = Answers()
    model.forward = model.forward
    crossent.defer(model)
    with torch.set_grad_enabled(grad):
        for labels in ({"labels": IDX}, {}):
            assert isinstance(model(IDX, **labels)["logits"], Logits) == bool(labels or grad)
        assert isinstance(model(IDX, IDX)["logits"], Logits)
    assert Logits.formed == 0


def test_a_forward_that_a_head_gets_later_is_given_plain_logits():
    """Tensor parallelism of transformers wraps the head's forward so, and works on tensors."""
    model, plain = crossent.defer(Answers()), Answers()
    inner = model.lm_head.forward
    model.lm_head.forward = lambda h: torch.stack([inner(h)])[0]
    with pytest.warns(UserWarning, match="it got a forward of its instance after defer"):
        ours, theirs = (m(IDX, labels=IDX)["loss"] for m in (model, plain))
    torch.testing.assert_close(ours, theirs)
    assert (Logits.formed, Logits.blocked) == (1, 0)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_transforms_see_plain_logits():
    head, h = crossent.defer(nn.Linear(4, 50)), torch.randn(3, 4)
    grad = torch.func.grad(lambda h: F.cross_entropy(head(h), torch.tensor([1, 2, 3])))(h)
    assert grad.shape == h.shape
    traced = torch.jit.trace(head, h, check_trace=False)
    assert traced(h).shape == (3, 50)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled():
    torch._dynamo.reset()
    model = deferred("capped")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(compiled), step(made("capped")))
    assert isinstance(compiled(*batch())[0], Logits)
    assert Logits.formed == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_code_says_what_it_forms():
    torch._dynamo.reset()
    model = deferred()

    def squares(idx):
        return model(idx)[0].sigmoid().square().mean()

    with pytest.warns(UserWarning, match="sigmoid formed the logits"):
        torch.testing.assert_close(torch.compile(squares, backend="aot_eager")(batch()[0]), squares(batch()[0]))
    assert Logits.formed >= 1
    assert any(__file__ in place for place in Logits.places)


def test_without_labels_and_gradients_nothing_is_kept():
    model = deferred()
    with torch.no_grad():
        _, loss = model(*batch())
    torch.testing.assert_close(loss, made()(*batch())[1].detach())


# --- memory -------------------------------------------------------------------------------------------------------------

CHILD = """
import json, torch, crossent
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
N, D, V = 128, 4, 8000
class Largest(TorchDispatchMode):
    size = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor):
                Largest.size = max(Largest.size, t.untyped_storage().nbytes())
        return out
torch.manual_seed(0)
head = torch.nn.Linear(D, V)
h, y = torch.randn(N, D, requires_grad=True), torch.randint(V, (N,))
asked = {
    "cross entropy": lambda x: F.cross_entropy(x.float(), y),
    "log-probabilities": lambda x: -x.log_softmax(-1).gather(-1, y.unsqueeze(-1)).mean(),
    "entropy": lambda x: -(x.softmax(-1) * x.log_softmax(-1)).sum(-1).mean(),
    "lse": lambda x: (x / 2).logsumexp(-1).mean() + x.argmax(-1).sum(),
}
sizes = {}
for who in ("plain", "deferred"):
    for name, ask in asked.items():
        Largest.size = 0
        with Largest():
            ask(head(h)).backward()
        sizes[name] = [*sizes.get(name, []), Largest.size]
    crossent.defer(head, max_bytes=1 << 17)
print(json.dumps({"sizes": sizes, "logits": N * V * 4, "formed": crossent.Logits.formed}))
"""


def test_nothing_as_large_as_the_logits_is_made_forward_or_backward():
    """Under a mode that sees every tensor; a block has 128 kB, as the head and its gradient have."""
    results = json.loads(
        subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True).stdout
    )
    assert results["formed"] == 0
    for name, (plain, ours) in results["sizes"].items():
        assert plain >= results["logits"], name
        assert ours < results["logits"] / 8, name
