"""The vocabulary: what is asked (Suite, RunSpec) and where (Machine). What happened is in `bench.record`.

Every model is frozen, forbids unknown fields, and refuses NaN and infinity. An unknown value is absent (None or an empty
list), never 0. Names contain the unit: base SI units, ratios from 0 to 1. One name is used for the field here, the MLflow
metric, the DataFrame column and the key of a chart.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from itertools import pairwise
from pathlib import PurePosixPath
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from bench import registry
from bench.base import Model as Model
from bench.cluster_options import ClusterOptions
from bench.renamed import current_machine, former_machine, former_spec
from bench.vendors import VENDORS, Vendor

Scalar = bool | int | float | str
SLUG = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Slug = Annotated[str, StringConstraints(pattern=SLUG)]
"""A name that is also a folder: lower-case letters, digits, - and _, so that it stays inside its parent folder."""
METERS = r"^[a-z0-9][a-z0-9_-]{0,63}(:/[^,]+)?$"
"""Names of meters in `bench.registry`; `replay:/path` plays a recorded trace instead of reading hardware."""
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
_Whole = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A number that somebody asks for; the bound keeps sums and products of them within what tables can hold."""


class Choice(Model):
    """One value of an axis: a name and its options. In YAML `ddp`, or `{name: ddp, bucket_mb: 25}`."""

    name: Slug
    options: dict[str, Scalar] = {}

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "name" in value and "options" not in value:
            return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
        return value

    @model_serializer
    def _short(self) -> str | dict[str, Any]:
        return {"name": self.name, **self.options} if self.options else self.name

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in sorted(self.options.items()))])


MEASURE = "measure"
"""The suite of the commands that `bench measure` runs without a name."""
COMMAND = "command"
"""The workload that runs a command of the user, which decides on its batch and its length."""


AXES = (
    *("parallelism", "precision", "optimizer", "schedule", "memory", "compile", "attention"),
    *("finetune", "pruning", "quantization", "distillation"),
)
"""Fields of RunSpec that hold a Choice: how the model is trained. Each axis has a registry of names."""
UNKNOWN_OF_COMMANDS = (
    *AXES,
    *("gradient_accumulation_steps", "seed", "cold", "warmup_seconds", "memory_limit_bytes", "batch_size_cap"),
    *("max_restarts", "batch_size_per_device", "validation", "target", "inference_seconds"),
)
"""Fields that a command of the user does not follow unless its text names them: nobody asked for their values."""


def names_in_braces(text: str) -> set[str]:
    """Return the names that `str.format` would look up in a text; none where its braces do not match."""
    with suppress(ValueError):
        return {re.split(r"[.\[]", name)[0] for _, name, _, _ in Formatter().parse(text) if name}
    return set()


def devices_per_copy(parallelism: Choice, devices: int) -> int:
    """Return how many devices share one copy of the model, and so its samples: 1 unless the model itself is divided."""
    options = registry.strategies("parallelism").get(parallelism.name)
    return int(options.per_copy(parallelism.options, devices)) if options else 1


class Validation(Model):
    """How model quality is measured on held-out samples: at the end, and every `every_steps` measured steps.

    `samples` is the largest number of samples. With `patience` the training stops after that many validations without a
    lower loss (early stopping).
    """

    samples: Annotated[int, Field(ge=0)] = 64
    every_steps: Count | None = None
    patience: Count | None = None

    @model_validator(mode="after")
    def _patience_needs_validations(self) -> Self:
        if self.patience is not None and self.every_steps is None:
            raise ValueError("patience counts validations: give every_steps too")
        if not self.samples and self.every_steps is not None:
            raise ValueError("every_steps needs samples above 0")
        return self


class Target(Model):
    """The quality to reach on held-out samples: a loss of at most, or an accuracy of at least, `value`."""

    metric: Literal["validation_loss", "validation_accuracy"]
    value: float


