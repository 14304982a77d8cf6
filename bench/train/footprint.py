"""Estimated memory of a training on one rank, before it runs.

The forward and backward pass of one micro-batch runs on torch's fake tensors, which have a shape and no data. Every storage
is counted from its allocation to its release, so recomputation, frozen weights and autocast's casts are included. The pass
is that of a CPU; what autocast computes in 32 bits on GPUs alone is computed so. The model is the part that one rank has
under tensor parallelism; what other parallelisms gather and send is added. Not included: the context of the GPU, NCCL
buffers, fragmentation of the allocator, and what compile saves by fusion.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from bench import registry
from bench.schema import Choice, RunSpec
from bench.strategies import catalog
from bench.strategies.decoders import Decoder, replace_conv1d
from bench.strategies.memory import is_weight, put_around
from bench.strategies.parts import Parts, Precision
from bench.strategies.precision import store_as, store_in_bf16

_CASTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""Autocast type by precision. The 8-bit casts of fp8 are not counted separately."""
_STATES = {"sgd": 1, "adagrad": 1, "adam": 2, "adamw": 2, "adamw8bit": 2}
"""Number of tensors per parameter in the optimizer state."""
_UNKNOWN = {"pruning": "none", "quantization": "none", "distillation": "none"}
"""Axes whose effect on memory does not follow from shapes: any other value has no estimate."""
_IN_32_BITS = re.compile("(layer|group)_norm|(__)?pow(__)?|rsqrt|exp|log|(log_)?softmax|cross_entropy|(nll|mse)_loss")
"""Functions that autocast computes in 32 bits on GPUs, but not on CPUs."""
_WORKSPACES = 2 * 2**25
"""Bytes of the workspaces of cuBLAS on a GPU of today: one for the forward and one for the backward pass."""


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


