"""Steps that hooks saw (`bench/hooks/sitecustomize.py`): from the files of a command's processes to marks by rank.

A step is one of the first optimizer, and of the next one where that has ended for good. What it consumed counts only where
it is sure; each rule leaves out what may be wrong:

- each model is passed forward as often as there are backward passes (not in loops over time, or with two views of a sample);
- all models of a step consume equally many samples (not a GAN);
- no optimizer that calls a closure as often as it likes (LBFGS);
- each rank has samples of its own: DDP, FSDP or FSDP2 over all ranks (not tensor or pipeline parallelism);
- the models that pass hold all parameters of the optimizers (no part of a model is called by itself);
- all ranks of this node are seen.

Steps that a CUDA graph replays are not seen, so none count. Where optimizers lead one after another with other parameters,
these and the FLOP are left out.

The hooks judge the input of a single pass: all its tensors agree on their first dimension, and it is that of the batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.folder import FAILED, SEEN
from bench.record import Phase, SeenFacts
from bench.run.marks import Leaders, each_step, full_sum, json_lines
from bench.run.restarts import Restarts, one_training, with_same_ranks

_AUTOCAST = {"bfloat16": "bf16", "float16": "fp16"}
_MAIN = 0.8
"""Products of this share of the FLOP tell the precision."""
EVENTS = {"captured", "trainable", "precision", "varied", "crowded", "compiled"}
_PARAMETERS = {"bfloat16": "bf16_params", "float16": "fp16_params", "float64": "fp64"}


@dataclass
class SeenSteps:
    """Marks of steps by rank, in order of time; the pauses of the first rank; facts, and flags of what is left out."""

    marks: dict[int, list[dict[str, Any]]]
    pauses: list[Phase]
    facts: SeenFacts
    flags: list[str] = field(default_factory=list)
    parameters: int | None = None
    trainable_parameters: int | None = None
    others: bool = False
    """Whether models that are not trained pass in each step, too: their work is not counted."""
    restarts: Restarts = field(default_factory=Restarts)


@dataclass(slots=True)
class _Line:
    """A step of an optimizer: when it ended on the device and on the host, and what came before it."""

    t_ns: int
    host_ns: int
    optimizer: int
    backwards: int
    passes: tuple[tuple[Any, ...], ...]
    evals: tuple[tuple[int, int, int, int, int, int, int | None], ...]
    begun_ns: int | None
    flops: int | None


@dataclass
class _Process:
    """The lines of one process that made steps."""

    facts: dict[int, dict[str, Any]]
    """By optimizer: those at its first step."""
    lines: list[_Line]
    saves: list[Phase]
    events: set[str]
    """What befell the watch or the training, as named by `EVENTS`."""

    @property
    def start_ns(self) -> int:
        return self.lines[0].t_ns

    @property
    def restart(self) -> int:
        """How often the workers had been started again before."""
        return int(self.first.get("restart", 0))

    @property
    def number(self) -> int | None:
        """The number of the first step in the whole training; None where the state of the optimizer does not tell it.

        After a restart, a fresh state may be that of a training which goes on without it.
        """
        made = self.first.get("made") if len({line.optimizer for line, _ in self.steps}) == 1 else None
        return made if made != 1 or not self.restart else None

    @property
    def first(self) -> dict[str, Any]:
        """The facts at the first step."""
        return self.facts[self.lines[0].optimizer]

    @cached_property
    def steps(self) -> list[tuple[_Line, list[_Line]]]:
        """Each step of the leading optimizers with all lines since the one before."""
        leaders, out, since = Leaders(), list[tuple[_Line, list[_Line]]](), list[_Line]()
        for line in self.lines:
            leaders.place(line.optimizer)
        for line in self.lines:
            since.append(line)
            if line.optimizer in leaders.chain:
                out.append((line, since))
                since = []
        return out

    @cached_property
    def trains(self) -> set[int]:
        """The models with passes in training."""
        return {model for line in self.lines for model, *_ in line.passes}

    def evaluates(self, span: _Span) -> bool:
        """Whether a model that trains is in evaluation, before the step has begun."""
        return span.evaluating and span.group[1] == 0 and span.model in self.trains

    @cached_property
    def within(self) -> set[int]:
        """The models with passes without gradients that are part of most steps, such as those of a teacher.

        Those of a model that trains are no part of a step where it is in evaluation and the step has not begun.
        """
        return self._often | self._alone

    @cached_property
    def _often(self) -> set[int]:
        """The models with such passes in most steps."""
        inside = Counter[int]()
        for _, since in self.steps:
            inside.update({span.model for line in since for span in _spans(line) if not self.evaluates(span)})
        return {model for model, count in inside.items() if 2 * count >= len(self.steps)}

    @cached_property
    def _alone(self) -> set[int]:
        """The models that pass once without gradients before as many samples of a tenth of the steps, in training mode.

        They condition themselves on what they returned, or a validation of one batch leaves them in that mode.
        """
        alone, others = Counter[int](), set[int]()
        for _, since in self.steps:
            sizes = {samples // count for line in since for _, count, samples, _ in line.passes if samples}
            spans = [span for line in since for span in _spans(line) if not self.evaluates(span)]
            unlike = {span.model for span in spans if span.calls > 1 or span.samples not in sizes}
            alone.update({span.model for span in spans} - unlike)
            others |= unlike
        return {model for model, count in alone.items() if count >= len(self.steps) / 10} - others

    @property
    def unclear(self) -> bool:
        """Whether passes of a model in training mode count as part of steps that may be a validation."""
        spans = (span for _, since in self.steps for each in since for span in _spans(each))
        frozen = self._often - self.trains
        return any(
            span.model in self.within - frozen and (span.model in self._alone or span.group[1] == 0)
            for span in spans
            if not span.evaluating
        )

    @property
    def hides_steps(self) -> bool:
        """Whether another optimizer makes several steps with passes of their own between two steps of a leading one."""
        between = (Counter(line.optimizer for line in since[:-1] if line.passes) for _, since in self.steps)
        return any(count > 1 for counts in between for count in counts.values())

    @property
    def checkpoints(self) -> list[Phase]:
        """What was saved, but where that is part of most steps, as of those that send the weights away."""
        ends = [line.host_ns for line, _ in self.steps]
        steps = {bisect_right(ends, phase.start_ns) for phase in self.saves}
        return self.saves if 2 * len(steps) < len(self.steps) else []

    @cached_property
    def loading_ns(self) -> float | None:
        """The median time from a step to the first pass of the next one, where nothing is evaluated between; None without."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        waits = [
            since[0].begun_ns - line.host_ns
            for (line, _), (_, since) in pairs
            if since[0].begun_ns and not any(each.evals for each in since)
        ]
        return median(waits) if waits else None


