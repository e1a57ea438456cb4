"""What ``crossent.check``, ``score`` and ``explain`` share: how they show, name and read their options."""

import inspect
import types
import typing

import pytest

import crossent

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
