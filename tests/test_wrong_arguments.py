"""Every operator and every function of the extension, with each argument wrong in each way: right ones work, wrong ones raise.

The calls run in a process of their own, in which a crash is a failed test; run as a script, this file is that process.
"""

import itertools
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import cases
import pytest
import short
import torch

import crossent
from crossent.core.settings import Settings
from crossent.impl import load
from crossent.ops import small
from crossent.ops.library import TARGET

N, C, D = 4, 5, 3
FLOATS = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
INTEGERS = {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8}
DTYPES = FLOATS | INTEGERS | {torch.bool, torch.complex64}
REFUSALS = (ValueError, RuntimeError, TypeError, IndexError, NotImplementedError, AttributeError)


class Wrong:
    """One wrong value: what is wrong, the value, and whether the message must name the argument."""

    def __init__(self, what, value, named=True):
        self.what, self.value, self.named = what, value, named


def tensors(t, dtypes, contiguous=False):
    """Spoil a tensor: shorter, longer, of another rank, dtype, place or kind; ``dtypes`` are those that are right."""
    for axis in range(t.dim()):
        yield Wrong(f"short {axis}", t.narrow(axis, 0, t.shape[axis] - 1).clone())
        yield Wrong(f"empty {axis}", t.narrow(axis, 0, 0).clone())
        yield Wrong(f"long {axis}", torch.cat([t, t.narrow(axis, 0, 1)], axis))
    if t.dim():
        yield Wrong("a dimension less", t.select(0, 0).clone())
        yield Wrong("a dimension more", t.unsqueeze(0).clone())
    else:
        yield Wrong("two numbers", t.expand(2).clone())
    for dtype in sorted(DTYPES - set(dtypes), key=str):
        yield Wrong(str(dtype), t.to(dtype))
    if contiguous and t.dim():
        yield Wrong("apart", t.repeat_interleave(2, -1)[..., ::2])
    yield Wrong("meta", t.to("meta"))
    if t.dim():
        yield Wrong("sparse", t.to_sparse(), named=False)
    yield Wrong("text", "text", named=False)
    yield Wrong("object", object(), named=False)


def incoming(t, dtypes, contiguous=False):
    """Spoil a gradient that arrives for each row, which may as well be one number for all."""
    return [w for w in tensors(t, dtypes, contiguous) if t.dim() > 1 or w.what != "a dimension less"]


def numbers(*values):
    return [Wrong(repr(value), value) for value in values]


def labels():
    """Spoil class indices by what they hold."""
    for label in (C, 1 << 40, -1, -(1 << 40)):
        yield Wrong(f"label {label}", torch.tensor([0, 1, label, 2]))


class Call:
    """A function, its right arguments by name, and wrong values by the name of the argument."""

    def __init__(self, name, function, right, wrong):
        self.name, self.function, self.right, self.wrong = name, function, right, wrong

    def run(self, **changed):
        return self.function(*({**self.right, **changed}.values()))


# --- the operators ----------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
NUMBERS = {**cases.NUMBER_VALUES, "margin": 0.0}  # no kernel takes a margin with probabilities


def settings_for(impl):
    """Give each number of the record, in the order of the schemas, a value that an implementation takes."""
    known, penalty = load(impl).numbers, {"penalty": crossent.Focal(2.0)}
    given = {name: value for name, value in (NUMBERS | penalty).items() if name in known}
    settings = Settings.of(label_smoothing=0.1, **given)
    return dict(zip(SCHEMA_NAMES, TARGET.parts["settings"].write(settings), strict=True))


def refused(name):
    """List numbers that are none of this option, as its row of the record says."""
    wrong = []
    for value in (0.0, -1.0, NAN, INF):
        try:
            Settings.checks[name](name, value)
        except ValueError:
            wrong.append(value)
    return wrong


SCHEMA_NAMES = [argument.split()[-1] for argument in TARGET.parts["settings"].schema.split(", ")]
WRONG_SMOOTHING = numbers(-0.1, 1.5, NAN)
WRONG_SETTINGS = {
    **{name: numbers(*refused(name)) for name in NUMBERS},
    "label_smoothing": WRONG_SMOOTHING,
    "penalty": numbers("", "Nonsense", "Asymmetric", "Penalty"),
    "parameters": [*numbers((), (1.0, 2.0)), Wrong("negative", (-1.0,), False), Wrong("nan", (NAN,), False)],
    "all_classes": numbers(-1, 1, 1000),
    "impl": numbers("", "nonsense", "Native"),
}


