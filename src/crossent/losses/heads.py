"""A module as the head of a linear loss: the matrix and bias with which its logits are ``h Wᵀ + b``, or why there are none.

A head is never called here, since its logits are not to exist. What only a call of it would do (hooks, a forward of its own)
would be lost in silence, and is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossent.core.checks import check_tensors

_HEADS = "nn.Linear, nn.Embedding, or a LoRA adapter of one"
_HOOKS = {
    "_forward_hooks": "forward hooks",
    "_forward_pre_hooks": "forward pre-hooks",
    "_backward_hooks": "backward hooks",
    "_backward_pre_hooks": "backward pre-hooks",
}


class ModuleHead(NamedTuple):
    """Hidden states ``(..., D)``, a matrix ``(C, D)`` and a bias ``(C)``, or None, that give the logits of a module."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None


def head_of(module: nn.Module, input: Tensor, linear_bias: Tensor | None = None) -> ModuleHead:
    """Take a module apart into what gives its logits; a bias may be given beside a module that has none."""
    check_tensors(input=input)
    head = _head(module, input)
    if linear_bias is None:
        return head
    if head.bias is not None:
        raise ValueError(
            f"linear_bias must be left out where linear_weight is a module with a bias of its own, got "
            f"{type(module).__name__} with a bias and a linear_bias: to replace the bias, pass the module's weight alone"
        )
    return head._replace(bias=linear_bias)


def parts_inside_a_call(module: nn.Module, input: Tensor) -> ModuleHead:
    """Take a module apart while it is being called. Its hooks run around its forward as ever, so they are not refused."""
    return _head(module, input, called=True)


def _head(module: nn.Module, input: Tensor, called: bool = False) -> ModuleHead:
    parts = module._modules
    compiled = parts.get("_orig_mod")  # of torch.compile
    if compiled is not None:
        return _head(compiled, input)
    if not called:
        _refuse_what_a_call_would_do(module)
    if parts.get("base_layer") is not None:
        return _adapted(module, input)
    if parts.get("original_module") is not None and "modules_to_save" in parts:
        return _head(_saved(module), input)
    _refuse_quantised(module)
    if isinstance(module, nn.Embedding):  # tied: it looks rows up, and a head multiplies by them
        return ModuleHead(input, module.weight, None)
    if isinstance(module, nn.Linear) and _own_forward(type(module)) is nn.Linear.forward:
        return ModuleHead(input, module.weight, module.bias)
    if isinstance(module, nn.Linear):
        raise TypeError(
            f"linear_weight must be a module whose logits are h Wᵀ + b, got {type(module).__qualname__}, a Linear with a forward "
            "of its own, which would be lost: pass the weight and bias that this comes to as linear_weight and linear_bias"
        )
    raise TypeError(
        f"linear_weight must be a torch.Tensor or a module whose logits are h Wᵀ + b, {_HEADS}, got "
        f"{type(module).__module__}.{type(module).__qualname__}: pass the Linear inside, and apply what comes before it to input"
    )


def _own_forward(kind: Any) -> Any:
    """Return the forward of a module's class; that of a deferred head is its plain class's."""
    return getattr(kind, "plain_class", kind).forward


def _refuse_what_a_call_would_do(module: nn.Module) -> None:
    """Refuse hooks, which run only when a module is called; an embedding may have some, for its lookups."""
    if isinstance(module, nn.Embedding):
        return
    for attribute, what in _HOOKS.items():
        hooks = getattr(module, attribute, None) or {}
        if not all(_gathers(hook) for hook in hooks.values()):
            raise RuntimeError(
                f"linear_weight must be a module without hooks, which run only when it is called, as it is not here: got "
                f"{type(module).__name__} with {what}, which would be lost. Remove them, with parametrizations in the place of "
                "weight_norm, spectral_norm and pruning; or pass the weight as linear_weight if the hooks do not change it"
            )
    if "forward" in module.__dict__:
        raise RuntimeError(
            f"linear_weight must be a module with the forward of its class, got {type(module).__name__} whose forward was "
            "replaced, as accelerate does to move weights: what it does would be lost. Remove the hook, or pass the weight"
        )


