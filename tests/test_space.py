"""Search files: what they mean on a machine, and every mistake told at once."""

from pathlib import Path
from typing import Any

import pytest

from analytics.search.file import Choices, Range, Search, label, load_search, override, unpriced
from analytics.search.space import Impossible, Space
from bench.figures.metrics import parameters
from bench.schema import Gpu, Machine
from bench.suites import yaml as yamlfile
from bench.suites.load import SuiteError
from tests.replay import MACHINE, search, space

SUITES = Path(__file__).parent.parent / "suites"
GPUS = Machine(
    cpu_model="a processor",
    cpu_count=16,
    gpus=[Gpu(index=i, uuid=f"GPU-{i}", name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 10**9) for i in range(8)],
)
GOOD = """
name: good
defaults: {workload: decoder_lm, workload_args.preset: tiny, measure_seconds: 2, device_type: cpu}
space:
  precision: [fp32, bf16]
  devices: auto
  batch_size_per_device: {low: 1, high: 16, log: true}
  parallelism: {choices: [ddp, {name: tp, size: 2}], when: {devices: 2}}
  optimizer.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
objectives: [time]
budget: {trials: 3}
"""


def load(tmp_path: Path, text: str) -> Search:
    path = tmp_path / "search.yaml"
    path.write_text(text)
    return load_search(path)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(SuiteError) as caught:
        load(tmp_path, text)
    return "\n".join(caught.value.messages)


@pytest.mark.parametrize("machine", [MACHINE, GPUS], ids=["cpu", "gpus"])
@pytest.mark.parametrize("path", sorted(SUITES.glob("search_*.yaml")), ids=lambda path: path.stem)
def test_the_ready_searches_are_sound_on_every_machine(path: Path, machine: Machine) -> None:
    asked = load_search(path)
    over = Space.of(asked, machine)
    assert over.possible is not None
    assert len(over.possible) >= 100
    refused = set(over.refused) - {"left out by exclude"}
    assert refused <= {"parallelism tp: 12 heads cannot be divided among 8 devices"}
    assert list(unpriced(asked)) == []
    for params in list(over.possible.values())[:50]:
        assert over.spec(params).device_type == machine.device_type
        assert (over.spec(params, probe=True).measure_seconds or 0) < (over.spec(params).measure_seconds or 0)


def test_a_space_is_resolved_for_the_machine(tmp_path: Path) -> None:
    over = Space.of(load(tmp_path, GOOD), MACHINE)
    assert over.fields["devices"] == Choices(choices=[1, 2])
    assert over.fields["batch_size_per_device"] == Range(low=1, high=16, log=True)
    assert over.listed() is None  # a learning rate is a real number
    params = {"precision": "bf16", "devices": 2, "batch_size_per_device": 5, "parallelism": "tp-size=2"}
    spec = over.spec(params | {"optimizer.learning_rate": 0.003})
    assert (spec.world_size, spec.batch_size_per_device, spec.precision.name) == (2, 5, "bf16")
    assert spec.parallelism.options == {"size": 2}
    assert spec.optimizer.options == {"learning_rate": 0.003}
    assert not over.active("parallelism", {"devices": 1})
    assert over.active("parallelism", {"devices": 2})


def test_conditional_fields_are_listed_where_they_are_set() -> None:
    over = space(
        search(
            space={"devices": [1, 2], "parallelism": {"choices": ["ddp", "zero1"], "when": {"devices": 2}}}, exclude=[]
        )
    )
    assert over.listed() == [
        {"devices": 1},
        {"devices": 2, "parallelism": "ddp"},
        {"devices": 2, "parallelism": "zero1"},
    ]


def test_what_cannot_be_says_why() -> None:
    over = space(search(space=search().space | {"devices": [1, 4]}))
    params = {"batch_size_per_device": 1, "precision": "fp32", "optimizer": "adamw", "memory": "none"}
    with pytest.raises(Impossible, match="needs 4 × 1 threads; this machine has 2 processors"):
        over.spec(params | {"devices": 4, "parallelism": "ddp"})
    with pytest.raises(Impossible, match="left out by exclude"):
        over.spec(params | {"devices": 1, "parallelism": "tp"})
    assert over.refused == {}
    assert over.possible is not None
    assert set(over.refused.values()) == {180, 240}


