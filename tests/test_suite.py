"""Suites: what they mean on a machine, and what is said about mistakes."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bench.cluster_options import ClusterOptions
from bench.machine.partition import Partition
from bench.schema import Gpu, Machine, RunSpec, Site, Suite
from bench.suites.expand import Expansion, expand, only
from bench.suites.load import FIELDS, SuiteError, load_suite, override, with_cluster, with_site
from bench.suites.yaml import MAX_ALIASES, MAX_BYTES, MAX_DEPTH, YamlError, parse, read, write

ROOT = Path(__file__).parent.parent
SUITES = sorted(path for path in (ROOT / "suites").glob("*.yaml") if not path.stem.startswith("search_"))
CPU = Machine(cpu_model="Synthetic", cpu_count=2)


def gpus(count: int, busy: tuple[int, ...] = ()) -> Machine:
    found = [
        Gpu(index=i, uuid=f"GPU-{i}", name="Synthetic", used_by=["python (7)"] if i in busy else [])
        for i in range(count)
    ]
    return Machine(cpu_model="Synthetic", cpu_count=64, gpus=found)


BASE: dict[str, Any] = {
    "workload": "decoder_lm",
    "workload_args.preset": "tiny",
    "batch_size_per_device": 4,
    "measure_steps": 5,
}
FREE = {key: value for key, value in BASE.items() if key != "batch_size_per_device"}
"""No batch is given: that is the test's part."""


ODD: list[Any] = [[3], {"a": 1}, {"name": [1]}, None, "", "\n", -1, 0, 1.5, True, 10**30, "x y", [], {}, [[1], {}]]
SEVERAL = Partition(cpu_model="Synthetic", cpu_count=2, name="long", most_nodes=2, asked=ClusterOptions())


