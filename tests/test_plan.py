"""The planner: work, priors, options, power, and the arithmetic of published trainings."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analytics.law import law as laws
from analytics.plan.device import Device, find
from analytics.plan.plan import Plan, Question, best, next_runs
from analytics.plan.speed import SIZE, GivenSpeed, OwnSpeed, PriorSpeed, own_speed, priors
from analytics.runs.frame import frame
from analytics.runs.imported import imported
from analytics.say.plan import answer
from analytics.work import implied_mfu, language_model, sample_work
from bench.figures.cost import cost
from bench.figures.regions import intensity
from bench.schema import Choice, Site
from tests import published_plan
from tests.rows import V, energy, grid

DAY = 86400.0
GAMMA = 0.05


def efficiency(devices: np.ndarray, num_nodes: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """E(d) = d^-0.05 nearly: what the planner makes of it can be worked out."""
    gamma = GAMMA * np.exp(0.2 * np.random.default_rng(seed).standard_normal(size))
    return np.asarray(devices, dtype=float)[None, :] ** -gamma[:, None]


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws, "prior_efficiency", efficiency)


def question(**fields: Any) -> Question:
    device = fields.pop("device", find("H100-SXM"))
    usual: dict[str, Any] = {
        "work": language_model(7e9, 1e12),
        "speed": PriorSpeed(device, "bf16"),
        "devices": (8, 64, 512),
        "device": device,
        "site": Site(region="FR", pue=1.15, usd_per_device_hour=2.2),
    }
    return Question(**(usual | fields))


# --- published arithmetic, exact


@pytest.mark.parametrize(
    ("hours", "watts", "pue", "mwh"),
    [
        (82_432, 400, 1.1, 36.3),
        (135_168, 400, 1.1, 59.5),
        (530_432, 400, 1.1, 233.4),
        (1_022_362, 400, 1.1, 449.8),
        (512 * 20 * 24, 310, 1.12, 85.3),
        (10_000 * 14.8 * 24, 330, 1.1, 1289),
    ],
)
def test_energy_is_hours_times_watts_times_pue(hours: float, watts: float, pue: float, mwh: float) -> None:
    known = Question(
        sample_work(1.0, 1e20), GivenSpeed(1e20 / hours / 3600), (1,), site=Site(pue=pue), watts=watts, counted=False
    )
    found = Plan(known).options[0].facility_energy_joules
    assert found is not None
    assert found.value / 3.6e9 == pytest.approx(mwh, rel=2e-3)
    assert found.value / 3.6e9 == pytest.approx(hours * watts * pue / 1e6)


def test_impossible_hours_of_published_trainings_are_flagged() -> None:
    runs = published_plan.runs()
    assert list(runs[runs["suspect"]]["model"]) == ["OpenBA-15B"]
    plain, flags = implied_mfu(6 * 15e9 * 380e9, 38_214, 312e12)
    assert plain == pytest.approx(0.80, abs=0.005)
    assert flags == ("mfu_implausible",)
    assert implied_mfu(6 * 7e9 * 1e12, 82_432, 312e12)[1] == ()
    assert implied_mfu(1e18, 1e6, 312e12)[1] == ("mfu_implausible",)


# --- work


def test_attention_is_counted_or_left_out_aloud() -> None:
    known = language_model(6.74e9, 1e12, layers=32, hidden=4096, sequence=2048)
    assert known.flops == pytest.approx((6 * 6.74e9 + 12 * 32 * 4096 * 2048) * 1e12)
    assert known.per_sample == pytest.approx(known.flops / 1e12 * 2048)
    assert known.assumed == ()
    assert known.tokens == pytest.approx(1e12)
    typical = language_model(6.74e9, 1e12, sequence=2048)
    assert typical.flops == pytest.approx(known.flops, rel=0.01)
    assert [words.split()[0] for words in typical.assumed] == ["32"], "layers; the sequence is given"
    plain = language_model(1.6e8, 3e11, plain=True)
    assert plain.flops == 6 * 1.6e8 * 3e11
    assert plain.assumed == ("work without attention",)
    assert language_model(1e9, 1e9, sequence=65536, plain=True).flops > 2 * 6e18
    again = language_model(1e9, 1e9, recompute=True)
    assert (again.flops / again.model_flops) == pytest.approx(4 / 3)
    experts = language_model(400e9, 1e12, active=17e9, sequence=8192)
    assert experts.parameters == 400e9
    assert experts.flops < language_model(20e9, 1e12, sequence=8192).flops


def test_a_shape_holds_the_parameters() -> None:
    for params, layers, hidden in ((6.74e9, 32, 4096), (1.24e8, 12, 768), (2.7e8, 18, 640), (4.05e11, 126, 16384)):
        assert language_model(params, 1e12, layers=layers, hidden=hidden).parameters == params
    for layers, hidden in ((2, 64), (1, 4096), (100, 8192)):
        with pytest.raises(ValueError, match=r"parameters .* without embeddings, not 7B: check them, or give --active"):
            language_model(7e9, 1e12, layers=layers, hidden=hidden)
    assert language_model(7e9, 1e12, layers=2, hidden=4096, active=1e9).parameters == 7e9
    assert language_model(1e5, 1e6).assumed[0] == "1 layer of 91"


def test_work_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="layers and its hidden size"):
        language_model(1e9, 1e9, layers=3)
    with pytest.raises(ValueError, match="2B active parameters are more than all 1B"):
        language_model(1e9, 1e9, active=2e9)
    for params, tokens in ((1e39, 1e39), (math.nan, 1e9), (0, 1e9), (-1e9, 1e9)):
        with pytest.raises((ValueError, TypeError)):
            language_model(params, tokens, sequence=1024, layers=1, hidden=1)
    with pytest.raises(ValueError, match="cannot be meant"):
        sample_work(math.inf, 1)


# --- priors


def test_priors_are_those_of_the_published_tables() -> None:
    shipped = json.loads(published_plan.FILE.read_text())
    made = json.loads(json.dumps(published_plan.document()))
    assert made["sources"] == shipped["sources"]
    for kind in ("mfu", "node_power"):
        assert pd.json_normalize(made[kind]).T[0].to_dict() == pytest.approx(
            pd.json_normalize(shipped[kind]).T[0].to_dict()
        )


def test_priors_predict_families_of_models_that_they_have_not_seen() -> None:
    runs = published_plan.runs()
    found = published_plan.scores(published_plan.left_out(runs[~runs["suspect"]]))
    assert found["trainings"] == 16
    assert found["median"] <= 0.275
    assert found["p90"] <= 0.50
    assert found["coverage"] >= 0.75


def test_node_power_is_what_was_measured() -> None:
    power = priors()["node_power"]
    assert power["phi"] == pytest.approx(0.43, abs=0.01)
    assert 1.02 < power["ratio"] < 1.26


def test_a_device_without_trainings_has_a_wider_interval_and_says_so() -> None:
    def width(name: str) -> float:
        device = find(name)
        time = Plan(question(device=device, speed=PriorSpeed(device, "bf16"))).options[0].duration_seconds
        return time.high / time.low

    assert width("B200") > 1.2 * width("H100-SXM")
    assert PriorSpeed(find("B200"), "bf16").pooled
    assert not PriorSpeed(find("H200"), "bf16").pooled
    assert PriorSpeed(find("H100-SXM"), "fp8").pooled


# --- options


def test_the_median_of_the_prior_is_worked_out_by_hand() -> None:
    asked = question(devices=(64,))
    (option,) = Plan(asked).options
    prior = priors()["mfu"]["H100"]
    share = prior["mfu"] * (64 / prior["devices"]) ** -GAMMA
    assert option.duration_seconds.value == pytest.approx(asked.work.flops / (64 * 989.4e12 * share), rel=0.02)
    assert option.duration_seconds.high / option.duration_seconds.value > 1.3
    assert option.model_flops_utilization == pytest.approx(share, rel=0.02)
    assert option.source == "published_prior"


def test_time_energy_carbon_and_cost_share_one_draw() -> None:
    option = Plan(question(devices=(64,))).options[0]
    assert option.cost_usd is not None
    assert option.facility_energy_joules is not None
    assert option.energy_joules_estimated is not None
    assert option.emissions_kg is not None
    for bound in ("low", "value", "high"):
        seconds, usd = getattr(option.duration_seconds, bound), getattr(option.cost_usd, bound)
        assert usd == pytest.approx(64 * seconds / 3600 * 2.2)
        facility = getattr(option.facility_energy_joules, bound)
        assert facility == pytest.approx(1.15 * getattr(option.energy_joules_estimated, bound))
        assert getattr(option.emissions_kg, bound) == pytest.approx(facility / 3.6e6 * intensity("FR").kg_per_kwh)
    # Were time and power drawn apart, or the draws reversed, the width would differ from that of both together.
    time, energy = option.duration_seconds, option.energy_joules_estimated
    assert time.high / time.low < energy.high / energy.low < 1.35 * time.high / time.low


def test_power_of_a_node_follows_its_load() -> None:
    given = Plan(question(speed=GivenSpeed(4e14), devices=(8,))).options[0].energy_joules_estimated
    assert given is not None
    seconds = question().work.flops / (8 * 4e14)
    assert given.value == pytest.approx(8 * 700 * priors()["node_power"]["ratio"] * seconds, rel=0.01)
    plan = Plan(question(devices=(8, 512)))
    few, many = sorted(plan.options, key=lambda option: option.devices)
    assert few.energy_joules_estimated is not None
    assert many.energy_joules_estimated is not None
    load = (512 / 8) ** -GAMMA
    phi = priors()["node_power"]["phi"]
    assert many.energy_joules_estimated.value / few.energy_joules_estimated.value == pytest.approx(
        (phi + (1 - phi) * load) / load, rel=0.01
    )
    alone = Plan(question(devices=(8,), watts=900.0)).options[0]
    assert alone.energy_joules_estimated is not None
    assert alone.energy_joules_estimated.value == pytest.approx(8 * 900 * alone.duration_seconds.value)
    assert "power_of_other_nodes" in Plan(question(device=find("L4"), speed=GivenSpeed(1e13))).options[0].flags


def test_options_are_ranked_and_the_infeasible_say_why() -> None:
    plan = Plan(question(deadline_seconds=30 * DAY, budget_usd=105_000))
    assert [option.devices for option in plan.options] == [64, 8, 512]
    assert [option.feasible for option in plan.options] == [True, False, False]
    late, dear = plan.options[1:]
    assert late.reasons == ("late",)
    assert dear.reasons == ("budget",)
    first = plan.options[0]
    assert first.chance is not None
    assert late.chance is not None
    assert 0.4 < first.chance < 0.7
    assert late.chance < 0.01
    free = Plan(question(site=Site(), budget_usd=1.0)).options
    assert [option.devices for option in free] == [512, 64, 8]
    assert "budget_not_checked" in free[0].flags


def test_a_state_that_does_not_fit_is_told_with_the_devices_it_needs() -> None:
    asked = question(work=language_model(175e9, 1e9), devices=(8, 32, 64, 512))
    plan = {option.devices: option for option in Plan(asked).options}
    assert plan[8].reasons == ("memory",)
    assert asked.least_devices == 35, "16 bytes a parameter, 2.8 TB, on 80 GB each"
    assert Plan(question(work=asked.work, devices=(8,), deadline_seconds=1e15)).options[0].chance == 0
    assert plan[64].feasible
    assert "memory_tight" in plan[64].flags
    assert plan[512].flags == ()
    few = Plan(question(batch=256, devices=(64, 512)))
    assert [option.reasons for option in few.options] == [(), ("batch",)]
    fast = Plan(question(work=language_model(175e9, 1e9), devices=(512,), deadline_seconds=1e9))
    assert fast.fewest() is not None
    assert fast.fewest() >= 35  # type: ignore[operator]


def test_steps_and_the_fewest_devices() -> None:
    plan = Plan(question(speed=PriorSpeed(find("H100-SXM"), "bf16"), deadline_seconds=30 * DAY))
    first, second = plan.steps
    assert (first.devices, first.to_devices, second.to_devices) == (8, 64, 512)
    assert first.cost_ratio is not None
    assert first.energy_ratio is not None
    assert first.cost_ratio.value == pytest.approx(8**GAMMA, rel=0.01)
    assert first.cost_ratio.low < first.cost_ratio.value < first.cost_ratio.high
    assert 1 < first.energy_ratio.value < first.cost_ratio.value
    assert first.saved_seconds.value > second.saved_seconds.value > 0
    half, sure = plan.fewest(), plan.fewest(0.9)
    assert half is not None
    assert sure is not None
    assert 48 <= half <= 72
    assert 80 <= sure <= 128
    assert Plan(question(deadline_seconds=60.0)).fewest() is None
    hour = Plan(question(deadline_seconds=3600.0)).fewest()
    assert hour is not None
    assert 50_000 < hour < 100_000, "far beyond those that are asked for"


def test_owned_devices_cost_capital_and_electricity() -> None:
    site = Site(pue=1.2, usd_capital_per_device_hour=1.5, usd_per_kwh=0.2)
    option = Plan(question(site=site, devices=(64,), watts=1000.0)).options[0]
    assert option.cost_usd is not None
    assert option.cost_usd.value == pytest.approx(option.device_hours.value * (1.5 + 1.0 * 1.2 * 0.2))
    unknown = Plan(question(site=site, device=Device("mine", peak=1e15), speed=GivenSpeed(3e14))).options[0]
    assert unknown.cost_usd is not None
    assert unknown.cost_usd.value == pytest.approx(unknown.device_hours.value * 1.5)
    assert "electricity_unknown" in unknown.flags
    nothing = Plan(question(site=Site(usd_per_kwh=0.2), device=None, speed=GivenSpeed(3e14))).options[0]
    assert nothing.cost_usd is None


def test_costs_are_those_of_runs() -> None:
    for site in (Site(usd_per_device_hour=2.2), Site(pue=1.2, usd_capital_per_device_hour=1.5, usd_per_kwh=0.2)):
        option = Plan(question(speed=GivenSpeed(4e14), site=site, devices=(64,), watts=1000.0)).options[0]
        assert option.cost_usd is not None
        assert option.energy_joules_estimated is not None
        seconds = option.duration_seconds.value
        reading = energy(False, seconds, option.energy_joules_estimated.value)
        run = cost(site, 64, seconds, reading, [])
        assert run is not None
        assert option.cost_usd.value == pytest.approx(run.cost_usd)


def test_what_is_not_known_is_absent() -> None:
    option = Plan(question(site=Site())).options[0]
    assert option.emissions_kg is None
    assert option.cost_usd is None
    assert "pue_unknown" in option.flags
    bare = Plan(question(device=None, speed=GivenSpeed(1e14), site=Site(region="FR"))).options[0]
    assert bare.energy_joules_estimated is None
    assert bare.emissions_kg is None
    assert bare.model_flops_utilization is None
    bare_plan = Plan(question(device=None, speed=GivenSpeed(1e14)))
    assert bare_plan.regions(["FR"], bare_plan.options[0]) == []
    document = json.dumps([one.to_dict() for one in Plan(question()).options], allow_nan=False)
    assert "duration_seconds_low" in document


def test_regions_differ_by_their_intensity_and_embodied_stands_apart() -> None:
    plan = Plan(question(embodied_kg_per_hour=0.00624))
    option = plan.options[0]
    (_, france, here), (_, sweden, there) = plan.regions(["FR", "SE"], option)
    assert here.value / there.value == pytest.approx(france / sweden)
    assert option.embodied_kg is not None
    assert option.embodied_kg.value == pytest.approx(0.00624 * option.device_hours.value)
    assert option.emissions_kg is not None
    assert option.emissions_kg.value == Plan(question()).options[0].emissions_kg.value  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="region 'XX' is not known"):
        plan.regions(["XX"], option)


# --- own runs


def own(**fields: Any) -> tuple[OwnSpeed | None, str]:
    df = frame(grid(devices=(1, 2, 4), readings="e"))
    device = Device("Synthetic CPU", device_name="Synthetic CPU")
    usual: dict[str, Any] = {"device": device, "precision": "fp32", "work": language_model(6.5e5, 1e9)}
    return own_speed(df, **(usual | fields))


def test_own_runs_are_used_where_they_apply() -> None:
    speed, why = own()
    assert speed is not None
    assert why == ""
    assert speed.source == "own_runs"
    assert set(speed.table["devices"]) == {1, 2, 4}
    assert speed.repeats == 4
    assert speed.sequence == 128
    assert speed.watts == pytest.approx(75, rel=0.01)
    assert speed.watts_label == "estimated on your own runs"
    work = language_model(6.5e5, 1e9, sequence=128)
    speed = replace(speed, per_sample=work.per_sample)
    drawn = speed.draws((1, 64))
    assert drawn.rate.shape == (SIZE, 2)
    seconds = work.flops / np.median(drawn.rate[:, 0])
    assert seconds == pytest.approx(1e9 / (V / 4e8 * 128), rel=0.1), "tokens / (tokens/s)"
    assert drawn.flags == ((), ("devices_beyond_reach",)), "the machine has 64"
    assert (drawn.load <= 1).all()
    plan = Plan(Question(work, speed, (1, 64), watts=speed.watts, deadline_seconds=1.0))
    assert plan.fewest() is None, "no other nodes"
    assert {option.source for option in plan.options} == {"own_runs"}
    assert "devices_beyond_reach" in next(option for option in plan.options if option.devices == 64).flags


@pytest.mark.parametrize(("machine", "most"), [(4, 4), (None, 2)])
def test_devices_that_the_machine_lacks_are_out_of_reach(machine: int | None, most: int) -> None:
    """A host of four cores, or one that old runs on two of them do not describe: more devices cannot run there."""
    df = frame([row | {"machine_devices": machine} for row in grid(devices=(1, 2), readings="e")])
    work = language_model(6.5e5, 1e9, sequence=128)
    speed, _ = own_speed(df, Device("Synthetic CPU"), "fp32", work)
    assert speed is not None
    asked = Question(work, speed, (1, 2, 4, 8), deadline_seconds=1e12, site=Site(usd_per_device_hour=1.0))
    plan = Plan(asked)
    options = {option.devices: option for option in plan.options}
    assert {count for count, option in options.items() if option.feasible} == {d for d in (1, 2, 4, 8) if d <= most}
    assert (options[1].chance, options[8].chance) == (1, 0)
    assert len(options[8].reasons) == 1
    assert [len(option.to_dict()["flags"]) > 0 for option in (options[1], options[2], options[8])] == [
        False,
        False,
        True,
    ]
    assert best(asked) == plan.options[0].devices <= most
    assert max(step.to_devices for step in plan.steps) == most
    assert best(replace(asked, devices=(8,))) is None
    assert Plan(replace(asked, deadline_seconds=1.0)).fewest() is None
    assert Plan(replace(asked, devices=(8,))).fewest() == 1, "of the numbers that the machine has"
    assert all(run["devices"] <= most for run in next_runs(speed, most))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"device": find("H100-SXM")}, "none of them was on this device"),
        ({"precision": "bf16"}, "none of those on this device was in bf16"),
        (
            {"work": language_model(7e9, 1e9)},
            "none was of a comparable language model; the nearest is 1.05e+04 times off",
        ),
        ({"work": sample_work(1e15, 1e9)}, "none was of a comparable work per sample; the nearest is"),
    ],
)
def test_own_runs_that_do_not_apply_say_why(fields: dict[str, Any], why: str) -> None:
    speed, said = own(**fields)
    assert speed is None
    assert said.startswith(why)


def test_trainings_of_a_part_of_the_model_do_not_count() -> None:
    df = frame(grid(readings="e", finetune=Choice(name="lora")))
    speed, said = own_speed(df, Device("Synthetic CPU"), "fp32", language_model(6.5e5, 1e9))
    assert speed is None
    assert said == "all of those in fp32 were fine-tuned, pruned, quantized or distilled"


def test_next_runs_are_those_of_the_law() -> None:
    speed, _ = own()
    assert speed is not None
    found = next_runs(speed, 16)
    assert len(found) == 3
    assert {run["devices"] for run in found} <= {1, 2, 4}, "CPU devices share one host"
    for run, after in pairwise(found):
        assert 1 < after["factor_after"] < run["factor_after"] < run["factor_before"] < 2


# --- imported runs

TABLE = "params,gpus,tok_s\n7e9,8,{0}\n7e9,16,{1}\n7e9,32,{2}\n"
MAPS = ("params=parameters", "gpus=devices", "tok_s=tokens_per_second")


def theirs(folder: Path, speeds: tuple[float, ...] = (80e3, 158e3, 312e3), **settings: Any) -> pd.DataFrame:
    """Rows of a table of someone else, on H100-SXM by that name."""
    path = folder / "theirs.csv"
    path.write_text(TABLE.format(*speeds))
    fixed = {"precision": "bf16", "device_name": "H100-SXM", "sequence_length": 2048} | settings
    found = imported(path, MAPS, [f"{key}={value}" for key, value in fixed.items() if value is not None], "theirs")
    assert not found.refused
    return frame(found.rows)


@pytest.mark.parametrize(("parameters", "length"), [(7e9, 2048), (6.74e9, 2048), (7e9, None)])
def test_the_same_model_takes_its_tokens_over_tokens_a_second(
    parameters: float, length: int | None, tmp_path: Path
) -> None:
    work = language_model(parameters, 1e12, sequence=length)
    speed, why = own_speed(theirs(tmp_path, sequence_length=length), find("H100-SXM"), "bf16", work)
    assert why == ""
    assert speed is not None
    assert speed.source == "imported_runs"
    assert speed.name.startswith("theirs: bf16")
    assert sorted(speed.table["devices"]) == [8, 16, 32]
    assert speed.sequence == (length or 4096)
    option = Plan(question(work=work, speed=speed, devices=(8,))).options[0]
    assert option.duration_seconds.value / DAY == pytest.approx(1e12 / 80e3 / DAY, rel=0.02)
    assert option.flags == ()


def test_runs_of_others_are_less_sure_than_ones_own(tmp_path: Path) -> None:
    """Three rows of one source agree with each other; that another machine does the same, nothing shows."""
    work = language_model(7e9, 1e12, sequence=2048)
    speed, _ = own_speed(theirs(tmp_path), find("H100-SXM"), "bf16", work)
    assert speed is not None
    plans = [Plan(question(work=work, speed=one, devices=(8, 32))) for one in (speed, replace(speed, imported=False))]
    for foreign, own in zip(*(plan.options for plan in plans), strict=True):
        wide, narrow = foreign.duration_seconds, own.duration_seconds
        assert wide.value == pytest.approx(narrow.value, rel=0.02)
        assert wide.high / wide.low > 1.4 > 1.2 > narrow.high / narrow.low
    assert "intervals are wider" in " ".join(str(block) for block in answer(plans[0])[1])


def test_another_model_is_counted_by_the_same_rule(tmp_path: Path) -> None:
    work = language_model(14e9, 1e12, sequence=2048)
    speed, _ = own_speed(theirs(tmp_path), find("H100-SXM"), "bf16", work)
    assert speed is not None
    each = language_model(7e9, 1e12, sequence=2048).flops / 1e12 * 80e3 / 8
    assert np.median(speed.draws((8,)).rate) / 8 == pytest.approx(each, rel=0.1)
    assert "work_outside_measured" in speed.draws((8,)).flags[0]


def test_speeds_above_the_peak_are_refused_and_high_ones_are_flagged(tmp_path: Path) -> None:
    work = language_model(7e9, 1e12, sequence=2048)
    speed, why = own_speed(theirs(tmp_path, (300e3, 310e3, 320e3)), find("H100-SXM"), "bf16", work)
    assert speed is None
    assert why.startswith("a speed of theirs would be a model FLOP utilization of 1.72, above 1")
    both = pd.concat([theirs(tmp_path), theirs(tmp_path, (300e3, 310e3, 320e3))], ignore_index=True)
    speed, why = own_speed(both, find("H100-SXM"), "bf16", work)
    assert speed is not None
    assert "1.72, above 1" in why
    assert np.median(speed.draws((8,)).rate) == pytest.approx(80e3 * work.flops / 1e12, rel=0.02)
    speed, _ = own_speed(theirs(tmp_path, (140e3, 280e3, 560e3)), find("H100-SXM"), "bf16", work)
    assert speed is not None
    assert "mfu_implausible" in Plan(question(work=work, speed=speed)).options[0].flags
    given = Plan(question(speed=GivenSpeed(1e16))).options[0]
    assert given.reasons == ("mfu",)
    assert given.model_flops_utilization == pytest.approx(10.1, abs=0.05)
    assert not given.feasible


def test_a_precision_that_is_not_told_is_none_of_the_planned(tmp_path: Path) -> None:
    speed, why = own_speed(theirs(tmp_path, precision=None), find("H100-SXM"), "bf16", language_model(7e9, 1e12))
    assert (speed, why) == (
        None,
        "none of those on this device was in bf16, and that of some is not told (bench import --set precision=...)",
    )


# --- absurd work


def test_more_devices_than_sequences_and_sizes_outside_the_published() -> None:
    device = find("H100-SXM")
    tiny = Plan(question(work=language_model(1e5, 1e6), speed=PriorSpeed(device, "bf16", 1e5), devices=(8, 512)))
    (few, many) = tiny.options
    assert many.reasons == ("samples",)
    assert tiny.question.work.samples == pytest.approx(244.1, abs=0.05)
    assert "size_outside_published" in few.flags
    usual = Plan(question(devices=(8,))).options[0].duration_seconds
    assert few.duration_seconds.high / few.duration_seconds.value > 5 * usual.high / usual.value
    assert PriorSpeed(device, "bf16", 1e5).away == pytest.approx(1623, rel=1e-3)
    assert PriorSpeed(device, "bf16", 7e9).away == 1
