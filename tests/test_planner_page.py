"""The Planner page, run by Streamlit's own test harness, and its charts by their data."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from analytics.plan.plan import Plan
from analytics.plan.question import Given, question
from analytics.runs import store
from analytics.runs.frame import frame
from analytics.say.plan import nearest
from app.pages import planner as shown
from bench.figures import carbon
from bench.schema import Site
from bench.store import tracker as tracking
from tests import rows
from tests.commands import bench
from tests.pages import EVIL, Open, answers, markup, opened, texts

ASKED = {"params": "7B", "tokens": "1T", "device": "H100-SXM", "deadline": "30d", "paid": "Rented", "price": "2.5"}
OWN = {"params": "166667", "tokens": "1B", "device": "Synthetic CPU", "precision": "fp32", "devices": "1-4"}
GIVEN = Given(
    params=7e9,
    tokens=1e12,
    device="H100-SXM",
    devices=(8, 64, 512),
    deadline=30 * 86400.0,
    priors=True,
    site=Site(region="FR", pue=1.1, usd_per_device_hour=2.5),
)


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    def run(given: Any = (), **query: Any) -> AppTest:
        def load(uri: str | None = None, **_: Any) -> pd.DataFrame:
            if isinstance(given, Exception):
                raise given
            return frame(given)

        monkeypatch.setattr(store, "load", load)
        return opened("planner", {name.replace("_", "-"): value for name, value in query.items()})

    yield run
    st.cache_data.clear()


def plan(**fields: Any) -> Plan:
    return Plan(question(replace(GIVEN, **fields), lambda: frame([]))[0])


def test_nothing_is_assumed(open_page: Open) -> None:
    app = open_page()
    assert answers(app) == ["Say what is trained, and on which device: in the sidebar."]
    assert "what is trained? give “Parameters” and “Tokens”" in texts(app)
    assert "--" not in texts(app)
    app.button[-1].click().run()
    assert not app.exception
    assert answers(app)[0].startswith("Take 104 devices or more: ")


def test_the_question_of_the_issue(open_page: Open) -> None:
    app = open_page(**ASKED, region="FR", pue="1.1", regions=["SE", "PL"])
    assert answers(app)[0].startswith("Take 104 devices or more: ")
    text = texts(app)
    assert "From a deadline of 31.3 days: 64 devices instead of 128." in text
    assert "64 to 128 devices: cost × " in text
    assert "published H100 trainings" in text
    assert "PUE 1.1" in text
    options, regions = (table.value for table in app.dataframe)
    assert options["Devices"].tolist() == [128, 256, 512, 8, 16, 32, 64]
    assert options["Rank"].tolist() == ["1", "2", "3", *["no"] * 4]
    assert regions["Region"].tolist() == ["SWE", "POL"]
    assert regions["Year"].str.fullmatch(r"\d{4}").all()
    assert app.code[0].value == (
        "bench plan --params 7B --tokens 1T --device H100-SXM --precision bf16 --devices 8-512 --deadline 30d "
        "--price 2.5 --pue 1.1 --region FR --regions SE,PL"
    )
    assert app.code[1].value.endswith("&& bench run plan-7b-bf16.yaml")
    assert "torchrun" in text


FULL = {"params": "8.03B", "tokens": "15.1e12", "active-params": "1.5B", "sequence": "8192", "devices": "8-64,100"}
FULL |= {"power-watts": "1234.5", "recompute": "true", "batch": "1024", "deadline": "30.5d", "budget": "1000001"}
FULL |= {"device": "H100-SXM", "region": "FR", "pue": "1.15", "paid": "Owned", "capital-price": "0.5"}


@pytest.mark.parametrize("query", [ASKED, FULL])
def test_the_command_line_gives_the_same_answer(
    open_page: Open, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    plans: list[Plan] = []

    def table(one: Plan) -> pd.DataFrame:
        plans.append(one)
        return pd.DataFrame({"Rank": [1]})

    monkeypatch.setattr(shown, "options_table", table)
    words = shlex.split(open_page(**query, speed="Published trainings only", regions=["FR", "US-CA"]).code[0].value)
    assert words[:2] == ["bench", "plan"]
    done = bench(*words[1:], "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["options"] == json.loads(json.dumps([option.to_dict() for option in plans[0].options]))
    assert [region["region"] for region in told["regions"]] == ["FRA", "US-CA"]


def test_the_command_line_is_quoted() -> None:
    evil = "x'; rm -rf ~ #\n$(id)"
    line = shown.command({"device": evil, "recompute": True, "priors": False, "budget": None, "store": "sqlite:///a b"})
    assert shlex.split(line) == [
        *["bench", "plan", "--device"],
        "x'; rm -rf ~ # $(id)",
        *["--recompute", "--store"],
        "sqlite:///a b",
    ]
    assert "\n" not in line


def test_what_is_not_given_is_not_computed(open_page: Open) -> None:
    app = open_page(**{name: ASKED[name] for name in ("params", "tokens", "device")})
    assert "Cost" not in app.dataframe[0].value
    assert not any("CO2e" in name or "Carbon" in name for name in app.dataframe[0].value)
    assert app.dataframe[0].value["Why"].iloc[0] == "First: the fastest; no cost is known."
    assert "cost (give “Rent [USD per device-hour]”" in texts(app)
    assert "CO2e (give “Region”)" in texts(app)


def test_changing_a_field_changes_the_answer(open_page: Open) -> None:
    app = open_page(**ASKED)
    app.selectbox(key="deadline").select("60d").run()
    assert not app.exception
    assert answers(app)[0].startswith("Take 56 devices or more: ")
    app.select_slider(key="span").set_value((256, 512)).run()
    assert app.dataframe[0].value["Devices"].tolist() == [256, 512]
    assert open_page(**ASKED, span=["256", "512"]).dataframe[0].value["Devices"].tolist() == [256, 512], "the address"


def test_own_runs_and_published_ones(open_page: Open) -> None:
    runs = rows.grid((1, 2), ("tiny",), cores=2)
    app = open_page(runs, **OWN)
    assert "2 configurations of your runs on 1 and 2 devices (synthetic: fp32 ddp)" in texts(app)
    assert "this machine has only 2" in app.dataframe[0].value["Why"].iloc[-1], "4 devices are out of reach"
    assert len(app.code) == 1, "the file of the suite is not here"
    app = open_page(runs, **ASKED)
    assert "Your 8 runs do not apply: none of them was on this device." in texts(app)
    app = open_page(runs, **OWN, speed="Published trainings only")
    assert "unknown device 'Synthetic CPU'" in texts(app)


def test_the_only_device_of_all_runs_need_not_be_named(open_page: Open) -> None:
    app = open_page(rows.grid((1, 2), ("tiny",)), **{name: OWN[name] for name in OWN if name != "device"})
    assert "Device: Synthetic CPU, that of all your runs." in texts(app)


def test_other_work_and_owned_devices(open_page: Open) -> None:
    query = {"kind": "Other work", "flops_per_sample": "1e12", "samples": "1B", "device": "RTX-4090", "devices": "1-8"}
    app = open_page(**query, paid="Owned", capital_price="0.5", electricity_price="0.2", power_watts="450", pue="1.2")
    assert "1B samples × 1T FLOP" in texts(app)
    assert "0.50 USD/h for the device, 0.20 USD/kWh" in texts(app)
    assert "450 W a device" in texts(app)
    assert "--capital-price 0.5 --electricity-price 0.2" in app.code[0].value


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"params": "much"}, "Parameters: 'much' is no number above 0 such as 7e9 or 7B"),
        ({"params": "-1"}, "Parameters: '-1' is no number above 0"),
        ({"params": "1e39", "tokens": "1e39"}, "cannot be meant (at most 1e+33)"),
        ({"params": "1e16", "tokens": "1e15"}, "the training state of"),
        ({"tokens": ""}, "what is trained?"),
        ({"deadline": "soon"}, "Deadline: 'soon' is no time"),
        ({"deadline": "0.001s"}, "No number of devices "),
        ({"budget": "0.0001"}, "No number of devices "),
        ({"price": "1e39"}, "“Rent [USD per device-hour]” 1e+39 cannot be meant"),
        ({"pue": "0.5"}, "“PUE”: "),
        ({"pue": "1e30"}, "“PUE”: "),
        ({"devices": "512-8"}, "Other numbers of devices: '512-8': give whole numbers"),
        ({"devices": "1-9999999"}, "give whole numbers"),
        ({"peak-flops": "1e30"}, "“Peak [FLOP/s]” 1e+30 cannot be meant"),
        ({"power-watts": "1e30"}, "“Power of a device [W]” 1e+30 cannot be meant"),
        ({"layers": "3"}, "both: its layers and its hidden size"),
        ({"active-params": "8B"}, "8B active parameters are more than all 7B"),
        ({"layers": "2", "hidden": "64"}, "or give “Active parameters” of a mixture of experts"),
        ({"region": "Atlantis"}, "Carbon is left out: region 'Atlantis' is not known"),
        ({"regions": "Atlantis"}, "Carbon is left out: region 'Atlantis' is not known"),
        ({"regions": [rows.HOSTILE, *map(str, range(40))]}, f"region '{rows.HOSTILE}' is not known"),
        ({"batch": "0.5"}, "a batch has only "),
        ({"device": "TPU-v9"}, "on which device?"),
        ({"precision": "fp8", "device": "A100-SXM-80GB"}, "no peak of A100-SXM-80GB in fp8"),
        (
            {"precision": "int1", "kind": "?", "paid": "?", "speed": "?", "span": ["9", "x"]},
            "Take 104 devices or more: ",
        ),
        ({"params": rows.HOSTILE}, f"Parameters: '{rows.HOSTILE}' is no number"),
    ],
)
def test_bad_input_is_a_sentence(open_page: Open, query: dict[str, Any], said: str) -> None:
    app = open_page(**(ASKED | query))
    assert said in texts(app)
    assert not app.error
    assert rows.HOSTILE not in markup(app)


@pytest.mark.parametrize("given", [[], tracking.StoreError("there is no store at x"), [rows.make()]])
def test_few_runs_or_none(open_page: Open, given: Any) -> None:
    app = open_page(given, **ASKED)
    assert answers(app)[0].startswith("Take 104 devices or more: ")
    if isinstance(given, Exception):
        assert app.text[0].value == "there is no store at x"
        assert app.warning[0].value.startswith("Your runs could not be read")


def test_one_run_is_enough_and_says_how_little_it_is(open_page: Open) -> None:
    app = open_page([rows.make()], **OWN)
    assert "only one number of devices was measured" in texts(app)


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_names_are_never_markup(open_page: Open, evil: str) -> None:
    over = dict.fromkeys(("suite", "host", "device_name", "workload", "execution", "label"), evil)
    app = open_page([row | over for row in rows.grid((1, 2), ("tiny",))], **(OWN | {"device": evil}))
    assert app.selectbox(key="device").value == evil
    assert evil in texts(app)
    assert evil not in markup(app)
    for table in app.dataframe:
        assert not table.value.astype("str").apply(lambda cells: cells.str.startswith("=")).any().any()


def test_a_laptop_without_codecarbon_says_so(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(region: str) -> Any:
        raise ValueError(f"carbon of region {region!r} needs the package codecarbon: pip install codecarbon")

    for module in (carbon, shown):
        monkeypatch.setattr(module, "intensity", absent)
    app = open_page(**ASKED, region="FR", regions=["FR"])
    assert "Carbon is left out: carbon of region 'FR' needs the package codecarbon" in texts(app)
    assert answers(app)[0].startswith("Take 104 devices or more: ")
    assert app.dataframe[0].value["Energy, ~ estimated"].str.contains("MWh").all()
    assert "Carbon, ~ estimated" not in app.dataframe[0].value


def test_options_are_drawn_with_intervals_and_limits() -> None:
    one = plan(deadline=40 * 86400.0, budget=1e6)
    figure = shown.options_chart(one)
    cannot, fits, first, deadline, budget = figure.data
    assert [trace.name for trace in (cannot, fits, first)] == list(shown.GROUPS)
    assert deadline.name == "deadline, 40 days"
    assert budget.name == "budget, 1,000,000 USD"
    assert [trace.text for trace in (first, fits, cannot)] == [("64",), ("512",), ("8",)]
    assert "late by " in cannot.hovertext[0]
    option = one.options[0]
    assert option.cost_usd is not None
    assert list(first.x) == [option.cost_usd.value]
    assert list(first.y) == pytest.approx([option.duration_seconds.value / 86400])
    assert first.error_x.array[0] == pytest.approx(option.cost_usd.high - option.cost_usd.value)
    assert first.error_y.arrayminus[0] > 0
    assert len({trace.marker.symbol for trace in (first, fits, cannot)}) == 3
    assert figure.layout.xaxis.title.text == "cost [USD]"
    assert figure.layout.yaxis.title.text == "time [days]"


def test_without_a_price_devices_are_drawn() -> None:
    figure = shown.options_chart(plan(site=Site(), deadline=None))
    assert figure.layout.xaxis.title.text == "devices"
    assert sorted(x for trace in figure.data for x in trace.x) == [8, 64, 512]
    assert [trace.mode for trace in figure.data] == ["markers+text"] * 2, "nothing is allowed, nothing is forbidden"


def test_why_an_option_stands_where_it_stands() -> None:
    one = plan(deadline=None)
    first, second, third = one.options
    assert shown.why(one, first) == "First: the cheapest."
    assert shown.why(one, second).endswith(" times the time of the first.")
    assert "times the cost and 0." in shown.why(one, third)
    one = plan(devices=(8, 16, 64, 128))
    assert [option.devices for option in one.options] == [128, 8, 16, 64]
    assert [option.devices for option in nearest(one)][:2] == [128, 64], "the likeliest of the others"
    assert [option.devices for option in nearest(plan(deadline=None))] == [8, 64, 512]
    hopeless = plan(devices=(1, 8, 64), deadline=3600.0, budget=1e9)
    assert {option.chance for option in hopeless.options} == {0}
    assert [option.devices for option in nearest(hopeless)] == [64, 8, 1], "the least late, after what cannot be"
    known, unknown = shown.known_regions(["FR", "FR", "XX"])
    assert known == ["FR"]
    assert len(unknown) == 1