def written(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def made(folder: Path, machine: Machine = CPU, defaults: dict[str, Any] | None = None, **fields: Any) -> Expansion:
    suite = {"name": "s", "defaults": BASE if defaults is None else defaults, **fields}
    return expand(load_suite(written(folder, write(suite))), machine)


def mistakes(folder: Path, text: str, machine: Machine = CPU) -> list[str]:
    with pytest.raises(SuiteError) as caught:
        expand(load_suite(written(folder, text)), machine)
    return caught.value.messages


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("machine", [CPU, gpus(2), SEVERAL], ids=["cpu", "gpus", "nodes"])
def test_whatever_a_field_is_given_is_taken_or_told(field: str, machine: Machine, tmp_path: Path) -> None:
    for value in ODD:
        for part in ({"defaults": BASE | {field: value}}, {"defaults": BASE, "matrix": {field: [value]}}):
            with suppress(SuiteError):
                made(tmp_path, machine, **part)


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
@pytest.mark.parametrize("machine", [CPU, gpus(1), gpus(8)], ids=["cpu", "one-gpu", "eight-gpus"])
def test_every_shipped_suite_is_valid_everywhere(path: Path, machine: Machine) -> None:
    plan = expand(load_suite(path), machine)
    assert plan.to_do
    assert plan.suite.description


def test_the_largest_batch_is_asked_for_by_its_name(tmp_path: Path) -> None:
    plan = made(tmp_path, gpus(4), FREE | {"batch_size_per_device": "max"}, matrix={"devices": [1, 4]})
    assert [run.batch_size_per_device for run in plan.runs] == ["max", "max"]
    assert [run.global_batch_size for run in plan.runs] == [None, None]
    assert plan.scaling == "weak"  # each device is given all that it holds
    mixed = made(
        tmp_path,
        gpus(4),
        FREE,
        include=[{"devices": 1, "batch_size_per_device": "max"}, {"devices": 4, "batch_size_per_device": 2}],
    )
    assert mixed.scaling == "mixed"
    with pytest.raises(SuiteError, match="batch_size_per_device"):
        made(tmp_path, CPU, FREE | {"batch_size_per_device": "most"})


def test_matrix_times_include_less_exclude(tmp_path: Path) -> None:
    plan = made(
        tmp_path,
        matrix={"precision": ["fp32", "bf16"], "devices": [1, 2]},
        exclude=[{"precision": "bf16", "devices": 2}],
        include=[{"precision": "bf16", "devices": 2, "gradient_accumulation_steps": 2}],
    )
    found = {(run.precision.name, run.world_size, run.gradient_accumulation_steps) for run in plan.runs}
    assert found == {("fp32", 1, 1), ("fp32", 2, 1), ("bf16", 1, 1), ("bf16", 2, 2)}


def test_repeats_are_interleaved_and_have_seeds_of_their_own(tmp_path: Path) -> None:
    plan = made(tmp_path, matrix={"devices": [1, 2]}, repeats=3)
    assert [(run.world_size, run.repeat) for run in plan.runs] == [(1, 0), (2, 0), (2, 1), (1, 1), (1, 2), (2, 2)]
    assert {run.seed for run in plan.runs} == {0, 1, 2}
    assert len({run.config_id for run in plan.runs}) == 2
    assert len({run.run_id for run in plan.runs}) == 6


def test_values_by_machine(tmp_path: Path) -> None:
    defaults = BASE | {"batch_size_per_device": {"on": {"cpu": 2, "cuda": 16}}, "warmup_steps": {"on": {"cuda": 7}}}
    matrix = {"precision": {"on": {"cpu": ["fp32"], "cuda": ["fp32", "tf32"]}}}
    cpu = made(tmp_path, defaults=defaults, matrix=matrix)
    cuda = made(tmp_path, gpus(1), defaults=defaults, matrix=matrix)
    assert [(r.batch_size_per_device, r.warmup_steps) for r in cpu.runs] == [(2, 3)]
    assert [(r.batch_size_per_device, r.warmup_steps, r.precision.name) for r in cuda.runs] == [
        (16, 7, "fp32"),
        (16, 7, "tf32"),
    ]


@pytest.mark.parametrize(
    ("machine", "threads", "counts"),
    [(CPU, 1, [1, 2]), (CPU, 2, [1]), (gpus(6), 1, [1, 2, 4, 6]), (gpus(8, busy=(0, 1, 2)), 1, [1, 2, 4, 5])],
)
def test_devices_auto_goes_up_to_what_is_free(
    tmp_path: Path, machine: Machine, threads: int, counts: list[int]
) -> None:
    plan = made(tmp_path, machine, BASE | {"devices": "auto", "threads_per_device": threads}, include=[{}])
    assert [run.world_size for run in plan.runs] == counts
    assert not plan.skipped


def test_strong_scaling_divides_the_batch_and_auto_leaves_out_what_does_not_divide(tmp_path: Path) -> None:
    defaults = FREE | {"global_batch_size": 16}
    plan = made(tmp_path, gpus(6), defaults, matrix={"devices": "auto"})
    assert [(r.world_size, r.batch_size_per_device, r.global_batch_size) for r in plan.runs] == [
        (1, 16, 16),
        (2, 8, 16),
        (4, 4, 16),
    ]
    assert plan.scaling == "strong"
    assert plan.notes == ["devices: auto leaves out 6: it does not divide global_batch_size 16"]
    assert made(tmp_path, matrix={"devices": [1, 2]}).scaling == "weak"
    assert made(tmp_path, include=[{}]).scaling == "none"


@pytest.mark.parametrize(
    ("parallelism", "devices", "batch"),
    [("ddp", 4, 4), ("tp", 4, 16), ({"name": "pp", "size": 2}, 4, 8), ("fsdp_tp", 4, 8), ("tp", 3, 16)],
)
def test_devices_that_share_a_copy_share_its_part_of_the_global_batch(
    tmp_path: Path, parallelism: Any, devices: int, batch: int
) -> None:
    defaults = FREE | {"global_batch_size": 16, "parallelism": parallelism, "devices": devices}
    (run,) = made(tmp_path, gpus(6), defaults, include=[{}]).runs
    assert (run.batch_size_per_device, run.global_batch_size) == (batch, 16)


def test_what_this_machine_cannot_do_is_skipped_with_the_reason(tmp_path: Path) -> None:
    plan = made(tmp_path, matrix={"devices": [2, 4], "precision": ["fp32", "tf32"]})
    reasons = {(r.world_size, r.precision.name): plan.skipped.get(r.config_id) for r in plan.runs}
    assert reasons[2, "fp32"] is None
    assert reasons[4, "fp32"] == "needs 4 × 1 threads; this machine has 2 processors"
    assert reasons[2, "tf32"] == "precision tf32 on a CPU: TF32 exists on NVIDIA GPUs only"
    busy = made(tmp_path, gpus(2, busy=(1,)), matrix={"devices": [2]})
    assert list(busy.skipped.values()) == ["needs 2 GPUs, 1 of 2 are free: GPU 1 is used by python (7)"]
    sliced = Machine(cpu_model="x", cpu_count=1, gpus=[Gpu(index=0, uuid="GPU-0", name="x", mig=True)])
    assert "cut into slices" in next(iter(made(tmp_path, sliced, include=[{}]).skipped.values()))
    none = made(tmp_path, CPU, BASE | {"device_type": "gpu"}, include=[{}])
    assert "none is visible here" in next(iter(none.skipped.values()))


def test_devices_that_cannot_share_the_work_are_skipped_with_the_reason(tmp_path: Path) -> None:
    ways = ["ddp", "single", "tp", {"name": "tp", "size": 2}, "pp", "cp", "fsdp_tp", "hsdp", {"name": "pp", "size": 3}]
    plan = made(tmp_path, gpus(4), matrix={"devices": [1, 2, 4], "parallelism": ways})
    possible = {(run.world_size, str(run.parallelism)) for run in plan.to_do}
    assert possible == {
        *((1, way) for way in ("ddp", "single")),
        *((2, way) for way in ("ddp", "tp", "tp-size=2", "pp", "cp")),
        *((4, way) for way in ("ddp", "tp", "pp", "cp", "fsdp_tp", "hsdp")),
    }
    assert "parallelism cp divides sequences among devices: it needs at least 2, not 1" in plan.skipped.values()
    assert "4 devices cannot form groups of 3 that share layers: choose another size" in plan.skipped.values()
    script = {"workload": "command", "workload_args.argv": "train --how {parallelism}"}
    assert not made(
        tmp_path, defaults=script, matrix={"parallelism": ["tp", "single"]}
    ).skipped  # it has ways of its own


def test_two_device_types_in_one_suite(tmp_path: Path) -> None:
    plan = made(tmp_path, gpus(1), matrix={"device_type": ["cpu", "cuda"], "devices": [1]})
    assert {run.device_type for run in plan.to_do} == {"cpu", "gpu"}


HEAD = "name: s\ndefaults: {workload: decoder_lm, workload_args.preset: tiny, batch_size_per_device: 4}\n"
BAD = {
    "ladder and matrix": (
        HEAD + "ladder: [{precision: bf16}]\nmatrix: {devices: [1]}\n",
        ["a ladder starts from the defaults alone"],
    ),
    "ladder with a typo": (HEAD + "ladder: [{precison: bf16}]\n", ["ladder[0]: unknown field 'precison'"]),
    "target without validations": (
        "name: x\ndefaults: {workload: decoder_lm, workload_args.preset: tiny, batch_size_per_device: 1,\n"
        " target: {metric: validation_loss, value: 3.0}}\n",
        ["a target needs validation.every_steps"],
    ),
    "unknown key": ("nme: s\n", ["unknown key 'nme': did you mean 'name'?", "'name' is missing"]),
    "wrong type": (HEAD + "repeats: three\n", ["repeats: must be a whole number, not 'three'"]),
    "not a bool": (HEAD + "repeats: true\n", ["repeats: must be a whole number, not True"]),
    "name leaves its folder": ("name: ../up\nmatrix: {devices: [1]}\n", ["name: must match pattern"]),
    "field of runs at the top": (
        HEAD + "max_restarts: 1\n",
        ["unknown key 'max_restarts': it is a field of runs: write it under defaults or in the matrix"],
    ),
    "unknown field": (
        HEAD + "matrix: {precison: [fp32]}\n",
        ["matrix: unknown field 'precison': did you mean 'precision'?"],
    ),
    "unknown workload": (HEAD + "include: [{workload: decoder_ml}]\n", ["unknown workload 'decoder_ml': did you mean"]),
    "code to import": (HEAD + "include: [{workload: 'os:system'}]\n", ["workload: must match pattern"]),
    "empty matrix axis": (HEAD + "matrix: {devices: []}\n", ["matrix: 'devices' is empty"]),
    "all is excluded": (
        HEAD + "matrix: {devices: [1]}\nexclude: [{devices: 1}]\n",
        ["suite 's' has no runs on this machine"],
    ),
    "axis is no list": (HEAD + "matrix: {devices: 2}\n", ["matrix: 'devices' must be a list of values, not 2"]),
    "no devices": (
        HEAD + "matrix: {devices: [0]}\n",
        ["devices: must be a whole number from 1 to 1,000,000, or auto, not 0"],
    ),
    "both ways to measure": (HEAD + "include: [{measure_steps: 3, measure_seconds: 3}]\n", ["give exactly one of"]),
    "infinity": (HEAD + "matrix: {measure_seconds: [1e999]}\n", ["measure_seconds: must be a finite number"]),
    "duplicate runs": (
        HEAD + "matrix: {devices: [1]}\ninclude: [{devices: 1}]\n",
        ["duplicate runs: decoder_lm gpt2 tiny d1"],
    ),
    "duplicate key": (HEAD + "name: t\n", ["line 3: the key 'name' stands twice"]),
    "remainder": (
        HEAD.replace("batch_size_per_device: 4", "devices: 2") + "matrix: {global_batch_size: [5]}\n",
        ["global_batch_size 5 is no multiple of 2 devices"],
    ),
    "both batch sizes": (HEAD + "matrix: {global_batch_size: [8]}\n", ["give global_batch_size (strong scaling) or"]),
    "not a mapping": ("- a\n- b\n", ["a suite is a mapping with name, defaults, matrix ...; this is a list"]),
    "not YAML": ("name: [s\n", ["not YAML"]),
    "a tag of Python": (
        "name: !!python/object/apply:os.system [id]\n",
        ["not YAML: could not determine a constructor"],
    ),
    "unknown workload argument": (
        HEAD + "include: [{workload_args.presett: tiny}]\n",
        ["workload_args: unknown key 'presett': did you mean 'preset'?"],
    ),
    "text that is not there": (HEAD + "include: [{workload_args.text: no-such-file}]\n", ["no such file or folder"]),
    "two prices": (HEAD + "usd_per_kwh: 1\nusd_per_device_hour: 1\ninclude: [{}]\n", ["not both"]),
    "needs what nobody saves": (
        HEAD + "include: [{saves: base}, {needs: bass}]\n",
        ["needs 'bass', which no run of the suite saves: did you mean 'base'?"],
    ),
    "nobody saves anything": (HEAD + "include: [{needs: base}]\n", ["saves: no run saves weights"]),
    "several save one name": (
        HEAD + "matrix: {precision: [fp32, bf16], saves: [base]}\n",
        ["2 configurations save 'base' (decoder_lm gpt2 tiny d1 b4 fp32 ddp saves-base, decoder_lm gpt2"],
    ),
    "needs itself": (
        HEAD + "include: [{saves: base, needs: base}]\n",
        ["runs need each other in a cycle: base -> base; write needs: null where the weights are made"],
    ),
    "a circle": (
        HEAD + "include: [{saves: b, needs: c}, {saves: a, needs: b}, {saves: c, needs: a}, {needs: a}]\n",
        ["runs need each other in a cycle: b -> c -> a -> b"],
    ),
    "no teacher": (HEAD + "include: [{distillation: soft}]\n", ["distillation has no teacher: give needs: NAME"]),
    "a command that saves": (
        "name: s\ninclude: [{workload: command, workload_args.argv: 'true', saves: x}]\n",
        ["a command neither saves weights"],
    ),
    "auto elsewhere": (HEAD + "matrix: {repeats: auto}\n", ["matrix: unknown field 'repeats'"]),
    "auto for another field": (
        HEAD + "matrix: {seed: auto}\n",
        ["'auto' is allowed for devices only, not for 'seed'"],
    ),
    "on with a stranger": (HEAD + "matrix: {seed: {on: {tpu: [1]}}}\n", ["'on' takes a mapping with cpu and/or gpu"]),
    "devices beyond all bounds": (
        HEAD + "include: [{devices: 100000000000000000000}]\n",
        ["devices: must be a whole number from 1 to 1,000,000, or auto"],
    ),
    "a batch beyond all bounds": (
        HEAD.replace("4}", "99999999999}") + "include: [{}]\n",
        ["less than or equal to 2147483647 or 'max', not 99999999999"],
    ),
    "an option beyond all bounds": (
        HEAD + "include: [{optimizer: {name: adamw, learning_rate: 1.0e+400}}]\n",
        ["optimizer.options.learning_rate: must be"],
    ),
    "a former name": (HEAD + "include: [{memory: checkpoint}]\n", ["memory 'checkpoint' is called 'recompute' now"]),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_told_in_at_most_two_lines_each(tmp_path: Path, name: str) -> None:
    text, expected = BAD[name]
    found = mistakes(tmp_path, text)
    for part in expected:
        assert any(part in message for message in found), found
    assert all(len(message.splitlines()) <= 2 for message in found)
    assert all(len(message) < 700 for message in found)
    (found,) = mistakes(tmp_path, HEAD + f"repeats: {'x' * 5000}\n")
    assert len(found) < 300


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = HEAD + "matrix: {precision: [fp31, fp32], measure_steps: [-1]}\nrepeats: 0\n"
    assert mistakes(tmp_path, text) == [f"{tmp_path}/suite.yaml: repeats: must be greater than or equal to 1, not 0"]
    found = mistakes(tmp_path, "nme: s\nrepeats: 0\nmatrix: {precison: [a], seed: []}\n")
    assert len(found) == 5, found
    cell = (
        "{precision: fp31, measure_steps: -1, devices: 0, optimizer: {name: adamw, lr: 1}, workload_args.presett: tiny}"
    )
    found = mistakes(tmp_path, HEAD + f"include: [{cell}]\n")
    assert len(found) == 5, found
    found = mistakes(tmp_path, text.replace("repeats: 0", "repeats: 1") + "include: [{optimizer: adamx}]\n")
    assert len(found) == 3  # the same mistake in two cells is told once
    found = mistakes(tmp_path, HEAD + "matrix: {precison: [a], devices: 1, seed: []}\n")
    assert len(found) == 3


def test_files_that_cannot_be_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.suites.yaml.MAX_NODES", 500)
    (tmp_path / "huge.yaml").write_text("a: 1\n" * MAX_BYTES)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, message in {
        "none.yaml": "no such file", ".": "is a folder", "huge.yaml": "has 5000000 bytes", "binary.yaml": "not UTF-8",
    }.items():  # fmt: skip
        with pytest.raises(YamlError, match=message):
            read(tmp_path / name)
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 3)}]" for i in range(1, 8))
    for text, message in {
        "[" * 100 + "]" * 100: f"nested more than {MAX_DEPTH}",
        "a: &a [x, x]\nb: [" + ", ".join(["*a"] * (MAX_ALIASES + 1)) + "]\n": "aliases",
        "[" + "1," * 600 + "]": "nodes",
        f"a0: &a0 [x, x]\n{levels}\n": "nodes",  # what an alias stands for counts each time
        "a: *nothing": "not YAML",
        "a: !" + "x" * 5000: "not YAML",
    }.items():
        with pytest.raises(YamlError, match=message) as caught:
            parse(text)
        assert len(str(caught.value)) < 300
    assert parse("a: &a [x, y]\nb: *a\n") == {"a": ["x", "y"], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "line 1: the alias 'a' stands inside the value that it repeats"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2: the key 'c' stands twice"),
        ("{1: 2}", "line 1: a key must be text, not 1"),
        ("? [a]\n: b", "a key must be text"),
        ("a: !!set {b, c}", "could not determine a constructor for the tag"),
        ("a: !!binary aGk=", "could not determine a constructor for the tag"),
        ("a: !!bool maybe", "not YAML: 'maybe'"),
        ("a: 1\n---\nb: 2", "not YAML: but found another document"),
    ],
)
def test_only_plain_values_under_text_keys_are_read(text: str, message: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_values_are_those_of_yaml_1_2_and_what_is_written_is_read_back() -> None:
    assert parse("[010, -7, +3, 1_000, 1e-3, 1.0e+6, .5, 0x10, 0o7, 1:30, .nan, -.inf, <<, =]") == [
        10, -7, 3, "1_000", 1e-3, 1e6, 0.5, "0x10", "0o7", "1:30", ".nan", "-.inf", "<<", "=",
    ]  # fmt: skip
    assert parse("{on: 1, region: NO, yes: no, truth: true, d: 2026-01-02, nothing: null}") == {
        "on": 1, "region": "NO", "yes": "no", "truth": True, "d": "2026-01-02", "nothing": None,
    }  # fmt: skip
    value = {
        "z": ["no", "on", "1_000", "0o7", "2026-01-02", "~", "", " x", "a: b", "é\n"],
        "a": [1, 1e-5, 1e22, None, True],
    }
    assert parse(write(value)) == value
    assert list(parse(write(value))) == ["z", "a"]


def test_too_many_runs_are_refused_before_they_are_made(tmp_path: Path) -> None:
    values = list(range(1, 2001))
    text = HEAD + f"matrix: {{seed: {values}, warmup_steps: {values}}}\n"
    assert mistakes(tmp_path, text) == ["matrix: 4000000 configurations; at most 10000 runs are allowed"]


def test_settings_of_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD + "matrix: {devices: [1], precision: [fp32, bf16]}\nrepeats: 3\n")
    suite = override(load_suite(path), ["repeats=1", "precision=bf16", "devices=[1, 2]", "region=FR", "seed=7"])
    runs = expand(suite, CPU).runs
    assert {(r.precision.name, r.world_size, r.seed) for r in runs} == {("bf16", 1, 7), ("bf16", 2, 7)}
    assert suite.site.region == "FR"
    for bad, part in {
        "seed": "give key=value",
        "seeed=1": "did you mean 'seed'",
        "repeats=x": "must be a whole number",
        "a=[": "not YAML",
    }.items():
        with pytest.raises(SuiteError, match=part.replace("(", "\\(")):
            override(load_suite(path), [bad])


