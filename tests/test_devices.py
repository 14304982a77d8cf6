"""Devices are held by one worker of a search at a time, however it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.files import Busy
from bench.machine.claim import claim
from bench.schema import Gpu, Machine, RunSpec

CPU = Machine(cpu_model="a", cpu_count=4)
GPUS = [Gpu(index=i, uuid=f"GPU-{i}", name="Synthetic", used_by=["python (7)"] if i == 3 else []) for i in range(4)]

ON_GPUS = [RunSpec(workload="decoder_lm", device_type="gpu", batch_size_per_device=1, measure_steps=1)]


def with_gpus(*indices: int) -> Machine:
    return Machine(cpu_model="a", cpu_count=4, gpus=[GPUS[i] for i in indices])


def use(monkeypatch: pytest.MonkeyPatch, *processors: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(processors))


def test_processors_are_held_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, 0, 1, 2, 5)
    with claim(CPU, []):
        with pytest.raises(Busy) as told, claim(CPU, []):
            pass
        assert str(told.value) == (
            f"processors are held by another search or worker: 0-2,5 by process {os.getpid()}\n"
            "give each worker its own (taskset -c ...), or wait until it has ended"
        )
    with claim(CPU, []):
        pass


def test_who_cannot_have_all_holds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, 1)
    with claim(CPU, []):
        use(monkeypatch, 0, 1, 2, 3)
        with pytest.raises(Busy, match=rf"1 by process {os.getpid()}\nuse the free ones \(taskset -c 0,2-3\)"):
            claim(CPU, []).__enter__()
        use(monkeypatch, 0, 2, 3)
        with claim(CPU, []):
            pass


def test_gpus_are_held_and_processors_are_not() -> None:
    with claim(with_gpus(0, 1), ON_GPUS), claim(with_gpus(2), ON_GPUS):
        with pytest.raises(
            Busy, match=r"GPUs are held .*: 0-1 by process \d+\ngive each worker its own \(--gpus \.\.\.\)"
        ):
            claim(with_gpus(0, 1), ON_GPUS).__enter__()
        with claim(with_gpus(3), ON_GPUS), claim(with_gpus(3), ON_GPUS):
            pass  # not free: it is not used, so it is not held
    with claim(with_gpus(1), ON_GPUS), pytest.raises(Busy, match=r"free ones \(--gpus 0,2\)"):
        claim(with_gpus(0, 1, 2, 3), ON_GPUS).__enter__()


def test_a_worker_that_is_killed_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from bench.machine.claim import claim; from bench.schema import Machine\n"
    code += "with claim(Machine(cpu_model='a', cpu_count=1), []):\n    print('held', flush=True); input()"
    use(monkeypatch, *os.sched_getaffinity(0))
    command = [sys.executable, "-P", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"by process {process.pid}\n"):
            claim(CPU, []).__enter__()
        process.kill()
    with claim(CPU, []):
        pass


def test_devices_are_held_whatever_folder_runs_go_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATTBENCH_LOCKS")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with claim(CPU, []):
        monkeypatch.chdir(Path("/"))
        with pytest.raises(Busy, match="processors are held"):
            claim(CPU, []).__enter__()
        with claim(with_gpus(0), ON_GPUS):
            pass
        with pytest.raises(Busy, match="processors are held"):
            claim(with_gpus(0), []).__enter__()  # runs that use no GPU
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith(f"wattbench-{os.getuid()}-")
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["open", "link", "file", "stranger"])
def test_a_folder_that_others_can_change_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, own = tmp_path / "locks", tmp_path / "own"
    own.mkdir(mode=0o700)
    monkeypatch.setenv("WATTBENCH_LOCKS", str(folder))
    if kind == "link":
        folder.symlink_to(own)
    elif kind == "file":
        folder.write_text("")
    else:
        folder.mkdir(mode=0o700)
        folder.chmod(0o777 if kind == "open" else 0o700)
    if kind == "stranger":
        mine = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with pytest.raises(Busy, match=f"{folder}, the folder for locks on devices, must be writable by you alone"):
        claim(CPU, []).__enter__()
    assert list(own.iterdir()) == []
