"""The answer of stored runs: what stands at the top, its tables, what is flagged, what cannot be said."""

import io
import json
import math
import re
from collections.abc import Iterable

import pytest
from rich.console import Console

from analytics.render.terminal import show
from analytics.runs.frame import frame
from analytics.say.answer import document
from analytics.say.blocks import Block, Commands, Note, Sentence, Table
from analytics.say.results import predictions, results
from bench.record import Status
from bench.schema import Scalar
from tests import rows

Rows = list[dict[str, Scalar]]


def two(**figures: dict[str, float]) -> Rows:
    """Two repeats of fp32 and bf16 each; `figures` hold a value by precision."""
    return [
        rows.make(repeat=repeat, precision=precision)
        | {name: by[precision] for name, by in figures.items() if precision in by}
        for repeat in range(2)
        for precision in ("fp32", "bf16")
    ]


def answers(blocks: Iterable[Block]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, Sentence) and block.role == "answer"]


def tables(blocks: Iterable[Block]) -> list[Table]:
    return [block for block in blocks if isinstance(block, Table)]


def notes(blocks: Iterable[Block]) -> str:
    return " ".join(f"{block.label}: {block.text}" for block in blocks if isinstance(block, Note))


def column(table: Table, name: str) -> list[str]:
    return [cells[table.columns.index(name)] for cells in table.rows]


def test_the_answer_stands_at_the_top_and_commands_at_the_end() -> None:
    blocks = results(frame(rows.grid((1, 2), ("tiny", "small"), repeats=3, noise=0.001)))
    assert isinstance(blocks[0], Sentence)
    assert blocks[0].role == "title"
    assert isinstance(blocks[1], Sentence)
    assert blocks[1].role == "answer"
    assert isinstance(blocks[-1], Commands)
    assert len(blocks[-1].commands) == 3
    assert "12 runs" in blocks[0].text
    assert "4 configurations x 3" in blocks[0].text


def factor_of(line: str) -> float:
    found = re.search(r"([0-9.]+)x", line)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_more_devices_are_as_fast_as_planted(share: float) -> None:
    blocks = results(frame(rows.grid((1, 2), ("tiny",), repeats=4, noise=1e-3, loss={2: share})))
    (line, *_) = answers(blocks)
    assert line.startswith("2 devices train ")
    assert factor_of(line) == pytest.approx(2 * share, rel=0.01)
    assert f"each keeps {100 * share:.0f}" in line


@pytest.mark.parametrize("factor", [1.5, 0.5])
def test_a_precision_is_as_fast_as_planted(factor: float) -> None:
    blocks = results(frame(rows.grid((1,), ("tiny",), precisions={"fp32": 1.0, "bf16": factor}, repeats=5, noise=1e-3)))
    assert answers(blocks)[0].startswith("bf16 trains ")
    assert factor_of(answers(blocks)[0]) == pytest.approx(factor, rel=0.01)


def test_equal_precisions_are_called_equal() -> None:
    table = frame(rows.grid((1,), ("tiny",), precisions={"fp32": 1.0, "bf16": 1.0}, repeats=5, noise=1e-3))
    assert "equally fast" in answers(results(table))[0]


def test_what_cannot_be_told_says_how_many_repeats_would_tell() -> None:
    blocks = results(frame(rows.grid((1,), ("tiny",), precisions={"fp32": 1.0, "bf16": 1.05}, repeats=3, noise=0.1)))
    line = answers(blocks)[0]
    assert "cannot be told" in line
    assert "repeats of each should tell" in line


def test_an_option_that_can_be_told_in_one_configuration_is_told_there() -> None:
    sure = rows.grid((1,), ("tiny",), precisions={"fp32": 1.0, "bf16": 1.1}, repeats=4, noise=1e-3)
    open_ = rows.grid((1,), ("small",), precisions={"fp32": 1.0, "bf16": 0.9}, repeats=4, noise=0.6)
    (line, *_) = answers(results(frame([*sure, *open_])))
    assert factor_of(line) == pytest.approx(1.1, rel=0.01)
    assert "tiny" in line
    assert "cannot be told" in line


def test_quality_and_target_stand_beside_speed() -> None:
    table = two(
        validation_loss={"fp32": 3.0, "bf16": 3.25},
        target_reached={"fp32": 1.0, "bf16": 0.0},
        seconds_to_target={"fp32": 12.5},
        steps_to_target={"fp32": 70.0},
        energy_to_target_joules={"fp32": 400.0},
    )
    for row in table:
        row |= {"target.metric": "validation_loss", "target.value": 3.1}
    first, *others = tables(results(frame(table)))
    assert sorted(column(first, "loss")) == ["3", "3.25"]
    (reached,) = (one for one in others if "validation_loss 3.1" in one.caption)
    assert sorted(column(reached, "seconds")) == ["12.5", "not reached"]
    assert sorted(column(reached, "J")) == ["-", "400"]