def targets(x, soft):
    """Give the tensors of a target, and spoil them."""
    right = {
        "target": torch.rand(N, C).to(x.dtype) if soft else torch.tensor([0, 2, -100, 4]),
        "class_weight": torch.rand(C),
        "logit_bias": torch.rand(C),
        "class_mask": torch.tensor([True, True, True, True, True]),
        "valid": None,
    }
    wrong = {
        "target": [
            *tensors(right["target"], FLOATS if soft else {torch.int64}), *([] if soft else [*labels()]),
        ],
        "class_weight": [*tensors(right["class_weight"], FLOATS)],
        "logit_bias": [*tensors(right["logit_bias"], FLOATS)],
        "class_mask": [*tensors(right["class_mask"], {torch.bool})],
    }  # fmt: skip
    if soft:
        wrong["ignore_index"] = []
    return right, wrong


def softmax_operators(impl, soft):
    ops = torch.ops.crossent
    x = torch.randn(N, C)
    said, wrong = targets(x, soft)
    if impl == "eager":
        said["valid"] = torch.tensor([True, True, True, False])
        wrong["valid"] = [*tensors(said["valid"], {torch.bool})]
    else:
        wrong["valid"] = [Wrong("what native does not take", torch.ones(N, dtype=torch.bool), False)]
    wrong |= WRONG_SETTINGS | {"logits": [*tensors(x, FLOATS)]}
    rule = {**said, **settings_for(impl)}
    forward = {"logits": x, **rule, "reduction": "none", "impl": impl}
    name = f"{impl} {'soft' if soft else 'index'}"
    yield Call(f"forward {name}", ops.cross_entropy_forward, forward, wrong | {"reduction": numbers("", "avg", "MEAN")})
    lse = ops.cross_entropy_forward(*forward.values())[2]
    grad, needs = torch.rand(N), [True, soft]
    back = {"grad": grad, "divisor": torch.tensor(2.0), "logits": x, **rule, "lse": lse, "needs": needs, "impl": impl}
    yield Call(f"backward {name}", ops.cross_entropy_backward, back, wrong | {
        "grad": incoming(grad, FLOATS), "divisor": tensors(back["divisor"], FLOATS), "lse": tensors(lse, {lse.dtype}),
        "needs": numbers([], [True], [True] * 3, *([] if soft else [[True, True]])),
    })  # fmt: skip
    yield Call(f"statistics {name}", ops.cross_entropy_statistics, {"logits": x, **rule, "impl": impl}, wrong)
    if impl == "eager":
        traced = {name: value for name, value in forward.items() if name != "impl"}
        yield Call(f"traced {name}", ops.cross_entropy_traced, traced, wrong | {
            "reduction": numbers("", "avg", "MEAN"), "impl": [],
        })  # fmt: skip
        grads = [torch.rand(N) for _ in range(4)]
        bad = [Wrong(w.what, [*grads[:3], w.value], w.named) for w in tensors(grads[3], FLOATS)]
        yield Call(
            f"statistics backward {name}", ops.cross_entropy_statistics_backward,
            {"grads": grads, "logits": x, **rule, "needs": needs},
            wrong | {"grads": [Wrong("three", grads[:3]), Wrong("five", [*grads, grads[0]]), *bad], "impl": []},
        )  # fmt: skip


