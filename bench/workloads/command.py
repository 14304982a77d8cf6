"""A command of the user as a workload: any unchanged program, over the devices and settings of a suite.

`argv` is split as a shell would split it. Then `{name}` is replaced by a field of the run or by a custom argument:

    workload: command
    workload_args.argv: torchrun --nproc-per-node={devices} train.py {amp} --layers {layers}
    workload_args.layers: 12

`{num_nodes}`, `{devices_per_node}`, `{node_rank}`, `{master_addr}` and `{master_port}` are for launchers on several nodes,
each of which starts the command once; torchrun needs none of them, as variables tell it (`bench.run.meeting`).

A `{name}` for which the suite has a map of words stands for the words of its value, which may be several or none:

    workload_args.amp: {fp32: [], bf16: [--amp, --dtype, bfloat16]}

`bench.run.command` runs it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bench.figures.metrics import parameters
from bench.registry import did_you_mean
from bench.schema import AXES, UNKNOWN_OF_COMMANDS, RunSpec, names_in_braces
from bench.workloads.printed import Printed, check_pattern

MEETING = ("node_rank", "master_addr", "master_port")
"""Names in a command whose values are known only where it starts: by the number of the node, and where its ranks meet."""
OF_ALL_NODES = ("srun", "mpirun", "mpiexec", "sbatch", "salloc")
"""Programs that start others on all nodes by themselves."""


class CommandArgs(BaseModel):
    """Arguments: those below, and any custom ones for `{name}` in `argv`.

    `folder` is the working directory of the command, by default that of `bench`. `hooks` in torch see its steps, unless that
    is false. The others are those of `Printed`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    argv: str
    step_pattern: str | None = None
    steps_per_line: Annotated[int, Field(ge=1, le=10**9)] | None = None
    samples_per_step: Annotated[int, Field(ge=1, le=10**12)] | None = None
    tokens_per_step: Annotated[int, Field(ge=1, le=10**15)] | None = None
    folder: str | None = None
    hooks: bool | None = None

    @classmethod
    def of(cls, spec: RunSpec) -> Self:
        """Return the arguments of a run."""
        return cls.model_validate(spec.workload_args)

    @property
    def printed(self) -> Printed:
        """How the command prints its steps."""
        return Printed(self.step_pattern, self.steps_per_line, self.samples_per_step, self.tokens_per_step)

    @field_validator("argv")
    @classmethod
    def _can_be_split(cls, value: str) -> str:
        if not shlex.split(value):
            raise ValueError("argv is empty: give a command")
        return value

    @field_validator("step_pattern")
    @classmethod
    def _is_a_pattern(cls, value: str | None) -> str | None:
        return None if value is None else check_pattern(value)

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        _ = self.printed  # raises where they contradict each other
        taken = set(self.model_extra or {}) & {*RunSpec.model_fields, "devices", "global_batch_size", *MEETING}
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: a run has a field of this name; choose another name")
        return self


class Command:
    """The workload; it builds nothing."""

    Args = CommandArgs
    modules = ()

    @staticmethod
    def check(spec: RunSpec) -> None:
        """Raise ValueError where the command cannot be filled in, or does not use what is set; a mistake a line."""
        mistakes = list(_unused(spec))
        try:
            words = fill(spec)
            mistakes += mistakes_on_nodes(words, spec) if spec.num_nodes > 1 else ()
        except ValueError as error:
            mistakes.insert(0, str(error))
        if mistakes:
            raise ValueError("\n".join(mistakes))


def _unused(spec: RunSpec) -> Iterator[str]:
    """Tell which arguments and fields are set, but are not in the text of a command."""
    named = spec.placeholders
    for name in sorted({*spec.workload_args, *spec.words} - named - set(CommandArgs.model_fields)):
        yield f"argv does not use {name!r}, so all its values run the same command; write {{{name}}}"
    for name in UNKNOWN_OF_COMMANDS:
        same = named & ({name, "global_batch_size"} if name == "batch_size_per_device" else {name})
        if name != "seed" and not same and getattr(spec, name) != RunSpec.model_fields[name].default:
            value = f"{name} {getattr(spec, name)}" if name in AXES else name
            yield f"argv does not use {{{name}}}, so {value} would not reach the command; write {{{name}}}, or leave it out"


