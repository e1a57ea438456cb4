"""Files of tensors: ``.safetensors``, and what ``torch.save`` wrote."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.damage import refuse_other_than_numbers
from crossent.tools.files.row_array import RowArray
from crossent.tools.files.store import Store, listed


def open_safetensors(path: str) -> Store:
    """Open the tensors of a ``.safetensors`` file."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no dict)

    def array(key: str) -> RowArray:
        kind = kinds[key]
        narrow = kind == "BF16" or kind.startswith("F8")  # NumPy has none of them, and only there is torch needed
        part = safe_open(path, "pt" if narrow else "np").__enter__().get_slice(key)
        if narrow:
            dtype = "bfloat16" if kind == "BF16" else kind.lower()
            return RowArray("", tuple(part.get_shape()), dtype, lambda start, stop: part[start:stop].float().numpy())
        none = part[:0]
        refuse_other_than_numbers(path, none.dtype)
        return RowArray("", tuple(part.get_shape()), none.dtype.name, lambda start, stop: part[start:stop])

    return Store(tuple(kinds), array)


def open_pt(path: str) -> Store:
    """Open a tensor, or a dict or list of tensors, that ``torch.save`` wrote."""
    import torch

    content = _loaded(path)
    if isinstance(content, (list, tuple)):
        content = {str(k): value for k, value in enumerate(content)}
    named = content if isinstance(content, dict) else {"": content}
    tensors = {str(key): value.detach() for key, value in named.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        hint = f", only {listed(map(str, named))}: save the logits as a tensor of its own" if named else ""
        raise FileError(f"{path}: holds no tensors at its top level{hint}")

    def array(key: str) -> RowArray:
        tensor = tensors[key]
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
            raise FileError(f"{path}: holds a tensor of {tensor.dtype} and {tensor.layout}, not plain real numbers")
        narrow = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)

        def read(start: int, stop: int) -> NDArray[Any]:
            part = tensor[start:stop]
            return np.asarray((part.float() if narrow else part).numpy())

        return RowArray("", tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)

    return Store(tuple(tensors), array)


def _loaded(path: str) -> Any:
    import pickle

    import torch

    with open(path, "rb") as stream:
        zipped = stream.read(2) == b"PK"
    try:
        # only the archives that torch writes since 1.6 can be mapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it then refuses
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise FileError(
            f"{path}: is damaged, or holds more than tensors: other Python objects can run code and are not read"
        ) from None
