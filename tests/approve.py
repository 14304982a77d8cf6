"""Approved outputs: what people read in a terminal, word for word, in `tests/approved`.

`python -m tests.approve` (or `make approve`) rewrites them; a person reads the difference. Each text is a function without
arguments that gives the same on every machine.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from analytics.plan.preview import Preview
from analytics.render import terminal
from analytics.say import doctor as say_doctor
from analytics.say import measure as say_measure
from analytics.say import runs
from analytics.say.blocks import Block
from analytics.say.search import blocks, preview_blocks
from bench.machine import doctor as machine_doctor
from bench.machine.doctor import Finding
from bench.meters import gpu, meter
from bench.record import Phase, RunRecord, Status
from bench.schema import COMMAND, Gpu, Machine, RunSpec
from bench.suites.expand import expand
from bench.suites.load import load_suite, with_site
from tests import commands, fake_nvml, rows
from tests.fake_nvml import fake_gpu
from tests.recorded import recorded_store
from tests.searches import recorded
from tests.stores import empty_store
from tests.test_doctor import Ticking, ticking
from tests.test_meters_rapl import SERVER, Powercap

FOLDER = Path(__file__).parent / "approved"
_QUESTION = "--params 7B --tokens 1T --device H100-SXM --devices 8,64,512 --deadline 30d --budget 200000"
_BROKEN: Any = {"state": "infeasible", "violations": {"memory": 0.12}, "why": "beyond the limit", "front": False}
_PLANS = (
    f"{_QUESTION} --region FR --pue 1.15 --price 2.2 --priors",
    f"{_QUESTION} --region FR --pue 1.15 --price 2.2 --priors --regions FR,SE --next --explain",
    "--params 7B --tokens 1T --device A100-SXM-80GB --devices 8,64 --price 2 --priors",
    "--params 7B --tokens 1T --device A100-SXM-80GB --devices 8,64,512 --deadline 60d --budget 100000 --price 2 --priors",
    "--params 175B --tokens 1T --device A100-80GB --devices 8,16 --priors",
    "--flops-per-sample 1e12 --samples 1e9 --device RTX-4090 --devices 1-8 --budget 10 --priors --next",
    "--params 65e9 --tokens 1.4e12 --tokens-per-second-per-device 380 --devices 2048,4096 --price 1 --deadline 15d",
    "--accelerator-hours 82432 --power-watts 400 --pue 1.1 --region US-CA --price 2 --deadline 2d",
    "--known hours=3000,params=340e6,devices=8,speed=2e9 --params 100e6 --devices 16 --speed 4e9 --claim 600h",
)


_PHASES = (("start", 0, 8 * 10**9), ("warmup", 8 * 10**9, 9 * 10**9), ("steady", 9 * 10**9, 10 * 10**9))


def printed(*arguments: str, code: int = 0) -> str:
    """Return a command and what it prints, without the spaces at the ends of lines."""
    done = commands.bench(*arguments)
    assert done.exit_code == code, done.output
    lines = [f"$ bench {' '.join(arguments)}", *done.output.splitlines()]
    return "\n".join(line.rstrip() for line in lines) + "\n"


@cache
def _recorded() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with the recorded runs in its store, and the suites."""
    folder = tempfile.TemporaryDirectory()
    recorded_store(Path(folder.name))
    (Path(folder.name) / "suites").symlink_to(Path(__file__).parent.parent / "suites")
    return folder


def of_recorded_runs(*lines: str, code: int = 0) -> str:
    """Return several commands on the recorded runs and what they print."""
    with contextlib.chdir(_recorded().name):
        return "\n".join(printed(*line.split("|"), code=code) for line in lines)


def compare() -> str:
    """Configurations of three suites, and the evidence of one."""
    return of_recorded_runs("compare|scaling", "compare|ladder", "compare|batches", "compare|scaling|--explain")


def gate() -> str:
    """A gate that passes and one that fails."""
    passes = "compare|scaling|--fail-if|tokens_per_second < 0.97|--fail-if|peak_memory_bytes > 1.05"
    return (
        of_recorded_runs(passes) + "\n" + of_recorded_runs("compare|scaling|--fail-if|peak_memory_bytes < 0.9", code=1)
    )


