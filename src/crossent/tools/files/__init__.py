"""Arrays in files, read a block of rows at a time: what ``explain``, ``check`` and ``score`` are given.

``pair`` opens logits and labels. ``formats`` knows which module reads a kind of file: ``numpy_files``, ``text``, ``parquet`` or
``tensors``. Each gives a ``store``, the arrays of a file by name, and such an array is a ``table``. ``damage`` turns what a
broken file provokes into a sentence. ``names`` and ``values`` read what an option may hold in a file: names of classes and rows,
and numbers.

NumPy, safetensors and PyTorch files are mapped into memory and never read whole, unless they are compressed. Text and parquet are
read once from beginning to end into a temporary file (``spool``), which is then mapped, so that their size does not matter either.

Refused: pickles, which can run code; arrays of anything but numbers; and to guess which of several arrays is meant.
"""

from crossent.tools.errors import FileError
from crossent.tools.files.pair import Pair, open_pair
from crossent.tools.files.table import Table

__all__ = ["FileError", "Pair", "Table", "open_pair"]
