"""Formats in which known libraries print their steps, so that a command needs no pattern.

Each format is a step pattern (`bench.workloads.printed`) and a `sign` that its lines contain. A line tells what it counts
only in part: a bar may count files or epochs. So bars are taken where something else shows that they are the training, and
else flagged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import regex

_UNIT = r"(?:it|its|iter|iters|step|steps|batch|batches)"
_LOSS = r"(?:.*?\b(?:train_?)?loss(?:_step)?[=:] *(?P<loss>[^\s,\]]+))?"


class Format(NamedTuple):
    """A format, what its lines contain, and their pattern. `flag` says what limits a count of its steps."""

    name: str
    title: str
    sign: str
    pattern: Any
    flag: str = ""


HEADER = re.compile(r" *Epoch (\d{1,9})/(\d{1,9}) *")
"""The line that Keras prints before the bar of each training epoch, and before no other bar."""
EPOCH_BAR = re.compile(r"Epoch (\d{1,9})/(\d{1,9}) +[━╸╺ ]+ ")
"""How Lightning's bar begins, with the numbers of the epoch and of the last one, counted from 0."""
FORMATS = (
    Format(
        "megatron",
        "Megatron-LM",
        "elapsed time per iteration (ms):",
        regex.compile(
            r"\biteration +(?P<step>\d+)/ *\d+ \|(?:.*? consumed samples: +(?P<samples_total>\d+) \|)?"
            r"(?:.*? consumed tokens: +(?P<tokens_total>\d+) \|)?"
            r".*? elapsed time per iteration \(ms\): (?P<milliseconds>[\d.]+)"
            r"(?:.*?\bloss: (?P<loss>\S+) \|)?"
        ),
    ),
    Format(
        "nanogpt",
        "nanoGPT",
        "iter ",
        regex.compile(r"^iter (?P<step>\d+): loss (?P<loss>\S+), time (?P<milliseconds>[\d.]+)ms"),
    ),
    Format(
        "llm_c",
        "llm.c",
        " ms |",
        regex.compile(r"^step +(?P<step>\d+)/\d+ \| loss (?P<loss>\S+) .*\| (?P<milliseconds>[\d.]+) ms \|"),
    ),
    Format(
        "torchtitan",
        "torchtitan",
        "tps:",
        regex.compile(r"\bstep: *(?P<step>\d+)  +loss: *(?P<loss>\S+)  .*\btps: *[\d,]+"),
    ),
    Format(
        "timm",
        "timm",
        "Train:",
        regex.compile(
            r"\bTrain: *\d+ \[ *(?P<step>\d+)/\d+ .*?\bLoss: *(?P<loss>[\d.eE+-]+).*?\bTime: *(?P<seconds>[\d.]+)s"
        ),
    ),
    Format(
        "keras",
        "Keras",
        "/",
        regex.compile(
            r"^ *(?P<step>\d+)/(?:\d+|Unknown) +(?:━+|\[[=>.]+\]) .*?(?:ETA|step)\b(?:.*? - loss: (?P<loss>\S+))?"
        ),
    ),
    Format(
        "transformers",
        "the Hugging Face Trainer",
        "'epoch':",
        regex.compile(r"^ *\{'loss': '?(?P<loss>[^\s',]+)'?, .*'epoch': "),
    ),
    Format(
        "lightning",
        "Lightning",
        " • ",
        regex.compile(
            r"(?:^Epoch \d+/\S+|^Validation|^Sanity Checking|^Testing|^Predicting) +[━╸╺ ]+ (?P<step>\d+)/(?:\d+|--) "
            r"+[\d:-]+ • [\d:-]+" + _LOSS
        ),
        "batches_are_steps",
    ),
    Format(
        "tqdm",
        "tqdm",
        "%|",
        regex.compile(
            r"\d{1,3}%\|[^|]*\| *(?P<step>\d+)/\d+ \[[\d:]+<[\d:?]+, +(?:[\d.?]+"
            + _UNIT
            + r"/s|[\d.?]+s/"
            + _UNIT
            + r")\b"
            + _LOSS
        ),
        "bar_unchecked",
    ),
)
"""All formats, those that say most of their lines first."""
TITLES = {known.name: known.title for known in FORMATS}
EVALUATION = re.compile(
    r"\b(?:val|valid\w*|eval\w*|test(?:ing|s)?|dev|predict\w*|infer\w*|sanity|generat\w*)(?![^\W_])", re.IGNORECASE
)
"""Words before a counter that counts no steps of a training."""
PREPARATION = re.compile(
    r"token|load|fetch|map|filter|file|cach|prepar|process|shard|build|index|split|read|convert|extract|pars"
)
"""Parts of titles of bars over something else than steps."""
TRAINING = re.compile(r"\btrain\w*|\bepoch\W*#", re.IGNORECASE)