def pareto() -> str:
    """What to choose in three suites, and how sure that is."""
    return of_recorded_runs("pareto|scaling", "pareto|ladder", "pareto|batches", "pareto|scaling|--explain")


def advise() -> str:
    """What to change in three suites, and the evidence of one."""
    return of_recorded_runs("advise|scaling", "advise|ladder", "advise|batches", "advise|scaling|--explain")


def fit() -> str:
    """Results and scaling of three suites, predictions, and the evidence of one."""
    return of_recorded_runs("fit|scaling", "fit|ladder", "fit|batches", "fit|scaling|--devices|4,8|--explain")


def plan() -> str:
    """Plans by published trainings and by given rates."""
    return "\n".join(printed("plan", *arguments.split()) for arguments in _PLANS)


def search() -> str:
    """A recorded search as it ended, the evidence, and nothing that is allowed."""
    found, _ = recorded()
    limited = replace(found, points=(), trials=tuple(replace(one, **_BROKEN) for one in found.trials))
    again = ["bench search FILE --confirm", "bench search FILE --show --explain"]
    preview = {"combinations": 240, "possible": 150, "refused": {"needs 2 devices": 90}, "known": 12, "sampler": "tpe"}
    return "\n".join(
        (
            "$ bench search FILE\n" + rendered(blocks(found, (), again)),
            "$ bench search FILE --show --explain\n" + rendered(blocks(found), explain=True),
            "$ bench search FILE\n" + rendered(blocks(limited, (), again[1:])),
            "$ bench search FILE --dry-run\n"
            + rendered(preview_blocks("find", ["time"], preview | {"budget": {"trials": 24}}, "bench search FILE")),
        )
    )


def rendered(blocks: Iterable[Block], *, explain: bool = False) -> str:
    """Return blocks as a terminal without a width of its own prints them."""
    console = Console(highlight=False, markup=False, width=160, file=io.StringIO())
    terminal.show(blocks, console, explain=explain)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"  # type: ignore[attr-defined]


def show() -> str:
    """What two suites would run on a machine without and one with GPUs, some too small, and the options of a strategy."""
    suites = Path(__file__).parent.parent / "suites"
    gpus = [Gpu(index=i, uuid=f"GPU-{i}", name="NVIDIA A10G", memory_bytes=24 * 10**9) for i in range(2)]
    machines = [Machine(cpu_model="AMD EPYC", cpu_count=2, gpus=found) for found in ([], gpus)]
    texts = []
    for name, machine in (("scaling", machines[0]), ("parallelism", machines[0]), ("scaling", machines[1])):
        suite = with_site(load_suite(suites / f"{name}.yaml"), {"usd_per_device_hour": 1.2} if machine.gpus else {})
        plan = expand(suite, machine)
        ids = dict.fromkeys(run.config_id for run in plan.to_do)
        memory = {config: round(0.05e9 * 1.9**place) for place, config in enumerate(ids)}
        texts.append(f"$ bench show suites/{name}.yaml\n{rendered(runs.blocks(Preview(machine, plan, plan), memory))}")
    return "\n".join([*texts, printed("show", "--options", "lora"), printed("show", "--options", "precision")])


def doctor() -> str:
    """A machine with two GPUs and meters for processors and memory, and one on which nothing can be measured."""
    texts = []
    for gpus, zones in (([fake_gpu(0, 300), fake_gpu(1, 290, memory_used=2**30)], SERVER), ([], {})):
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            checks = doctored(patch, Path(folder), gpus, zones)
            for explain in (False, True):
                text = rendered(say_doctor.blocks(checks), explain=explain).replace(folder, "/sys")
                texts.append(f"$ bench doctor{' --explain' * explain}\n{text}")
    return "\n".join(texts)


