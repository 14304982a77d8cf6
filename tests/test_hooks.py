"""Hooks in torch: what they see of unchanged scripts, against counts by hand; and what their reader makes of it."""

import fcntl
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bench.record import Measurement
from bench.run.command import HOOKS, SEEN_VARIABLE, execute
from bench.run.marks import each_step, json_lines
from bench.run.own_steps import Ended, measurement
from bench.run.seen import seen_steps
from bench.workloads.printed import Printed
from tests import commands
from tests.processes import PATIENCE

QUICK = {
    # script: (samples a step, tokens a step, flags); 5 of 8 steps are in the window
    "gpt": (8, 128, []),
    "mnist": (32, None, []),
    "word_language_model": (None, 700, ["samples_unclear"]),
    "lightning": (16, None, []),
    "gan": (None, None, ["samples_unclear"]),
    "simclr": (None, None, ["samples_unclear"]),
    "recurrent": (None, None, ["samples_unclear"]),
    "graphs": (None, None, ["samples_unclear"]),
    "recommender": (64, None, []),
    "distillation": (16, None, []),
    "lbfgs": (None, None, ["samples_unclear"]),
    "checkpointed": (16, None, []),
    "muon": (16, None, []),
    "two_towers": (16, None, []),
    "queries": (8, None, []),
    "actor": (16, None, []),
    "sharpness": (None, None, ["samples_unclear"]),
    "scaled": (16, None, []),
    "saving": (16, None, []),
    "engine": (16, None, []),
    "penalty": (None, None, ["samples_unclear"]),
    "online": (None, None, ["samples_unclear"]),
    "mapped": (None, None, ["samples_unclear"]),
    "batch_object": (None, None, ["samples_unclear"]),
    "batch_nested": (None, None, ["samples_unclear"]),
    "forward_called": (None, None, ["samples_unclear"]),
    "frames": (None, None, ["samples_unclear"]),
    "sharpness_of_views": (None, None, ["samples_unclear"]),
    "own_lbfgs": (None, None, ["samples_unclear"]),
    "growing": (16, None, []),
    "head_outside": (16, None, []),
    "evaluated_first": (16, None, []),
    "left_in_evaluation": (16, None, []),
    "without_hash": (16, None, []),
    "precision": (16, None, []),
    "chooses": (16, None, []),
    "exported": (16, None, []),
    "curvature": (16, None, []),
    "forces": (16, None, []),
    "backbone": (16, None, []),
    "casted": (16, None, []),
    "casted_head": (16, None, []),
    "casted_inside": (16, None, []),
    "casted_partly": (16, None, []),
    "self_conditioned": (16, None, ["passes_unclear"]),
    "validated_in_training_mode": (16, None, []),
    "evaluation_after_work": (16, None, []),
    "slow_evaluation": (16, None, []),
    "evaluation_after_loading": (16, None, []),
    "contrastive": (16, None, []),
    "saved_in_thread": (16, None, []),
    "frozen_backbone": (16, None, []),
    "plain_blocks": (8, 128, []),
    "lazy_batch": (None, None, ["samples_unclear"]),
    "complex_numbers": (16, None, []),
    "own_list": (16, None, []),
    "saved_each_step": (16, None, []),
}
OTHER = (
    "turns",
    "helper_first",
    "skipped",
    "autocast_later",
    "stepped_in_backward",
    "context",
    "folds",
    "forward_only",
    "phases",
    "thawed",
    "failing",
    "graphed",
)
SIZES = {
    # script: parameters, and those that are trained
    "critic_first": (None, None),
    "frozen_in_training": (8 * 16 + 16 * 4 + 20, 8 * 16 + 16 * 4 + 20),
    "head_only": (8 * 16 + 16 * 4 + 20, 16 * 4 + 4),
    "two_groups": (8 * 16 + 16 * 4 + 20, 8 * 16 + 16 * 4 + 20),
    "frozen_backbone": (None, 8 * 4 + 4),
    "own_list": (8 * 16 + 16 * 4 + 20, 16 * 4 + 4),
    "left_in_evaluation": (None, 8 * 16 + 16 * 4 + 20),  # with a teacher
}
LATER = {
    "later_twice": (8 * 16 + 16 * 4 + 20, [16] * 20 + [None] * 20),
    "later_in_time": (72, [16] * 20 + [None] * 20),
    "later_accumulated": (8 * 16 + 16 * 4 + 20, [16] * 20 + [32] * 20),
    "grown": (None, [16] * 20),
    "exchanged": (None, [16] * 40),
    "backbone_later": (8 * 16 + 16 + 16 * 4 + 4, [16] * 20),
    "shallower": (72, [16] * 8),
    "deeper_fold": (72, [16] * 40),
    "traced_and_freed": (8 * 16 + 16 * 4 + 20, [16] * 8),
}
"""What changes in the course of a training: parameters, and samples of each step."""
COMPILED = {
    "compiled_gpt": (8, 128, ["flops_estimated"]),
    "compiled_in_place": (8, 128, ["flops_estimated"]),
    "compiled_with_hooks": (16, None, []),
    "compiled_function": (None, None, ["samples_unclear"]),
    "compiled_later": (16, None, []),
}


def ended() -> Ended:
    return Ended(exitcode=0, start_ns=0, end_ns=10**19, cpu_seconds=1.0, peak_memory_bytes=None)


def variables(folder: Path | None = None) -> dict[str, str]:
    paths = [str(Path(__file__).parent.parent)]
    more = {} if folder is None else {SEEN_VARIABLE: str(folder)}
    return os.environ | more | {"PYTHONPATH": os.pathsep.join([HOOKS] * bool(folder) + paths), "OMP_NUM_THREADS": "1"}


def hooked(names: list[str], folder: Path | None) -> dict[str, list[str]]:
    """Run scripts and return what they print, by name: process, loss, graphs."""
    argv = [sys.executable, "-m", "tests.hooked", *names]
    done = subprocess.run(argv, env=variables(folder), capture_output=True, text=True, timeout=PATIENCE, check=True)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == names, done.stderr
    return {name: rest for name, *rest in lines}


def measured(folder: Path, how: Printed | None = None, **more: Any) -> Measurement:
    """Return the measurement without the flags of samples that nobody confirms, and of how long evaluation took."""
    out = measurement(folder / "steps-command.jsonl", ended(), 3, "cpu", how, **more)
    return out.changed(
        step_flags=[flag for flag in out.step_flags if flag not in ("samples_from_input", "much_left_out")]
    )