def _gathers(hook: Any) -> bool:
    """Whether a hook is FSDP's, which gathers weights for a call: those still sharded are DTensors, and are seen."""
    fsdp = sys.modules.get("torch.distributed.fsdp._fully_shard._fsdp_state")
    return fsdp is not None and isinstance(getattr(hook, "__self__", None), fsdp.FSDPState)


def _refuse_quantised(module: nn.Module) -> None:
    weight: Any = getattr(module, "weight", None)
    quantised = callable(weight) or (
        isinstance(weight, Tensor)
        and (not weight.is_floating_point() or type(weight).dequantize is not Tensor.dequantize)
    )
    if quantised:
        raise RuntimeError(
            f"linear_weight must hold floating numbers, got {type(module).__name__} with a quantised weight, whose scales would be "
            "lost: keep the head unquantised, as quantisers do by default, or pass its dequantised weight"
        )


# --- adapters, as PEFT has them -----------------------------------------------------------------------------------------


def _saved(module: Any) -> nn.Module:
    """Choose between a module and its trained copies, as a wrapper of modules to save does."""
    copies, active = module._modules["modules_to_save"]._modules, module.active_adapters
    if module.disable_adapters or any(name not in copies for name in active):
        original: nn.Module = module._modules["original_module"]
        return original
    chosen: nn.Module = copies[active[0]]
    return chosen


def _adapted(module: Any, input: Tensor) -> ModuleHead:
    """Take a LoRA layer apart: ``h Wᵀ + s (h Aᵀ) Bᵀ`` are the logits of ``[h, h Aᵀ]`` and the matrix ``[W, s B]``.

    They are those of the effective weight ``W + s B A``, of which a small ``B A`` in half precision would be rounded away.
    """
    head, merged = _head(module._modules["base_layer"], input), bool(getattr(module, "merged_adapters", ()))
    if getattr(module, "disable_adapters", False):
        if merged:
            raise RuntimeError(
                "linear_weight is a module whose adapters are merged and disabled: call its unmerge() first, as its forward does"
            )
        return head
    if merged or input.shape[-1:] != head.weight.shape[-1:]:  # the caller refuses features that do not fit
        return head
    adapted = _Columns([head.input], [head.weight], head.bias)
    for rank in _low_ranks(module, input):
        if _has_magnitude(module, rank.name):
            adapted.add_dora(module, rank, head)
        else:
            adapted.add(rank.down, rank.up, rank.bias)
    if len(adapted.inputs) == 1:
        return head
    return ModuleHead(torch.cat(adapted.inputs, -1), torch.cat(adapted.columns, 1), adapted.bias)


class _LowRank(NamedTuple):
    """An adapter's ``h Aᵀ``, ``s B`` and what is added to the bias; and the ``h`` that dropout left, where it does drop."""

    name: str
    down: Tensor
    up: Tensor
    bias: Tensor | None
    dropped: Tensor | None


