"""`bench report`: carbon and cost of stored runs by other factors, each with its label; files; the store stays as it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import Result

from bench.figures.cost import recost
from bench.figures.regions import intensity
from bench.record import RunRecord, Status
from bench.schema import Site
from bench.store import tracker as tracking
from bench.store.tracker import StoreError
from tests import rows
from tests.commands import bench
from tests.test_tracking import logged

pytestmark = pytest.mark.slow

OTHER = "20260103T030405-bbbb"


def priced(record: RunRecord, site: Site) -> RunRecord:
    return recost(record, site).model_copy(update={"grade": "B"})


def new_store(folder: Path) -> str:
    owned = Site(region="DE", usd_per_kwh=0.3, usd_capital_per_device_hour=1.0, price_note="ours")
    logged(folder, [priced(rows.record(1, repeat=r, execution=OTHER), owned) for r in range(2)])
    records = [rows.record(2, repeat=0), rows.record(1, readings="e", repeat=1)]
    failed = rows.record(4, status=Status.FAILED)
    return logged(folder, [*records, failed])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that no test changes."""
    return new_store(tmp_path_factory.mktemp("store"))


def report(*arguments: str) -> Result:
    return bench("report", *arguments)


def document(*arguments: str) -> dict[str, Any]:
    done = report("--json", *arguments)
    assert done.exit_code == 0, done.output
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_nothing_given_shows_what_is_stored(store: str) -> None:
    done = document("synthetic", "--store", store, "--execution", rows.make()["execution"])
    execution = str(rows.make()["execution"])
    fitted = bench("fit", "synthetic", "--store", store, "--json", "--execution", execution)
    assert done["factors"]["intensity"][0]["region"] == "XX"
    assert done["factors"]["intensity"][0]["kg_per_kwh"] == 0.4
    assert done["factors"]["price"] == [{"mode": "rental", "usd_per_device_hour": 3.6, "runs": 3}]
    assert [(e["basis"], e["provenance"], e["runs"]) for e in done["factors"]["energy"]] == [
        ("measured", "measured_counter", 2),
        ("estimated", "estimated_model", 1),
    ]
    stored = {run["run_id"]: run for run in json.loads(fitted.stdout)["runs"]}
    for run in done["runs"]:
        assert run["carbon"]["intensity"]["region"] == "XX"
        assert {k: v for k, v in run.items() if k not in ("carbon", "cost")} == stored[run["run_id"]]
    assert set(done) == {"factors", "runs", "configurations", "comparisons", "ladder", "precisions", "fit", "report"}


