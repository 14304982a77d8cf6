"""The Planner page, run by Streamlit's own test harness, and its charts by their data."""

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest

from analytics.plan.plan import Plan
from analytics.plan.question import Given, question, worded
from analytics.runs.frame import frame
from analytics.say.plan import choice, headline, nearest, options_table
from app.pages import planner as shown
from bench.errors import UserError
from bench.figures import carbon
from bench.schema import Site
from bench.store import tracker as tracking
from tests import rows
from tests.commands import bench
from tests.pages import EVIL, Open, answers, opener, safe, table, texts

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


open_page = opener("planner")


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
    assert "--deadline 31.3 days or more: 64 devices instead of 128." in text
    assert "64 to 128 devices: cost × " in text
    assert "published H100 trainings" in text
    assert "PUE 1.1" in text
    assert table(app, "devices")["devices"].tolist() == ["104", "128", "256", "512", "64", "32", "16", "8"]
    assert table(app, "region")["region"].tolist() == ["Sweden", "Poland"]
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
    chart = shown.options_chart
    monkeypatch.setattr(shown, "options_chart", lambda one: plans.append(one) or chart(one))
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
    assert list(table(app, "devices")) == ["devices", "time", "energy~, MWh"]
    assert "cost (give “Rent [USD per device-hour]”" in texts(app)
    assert "CO2e (give “Region”)" in texts(app)


def test_changing_a_field_changes_the_answer(open_page: Open) -> None:
    app = open_page(**ASKED)
    app.selectbox(key="deadline").select("60d").run()
    assert not app.exception
    assert answers(app)[0].startswith("Take 56 devices or more: ")
    app.select_slider(key="span").set_value((256, 512)).run()
    assert set(table(app, "devices")["devices"]) >= {"256", "512"}
    again = open_page(**ASKED, span=["256", "512"])
    assert "8" not in table(again, "devices")["devices"].tolist(), "the address"


def test_own_runs_and_published_ones(open_page: Open) -> None:
    runs = rows.grid((1, 2), ("tiny",), cores=2)
    app = open_page(runs, **OWN)
    assert "2 configurations of your runs on 1 and 2 devices (synthetic: fp32 ddp)" in texts(app)
    assert "this machine has only 2" in table(app, "devices")["obstacles"].iloc[-1], "4 devices are out of reach"
    app = open_page(runs, **ASKED)
    assert "Your 8 runs do not apply: none of them was on this device." in texts(app)
    app = open_page(runs, **OWN, speed="Published trainings only")
    assert "unknown device 'Synthetic CPU'" in texts(app)


def test_the_only_device_of_all_runs_need_not_be_named(open_page: Open) -> None:
    app = open_page(rows.grid((1, 2), ("tiny",)), **{name: OWN[name] for name in OWN if name != "device"})
    assert "Device: Synthetic CPU, that of all your runs." in texts(app)


def test_other_work_and_owned_devices(open_page: Open) -> None:
    query = {"kind": "Other work", "flops-per-sample": "1e12", "samples": "1B", "device": "RTX-4090", "devices": "1-8"}
    query |= {"paid": "Owned", "capital-price": "0.5", "electricity-price": "0.2", "power-watts": "450", "pue": "1.2"}
    app = open_page(**query)
    assert "1B samples × 1T FLOP" in texts(app)
    assert "0.50 USD/device-hour without power, 0.20 USD/kWh" in texts(app)
    assert "450 W a device" in texts(app)
    assert "--capital-price 0.5 --electricity-price 0.2" in app.code[0].value


TYPED = {"params": "7B", "tokens": "1T", "device": "H100-SXM", "devices": "8-512", "deadline": "30d", "price": "2.5"}
TYPED |= {"precision": "bf16"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"params": "much"}, "Parameters: 'much' is no number above 0 such as 7e9 or 7B"),
        ({"params": "-1"}, "Parameters: '-1' is no number above 0"),
        ({"params": "1e39", "tokens": "1e39"}, "cannot be meant (at most 1e+33)"),
        ({"params": rows.HOSTILE}, f"Parameters: '{rows.HOSTILE}' is no number"),
        ({"tokens": ""}, "what is trained?"),
        ({"deadline": "soon"}, "Deadline: 'soon' is no time"),
        ({"price": "1e39"}, "“Rent [USD per device-hour]”: must be less than or equal to 10"),
        ({"pue": "0.5"}, "“PUE”: "),
        ({"pue": "1e30"}, "“PUE”: "),
        ({"devices": "512-8"}, "Other numbers of devices: '512-8': give whole numbers"),
        ({"devices": "1-9999999"}, "give whole numbers"),
        ({"peak-flops": "1e30"}, "“Peak [FLOP/s]” 1e+30 cannot be meant"),
        ({"power-watts": "1e30"}, "“Power of a device [W]” 1e+30 cannot be meant"),
        ({"layers": "3"}, "both: its layers and its hidden size"),
        ({"active-params": "8B"}, "8B active parameters are more than all 7B"),
        ({"layers": "2", "hidden": "64"}, "or give “Active parameters” of a mixture of experts"),
        ({"device": None}, "on which device?"),
        ({"precision": "fp8", "device": "A100-SXM-80GB"}, "no peak of A100-SXM-80GB in fp8"),
    ],
)
def test_what_cannot_be_is_a_sentence(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        shown.planned(TYPED | changed, lambda: frame([]))
    assert said in worded(str(caught.value), shown.NAMES)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"params": "1e16", "tokens": "1e15"}, "the training state of"),
        ({"deadline": "0.001s"}, "No number of devices "),
        ({"budget": "0.0001"}, "No number of devices "),
        ({"batch": "0.5"}, "a batch has only "),
    ],
)
def test_what_does_not_go_is_the_answer(changed: dict[str, Any], said: str) -> None:
    _, one, remarks = shown.planned(TYPED | changed, lambda: frame([]))
    assert said in headline(one) + str(options_table(one)) + " ".join(remarks)


