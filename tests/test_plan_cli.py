"""`bench plan`: what it prints, what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from bench.cli import main
from tests import commands
from tests.clock import python_calls
from tests.rows import record
from tests.test_tracking import logged

ISSUE = (
    "--params 7e9 --tokens 1e12 --device H100-SXM --devices 8,64,512 --deadline 40d --budget 200000 --region FR "
    "--pue 1.15 --price 2.2"
)
TEXTBOOK = "--known hours=3000,params=340e6,devices=8,speed=2e9 --params 100e6 --devices 16 --speed 4e9"


def bench(arguments: str | list[str]) -> Result:
    return commands.bench("plan", *(arguments.split() if isinstance(arguments, str) else arguments))


def said(arguments: str | list[str]) -> str:
    done = bench(arguments)
    assert done.exit_code == 0, done.output
    return done.output


def document(arguments: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(said(arguments + " --json"))
    return loaded


def test_the_document_has_the_same_figures() -> None:
    found = document(ISSUE + " --regions SE")
    assert [option["devices"] for option in found["options"]] == [64, 512, 8]
    best = found["options"][0]
    assert best["source"] == found["source"] == "published_prior"
    for name in ("duration_seconds", "cost_usd", "energy_joules_estimated", "facility_energy_joules", "emissions_kg"):
        assert 0 < best[f"{name}_low"] < best[name] < best[f"{name}_high"]
    assert best["cost_usd"] == pytest.approx(best["device_hours"] * 2.2)
    assert found["interval_level"] == 0.8
    assert found["regions"][0]["region"] == "SWE"
    assert found["regions"][0]["emissions_kg"] < best["emissions_kg"]
    assert found["options"][2]["reasons"]
    assert found["fewest_devices"] <= found["fewest_devices_90_percent_sure"]


def test_a_deadline_is_met_by_many_more_devices_or_by_none() -> None:
    asked = "--params 7e9 --tokens 1e12 --device H100-SXM --devices 64 --deadline "
    assert document(asked + "1h")["fewest_devices"] > 10_000
    assert document(asked + "1m")["fewest_devices"] is None


def test_what_to_do_next_and_why_are_for_those_who_ask() -> None:
    plain, more = said(ISSUE), said(ISSUE + " --explain --next")
    assert plain.split("\n80 %")[0] in more
    assert len(more) > 2 * len(plain)
    assert document(ISSUE + " --next")["next"][-1] == {"devices": 512, "repeats": 3}
    assert "next" not in document(ISSUE)


@pytest.mark.parametrize(
    ("arguments", "days"),
    [
        ("--params 5e9 --tokens 300e9 --tokens-per-second 726384", 300e9 / 726_384 / 86400),
        ("--tokens 300B --tokens-per-second 726384", 4.78),
        ("--params 65e9 --tokens 1.4e12 --tokens-per-second-per-device 380 --devices 2048 --price 1", 20.82),
        (
            "--params 175B --tokens 300B --flops-per-second-per-device 140e12 --devices 1024 --recompute",
            8 * 300e9 * 175e9 / 1024 / 140e12 / 86400,
        ),
        ("--params 1e12 --tokens 450e9 --flops-per-second-per-device 163e12 --devices 3072 --recompute", 83.2),
        ("--params 1.008e12 --tokens 450e9 --flops-per-second-per-device 163e12 --devices 3072 --recompute", 83.9),
    ],
)
def test_published_trainings_at_their_known_rates(arguments: str, days: float) -> None:
    (option,) = document(arguments)["options"]
    assert option["duration_seconds"] / 86400 == pytest.approx(days, rel=1e-3)
    assert option["duration_seconds_low"] == option["duration_seconds_high"], "it is given, without an interval"
    if "--price" in arguments:
        assert option["cost_usd"] == pytest.approx(1_023_392, abs=1)


def test_known_hours() -> None:
    (option,) = document("--accelerator-hours 82432 --power-watts 400 --pue 1.1 --region US-CA")["options"]
    assert option["facility_energy_joules"] / 3.6e9 == pytest.approx(36.27, abs=0.005)
    (option,) = document("--accelerator-hours 38214 --params 15e9 --tokens 380e9 --device A100-80GB")["options"]
    assert option["model_flops_utilization"] == pytest.approx(0.80, abs=0.005)
    assert "mfu_implausible" in option["flags"]
    assert option["reasons"] == []


def test_the_textbook_example_with_its_arithmetic() -> None:
    found = document(TEXTBOOK + " --claim 600h")
    assert found["duration_seconds"] / 3600 == pytest.approx(220.588, abs=0.001)
    assert found["claim_relative_efficiency"] == pytest.approx(0.3676, abs=1e-3)
    text = said(TEXTBOOK + " --claim 600h")
    assert all(line.strip() in text for line in found["arithmetic"])
    assert "220.6 hours" in text.splitlines()[0]
    assert "0.37" in text.splitlines()[0]
    assert document(TEXTBOOK + " --claim 100h")["claim_relative_efficiency"] > 1


def test_other_work_and_other_devices() -> None:
    found = document("--flops-per-sample 1e12 --samples 1e9 --device RTX-4090 --devices 1-8")
    assert sorted(option["devices"] for option in found["options"]) == [1, 2, 4, 8]
    assert all("prior_of_language_models" in option["flags"] for option in found["options"])
    found = document("--params 1e9 --tokens 2e10 --device MyChip --peak-flops 1e15 --power-watts 500 --devices 4")
    (option,) = found["options"]
    watts = option["energy_joules_estimated"] / option["duration_seconds"] / 4
    assert watts == pytest.approx(500)


@pytest.mark.slow
def test_own_runs_are_used_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = logged(
        tmp_path,
        [
            record(devices, repeat=repeat, v=2e9 + 1e7 * repeat, readings="e", cores=8)
            for devices in (1, 2)
            for repeat in range(2)
        ],
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    own = [
        *["--params", "2e5", "--tokens", "1e9", "--precision", "fp32", "--devices", "1,2,16", "--device"],
        "Synthetic CPU",
    ]
    found = json.loads(said([*own, "--next", "--json"]))
    assert found["source"] == "own_runs"
    assert {run["devices"] for run in found["next"]} <= {1, 2}, "CPU devices share one host"
    options = {one["devices"]: one for one in json.loads(said([*own, "--deadline", "300d", "--json"]))["options"]}
    assert {count: (one["feasible"], one["chance"]) for count, one in options.items()} == {
        1: (True, 1.0),
        2: (True, 1.0),
        16: (False, 0.0),
    }
    assert {"devices_beyond_reach", "beyond_this_machine"} <= set(options[16]["flags"])
    assert options[16]["reasons"] == ["machine"]
    assert options[1]["energy_joules_estimated"] / options[1]["duration_seconds"] == pytest.approx(75, rel=0.01)
    text = said([*own, "--next"])
    assert "this machine has only 8" in text
    assert "torchrun" not in text
    assert "Device: Synthetic CPU, that of all your runs." in said(own[:-2])
    done = bench("--params 7e9 --tokens 1e12 --devices 8")
    assert done.exit_code == 2
    assert "Your 4 runs do not apply: none of those on this device was in bf16." in done.output
    assert "no peak of Synthetic CPU in bf16: none is known; give --peak-flops" in done.output
    assert "your runs were on Synthetic CPU" in bench("--params 7e9 --tokens 1e12 --device cpu --devices 8").output
    text = said("--params 7e9 --tokens 1e12 --device H100-SXM --devices 8")
    assert "Your 4 runs do not apply: none of them was on this device." in text
    assert "Your " not in said("--params 7e9 --tokens 1e12 --device H100-SXM --devices 8 --priors")
    done = bench([*own, "--priors"])
    assert done.exit_code == 2
    assert "unknown device 'Synthetic CPU'" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--params -1 --tokens 1e12", "'-1' is no number above 0 such as 7e9 or 7B"),
        ("--params nan --tokens 1e12", "'nan' is no number above 0"),
        ("--params inf --tokens 1e12", "'inf' is no number above 0"),
        ("--params 0 --tokens 1e12", "'0' is no number above 0"),
        ("--params 1.2.3 --tokens 1e12", "'1.2.3' is no number above 0"),
        ("--params 1e39 --tokens 1e39 --device L4 --devices 8", "cannot be meant"),
        ("--params 7e9 --tokens 1e12 --devices 0", "'0': give whole numbers from 1 to 1,000,000"),
        ("--params 7e9 --tokens 1e12 --devices 512-8", "give whole numbers"),
        ("--params 7e9 --tokens 1e12 --devices 8,,9", "give whole numbers"),
        ("--params 7e9 --tokens 1e12 --devices 2.5", "give whole numbers"),
        (f"--params 7e9 --tokens 1e12 --devices {','.join(map(str, range(1, 60)))}", "at most 50 are allowed"),
        ("--deadline 30", "'30' is no time: give a number above 0 and w, d, h, m or s: 2w, 30d, 3 weeks, 1d12h, 45m"),
        ("--deadline d", "above 0"),
        ("--deadline 2months", "months differ in length: give a number above 0 and w, d, h, m or s"),
        ("", "what is trained?"),
        ("--deadline 3d", "what is trained?"),
        (f"{TEXTBOOK} --price 3 --device x --next", "--price and --device and --next cannot be combined with --known"),
        ("--known hours=3,devices=3,devices=4", "give each of hours, devices only once"),
        (
            "--params 7e9 --tokens 1e9 --device L4 --devices 8 --price 1e308",
            "--price: '1e308' cannot be meant",
        ),
        (
            "--params 7e9 --tokens 1e9 --device L4 --devices 8 --power-watts 1e39 --electricity-price 1e300",
            "--electricity-price: '1e300' cannot be meant",
        ),
        ("--deadline -3d", "above 0"),
        ("--params 7e9 --tokens 1e12 --device H100-SXM", "on how many devices?"),
        ("--params 7e9 --tokens 1e12", "give --device H100-SXM and --devices 8,64,512"),
        ("--params 7e9 --tokens 1e12 --devices 8", "on which device? give --device"),
        ("--params 7e9 --tokens 1e12 --devices 8xH100", "may be H100-SXM or"),
        ("--params 7e9 --tokens 1e12 --device 8xL4 --devices 16", "give one of them"),
        ("--params 7e9 --tokens 1e12 --device L4 --devices 8xL4", "name the device once"),
        ("--params 7e9 --tokens 1e12 --device L4 --devices 1,024", "without groups of digits"),
        ("--params 7e9 --tokens 1e12 --device L4 --devices 8 --sequence 4k", "may be 4,000 or 4,096"),
        ("--params 7e9 --tokens 1e12 --device L4 --devices 8 --price 2eur", "prices are in USD"),
        ("--params 7e9 --tokens 1e12 --device L4 --devices 8 --price $2/kWh", "in USD per hour"),
        ("--params 7e9 --tokens 1e12 --device L4 --devices 8 --region FR --carbon-intensity 30g", "not both"),
        ("--params 7e9 --tokens 1e12 --device L4 --devices 8 --carbon-intensity 30", "grams or kg CO2e per kWh"),
        ("--params 7e9 --tokens 1e12 --device L4 --devices 8 --region Georgia", "may be GEO or US-GA"),
        ("--params 7e9 --tokens 1e12 --device H100 --devices 8", "may be H100-SXM or H100-PCIe or H100-NVL"),
        ("--params 7e9 --tokens 1e12 --device H10O-SXM --devices 8", "near names: H100-SXM"),
        (
            "--params 7e9 --tokens 1e12 --device A100-80GB --devices 8 --precision fp8",
            "no peak of A100-SXM-80GB in fp8",
        ),
        ("--params 7e9 --device L4 --devices 8", "what is trained?"),
        ("--params 7e9 --tokens 1e9 --samples 3 --device L4 --devices 8", "not both"),
        ("--params 7e9 --tokens 1e9 --layers 3 --device L4 --devices 8", "both: its layers and its hidden size"),
        (
            "--params 7e9 --tokens 1e9 --layers 2 --hidden 64 --device L4 --devices 8",
            "2 layers of 64 hold about 98,304 parameters (12 × layers × hidden²) without embeddings, not 7B",
        ),
        ("--params 7e9 --tokens 1e9 --device L4 --devices 8 --region XX", "region 'XX' is not known"),
        ("--params 7e9 --tokens 1e9 --device L4 --devices 8 --regions FR,YY", "region 'YY' is not known"),
        ("--params 7e9 --tokens 1e9 --device L4 --devices 8 --pue 0.5", "--pue"),
        ("--params 7e9 --tokens 1e9 --device L4 --devices 8 --price -1", "--price"),
        ("--params 7e9 --tokens 1e9 --device L4 --devices 8 --price nan", "--price"),
        ("--params 7e9 --tokens 1e9 --device L4 --devices 8 --price 1 --capital-price 1", "not both"),
        ("--params 7e9 --tokens 1e9 --device L4 --devices 8 --speed 3", "belong to --known"),
        ("--tokens 1e9 --tokens-per-second 3 --accelerator-hours 3", "give one of"),
        ("--tokens 1e9 --tokens-per-second 3 --price 2", "all devices together: give one number of --devices"),
        ("--tokens 1e9 --tokens-per-second 3 --devices 1,2", "all devices together: give one number of --devices"),
        ("--tokens-per-second 3", "--tokens-per-second takes --tokens"),
        ("--known params=3", "give hours=..."),
        ("--known hours=3,foo=3", "give hours=..."),
        ("--known hours=3,params", "give hours=..."),
        ("--known hours=3,params=3", "params is given for one of the two trainings only"),
        ("--known hours=3,devices=3 --devices 3,4", "one number of --devices"),
        ("--params 7e9 --tokens 1e9 --device L4 --devices 8 --store sqlite:///none.db", "there is no store at"),
    ],
)
def test_mistakes_are_told_in_a_line_or_two(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "plan", *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert message in output.err
    assert "Traceback" not in output.err
    assert output.out == ""


def test_an_answer_comes_soon() -> None:
    said(ISSUE)
    assert python_calls(lambda: said(ISSUE)) < 120_000
