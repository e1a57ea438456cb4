from collections.abc import Callable, Sequence

from torch import Tensor, dtype

RECYCLES: bool
NUMBERS: tuple[str, ...]
PENALTIES: dict[str, int]
REDUCTIONS: dict[str, int]

def softmax_forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    smoothing: float,
    reduction: int,
    loss: Tensor,
    row_weight: Tensor | None,
    lse: Tensor,
    member: object | None = None,
    statistics: object | None = None,
    mass: Tensor | None = None,
) -> float | None: ...
def softmax_backward(
    grad: Tensor,
    divisor: float | Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    ignore_index: int,
    smoothing: float,
    grad_logits: Tensor | None,
    grad_target: Tensor | None,
    member: object | None = None,
    elsewhere: Tensor | None = None,
) -> bool: ...
def accumulate(g: Tensor, x: Tensor, sums: Tensor, first: bool) -> bool: ...
def softmax_sum(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    smoothing: float,
    mean: bool,
    loss: Tensor | None,
    grad_logits: Tensor | None,
    factor: float = 1.0,
    member: object = None,
    sample_weight: Tensor | None = None,
) -> float | None: ...
def scale(numbers: Tensor, factor: float) -> None: ...
def holds(tensor: Tensor, value: float) -> bool: ...
def short_cross_entropy(
    names: list[str], defaults: tuple[object, ...]
) -> Callable[[tuple[object, ...]], Tensor | None]: ...
def short_binary_cross_entropy(
    names: list[str], defaults: tuple[object, ...]
) -> Callable[[tuple[object, ...]], Tensor | None]: ...
def attach(ctx: object, logits: object, made: tuple[object, ...]) -> object: ...
def sum_gradient(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]: ...
def rows_gradient(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]: ...
def elements_gradient(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]: ...
def know_torch(questions: object) -> None: ...
def know_functions(
    sum: object, rows: object, binary_sum: object, elements: object, expected: dict[dtype, float | None]
) -> None: ...
def know_makers(empty_like: object, recycled_like: object, lse_of: object, rows_of: object, number: object) -> None: ...
def binary_sum(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    divisor: float,
    loss: Tensor | None,
    grad_logits: Tensor | None,
    factor: float = 1.0,
) -> bool: ...
def stream_from(bytes: int) -> int: ...
def recycled(shape: Sequence[int], strides: Sequence[int], code: int, bits: int) -> object: ...
def know_types(tensor: type, parameter: type) -> None: ...
def binary_forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduce: bool,
    divisor: float,
    loss: Tensor,
) -> bool: ...
def binary_backward(
    grad: Tensor,
    divisor: float,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    grad_logits: Tensor | None,
    grad_target: Tensor | None,
) -> bool: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def use_isa(name: str) -> None: ...
def use_threads_of(library: str) -> bool: ...
