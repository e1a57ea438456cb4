"""The short way of plain calls, asked by itself: what takes all arguments of a loss and gives None where it does not take them."""

import inspect

import torch

import crossent
from crossent.core import watch
from crossent.losses import binary, softmax
from crossent.ops.lean import Unreduced

watch.current()  # the first call of a process takes no short way, for it reads in the environment whether somebody watches


def all_arguments(function, *args, **kwargs):
    """Return the arguments of a call in the order of the signature, with the defaults of those that are left out."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return tuple(bound.arguments.values())


def cross_entropy(*args, **kwargs):
    return softmax._short(all_arguments(crossent.cross_entropy, *args, **kwargs))


def binary_cross_entropy(*args, **kwargs):
    return binary._short(all_arguments(crossent.binary_cross_entropy_with_logits, *args, **kwargs))


def gradient_formed_by_kernels(loss, grad, monkeypatch):
    """Return the gradient for the logits, or None where the backward in Python was asked for it."""
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(Unreduced, "backward", staticmethod(lambda ctx, grad: None))
        gradient = loss.grad_fn.apply(grad)
    return None if gradient is None else gradient[0]