def test_bad_input_on_the_page(open_page: Open) -> None:
    app = open_page(**(ASKED | {"params": rows.HOSTILE}))
    assert f"Parameters: '{rows.HOSTILE}' is no number" in texts(app)
    assert not app.error
    safe(app)
    odd: dict[str, Any] = {"precision": "int1", "kind": "?", "paid": "?", "speed": "?", "span": ["9", "x"]}
    app = open_page(**(ASKED | odd | {"region": "Atlantis", "regions": [rows.HOSTILE, "Atlantis"]}))
    assert answers(app)[0].startswith("Take 104 devices or more: ")
    for name in ("Atlantis", rows.HOSTILE):
        assert f"Carbon is left out: region '{name}' is not known" in texts(app)
    safe(app)


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


def test_hostile_names_are_never_markup(open_page: Open) -> None:
    for evil in EVIL:
        over = dict.fromkeys(("suite", "host", "device_name", "workload", "execution", "label"), evil)
        app = open_page([row | over for row in rows.grid((1, 2), ("tiny",))], **(OWN | {"device": evil}))
        assert app.selectbox(key="device").value == evil
        assert evil in texts(app)
        safe(app, evil)


def test_a_laptop_without_codecarbon_says_so(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(region: str) -> Any:
        raise ValueError(f"carbon of region {region!r} needs the package codecarbon: pip install codecarbon")

    for module in (carbon, shown):
        monkeypatch.setattr(module, "intensity", absent)
    app = open_page(**ASKED, region="FR", regions=["FR"])
    assert "Carbon is left out: carbon of region 'FR' needs the package codecarbon" in texts(app)
    assert answers(app)[0].startswith("Take 104 devices or more: ")
    assert {"energy~, MWh"} == {name for name in table(app, "devices") if "~" in name}


def test_options_are_drawn_with_intervals_and_limits() -> None:
    one = plan(deadline=40 * 86400.0, budget=1e6)
    figure = shown.options_chart(one)
    *groups, deadline, budget = figure.data
    assert {trace.name for trace in groups} <= set(shown.GROUPS)
    assert (deadline.name, budget.name) == ("deadline, 40 days", "budget, 1,000,000 USD")
    by_name = {trace.name: trace for trace in groups}
    assert " late" in by_name["late or too dear"].hovertext[0]
    take, option = by_name["recommended"], choice(one)
    assert option is not None
    assert option.cost_usd is not None
    assert take.text == (f"{option.devices}",), "the one that the answer names"
    assert list(take.x) == [option.cost_usd.value]
    assert list(take.y) == pytest.approx([option.duration_seconds.value / 86400])
    assert take.error_x.array[0] == pytest.approx(option.cost_usd.high - option.cost_usd.value)
    assert take.error_y.arrayminus[0] > 0
    assert len({trace.marker.symbol for trace in groups}) == len(groups)
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("cost [USD]", "time [days]")
    free = shown.options_chart(plan(site=Site(), deadline=None))
    assert free.layout.xaxis.title.text == "devices"
    assert sorted(x for trace in free.data for x in trace.x) == [8, 64, 512]


def test_options_are_in_order_and_regions_are_known_or_not() -> None:
    one = plan(devices=(8, 16, 64, 128))
    assert [option.devices for option in one.options] == [128, 8, 16, 64]
    assert [option.devices for option in nearest(one, one.options)][:2] == [128, 64], "the likeliest of the others"
    free = plan(deadline=None)
    assert [option.devices for option in nearest(free, free.options)] == [8, 64, 512]
    hopeless = plan(devices=(1, 8, 64), deadline=3600.0, budget=1e9)
    assert {option.chance for option in hopeless.options} == {0}
    assert [option.devices for option in nearest(hopeless, hopeless.options)] == [64, 8, 1], (
        "the least late, after what cannot be"
    )
    known, unknown = shown.known_regions(["FR", "FR", "XX"])
    assert known == ["FR"]
    assert len(unknown) == 1
