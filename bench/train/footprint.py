"""Estimated memory of a training on one rank, before it runs.

The forward and backward pass of one micro-batch runs on torch's fake tensors, which have a shape and no data. Every storage
is counted from its allocation to its release, so recomputation, frozen weights and autocast's casts are included. Not
included: the CUDA context, NCCL buffers, fragmentation of the allocator, and what compile saves by fusion.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import registry
from bench.schema import Choice, RunSpec
from bench.strategies import catalog
from bench.strategies.memory import is_weight, put_around
from bench.strategies.parts import Parts, Precision
from bench.strategies.precision import store_in_bf16

_CASTS = {"bf16": "bfloat16", "fp16": "float16", "fp8": "bfloat16"}
"""Autocast type by precision. The 8-bit casts of fp8 are not counted separately."""
_STATES = {"sgd": 1, "adagrad": 1, "adam": 2, "adamw": 2, "adamw8bit": 2}
"""Number of tensors per parameter in the optimizer state."""
_UNKNOWN = {"pruning": "none", "quantization": "none", "distillation": "none"}
"""Axes whose effect on memory does not follow from shapes: any other value has no estimate."""


class Unknown(Exception):
    """This configuration has no estimate; the message gives the reason."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank. `peak` is the maximum over a step; its parts are not all allocated at the same time.

    `activations` are saved for the backward pass. `exchange` are the buffers of collectives: gradient buckets (ddp), or
    the gathered weights of the active blocks (fsdp2).
    """

    weights: int
    gradients: int
    optimizer: int
    exchange: int
    activations: int
    peak: int


@dataclass(frozen=True)
class _Shares:
    """Share of each part that a rank holds."""

    weights: float = 1.0
    gradients: float = 1.0
    optimizer: float = 1.0
    activations: float = 1.0


def _shares(spec: RunSpec) -> _Shares:
    options: Any = catalog.options("parallelism", spec.parallelism)
    share = 0.0 if getattr(options, "offload", False) else 1 / options.ways(spec.world_size)
    return _Shares(**dict.fromkeys(options.divides, share))


class _Live:
    """Bytes of the live storages, and the peak of their sum with `held`, which is counted by hand."""

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
        """Return a context that counts the results of all operations."""
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
    """Return the bytes of the unsharded optimizer state of these parameters."""
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
    """Run a forward pass whose saved activations are offloaded."""

    def away(tensor: torch.Tensor) -> Any:
        return tensor if is_weight(tensor) else (tensor.shape, tensor.dtype)

    def back(packed: Any) -> torch.Tensor:
        return torch.empty(packed[0], dtype=packed[1]) if isinstance(packed, tuple) else packed

    with saved_tensors_hooks(away, back):
        return forward(*args, **kwargs)


def _build(spec: RunSpec) -> Parts:
    """Assemble the parts of a training as far as they affect memory."""
    for axis, none in _UNKNOWN.items():
        if getattr(spec, axis).name != none:
            raise Unknown(f"{axis} {getattr(spec, axis).name} is not counted")
    device = torch.device("cpu")
    workload = registry.load("workload", spec.workload)(spec.workload_args)
    cast = _CASTS.get(spec.precision.name)
    precision = Precision((device.type, getattr(torch, cast)) if cast else None)
    parts = Parts(spec, device, workload, workload.build().train(), precision)
    catalog.load("finetune", spec.finetune)(parts)
    if spec.memory.name == "offload":
        put_around(parts.blocks, _forgotten)
    else:
        catalog.load("memory", spec.memory)(parts)
    if spec.precision.name == "bf16_params":
        store_in_bf16(parts)
    return parts


def estimate(spec: RunSpec) -> Footprint:
    """Estimate the memory of one rank of a run. Raises Unknown if that is not possible; computes nothing."""
    if not isinstance(spec.batch_size_per_device, int):
        raise Unknown(
            "the batch size is found at run time" if spec.batch_size_per_device else "the batch size is not known"
        )
    # Fields that do not affect memory share one cached estimate.
    same = {"seed": 0, "repeat": 0, "ladder": None, "measure_seconds": 1.0, "measure_steps": None, "target": None}
    ranks = {"num_nodes": 1, "devices_per_node": 1} if spec.parallelism.name in ("single", "ddp") else {}
    kept = {k: v for k, v in spec.optimizer.options.items() if k in ("implementation", "momentum")}
    training = {"optimizer": Choice(name=spec.optimizer.name, options=kept), "schedule": Choice(name="constant")}
    plain = spec.changed(**same, **ranks, **training, warmup_steps=1, timeout_seconds=1.0, saves=None)
    return _estimate(plain.model_dump_json())


@cache
def _estimate(text: str) -> Footprint:
    spec = RunSpec.model_validate_json(text)
    with _same_random_state(), FakeTensorMode(allow_non_fake_inputs=True):
        return _played(spec)


def computed() -> int:
    """Return how many estimates this process has computed; equal shapes share one."""
    return _estimate.cache_info().misses


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Preserve the random state of the process."""
    with torch.random.fork_rng(devices=[]):
        yield


def _played(spec: RunSpec) -> Footprint:

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
    """Return the bytes of communication buffers that are allocated during a step."""
    options: Any = catalog.options("parallelism", spec.parallelism)
    if options.buckets:
        return _bytes(trained)  # gradient buckets, in addition to the gradients
    if options.shards:
        blocks = sorted((_bytes(block.parameters()) for block in parts.blocks), reverse=True)
        outside = _bytes(parts.model.parameters()) - sum(blocks)
        if not options.reshard:
            return outside + sum(blocks) + sum(blocks[:1])
        # Weights of the active block and the next, gradients of one, and parameters outside all blocks.
        return outside + sum(blocks[:2]) + sum(blocks[:1])
    return 0


def _attention(spec: RunSpec) -> AbstractContextManager[Any]:
    """Select the attention kernel that stores the full score matrix only for `attention: math`."""
    if spec.attention.name != "math":
        return nullcontext()
    plain: AbstractContextManager[Any] = sdpa_kernel(SDPBackend.MATH)
    return plain


def peak_bytes(spec: RunSpec) -> int | None:
    """Return the estimated peak of a rank in bytes; None without an estimate, for whatever reason."""
    try:
        return estimate(spec).peak
    except Exception:  # noqa: BLE001  a failed estimate must not fail the run
        return None
