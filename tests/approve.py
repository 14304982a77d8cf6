"""Approved outputs: what people read in a terminal, word for word, in `tests/approved`.

`python -m tests.approve` (or `make approve`) rewrites them; a person reads the difference. Each text is a function without
arguments that gives the same on every machine.
"""

import contextlib
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests import commands
from tests.recorded import recorded_store

FOLDER = Path(__file__).parent / "approved"
_QUESTION = "--params 7B --tokens 1T --device H100-SXM --devices 8,64,512 --deadline 30d --budget 200000"
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


APPROVED: dict[str, Callable[[], str]] = {
    "advise": advise,
    "compare": compare,
    "fit": fit,
    "gate": gate,
    "pareto": pareto,
    "plan": plan,
}


def main() -> None:
    """Rewrite all approved outputs."""
    for name, text in APPROVED.items():
        (FOLDER / f"{name}.txt").write_text(text())


if __name__ == "__main__":
    main()
