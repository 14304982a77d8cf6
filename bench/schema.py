"""The vocabulary: what is asked (Suite, RunSpec), where (Machine), and what happened (Measurement, RunRecord).

Every model is frozen, forbids unknown fields and refuses NaN and infinity: a wrong result cannot be built. What is not
known is absent (None or an empty list), never 0. Units are part of a name: base SI units, ratios from 0 to 1. The same
string is the field here, the MLflow metric, the DataFrame column and the chart key.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_serializer, model_validator

SCHEMA_VERSION = 1
Scalar = bool | int | float | str
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""A name that is also a folder: lower-case letters, digits, - and _, so that it cannot leave its place."""
METERS = r"^(nvml|rapl|codecarbon|replay:/[^,]+)$"
"""Names of meters; `replay:/path` plays a recorded trace in place of hardware."""
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Base of all models: frozen, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Status(StrEnum):
    """How a run ended. Only `ok` carries a measurement."""

    OK = "ok"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    FAILED = "failed"
    INVALID = "invalid"
    SKIPPED = "skipped"


class Provenance(StrEnum):
    """Where a figure comes from, best first. A sum has the worst label of its parts."""

    MEASURED_COUNTER = "measured_counter"
    MEASURED_COUNTER_INTERP = "measured_counter_interp"
    INTEGRATED_SAMPLES = "integrated_samples"
    MEASURED_EXTERNAL = "measured_external"
    ATTRIBUTED = "attributed"
    ESTIMATED_MODEL = "estimated_model"
    ESTIMATED_TDP = "estimated_tdp"
    USER_SUPPLIED = "user_supplied"
    IMPORTED = "imported"
    ABSENT = "absent"

    @property
    def measured(self) -> bool:
        """Whether the figure was read from hardware, and so may enter `energy_joules`."""
        return self in _MEASURED

    @staticmethod
    def worst(labels: list[Provenance]) -> Provenance:
        """Return the label of a sum of parts with these labels; `absent` for no parts."""
        order = list(Provenance)
        return max(labels, key=order.index, default=Provenance.ABSENT)


_MEASURED = {
    Provenance.MEASURED_COUNTER,
    Provenance.MEASURED_COUNTER_INTERP,
    Provenance.INTEGRATED_SAMPLES,
    Provenance.MEASURED_EXTERNAL,
}


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
"""The suite of the commands that `bench measure` runs."""
COMMAND = "command"
"""The workload that runs a command of the user: its batch and its length are its own business."""