def runs(names: list[str], folder: Path) -> dict[str, tuple[Measurement, bool]]:
    """Return the measurement of each script, and whether it computes and compiles the same without hooks."""
    plain, seen = hooked(names, None), hooked(names, folder)
    out = {}
    for name in names:
        own = folder / name
        own.mkdir()
        for path in folder.glob(f"seen-*-{seen[name][0]}.jsonl*"):
            shutil.move(path, own / path.name)
        out[name] = measured(own), plain[name][1:] == seen[name][1:]
    assert not list(folder.glob("seen-*"))  # a process that makes no step writes nothing
    return out


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Measurement, bool]]:
    """What all these scripts give: made by one of the processes of pytest, for all of them."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    path = folder / "quick.json"
    with (folder / "quick.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            names = list(dict.fromkeys([*QUICK, *OTHER, *SIZES, *LATER]))
            found = runs(names, tmp_path_factory.mktemp("quick"))
            path.write_text(json.dumps({name: (run.model_dump_json(), same) for name, (run, same) in found.items()}))
    kept = json.loads(path.read_text())
    return {name: (Measurement.model_validate_json(run), same) for name, (run, same) in kept.items()}


def check(run: tuple[Measurement, bool], expected: tuple[int | None, int | None, list[str]]) -> None:
    seen, same = run
    samples, tokens, flags = expected
    assert same
    assert (seen.steps, seen.step_source) == (5, "hooks")
    assert seen.samples == (None if samples is None else 5 * samples)
    assert seen.tokens == (None if tokens is None else 5 * tokens)
    assert seen.step_flags == flags


@pytest.mark.parametrize("name", QUICK)
def test_what_is_seen_is_what_a_hand_counts_or_is_left_out(quick: dict[str, Any], name: str) -> None:
    check(quick[name], QUICK[name])


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_those_of_all_optimizers(quick: dict[str, Any], name: str) -> None:
    seen, same = quick[name]
    assert same
    assert (seen.parameters, seen.trainable_parameters) == SIZES[name]


def test_an_evaluation_begins_with_the_loading_of_its_data(quick: dict[str, Any]) -> None:
    seconds = {name: seconds_of(quick[name][0], "eval") for name in QUICK}
    assert seconds["slow_evaluation"] >= 2 * 0.25
    assert seconds["evaluation_after_loading"] < 0.1  # without that of the next step
    assert seconds["evaluation_after_work"] < 0.1
    assert seconds["self_conditioned"] == 0
    assert seconds["validated_in_training_mode"] > 0


def seconds_of(measured: Measurement, phase: str) -> float:
    return sum(each.seconds for each in measured.phases if each.name == phase)


def test_what_is_saved_in_each_step_is_a_part_of_it(quick: dict[str, Any]) -> None:
    assert seconds_of(quick["saved_each_step"][0], "checkpoint") == 0


def test_a_step_that_a_scaler_skips_costs_no_samples(quick: dict[str, Any]) -> None:
    assert (quick["skipped"][0].steps, quick["skipped"][0].samples) == (57 - 2, 57 * 16)


def test_a_thread_that_trains_saves_checkpoints(quick: dict[str, Any]) -> None:
    assert seconds_of(quick["saved_in_thread"][0], "checkpoint") > 0


def test_flop_that_are_not_all_counted_are_left_out(quick: dict[str, Any]) -> None:
    for name in ("contrastive", "stepped_in_backward", "self_conditioned", "frozen_backbone", "complex_numbers"):
        assert quick[name][0].flops_per_sample is None


def test_optimizers_that_take_turns_are_flagged(quick: dict[str, Any]) -> None:
    assert "separate_trainings" in quick["turns"][0].step_flags
    assert "separate_trainings" in quick["helper_first"][0].step_flags


def test_another_precision_after_the_first_steps_is_seen(quick: dict[str, Any]) -> None:
    assert (quick["autocast_later"][0].seen.precision, quick["autocast_later"][0].step_flags) == (None, [])


def test_passes_of_other_threads_are_no_evaluation(quick: dict[str, Any]) -> None:
    check(quick["actor"], (16, None, []))
    assert [phase.name for phase in quick["actor"][0].phases if phase.name == "eval"] == []


@pytest.mark.parametrize("name", LATER)
def test_what_changes_later_is_seen_or_left_out(quick: dict[str, Any], name: str) -> None:
    parameters, samples = LATER[name]
    seen, same = quick[name]
    assert same
    assert (seen.parameters, seen.samples) == (parameters, None if None in samples else sum(samples[3:]))
    assert (seen.flops_per_sample is None) == (not name.startswith(("later", "traced")))
    assert ("phases_of_training" in seen.step_flags) == (parameters is None)
    assert seen.seen.precision == (None if name == "backbone_later" else "fp32")


def test_a_program_that_follows_in_the_same_process_is_told_apart(hooks: Any, tmp_path: Path) -> None:
    for _ in range(2):
        watch = hooks.StepWatch(str(tmp_path))
        watch.mark(torch.optim.SGD(nn.Linear(2, 2).parameters()))
        watch.finish()
    seen = seen_steps(tmp_path)
    assert seen is not None
    assert seen.flags == ["separate_trainings"]


def test_a_process_without_steps_writes_nothing_and_a_new_optimizer_goes_on(quick: dict[str, Any]) -> None:
    assert (quick["forward_only"][0].steps, quick["forward_only"][0].seen) == (0, None)
    assert (quick["folds"][0].steps, quick["folds"][0].samples) == (21, 21 * 16)


def test_parameters_flops_and_facts_are_seen(quick: dict[str, Any]) -> None:
    weights = 8 * 16 + 16 * 4
    plain = quick["two_towers"][0]
    assert (plain.parameters, plain.flops_per_sample) == (8 * 4 + 4 + 6 * 4 + 4, None)  # of several models: not counted
    mlp = quick["muon"][0]
    assert (mlp.parameters, mlp.trainable_parameters) == (weights + 20, weights + 20)
    assert mlp.flops_per_sample == 6 * weights - 2 * 8 * 16  # no gradient of the input
    recomputed = 6 * (weights + 2 * 16) - 2 * 8 * 16
    assert quick["checkpointed"][0].flops_per_sample == recomputed  # what is computed again is no work of the model
    attention = 6 * 2 * 16 * 16 * 32 / 16 + 2 * 16 * 16 * 32 / 16  # per token: forward 2 products, backward 5
    assert quick["gpt"][0].flops_per_sample == 16 * (6 * (3 * 32 * 32 + 32 * 32 + 32 * 64) + attention)
    assert quick["word_language_model"][0].flops_per_sample is None
    facts = quick["scaled"][0].seen
    assert facts is not None
    assert (facts.precision, facts.gradient_scaler, facts.optimizer, facts.devices) == ("bf16", True, "SGD", ["cpu"])
    assert (facts.processes, facts.world_size, facts.compiled, facts.batch_size) == (1, 1, False, 16)
    assert (facts.threads, facts.torch, facts.parallelism) == (1, torch.__version__, None)
    assert quick["gpt"][0].seen.precision == "fp32"


def test_parameters_that_change_are_left_out(quick: dict[str, Any]) -> None:
    for name, steps in (("phases", 2 * 8 - 3), ("thawed", 70 - 3)):
        seen = quick[name][0]
        assert (seen.steps, seen.samples, seen.step_flags) == (steps, steps * 16, ["phases_of_training"])
        assert (seen.parameters, seen.trainable_parameters, seen.flops_per_sample) == (None, None, None)
    names = [phase.name for phase in quick["phases"][0].phases]
    assert names == ["start", "warmup", "steady", "between", "steady"]
    assert sum(phase.seconds for phase in quick["phases"][0].phases if phase.name == "between") > 0.05
    assert quick["folds"][0].parameters == quick["folds"][0].trainable_parameters == 8 * 16 + 16 * 4 + 20
    assert "phases_of_training" not in quick["folds"][0].step_flags


def test_what_hooks_cannot_see_is_flagged(quick: dict[str, Any]) -> None:
    failed, captured = quick["failing"][0], quick["graphed"][0]
    assert (failed.steps, failed.step_flags) == (3, ["hooks_failed"])
    assert (captured.steps, captured.samples, captured.step_source) == (0, None, None)
    assert "steps_captured" in captured.step_flags
    assert all(same for _, same in quick.values())


@pytest.mark.parametrize(
    ("products", "convolutions", "modules", "expected"),
    [
        ("tf32", "ieee", [nn.Linear(1, 1)], True),
        ("ieee", "tf32", [nn.Linear(1, 1)], False),
        ("ieee", "tf32", [nn.Linear(1, 1), nn.Conv2d(1, 1, 1)], None),
        ("tf32", "tf32", [nn.Conv2d(1, 1, 1)], True),
    ],
)
def test_precision_is_that_of_all_layers(
    hooks: Any,
    monkeypatch: pytest.MonkeyPatch,
    products: str,
    convolutions: str,
    modules: list[nn.Module],
    expected: bool | None,
) -> None:
    matmul, conv = SimpleNamespace(fp32_precision=products), SimpleNamespace(fp32_precision=convolutions)
    backends = SimpleNamespace(cuda=SimpleNamespace(matmul=matmul), cudnn=SimpleNamespace(conv=conv))
    facts = sys.modules[f"{hooks.__name__}.facts"]
    monkeypatch.setattr(facts, "torch", SimpleNamespace(backends=backends))
    assert facts._tf32(modules) is expected


UNCERTAIN = ("growing", "head_outside", "chooses", "curvature", "forces", "context", "backbone", "distillation")


@pytest.mark.parametrize("name", UNCERTAIN)
def test_flops_that_are_not_those_of_each_step_are_left_out(quick: dict[str, Any], name: str) -> None:
    assert quick[name][0].flops_per_sample is None


def test_a_part_of_a_model_states_no_parameters(quick: dict[str, Any]) -> None:
    assert quick["forward_called"][0].parameters is None


def test_precision_is_that_of_passes_in_training(quick: dict[str, Any]) -> None:
    assert quick["evaluated_first"][0].seen.precision == "fp32"


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("casted", "bf16"),
        ("casted_head", "fp32"),
        ("casted_inside", "bf16"),
        ("casted_partly", None),
        ("exported", None),
    ],
)
def test_precision_is_that_of_products(quick: dict[str, Any], name: str, precision: str | None) -> None:
    assert quick[name][0].seen.precision == precision


def test_a_formula_that_fails_counts_nothing_and_errors_of_the_script_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> int:
        raise ValueError

    a, b = torch.ones(2, 3), torch.ones(3, 4)
    counter = load("flops").flop_counter()
    with counter:
        a @ b
        with pytest.raises(RuntimeError):
            b @ a
    assert (counter.forward, counter.products, counter.uncounted) == (48, {"float32": 48}, False)
    monkeypatch.setitem(torch.utils.flop_counter.flop_registry, torch.ops.aten.mm, fails)
    counter = load("flops").flop_counter()
    with counter:
        assert (a @ b).shape == (2, 4)
    assert counter.uncounted


@pytest.mark.parametrize(("name", "phase"), [("gpt", "eval"), ("distillation", "eval"), ("saving", "checkpoint")])
def test_evaluation_and_checkpoints_are_phases(quick: dict[str, Any], name: str, phase: str) -> None:
    seen = quick[name][0]
    assert [p.name for p in seen.phases] == ["start", "warmup", "steady", phase, "steady"]
    steady = sum(p.seconds for p in seen.phases if p.name == "steady")
    assert seen.window_seconds == pytest.approx(steady) == pytest.approx(sum(seen.step_seconds))


@pytest.mark.slow
def test_compiled_scripts_keep_their_graphs_and_losses(tmp_path: Path) -> None:
    found = runs([*COMPILED], tmp_path)
    for name, expected in COMPILED.items():
        check(found[name], expected)
        assert found[name][0].seen is not None
        assert found[name][0].seen.compiled is True
    assert found["compiled_later"][0].flops_per_sample is found["compiled_later"][0].seen.precision is None


# --- the input of a pass


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"hooks_{name}", Path(HOOKS) / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 1, batch_first=batch_first)


class Packed(Attention):
    def __init__(self) -> None:
        super().__init__(True)

    def forward(self, tokens: torch.Tensor, position_ids: torch.Tensor) -> None: ...


IDS, ROWS, PIXELS = torch.zeros(4, 16, dtype=torch.long), torch.zeros(4, 8), torch.zeros(4, 3, 2, 2)


@pytest.mark.parametrize(
    ("model", "args", "kwargs", "expected"),
    [
        (nn.Linear(8, 2), (ROWS,), {}, (4, None)),
        (nn.Linear(8, 2), (PIXELS, torch.zeros(4), torch.tensor(3.0), None, 7, "x"), {}, (4, None)),
        (nn.Linear(8, 2), (ROWS, torch.zeros(5)), {}, (None, None)),
        (nn.Linear(8, 2), ([torch.zeros(3, 5, 5), torch.zeros(3, 6, 6)],), {}, (None, None)),
        (nn.Linear(8, 2), (torch.zeros(9, dtype=torch.long),), {}, (None, None)),
        (nn.Linear(8, 2), (torch.zeros(9, dtype=torch.long), torch.zeros(9, dtype=torch.long)), {}, (9, None)),
        (nn.Linear(8, 2), (), {}, (None, None)),
        (nn.Linear(8, 2), (IDS,), {}, (4, None)),  # columns, for all that is known
        (nn.EmbeddingBag(9, 2), (torch.zeros(8, dtype=torch.long), torch.zeros(8, dtype=torch.long)), {}, (None, None)),
        (Attention(True), (IDS,), {}, (4, 64)),
        (Attention(False), (IDS,), {}, (None, 64)),
        (Attention(False), (PIXELS,), {}, (4, None)),
        (Attention(True), (IDS, ROWS), {}, (4, None)),  # a table with numbers
        (Attention(True), (), {"attention_mask": IDS.float(), "input_ids": IDS, "labels": IDS}, (4, 64)),
        (Attention(True), ({"input_ids": IDS, "pixel_values": PIXELS},), {}, (4, 64)),
        (Attention(True), (), {"input_ids": IDS, "position_ids": IDS[:1]}, (None, 64)),
        (nn.Linear(8, 2), (), {"x": ROWS, "edge_index": IDS}, (None, None)),
        (nn.Linear(8, 2), (torch.zeros(8),), {}, (None, None)),  # one sample
        (nn.Linear(8, 2), (torch.zeros(9), torch.zeros(9)), {}, (None, None)),
        (nn.Linear(8, 2), (ROWS, torch.zeros(4, 4)), {}, (None, None)),  # nodes, and which are neighbours
        (nn.Linear(4, 2), (torch.zeros(4, 4),), {}, (4, None)),
        (nn.Conv2d(3, 2, 1), (PIXELS,), {}, (4, None)),
        (nn.Conv2d(3, 2, 1), (PIXELS[0],), {}, (None, None)),  # one image
        (nn.Conv2d(1, 2, 1), (torch.zeros(4, 5, 5),), {}, (4, None)),  # images without channels
        (nn.Conv1d(8, 2, 1), (torch.zeros(8, 50),), {}, (None, None)),  # one sequence
        (nn.Conv1d(8, 2, 1), (torch.zeros(50, 8),), {}, (None, None)),
        (nn.LSTM(8, 2, batch_first=True), (torch.zeros(50, 8),), {}, (None, None)),
        (nn.LSTM(8, 2, batch_first=True), (torch.zeros(5, 50, 8),), {}, (5, None)),
        (Attention(True), (ROWS,), {}, (None, None)),
        (Attention(True), (), {"input_values": ROWS}, (4, None)),
        (Attention(True), (IDS[:1],), {}, (1, 16)),
        (Attention(True), (), {"input_ids": IDS[:1], "position_ids": IDS[:1]}, (None, 16)),  # samples packed in a row
        (Packed(), (IDS[:1], IDS[:1]), {}, (None, 16)),
        (Attention(True), (), {"input_ids": IDS, "position_ids": IDS}, (4, 64)),
        (Attention(True), ({"input_ids": IDS[:1], "seq_idx": IDS[:1]},), {}, (None, 16)),
        (Attention(True), (), {"input_ids": IDS[:1], "cu_seq_lens_q": IDS[:1, 0]}, (None, 16)),
    ],
)
def test_the_input_of_a_pass(model: nn.Module, args: Any, kwargs: Any, expected: tuple[Any, Any]) -> None:
    inputs = load("inputs")
    assert inputs.amounts(inputs.InputRules(model, 0), args, kwargs)[:2] == expected


def test_more_models_than_can_be_told_apart_are_not_sure() -> None:
    inputs = load("inputs")
    assert inputs.amounts(inputs.InputRules(nn.Linear(8, 2), -1), (ROWS,), {})[0] is None


# --- the reader

FACTS = {
    "rank": 0,
    "world_size": 1,
    "joined": False,
    "apart": True,
    "local_world_size": None,
    "devices": ["cpu"],
    "device_type": "cpu",
    "autocast": None,
    "dtype": "float32",
    "tf32": False,
    "gradient_scaler": False,
    "parallelism": None,
    "optimizer": "SGD",
    "closures": False,
    "outside": False,
    "compiled": False,
    "threads": 1,
    "parameters": 10,
    "trainable_parameters": 10,
    "own_parameters": 10,
    "weights": 8,
    "torch": "2.13.0",
    "python": "3.11.7",
}
TF32: dict[str, Any] = {"tf32": True, "device_type": "cuda"}
JOINED = {"world_size": 2, "joined": True, "parallelism": "ddp"}
S = 10**9


def process(folder: Path, number: int, *lines: dict[str, Any], steps: int = 8, tail: str = "", **facts: Any) -> None:
    """Write the file of a process with steps of 1 s and 4 samples of 2 tokens, unless `lines` are given."""
    rows = lines or [step(i + 1) for i in range(steps)]
    text = [json.dumps(line) for line in ({"facts": FACTS | facts}, *rows)]
    (folder / f"seen-host-{number}.jsonl").write_text("\n".join(text) + "\n" + tail)


def step(
    t: float, optimizer: int = 0, backwards: int = 1, passes: Any = ((0, 1, 4, 8),), **more: Any
) -> dict[str, Any]:
    return {"t_ns": [int(t * S)], "optimizer": optimizer, "backwards": backwards, "passes": passes, **more}


def test_a_torn_line_costs_nothing_else(tmp_path: Path) -> None:
    process(tmp_path, 1, tail='{"t_ns":[90000')
    assert (measured(tmp_path).steps, measured(tmp_path).samples) == (5, 20)


@pytest.mark.parametrize(
    ("facts", "flags", "samples"),
    [
        (JOINED | {"local_world_size": 2}, [], 40),
        (JOINED | {"apart": False}, ["samples_unclear"], None),
        (JOINED | {"world_size": 4, "local_world_size": 2}, ["this_node_only", "flops_estimated"], 40),
        (JOINED | {"world_size": 4}, ["partial_world"], None),
        ({}, ["separate_trainings", "flops_estimated"], 20),
    ],
)
def test_ranks_add_up_only_in_one_world(tmp_path: Path, facts: Any, flags: list[str], samples: int | None) -> None:
    process(tmp_path, 1, rank=0, **facts)
    process(tmp_path, 2, rank=1, **facts)
    found = measured(tmp_path)
    assert (found.steps, found.samples) == (5, samples)
    assert found.step_flags == (flags or ["flops_estimated"])
    assert len(found.ranks) == (2 if facts else 1)


def test_devices_are_gpus_once_and_cpus_once_a_rank(tmp_path: Path) -> None:
    for rank in range(2):
        process(tmp_path, rank, rank=rank, devices=["GPU-a"], **JOINED)
    seen = seen_steps(tmp_path)
    assert seen is not None
    assert seen.facts.devices == ["GPU-a"]
    process(tmp_path, 1, rank=1, devices=["cuda:1"], **JOINED)
    seen = seen_steps(tmp_path)
    assert seen is not None
    assert seen.facts.devices == []  # one is not known


@pytest.mark.parametrize(
    ("facts", "precision"),
    [
        ({"autocast": "bfloat16"}, "bf16"),
        ({"dtype": "bfloat16", "compiled": True}, "bf16_params"),
        ({"compiled": True}, None),  # its autocast may be compiled in
        ({"tf32": True}, "fp32"),
        ({"tf32": True, "device_type": "cuda"}, "tf32"),
        ({"tf32": None, "device_type": "cuda"}, None),
        ({"tf32": None}, "fp32"),
        ({"dtype": "uint8"}, None),
        ({"autocast": "partly"}, None),
        ({"products": {"bfloat16": 9, "float32": 1}, "counted": True}, "bf16"),
        ({"products": {"bfloat16": 9, "float32": 1}, "counted": False}, None),  # of others, nothing is known
        ({"products": {"bfloat16": 7, "float32": 3}, "counted": True}, None),
        ({"products": {"bfloat16": 9}, "counted": True, "dtype": "bfloat16"}, "bf16_params"),
        ({"products": {"bfloat16": 9}, "counted": False, "autocast": "bfloat16"}, "bf16"),
        ({"products": {"float32": 9}, "counted": True, "autocast": "bfloat16"}, "fp32"),
        ({"products": {"float32": 9}, "counted": True, "autocast": "bfloat16", **TF32}, "tf32"),
        ({"products": {"Float8Tensor": 9}, "counted": True}, None),
    ],
)
def test_precision_is_what_was_seen(tmp_path: Path, facts: dict[str, Any], precision: str | None) -> None:
    process(tmp_path, 1, **facts)
    seen = seen_steps(tmp_path)
    assert seen is not None
    assert seen.facts.precision == precision


def test_steps_end_when_the_device_has_ended_them(tmp_path: Path) -> None:
    lines = [step(i + 1) for i in range(8)]
    lines[7]["device_ns"] = [[i, int((i + 2.5) * S)] for i in range(7)]
    lines[5]["eval"] = [
        [0, int(5.1 * S), int(7.4 * S), 0, 1, 9, None]
    ]  # the host is ahead: the device ends the fifth step at 6.5 s
    process(tmp_path, 1, *lines)
    found = measured(tmp_path)
    assert found.steps == 4  # the device has not ended the last one
    assert [(p.start_ns / S, p.end_ns / S) for p in found.phases if p.name == "eval"] == [(6.5, 7.4)]
    assert found.step_seconds == pytest.approx([1, 1, 0.1, 1])


def test_the_window_begins_after_the_step_whose_flop_are_counted(tmp_path: Path) -> None:
    process(tmp_path, 1, *[step(i + 1, **({"flops": 400} if i == 1 else {})) for i in range(8)])
    found = measurement(tmp_path / "none", ended(), 0, "cpu")
    assert (found.steps, found.flops_per_sample, found.step_flags) == (6, 100, ["samples_from_input"])


def test_samples_of_the_input_say_so_until_they_are_confirmed(tmp_path: Path) -> None:
    process(tmp_path, 1)
    inferred = measurement(tmp_path / "steps-command.jsonl", ended(), 3, "cpu")
    assert inferred.samples
    each = inferred.samples // inferred.steps
    assert "samples_from_input" in inferred.step_flags
    stated = measurement(tmp_path / "steps-command.jsonl", ended(), 3, "cpu", Printed(samples_per_step=each))
    assert stated.samples == inferred.samples
    assert "samples_from_input" not in stated.step_flags


def printed_lines(folder: Path, count: int, each: int = 1) -> None:
    lines = (
        {"t_ns": int((i * each + 1.1) * S), "rank": -1, "read": i, "text": i, "integers": [], "step": i * each}
        | {"step_error": 0, "loss": 4.0 - i, "loss_error": 0, "kind": "", "total": None, "words": ""}
        for i in range(count)
    )
    (folder / "steps-command.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_pattern_gives_the_losses_of_steps_that_hooks_see(tmp_path: Path) -> None:
    process(tmp_path, 1, steps=101)
    printed_lines(tmp_path, 10, each=10)
    found = measured(tmp_path, Printed("(?P<step>.)(?P<loss>.)"))
    assert (found.steps, found.step_source, found.loss_first, found.loss_last) == (98, "hooks", 3, -5)
    assert "sources_differ" not in found.step_flags


def test_a_pattern_that_counts_other_steps_is_flagged(tmp_path: Path) -> None:
    process(tmp_path, 1, *[step(0.1 * i + 1) for i in range(1000)])
    printed_lines(tmp_path, 90)
    found = measured(tmp_path, Printed("(?P<step>.)(?P<loss>.)"))
    assert "sources_differ" in found.step_flags


def test_the_user_may_state_what_a_step_consumes(tmp_path: Path) -> None:
    process(tmp_path, 1, *[step(i + 1, passes=[[0, 2, None, None]]) for i in range(8)])
    assert measured(tmp_path).step_flags == ["samples_unclear"]
    found = measured(tmp_path, Printed(samples_per_step=6))
    assert (found.samples, found.step_flags) == (30, [])
    process(tmp_path, 1)
    assert measured(tmp_path, Printed(samples_per_step=6)).step_flags == ["sources_differ", "flops_estimated"]


def test_steps_that_the_script_reports_go_first(tmp_path: Path) -> None:
    process(tmp_path, 1)
    lines = ({"t_ns": i * S, "rank": 0, "samples": 3} for i in range(20))
    (tmp_path / "steps-command.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = measured(tmp_path)
    assert (found.step_source, found.samples, found.parameters) == ("script", 17 * 3 - 0, 10)


# --- the watch in a process


@pytest.fixture(scope="module")
def hooks() -> Iterator[Any]:
    """The hooks as the module that a watched process has."""
    path = Path(HOOKS) / "watch.py"
    spec = importlib.util.spec_from_file_location("watched_hooks", path, submodule_search_locations=[HOOKS])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


LOOP = """
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters())
for step in range(3000):
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
"""


def test_a_script_that_closes_all_files_loses_no_line_and_no_file_of_its_own(tmp_path: Path) -> None:
    script = f"""
