"""How the errors of a head's gradient and of a half precision loss grow with the number of blocks, against float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from linear import chunked, dtype_name, eager, off
from torch import Tensor

import crossent

ROWS, FEATURES, CLASSES = 1024, 64, 4096
BLOCKS = (1, 8, 64, 512)


def losses(blocks: int, dtype: torch.dtype) -> dict:
    """Return the contenders that take their rows in so many blocks; "wide" does not round its loss to the inputs' dtype."""
    max_bytes = CLASSES * dtype.itemsize * ROWS // blocks

    def ours(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
        assert crossent.linear_plan(h, w, y, max_bytes=max_bytes).blocks == blocks
        return crossent.linear_cross_entropy(h, w, y, max_bytes=max_bytes)

    def wide(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return crossent.linear_cross_entropy(h, w, y, max_bytes=max_bytes, out_dtype=torch.float32)

    return {"eager": eager, "chunked": chunked(batch_chunk_size=ROWS // blocks), "crossent": ours, "wide": wide}


def measure_accuracy() -> list[dict]:
    """Return for each dtype and number of blocks the relative errors of the mean loss and, by the norm, of the head's gradient."""
    torch.manual_seed(0)
    rows = []
    y = torch.randint(CLASSES, (ROWS,))
    for dtype in (torch.float32, torch.bfloat16):
        h = torch.randn(ROWS, FEATURES).to(dtype).requires_grad_()
        w = (torch.randn(CLASSES, FEATURES) * 2 * FEATURES**-0.5).to(dtype).requires_grad_()
        exact = [x.detach().double().requires_grad_() for x in (h, w)]
        right = F.cross_entropy(F.linear(*exact), y)
        (right_gradient,) = torch.autograd.grad(right, exact[1])
        for blocks in BLOCKS:
            row: dict = {"dtype": dtype_name(dtype), "blocks": blocks, "loss": {}, "gradient": {}}
            for name, f in losses(blocks, dtype).items():
                found = f(h, w, y)
                row["loss"][name] = (found.double() / right - 1).item()
                row["gradient"][name] = off(torch.autograd.grad(found, w)[0], right_gradient)
            rows.append(row)
    return rows
