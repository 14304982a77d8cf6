"""Filters, headings, differences, provenance and figures of runs, by their data."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.quantities import quantity
from analytics.runs import store
from analytics.runs.frame import frame
from app.charts import bars, timeline
from app.pages import run as onerun
from app.pages import runs as listed
from bench.meters.meter import Reading
from bench.meters.trace import Trace
from bench.record import Quality, Status
from bench.store import artifacts as stored
from tests import rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
]
DF = frame(
    [
        rows.make(1, precision="fp32", repeat=0),
        rows.make(2, precision="bf16", repeat=1, readings="e"),
        rows.make(4, precision="bf16", repeat=2, status=Status.FAILED, message="no room and no hope"),
    ]
)


@pytest.mark.parametrize(
    ("where", "devices"),
    [
        ("", [1, 2, 4]),
        ("devices >= 2", [2, 4]),
        ("devices>=2 and precision==bf16 and status = ok", [2]),
        ("devices != 2", [1, 4]),
        ("DEVICES".lower() + " < 2.5", [1, 2]),
        ("precision = BF16", [2, 4]),
        ("precision != bf16", [1]),
        ('error_message contains "no room and no hope"', [4]),
        ('error_message CONTAINS "ROOM AND" AND devices > 1', [4]),
        ("label contains d1", [1]),
        ("samples_per_second is known", [1, 2]),
        ("samples_per_second IS UNKNOWN", [4]),
        ("samples_per_second > 0", [1, 2]),
        ("samples_per_second != 0", [1, 2]),
        ("energy_joules is unknown and status == ok", [2]),
        ("workload_args.preset == tiny", [1, 2, 4]),
        ("started_at >= 2026-01-02T03:05", [2, 4]),
        ("started_at < 2026-01-02T03:05", [1]),
        ("error_message == x", []),
        ('suite == "synthetic"', [1, 2, 4]),
        ("joules_per_sample < 1e9", [1]),
    ],
)
def test_conditions(where: str, devices: list[int]) -> None:
    assert DF[listed.matching(DF, where)]["devices"].tolist() == devices


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("devics >= 2", "no field 'devics': did you mean 'devices'?"),
        ("zzzzzz = 2", "there is no field 'zzzzzz'"),
        ("devices = two", "devices is a number"),
        ("devices = nan", "devices is a number"),
        ("devices < inf", "devices is a number"),
        ("devices contains 2", "devices is a number"),
        ("started_at > yesterday", "started_at is a time in UTC"),
        ("precision > bf16", "precision is text"),
        ("precision is bf16", "write precision is known"),
        ("devices", "no condition"),
        ("devices >= 2 and", "devices is a number"),
        ("and", "no condition"),
        ("devices >=", "no condition"),
        ("devices >= 2 or devices = 1", "devices is a number"),
        ('label contains "x', "a quotation mark is open"),
        ("@pd.eval('1') = 1", "there is no field"),
        ("__import__ = 1", "there is no field"),
    ],
)
def test_conditions_that_say_nothing(where: str, says: str) -> None:
    with pytest.raises(listed.FilterError, match="(?s)" + re.escape(says)) as caught:
        listed.matching(DF, where)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet='devics=<>!" and\x000123.isknow€\n\\', max_size=40) | st.text(max_size=30))
def test_whatever_is_typed_is_a_filter_or_one_line(where: str) -> None:
    try:
        kept = listed.matching(DF, where)
    except listed.FilterError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert len(kept) == len(DF)
        assert kept.dtype == bool


def test_quick_filters_and_search() -> None:
    def found(quick: dict[str, list[str]], text: str = "") -> list[int]:
        return listed.chosen(DF, quick, text, "devices < 9")["devices"].tolist()

    assert found({"status": ["ok"], "suite": []}) == [1, 2]
    assert found({"status": ["ok", "failed"], "suite": ["other"]}) == []
    assert found({}, "NO HOPE") == [4]
    assert found({}, "[") == [], "no regular expression"


def test_order_has_the_unknown_last() -> None:
    for descending in (True, False):
        assert listed.ordered(DF, "samples_per_second", descending=descending)["devices"].tolist()[-1] == 4


def test_headings_have_units_and_mark_estimates() -> None:
    assert listed.title("step_seconds_p95") == "step_seconds_p95 [s]"
    assert listed.title("joules_per_token") == "J/token"
    assert listed.title("energy_joules_cpu_estimated") == "~ energy_joules_cpu_estimated [J]"
    assert listed.title("emissions_kg_per_million_tokens") == "g CO2e/million tokens"
    assert listed.title("samples_per_second") == "Samples/s"
    assert (quantity("flops_per_second_per_device").factor, quantity("flops_per_second_per_device").unit) == (
        1e-9,
        "GFLOP/s",
    )
    assert (quantity("memory_available_bytes").factor, quantity("memory_available_bytes").unit) == (1e-6, "MB")
    assert (quantity("devices").factor, quantity("devices").unit) == (1.0, "")
    shown = listed.scaled(DF, ["peak_memory_bytes", "label"])
    assert shown["peak_memory_bytes"].tolist()[:2] == [1000, 1000]
    assert set(listed.columns(DF)) == set(DF.columns)


def test_two_runs_have_the_verdict_of_their_configurations() -> None:
    column, speed = "Configurations, B / A", listed.title("samples_per_second")
    single = listed.figures(DF, DF.iloc[0], DF.iloc[1]).set_index("Figure")
    assert single.loc[speed, "B / A"] == pytest.approx(2)
    assert single.loc[speed, column].startswith("undecided: 2")
    assert listed.title("joules_per_sample") not in single.index, "B has none"
    speeds = {"fp32": (1e9, 1.1e9, 1.05e9), "bf16": (2e9, 2.1e9, 2.15e9)}
    many = frame([rows.make(precision=p, repeat=r, v=v) for p in speeds for r, v in enumerate(speeds[p])])
    fp32, bf16 = (many[many["precision"] == name] for name in speeds)
    repeats = listed.figures(many, fp32.iloc[0], fp32.iloc[1]).set_index("Figure")
    assert repeats.loc[speed, column] == "repeats of one configuration"
    told = listed.figures(many, fp32.iloc[0], bf16.iloc[2]).set_index("Figure")
    assert told.loc[speed, column].startswith("better: 1.98")
    apart = frame([*many.to_dict("records"), rows.make(execution="other")])
    other = listed.figures(apart, apart.iloc[0], apart[apart["execution"] == "other"].iloc[0]).set_index("Figure")
    assert other.loc[speed, column] == "not runs of one execution"


def test_facts_of_two_runs() -> None:
    table = listed.facts(listed.wanted(DF, DF.iloc[0]), listed.wanted(DF, DF.iloc[1]))
    differ = set(table[table["A"] != table["B"]]["What"])
    assert differ == {"devices_per_node", "precision", "devices", "global_batch_size", "repeat"}


def real(uri: str, status: str) -> tuple[pd.DataFrame, pd.Series, onerun.Opened]:
    df = store.load(uri, named=True)
    run = df[(df["status"] == status) & (df["devices"] == df[df["status"] == status]["devices"].max())].iloc[0]
    return df, run, onerun.opened(stored.files(run["mlflow_run_id"], uri).files)


def test_a_real_run_opened(recorded_uri: str) -> None:
    df, run, one = real(recorded_uri, "ok")
    assert one.record is not None
    assert one.record.measurement is not None
    assert one.problems == ()
    assert one.steps["seconds"].tolist() == one.record.measurement.step_seconds
    assert one.steps["step"].iloc[-1] == one.record.measurement.quality[-1].step
    names = [name for name, *_ in one.spans]
    assert names[0] == "launch"
    assert one.spans[0][1] == 0
    window = one.spans[names.index("steady")]
    assert window[2] - window[1] == pytest.approx(one.record.measurement.window_seconds, rel=0.05)
    assert all("~ estimated, codecarbon" in name for name in one.power)
    table = onerun.provenance(df, run, one.record).set_index("Figure")
    assert table.loc["~ Energy of the window [J]", "Comes from"] == "~ by CodeCarbon"
    assert table.loc["~ Energy of the window [J]", "Covered [%]"] > 90
    assert table.loc["Samples/s", "Comes from"] == "timed or counted in the run"
    assert table.loc["Parameters", "Comes from"] == "counted from the model's shapes"
    sensors = onerun.readings(one.record)
    assert len(sensors) == len(one.record.measurement.energy)
    assert {"Component", "Energy [J]", "Comes from", "Covered [%]"} <= {*sensors}
    assert "Limits" not in sensors  # no sensor has one
    drawn = {name: figure for _, name, figure, _ in onerun.of_run(one)}
    assert set(drawn) == {"power", "steps", "loss", "phases", "memory"}
    assert len(drawn["memory"].data[0].x) == one.record.spec.world_size
    two = {name: figure for _, name, figure, _ in onerun.of_two({"A": one, "B": one})}
    assert len(two["power-of-two"].data) == 2 * len(drawn["power"].data)


def test_a_real_run_that_failed(recorded_uri: str) -> None:
    df, run, one = real(recorded_uri, "out_of_memory")
    why, tail = onerun.failure(run, one)
    assert "can't allocate memory" in why
    assert tail
    assert "memory" in one.log or tail
    assert len(onerun.provenance(df, run, one.record))
    assert {name for _, name, *_ in onerun.of_run(one)} <= {"power"}


def test_measured_energy_has_its_bound_and_what_it_lacks() -> None:
    record = rows.record()
    assert record.measurement is not None
    reading = record.measurement.energy[0].model_copy(update={"gain_share": 0.05, "coverage": 0.99})
    measured = record.measurement.model_copy(update={"energy": [reading]})
    record = record.model_copy(update={"measurement": measured})
    df = frame([rows.row(record)])
    table = onerun.provenance(df, df.iloc[0], record).set_index("Figure")
    found = table.loc["J/sample"]
    assert found["Comes from"] == "by energy counters"
    assert found["Error at most [±]"] == pytest.approx(0.05 * found["Value"])
    assert found["Covered [%]"] == 99
    assert found["Lacks"] == "dram"
    assert table.loc["Systematic error of the energy [J]", "Comes from"].startswith("a bound")
    assert table.loc["CO2e, whole run [g CO2e]", "Comes from"].startswith("energy (measured) × PUE")
    told = {label: (value, note) for label, value, note in onerun.headline(df.iloc[0])}
    assert " ± " in told["Energy of the window [J]"][0]
    assert "lacks dram" in told["Energy of the window [J]"][1]


def test_an_imported_row_and_torn_files() -> None:
    df = frame([rows.make() | {"flags": "imported"}])
    one = onerun.opened({})
    assert "imported" in one.problems[0]
    assert set(onerun.provenance(df, df.iloc[0], None)["Comes from"]) == {"imported: a figure of someone else"}
    assert onerun.limits(df.iloc[0])[0].startswith("Figures from a file")
    torn: dict[str, bytes] = dict.fromkeys(("record.json", "meters-0.parquet", "worker.log"), b"\xff{")
    one = onerun.opened(torn | {"steps-0.jsonl": b'[]\n{"step_seconds": "x"}\nnonsense\n{"step_seconds": 1}'})
    assert len(one.problems) == 2
    assert one.steps["seconds"].dropna().tolist() == [1]
    assert next(iter(onerun.of_run(one)))[1] == "steps"


def test_steps_of_a_command_are_differences_of_times() -> None:
    lines = b"".join(b'{"t_ns": %d, "rank": 0, "loss": 2}\n{"t_ns": 5, "rank": 1}\n' % t for t in (10**9, 3 * 10**9))
    steps = onerun.opened({"steps-command.jsonl": lines}).steps
    assert steps["seconds"].dropna().tolist() == [2]


def test_numbers_of_steps_that_are_none_are_passed_over() -> None:
    lines = b'{"t_ns": "x"}\n{"start_ns": [1], "step_seconds": 1}\n{"start_ns": 5, "step_seconds": 2, "loss": "y"}'
    steps = onerun.opened({"steps-0.jsonl": lines}).steps
    assert steps["seconds"].tolist() == [2]
    assert steps["loss"].isna().all()


@pytest.mark.parametrize(
    "line", [b'{"t_ns": 1%s}' % (b"0" * 400), b'{"step_seconds": 1%s}' % (b"0" * 400), b"[" * 10**5]
)
def test_lines_that_no_number_or_stack_holds(line: bytes) -> None:
    one = onerun.opened({"steps-0.jsonl": line + b'\n{"step_seconds": 2}', "record.json": line})
    assert one.steps["seconds"].tolist() == [2]
    assert one.problems == ("The record of this run is torn, or of another version.",)


def test_a_record_with_a_time_that_is_no_time() -> None:
    text = rows.record().model_dump_json()
    huge = text.replace('"phases":[]', '"phases":[{"name":"steady","start_ns":0,"end_ns":1%s}]' % ("0" * 400))
    assert huge != text
    assert len(onerun.opened({"record.json": huge.encode()}).problems) == 1
    assert onerun.opened({"record.json": text.encode()}).problems == ()


def test_a_long_trace_is_thinned_before_it_becomes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(onerun, "Reading", lambda **values: made.append(values) or Reading(**values))
    names = ["a", "b", "c", "d"] * 2500
    about: dict[str, Any] = {"wall_ns": 0, "source": "nvml", "component": "gpu", "power_mw": 7000}
    Trace(Reading(t_ns=t, device=name, **about) for t, name in enumerate(names)).write_parquet(tmp_path / "x")
    files = {"meters-0.parquet": (tmp_path / "x").read_bytes()}
    monkeypatch.setattr(onerun, "KEPT_ROWS", 1000)
    power = onerun.opened(files).power
    assert 800 < len(made) < 1200
    table = pq.read_table(tmp_path / "x").drop_columns(["mode", "event"])
    pq.write_table(table, tmp_path / "y")
    assert onerun.opened({"meters-0.parquet": (tmp_path / "y").read_bytes()}).power.keys() == power.keys()
    assert {name: {watts for _, watts in points} for name, points in power.items()} == {
        f"gpu {name} (nvml)": {7} for name in "abcd"
    }
    assert min(map(len, power.values())) > 150, "no device is favoured"
    monkeypatch.setattr(onerun, "MOST_ROWS", 9999)
    one = onerun.opened(files)
    assert (one.power, len(one.problems)) == ({}, 2)
    assert len(made) < 2400, "nothing of it is read"


def test_the_end_of_a_long_log_is_shown() -> None:
    log = onerun.opened({"worker.log": b"first" + b"x" * 10**6 + b"last"}).log
    assert log.startswith("… (the file worker.log has all of it)")
    assert log.endswith("last")
    assert len(log) < onerun.LOG + 100
    assert onerun.opened({"worker.log": b"short"}).log == "short"


def test_text_under_a_name_like_a_figures_has_no_unit() -> None:
    df = pd.DataFrame(
        {"workload_args.limit_bytes": ["10MB", None], "peak_memory_bytes": [1e6, 2e6], "label": ["a", "b"]}
    )
    shown = listed.scaled(df, list(df))
    assert shown["workload_args.limit_bytes"].tolist()[0] == "10MB"
    assert shown["peak_memory_bytes"].tolist() == [1, 2]
    heads = {"workload_args.limit_bytes": "workload_args.limit_bytes", "peak_memory_bytes": "Peak memory [MB]"}
    assert listed.headings(df, list(df)) == heads | {"label": "Configuration"}


def of_readings(*changes: dict[str, Any]) -> pd.DataFrame:
    record = rows.record()
    assert record.measurement is not None
    energy = [record.measurement.energy[0].model_copy(update=change) for change in changes]
    record = record.model_copy(update={"measurement": record.measurement.model_copy(update={"energy": energy})})
    df = frame([rows.row(record)])
    return onerun.provenance(df, df.iloc[0], record).set_index("Figure")


def test_a_component_has_its_own_bound() -> None:
    gpu = {"component": "gpu", "energy_joules": 900.0, "gain_share": 0.05, "coverage": 0.9}
    table = of_readings(gpu, {"component": "dram", "energy_joules": 100.0, "gain_share": 0.1, "coverage": 1.0})
    assert table.loc["energy_joules_gpu [J]", "Error at most [±]"] == pytest.approx(45)
    assert table.loc["energy_joules_dram [J]", "Error at most [±]"] == pytest.approx(10)
    assert table.loc["energy_joules_dram [J]", "Covered [%]"] == 100
    assert table.loc["energy_joules_dram [J]", "Lacks"] == ""
    assert table.loc["Energy of the window [J]", "Error at most [±]"] == pytest.approx((45**2 + 10**2) ** 0.5)
    assert table.loc["Energy of the window [J]", "Lacks"] == "cpu"


def test_readings_of_no_energy_have_no_bound() -> None:
    table = of_readings({"energy_joules": 0.0, "gain_share": 0.05})
    assert pd.isna(table.loc["Energy of the window [J]", "Error at most [±]"])


def test_an_error_of_an_estimate_is_no_estimate() -> None:
    assert listed.title("memory_estimate_error") == "Error of the memory estimate [%]"
    assert onerun._origin("memory_estimate_error", DF.iloc[0]).endswith("against the peak that was measured")
    assert onerun._origin("memory_estimated_bytes", DF.iloc[0]) == "~ estimated from shapes alone"
    assert onerun._origin("workload_args.costly", DF.iloc[0]) == "timed or counted in the run"


def test_of_two_sources_of_one_device_the_named_one_is_drawn(tmp_path: Path) -> None:
    def reading(source: Any, watts: int, second: int, device: str = "GPU-1") -> Reading:
        about = {"source": source, "component": "gpu", "device": device}
        return Reading(t_ns=second * 10**9, wall_ns=0, power_mw=1000 * watts, **about)

    given = [reading("nvml", 300, t) for t in range(5)] + [reading("codecarbon", 7, t) for t in range(5)]
    given += [reading("nvml", 100, t, "GPU-2") for t in range(3000)]
    Trace(given).write_parquet(tmp_path / "meters-0.parquet")
    power = onerun.opened({"meters-0.parquet": (tmp_path / "meters-0.parquet").read_bytes()}).power
    told = {name: {watts for _, watts in points} for name, points in power.items()}
    assert told in (
        {"gpu GPU-1 (nvml)": {300}, "gpu GPU-2 (nvml)": {100}},
        {"gpu GPU-1 (~ estimated, codecarbon)": {7}, "gpu GPU-2 (nvml)": {100}},
    )
    assert len(power["gpu GPU-2 (nvml)"]) == onerun.POINTS


def test_the_way_into_mlflow() -> None:
    assert onerun.in_mlflow("sqlite:////a b/mlflow.db", "7", "f" * 32) == (
        f"http://127.0.0.1:5000/#/experiments/7/runs/{'f' * 32}",
        "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'",
    )
    url, command = onerun.in_mlflow("https://me:secret@host:1/base/", "7", "f" * 32)
    assert url == f"https://host:1/base/#/experiments/7/runs/{'f' * 32}"
    assert command == ""
    assert onerun.in_mlflow("postgresql://me:secret@host/x", "7", "f" * 32) == ("", "")


def steps(*seconds: float, warm: int = 0) -> pd.DataFrame:
    rows_: dict[str, Any] = {"step": range(1, len(seconds) + 1), "seconds": seconds, "loss": None}
    return pd.DataFrame(rows_ | {"window": [i >= warm for i in range(len(seconds))]})


def test_steps_chart_tells_warm_up_window_and_outliers() -> None:
    figure = timeline.steps_chart({"": steps(9, 1, 1, 1, 5, warm=1)})
    parts = {trace.name: list(trace.y) for trace in figure.data}
    assert parts["warm-up"] == [9]
    assert parts["step"] == [1, 1, 1]
    assert parts["over 1.5 × the median"] == [5]
    assert parts["median 1 s"] == [1, 1]
    markers = [trace.marker.symbol for trace in figure.data if trace.mode == "markers"]
    assert len(set(markers)) == 3


def test_power_chart_shades_the_window_and_escapes_names() -> None:
    spans = [("start", 0.0, 2.0), ("steady", 2.0, 10.0), (rows.HOSTILE, 10.0, 12.0)]
    figure = timeline.power_chart({rows.HOSTILE: [(0, 5), (12, 6)], "b": [(0, 1), (12, 1)]}, spans)
    assert "<img" not in figure.to_json().replace("\\u003c", "<")
    labels = {shape.label.text: (shape.x0, shape.x1) for shape in figure.layout.shapes if shape.label.text}
    assert labels["measured window"] == (2, 10)
    assert figure.layout.yaxis.title.text == "power [W]"
    assert len({trace.line.dash for trace in figure.data}) == 2


def test_phases_chart_keeps_measured_and_estimated_apart() -> None:
    phases = pd.DataFrame({"phase": ["start", "steady", "start"], "seconds": [1.0, 8.0, 1.0]})
    phases = phases.assign(energy_joules=[None, None, None], energy_joules_estimated=[0.0, 30.0, 10.0])
    figure = bars.phases_chart(phases.astype({"energy_joules": "float64"}))
    assert {trace.name: list(trace.x) for trace in figure.data} == {"start": [20, 25], "measured window": [80, 75]}
    assert list(figure.data[0].y) == ["time", "~ energy, estimated"]


def test_memory_and_loss_charts() -> None:
    figure = bars.amounts_chart({"peak": {"rank 0": 1000, "rank 1": 2000}, "limit": {"rank 0": 4000}}, "MB", "group")
    assert [list(part.x) for part in figure.data] == [[1000, 2000], [4000]]
    assert len({part.marker.pattern.shape for part in figure.data}) == 2
    loss = timeline.loss_chart(
        steps(1, 1).assign(loss=[3.0, 2.0]),
        [
            Quality(step=2, read_ns=0, seconds=1, samples=1, loss=2.5, accuracy=0.4),
            Quality(step=4, read_ns=0, seconds=1, samples=1, loss=2.1),
        ],
    )
    parts = {trace.name: (list(trace.x), list(trace.y)) for trace in loss.data}
    assert parts["training loss"] == ([1, 2], [3, 2])
    assert parts["loss on held-out samples"] == ([2, 4], [2.5, 2.1])
    assert list(loss.data[1].text) == ["40 % correct", ""]
