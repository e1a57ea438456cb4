"""Arrays in files, read a block of rows at a time: what ``explain``, ``check`` and ``score`` are given.

``pair`` opens logits and labels: ``roles`` says which columns are which, ``labels`` which class a label names, ``keys`` which rows
belong together. ``formats`` knows which module reads a kind of file: ``numpy_files``, ``text_files``, ``json_files``, ``parquet``,
``tensors`` or ``pictures``; ``frames`` reads those of pandas and polars. Each gives a ``table``, whose columns are read as a
``row_array``. ``damage`` turns an error of a file's reader into a sentence. ``class_names`` reads names of classes and rows,
``values`` reads numbers, where an option may hold a file.

NumPy, safetensors and PyTorch files are mapped into memory and never read whole, unless they are compressed. Text and parquet are
read once from beginning to end into a temporary file (``spool``), which is then mapped, so that their size does not matter either.

Refused: pickles, which can run code; arrays of anything but numbers and words; and to guess which of several arrays is meant.
"""

from crossent.tools.errors import FileError
from crossent.tools.files.pair import Pair, open_pair
from crossent.tools.files.roles import Selection
from crossent.tools.files.row_array import RowArray

__all__ = ["FileError", "Pair", "RowArray", "Selection", "open_pair"]
