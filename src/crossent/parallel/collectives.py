"""What processes tell each other, differentiably: torch.distributed's collectives, and no others.

A tensor is either *shared*, the same on all processes, with a gradient that all of them have whole; or *own*, a part that each
process has for itself, with the gradient of that part. ``gather`` makes shared tensors of own ones, ``spread`` lets each process
use a shared tensor in its own way, ``gather_rows`` is both. Sums are float32 or wider, and have the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed import _functional_collectives as collectives

from crossent.core.modes import plain, readable

_Result = TypeVar("_Result")


class CallGroup:
    """The processes of a group during a call; ``first``, if it is given, gathers the first tensor that they tell each other."""

    def __init__(self, group: Any, first: Callable[[Tensor], Tensor] | None) -> None:
        self.group, self.first = group, first


def group_of(group: Any) -> Any:
    """Return the group of torch.distributed, of which None is all processes."""
    return group.group if isinstance(group, CallGroup) else group


def processes(group: Any) -> int:
    """Say how many processes a group has."""
    return dist.get_world_size(group_of(group))


def rank_in(group: Any) -> int:
    """Say which of a group this process is."""
    return dist.get_rank(group_of(group))


def reaches_cpus(group: Any) -> bool:
    """Whether the processes of a group can tell each other what is on their CPUs."""
    return "gloo" in dist.get_backend(group_of(group))


class Coming(NamedTuple):
    """A tensor, and what it takes to wait for it."""

    tensor: Tensor
    wait: Callable[[Tensor], Any] | None = None  # None where it has arrived


def start_gathering(x: Tensor, group: Any) -> Coming:
    """Begin to gather equal tensors of all processes as ``(P, ...)``; ``finish`` waits for them."""
    if isinstance(group, CallGroup) and group.first is not None:
        first, group.first = group.first, None
        return Coming(first(x))
    x = x.contiguous()
    if not plain(x):
        return Coming(collectives.all_gather_single(x.unsqueeze(0), 0, _or_all(group)), collectives.wait_tensor)
    gathered = x.new_empty(processes(group), *x.shape)
    return _begun(gathered, dist.all_gather_single(gathered, x.unsqueeze(0), group_of(group), async_op=True))


def start_scattering(x: Tensor, group: Any) -> Coming:
    """Begin to add up ``(P · n, ...)`` over the processes, of which each gets its ``n`` rows; ``finish`` waits for them."""
    _ask_first(group)
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    if not plain(x):
        return Coming(collectives.reduce_scatter_single(wide, "sum", 0, _or_all(group)), collectives.wait_tensor)
    summed = wide.new_empty(wide.shape[0] // processes(group), *wide.shape[1:])
    return _begun(summed, dist.reduce_scatter_single(summed, wide, group=group_of(group), async_op=True))


def _begun(tensor: Tensor, work: Any) -> Coming:
    """Say of a collective how to wait for it; where something looks on, an operator of torch waits, which takes longer."""

    def wait(tensor: Tensor) -> Tensor:
        work.wait()
        return tensor

    return Coming(tensor, wait)


def finish(coming: Coming) -> Tensor:
    """Wait for what was gathered or scattered."""
    arrived: Tensor = coming.tensor if coming.wait is None else coming.wait(coming.tensor)
    return arrived


def _or_all(group: Any) -> Any:
    group = group_of(group)
    return dist.group.WORLD if group is None else group


def _ask_first(group: Any) -> None:
    """Hear what all processes ask for where nothing was gathered yet, as without rows, before they send equally much."""
    if isinstance(group, CallGroup) and group.first is not None:
        finish(start_gathering(torch.empty(0, device="cpu"), group))


def add_up(x: Tensor, group: Any) -> Tensor:
    """Add a tensor up over the processes, in float32 or wider."""
    _ask_first(group)
    wide = torch.promote_types(x.dtype, torch.float32)
    if not plain(x):
        return finish(
            Coming(collectives.all_reduce(x.to(wide).contiguous(), "sum", _or_all(group)), collectives.wait_tensor)
        )
    total = x.to(wide, copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group_of(group))
    return total


class _OfGroup(Function):
    """A function of a tensor and of the group whose processes tell each other; its backward asks the same group."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.group = inputs[1]


