"""Triton's interpreter, which runs the GPU kernels on a CPU under ``TRITON_INTERPRET=1``, mended where its numbers are not a GPU's.

It drops the digits that float32 has beyond bfloat16 instead of rounding to the nearest, whatever rounding a kernel asks for, and
NumPy warns of what a kernel computes and throws away.
"""

import os

import numpy as np
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def mend():
    """Round to bfloat16 as a GPU does, and let NumPy compute infinities and nan in silence."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(values, source, target, mode):
        if (source, target) == (tl.float32, tl.bfloat16):
            numbers = torch.from_numpy(np.array(values, np.float32))
            return numbers.bfloat16().view(torch.uint16).numpy()
        return convert(values, source, target, mode)

    interpreter._convert_float = rounding
    np.seterr(all="ignore")
