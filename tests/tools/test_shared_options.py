"""What ``crossent.check``, ``score`` and ``explain`` share: how they show, name and read their options."""

import inspect
import json
import subprocess
import sys
import types
import typing

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import crossent
from crossent import reference
from crossent.tools.arrays import read_array, read_rows
from crossent.tools.cli import main
from crossent.tools.errors import FileError
from crossent.tools.shared_options import OptionError

TOOLS = (crossent.check, crossent.score, crossent.explain)
each_tool = pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)


@each_tool
def test_the_signature_is_written_out(tool):
    assert isinstance(tool, types.FunctionType)
    parameters = inspect.signature(tool, eval_str=True).parameters
    assert set(typing.get_type_hints(tool)) == {*parameters, "return"}
    for name, parameter in parameters.items():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        assert f"        {name}: " in tool.__doc__


@pytest.mark.parametrize(
    ("tool", "misspelt", "meant"),
    [
        (crossent.check, "label_smooting", "label_smoothing"),
        (crossent.check, "targets", "target"),
        (crossent.score, "label_smooting", "label_smoothing"),
        (crossent.score, "class_name", "class_names"),
        (crossent.explain, "class_name", "class_names"),
        (crossent.explain, "loss", "losses"),
    ],
)
def test_a_misspelt_argument_is_refused_with_the_one_meant(tool, misspelt, meant):
    with pytest.raises(TypeError) as caught:
        tool([[1.0, 0.0]], [0], **{misspelt: 1})
    assert str(caught.value) == f"there is no argument {misspelt!r}; did you mean {meant}?"


@each_tool
def test_an_argument_like_no_other_is_refused_with_those_there_are(tool):
    with pytest.raises(TypeError, match=rf"there is no argument 'zzz'; {tool.__name__} takes logits, "):
        tool([[1.0, 0.0]], [0], zzz=1)


# --- one option, one meaning, one refusal ------------------------------------------------------------------------------

X, Y = np.random.default_rng(0).normal(size=(6, 3)), np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("tool", "args", "shape", "axes"),
    [
        (crossent.check, (X, Y), "(6, 3)", 2),
        (crossent.score, (X, Y), "(6, 3)", 2),
        (crossent.explain, (X[0], 0), "(3,)", 1),
    ],
    ids=["check", "score", "explain"],
)
def test_dim_is_taken_by_all_and_refused_in_the_same_words(tool, args, shape, axes):
    assert str(tool(*args, dim=-1)) == str(tool(*args, dim=axes - 1)) == str(tool(*args))
    with pytest.raises(OptionError) as caught:
        tool(*args, dim=5)
    assert str(caught.value) == f"dim must lie in [{-axes}, {axes}) for logits of shape {shape}, got 5"


def test_dim_finds_the_classes():
    x, y = X.reshape(2, 3, 3), Y.reshape(2, 3)
    assert crossent.score(x, y, dim=2).numbers == crossent.score(x, y, class_dim=2).numbers
    assert crossent.score(x, y, dim=2).numbers["nll_nats_mean"] == crossent.score(X, Y).numbers["nll_nats_mean"]
    with pytest.raises(OptionError, match=r"^dim must lie between 1 and 2"):
        crossent.score(x, y, dim=0)
    with pytest.raises(OptionError, match="class_dim is the same as dim"):
        crossent.score(x, y, dim=2, class_dim=2)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"task": "ordinal"}, "task must be one of multiclass, binary, multilabel, lm, got 'ordinal'"),
        ({"label_smoothing": 1.5}, "label_smoothing must lie in [0, 1], got 1.5"),
        ({"weight": [1.0, 2.0]}, "weight has 2 numbers, but logits has 3 classes"),
        ({"weight": [[1.0, 2.0, 3.0]]}, "weight must have shape (C,), got (1, 3)"),
        (
            {"weight": [1.0, -1.0, 1.0]},
            "weight must hold finite numbers, none negative, got [1.0, -1.0, 1.0]: 0 leaves",
        ),
    ],
)
def test_check_and_score_refuse_in_the_same_words(options, problem):
    for tool in (crossent.check, crossent.score):
        with pytest.raises(OptionError) as caught:
            tool(X, Y, **options)
        assert str(caught.value).startswith(problem)


def test_the_class_axis_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("preds.npz", logits=X, labels=Y)
    for command in (("check",), ("score",), ("explain", "--row", "0")):
        plain, last, beyond = (
            CliRunner().invoke(main, [*command, "preds.npz", *flag])
            for flag in ((), ("--class-dim", "-1"), ("--class-dim", "5"))
        )
        assert (plain.exit_code, plain.output) == (last.exit_code, last.output)
        assert beyond.exit_code == 2
        assert "must lie in [-2, 2) for logits of shape (6, 3), got 5" in " ".join(beyond.output.split())
        assert CliRunner().invoke(main, [*command, "preds.npz", "--dim", "-1"]).output == plain.output


