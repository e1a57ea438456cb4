"""Write the reference of the site from the docstrings, for ``write_site.py``: a page for each room, the options, the command line.

An option that many functions take has its words in ``DOCUMENTATION`` of ``core/settings.py``. The pages show them once, and
every function that takes the option links to them. Docstrings are read from the sources, where ``{options}`` stands for them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from write_api import _annotation, _hints, _members

import crossent
from crossent import reference
from crossent.core.settings import DOCUMENTATION, default_of, names_of
from crossent.models import huggingface
from crossent.tools.check.findings import Findings
from crossent.tools.cli import main as command_line

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTH = 76  # of a signature, in characters
NARROW = 56  # of formulas side by side


class Room(NamedTuple):
    """A page of the reference: what it is called, what it says first, and the names on it."""

    title: str
    intro: str
    names: str


ROOMS = {
    "losses": Room(
        "Losses",
        "Functions and modules that take logits. [The losses](../losses.md) says of each when to use it.",
        """cross_entropy binary_cross_entropy_with_logits multilabel_cross_entropy focal_loss sigmoid_focal_loss CrossEntropyLoss
        BCEWithLogitsLoss MultilabelCrossEntropyLoss FocalLoss SigmoidFocalLoss""",
    ),
    "penalties": Room(
        "Penalties",
        "What a class costs by its probability. A loss takes one as `penalty=`. See [their pictures](../losses.md#the-penalty).",
        "Focal Poly1 GCE MAE SCE Taylor Asymmetric BalancedFocal Penalty BinaryPenalty",
    ),
    "linear": Room(
        "Heads without logits",
        "A linear head and its loss, a block of rows at a time. [The head without the logits](../linear.md) explains them.",
        "linear_cross_entropy linear_cross_entropy_stats linear_plan LinearPlan LinearCrossEntropyLoss",
    ),
    "statistics": Room(
        "Statistics and baselines",
        "What the same pass over the logits can tell, and the numbers to compare a loss with.",
        "cross_entropy_stats CrossEntropyStats class_weights expected_initial_loss prior_entropy double_softmax_floor",
    ),
    "distillation": Room(
        "Distillation and contrast",
        "Losses of two sets of logits or vectors. [Two sets of logits](../losses.md#two-sets-of-logits) shows their use.",
        "distillation_loss DistillationLoss Teacher contrastive_cross_entropy",
    ),
    "shards": Room(
        "Beyond one device",
        "Classes and rows that lie on several processes. [Beyond one device](../scale.md) says which one to take.",
        "VocabShard shared_denominator",
    ),
    "models": Room(
        "Models of other libraries",
        "Losses in the places where other libraries call theirs. See [deferred heads](../defer.md) and [with other\nlibraries]"
        "(../clients.md).",
        """defer undefer Logits patch unpatch Patch causal_lm_loss masked_lm_loss token_classification_loss
        sequence_classification_loss question_answering_loss semantic_segmentation_loss LOSS_MAPPING""",
    ),
    "tools": Room(
        "Tools",
        "What the commands `check`, `score` and `explain` do, in Python. [Explain, check, score](../tools.md) shows their use.",
        "check Findings Finding check_loss LossReport debug Debug score Report explain Explanation",
    ),
    "implementations": Room(
        "Implementations",
        "What computes a loss. [What runs where](../performance.md#what-runs-where) has the table.",
        "implementations choose_implementation",
    ),
}

RESULTS = (  # classes that functions return and nobody constructs, so that their signatures are not shown
    "LinearPlan", "CrossEntropyStats", "Logits", "Patch", "Findings", "Finding", "LossReport", "Debug", "Report", "Explanation",
)  # fmt: skip

OPTIONS = {
    "What PyTorch has too": "weight ignore_index reduction label_smoothing pos_weight size_average reduce",
    "What becomes of the rows": "sample_weight denominator empty out_dtype dim",
    "What the loss makes of the logits": """penalty temperature softcap softcap_after_temperature logit_bias margin class_mask
        z_loss mask""",
    "Distillation": "teacher_grad reverse",
    "Heads": "linear_bias options shift max_bytes max_rows",
    "Memory and implementation": "inplace_backward inplace_forward shard impl",
}
TAKERS = ("losses", "linear", "statistics", "distillation")  # the rooms whose functions and modules take options
FURTHER = {  # where a page says more than the words of the option
    "weight": "losses.md#class-weights", "ignore_index": "losses.md#ignored-rows", "reduction": "why-cross-entropy.md#which-mean",
    "label_smoothing": "losses.md#label-smoothing", "pos_weight": "losses.md#positive-weight",
    "sample_weight": "losses.md#sample-weights", "denominator": "scale.md#the-denominator", "penalty": "losses.md#the-penalty",
    "temperature": "losses.md#temperature", "softcap": "losses.md#soft-cap", "logit_bias": "losses.md#logit-bias",
    "margin": "losses.md#margin", "class_mask": "losses.md#class-mask", "z_loss": "losses.md#z-loss",
    "mask": "losses.md#binary-mask", "teacher_grad": "losses.md#distillation", "reverse": "losses.md#distillation",
    "shift": "linear.md", "max_bytes": "linear.md#how-the-blocks-work",
    "max_rows": "linear.md#how-the-blocks-work", "inplace_backward": "performance.md#in-place",
    "inplace_forward": "performance.md#in-place", "shard": "scale.md#shards-of-the-classes",
    "impl": "performance.md#what-runs-where",
}  # fmt: skip


def value_of(name: str) -> Any:
    """Return what a name of a room stands for: a public name, one of transformers', or what a public function returns."""
    if name in crossent.__all__:
        return getattr(crossent, name)
    if name in huggingface.__all__:
        return getattr(huggingface, name)
    if name == "Findings":
        return Findings
    results = (_hints(getattr(crossent, each)).get("return") for each in ("patch", "debug", "score"))
    return next(each for each in results if each.__name__ == name)


