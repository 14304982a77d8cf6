"""What cannot be combined is refused before anything starts: every row, each arithmetic, and nothing beside them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import registry
from bench.schema import AXES, COMMAND, Machine, RunSpec, Suite
from bench.strategies import catalog
from bench.suites import combine
from bench.suites.combine import ROWS, why_impossible
from bench.suites.expand import expand
from bench.suites.load import load_suite
from tests.commands import bench
from tests.stores import empty_store

SUITES = Path(__file__).parent.parent / "suites"
DEFAULTS = {axis: RunSpec.model_fields[axis].default.name for axis in AXES}


def installed(name: str) -> Any:
    return name


def spec(**fields: Any) -> RunSpec:
    base = {
        "workload": "decoder_lm",
        "workload_args": {"preset": "tiny"},
        "device_type": "gpu",
        "batch_size_per_device": 8,
        "measure_steps": 4,
    }
    return RunSpec.model_validate(base | fields)


def test_every_condition_of_every_row_is_understood() -> None:
    for row in ROWS:
        parsed = combine._parsed(row.conditions)
        assert len(parsed) == len(row.conditions.split(" & ")) > 1
        for field, option, _, trait, _, values in parsed:
            assert field in RunSpec.model_fields
            assert option or trait or values
            if field in AXES and values and not option:
                assert set(values.split(",")) <= set(catalog.CATALOG[field])


def devices_for(parallelism: str) -> int:
    return {"single": 1, "ddp": 1, "zero1": 2, "fsdp2": 2}.get(parallelism, 4 if parallelism != "tp" else 2)


def satisfying(condition: str) -> Iterator[tuple[str, Any]]:
    """Fields of a run that meet a condition: one for each value that it names."""
    ((field, option, without, trait, other, values),) = combine._parsed(condition)
    if field not in AXES:
        opposite = {"gradient_accumulation_steps": 2, "needs": "x", "saves": "x"}
        for value in values.split(","):
            yield field, opposite[field] if other else value
        return
    for name, options in catalog.CATALOG[field].items():
        if trait:
            if bool(getattr(options, trait)) != bool(without):
                yield field, {"name": name}
        elif option:
            if option in options.model_fields:
                yield field, {"name": name, option: True}
        elif (name in values.split(",")) != bool(other):
            yield field, {"name": name}


def combinations(row: combine.Rule) -> Iterator[dict[str, Any]]:
    """Runs that meet all conditions of a row, each value of each condition in turn."""
    choices = [list(satisfying(condition)) for condition in row.conditions.split(" & ")]
    assert all(choices), row
    for place, options in enumerate(choices):
        for option in options:
            fields = dict([*(other[0] for other in choices), option])
            assert len(fields) == len(choices), (row, place)
            yield fields


def run_of(fields: dict[str, Any]) -> RunSpec:
    parallelism = fields.get("parallelism", {"name": "ddp"})["name"]
    size = {"size": 2} if parallelism in ("cp", "pp") else {}
    devices = {"devices_per_node": devices_for(parallelism)}
    more = {"parallelism": {**fields["parallelism"], **size}} if "parallelism" in fields else {}
    return spec(**devices | fields | more)


@pytest.mark.parametrize("row", ROWS, ids=[row.conditions for row in ROWS])
def test_every_row_refuses_with_its_reason(row: combine.Rule) -> None:
    for fields in combinations(row):
        asked = run_of(fields)
        reasons = list(combine._reasons(asked, None, installed))
        assert any(text.endswith(row.reason) for text in reasons), (fields, reasons)
        for name in fields:
            if name in AXES:
                assert fields[name]["name"] in "\n".join(reasons)


@pytest.mark.parametrize("row", ROWS, ids=[row.conditions for row in ROWS])
def test_without_one_of_its_conditions_a_row_does_not_refuse(row: combine.Rule) -> None:
    neutral = {"precision": {"name": "bf16"}}  # where the default meets a condition, another value does not
    for fields in combinations(row):
        for name in fields:
            left = {key: value for key, value in fields.items() if key != name}
            asked = run_of({**left, **({name: neutral[name]} if name in neutral else {})})
            why = list(combine._reasons(asked, None, installed))
            assert not any(text.endswith(row.reason) and name in text for text in why), (fields, name, why)


@pytest.mark.parametrize("axis", AXES)
def test_every_strategy_is_possible_somewhere(axis: str) -> None:
    for name in catalog.CATALOG[axis]:
        needed = {"needs": "teacher"} if axis == "distillation" and name != "none" else {}
        asked = run_of({axis: {"name": name}, **needed})
        assert why_impossible(asked, None, installed) is None, name


SHAPE = {"layers": 1, "hidden": 48, "heads": 3, "sequence_length": 15}
LLAMA = {"preset": "llama-tiny"}
HALVED = {"pruning": {"name": "layers", "remove": 2}}
WORLD = "devices_per_node"
ARITHMETIC: list[tuple[dict[str, Any], str]] = [
    ({WORLD: 2, "parallelism": "single"}, "uses one device, not 2"),
    *(({"parallelism": name}, "needs at least 2, not 1") for name in ("tp", "pp", "cp", "fsdp_tp")),
    ({WORLD: 2, "parallelism": "hsdp"}, "at least 4, not 2: choose fsdp2"),
    ({WORLD: 4, "parallelism": {"name": "hsdp", "shard": 3}}, "a multiple of 3 devices, at least 6, not 4"),
    ({WORLD: 2, "parallelism": "fsdp_tp"}, "choose tp"),
    ({WORLD: 3, "parallelism": "fsdp_tp"}, "3 devices cannot form groups of 2"),
    ({WORLD: 4, "parallelism": {"name": "tp", "size": 2}}, "choose fsdp_tp"),
    ({WORLD: 2, "parallelism": "tp", "workload_args": SHAPE}, "3 heads cannot be divided among 2 devices"),
    ({WORLD: 4, "parallelism": "tp", "workload_args": LLAMA}, "4 heads and 2 of keys and values cannot be divided"),
    (
        {WORLD: 3, "parallelism": {"name": "tp", "sequence": True}, "workload_args": SHAPE | {"sequence_length": 16}},
        "sequences of 16 tokens cannot be cut into 3",
    ),
    ({WORLD: 2, "parallelism": "pp", "workload_args": SHAPE}, "1 layers cannot be divided among 2 stages"),
    ({WORLD: 2, "parallelism": {"name": "pp", "microbatches": 3}}, "8 samples cannot be cut into 3"),
    (
        {WORLD: 2, "parallelism": {"name": "pp", "microbatches": 1}},
        "needs at least 2 micro-batches for 2 stages, not 1",
    ),
    ({WORLD: 2, "parallelism": "cp", "workload_args": LLAMA}, "as many heads of keys as of queries, not 2 and 4"),
    ({WORLD: 2, "parallelism": "cp", "workload_args": SHAPE}, "15 tokens cannot be cut into 4 equal parts"),
    (
        {WORLD: 2, "parallelism": "pp", "workload_args": SHAPE | {"layers": 4, "shared_layers": 2}},
        "share their weights",
    ),
    *(
        ({WORLD: 2, "parallelism": name, "workload": "encoder"}, "divides decoders like GPT-2 and Llama")
        for name in ("tp", "pp")
    ),
    ({WORLD: 2, "parallelism": "fsdp2", "workload": "lstm_lm"}, "fsdp2 works on repeated layers"),
    ({"memory": "recompute", "workload": "lstm_lm"}, "recompute works on repeated layers"),
    ({"attention": "flash", "workload": "lstm_lm"}, "no dot product attention"),
    ({"attention": "flash", "workload": "image_classification"}, "no dot product attention"),
    ({"finetune": {"name": "last_layers", "layers": 99}}, "layers must be at most 4, the number of layers, not 99"),
    ({"memory": {"name": "selective", "every": 5}}, "every must be at most 4, the number of layers, not 5"),
    ({"pruning": {"name": "layers", "remove": 4}}, "cannot remove 4 of 4 layers"),
    ({"memory": {"name": "selective", "every": 4}} | HALVED, "every must be at most 2, the number of layers, not 4"),
    ({"finetune": {"name": "last_layers", "layers": 3}} | HALVED, "layers must be at most 2, the number of layers"),
    *(
        ({"finetune": {"name": "last_layers", "layers": 5}, "workload": name, "workload_args": {"preset": preset}}, "5")
        for name, preset in (("encoder", "tiny"), ("image_classification", "vit-tiny"))
    ),
]


@pytest.mark.parametrize(("fields", "words"), ARITHMETIC)
def test_devices_samples_and_layers_that_do_not_fit_are_refused(fields: dict[str, Any], words: str) -> None:
    why = why_impossible(spec(**fields), None, installed)
    assert why is not None
    assert words in why


@pytest.mark.parametrize(
    "fields",
    [
        {WORLD: 4, "parallelism": "hsdp"},
        {WORLD: 4, "parallelism": "fsdp_tp"},
        {WORLD: 4, "parallelism": "tp"},
        {WORLD: 4, "parallelism": "pp"},
        {WORLD: 4, "parallelism": {"name": "pp", "size": 2}},
        {WORLD: 2, "parallelism": {"name": "tp", "sequence": True}, "workload_args": LLAMA},
        {WORLD: 2, "parallelism": {"name": "pp", "microbatches": 1}, "gradient_accumulation_steps": 2},
        {"finetune": {"name": "last_layers", "layers": 4}},
        {"finetune": {"name": "last_layers", "layers": 0}},
        {"memory": {"name": "selective", "every": 4}},
        {"pruning": {"name": "layers", "remove": 3}},
        {"attention": "flash", "workload": "image_classification", "workload_args": {"preset": "vit-tiny"}},
        {"finetune": {"name": "last_layers", "layers": 2}, "workload": "image_classification"},
    ],
)
def test_what_fits_is_not_refused(fields: dict[str, Any]) -> None:
    assert why_impossible(spec(**fields), None, installed) is None


def test_a_missing_library_is_refused_with_the_remedy() -> None:
    for field, name, library in (
        ("finetune", "lora", "peft"),
        ("quantization", "int8", "torchao"),
        ("precision", "fp8", "torchao"),
        ("optimizer", "adamw8bit", "torchao"),
    ):
        why = why_impossible(
            spec(**{field: name}), None, ({"peft": "peft", "torchao": "torchao"} | {library: None}).get
        )
        assert why == f"{field} {name} needs {library}: pip install 'wattbench[strategies]'"
    assert why_impossible(spec(), None, lambda name: None) is None


def test_what_a_command_does_is_its_own_business() -> None:
    argv = {"workload": COMMAND, "workload_args": {"argv": "true"}, "device_type": "cpu"}
    assert why_impossible(RunSpec(**argv, precision="fp8", parallelism="tp")) is None


def test_layouts_are_those_of_the_built_models() -> None:
    torch = pytest.importorskip("torch")
    for name, args in (
        ("decoder_lm", {"preset": "tiny"}),
        ("decoder_lm", {"preset": "llama-tiny"}),
        ("decoder_lm", {"layers": 4, "hidden": 32, "heads": 2, "shared_layers": 2}),
        ("encoder", {"preset": "tiny"}),
        ("image_classification", {"preset": "tiny"}),
        ("image_classification", {"preset": "vit-tiny"}),
        ("text_cnn", {}),
        ("lstm_lm", {}),
        ("recommender", {}),
    ):
        workload = registry.load("workload", name)(args)
        layout = workload.args.layout()
        with torch.device("meta"):
            model = workload.build()
        assert layout.blocks == len(workload.blocks(model)), name
        config = getattr(model, "config", None)
        assert layout.attention == hasattr(config, "num_attention_heads"), name
        if layout.heads:
            keys = getattr(config, "num_key_value_heads", config.num_attention_heads)
            assert layout.heads == (config.num_attention_heads, keys)
            assert layout.tokens == workload.tokens_per_sample


def test_a_teacher_of_another_workload_is_refused() -> None:
    include = [
        {"workload": "encoder", "workload_args.preset": "tiny", "saves": "teacher"},
        {"workload": "decoder_lm", "workload_args.preset": "tiny", "needs": "teacher", "distillation": "soft"},
    ]
    suite = Suite(name="test", defaults={"batch_size_per_device": 8}, include=include)
    plan = expand(suite, Machine(cpu_model="test", cpu_count=4))
    assert list(plan.skipped.values()) == ["distillation: the teacher's workload is encoder, the student's decoder_lm"]


IMPOSSIBLE = """
name: impossible
idle_seconds: 0
defaults: {workload: decoder_lm, workload_args.preset: tiny, device_type: cpu, batch_size_per_device: 8, meters: []}
include:
  - {precision: fp8}
  - {finetune: lora, quantization: qat}
  - {finetune: {name: last_layers, layers: 99}}
  - {memory: offload, compile: default}
