"""The answer of a plan as blocks: what is recommended, what is left out, and commands that run as they are printed."""

import json
import re
import subprocess
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from analytics.interval import Interval
from analytics.plan.plan import Plan, PlanOption
from analytics.plan.question import Given, question
from analytics.plan.speed import OwnSpeed
from analytics.plan.tipping import Tip
from analytics.render.terminal import show
from analytics.runs.frame import frame
from analytics.say import plan as say
from analytics.say.blocks import Commands, Note, Sentence, Table
from analytics.say.plan_next import more, proposed
from bench.schema import Site
from bench.suites.load import load_suite
from tests import rows
from tests.approve import plan as approved
from tests.commands import bench

DAY = 86400.0
ROOT = Path(__file__).parent.parent
GIVEN = Given(
    params=7e9,
    tokens=1e12,
    device="H100-SXM",
    devices=(8, 64, 512),
    deadline=30 * DAY,
    budget=2e5,
    priors=True,
    site=Site(region="FR", pue=1.15, usd_per_device_hour=2.2),
)


def planned(given: Given = GIVEN, **fields: Any) -> Plan:
    return Plan(question(replace(given, **fields), lambda: frame([]))[0])


def own(suite: str = "synthetic", devices: tuple[int, ...] = (1, 2, 4), **fields: Any) -> Plan:
    runs = frame(rows.grid((1, 2), ("tiny",), cores=2)).assign(suite=suite)
    given = Given(params=1e8 / 600, tokens=1e9, precision="fp32", devices=devices)
    return Plan(question(replace(given, **fields), lambda: runs)[0])


def table(plan: Plan) -> dict[str, list[str]]:
    """Cells by column."""
    made = say.options_table(plan)
    return dict(zip(made.columns, (list(cells) for cells in zip(*made.rows, strict=True)), strict=True))


def labels(plan: Plan) -> dict[str, str]:
    return {note.label: note.text for note in say.notes(plan)}


# --- figures


def test_times_for_people() -> None:
    def exact(seconds: float) -> str:
        return say.duration(Interval(seconds, seconds, seconds))

    assert exact(45) == "45 seconds"
    assert exact(600) == "10 minutes"
    assert exact(12 * 3600) == "12 hours"
    assert exact(30 * DAY) == "30 days"
    assert exact(5 * 365.25 * DAY) == "5 years"
    assert say.duration(Interval(10 * DAY, 8 * DAY, 12.345 * DAY)) == "10.0 days (8.0-12.3)"


# --- the answer


def test_the_recommended_is_the_cheapest_that_is_likely_enough() -> None:
    plan = planned()
    take = say.choice(plan)
    assert take is not None
    assert take.devices == plan.fewest(0.9)
    assert take.chance is not None
    assert take.chance >= 0.9
    line = say.headline(plan)
    assert f"{take.devices} devices or more" in line
    assert f"{100 * take.chance:.0f} %" in line
    assert say.duration(take.duration_seconds).partition(" (")[0] in line
    assert table(plan)["devices"] == [str(take.devices), "512", "64", "8"]
    sums = [cell.split(" %")[0] for cell in table(plan)["in time and budget"]]
    assert sums == ["90", "95", "45", "<1"]


def test_without_a_deadline_the_fastest_within_the_budget_is_taken() -> None:
    plan = planned(deadline=None)
    take = say.choice(plan)
    assert take is not None
    assert take.devices == 512
    assert "within budget" in table(plan)
    assert "or more" not in say.headline(plan)


def test_where_no_number_is_likely_enough_the_nearest_is_named() -> None:
    plan = planned(budget=1e5)
    assert say.choice(plan) is None
    line = say.headline(plan)
    assert line.startswith("No number")
    assert "Nearest: 64 devices" in line, "it is the likeliest to meet both"
    assert table(plan)["devices"][0] == "64"
    assert "1,000,000" in say.headline(planned(deadline=60.0)), "all of them were tried"


def test_what_cannot_run_is_no_answer() -> None:
    plan = planned(params=175e9, devices=(8, 16))
    assert say.headline(plan).startswith("It cannot run on 8 and 16 devices")
    assert "35 devices" in say.headline(plan)
    assert all(
        "35 devices" in cell
        for cell in table(planned(params=175e9, devices=(8,), deadline=None, budget=None))["obstacles"]
    )


