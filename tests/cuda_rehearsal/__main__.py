"""`python -m tests.cuda_rehearsal`: rehearse the CUDA path of `bench run` on a machine without GPUs; see the package."""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from analytics.say.names import spoken
from bench.record import RunRecord
from bench.suites.combine import why_impossible
from tests.cuda_rehearsal import footprints, outcome, statements
from tests.cuda_rehearsal.cases import Case, Execution, document, executions, shortened
from tests.cuda_rehearsal.environment import ROOT, Environment, Unavailable, prepare
from tests.cuda_rehearsal.outcome import Row
from tests.fake_nvml import fake_gpu
from tests.processes import processes_in

BENCH = ["-P", "-c", "from bench.cli import main; main()"]


@dataclass(frozen=True)
class Rehearsal:
    """One call of the command: where it runs, and which lines are noted."""

    environment: Environment
    folder: Path
    lines: Path | None

    def do(self, execution: Execution, cases: list[Case]) -> Iterator[Row]:
        """Carry out one execution and compare each of its runs with what is expected."""
        folder = self.folder / re.sub(r"\W", "-", execution.name)
        folder.mkdir(parents=True)
        suite, settings = folder / "suite.yaml", []
        if execution.suite:
            suite = ROOT / "suites" / f"{execution.suite}.yaml"
            settings = [word for setting in shortened(execution.suite) for word in ("--set", setting)]
        else:
            suite.write_text(json.dumps(document(execution, cases)))
        lines = {"REHEARSAL_LINES": str(self.lines)} if self.lines else {}
        variables = self.environment.variables(execution, folder, **lines)
        command = [self.environment.python, *BENCH, "run", suite, *settings, "--json"]
        log = folder / "output.txt"
        with log.open("w") as output:
            try:
                subprocess.run(command, cwd=folder, env=variables, stdout=output, stderr=output, timeout=3600)
            except subprocess.TimeoutExpired:
                yield Row(execution.name, execution.gpus, "an end", "none in an hour", problems=("it hangs",))
        gpus = [fake_gpu(number)["uuid"] for number in range(execution.gpus)]
        paths = sorted(folder.glob("runs/*/*/*/record.json"), key=lambda path: path.stat().st_mtime)
        records = [RunRecord.model_validate_json(path.read_text()) for path in paths]
        if execution.suite:
            for record in records:
                why = why_impossible(record.spec)  # a shipped suite may ask for what some numbers of GPUs cannot do
                name = f"{execution.name}: {spoken(record.spec.label)}"
                case = Case(name, record.spec.world_size, {}, "skipped" if why else "ok", why or "")
                yield outcome.row(case, record, gpus)
            if not records:
                yield Row(execution.name, execution.gpus, "records", "none", problems=(log.read_text()[-2000:],))
        by_seed = {record.spec.seed: record for record in records}
        for seed, case in enumerate(cases):
            yield outcome.row(case, by_seed.get(seed), gpus, execution.most_seconds)
        if left := processes_in(folder):
            yield Row(execution.name, execution.gpus, "no process left", f"{len(left)} left", problems=tuple(left))


def memory(environment: Environment, folder: Path, only: str) -> int:
    """Print the table of memory. Return 1 if a measurement or an estimate failed."""
    failed = False
    print(f"{'GB of a rank':44} {'peak':>7} {'estim.':>7} {'error':>7}")
    for name in (name for name in footprints.CASES if re.search(only, name)):
        world = footprints.CASES[name][0] if footprints.all_ranks(name) else 1
        variables = environment.variables(Execution(name, world, memory=10**13), folder)
        if world == 1:
            del variables["FAKE_NCCL"]  # the other ranks are pretended
        command = [environment.python, "-m", "tests.cuda_rehearsal.footprints", name]
        store = folder / f"store-{time.monotonic_ns()}"
        ranks = [
            subprocess.Popen(
                [*command, str(rank), store], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for rank in range(world)
        ]
        outputs = [rank.communicate(timeout=1200) for rank in ranks]
        rows = [
            json.loads(out.splitlines()[-1]) if out else {"name": name, "error": error[-200:]} for out, error in outputs
        ]
        failed = failed or any("error" in row for row in rows)
        print(footprints.line(rows), flush=True)
    return int(failed)


def selected(*, short: bool, only: str) -> list[tuple[Execution, list[Case]]]:
    """Return the executions with those of their cases that are asked for."""
    chosen = []
    for execution in executions():
        if short and not execution.short:
            continue
        cases = [case for case in execution.cases if case.short or not short]
        if not re.search(only, execution.name):
            cases = [case for case in cases if re.search(only, case.name)]
        if cases or (execution.suite and re.search(only, execution.name)):
            chosen.append((execution, cases))
    return chosen


def main() -> int:
    """Parse the command line, rehearse, and print the table. Return 1 if something is not as expected."""
    parser = argparse.ArgumentParser(prog="python -m tests.cuda_rehearsal", description=main.__doc__)
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".rehearsal", metavar="DIR", help="folder of the environment"
    )
    parser.add_argument("--torch", default="2.13.0", help="version of torch")
    parser.add_argument("--short", action="store_true", help="a representative part, at most 5 minutes on two cores")
    parser.add_argument("--only", default="", metavar="PATTERN", help="executions or cases whose name matches")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to a file")
    parser.add_argument("--coverage", action="store_true", help="print the share of CUDA-only statements that ran")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    parser.add_argument("--memory", action="store_true", help="compare peaks of torch's allocator with their estimates")
    arguments = parser.parse_args()
    try:
        environment = prepare(arguments.cache, arguments.torch)
    except Unavailable as reason:
        print(f"NOT REHEARSED: {reason}")
        return 0
    folder = arguments.cache.absolute() / f"runs-{time.strftime('%Y%m%dT%H%M%S')}"
    lines = folder / "lines" if arguments.coverage else None
    (lines or folder).mkdir(parents=True)
    if arguments.memory:
        return memory(environment, folder, arguments.only)
    rehearsal, rows, seconds = Rehearsal(environment, folder, lines), [], dict(environment.seconds)
    for execution, cases in selected(short=arguments.short, only=arguments.only):
        began = time.monotonic()
        new = list(rehearsal.do(execution, cases))
        seconds[execution.name] = time.monotonic() - began
        print(outcome.table(new), end=f"\n{execution.name}: {seconds[execution.name]:.0f} s\n\n", flush=True)
        rows += new
    print("seconds:", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    more = {"torch": arguments.torch, "seconds": seconds}
    if lines:
        more["statements"] = statements.share(statements.cuda_only(ROOT), statements.executed(lines, ROOT))
        print(more["statements"])
    if arguments.json:
        arguments.json.write_text(json.dumps(outcome.document(rows, **more), indent=1))
    print(outcome.sentence(rows))
    wrong = any(row.problems for row in rows) or not rows
    if wrong or arguments.keep:
        print(f"The runs are in {folder}.")
    else:
        shutil.rmtree(folder)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
