"""The answer of stored runs: what stands at the top, its tables, what is flagged, what cannot be said."""

import io
import json
import math
import re
import shlex
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console

from analytics.quantities import quantity
from analytics.render.terminal import show
from analytics.runs.frame import frame
from analytics.say.answer import document, find
from analytics.say.blocks import Block, Commands, Note, Sentence, Table, command, unnamed
from analytics.say.results import predictions, results
from analytics.say.runs import so_far
from analytics.say.table import FIGURES, GAIN, SERVED, TARGET
from bench.record import Status
from bench.schema import Scalar
from bench.store.progress import Seen
from tests import rows
from tests.test_live import flight

Rows = list[dict[str, Scalar]]


def two(**figures: dict[str, float]) -> Rows:
    """Two repeats of fp32 and bf16 each; `figures` hold a value by precision."""
    return [
        rows.make(repeat=repeat, precision=precision)
        | {name: by[precision] for name, by in figures.items() if precision in by}
        for repeat in range(2)
        for precision in ("fp32", "bf16")
    ]


def grid(*devices: int, presets: tuple[str, ...] = ("tiny",), **options: Any) -> Rows:
    return rows.grid(devices, presets, **{"repeats": 4, "noise": 1e-3, **options})


def blocks(given: Rows, **options: Any) -> list[Block]:
    return results(frame(given), **options)


def answers(made: Iterable[Block]) -> list[str]:
    return [block.text for block in made if isinstance(block, Sentence) and block.role == "answer"]


def tables(made: Iterable[Block]) -> list[Table]:
    return [block for block in made if isinstance(block, Table) and not block.detail]


def notes(made: Iterable[Block]) -> str:
    return " ".join(f"{block.label}: {block.text}" for block in made if isinstance(block, Note))


def column(table: Table, name: str) -> list[str]:
    return [cells[table.columns.index(name)] for cells in table.rows]


def factor_of(line: str) -> float:
    found = re.search(r"([0-9.]+)x", line)
    assert found is not None
    return float(found[1])


def test_the_answer_stands_at_the_top_and_commands_at_the_end() -> None:
    made = blocks(grid(1, 2, presets=("tiny", "small"), repeats=3))
    assert [getattr(block, "role", "") for block in made[:2]] == ["title", "answer"]
    assert isinstance(made[-1], Commands)
    assert len(made[-1].commands) == 3
    assert isinstance(made[0], Sentence)
    assert "12 runs" in made[0].text
    assert "4 configurations x 3" in made[0].text


@pytest.mark.parametrize(
    ("given", "option", "factor"),
    [
        (grid(1, 2), "2 devices", 2.0),
        (grid(1, 2, loss={2: 0.6}), "2 devices", 1.2),
        (grid(1, precisions={"fp32": 1.0, "bf16": 1.5}), "bf16", 1.5),
        (grid(1, precisions={"fp32": 1.0, "bf16": 0.5}), "bf16", 0.5),
    ],
)
def test_an_option_is_as_fast_as_planted(given: Rows, option: str, factor: float) -> None:
    line = answers(blocks(given))[0]
    assert line.startswith(option)
    assert factor_of(line) == pytest.approx(factor, rel=0.01)


def test_equal_options_are_called_equal() -> None:
    assert "equally fast" in answers(blocks(grid(1, precisions={"fp32": 1.0, "bf16": 1.0}, repeats=5)))[0]


def test_what_cannot_be_told_says_how_many_repeats_would_tell() -> None:
    line, decide = answers(blocks(grid(1, precisions={"fp32": 1.0, "bf16": 1.05}, repeats=3, noise=0.02, seed=1)))
    more = re.search(r"bf16 1\.\d+x \([\d.-]+\) \+(\d+)", line)
    assert more is not None
    assert f"repeats={3 + int(more[1])}" in decide


def test_an_option_that_can_be_told_in_one_configuration_is_told_there() -> None:
    sure = grid(1, precisions={"fp32": 1.0, "bf16": 1.1})
    unsure = grid(1, presets=("small",), precisions={"fp32": 1.0, "bf16": 0.9}, noise=0.6)
    line = answers(blocks([*sure, *unsure]))[0]
    assert factor_of(line) == pytest.approx(1.1, rel=0.01)
    assert "tiny" in line


def test_cells_that_disagree_have_a_range_with_the_names_of_its_ends() -> None:
    given = [
        row
        for preset, gain in (("tiny", 1.1), ("small", 1.5))
        for row in grid(1, presets=(preset,), precisions={"fp32": 1.0, "bf16": gain})
    ]
    assert re.fullmatch(r"bf16 beats fp32: 1\.1x \(tiny\), 1\.5x \(small\)\.", answers(blocks(given))[0])


