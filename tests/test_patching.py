"""``crossent.patch``: torch's losses are called and ours are computed, wherever they are named, and then torch's again."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import crossent
from crossent.models.patching import patched_places

TORCHS = {
    name: getattr(F, name) for name in ("cross_entropy", "binary_cross_entropy_with_logits", "linear_cross_entropy")
}
# What torch gives for a confident row, and what is right: a loss that says who has computed it.
SURE, LABEL = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
RIGHT = 2.0611536e-09


@pytest.fixture(autouse=True)
def taken_back():
    yield
    crossent.unpatch()
    assert all(getattr(F, name) is theirs for name, theirs in TORCHS.items())


def ours(loss=None) -> bool:
    """Tell by a loss that torch rounds to 0 who computes it."""
    value = (F.cross_entropy if loss is None else loss)(SURE, LABEL).item()
    assert value == 0 or value == pytest.approx(RIGHT, rel=1e-6)
    return value != 0


def of_a_module(module, *inputs):
    leaf = inputs[0].clone().requires_grad_()
    loss = module(leaf, *inputs[1:])
    return loss, torch.autograd.grad(loss.sum(), leaf)[0]


# --- where it reaches -------------------------------------------------------------------------------------------------

X, Y, T = torch.randn(6, 5), torch.tensor([0, 4, -100, 2, 1, 3]), torch.rand(6, 5)
MODULES = {
    "CrossEntropyLoss": (nn.CrossEntropyLoss(torch.rand(5) + 0.5, label_smoothing=0.1), X, Y),
    "a subclass": (type("Named", (nn.CrossEntropyLoss,), {})(ignore_index=4, reduction="none"), X, Y.clamp_min(0)),
    "probabilities": (nn.CrossEntropyLoss(reduction="sum"), X, T),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(pos_weight=torch.rand(5) + 0.5), X, T),
    "LinearCrossEntropyLoss": (nn.LinearCrossEntropyLoss(5, 7, bias=True), X, Y),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_already_made_are_reached(name):
    module, *inputs = MODULES[name]
    function = "linear_" * ("Linear" in name) + (
        "binary_cross_entropy_with_logits" if "BCE" in name else "cross_entropy"
    )
    theirs, theirs_gradient = of_a_module(module, *inputs)
    with crossent.patch(), Counted(function) as counted:
        loss, gradient = of_a_module(module, *inputs)
        assert counted.calls == 1
        of_a_module(copy.deepcopy(module), *inputs)
        assert counted.calls == 2
    of_a_module(module, *inputs)
    assert counted.calls == 2
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(gradient, theirs_gradient)


class Counted(torch.overrides.TorchFunctionMode):
    """Count the calls that reach one of this library's functions."""

    def __init__(self, name):
        super().__init__()
        self.function, self.calls = getattr(crossent, name), 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += function is self.function
        return function(*args, **(kwargs or {}))


@pytest.fixture
def importer():
    """Make a module as ``from torch.nn.functional import cross_entropy`` leaves it, at the time it is asked."""
    made = []

    def make(name):
        module = types.ModuleType(name)
        exec("from torch.nn.functional import cross_entropy as ce\ndef loss(x, y): return ce(x, y)", vars(module))
        sys.modules[name] = module
        made.append(name)
        return module

    yield make
    for name in made:
        del sys.modules[name]


def test_names_imported_before_and_meanwhile_are_reached_and_given_back(importer):
    before = importer("imported_before")
    with crossent.patch():
        meanwhile = importer("imported_meanwhile")
        assert ours(before.loss)
        assert ours(meanwhile.loss)
        kept = F.cross_entropy
        assert ours(kept)
    assert before.ce is meanwhile.ce is TORCHS["cross_entropy"]
    assert not ours(kept)  # a name that was bound during the patch calls torch again


def test_a_second_patch_reaches_what_was_imported_since(importer):
    crossent.patch()
    module = importer("imported_since")
    module.ce = TORCHS["cross_entropy"]  # as if it had been kept in a list and named now
    assert not ours(module.loss)
    crossent.patch()
    assert ours(module.loss)


