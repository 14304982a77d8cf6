"""Names of configurations in words: the kind of work, such as `tiny`, and what differs, such as `2 devices, bf16`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analytics.quantities import CATALOGUE, quantity
from analytics.runs.frame import piece, telling
from analytics.text import printable
from bench.schema import AXES

_LOADER = ("workload_args.workers", "workload_args.pin_memory")
"""Arguments of a workload that change neither its model nor its data."""
_NAMED = ("preset", "architecture", "pretrained", "objective", "data", "text", "mix", "argv", "name")
"""Last parts of fields whose values go without the name of the field."""
_WORKLOADS = {"decoder_lm": "decoder LM", "lstm_lm": "LSTM", "text_cnn": "text CNN"}
_PHRASES = {
    "devices": ("1 device", "{} devices"),
    "num_nodes": ("1 node", "{} nodes"),
    "threads_per_device": ("1 thread per device", "{} threads per device"),
    "batch_size_per_device": ("batch 1 per device", "batch {} per device"),
    "global_batch_size": ("batch 1", "batch {}"),
    "gradient_accumulation_steps": ("no accumulation", "{} accumulation steps"),
    "measure_steps": ("1 step", "{} steps"),
    "measure_seconds": ("window of 1 s", "window of {} s"),
    "inference_seconds": ("1 s of inference", "{} s of inference"),
}
"""Numbers in words: 1, and any other."""
_VALUES = {
    "parallelism": {
        "single": "no parallelism",
        "zero1": "ZeRO-1",
        "fsdp2": "FSDP2",
        "fsdp_tp": "FSDP with tensor parallelism",
        "tp": "tensor parallelism",
        "pp": "pipeline parallelism",
        "cp": "context parallelism",
        **{name: name.upper() for name in ("ddp", "hsdp")},
    },
    "memory": {"none": "all activations kept", "selective": "selective recompute"},
    "compile": {"eager": "not compiled", "default": "compiled"},
    "finetune": {"full": "all weights trained", "lora": "LoRA", "last_layers": "last layers only", "ia3": "IA3"},
    "device_type": {"cpu": "CPU", "cuda": "GPU"},
    "workload": _WORKLOADS,
}
_EQUAL = " (fix: equal measure_steps and batch, or a target)"
_CODES = {
    "the candidate": "new",
    "the baseline": "base",
    "BASE": "base",
    "NEW": "new",
    "quality is that after": "read after",
    "it is that after": "read after",
    ": give all the same measure_steps and batch, or a target that all reach": _EQUAL,
    ": give both the same measure_steps and batch, or a target": _EQUAL,
    "the interval holds the limit": "the interval includes the limit",
    "noisy_host": "a busy host",
    "throttled": "throttled clocks",
    "shared_gpu": "a shared GPU",
}
"""What texts of comparisons call sides and flags, and what people do."""
_RANGE = re.compile(r"([\d,.]*\d) to ([\d,.]*\d)")
_ABSENT = {"needs": "from scratch", "batch_size_per_device": "batch left open"}
"""What it means that a field has no value, where others have one."""
_PATTERNS = {
    "saves": "saves {}",
    "needs": "from {}",
    "optimizer.implementation": "{} optimizer",
    "compile": "compiled ({})",
    "attention": "{} attention",
    "schedule": "{} schedule",
    "pruning": "{} pruning",
    "quantization": "{} quantization",
    "distillation": "{} distillation",
}


def word(column: str, value: Any) -> str:
    """Put one field of a configuration into words: `2 devices`, `bf16`, `tiny`, `sparsity 0.8`, `no pruning`.

    Returns nothing for an absent value.
    """
    if pd.isna(value):
        return ""
    whole = isinstance(value, float) and value.is_integer()
    text = str(int(value)) if whole else f"{value:g}" if isinstance(value, float) else printable(value, 60)
    text = f"{int(text):,}" if text.isdigit() and len(text) > 4 else text
    if column in _PHRASES:
        return _PHRASES[column][text != "1"].format(text)
    if text in _VALUES.get(column, {}):
        return _VALUES[column][text]
    if column in (*AXES, *_PATTERNS, "workload"):
        return f"no {column}" if text == "none" else _PATTERNS.get(column, "{}").format(text.replace("_", " "))
    name = printable(column.rpartition(".")[2], 40).replace("_", " ")
    if name in _NAMED:
        return text
    if text in ("True", "False"):
        return name if text == "True" else f"no {name}"
    if text.replace(",", "").isdigit() and re.search(r"[^s]s$", name):
        return f"{text} {name[:-1] if text == '1' else name}"
    return f"{name} {text}"


def is_work(column: str) -> bool:
    """Return whether a field says what is trained, not how."""
    return column in ("workload", "dataset") or (column.startswith("workload_args.") and column not in _LOADER)


def named(table: pd.DataFrame, bases: pd.Series | None = None) -> pd.DataFrame:
    """Name configurations, one a row with the fields of a RunSpec, by what varies among them, on the index of `table`.

    Column `work` is the kind of work: `tiny`, `decoder LM, 2 layers`. Column `change` is all else that tells them apart,
    without what an axis does by default: `2 devices, bf16`. With `bases`, the label of the row that each is compared with, it
    is what differs from these, and empty for a base itself.
    """
    columns = telling(table)
    works = [c for c in columns if is_work(c)] or [c for c in ("workload", "workload_args.preset") if c in table]
    others = [c for c in columns if c not in works] or ["devices"]
    pairs = []
    for place, (_, row) in enumerate(table.iterrows()):
        work = ", ".join(filter(None, (word(c, row[c]) for c in works)))
        change = [word(c, row[c]) for c in others if piece(c, row[c])]
        if bases is not None and pd.notna(bases.iloc[place]):
            base = table.loc[bases.iloc[place]]
            differ = [c for c in others if str(row[c]) != str(base[c])]
            change = [_ABSENT.get(c, "") if pd.isna(row[c]) else word(c, row[c]) for c in differ]
        pairs.append((work, ", ".join(filter(None, change)) or ("default" if bases is None else "")))
    return pd.DataFrame(pairs, index=table.index, columns=["work", "change"], dtype="str")


def metric_name(metric: str, *, mark: bool = False) -> str:
    """Name a metric inside a sentence: `tokens/s`, `peak memory`, `J/token`; with `mark` ~ follows what is estimated."""
    known = quantity(metric)
    title = known.title.replace("_", " ")
    title = title[:1].lower() + title[1:] if title[1:2].islower() else title
    return printable(title + "~" * (mark and known.estimated))


def plain(text: str) -> str:
    """Replace the codes of metrics, flags and sides in a text by words; fields of a suite stay as they are typed."""
    for code, phrase in _CODES.items():
        text = text.replace(code, phrase)
    return re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", lambda m: metric_name(m[0]) if m[0] in CATALOGUE else m[0], text)


def ranged(texts: Iterable[str]) -> list[str]:
    """Join texts that differ in ranges `A to B` alone into one with the widest range; others stay, each once."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(_RANGE.sub("#", text), []).append(text)
    return [_widest(alike) for alike in groups.values()]


def _widest(texts: Sequence[str]) -> str:
    pairs = [pair for text in texts for pair in _RANGE.findall(text)]
    if not pairs:
        return texts[0]
    low, high = ([end.replace(",", "") for end in ends] for ends in zip(*pairs, strict=True))
    widest = f"{pairs[low.index(min(low, key=float))][0]} to {pairs[high.index(max(high, key=float))][1]}"
    return _RANGE.sub(widest, texts[0])