def seen_steps(folder: Path, nodes: int = 1) -> SeenSteps | None:
    """Return the steps that hooks saw in the processes of a command on one of its `nodes`; None where they saw none."""
    processes = [process for path in SEEN.paths(folder) if (process := _process(path)) is not None]
    processes.sort(key=lambda process: process.start_ns)
    if not processes:
        return None
    starts: dict[int, dict[int, _Process]] = {}
    first_of: dict[int, _Process] = {}
    for process in processes:
        first = first_of.setdefault(process.restart, process).first
        if process is first_of[process.restart] or (first["joined"] and process.first["joined"]):
            starts.setdefault(process.restart, {}).setdefault(process.first["rank"], process)
    flags = ["separate_trainings"] if sum(map(len, starts.values())) < len(processes) else []
    training = [dict(sorted(same.items())) for same in with_same_ranks(starts).values()]
    every, leaders = (
        [process for same in training for process in same.values()],
        [next(iter(same.values())) for same in training],
    )
    ranks, leader, first = training[0], leaders[0], leaders[0].first
    complete = len(ranks) == first["world_size"]
    if not complete:
        local = first.get("local_world_size") or (first["world_size"] / nodes if nodes > 1 else None)
        here = local == len(ranks)
        flags.append("this_node_only" if here else "partial_world")
        complete = here
    sure = complete and all(process.first["apart"] for process in every)
    marks, restarts = one_training(
        {
            number: {rank: list(_marks(each, sure=sure)) for rank, each in same.items()}
            for number, same in starts.items()
        }
    )
    events = {event for process in every for event in process.events}
    flags += ["hooks_failed"] * ("broken" in events)
    if "captured" in events:
        marks, flags = {rank: [] for rank in ranks}, [*flags, "steps_captured"]
    alike = all(map(_alike, leaders)) and all(_sizes(each) == _sizes(leader) for each in leaders)
    alike = alike and "trainable" not in events
    several = "crowded" in events or any(each.hides_steps for each in leaders)
    flags += ["phases_of_training"] * (not alike) + ["separate_trainings"] * (several and not flags)
    flags += ["passes_unclear"] * any(each.unclear for each in leaders)
    alike = alike and not any(facts["outside"] for each in leaders for facts in each.facts.values())
    others = any(process.within for process in every)
    untrained = any(process.within - process.trains for process in every)
    if not alike or "varied" in events or others:
        for mark in (mark for own in marks.values() for mark in own if "flops" in mark):
            mark["flops"] = None  # the window begins after it, all the same
    sizes = _sizes(leader) if alike else {}
    return SeenSteps(
        marks=marks,
        pauses=[
            *(pause for each in leaders for pause in (*_evaluations(each), *_between(each), *each.checkpoints)),
            *restarts.phases,
        ],
        facts=_facts(list(ranks.values()), [mark["batch"] for own in marks.values() for mark in own]),
        flags=flags,
        **(sizes | {"parameters": None} if untrained else sizes),  # those of the others may be part of the model
        others=others,
        restarts=restarts,
    )