def test_a_layout_of_the_command_line_takes_the_place_of_devices_and_these_that_of_a_layout(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, write({"name": "s", "defaults": BASE, "matrix": {"devices": "auto"}})))
    plan = expand(override(suite, ["layout=[1x1, 1x2]"]), CPU)
    assert [run.world_size for run in plan.runs] == [1, 2]
    assert [run.world_size for run in expand(override(plan.suite, ["devices=2"]), CPU).runs] == [2]


def test_only_keeps_what_matches(tmp_path: Path) -> None:
    plan = made(tmp_path, matrix={"precision": ["fp32", "bf16"], "devices": [1, 2]})
    assert [r.world_size for r in only(plan, ["precision=bf16", "devices=2,1"]).runs] == [1, 2]
    assert len(only(plan, ["preset=tiny"]).runs) == 4
    for bad, part in {
        "precision=fp8": "no run has precision=fp8; allowed: bf16, fp32",
        "precision=bf16,fp8": "no run has precision=fp8",
        "preset=tiny,devices=1": "use a separate --only for each field",
    }.items():
        with pytest.raises(SuiteError, match=part):
            only(plan, [bad])
    with pytest.raises(SuiteError, match="did you mean 'precision'"):
        only(plan, ["precison=fp32"])


def test_the_spec_survives_its_file(tmp_path: Path) -> None:
    plan = made(tmp_path, include=[{"optimizer": {"name": "sgd", "momentum": 0.5}}])
    (spec,) = plan.runs
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.workload_args["sequence_length"] == 128
    assert str(spec.optimizer) == "sgd-momentum=0.5"