def pages() -> dict[str, str]:
    """Write every page of the reference, by its path on the site."""
    written = {f"reference/{page}.md": room_page(page, room) for page, room in ROOMS.items()}
    written["reference/index.md"] = index()
    written["reference/options.md"] = options_page()
    written["reference/specification.md"] = specification()
    written["reference/command-line.md"] = command_page()
    return written


def room_page(page: str, room: Room) -> str:
    """Write the page of a room."""
    parts = [f"# {room.title}", room.intro]
    for name in room.names.split():
        parts += entry(name, value_of(name), page)
    return joined(parts)


def index() -> str:
    """Write the list of all names, with the first sentence of each."""
    parts = [
        "# Reference",
        "Every public name, with its formula, shapes, dtypes and errors. [What is public, and how it changes](../api-policy.md)\n"
        "says what you can build on. Import names from `crossent` itself.",
    ]
    for page, room in ROOMS.items():
        rows = [f"| [`{name}`]({page}.md#{name}) | {summary(value_of(name), page)} |" for name in room.names.split()]
        parts += [f"## [{room.title}]({page}.md)", "\n".join(["| name | what it does |", "|---|---|", *rows])]
    parts += [
        "## The rest",
        "- [Options](options.md): what many of these take by keyword, described once.\n"
        "- [The command line](command-line.md): every command and option.\n"
        "- [The specification](specification.md): every loss and its gradient in NumPy, float64.",
    ]
    return joined(parts)


def options_page() -> str:
    """Write the words on every option, with its type, its default and who takes it."""
    takers: dict[str, list[str]] = {name: [] for name in DOCUMENTATION}
    types: dict[str, str] = {}
    for name in (
        name for page in TAKERS for name in ROOMS[page].names.split() if name not in ("LinearPlan", "Teacher")
    ):
        for option, (kind, _) in parameters(value_of(name)).items():
            if option in takers:
                takers[option].append(name)
                types.setdefault(option, kind)
    parts = [
        "# Options",
        "What many functions and modules take by keyword. What PyTorch does not have is off by default, and all of it combines. A\n"
        "function in which an option means something else describes it itself. In the words below `x` are the logits, `p` the\n"
        "probabilities, `t` the target, `c` the class weights and `C` the number of classes.",
    ]
    for title, names in OPTIONS.items():
        parts.append(f"## {title}")
        for name in names.split():
            default = default_of(name)
            shown = f'"{default}"' if isinstance(default, str) else str(default)
            further = f" [More]({'../' + FURTHER[name]})." if name in FURTHER else ""
            parts += [
                f"### `{name}` {{ #{name} }}",
                f"`{types[name]}`, by default `{shown}`",
                sentence(linked(" ".join(DOCUMENTATION[name].split()), "options")) + further,
                "Taken by " + ", ".join(f"[`{taker}`]({page_of(taker)}.md#{taker})" for taker in takers[name]) + ".",
            ]
    return joined(parts)


