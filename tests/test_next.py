"""What is printed to go on with: commands that keep the prices, comparisons that make sense, and figures of all repeats."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from analytics.interval import Interval
from analytics.judge.compare import match
from analytics.judge.front import front
from analytics.judge.sides import Side
from analytics.runs.frame import frame, summary
from analytics.say import compare, measure
from analytics.say import front as say_front
from analytics.say.advice import ratio_words
from analytics.say.blocks import Block, Commands, Sentence
from analytics.say.names import measure_commands, repeat_command, site_words
from analytics.say.table import marks
from analytics.text import percent
from bench.figures.cost import recost
from bench.figures.metrics import row
from bench.record import RunRecord
from bench.run import measure as measuring
from bench.schema import Site, program_of
from tests import rows

PARIS = Site(region="FR", pue=1.2, usd_per_device_hour=2.1)


def measured(
    name: str = "one",
    argv: tuple[str, ...] = ("python", "train.py"),
    site: Site = PARIS,
    repeat: int = 0,
    v: float = rows.V,
    seconds: float | None = None,
) -> RunRecord:
    """A run of `bench measure`."""
    asked = measuring.MeasureOptions(argv=[*argv], name=name, seconds=seconds)
    spec = measuring.specification(asked, rows.environment().machine).changed(repeat=repeat)
    record = rows.record(repeat=repeat, suite=name, v=v, execution=name)
    return recost(record.changed(spec=spec, config_id=spec.config_id, run_id=spec.run_id), site)


def runs(records: Iterable[RunRecord]) -> pd.DataFrame:
    return frame(map(row, records))


def sentences(blocks: Iterable[Block]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, Sentence)]


def commands_of(blocks: Iterable[Block]) -> list[str]:
    return [line for block in blocks if isinstance(block, Commands) for line in block.commands]


def test_a_command_that_is_printed_keeps_the_place_and_the_prices() -> None:
    owned = Site(region="30 g/kWh", usd_per_kwh=0.2, usd_capital_per_device_hour=0.5, price_note="list price")
    words = {
        PARIS: "--region FR --pue 1.2 --price 2.1",
        owned: "--carbon-intensity 30g --electricity-price 0.2 --capital-price 0.5 --price-note 'list price'",
        Site(): "",
    }
    for site, options in words.items():
        (line,) = measure_commands([runs([measured(site=site, seconds=15.0)])], 2)
        assert line == f"bench measure --name one --repeats 2 --seconds 15 {options} ".rstrip() + " -- python train.py"


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (Site(), ["--region", "FR", "--pue", "1.2", "--price", "2.1"]),  # it does not disagree
        (Site(region="FR", pue=1.3, usd_per_device_hour=3), ["--region", "FR"]),
        (Site(region="SE", pue=1.2, usd_per_kwh=0.2), ["--pue", "1.2"]),  # no rent beside a price of electricity
    ],
)
def test_runs_that_disagree_have_no_common_option(site: Site, words: list[str]) -> None:
    assert site_words(runs([measured(), measured(site=site, repeat=1)])) == words


def test_a_suite_is_run_again_at_the_place_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suites").mkdir()
    path, start = tmp_path / "suites" / "one.yaml", "bench run suites/one.yaml --set repeats=3"
    for own, words in (("", " --region FR --pue 1.2 --price 2.1"), ("region: FR\npue: 1.2\n", " --price 2.1")):
        path.write_text(f"name: one\ndefaults: {{workload: decoder_lm}}\n{own}")
        assert repeat_command("one", runs([measured()]), "--set", "repeats=3") == start + words
    words = " --launcher slurm --set repeats=3 --region FR --pue 1.2 --price 2.1"
    for own, launcher in (("", words), ("launcher: slurm\n", words.replace(" --launcher slurm", ""))):
        path.write_text(f"name: one\ndefaults: {{workload: decoder_lm}}\n{own}")
        again = repeat_command("one", runs([measured()]).assign(launcher="slurm"), "--set", "repeats=3")
        assert again == f"bench run suites/one.yaml{launcher}"


@pytest.mark.parametrize(
    ("site", "flags", "known"),
    [
        (PARIS, set(), {"cost_usd", "emissions_kg"}),
        (Site(), {"costs_differ", "carbon_differs"}, set()),
        (PARIS.changed(usd_per_device_hour=4.2), {"costs_differ"}, {"emissions_kg"}),
        (PARIS.changed(pue=1.5), {"carbon_differs"}, {"cost_usd"}),  # power is in the rent
        (PARIS.changed(region="SE"), {"carbon_differs"}, {"cost_usd"}),
    ],
)
def test_cost_and_carbon_of_some_repeats_are_not_shown_as_those_of_all(
    site: Site, flags: set[str], known: set[str]
) -> None:
    (pooled,) = summary(runs([measured(), measured(repeat=1), measured(site=site, repeat=2)])).to_dict("records")
    per_work = {"cost_usd": "cost_usd_per_million_samples", "emissions_kg": "emissions_kg_per_million_samples"}
    for name, each in per_work.items():
        for column in (name, f"{name}_low", each):
            assert pd.notna(pooled[column]) == (name in known), column
    assert {*str(pooled["flags"]).split()} & {"costs_differ", "carbon_differs"} == flags
    assert pooled["samples_per_second"] > 0
    mixed, other = runs([measured(), measured(site=site, repeat=1)]), runs([measured("two")])
    (compared,) = match(
        other, mixed.assign(config_id=other["config_id"][0]), "base", ["cost_usd", "emissions_kg"]
    ).comparisons
    assert {effect.metric for effect in compared.effects} == known


@pytest.mark.parametrize(
    ("argv", "seconds", "alike"),
    [
        (("torchrun", "--nproc-per-node=2", "./train.py"), 15.0, True),
        (("python", "train.py", "--lr", "0.1"), 60.0, True),
        (("torchrun", "--nproc-per-node=2", "train.py"), None, False),  # the whole run
        (("python", "other.py"), 15.0, False),
        (("python", "other/train.py"), 15.0, False),
        (("python", "-c", "print(1)"), 15.0, False),
    ],
)
def test_names_are_compared_that_run_one_script_for_the_same_kind_of_window(
    argv: tuple[str, ...], seconds: float | None, alike: bool
) -> None:
    new = measured("two", argv, seconds=seconds)
    lines = commands_of(measure.next_steps(new, runs([measured(seconds=15.0), new]), None))
    assert ("bench compare one two" in lines) is alike
    assert ("bench fit two" in lines) is not alike


def test_code_that_is_typed_is_its_own_program() -> None:
    assert program_of("python -c 'import a' 1") == program_of("/usr/bin/python -c 'import a' 2")
    assert program_of("python -c 'import a'") != program_of("python -c 'import b'")


def test_a_comparison_counts_the_runs_of_both_sides() -> None:
    one, two = (
        [measured(name, repeat=n, v=1e9 + n * 1e7) for n in range(count)] for name, count in (("a", 1), ("b", 5))
    )
    sides = [Side("suite", name, runs(records)) for name, records in (("a", one), ("b", two))]
    for base, new, counts in ((0, 1, "5 runs against 1"), (1, 0, "1 run against 5")):
        matched = match(sides[new].df, sides[base].df, "base", ["samples_per_second"])
        said = sentences(compare.blocks([sides[base], sides[new]], matched, 0.02))
        assert said[0].endswith(counts)
        assert [line for line in said if "--name" in line] == [
            "To decide: bench measure --name a --repeats 2 --region FR --pue 1.2 --price 2.1 -- python train.py"
        ]


def test_the_legend_of_repeats_is_there_where_a_cell_has_them() -> None:
    sides = [
        runs(measured(name, repeat=n, v=v) for n, v in enumerate(speeds))
        for name, speeds in (("a", (1e9, 2e9, 4e9)), ("b", (1e9, 3e9, 9e9)))
    ]
    (comparison,) = match(sides[0], sides[1], "base", ["samples_per_second"]).comparisons
    (effect,) = comparison.effects
    assert effect.more_repeats is not None
    assert effect.more_repeats > 20
    assert marks([effect]) == []


def test_an_end_of_an_interval_keeps_its_sign() -> None:
    assert percent(0.7, -0.05, 1.94) == "70 % (-5 to 190)"
    assert percent(0.7, 0.05, 1.94) == "70 % (5.0-190)"
    assert percent(0.7, 0.0, 1.94) == "70 % (0-190)"
    assert ratio_words(Interval(0.95, 0.1, 1.94, 3), "time") == "5 % (-90 to 90) less time"


def test_one_configuration_is_no_choice_said_once() -> None:
    wanted = {
        (("one", "train.py"),): "bench pareto one NAME",
        (("one", "train.py"), ("two", "train.py")): "bench pareto one two",
        (("one", "train.py"), ("two", "other.py")): "bench pareto NAME NAME",
    }
    for names, line in wanted.items():
        df = runs(measured(name, ("python", script)) for name, script in names)
        said = list(say_front.blocks(front(df), df))
        assert [getattr(block, "role", "") for block in said] == ["title", "answer"]
        assert sentences(said)[1].endswith(line)
