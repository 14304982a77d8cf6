"""A command of the user as a workload: any unchanged program, over the devices and settings of a suite.

`argv` is split as a shell would split it. Then `{name}` is replaced by a field of the run or by a custom argument:

    workload: command
    workload_args.argv: torchrun --nproc-per-node={devices} train.py --precision {precision} --layers {layers}
    workload_args.layers: 12

`bench.run.command` runs it.
"""

from __future__ import annotations

import shlex
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bench.figures.metrics import names_in_braces, parameters
from bench.registry import did_you_mean
from bench.schema import RunSpec
from bench.workloads.printed import Printed, check_pattern

_COUNTS = ("steps_per_line", "samples_per_step", "tokens_per_step")


class CommandArgs(BaseModel):
    """Arguments: those below, and any custom ones for `{name}` in `argv`.

    `folder` is the working directory of the command, by default that of `bench`; the others are those of `Printed`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    argv: str
    step_pattern: str | None = None
    steps_per_line: Annotated[int, Field(ge=1, le=10**9)] | None = None
    samples_per_step: Annotated[int, Field(ge=1, le=10**12)] | None = None
    tokens_per_step: Annotated[int, Field(ge=1, le=10**15)] | None = None
    folder: str | None = None

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
        if self.step_pattern is None and (lost := [name for name in _COUNTS if getattr(self, name) is not None]):
            raise ValueError(f"{', '.join(lost)}: needs step_pattern, which says what a line of a step looks like")
        taken = set(self.model_extra or {}) & {*RunSpec.model_fields, "devices", "global_batch_size"}
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: a run has a field of this name; choose another name")
        return self


class Command:
    """The workload; it builds nothing."""

    Args = CommandArgs
    modules = ()

    @staticmethod
    def check(spec: RunSpec) -> None:
        """Raise ValueError where the command cannot be filled in, or does not use a custom argument."""
        fill(spec)
        used = names_in_braces(str(spec.workload_args["argv"])) | set(CommandArgs.model_fields)
        for name in sorted(set(spec.workload_args) - used):
            raise ValueError(f"argv does not use {name!r}, so all its values run the same command; write {{{name}}}")


def printed(spec: RunSpec) -> Printed | None:
    """Return how the command of a run prints its steps; None where nothing says so."""
    known = CommandArgs.model_validate(spec.workload_args)
    counts = {name: getattr(known, name) for name in _COUNTS}
    return None if known.step_pattern is None else Printed(known.step_pattern, **counts)


def fill(spec: RunSpec) -> list[str]:
    """Return the argument vector of a run. Raises ValueError for an unknown `{name}`."""
    values = {**parameters(spec), **{name.partition(".")[2]: v for name, v in parameters(spec).items() if "." in name}}
    values = {name: value for name, value in values.items() if name not in CommandArgs.model_fields}
    try:
        return [word.format_map(values) for word in shlex.split(str(spec.workload_args["argv"]))]
    except KeyError as error:
        name = str(error.args[0])
        raise ValueError(f"argv: {{{name}}} is not known; {did_you_mean(name, values)}") from error
    except (IndexError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"argv: {error}; write {{{{ and }}}} for literal braces") from error