def binary_operators(impl):
    ops = torch.ops.crossent
    x, t, eager = torch.randn(N, C), torch.rand(N, C), impl == "eager"
    right = {
        "logits": x, "target": t, "weight": torch.rand(N, C), "pos_weight": torch.rand(N, C),
        "mask": torch.rand(N, C) < 0.8 if eager else None, "ignore_index": -1.0 if eager else None,
        "label_smoothing": 0.1 if eager else 0.0, "penalty": "Focal" if eager else "", "parameters": (2.0,) if eager else (),
    }  # fmt: skip
    wrong = {
        "logits": tensors(x, FLOATS), "target": tensors(t, FLOATS), "label_smoothing": WRONG_SMOOTHING,
        "impl": WRONG_SETTINGS["impl"], "penalty": numbers("Nonsense", *([""] if eager else [])),
    }  # fmt: skip
    for name in ("weight", "pos_weight"):
        wrong[name] = [w for w in tensors(right[name], FLOATS) if w.what != "a dimension less"]
    if eager:
        wrong["mask"] = [w for w in tensors(right["mask"], {torch.bool}) if w.what != "a dimension less"]
        wrong["parameters"] = WRONG_SETTINGS["parameters"]
    else:
        wrong["mask"] = [Wrong("what native does not take", torch.ones(N, C, dtype=torch.bool), False)]
        wrong["parameters"] = numbers((1.0,))
        wrong["ignore_index"] = [Wrong("what native does not take", 1.0, False)]
    wrong = {name: [*values] for name, values in wrong.items()}
    forward = {**right, "reduce": True, "divisor": 2.0, "impl": impl}
    yield Call(f"binary forward {impl}", ops.binary_cross_entropy_forward, forward, wrong)
    grad = torch.rand(N, C)
    back = {"grad": grad, "divisor": 2.0, **right, "needs": [True, True], "impl": impl}
    yield Call(f"binary backward {impl}", ops.binary_cross_entropy_backward, back, wrong | {
        "grad": tensors(grad, FLOATS), "needs": numbers([], [True], [True] * 3)
    })  # fmt: skip


def linear_operators(impl, taught):
    ops = torch.ops.crossent
    h, w, b = torch.randn(N, D), torch.randn(C, D), torch.randn(C)
    head = {"input": h, "weight": w, "bias": b, "shape": [C]}
    said, wrong = targets(h, False)
    if taught:
        said["target"] = torch.empty(0)
        wrong["target"] = [Wrong("int64", torch.empty(0, dtype=torch.int64))]
    wrong |= WRONG_SETTINGS | {
        "input": [*tensors(h, {h.dtype})], "weight": [*tensors(w, {w.dtype})], "bias": [*tensors(b, {b.dtype})],
        "shape": numbers([], [C - 1], [C + 1], [0], [-C], [C, 2]), "max_bytes": numbers(0, -1, -(1 << 62)),
    }  # fmt: skip
    teacher = {"teacher_input": None, "teacher_weight": None, "teacher_bias": None, "teacher_temperature": 0.0}
    if taught:
        z, v, a = torch.randn(N, D + 1), torch.randn(C, D + 1), torch.randn(C)
        teacher = {"teacher_input": z, "teacher_weight": v, "teacher_bias": a, "teacher_temperature": 2.0}
        wrong |= {name: [*tensors(teacher[name], {h.dtype})] for name in (*teacher,)[:3]}
        wrong["teacher_temperature"] = numbers(0.0, -1.0, NAN, INF)
    first = {**head, **said, **settings_for(impl), **teacher, "max_bytes": 2 * C * 4, "impl": impl}
    name, factor, one = f"{impl}{' taught' if taught else ''}", torch.rand(N), torch.tensor(2.0)
    needs, wrong_needs = [True] * 3, numbers([], [True] * 2, [True] * 4)
    yield Call(
        f"linear {name}", ops.linear_cross_entropy, {**first, "factor": factor, "divisor": one, "needs": needs},
        wrong | {"factor": tensors(factor, FLOATS), "divisor": tensors(one, FLOATS), "needs": wrong_needs},
    )  # fmt: skip
    yield Call(f"linear rows {name}", ops.linear_rows, first, wrong)
    yield Call(
        f"linear rows backward {name}", ops.linear_rows_backward, {**first, "grad": factor, "needs": needs},
        wrong | {"grad": tensors(factor, FLOATS), "needs": wrong_needs},
    )  # fmt: skip
    yield Call(f"linear statistics {name}", ops.linear_statistics, first, wrong)
    grads = [torch.rand(N) for _ in range(4)]
    bad = [Wrong(each.what, [*grads[:3], each.value], each.named) for each in tensors(grads[3], FLOATS)]
    yield Call(
        f"linear statistics backward {name}", ops.linear_statistics_backward, {**first, "grads": grads, "needs": needs},
        wrong | {"grads": [Wrong("three", grads[:3]), *bad], "needs": wrong_needs},
    )  # fmt: skip


def operators():
    import crossent

    for name in ("cross_entropy", "linear_cross_entropy", "binary_cross_entropy_with_logits"):
        getattr(crossent, name)  # which defines the operators
    impls = ["eager"] + ["native"] * (crossent.implementations()["native"] is None)
    for impl in impls:
        for soft in (False, True):
            yield from softmax_operators(impl, soft)
            yield from linear_operators(impl, soft)
        yield from binary_operators(impl)


