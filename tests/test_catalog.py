"""Options of the strategies: each is checked before anything starts, and is a parameter of the code it belongs to."""

import inspect
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest

from analytics.say import strategies
from analytics.say.blocks import Table
from bench import registry
from bench.schema import AXES, Choice, Machine, RunSpec, Suite
from bench.strategies import catalog
from bench.suites.expand import expand
from bench.suites.load import SuiteError
from tests.commands import bench

HERE = Machine(cpu_model="test", cpu_count=64)
SUITE = Path(__file__).parent.parent / "suites" / "scaling.yaml"
NAMES = [(axis, name) for axis in AXES for name in catalog.CATALOG[axis]]
OPTIONS = [(axis, name, option) for axis, name in NAMES for option in catalog.CATALOG[axis][name].model_fields]


def mistakes(axis: str, choice: dict[str, Any]) -> list[str]:
    defaults = {"workload": "decoder_lm", "workload_args.preset": "tiny", "batch_size_per_device": 8, axis: choice}
    try:
        expand(Suite(name="test", defaults=defaults), HERE)
    except SuiteError as error:
        return error.messages
    return []


def limits(annotation: Any, bounds: list[Any]) -> dict[str, Any]:
    found = {key: getattr(bound, key) for bound in bounds for key in ("gt", "ge", "lt", "le") if hasattr(bound, key)}
    return found if get_origin(annotation) is None else {}


def wrong_values(axis: str, name: str, option: str) -> list[Any]:
    """Values of the wrong type, and on the wrong side of each bound."""
    field = catalog.CATALOG[axis][name].model_fields[option]
    annotation = field.annotation
    if annotation is bool:
        return ["yes", 1, None]
    if annotation is str:
        return [3, True, "", None]
    values: list[Any] = ["nonsense", True, None, [1]]
    if get_origin(annotation) is Literal:
        return [*values, 12345, 0.5]
    bounds = limits(annotation, list(field.metadata))
    values += [bounds[key] for key in ("gt", "lt") if key in bounds]
    values += [bounds[key] - 1 for key in ("ge",) if key in bounds]
    values += [bounds[key] + 1 for key in ("le",) if key in bounds]
    if not bounds:  # 0, or a number of at least 2
        values += [1, -1]
    return [*values, -4, [float("nan")] if annotation is float else 2.5]


@pytest.mark.parametrize(("axis", "name", "option"), OPTIONS)
def test_every_option_with_a_wrong_value_is_a_mistake_that_says_what_is_allowed(
    axis: str, name: str, option: str
) -> None:
    field = catalog.CATALOG[axis][name].model_fields[option]
    allowed = catalog.allowed(field.annotation, tuple(field.metadata))
    for value in wrong_values(axis, name, option):
        if isinstance(value, (list, type(None))):  # no value of any option
            assert mistakes(axis, {"name": name, option: value}), value
        else:
            message = f"{axis} {name!r}: {option} must be {allowed}, not {value!r}"
            assert mistakes(axis, {"name": name, option: value}) == [message]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("axis", "name"), NAMES)
def test_every_name_has_options_a_line_of_help_and_code_that_takes_them(axis: str, name: str) -> None:
    options = catalog.CATALOG[axis][name]
    assert (options.axis, options.name) == (axis, name)
    assert 10 < len(options.help()) <= 120
    assert options.help().endswith(".")
    assert all(field.description and not field.is_required() for field in options.model_fields.values())
    assert options.model_validate({}, strict=True).model_dump() == {
        option: field.default for option, field in options.model_fields.items()
    }
    parameters = inspect.signature(registry.load(axis, name)).parameters.values()
    takes = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert takes == set(options.model_fields)
    assert not [p.name for p in parameters if p.default is not inspect.Parameter.empty]  # defaults are in the catalog


@pytest.mark.parametrize("axis", AXES)
def test_unknown_names_and_options_are_mistakes_with_a_suggestion(axis: str) -> None:
    default = RunSpec.model_fields[axis].default.name
    assert default in catalog.CATALOG[axis]
    (message,) = mistakes(axis, {"name": "nonsense"})
    assert message.startswith(f"unknown {axis} 'nonsense': ")
    assert default in message or "allowed" not in message
    (message,) = mistakes(axis, {"name": default, "nonsense": 1})
    assert message.startswith(f"{axis} {default!r} has no option 'nonsense': ")


def test_options_that_contradict_each_other_are_mistakes() -> None:
    assert mistakes("pruning", {"name": "magnitude", "begin": 0.9, "end": 0.1}) == [
        "pruning 'magnitude': begin must not be after end, but 0.9 > 0.1"
    ]
    assert mistakes("optimizer", {"name": "sgd", "momentum": 0, "nesterov": True}) == [
        "optimizer 'sgd': nesterov needs a momentum above 0"
    ]


def test_all_mistakes_of_a_choice_are_told_at_once() -> None:
    found = mistakes("pruning", {"name": "magnitude", "sparsity": 1.5, "schedule": "sometimes", "x": 1})
    assert found == [
        "pruning 'magnitude': sparsity must be a number > 0 and < 1, not 1.5",
        "pruning 'magnitude': schedule must be gradual or once, not 'sometimes'",
        "pruning 'magnitude' has no option 'x': allowed: begin, end, schedule, sparsity, updates",
    ]


def test_options_are_bound_with_their_defaults() -> None:
    bound = catalog.load("schedule", Choice(name="cosine", options={"final": 0.5}))
    assert bound.keywords == {"warmup": 0.1, "final": 0.5}
    assert bound.func is registry.load("schedule", "cosine")


@pytest.mark.parametrize("verb", ["run", "show", "search"])
def test_a_wrong_value_ends_every_verb_with_exit_code_2(verb: str, tmp_path: Path) -> None:
    axis, choice = "pruning", "{name: magnitude, sparsity: 1.5}"
    if verb == "search":
        path = tmp_path / "search.yaml"
        text = f"name: x\ndefaults: {{workload: decoder_lm, workload_args.preset: tiny, {axis}: {choice}}}\n"
        path.write_text(
            text + "space: {precision: [fp32, bf16], batch_size_per_device: [1, 2]}\nobjectives: [time]\n"
            "work: {samples: 1.0e+6}\nbudget: {trials: 3}\n"
        )
        arguments = ["search", str(path), "--dry-run"]
    else:
        arguments = [verb, str(SUITE), "--set", f"{axis}={choice}"]
        arguments += ["--no-memory"] if verb == "show" else ["--runs", str(tmp_path / "runs")]
    result = bench(*arguments)
    assert result.exit_code == 2
    assert "sparsity must be a number > 0 and < 1, not 1.5" in result.output
    assert not (tmp_path / "runs").exists()


def test_show_explains_each_option_from_the_catalog() -> None:
    (listed,) = (block for block in strategies.blocks("all") if isinstance(block, Table))
    assert {(axis, name) for axis, name, _ in listed.rows} == set(NAMES)
    for axis, name in NAMES:
        options = catalog.CATALOG[axis][name]
        assert (axis, name, options.help()) in listed.rows
        tables = [block for block in strategies.blocks(name) if isinstance(block, Table)]
        rows = [row[:3] for table in tables for row in table.rows]
        for option, field in options.model_fields.items():
            assert (option, field.description, catalog.allowed(field.annotation, tuple(field.metadata))) in rows
    assert "precision fp8: " in bench("show", "--options", "precision").output
    unknown = bench("show", "--options", "lorra")
    assert unknown.exit_code == 2
    assert "did you mean 'lora'?" in unknown.output