def test_the_profile_of_a_site_fills_what_a_suite_leaves_open() -> None:
    suite = with_site(Suite(name="s", cluster=ClusterOptions(qos="high")), {"pue": 1.2})
    filled = with_cluster(suite, {"partition": "gpu", "qos": "normal"})
    assert filled.cluster == ClusterOptions(partition="gpu", qos="high")


def test_a_price_takes_the_place_of_the_other_kind() -> None:
    owned = Site(usd_per_kwh=0.2, usd_capital_per_device_hour=1.5, price_note="ours", region="FR")
    rented = with_site(owned, {"usd_per_device_hour": 2.1})
    assert rented == Site(usd_per_device_hour=2.1, region="FR")
    assert with_site(rented, {"usd_per_kwh": 0.3, "price_note": "2026"}) == Site(
        usd_per_kwh=0.3, price_note="2026", region="FR"
    )
    assert with_site(owned, {"usd_per_kwh": 0.3}).usd_capital_per_device_hour == 1.5
    assert with_site(owned, {"pue": 1.2}).price_note == "ours"
    with pytest.raises(SuiteError, match=r"give --price \(rented\) or --capital-price \(owned\), not both"):
        with_site(owned, {"usd_per_device_hour": 2.1, "usd_capital_per_device_hour": 1.0})
    with pytest.raises(SuiteError, match=r"--capital-price: must be greater than or equal to 0"):
        with_site(owned, {"usd_capital_per_device_hour": -1.0})


