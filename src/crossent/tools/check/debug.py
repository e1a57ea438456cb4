"""``crossent.debug``: looks at the first batches of a training run, and at where its loss goes.

It is off unless asked for, here or by ``CROSSENT_DEBUG=1`` in the environment. It looks at plain tensors of eager calls only: not
inside ``torch.compile``, transforms or fake tensors. Of ``linear_cross_entropy`` it sees the loss, and the logits of some rows.
Reading values waits for a GPU; nothing else of a run changes.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossent.core import watch
from crossent.core.names import only_its_keywords
from crossent.core.target import BinaryTarget, Target
from crossent.tools.arrays import read_rows
from crossent.tools.check.facts import Facts
from crossent.tools.check.findings import REMARK, WIDTH, Findings, apply_rules, written
from crossent.tools.check.options import CheckOptions, read_options
from crossent.tools.check.rules import CURVE_RULES, VALUE_RULES
from crossent.tools.check.survey import survey
from crossent.tools.kinds import read

AFTER = (
    100  # values of a loss, before it is said to stay where it is; it is looked at again each time they have doubled
)
_HERE = str(Path(__file__).parents[2])  # of the whole package
_TORCH = str(Path(torch.__file__).parent)


class CheckWarning(UserWarning):
    """What ``crossent.debug`` found."""


class Site(NamedTuple):
    """Where a loss is called, with which kind of target, and whether gradients are wanted there."""

    file: str
    line: int
    kind: str
    training: bool


@dataclass
class CallHistory:
    """What is known of the calls at one site."""

    calls: int = 0
    broken: bool = False  # a loss was nan or inf, and was looked at
    losses: array[float] = field(default_factory=lambda: array("d"))
    facts: Facts | None = None
    reported: set[str] = field(default_factory=set)


class Debug:
    """Looks at every loss while it is switched on; a context manager that switches it off at its end.

    Attributes:
        findings: what was found so far.
    """

    def __init__(self, first_n: int) -> None:
        self.first_n = first_n
        self.findings = Findings()
        self._histories: dict[Site, CallHistory] = {}
        self._before = watch.current()
        watch.watcher = self

    def off(self) -> None:
        """Stop looking; whoever looked before does again."""
        watch.watcher = self._before

    def __enter__(self) -> Debug:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.off()

    def __call__(
        self, input: Tensor, logits: Tensor, target: Target | BinaryTarget, loss: Tensor, averaged: bool
    ) -> None:
        """See one call: the logits as they came and laid out, the description of the target, and the loss, a mean or not."""
        if not _plain(logits, target.values, loss):
            return
        kind = "binary" if isinstance(target, BinaryTarget) else "indices" if target.indices else "weights"
        site = _site(kind)
        history = self._histories.setdefault(site, CallHistory())
        history.calls += 1
        value = float(loss.detach()) if loss.dim() == 0 else 0.0
        if averaged and target.plain and loss.dim() == 0:
            history.losses.append(value)
        if history.calls <= self.first_n or (not isfinite(value) and not history.broken):
            history.broken |= not isfinite(value)
            # The logits of a call that named its axis were laid out with the classes on axis 1, which need not be guessed.
            self._look(site, history, logits, target, loss, None if input is logits else 1)
        elif history.facts is not None and _again(len(history.losses)):
            history.facts.options = replace(history.facts.options, losses=history.losses)
            self._tell(site, history, apply_rules(CURVE_RULES.values(), history.facts))

    def _look(
        self,
        site: Site,
        history: CallHistory,
        logits: Tensor,
        target: Target | BinaryTarget,
        loss: Tensor,
        dim: int | None,
    ) -> None:
        """Look at the values of one call."""
        x, t = _rows(logits, target)
        if x.numel():
            options = _options(target, loss, history.losses if history.calls == 1 else [])
            options = replace(options, dim=dim if x.shape == logits.shape else None)
            history.facts = survey(read_rows("logits", x), read_rows("target", t), options)
            self._tell(site, history, apply_rules(VALUE_RULES.values(), history.facts))
        if history.calls == self.first_n and not history.reported:
            many = f"{self.first_n} batches" if self.first_n > 1 else "batch"
            print(f"{site.file}:{site.line}: crossent found nothing in the first {many}. {REMARK}", file=sys.stderr)

    def _tell(self, site: Site, history: CallHistory, findings: Findings) -> None:
        """Warn of what was not found here before."""
        for finding in findings:
            if finding.rule not in history.reported:
                history.reported.add(finding.rule)
                self.findings.append(finding)
                width = min(shutil.get_terminal_size((WIDTH, 0)).columns, WIDTH)
                warnings.warn_explicit(f"\n{written(finding, width)}", CheckWarning, site.file, site.line, registry={})


@only_its_keywords
def debug(first_n: int = 3) -> Debug:
    """Check the first batches that every loss of this library is called with, and follow where the loss goes.

    What is found is a :class:`crossent.tools.check.debug.CheckWarning` at the line that called the loss, once for each rule.
    After the first batches only the value of the loss is read: whether it stays at ``ln C``, at the entropy of the labels, or
    at the floor of two softmaxes, or far above them; and the first batch with a loss of nan or inf is looked at.
    ``CROSSENT_DEBUG=1`` in the environment does the same without a change to the code, a larger number is ``first_n``.

    Args:
        first_n: how many calls of every line to look at.

    Returns:
        The object that looks, until its ``off()`` is called or, in a ``with`` statement, until the end of that.

    >>> import crossent, warnings
    >>> with warnings.catch_warnings(), crossent.debug() as seen:
    ...     warnings.simplefilter("ignore")
    ...     loss = crossent.cross_entropy(torch.randn(8, 3).softmax(1), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))
    >>> [finding.title for finding in seen.findings]
    ['softmax before the loss']

    See also: :func:`crossent.check` for arrays that are at hand.
    """
    first_n = read("first_n", first_n, "an int")
    if first_n < 1:
        raise ValueError(f"first_n must be at least 1, got {first_n!r}: it is how many batches to look at")
    return Debug(first_n)


def from_environment() -> Debug | None:
    """Read ``CROSSENT_DEBUG``."""
    setting = os.environ.get("CROSSENT_DEBUG", "").strip().lower()
    if setting in ("", "0", "false", "off", "no"):
        return None
    return Debug(int(setting) if setting.isdigit() and setting != "1" else 3)


def _plain(*tensors: Tensor) -> bool:
    """Whether these are tensors with values, outside of every transform."""
    kinds = (Tensor, torch.nn.Parameter)
    return all(type(t) in kinds and not t.is_meta for t in tensors) and not torch._C._are_functorch_transforms_active()


def _rows(logits: Tensor, target: Target | BinaryTarget) -> tuple[Tensor, Tensor]:
    """Give logits and target without what a mask leaves out; the elements of a binary loss are marked as ignored."""
    values = target.values
    if isinstance(target, BinaryTarget):
        if target.mask is not None:
            values = values.masked_fill(~target.mask.expand(values.shape), _ignored(target))
        return logits, values
    if target.valid is None:
        return logits, values
    rows = values if target.indices else values.movedim(1, -1)
    return logits.movedim(1, -1)[target.valid], rows[target.valid]


def _ignored(target: BinaryTarget) -> float:
    return -100.0 if target.settings.ignore_index is None else target.settings.ignore_index


def _options(target: Target | BinaryTarget, loss: Tensor, losses: Sequence[float]) -> CheckOptions:
    """Write what a call says as options of a check."""
    numbers = target.settings
    settings: dict[str, Any] = {
        "label_smoothing": numbers.label_smoothing,
        "ignore_index": numbers.ignore_index,
        "empty": "zero" if loss.dim() == 0 and isfinite(float(loss.detach())) else "nan",
        "loss_dtype": str(loss.dtype).removeprefix("torch."),
        "losses": losses,
        "live": True,
    }
    if isinstance(target, Target):
        return read_options({**settings, "weight": target.weight})
    ignored = numbers.ignore_index if target.mask is None else _ignored(target)
    return read_options({**settings, "task": "binary", "pos_weight": target.pos_weight, "ignore_index": ignored})


def _again(n: int) -> bool:
    """Whether this is the 100th value, the 200th, the 400th, the 800th, and so on."""
    return n >= AFTER and n % AFTER == 0 and (n // AFTER) & (n // AFTER - 1) == 0


def _site(kind: str) -> Site:
    """Find the line outside of this library and of torch that called the loss."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_HERE, _TORCH)) and frame.f_back is not None:
        frame = frame.f_back
    assert frame is not None
    return Site(frame.f_code.co_filename, frame.f_lineno, kind, torch.is_grad_enabled())