def mistakes_on_nodes(words: list[str], spec: RunSpec) -> Iterator[str]:
    """Tell what in a command is not for several nodes, each of which starts it once."""
    program, text = PurePath(words[0]).name, " ".join(words)
    if program in OF_ALL_NODES:
        yield f"argv: {program} starts processes on all nodes, but each node starts argv once: leave it out"
    if "--standalone" in words:
        yield f"argv: --standalone is for one node, not {spec.num_nodes}: leave it out"
    nodes = re.search(r"--(?:nnodes|num[-_]machines|num[-_]nodes)[= ](?:\d+:)?(\d+)(?= |$)", text)
    if nodes is not None and int(nodes[1]) != spec.num_nodes:
        yield f"argv: {nodes[0]} is not the {spec.num_nodes} nodes of this run: write {{num_nodes}}"
    if re.search(r"--nproc[-_]per[-_]node[= ]\{devices\}", str(spec.workload_args["argv"])):
        yield "argv: the processes of one node are {devices_per_node}; {devices} are those of all nodes"


def same_commands(specs: Iterable[RunSpec]) -> Iterator[str]:
    """Tell which configurations run the same command with the same threads, although they differ in what is set."""
    groups: dict[Any, list[RunSpec]] = {}
    for spec in specs:
        with suppress(ValueError):  # told elsewhere
            visible = spec.world_size if spec.device_type == "gpu" else None  # a command sees its own GPUs alone
            same = (*fill(spec), visible, spec.num_nodes, spec.threads_per_device, spec.workload_args.get("folder"))
            groups.setdefault(same, []).append(spec)
    for alike in groups.values():
        counts = sorted({spec.world_size for spec in alike})
        if len(counts) > 1:
            listed = f"{', '.join(map(str, counts[:-1]))} and {counts[-1]} devices"
            yield f"argv does not use {{devices}}, so the same command would run as {listed}; write {{devices}} into it"


class _Later(str):
    """A name in braces that stays as it is."""

    def __format__(self, how: str) -> str:
        return "{" + self + (f":{how}" if how else "") + "}"


def fill(spec: RunSpec, meeting: Mapping[str, Any] | None = None) -> list[str]:
    """Return the argument vector of a run. `meeting` has the values of MEETING; without them these names stay in braces.

    Raises ValueError for an unknown `{name}`, or words that do not stand alone.
    """
    values = {**parameters(spec), **{name.partition(".")[2]: v for name, v in parameters(spec).items() if "." in name}}
    values = {name: value for name, value in values.items() if name not in CommandArgs.model_fields}
    values |= meeting if meeting is not None else {name: _Later(name) for name in MEETING}
    return [filled for word in shlex.split(str(spec.workload_args["argv"])) for filled in _filled(word, values, spec)]


def _filled(word: str, values: dict[str, Any], spec: RunSpec) -> list[str]:
    """Return what becomes of one word: a list of words where it is a `{name}` that stands for one."""
    lists = names_in_braces(word) & set(spec.words)
    if lists and word in (f"{{{name}}}" for name in lists):
        return spec.words[word[1:-1]]
    if lists:
        raise ValueError(f"argv: {{{min(lists)}}} stands for a list of words, so it is a word of its own, not {word!r}")
    try:
        return [word.format_map(values)]
    except KeyError as error:
        name = str(error.args[0])
        remedy = f"set {name} in the suite" if name in RunSpec.model_fields else did_you_mean(name, values)
        raise ValueError(f"argv: {{{name}}} is not known; {remedy}") from error
    except (IndexError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"argv: {error}; write {{{{ and }}}} for literal braces") from error