def test_quality_and_target_stand_beside_speed() -> None:
    given = two(
        validation_loss={"fp32": 3.0, "bf16": 3.25},
        target_reached={"fp32": 1.0, "bf16": 0.0},
        seconds_to_target={"fp32": 12.5},
        steps_to_target={"fp32": 70.0},
        energy_to_target_joules={"fp32": 400.0},
    )
    for row in given:
        row |= {"target.metric": "validation_loss", "target.value": 3.1}
    first, *others = tables(blocks(given))
    assert sorted(column(first, "loss")) == ["3", "3.25"]
    (reached,) = (one for one in others if "validation_loss 3.1" in one.caption)
    assert sorted(column(reached, "seconds")) == ["-", "12.5"]
    assert sorted(column(reached, "reached")) == ["no", "yes"]
    assert sorted(column(reached, "J")) == ["-", "400"]


def test_the_served_model_has_a_table_of_its_own() -> None:
    given = two(
        model_bytes={"bf16": 3e6},
        zeros_share={"bf16": 0.5},
        validation_loss={"fp32": 3.0, "bf16": 3.0},
        served_loss={"bf16": 3.125},
        inference_joules_per_sample_estimated={"bf16": 0.25},
    )
    (served,) = (one for one in tables(blocks(given)) if "MB on disk" in one.columns)
    assert served.columns == ("configuration", "MB on disk", "zeros, %", "J/sample~", "loss")
    assert served.rows == (("bf16", "3", "50", "0.25", "3.125 (+0.125)"),)


def test_how_it_scales_is_shown_by_model_where_there_is_something_to_fit() -> None:
    law = "GFLOP/s of one device"
    precisions = {"fp32": 1.0, "bf16": 1.5}
    (scales,) = (
        one
        for one in tables(blocks(grid(1, 2, presets=("tiny", "small"), precisions=precisions)))
        if law in one.columns
    )
    assert scales.columns == ("series", "model", law, "efficiency on 2")
    assert [row[:2] for row in scales.rows] == [("bf16", "tiny"), ("", "small"), ("fp32", "tiny"), ("", "small")]
    assert not any(law in one.columns for one in tables(blocks(two())))


def test_a_ladder_is_one_table_of_steps_with_those_that_did_not_run() -> None:
    foot = [rows.make(repeat=repeat) | {"ladder": 0} for repeat in range(4)]
    steps = [rows.make(repeat=repeat, precision="bf16", v=1.5 * rows.V) | {"ladder": 1} for repeat in range(4)]
    skipped = [rows.make(repeat=0, precision="fp8", status=Status.SKIPPED, message="no fp8 here") | {"ladder": 2}]
    made = blocks(foot + steps + skipped)
    (ladder,) = tables(made)
    assert column(ladder, "step") == ["start", "+ bf16", "+ fp8: skipped", "all steps"]
    assert [cell[:4] for cell in column(ladder, GAIN)] == ["", "1.5", "-", "1.5"] or column(ladder, GAIN)[1].startswith(
        "1.5"
    )
    assert "no fp8 here" in notes(made)
    assert factor_of(answers(made)[0]) == pytest.approx(1.5)


def test_the_figures_of_a_row_are_averages_of_one_kind() -> None:
    of_results = {quantity(name) for group in FIGURES for name in group if name != "communication_share"}
    assert {one.pooled for one in of_results if not one.quality} == {"geometric", "largest"}
    assert [one.name for one in of_results if one.pooled == "largest"] == ["peak_memory_bytes"]
    for groups in (SERVED, TARGET):
        assert {quantity(name).pooled for group in groups.values() for name in group} == {"median"}


def test_quality_after_unequal_training_is_for_those_who_ask() -> None:
    for steps, heading in ((100, "loss"), (50, "loss*")):
        loss = {"fp32": 3.0, "bf16": 3.0}
        first = tables(blocks(two(trained_steps={"fp32": steps, "bf16": 100}, validation_loss=loss)))[0]
        assert heading in first.columns
        assert (heading in first.brief().columns) == (steps == 100)


def test_estimated_energy_is_marked_in_its_heading_or_its_cell() -> None:
    gone, estimates = {"fp32": math.nan, "bf16": math.nan}, {"fp32": 2.0, "bf16": 1.0}
    assert "J/sample~" in tables(blocks(two(joules_per_sample=gone, joules_per_sample_estimated=estimates)))[0].columns
    measured = {"fp32": 2.0, "bf16": math.nan}
    mixed = two(joules_per_sample=measured, joules_per_sample_estimated={"bf16": 1.0})
    assert sorted(column(tables(blocks(mixed))[0], "J/sample")) == ["2", "~1"]


def test_a_doubtful_figure_is_flagged() -> None:
    given = two()
    for row in given:
        row |= {"flags": "noisy_host short_window", "grade": "C" if row["precision"] == "bf16" else "B"}
    made = blocks(given)
    assert sorted(column(tables(made)[0], "grade")) == ["B", "C"]
    assert "wrong" in " ".join(answers(made))
    assert "a busy host" in notes(made)