class _Gather(_OfGroup):
    @staticmethod
    def forward(x, group):
        return finish(start_gathering(x, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Own.apply(grad, ctx.group), None


class _Own(_OfGroup):
    @staticmethod
    def forward(x, group):
        return x[rank_in(group)].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(grad, ctx.group), None


class _Spread(_OfGroup):
    @staticmethod
    def forward(x, group):
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _AddUp.apply(grad, ctx.group), None


class _AddUp(_OfGroup):
    @staticmethod
    def forward(x, group):
        return add_up(x, group).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(grad, ctx.group), None


class _GatherRows(_OfGroup):
    @staticmethod
    def forward(x, group):
        return finish(start_gathering(x, group)).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _ScatterRows.apply(grad, ctx.group), None


class _ScatterRows(_OfGroup):
    @staticmethod
    def forward(x, group):
        return finish(start_scattering(x, group)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _GatherRows.apply(grad, ctx.group), None


class _OwnRows(_OfGroup):
    @staticmethod
    def forward(x, group):
        each = x.shape[0] // processes(group)
        return x.narrow(0, rank_in(group) * each, each).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _SharedRows.apply(grad, ctx.group), None


class _SharedRows(_GatherRows):
    """The same rows, which all processes use alike."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _OwnRows.apply(grad, ctx.group), None


def gather(x: Tensor, group: Any) -> Tensor:
    """Gather the own tensors of all processes to a shared one, ``(P, ...)``."""
    gathered: Tensor = _Gather.apply(x, group)
    return gathered


def spread(x: Tensor, group: Any) -> Tensor:
    """Let each process use a shared tensor in its own way."""
    own: Tensor = _Spread.apply(x, group)
    return own


def gather_rows(x: Tensor, group: Any) -> Tensor:
    """Gather the rows of all processes, each of which then uses all of them in its own way."""
    rows: Tensor = _GatherRows.apply(x, group)
    return rows


def rows_of_process(x: Tensor, group: Any) -> Tensor:
    """Take a process's rows of a shared tensor, for a loss that is the sum of what the processes make of their rows."""
    own: Tensor = _OwnRows.apply(x, group)
    return own


# --- failing together -------------------------------------------------------------------------------------------------


class Failure:
    """What has failed on this process in a call, which goes on to take part in what the others wait for until all know."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def attempt(self, compute: Callable[[], _Result], otherwise: Callable[[], _Result]) -> _Result:
        """Compute something, or what stands for it where something has failed, here or before."""
        if self.error is None:
            try:
                return compute()
            except Exception as error:
                if torch.compiler.is_compiling():
                    raise
                self.error = error
        return otherwise()

    def raise_if_told(self, failed: Tensor, group: Any) -> None:
        """Raise on all processes what has failed on one; where nobody waits for a device to know, they have nan and go on."""
        if readable(failed) and failed.any():
            raise_together(self.error, group)

    def raise_own(self) -> None:
        """Raise what has failed here, when nobody waits for this process any more."""
        if self.error is not None:
            raise self.error


def add_up_unless(x: Tensor, failure: Failure, group: Any) -> Tensor:
    """Add a tensor up over the processes, beside a number that says whether one of them has failed: then all raise."""
    if not readable(x):
        total = add_up(x if failure.error is None else torch.full_like(x, torch.nan), group)
        failure.raise_own()
        return total
    _ask_first(group)
    beside = x.new_zeros(x.numel() + 1, dtype=torch.promote_types(x.dtype, torch.float32))
    if failure.error is None:
        beside[:-1] = x.flatten()
    else:
        beside[-1] = 1
    dist.all_reduce(beside, group=group_of(group))
    failure.raise_if_told(beside[-1:], group)
    return beside[:-1].view(x.shape)


def pack(columns: Tensor, failed: bool) -> Tensor:
    """Lay the columns ``(K, ...)`` of a process out behind a header, which says whether it has failed, as one tensor."""
    header = torch.tensor([failed], dtype=torch.int64, device=columns.device)
    return torch.cat([header.view(columns.dtype), columns.flatten()])


def unpack(gathered: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Take what was gathered apart: which processes have failed, ``(P)``, and the columns ``(P, K, ...)``."""
    words = torch.int64.itemsize // gathered.element_size()
    failed = gathered[:, :words].contiguous().view(torch.int64).squeeze(1)
    return failed, gathered[:, words:].reshape(gathered.shape[0], *shape)


def tell(what: Any, group: Any) -> list[Any]:
    """Tell all processes of a group something that is no tensor, and return what each of them tells."""
    of_each: list[Any] = [None] * processes(group)
    dist.all_gather_object(of_each, what, group=group_of(group))
    return of_each


def told_together(error: Exception | None, group: Any) -> Exception | None:
    """Tell all processes of a group why some have failed; return the own error, or else that of the first of them, if any."""
    reasons = tell(None if error is None else (_known_type(error), str(error)), group)
    if error is not None or not any(reasons):
        return error
    rank = next(i for i, reason in enumerate(reasons) if reason is not None)
    kind, message = reasons[rank]
    return kind(f"process {rank} of the group: {message}")  # type: ignore[no-any-return]


def raise_together(error: Exception | None, group: Any) -> None:
    """Tell all processes of a group why some have failed, and raise that everywhere. All of them must come here."""
    told = told_together(error, group)
    assert told is not None
    raise told


def _known_type(error: Exception) -> type[Exception]:
    """Find the nearest type of an error that every process has, and that a message alone makes."""
    kinds = (each for each in type(error).__mro__ if each.__module__ in ("builtins", "torch"))
    return next((each for each in kinds if issubclass(each, Exception) and _takes_a_message(each)), RuntimeError)


def _takes_a_message(kind: type[Exception]) -> bool:
    """Whether a message makes an error: a UnicodeDecodeError takes five arguments."""
    try:
        kind("")
    except TypeError:
        return False
    return True
