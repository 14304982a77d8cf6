"""Weights between runs for real: a suite whose runs save, need, fine-tune, distil, compress and serve."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from bench.figures.metrics import metrics
from bench.record import RunRecord, Status
from tests.commands import execute
from tests.processes import records
from tests.stores import empty_store

pytestmark = pytest.mark.slow

SUITE = """
name: chain
idle_seconds: 0
defaults:
  workload: decoder_lm
  workload_args: {layers: 2, hidden: 64, heads: 2, sequence_length: 32}
  device_type: cpu
  batch_size_per_device: 8
  optimizer: {name: adamw, learning_rate: 0.003}
  warmup_steps: 2
  warmup_seconds: 0
  measure_steps: 12
  meters: [codecarbon]
include:
  - {needs: base, finetune: lora, quantization: int8, inference_seconds: 0.3}
  - {saves: base, measure_steps: 30}
  - {needs: base, devices: 2, pruning: {name: magnitude, sparsity: 0.9, end: 1.0}, inference_seconds: 0.3}
  - {needs: base, workload_args.layers: 1, distillation: soft}
  - {saves: broken, optimizer: {name: sgd, learning_rate: 1e30}}
  - {needs: broken}
"""


def by_label(found: dict[str, RunRecord]) -> dict[str, RunRecord]:
    words = ("saves-base", "lora", "magnitude", "soft", "saves-broken", "from-broken")
    return {next(word for word in words if word in record.spec.label): record for record in found.values()}


def measured(record: RunRecord) -> tuple[Any, dict[str, float]]:
    assert record.status is Status.OK, record.error
    return record.measurement, metrics(record)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("chain")
    (folder / "chain.yaml").write_text(SUITE)
    empty_store(folder)
    return folder, execute(folder, "run", "chain.yaml")


def test_weights_go_from_run_to_run(done: tuple[Path, Result]) -> None:
    folder, ended = done
    assert ended.exit_code == 1, ended.stderr  # one run was made to fail
    found = by_label(records(folder))
    base, base_metrics = measured(found["saves-base"])
    assert "checkpoint" in [phase.name for phase in base.phases]
    assert base_metrics["phase_checkpoint_seconds"] > 0
    assert base.inference is None
    tuned, tuned_metrics = measured(found["lora"])
    assert tuned.loss_first < base.loss_first - 0.5  # it starts where the other ended
    assert tuned.loss_first == pytest.approx(base.loss_last, abs=0.4)
    assert tuned.notes["left_tensors"] == 0
    assert tuned.trainable_parameters < 0.2 * tuned.parameters
    assert tuned.flops_per_sample < base.flops_per_sample
    assert tuned_metrics["inference_samples_per_second"] > 0
    assert tuned_metrics["inference_joules_per_sample_estimated"] > 0
    assert tuned_metrics["model_bytes"] < 2 * base.parameters
    assert 0 < abs(tuned_metrics["served_loss_change"]) < 0.1
    assert tuned_metrics["phase_inference_seconds"] > 0
    pruned, pruned_metrics = measured(found["magnitude"])
    assert pruned_metrics["zeros_share"] == pytest.approx(
        0.9 * 2 * 12 * 64**2 / (2 * 12 * 64**2 + 64 * (256 + 32)), rel=0.01
    )
    assert pruned.inference.loss == pytest.approx(pruned.quality[-1].loss, abs=1e-6)
    assert pruned.inference.samples % 16 == 0  # both ranks serve
    student, student_metrics = measured(found["soft"])
    assert student.notes["teacher_parameters"] == base.parameters
    assert student.parameters < base.parameters
    assert student.inference.samples is None  # speed was not asked for; size and quality are there
    assert student_metrics["served_accuracy"] == pytest.approx(student.quality[-1].accuracy)


def test_without_its_giver_a_run_is_skipped(done: tuple[Path, Result]) -> None:
    found = by_label(records(done[0]))
    assert found["saves-broken"].status is Status.INVALID
    without = found["from-broken"]
    assert without.status is Status.SKIPPED
    assert without.error is not None
    assert without.error.message.startswith("needs 'broken', which ended as invalid: rank 0: the loss went from")


def test_weights_that_are_gone_are_made_again_if_a_run_still_needs_them(
    done: tuple[Path, Result],
) -> None:
    folder, _ = done
    before = by_label(records(folder))
    base = next(folder.glob(f"runs/*/*/{before['saves-base'].run_id}"))
    shutil.rmtree(base / "checkpoint")
    shutil.rmtree(base.parent / before["soft"].run_id)
    ended = execute(folder, "run", "chain.yaml", "--only", "distillation=soft")
    assert ended.exit_code == 0, ended.stderr
    after = by_label(records(folder))
    assert after["saves-base"].started_at > before["saves-base"].started_at
    assert (base / "checkpoint" / "weights.safetensors").exists()
    assert after["soft"].started_at > before["soft"].started_at
    assert after["lora"] == before["lora"]
    assert after["soft"].status is Status.OK
    assert execute(folder, "run", "chain.yaml", "--retry").exit_code == 1
    last = by_label(records(folder))
    assert last["saves-broken"].started_at > before["saves-broken"].started_at
    assert last["from-broken"].status is Status.SKIPPED
    assert last["saves-base"] == after["saves-base"]