# --- the functions of the extension -------------------------------------------------------------------------------------


def member(_native, **changed):
    """Describe a member of the family as the extension reads it."""
    settings = {**NUMBERS, "all_classes": 0}
    own = {
        "penalty": _native.PENALTIES["Focal"], "penalty_a": 2.0, "penalty_b": 0.0, "bias": torch.rand(C), "masked": False,
        "spread": torch.ones(C), "spread_classes": float(C), "spread_sum": float(C),
    }  # fmt: skip
    settings |= {name: value for name, value in changed.items() if name in settings}
    own |= {name: value for name, value in changed.items() if name not in settings}
    return SimpleNamespace(settings=SimpleNamespace(**settings), **own)


def wrong_members(_native):
    kinds = _native.PENALTIES
    for name, values in {
        **{name: (NAN, INF) for name in NUMBERS if name in _native.NUMBERS},
        "temperature": (0.0, -1.0, NAN, INF), "softcap": (-1.0, NAN, INF), "z_loss": (-1.0, NAN, INF),
        "penalty": (-1, max(kinds.values()) + 1, 1 << 40), "penalty_a": (-1.0, NAN, INF), "spread_classes": (-1.0, NAN),
    }.items():  # fmt: skip
        for value in values:
            yield Wrong(f"{name} {value}", member(_native, **{name: value}), False)
    for kind, parameter in (("GCE", 0.0), ("GCE", 2.0), ("Taylor", 0.0), ("Taylor", 1.5), ("Taylor", 1e15)):
        yield Wrong(f"{kind} {parameter}", member(_native, penalty=kinds[kind], penalty_a=parameter), False)
    yield Wrong("masked by nothing", member(_native, masked=True, bias=None), False)
    for name in ("bias", "spread"):
        for wrong in tensors(torch.rand(C), {torch.float32}, True):
            yield Wrong(f"{name} {wrong.what}", member(_native, **{name: wrong.value}), False)
    yield Wrong("object", object(), False)


def outputs(right, *names):
    """Spoil what is written to: beside the shape and dtype, memory that something else uses, or a sign put off."""
    for name in names:
        t = right[name]
        kinds = [*tensors(t, {t.dtype}, True)]
        if t.dim() == 0:
            kinds = [w for w in kinds if w.what != "a dimension more"]
        if t.dim():
            kinds.append(Wrong("expanded", t.narrow(0, 0, 1).expand(t.shape)))
        if t.is_floating_point():
            kinds.append(Wrong("negative", negative(t)))
            kinds.append(Wrong("zeros to come", torch._efficientzerotensor(t.shape, dtype=t.dtype)))
        for other, value in right.items():
            if isinstance(value, torch.Tensor) and other != name and {name, other} != {"grad_logits", "logits"}:
                shared = value.view(-1).view(torch.uint8)
                size = t.numel() * t.element_size()
                if shared.numel() >= size and shared.data_ptr() % t.element_size() == 0:
                    kinds.append(Wrong(f"in the place of {other}", shared[:size].view(t.dtype).view(t.shape), False))
        yield name, kinds


def negative(t):
    """Return a tensor like this whose sign torch has put off changing."""
    return torch._neg_view(t.clone())


