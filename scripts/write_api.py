"""Write ``tests/api.txt``, the public signatures as they are agreed on, one parameter a line: ``make api``.

A test holds the signatures to that file. This script refuses a change that the Unreleased section of ``CHANGELOG.md`` does not
name in backticks, so that nobody who uses the package meets a change that was not announced.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

ROOT = Path(__file__).resolve().parents[1]
FROZEN = ROOT / "tests" / "api.txt"
CHANGELOG = ROOT / "CHANGELOG.md"
SPECIAL = ("__enter__", "__exit__")  # the methods with underscores that people use
NOT_PROMISED = ("extra_repr", "default")  # what a module says of itself

Signatures = dict[str, list[str]]


def api() -> Signatures:
    """Collect the lines of every public function and class, of their methods, and of the objects that the functions return."""
    import crossent
    from crossent.models import huggingface

    public = {name: getattr(crossent, name) for name in sorted(crossent.__all__) if name != "__version__"}
    public |= {f"models.huggingface.{name}": getattr(huggingface, name) for name in sorted(huggingface.__all__)}
    results = [_hints(value).get("return") for value in public.values() if inspect.isfunction(value)]
    public |= {each.__name__: each for each in results if inspect.isclass(each) and _is_ours(each)}
    signatures: Signatures = {}
    for name, value in sorted(public.items()):
        if isinstance(value, dict):
            signatures[name] = [f"{key}: {each.__name__}" for key, each in sorted(value.items())]
        elif not inspect.isclass(value):
            signatures[name] = list(_parameters(value))
        else:
            signatures[name] = [*_bases(value, crossent.__all__), *_attributes(value)]
            for member in _members(value):
                signatures[f"{name}.{member}"] = list(_member(inspect.getattr_static(value, member)))
    return signatures


def _is_ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).split(".")[0] == "crossent"


def _bases(owner: type, public: list[str]) -> Iterator[str]:
    """List what ``isinstance`` says of a class: public ones of ours, torch's losses, tuples."""
    for base in owner.__mro__[1:-1]:
        package = base.__module__.split(".")[0]
        if base.__name__ in public or (package in ("torch", "builtins") and not base.__name__.startswith("_")):
            yield f"is a {package}.{base.__name__}"


def _attributes(owner: type) -> Iterator[str]:
    """List what makes an object, which are its fields where it is a record."""
    if issubclass(owner, tuple):
        for name in owner._fields:  # type: ignore[attr-defined]
            yield f"{name}: {_annotation(owner, name, Any)}"
    elif dataclasses.is_dataclass(owner) or (owner.__init__.__name__ == "__init__" and _is_ours(owner.__init__)):
        yield from (line for line in _parameters(owner.__init__) if not line.startswith("->"))


def _members(owner: type) -> Iterator[str]:
    """Name the public methods and properties that are ours."""
    for name in sorted({name for base in owner.__mro__ if _is_ours(base) for name in vars(base)}):
        value = inspect.getattr_static(owner, name)
        described = isinstance(value, (property, staticmethod, classmethod, types.FunctionType))
        if described and (name in SPECIAL or not name.startswith("_")) and name not in NOT_PROMISED:
            yield name


def _member(value: Any) -> Iterator[str]:
    if isinstance(value, property):
        yield f"-> {_annotation(value.fget, 'return', Any)}"
    else:
        yield from _parameters(value.__func__ if isinstance(value, (staticmethod, classmethod)) else value)


