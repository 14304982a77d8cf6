"""Optimizers: functions `(parameters, **options) -> optimizer`.

`implementation` chooses the kernels of an update: one kernel for many parameters and all operations (`fused`), one for each
operation on many parameters (`foreach`), or one for each operation on each parameter (`loop`). `auto` is fused where torch
supports it. With a gradient scaler (fp16) all but fused make the host wait for the device in every step, to know whether a
gradient overflowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import _init_optim_state
from torch.distributed.tensor import DTensor
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from bench.strategies.graph import needs_compilers
from bench.strategies.parts import Unsupported

_Tensors = Iterable[torch.nn.Parameter]


_KINDS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False, "fused": False}}


def _make(cls: Any, weights: _Tensors, implementation: str, **options: Any) -> torch.optim.Optimizer:
    tensors = list(weights)
    tried = ["fused", "foreach"] if implementation == "auto" else [implementation]
    for kind in tried:
        try:
            if kind == "fused":
                _check_fused(cls.__name__, tensors)
            made: torch.optim.Optimizer = cls(tensors, **_KINDS[kind], **options)
            return made
        except RuntimeError as error:
            if kind == tried[-1]:
                raise Unsupported(f"optimizer {cls.__name__}, {kind}: {str(error).splitlines()[0]}") from error
    raise AssertionError("the last kind returns or raises")


def _check_fused(name: str, parameters: list[torch.nn.Parameter]) -> None:
    """Raise RuntimeError where the first step would: torch does not check it earlier."""
    if name not in ("Adam", "AdamW") and any(isinstance(parameter, DTensor) for parameter in parameters):
        raise RuntimeError("torch has no fused kernel for sharded parameters")
    devices = _get_fused_kernels_supported_devices()
    if not all(p.device.type in devices and p.is_floating_point() for p in parameters):
        raise RuntimeError(f"torch has fused kernels for floating-point parameters on {', '.join(devices)}")


def sgd(
    weights: _Tensors,
    *,
    learning_rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    implementation: str,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013)."""
    options = {"lr": learning_rate, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    made = _make(torch.optim.SGD, weights, implementation, **options)
    if momentum and made.defaults["fused"]:
        # If fp16 overflows in the very first step, the fused kernel leaves the momentum uninitialized.
        for parameter in made.param_groups[0]["params"]:
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return made


def adagrad(
    weights: _Tensors, *, learning_rate: float, weight_decay: float, implementation: str
) -> torch.optim.Optimizer:
    """Adagrad (Duchi et al. 2011)."""
    return _make(torch.optim.Adagrad, weights, implementation, lr=learning_rate, weight_decay=weight_decay)


def _moments(
    cls: Any,
    weights: _Tensors,
    *,
    learning_rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    implementation: str,
) -> torch.optim.Optimizer:
    options = {"lr": learning_rate, "betas": (beta1, beta2), "eps": epsilon, "weight_decay": weight_decay}
    return _make(cls, weights, implementation, **options)


adam = partial(_moments, torch.optim.Adam)
"""Adam (Kingma and Ba 2015); `weight_decay` is added to the gradient."""
adamw = partial(_moments, torch.optim.AdamW)
"""AdamW (Loshchilov and Hutter 2019): `weight_decay` shrinks the weights themselves."""


def adamw8bit(
    weights: _Tensors, *, learning_rate: float, weight_decay: float, beta1: float, beta2: float, epsilon: float
) -> torch.optim.Optimizer:
    """AdamW with both moments in 8 bits, in blocks of 256 with one scale each (Dettmers et al. 2022), by torchao.

    The moments of parameters with fewer than 4096 elements have 32 bits. The update is compiled, so it needs the compilers.
    """
    tensors = list(weights)
    if tensors:
        needs_compilers(tensors[0].device)
    options: dict[str, Any] = {"betas": (beta1, beta2), "eps": epsilon, "weight_decay": weight_decay}
    made: torch.optim.Optimizer = import_module("torchao.optim").AdamW8bit(tensors, lr=learning_rate, **options)
    return made


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Create the state that an optimizer otherwise creates in its first step, without a change of the weights.

    In the first step it would fill holes in the memory of the activations, which then find no room in the second one.
    """
    _init_optim_state(optimizer)
    for state in getattr(optimizer, "optim", optimizer).state.values():
        state |= {"step": 0 * state["step"]} if "step" in state else {}  # the bias correction of Adam counts the steps
