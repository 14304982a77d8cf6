"""How much memory a training will take on one rank, before it runs: counted on tensors that have a shape and no data.

The forward and backward pass of one micro-batch is played with torch's fake tensors, which compute nothing, and every storage
is counted from the operation that makes it to its end. So recomputation, frozen weights and casts of autocast are in it.
Not in it: the CUDA context, buffers of NCCL, what the allocator wastes, and what compile saves by fusing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.schema import RunSpec

if TYPE_CHECKING:
    import torch

    from bench.strategies.parts import Parts

_CASTS = {"bf16": "bfloat16", "fp16": "float16", "fp8": "bfloat16"}
"""Type of autocast by precision. The 8-bit casts of fp8 are not counted apart."""
_STATES = {"sgd": 1, "adagrad": 1, "adam": 2, "adamw": 2, "adamw8bit": 2}
"""Tensors of the shape of a parameter that an optimizer keeps."""
_UNKNOWN = {"pruning": "none", "quantization": "none", "distillation": "none"}
"""Axes that change what is in memory by more than shapes tell: with another value there is no estimate."""
_SHARDED = ("fsdp2", "hsdp", "fsdp_tp")


class Unknown(Exception):
    """There is no estimate for this configuration; the message says why."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank. `peak` is the greatest sum over a step; its parts are not all there at the same time.

    `activations` are what is held between the forward and the backward pass. `exchange` are buffers of collectives: those
    in which gradients travel (ddp), or the whole weights of the blocks at work (fsdp2).
    """

    weights: int
    gradients: int
    optimizer: int
    exchange: int
    activations: int
    peak: int


@dataclass(frozen=True)
class _Shares:
    """Which share of each part a rank holds."""

    weights: float = 1.0
    gradients: float = 1.0
    optimizer: float = 1.0
    activations: float = 1.0


def _shares(spec: RunSpec) -> _Shares:
    name, ranks, cut = spec.parallelism.name, spec.world_size, spec.devices_per_copy
    options = spec.parallelism.options
    if name == "zero1":
        return _Shares(optimizer=1 / ranks)
    if name in _SHARDED:
        share = 0.0 if options.get("offload") else 1 / int(options.get("shard", 2) if name == "hsdp" else ranks)
        return _Shares(share, share, share)
    if name in ("tp", "pp"):  # of a pipeline a rank sees its own layers alone
        return _Shares(1 / cut, 1 / cut, 1 / cut, 1 / cut if name == "pp" else 1.0)
    if name in ("single", "ddp", "cp"):
        return _Shares(activations=1 / cut)  # cp cuts the sequences
    raise Unknown(f"what a rank holds with parallelism {name} is not known")


class _Live:
    """Bytes of the storages that are alive, and their greatest sum with `held`, which is counted by hand."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0
        self.held = 0.0
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes or key in self.known:
            return
        self.sizes[key] = size = storage.nbytes()
        self.now += size
        self.look()
        weakref.finalize(storage, self._gone, key)

    def look(self) -> None:
        self.peak = max(self.peak, round(self.now + self.held))

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def watching(self) -> AbstractContextManager[Any]:
        """Context in which the results of all operations are counted."""
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        live = self

        class Watch(TorchDispatchMode):  # type: ignore[misc]  # torch's types are not read
            def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = function(*args, **(kwargs or {}))
                for leaf in tree_leaves(out):
                    if isinstance(leaf, torch.Tensor):
                        live.add(leaf)
                return out

        mode: AbstractContextManager[Any] = Watch()
        return mode


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def optimizer_bytes(spec: RunSpec, parameters: Iterable[torch.Tensor]) -> int:
    """Bytes of the state of the optimizer of these parameters, before it is sharded."""
    name, options = spec.optimizer.name, spec.optimizer.options
    if name not in _STATES:
        raise Unknown(f"the state of optimizer {name} is not known")
    copies = 0 if name == "sgd" and options.get("momentum", 0.9) == 0 else _STATES[name]
    total = 0
    for parameter in parameters:
        small = parameter.numel() < 4096 or parameter.numel() % 256
        # 8 bits an element, and a scale of 32 bits for each 256 of them
        each = 1 + 4 / 256 if name == "adamw8bit" and not small else parameter.element_size()
        total += round(copies * each * parameter.numel())
    return total