class _Live(TorchDispatchMode):  # type: ignore[misc]  # torch's types are not read
    """Bytes of the live results of all operations, and the peak of their sum with `held`, which is counted by hand."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0
        self.held = 0.0
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def add(self, amount: float) -> None:
        """Add bytes that are counted by hand."""
        self.held += amount
        self.peak = max(self.peak, round(self.now + self.held))

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            key = storage._cdata
            if key not in self.sizes and key not in self.known:
                self.sizes[key] = size = storage.nbytes()
                self.now += size
                self.add(0)
                weakref.finalize(storage, self._gone, key)
        return out


class _AsOnGpu(TorchFunctionMode):  # type: ignore[misc]
    """Lets autocast of a CPU compute in 32 bits what that of a GPU does."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _IN_32_BITS.fullmatch(getattr(function, "__name__", "")) and torch.is_autocast_enabled("cpu"):
            args = tree_map_only(torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, args)
        return function(*args, **(kwargs or {}))


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def optimizer_bytes(spec: RunSpec, parameters: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the unsharded optimizer state of these parameters."""
    name, options = spec.optimizer.name, spec.optimizer.options
    if name not in _STATES:
        raise Unknown(f"the state of optimizer {name} is not known")
    copies = 0 if name == "sgd" and options.get("momentum", 0.9) == 0 else _STATES[name]
    total = 0.0
    for parameter in parameters:
        small = parameter.numel() < 4096 or parameter.numel() % 256
        # 8 bits an element, and a scale of 32 bits for each 256 of them
        total += parameter.numel() * (1 + 4 / 256 if name == "adamw8bit" and not small else parameter.element_size())
    return round(copies * total)


def _forgotten(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a forward pass whose saved activations are offloaded."""
    with saved_tensors_hooks(
        lambda tensor: tensor if is_weight(tensor) else (tensor.shape, tensor.dtype),
        lambda saved: torch.empty(saved[0], dtype=saved[1]) if isinstance(saved, tuple) else saved,
    ):
        return forward(*args, **kwargs)


def _same(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    return module


def _build(spec: RunSpec, options: Any) -> Parts:
    """Assemble the parts of a training as far as they affect memory."""
    for axis, none in _UNKNOWN.items():
        if getattr(spec, axis).name != none:
            raise Unknown(f"{axis} {getattr(spec, axis).name} is not counted")
    device = torch.device("cpu")
    workload = registry.load("workload", spec.workload)(spec.workload_args)
    cast = _CASTS.get(spec.precision.name)
    parts = Parts(spec, device, workload, workload.build().train(), Precision((device.type, cast) if cast else None))
    with patch.object(
        torch.nn.Module, "to", _same
    ):  # additions have their type already; torch cannot move fake weights
        catalog.load("finetune", spec.finetune)(parts)
    if options.cuts_matrices:
        if options.sequence or not options.loss_parallel:
            raise Unknown(f"{options.name} is counted without sequence and with loss_parallel only")
        _divide(parts, spec.devices_per_copy)
    if spec.memory.name == "offload":
        put_around(parts.blocks, _forgotten)
    else:
        catalog.load("memory", spec.memory)(parts)
    if spec.precision.name == "bf16_params":
        store_in_bf16(parts)
    return parts


def _divide(parts: Parts, size: int) -> None:
    """Leave one rank's part of each layer of a decoder, as tensor parallelism does."""
    replace_conv1d(parts.model)
    decoder = Decoder(parts.model)
    names, tied = decoder.architecture, decoder.tied
    cut = [(block.get_submodule(name), 0) for block in decoder.layers for name in names.column]
    cut += [(block.get_submodule(name), 1) for block in decoder.layers for name in names.row]
    for layer, axis in [*cut, (decoder.embedding, 0), (decoder.head, 0)]:
        for name, tensor in list(layer.named_parameters(recurse=False)):
            if axis == 0 or name == "weight":
                setattr(layer, name, torch.nn.Parameter(tensor.detach().chunk(size, axis)[0].clone()))
    if tied:
        decoder.head.weight = decoder.embedding.weight
    for block in decoder.layers if names.fused else []:
        attention = getattr(block, names.attention)
        attention.split_size, attention.num_heads = attention.split_size // size, attention.num_heads // size


def estimate(spec: RunSpec) -> Footprint:
    """Estimate the memory of one rank of a run. Raises Unknown if that is not possible; computes nothing."""
    if not isinstance(spec.batch_size_per_device, int):
        raise Unknown(f"the batch size is {'found at run time' if spec.batch_size_per_device else 'not known'}")
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
    options: Any = catalog.options("parallelism", spec.parallelism)
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        if options.stages:
            return _pipeline(spec, options)
        return _played(spec, options)


def computed() -> int:
    """Return how many estimates this process has computed; equal shapes share one."""
    return _estimate.cache_info().misses


def _played(spec: RunSpec, options: Any) -> Footprint:
    parts = _build(spec, options)
    ways = options.ways(spec.world_size) / (spec.devices_per_copy if options.cuts_matrices else 1)
    divided = dict.fromkeys(options.divides, 0.0 if getattr(options, "offload", False) else 1 / ways)
    share = dict.fromkeys(("weights", "gradients", "optimizer", "activations"), 1.0) | divided
    parameters = list(parts.model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights = round(share["weights"] * _bytes(parameters)) + _bytes(parts.model.buffers())
    gradients, optimizer = (
        share["gradients"] * _bytes(trained),
        round(share["optimizer"] * optimizer_bytes(spec, trained)),
    )
    arriving = {id(p): _bytes([p]) * share["gradients"] for p in trained}
    # The gradient of a divided embedding is whole on each rank: torch divides it when the optimizer reads it.
    embedding = Decoder(parts.model).embedding.weight if options.cuts_matrices else None
    if embedding is not None:
        arriving[id(embedding)] = _bytes([embedding]) * spec.devices_per_copy
    exchange, end = _bytes(trained) if options.buckets else 0, 0
    if options.shards:
        exchange, end = _gathered(parts, options, arriving, embedding)
    elif embedding is not None:
        gradients = sum(arriving.values())
    live = _Live([*parameters, *parts.model.buffers()])
    once = spec.gradient_accumulation_steps == 1
    if not once:
        live.add(4 * sum(p.numel() for p in trained) if options.shards else gradients)

    def arrived(parameter: torch.nn.Parameter) -> None:
        parameter.grad = None
        live.add(arriving[id(parameter)] if once else 0)

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(arrived)
    sample = parts.workload.train.__getitems__([0])
    batch = tuple(torch.empty((spec.batch_size_per_device, *t.shape[1:]), dtype=t.dtype) for t in sample)
    on_gpu = spec.device_type == "gpu"
    with _kernels(spec), live, _AsOnGpu() if on_gpu else nullcontext():
        with parts.precision.context():
            loss = parts.loss(parts.model, batch)
        activations = live.now
        loss.backward()
    stored = share["activations"]
    step = (live.peak - live.held) * stored + live.held if stored < 1 else live.peak
    update = gradients * (2 if spec.optimizer.options.get("implementation") == "foreach" else 1)
    peak = round(weights + optimizer + max(exchange + max(step, end), update) + _WORKSPACES * on_gpu)
    return Footprint(weights, round(gradients), optimizer, exchange, round(activations * stored), peak)


def _kernels(spec: RunSpec) -> AbstractContextManager[Any]:
    """Choose the kernel, whatever the process has forced: only `attention: math` stores the matrix of scores."""
    flash = [SDPBackend.FLASH_ATTENTION] if spec.attention.name != "math" else []
    chosen: AbstractContextManager[Any] = sdpa_kernel([SDPBackend.MATH, *flash])
    return chosen


def _pipeline(spec: RunSpec, options: Any) -> Footprint:
    """Return the larger footprint of the first stage, which holds most micro-batches, and the last, which has the head."""
    arrives, found = None, []
    for index in (0, spec.devices_per_copy - 1):
        footprint, arrives = _stage(spec, options, index, arrives)
        found.append(footprint)
    return max(found, key=lambda footprint: footprint.peak)


def _without_gradient(parameter: torch.nn.Parameter) -> None:
    parameter.grad = None


def _stage(spec: RunSpec, options: Any, index: int, arrives: torch.Tensor | None) -> tuple[Footprint, torch.Tensor]:
    """Return the footprint of a stage and one of its outputs; `arrives` is the output of the stage before.

    All forward passes that are in progress at the same time run first, then their backward passes.
    """
    from bench.strategies.pipeline import Stage, cut, model_of

    parts, stages = _build(spec, options), spec.devices_per_copy
    cut(Decoder(parts.model), stages, index)
    batch = int(spec.batch_size_per_device or 1)
    per_batch = options.count(batch, stages)
    total = per_batch * spec.gradient_accumulation_steps
    tokens = parts.workload.train.__getitems__([0])[0]
    samples = torch.empty((batch // per_batch, *tokens.shape[1:]), dtype=tokens.dtype)
    parameters = list(parts.model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights, gradients = _bytes([*parameters, *parts.model.buffers()]), _bytes(trained)
    optimizer, stage, outputs = optimizer_bytes(spec, trained), Stage(parts, first=index == 0), []
    live = _Live([*parameters, *parts.model.buffers()])
    on_gpu, in_progress = (
        spec.device_type == "gpu",
        total if options.schedule == "gpipe" else min(total, stages - index),
    )
    if in_progress < total:  # the gradients of earlier micro-batches are there all the time
        live.add(gradients)
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(_without_gradient)
    with _kernels(spec), live, _AsOnGpu() if on_gpu else nullcontext():
        for _ in range(in_progress):
            data = samples if arrives is None else torch.empty_like(arrives).requires_grad_()
            out = stage(data)
            if index == stages - 1:
                with parts.precision.context():
                    out = parts.loss(model_of(out), (samples,))
            outputs.append(out)
        activations = live.now
        for out in outputs:
            out.backward(torch.empty_like(out))
    between = arrives if arrives is not None else outputs[0].detach()
    exchange = total * _bytes([between])  # what arrives from the neighbour has a place for each micro-batch
    update = gradients * (2 if spec.optimizer.options.get("implementation") == "foreach" else 1)
    peak = weights + optimizer + exchange + max(live.peak, update) + _WORKSPACES * on_gpu
    return Footprint(weights, gradients, optimizer, exchange, activations, peak), between


def _gathered(
    parts: Parts, options: Any, arriving: dict[int, float], embedding: torch.Tensor | None
) -> tuple[int, int]:
    """Return the bytes that sharding adds to a step: all the time, and in place of activations at the end of the step.

    Weights outside the blocks stay gathered, and their gradients stay whole until they are added up in 32 bits at the end.
    The backward pass gathers the next block while one computes, and adds up the gradients of the block before in 32 bits.
    """
    if options.mixed and parts.precision.autocast:
        store_as(parts.model, parts.precision.compute_dtype)
    blocks = [list(block.parameters()) for block in dict.fromkeys(parts.blocks)]
    inside = {id(p) for block in blocks for p in block}
    outside = [p for p in parts.model.parameters() if id(p) not in inside]
    whole = 0 if embedding is None else parts.spec.devices_per_copy - 1  # further parts of the embedding's gradient
    arriving |= {id(p): _bytes([p]) * (1 + whole * (p is embedding)) for p in outside if id(p) in arriving}
    largest = max(blocks, key=_bytes)
    reduced = sum(_bytes([p]) + 4 * p.numel() for p in largest if id(p) in arriving)
    gathered = 2 * _bytes(largest) if options.reshard else sum(map(_bytes, blocks))
    end = sum(arriving.values()) + sum(4 * p.numel() for p in outside if id(p) in arriving) - gathered - reduced
    return _bytes(outside) + gathered + reduced, round(end)


def peak_bytes(spec: RunSpec) -> int | None:
    """Return the estimated peak of a rank in bytes; None without an estimate, for whatever reason."""
    try:
        return estimate(spec).peak
    except Exception:  # noqa: BLE001  a failed estimate must not fail the run
        return None