def program_name(argv: str) -> str:
    """Name what a command line runs: its first script (`train.py`), its module (`-m pkg.train`), or its program."""
    words = [argv]
    with suppress(ValueError):
        words = shlex.split(argv) or words
    names = [PurePosixPath(word).name for word in words]
    module = [after for before, after in pairwise(words) if before == "-m"]
    scripts = [name for name in names if re.fullmatch(r"[\w.-]+\.(py|sh|R|jl|js)", name)]
    name = next(iter((*scripts, *[m for m in module if not m.startswith("torch.distributed")], *names)), argv)
    return name.replace("{", "").replace("}", "")[:40] or COMMAND


def program_of(argv: str) -> str:
    """Return what a command line runs, by which two run the same: a script, a module, the code of -c, or a program."""
    words = [argv]
    with suppress(ValueError):
        words = shlex.split(argv) or words
    name = program_name(argv)
    if PurePosixPath(words[0]).name == name and "-c" in words[1:-1]:
        return words[words.index("-c") + 1]
    return next((str(PurePosixPath(word)) for word in words if PurePosixPath(word).name == name), name)


def _hash(configuration: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:10]


_NOT_CONFIGURATION = frozenset({"seed", "repeat", "ladder", "work", "launcher"})
"""Fields of RunSpec in which runs of the same configuration may differ."""
_CACHED = ("config_id", "label")