import os, sys, torch
{LOOP}    if step == 100:
        os.closerange(3, 200)
        own = [open(sys.argv[1], "a") for _ in range(20)]
        if not os.fork():
            os._exit(sum(os.fstat(each.fileno()).st_size for each in own))
        forked = os.wait()[1]
print(forked, os.stat(sys.argv[1]).st_size, all(os.fstat(each.fileno()).st_size == 0 for each in own))
"""
    env = os.environ | {"PYTHONPATH": HOOKS, "WATTBENCH_SEEN": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    own = str(tmp_path / "own")
    ended = subprocess.run([sys.executable, "-c", script, own], env=env, capture_output=True, text=True, check=True)
    assert ended.stdout == "0 0 True\n"
    (written,) = [seen.read_text() for seen in tmp_path.glob("seen-*")]
    assert sum(len(line.get("t_ns", ())) for line in json_lines(written.splitlines())) == 3000
    assert written.endswith("}\n")


def test_lines_outlive_their_file_and_its_folder(hooks: Any, tmp_path: Path) -> None:
    path = tmp_path / "gone" / "seen"
    lines = sys.modules["watched_hooks.lines"].LineFile(str(path))
    lines.write("a")  # no folder yet
    path.parent.mkdir()
    lines.write("b")
    assert path.read_text() == "a\nb\n"
    shutil.rmtree(path.parent)
    lines.write("c")
    lines.close()
    assert path.read_text() == "c\n"
    other = sys.modules["watched_hooks.lines"].LineFile(str(path))  # a program that took the place of this one
    other.write("d")
    other.close()
    assert path.read_text() == "c\nd\n"


def test_steps_are_written_within_a_part_of_the_time_that_has_passed(
    hooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, path, now = sys.modules["watched_hooks.lines"], tmp_path / "seen", 0
    monkeypatch.setattr(module, "monotonic_ns", lambda: now)
    lines = module.LineFile(str(path))
    for now in range(0, 60 * S, S // 100):
        lines.step(now, "")
        waits = now - max(time for line in json_lines(path.read_text().splitlines()) for time in line["t_ns"])
        assert waits <= max(0, min(now / module.SHARE, module.LATE_NS) - 1)
    lines.close()
    assert [time for line in json_lines(path.read_text().splitlines()) for time in line["t_ns"]] == [
        *range(0, 60 * S, S // 100)
    ]
    assert path.read_text().count("\n") < 600  # equal steps are one line


def test_hooks_that_cannot_write_leave_a_mark(tmp_path: Path) -> None:
    script = f"""
