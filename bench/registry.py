"""Names -> code, imported on demand: workloads, the strategies of each axis, meters and launchers.

A name stands for `module:attribute`. Installed packages add workloads of their own by entry points of the group
`wattbench.workloads`; a suite can only name what is listed here or installed, it cannot name code to import.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

_NOT_COVERED = dict.fromkeys(
    ("speech", "speech_recognition", "asr", "audio"),
    "speech is not covered: no package ships labelled recordings; your own script can run as workload 'command'",
)
"""Names of workloads that somebody may look for, and why there are none."""
_PRECISION = ("fp32", "tf32", "bf16", "fp16", "bf16_params", "fp8")
_OPTIMIZER = ("sgd", "adagrad", "adam", "adamw", "adamw8bit")
_COMPILE = ("eager", "default", "max-autotune", "reduce-overhead", "cuda_graphs")
_ATTENTION = ("sdpa", "flash", "efficient", "cudnn", "math")
_PARALLELISM = {
    "parallelism": {"single": "Single", "ddp": "Ddp", "zero1": "Zero1"},
    "sharded": {"fsdp2": "Fsdp2", "hsdp": "Hsdp"},
    "tensor": {"tp": "Tp", "fsdp_tp": "FsdpTp"},
    "pipeline": {"pp": "Pp"},
    "context": {"cp": "Cp"},
}
_UNCHANGED = "bench.strategies.parts:unchanged"


def _choices(axis: str, unchanged: str, *names: str) -> dict[str, str]:
    return {unchanged: _UNCHANGED, **{name: f"bench.strategies.{axis}:{name}" for name in names}}


_BUILT_IN: dict[str, dict[str, str]] = {
    "workload": {
        "decoder_lm": "bench.workloads.decoder_lm:DecoderLM",
        "encoder": "bench.workloads.encoder:Encoder",
        "image_classification": "bench.workloads.image_classification:ImageClassification",
        "recommender": "bench.workloads.recommender:Recommender",
        "text_cnn": "bench.workloads.text_cnn:TextCNN",
        "lstm_lm": "bench.workloads.lstm_lm:LstmLM",
        "command": "bench.workloads.command:Command",
    },
    "parallelism": {
        name: f"bench.strategies.{module}:{code}"
        for module, names in _PARALLELISM.items()
        for name, code in names.items()
    },
    "precision": {name: f"bench.strategies.precision:{name}" for name in _PRECISION},
    "optimizer": {name: f"bench.strategies.optimizer:{name}" for name in _OPTIMIZER},
    "schedule": {name: f"bench.strategies.schedule:{name}" for name in ("constant", "linear", "cosine", "step")},
    "memory": _choices("memory", "none", "recompute", "selective", "offload"),
    "compile": {name: f"bench.strategies.graph:{name.replace('-', '_')}" for name in _COMPILE},
    "attention": {name: f"bench.strategies.attention:{name}" for name in _ATTENTION},
    "finetune": _choices("finetune", "full", "last_layers", "bitfit", "lora", "ia3"),
    "pruning": _choices("pruning", "none", "magnitude", "structured", "layers", "semi_structured"),
    "quantization": _choices(
        "quantization",
        "none",
        *("fp16", "int8", "int8_asymmetric", "int8_dynamic", "int8_dynamic_asymmetric", "int4", "qat"),
    ),
    "distillation": _choices("distillation", "none", "soft"),
    "meter": {
        "nvml": "bench.meters.nvml:NvmlMeter",
        "rapl": "bench.meters.rapl:RaplMeter",
        "codecarbon": "bench.meters.estimate:CodecarbonMeter",
        "replay": "bench.meters.replay:ReplayMeter",
    },
    "launcher": {"local": "bench.run.launcher:LocalLauncher"},
}


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """End of a message about an unknown name: the nearest name, and all that are allowed unless they are many."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(given, allowed, n=1)
    everything = f"allowed: {', '.join(allowed)}"
    if not near:
        return everything
    return f"did you mean {near[0]!r}?" + (f" {everything}" if len(everything) < 120 else "")


@cache
def names(kind: str) -> dict[str, str]:
    """All names of a kind with the place of their code; a copy is kept, so callers must not change it."""
    found = dict(_BUILT_IN[kind])
    if kind == "workload":
        for point in entry_points(group="wattbench.workloads"):
            found.setdefault(point.name, point.value)
    return found


def check(kind: str, name: str) -> None:
    """Raise ValueError with a suggestion if there is no such name."""
    if kind == "workload" and name in _NOT_COVERED:
        raise ValueError(f"workload {name!r}: {_NOT_COVERED[name]}")
    if name not in names(kind):
        raise ValueError(f"unknown {kind} {name!r}: {did_you_mean(name, names(kind))}")


def load(kind: str, name: str) -> Any:
    """Import and return what a name stands for. Raises ValueError for an unknown name."""
    check(kind, name)
    module, _, attribute = names(kind)[name].partition(":")
    return getattr(import_module(module), attribute)


def preload(workload: str) -> None:
    """Import what a workload will import when it is built, so that this is neither waited for nor counted then."""
    for module in load("workload", workload).modules:
        import_module(module)