def specification() -> str:
    """Write what ``crossent.reference`` says, function by function."""
    parts = ["# The specification", *described(inspect.getdoc(reference) or "", "specification", {})]
    parts.append("[Read it as one file](../../src/crossent/reference.py).")
    for name, value in vars(reference).items():
        ours = getattr(value, "__module__", "") == reference.__name__ and not name.startswith("_")
        if ours and callable(value) and value.__doc__:
            parts += entry(name, value, "specification", prefix="crossent.reference.", members=False)
    return joined(parts)


# --- an entry ---------------------------------------------------------------------------------------------------------


def entry(name: str, value: Any, page: str, prefix: str = "", members: bool = True) -> Iterator[str]:
    """Write what is said of a name: its signature, its docstring, and its methods if it is a class."""
    if not prefix:
        prefix = "crossent." if name in crossent.__all__ else "crossent.models.huggingface." if page == "models" else ""
    yield f"## `{name}` {{ #{name} }}"
    if isinstance(value, dict):
        yield "A dictionary for transformers: the name of a loss, and the function that computes it."
        yield "\n".join(f"- `{key}`: [`{each.__name__}`](#{each.__name__})" for key, each in value.items())
        return
    if name not in RESULTS:
        yield signature(prefix + name, value)
    yield from described(docstring(value), page, parameters(value))
    if members and inspect.isclass(value):
        for member in own_members(value):
            attribute = inspect.getattr_static(value, member)
            function = attribute.fget if isinstance(attribute, property) else getattr(attribute, "__func__", attribute)
            yield f"### `{name}.{member}` {{ #{name}.{member} }}"
            if isinstance(attribute, property):
                yield f"`{_annotation(function, 'return', Any)}`, an attribute."
            else:
                yield signature(f"{member}", function)
            yield from described(docstring(function), page, parameters(function))


def own_members(owner: type) -> list[str]:
    """Name the public methods that say what they do, and stand in the source of a class or of a base with no entry of its own."""
    written = set()
    for base in owner.__mro__:
        if base.__module__.startswith("crossent.") and (base is owner or base.__name__ not in crossent.__all__):
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
            written |= {each.name for each in getattr(body, "body", []) if isinstance(each, ast.FunctionDef)}
    described_ones = [name for name in _members(owner) if name in written and not name.startswith("__")]
    return [name for name in described_ones if docstring_of_member(owner, name)]


def docstring_of_member(owner: type, name: str) -> str:
    """Return the docstring of a method or property."""
    attribute = inspect.getattr_static(owner, name)
    return docstring(attribute.fget if isinstance(attribute, property) else getattr(attribute, "__func__", attribute))


def docstring(value: Any) -> str:
    """Read a docstring from the source, where the words on options are not put in."""
    value = inspect.unwrap(value)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    except (OSError, TypeError):
        return ""  # made at run time, such as the repetition of another's
    body = tree.body[0]
    assert isinstance(body, (ast.FunctionDef, ast.ClassDef))
    return ast.get_docstring(body) or ""


def parameters(value: Any) -> dict[str, tuple[str, str]]:
    """List the type and the default of each parameter, field or option, as the source writes them."""
    function = value
    if inspect.isclass(value):
        if issubclass(value, tuple) or dataclasses.is_dataclass(value):
            return {name: (_annotation(value, name, Any), default) for name, default in fields_of(value).items()}
        function = value.__init__
    if not str(getattr(function, "__module__", "")).startswith("crossent"):
        return {}  # torch's own, or a dictionary
    hints, listed = _hints(inspect.unwrap(function)), {}
    for name, parameter in inspect.signature(function).parameters.items():
        unpacked = typing.get_args(hints.get(name))
        if name in ("self", "cls"):
            continue
        if parameter.kind is parameter.VAR_KEYWORD and unpacked and hasattr(unpacked[0], "__total__"):
            for option in names_of(unpacked[0]):
                listed[option] = (_annotation(unpacked[0], option, Any), repr(default_of(option)))
        else:
            default = "" if parameter.default is parameter.empty else repr(parameter.default)
            listed[name] = (_annotation(inspect.unwrap(function), name, Any), default)
    return listed