def test_a_row_leads_back_to_its_parameters(tmp_path: Path) -> None:
    over = Space.of(load(tmp_path, GOOD), MACHINE)
    params = {"precision": "bf16", "devices": 2, "batch_size_per_device": 5, "parallelism": "tp-size=2"}
    params |= {"optimizer.learning_rate": 0.003}
    row = parameters(over.spec(params))
    assert over.params(row) == params
    assert over.params(row | {"measure_seconds": 99.0}) == params  # it is as fast, however long it is looked at
    assert over.params(row | {"precision": "fp16"}) is None
    assert over.params(row | {"workload_args.sequence_length": 7}) is None


def test_loss_is_that_after_all_of_the_work() -> None:
    defaults = {k: v for k, v in search().defaults.items() if k != "measure_seconds"}
    over = space(search("[time, loss]", work={"samples": 640.0}, defaults=defaults))
    params = {"precision": "fp32", "optimizer": "adamw", "memory": "none", "devices": 2, "parallelism": "ddp"}
    for batch in (1, 16):
        spec = over.spec(params | {"batch_size_per_device": batch})
        assert spec.measure_steps is not None
        assert (spec.measure_steps + spec.warmup_steps) * (spec.global_batch_size or 0) == 640
        assert spec.warmup_seconds == 0
        assert spec.measure_seconds is None


def test_a_warm_up_counts_where_the_loss_does() -> None:
    defaults = {k: v for k, v in search().defaults.items() if k != "measure_seconds"}
    params = {"precision": "fp32", "optimizer": "adamw", "memory": "none", "devices": 2, "parallelism": "ddp"}
    over = space(search("[time, loss]", work={"samples": 640.0}, defaults=defaults))
    row = parameters(over.spec(params | {"batch_size_per_device": 1}))
    assert over.params(row) is not None
    assert over.params(row | {"warmup_steps": int(row["warmup_steps"]) + 30}) is None
    assert over.params(row | {"warmup_seconds": 9.0}) is None
    fast = space(search())
    row = parameters(fast.spec(params | {"batch_size_per_device": 1}))
    assert fast.params(row | {"warmup_steps": 99, "warmup_seconds": 9.0}) is not None


def test_what_is_left_open_is_found_again(tmp_path: Path) -> None:
    text = GOOD.replace(
        "optimizer.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}", "memory_limit_bytes: [null, 4000000000]"
    )
    over = Space.of(load(tmp_path, text), MACHINE)
    for limit in (None, 4_000_000_000):
        params = {"precision": "fp32", "devices": 1, "batch_size_per_device": 1, "memory_limit_bytes": limit}
        row = parameters(over.spec(params))
        assert over.params(row) == params
        assert over.params({"memory_limit_bytes": float("nan")} | row) == params


def test_what_is_impossible_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    over = space(search())
    params = {"batch_size_per_device": 1, "precision": "fp32", "optimizer": "adamw", "memory": "none"}
    assert over.possible  # all were looked at
    monkeypatch.setattr("analytics.search.space.expand", None)
    for _ in range(2):
        with pytest.raises(Impossible, match=r"^left out by exclude$"):
            over.spec(params | {"devices": 1, "parallelism": "tp"})


SHARED = GOOD.replace("{choices: [ddp, {name: tp, size: 2}], when: {devices: 2}}", "[ddp, tp]").replace(
    "optimizer.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}",
    "parallelism.size: {choices: [2, 4], when: {parallelism: tp}}",
)


def test_devices_that_cannot_share_the_work_are_known_beforehand(tmp_path: Path) -> None:
    over = Space.of(load(tmp_path, SHARED), MACHINE.model_copy(update={"cpu_count": 4}))
    assert over.possible is not None
    found = {(p["devices"], p["parallelism"], p.get("parallelism.size")) for p in over.possible.values()}
    assert found == {(1, "ddp", None), (2, "ddp", None), (4, "ddp", None), (2, "tp", 2), (4, "tp", 4)}
    assert sorted(over.refused) == [
        "2 devices cannot form groups of 4 that share layers: choose another size",
        "parallelism tp divides layers among devices: it needs at least 2, not 1",
        "tp shares one copy among all devices: choose fsdp_tp for several copies",
    ]


