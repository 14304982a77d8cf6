"""Names -> code, imported on demand: workloads, strategies (listed in `bench.strategies.catalog`), meters and launchers.

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
"""Names of workloads that do not exist, each with the reason."""
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
    "meter": {
        "nvml": "bench.meters.nvml:NvmlMeter",
        "amdsmi": "bench.meters.amd:AmdMeter",
        "rapl": "bench.meters.rapl:RaplMeter",
        "codecarbon": "bench.meters.estimate:CodecarbonMeter",
        "replay": "bench.meters.replay:ReplayMeter",
    },
    "launcher": {
        "local": "bench.run.launcher:LocalLauncher",
        "slurm": "bench.run.srun:SrunLauncher",
        "ray": "bench.run.ray:RayLauncher",
    },
}
_CATALOG = "bench.strategies.catalog"


_FORMER = {("memory", "checkpoint"): "recompute"}
"""Names of version 0.1, and today's."""


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
    """Return all names of a kind with the place of their code. The result is shared: callers must not change it."""
    if kind not in _BUILT_IN:
        return {name: options.code for name, options in strategies(kind).items()}
    points = entry_points(group="wattbench.workloads") if kind == "workload" else []
    return {point.name: point.value for point in points} | _BUILT_IN[kind]


def strategies(axis: str) -> dict[str, Any]:
    """Return the options of all strategies of an axis by name, as `bench.strategies.catalog` has them."""
    options: dict[str, Any] = import_module(_CATALOG).CATALOG[axis]
    return options


def check(kind: str, name: str) -> None:
    """Raise ValueError with a suggestion if there is no such name."""
    if kind == "workload" and name in _NOT_COVERED:
        raise ValueError(f"workload {name!r}: {_NOT_COVERED[name]}")
    if (kind, name) in _FORMER:
        raise ValueError(f"{kind} {name!r} is called {_FORMER[kind, name]!r} now")
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
