"""GPUs that compute on the CPU: the code for GPUs runs with real numbers on a torch that is built for the CPU.

`pretend` makes torch report GPUs, and turns every device `cuda` in a call into the CPU. So tensors are on the CPU, and only
code that asks a `torch.device` of its own what it is takes the path of a GPU. Streams, kernels and speed are not played.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from bench.strategies import context, pipeline, sharded, tensor

UUID = "00000000-1111-2222-3333-444444444444"
SAMPLE_BYTES, STATIC_BYTES = 1 << 30, 5 << 30
"""Memory of the pretended GPU: what a sample of a batch takes, and the rest."""


def on_host(value: Any) -> Any:
    """Return a device, or the name of one, as that of the CPU if it is a GPU; tuples and lists likewise."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    if isinstance(value, str):
        return "cpu" if value.partition(":")[0] == "cuda" else value
    return type(value)(map(on_host, value)) if type(value) in (tuple, list) else value


class Redirected(TorchFunctionMode):
    """Calls of torch, with GPUs replaced by the CPU.

    `moves` counts copies to a GPU, by whether they wait; `samples` is the largest batch among them. One that does not fit
    into `limit` bytes raises the error of a GPU.
    """

    def __init__(self) -> None:
        self.moves = Counter[bool]()
        self.pinned = self.samples = 0
        self.limit = float("inf")

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.device:
            return function(*args, **kwargs)
        if function is torch.Tensor.pin_memory:
            self.pinned += 1
            return args[0]
        if function is torch.Tensor.to and any(on_host(value) is not value for value in (*args[1:], *kwargs.values())):
            self.moves[bool(kwargs.get("non_blocking"))] += 1
            if args[0].dim() and not args[0].is_floating_point():
                self.samples = max(self.samples, args[0].shape[0])
                if STATIC_BYTES + args[0].shape[0] * SAMPLE_BYTES > self.limit:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024 MiB")
        return function(*map(on_host, args), **{name: on_host(value) for name, value in kwargs.items()})


class Event:
    """A point in time of a stream that has nothing to wait for."""

    def __init__(self, *, enable_timing: bool = False) -> None:
        self.timing, self.at = enable_timing, 0

    def record(self) -> None:
        self.at = time.monotonic_ns()

    def elapsed_time(self, other: "Event") -> float:
        assert all((self.timing, other.timing, self.at, other.at)), "no time without enable_timing, or before record"
        return (other.at - self.at) / 1e6


def _first(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose first argument, a kind of device, becomes that of the CPU."""
    return lambda kind, *args, **kwargs: function(on_host(kind), *args, **kwargs)


def _ddp(cls: Any) -> Callable[..., Any]:
    def make(module: Any, device_ids: list[int] | None = None, **options: Any) -> Any:
        assert device_ids == [0], "a rank on a GPU must name it"
        return cls(module, **options)

    return make


@contextmanager
def pretend(capability: tuple[int, int] = (9, 0), memory: int = 80 << 30) -> Iterator[SimpleNamespace]:
    """Pretend GPUs of a capability and with bytes of memory; yield `calls` of torch.cuda by name, and the `mode`."""
    calls, mode = Counter[str](), Redirected()
    board = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=memory, uuid=UUID, major=capability[0])

    def used(*_: Any) -> int:
        return STATIC_BYTES + mode.samples * SAMPLE_BYTES

    def reset(*_: Any) -> None:
        mode.samples = 0

    def limit(share: float, *_: Any) -> None:
        mode.limit = share * memory

    plain_empty = torch.empty

    def empty(*size: Any, pin_memory: bool | None = None, **options: Any) -> Any:
        """Torch calls it without the mode while it saves a tensor for the backward pass."""
        mode.pinned += bool(pin_memory)
        return plain_empty(*size, **options)

    functions: dict[str, Any] = {
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
        "set_per_process_memory_fraction": limit,
        "get_device_capability": lambda *_: capability,
        "get_device_name": lambda *_: board.name,
        "get_device_properties": lambda *_: board,
        "is_bf16_supported": lambda including_emulation=True: capability >= (8, 0),
        "make_graphed_callables": lambda module, sample: module,
        "max_memory_allocated": used,
        "mem_get_info": lambda *_: (memory - (1 << 30), memory),
        "memory_reserved": lambda *_: 1 << 30,
        "reset_peak_memory_stats": reset,
        **dict.fromkeys(("is_available", "is_initialized"), lambda: True),
        **dict.fromkeys(("device_count",), lambda: 1),
        **dict.fromkeys(("empty_cache", "set_device", "synchronize"), lambda *_: None),
    }

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return functions[name](*args, **kwargs)

        return call

    join = dist.init_process_group
    with pytest.MonkeyPatch.context() as patch:
        for name in functions:
            patch.setattr(torch.cuda, name, counted(name))
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch, "autocast", _first(torch.autocast))
        patch.setattr(torch.amp, "GradScaler", _first(torch.amp.GradScaler))
        patch.setattr(torch.nn.parallel, "DistributedDataParallel", _ddp(torch.nn.parallel.DistributedDataParallel))
        patch.setattr(dist, "init_process_group", lambda kind, **more: join({"nccl": "gloo"}[kind], **more))
        for module in (context, pipeline, sharded, tensor):
            patch.setattr(module, "init_device_mesh", _first(module.init_device_mesh))
        with mode:
            yield SimpleNamespace(calls=calls, mode=mode)