def fields_of(record: type) -> dict[str, str]:
    """List the fields of a record with their defaults, which are "" where there is none."""
    if dataclasses.is_dataclass(record):
        defaults = {each.name: each.default for each in dataclasses.fields(record)}
    else:
        defaults = dict.fromkeys(record._fields, dataclasses.MISSING) | record._field_defaults  # type: ignore[attr-defined]
    return {name: "" if value is dataclasses.MISSING else repr(value) for name, value in defaults.items()}


def signature(name: str, value: Any) -> str:
    """Write a signature with names and defaults; the types stand with the arguments."""
    function = value.__init__ if inspect.isclass(value) and not issubclass(value, tuple) else value
    ours = dataclasses.is_dataclass(value) or str(getattr(function, "__module__", "")).startswith("crossent")
    if inspect.isclass(value) and not issubclass(value, tuple) and not ours:
        return f"```python\n{name}\n```"
    parts, star = [], False
    for each in inspect.signature(function).parameters.values():
        if each.name in ("self", "cls", "_cls"):
            continue
        if each.kind is each.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        mark = {each.VAR_KEYWORD: "**", each.VAR_POSITIONAL: "*"}.get(each.kind, "")
        parts.append(f"{mark}{each.name}" + ("" if each.default is each.empty else f"={each.default!r}"))
    line = f"{name}({', '.join(parts)})"
    if len(line) > WIDTH:
        inner = textwrap.wrap(", ".join(parts), WIDTH - 4, initial_indent="    ", subsequent_indent="    ")
        line = "\n".join([f"{name}(", *inner, ")"])
    return f"```python\n{line}\n```"


# --- docstrings -------------------------------------------------------------------------------------------------------

SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):$")


def described(text: str, page: str, known: dict[str, tuple[str, str]]) -> Iterator[str]:
    """Write a docstring as Markdown: paragraphs, formulas, sections, examples."""
    shared = [] if page == "specification" else shared_options(text, known)
    lines = text.splitlines()
    while lines:
        block = [lines.pop(0)]
        if not block[0].strip():
            continue
        if SECTION.match(block[0]):
            while lines and (not lines[0].strip() or lines[0].startswith(" ")):
                block.append(lines.pop(0))
            yield from section(block[0][:-1], block[1:], page, known, shared)
            shared = [] if block[0].startswith("Args") else shared
            continue
        indented = block[0].startswith("    ")
        while lines and (lines[0].strip() or (indented and len(lines) > 1 and lines[1].startswith("    "))):
            block.append(lines.pop(0))
        if block[0].startswith(">>> "):
            yield fenced("pycon", block)
        elif indented:
            yield fenced("text", formulas(block))
        elif "See also: " in block[0]:
            yield "**See also** " + linked(" ".join(block), page).replace("See also: ", "", 1)
        elif "Source: " in block[0]:
            yield "**Source** " + linked(" ".join(block), page).replace("Source: ", "", 1)
        else:
            yield re.sub(r"::$", ":", linked("\n".join(block), page))
    if shared:
        yield options_line(shared)


def shared_options(text: str, known: dict[str, tuple[str, str]]) -> list[str]:
    """Name the options that a docstring leaves to the page of options."""
    mentioned = set(re.findall(r"^    (\w+): ", text, re.MULTILINE))
    return [name for name in known if name in DOCUMENTATION and name not in mentioned]


def section(
    title: str, lines: list[str], page: str, known: dict[str, tuple[str, str]], shared: list[str]
) -> Iterator[str]:
    """Write a section of a docstring: a list of arguments or errors, or what is returned."""
    body = textwrap.dedent("\n".join(lines)).strip("\n")
    if title in ("Returns", "Yields"):
        yield f"**{title}**"
        yield linked(body, page)
        return
    yield {"Args": "**Arguments**"}.get(title, f"**{title}**")
    items: list[tuple[str, list[str]]] = []
    for line in body.splitlines():
        start = re.match(r"(\w[\w, ]*): (.*)", line)
        if start:
            items.append((start[1], [start[2]]))
        elif line.strip() and line.strip() != "{options}":
            items[-1][1].append(line.strip())
    listed = []
    for name, words in items:
        kind, default = known.get(name, ("", ""))
        kind = f" *{escaped(kind)}*" if kind and title != "Raises" else ""
        default = f", by default `{default}`" if default else ""
        listed.append(f"`{name}`{kind}{default}\n:   {sentence(linked(' '.join(words), page))}")
    yield "\n\n".join(listed)
    if title == "Args" and shared:
        yield options_line(shared)


