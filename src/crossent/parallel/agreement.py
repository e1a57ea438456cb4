"""Before a loss, processes tell each other whether anything is wrong, and that all of them compute the same thing.

No process may wait for one that has failed, and collectives of different sizes stop a process altogether. So the first thing that
is told has the same size whatever was given: whether all is well, which classes are here, a checksum of what is asked, and as much
of the first tensor to be gathered as there is room for. How much room there is must not depend on this call, which may be wrong on
one process. It is what the last calls of the group have needed, which all processes have heard. So training steps of one size
make one gather of it. It is told on CPUs only, where nobody has to wait for a device to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary
from zlib import crc32

import torch
from torch import Tensor
from torch import distributed as dist

from crossent.core.messages import shape
from crossent.core.modes import readable
from crossent.core.reduction import Reduction
from crossent.core.shard import VocabShard
from crossent.core.target import Target
from crossent.parallel.collectives import CallGroup, finish, raise_together, reaches_cpus, start_gathering, tell

_EACH = "on each process of the shard's group"

# What has to be alike, in the order in which a difference is told, and what the caller is to do.
_ALIKE = {
    "loss": f"the same loss must be called {_EACH}, got {{}}",
    "rows": f"input must have as many rows {_EACH}, got {{}}",
    "dtype": f"input must have the same dtype {_EACH}, got {{}}: convert it",
    "target": f"target must hold class indices {_EACH}, or probabilities on each, got {{}}",
    "labels": f"target must hold the same labels {_EACH}, got others, with checksums {{}}: processes that share the classes share "
    "the rows; where each has rows of its own, linear_cross_entropy takes VocabShard(..., sequence_parallel=True)",
    "reduction": f"reduction and what goes with it must be the same {_EACH}, got {{}}",
    "options": f"the options must be the same {_EACH}, got {{}}",
    "blocks": f"blocks must have as many rows {_EACH}, but implementations differ in what they need, got {{}}: name one with impl",
}


_HEADER = 8 * (4 + len(_ALIKE))  # bytes
_LEAST, _MOST = 1 << 12, 1 << 22  # bytes of room; up to the first the time of a gather hardly depends on them
_ROOM: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # of each group


class Call:
    """What a process asks for: its number of classes, and all that has to be alike on the others, by name.

    ``shard`` is the caller's. What is gathered first of its group is told together with what is asked.
    """

    def __init__(self, shard: VocabShard, told: bool) -> None:
        self.size, self.alike = 0, dict.fromkeys(_ALIKE, "")
        self.error: Exception | None = None
        self.group = CallGroup(shard.group, self.tell_first if told else None)
        self.shard = replace(shard, group=self.group) if told else shard

    def says(self, loss: str, rows: tuple[int, ...], size: int, input: Tensor, shard: VocabShard) -> None:
        """Say which loss is called, of how many rows and classes."""
        self.size = size
        call = f"{loss} with {shard.classes} classes in all"
        call += f", sequence_parallel={shard.sequence_parallel}, reduce_input_grad={shard.reduce_input_grad}"
        self.alike.update(loss=call, rows=shape(torch.empty(rows, device="meta")), dtype=str(input.dtype))

    def asks(
        self, target: Target, reduction: Reduction, own_labels: bool, workspace: int | None = None, **more: Any
    ) -> None:
        """Say what is asked of the rows; ``own_labels`` says that each process has labels of its own."""
        if target.indices and not own_labels and readable(target.values):
            y = target.values.flatten()
            self.alike["labels"] = str(int((y * torch.arange(1, len(y) + 1)).sum()))
        if workspace is not None:
            self.alike["blocks"] = f"{workspace} numbers beside each logit"
        self.alike["target"] = "class indices" if target.indices else "probabilities"
        self.alike["reduction"] = ", ".join(_words(reduction._asdict()))
        given = {"weight": target.weight, "logit_bias": target.logit_bias, "class_mask": target.class_mask, **more}
        numbers = {name: getattr(target.settings, name) for name in target.settings.unusual()}
        self.alike["options"] = ", ".join(_words({**numbers, **given}))

    def tell_first(self, x: Tensor) -> Tensor:
        """Gather a tensor of all processes as ``(P, ...)``, unless one of them has failed or asks for something else."""
        group, shard = self.group.group, self.shard
        flat = x.new_empty(x.numel()).copy_(x.flatten())  # one number of an expanded tensor has no bytes
        data, room = flat.view(torch.uint8), _ROOM.get(_key(group), _LEAST)
        size, fits = len(data), min(len(data), room)
        checksums = [crc32(words.encode()) for words in self.alike.values()]
        words = [self.error is not None, size, shard.start, self.size, *checksums]
        message = torch.empty(_HEADER + room, dtype=torch.uint8, device="cpu")
        message[:_HEADER] = torch.tensor(words, dtype=torch.int64, device="cpu").view(torch.uint8)
        message[_HEADER : _HEADER + fits] = data[:fits]
        message[_HEADER + fits :] = 0
        of_all = finish(start_gathering(message, group))
        headers = of_all[:, :_HEADER].contiguous().view(torch.int64)
        failed, sizes, starts, classes, *of_each = headers.unbind(1)
        if failed.any():
            raise_together(self.error, group)
        for name, checksum in zip(_ALIKE, of_each, strict=True):
            if (checksum != checksum[0]).any():
                answers = ", ".join(str(words) for words in tell(self.alike[name], group))
                raise ValueError(_ALIKE[name].format(answers))
        _check_cut(starts.tolist(), classes.tolist(), shard)
        if (sizes != size).any():
            raise ValueError(f"blocks must have as many rows {_EACH}, got some of {sizes.tolist()} bytes")
        _ROOM[_key(group)] = _room_after(size, room)
        data = of_all[:, _HEADER : _HEADER + size] if size <= room else finish(start_gathering(data, group))
        return data.contiguous().view(-1).view(x.dtype).view(len(of_all), *x.shape)


def _key(group: Any) -> Any:
    return dist.group.WORLD if group is None else group


def _room_after(size: int, room: int) -> int:
    """Say how many bytes to leave room for, after ``size`` bytes were told: all processes have heard the same sizes."""
    if size > _MOST:
        return _LEAST
    return max(_LEAST, size if size > room or 2 * size < room else room)


def _words(options: dict[str, Any]) -> Iterator[str]:
    """Write out what is given; of tensors only whether a gradient is wanted, since their shapes may be those of parts."""
    for name, value in options.items():
        if isinstance(value, Tensor):
            yield f"{name} of shape (...)" + " with a gradient" * (value.requires_grad and torch.is_grad_enabled())
        elif value is not None and not callable(value):
            yield f"{name}={value!r}"


@contextmanager
def agreeing(shard: VocabShard, input: Any) -> Iterator[Call]:
    """Raise on all processes what goes wrong on one of them before they have told each other something, or what is not alike."""
    call = Call(shard, readable(input) if isinstance(input, Tensor) else reaches_cpus(shard.group))
    try:
        yield call
    except Exception as error:
        if call.group.first is None:
            raise
        call.error = error
    if call.group.first is not None:
        finish(start_gathering(torch.empty(0, device="cpu"), call.group))


def _check_cut(starts: list[int], sizes: list[int], shard: VocabShard) -> None:
    """Refuse shards that are not all classes one after the other."""
    begin, fits = 0, True
    for start, size in zip(starts, sizes, strict=True):
        fits = fits and (start == begin or not size)
        begin += size
    if fits and begin == shard.classes:
        return
    cut = ", ".join(f"[{a}, {a + n})" for a, n in zip(starts, sizes, strict=True))
    raise ValueError(
        f"shard must cut the {shard.classes} classes into parts one after the other, got {cut}: give each process the "
        "start of its own classes, as VocabShard.even does"
    )