ENDLESS = SHARED.replace("space:", "space:\n  optimizer.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}")
WRONG = {
    "defaults": ("preset: tiny,", "preset: tiny, precision: bf61,", "unknown precision 'bf61': did you mean 'bf16'"),
    "a choice": ("precision: [fp32, bf16]", "precision: [fp32, bf61]", "unknown precision 'bf61': did you mean 'bf16'"),
    "a boolean": ("precision: [fp32, bf16]", "compile: [eager, true]", "compile: give one name, or {name: ..., option"),
    "booleans": ("precision: [fp32, bf16]", "compile: [true, false]", "compile: give one name, or {name: ..., option"),
    "an option": (", when: {parallelism: tp}}", "}", "parallelism 'ddp' has no option 'size'"),
    "a field": ("preset: tiny,", "preset: tiny, precison: bf16,", "unknown key 'precison': did you mean 'precision'"),
}


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "endless"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_every_combination_is_a_mistake(name: str, listed: bool, tmp_path: Path) -> None:
    old, new, message = WRONG[name]
    text = SHARED if listed else ENDLESS
    text = text.replace("precision: [fp32, bf16]", "memory: [none]") if name == "defaults" else text
    over = Space.of(load(tmp_path, text.replace(old, new)), MACHINE)
    with pytest.raises(SuiteError) as told:
        assert over.possible
    assert any(message in line for line in told.value.messages)


def test_what_goes_with_some_choices_only_is_no_mistake(tmp_path: Path) -> None:
    batch = SHARED.replace("batch_size_per_device: {low: 1, high: 16, log: true}", "global_batch_size: [2, 6]")
    divided = Space.of(load(tmp_path, batch), MACHINE.model_copy(update={"cpu_count": 4}))
    assert divided.possible is not None
    assert {params["devices"] for params in divided.possible.values()} == {1, 2, 4}


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("tpp", "when needs parallelism 'tpp', which is none of its values: did you mean 'tp'"),
        ("[tp, zerro]", "when needs parallelism 'zerro', which is none of its values: allowed: ddp, tp"),
    ],
)
def test_a_condition_that_is_never_met_is_a_mistake(when: str, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, SHARED.replace("when: {parallelism: tp}", f"when: {{parallelism: {when}}}"))


def test_a_condition_on_what_differs_by_machine_is_left_alone(tmp_path: Path) -> None:
    on = "{on: {cpu: [ddp, tp], gpu: [ddp, tp, fsdp_tp]}}"
    assert load(tmp_path, SHARED.replace("[ddp, tp]", on).replace("{parallelism: tp}", "{parallelism: [tp, fsdp_tp]}"))
    assert load(tmp_path, SHARED.replace("when: {parallelism: tp}", "when: {devices: 4}"))