class RunSpec(Model):
    """What to do in one run; it holds nothing of what happened.

    Work is counted in samples (for a language model: sequences). `batch_size_per_device` samples go through a device, or
    through the devices that share one copy of a model, at a time; `max` is the largest number that fits into memory, up to
    `batch_size_cap`. `gradient_accumulation_steps` such batches make one step of the optimizer. `memory_limit_bytes` is the
    limit of a rank: torch enforces it on a GPU (default: none); on a CPU, `max` fills it (default: 80 % of free memory /
    ranks). A run that `saves` weights under a name provides them to runs of the same repeat that `needs` the name. The
    workload `command` ends by itself, or after `measure_steps` or `measure_seconds`, and may leave the batch and the threads
    open; with `open_devices` (`bench measure`) it decides on its devices too, of which `devices_per_node` are the most.
    `words` are what stands for some `{name}` in its text, where that is not the value; `work` names the arguments that say
    what it trains, not how.
    """

    workload: Slug
    workload_args: dict[str, Scalar] = {}
    words: dict[str, list[str]] = {}
    work: list[str] = []
    parallelism: Choice = Choice(name="ddp")
    precision: Choice = Choice(name="fp32")
    optimizer: Choice = Choice(name="adamw")
    schedule: Choice = Choice(name="constant")
    memory: Choice = Choice(name="none")
    compile: Choice = Choice(name="eager")
    attention: Choice = Choice(name="sdpa")
    finetune: Choice = Choice(name="full")
    pruning: Choice = Choice(name="none")
    quantization: Choice = Choice(name="none")
    distillation: Choice = Choice(name="none")
    validation: Validation = Validation()
    target: Target | None = None
    saves: Slug | None = None
    needs: Slug | None = None
    inference_seconds: NonNegative = 0.0
    ladder: Annotated[int, Field(ge=0)] | None = None
    launcher: Slug = "local"
    device_type: Annotated[Literal["cpu", "gpu"], BeforeValidator(current_machine)]
    num_nodes: _Whole = 1
    devices_per_node: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    open_devices: bool = False
    threads_per_device: _Whole | None = 1
    batch_size_per_device: _Whole | Literal["max"] | None = None
    memory_limit_bytes: Annotated[int, Field(ge=1, le=2**50)] | None = None
    batch_size_cap: _Whole = 1024
    gradient_accumulation_steps: _Whole = 1
    warmup_steps: _Whole = 3
    warmup_seconds: NonNegative = 0.5
    measure_steps: _Whole | None = None
    measure_seconds: Positive | None = None
    meters: list[Annotated[str, StringConstraints(pattern=METERS)]] = ["nvml", "rapl", "codecarbon"]
    cold: bool = False
    max_restarts: Annotated[int, Field(ge=0, le=100)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    repeat: Annotated[int, Field(ge=0, lt=1000)] = 0
    timeout_seconds: Annotated[float, Field(gt=0, le=2_000_000)] = 600.0

    @model_validator(mode="before")
    @classmethod
    def _threads_of_a_command(cls, value: Any) -> Any:
        open_ = isinstance(value, dict) and value.get("workload") == COMMAND
        return {"threads_per_device": None, **value} if open_ else value

    @model_serializer(mode="wrap")
    def _as_asked(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        if self.workload != COMMAND:
            return fields
        named = self.placeholders | ({"batch_size_per_device"} if "global_batch_size" in self.placeholders else set())
        return {name: fields[name] for name in fields if name not in UNKNOWN_OF_COMMANDS or name in named}

    @property
    def placeholders(self) -> set[str]:
        """Names that the text of a command has in braces."""
        return names_in_braces(str(self.workload_args.get("argv")))

    @property
    def threads(self) -> int:
        """Threads of a rank; 1 where they are left open."""
        return self.threads_per_device or 1

    @model_validator(mode="after")
    def _one_way_to_measure(self) -> Self:
        if self.workload == COMMAND:
            if self.measure_steps is not None and self.measure_seconds is not None:
                raise ValueError("give measure_steps or measure_seconds, not both")
            return self
        if self.threads_per_device is None:
            raise ValueError("'threads_per_device' is missing")
        if self.batch_size_per_device is None:
            raise ValueError("'batch_size_per_device' is missing (or global_batch_size)")
        if (self.measure_steps is None) == (self.measure_seconds is None):
            raise ValueError("give exactly one of measure_steps and measure_seconds")
        if self.target is not None and self.validation.every_steps is None:
            raise ValueError("a target needs validation.every_steps: how often to check whether it is reached")
        return self

    def changed(self, **fields: Any) -> Self:
        """Return a validated copy; it keeps the cached `config_id` and `label` while it is the same configuration."""
        changed = super().changed(**fields)
        if fields.keys() <= _NOT_CONFIGURATION:
            changed.__dict__.update({name: self.__dict__[name] for name in _CACHED if name in self.__dict__})
        return changed

    @property
    def world_size(self) -> int:
        """Number of ranks: one per device."""
        return self.num_nodes * self.devices_per_node

    @property
    def devices_per_copy(self) -> int:
        """Devices that share one copy of the model; 1 unless the model itself is divided."""
        return devices_per_copy(self.parallelism, self.world_size)

    @property
    def data_parallel_size(self) -> int:
        """Number of copies of the model, each of which trains on its own samples."""
        return max(1, self.world_size // self.devices_per_copy)

    @property
    def global_batch_size(self) -> int | None:
        """Samples per optimizer step over all devices; None where the batch size is open or still to be found."""
        if not isinstance(self.batch_size_per_device, int):
            return None
        return self.data_parallel_size * self.batch_size_per_device * self.gradient_accumulation_steps

    @cached_property
    def config_id(self) -> str:
        """Hash of the configuration: everything but seed, repeat and its place on a ladder, where it is not the default.

        For how long `bench measure` looks at a command makes no other configuration of it.
        A plan of 10,000 runs asks for it several times a run, so it is computed once. A GPU is hashed by its former name,
        so that stored runs keep their configuration.
        """
        return _hash(former_machine(self._configuration()))

    @property
    def former_config_id(self) -> str:
        """Return the `config_id` under the names of version 0.1, which identifies runs that were stored then."""
        return _hash(former_spec(self._configuration()))

    def _configuration(self) -> dict[str, Any]:
        fields = self.model_dump(mode="json", exclude=set(_NOT_CONFIGURATION), exclude_defaults=True)
        if self.workload != COMMAND:
            return fields
        left = {"threads_per_device", *(("measure_steps", "measure_seconds") if self.open_devices else ())}
        open_ = {name: fields[name] for name in fields if name not in left}
        return open_ if self.threads_per_device is None else open_ | {"threads_per_device": self.threads_per_device}

    @cached_property
    def label(self) -> str:
        """A readable name of the configuration; not unique."""
        if self.workload == COMMAND:
            return self._command_label()
        args = [str(v) for k, v in sorted(self.workload_args.items()) if k in ("preset", "architecture")]
        batch = f"b{self.global_batch_size or self.batch_size_per_device}"
        plain = ("parallelism", "precision")
        rest = [
            axis for axis in AXES if axis not in plain and getattr(self, axis) != type(self).model_fields[axis].default
        ]
        axes = [str(self.precision), str(self.parallelism), *(str(getattr(self, axis)) for axis in rest)]
        names = [f"{word}-{name}" for word, name in (("from", self.needs), ("saves", self.saves)) if name is not None]
        return " ".join([self.workload, *args, f"d{self.world_size}", batch, *axes, *names])

    def _command_label(self) -> str:
        """Name a command by its program, its own arguments, and the devices, batch and axes that it was asked to use."""
        argv, named = str(self.workload_args.get("argv", COMMAND)), self.placeholders
        arguments = sorted((name, value) for name, value in self.workload_args.items() if name in named)
        own = [f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in arguments]
        axes = [str(getattr(self, axis)) for axis in AXES if axis in named]
        size = self.global_batch_size or self.batch_size_per_device
        batch = [f"b{size}"] if named & {"batch_size_per_device", "global_batch_size"} else []
        devices = [] if self.open_devices else [f"d{self.world_size}"]
        return " ".join([program_name(argv), *own, *devices, *batch, *axes])

    @property
    def run_id(self) -> str:
        """Folder name of the run, unique in its execution."""
        readable = re.sub(r"[^a-z0-9_]+", "-", self.label.lower())[:80]
        return f"{readable.lstrip('-')}-{self.config_id}-r{self.repeat}"


_Price = Annotated[float, Field(ge=0, le=1e18)]


class Site(Model):
    """Where the energy comes from, and prices. Nothing has a default: an unknown value is absent.

    `region` is an ISO 3166 country (`FR`, `FRA`) or subdivision (`US-CA`); `pue` the data centre's power usage
    effectiveness; `usd_per_device_hour` a rental price (electricity inside). Owned devices cost `usd_capital_per_device_hour`
    (their price / the hours of their use) and `usd_per_kwh`. `price_note` says whose price it is: provider, date, spot.
    """

    region: str | None = None
    pue: Annotated[float, Field(ge=1, le=5)] | None = None
    usd_per_device_hour: _Price | None = None
    usd_per_kwh: _Price | None = None
    usd_capital_per_device_hour: _Price | None = None
    price_note: Annotated[str, Field(max_length=200)] = ""

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        owned = [name for name in ("usd_per_kwh", "usd_capital_per_device_hour") if getattr(self, name) is not None]
        if self.usd_per_device_hour is not None and owned:
            raise ValueError(
                f"give usd_per_device_hour (rented) or {' and '.join(owned)} (owned), not both: a rent includes power"
            )
        return self


def word_key(value: Any) -> str:
    """Return a value as the key of a map of words: `true`, `2`, `bf16`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def with_words(document: Any, axes: str) -> Any:
    """Move the maps `{value: [words]}` of the fields of a suite, or of a search, to its key `words`.

    In the part with its `axes` the values remain; in the defaults nothing does, and the axes list the values.
    """
    if not isinstance(document, dict):
        return document
    words, parts = dict(document.get("words") or {}), {}
    for part in ("defaults", axes):
        fields = document.get(part)
        if not isinstance(fields, dict):
            continue
        inner = fields.get("workload_args")
        if isinstance(inner, dict) and any(_are_words(entry) for entry in inner.values()):
            rest = {name: entry for name, entry in inner.items() if not _are_words(entry)}
            dotted = {f"workload_args.{name}": entry for name, entry in inner.items() if _are_words(entry)}
            fields = {**fields, "workload_args": rest, **dotted}
        parts[part] = kept = dict[str, Any]()
        for name, entry in fields.items():
            if _are_words(entry):
                lists = {word_key(key): [str(word) for word in listed or []] for key, listed in entry.items()}
                words[str(name).removeprefix("workload_args.")] = lists
                kept |= {name: list(entry)} if part == axes else {}
            else:
                kept[name] = entry
    return {**document, **parts, **({"words": words} if words else {})}


def _are_words(entry: Any) -> bool:
    """Whether an entry is a map of values to lists of words: `{fp32: [], bf16: [--amp]}`."""
    reserved = {"on", "choices"}
    return (
        isinstance(entry, dict)
        and bool(entry)
        and not reserved & set(entry)
        and all(listed is None or isinstance(listed, list) for listed in entry.values())
    )


class Suite(Site):
    """A file of experiments, as written. `defaults`, `matrix`, `include` and `exclude` hold fields of RunSpec.

    They also understand `devices` (a count, or `auto`) and `global_batch_size`, and a dotted name sets one entry of a
    mapping (`workload_args.preset`). A value may depend on the machine: `{on: {cpu: 4, gpu: 16}}`. The steps of a `ladder`
    are added one by one to the defaults, which are its first step.

    Of commands, a map `{fp32: [], bf16: [--amp]}` names the values of a field and the words that stand for them in the text:
    `words` has these by the `{name}`. `work` names the own arguments that say what is trained; the others say how.
    """

    name: Slug
    description: Annotated[str, Field(max_length=2000)] = ""
    work: list[str] = []
    words: dict[str, dict[str, list[str]]] = {}
    defaults: dict[str, Any] = {}
    matrix: dict[str, Any] = {}
    include: list[dict[str, Any]] = []
    exclude: list[dict[str, Any]] = []
    ladder: list[dict[str, Any]] = []
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    idle_seconds: Annotated[float, Field(ge=0, le=600)] = 3.0
    """How long idle power is measured before the runs, without and with a context of torch on the GPUs; 0: not at all."""
    launcher: Slug | None = None
    cluster: ClusterOptions = ClusterOptions()
    """Where its runs are done, and how jobs for them are asked for."""

    @model_validator(mode="before")
    @classmethod
    def _maps_are_words(cls, value: Any) -> Any:
        return with_words(value, "matrix")

    @property
    def site(self) -> Site:
        """Region, PUE and prices alone."""
        return Site(**{name: getattr(self, name) for name in Site.model_fields})


class Gpu(Model):
    """One GPU as the library of its vendor reports it. `used_by` names other processes that use it.

    `foreign_memory_bytes` is the memory in use before the runs, without that of the driver. `mig`: it is cut into slices
    (MIG of NVIDIA, partitions of AMD).
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int | None = None
    used_by: list[str] = []
    foreign_memory_bytes: int | None = None
    mig: bool = False
    vendor: Vendor = "nvidia"


class Machine(Model):
    """The machine that a suite is expanded for, with its devices."""

    cpu_model: str
    cpu_count: Count
    memory_bytes: int | None = None
    gpus: list[Gpu] = []
    driver_version: str | None = None

    @property
    def free_gpus(self) -> list[Gpu]:
        """GPUs that no other process uses and that are not cut into slices, which are not supported."""
        return [gpu for gpu in self.gpus if not gpu.used_by and not gpu.mig]

    @property
    def num_nodes(self) -> int:
        """Number of such machines that runs may use together."""
        return 1

    @property
    def launcher(self) -> str:
        """Launcher of runs on it."""
        return "local"

    @property
    def seconds_left(self) -> float | None:
        """Seconds for which runs may use it; None without a limit."""
        return None

    @property
    def vendor(self) -> Vendor:
        """Vendor of the GPUs; NVIDIA where there are none."""
        return self.gpus[0].vendor if self.gpus else "nvidia"

    @property
    def meters(self) -> list[str]:
        """Meters of runs that name none."""
        return [VENDORS[self.vendor].meter, "rapl", "codecarbon"]

    @property
    def device_type(self) -> Literal["cpu", "gpu"]:
        """Type of device that runs use by default."""
        return "gpu" if self.gpus else "cpu"
