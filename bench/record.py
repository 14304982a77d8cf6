"""What happened in a run: readings of energy, the measurement of a window, the record of the run.

Models follow the rules of `bench.schema`: frozen, no unknown fields, no NaN or infinity, unknown values absent.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from bench.renamed import current_flags, current_record, current_request
from bench.schema import (
    COMMAND,
    MEASURE,
    Count,
    Machine,
    Model,
    NonNegative,
    Positive,
    RunSpec,
    Scalar,
    Site,
    Slug,
    Target,
)
from bench.vendors import FILTERS


class Status(StrEnum):
    """How a run ended. Only `ok` carries a measurement."""

    OK = "ok"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    FAILED = "failed"
    INVALID = "invalid"
    SKIPPED = "skipped"


class Provenance(StrEnum):
    """Where a figure comes from, best first. A sum has the worst provenance of its parts."""

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
        """Whether the figure was read from hardware, so that it may enter `energy_joules`."""
        return self in _MEASURED

    @staticmethod
    def worst(labels: list[Provenance]) -> Provenance:
        """Return the provenance of a sum of parts with these provenances; `absent` without parts."""
        order = list(Provenance)
        return max(labels, key=order.index, default=Provenance.ABSENT)


_MEASURED = {
    Provenance.MEASURED_COUNTER,
    Provenance.MEASURED_COUNTER_INTERP,
    Provenance.INTEGRATED_SAMPLES,
    Provenance.MEASURED_EXTERNAL,
}


class EnergyReading(Model):
    """Energy of one component of a node over a window of `seconds`. Absent readings are not listed.

    `coverage` is the share of the window that the source's readings span. Two bounds of the error: `uncertainty_joules` of
    the edges of the window (quantisation of the counter), `gain_share` of the sensor (assumed, not measured on this
    device). `scope` is what the sensor covers: `module` is a GPU with its CPU.
    """

    component: Literal["gpu", "cpu", "dram", "node"]
    device: str
    energy_joules: NonNegative
    seconds: Positive
    power_watts_mean: NonNegative
    power_watts_max: NonNegative | None = None
    source: Slug
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

    `power_watts_context` is the power with a context of torch on the GPU, which raises its clocks; None without one.
    """

    component: Literal["gpu", "cpu", "dram", "node"]
    device: str
    power_watts: NonNegative
    power_watts_context: NonNegative | None = None
    seconds: Positive
    provenance: Provenance


class GpuConditions(Model):
    """Conditions on one GPU during a window, read once a second; values that the GPU does not report are absent.

    `throttled_share` maps a reason (`hw_slowdown`, `hw_thermal`, `sw_thermal`, `power_brake`, `sw_power_cap`) to its share of
    the window. `shared`: other processes used the GPU; None where that is unknown.
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
    """Conditions on the host during a window: its load, and the shares of processor time that others took.

    `steal_share` went to other virtual machines, `other_share` to processes outside the run.
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

    `forward_seconds_median` is the time to load a batch and pass it forward: ranks do not wait for each other in it, so it
    shows a slow one. `matmul_flops_per_second` are the speeds of matrix products in the run's precision, just before and
    just after the training; `matmul_spread` is the relative spread within such a probe. The three shares come from a few
    profiled steps after the window: time in a collective, the part of it without other work, and time of computation.
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
    communication_share: NonNegative | None = None
    exposed_communication_share: NonNegative | None = None
    busy_share: NonNegative | None = None


class Quality(Model):
    """Model quality on held-out samples after `step` steps of the optimizer (warm-up included).

    `seconds` and `energy_joules` are those of the training up to here, from its first step: with validations, without
    probes of the machine's speed. `read_ns` is the end of the validation by the clock of the node.
    """

    step: Annotated[int, Field(ge=0)]
    read_ns: int
    seconds: NonNegative
    energy_joules: NonNegative | None = None
    energy_joules_estimated: NonNegative | None = None
    samples: Count
    loss: float
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None

    def reaches(self, target: Target) -> bool:
        """Return whether the quality is at least that of the target."""
        if target.metric == "validation_loss":
            return self.loss <= target.value
        return self.accuracy is not None and self.accuracy >= target.value


class Inference(Model):
    """Forward passes of the trained model in the form in which it would be served.

    `model_bytes` is the size of its weights on disk, `zeros_share` the share of its weights that are 0. `loss` and
    `accuracy` are those of this form; those before compression are in Measurement. Without `inference_seconds` nothing is
    timed.
    """

    samples: Count | None = None
    seconds: Positive | None = None
    energy: list[EnergyReading] = []
    start_ns: int | None = None
    end_ns: int | None = None
    model_bytes: Count
    zeros_share: Annotated[float, Field(ge=0, le=1)]
    loss: float | None = None
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None