import resource, torch
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
{LOOP}"""
    env = os.environ | {"PYTHONPATH": HOOKS, "WATTBENCH_SEEN": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True)
    seen = seen_steps(tmp_path)
    assert seen is not None
    assert seen.flags[:1] == ["hooks_failed"]
    assert 16 < len(seen.marks[0]) < 3000


def test_a_script_that_makes_errors_of_warnings_is_watched(tmp_path: Path) -> None:
    script = """
import warnings, torch
warnings.simplefilter("error")
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters())
for step in range(50):
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.ones(4, 2)).sum()
    loss.backward()
    optimizer.step()
"""
    env = os.environ | {"PYTHONPATH": HOOKS, "WATTBENCH_SEEN": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True)
    seen = seen_steps(tmp_path)
    assert seen is not None
    assert (seen.flags, seen.facts.precision, [mark["samples"] for mark in seen.marks[0]]) == ([], "bf16", [4] * 50)


def history(hooks: Any, folder: Path, seed: int, oddity: float, again: int = 120) -> list[dict[str, Any]]:
    """Return the steps that a watch writes of a random training: the same one for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    models = [nn.Linear(2, 2), nn.Linear(2, 2), nn.Dropout()]
    optimizers = [torch.optim.SGD(each.parameters()) for each in models[:2]]
    watch = hooks.StepWatch(str(folder))
    call, usual = torch.nn.Module.__call__, chance.choice([1, 2])

    def fail(*_: Any) -> None:
        raise RuntimeError

    def odd() -> bool:
        return chance.random() < oddity

    for number in range(120):
        inputs = torch.ones(4, 2)
        for _ in range(chance.choice([1, 2, 3]) if odd() else usual):
            rows = chance.choice([3, 5]) if odd() else 4
            inputs = inputs if number >= again or odd() else torch.ones(rows, 2)
            if odd():
                with pytest.raises(RuntimeError):
                    watch.call(fail, models[0], (torch.ones(4, 2),), {})
            watch.call(call, models[odd()], (inputs,), {})
            watch.call(call, models[2], (torch.ones(1),), {})
            if odd():
                with torch.no_grad():
                    watch.call(call, models[0].train(not odd()), (torch.ones(2, 2),), {})
                models[0].train()
            if not odd():
                watch.went_back()
            if odd():
                watch.went_back()
        watch.mark(optimizers[odd()])
    watch.finish()
    (path,) = folder.iterdir()
    return [line for line in each_step(json_lines(path.read_text().splitlines())) if "t_ns" in line]


