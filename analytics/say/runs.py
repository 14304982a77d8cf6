"""Runs that are to be done, in words: their names, and what a suite would run, as `bench show` prints it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pandas as pd

from analytics.plan.preview import Preview
from analytics.say.blocks import Block, Note, Sentence, Table
from analytics.say.names import named
from analytics.text import counted, interval, printable, scale
from bench.figures.metrics import parameters
from bench.schema import RunSpec
from bench.store.progress import Seen

_SCALING = {
    "weak": "Weak scaling: each device keeps its batch, so the ideal step time stays the same.",
    "strong": "Strong scaling: all devices share one batch, so the ideal step time falls.",
    "mixed": "Neither weak nor strong scaling: batches differ by more than the number of devices.",
    "own": "The command decides on its batches: whether that is weak or strong scaling, its samples will tell.",
    "none": "One number of devices: scaling is not measured.",
}


def run_names(runs: Iterable[RunSpec]) -> dict[str, str]:
    """Name configurations by what varies among them, such as `tiny, 2 devices, bf16`, by config_id."""
    specs = {run.config_id: run for run in runs}
    if not specs:
        return {}
    rows = [parameters(spec) | {"work": " ".join(spec.work)} for spec in specs.values()]
    pairs = named(pd.DataFrame(rows, index=list(specs))).replace("default", "")
    if pairs["work"].nunique() == 1:
        pairs["work"] = pairs["work"].where(pairs["change"] == "", "")
    return {config: ", ".join(filter(None, pair)) for config, *pair in pairs.itertuples()}


def _bytes(size: float) -> str:
    divisor, unit = scale(size, "B")
    return interval(size / divisor, unit=unit)


def blocks(shown: Preview, memory: dict[str, int]) -> Iterator[Block]:
    """Yield what would be run: how many runs and how long, what is skipped and why, then each configuration."""
    suite, too_large, names = shown.selected, shown.too_large(memory), run_names(shown.selected.runs)
    repeats = Counter(run.config_id for run in suite.to_do)
    gpus = Counter(gpu.name for gpu in shown.machine.gpus)
    where = " and ".join(f"{count} x {name}" for name, count in gpus.items()) or shown.machine.cpu_model
    where = f"{shown.machine.num_nodes} nodes of {where}" if shown.machine.num_nodes > 1 else where
    yield Sentence(
        f"{suite.suite.name}: {counted(len(suite.to_do), 'run')} on {printable(where, 120)}, {shown.takes()}", "title"
    )
    each = f" x {repeats[next(iter(repeats))]}" if len(set(repeats.values())) == 1 else ""
    if not suite.to_do:
        yield Sentence("Nothing of it can run here.", "answer")
    else:
        yield Sentence(f"{counted(len(repeats), 'configuration')}{each}. {_SCALING[shown.expansion.scaling]}", "answer")
    reasons: dict[str, list[str]] = {}
    for config, reason in suite.skipped.items():
        reasons.setdefault(reason, []).append(names.get(config, ""))
    for reason, skipped in reasons.items():
        which = f"{skipped[0]}{', ...' * (len(skipped) > 1)}"
        yield Sentence(
            f"Skipped: {counted(len(skipped), 'configuration')} ({which}): {printable(reason, 200)}", "answer"
        )
    if too_large:
        yield Sentence(f"{counted(len(too_large), 'configuration')} will probably not fit into memory.", "answer")
    nodes = {run.config_id: str(run.num_nodes) for run in suite.to_do}
    columns = {
        "configuration": {config: name for config, name in names.items() if config in repeats},
        "runs": {config: str(count) for config, count in repeats.items()} if not each else {},
        "nodes": nodes if set(nodes.values()) - {"1"} else {},
        "memory~": {config: _bytes(size) for config, size in memory.items()},
        "limit": too_large,
    }
    columns = {head: cells for head, cells in columns.items() if cells}
    rows = tuple(tuple(cells.get(config, "") for cells in columns.values()) for config in repeats)
    if rows:
        yield Table("", tuple(columns), rows, words=("configuration", "limit"))
    left_out = shown.left_out(memory)
    notes = [printable(note, 300) for note in suite.notes]
    notes += ["~ memory of a device, estimated from the shapes of its tensors"] if memory else []
    notes += [f"estimated for the first {left_out} different shapes only"] if left_out else []
    if notes:
        yield Note("; ".join(notes))


_STATES = {
    "running": "it is still running",
    "stopped": "it was stopped: the same command resumes it",
    "silent": "it does not report any more",
}


def so_far(blocks: Iterable[Block], runs: pd.DataFrame, unfinished: Iterable[Seen]) -> Iterator[Block]:
    """Add below the title of an answer how much of its executions has been run, where that is known and not all."""
    counts = runs.groupby(["suite", "execution"]).size()
    lines = []
    for flight, state in ((one.flight, one.state) for one in unfinished):
        left = (flight.to_do or 0) - flight.done
        if (key := (flight.suite, flight.execution)) in counts.index and left > 0:
            ended = flight.done if flight.unit == "trials" else int(counts[key])
            name = f" of {printable(flight.suite)}" * (len(counts) > 1)
            lines.append(f"So far: {ended} of {ended + left} {flight.unit}{name}; {_STATES[state]}.")
    for block in blocks:
        yield block
        if isinstance(block, Sentence) and block.role == "title":
            yield from (Sentence(line, "answer") for line in lines)
            lines = []