def test_other_factors_and_an_unchanged_store(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    before = contents(tmp_path)
    where = ["--store", store, "--execution", OTHER]
    done = document(*where, "--region", "FR", "--pue", "1.2", "--price", "2.1", "--price-note", "spot")
    factor = intensity("FR")
    for run in done["runs"]:
        joules = run["carbon"]["energy_joules"]
        assert joules == 100
        assert run["emissions_kg"] == pytest.approx(joules / 3.6e6 * 1.2 * factor.kg_per_kwh)
        assert run["cost_usd"] == pytest.approx(run["cost"]["devices"] * 10 / 3600 * 2.1)
        assert (run["cost"]["mode"], run["cost"]["usd_per_kwh"], run["cost"]["note"]) == ("rental", None, "spot")
        assert "pue_unknown" not in (run["flags"] or "")
    assert done["factors"]["pue"] == [{"pue": 1.2, "provenance": "user_supplied", "runs": 2}]
    assert done["factors"]["intensity"][0]["source"] == factor.source
    assert contents(tmp_path) == before


def test_what_is_not_given_stays(store: str) -> None:
    where = ["--store", store, "--execution", OTHER]
    (price,) = document(*where, "--electricity-price", "0.5")["factors"]["price"]
    assert price == {"mode": "owned", "usd_per_kwh": 0.5, "usd_capital_per_device_hour": 1.0, "runs": 2}
    run = document(*where, "--pue", "1.5")["runs"][0]
    kwh = 100 / 3.6e6
    assert run["cost_usd"] == pytest.approx(10 / 3600 * 1.0 + kwh * 1.5 * 0.3)
    assert run["emissions_kg"] == pytest.approx(kwh * 1.5 * intensity("DE").kg_per_kwh)
    assert run["cost"]["note"] == "ours"
    kept = document("--store", store, "--execution", rows.make()["execution"], "--pue", "1.1")["factors"]
    assert kept["intensity"][0]["region"] == "XX"  # a region that no table has: its stored intensity is used


def test_the_grade_follows_the_flags(store: str) -> None:
    where = ["--store", store, "--execution", OTHER]
    assert {run["grade"] for run in document(*where)["runs"]} == {"B"}
    assert {run["grade"] for run in document(*where, "--pue", "1.2")["runs"]} == {"A"}


def test_the_factors_in_words(store: str) -> None:
    done = report("--store", store, "--all", "--region", "SE")
    assert done.exit_code == 0, done.output
    printed = " ".join(done.output.split())
    assert "energy (measured by energy counters, without dram in 4 runs; estimated" in printed
    assert "PUE (1, given in 3 runs; not given: cooling is left out in 2 runs)" in printed
    assert "kg CO2e/kWh, Sweden, 2" in printed
    assert "3.6 USD per device-hour, power included in 3 runs; owned, 1 USD per device-hour + energy" in printed
    assert "Sum of whole runs: " in printed
    assert "samples/s" in printed


def test_how_to_give_what_is_not_known(tmp_path: Path) -> None:
    bare = rows.record(1).model_copy(update={"carbon": None, "cost": None, "site": Site()})
    store = logged(tmp_path, [bare])
    done = report("--store", store)
    assert "intensity (no region: give --region FR)" in done.output
    assert "no price is known: give --price, or --electricity-price and --capital-price" in done.output
    assert "bench report --region FR" in done.output
    assert document("--store", store)["runs"][0]["carbon"] is None
    assert document("--store", store, "--region", "FR")["runs"][0]["carbon"]["intensity"]["region"] == "FRA"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--region", "Narnia"], "region 'Narnia' is not known"),
        (["scalling"], "no runs of suite 'scalling' in"),
        (["--execution", "x"], "no runs of execution 'x' in "),
        (["--price", "1", "--capital-price", "2"], "give --price (rented) or --capital-price (owned), not both"),
        (["--pue", "0.5"], "--pue: must be greater than or equal to 1"),
        (["-o", "x.pdf"], "-o x.pdf: a suffix must name the format: html, md, csv, parquet, json"),
        (["-o", "report"], "-o report: a suffix must name the format"),
        (["-o", "-"], "-o -: --format must name the format"),
        (["-o", "x.html", "--format", "pdf"], "'pdf' is not one of 'html', 'md'"),
        (["--format", "md"], "--format is the format of a file: name one with -o"),
        (["-o", "folder.html"], "-o folder.html is a folder; name a file in it"),
        (["nosuch", "-o", "none/x.html"], "-o none/x.html cannot be written: No such file or directory"),
        (["-o", "file.txt/x.html"], "cannot be written: Not a directory"),
        (["--json", "-o", "x.html"], "--json prints the report, -o writes it: give only one of them"),
        (["--hourly", "none.csv"], "--hourly: none.csv: No such file or directory"),
        (["--hourly", "folder.html"], "--hourly: folder.html: Is a directory"),
        (["--hourly", "file.txt"], "--hourly: file.txt has the columns kept; it needs the columns time"),
        (["--hourly", "file.txt", "--region", "FR"], "give --region or --hourly, not both"),
        (["--hourly", "day.csv"], "day.csv does not cover 2026-01-02 03:00 UTC; it has the hours 1"),
        (["--hourly", "day.csv", "--price", "1"], "--hourly day.csv has electricity prices"),
    ],
)
def test_wrong_use(store: str, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file.txt").write_text("kept\n1\n")
    (tmp_path / "day.csv").write_text("hour,kg_per_kwh,usd_per_kwh\n1,0.1,0.2\n")
    before = contents(tmp_path)
    done = report("--store", store, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= (4 if "Usage" in done.stderr else 2)
    assert done.stdout == ""
    assert contents(tmp_path) == before, "nothing is left behind"


def test_only_the_runs_selected_are_fetched(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    real = tracking._record
    monkeypatch.setattr(tracking, "_record", lambda *given: fetched.append(given[1]) or real(*given))
    selected = [row for row in tracking.load(store) if row["execution"] == OTHER]
    found = tracking.records(selected, store)
    assert [record.run_id for record in found] == [row["run_id"] for row in selected]
    assert len(fetched) == 2
    assert tracking.records([], store) == []
    with pytest.raises(StoreError, match="is not at sqlite:"):
        tracking.records([{**selected[0], "run_id": "gone"}], store)


def test_an_artifact_that_cannot_be_had(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for path in (tmp_path / "store" / "mlartifacts").rglob("record.json"):
        path.write_text('{"schema_version": 99}')
    done = report("--store", store)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "cannot be read by this version" in done.stderr
    shutil.rmtree(tmp_path / "store" / "mlartifacts")
    done = report("--store", store)
    assert done.exit_code == 2
    assert done.stderr.startswith("bench: no record.json of synthetic")
    assert "bench sync --store" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_the_site_of_a_record_is_what_was_said_whether_it_was_of_use_or_not() -> None:
    for site in (
        Site(pue=1.3, usd_per_device_hour=2),
        Site(pue=1.0, usd_per_kwh=0.2),
        Site(region="FR", price_note="x"),
    ):
        assert recost(rows.record(1), site).site == recost(rows.record(1, readings=""), site).site == site
    lacking = recost(rows.record(1, readings=""), Site(pue=1.0, usd_per_kwh=0.2, usd_capital_per_device_hour=1))
    assert lacking.cost is not None
    assert lacking.cost.usd_per_kwh is None
    assert "electricity_unknown" in lacking.flags
    assert "electricity_unknown" not in recost(lacking, Site(usd_per_device_hour=1)).flags


def test_files_of_every_format(store: str, tmp_path: Path) -> None:
    names = ["report.html", "report.md", "runs.csv", "runs.parquet", "all.json", "as.txt"]
    (tmp_path / "report.html").write_text("an older one")
    outputs = [text for name in names[:5] for text in ("-o", name)]
    done = report("synthetic", "--store", store, "--all", "--region", "SE", *outputs)
    assert done.exit_code == 0, done.output
    assert [line.split(":")[0] for line in done.output.splitlines()] == names[:5]
    assert not list(tmp_path.glob(".*")), "no temporary file is left"
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "Sweden" in page
    assert "--all --region SE -o report.html" in page
    assert "host-1" in page
    assert (tmp_path / "report.md").read_text().startswith("# synthetic on Synthetic CPU")
    frames = [pd.read_csv("runs.csv"), pd.read_parquet("runs.parquet")]
    told = json.loads((tmp_path / "all.json").read_text())
    assert [len(df) for df in frames] == [5, 5] == [len(told["runs"])] * 2
    assert {*frames[0]["host"], *frames[1]["host"]} == {"host-1"}
    assert frames[0]["emissions_kg"].tolist() == pytest.approx([run["emissions_kg"] for run in told["runs"]])
    assert {run["region"] for run in told["runs"]} == {"SWE"}
    assert report("--store", store, "-o", "as.txt", "--format", "md").exit_code == 0
    assert (tmp_path / "as.txt").read_text().startswith("# synthetic")


def test_standard_output_and_a_date_of_the_source(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    first = report("--store", store, "-o", "-", "--format", "md", "--execution", OTHER)
    assert first.stdout.startswith("# synthetic on")
    assert "Made at 1970-01-01 00:00:00 UTC" in first.stdout
    assert f"--execution {OTHER}" in first.stdout
    again = report("--store", store, "-o", "-", "--format", "md", "--execution", OTHER)
    assert first.stdout_bytes == again.stdout_bytes


def test_hosts_are_named_where_that_is_asked(store: str) -> None:
    for options, named in (([], False), (["--with-hosts"], True), (["--unscrubbed"], True)):
        page = report("--store", store, "-o", "-", "--format", "html", *options).stdout
        assert ("synthetic-host" in page) is named


def test_carbon_by_the_hour(store: str, tmp_path: Path) -> None:
    day = "".join(f"{hour},{300 if hour == 3 else 50},0.5\n" for hour in range(24))
    (tmp_path / "day.csv").write_text("hour,g_per_kwh,usd_per_kwh\n" + day)
    where = ["--store", store, "--execution", OTHER, "--hourly", "day.csv"]
    done = document(*where)
    for run in done["runs"]:
        assert run["emissions_kg"] == pytest.approx(100 / 3.6e6 * 0.3)
        assert run["carbon"]["intensity"]["source"].startswith("user_supplied")
        assert run["cost_usd"] == pytest.approx(10 / 3600 * 1.0 + 100 / 3.6e6 * 0.5)
        assert run["cost"]["note"] == "by the hour, day.csv"
    printed = " ".join(report(*where).output.split())
    assert "0.3 kg CO2e/kWh, day.csv, given, mean of the hours of the run" in printed
    assert "Best hour to start: 00:00 UTC" in printed
    page = report(*where, "-o", "-", "--format", "html").stdout
    assert "Best hour to start: 00:00 UTC" in page
    assert "--hourly day.csv" in page
    rented = report("--store", store, "--execution", str(rows.make()["execution"]), "--hourly", "day.csv")
    assert "The prices of day.csv are not used for rented devices: a rent includes power." in rented.output