def _alike(process: _Process) -> bool:
    """Return whether all leading optimizers trained equal parameters."""
    leading = list(dict.fromkeys(line.optimizer for line, _ in process.steps))
    facts = [process.facts[number] for number in leading if number in process.facts]
    sizes = {(each["parameters"], each["trainable_parameters"], each["own_parameters"]) for each in facts}
    return len(sizes) == 1 and len(facts) == len(leading)


def _sizes(process: _Process) -> dict[str, int | None]:
    """Return how many parameters there are and are trained, where all optimizers agree; they may share the trained ones."""
    facts = process.facts.values()
    sizes = {(each["parameters"], each["trainable_parameters"]) for each in facts if each["parameters"] is not None}
    if len(sizes) != 1:
        return {}
    ((parameters, trainable),) = sizes
    own = [each["own_parameters"] for each in facts]
    if None not in own and trainable not in (*own, sum(own)):
        trainable = own[0] if len(own) == 1 else None
    return {"parameters": parameters, "trainable_parameters": trainable}


def _between(process: _Process) -> list[Phase]:
    """Return the time from the last step of a leading optimizer to the first pass for the next one."""
    out, before = [], None
    for line, since in process.steps:
        if before is not None and before.optimizer != line.optimizer and line.begun_ns:
            start = since[-2].host_ns if len(since) > 1 else before.host_ns
            out += [Phase(name="between", start_ns=start, end_ns=line.begun_ns)] if line.begun_ns > start else []
        before = line
    return _after(out, process.lines)


def _process(path: Path) -> _Process | None:
    """Return what a process has written; None where it made no step. Torn lines are left out."""
    facts: dict[int, dict[str, Any]] = {}
    lines: list[_Line] = []
    saves: list[Phase] = []
    events = {"broken"} if path.with_name(path.name + FAILED).exists() else set[str]()
    ends: dict[int, int] = {}
    equal: dict[Any, Any] = {}  # most steps consume the same: kept once
    with path.open(errors="replace") as file:
        for line in each_step(json_lines(file)):
            ends.update(line.get("device_ns", ()))
            events |= EVENTS & line.keys()
            if "facts" in line:
                facts[line.get("optimizer", 0)] = line["facts"]
            elif "t_ns" in line:
                if "products" in line and line["optimizer"] in facts:
                    facts[line["optimizer"]] |= {"products": line["products"], "counted": "flops" in line}
                passes = tuple(tuple(each) for each in line["passes"])
                evals = tuple(tuple(each) for each in line.get("eval", ()))
                times = line["t_ns"], line["t_ns"], line["optimizer"], line["backwards"]
                lines.append(
                    _Line(*times, equal.setdefault(passes, passes), evals, line.get("begun_ns"), line.get("flops"))
                )
            elif "phase" in line:
                saves.append(Phase(name=line["phase"], start_ns=line["start_ns"], end_ns=line["end_ns"]))
    if ends:
        for number, each in enumerate(lines):
            each.t_ns = ends.get(number, 0)
        lines = [each for each in lines if each.t_ns]  # the device had not ended the last ones
    if not lines or lines[0].optimizer not in facts:
        return None
    return _Process(facts, lines, _after(saves, lines), events)


def _after(phases: Sequence[Phase], lines: Sequence[_Line]) -> list[Phase]:
    """Return phases of the host as the device sees them: none begins before the step that it follows has ended."""
    out, times = [], [line.host_ns for line in lines]
    for phase in phases:
        before = bisect_right(times, phase.start_ns)
        start = max(phase.start_ns, lines[before - 1].t_ns) if before else phase.start_ns
        if start < phase.end_ns:
            out.append(phase.changed(start_ns=start))
    return out


