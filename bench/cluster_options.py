"""What a suite says about the jobs that it asks for on a cluster: the key `cluster`, and profiles of a site."""

from __future__ import annotations

import re
import reprlib
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from bench.base import Model
from bench.redact import redact

_Whole = Annotated[int, Field(ge=1, le=2**31 - 1)]


def _line(text: str) -> str:
    if not text.strip() or text.splitlines() != [text] or len(text) > 1000:
        raise ValueError(f"give one line of text, of at most 1,000 characters, not {reprlib.repr(text)}")
    return text


_Line = Annotated[str, AfterValidator(_line)]
_CLOCK = re.compile(r"(?:(\d{1,4})-)?(\d{1,4})(?::(\d\d?))?(?::(\d\d?))?")
_LENGTH = "give a length of time such as 02:00:00 (hours), 1-00:00:00 (a day) or 90min"
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h|d)")


def clock_seconds(text: str) -> float:
    """Return the seconds of a length of time: 2:00:00, 1-00:00:00 or 1-00 (days), 30:00 (minutes), 2h. Raises ValueError."""
    if (amount := _AMOUNT.fullmatch(text)) is not None:
        return float(amount[1]) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[amount[2]]
    match = _CLOCK.fullmatch(text)
    if match is None or (match[1] is None and match[3] is None):
        raise ValueError(f"{_LENGTH}, not {text!r}")
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if max(second or 0, third or 0) > 59:
        raise ValueError(f"minutes and seconds after a larger unit end at 59, not {text!r}")
    if days is not None and (first or 0) > 23:
        raise ValueError(f"hours after days end at 23, not {text!r}")
    if third is None and days is None:
        return 60.0 * (first or 0) + (second or 0)
    return 86400.0 * (days or 0) + 3600 * (first or 0) + 60 * (second or 0) + (third or 0)


def _span(text: Any) -> Any:
    if not isinstance(text, str):
        raise ValueError(f"{_LENGTH}, not {text!r}")
    if clock_seconds(text) < 1:
        raise ValueError(f"{text!r} is no time at all")
    return text


_Span = Annotated[str, BeforeValidator(_span)]
SET_BY_US = frozenset(
    {
        *(
            "job-name",
            "nodes",
            "ntasks",
            "ntasks-per-node",
            "time",
            "output",
            "error",
            "open-mode",
            "signal",
            "requeue",
        ),
        *("no-requeue", "partition", "account", "qos", "constraint", "gres", "gpus-per-node", "nodelist", "exclude"),
        *("reservation", "licenses", "nice", "exclusive", "array", "parsable", "test-only", "wait", "wrap", "chdir"),
        *("export", "input", "overlap", "kill-on-bad-exit", "label", "unbuffered"),
    }
)
"""Options of Slurm that wattbench sets itself."""
_SHORT = frozenset("JNntoepAqCwxLaDWiul")


class ClusterOptions(Model):
    """How the jobs of a suite are asked for on a cluster, from its login node. Everything may be left out.

    `partition` to `nice` are those of `sbatch`. `devices_per_node` are the GPUs of a node that runs may use, or its
    processors in a partition without GPUs; `max_nodes` are the most nodes of a run with `devices: auto`. A job asks for
    `time_limit` at most and waits for `max_pending`; `max_jobs` of a suite are in the queue at once. `jobs`: one for each
    number of nodes (`by_size`), a single one with the most nodes (`one`), or one for each run. `setup` stands in the batch
    script before anything of wattbench. Where it, or a container, has another Python, `python` is its command. `container`
    and its mounts are given to `srun` (pyxis); `container_command` stands before the command of an agent. `env` are
    variables of the job.
    """

    partition: _Line | None = None
    account: _Line | None = None
    qos: _Line | None = None
    constraint: _Line | None = None
    gres: _Line | None = None
    nodelist: _Line | None = None
    exclude: _Line | None = None
    reservation: _Line | None = None
    licenses: _Line | None = None
    nice: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    devices_per_node: _Whole | None = None
    max_nodes: _Whole | None = None
    exclusive: bool = True
    time_limit: _Span | None = None
    jobs: Literal["by_size", "one", "each_run"] = "by_size"
    max_jobs: Annotated[int, Field(ge=1, le=1000)] = 8
    max_pending: _Span | None = None
    setup: Annotated[str, Field(max_length=20_000)] = ""
    python: _Line | None = None
    container: _Line | None = None
    container_mounts: list[_Line] = []
    container_command: list[_Line] = []
    env: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w{0,99}$")], str] = {}
    network_interface: Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,15}$")] | None = None
    sbatch: list[_Line] = []
    srun: list[_Line] = []

    @model_validator(mode="after")
    def _nothing_of_ours(self) -> Self:
        for name, words in (("sbatch", self.sbatch), ("srun", self.srun)):
            for word in words:
                option = word.partition("=")[0].split()[0]
                if not option.startswith("-"):
                    raise ValueError(f"{name}: an option begins with a dash, not {word!r}")
                if option.lstrip("-") in SET_BY_US or (option[1:2] in _SHORT and not option.startswith("--")):
                    raise ValueError(f"{name}: {option} is set by wattbench; see the other keys of cluster")
        if self.container is not None and self.container_command:
            raise ValueError("give container (pyxis) or container_command, not both")
        for name, value in self.env.items():
            if redact(f"{name}={value}") != f"{name}={value}":
                raise ValueError(
                    f"env: {name} looks like a credential, and this file may be shared: export it in setup"
                )
        return self

    @property
    def brings_python(self) -> bool:
        """Whether jobs may have another Python than the one that submits them."""
        return bool(self.container or self.container_command or self.python)