def _forgotten(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a forward pass whose saved activations are elsewhere (memory offload)."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    from bench.strategies.memory import is_weight

    def away(tensor: torch.Tensor) -> Any:
        return tensor if is_weight(tensor) else (tensor.shape, tensor.dtype)

    def back(packed: Any) -> torch.Tensor:
        return torch.empty(packed[0], dtype=packed[1]) if isinstance(packed, tuple) else packed

    with saved_tensors_hooks(away, back):
        return forward(*args, **kwargs)


def _build(spec: RunSpec) -> Parts:
    """Put the parts together as a training would, as far as they change what is in memory."""
    import torch

    from bench.strategies.memory import put_around
    from bench.strategies.parts import Parts
    from bench.strategies.precision import Precision, store_in_bf16

    for axis, none in _UNKNOWN.items():
        if getattr(spec, axis).name != none:
            raise Unknown(f"{axis} {getattr(spec, axis).name} is not counted")
    device = torch.device("cpu")
    workload = registry.load("workload", spec.workload)(spec.workload_args)
    cast = _CASTS.get(spec.precision.name)
    precision = Precision((device.type, getattr(torch, cast)) if cast else None)
    parts = Parts(spec, device, workload, workload.build().train(), precision)
    registry.load("finetune", spec.finetune.name)(parts, **spec.finetune.options)
    if spec.memory.name == "offload":
        put_around(parts.blocks, _forgotten)
    else:
        registry.load("memory", spec.memory.name)(parts, **spec.memory.options)
    if spec.precision.name == "bf16_params":
        store_in_bf16(parts)
    return parts


def estimate(spec: RunSpec) -> Footprint:
    """Estimate what a rank of a run holds in memory. Raises Unknown where that is not known; computes nothing."""
    if not isinstance(spec.batch_size_per_device, int):
        raise Unknown("the batch is to be found" if spec.batch_size_per_device else "the batch is not known")
    # What does not change the memory of a rank is not asked for twice.
    same = {"seed": 0, "repeat": 0, "ladder": None, "measure_seconds": 1.0, "measure_steps": None, "target": None}
    ranks = {"num_nodes": 1, "devices_per_node": 1} if spec.parallelism.name in ("single", "ddp") else {}
    plain = spec.changed(**same, **ranks, warmup_steps=1, timeout_seconds=1.0, saves=None)
    return _estimate(plain.model_dump_json())


@cache
def _estimate(text: str) -> Footprint:
    from torch._subclasses.fake_tensor import FakeTensorMode

    spec = RunSpec.model_validate_json(text)
    with _plain_sums(), FakeTensorMode(allow_non_fake_inputs=True):
        return _played(spec)


@contextmanager
def _plain_sums() -> Iterator[None]:
    """Leave the random state of the process as it is."""
    import torch

    with torch.random.fork_rng(devices=[]):
        yield


def _played(spec: RunSpec) -> Footprint:
    import torch

    parts, shares = _build(spec), _shares(spec)
    parameters = list(parts.model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights = round(shares.weights * _bytes(parameters)) + _bytes(parts.model.buffers())
    gradients, optimizer = shares.gradients * _bytes(trained), round(shares.optimizer * optimizer_bytes(spec, trained))
    exchange = _exchange(spec, parts, trained)
    live = _Live([*parameters, *parts.model.buffers()])
    live.held = gradients if spec.gradient_accumulation_steps > 1 else 0.0

    def arrived(parameter: torch.nn.Parameter) -> None:
        size, parameter.grad = _bytes([parameter]) * shares.gradients, None
        if spec.gradient_accumulation_steps == 1:
            live.held += size
            live.look()

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(arrived)
    sample = parts.workload.train.__getitems__([0])
    batch = tuple(torch.empty((spec.batch_size_per_device, *t.shape[1:]), dtype=t.dtype) for t in sample)
    with _attention(spec), live.watching():
        with parts.precision.context():
            loss = parts.loss(parts.model, batch)
        activations = live.now
        loss.backward()
    step = (live.peak - live.held) * shares.activations + live.held if shares.activations < 1 else live.peak
    fused = spec.optimizer.options.get("implementation", "auto") in ("auto", "fused") or "8bit" in spec.optimizer.name
    update = gradients + (0 if fused else gradients if spec.optimizer.options["implementation"] == "foreach" else 0)
    peak = round(weights + optimizer + exchange + max(step, update))
    return Footprint(weights, round(gradients), optimizer, exchange, round(activations * shares.activations), peak)


def _exchange(spec: RunSpec, parts: Parts, trained: list[torch.Tensor]) -> int:
    """Bytes of buffers of collectives that stay, or come back, through a step."""
    if spec.parallelism.name in ("ddp", "zero1"):
        return _bytes(trained)  # buckets of gradients, beside the gradients
    if spec.parallelism.name in _SHARDED:
        blocks = sorted((_bytes(block.parameters()) for block in parts.blocks), reverse=True)
        outside = _bytes(parts.model.parameters()) - sum(blocks)
        if not spec.parallelism.options.get("reshard", True):
            return outside + sum(blocks) + sum(blocks[:1])
        # The weights of the block at work and of the next, the gradients of one, and what is in no block.
        return outside + sum(blocks[:2]) + sum(blocks[:1])
    return 0


def _attention(spec: RunSpec) -> AbstractContextManager[Any]:
    """Let attention be the kernel that holds the square of the sequence only where that was asked for."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if spec.attention.name != "math":
        return nullcontext()
    plain: AbstractContextManager[Any] = sdpa_kernel(SDPBackend.MATH)
    return plain


def peak_bytes(spec: RunSpec) -> int | None:
    """Return the estimated peak of a rank in bytes; None where there is none, whatever the reason."""
    try:
        return estimate(spec).peak
    except Exception:  # noqa: BLE001  an estimate is no reason for anything else to fail
        return None
