"""Types at run time: every public annotation resolves, for ``typing``, ``inspect``, pydantic, jsonargparse and fastai."""

import functools
import inspect
import re
import typing
from pathlib import Path

import pytest
import torch

import crossent

PUBLIC = {name: getattr(crossent, name) for name in crossent.__all__ if callable(getattr(crossent, name))}
MODULES = {name: each for name, each in PUBLIC.items() if inspect.isclass(each) and issubclass(each, torch.nn.Module)}
FUNCTIONS = {name: each for name, each in PUBLIC.items() if inspect.isfunction(each)}
X, Y, YES = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), torch.eye(4)[:, :3]


def module(name):
    return MODULES[name](5, 3) if name == "LinearCrossEntropyLoss" else MODULES[name]()


def methods():
    """The functions that a person can call: public functions, and what public classes have beside plots."""
    yield from FUNCTIONS.items()
    for name, each in PUBLIC.items():
        if inspect.isclass(each):
            yield f"{name}()", each.__init__
            for of, member in inspect.getmembers(each, inspect.isfunction):
                if not of.startswith("_") and member.__module__.startswith("crossent") and of != "plot":
                    yield f"{name}.{of}", member


METHODS = dict(methods())


def test_type_checkers_read_a_file_that_uses_every_public_name():
    text = (Path(__file__).parent / "typing/user.py").read_text("utf-8")
    assert [name for name in crossent.__all__ if not re.search(rf"crossent\.{name}\b", text)] == []


def test_forward_is_among_them():
    assert {f"{name}.forward" for name in MODULES} <= set(METHODS)
    assert {"linear_cross_entropy", "focal_loss", "explain", "check"} <= set(METHODS)


@pytest.mark.parametrize("name", PUBLIC)
def test_annotations_of_public_names_resolve(name):
    typing.get_type_hints(PUBLIC[name])
    assert not any(isinstance(p.annotation, str) for p in _parameters(PUBLIC[name]))


@pytest.mark.parametrize("name", METHODS)
def test_annotations_of_what_can_be_called_resolve(name):
    hints = typing.get_type_hints(METHODS[name])
    assert not any(isinstance(hint, str) for hint in hints.values())
    assert not any(isinstance(p.annotation, str) for p in _parameters(METHODS[name]))


def _parameters(function):
    return inspect.signature(function, eval_str=True).parameters.values()


@pytest.mark.parametrize("name", MODULES)
def test_annotations_of_module_instances_resolve(name):
    """An instance has no globals in which a string could be looked up."""
    typing.get_type_hints(module(name))
    assert not any(isinstance(hint, str) for hint in getattr(module(name), "__annotations__", {}).values())


@pytest.mark.parametrize("name", MODULES)
def test_a_module_declares_each_option_as_its_function_takes_it(name):
    """Without a declaration an attribute of a module is a Tensor or a Module to an editor, and assigning 0.1 is an error."""
    declared, takes = typing.get_type_hints(MODULES[name]), typing.get_type_hints(MODULES[name].takes)
    takes = {
        option: takes[option] for option in takes if option not in ("reduction", "options")
    }  # torch's modules declare these
    assert {option: declared.get(option) for option in takes} == takes


@pytest.mark.parametrize("name", MODULES)
def test_fastais_base_loss(name):
    """fastai 2.8's BaseLoss makes the loss and becomes its wrapper, annotations included; fastcore reads them off that."""

    class BaseLoss:
        def __init__(self, loss_class, *args, **kwargs):
            self.func = loss_class(*args, **kwargs)
            functools.update_wrapper(self, self.func)

        def __call__(self, *args, **kwargs):
            return self.func.__call__(*args, **kwargs)

    loss = BaseLoss(MODULES[name], *((5, 3) if name == "LinearCrossEntropyLoss" else ()))
    typing.get_type_hints(loss)
    inputs = {
        "LinearCrossEntropyLoss": (torch.zeros(4, 5), Y),
        "BCEWithLogitsLoss": (X, YES),
        "SigmoidFocalLoss": (X, YES),
        "MultilabelCrossEntropyLoss": (X, YES),
        "DistillationLoss": (X, X, Y),
    }
    assert torch.equal(loss(*inputs.get(name, (X, Y))), loss.func(*inputs.get(name, (X, Y))))


# --- pydantic ---------------------------------------------------------------------------------------------------------


def validated(function):
    pydantic = pytest.importorskip("pydantic")
    return pydantic.validate_call(config=pydantic.ConfigDict(arbitrary_types_allowed=True))(function)


@pytest.mark.parametrize(
    "name", [*FUNCTIONS, *(f"{name}()" for name in MODULES), *(f"{name}.forward" for name in MODULES)]
)
def test_pydantic_reads_every_signature(name):
    assert (
        inspect.signature(validated(METHODS[name])).parameters.keys()
        == inspect.signature(METHODS[name]).parameters.keys()
    )


def test_pydantic_validates_a_call():
    pydantic = pytest.importorskip("pydantic")
    checked = validated(crossent.focal_loss)
    assert torch.equal(checked(X, Y, label_smoothing="0.25"), crossent.focal_loss(X, Y, label_smoothing=0.25))
    penalty = crossent.GCE(0.5)
    assert torch.equal(
        validated(crossent.cross_entropy)(X, Y, penalty=penalty), crossent.cross_entropy(X, Y, penalty=penalty)
    )
    head = torch.ones(3, 5)
    assert torch.equal(
        validated(crossent.linear_cross_entropy)(torch.ones(4, 5), head, Y, z_loss=0.5),
        crossent.linear_cross_entropy(torch.ones(4, 5), head, Y, z_loss=0.5),
    )
    for wrong in ({"gamma": "much"}, {"empty": "one"}, {"temperature": X}):
        with pytest.raises(pydantic.ValidationError):
            checked(X, Y, **wrong)


# --- jsonargparse -----------------------------------------------------------------------------------------------------


def options_of(parser):
    return {action.dest for action in parser._actions}


@pytest.mark.parametrize("name", PUBLIC)
def test_jsonargparse_reads_every_signature(name):
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    if inspect.isclass(PUBLIC[name]):
        parser.add_class_arguments(PUBLIC[name], "it")
    else:
        parser.add_function_arguments(PUBLIC[name], "it")
    for parameter in _parameters(PUBLIC[name]):
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            assert f"it.{parameter.name}" in options_of(parser)


def test_jsonargparse_makes_a_loss_of_a_configuration():
    """As Lightning's command line does: a subclass by its name, with options behind the keywords."""
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(torch.nn.CrossEntropyLoss, "loss")
    made = [
        "--loss=crossent.CrossEntropyLoss", "--loss.ignore_index=3", "--loss.temperature=2", "--loss.empty=zero",
        "--loss.penalty=crossent.Focal", "--loss.penalty.gamma=1.5",
    ]  # fmt: skip
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    loss = instantiate(parser.parse_args(made)).loss
    expected = crossent.CrossEntropyLoss(ignore_index=3, temperature=2.0, empty="zero", penalty=crossent.Focal(1.5))
    assert repr(loss) == repr(expected)
    with pytest.raises(jsonargparse.ArgumentError):
        parser.parse_args([*made, "--loss.temperature=warm"])