def test_the_served_model_has_a_table_of_its_own() -> None:
    table = two(
        model_bytes={"bf16": 3e6},
        zeros_share={"bf16": 0.5},
        validation_loss={"fp32": 3.0, "bf16": 3.0},
        served_loss={"bf16": 3.125},
        inference_joules_per_sample_estimated={"bf16": 0.25},
    )
    (served,) = (one for one in tables(results(frame(table))) if "MB on disk" in one.columns)
    assert served.rows == (("bf16", "3", "50%", "~0.25", "3.125 (+0.125)"),)


def test_how_it_scales_is_shown_where_there_is_something_to_fit_only() -> None:
    law = "speed of one device, GFLOP/s"
    assert any(law in one.columns for one in tables(results(frame(rows.grid((1, 2), ("tiny",), repeats=2)))))
    assert not any(law in one.columns for one in tables(results(frame(two()))))


def test_a_ladder_has_its_steps_with_those_that_did_not_run() -> None:
    foot = [rows.make(repeat=repeat) | {"ladder": 0} for repeat in range(2)]
    steps = [rows.make(repeat=repeat, precision="bf16") | {"ladder": 1} for repeat in range(2)]
    skipped = [rows.make(repeat=0, precision="fp8", status=Status.SKIPPED, message="no fp8 here") | {"ladder": 2}]
    blocks = results(frame(foot + steps + skipped))
    (ladder,) = (one for one in tables(blocks) if one.columns[0] == "step")
    assert [cells[0] for cells in ladder.rows] == ["+ bf16", "+ fp8 (skipped: no fp8 here)", "all steps"]
    assert "no fp8 here" in notes(blocks)


def test_quality_after_unequal_training_is_marked() -> None:
    for steps, mark in ((100, ""), (50, "*")):
        loss = {"fp32": 3.0, "bf16": 3.0}
        blocks = results(frame(two(trained_steps={"fp32": steps, "bf16": 100}, validation_loss=loss)))
        assert f"loss{mark}" in tables(blocks)[0].columns
        assert ("unequal training" in notes(blocks)) == bool(mark)


def test_estimated_energy_is_marked_in_its_heading_or_its_cell() -> None:
    gone = {"fp32": math.nan, "bf16": math.nan}
    alone = tables(results(frame(two(joules_per_sample=gone, joules_per_sample_estimated={"fp32": 2.0, "bf16": 1.0}))))[
        0
    ]
    assert "J/sample~" in alone.columns
    measured = {"fp32": 2.0, "bf16": math.nan}
    table = frame(two(joules_per_sample=measured, joules_per_sample_estimated={"bf16": 1.0}))
    assert sorted(column(tables(results(table))[0], "J/sample")) == ["2", "~1"]


def test_a_doubtful_figure_is_flagged() -> None:
    table = two()
    for row in table:
        row |= {"flags": "noisy_host short_window", "grade": "C" if row["precision"] == "bf16" else "B"}
    blocks = results(frame(table))
    assert sorted(column(tables(blocks)[0], "grade")) == ["B", "C"]
    assert "wrong" in " ".join(answers(blocks))
    assert "a busy host" in notes(blocks)


def test_runs_that_failed_are_told_with_the_reason() -> None:
    blocks = results(frame([rows.make(status=Status.FAILED, message="boom")]))
    assert "boom" in notes(blocks)
    assert not any(isinstance(block, Commands) for block in blocks)


def test_predictions_beyond_this_machine_are_flagged() -> None:
    df = frame(rows.grid((1, 2), ("tiny",), repeats=3, noise=0.01))
    blocks = results(df, devices=[64])
    (predicted,) = (one for one in tables(blocks) if "limits" in one.columns)
    assert column(predicted, "devices") == ["64"]
    assert column(predicted, "limits")[0]
    assert "devices" in notes(blocks)
    assert [one["devices"] for one in predictions(df, [64])] == [64]


def test_the_terminal_shows_details_only_to_those_who_ask() -> None:
    texts = []
    for explain in (False, True):
        file = io.StringIO()
        show(results(frame(rows.grid((1, 2), ("tiny",), repeats=3))), Console(file=file, width=120), explain=explain)
        texts.append(file.getvalue())
    assert len(texts[1].split()) > 1.3 * len(texts[0].split())
    assert len(texts[0].split()) <= 230


def test_the_document_has_comparisons_and_the_ladder() -> None:
    told = json.loads(json.dumps(document(frame([row | {"ladder": i % 2} for i, row in enumerate(two())]))))
    assert [c["name"] for c in told["comparisons"]] in (["bf16"], ["fp32"])
    assert [step["name"] for step in told["ladder"]] == ["+ precision=bf16", "all steps"]
