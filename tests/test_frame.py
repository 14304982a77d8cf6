import math

import pandas as pd
import pytest

from analytics.runs.frame import (
    COUNTS,
    IDENTITY,
    NUMBERS,
    WORDS,
    configurations,
    frame,
    latest_execution,
    names,
    summary,
    total,
)
from analytics.text import counted, duration, interval, number, printable, scale
from bench.figures.metrics import TEXT_COLUMNS
from bench.record import Status
from tests import rows


def test_types_do_not_depend_on_the_rows() -> None:
    full, nothing = frame(rows.grid(repeats=1)), frame([])
    partial = frame([{"run_id": "a", "status": "failed"}])
    for name in (*TEXT_COLUMNS, *WORDS, *COUNTS, *NUMBERS):
        assert full[name].dtype == nothing[name].dtype == partial[name].dtype, name
    assert str(nothing["started_at"].dt.tz) == "UTC"
    assert full["devices"].dtype == "Int64"
    assert len(nothing) == 0


def test_every_number_of_a_row_is_a_column_of_numbers() -> None:
    df = frame([rows.make(), rows.make(2, status=Status.FAILED)])
    for name, value in rows.make().items():
        assert name in df
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert pd.api.types.is_numeric_dtype(df[name].dtype), name
    failed = df[df["status"] == "failed"].iloc[0]
    assert math.isnan(failed["samples_per_second"]), "what a failed run lacks is absent, not 0"


def test_rows_are_sorted_by_start_and_doubles_are_dropped() -> None:
    df = frame([rows.make(repeat=1), rows.make(repeat=0), rows.make(repeat=1)])
    assert list(df["repeat"]) == [0, 1]


def test_summary_of_repeats() -> None:
    table = summary(frame([rows.make(repeat=r, v=v) for r, v in enumerate([1e9, 2e9, 4e9])]))
    (row,) = table.to_dict("records")
    assert row["repeats"] == 3
    assert row["samples_per_second"] == pytest.approx(20.0), "the geometric mean of 10, 20 and 40"
    assert row["samples_per_second_low"] < 10 < 40 < row["samples_per_second_high"]
    assert row["joules_per_sample"] == pytest.approx(2.5)
    assert row["joules_per_sample_estimated"] == pytest.approx(3.75), "measured and estimated are two columns"
    assert row["energy_provenance"] == "measured_counter"
    assert row["emissions_basis"] == "measured"
    assert row["peak_memory_bytes"] == 1e9
    assert (row["loss_first"], row["loss_last"]) == (5.0, 4.0)


def test_one_repeat_has_no_interval() -> None:
    (row,) = summary(frame([rows.make()])).to_dict("records")
    assert row["samples_per_second"] == pytest.approx(20.0)
    assert math.isnan(row["samples_per_second_low"])
    assert math.isnan(row["samples_per_second_high"])


def test_missing_and_zero_energy() -> None:
    table = summary(frame([rows.make(readings="e"), rows.make(2, readings=""), rows.make(2, repeat=1, readings="")]))
    assert table["joules_per_sample"].isna().all()
    assert table["joules_per_sample_estimated"].notna().tolist() == [True, False]
    zero = [rows.make(repeat=r) | {"joules_per_sample": float(r)} for r in range(3)]
    (row,) = summary(frame(zero)).to_dict("records")
    assert row["joules_per_sample"] == 1.0, "0 has no logarithm: the median"
    assert math.isnan(row["joules_per_sample_low"])


def test_repeats_that_measured_different_components_are_flagged() -> None:
    table = summary(frame([rows.make(), rows.make(repeat=1) | {"energy_components": "cpu dram", "flags": "noisy hot"}]))
    assert table["flags"].tolist() == ["hot noisy energy_components_differ"]


@pytest.mark.parametrize(
    ("first", "other", "flags"),
    [(9.0, 9.0, ""), (None, None, ""), (9.0, 5.0, "lengths_differ"), (None, 5.0, "lengths_differ")],
)
def test_whole_runs_of_different_lengths_are_flagged(first: float | None, other: float | None, flags: str) -> None:
    """Speeds of steps do not depend on the length, so they need no flag."""
    for rate, expected in ((None, flags), (20.0, "")):
        fixed = {"flags": "", "samples_per_second": rate, "tokens_per_second": None}
        runs = [
            rows.make(repeat=repeat) | fixed | {"measure_seconds": length}
            for repeat, length in enumerate((first, other))
        ]
        assert summary(frame(runs))["flags"].fillna("").tolist() == [expected]


def test_failures_are_counted_and_not_summarised() -> None:
    given = [rows.make(), rows.make(repeat=1, status=Status.FAILED), rows.make(2, status=Status.TIMEOUT)]
    table = summary(frame(given))
    assert table[["devices", "repeats", "failures"]].to_numpy().tolist() == [[1, 1, 1]]


def test_executions_and_environments_are_not_mixed() -> None:
    given = [rows.make(), rows.make(execution="later"), rows.make(host="another"), rows.make(suite="other")]
    table = summary(frame(given))
    assert len(table) == 4
    assert table[list(IDENTITY)].drop_duplicates().shape[0] == 4
    assert table["name"].is_unique, "a name says what differs, if need be the host or the execution"