def softmax_functions(_native, dtype, soft):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(N, C).to(dtype)
    t = torch.rand(N, C).to(dtype) if soft else torch.tensor([0, 2, -100, 4])
    c, name = torch.rand(C, dtype=wide), f"{dtype} {'soft' if soft else 'index'}"
    said = {"logits": x, "target": t, "weight": c, "ignore_index": -100, "smoothing": 0.1}
    wrong = {
        "logits": [*tensors(x, {dtype} if wide == torch.float64 else FLOATS - {torch.float64})],
        "target": [*tensors(t, {dtype, wide} if soft else INTEGERS, not soft), *([] if soft else labels())],
        "weight": [*tensors(c, {wide}, True)],
        "smoothing": WRONG_SMOOTHING,
    }
    loss, rows, lse = torch.empty(N, dtype=wide), torch.empty(N, dtype=wide), torch.empty(2, N, dtype=wide)
    more = member(_native, bias=torch.rand(C, dtype=wide), spread=torch.ones(C, dtype=wide))
    wrong_more = {"member": [*wrong_members(_native)]} if wide == torch.float32 else {}
    kept = {name: torch.empty(N, dtype=wide) for name in ("entropy", "target_log_prob")}
    kept |= {"correct": torch.empty(N, dtype=torch.uint8), "predicted": torch.empty(N, dtype=torch.int64)}
    wrong_kept = [
        Wrong(f"{name} {w.what}", SimpleNamespace(**{**kept, name: w.value}), False)
        for name, t in kept.items()
        for w in tensors(t, {t.dtype}, True)
    ] + [Wrong("one place", SimpleNamespace(**{**kept, "target_log_prob": kept["entropy"]}), False)]
    right = said | {
        "reduction": 0, "loss": loss, "row_weight": rows, "lse": lse, "member": more,
        "statistics": SimpleNamespace(**kept),
    }  # fmt: skip
    yield Call(f"softmax_forward rows {name}", _native.softmax_forward, right, wrong | wrong_more | {
        "reduction": numbers(-1, 3), "statistics": wrong_kept, **dict(outputs(right, "loss", "row_weight", "lse")),
    })  # fmt: skip
    right = said | {"reduction": 2, "loss": torch.empty((), dtype=wide), "row_weight": None, "lse": lse, "member": more}
    yield Call(f"softmax_forward mean {name}", _native.softmax_forward, right, wrong | {
        "reduction": [*numbers(-1, 3), Wrong("of no rows", 0, False)], "row_weight": [Wrong("there", rows)],
        **dict(outputs(right, "loss", "lse")),
    })  # fmt: skip
    right["statistics"] = None
    _native.softmax_forward(*right.values())
    grad, on_x, on_t = torch.rand(N, dtype=wide), torch.empty_like(x), torch.empty_like(t) if soft else None
    right = {
        "grad": grad, "divisor": 2.0, "logits": x, "target": t, "weight": c, "lse": lse, "ignore_index": -100,
        "smoothing": 0.1, "grad_logits": on_x, "grad_target": on_t, "member": more,
    }  # fmt: skip
    apart = [w for w in dict(outputs(right, "grad_logits"))["grad_logits"] if w.what != "apart"]
    on_target = {"grad_target": [Wrong("of indices", torch.empty(N, C, dtype=dtype)), Wrong("its own", t)]}
    if soft:
        on_target = {
            "grad_target": [w for w in dict(outputs(right, "grad_target"))["grad_target"] if w.what != "apart"]
        }
    yield Call(f"softmax_backward {name}", _native.softmax_backward, right, wrong | wrong_more | on_target | {
        "grad": incoming(grad, {wide}, True), "lse": tensors(lse, {wide}, True), "grad_logits": apart,
    })  # fmt: skip
    right = said | {
        "mean": True, "loss": torch.empty((), dtype=wide), "grad_logits": on_x, "factor": 2.0, "member": more,
        "sample_weight": torch.rand(N, dtype=wide),
    }  # fmt: skip
    on_loss = {"loss": [w for w in dict(outputs(right, "loss"))["loss"] if w.what != str(dtype)]}
    apart = [w for w in apart if "grad_target" not in w.what]
    yield Call(f"softmax_sum {name}", _native.softmax_sum, right, wrong | wrong_more | on_loss | {
        "grad_logits": apart, "sample_weight": tensors(right["sample_weight"], {wide}, True),
    })  # fmt: skip
    if dtype != wide:
        said["weight"], wrong["weight"] = None, [Wrong("there", c, False)]
    yield from short_softmax_functions(_native, said, wrong, name)


def refusing(short, reduction=None):
    """Make an error of the answer that the arguments have to be looked at first."""

    def function(*given):
        answer = short(*given) if reduction is None else short(*given, reduction=reduction)
        if answer is None:
            raise ValueError("the short way takes no such arguments")
        return [t for t in results(answer) if t.is_floating_point()]

    return function


def backward_of(gradient, saved):
    """Return a backward over what a node of so many saved tensors has; None where it is left to the backward in Python."""
    in_python = SimpleNamespace(backward=lambda ctx, grad: None)

    def function(grad, *parts):
        given, kept = parts[:saved], parts[saved:]
        with torch.no_grad():  # as autograd runs a backward
            return gradient(SimpleNamespace(saved_tensors=given, formed=kept, _forward_cls=in_python), grad)

    return refusing(function)