class _Columns:
    """Features and the matrix columns that they are multiplied by, side by side, and a bias."""

    def __init__(self, inputs: list[Tensor], columns: list[Tensor], bias: Tensor | None) -> None:
        self.inputs, self.columns, self.bias = inputs, columns, bias

    def add(self, input: Tensor, columns: Tensor, bias: Tensor | None = None) -> None:
        """Add features with their columns, and something to the bias."""
        self.inputs.append(input.to(self.inputs[0].dtype))
        self.columns.append(columns.to(self.columns[0].dtype))
        if bias is not None:
            bias = bias.to(self.columns[0].dtype)
            self.bias = bias if self.bias is None else self.bias + bias

    def add_dora(self, module: Any, rank: _LowRank, base: ModuleHead) -> None:
        """Give each class's row of ``W + s B A`` the magnitude ``m`` that is learned; its norm counts as a constant.

        With ``g = m / |W + s B A|`` PEFT adds ``(g - 1) y + g s B A x``, where ``y`` is the sum so far without the layer's bias, or
        ``W x`` of what dropout left.
        """
        A, B, scale = module.lora_A[rank.name].weight, module.lora_B[rank.name].weight, module.scaling[rank.name]
        with torch.no_grad():
            kind = base.weight.dtype
            norm = torch.linalg.vector_norm(torch.addmm(base.weight, B.to(kind), A.to(kind), alpha=scale), dim=1)
        g = (module.lora_magnitude_vector[rank.name].weight.reshape(-1) / norm).unsqueeze(1)
        if rank.dropped is not None:
            self.add(rank.dropped, (g - 1) * base.weight)
        else:
            self.columns = [(g * columns).to(columns.dtype) for columns in self.columns]
            if self.bias is not None:
                of_layer = torch.zeros_like(self.bias) if base.bias is None else base.bias
                self.bias = self.bias + ((g.squeeze(1) - 1) * (self.bias - of_layer)).to(self.bias.dtype)
        self.add(rank.down, g * rank.up)


def _has_magnitude(module: Any, name: str) -> bool:
    return name in getattr(module, "lora_magnitude_vector", {})


def _low_ranks(module: Any, input: Tensor) -> list[_LowRank]:
    """List what each adapter that is active adds."""
    ranks: list[_LowRank] = []
    downs, ups, tables, columns = (
        getattr(module, factor, {}) for factor in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
    )
    for name in _active(module):
        if name in downs:
            down, up = downs[name], ups[name]
            if type(down) is not nn.Linear or type(up) is not nn.Linear:
                _refuse_adapter(module, f"its factors are {type(down).__name__} and {type(up).__name__}, not Linear")
            _refuse_what_a_call_would_do(up)
            dropout = getattr(module, "lora_dropout", {})
            x = input.to(down.weight.dtype)
            if _has_magnitude(module, name) and up.bias is not None:
                _refuse_adapter(module, f"its adapter {name!r} is DoRA with a bias of its own")
            drops = name in dropout and module.training and not isinstance(dropout[name], nn.Identity)
            x = dropout[name](x) if name in dropout else x
            factor, scale = up.weight, module.scaling[name]
            bias = None if up.bias is None else scale * up.bias
            ranks.append(_LowRank(name, down(x), scale * factor, bias, x if drops else None))
        elif name in tables:
            a, b = tables[name], columns[name]  # (r, C) and (D, r): of a table whose columns are features
            ranks.append(_LowRank(name, input.to(b.dtype) @ b, module.scaling[name] * a.t(), None, None))
        elif name in module.scaling:
            _refuse_adapter(module, f"its adapter {name!r} is no product of two matrices")
    return ranks


def _active(module: Any) -> list[str]:
    """Name the adapters that are active, if they are of the kind that is a product of two matrices."""
    if not isinstance(getattr(module, "scaling", None), Mapping):
        _refuse_adapter(module, "it is not LoRA")
    given: Any = getattr(module, "active_adapters", None)
    active: list[str] = list(module.scaling) if given is None else [given] if isinstance(given, str) else list(given)
    variants, dora = getattr(module, "lora_variant", {}), getattr(module, "use_dora", {})
    for name in active:
        kind = type(variants[name]).__name__ if name in variants else "DoRA" if dora.get(name) else ""
        linear_dora = kind in ("DoRA", "DoraLinearVariant") and name in getattr(module, "lora_A", {})
        if kind and not (linear_dora and _has_magnitude(module, name)):
            _refuse_adapter(module, f"its adapter {name!r} is a variant of LoRA, {kind}")
    if hasattr(module, "lora_E"):
        _refuse_adapter(module, "its rank is adapted")
    return active


def _refuse_adapter(module: object, why: str) -> None:
    raise RuntimeError(
        f"linear_weight must be {_HEADS}, got {type(module).__module__}.{type(module).__qualname__}: {why}, and the adapter would "
        "be lost. Merge it with merge() or merge_and_unload(), or pass the effective weight as linear_weight"
    )
