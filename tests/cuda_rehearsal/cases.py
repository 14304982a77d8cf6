"""What is rehearsed: each name of each axis, options and combinations that only GPUs have, the shipped suites, and faults."""

from dataclasses import dataclass, field
from typing import Any

from bench.schema import RunSpec
from bench.strategies.catalog import CATALOG

SUITES = ("compression", "ladder", "memory", "parallelism", "precision", "scaling", "transfer", "workloads")
SHORT_SUITES = ("precision",)
_DECODER = {"workload": "decoder_lm", "workload_args": {"preset": "tiny", "sequence_length": 32}}
DEFAULTS = {
    "batch_size_per_device": 4,
    "precision": "bf16",
    "parallelism": "single",
    "warmup_steps": 2,
    "warmup_seconds": 0,
    "measure_steps": 3,
    "validation.samples": 8,
    "timeout_seconds": 900,
}
_SHORT = {"fp16", "fp8", "offload", "flash", "reduce-overhead", "cuda_graphs", "int4", "semi_structured"}
_SHORT |= {"zero1", "fsdp2", "hsdp", "fsdp_tp", "tp", "pp", "cp"}
_NO_TORCHAO = "needs torchao"
_SKIPPED = {("hsdp", 2): "hsdp needs a multiple of 2", ("fsdp_tp", 2): "has one group"}
"""Why some numbers of GPUs must be refused."""
_LONG = {"measure_steps": 40, "parallelism": "ddp"}
_MAX = {"batch_size_per_device": "max", "memory_limit_bytes": 300_000_000, "batch_size_cap": 64}


@dataclass(frozen=True)
class Case:
    """One run. `status` is that of its record, and its error contains `words`. `short`: it is part of a short rehearsal."""

    name: str
    devices: int
    fields: dict[str, Any]
    status: str = "ok"
    words: str = ""
    short: bool = False


@dataclass(frozen=True)
class Execution:
    """One `bench run` on so many GPUs: of `cases`, or of a shipped `suite`, whose runs must all end well.

    `fault` is that of the last GPU, and `memory` its bytes. `most_seconds` bounds the time of each run.
    """

    name: str
    gpus: int
    cases: list[Case] = field(default_factory=list)
    suite: str | None = None
    torchao: bool = True
    fault: str = "0 0"
    memory: int | None = None
    variables: dict[str, str] = field(default_factory=dict)
    most_seconds: float = 900
    idle_seconds: float = 0
    short: bool = False


def _case(name: str, devices: int = 1, why: str | None = None, short: bool = False, **fields: Any) -> Case:
    fields = {key.replace("__", "."): value for key, value in fields.items()}
    return Case(name, devices, fields, "skipped" if why else "ok", why or "", short)


def _axes() -> list[Case]:
    """Return a case for each name of each axis on one GPU, and for each parallelism on 1, 2 and 4."""
    cases = []
    for axis, names in CATALOG.items():
        for name in names:
            if axis == "parallelism":
                most = 4 if name in ("hsdp", "fsdp_tp") else 2  # the smallest number on which it is possible
                for devices in (1,) if name == "single" else (2, 4):
                    why, short = _SKIPPED.get((name, devices)), name in _SHORT and devices == most
                    cases.append(_case(f"{name} on {devices}", devices, why, short, parallelism=name))
            elif axis != "distillation" and name not in (RunSpec.model_fields[axis].default.name, DEFAULTS.get(axis)):
                cases.append(_case(f"{axis} {name}", short=name in _SHORT, **{axis: name}))
    return cases