class RunSpec(Model):
    """What to do in one run, and nothing of what happened.

    Work is counted in samples (for a language model: sequences). `batch_size_per_device` samples go through a device at a
    time; `gradient_accumulation_steps` of them make one step of the optimizer. The workload `command` may leave the batch
    open, and ends by itself.
    """

    workload: Slug
    workload_args: dict[str, Scalar] = {}
    parallelism: Choice = Choice(name="ddp")
    precision: Choice = Choice(name="fp32")
    optimizer: Choice = Choice(name="adamw")
    launcher: Literal["local"] = "local"
    device_type: Literal["cpu", "cuda"]
    num_nodes: Literal[1] = 1
    devices_per_node: Count = 1
    threads_per_device: Count = 1
    batch_size_per_device: Count | None = None
    gradient_accumulation_steps: Count = 1
    warmup_steps: Count = 3
    warmup_seconds: NonNegative = 0.5
    measure_steps: Count | None = None
    measure_seconds: Positive | None = None
    meters: list[Annotated[str, StringConstraints(pattern=METERS)]] = ["nvml", "rapl", "codecarbon"]
    cold: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    repeat: Annotated[int, Field(ge=0, lt=1000)] = 0
    timeout_seconds: Annotated[float, Field(gt=0, le=2_000_000)] = 600.0

    @model_validator(mode="after")
    def _one_way_to_measure(self) -> Self:
        if self.workload == COMMAND:
            if self.measure_steps is not None or self.measure_seconds is not None:
                raise ValueError("a command ends by itself: leave measure_steps and measure_seconds out")
            return self
        if self.batch_size_per_device is None:
            raise ValueError("'batch_size_per_device' is missing (or global_batch_size)")
        if (self.measure_steps is None) == (self.measure_seconds is None):
            raise ValueError("give exactly one of measure_steps and measure_seconds")
        return self

    @property
    def world_size(self) -> int:
        """Number of ranks: one a device."""
        return self.num_nodes * self.devices_per_node

    @property
    def global_batch_size(self) -> int | None:
        """Samples per optimizer step over all devices; None for a command that does not say."""
        if self.batch_size_per_device is None:
            return None
        return self.world_size * self.batch_size_per_device * self.gradient_accumulation_steps

    @property
    def config_id(self) -> str:
        """Hash of the configuration: everything but seed and repeat."""
        text = json.dumps(self.model_dump(mode="json", exclude={"seed", "repeat"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def label(self) -> str:
        """A readable name of the configuration; not unique by itself."""
        if self.workload == COMMAND:
            told = {"devices": self.world_size, "precision": self.precision, **self.workload_args}
            argv = str(self.workload_args.get("argv", COMMAND))
            filled = re.sub(r"\{(\w+)[^{}]*\}", lambda name: str(told.get(name[1], name[0])), argv)
            own = [f"{k}={v}" for k, v in sorted(self.workload_args.items()) if f"{{{k}" in argv]
            return " ".join([filled if len(filled) <= 60 else f"{filled[:60]} {' '.join(own)}", f"d{self.world_size}"])
        args = [str(v) for k, v in sorted(self.workload_args.items()) if k in ("preset", "architecture")]
        batch = f"b{self.global_batch_size}"
        return " ".join(
            [self.workload, *args, f"d{self.world_size}", batch, str(self.precision), str(self.parallelism)]
        )

    @property
    def run_id(self) -> str:
        """Folder name of the run, unique in its execution."""
        readable = re.sub(r"[^a-z0-9_]+", "-", self.label.lower())[:80]
        return f"{readable.lstrip('-')}-{self.config_id}-r{self.repeat}"


class Site(Model):
    """Where the energy comes from and what is paid; nothing here has a default, an unknown is absent.

    `region` is an ISO 3166 country (`FR`, `FRA`) or subdivision (`US-CA`); `pue` the data centre's power usage
    effectiveness; `usd_per_device_hour` a rental price (electricity inside). Owned devices cost `usd_capital_per_device_hour`
    (their price / the hours of their use) and `usd_per_kwh`. `price_note` says whose price it is: provider, date, spot.
    """

    region: str | None = None
    pue: Annotated[float, Field(ge=1, le=5)] | None = None
    usd_per_device_hour: NonNegative | None = None
    usd_per_kwh: NonNegative | None = None
    usd_capital_per_device_hour: NonNegative | None = None
    price_note: Annotated[str, Field(max_length=200)] = ""

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        owned = [name for name in ("usd_per_kwh", "usd_capital_per_device_hour") if getattr(self, name) is not None]
        if self.usd_per_device_hour is not None and owned:
            raise ValueError(
                f"give usd_per_device_hour (rented) or {' and '.join(owned)} (owned), not both: a rent includes power"
            )
        return self


class Suite(Site):
    """A file of experiments, as written. `defaults`, `matrix`, `include` and `exclude` hold fields of RunSpec.

    Two more names are understood in them: `devices` (a count, or `auto`) and `global_batch_size`, and a dotted name sets
    one entry of a mapping (`workload_args.preset`). A value may differ by machine: `{on: {cpu: 4, cuda: 16}}`.
    """

    name: Slug
    description: Annotated[str, Field(max_length=2000)] = ""
    defaults: dict[str, Any] = {}
    matrix: dict[str, Any] = {}
    include: list[dict[str, Any]] = []
    exclude: list[dict[str, Any]] = []
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    idle_seconds: Annotated[float, Field(ge=0, le=600)] = 3.0
    """How long idle power is measured before the runs, without and with a context on the GPUs; 0 leaves it out."""

    @property
    def site(self) -> Site:
        """Region, PUE and prices alone."""
        return Site(**{name: getattr(self, name) for name in Site.model_fields})


class Gpu(Model):
    """One NVIDIA GPU as NVML reports it. `used_by` names the processes of others that hold it.

    `foreign_memory_bytes` is what is in use on it, beyond the driver's own, before any run of ours.
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int | None = None
    used_by: list[str] = []
    foreign_memory_bytes: int | None = None
    mig: bool = False


class Machine(Model):
    """What a suite is expanded for: the devices that are here, and those that are free."""

    cpu_model: str
    cpu_count: Count
    memory_bytes: int | None = None
    gpus: list[Gpu] = []
    driver_version: str | None = None

    @property
    def free_gpus(self) -> list[Gpu]:
        """GPUs that no other process uses, whole ones: runs on slices (MIG) are not supported."""
        return [gpu for gpu in self.gpus if not gpu.used_by and not gpu.mig]

    @property
    def device_type(self) -> Literal["cpu", "cuda"]:
        """Kind of the devices that runs use unless the suite says otherwise."""
        return "cuda" if self.gpus else "cpu"


class EnergyReading(Model):
    """Energy of one component of one node over a stated window. Absent readings are not listed.

    `energy_joules` over `seconds`; `coverage` is the share of the window that the source's readings span. Two bounds of the
    error: `uncertainty_joules` of the edges of the window (quantisation of the counter), `gain_share` of the sensor
    (assumed, not measured on this device). `scope` is what the sensor spans: `module` is a GPU and its CPU in one.
    """

    component: Literal["gpu", "cpu", "dram", "node"]
    device: str
    energy_joules: NonNegative
    seconds: Positive
    power_watts_mean: NonNegative
    power_watts_max: NonNegative | None = None
    source: Literal["nvml", "rapl", "codecarbon", "replay"]
    provenance: Provenance
    coverage: Annotated[float, Field(ge=0, le=1)] = 1.0
    uncertainty_joules: NonNegative | None = None
    gain_share: NonNegative | None = None
    scope: Literal["gpu", "module", "package", "dram", "machine"] | None = None
    samples: Annotated[int, Field(ge=0)] = 0
    detail: str = ""
    flags: list[str] = []


class IdlePower(Model):
    """Power of one component while nothing runs, measured before the runs of an execution.

    `power_watts_context` is that with a CUDA context on the GPU, which raises its clocks; None where there is none.
    """

    component: Literal["gpu", "cpu", "dram", "node"]
    device: str
    power_watts: NonNegative
    power_watts_context: NonNegative | None = None
    seconds: Positive
    provenance: Provenance


class GpuConditions(Model):
    """What surrounded a window on one GPU, read once a second; absent where the GPU does not say.

    `throttled_share` maps a reason (`hw_slowdown`, `hw_thermal`, `sw_thermal`, `power_brake`, `sw_power_cap`) to the share of
    the window; `shared` says whether processes of others used the GPU, None where that cannot be told.
    """

    device: str
    temperature_celsius_max: float | None = None
    temperature_celsius_drift: float | None = None
    memory_temperature_celsius_max: float | None = None
    sm_clock_hz_mean: float | None = None
    sm_clock_drift: float | None = None
    memory_clock_hz_mean: float | None = None
    power_limit_watts: float | None = None
    memory_used_bytes_max: int | None = None
    throttled_share: dict[str, float] = {}
    shared: bool | None = None


class HostConditions(Model):
    """What surrounded a window on the host: load, and shares of all processors' time that others took.

    `steal_share` went to other virtual machines, `other_share` to processes that are not of the run.
    """

    load_average: float | None = None
    steal_share: float | None = None
    other_share: float | None = None
    pressure_share: float | None = None


class Phase(Model):
    """A part of a run by the clock of its node (CLOCK_MONOTONIC in nanoseconds), and its energy where it was read."""

    name: str
    start_ns: int
    end_ns: int
    energy: list[EnergyReading] = []

    @property
    def seconds(self) -> float:
        """Length of the phase."""
        return (self.end_ns - self.start_ns) / 1e9


class Rank(Model):
    """What one rank did in the window.

    `forward_seconds_median` is the time of a forward pass with its data, in which ranks do not wait for each other, so that
    a slow one shows. `matmul_flops_per_second` are matrix products in the run's precision on this device, just before
    and just after the training; `matmul_spread` is the relative spread of one of these probes.
    """

    rank: int
    device: str = ""
    window_seconds: Positive
    forward_seconds_median: Positive | None = None
    data_wait_seconds: NonNegative | None = None
    cpu_seconds: NonNegative | None = None
    peak_memory_bytes: Count | None = None
    matmul_flops_per_second: list[Positive] = []
    matmul_spread: NonNegative | None = None


class Measurement(Model):
    """Raw quantities of the measured window; derived numbers are made in `bench.metrics` only.

    The window runs from synchronise + barrier to synchronise + barrier; `window_seconds` is the longest over ranks.
    `samples` and `tokens` are what all ranks consumed in it, `step_seconds` the optimizer steps of rank 0, and
    `peak_memory_bytes`, by rank, what was allocated on a GPU, or what a CPU process grew by. A command of the user tells
    what it likes: without steps the window is all of it. `startup` is the energy of all that was paid before it.
    """

    step_seconds: list[Positive] = []
    window_seconds: Positive
    steps: Annotated[int, Field(ge=0)] = 0
    samples: Count | None = None
    tokens: Count | None = None
    data_wait_seconds: NonNegative | None = None
    peak_memory_bytes: list[Count] = []
    parameters: Count | None = None
    flops_per_sample: Positive | None = None
    loss_first: float | None = None
    loss_last: float | None = None
    dataset: str | None = None
    dataset_digest: str | None = None
    ranks: list[Rank] = []
    energy: list[EnergyReading] = []
    startup: list[EnergyReading] = []
    phases: list[Phase] = []
    gpus: list[GpuConditions] = []
    host: HostConditions | None = None


class CarbonIntensity(Model):
    """Carbon per energy of a grid, as a source states it."""

    kg_per_kwh: NonNegative
    region: str
    year: int | None = None
    unit: Literal["CO2", "CO2e"] = "CO2e"
    source: str


class Carbon(Model):
    """Emissions of the whole run: energy × PUE × intensity, three factors with a label each."""

    energy_joules: NonNegative
    energy_basis: Literal["measured", "estimated"]
    energy_provenance: Provenance
    energy_missing: list[str] = []
    pue: Positive
    pue_provenance: Provenance
    intensity: CarbonIntensity
    emissions_kg: NonNegative


class Cost(Model):
    """Money of the whole run, from allocation to its end.

    `rental`: devices × hours × `usd_per_device_hour`. `owned`: devices × hours × `usd_capital_per_device_hour` + energy × PUE
    × `usd_per_kwh`, as far as they are given. Prices are the user's; `note` is what was said about them.
    """

    mode: Literal["rental", "owned"]
    usd_per_device_hour: NonNegative | None = None
    usd_capital_per_device_hour: NonNegative | None = None
    usd_per_kwh: NonNegative | None = None
    devices: Count
    billed_seconds: NonNegative
    energy_joules: NonNegative | None = None
    energy_basis: Literal["measured", "estimated"] | None = None
    energy_missing: list[str] = []
    pue: Positive = 1.0
    cost_usd: NonNegative
    provenance: Provenance = Provenance.USER_SUPPLIED
    note: str = ""


class Failure(Model):
    """Why a run did not end well."""

    type: str
    message: str
    log_tail: str = ""


class Environment(Model):
    """Facts of the machine and the software, from an allow-list; nothing secret, no whole environment."""

    host: str
    boot_id: str | None = None
    os: str
    kernel: str
    python: str
    packages: dict[str, str]
    wattbench_commit: str | None = None
    machine: Machine
    torch_cuda: str | None = None
    variables: dict[str, str] = {}
    argv: list[str] = []
    load_average: float | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of what results depend on: host, devices, driver, kernel, packages, variables, wattbench commit."""
        facts = self.model_dump(mode="json", exclude={"argv", "load_average", "boot_id"})
        for gpu in facts["machine"]["gpus"]:
            gpu.pop("used_by")
            gpu.pop("foreign_memory_bytes")
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


class RunRecord(Model):
    """One run, whatever became of it: one `record.json`.

    `energy` and `duration_seconds` are those of the whole run; those of the window are in `measurement`. `devices` are
    those that the ranks used: GPU UUIDs, or `cpu` once for each process. `unused` is the energy of GPUs that were
    allocated and idle during the run. Carbon and cost are made with `site`. `quality` grades the measurement by its
    flags, see bench.quality.
    """

    schema_version: Literal[1] = 1
    run_id: str
    config_id: str
    suite: Slug
    execution: str
    spec: RunSpec
    status: Status
    error: Failure | None = None
    started_at: datetime
    duration_seconds: NonNegative
    devices: list[str] = []
    energy: list[EnergyReading] = []
    unused: list[EnergyReading] = []
    site: Site = Site()
    idle: list[IdlePower] = []
    measurement: Measurement | None = None
    carbon: Carbon | None = None
    cost: Cost | None = None
    flags: list[str] = []
    quality: Literal["A", "B", "C"] | None = None
    environment: Environment

    @model_validator(mode="after")
    def _measurement_only_if_ok(self) -> Self:
        if (self.status is Status.OK) != (self.measurement is not None):
            raise ValueError(f"status {self.status}: a measurement belongs to a run that is ok, and to no other")
        if (self.status is Status.OK) == (self.error is not None):
            raise ValueError(f"status {self.status}: an error belongs to a run that is not ok, and to no other")
        return self