LADDER = """
name: x
defaults: {workload: decoder_lm, workload_args.preset: tiny, batch_size_per_device: 4, devices: auto}
ladder:
  - {precision: bf16}
  - {compile: {on: {gpu: default}}}
  - {optimizer.learning_rate: 0.01, optimizer.name: sgd}
repeats: 2
"""


def test_the_steps_of_a_ladder_add_up(tmp_path: Path) -> None:
    plan = expand(load_suite(written(tmp_path, LADDER)), CPU)
    told = [(r.ladder, r.precision.name, str(r.optimizer), r.world_size) for r in plan.runs]
    steps = [(0, "fp32", "adamw", 2), (1, "bf16", "adamw", 2), (3, "bf16", "sgd-learning_rate=0.01", 2)]
    assert told == [*steps, *reversed(steps)]
    assert any("step 2 has no value for cpu" in note for note in plan.notes)
    assert plan.runs[0].changed(ladder=None).config_id == plan.runs[0].config_id  # the place is no part of it


CHAIN = [{"needs": "b"}, {"saves": "b", "needs": "a", "seed": 5}, {"precision": "bf16"}, {"saves": "a"}]


def places(plan: Expansion) -> list[tuple[str, int]]:
    return [(run.saves or run.needs or run.precision.name, run.repeat) for run in plan.runs]