def unnamed(wrong):
    return {name: [Wrong(each.what, each.value, False) for each in kinds] for name, kinds in wrong.items()}


def short_softmax_functions(_native, said, wrong, name):
    """The short way, which looks at what a caller gave: it has to refuse whatever the others do."""
    wrong = unnamed(wrong)
    if said["weight"] is None and not said["target"].is_floating_point():  # nothing says what the logits have to be
        wrong["logits"] = [each for each in wrong["logits"] if each.what not in ("long 1", "torch.float64")]

    def cross_entropy(logits, target, weight, ignore_index, smoothing, reduction):
        return short.cross_entropy(
            logits, target, weight, ignore_index=ignore_index, label_smoothing=smoothing, reduction=reduction
        )

    for reduction in ("none", "mean"):
        yield Call(f"short way {name} {reduction}", refusing(cross_entropy, reduction), said, wrong)
    followed = said | {"logits": said["logits"].detach().clone().requires_grad_()}
    kept = cross_entropy(*followed.values(), "none").grad_fn.formed[0]
    wide = torch.float64 if said["logits"].dtype == torch.float64 else torch.float32
    grad, lse = torch.rand(N, dtype=wide), torch.frombuffer(bytearray(kept), dtype=wide).view(2, N)
    tensors_of, numbers_of = list(said.items())[:3], list(said.items())[3:]
    right = {"grad": grad, **dict(tensors_of), "lse": None, "kept": kept, **dict(numbers_of)}
    strings = [Wrong("short", kept[:-1], False), Wrong("long", kept + b"0", False), Wrong("none", None, False)]
    yield Call(f"rows_gradient {name}", backward_of(_native.rows_gradient, 4), right, wrong | unnamed({
        "grad": tensors(grad, {wide, said["logits"].dtype}, True), "kept": strings
    }))  # fmt: skip
    right = right | {"lse": lse, "kept": None}  # as many rows have it
    yield Call(f"rows_gradient {name} of a tensor", backward_of(_native.rows_gradient, 4), right, unnamed({
        "lse": tensors(lse, {wide}, True)
    }))  # fmt: skip


