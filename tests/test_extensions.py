"""The house is easy to extend: patches that add something are kept, touch few files, apply, and work for real."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.record import RunRecord, Status
from bench.suites import yaml as yamlfile
from tests import commands, processes
from tests.processes import run
from tests.stores import empty_store

ROOT = Path(__file__).parent.parent
PATCHES = Path(__file__).parent / "extensions"
DEFAULTS = {
    "workload": "decoder_lm",
    "workload_args": {"preset": "tiny", "sequence_length": 32},
    "device_type": "cpu",
    "batch_size_per_device": 2,
    "measure_seconds": 2.5,
    "warmup_seconds": 0,
    "validation": {"samples": 0},
    "meters": [],
}
WATTS = 250.0


def joules_are_watts_times_seconds(record: RunRecord) -> None:
    (reading,) = record.measurement.energy
    assert (reading.source, reading.component, reading.device) == ("toy", "node", "plug")
    assert reading.provenance.value == "integrated_samples"
    assert reading.seconds == pytest.approx(record.measurement.window_seconds, rel=0.01)
    assert reading.energy_joules == pytest.approx(WATTS * reading.seconds, rel=1e-4)
    whole = sum(r.energy_joules for r in record.energy)
    assert reading.energy_joules < whole < WATTS * record.duration_seconds * 1.01


def it_ran_by_the_debug_launcher(record: RunRecord) -> None:
    assert record.spec.launcher == "debug"
    assert record.measurement.steps > 0


def it_averaged_every_second_step(record: RunRecord) -> None:
    assert str(record.spec.parallelism) == "local_sgd-every=2"
    assert record.measurement.steps > 0


@dataclass(frozen=True)
class Extension:
    """A patch: the files that it may touch, what a suite says to use it, what `bench show` lists, and the truth of a run.

    `{folder}` in `defaults` is a folder in which `files` are written before.
    """

    touches: set[str]
    defaults: dict[str, Any]
    shown: str
    truth: Callable[[RunRecord], None]
    files: tuple[tuple[str, str], ...] = ()


EXTENSIONS = {
    "toy_meter": Extension(
        {"bench/meters/toy.py", "bench/registry.py"},
        {"meters": ["toy:{folder}/watts"]},
        "/watts",
        joules_are_watts_times_seconds,
        (("watts", f"{WATTS}\n"),),
    ),
    "toy_parallelism": Extension(
        {"bench/strategies/local_sgd.py", "bench/strategies/catalog.py", "docs/strategies.md"},
        {"parallelism": {"name": "local_sgd", "every": 2}},
        '"local_sgd"',
        it_averaged_every_second_step,
    ),
    "debug_launcher": Extension(
        {"bench/run/debug.py", "bench/registry.py"},
        {"launcher": "debug"},
        '"debug"',
        it_ran_by_the_debug_launcher,
    ),
}
MOST_FILES = 3


def patched(tree: Path, *names: str) -> Path:
    """Copy the source to a folder and apply the patches with these names."""
    tree.mkdir()
    for name in ("bench", "analytics", "app", "suites", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.pyc.*"))  # half-written ones
    shutil.copy(ROOT / "pyproject.toml", tree / "pyproject.toml")
    variables = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)}
    for name in names:
        done = run(["git", "apply", str(PATCHES / f"{name}.patch")], cwd=tree, env=variables)
        assert done.returncode == 0, f"{name}.patch does not apply any more: {done.stderr}"
    return tree


@pytest.fixture(scope="module", params=sorted(EXTENSIONS))
def extended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Extension, Path]:
    """An extension, and a copy of the source with its patch applied."""
    return EXTENSIONS[request.param], patched(tmp_path_factory.mktemp(request.param) / "source", request.param)


def bench(tree: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return processes.bench(folder, *arguments, env=os.environ | {"PYTHONPATH": str(tree)})


def write_suite(folder: Path, *extensions: Extension) -> None:
    defaults = dict(DEFAULTS)
    for extension in extensions:
        for name, text in extension.files:
            (folder / name).write_text(text)
        defaults |= extension.defaults
    text = yamlfile.write({"name": "extended", "idle_seconds": 0, "defaults": defaults})
    (folder / "extended.yaml").write_text(text.replace("{folder}", str(folder)))


@pytest.mark.parametrize("name", sorted(EXTENSIONS))
def test_an_extension_touches_few_files(name: str) -> None:
    touched = set(re.findall(r"^diff --git a/(\S+)", (PATCHES / f"{name}.patch").read_text(), re.MULTILINE))
    assert touched == EXTENSIONS[name].touches
    assert len(touched) <= MOST_FILES


def test_every_patch_is_tested() -> None:
    assert {path.stem for path in PATCHES.glob("*.patch")} == set(EXTENSIONS)


@pytest.mark.slow
def test_a_suite_may_use_an_extension(extended: tuple[Extension, Path], tmp_path: Path) -> None:
    extension, tree = extended
    write_suite(tmp_path, extension)
    done = bench(tree, tmp_path, "show", "extended.yaml", "--no-memory", "--json")
    assert done.returncode == 0, done.stderr
    assert extension.shown in json.dumps(json.loads(done.stdout))
    if "docs/strategies.md" in extension.touches:  # the manual lists what it adds
        code = "from tests.manual import strategies; print(strategies(), end='')"
        variables = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{ROOT}"}
        manual = run([sys.executable, "-P", "-c", code], env=variables)
        assert manual.stdout in (tree / "docs" / "strategies.md").read_text(), manual.stderr
    without = commands.bench("show", "extended.yaml", "--no-memory", "--json")
    assert without.exit_code == 2, "the house without the patch must refuse the suite"
    assert "allowed: " in without.output or "did you mean" in without.output


@pytest.mark.slow
def test_a_run_uses_them_all(tmp_path: Path) -> None:
    tree = patched(tmp_path / "source", *EXTENSIONS)
    write_suite(tmp_path, *EXTENSIONS.values())
    empty_store(tmp_path)
    done = bench(tree, tmp_path, "run", "extended.yaml")
    assert done.returncode == 0, done.stderr + done.stdout
    (record,) = processes.records(tmp_path).values()
    assert record.status is Status.OK, record.error
    for extension in EXTENSIONS.values():
        extension.truth(record)