def test_our_own_names_and_lazy_modules_are_left_alone():
    class Lazy(types.ModuleType):
        def __getattr__(self, name):
            raise AssertionError(f"asked for {name}")

    sys.modules["lazy_one"], sys.modules["not_a_module"] = Lazy("lazy_one"), object()
    try:
        with crossent.patch():
            assert crossent.core.torchs.cross_entropy is TORCHS["cross_entropy"]
            theirs = crossent.cross_entropy(SURE, LABEL, impl="torch")
            assert theirs.item() == 0  # it calls torch's own function, and not itself again
    finally:
        del sys.modules["lazy_one"], sys.modules["not_a_module"]


# --- standing and taken back ------------------------------------------------------------------------------------------


def test_it_stands_until_the_last_is_taken_back():
    assert not ours()
    outer = crossent.patch()
    assert ours()
    with crossent.patch() as inner:
        outer.undo()
        outer.undo()
        assert ours()
        assert (outer.active, inner.active) == (False, True)
    assert not ours()
    inner.undo()
    assert not ours()


def test_unpatch_takes_all_back_and_later_ends_of_blocks_do_nothing():
    first = crossent.patch()
    with first, crossent.patch():
        crossent.unpatch()
        assert not ours()
        again = crossent.patch()
        first.undo()
        assert ours()
    assert ours()
    again.undo()
    assert not ours()
    crossent.unpatch()


def test_an_exception_takes_it_back():
    with pytest.raises(IndexError, match="target must lie in"), crossent.patch():
        F.cross_entropy(torch.zeros(1, 2), torch.tensor([2]))
    assert not ours()


def test_threads_share_it_and_the_last_one_takes_it_back():
    entered, leave, seen, errors = threading.Barrier(5), threading.Event(), [], []

    def work(number):
        try:
            for _ in range(3):
                with crossent.patch():
                    assert ours()
            with crossent.patch():
                entered.wait(30)
                leave.wait(30) if number else None
                seen.append(ours())
        except BaseException as error:  # which a thread would keep to itself
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    entered.wait(30)
    threads[0].join(30)
    assert ours()  # three of four stand
    leave.set()
    for thread in threads:
        thread.join(30)
    assert (seen, errors) == ([True] * 4, [])
    assert not ours()


def test_backward_that_computes_again_is_reached():
    x = (SURE * 1.0).requires_grad_()
    with crossent.patch():
        checkpoint(F.cross_entropy, x, LABEL, use_reentrant=False).backward()
    assert x.grad[0, 0] < 0  # torch's gradient of a confident row is 0


# --- who else looks ---------------------------------------------------------------------------------------------------


def test_somebody_elses_function_stays_and_it_is_said():
    def theirs(*args, **kwargs):
        return TORCHS["cross_entropy"](*args, **kwargs)

    F.cross_entropy = theirs
    try:
        with pytest.warns(RuntimeWarning, match=r"functional.cross_entropy alone: .*theirs has taken its place"):
            handle = crossent.patch()
        assert F.cross_entropy is theirs
        assert F.binary_cross_entropy_with_logits is not TORCHS["binary_cross_entropy_with_logits"]
        handle.undo()
    finally:
        F.cross_entropy = TORCHS["cross_entropy"]


def test_somebody_who_wraps_ours_gets_torchs_afterwards():
    handle = crossent.patch()
    wrapped = F.cross_entropy
    F.cross_entropy = lambda *a, **k: wrapped(*a, **k)
    try:
        assert ours()
        handle.undo()
        assert not ours()
    finally:
        F.cross_entropy = TORCHS["cross_entropy"]


def test_subclasses_and_modes_see_our_function():
    class Labelled(torch.Tensor):
        seen: list = []  # noqa: RUF012

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    with crossent.patch(), torch.device("cpu"):
        loss = F.cross_entropy(SURE.as_subclass(Labelled), LABEL)
    assert crossent.cross_entropy in Labelled.seen
    assert isinstance(loss, Labelled)
    assert loss.item() == pytest.approx(RIGHT, rel=1e-6)


def test_it_pickles_as_torchs_function():
    with crossent.patch():
        data = pickle.dumps(F.cross_entropy)
        assert pickle.loads(data) is F.cross_entropy
    assert pickle.loads(data) is TORCHS["cross_entropy"]