def options_line(shared: list[str]) -> str:
    """List the options that the page of options describes."""
    links = ", ".join(f"[`{name}`](options.md#{name})" for name in shared)
    return f"**Options**, described on [a page of their own](options.md): {links}."


def formulas(block: list[str]) -> list[str]:
    """Put formulas that stand side by side below each other, where they would not fit on a narrow page."""
    lines = [line.removeprefix("    ") for line in block]
    if max(map(len, lines)) <= NARROW:
        return lines
    return [
        part.strip() if number else part.rstrip()
        for line in lines
        for number, part in enumerate(re.split(r"(?<=\S) {4,}", line))
    ]


def fenced(language: str, block: list[str]) -> str:
    """Write lines as a block of code."""
    return "\n".join([f"```{language}", *textwrap.dedent("\n".join(block)).splitlines(), "```"])


def page_of(name: str) -> str:
    """Name the page that a public name is on, or return ""."""
    return next((page for page, room in ROOMS.items() if name in room.names.split()), "")


def linked(text: str, page: str) -> str:
    """Turn the roles and the code of a docstring into Markdown, with links to what is named."""
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"(?<!`)<(?=\w)(?![^`]*`[^`]*$)", "&lt;", text)

    def link(role: re.Match[str]) -> str:
        name = role[1].lstrip("~")
        short = name.removeprefix("crossent.")
        if page == "specification" and hasattr(reference, short):
            return f"[`{short}`](#{short})"
        target = page_of(short) if not short.startswith("tools.") else ""
        return f"[`{short}`]({target}.md#{short})" if target else f"`{name}`"

    text = re.sub(r":(?:func|class|meth|mod|attr|data):`([^`]+)`", link, text)
    return re.sub(r"`docs/([\w-]+)\.md`", lambda found: f"[{title_of(found[1])}](../{found[1]}.md)", text)


def title_of(page: str) -> str:
    """Read the title of a page."""
    return (DOCS / f"{page}.md").read_text("utf-8").splitlines()[0].removeprefix("# ")


def summary(value: Any, page: str) -> str:
    """Take the first paragraph of a docstring, for a cell of a table."""
    if isinstance(value, dict):
        return "The same functions, by the names that transformers has for them."
    first = " ".join(docstring(value).split("\n\n")[0].split())
    return linked(first, page).removesuffix("::").rstrip(".:") + "."


def sentence(text: str) -> str:
    """End a text with a full stop."""
    return text if text.endswith((".", "`.", ":", "?")) else f"{text}."


def escaped(kind: str) -> str:
    """Write a type so that Markdown takes nothing in it for a sign."""
    return re.sub(r"([|*_\[\]])", r"\\\1", kind)


def joined(parts: list[str]) -> str:
    """Put paragraphs together."""
    return "\n\n".join(parts) + "\n"


# --- the command line -------------------------------------------------------------------------------------------------


def command_page() -> str:
    """Write every command with its arguments and options."""
    parts = [
        "# The command line",
        "Results go to the standard output, progress and notices to the standard error. Exit codes: 0 fine, 1 failed or\n"
        "interrupted, 2 used wrongly. `crossent COMMAND --help` prints what stands here.",
    ]
    for path, command in commands("crossent", command_line):
        parts += command_entry(path, command)
    return joined(parts)


def commands(path: str, group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """List the commands of a group, and those of the groups in it."""
    for name, command in sorted(group.commands.items()):
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(f"{path} {name}", command)


def command_entry(path: str, command: click.Command) -> Iterator[str]:
    """Write what is said of a command."""
    context = click.Context(command, info_name=path)
    level = "##" if path.count(" ") == 1 else "###"
    yield f"{level} `{path}`"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{path} {usage}\n```"
    yield from (escape_angles(" ".join(each.split())) for each in inspect.cleandoc(command.help or "").split("\n\n"))
    options = []
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            value = "" if option.is_flag else f" {option.make_metavar(context)}"
            options.append(f"`{', '.join(option.opts)}{value}`\n:   {escape_angles(option.help or '')}")
    if options:
        yield "\n\n".join(options)


def escape_angles(text: str) -> str:
    """Write text so that neither a bracket nor a star of it is taken for a sign."""
    return re.sub(r"([*\[\]])", r"\\\1", text.replace("<", "&lt;"))