def _options() -> list[Case]:
    def choice(name: str, **options: Any) -> dict[str, Any]:
        return {"name": name, **options}

    return [
        _case("ddp on 1", parallelism="ddp"),
        _case("fsdp2 reshard off", 2, parallelism=choice("fsdp2", reshard=False)),
        _case("fsdp2 mixed off", 2, parallelism=choice("fsdp2", mixed=False)),
        _case("fsdp2 offload", 2, parallelism=choice("fsdp2", offload=True)),
        _case("fsdp2 meta", 2, short=True, parallelism=choice("fsdp2", meta=True)),
        _case("tp sequence", 2, parallelism=choice("tp", sequence=True)),
        _case("tp meta", 2, parallelism=choice("tp", meta=True)),
        _case("pp gpipe", 2, parallelism=choice("pp", schedule="gpipe")),
        _case("pp meta", 2, parallelism=choice("pp", meta=True)),
        _case("fsdp_tp meta", 4, parallelism=choice("fsdp_tp", meta=True)),
        _case(
            "flash in fp32",
            why="flash does not support this model in float32 on a GPU",
            precision="fp32",
            attention="flash",
        ),
        *(_case(f"adamw {how}", optimizer=choice("adamw", implementation=how)) for how in ("fused", "foreach", "loop")),
        *(_case(f"fp8 {how}", precision=choice("fp8", recipe=how)) for how in ("rowwise", "rowwise_with_gw_hp")),
        *(
            _case(f"{how} with ddp", 2, parallelism="ddp", compile=how)
            for how in ("default", "max-autotune", "cuda_graphs")
        ),
        _case("default with fsdp2", 2, parallelism="fsdp2", compile="default"),
        _case("products with compile", memory=choice("selective", policy="save_products"), compile="default"),
        _case("max on 1", short=True, **_MAX),
        _case("max with ddp", 2, parallelism="ddp", **_MAX),
        _case("max with fsdp2", 2, parallelism="fsdp2", **_MAX),
        Case("a limit of 45 MB", 1, {"memory_limit_bytes": 45_000_000}, "out_of_memory", "out of memory", True),
        _case("fp16 in 2 parts", precision="fp16", gradient_accumulation_steps=2),
        _case("loader process", workload_args=_DECODER["workload_args"] | {"workers": 1}),
        _case("cold", 2, short=True, parallelism="ddp", cold=True),
        _case("inference", inference_seconds=0.1),
        _case("teacher", saves="teacher"),
        _case("student", short=False, needs="teacher", distillation="soft"),
        _case("semi_structured in fp16", pruning="semi_structured", precision="fp16"),
        *(
            _case(f"{workload} {args.get('preset', '')}", workload=workload, workload_args=args)
            for workload, args in (
                ("decoder_lm", {"preset": "llama-tiny", "sequence_length": 32}),
                ("encoder", {"preset": "tiny", "sequence_length": 32}),
                ("image_classification", {"preset": "tiny"}),
                ("image_classification", {"preset": "vit-tiny"}),
                ("recommender", {}),
                ("text_cnn", {}),
                ("lstm_lm", {}),
            )
        ),
    ]


def _old() -> list[Case]:
    """Return cases for GPUs of compute capability 7.0, which lack what these need."""
    return [
        _case("tf32 on an old GPU", why="tf32", precision="tf32"),
        _case("bf16 on an old GPU", why="no bfloat16 arithmetic", precision="bf16"),
        _case("fp8 on an old GPU", why="fp8", precision="fp8"),
        _case("int4 on an old GPU", why="int4", precision="fp16", quantization="int4"),
        _case("fp16 on an old GPU", precision="fp16"),
    ]


def executions() -> list[Execution]:
    """Return all executions, in the order in which they run."""
    faults = [
        ("an illegal access", {"fault": "700 2500", "short": True}, "failed", "illegal memory access"),
        ("a lost GPU", {"fault": "999 2500"}, "failed", "unknown error"),
        ("a killed rank", {"fault": "-1 2500", "short": True}, "failed", "SIGKILL"),
        ("a hanging GPU", {"fault": "-2 2500"}, "timeout", ""),
        ("a small GPU", {"memory": 570_000_000, "short": True}, "out_of_memory", "rank 1"),
    ]
    return [
        Execution("axes", 4, _axes() + _options(), short=True),
        Execution(
            "without torchao",
            1,
            [
                _case("bf16 without torchao"),
                _case("fp8 without torchao", why=_NO_TORCHAO, precision="fp8"),
                _case("adamw8bit without torchao", why=_NO_TORCHAO, optimizer="adamw8bit"),
                _case("int8 without torchao", why=_NO_TORCHAO, quantization="int8"),
            ],
            torchao=False,
            idle_seconds=0.3,
        ),
        Execution("old GPU", 1, _old(), variables={"FAKE_CAPABILITY": "7"}),
        *(Execution(f"suite {name}", 4, suite=name, short=name in SHORT_SUITES) for name in SUITES),
        *(
            Execution(
                name, 2, [Case(name, 2, _LONG | {"timeout_seconds": 30}, status, words, True)], most_seconds=60, **how
            )
            for name, how, status, words in faults
        ),
    ]


def document(execution: Execution, cases: list[Case]) -> dict[str, Any]:
    """Return a suite of these cases; `seed` is the number of the case, by which its record is found."""
    rows = [_DECODER | case.fields | {"devices": case.devices, "seed": seed} for seed, case in enumerate(cases)]
    return {"name": "rehearsal", "defaults": DEFAULTS, "include": rows, "idle_seconds": execution.idle_seconds}


def shortened(suite: str) -> list[str]:
    """Return the settings that make a shipped suite short."""
    sets: dict[str, object] = {
        "repeats": 1,
        "warmup_steps": 2,
        "warmup_seconds": 0,
        "idle_seconds": 0,
        "validation.samples": 8,
    }
    sets["timeout_seconds"] = 1800  # max-autotune tries many kernels
    sets["measure_seconds" if suite in ("scaling", "workloads") else "measure_steps"] = 1
    if suite != "workloads":
        sets |= {"workload_args.preset": "tiny", "workload_args.sequence_length": 32}
    return [f"{key}={value}" for key, value in sets.items()]
