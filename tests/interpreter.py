"""Triton's interpreter, which runs the GPU kernels on a CPU under ``TRITON_INTERPRET=1``, mended where its numbers are not a GPU's.

It drops the digits that float32 has beyond bfloat16 instead of rounding to the nearest, whatever rounding a kernel asks for. It
rounds a product before something is added, where a fused multiply-add does not. And NumPy warns of what a kernel throws away.
"""

import os

import numpy as np
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def mend():
    """Round to bfloat16 and multiply and add as a GPU does, and let NumPy compute infinities and nan in silence."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(values, source, target, mode):
        if (source, target) == (tl.float32, tl.bfloat16):
            numbers = torch.from_numpy(np.array(values, np.float32))
            return numbers.bfloat16().view(torch.uint16).numpy()
        return convert(values, source, target, mode)

    def fused(_, x, y, z):
        wide = np.longdouble if x.data.dtype == np.float64 else np.float64
        result = x.data.astype(wide) * y.data.astype(wide) + z.data.astype(wide)
        return interpreter.TensorHandle(result.astype(x.data.dtype), x.dtype)

    interpreter._convert_float = rounding
    interpreter.InterpreterBuilder.create_fma = fused
    np.seterr(all="ignore")
