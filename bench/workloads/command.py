"""The user's own command as a workload: any program, unchanged, over the devices and settings of a suite.

`argv` is split as a shell would, then `{name}` in it stands for a field of the run or for an argument of the suite's own:

    workload: command
    workload_args.argv: torchrun --nproc-per-node={devices} train.py --precision {precision} --layers {layers}
    workload_args.layers: 12

`bench.run.command` runs it.
"""

from __future__ import annotations

import re
import shlex
from typing import Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from bench.figures.metrics import names_in_braces, parameters
from bench.registry import did_you_mean
from bench.schema import RunSpec


class CommandArgs(BaseModel):
    """Arguments of the workload: the three below, and any of the user's own, for `{name}` in `argv`.

    `folder` is where the command runs, if not where `bench` was typed.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    argv: str
    step_pattern: str | None = None
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
        try:
            known = set(re.compile(value or "").groupindex)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if known - {"samples", "tokens", "loss"}:
            raise ValueError(f"groups are samples, tokens and loss, not {', '.join(sorted(known))}")
        return value

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        taken = set(self.model_extra or {}) & {*RunSpec.model_fields, "devices", "global_batch_size"}
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: a run has a field of this name; choose another one")
        return self


class Command:
    """The workload; it builds nothing."""

    Args = CommandArgs
    modules = ()

    @staticmethod
    def check(spec: RunSpec) -> None:
        """Raise ValueError where the command cannot be put together, or is not told an argument of the suite's own."""
        fill(spec)
        unused = (
            set(spec.workload_args) - {*CommandArgs.model_fields} - names_in_braces(str(spec.workload_args["argv"]))
        )
        if unused:
            name = sorted(unused)[0]
            raise ValueError(f"argv does not use {name!r}: all its values would run the same command; write {{{name}}}")


def fill(spec: RunSpec) -> list[str]:
    """Return the argument vector of a run. Raises ValueError for a `{name}` that is not there."""
    values = {**parameters(spec), **{name.partition(".")[2]: v for name, v in parameters(spec).items() if "." in name}}
    own = {"argv", "step_pattern", "folder"}
    try:
        words = shlex.split(str(spec.workload_args["argv"]))
        return [word.format_map({k: v for k, v in values.items() if k not in own}) for word in words]
    except KeyError as error:
        raise ValueError(
            f"argv: {{{error.args[0]}}} is not known; {did_you_mean(str(error.args[0]), set(values) - own)}"
        ) from error
    except (IndexError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"argv: {error}; write {{{{ and }}}} for braces that are meant") from error