def _marks(process: _Process, *, sure: bool) -> Iterator[dict[str, Any]]:
    """Yield the steps of a process with what they consumed; `samples` and `tokens` are absent where they are not sure."""
    sure = sure and not any(each["closures"] or each["outside"] for each in process.facts.values())
    for line, since in process.steps:
        backwards = sum(each.backwards for each in since)
        models: dict[int, list[tuple[int, int | None, int | None]]] = defaultdict(list)
        for each in since:
            for model, *sums in each.passes:
                models[model].append(tuple(sums))
        calls = [sum(part[0] for part in parts) for parts in models.values()]
        out: dict[str, Any] = {"t_ns": line.t_ns, "batch": None}
        if line is process.steps[0][0] and process.number is not None:
            out["number"] = process.number
        if sure and calls and all(count == backwards for count in calls):
            samples = {full_sum(part[1] for part in parts) for parts in models.values()}
            tokens = {full_sum(part[2] for part in parts) for parts in models.values()} - {None}
            out |= {"samples": next(iter(samples))} if len(samples) == 1 and None not in samples else {}
            out |= {"tokens": next(iter(tokens))} if len(tokens) == 1 else {}
        if "samples" in out and out["samples"] % backwards == 0:
            out["batch"] = out["samples"] // backwards
        yield out if line.flops is None else out | {"flops": line.flops}


def _evaluations(process: _Process) -> list[Phase]:
    """Return the passes of evaluation, without those in training between them and those that are part of steps.

    An evaluation that follows a step begins with it, as its data are loaded, and lasts until the next one, with what is made
    of its results. The usual time between two steps is none of it: as far as there is that time behind it, else before it.
    """
    phases, before = list[Phase](), None
    for line, since in process.steps:
        groups = defaultdict[tuple[int, int], list[_Span]](list)
        for span in (span for each in since for span in _spans(each)):
            if process.evaluates(span) or span.model not in process.within:
                groups[span.group].append(span)
        for group, spans in groups.items():
            start, end = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
            begun, loading = since[0].begun_ns, process.loading_ns
            if before is not None and group == (since[0].host_ns, 0) and begun and loading is not None:
                start = min(start, before.host_ns + max(0, round(loading) - (begun - end)))
                end = max(end, begun - round(loading))
            phases.append(Phase(name="eval", start_ns=start, end_ns=end))
        before = line
    return _after(phases, process.lines)


class _Span(NamedTuple):
    """Passes of a model without gradients, in a row."""

    model: int
    start_ns: int
    end_ns: int
    group: tuple[int, int]
    """The end of the line, and how many passes and backwards of it they follow."""
    evaluating: bool
    calls: int
    samples: int | None
    """Of each call in training mode, where they are sure."""


def _spans(line: _Line) -> Iterator[_Span]:
    for model, start, end, passes, evaluating, calls, samples in line.evals:
        yield _Span(model, start, end, (line.host_ns, passes), bool(evaluating), calls, samples)


def _facts(processes: Sequence[_Process], batches: Sequence[int | None]) -> SeenFacts:
    """Return the facts of the first rank, and the devices of all of them: GPUs once, a CPU once a rank."""
    facts = processes[0].first
    if any("compiled" in process.events for process in processes):
        facts = facts | {"compiled": True}
    devices = [device for process in processes for device in process.first["devices"]]
    gpus = list(dict.fromkeys(device for device in devices if device.startswith("GPU-")))
    cpus = [device for device in devices if device == "cpu"]
    whole = len(devices) == len(cpus) or all(device.startswith("GPU-") for device in devices)
    sizes = {batch for batch in batches[1:] if batch is not None}
    return SeenFacts(
        processes=len(processes),
        world_size=facts["world_size"],
        devices=(gpus or cpus) if whole else [],
        precision=None if any("precision" in process.events for process in processes) else _precision(facts),
        batch_size=next(iter(sizes)) if len(sizes) == 1 else None,
        **{name: facts[name] for name in ("gradient_scaler", "parallelism", "optimizer", "compiled", "threads")},
        **{name: facts[name] for name in ("torch", "python")},
    )


def _precision(facts: dict[str, Any]) -> str | None:
    """Return the precision of nearly all products that were counted, else of autocast or of the parameters.

    Where not all products were counted, these must agree. Compiled code hides its autocast.
    """
    kind, products = facts["autocast"] or facts["dtype"], facts.get("products")
    if products:
        most = max(products, key=lambda each: products[each])
        if products[most] < _MAIN * sum(products.values()) or (most != kind and not facts["counted"]):
            return None
        kind = most
    if kind == "float32":
        if facts["compiled"] is not False or (facts["device_type"] == "cuda" and facts["tf32"] is None):
            return None
        return "tf32" if facts["tf32"] and facts["device_type"] == "cuda" else "fp32"
    if kind == facts["autocast"] or kind != facts["dtype"]:
        return _AUTOCAST.get(kind)
    return _PARAMETERS.get(kind or "")