class SeenFacts(Model):
    """What hooks in torch saw of a command (`bench.hooks`): its training processes on this node. Unknown values are absent.

    `devices` are those of the ranks on this node, in order: GPU UUIDs, or `cpu`. `world_size` counts ranks of all nodes.
    `precision` is that of autocast, else that of the parameters; `parallelism` is `ddp`, `fsdp`, `fsdp2` or `data_parallel`;
    `optimizer` the name of its class. `batch_size` is the first dimension of the input of a pass, where all are equal.
    """

    processes: Count
    world_size: Count | None = None
    devices: list[str] = []
    precision: Slug | None = None
    gradient_scaler: bool | None = None
    parallelism: Slug | None = None
    optimizer: str | None = None
    compiled: bool | None = None
    threads: Count | None = None
    batch_size: Count | None = None
    torch: str | None = None
    python: str | None = None


RESTART = "restart"
"""Name of the phases from the last step before workers were lost to the first one after they were started again."""
WANDB = "wandb_runs"
"""Name of the note with the ids of the runs in W&B that a command has made itself."""


class PlannedLength(Model):
    """How long a script states that its training is: the `steps` that it takes from its start, and those of an epoch.

    `source` is the callback or the format (`bench.workloads.formats`) that states it, or `pattern`. Where it is `assumed`,
    that may be a part: a counter of something less, or one training of several. One that was resumed had made
    `earlier_steps` before.
    """

    steps: Count | None = None
    earlier_steps: Annotated[int, Field(ge=0)] = 0
    epoch_steps: Count | None = None
    source: str
    assumed: bool = False


def _metric_name(name: str) -> str:
    """Return the name of a user's own metric as MLflow takes it: a path of at most 200 characters, `_` for others."""
    parts = re.sub(r"[^\w./: -]", "_", name)[:200].split("/")
    return "/".join(part for part in parts if part.strip(" .")) or "unnamed"


class Measurement(Model):
    """Raw quantities of the measured window; `bench.figures.metrics` derives all other numbers.

    The window extends from synchronise + barrier to synchronise + barrier; `window_seconds` is the longest over ranks.
    `samples` and `tokens` are those of all ranks, `step_seconds` the optimizer steps of rank 0. `peak_memory_bytes`, by
    rank, is the memory allocated on a GPU, or the growth of a CPU process; `memory_estimated_bytes` is its estimate from
    shapes. A command of the user may report less; without steps the window is the whole command, and `cpu_seconds` are those
    of the whole command in any case. `step_flags` say what in its steps could not be counted, `step_source` where they come
    from, `steps_before` how many were made before the window, `restarts` how often workers were started again after a loss,
    `repeated_steps` how many steps were then made a second time, `planned` how long the whole training is, `seen` what hooks
    saw, and `own` holds the last values of the user's own metrics, by names that MLflow takes. `compile_seconds` is the
    excess of the first half of the warm-up steps over as many later ones, where the step was compiled. `startup` is the
    energy before the window. `loss_medians` are those of the first and of the last tenth of the losses (at least three
    each), which one unusual batch does not move. `notes` are facts about a strategy or workload.
    """

    step_seconds: list[Positive] = []
    step_flags: list[Slug] = []
    step_source: Literal["script", "hooks", "output"] | None = None
    planned: PlannedLength | None = None
    seen: SeenFacts | None = None
    own: dict[Annotated[str, AfterValidator(_metric_name)], float] = {}
    cpu_seconds: NonNegative | None = None
    window_seconds: Positive
    steps: Annotated[int, Field(ge=0)] = 0
    steps_before: Count | None = None
    restarts: Annotated[int, Field(ge=0)] = 0
    repeated_steps: Annotated[int, Field(ge=0)] | None = None
    samples: Count | None = None
    tokens: Count | None = None
    data_wait_seconds: NonNegative | None = None
    compile_seconds: NonNegative | None = None
    peak_memory_bytes: list[Count] = []
    batch_size_per_device: Count | None = None
    parameters: Count | None = None
    trainable_parameters: Annotated[int, Field(ge=0)] | None = None
    memory_estimated_bytes: Count | None = None
    flops_per_sample: Positive | None = None
    loss_first: float | None = None
    loss_last: float | None = None
    loss_medians: tuple[float, float] | None = None
    quality: list[Quality] = []
    stopped_by: Literal["target", "patience"] | None = None
    inference: Inference | None = None
    notes: dict[str, Scalar] = {}
    dataset: str | None = None
    dataset_digest: str | None = None
    ranks: list[Rank] = []
    energy: list[EnergyReading] = []
    startup: list[EnergyReading] = []
    phases: list[Phase] = []
    gpus: list[GpuConditions] = []
    host: HostConditions | None = None


