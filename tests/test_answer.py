"""The printed answer: quality beside speed, what a target took, the served model, the ladder."""

import json

import pytest

from analytics.answer import document
from analytics.frame import frame
from analytics.say_results import parts
from bench.cli.progress import print_parts
from bench.record import Status
from bench.schema import Scalar
from tests import rows


def shown(capsys: pytest.CaptureFixture[str], table: list[dict[str, Scalar]]) -> str:
    print_parts(parts(frame(table)))
    return " ".join(capsys.readouterr().out.split())


def two(**figures: dict[str, float]) -> list[dict[str, Scalar]]:
    """Two repeats of fp32 and bf16 each; `figures` hold a value by precision."""
    return [
        rows.make(repeat=repeat, precision=precision)
        | {name: by[precision] for name, by in figures.items() if precision in by}
        for repeat in range(2)
        for precision in ("fp32", "bf16")
    ]


def test_quality_and_target_stand_beside_speed(capsys: pytest.CaptureFixture[str]) -> None:
    table = two(
        validation_loss={"fp32": 3.0, "bf16": 3.25},
        target_reached={"fp32": 1.0, "bf16": 0.0},
        seconds_to_target={"fp32": 12.5},
        steps_to_target={"fp32": 70.0},
        energy_to_target_joules={"fp32": 400.0},
    )
    for row in table:
        row |= {"target.metric": "validation_loss", "target.value": 3.1}
    out = shown(capsys, table)
    assert "to reach validation_loss 3.1" in out
    assert "12.5 70 400" in out
    assert "not reached" in out
    assert "3.000 -> 3.250" in out or "3.250 -> 3.000" in out


def test_the_served_model_has_a_table_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    table = two(
        model_bytes={"bf16": 3e6},
        zeros_share={"bf16": 0.5},
        validation_loss={"fp32": 3.0, "bf16": 3.0},
        served_loss={"bf16": 3.125},
        inference_joules_per_sample_estimated={"bf16": 0.25},
    )
    out = shown(capsys, table)
    assert "in use: the model as it would be served" in out
    assert "3.125 (+0.125)" in out
    assert "50%" in out
    assert "~0.25" in out
    assert "whether they make it any faster" in out


def test_a_law_is_told_where_there_is_something_to_fit_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert "The law is T = n / (d · v)" in shown(capsys, rows.grid((1, 2), ("tiny",), repeats=2))
    out = shown(capsys, two())
    assert "The law" not in out
    assert "Against" in out


def test_a_ladder_is_told_with_the_steps_that_did_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    foot = [rows.make(repeat=repeat) | {"ladder": 0} for repeat in range(2)]
    step = [rows.make(repeat=0, precision="fp8", status=Status.SKIPPED, message="no fp8 here") | {"ladder": 1}]
    out = shown(capsys, foot + step)
    assert "The ladder" in out
    assert "+ precision=fp8 (skipped: no fp8 here)" in out


def test_unequal_training_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Quality is that after" not in shown(capsys, two(trained_steps={"fp32": 100, "bf16": 100}))
    assert "Quality is that after" in shown(capsys, two(trained_steps={"fp32": 50, "bf16": 100}))


def test_nothing_that_ended_well_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, [rows.make(status=Status.FAILED, message="boom")])
    assert "boom" in out


def test_the_document_has_comparisons_and_the_ladder() -> None:
    told = json.loads(json.dumps(document(frame([row | {"ladder": i % 2} for i, row in enumerate(two())]))))
    assert [c["name"] for c in told["comparisons"]] in (["bf16"], ["fp32"])
    assert [step["name"] for step in told["ladder"]] == ["+ precision=bf16", "all steps"]
