"""The import `wattbench` on real libraries: steps, samples, tokens and phases are those that were counted by hand."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.process import SCRIPT, module_command
from bench.run.command import execute
from bench.run.own_steps import measurement
from bench.script.wattbench import VARIABLE, _rows, _Work
from tests import processes
from tests.manual import commands
from tests.processes import run
from tests.test_house import FILES, source

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tests" / "scripts"
PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
Lines = list[dict[str, Any]]


def environment(**more: str) -> dict[str, str]:
    """An environment of a user in which neither wattbench is installed nor a launcher has set a rank."""
    hidden = {"PYTHONPATH", "RANK", "LOCAL_RANK", VARIABLE}
    own = {"OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
    return {name: value for name, value in os.environ.items() if name not in hidden} | own | more


def train(folder: Path, launcher: list[str], script: str, *arguments: str) -> dict[int, Lines]:
    """Run a script as `bench measure` does; return what each rank reported, in order of time."""
    steps = folder / "steps"
    with (folder / "log").open("wb") as log:
        argv = [*launcher, str(SCRIPTS / script), *arguments]
        ended = execute(argv, steps, folder=str(folder), environment=environment(), output=log)
    assert ended.exitcode == 0, (folder / "log").read_text()[-3000:]
    ranks: dict[int, Lines] = {}
    for text in steps.read_text().splitlines():
        line = json.loads(text)
        ranks.setdefault(line["rank"], []).append(line)
    whole = measurement(steps, ended, 0, "cpu")
    stated = [line for lines in ranks.values() for line in counts(lines, "samples", "tokens")[1:]]
    for place, total in enumerate((whole.samples, whole.tokens)):
        assert total == (sum(line[place] for line in stated) if all(line[place] for line in stated) else None)
    return {rank: sorted(lines, key=lambda line: line["t_ns"]) for rank, lines in sorted(ranks.items())}


def counts(lines: Lines, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(line.get(name) for name in names) for line in lines if "phase" not in line]


def phases(lines: Lines) -> Counter[str]:
    """Count the phases that ended."""
    return Counter(line["phase"] for line in lines if line.get("begin") is False)


def planned(lines: Lines) -> list[tuple[Any, ...]]:
    """Return the lengths that a framework states: steps in all, in an epoch, and by what."""
    plans = [line["planned"] for line in lines if "planned" in line]
    return [tuple(plan.get(name) for name in ("steps", "epoch_steps", "source")) for plan in plans]


# --- each library


@pytest.mark.parametrize("arguments", [(), ("--count-tokens",)])
def test_trainer_of_hugging_face(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """22 sequences of 8 tokens, batches of 4, two in a step: 8, 8 and 6 samples in each of two epochs."""
    ranks = train(tmp_path, PYTHON, "train_trainer.py", *arguments)
    assert list(ranks) == [0]
    assert counts(ranks[0], "samples", "tokens") == [(8, 64), (8, 64), (6, 48)] * 2
    assert phases(ranks[0]) == {"eval": 3, "checkpoint": 2}
    assert planned(ranks[0]) == [(6, 3, "HuggingFaceCallback")]
    steps = [line for line in ranks[0] if "phase" not in line]
    assert all(3 < line["loss"] < 5 for line in steps)
    assert ["eval_loss" in line["own"] for line in steps] == [False, True] * 3
    order = [line.get("phase", "step") for line in ranks[0] if line.get("begin") is not True]
    assert order[:7] == ["step", "step", "eval", "step", "checkpoint", "step", "eval"]
    stated = next(line.split()[1:] for line in (tmp_path / "log").read_text().splitlines() if line.startswith("stated"))
    assert stated == ["6", "352" if arguments else "0"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--count-tokens",)])
def test_trainer_of_hugging_face_in_two_processes(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """24 sequences, as two are repeated: 3 batches of 4 in each process."""
    ranks = train(tmp_path, TORCHRUN, "train_trainer.py", *arguments)
    assert {rank: counts(lines, "samples", "tokens") for rank, lines in ranks.items()} == {
        rank: [(8, 64), (4, 32)] * 2 for rank in (0, 1)
    }
    assert phases(ranks[0])["checkpoint"] >= 1


@pytest.mark.slow
def test_trainer_of_hugging_face_with_a_compiled_model(tmp_path: Path) -> None:
    ranks = train(tmp_path, PYTHON, "train_trainer.py", "--compile")
    assert counts(ranks[0], "samples", "tokens") == [(8, 64), (8, 64), (6, 48)] * 2


def test_lightning(tmp_path: Path) -> None:
    ranks = train(tmp_path, PYTHON, "train_lightning.py")
    assert list(ranks) == [0]
    assert counts(ranks[0], "samples") == [(8,), (8,), (6,)] * 2
    assert phases(ranks[0]) == {"eval": 3, "checkpoint": 2}  # one evaluation is the check before the training
    assert planned(ranks[0]) == [(6, 3, "LightningCallback")]
    steps = [line for line in ranks[0] if "phase" not in line]
    assert all(line["loss"] > 0 for line in steps)
    assert ["val_loss" in line.get("own", {}) for line in steps] == [False, False, True] * 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_lightning_in_two_processes_that_it_starts_itself(strategy: str, tmp_path: Path) -> None:
    ranks = train(tmp_path, PYTHON, "train_lightning.py", "2", strategy)
    assert {rank: counts(lines, "samples") for rank, lines in ranks.items()} == {
        rank: [(8,), (3,)] * 2 for rank in (0, 1)
    }


def test_keras(tmp_path: Path) -> None:
    """Two trainings one after the other, each of two epochs; the time between them is in no step."""
    (lines,) = train(tmp_path, PYTHON, "train_keras.py").values()
    assert counts(lines, "samples") == [(8,), (8,), (6,)] * 4
    assert phases(lines) == {"eval": 4, "checkpoint": 4, "pause": 1}
    assert planned(lines) == [(6, 3, "KerasCallback")] * 2
    assert ["loss" in line for line in lines if "phase" not in line] == [False, False, True] * 4


@pytest.mark.slow
def test_a_training_that_is_resumed_states_the_steps_that_are_left(tmp_path: Path) -> None:
    """Of 6 steps after 3, of 9 after 6; Keras begins with its second epoch of 3 steps."""
    places = [tmp_path / name for name in ("keras", "trainer", "lightning")]
    for place in places:
        place.mkdir()
    (lines,) = train(places[0], PYTHON, "train_keras.py", "1").values()
    assert planned(lines) == [(3, 3, "KerasCallback")] * 2
    assert [line["planned"]["earlier_steps"] for line in lines if "planned" in line] == [3, 3]
    train(places[1], PYTHON, "train_trainer.py")
    (places[1] / "steps").unlink()
    (lines,) = train(places[1], PYTHON, "train_trainer.py", "--resume", "checkpoints/checkpoint-3").values()
    assert planned(lines) == [(3, 3, "HuggingFaceCallback")]
    assert [line["planned"]["earlier_steps"] for line in lines if "planned" in line] == [3]
    train(places[2], PYTHON, "train_lightning.py")
    (places[2] / "steps").unlink()
    (checkpoint,) = places[2].glob("**/*.ckpt")
    (lines,) = train(places[2], PYTHON, "train_lightning.py", "1", "auto", "3", str(checkpoint)).values()
    assert planned(lines) == [(3, 3, "LightningCallback")]
    assert [line["planned"]["earlier_steps"] for line in lines if "planned" in line] == [6]


def test_accelerate_knows_steps_and_what_is_logged(tmp_path: Path) -> None:
    (lines,) = train(tmp_path, PYTHON, "train_accelerate.py").values()
    assert counts(lines, "samples", "tokens") == [(None, None)] * 6
    assert [line["own"]["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert all(line["loss"] > 0 for line in lines)


@pytest.mark.slow
def test_accelerate_in_two_processes(tmp_path: Path) -> None:
    ranks = train(tmp_path, TORCHRUN, "train_accelerate.py", "2")
    assert {rank: counts(lines, "samples") for rank, lines in ranks.items()} == {rank: [(8,)] * 4 for rank in (0, 1)}


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    ranks = train(tmp_path, TORCHRUN, "train_ddp.py")
    assert {rank: counts(lines, "samples") for rank, lines in ranks.items()} == {
        rank: [(4,), (4,), (3,)] * 2 for rank in (0, 1)
    }
    assert phases(ranks[0]) == {"eval": 2}


@pytest.mark.slow
def test_processes_that_a_script_spawns(tmp_path: Path) -> None:
    ranks = train(tmp_path, PYTHON, "train_spawn.py")
    assert {rank: counts(lines, "samples") for rank, lines in ranks.items()} == {rank: [(5,)] * 12 for rank in (0, 1)}


MANUAL = [command.words for command in commands(ROOT / "docs" / "own-scripts.md") if "train_" in command.words[-1]]
WORK = {
    "train_ddp.py": (5, 2 * (22 - 4), None),
    "train_spawn.py": (11, 2 * 11 * 5, None),
    "train_trainer.py": (3, 24 * 2 - 16, (24 * 2 - 16) * 8),
    "train_lightning.py": (5, 44 - 8, None),
    "train_accelerate.py": (5, None, None),
    "train_keras.py": (11, 88 - 8, None),
}
"""Steps, samples and tokens after the first step, counted by hand."""


def test_the_manual_has_every_script() -> None:
    assert (
        sorted(words[-1] for words in MANUAL)
        == sorted(WORK)
        == sorted(path.name for path in SCRIPTS.glob("train_*.py"))
    )


@pytest.mark.slow
@pytest.mark.parametrize("words", MANUAL, ids=lambda words: words[-1])
def test_commands_of_the_manual_are_measured(words: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copytree(SCRIPTS, tmp_path, dirs_exist_ok=True)
    options = ["--json", "--no-store", "--idle-seconds", "0", "--warmup-steps", "1"]
    variables = environment(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", PYTHONPATH=str(ROOT))
    done = processes.bench(tmp_path, "measure", *options, *words[2:], env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout)["measurement"]
    assert (measured["steps"], measured.get("samples"), measured.get("tokens")) == WORK[words[-1]]


# --- what is not certain is left out


class Tensor:
    """What a tensor has."""

    dtype = "float"

    def __init__(self, *shape: int) -> None:
        self.shape = shape


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        (Tensor(4, 8), 4),
        ([Tensor(4, 8), Tensor(4)], 4),
        ({"x": Tensor(4, 8), "more": {"y": Tensor(4)}, "name": "a", "skip": None}, 4),
        ([Tensor(4, 8), Tensor(5)], None),
        ([Tensor(4, 8), Tensor()], None),
        ([Tensor(4), object()], None),
        ([], None),
        ("text", None),
    ],
)
def test_rows_of_a_batch(batch: Any, rows: int | None) -> None:
    assert _rows(batch) == rows


def test_one_unknown_batch_makes_a_step_unknown() -> None:
    work = _Work()
    work.add(4, None)
    work.add(4, 8)
    assert work.take() == {"samples": 8, "tokens": None}
    work.add(None, 8)
    assert work.take() == {"samples": None, "tokens": 8}
    assert work.take() == {"samples": None, "tokens": None}


UNCERTAIN = """
import torch, wattbench
from types import SimpleNamespace as Some
from transformers import TrainerCallback
from accelerate.state import AcceleratorState
class Model(torch.nn.Module):
    main_input_name = "input_ids"
    def forward(self, input_ids, position_ids=None): return input_ids
