from torch import Tensor

DONE: int
OUT_OF_RANGE: int
NEEDS_COPY: int

def softmax_forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    smoothing: float,
    reduce: bool,
    loss: Tensor,
    row_weight: Tensor,
    top: Tensor,
    log_sum: Tensor,
) -> int: ...
def softmax_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    top: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    smoothing: float,
    grad_logits: Tensor | None,
    grad_target: Tensor | None,
) -> int: ...
def binary_forward(
    logits: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduce: bool, loss: Tensor
) -> int: ...
def binary_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    grad_logits: Tensor | None,
    grad_target: Tensor | None,
) -> int: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def use_isa(name: str) -> None: ...
def use_threads_of(address: int) -> None: ...
