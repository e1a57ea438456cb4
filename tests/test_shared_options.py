"""What ``crossent.check``, ``score`` and ``explain`` share: how they show, name and read their options."""

import inspect
import types
import typing

import numpy as np
import pytest
from click.testing import CliRunner

import crossent
from crossent.tools.cli import main
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
