"""What cannot be combined: rows of conditions with a reason, and arithmetic on devices, samples and layers.

All of it depends on what a run asks for (and on installed packages), never on hardware or a built model. A condition is

- `axis=name,name` or `axis!=name,name`: the name chosen for an axis, or the value of another field of RunSpec;
- `axis.option` or `axis.option=value`: an option is on, or has a value;
- `axis:trait` or `axis:!trait`: the chosen strategy has a trait of `bench.strategies.catalog`, or lacks it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from bench import registry
from bench.schema import AXES, COMMAND, RunSpec, Scalar
from bench.strategies import catalog
from bench.workloads.base import Layout


class Rule(NamedTuple):
    """Conditions, joined by `&`, that cannot all hold, and why."""

    conditions: str
    reason: str


def _each(row: str, reason: str, *values: str) -> list[Rule]:
    return [Rule(row.format(value), reason) for value in values]


_CONDITION = re.compile(r"(\w+)(?:\.(\w+)|:(!?)(\w+))?(?:(!?)=(.+))?")
_WEIGHTS = ("finetune!=full", "pruning!=none", "quantization!=none", "distillation!=none")
_GPU = "it needs a GPU"
ROWS = (
    *_each("parallelism:cuts_layers & {}", "no device holds complete layers: choose ddp", *_WEIGHTS),
    *_each("parallelism=cp & {}", "the loss is computed on parts of sequences: choose ddp", *_WEIGHTS),
    Rule("parallelism=cp & attention!=sdpa", "ring attention replaces scaled_dot_product_attention"),
    Rule("parallelism=cp & compile!=eager", "ring attention cannot be compiled"),
    Rule("parallelism=cp & device_type=cpu", f"{_GPU}: torch has no ring attention for CPUs"),
    Rule("parallelism=tp,fsdp_tp & compile!=eager & memory!=none", "torch cannot compile recomputed parts of layers"),
    *_each(
        "parallelism.meta & {}",
        "meta creates the weights after sharding",
        *_WEIGHTS,
        "needs!=None",
    ),
    Rule("parallelism.offload & precision=fp16", "the gradient scaler is on the GPU, the gradients are on the host"),
    Rule("parallelism.offload & pruning!=none", "pruning needs whole weights, and the hosts hold parts of them"),
    Rule(
        "parallelism:!whole_model & quantization!=none",
        "no device holds the whole model to serve: choose ddp",
    ),
    Rule(
        "parallelism:!whole_model & pruning=semi_structured",
        "no device holds the whole model to serve: choose ddp",
    ),
    Rule("parallelism=pp & batch_size_per_device=max", "a pipeline cuts a batch into micro-batches: give its size"),
    Rule("compile=cuda_graphs & parallelism:!graph_safe", "CUDA graphs are captured with single and ddp only"),
    Rule("compile=cuda_graphs & memory!=none", "a CUDA graph cannot capture a step that waits for the host"),
    *_each("compile={} & device_type=cpu", f"{_GPU} for its CUDA graphs", "cuda_graphs", "reduce-overhead"),
    *_each(
        "compile={} & gradient_accumulation_steps!=1",
        "the next micro-batch would overwrite the gradients in the memory of the graph",
        *("cuda_graphs", "reduce-overhead"),
    ),
    *_each(
        "compile={} & batch_size_per_device=max",
        "max is found by eager steps, which need less memory than graphs",
        *("cuda_graphs", "reduce-overhead"),
    ),
    Rule("memory=offload & device_type=cpu", "the activations are already in the memory of the host"),
    Rule("memory=offload & compile!=eager", "a compiled step does not move activations: choose compile eager"),
    Rule("precision=tf32 & device_type=cpu", "TF32 exists on NVIDIA GPUs only"),
    Rule("precision=fp8 & device_type=cpu", f"{_GPU} with products of 8-bit floats; a CPU can only emulate it"),
    *_each("precision=fp8 & {}", "both replace the linear layers", *_WEIGHTS[:3]),
    Rule("precision=fp8 & parallelism:cuts_layers", "both replace the linear layers: choose ddp or fsdp2"),
    Rule("attention=efficient,cudnn & device_type=cpu", "this kernel exists on GPUs only"),
    Rule("quantization=int4 & device_type=cpu", f"{_GPU}"),
    Rule("pruning=semi_structured & device_type=cpu", f"{_GPU} with 2:4 sparsity"),
    Rule("pruning=semi_structured & quantization!=none,fp16", "2:4 sparsity is served in 16 bits"),
    Rule("pruning=magnitude,semi_structured & quantization=qat", "only one of them can change the weights in a step"),
    Rule("finetune!=full & distillation!=none", "the student starts at random, so all of it must be trained"),
    Rule("finetune!=full & quantization=qat", "frozen weights cannot adapt to their quantization"),
    Rule("finetune=lora,ia3 & pruning!=none", "the weights to prune are frozen: choose full or last_layers"),
    *_each(
        "saves!=None & {}:changes_shape",
        "other runs cannot load a model whose shape changed: save an earlier run",
        *("finetune", "pruning", "quantization"),
    ),
)


VENDOR_ROWS = {
    "amd": (
        Rule("precision=tf32", "TF32 exists on NVIDIA GPUs only"),
        Rule("attention=cudnn", "cuDNN exists for NVIDIA GPUs only"),
        Rule("quantization=int4", "its packed weights are those of NVIDIA GPUs"),
        Rule("pruning=semi_structured", "its kernels for 2:4 sparsity are those of NVIDIA GPUs"),
    )
}
"""What the GPUs of a vendor cannot do."""


def why_impossible(
    spec: RunSpec,
    giver: RunSpec | None = None,
    find: Callable[[str], Any] = find_spec,
    *,
    vendor: str | None = None,
) -> str | None:
    """Return why a run is impossible; None if nothing is known against it.

    `vendor` is that of the GPUs of the machine; without it, the answer holds wherever the run is done. `giver` is the run
    whose weights it needs. `find` returns None for a package that is not installed. What a command does is its own business.
    """
    rows = (*ROWS, *VENDOR_ROWS.get(vendor or "", ()))
    return None if spec.workload == COMMAND else next(_reasons(spec, giver, find, rows), None)


def _reasons(
    spec: RunSpec, giver: RunSpec | None, find: Callable[[str], Any], rows: Iterable[Rule] = ROWS
) -> Iterator[str]:
    chosen: dict[str, Any] = {axis: catalog.options(axis, getattr(spec, axis)) for axis in AXES}
    parallelism = chosen["parallelism"]
    if why := parallelism.why_not(spec.world_size):
        yield why
    for conditions, why in rows:
        if _hold(conditions, spec, chosen):
            yield f"{_words(conditions, spec)}: {why}"
    for axis, options in chosen.items():
        if options.library and find(options.library) is None:
            yield f"{axis} {options.name} needs {options.library}: pip install 'wattbench[strategies]'"
    if spec.distillation.name != "none" and giver is not None and giver.workload != spec.workload:
        yield f"distillation: the teacher's workload is {giver.workload}, the student's {spec.workload}"
    samples, size = spec.batch_size_per_device, spec.devices_per_copy
    if isinstance(samples, int) and (why := parallelism.why_not_batch(samples, spec.gradient_accumulation_steps, size)):
        yield why
    layout = _layout(spec.workload, tuple(sorted(spec.workload_args.items())))
    if layout is not None:
        yield from _layers(spec, chosen, layout)
        if why := parallelism.why_not_model(layout, size):
            yield why


@lru_cache
def _layout(workload: str, args: tuple[tuple[str, Scalar], ...]) -> Layout | None:
    layout: Layout | None = registry.load("workload", workload).Args.model_validate(dict(args)).layout()
    return layout


def _hold(conditions: str, spec: RunSpec, chosen: dict[str, Any]) -> bool:
    """Tell whether all conditions hold for a run, whose options are `chosen` by axis."""
    for field, option, without, trait, other, values in _parsed(conditions):
        options = chosen.get(field)
        if trait:
            holds = bool(getattr(options, trait)) != bool(without)
        else:
            value = getattr(options, option or "name", None) if options else getattr(spec, field)
            holds = (str(value) in values.split(",")) != bool(other) if values else bool(value)
        if not holds:
            return False
    return True


@cache
def _parsed(conditions: str) -> list[tuple[str, ...]]:
    """Return field, option, `!` before the trait, trait, `!` before the values, and values of each condition."""
    return [match.groups("") for text in conditions.split(" & ") if (match := _CONDITION.fullmatch(text))]


def _words(conditions: str, spec: RunSpec) -> str:
    words = []
    for field, option, *_ in _parsed(conditions):
        value = getattr(spec, field)
        words.append(f"{field} {getattr(value, 'name', value)}" + (f" ({option})" if option else ""))
    return " with ".join(words).replace(" with device_type cpu", " on a CPU")


def _layers(spec: RunSpec, chosen: dict[str, Any], layout: Layout) -> Iterator[str]:
    blocks, workload = layout.blocks, f"the model of workload {spec.workload}"
    for axis, options in chosen.items():
        if options.needs_blocks and not blocks:
            yield f"{axis} {options.name} works on repeated layers, and {workload} has none"
    if chosen["attention"].forced and not layout.attention:
        yield f"attention {spec.attention.name}: {workload} has no dot product attention"
    left = blocks - getattr(chosen["pruning"], "remove", 0)
    if left < 1 <= blocks:
        yield f"pruning {spec.pruning.name}: cannot remove {blocks - left} of {blocks} layers: at least one must remain"
    for axis, option in (("finetune", "layers"), ("memory", "every")):
        value = getattr(chosen[axis], option, None)
        if value is not None and value > left >= 1:
            yield f"{axis} {chosen[axis].name}: {option} must be at most {left}, the number of layers, not {value}"