def test_without_limits_the_cheapest_and_the_fastest_are_named() -> None:
    plan = planned(deadline=None, budget=None)
    assert re.findall(r"(\w+): (\d+) devices", say.headline(plan)) == [("Cheapest", "8"), ("Fastest", "512")]
    assert table(plan)["devices"] == ["8", "64", "512"]
    assert say.headline(planned(deadline=None, budget=None, site=Site())).startswith("Fastest: 512 devices")
    assert say.headline(planned(deadline=None, budget=None, devices=(8,))).startswith("8 devices: ")


def test_a_given_rate_is_never_called_likely() -> None:
    given = Given(params=65e9, tokens=1.4e12, tokens_per_second_per_device=380, devices=(2048, 4096), deadline=15 * DAY)
    plan = planned(given)
    assert "%" not in say.headline(plan)
    assert [cell.split(",")[0] for cell in table(plan)["in time"]] == ["yes", "yes", "no"]
    assert "without an interval" in labels(plan)[""]
    assert "80 %" in labels(planned())[""]


def test_devices_that_this_machine_lacks_are_not_recommended() -> None:
    plan = own(devices=(1, 2, 16), deadline=1e9)
    assert (say.choice(plan) or plan.options[-1]).devices <= 2
    assert dict(zip(table(plan)["devices"], table(plan)["in time"], strict=True))["16"] == "this machine has only 2"
    assert not any("beyond" in caution or "this machine" in caution for caution in say.cautions(plan.options))
    only = own(devices=(16,), deadline=1.0)
    assert say.choice(only) is None
    assert "cannot run on 16 devices: this machine has only 2" in say.headline(only)
    assert say.headline(own(devices=(1, 2, 16))).startswith("Fastest: 2 devices")


def test_what_is_not_known_is_left_out_and_named() -> None:
    plan = planned(site=Site(), budget=None)
    assert not {"cost, USD", "CO2e~, t"} & set(table(plan))
    assert {"--price", "--region"} <= set(re.findall(r"--[a-z]+", labels(plan)["Left out"]))
    assert "PUE 1" in labels(plan)["Assumed"]
    assert "2.20 USD/device-hour with power" in labels(planned())["Assumed"]
    assert "budget" in labels(planned(site=Site()))["Left out"], "it is not checked"
    assert "Left out" not in labels(planned())
    hours = planned(Given(accelerator_hours=82_432, power_watts=400, deadline=2 * DAY))
    assert "--devices" in labels(hours)["Left out"], "the deadline is not checked"
    power = planned(device="A10G", site=Site(usd_per_kwh=0.2), budget=None)
    assert "--power-watts" in labels(power)["Left out"]


def test_cautions_name_the_devices_they_are_about() -> None:
    cautions = list(say.cautions(planned(params=175e9, devices=(64, 512), deadline=None).options))
    assert len(cautions) == 1
    assert cautions[0].startswith("64 devices: ")
    made = [option for option in planned().options if not option.flags]
    assert list(say.cautions(made)) == []
    odd: PlanOption = replace(made[0], flags=("a_new_flag",))
    assert list(say.cautions([odd])) == ["a new flag"]


def test_regions_are_compared_for_the_best_option() -> None:
    _, blocks = say.answer(planned(), regions=["SE", "US-CA"])
    tables = [block for block in blocks if isinstance(block, Table)]
    assert [row[0] for row in tables[1].rows] == ["Sweden", "California"]
    assert say.answer(Plan(replace(planned().question, device=None, watts=None)), regions=["SE"])[0]["regions"] == []


def test_the_document_and_the_blocks_agree() -> None:
    plan = planned()
    document, blocks = say.answer(plan, ["A remark."])
    assert isinstance(blocks[1], Sentence)
    assert document["answer"] == blocks[1].text
    assert document["notes"][0].endswith("A remark.")
    assert [step["devices"] for step in document["steps"]] == [8, 64]
    assert document["steps"][0]["cost_ratio_low"] < document["steps"][0]["cost_ratio"]
    details = list(say.explained(plan, ()))
    assert details
    assert all(block.detail for block in details if isinstance(block, Sentence | Note))


def test_changes_are_rounded_away_and_begin_with_the_nearest() -> None:
    tips = (
        Tip("--deadline", 20 * DAY, 32, (14.987 * DAY, 64), (31.241 * DAY, 16)),
        Tip("--tokens", 1e12, 32, None, (1.1119e12, 64)),
        Tip("--batch", 64.0, 32, (1.0, None), None),
        Tip("--pue", 1.2, 32, None, None),
    )
    notes = list(say.changes(tips))
    assert [re.findall(r"[\d.]+T?", note.label)[:1] for note in notes[:4]] == [["1.12T"], ["14.9"], ["31.3"], ["1"]]
    assert [re.findall(r"\d+", note.text) for note in notes[:4]] == [["64", "32"], ["64", "32"], ["16", "32"], []]
    assert "--pue (1.2, from 1 to 5)" in notes[4].text
    assert list(say.changes(())) == []
    (note,) = say.changes([Tip("--deadline", DAY, None, None, (2 * DAY, 32))])
    assert "instead" not in note.text, "nothing met it before"