class CarbonIntensity(Model):
    """Carbon intensity of a grid, as its source states it."""

    kg_per_kwh: NonNegative
    region: str
    year: int | None = None
    unit: Literal["CO2", "CO2e"] = "CO2e"
    source: str


class Carbon(Model):
    """Emissions of the whole run: energy × PUE × intensity, each with a label."""

    energy_joules: NonNegative
    energy_basis: Literal["measured", "estimated"]
    energy_provenance: Provenance
    energy_missing: list[str] = []
    pue: Positive
    pue_provenance: Provenance
    intensity: CarbonIntensity
    emissions_kg: NonNegative


class Cost(Model):
    """Cost of the whole run, from the allocation of devices to the end.

    `rental`: devices × hours × `usd_per_device_hour`. `owned`: devices × hours × `usd_capital_per_device_hour` + energy × PUE
    × `usd_per_kwh`, as far as they are given. Prices are the user's; `note` is the user's note on them.
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
    """Why a run failed."""

    type: str
    message: str
    log_tail: str = ""
    attempted_bytes: Count | None = None


class LostAttempt(Model):
    """An attempt at a run that was lost with its job, and how this `ended`. None of it is part of figures of the run.

    `seconds` are those of the attempt on each of its `nodes`; `at_least` says that they end when its job last showed that it
    worked. Energy is that of the meters of all nodes, of these `components`; `energy_at_least` says that their readings end
    before the attempt did. Unknown values are absent.
    """

    job: str = ""
    ended: str = ""
    nodes: Count
    seconds: NonNegative | None = None
    at_least: bool = False
    energy_joules: NonNegative | None = None
    energy_joules_estimated: NonNegative | None = None
    energy_at_least: bool = False
    components: list[str] = []


class NetworkPort(Model):
    """A port of an InfiniBand adapter as the kernel names it (`mlx5_0:1`); its `link` may be Ethernet all the same."""

    name: str
    state: str | None = None
    rate: str | None = None
    link: str | None = None

    @property
    def active_infiniband(self) -> bool:
        """Whether data can travel over InfiniBand here."""
        return (self.state, self.link) == ("ACTIVE", "InfiniBand")


class NetworkFacts(Model):
    """The network of a node: the interface on which ranks meet, and all ports of adapters. Unknown values are absent."""

    interface: str
    bits_per_second: Count | None = None
    mtu_bytes: Count | None = None
    ports: list[NetworkPort] = []


class NodeFacts(Model):
    """One of several nodes of a run: its `kind` (Environment.kind), its first rank if known, and how the run ended there.

    `window_seconds` is the measured window by its own clock. `clock_skew_seconds` is by how much its wall clock is ahead of
    that of the first node, as far as the start and the end of the run show it.
    """

    name: str
    boot_id: str | None = None
    kind: str | None = None
    first_rank: Annotated[int, Field(ge=0)] | None = None
    ended: str
    exitcode: int | None = None
    window_seconds: Positive | None = None
    clock_skew_seconds: float | None = None
    network: NetworkFacts | None = None


class Environment(Model):
    """Facts about the machine and the software, from an allow-list without secrets.

    `folder_commit` is the commit of the folder in which the command was typed; an execution is resumed after it changes.
    `cluster` names the engine of a cluster, its partition and the node: nodes are exchanged for others of their kind.
    """

    host: str
    boot_id: str | None = None
    os: str
    kernel: str
    python: str
    packages: dict[str, str]
    wattbench_commit: str | None = None
    folder_commit: str | None = None
    machine: Machine
    torch_cuda: str | None = None
    torch_rocm: str | None = None
    variables: dict[str, str] = {}
    argv: list[str] = []
    load_average: float | None = None
    cluster: dict[str, str] = {}

    @property
    def fingerprint(self) -> str:
        """Hash of the facts that results depend on: host, devices, driver, kernel, packages, variables, wattbench commit.

        On a cluster it is the `kind` of a node.
        """
        if self.cluster:
            return self.kind
        return self._digest({"used_by", "foreign_memory_bytes"}, set())

    @property
    def kind(self) -> str:
        """Hash of the same facts without the identity of host and GPUs: equal machines may share the work of a search."""
        memory = self.machine.memory_bytes
        rough = (
            None if memory is None else round(memory / 2**32)
        )  # equal hosts differ by the memory that the kernel reserves
        variables = {name: value for name, value in self.variables.items() if name not in FILTERS}
        machine = self.machine.changed(memory_bytes=rough)
        plain = self.changed(machine=machine, variables=variables)
        return plain._digest({"used_by", "foreign_memory_bytes", "uuid", "index"}, {"host", "kernel", "os"})

    def _digest(self, of_gpus: set[str], but: set[str]) -> str:
        but = but if self.cluster else {*but, "cluster"}
        facts = self.model_dump(mode="json", exclude={"argv", "load_average", "boot_id", "folder_commit", *but})
        facts.get("cluster", {}).pop("node", None)  # it is exchanged for others of its kind
        facts["machine"]["gpus"] = [
            {name: value for name, value in gpu.items() if name not in of_gpus} for gpu in facts["machine"]["gpus"]
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


class Trial(Model):
    """The trial of a search to which a run belongs. A trial is measured by a short `probe`, in `full`, or by both."""

    study: str
    number: Annotated[int, Field(ge=0)]
    stage: Literal["probe", "full"]


class Observation(Model):
    """The part of a record from which figures and flags are computed: what was asked (`spec`), and what was seen.

    `devices` are those that the ranks used: GPU UUIDs, or `cpu` once for each process. A command may use others than its
    spec asks for. `idle` is the idle power of the nodes, measured before the runs; `nodes` is empty for a run on one.
    """

    suite: Slug
    spec: RunSpec
    devices: list[str] = []
    idle: list[IdlePower] = []
    measurement: Measurement | None = None
    environment: Environment
    nodes: list[NodeFacts] = []

    @property
    def device_count(self) -> int:
        """Number of devices that figures count: of a command those that it used, else those that the spec asks for."""
        return len(self.devices) if self.spec.workload == COMMAND and self.devices else self.spec.world_size

    @property
    def open_devices(self) -> bool:
        """Whether the command decided on its devices itself; earlier versions told that by the name of the suite."""
        return self.spec.open_devices or self.suite == MEASURE

    @property
    def billed_devices(self) -> int:
        """Number of devices that cost counts: those that a suite asks for are allocated, whether they are used or not."""
        return self.device_count if self.open_devices else max(self.device_count, self.spec.world_size)

    @property
    def devices_differ(self) -> bool:
        """Whether a command used more or fewer devices than its suite asks for; `bench measure` asks for none."""
        other = self.device_count != self.spec.world_size or (self.on_cpu and self.spec.device_type == "gpu")
        return not self.open_devices and other

    @property
    def on_cpu(self) -> bool:
        """Whether the run trained on processors: asked to, or seen to on a machine with GPUs."""
        return self.spec.device_type == "cpu" or (bool(self.devices) and {*self.devices} == {"cpu"})

    @property
    def gpus(self) -> list[str]:
        """UUIDs of the GPUs that were used."""
        return [] if self.on_cpu else self.devices


class RunRecord(Observation):
    """One run, however it ended: one `record.json`.

    `energy` and `duration_seconds` are those of the whole run; those of the window are in `measurement`. `unused` is the
    energy of GPUs that were allocated and idle during the run. `carbon` and `cost` follow from `site`. `grade` is that of
    the measurement, by its flags (bench.figures.flags). `trial` is set where a search made the run. `partial` is what was
    seen of a command that failed, until then; it enters no comparison. `lost` are earlier attempts, lost with their jobs.
    """

    schema_version: Literal[2] = 2
    run_id: str
    config_id: str
    execution: str
    trial: Trial | None = None
    status: Status
    error: Failure | None = None
    started_at: datetime
    duration_seconds: NonNegative
    energy: list[EnergyReading] = []
    unused: list[EnergyReading] = []
    site: Site = Site()
    carbon: Carbon | None = None
    cost: Cost | None = None
    flags: list[str] = []
    grade: Literal["A", "B", "C"] | None = None
    partial: Measurement | None = None
    lost: list[LostAttempt] = []

    @model_validator(mode="before")
    @classmethod
    def _today(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = current_record(value) if value.get("schema_version") == 1 else value
        return {**value, "flags": current_flags(value.get("flags") or ()), "spec": current_request(value.get("spec"))}

    @model_validator(mode="after")
    def _measurement_only_if_ok(self) -> Self:
        if (self.status is Status.OK) != (self.measurement is not None):
            raise ValueError(f"status {self.status}: a run has a measurement if, and only if, its status is ok")
        if (self.status is Status.OK) == (self.error is not None):
            raise ValueError(f"status {self.status}: a run has an error if, and only if, its status is not ok")
        return self