def test_a_shared_option_has_one_flag():
    of = {name: {o.name: o for o in main.commands[name].params} for name in ("check", "score", "explain")}
    names = {"dim": "class_dim"}
    for option in ("task", "dim", "weight", "label_smoothing", "shift", "class_names", "ignore_index", "input"):
        flag = names.get(option, option)
        for tool in TOOLS:
            assert (option in inspect.signature(tool).parameters) == (flag in of[tool.__name__])
        assert len({tuple(options[flag].opts) for options in of.values() if flag in options}) == 1


def test_an_ignored_label_counts_for_nothing_in_every_tool(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("preds.npz", logits=X, labels=Y)
    assert crossent.score(X, Y, ignore_index=2).numbers["ignored"] == 2
    assert crossent.check(X, np.full(6, 2), ignore_index=2)[0].title == "every target is ignored"
    with pytest.raises(ValueError, match=r"^target must be a class, got 2: an ignored row has no loss$"):
        crossent.explain(X[2], 2, ignore_index=2)
    row = ("explain", "preds.npz", "--ignore-index", "2", "--json", "--row")
    prior = json.loads(CliRunner().invoke(main, [*row, "0"]).stdout)["references"]["prior_entropy"]
    assert prior == pytest.approx(reference.prior_entropy([2, 2, 0]))  # what is ignored is not counted either
    refused = CliRunner().invoke(main, [*row, "2"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "an ignored row has no loss" in refused.stderr


def test_probabilities_are_taken_for_what_they_are():
    p, numbers = reference.softmax(X), crossent.score(X, Y).numbers
    gradient = crossent.explain(X[0], 0, "ce")["ce"].gradient
    for kind, values in (("probs", p), ("logprobs", np.log(p))):
        assert crossent.score(values, Y, input=kind).numbers["nll_nats_mean"] == pytest.approx(numbers["nll_nats_mean"])
        assert crossent.explain(values[0], 0, "ce", input=kind)["ce"].gradient == pytest.approx(gradient)
    for tool, args in ((crossent.score, (X, Y)), (crossent.explain, (X[0], 0))):
        with pytest.raises(OptionError, match=r"^input must be one of logits, probs, logprobs, got 'odds'$"):
            tool(*args, input="odds")
    with pytest.raises(OptionError, match=r"^input is probs, but the values go from -1 to 0\.5$"):
        crossent.explain([-1.0, 0.5], 0, input="probs")
    typed = ("explain", "--logits", ".1,.7,.2", "--input", "probs", "--target", "0", "--losses", "ce", "--json")
    (ce,) = json.loads(CliRunner().invoke(main, typed).stdout)["losses"]
    assert ce["gradient"] == pytest.approx([-0.9, 0.7, 0.2])
    refused = CliRunner().invoke(main, ["explain", "--logits", "-1,2", "--input", "probs", "--target", "0"])
    assert refused.exit_code == 2
    assert "Invalid value for '--input': is probs, but" in refused.stderr


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [X.tolist(), X, torch.tensor(X, requires_grad=True), read_rows("logits", X)],
    ids=lambda v: type(v).__name__,
)
def test_values_come_as_lists_arrays_tensors_or_tables(values):
    table = read_rows("logits", values)
    np.testing.assert_array_equal(table.rows(0, 99), X)
    assert (table.shape, table.dtype, len(table)) == (X.shape, "float64", 6)


def test_a_narrow_tensor_keeps_the_name_of_its_dtype():
    table = read_rows("logits", torch.ones(2, 3, dtype=torch.bfloat16))
    assert (table.dtype, table.rows(0, 2).dtype) == ("bfloat16", np.float32)
    assert read_rows("labels", 3).shape == (1,)


@pytest.mark.parametrize("values", [[["a"]], np.ones(2, complex), [None]])
def test_what_is_no_number_is_refused(values):
    for kind in (FileError, TypeError):  # a file's words, and the type that a wrong argument has
        with pytest.raises(kind, match=r"^logits: holds .*, not real numbers$"):
            read_array("logits", values)


def test_class_weights_come_as_tensors_too():
    expected = crossent.score(X, Y, weight=[1.0, 2.0, 0.5]).to_dict()
    assert crossent.score(X, Y, weight=torch.tensor([1.0, 2.0, 0.5])).to_dict() == expected
    assert str(crossent.check(X, Y, weight=torch.tensor([1.0, 2.0, 0.5]))) == str(crossent.check(X, Y))


def test_no_tool_imports_torch_for_arrays():
    script = (
        "import sys, crossent\nx, y = [[2.0, 0.0], [0.0, 1.0]], [0, 1]\n"
        "crossent.check(x, y), crossent.score(x, y), crossent.explain(x[0], 0)\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