# --- for the terminal


def test_the_answer_is_short_and_without_codes() -> None:
    printed = [text for text in approved().split("$ ") if text]
    assert printed[0].splitlines()[3].startswith("  Take ")
    plain = [text.partition("\n") for text in printed if "--next" not in text.partition("\n")[0]]
    assert all(len(body.split()) <= 150 for _, _, body in plain)
    for text in printed:
        lines = text.partition("\n")[2].splitlines()
        words = [word for line in lines if "bench" not in line for word in line.split() if ".json" not in word]
        assert [word for word in words if re.search(r"[a-z]_[a-z]|[a-z]=", word)] == [], "codes"


def test_no_digit_is_cut_off_in_a_narrow_terminal() -> None:
    plan = planned()
    for width in (80, 100, 160):
        console = Console(width=width, file=StringIO())
        show([say.options_table(plan)], console)
        printed = console.file.getvalue().split()  # type: ignore[attr-defined]
        cells = [cell for row in say.options_table(plan).rows for cell in row]
        assert sorted(word for cell in cells for word in cell.split()) == sorted(
            printed[-sum(len(c.split()) for c in cells) :]
        )


# --- what to run next


def typed(command: str, folder: Path) -> list[str]:
    """Paste a command into a shell of `folder` in which `bench` only notes its arguments; return them."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "bench").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments\n')
    (tools / "bench").chmod(0o755)
    path = {"PATH": f"{tools}:/usr/bin:/bin"}
    subprocess.run(["sh", "-c", command], cwd=folder, env=path, check=True, timeout=600)
    return (folder / "arguments").read_text().splitlines()


def listed(arguments: list[str]) -> list[dict[str, Any]]:
    """The runs that `bench run ARGUMENTS` would start on CPUs, also those that this machine has too few of."""
    assert arguments[0] == "run"
    done = bench("show", *arguments[1:], "--set", "device_type=cpu", "--no-memory", "--json")
    assert done.exit_code == 0, done.output
    return list(json.loads(done.output)["runs"])


def commands(plan: Plan, run: str = "bench run") -> list[str]:
    _, blocks = proposed(plan, run)
    return [command for block in blocks if isinstance(block, Commands) for command in block.commands]


def test_the_command_for_a_first_run_runs_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = proposed(planned(devices=(8, 64)))
    assert found == [{"devices": count, "repeats": 3} for count in (2, 8, 64)]
    (command,) = commands(planned(devices=(8, 64)))
    arguments = typed(command, tmp_path)
    monkeypatch.chdir(tmp_path)
    runs = listed(arguments)
    assert sorted({run["devices_per_node"] for run in runs}) == [2, 8]
    assert {run["workload_args"]["layers"] for run in runs} == {33}
    assert {run["precision"] for run in runs} == {"bf16"}
    assert load_suite(tmp_path / arguments[1]).repeats == 3


def test_the_command_for_more_runs_repeats_the_execution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (command,) = commands(own("scaling"), "bench run --store 'sqlite:///my runs.db'")
    arguments = typed(command, tmp_path)
    assert arguments[:3] == ["run", "--store", "sqlite:///my runs.db"]
    runs = listed([arguments[0], *arguments[3:]])
    assert {run["devices_per_node"] for run in runs} == {1, 2}, "what more devices would be is not on this machine"
    assert {run["precision"] for run in runs} == {"fp32"}
    assert max(run["repeat"] for run in runs) == 4 + 3 - 1


def test_what_cannot_be_pasted_is_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("name: [")
    evil = "x'; rm -rf ~ #\n$(id)"
    for plan in (
        own(),
        own(evil),
        planned(Given(flops_per_sample=1e12, samples=1e9, device="L4", devices=(8,), priors=True)),
    ):
        found, blocks = proposed(plan)
        assert found
        assert blocks
        assert commands(plan) == []
    imported = own()
    assert isinstance(imported.question.speed, OwnSpeed)
    speed = replace(imported.question.speed, imported=True)
    assert commands(Plan(replace(imported.question, speed=speed))) == []
    assert "--next" in more(planned()).text
    assert "--next" not in more(planned(Given(tokens=1e9, tokens_per_second=1e6))).text