def test_givers_come_before_those_that_need_them_in_either_direction(tmp_path: Path) -> None:
    plan = made(tmp_path, include=CHAIN, repeats=2)
    last = ("b", 0)  # needs b and saves nothing
    assert places(plan) == [("a", 0), ("b", 0), last, ("bf16", 0), ("a", 1), ("bf16", 1), ("b", 1), ("b", 1)]
    assert [run.needs for run in plan.runs] == [None, "a", "b", None, None, None, "a", "b"]
    assert plan.runs[1].seed == 5


def test_needs_of_the_defaults_are_taken_back_where_the_weights_are_made(tmp_path: Path) -> None:
    plan = made(tmp_path, defaults=BASE | {"needs": "a"}, include=[{}, {"saves": "a", "needs": None}])
    assert [(run.saves, run.needs) for run in plan.runs] == [("a", None), (None, "a")]
    assert plan.runs[1].label.endswith("ddp from-a")


def test_only_keeps_what_the_chosen_need(tmp_path: Path) -> None:
    plan = made(tmp_path, include=CHAIN, repeats=2)
    kept = only(plan, ["needs=b", "repeat=1"])
    assert [(run.saves, run.needs, run.repeat) for run in kept.runs] == [("a", None, 1), ("b", "a", 1), (None, "b", 1)]
    assert [run.precision.name for run in only(plan, ["precision=bf16", "repeat=0"]).runs] == ["bf16"]


