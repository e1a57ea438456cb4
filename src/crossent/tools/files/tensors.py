"""Files of tensors: ``.safetensors``, and what ``torch.save`` wrote."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.tools.errors import FileError
from crossent.tools.files.arrays_table import arrays_table
from crossent.tools.files.damage import refuse_other_than_numbers
from crossent.tools.files.row_array import RowArray, row_array
from crossent.tools.files.table import Table, listed


def open_safetensors(path: str) -> Table:
    """Open the tensors of a ``.safetensors`` file."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no dict)

    def array(key: str) -> RowArray:
        kind = kinds[key]
        narrow = kind == "BF16" or kind.startswith("F8")  # NumPy has no such dtype: torch reads these, and only these
        part = safe_open(path, "pt" if narrow else "np").__enter__().get_slice(key)
        if narrow:
            dtype = "bfloat16" if kind == "BF16" else kind.lower()
            return RowArray("", tuple(part.get_shape()), dtype, lambda start, stop: part[start:stop].float().numpy())
        none = part[:0]
        refuse_other_than_numbers(path, none.dtype)
        return RowArray("", tuple(part.get_shape()), none.dtype.name, lambda start, stop: part[start:stop])

    return arrays_table(path, {name: array(name) for name in kinds})


def open_pt(path: str) -> Table:
    """Open a tensor, or dicts, tuples and lists of tensors and arrays, that ``torch.save`` wrote."""
    content = _loaded(path)
    found = dict(_tensors("", _joined(content)))
    arrays = {name: _tensor_rows(path, value) for name, value in found.items()}
    if not arrays:
        there = listed(map(str, content)) if isinstance(content, dict) else ""
        hint = f", only {there}: save the logits as a tensor of its own" if there else ""
        raise FileError(f"{path}: holds no tensors{hint}")
    return arrays_table(path, arrays)


def _joined(content: Any) -> Any:
    """Put the batches of a list together: tensors, or dicts of tensors with the same names, that differ in the rows alone.

    A tuple is left as it is, since its entries are different things, such as logits and hidden states.
    """
    import torch

    if isinstance(content, dict):
        return {name: _joined(value) if isinstance(value, list) else value for name, value in content.items()}
    if isinstance(content, list) and len(content) > 1 and all(isinstance(each, torch.Tensor) for each in content):
        alike = content[0].dim() and all(each.shape[1:] == content[0].shape[1:] for each in content if each.dim())
        return torch.cat(content) if alike and all(each.dim() for each in content) else content
    if not isinstance(content, list) or len(content) < 2 or not all(isinstance(each, dict) for each in content):
        return content
    names = [name for name, value in content[0].items() if isinstance(value, torch.Tensor) and value.dim()]
    try:
        return {name: torch.cat([each[name] for each in content]) for name in names}
    except (KeyError, TypeError, RuntimeError):
        return content


def _tensors(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Find tensors and arrays, three levels deep; those in a dict, tuple or list are called by where they are."""
    import torch

    if isinstance(value, (torch.Tensor, np.ndarray)):
        yield name, value
    elif isinstance(value, (list, tuple)) and value and all(isinstance(each, (int, float, str)) for each in value):
        yield name, np.array(value)
    elif isinstance(value, (dict, list, tuple)) and depth < 3:
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(f"{name}.{key}" if name else str(key), each, depth + 1)


def _tensor_rows(path: str, value: Any) -> RowArray:
    import torch

    if isinstance(value, np.ndarray):
        refuse_other_than_numbers(path, value.dtype)
        return row_array(value)
    tensor = value.detach()
    if tensor.is_meta:
        raise FileError(
            f"{path}: holds a tensor without values, on the device meta: save it from a device on which it has values"
        )
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
        raise FileError(f"{path}: holds a tensor of {tensor.dtype} and {tensor.layout}, not plain real numbers")
    narrow = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)

    def read(start: int, stop: int) -> NDArray[Any]:
        part = tensor[start:stop]
        return np.asarray((part.float() if narrow else part).numpy())

    return RowArray("", tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)


def _loaded(path: str) -> Any:
    import pickle

    import torch

    with open(path, "rb") as stream:
        zipped = stream.read(2) == b"PK"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older names of NumPy's modules warn
        plain = [np.ndarray, np.dtype, *_reconstruct(), *(type(np.dtype(code)) for code in "?bhilBHILefdU")]
    try:
        # only the archives that torch writes since 1.6 can be mapped
        with warnings.catch_warnings(), torch.serialization.safe_globals(plain):
            warnings.simplefilter("ignore")  # torch warns of what it then refuses
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise FileError(
            f"{path}: is damaged, or holds more than tensors: other Python objects can run code and are not read"
        ) from None


def _reconstruct() -> list[Any]:
    """Find the function that NumPy's arrays are pickled with: it makes an array of bytes and does nothing else."""
    import importlib

    found = []
    for name in ("numpy._core.multiarray", "numpy.core.multiarray"):
        try:
            found.append((importlib.import_module(name)._reconstruct, f"{name}._reconstruct"))
        except (ImportError, AttributeError):
            continue
    return found
