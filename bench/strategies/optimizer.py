"""Optimizers, with the options that a suite may give: functions `(parameters, **options) -> optimizer`.

`implementation` says how an update becomes kernels: one for many parameters and all of its arithmetic (`fused`), one for
many parameters and each operation (`foreach`), one for each of both (`loop`). `auto` is fused where torch can. With a
gradient scaler (fp16) all but fused make the host wait for the device in every step, to know whether a gradient overflowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench.strategies.precision import Unsupported

if TYPE_CHECKING:
    import torch

    _Parameters = Iterable[torch.nn.Parameter]

_KINDS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False, "fused": False}}


def _make(cls: Any, parameters: _Parameters, implementation: str, **options: Any) -> torch.optim.Optimizer:
    if implementation not in ("auto", *_KINDS):
        raise Unsupported(f"optimizer: implementation is auto, fused, foreach or loop, not {implementation!r}")
    held = list(parameters)
    tried = ["fused", "foreach"] if implementation == "auto" else [implementation]
    for kind in tried:
        try:
            if kind == "fused":
                _check_fused(cls.__name__, held)
            made: torch.optim.Optimizer = cls(held, **_KINDS[kind], **options)
            return made
        except RuntimeError as error:
            if kind == tried[-1]:
                raise Unsupported(f"optimizer {cls.__name__}, {kind}: {str(error).splitlines()[0]}") from error
    raise AssertionError("one of the kinds was returned or raised")


def _check_fused(name: str, parameters: list[torch.nn.Parameter]) -> None:
    """Raise RuntimeError where the first step would: torch looks at this no earlier."""
    from torch.distributed.tensor import DTensor
    from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

    if name not in ("Adam", "AdamW") and any(isinstance(parameter, DTensor) for parameter in parameters):
        raise RuntimeError("torch has no fused kernel of it for parameters that are sharded")
    devices = _get_fused_kernels_supported_devices()
    if not all(p.device.type in devices and p.is_floating_point() for p in parameters):
        raise RuntimeError(f"torch has fused kernels for floating-point parameters on {', '.join(devices)}")


def sgd(
    parameters: _Parameters,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    implementation: str = "auto",
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013)."""
    import torch

    if nesterov and not momentum > 0:
        raise Unsupported("optimizer sgd: nesterov needs a momentum above 0")
    options = {"lr": learning_rate, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    made = _make(torch.optim.SGD, parameters, implementation, **options)
    if momentum and made.defaults["fused"]:
        # The fused kernel leaves the momentum as it found it, uninitialised, where fp16 overflows in the very first step.
        for parameter in made.param_groups[0]["params"]:
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return made


def adagrad(
    parameters: _Parameters, learning_rate: float = 0.01, weight_decay: float = 0.0, implementation: str = "auto"
) -> torch.optim.Optimizer:
    """Adagrad (Duchi et al. 2011)."""
    import torch

    return _make(torch.optim.Adagrad, parameters, implementation, lr=learning_rate, weight_decay=weight_decay)


def adam(
    parameters: _Parameters,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    implementation: str = "auto",
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015); `weight_decay` is added to the gradient."""
    import torch

    options = {"lr": learning_rate, "betas": (beta1, beta2), "eps": epsilon, "weight_decay": weight_decay}
    return _make(torch.optim.Adam, parameters, implementation, **options)


def adamw(
    parameters: _Parameters,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    implementation: str = "auto",
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019): `weight_decay` shrinks the weights themselves."""
    import torch

    options = {"lr": learning_rate, "betas": (beta1, beta2), "eps": epsilon, "weight_decay": weight_decay}
    return _make(torch.optim.AdamW, parameters, implementation, **options)


def adamw8bit(
    parameters: _Parameters,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW whose two moments are kept in 8 bits, in blocks of 256 with a scale each (Dettmers et al. 2022), by torchao.

    Parameters of less than 4096 elements keep theirs in 32 bits. Its update is compiled: it needs what compile needs.
    """
    try:
        library = import_module("torchao.optim")
    except ImportError as error:
        raise Unsupported("optimizer adamw8bit needs torchao: pip install 'wattbench[strategies]'") from error
    from bench.strategies.graph import needs_compilers

    held = list(parameters)
    if held:
        needs_compilers(held[0].device)
    options: dict[str, Any] = {"betas": (beta1, beta2), "eps": epsilon, "weight_decay": weight_decay}
    made: torch.optim.Optimizer = library.AdamW8bit(held, lr=learning_rate, **options)
    return made