def test_distributions_go_on(importer):
    bernoulli = torch.distributions.Bernoulli(logits=torch.tensor([0.3, -2.0]))
    expected = bernoulli.log_prob(torch.tensor([1.0, 0.0]))
    with crossent.patch():
        torch.testing.assert_close(bernoulli.log_prob(torch.tensor([1.0, 0.0])), expected)


def test_errors_are_torchs_kinds():
    with crossent.patch():
        with pytest.raises(ValueError, match="reduction"):
            F.cross_entropy(SURE, LABEL, reduction="average")
        with pytest.raises(TypeError):
            F.cross_entropy(SURE, LABEL, no_such_argument=1)


# --- compilers --------------------------------------------------------------------------------------------------------


def test_a_compiled_function_follows():
    """Whether it was compiled before, or while a patch stands: each state is compiled once and remembered."""
    graphs = []

    def backend(graph, _):
        graphs.append(" ".join(str(node.target) for node in graph.graph.nodes))
        return graph

    for start in ("torch's", "ours"):
        torch._dynamo.reset()
        graphs.clear()
        module = nn.CrossEntropyLoss()
        compiled = torch.compile(
            lambda x, y, module=module: module(x, y) + F.cross_entropy(x, y), backend=backend, fullgraph=True
        )
        if start == "ours":
            with crossent.patch():
                assert compiled(SURE, LABEL).item() == pytest.approx(2 * RIGHT, rel=1e-6)
        assert compiled(SURE, LABEL).item() == 0
        with crossent.patch(), crossent.patch():
            assert compiled(SURE, LABEL).item() == pytest.approx(2 * RIGHT, rel=1e-6)
        assert compiled(SURE, LABEL).item() == 0
        assert len(graphs) == 2
        assert sorted("crossent" in graph for graph in graphs) == [False, True], graphs


FRESH = """
import sys, torch, torch.nn.functional as F
theirs = F.cross_entropy
import crossent.models.patching as patching
assert F.cross_entropy is theirs and not patching.patched_places()
assert not {"transformers", "click", "rich"} & set(sys.modules)
patching.patch()
graphs = []
def backend(graph, inputs):
    graphs.append(" ".join(str(node.target) for node in graph.graph.nodes))
    return graph
loss = torch.compile(torch.nn.CrossEntropyLoss(), backend=backend, fullgraph=True)
x, y = torch.tensor([[20.0, 0.0]], requires_grad=True), torch.tensor([0])
loss(x, y).backward()
assert "crossent" in graphs[0], graphs
assert x.grad[0, 0] < 0, x.grad
"""


def test_a_fresh_process_patches_nothing_by_itself_and_may_compile_first_of_all():
    """The compiler looks up the names of torch's functions once: it must not find ours there, and take them for torch's."""
    subprocess.run([sys.executable, "-c", FRESH], check=True)


def test_compiled_training_has_right_gradients():
    x = (SURE * 1.0).requires_grad_()
    with crossent.patch():
        torch.compile(nn.CrossEntropyLoss(), backend="aot_eager", fullgraph=True)(x, LABEL).backward()
    torch.testing.assert_close(x.grad, torch.tensor([[-RIGHT, RIGHT]]))


# --- what it says -----------------------------------------------------------------------------------------------------


def test_the_handle_and_info_say_what_is_reached(importer):
    from click.testing import CliRunner

    from crossent.tools.cli import main

    importer("somewhere_else")
    assert patched_places() == {}
    assert "torch's own: crossent.patch() was not called" in CliRunner().invoke(main, ["info"]).output
    with crossent.patch() as handle:
        assert set(patched_places()) == set(TORCHS)
        assert {"torch.nn.functional", "somewhere_else"} <= set(patched_places()["cross_entropy"])
        assert "cross_entropy in torch.nn.functional" in repr(handle)
        assert "somewhere_else" in repr(handle)
        said = CliRunner().invoke(main, ["info"]).output
        line = next(line for line in said.splitlines() if line.split()[:1] == ["cross_entropy"])
        assert "crossent's, by crossent.patch()" in line
        assert "torch.nn.functional" in line
        assert "somewhere_else" in line
    assert repr(handle) == "<crossent.patch, taken back>"