def doctored(
    patch: pytest.MonkeyPatch, folder: Path, gpus: list[dict[str, Any]], zones: dict[str, str]
) -> list[Finding]:
    """Return what is found on a machine with these GPUs and RAPL zones that is otherwise made up."""
    clock = Ticking()
    for module in (machine_doctor, meter, gpu):
        patch.setattr(module, "time", clock)
    facts = {
        "_host": lambda *_: Finding("host", "ok", "load 0.1 on 64 processors"),
        "_torch": lambda *_: Finding("torch", "ok", "2.13.0, built for CUDA 12.9"),
        "_estimate": lambda: Finding("energy estimate", "ok", "codecarbon", "", {"power_watts_cpu_estimated": 14.6}),
        "_software": lambda: iter([Finding("import bench", "ok", "/opt/wattbench/bench")]),
        "sees_all_processes": lambda: True,
        "in_container": lambda: False,
        "fresh": lambda *_: False,
    }
    for name, fact in facts.items():
        patch.setattr(machine_doctor, name, fact)
    powercap = Powercap(folder, zones)
    patch.setenv("WATTBENCH_POWERCAP", str(powercap.root))
    library = fake_nvml.install(patch, *gpus, found=bool(gpus))
    clock.ticks += [ticking(powercap, clock), lambda: setattr(library, "now", Fraction(clock.ns, 10**9))]
    clock.ticks[-1]()
    found = machine_doctor.findings()
    return [Finding("processors", "ok", "64 usable, AMD EPYC"), *(f for f in found if f.subject != "processors")]


def measure() -> str:
    """Scripts with and without steps, measured and estimated; one that failed."""
    steps = command_record("python train.py --layers 12", readings="m", peak_memory_bytes=[1_300_000_000])
    sleep = command_record("sleep 4", readings="e", step_seconds=[], steps=0, samples=None, tokens=None)
    failed = rows.record(1, status=Status.FAILED, message="exit code 7", readings="").changed(spec=sleep.spec)
    texts = [rendered(say_measure.blocks(record)) for record in (steps, sleep, failed)]
    return "\n".join([*texts, rendered(say_measure.blocks(sleep), explain=True)])


def command_record(argv: str, readings: str, **changed: Any) -> RunRecord:
    """Return the record of a command that was measured."""
    record = rows.record(1, v=40 * rows.V, readings=readings)
    assert record.measurement is not None
    assert record.carbon is not None
    emissions = record.carbon.emissions_kg * 0.056 / record.carbon.intensity.kg_per_kwh
    france = record.carbon.intensity.changed(region="FRA", year=2023, kg_per_kwh=0.056)
    phases = [Phase(name=name, start_ns=start, end_ns=end) for name, start, end in _PHASES]
    measured = record.measurement.changed(phases=phases, **changed)
    flags = ["energy_estimated", "no_steps", "short_window"] if "steps" in changed else ["idle_unknown", "short_window"]
    return record.changed(
        spec=RunSpec(workload=COMMAND, workload_args={"argv": argv}, device_type="cpu"),
        measurement=measured,
        carbon=record.carbon.changed(intensity=france, emissions_kg=emissions),
        flags=flags,
        grade="B",
    )


def imports() -> str:
    """A table of which one row is of no use: first as it would be imported, then imported."""
    text = "model,gpus,speed,step_ms,precision,node\n7B,8,24000,340,bfloat16,a\n7B,16,46500,352,bfloat16,a\n"
    text += "7B,16,45900,354,bfloat16,b\n7B,32,86q,380,bfloat16,a\n7B,64,OOM,,bfloat16,a\n"
    named = ("--map", "speed=tokens_per_second")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("theirs.csv").write_text(text)
        empty_store(Path(folder))
        dry = printed("import", "theirs.csv", *named, "--dry-run")
        return dry + "\n" + printed("import", "theirs.csv", *named)


APPROVED: dict[str, Callable[[], str]] = {
    "advise": advise,
    "compare": compare,
    "doctor": doctor,
    "fit": fit,
    "gate": gate,
    "import": imports,
    "measure": measure,
    "pareto": pareto,
    "plan": plan,
    "search": search,
    "show": show,
}


def main() -> None:
    """Rewrite all approved outputs."""
    for name, text in APPROVED.items():
        (FOLDER / f"{name}.txt").write_text(text())


if __name__ == "__main__":
    main()