model, args = Model(), Some(include_num_input_tokens_seen="no", save_strategy="no")
state, control = Some(num_input_tokens_seen=0, train_batch_size=4), Some(should_log=0, should_evaluate=0, should_save=0)
callback = wattbench.HuggingFaceCallback()
assert isinstance(callback, TrainerCallback)
def step(*batches, **more):
    callback.on_step_begin(args, state, control)
    for shape in batches:
        model(input_ids=torch.ones(shape, dtype=torch.long), **more)
    callback.on_step_end(args, state, control)
callback.on_train_begin(args, state, control, model=model)
step((4, 8))
step((8, 8))
step((4, 8), (4, 8))
step((1, 32), position_ids=torch.arange(32))
step((3, 8))
AcceleratorState._shared_state["parallelism_config"] = Some(non_data_parallel_size=2)
callback.on_train_begin(args, state, control, model=model)
step((4, 8))
callback.on_train_end(args, state, control)
"""


def test_rows_that_need_not_be_samples_are_none(tmp_path: Path) -> None:
    """More rows than a batch, two forward passes of a batch, a packed batch, processes that share a batch."""
    more = {VARIABLE: str(tmp_path / "steps"), "PYTHONPATH": str(SCRIPT)}
    done = run([sys.executable, "-c", UNCERTAIN], env=environment(**more))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(text) for text in (tmp_path / "steps").read_text().splitlines()]
    expected = [(4, 32), (None, 64), (None, None), (None, 32), (3, 24), (None, None)]
    assert counts(lines, "samples", "tokens") == expected


# --- the import


def say(code: str, **more: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-W", "error", "-c", code], env=environment(PYTHONPATH=str(SCRIPT), **more))


def test_it_imports_no_library_and_has_no_other_names() -> None:
    code = "import sys; before = set(sys.modules); import wattbench; wattbench.step(samples=1)\n"
    code += (
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))\n"
    )
    code += "print(hasattr(wattbench, 'Nothing'))"
    done = say(code)
    assert (done.stdout, done.stderr) == ("['wattbench']\nFalse\n", "")


def test_without_wattbench_a_callback_does_nothing() -> None:
    code = "import torch, wattbench\nmodel = torch.nn.Linear(1, 1)\n"
    code += "from types import SimpleNamespace as Some\ncallback = wattbench.HuggingFaceCallback()\n"
    code += "callback.on_train_begin(None, Some(num_input_tokens_seen=0), None, model=model)\n"
    code += "print(len(model._forward_pre_hooks))"
    done = run([sys.executable, "-c", code], env=environment(PYTHONPATH=str(SCRIPT)))
    assert done.stdout == "0\n", done.stderr


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3),
        ({"LOCAL_RANK": "1"}, 1),
        ({"SLURM_PROCID": "2", "LOCAL_RANK": "0"}, 2),
        ({"OMPI_COMM_WORLD_RANK": "4"}, 4),
        ({"PMI_RANK": "5", "LOCAL_RANK": "1"}, 5),
        ({"RANK": "none", "LOCAL_RANK": "1"}, 1),
    ],
)
def test_a_rank_is_read_when_a_step_ends(
    variables: dict[str, str], rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.script import wattbench

    for name in wattbench._RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "steps"))
    monkeypatch.setattr(wattbench, "_reporter", "")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    wattbench.step(samples=1, accuracy=0.5, missing=None)  # type: ignore[arg-type]
    line = json.loads((tmp_path / "steps").read_text())
    assert (line["rank"], line["own"]) == (rank, {"accuracy": 0.5})


def test_steps_are_not_counted_twice(tmp_path: Path) -> None:
    code = (
        "import wattbench\nwattbench.step(samples=1)\nsteps = wattbench._Steps('KerasCallback')\nsteps.end(samples=1)\n"
    )
    code += "steps.write()\nwattbench.step(samples=1)"
    more = {VARIABLE: str(tmp_path / "steps"), "PYTHONPATH": str(SCRIPT)}
    done = run([sys.executable, "-c", code], env=environment(**more))
    assert "step reports steps to wattbench already; those of KerasCallback do not count" in done.stderr
    assert len((tmp_path / "steps").read_text().splitlines()) == 2


# --- modules of the user


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder as people have them, whose modules cannot be imported."""
    for name in ("bench", "app", "analytics", "wattbench"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError('a module of the user')")
    return tmp_path


def test_the_command_never_imports_a_module_of_the_user(theirs: Path) -> None:
    code = "import sys; from wattbench_command import main; sys.argv[1:] = ['show', '--help']; main()"
    path = os.pathsep.join([".", str(SCRIPT)])
    done = run([sys.executable, "-P", "-c", code], cwd=theirs, env=environment(PYTHONPATH=path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: bench show")


@pytest.mark.parametrize("module", ["bench.run.node", "bench.meters.sampler"])
def test_no_process_of_wattbench_imports_a_module_of_the_user(module: str, theirs: Path) -> None:
    done = run(module_command(module, "--help"), cwd=theirs, env=environment(PYTHONPATH="."))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_every_process_of_wattbench_is_started_so() -> None:
    assert [path.name for path in FILES if '"-m", "bench' in source(path)] == []


def test_an_installation_has_the_folder_of_the_import_on_its_path() -> None:
    import tomllib

    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert SCRIPT in [ROOT / folder for folder in build["dev-mode-dirs"]]
    ((file, place),) = build["targets"]["wheel"]["force-include"].items()
    assert place.endswith(".pth")
    assert ROOT / (ROOT / file).read_text().strip() == SCRIPT  # as relative to site-packages as to this folder
