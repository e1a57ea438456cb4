"""The record of numbers, and what is written beside it: signatures, the tuples of their arguments, and which code knows which."""

import ast
import inspect
import textwrap

import cases
import pytest
import short
import torch

import crossent
from crossent.core.settings import TORCHS, BinarySettings, LogitOptions, Settings, names_of
from crossent.core.target import SPECIAL
from crossent.impl import load
from crossent.impl.protocol import Implementation

X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 2])
IMPLEMENTATIONS = [name for name, reason in crossent.implementations().items() if reason is None]


@pytest.mark.parametrize(
    ("function", "names", "file"),
    [
        (crossent.cross_entropy, SPECIAL["cross_entropy"], "softmax.py"),
        (crossent.binary_cross_entropy_with_logits, BinarySettings.names, "binary.py"),
    ],
)
def test_a_signature_hands_over_what_the_record_has(function, names, file):
    """Arguments are matched to names by their order in two tuples, which no other test would see exchanged at a default."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    signature = (*inspect.signature(function).parameters,)
    for tuple_, expected in (("own", names), ("given", signature)):
        assigned = (node for node in ast.walk(tree) if isinstance(node, ast.Assign) and node.targets[0].id == tuple_)
        written = tuple(element.id for element in next(assigned).value.elts)
        assert written == expected, f"`{tuple_}` in src/crossent/losses/{file} must be {expected}"
    assert {*names} <= {*signature}, f"the signature in src/crossent/losses/{file}"


def test_every_number_is_an_option_with_words():
    options, internal = names_of(LogitOptions), {"penalty", "all_classes"}
    missing = {*Settings.names} - {*options, *TORCHS, *internal}
    assert not missing, f"LogitOptions in core/settings.py lacks {missing}"


LOOKED_AT = {"input", "target", "weight", "ignore_index", "label_smoothing", "reduction"}
OTHERS = [True, False, 0, 1, 0.5, 1.5, "1", torch.tensor(1.0), torch.tensor(0.0), torch.tensor([1.0, 2.0]), [], None]
ASKED = [
    (function, way, name)
    for function, way in (
        (crossent.cross_entropy, short.cross_entropy),
        (crossent.binary_cross_entropy_with_logits, short.binary_cross_entropy),
    )
    for name in inspect.signature(function).parameters
]


@pytest.mark.skipif("native" not in IMPLEMENTATIONS, reason="the compiled kernels are not installed")
@pytest.mark.parametrize(("function", "way", "name"), ASKED)
def test_only_a_default_of_the_same_type_takes_the_short_way(function, way, name):
    """True is not 1.0, and a number of another type, a tensor, a list is looked at in Python, which takes or refuses it."""
    default = inspect.signature(function).parameters[name].default
    binary = function is not crossent.cross_entropy
    given = {"input": X, "target": X.sigmoid() if binary else Y}
    assert way(**given) is not None
    for other in OTHERS:
        same = type(other) is type(default) and other == default
        right_kind = not binary and name in LOOKED_AT and type(other) is type(default)
        allowed = right_kind and other not in (1.5, "1")
        assert (way(**given | {name: other}) is not None) == (same or allowed), other
    if isinstance(default, float):  # another object of the same value, as a caller writes it
        assert way(**given | {name: float(str(default))}) is not None


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("number", sorted({*cases.NUMBER_VALUES, "penalty"}))
def test_a_number_that_an_implementation_does_not_list_is_refused(name, number, monkeypatch):
    """The record minus what is listed is what a new number is to each of them."""
    option = {number: crossent.Focal() if number == "penalty" else cases.NUMBER_VALUES[number]}
    implementation = load(name)
    if implementation.reason_against(X) is None and number in implementation.numbers:
        crossent.cross_entropy(X, Y, impl=name, **option)
        assert crossent.choose_implementation(X, name, target=Y, **option) == name
    monkeypatch.setattr(implementation, "numbers", implementation.numbers - {number})
    with pytest.raises(RuntimeError, match=number if name == "eager" else "cannot run here"):
        crossent.cross_entropy(X, Y, impl=name, **option)
    if name == "eager":
        monkeypatch.setattr("crossent.impl._LOADED", {"eager": implementation})
        with pytest.raises(RuntimeError, match=f"no implementation can run here: .* the number {number}"):
            crossent.cross_entropy(X, Y, **option)
    else:
        assert crossent.choose_implementation(X, target=Y, **option) != name


@pytest.mark.parametrize("number", BinarySettings.names)
def test_a_binary_number_that_an_implementation_does_not_list_is_refused(number, monkeypatch):
    option = {"ignore_index": 1.0, "label_smoothing": 0.25, "penalty": crossent.Focal()}[number]
    eager = load("eager")
    monkeypatch.setattr(eager, "binary_numbers", eager.binary_numbers - {number})
    with pytest.raises(RuntimeError, match=f"does not know the number {number}"):
        crossent.binary_cross_entropy_with_logits(X, X.sigmoid(), impl="eager", **{number: option})


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_what_is_listed_is_a_number_of_the_record(name):
    implementation = load(name)
    assert implementation.numbers <= {*Settings.names}
    assert implementation.binary_numbers <= {*BinarySettings.names}


def test_no_implementation_runs_ahead_of_the_formulas(monkeypatch):
    """They are what is differentiated in its place, and would ignore a number that only it knows."""
    eager = load("eager")
    monkeypatch.setattr("crossent.impl._LOADED", {"eager": eager})
    ahead = type("Ahead", (Implementation,), {"name": "ahead", "numbers": frozenset({"unheard_of"})})()
    with pytest.raises(ValueError, match="ahead has numbers that impl/eager does not list: unheard_of"):
        crossent.impl.register(ahead)
