"""The door for tensors of other kinds: subclasses, tracers' proxies and function modes see a call before it does anything."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def overridable(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let an argument that has ``__torch_function__`` answer for a function, as for torch's own functions."""

    @wraps(function)
    def asked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        given = (*args, *kwargs.values())
        if has_torch_function(given):
            result: _Result = handle_torch_function(asked, given, *args, **kwargs)
            return result
        return function(*args, **kwargs)

    return asked


def overridable_by_others(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let an argument that is no tensor, but stands for one, answer for a function.

    Subclasses of tensors are not asked: torch has them convert what a function returns, and they cannot convert a named tuple.
    """

    @wraps(function)
    def asked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        others = [x for x in (*args, *kwargs.values()) if _stands_for_a_tensor(type(x))]
        if others:
            result: _Result = handle_torch_function(asked, others, *args, **kwargs)
            return result
        return function(*args, **kwargs)

    return asked


def _stands_for_a_tensor(kind: type) -> bool:
    return hasattr(kind, "__torch_function__") and not issubclass(kind, Tensor)
