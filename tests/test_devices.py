"""Devices are held by one worker of a search at a time, however it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.devices import claim
from bench.files import Busy
from bench.schema import Gpu, Machine

CPU = Machine(cpu_model="a", cpu_count=4)
GPUS = [Gpu(index=i, uuid=f"GPU-{i}", name="Synthetic", used_by=["python (7)"] if i == 3 else []) for i in range(4)]


def with_gpus(*indices: int) -> Machine:
    return Machine(cpu_model="a", cpu_count=4, gpus=[GPUS[i] for i in indices])


def use(monkeypatch: pytest.MonkeyPatch, *processors: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(processors))


def test_processors_are_held_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, 0, 1, 2, 5)
    with claim(CPU, tmp_path / "runs" / ".devices"):
        with pytest.raises(Busy) as told, claim(CPU, tmp_path / "runs" / ".devices"):
            pass
        assert str(told.value) == (
            f"processors are held for the trials of another search or worker: 0-2,5 by process {os.getpid()}\n"
            "give each its own (taskset -c ...), or wait until it has ended"
        )
    with claim(CPU, tmp_path / "runs" / ".devices"):
        pass


def test_who_cannot_have_all_holds_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, 1)
    with claim(CPU, tmp_path):
        use(monkeypatch, 0, 1, 2, 3)
        with pytest.raises(Busy, match=rf"1 by process {os.getpid()}\ntake those that are free \(taskset -c 0,2-3\)"):
            claim(CPU, tmp_path).__enter__()
        use(monkeypatch, 0, 2, 3)
        with claim(CPU, tmp_path):
            pass


def test_gpus_are_held_and_processors_are_not(tmp_path: Path) -> None:
    with claim(with_gpus(0, 1), tmp_path), claim(with_gpus(2), tmp_path):
        with pytest.raises(Busy, match=r"GPUs are held .*: 0-1 by process \d+\ngive each its own \(--gpus \.\.\.\)"):
            claim(with_gpus(0, 1), tmp_path).__enter__()
        with claim(with_gpus(3), tmp_path), claim(with_gpus(3), tmp_path):
            pass  # not free: it is not used, so it is not held
    with claim(with_gpus(1), tmp_path), pytest.raises(Busy, match=r"free \(--gpus 0,2\)"):
        claim(with_gpus(0, 1, 2, 3), tmp_path).__enter__()


def test_a_worker_that_is_killed_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; from pathlib import Path; from bench.devices import claim; from bench.schema import Machine\n"
    code += (
        "with claim(Machine(cpu_model='a', cpu_count=1), Path(sys.argv[1])):\n    print('held', flush=True); input()"
    )
    use(monkeypatch, *os.sched_getaffinity(0))
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"by process {process.pid}\n"):
            claim(CPU, tmp_path).__enter__()
        process.kill()
    with claim(CPU, tmp_path):
        pass