def recognised(lines: Sequence[dict[str, Any]]) -> tuple[str, set[int], list[str]]:
    """Return the name of the format in which lines tell of steps, the indices of these lines, and flags.

    The name is empty where no line does for sure.
    """
    if bar := trainer_bar(lines):
        return "transformers", bar, []
    choices = {"keras": _fitted, "lightning": _one_bar, "tqdm": _one_bar}
    for known in FORMATS:
        members = [
            i
            for i, line in enumerate(lines)
            if line["format"] == known.name and "step" in line and not EVALUATION.search(line["kind"])
        ]
        if known.name in choices:
            members = choices[known.name](lines, members)
        if not members:
            continue
        if known.name == "tqdm" and any("dataloader" in line["kind"] for line in lines):
            return "lightning", {*members}, ["batches_are_steps"]
        return known.name, {*members}, [known.flag] if known.flag else []
    return "", set(), []


def trainer_bar(lines: Sequence[dict[str, Any]]) -> set[int]:
    """Return the lines of the Trainer's own bar: the one without a title that is drawn before and after its reports."""
    near = Counter(
        bar["total"]
        for pair in pairwise(lines)
        for report, bar in (pair, pair[::-1])
        if report["format"] == "transformers" and bar["format"] == "tqdm" and not bar["kind"]
    )
    total = near.most_common(1)[0][0] if near else None
    of_bar = ("tqdm", "", total)
    return {i for i, line in enumerate(lines) if (line["format"], line["kind"], line["total"]) == of_bar}


def with_reports(lines: Sequence[dict[str, Any]], own: set[int]) -> list[dict[str, Any]]:
    """Return lines with the losses that the Trainer reports, which is between two lines of its bar, at their steps."""
    losses: dict[float, float] = {}
    reported: float | None = None
    for index, line in enumerate(lines):
        if line["format"] == "transformers":
            reported = line.get("loss")
        elif index in own and reported is not None:
            losses[line["step"]], reported = reported, None
    return [line | ({"loss": losses[line["step"]]} if line.get("step") in losses else {}) for line in lines]


def _fitted(lines: Sequence[dict[str, Any]], members: Sequence[int]) -> list[int]:
    """Return the lines of bars with a header of their own: those of `fit`, not of `evaluate` and `predict`."""
    out, header, before = list[int](), "", -1.0
    training = False
    for index in members:
        line = lines[index]
        if line["header"] != header:
            header, training = line["header"], True
        elif line["step"] < before:
            training = False
        before = line["step"]
        out += [index] if training else []
    return out


def _one_bar(lines: Sequence[dict[str, Any]], members: Sequence[int]) -> list[int]:
    """Return the lines of the bar of a training; none where several may be, or none says that it is one.

    Its title names an epoch or a training, or it shows a loss.
    """
    bars: dict[tuple[str, str], list[int]] = {}
    for index in members:
        kind = lines[index]["kind"]
        if not PREPARATION.search(kind):
            bars.setdefault((kind, lines[index]["total"]), []).append(index)
    named = [bar for (kind, _), bar in bars.items() if TRAINING.search(kind)]
    shown = [bar for bar in bars.values() if any("loss" in lines[i] for i in bar)]
    choice = [bar for bar in named if bar in shown] or shown or named
    return choice[0] if len(choice) == 1 else []