def test_choices_have_names_that_people_read() -> None:
    assert label({"name": "lora", "rank": 8}) == "lora-rank=8"
    assert [label(value) for value in ("a", 1, 1.5, True, None)] == ["a", 1, 1.5, True, None]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no space": ({"space": {}}, "space: must have at least 1 item"),
    "a stranger": ({"space": {"precison": ["fp32"]}}, "'precison' is no field of a run: did you mean 'precision'"),
    "how it is measured": ({"space": {"measure_seconds": [1.0, 2.0]}}, "'measure_seconds' cannot be searched over"),
    "one value": ({"space": {"precision": "fp32"}}, "give a list of values, {low: ..., high: ...}"),
    "empty list": ({"space": {"precision": []}}, "'precision': choices: must have at least 1 item"),
    "twice": ({"space": {"precision": ["fp32", "fp32"]}}, "'precision': a value stands twice"),
    "upside down": ({"space": {"batch_size_per_device": {"low": 8, "high": 2}}}, "low 8 is above high 2"),
    "log of zero": ({"space": {"batch_size_per_device": {"low": 0, "high": 2, "log": True}}}, "needs a low above 0"),
    "later field": (
        {"space": {"precision": {"choices": ["fp32"], "when": {"devices": 2}}, "devices": [1, 2]}},
        "when names 'devices', which does not stand before it",
    ),
    "both": ({"space": {"threads_per_device": [1, 2]}}, "threads_per_device stands in defaults and in space"),
    "objective": ({"objectives": ["tim"]}, "no objective 'tim': did you mean 'time'"),
    "wrong way": ({"objectives": {"accuracy": "minimize"}}, "accuracy: maximize, not 'minimize'"),
    "five": (
        {"objectives": ["time", "cost", "energy", "carbon", "memory"]},
        "give one to four of time, cost",
    ),
    "twice the same": ({"objectives": ["time", "time"]}, "an objective stands twice in time, time"),
    "an empty window": ({"constraints": {"memory": {"min": 2.0, "max": 1.0}}}, "min 2 is above max 1"),
    "excluded stranger": (
        {"exclude": [{"precison": "fp32"}]},
        "exclude: unknown field 'precison': did you mean 'precision'",
    ),
    "an option": ({"space": {"learning_rate": [0.1, 0.2]}}, "it is an option: write optimizer.learning_rate"),
    "no end": ({"budget": {}}, "a search needs an end"),
    "no limit": ({"constraints": {"memory": {}}}, "give {max: NUMBER}, {min: NUMBER} or both"),
    "sampler": ({"sampler": "annealing"}, "sampler: must be 'auto', 'tpe'"),
    "work": ({"work": {"samples": 1.0, "tokens": 1.0}}, "give {samples: NUMBER}, {tokens: NUMBER}, or target"),
    "target": ({"work": "target"}, "work: target needs defaults with target"),
    "probe": ({"probe": {"precision": "bf16"}}, "probe: 'precision' is none of measure_steps, measure_seconds"),
    "loss": ({"objectives": ["loss"]}, "leave measure_steps and measure_seconds out of the defaults"),
    "key": ({"matrix": {}}, "unknown key 'matrix'"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_told_with_what_is_allowed(name: str, tmp_path: Path) -> None:
    change, message = BAD[name]
    told = refused(
        tmp_path,
        yamlfile.write(search().model_dump(mode="json", exclude_defaults=True) | {"objectives": ["time"]} | change),
    )
    assert message in told
    assert all(line.startswith(str(tmp_path / "search.yaml")) for line in told.splitlines())


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = refused(tmp_path, GOOD.replace("precision:", "precison:").replace("low: 1,", "low: 99,"))
    assert "'precison' is no field" in told
    assert "low 99 is above high 16" in told


@pytest.mark.parametrize("text", ["", "[]", "name: x", "a: [", "space: 3"])
def test_what_is_no_search_is_told(text: str, tmp_path: Path) -> None:
    assert refused(tmp_path, text)


def test_settings_of_the_command_line() -> None:
    asked = search()
    found = override(asked, ["precision=bf16", "threads_per_device=[1, 2]", "repeats=5", "workload_args.preset=small"])
    assert found.defaults["precision"] == "bf16"
    assert "precision" not in found.space
    assert found.space["threads_per_device"] == [1, 2]
    assert (found.repeats, found.defaults["workload_args.preset"]) == (5, "small")
    conditional = search(
        space={"parallelism": ["ddp", "tp"], "parallelism.size": {"choices": [2], "when": {"parallelism": "tp"}}}
    )
    fixed = space(override(conditional, ["parallelism=tp"]))
    assert fixed.listed() == [{"parallelism.size": 2}]
    assert list(override(conditional, ["parallelism=[tp, ddp]"]).space) == ["parallelism", "parallelism.size"]
    assert override(asked, ["parallelism.size=2"]).space["parallelism.size"] == [2]
    assert override(asked, ["batch_size_per_device={low: 2, high: 4}"]).space["batch_size_per_device"]["high"] == 4
    for wrong, message in (("x", "give key=value"), ("precison=bf16", "did you mean"), ("repeats=0", "greater than")):
        with pytest.raises(SuiteError, match=message):
            override(asked, [wrong])


def test_money_and_carbon_need_a_price_and_a_region() -> None:
    bare = search("[cost, carbon]").model_copy(update={"usd_per_device_hour": None, "region": None})
    told = list(unpriced(bare))
    assert [line.split()[0] for line in told] == ["cost", "carbon"]
    assert list(unpriced(search("[cost, carbon]"))) == []


def test_numbers_keep_their_kind() -> None:
    assert Range(low=1, high=5).values() == [1, 2, 3, 4, 5]
    assert Range(low=0.0, high=1.0, step=0.25).values() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert Range(low=0.0, high=1.0).values() is None
    assert Range(low=1, high=10**9).values() is None
    assert yamlfile.parse("[1, 2]") == Choices(choices=[1, 2]).values()