"""


def test_a_suite_of_impossible_runs_is_listed_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.run.launcher import LocalLauncher

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(LocalLauncher, "start", start)
    path = tmp_path / "suite.yaml"
    path.write_text(IMPOSSIBLE)
    empty_store(tmp_path)
    shown = bench("show", str(path), "--no-memory")
    assert shown.exit_code == 0
    assert shown.output.count("Skipped: 1 configuration (") == 4
    assert "finetune last_layers: layers must be at most 4, the number of layers, not 99" in shown.output
    done = bench("run", str(path), "--json")
    assert done.exit_code == 0, done.output
    records = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*/*/*/record.json")]
    assert [record["status"] for record in records] == ["skipped"] * 4


def test_a_search_spends_no_trial_on_what_is_impossible(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(
        "name: x\ndefaults: {workload: decoder_lm, workload_args.preset: tiny, device_type: cpu, meters: []}\n"
        "space: {precision: [fp32, bf16, fp8], batch_size_per_device: [1, 2]}\nobjectives: [time]\n"
        "work: {samples: 1.0e+6}\nbudget: {trials: 3}\n"
    )
    done = bench("search", str(path), "--dry-run")
    assert done.exit_code == 0, done.output
    assert "precision fp8 on a CPU: it needs a GPU" in done.output


@pytest.mark.parametrize("workload", sorted(set(registry.names("workload")) - {COMMAND}))
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_every_workload_is_possible_with_its_defaults(workload: str, device_type: str) -> None:
    arguments = registry.load("workload", workload).Args
    preset = {"preset": "tiny"} if "preset" in arguments.model_fields else {}
    arguments = arguments.model_validate(preset).model_dump(mode="json", exclude_none=True)
    run = spec(workload=workload, workload_args=arguments, device_type=device_type, devices_per_node=2)
    assert why_impossible(run) is None


@pytest.mark.parametrize("name", ["scaling", "workloads", "transfer", "ladder"])
def test_these_ready_suites_skip_nothing_on_a_cpu(name: str) -> None:
    assert expand(load_suite(SUITES / f"{name}.yaml"), Machine(cpu_model="test", cpu_count=4)).skipped == {}
