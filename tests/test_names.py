"""Configurations and figures in words: no codes, and as many digits as an interval supports."""

from typing import Any

import pandas as pd
import pytest

from analytics.runs.frame import frame, summary
from analytics.say.names import named, spoken, why_ended, word
from analytics.text import interval, percent
from tests.rows import grid, make


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        ((1.7534, 1.7199, 1.791), "1.75 (1.72-1.79)"),
        ((113_456.0, 74_123.0, 171_234.0), "113,000 (74,000-171,000)"),
        ((1.1, 0.96, 1.24), "1.10 (0.96-1.24)"),
        ((10.0, 8.0, 12.0), "10.0 (8.0-12.0)"),
        ((78.52, 75.84, 81.33), "78.5 (75.8-81.3)"),
        ((45.2, 28.4, 71.3), "45 (28-71)"),
        ((1.75123, 1.75121, 1.75125), "1.75 (1.75-1.75)"),
        ((0.661, 0.661, 0.661), "0.661"),
        ((1.0, 0.001, 1000.0), "1.0 (0.0010-1,000)"),
        ((-0.12, -0.2, -0.05), "-0.12 (-0.20 to -0.05)"),
        ((3.0912, None, 4.0), "3.09"),
        ((123_456.0, float("nan"), float("nan")), "123,000"),
        ((999.7, None, None), "1,000"),
        ((1.234e12, None, None), "1.23e+12"),
        ((2e9, 1e9, 3e9), "2e+09 (1e+09-3e+09)"),
        ((0.0, 0.0, 0.0), "0"),
        ((float("inf"), 1.0, 2.0), "-"),
    ],
)
def test_digits_follow_the_interval(figure: tuple[float, float | None, float | None], text: str) -> None:
    assert interval(*figure) == text


def test_units_stand_behind_the_value() -> None:
    assert interval(4.21, 2.7, 6.31, "days") == "4.2 days (2.7-6.3)"
    assert percent(0.861, 0.8, 0.93) == "86 % (80-93)"
    assert percent(0.861) == "86.1 %"


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("devices", 1, "1 device"),
        ("devices", 2.0, "2 devices"),
        ("precision", "bf16", "bf16"),
        ("workload_args.preset", "tiny", "tiny"),
        ("workload_args.layers", 2.0, "2 layers"),
        ("workload_args.sequence_length", 128.0, "sequence length 128"),
        ("workload_args.pin_memory", "False", "no pin memory"),
        ("parallelism", "fsdp2", "FSDP2"),
        ("pruning", "none", "no pruning"),
        ("pruning.sparsity", 0.8, "sparsity 0.8"),
        ("compile", "default", "compiled"),
        ("optimizer.implementation", "fused", "fused optimizer"),
        ("needs", float("nan"), ""),
    ],
)
def test_fields_in_words(column: str, value: Any, text: str) -> None:
    assert word(column, value) == text


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        ("preset=tiny d=2 bf16", "tiny 2 devices bf16"),
        ("decoder_lm gpt2 tiny d1 b8 fp32 ddp", "tiny 1 device batch 8 per device fp32 ddp"),
        (
            "decoder_lm gpt2 tiny d2 b16 bf16 ddp adamw-implementation=fused-learning_rate=0.001 default",
            "tiny 2 devices batch 16 per device bf16 ddp adamw fused optimizer learning rate 0.001 compiled",
        ),
        ("d=1 compile=default b=4 implementation=fused", "1 device compiled batch 4 per device fused optimizer"),
        ("+ precision=bf16, compile=default", "+ bf16, compiled"),
        ("bench run x.yaml --set repeats=3", "bench run x.yaml --set repeats=3"),
        ("<b>d=1</b>", "<b>d=1</b>"),
    ],
)
def test_short_names_in_words(codes: str, text: str) -> None:
    assert spoken(codes) == text


@pytest.mark.parametrize(
    ("status", "reasons", "text"),
    [
        ("out_of_memory", ["you tried to allocate 2000000000 bytes."], "out of memory: another 2 GB did not fit"),
        (
            "out_of_memory",
            ["Tried to allocate 1.00 GiB", "Tried to allocate 20 GiB"],
            "another 1.07 to 21.5 GB did not",
        ),
        ("out_of_memory", ["killed"], "out of memory: killed"),
        ("failed", ["a", "b", "a"], "failed: a; b"),
        ("timeout", [float("nan")], "timeout: no reason was recorded"),
    ],
)
def test_how_runs_ended(status: str, reasons: list[Any], text: str) -> None:
    assert text in why_ended(status, reasons)


def test_the_steps_of_a_ladder_are_named_by_what_each_adds() -> None:
    steps = [make() | {"ladder": 0}, make(precision="bf16") | {"ladder": 1}, make(2, precision="bf16") | {"ladder": 2}]
    assert named(summary(frame(steps)))["change"].tolist() == ["start", "… + bf16", "… + 2 devices"]


def test_configurations_are_told_apart_in_words() -> None:
    table = summary(frame(grid((1, 2), ("tiny", "small"), {"fp32": 1.0, "bf16": 1.5}, repeats=1)))
    found = named(table)
    assert set(found["work"]) == {"tiny", "small"}
    assert set(found["change"]) == {"1 device, fp32", "1 device, bf16", "2 devices, fp32", "2 devices, bf16"}
    assert not found.duplicated().any()
    base = table.index[(table["devices"] == 1) & (table["precision"] == "fp32")]
    bases = table["workload_args.preset"].map(dict(zip(table.loc[base, "workload_args.preset"], base, strict=True)))
    changes = named(table, bases)["change"]
    assert sorted(changes) == sorted(2 * ["", "2 devices", "2 devices, bf16", "bf16"])
    assert (changes[base] == "").all()


def test_what_an_axis_does_by_default_goes_without_saying_unless_the_base_does_otherwise() -> None:
    pruned = [make(pruning={"name": "magnitude", "sparsity": share}) for share in (0.5, 0.8)]
    table = summary(frame([make(), *pruned, make(quantization="int8")]))
    whole = {"magnitude pruning, sparsity 0.5", "magnitude pruning, sparsity 0.8"}
    assert set(named(table)["change"]) == {"default", "int8 quantization", *whole}
    base = table.index[table["pruning.sparsity"] == 0.5][0]
    changes = named(table, pd.Series(base, index=table.index))["change"]
    assert set(changes) == {"", "sparsity 0.8", "no pruning", "no pruning, int8 quantization"}


def test_one_configuration_is_named_by_its_workload() -> None:
    found = named(summary(frame([make()])))
    assert found.to_numpy().tolist() == [["synthetic, tiny", "1 device"]]
