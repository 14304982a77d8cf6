"""The rehearsal of the CUDA path without its downloads: symbols, expectations, the table, CUDA-only statements."""

import ast
import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.record import Failure, RunRecord, Status
from bench.schema import Gpu, Machine, RunSpec, Suite
from bench.strategies.catalog import CATALOG
from bench.suites.expand import expand
from tests.cuda_rehearsal import outcome, statements
from tests.cuda_rehearsal.cases import DEFAULTS, Case, document, executions
from tests.cuda_rehearsal.environment import ROOT, Unavailable, prepare
from tests.cuda_rehearsal.libraries import Symbol, imports, share_out, stubs

TOOLS = all(shutil.which(tool) for tool in ("gcc", "nm", "readelf"))


@pytest.mark.skipif(not TOOLS, reason="gcc, nm or readelf is not installed")
def test_a_library_gets_stubs_for_what_it_imports(tmp_path: Path) -> None:
    def library(name: str, code: str, *more: str) -> None:
        (tmp_path / "code.c").write_text(code)
        command = ["gcc", "-shared", "-fPIC", "-w", "-o", tmp_path / name, tmp_path / "code.c", f"-L{tmp_path}", *more]
        subprocess.run(command, check=True)

    (tmp_path / "map").write_text("libcudart.so.13 { global: *; };")
    named = f"-Wl,-soname,libcudart.so.13,--version-script={tmp_path / 'map'}"
    library("libcudart.so.13", "int cudaFree(void) { return 1; }", named)
    library("user.so", "int use(void) { return cudaFree() + cuThing() + cuThingCreate(0); }", "-l:libcudart.so.13")
    needed, symbols = imports(tmp_path / "user.so")
    assert "libcudart.so.13" in needed
    assert {Symbol("cudaFree", "libcudart.so.13"), Symbol("cuThing", None)} <= symbols
    shares = share_out(["libcudart.so.13", "libcuda.so.1"], symbols)
    assert shares["libcuda.so.1"] == {Symbol("cuThing", None), Symbol("cuThingCreate", None)}
    # What is written by hand takes the place of a stub.
    library("stub.so", stubs(shares["libcuda.so.1"]) + "long answer(void) { return cuThing(); }")
    loaded, made = ctypes.CDLL(str(tmp_path / "stub.so")), ctypes.c_void_p()
    assert (loaded.cuThing(), loaded.cuThingCreate(ctypes.byref(made))) == (0, 0)
    assert made.value


def test_a_symbol_belongs_to_the_library_with_the_longest_prefix() -> None:
    names = ["libcuda.so.1", "libcusparse.so.12", "libcusparseLt.so.0", "libcufile.so.0", "libnvshmem_host.so.3"]
    symbols = ["cuInit", "cusparseCreate", "cusparseLtInit", "cuFileRead", "nvshmem_free", "malloc"]
    shares = share_out(names, [Symbol(name, None) for name in symbols])
    assert [[symbol.name for symbol in shares[name]] for name in names] == [[name] for name in symbols[:-1]]


def record(status: str, message: str) -> RunRecord:
    error = Failure(type="Error", message=message)
    return RunRecord.model_construct(status=Status(status), error=error, duration_seconds=3.0)


@pytest.mark.parametrize(
    ("case", "seen", "problems"),
    [
        (Case("a", 1, {}, "failed", "rank 1"), record("failed", "Rank 1: lost"), 0),
        (Case("a", 1, {}, "failed", "rank 0"), record("failed", "rank 1: lost"), 1),
        (Case("a", 1, {}, "timeout"), record("failed", "lost"), 1),
        (Case("a", 1, {}, "ok"), None, 1),
    ],
)
def test_a_run_is_compared_with_what_is_expected(case: Case, seen: RunRecord | None, problems: int) -> None:
    row = outcome.row(case, seen, ["GPU-1"])
    assert len(row.problems) == problems
    text = outcome.table([row])
    assert text.count("!!") == problems
    assert outcome.sentence([row]).startswith("1 of 1 runs were not" if problems else "All 1 runs were as expected")
    assert outcome.document([row])["as_expected"] is not bool(problems)


def test_a_fault_that_takes_too_long_is_noted() -> None:
    case = Case("a", 1, {}, "timeout")
    assert not outcome.row(case, record("timeout", "too long"), [], most_seconds=4).problems
    assert outcome.row(case, record("timeout", "too long"), [], most_seconds=2).problems


CODE = """
def plain(device):
    "Not a statement."
    gpu = device.type == "cuda"
    if gpu and device.index:
        a = 1  # gpu
    elif device.type == "cpu":
        a = 2
    else:
        a = 3  # gpu
    if device.type != "cuda":
        return
    for _ in range(2):  # gpu
        a += 1  # gpu
    return  # gpu

def other(device):
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # gpu
    kind = torch.cuda.memory() if device.type == "cuda" else 0
    try:
        b = 1
    except torch.cuda.OutOfMemoryError:
        b = 2

def kernel(parts):
    c = 1  # gpu
"""


def test_statements_that_only_a_gpu_runs_are_found() -> None:
    finder = statements.Finder({"kernel"})
    finder.block(ast.parse(CODE).body, on_gpu=False)
    assert finder.lines == {number for number, line in enumerate(CODE.splitlines(), 1) if line.endswith("# gpu")}


def test_lines_that_ran_are_counted(tmp_path: Path) -> None:
    (tmp_path / "1").write_text(f"{ROOT}/bench/a.py:3\n/elsewhere/bench/a.py:4\n")
    ran = statements.executed(tmp_path, ROOT)
    assert ran == {("bench/a.py", 3)}
    assert statements.share({("bench/a.py", 3), ("bench/a.py", 5)}, ran).startswith("50% of the 2 ")


def test_all_names_of_all_axes_are_rehearsed() -> None:
    names = {axis: {RunSpec.model_fields[axis].default.name, DEFAULTS.get(axis)} for axis in CATALOG}
    for case in (case for execution in executions() for case in execution.cases):
        for axis in names.keys() & case.fields.keys():
            value = case.fields[axis]
            names[axis].add(value["name"] if isinstance(value, dict) else value)
    assert {axis: set(CATALOG[axis]) - names[axis] for axis in CATALOG if set(CATALOG[axis]) - names[axis]} == {}


def test_the_suite_of_an_execution_is_one_that_bench_expands() -> None:
    gpus = [Gpu(index=n, uuid=f"GPU-{n}", name="H100") for n in range(4)]
    machine = Machine(cpu_model="", cpu_count=2, gpus=gpus)
    for execution in executions():
        if execution.cases:
            suite = Suite.model_validate(document(execution, execution.cases))
            assert len(expand(suite, machine).runs) == len(execution.cases)


def test_a_machine_that_cannot_rehearse_gets_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "gcc" else name)
    with pytest.raises(Unavailable, match=r"gcc is not installed|x86-64"):
        prepare(tmp_path, "2.13.0")