def binary_functions(_native, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, t, w = torch.randn(N, C).to(dtype), torch.rand(N, C).to(dtype), torch.rand(N, C, dtype=wide)
    said = {"logits": x, "target": t, "weight": w, "pos_weight": w.clone()}
    wrong = {
        "logits": [*tensors(x, {dtype} if wide == torch.float64 else FLOATS - {torch.float64}, True)],
        "target": [*tensors(t, {dtype, wide}, True)],
        "weight": [*tensors(w, {wide})], "pos_weight": [*tensors(w, {wide})],
    }  # fmt: skip
    for reduce in (False, True):
        right = said | {
            "reduce": reduce, "divisor": 2.0, "loss": torch.empty(() if reduce else (N, C), dtype=wide)
        }  # fmt: skip
        yield Call(
            f"binary_forward {dtype} {reduce}", _native.binary_forward, right, wrong | dict(outputs(right, "loss"))
        )
    grad = torch.rand(N, C, dtype=wide)
    right = {"grad": grad, "divisor": 2.0, **said, "grad_logits": x.clone(), "grad_target": t.clone()}
    yield Call(f"binary_backward {dtype}", _native.binary_backward, right, wrong | {
        "grad": tensors(grad, {wide}, True), **dict(outputs(right, "grad_logits", "grad_target"))
    })  # fmt: skip
    said = {"logits": x, "target": t}
    wrong = unnamed({"logits": tensors(x, {dtype}, True), "target": tensors(t, {dtype}, True)})
    for reduction in ("none", "mean"):
        yield Call(
            f"short way binary {dtype} {reduction}", refusing(short.binary_cross_entropy, reduction), said, wrong
        )
    right = {"grad": grad, **said, "nothing": None}
    yield Call(f"elements_gradient {dtype}", backward_of(_native.elements_gradient, 3), right, wrong | {
        "grad": unnamed({"grad": tensors(grad, {wide, dtype}, True)})["grad"]
    })  # fmt: skip


def other_functions(_native):
    g, x, sums = torch.randn(N, C).bfloat16(), torch.randn(N, D).bfloat16(), torch.zeros(C, D)
    right = {"g": g, "x": x, "sums": sums, "first": True}
    yield Call("accumulate", _native.accumulate, right, {
        "g": [Wrong(w.what, w.value, False) for w in tensors(g, {torch.bfloat16}, True)],
        "x": [Wrong(w.what, w.value, False) for w in tensors(x, {torch.bfloat16}, True)], **dict(outputs(right, "sums")),
    })  # fmt: skip
    right = {"numbers": torch.rand(N), "factor": 2.0}
    floats = {str(dtype) for dtype in FLOATS}
    kinds = [w for w in dict(outputs(right, "numbers"))["numbers"] if w.what not in {*SHAPES, *floats}]
    yield Call("scale", _native.scale, right, {"numbers": kinds})
    right = {"shape": [1 << 18], "strides": [1], "code": 2, "bits": 32}
    yield Call("recycled", _native.recycled, right, {
        "shape": [*numbers([-1], [1 << 62], []), Wrong("wide", [1 << 40, 1 << 40], False), Wrong("None", None, False)],
        "strides": [*numbers([], [1, 1], [2], [-1], [1 << 62]), Wrong("None", None, False)],
        "code": [*numbers(3, 5, 6), Wrong("-1", -1, False)], "bits": [*numbers(0, 1, 8, 128), Wrong("-1", -1, False)],
    })  # fmt: skip
    yield Call("use_isa", _native.use_isa, {"name": _native.isa()}, {
        "name": [Wrong(repr(v), v, False) for v in ("", "mmx", None, 3, "x" * 10**6)]
    })  # fmt: skip
    yield Call("use_threads_of", _native.use_threads_of, {"library": "/nowhere/libtorch_cpu.so"}, {
        "library": [Wrong(repr(v), v, False) for v in (None, 12345, b"x")]
    })  # fmt: skip
    yield Call("know_types", _native.know_types, {"tensor": torch.Tensor, "parameter": torch.nn.Parameter}, {
        name: [Wrong(repr(v), v, False) for v in (None, 3, "Tensor")] for name in ("tensor", "parameter")
    })  # fmt: skip
    makers = ("empty_like", "recycled_like", "lse_of", "rows_of", "number")
    yield Call("know_makers", _native.know_makers, dict.fromkeys(makers, torch.empty_like), {
        name: [Wrong(repr(v), v, False) for v in (None, 3, "empty_like")] for name in makers
    })  # fmt: skip
    yield from attaching_functions(_native)


def attaching_functions(_native):
    """What attaches losses to their logits: Python tells it what to ask, and autograd calls it."""

    def wrongs(**values):
        return [Wrong(name.replace("_", " "), value, False) for name, value in values.items()]

    x, questions = torch.randn(N, C), vars(small.QUESTIONS)
    odd = {f"{name} {value}": SimpleNamespace(**questions | {name: value}) for name in questions for value in (None, 3)}
    yield Call("know_torch", _native.know_torch, {"questions": SimpleNamespace(**questions)}, {
        "questions": wrongs(none=None, nothing=SimpleNamespace(), **odd)
    })  # fmt: skip
    right = {"names": ["input", "target", "reduction"], "defaults": (None, None, "mean")}
    yield Call("short way of names", _native.short_binary_cross_entropy, right, {
        "names": wrongs(none=None, fewer=["input", "target"], others=["a", "b", "c"], numbers=[1, 2, 3]),
        "defaults": wrongs(none=None, fewer=(None, None), a_list=[None, None, "mean"]),
    })  # fmt: skip
    way = _native.short_binary_cross_entropy(*right.values())
    yield Call("short way", refusing(way), {"given": (x, x.sigmoid(), "mean")}, {
        "given": wrongs(none=None, empty=(), fewer=(x, x), more=(x, x, "mean", 1), number=(x, x, 3), text=("x", x, "mean"))
    })  # fmt: skip
    made = (x.sum(), (), ())
    yield Call("attach", _native.attach, {"ctx": SimpleNamespace(), "logits": x, "made": made}, {
        "ctx": wrongs(none=None, number=3), "made": wrongs(none=None, fewer=made[:2], a_list=list(made))
    })  # fmt: skip

    def hand_over(gradients, factor, others, grad):
        taken_from = gradients.copy() if isinstance(gradients, list) else gradients
        in_python = SimpleNamespace(backward=lambda ctx, grad: None)
        with torch.no_grad():
            return _native.sum_gradient(
                SimpleNamespace(formed=(taken_from, factor, *others), _forward_cls=in_python), grad
            )

    right = {"gradients": [x], "factor": 1.0, "others": (x.dtype, True), "grad": torch.tensor(1.0)}
    yield Call("sum_gradient", refusing(hand_over), right, {
        "gradients": wrongs(none=None, taken=[], no_list=x), "factor": wrongs(another=2.0, text="1", none=None),
        "others": wrongs(fewer=(x.dtype,)),
        "grad": wrongs(another=torch.tensor(2.0), rows=torch.ones(N), whole=torch.tensor(1), none=None, text="1"),
    })  # fmt: skip
    functions = dict.fromkeys(("sum", "rows", "binary_sum", "elements"), torch.empty_like) | {"expected": {}}
    yield Call("know_functions", _native.know_functions, functions, {  # the last, since nothing is attached as it was any more
        name: wrongs(none=None, number=3) for name in functions
    })  # fmt: skip


SHAPES = {"short 0", "empty 0", "long 0", "a dimension less", "a dimension more"}


def functions():
    from crossent.impl.native import _native

    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for soft in (False, True):
            yield from softmax_functions(_native, dtype, soft)
        yield from binary_functions(_native, dtype)
    yield from other_functions(_native)


# --- the process --------------------------------------------------------------------------------------------------------


def results(value):
    """List the numbers that a call gives, whichever way."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for each in value for t in results(each)] if isinstance(value, (tuple, list)) else []


def faked(value, mode):
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value)
    return [faked(each, mode) for each in value] if isinstance(value, list) else value


# What only real tensors can be wrong in, and what torch itself refuses to make a fake of.
REAL = {f"label {label}" for label in (C, 1 << 40, -1, -(1 << 40))} | {"meta", "sparse"}


def run(calls, fake=False):
    """Run calls with their right arguments and with each wrong one; return what did not go as it must, and how many ran."""
    faults, ran = [], 0
    mode = torch._subclasses.FakeTensorMode() if fake else None

    def call(each, **changed):
        if mode is None:
            return each.run(**changed)
        with mode:
            return each.function(*(faked(value, mode) for value in {**each.right, **changed}.values()))

    for each in calls:
        print(each.name, flush=True)
        try:
            right = results(call(each))
            if mode is None and not all(t.isfinite().all() for t in right):
                faults.append(f"{each.name}: right arguments give {right}")
        except Exception as error:
            faults.append(f"{each.name}: right arguments raise {type(error).__name__}: {error}")
            continue
        for name, wrongs in each.wrong.items():
            if name not in each.right:
                continue
            for wrong in wrongs:
                if mode is not None and wrong.what in REAL:
                    continue
                print(f"{each.name}: {name} {wrong.what}", flush=True)
                ran += 1
                try:
                    given = call(each, **{name: wrong.value})
                    faults.append(f"{each.name}: {name} {wrong.what}: no error, {given!s:.60}")
                except REFUSALS as error:
                    tensor = name not in ("logits", "input", "teacher_input", "g", "x") and wrong.named
                    if tensor and name not in str(error):
                        faults.append(f"{each.name}: {name} {wrong.what}: not named in {error!s:.150}")
    return faults, ran


def main(group):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    faults, ran = run({"operators": operators, "fake": operators, "functions": functions}[group](), group == "fake")
    print(json.dumps({"faults": faults, "ran": ran}))


def run_in_a_process(group, **environment):
    done = subprocess.run(
        [sys.executable, __file__, group], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"exit {done.returncode} at {lines[-1:]}: {done.stderr[-2000:]}"
    return json.loads(lines[-1])


@pytest.mark.parametrize("group", ["operators", "fake"])
def test_operators_refuse_what_is_wrong(group):
    told = run_in_a_process(group)
    assert not told["faults"], "\n".join(itertools.islice(told["faults"], 40))
    assert told["ran"] > 1000


def _isas():
    try:
        from crossent import _native
    except ImportError:
        return []
    return _native.isas()


@pytest.mark.parametrize("isa", _isas())
def test_the_extension_refuses_what_is_wrong(isa):
    told = run_in_a_process("functions", CROSSENT_ISA=isa)
    assert not told["faults"], "\n".join(itertools.islice(told["faults"], 40))
    assert told["ran"] > 1000


if __name__ == "__main__":
    main(sys.argv[1])