def _parameters(function: Any) -> Iterator[str]:
    """Write a line for each parameter, and for each option behind ``**options: Unpack[...]``."""
    hints, star = _hints(function), False
    for name, parameter in inspect.signature(function).parameters.items():
        if name in ("self", "cls"):
            continue
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD) and not star:
            star = True
            yield "*"
        options = typing.get_args(hints.get(name))
        if parameter.kind is parameter.VAR_KEYWORD and options and hasattr(options[0], "__total__"):
            yield from (
                f"{each}: {_annotation(options[0], each, Any)}, optional" for each in sorted(_hints(options[0]))
            )
        else:
            mark = {parameter.VAR_KEYWORD: "**", parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
            default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
            yield f"{mark}{name}: {_annotation(function, name, hints.get(name, Any))}{default}"
    yield f"-> {_annotation(function, 'return', hints.get('return', Any))}"


def _hints(value: Any) -> dict[str, Any]:
    """Resolve annotations; some stay strings where their type comes from a package that only plots need."""
    try:
        return typing.get_type_hints(value)
    except NameError:
        return dict(value.__annotations__)


def _annotation(owner: Any, name: str, otherwise: Any) -> str:
    """Write an annotation as the source does, which no version of Python or NumPy changes, or else the type that it is."""
    bases = owner.__mro__ if inspect.isclass(owner) else (owner,)
    for base in bases:
        if name in (getattr(base, "__annotations__", None) or {}):
            annotation = base.__annotations__[name]
            annotation = getattr(annotation, "__forward_arg__", annotation)
            return _of_type(annotation).replace("'", '"')
    return _of_type(otherwise)


def _of_type(hint: Any) -> str:
    """Write a type in the same way for every version of Python."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, str) or hint is ...:
        return "..." if hint is ... else hint
    if hint is None or hint is type(None):
        return "None"
    if isinstance(hint, list):
        return f"[{', '.join(map(_of_type, hint))}]"
    if origin is Union or origin is types.UnionType:
        return " | ".join(map(_of_type, arguments))
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin is not None:
        return f"{_of_type(origin)}[{', '.join(map(_of_type, arguments))}]"
    if getattr(hint, "__module__", None) == "torch" and hint.__name__ in ("dtype", "device"):
        return f"torch.{hint.__name__}"  # as annotations in strings have it
    return getattr(hint, "__name__", None) or str(hint).rpartition(".")[2]


def text(signatures: Signatures) -> str:
    """Write all signatures, each under its name."""
    blocks = ("\n".join([name, *(f"    {line}" for line in lines)]) for name, lines in signatures.items())
    return "\n\n".join(blocks) + "\n"


def read(frozen: str) -> Signatures:
    """Read what :func:`text` wrote."""
    signatures: Signatures = {}
    for block in filter(None, frozen.strip().split("\n\n")):
        name, *lines = block.split("\n")
        signatures[name] = [line.strip() for line in lines]
    return signatures


def changed(before: Signatures, after: Signatures) -> dict[str, str]:
    """List what is to be told: each public name that came or went, and each parameter that did or that changed."""
    told: dict[str, str] = {}
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            owner = name.rpartition(".")[0]
            if (owner in before and owner not in after) or (owner in after and owner not in before):
                continue  # a class that came or went is told once
            told[name.rpartition(".")[2]] = f"{name} {'is new' if name in after else 'is gone'}"
            continue
        for line in sorted(set(before[name]) ^ set(after[name])):
            parameter = re.match(r"\**(\w+):", line)
            word = parameter[1] if parameter else name.rpartition(".")[2]
            told[word] = f"{name} {'now has' if line in after[name] else 'had'} `{line}`"
        if before[name] != after[name] and set(before[name]) == set(after[name]):
            told[name.rpartition(".")[2]] = f"{name} has its parameters in another order"
    return told


def untold(words: dict[str, str], changelog: str) -> dict[str, str]:
    """Leave those changes that no backticks of the Unreleased section name: `defer`, `shard=` or `cross_entropy(shard=)`."""
    section = re.search(r"^## \[?Unreleased\]?[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", section[1] if section else ""))))
    return {word: change for word, change in words.items() if word not in named}


def main() -> None:
    """Write the file, or say which changes the changelog has to name first."""
    signatures = api()
    before = read(FROZEN.read_text("utf-8")) if FROZEN.exists() else signatures
    missing = untold(changed(before, signatures), CHANGELOG.read_text("utf-8"))
    if missing:
        lines = [f"  `{word}`: {change}" for word, change in missing.items()]
        sys.exit("\n".join(["CHANGELOG.md does not name these under Unreleased, in backticks:", *lines]))
    FROZEN.write_text(text(signatures), encoding="utf-8")


if __name__ == "__main__":
    main()
