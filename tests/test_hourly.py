"""Rates by the hour: the arithmetic by hand, and files with mistakes."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from analytics.runs.hourly import read_hourly
from analytics.runs.recost import reprice
from analytics.say.factors import by_the_hour, words
from analytics.text import number
from bench.schema import Site
from tests import rows

START = datetime(2026, 1, 2, 3, 30, tzinfo=UTC)


def saved(text: str, name: str = "grid.csv") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def day(kg: dict[int, float], otherwise: float | None = 0.1) -> Path:
    known = {hour: kg.get(hour, otherwise) for hour in range(24)}
    return saved("hour,kg_per_kwh\n" + "".join(f"{h},{v}\n" for h, v in known.items() if v is not None))


def test_a_run_meets_the_time_weighted_mean_of_its_hours() -> None:
    rates = read_hourly(day({3: 0.4, 4: 0.1, 5: 0.2}))
    # from 3:30: half an hour of 0.4, one hour of 0.1, half an hour of 0.2
    assert rates.mean(START, 7200).kg_per_kwh == pytest.approx((0.5 * 0.4 + 1 * 0.1 + 0.5 * 0.2) / 2)
    assert rates.mean(START, 0).kg_per_kwh == 0.4
    assert rates.mean(START, 10).usd_per_kwh is None
    assert rates.mean(START + timedelta(hours=20), 3600).kg_per_kwh == pytest.approx(0.1), "a day repeats"


def test_times_with_zones_quarters_of_hours_and_prices() -> None:
    rates = read_hourly(
        saved(
            "time,g_per_kwh,usd_per_kwh\n2026-01-02T03:30:00Z,100,0.1\n2026-01-02T03:45,200,0.2\n"
            "2026-01-02T05:00+01:00,400,0.4\n"
        )
    )
    found = rates.mean(START, 45 * 60)
    assert found.kg_per_kwh == pytest.approx((0.1 + 0.2 + 0.4) / 3)
    assert found.usd_per_kwh == pytest.approx((0.1 + 0.2 + 0.4) / 3)
    local = START.astimezone(timezone(timedelta(hours=-5)))
    assert rates.mean(local, 45 * 60) == found
    with pytest.raises(ValueError, match=r"does not cover 2026-01-02 04:15 UTC; it has 3 rows from 2026-01-02 03:30"):
        rates.mean(START, 46 * 60)
    with pytest.raises(ValueError, match="does not cover"):
        rates.mean(START - timedelta(seconds=1), 10)


def test_a_gap_is_not_filled() -> None:
    rates = read_hourly(saved("time,kg_per_kwh\n2026-01-02T03:00Z,0.1\n2026-01-02T05:00Z,0.2\n"))
    with pytest.raises(ValueError, match="does not cover 2026-01-02 04:00 UTC"):
        rates.mean(START, 7200)
    some = read_hourly(saved("hour,kg_per_kwh\n3,0.1\n"))
    with pytest.raises(ValueError, match=r"does not cover 2026-01-02 04:00 UTC; it has the hours 3$"):
        some.mean(START, 3600)


def test_carbon_and_electricity_of_stored_runs() -> None:
    path = saved("hour,kg_per_kwh,usd_per_kwh\n3,0.4,0.5\n4,0.2,0.3\n")
    rates = read_hourly(path)
    owned = rows.record(1).model_copy(
        update={"started_at": START + timedelta(minutes=29, seconds=55), "site": Site(usd_capital_per_device_hour=3.6)}
    )
    (run,) = reprice([owned], {"pue": 1.5}, rates)
    assert run.carbon is not None
    assert run.carbon.emissions_kg == pytest.approx(100 / 3.6e6 * 1.5 * 0.3)  # 5 s of 0.4 and 5 s of 0.2
    assert run.carbon.intensity.source.startswith("user_supplied")
    assert run.carbon.intensity.region == "grid.csv"
    assert run.cost is not None
    assert run.cost.cost_usd == pytest.approx(10 / 3600 * 3.6 + 100 / 3.6e6 * 1.5 * 0.4)
    assert run.cost.note == "by the hour, grid.csv"
    assert words([run])["intensity"].startswith("0.3 kg CO2e/kWh, grid.csv")
    (unknown,) = reprice([owned], {}, rates)
    assert "pue_unknown" in unknown.flags


def test_a_rent_includes_power() -> None:
    rates = read_hourly(saved("hour,kg_per_kwh,usd_per_kwh\n3,0.4,0.5\n"))
    (run,) = reprice([rows.record(1)], {}, rates)
    assert run.cost is not None
    assert (run.cost.mode, run.cost.usd_per_kwh) == ("rental", None)
    assert run.cost.cost_usd == pytest.approx(10 / 3600 * 3.6)


def test_the_best_hour_to_have_started_in() -> None:
    rates = read_hourly(day({3: 0.4, 13: 0.05, 14: 0.3}))
    late = [rows.record(1, repeat=r) for r in range(2)]  # at 03:04:05 and a minute later
    lines = by_the_hour(reprice(late, {}, rates), rates)
    grams = 2 * 100 / 3.6e6 * 1000
    (line,) = lines
    assert f"13:00 UTC, {number(grams * 0.05)} g CO2e instead of {number(grams * 0.4)} g from 03:04 on" in line
    some = read_hourly(saved("hour,kg_per_kwh\n3,0.1\n4,0.05\n"))
    assert "04:00 UTC" in by_the_hour(reprice(late, {}, some), some)[0], "hours that are not covered cannot be chosen"
    series = read_hourly(saved("time,kg_per_kwh\n2026-01-02T03:00Z,0.1\n"))
    assert "covers less than a day" in by_the_hour(reprice(late, {}, series), series)[0]


def test_the_best_hour_of_days_that_are_named() -> None:
    late = [rows.record(1, repeat=r) for r in range(2)]  # 2026-01-02 03:04:05
    cells = [
        f"2026-01-0{day}T{hour:02d}:00Z,{0.02 if (day, hour) == (3, 5) else 0.4}"
        for day in (2, 3)
        for hour in range(24)
    ]
    rates = read_hourly(saved("\n".join(["time,kg_per_kwh", *cells])))
    (line,) = by_the_hour(reprice(late, {}, rates), rates)
    assert "from 2026-01-02 00:00 to 2026-01-03 23:00: 2026-01-03 05:00 UTC" in line
    assert "from 2026-01-02 03:04 on" in line
    year = [f"{datetime(2025, 12, 1) + timedelta(hours=h):%Y-%m-%dT%H:%M},0.{1 + h % 7}" for h in range(24 * 365)]
    rates = read_hourly(saved("\n".join(["time,kg_per_kwh", *year])))
    (line,) = by_the_hour(reprice(late, {}, rates), rates)
    assert "from 2026-01-02 00:00 to 2026-02-01 23:00" in line, "a month of a year"


def test_equal_hours_do_not_matter() -> None:
    rates = read_hourly(day({}))
    (line,) = by_the_hour(reprice([rows.record(1)], {}, rates), rates)
    assert "does not matter" in line


def test_many_values_are_told_as_a_span() -> None:
    rates = read_hourly(day({hour: 0.1 + hour / 100 for hour in range(24)}))
    runs = [rows.record(1, repeat=r).model_copy(update={"started_at": START + timedelta(hours=r)}) for r in range(6)]
    assert words(reprice(runs, {}, rates))["intensity"].startswith("0.13 to 0.18 kg CO2e/kWh, grid.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "grid.csv has no rows; it needs the columns time"),
        ("hour,kg_per_kwh\n", "has no rows"),
        ("a,b\n1,2\n", "has the columns a, b; it needs the columns time"),
        ("hour,time,kg_per_kwh\n1,2026-01-01,2\n", "it needs the columns"),
        ("hour,kg_per_kwh,g_per_kwh\n1,2,3\n", "it needs the columns"),
        ("hour,kg_per_kwh\n24,0.1\n", "grid.csv, line 2: hour '24': must be less than or equal to 23"),
        ("hour,kg_per_kwh\n1.5,0.1\n", "hour '1.5': must be a whole number"),
        ("hour,kg_per_kwh\n1,-0.1\n", "line 2: kg_per_kwh '-0.1': must be greater than or equal to 0"),
        ("hour,kg_per_kwh\n1,nan\n", "kg_per_kwh 'nan': must be a finite number"),
        (
            "hour,kg_per_kwh\n1,400\n",
            "kg_per_kwh '400': must be less than or equal to 3 (g belong in g_per_kwh)",
        ),
        ("hour,g_per_kwh\n1,4000\n", "line 2: g_per_kwh '4000': must be less than or equal to 3000"),
        ("hour,kg_per_kwh\n1\n", "kg_per_kwh '': must be a number"),
        ("hour,kg_per_kwh\n1,0.1\n1,0.2\n", "line 3: hour is a duplicate"),
        ("hour,kg_per_kwh,usd_per_kwh\n1,0.1,\n", "usd_per_kwh '': must be a number"),
        ("time,kg_per_kwh\nyesterday,0.1\n", "time 'yesterday': "),
        ("time,kg_per_kwh\n2026-01-01T00:00Z,1\n2026-01-01T00:40Z,1\n2026-01-01T01:30Z,1\n", "is not a whole number"),
    ],
)
def test_a_file_with_a_mistake(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^grid.csv") as error:
        read_hourly(saved(text))
    assert said in str(error.value)


def test_a_file_that_is_no_text() -> None:
    Path("grid.csv").write_bytes(b"\xff\xfe\x00hour")
    with pytest.raises(ValueError, match="is not a CSV file"):
        read_hourly(Path("grid.csv"))
    with pytest.raises(ValueError, match=r"none\.csv: No such file"):
        read_hourly(Path("none.csv"))


def test_runs_without_energy_need_no_hours() -> None:
    rates = read_hourly(saved("hour,kg_per_kwh\n1,0.1\n"))
    (run,) = reprice([rows.record(1, readings="")], {}, rates)
    assert run.carbon is None
    with pytest.raises(ValueError, match="does not cover"):
        reprice([rows.record(1)], {}, rates)


def test_rates_that_read_the_same_are_told_once() -> None:
    rates = read_hourly(day({}, 0.1))
    runs = [rows.record(1).model_copy(update={"duration_seconds": seconds}) for seconds in (0.3, 0.7, 1.1)]
    assert words(reprice(runs, {}, rates))["intensity"].startswith("0.1 kg CO2e/kWh, grid.csv")
