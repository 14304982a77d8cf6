"""The pages, run by Streamlit's own test harness on synthetic rows."""

import socket
from typing import Any

import pytest

from analytics.runs import store
from analytics.runs.frame import frame
from app import page, serve
from bench.errors import UserError
from bench.record import Status
from bench.store import tracker as tracking
from tests import rows
from tests.pages import EVIL, Open, opener, safe, texts

open_page = opener("overview")
RUNS = sorted(set(page.PAGES) - {"search"})
"""Pages that read runs."""


def test_overview_counts_and_totals(open_page: Open) -> None:
    given = [rows.make(), rows.make(2, readings="e"), rows.make(4, status=Status.FAILED, suite="other")]
    app = open_page(given)
    tiles = {tile.label: str(tile.value) for tile in app.metric}
    assert "3 runs in 2 suites: 2 ok, 1 failed" in texts(app)
    assert tiles["Energy, measured"] == "200 J", "two runs of 100 J"
    assert tiles["Energy, estimated by a model"] == "~450 J", "three of 150 J, in a tile of their own"
    assert {"CO2e, from measured energy", "CO2e, from energy estimated by a model"} <= set(tiles)
    assert tiles["Cost, rent of devices"] == "0.03 USD"
    assert "2 of 3 runs" in texts(app)
    assert "as of 20" in texts(app)


def test_overview_says_that_nothing_is_known_instead_of_zero(open_page: Open) -> None:
    app = open_page([rows.make(readings="")])
    tiles = {tile.label: tile.value for tile in app.metric}
    assert tiles["Energy, measured"] == tiles["Energy, estimated by a model"] == "not known"
    assert not any("CO2e" in label or "Cost" in label for label in tiles)
    assert "No cost: the suites name no price." in texts(app)


def test_suite_is_kept_in_the_address(open_page: Open) -> None:
    app = open_page([rows.make(), rows.make(2, suite="other")], suite="other")
    assert app.selectbox(key="suite").value == "other"
    assert app.dataframe[0].value["suite"].tolist() == ["other"]


@pytest.mark.parametrize("name", ["overview", "scaling", "strategies"])
def test_an_address_of_what_is_gone_is_told(open_page: Open, name: str) -> None:
    given = [rows.make(), rows.make(2, suite="other")]
    assert not open_page(given, name, suite="other").warning
    app = open_page(given, name, suite="gone")
    assert app.warning[0].value == "The store has no suite of this address; this is another."
    app.selectbox(key="suite").select("other").run()
    assert not app.warning


@pytest.mark.parametrize("name", sorted({*page.PAGES} - {"planner"}))
def test_no_runs_and_a_store_that_does_not_answer(open_page: Open, name: str) -> None:
    app = open_page([], name)
    assert app.code[0].value.startswith("bench ")
    assert "Store:" in texts(app)
    app = open_page(tracking.StoreError("there is no store at x\nmake one with: bench run y"), name)
    assert app.text[0].value == "there is no store at x\nmake one with: bench run y"
    assert app.error[0].value.endswith("could not be read.")
    assert not app.metric


def test_an_error_is_not_kept(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page(tracking.StoreError("down"))
    monkeypatch.setattr(store, "load", lambda uri=None, **_: frame([rows.make()]))
    app.run()
    assert not app.error
    assert app.metric


def test_read_again(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page([rows.make()])
    monkeypatch.setattr(store, "load", lambda uri=None, **_: frame([rows.make(), rows.make(2)]))
    app.run()
    assert "1 run in 1 suite" in texts(app), "kept for a minute"
    app.button[0].click().run()
    assert "2 runs in 1 suite" in texts(app)


HOSTILE = ("label", "suite", "host", "device_name", "precision", "flags", "error_message", "workload", "execution")
HOSTILE += ("workload_args.preset", "emissions_basis", "grade", "energy_provenance", "energy_missing", "cost_basis")
HOSTILE += ("error_type", "memory", "region", "environment")


@pytest.mark.parametrize(
    ("name", "query"),
    [(name, {}) for name in RUNS]
    + [("runs", {"all": "true", "where": EVIL[0]}), ("runs", {"run": f"{0:032x}", "other": f"{4:032x}"})]
    + [("strategies", {"suite": EVIL[1]}), ("scaling", {"suite": EVIL[2]}), ("tradeoffs", {"suites": [*EVIL]})],
)
def test_hostile_text_is_never_markup(open_page: Open, name: str, query: dict[str, Any]) -> None:
    given: list[Any] = []
    for index, evil in enumerate(EVIL):
        over = dict.fromkeys(HOSTILE, evil) | {evil: 1.0}
        given += [rows.make(d, repeat=index, batch=8 * d) | over | {"ladder": d} for d in (1, 2)]
        given.append(rows.make(repeat=index, status=Status.FAILED) | over | {"status": evil if index else "failed"})
        given.append(rows.make(4, repeat=index, batch=64, status=Status.FAILED) | over | {"ladder": 4})
    safe(open_page(given, name, **query))


def test_commands_name_the_store_where_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(page.st, "code", lambda line, **_: shown.append(line))
    page.code("bench fit scaling")
    monkeypatch.setenv(serve.TRACKING_URI, "sqlite:////tmp/a b/mlflow.db")
    for command in (
        "bench fit scaling",
        "echo x > y.yaml && bench run y.yaml",
        "bench measure -- torchrun x",
        "mlflow ui",
    ):
        page.code(command)
    store_ = " --store 'sqlite:////tmp/a b/mlflow.db'"
    commands = ["bench fit scaling", f"bench fit scaling{store_}", f"echo x > y.yaml && bench run y.yaml{store_}"]
    assert shown == [*commands, "bench measure -- torchrun x", "mlflow ui"]


def test_a_busy_port_is_one_line() -> None:
    with socket.socket() as busy:
        busy.bind((serve.HOST, 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: 127.0.0.1:{port} cannot be used") as caught:
            serve.serve(port, open_browser=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="from 1 to 65535"):
        serve.serve(0, open_browser=False)