def test_latest_execution_of_each_suite() -> None:
    given = [rows.make(repeat=5, execution="z-first"), rows.make(repeat=9, execution="a-second"), rows.make(suite="o")]
    df = latest_execution(frame(given))
    assert sorted(df["execution"]) == ["20260102T030405-aaaa", "a-second"]
    assert latest_execution(frame([])).empty


def test_empty_summary_has_the_columns_of_a_full_one() -> None:
    full, nothing = summary(frame(rows.grid(repeats=1))), summary(frame([]))
    assert set(nothing.columns) <= set(full.columns)
    assert {"name", "samples_per_second_low", "repeats"} <= set(nothing.columns)
    pd.testing.assert_series_equal(full.dtypes[nothing.columns], nothing.dtypes)


def test_names_show_what_varies() -> None:
    assert summary(frame(rows.grid((1, 2), repeats=1)))["name"].tolist() == [
        "preset=tiny d=1",
        "preset=tiny d=2",
        "preset=small d=1",
        "preset=small d=2",
    ], "the batch of all devices follows from d and is left out"
    both = summary(frame(rows.grid((1,), ("tiny",), {"fp32": 1, "bf16": 2}, repeats=1)))
    assert both["name"].tolist() == ["bf16", "fp32"]
    batches = summary(frame([rows.make(batch=8), rows.make(batch=16)]))
    assert batches["name"].tolist() == ["b=8", "b=16"]
    assert summary(frame([rows.make()]))["name"].tolist() == ["synthetic d=1"]
    assert names(summary(frame([]))).empty


def test_hostile_text_stays_one_printable_line() -> None:
    evil = "a\x1b[31m\nb" + "x" * 100
    assert printable(evil).startswith("a?[31m b")
    assert len(printable(evil)) == 60
    given = [rows.make() | {"workload_args.preset": text, "config_id": text} for text in (evil, rows.HOSTILE)]
    for name in summary(frame(given))["name"]:
        assert name.isprintable()
    braces = [rows.make() | {"workload_args.{0.__class__}": i, "config_id": str(i)} for i in range(2)]
    assert summary(frame(braces))["name"].tolist() == ["{0.__class__}=0", "{0.__class__}=1"]


def test_total_says_how_many_runs_are_known() -> None:
    df = frame([rows.make(), rows.make(2, readings=""), rows.make(4, status=Status.FAILED)])
    assert total(df, "run_energy_joules") == (200.0, 2)
    assert total(frame([rows.make(readings="")]), "run_energy_joules") == (None, 0)


@pytest.mark.parametrize(
    ("value", "text"), [(0.001234567, "0.001235"), (12.3456, "12.35"), (123456.7, "123,457"), (math.nan, "-")]
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.31, "0.31 s"), (45, "45 s"), (372, "6.2 min"), (11_000, "3.1 h"), (210_000, "2.4 days")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_interval_and_scale() -> None:
    assert [counted(n, "run") for n in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
    assert interval(12.0, 11.0, 13.5, "J") == "12.0 J (11.0-13.5)"
    assert interval(12.0, None, 13.5, "J") == interval(12.0, math.nan, math.nan, "J") == "12 J"
    assert scale(3.1e12, "FLOP/s") == (1e12, "TFLOP/s")
    assert scale(0.99999e9, "FLOP/s") == (1e9, "GFLOP/s"), "1 G, not 1,000 M"
    assert scale(5.0, "J") == (1.0, "J")


def test_many_configurations_are_summarised_like_each_alone() -> None:
    given = [row | {"flags": f"a{i % 3} b", "joules_per_sample": i % 2} for i, row in enumerate(rows.grid())]
    given += [
        rows.make(16, status=Status.FAILED),
        *rows.grid((8,), readings=""),
        rows.make(repeat=9, status=Status.FAILED),
    ]
    df = frame(given)
    whole = summary(df)
    pd.testing.assert_frame_equal(configurations(df), whole[configurations(df).columns])
    whole = whole.drop(columns="name").set_index("config_id")
    for config, runs in df.groupby("config_id"):
        (alone,) = summary(runs).drop(columns="name").set_index("config_id").to_dict("records") or [None]
        assert (alone is None) == (config not in whole.index)
        if alone is not None:
            assert whole.loc[config].astype("str").to_dict() == pd.Series(alone).astype("str").to_dict()
    assert summary(df[:0]).dtypes.equals(summary(df).dtypes)


def test_a_count_beyond_what_a_table_holds_is_absent_and_the_others_stay() -> None:
    stored = [rows.make(), rows.make(repeat=1) | {"devices": 10**20, "global_batch_size": 4 * 10**20}]
    table = frame(stored)
    assert table["devices"].isna().tolist() == [False, True]
    assert table["global_batch_size"].isna().tolist() == [False, True]


def test_a_count_that_is_no_whole_number_is_left_out() -> None:
    """One such row does not make the table unreadable, and its figure is absent instead of rounded."""
    table = frame([rows.make(repeat=0), rows.make(repeat=1) | {"machine_devices": 2.5}, rows.make(repeat=2)])
    assert table["machine_devices"].isna().tolist()[1]
    table = frame([rows.make(repeat=i) | {"steps": 10.0} | {"devices": d} for i, d in enumerate((1, 1e20, 2.5))])
    assert table["devices"].isna().tolist() == [False, True, True]