@pytest.mark.parametrize("seed", range(45))
def test_steps_that_are_only_counted_are_those_that_are_looked_at_in_full(
    hooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    lines = {}
    for every in (1, 2, 32):
        monkeypatch.setattr(hooks, "FULL", every)
        (tmp_path / str(every)).mkdir()
        lines[every] = history(hooks, tmp_path / str(every), seed, (0.005, 0.02, 0.2)[seed % 3])
        for line in lines[every]:
            line["eval"] = [[each[0], *each[3:]] for each in line.get("eval", ())]
            line["t_ns"] = 0
            line.pop("begun_ns", None)  # of steps that are looked at in full
    assert lines[1] == lines[2] == lines[32]
    assert all(line["passes"] for line in lines[32][:8])


def test_an_input_that_is_passed_again_is_noticed_at_once(hooks: Any, tmp_path: Path) -> None:
    lines = history(hooks, tmp_path, 0, 0.0, again=60)
    assert [line["passes"][0][2] for line in lines] == [8] * 60 + [None] * 60


def test_steps_of_a_device_are_seen_to_the_end(hooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {"Event": FakeEvent, "synchronize": lambda device: None, "current_stream": lambda device: None}
    for name, value in fakes.items():
        monkeypatch.setattr(torch.cuda, name, value)
    facts = hooks.facts
    monkeypatch.setattr(hooks, "facts", lambda *values: facts(*values) | {"device_type": "cuda"})
    monkeypatch.setattr(FakeEvent, "reached", 10**9)
    history(hooks, tmp_path, 0, 0.0)
    (path,) = tmp_path.iterdir()  # none that says that they failed
    ends = [number for line in json_lines(path.read_text().splitlines()) for number, _ in line.get("device_ns", ())]
    assert ends == list(range(120))


@pytest.mark.usefixtures("no_meters")
def test_a_script_that_clears_the_folder_of_its_run_keeps_its_steps(tmp_path: Path) -> None:
    script = f"""
import shutil, time, torch
{LOOP}    if step == 100:
        time.sleep(1.5)
        shutil.rmtree("runs")
"""
    (tmp_path / "train.py").write_text(script)
    options = ("--no-store", "--idle-seconds", "0", "--runs", "runs", "--json")
    found = commands.execute(tmp_path, "measure", *options, "--", sys.executable, "train.py")
    record = json.loads(found.stdout)["measurement"]
    assert (record["steps"], record["samples"]) == (2997, 4 * 2997)


@pytest.mark.parametrize(
    ("every", "model", "passes", "evaluating", "left_out"),
    [
        (2, 0, 0, 1, 1.0),  # an evaluation after every second step
        (1, 0, 0, 1, 2.5),
        (1, 0, 0, 0, 0.0),  # a part of each step, such as what it samples itself
        (1, 0, 1, 1, 0.0),
        (3, 0, 1, 1, 1.0),
        (1, 1, 0, 1, 0.0),  # a teacher
    ],
)
def test_evaluation_is_no_part_of_a_step_but_a_teacher_is(
    tmp_path: Path, every: int, model: int, passes: int, evaluating: int, left_out: float
) -> None:
    lines = [step(i + 1) for i in range(8)]
    for i in range(0, 8, every):
        lines[i]["eval"] = [[model, int((i + 0.2) * S), int((i + 0.7) * S), passes, evaluating, 9, None]]
    process(tmp_path, 1, *lines)
    found = measured(tmp_path)
    assert sum(p.seconds for p in found.phases if p.name == "eval") == pytest.approx(left_out)


@pytest.mark.parametrize("counted", [{}, {"flops": 400}])
def test_flops_are_unknown_where_other_models_pass_in_each_step(tmp_path: Path, counted: dict[str, int]) -> None:
    lines = [step(i + 1) for i in range(8)]
    lines[1] |= counted
    process(tmp_path, 1, *lines)
    assert measured(tmp_path).flops_per_sample == (100 if counted else 6 * 10 * 2)
    for i in range(2, 8):  # not yet in the step whose FLOP are counted
        lines[i]["eval"] = [[1, int((i + 0.2) * S), int((i + 0.7) * S), 0, 1, 9, None]]
    process(tmp_path, 1, *lines)
    assert measured(tmp_path).flops_per_sample is None


@pytest.mark.parametrize(
    ("begun", "start", "end"),
    [
        (5.9, 5.0, 5.8),  # its results are looked at: only the usual 0.1 s behind it are of the next step
        (5.3, 5.0, 5.2),
        (5.25, 5.05, 5.2),  # the data of the next step were there before
    ],
)
def test_an_evaluation_takes_all_but_the_usual_time_between_steps(
    tmp_path: Path, begun: float, start: float, end: float
) -> None:
    lines = [step(i + 1, begun_ns=int((i + 0.1) * S)) for i in range(8)]
    lines[5] |= {"begun_ns": int(begun * S), "eval": [[0, int(5.1 * S), int(5.2 * S), 0, 1, 9, None]]}
    process(tmp_path, 1, *lines)
    (found,) = (phase for phase in measured(tmp_path).phases if phase.name == "eval")
    assert (found.start_ns / S, found.end_ns / S) == (pytest.approx(start), pytest.approx(end))


@pytest.mark.parametrize(
    ("every", "evals", "flagged", "left_out"),
    [
        (1, [[0, 0.2, 0.4, 0, 0, 1, 99]], True, 0.0),  # a validation in each step, or what it learns from
        (1, [[0, 0.2, 0.4, 0, 1, 1, None]], False, 1.0),  # in evaluation mode
        (1, [[0, 0.2, 0.4, 1, 0, 1, 99]], False, 0.0),  # within the step
        (3, [[0, 0.2, 0.4, 0, 0, 1, 4]], True, 0.0),
        (3, [[0, 0.2, 0.3, 0, 0, 1, 4], [0, 0.4, 0.5, 2, 0, 1, 4]], True, 0.0),  # with gradient accumulation
        (3, [[1, 0.2, 0.4, 0, 0, 1, 4]], True, 0.0),  # a part of the model
        (3, [[0, 0.2, 0.4, 0, 0, 1, 5]], False, 0.4),  # other samples
        (3, [[0, 0.2, 0.4, 0, 0, 2, 4]], False, 0.4),
    ],
)
def test_passes_in_training_mode_are_part_of_steps_or_none(
    tmp_path: Path, every: int, evals: list[list[Any]], *, flagged: bool, left_out: float
) -> None:
    lines = [step(i + 1, passes=[[0, 2, 8, 16]]) for i in range(8)]
    for i in range(0, 8, every):
        lines[i]["eval"] = [[e[0], int((i + e[1]) * S), int((i + e[2]) * S), *e[3:]] for e in evals]
    process(tmp_path, 1, *lines)
    found = measured(tmp_path)
    assert ("passes_unclear" in found.step_flags) is flagged
    assert sum(p.seconds for p in found.phases if p.name == "eval") == pytest.approx(left_out)


def test_passes_in_training_are_no_part_of_evaluation(tmp_path: Path) -> None:
    lines = [step(i + 1) for i in range(8)]
    lines[5]["eval"] = [[0, int(5.1 * S), int(5.2 * S), 0, 0, 9, None], [0, int(5.8 * S), int(5.9 * S), 2, 0, 9, None]]
    process(tmp_path, 1, *lines)
    assert measured(tmp_path).window_seconds == pytest.approx(4.8)


def test_a_training_beyond_all_optimizers_that_are_told_apart_is_flagged(hooks: Any, tmp_path: Path) -> None:
    watch = hooks.StepWatch(str(tmp_path))
    optimizers = [torch.optim.SGD(nn.Linear(2, 2).parameters()) for _ in range(hooks.OPTIMIZERS + 2)]
    for optimizer in (*optimizers, *optimizers):  # one for each layer
        watch.mark(optimizer)
    seen = seen_steps(tmp_path)
    assert seen is not None
    assert "separate_trainings" not in seen.flags
    watch.mark(optimizers[-1])
    watch.mark(optimizers[-1])
    watch.file.close()
    seen = seen_steps(tmp_path)
    assert seen is not None
    assert "separate_trainings" in seen.flags


def test_a_pass_or_a_backward_ends_a_span_of_evaluation(hooks: Any) -> None:
    watch = hooks.StepWatch("nowhere")
    model = watch.model(nn.Linear(2, 2))
    for start in (1, 3):
        watch.evaluated(model, True, start, start + 1)
    watch.backwards += 1
    watch.evaluated(model, True, 8, 9)
    assert [*watch.evals.values()] == [[1, 4, 2], [8, 9, 1]]


# --- the file that Python imports


def test_it_is_imported_once_and_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    copy = tmp_path / "copy"
    shutil.copytree(HOOKS, copy)
    code = "import sys; print(sum('Wattbench' in type(f).__name__ for f in sys.meta_path), sys.path.count(sys.argv[1]))"
    for seen, finders in ((str(tmp_path), "1"), ("", "0")):
        env = os.environ | {"PYTHONPATH": os.pathsep.join([HOOKS, str(copy), str(tmp_path)]), SEEN_VARIABLE: seen}
        done = subprocess.run([sys.executable, "-c", code, HOOKS], env=env, capture_output=True, text=True, check=True)
        assert (done.stdout.split(), done.stderr) == (["mine", finders, "0"], "")


@pytest.mark.parametrize(("hooks", "path"), [(True, HOOKS), (False, "x")])
def test_a_command_gets_the_hooks_unless_they_are_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hooks: bool, path: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", "x")
    script = (
        f'test "${{PYTHONPATH%%:*}}" = {path} && test "${{{SEEN_VARIABLE}-none}}" = {tmp_path if hooks else "none"}'
    )
    assert execute(["sh", "-c", script], tmp_path / "steps", hooks=hooks).exitcode == 0


DISTRIBUTED = """
import os, sys, torch, torch.distributed as dist, torch.multiprocessing as mp
from torch import nn

def work(rank, which, port):
    torch.set_num_threads(1)
    if which != "sweep":
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    if which == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    if which == "fsdp2":
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.device_mesh import init_device_mesh
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(8):
        loss = model(torch.randn(16, 8)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if rank == 0:
        print(loss.item().hex(), flush=True)
    if which != "sweep":
        dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1], int(sys.argv[2])), 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "samples", "flags", "parallelism", "flops"),
    [
        ("ddp", 160, [], "ddp", 896),
        ("fsdp2", 160, [], "fsdp2", None),
        ("sweep", 80, ["separate_trainings"], None, 896),
    ],
)
def test_processes_of_one_training_and_of_several(
    tmp_path: Path, which: str, samples: int, flags: list[str], parallelism: str | None, flops: float | None
) -> None:
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    losses = []
    for folder in (None, tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        argv = [sys.executable, str(script), which, str(port)]
        done = subprocess.run(argv, env=variables(folder), capture_output=True, text=True, timeout=PATIENCE, check=True)
        losses.append(done.stdout.split())
    found = measured(tmp_path)
    assert losses[0] == losses[1] != []
    assert (found.steps, found.samples, found.step_flags, found.flops_per_sample) == (5, samples, flags, flops)
    assert found.seen is not None
    assert (found.seen.parallelism, found.seen.devices) == (parallelism, ["cpu"] * (samples // 80))
    assert found.parameters == 212


@pytest.mark.slow
@pytest.mark.parametrize(("options", "ranks"), [(["--multi_gpu"], 2), (["--cpu"], 1)])
def test_accelerate_launch_is_as_many_processes_as_it_starts(options: list[str], ranks: int, tmp_path: Path) -> None:
    """Asked for two processes on a CPU, `accelerate launch --cpu` starts one."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", "2"]
    script = Path(__file__).parent / "scripts/launched.py"
    steps, environment = tmp_path / "steps-command.jsonl", os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        end = execute([*accelerate, str(script)], steps, environment=environment, output=log)
    text = (tmp_path / "log").read_text()
    assert end.exitcode == 0, text[-3000:]
    (stated,) = (line.split()[1:] for line in text.splitlines() if line.startswith("stated"))
    found = measurement(steps, end, 10, "cpu")
    assert found.seen is not None
    assert found.seen.devices == ["cpu"] * ranks
    assert (int(stated[0]), len(found.ranks), found.steps, found.samples) == (ranks, ranks, 50, 50 * 8 * ranks)
    assert found.samples is not None
    assert found.samples / found.window_seconds == pytest.approx(float(stated[1]), rel=0.02)


TRAINER = """
import sys, torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
rows = [{"input_ids": torch.arange(16) % 32, "labels": torch.arange(16) % 32} for _ in range(64)]
model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2))
arguments = TrainingArguments(
    output_dir=sys.argv[1], max_steps=8, per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True,
    report_to=[], save_strategy="no", disable_tqdm=True, bf16=True,
)
Trainer(model=model, args=arguments, train_dataset=rows).train()
"""


@pytest.mark.slow
def test_a_trainer_of_hugging_face_with_accumulation(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINER)
    argv = [sys.executable, str(script), str(tmp_path / "out")]
    subprocess.run(argv, env=variables(tmp_path), capture_output=True, timeout=PATIENCE, check=True)
    found = measured(tmp_path)
    assert (found.steps, found.samples, found.tokens) == (5, 5 * 8, 5 * 8 * 16)
    assert found.seen is not None
    assert (found.seen.precision, found.seen.batch_size, found.seen.optimizer) == ("bf16", 4, "AdamW")


class FakeEvent:
    """An event of a device whose clock the test moves."""

    now = 0.0
    reached = 0.0

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self, stream: object) -> None:
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        FakeEvent.reached = self.at

    def query(self) -> bool:
        return self.at <= FakeEvent.reached

    def elapsed_time(self, later: "FakeEvent") -> float:
        return 1e3 * (later.at - self.at)


def test_events_of_a_device_are_resolved_without_waiting(hooks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "Event": FakeEvent,
        "synchronize": lambda device: None,
        "current_stream": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(FakeEvent, "now", 0.0)
    monkeypatch.setattr(FakeEvent, "reached", 0.0)
    module = sys.modules["watched_hooks.clock"]
    monkeypatch.setattr(module, "monotonic_ns", lambda: 100 * S)
    clock = module.DeviceClock("cuda")
    for number in range(3):  # each step takes the device 2 s and the host none: the host runs ahead
        FakeEvent.now += 2
        clock.record(number)
        assert clock.ended() == ""
    FakeEvent.reached = 4
    FakeEvent.now += 2
    clock.record(3)
    assert clock.ended() == f"[0,{102 * S}],[1,{104 * S}]"
    FakeEvent.reached = 8
    assert clock.ended() == f"[2,{106 * S}],[3,{108 * S}]"
