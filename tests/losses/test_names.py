"""The record of numbers, and what is written beside it: signatures, the tuples of their arguments, and which code knows which."""

import ast
import inspect
import textwrap

import cases
import pytest
import torch

import crossent
from crossent.core.settings import TORCHS, BinarySettings, LogitOptions, Settings, names_of, written_defaults
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
    """Arguments are matched to names by their order in the tuple ``own``, which no other test would see exchanged at a default."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    own = next(node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and node.targets[0].id == "own")
    told = tuple(element.id for element in own.elts)
    assert told == names, f"`own` in src/crossent/losses/{file} must be {names}"
    assert {*names} <= {*inspect.signature(function).parameters}, f"the signature in src/crossent/losses/{file}"


def test_every_number_is_an_option_with_words():
    options, internal = names_of(LogitOptions), {"penalty", "all_classes"}
    missing = {*Settings.names} - {*options, *TORCHS, *internal}
    assert not missing, f"LogitOptions in core/settings.py lacks {missing}"


@pytest.mark.parametrize("name", [name for name in SPECIAL["cross_entropy"] if name in Settings.names])
def test_only_a_default_of_the_same_type_is_one(name):
    ask = written_defaults(SPECIAL["cross_entropy"], Settings.unsaid)
    usual = {each: Settings.unsaid.get(each) for each in SPECIAL["cross_entropy"]}
    assert ask(*usual.values())
    others = [True, 1, 0, 1.5, "1", torch.tensor(1.0), torch.tensor(0.0), torch.tensor([1.0, 2.0])]
    for other in [each for each in others if each is not False]:
        assert not ask(*(usual | {name: other}).values()), other


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