def test_a_slow_node_is_named() -> None:
    given = two()
    slow = [one | {"straggler_node_ratio": 1.3, "straggler_node_name": "n3"} for one in given[:2]]
    others = [one | {"straggler_node_ratio": 1.05, "straggler_node_name": "n7"} for one in given[2:]]
    told = notes(blocks([one | {"flags": "straggler_node"} for one in (*slow, *others)]))
    assert "one slow node, n3 (" in told
    assert "n7" not in told


def test_runs_that_failed_are_told_with_the_reason_and_allocators_by_what_they_lacked() -> None:
    made = blocks([rows.make(status=Status.FAILED, message="boom")])
    assert "boom" in notes(made)
    assert not any(isinstance(block, Commands) for block in made)
    raw = "rank 0: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: you tried to allocate {} bytes."
    sizes = (262_144_000_000, 786_432_000_000)
    lost = [
        rows.make(2, repeat=r, status=Status.OUT_OF_MEMORY, message=raw.format(size)) for r, size in enumerate(sizes)
    ]
    text = notes(blocks([*two(), *lost]))
    assert "2 runs (2 devices, fp32) out of memory: another 262 to 786 GB did not fit" in text
    assert "enforce" not in text


def test_predictions_beyond_this_machine_are_flagged() -> None:
    given = grid(1, 2, repeats=3, noise=0.01)
    made = blocks(given, devices=[64])
    (predicted,) = (one for one in tables(made) if one.caption.startswith("Predicted"))
    assert column(predicted, "devices") == ["64"]
    assert "Limits: more than 4 times as many devices" in notes(made)
    assert [one["devices"] for one in predictions(frame(given), [64])] == [64]


def test_the_terminal_shows_details_only_to_those_who_ask() -> None:
    texts = []
    for explain in (False, True):
        file = io.StringIO()
        show(blocks(grid(1, 2, repeats=3)), Console(file=file, width=120), explain=explain)
        texts.append(file.getvalue())
    assert len(texts[1].split()) > 1.3 * len(texts[0].split())


def test_the_document_has_comparisons_and_the_ladder() -> None:
    made = json.loads(json.dumps(document(frame([row | {"ladder": i % 2} for i, row in enumerate(two())]))))
    assert [c["name"] for c in made["comparisons"]] in (["bf16"], ["fp32"])
    assert [step["name"] for step in made["ladder"]] == ["+ precision=bf16", "all steps"]


@pytest.mark.parametrize(
    ("store", "named"),
    [
        ("sqlite:////tmp/my runs/$x.db", True),
        ("http://mlflow.example:5000", True),
        ("postgresql://me:secret@host/db", False),
        ("https://token@mlflow.example", False),
        (None, False),
    ],
)
def test_a_command_names_its_store_as_a_shell_takes_it_and_no_password(store: str | None, named: bool) -> None:
    words = shlex.split(command("fit", "my suite", store=store))
    assert words == ["bench", "fit", "my suite", *(["--store", store] if named else [])]
    made = blocks(grid(1, 2), store=store)
    text = " ".join([notes(made), *answers(made), *(c for b in made if isinstance(b, Commands) for c in b.commands)])
    assert "secret" not in text
    assert "token" not in text
    assert ("MLFLOW_TRACKING_URI" in text) == bool(list(unnamed(store))) == bool(store and not named)


@pytest.mark.parametrize(("state", "words"), [("running", "still running"), ("stopped", "the same command resumes it")])
def test_an_execution_that_is_not_complete_says_so_below_its_title(state: Any, words: str) -> None:
    df = frame(grid(1, 2, repeats=3))
    execution, suite = df["execution"].iloc[0], df["suite"].iloc[0]
    made = [Sentence("title", "title"), Sentence("answer", "answer")]
    seen = Seen(flight(execution, suite=suite, to_do=36, done=6), state)
    assert [block.text for block in so_far(made, df, [seen])][1].startswith("So far: 6 of 36 runs; ")
    assert words in str([*so_far(made, df, [seen])][1])
    others = [Seen(flight("another", suite=suite), state), Seen(flight(execution, suite=suite, to_do=4, done=4), state)]
    assert [*so_far(made, df, others)] == made, "of others, and where nothing is left, there is nothing to say"


def test_probes_of_a_search_are_no_configurations() -> None:
    full, probes = grid(1, repeats=3), [row | {"stage": "probe"} for row in grid(2, repeats=1)]
    (found,) = find(frame([*full, *probes]))
    assert (found.probes, len(found.own), {*found.runs["devices"]}) == (1, 1, {1})
    (alone,) = find(frame(probes))
    assert (alone.probes, len(alone.own)) == (0, 1)