def test_who_needs_what_cannot_be_done_here_is_skipped_with_it(tmp_path: Path) -> None:
    plan = made(tmp_path, include=[{"saves": "a", "devices": 64}, {"saves": "b", "needs": "a"}, {"needs": "b"}, {}])
    reasons = [plan.skipped.get(run.config_id, "") for run in plan.runs]
    assert reasons[0].startswith("needs 64 × 1 threads")
    assert reasons[1].startswith("needs 'a', which is skipped: needs 64 × 1 threads")
    assert reasons[2].startswith("needs 'b', which is skipped: needs 'a', which is skipped: needs 64")
    assert reasons[3] == ""
    assert len(plan.to_do) == 1


def test_options_alone_are_those_of_the_default(tmp_path: Path) -> None:
    plan = made(tmp_path, matrix={"optimizer.learning_rate": [0.1, 0.2]})
    assert [str(run.optimizer) for run in plan.runs] == ["adamw-learning_rate=0.1", "adamw-learning_rate=0.2"]


def test_a_mistyped_launcher_of_a_suite_is_no_slurm(tmp_path: Path) -> None:
    path = written(tmp_path, write({"name": "s", "launcher": "lokal", "defaults": {"workload": "lstm_lm"}}))
    with pytest.raises(SuiteError, match="launcher: unknown launcher 'lokal': did you mean 'local'"):
        load_suite(path)
