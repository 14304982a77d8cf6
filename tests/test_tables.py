"""Tables as others write and export them, imported without --map: the right values, or a refusal that names the line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics.runs.cells import read as read_cells
from analytics.runs.cells import unit, value_of
from analytics.runs.columns import TARGETS, Column
from analytics.runs.frame import frame, summary
from analytics.runs.imported import Imported, imported
from analytics.runs.tables import read_table
from analytics.say.results import results
from bench.errors import UserError
from tests.commands import bench
from tests.stores import empty_store

TABLES = Path(__file__).parent / "data" / "tables"


def read(path: Path, *maps: str, sets: tuple[str, ...] = (), decimal: str | None = None) -> Imported:
    return imported(path, maps, sets, "theirs", decimal=decimal)


def table(folder: Path, text: str | bytes, name: str = "theirs.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def column(found: Imported, name: str) -> list[Any]:
    return [row.get(name) for row in found.rows]


@pytest.mark.parametrize("name", ["array.json", "spaces.csv", "utf16.csv"])
def test_the_same_table_in_several_formats(name: str) -> None:
    found = read(TABLES / name)
    assert column(found, "devices") == [8, 16]
    assert column(found, "tokens_per_second") == [11000, 21500]
    assert (found.refused, found.ignored) == ([], [])


def test_codecarbon() -> None:
    found = read(TABLES / "emis.csv")
    assert column(found, "duration_seconds") == [340.5, 341.1]
    assert column(found, "run_energy_joules_estimated") == pytest.approx([0.21 * 3.6e6, 0.211 * 3.6e6])
    assert column(found, "emissions_kg") == [0.08, 0.081]
    assert [set(column(found, name)) for name in ("devices", "device_name", "region")] == [
        {8}, {"NVIDIA H100 80GB HBM3"}, {"US-OH"}
    ]  # fmt: skip
    assert column(found, "repeat") == [0, 1]
    assert column(found, "energy_provenance") == ["imported"] * 2
    assert "samples_per_second" not in found.rows[0], "nothing says how much it did"
    assert list(results(frame(found.rows)))


def test_codecarbon_counts_the_building(tmp_path: Path) -> None:
    header = "duration,emissions,energy_consumed,gpu_count,pue"
    found = read(table(tmp_path, f"{header}\n10,0.3,1.2,1,1.2\n10,0.3,1.2,1,1\n10,0.3,1.2,,1\n"))
    assert column(found, "run_energy_joules_estimated") == pytest.approx([3.6e6, 4.32e6])
    assert column(found, "emissions_kg") == [0.3, 0.3], "these are of the building"
    assert found.refused == [(4, "no number of devices")]


def test_columns_of_one_speed_are_checked_and_the_unrounded_one_is_used() -> None:
    found = read(TABLES / "foundry.csv")
    assert column(found, "tokens_per_second") == [47000, 93000, 15300, 30100]
    assert column(found, "samples_per_second") == pytest.approx([n / 32768 for n in (47000, 93000, 15300, 30100)])
    assert column(found, "model_flops_utilization") == pytest.approx([0.144, 0.142, 0.153, 0.151])
    assert set(column(found, "precision")) == {"bf16"}
    assert column(found, "parameters") == [2.73e9, 2.73e9, 13.011e9, 13.011e9]
    assert set(column(found, "workload_args.strategy")) == {"FULL_SHARD"}
    ((line, reason),) = found.refused
    assert (line, reason) == (6, "tokens_per_second 59,000 and the 319,968 of the other columns disagree")


@pytest.mark.parametrize(
    ("total", "each", "speed"),
    [
        ("47000", "5875.13", 47001.04),
        ("47001", "5875", 47001),
        ("47k", "5,875.1", 47000.8),
        ("46999.6", "5.9k", 46999.6),
    ],
)
def test_the_speed_with_more_digits_counts(tmp_path: Path, total: str, each: str, speed: float) -> None:
    found = read(table(tmp_path, f'GPUs,tok/s,tok/s/GPU\n8,{total},"{each}"\n'))
    assert column(found, "tokens_per_second") == pytest.approx([speed], abs=1e-6 * speed)


def test_a_point_that_may_group_digits() -> None:
    with pytest.raises(UserError, match=r"^line 2: '11.216' may be a fraction .*: give --decimal \. or --decimal ,"):
        read(TABLES / "german_thousand.csv")
    assert column(read(TABLES / "german_thousand.csv", decimal=","), "tokens_per_second") == [11216, 22050, 43600]
    found = read(TABLES / "german_thousand.csv", decimal=".")
    assert column(found, "tokens_per_second") == [11.216, 22.05, 43.6]
    assert set(column(found, "precision")) == {"bf16"}


def test_numbers_of_gpus() -> None:
    found = read(TABLES / "gpus8x.csv")
    assert column(found, "devices") == [8, 16, 16, 8]
    assert column(found, "num_nodes") == [None, 2, None, 1]
    assert column(found, "device_name") == ["H100", "H100", "unknown", "unknown"]
    assert len({row["config_id"] for row in found.rows}) == 4


@pytest.mark.parametrize(
    "counted", ["gpus,nodes\n8,4,", "num_devices,nodes\n8,4,", "gpus,nodes\n8xH100,4,", "gpu,nodes\n8 x H100,4,"]
)
def test_gpus_of_several_nodes_are_those_of_one_or_of_all(tmp_path: Path, counted: str) -> None:
    header, cells = counted.split("\n")
    name = header.partition(",")[0]
    path = table(tmp_path, f"{header},tok/s\n{cells}100\n")
    found = read(path)
    assert not found.rows
    assert f"give --map '{name}=devices' or --map '{name}=devices_per_node'" in found.refused[0][1]
    assert column(imported(path, [f"{name}=devices"], (), "theirs"), "devices") == [8]
    if cells.startswith("8,"):
        assert column(imported(path, [f"{name}=devices_per_node"], (), "theirs"), "devices") == [32]


@pytest.mark.parametrize(
    "text",
    [
        "gpus,nodes\n8,1",
        "devices,nodes\n8,4",
        "total_gpus,nodes\n8,4",
        "gpus,nodes,gpus_per_node\n8,4,2",
        "gpu\n4x2 H100",
    ],
)
def test_devices_of_all_nodes_are_sure(tmp_path: Path, text: str) -> None:
    header, cells = text.split("\n")
    assert column(read(table(tmp_path, f"{header},tok/s\n{cells},100\n")), "devices") == [8]


@pytest.mark.parametrize("cell", ["1700000000", "1700000000000", "2023-11-14T22:13:20+00:00"])
def test_a_start_may_be_seconds_or_milliseconds_since_1970(tmp_path: Path, cell: str) -> None:
    path = table(
        tmp_path, f"run_id,experiment_id,start_time,params.devices,metrics.samples_per_second\na,0,{cell},2,100\n"
    )
    assert column(read(path), "started_at") == ["2023-11-14T22:13:20+00:00"]
    rows = [{"started_at": int(cell), "devices": 2, "samples_per_second": 5.0}] if cell.isdecimal() else []
    (tmp_path / "theirs.json").write_text(json.dumps(rows))
    assert not rows or column(read(tmp_path / "theirs.json"), "started_at") == ["2023-11-14T22:13:20+00:00"]


def test_digits_of_a_day_and_an_hour_are_no_seconds_since_1970(tmp_path: Path) -> None:
    assert not read(table(tmp_path, "started_at,devices,tok/s\n2026010112,2,100\n")).rows


def test_units_and_what_ended_badly() -> None:
    found = read(TABLES / "t2_units.csv")
    assert column(found, "tokens_per_second") == [27300, 54100, 107000, None]
    assert column(found, "model_flops_utilization") == pytest.approx([0.464, 0.459, 0.452, None])
    assert column(found, "status") == ["ok", "ok", "ok", "out_of_memory"]
    assert column(found, "devices") == [8, 16, 32, 8]
    assert set(column(found, "device_name")) == {"H100"}
    assert [line for line, reason in found.refused if reason.startswith("no speed")] == [6, 7]
    assert any("1 of 3 cells without a unit" in note for note in found.notes)
    assert len(summary(frame(found.rows))) == 3
    sized = read(TABLES / "t2_units.csv", "model=parameters")
    assert column(sized, "parameters") == [7e9, 7e9, 7e9, 13e9]


def test_markdown() -> None:
    found = read(TABLES / "t4_md.md")
    assert column(found, "tokens_per_second_per_device") == [11216, 11050, 10900]
    assert column(found, "tokens_per_second") == [8 * 11216, 16 * 11050, 32 * 10900]
    assert column(found, "model_flops_utilization") == pytest.approx([0.621, 0.612, 0.604])


MLFLOW = """run_id,experiment_id,status,start_time,metrics.tokens_per_second,params.devices,params.lr,params.precision,tags.x
a,1,FINISHED,2026-01-02 03:04:05+00:00,1000,1,0.1,float16,q
b,1,FAILED,2026-01-02 04:04:05+00:00,,2,0.1,bf16,q
c,1,RUNNING,2026-01-02 04:04:05+00:00,900,2,0.1,bf16,q
d,1,FINISHED,2026-01-02 05:04:05+00:00,1900,2,0.1,bf16,q
"""
WANDB = """"Name","State","Runtime","num_gpus","gpu_type","train_samples_per_second","lr"
"fast-1","finished","3600","8","A100","812.5","0.1"
"fast-2","crashed","12","16","A100","","0.1"
"""
TRACKIO = "run_name,step,timestamp,tokens_per_second,loss,num_gpus\n" + "".join(
    f"{run},{step},2026-01-01T00:00:{step:02d},{speed},{9 - step},{gpus}\n"
    for run, gpus in (("a", 1), ("b", 2))
    for step, speed in enumerate((gpus * 10, gpus * 1000, gpus * 1002))
)


def test_mlflow(tmp_path: Path) -> None:
    found = read(table(tmp_path, MLFLOW))
    assert column(found, "status") == ["ok", "failed", "ok"]
    assert column(found, "tokens_per_second") == [1000, None, 1900]
    assert column(found, "precision") == ["fp16", "bf16", "bf16"]
    assert column(found, "workload_args.learning_rate") == [0.1] * 3
    assert str(found.rows[0]["started_at"]).startswith("2026-01-02T03:04:05")
    assert [line for line, reason in found.refused if "how it ended" in reason] == [4]
    document = [{"params": {"devices": "4"}, "metrics": {"samples_per_second": 7.5}}]
    nested = read(table(tmp_path, json.dumps(document), "runs.json"))
    assert (column(nested, "devices"), column(nested, "samples_per_second")) == ([4], [7.5])


def test_wandb(tmp_path: Path) -> None:
    found = read(table(tmp_path, WANDB))
    assert column(found, "status") == ["ok", "failed"]
    assert column(found, "samples_per_second") == [812.5, None]
    assert column(found, "duration_seconds") == [3600, None], "a failed run has no result"
    assert column(found, "device_name") == ["A100", "A100"]
    assert found.ignored == ["Name"]
    assert column(found, "workload_args.learning_rate") == [0.1, 0.1]


def test_settings_keep_rows_apart_and_only_equal_lines_are_one_run(tmp_path: Path) -> None:
    text = "Nodes x GPUs,strategy,tok/s,node\n2x8,FSDP,100,a\n2x8,FSDP+compile,120,a\n2x8,FSDP,100,b\n2x8,FSDP,100,b\n"
    found = read(table(tmp_path, text))
    assert column(found, "repeat") == [0, 0, 1]
    assert len({row["config_id"] for row in found.rows}) == 2
    assert found.refused == [(5, "the same run as line 4")]


def test_a_column_of_units(tmp_path: Path) -> None:
    found = read(table(tmp_path, "GPUs,throughput,throughput_unit\n8,1000,tokens/s\n16,2000,tokens/s\n"))
    assert column(found, "tokens_per_second") == [1000, 2000]


def test_steps_of_trackio_are_one_run(tmp_path: Path) -> None:
    found = read(table(tmp_path, TRACKIO))
    assert column(found, "devices") == [1, 2]
    assert column(found, "tokens_per_second") == [1000, 2000], "the median, not the first step"
    assert any("6 rows are steps of 2 runs" in note for note in found.notes)


PLAIN = "devices,tokens_per_second\n8,11000.5\n16,21500\n"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (PLAIN.encode("utf-8-sig"), "a.csv"),
        (PLAIN.replace(",", "\t").encode("utf-16-be"), "a.txt"),
        (PLAIN.replace("\n", "\r\n").encode("utf-16"), "a.csv"),
        (("# measured in Zürich, on 8 GPUs\n\n" + PLAIN).encode("cp1252"), "a.csv"),
        ("Results\nof January, 2026\n" + PLAIN, "a.csv"),
        ("sep=;\n" + PLAIN.replace(",", ";"), "a.csv"),
        (PLAIN.replace(",", ";").replace(".", ","), "a.csv"),
        (PLAIN.replace("devices", "# GPUs").replace("tokens_per_second", "Tokens / s"), "a.csv"),
        (
            "text before\n\n| GPUs | `tok/s` |\n|:--|--:|\n| 8 | __11000.5__ |\n| *16* | 21,500 |\n\nafter | it\n",
            "a.md",
        ),
        ('{"devices": 8, "tokens_per_second": 11000.5}\n{"devices": 16, "tokens_per_second": 21500}\n', "a.json"),
        ('{"columns": ["devices", "tokens_per_second"], "data": [[8, 11000.5], [16, 21500]]}', "a.json"),
    ],
)
def test_kinds_of_files(tmp_path: Path, content: str | bytes, name: str) -> None:
    found = read(table(tmp_path, content, name))
    assert column(found, "devices") == [8, 16]
    assert column(found, "tokens_per_second") == [11000.5, 21500]


@pytest.mark.parametrize(
    ("header", "cell", "target", "value"),
    [
        ("Throughput (samples/sec)", "7.5", "samples_per_second", 7.5),
        ("images/s", "7.5", "samples_per_second", 7.5),
        ("Throughput per GPU (tok/s)", "100", "tokens_per_second", 800),
        ("tokens/GPU/s", "100", "tokens_per_second", 800),
        ("train_samples_per_second", "7.5", "samples_per_second", 7.5),
        ("throughput", "1.5 ktok/s", "tokens_per_second", 1500),
        ("Throughput", "2.5 img/sec/GPU", "samples_per_second", 20),
    ],
)
def test_names_of_speeds(tmp_path: Path, header: str, cell: str, target: str, value: float) -> None:
    assert read(table(tmp_path, f"GPUs,{header}\n8,{cell}\n")).rows[0][target] == pytest.approx(value)


@pytest.mark.parametrize(
    ("header", "cell", "target", "value"),
    [
        ("step time (ms)", "250", "step_seconds_median", 0.25),
        ("step_time_s", "0.25", "step_seconds_median", 0.25),
        ("iteration time", "250 ms", "step_seconds_median", 0.25),
        ("s/it", "0.25", "step_seconds_median", 0.25),
        ("Energy (kWh)", "2", "run_energy_joules", 7.2e6),
        ("energy", "500 Wh", "run_energy_joules", 1.8e6),
        ("runtime", "1.5 h", "duration_seconds", 5400),
        ("CO2e [g]", "300", "emissions_kg", 0.3),
        ("Peak memory (GiB)", "2", "peak_memory_bytes", 2**31),
        ("Cost ($)", "20", "cost_usd", 20),
        ("cost", "$20", "cost_usd", 20),
        ("MFU", "0.4", "model_flops_utilization", 0.4),
        ("MFU", "40", "model_flops_utilization", 0.4),
        ("MFU (%)", "0.4", "model_flops_utilization", 0.004),
        ("NumParams", "350M", "parameters", 350e6),
        ("Parameters (billion)", "1.7", "parameters", 1.7e9),
        ("Params (B)", "7", "parameters", 7e9),
        ("TP", "8", "workload_args.tensor_parallel", 8),
        ("device", "cuda:0", "device_name", "unknown"),
        ("seq_len", "4,096", "workload_args.sequence_length", 4096),
        ("GlobalBatchSize", "512", "global_batch_size", 512),
        ("Precision", "FP16", "precision", "fp16"),
    ],
)
def test_names_of_other_columns(tmp_path: Path, header: str, cell: str, target: str, value: float | str) -> None:
    found = read(table(tmp_path, f'GPUs,tok/s,{header}\n8,100,"{cell}"\n'))
    assert found.rows[0][target] == (value if isinstance(value, str) else pytest.approx(value))


@pytest.mark.parametrize(
    "header",
    ["throughput", "step time", "energy", "runtime", "cost", "TPS", "HFU", "memory", "train_tokens_per_second"],
)
def test_what_is_not_sure_is_listed(tmp_path: Path, header: str) -> None:
    found = read(table(tmp_path, f"GPUs,tok/s,{header}\n8,100,5\n"))
    assert found.ignored == [header]
    if header in ("throughput", "step time", "energy", "runtime", "cost"):
        assert any(f"Column {header} has no unit: give --map '{header}=" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("num_nodes,devices_per_node,devices,tok/s\n2,8,8,100", "devices 8 are not num_nodes 2 x devices_per_node 8"),
        ("GPUs,num_gpus,tok/s\n8,16,100", "devices is 8 in one column and 16 in another"),
        ("GPUs,global_batch_size,step_seconds,samples/s\n8,64,0.5,64", "samples_per_second 64 and the 128"),
        (
            "GPUs,global_batch_size,step_seconds,samples/s\n8,64,1.000,66.0",
            "samples_per_second 66 and the 64 of batch size",
        ),
        (
            "GPUs,global_batch_size,step_seconds,seq_len,tok/s\n8,64,1.00,128,8500",
            "samples_per_second 66.41 and the 64 of",
        ),
        (
            "GPUs,steps,global_batch_size,duration_seconds,samples/s\n8,100,64,100.0,60",
            "60 and the 64 of steps x batch",
        ),
        ("GPUs,batch size,step_seconds,samples/s\n8,64,0.5,64", "samples_per_second 64 and the 128 or 1,024 of batch"),
        ("GPUs,batch,step_seconds,seq_len,tok/s\n8,64,1.00,128,9000", "70.31 and the 0.5 or 4 or 64 or 512 of batch"),
        ("GPUs,batch per gpu,step_seconds,samples/s\n8,64,0.5,128", "samples_per_second 128 and the 1,024 of batch"),
        ("GPUs,batch,grad accum,step_seconds,samples/s\n8,4,2,1.0,20", "20 and the 4 or 8 or 32 or 64 of batch"),
        ("GPUs,steps,batch size,duration_seconds,samples/s\n8,100,64,100.0,60", "60 and the 64 of steps x batch"),
        (
            "GPUs,steps,step_seconds,duration_seconds,tok/s\n8,100,1.10,100.0,60",
            "duration_seconds 100 and the 110 of steps",
        ),
        # What the printed digits allow, and no more: 1k is 500 to 1,500, and 10 on each of 8 GPUs 76 to 84.
        ("GPUs,tok/s,tok/s/gpu\n8,1k,10", "tokens_per_second 1,000 and the 80 of the other columns"),
        ("GPUs,tok/s,tok/s/gpu\n8,1,100", "tokens_per_second 1 and the 800 of the other columns"),
        ("GPUs,tok/s,tok/s/gpu\n8,6,0", "must be greater than 0"),
        (
            "GPUs,global_batch_size,seq_len,step_seconds,tok/s\n8,512,1024,0.1,1000000",
            "samples_per_second 976.6 and the 5,120 of batch size",
        ),
        (
            "GPUs,global_batch_size,step_seconds,samples/s\n8,64,1,30",
            "samples_per_second 30 and the 64 of batch size",
        ),
        ("GPUs,steps,global_batch_size,duration_seconds,samples/s\n8,100,64,1,4000", "4,000 and the 6,400 of steps x"),
        ("GPUs,tok/s,step_seconds\n8,100,3 tok/s", "its unit is 'tok/s'"),
        ("GPUs,tok/s\n8,100 ms", "'ms' is no unit of it"),
        ("GPUs,tok/s\n8,100 parsecs", "'parsecs' is no unit of it"),
        ("GPUs,tok/s,seq_len\n8,100,4k", "powers of 1,000 or of 1,024"),
        ("GPUs,samples/s,tok/s,seq_len\n8,10,20000,1024", "tokens_per_second 20,000 and the 10,240"),
        ("GPUs,samples/s,tok/s,seq_len\n8,0,20000,1024", "must be greater than 0"),
        ("GPUs,tok/s,state\n8,100,pending", "how it ended is not understood"),
        (
            "GPUs,gpu,samples/s,flops_per_sample,precision,MFU\n8,NVIDIA H100 80GB HBM3,8,3e14,bf16,60%",
            "model_flops_utilization 60 % and the 30.3 % of work, speed and peak disagree",
        ),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    found = read(table(tmp_path, f"{text}\n"))
    assert not found.rows
    assert reason in found.refused[0][1]
    assert found.refused[0][0] == 2


def test_what_fits_together_is_kept(tmp_path: Path) -> None:
    text = "num_nodes,devices_per_node,global_batch_size,step_seconds,gpu,flops_per_sample,precision,MFU\n"
    (row,) = read(table(tmp_path, f"{text}2,8,64,0.5,NVIDIA H100 80GB HBM3,3e13,bf16,24%\n")).rows
    assert (row["devices"], row["samples_per_second"]) == (16, 128)
    assert row["flops_per_second_per_device"] == pytest.approx(3e13 * 8)


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    path = table(tmp_path, '{"devices": 8, "devices": 16, "tokens_per_second": 1}\n', "a.jsonl")
    assert read(path).refused == [(1, "the key 'devices' stands twice")]
    with pytest.raises(UserError, match="the column 'a' stands twice"):
        read_table(table(tmp_path, "a,a,b\n1,2,3\n"))


def test_both_marks_in_one_table(tmp_path: Path) -> None:
    path = table(tmp_path, "GPUs;tok/s;MFU\n8;0,5;40.5%\n")
    with pytest.raises(UserError, match=r"fractions begin with \. in '40.5%' and with , in '0,5'"):
        read(path)


@pytest.mark.parametrize("target", sorted(TARGETS | {"workload_args.layers", "finetune.rank"}))
@pytest.mark.parametrize("value", ["1", "0", "-3", "1e12", "x", "2026-01-01"])
def test_any_value_for_all_rows_is_taken_or_refused(tmp_path: Path, target: str, value: str) -> None:
    path = table(tmp_path, "devices,tokens_per_second\n8,11000\n")
    for sets in ((f"{target}={value}",), (f"{target}={value}", "parameters=7e9", "sequence_length=2048")):
        try:
            found = read(path, sets=sets)
        except UserError:
            continue
        assert len(found.rows) + len(found.refused) == 1


def test_work_per_sample_for_all_rows(tmp_path: Path) -> None:
    """It ended in a KeyError: the note on the work asked for parameters that nobody had given."""
    found = read(table(tmp_path, "devices,samples_per_second\n8,10\n"), sets=("flops_per_sample=1e12",))
    assert found.rows[0]["flops_per_second_per_device"] == pytest.approx(1e12 * 10 / 8)
    assert not any("Work per sample" in note for note in found.notes)


@given(
    st.floats(1e-3, 1e9),
    st.sampled_from(["", "k", "M"]),
    st.sampled_from(["tok/s", "tokens/sec", "tokens per second", ""]),
)
def test_speeds_are_read_as_they_are_printed(value: float, suffix: str, name: str) -> None:
    factor = {"": 1, "k": 1e3, "M": 1e6}[suffix]
    row = read_cells([Column("x", "tokens_per_second")], {"x": f"{value:,.6f}{suffix} {name}"}, ".")
    assert row.values["tokens_per_second"] == pytest.approx(float(f"{value:.6f}") * factor)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz/%", min_size=2, max_size=8))
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_units_that_nobody_knows_are_refused(text: str) -> None:
    if unit(text) is None:
        with pytest.raises(ValueError, match="no unit of it"):
            value_of("tokens_per_second", f"5 {text}")


def test_the_answer_comes_first_and_its_command_works(tmp_path: Path) -> None:
    dry = bench("import", str(TABLES / "t2_units.csv"), "--dry-run").stdout.splitlines()
    assert dry[0] == "t2_units: 4 of 6 rows can be imported; nothing was written"
    assert next(line for line in dry if line.startswith("Next: ")).endswith("t2_units.csv")
    refused = bench("import", str(TABLES / "german_thousand.csv"))
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    given_mark = bench("import", str(TABLES / "german_thousand.csv"), "--decimal", ",", "--dry-run")
    assert "--decimal" in given_mark.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "text",
    [
        "GPUs,global_batch_size,step_seconds,samples/s\n8,64,1.00,65",
        "GPUs,global_batch_size,step_seconds,samples/s\n8,64,1,70",  # a second may be half as long again
        "GPUs,global_batch_size,step_seconds,samples/s\n8,64,1,127",  # or half as long
        "GPUs,tok/s,tok/s/gpu\n8,1k,70",
        "GPUs,tok/s,tok/s/gpu\n8,5000,1k",
        "GPUs,steps,global_batch_size,step_seconds,duration_seconds\n8,100,64,1,60",
        "GPUs,global_batch_size,median step time (s),samples/s\n8,64,1.00,68",
        "GPUs,steps,global_batch_size,duration_seconds,samples/s\n8,100,64,200,64",  # its start took the rest
        "GPUs,batch size,step_seconds,samples/s\n8,64,0.5,128",  # of all devices
        "GPUs,batch size,step_seconds,samples/s\n8,64,0.5,1024",  # of each
        "GPUs,batch,grad accum,step_seconds,samples/s\n8,4,2,1.0,64",
        "GPUs,batch size,seq_len,step_seconds,tok/s\n8,524288,1024,0.5,1048576",  # in tokens
        "GPUs,batch per gpu,step_seconds,samples/s\n8,64,0.500,1003",  # 2.1 %, of which its last digits explain 0.15
        "GPUs,batch size,step_seconds,tok/s\n8,64,0.5,1000",  # nothing says how long a sample is
    ],
)
def test_statements_that_rounding_or_a_start_explains_agree(tmp_path: Path, text: str) -> None:
    found = read(table(tmp_path, f"{text}\n"))
    assert (len(found.rows), found.refused) == (1, [])


@pytest.mark.parametrize(("speeds", "used"), [("1k,70", 560), ("5000,1k", 5000), ("1k,0.07k", 560)])
def test_the_less_rounded_of_two_speeds_is_used(tmp_path: Path, speeds: str, used: float) -> None:
    found = read(table(tmp_path, f"GPUs,tok/s,tok/s/gpu\n8,{speeds}\n"))
    assert column(found, "tokens_per_second") == pytest.approx([used])


def test_a_column_that_contradicts_another_can_be_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, "GPUs,global_batch_size,step_seconds,samples/s\n8,64,1.00,80\n")
    refused = read(path)
    assert not refused.rows
    assert any("--map 'COLUMN='" in note for note in refused.notes)
    assert column(read(path, "step_seconds="), "samples_per_second") == [80]
    assert column(read(path, "samples/s="), "samples_per_second") == [64]


def test_a_second_table_of_one_name_is_told_and_two_names_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    empty_store(tmp_path)
    csv, markdown = (
        table(tmp_path, "GPUs,tok/s\n8,100\n", "t.csv"),
        table(tmp_path, "|GPUs|tok/s|\n|--|--|\n|8|120|\n", "t.md"),
    )
    namesakes = []
    for path in (csv, csv, markdown):
        namesakes.append(json.loads(bench("import", path.name, "--json").stdout)["namesakes"])
    assert namesakes == [0, 0, 1]
    assert bench("import", "t.md", "--suite", "other").exit_code == 0
    found = json.loads(bench("compare", "t@", "other", "--json").stdout)
    assert [(one["status"], len(one["effects"])) for one in found["comparisons"]] == [("ok", 1)]


def test_next_steps_of_imported_rows_are_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can run them again, give them a price, or set a field of their suite: their table can have more rows."""
    monkeypatch.chdir(tmp_path)
    empty_store(tmp_path)
    lines = ["GPUs,precision,samples/s,status", "1,fp32,10.0,ok", "1,bf16,12.0,ok", "2,fp32,18.0,ok", "2,bf16,,crashed"]
    table(tmp_path, "\n".join(lines), "t.csv")
    assert bench("import", "t.csv").exit_code == 0
    for verb in ("fit", "compare", "advise", "pareto"):
        shown = bench(verb, "t", *([] if verb == "fit" else ["--explain"])).stdout
        assert "more row" in shown, verb
        assert not re.search(r"--set|--retry|--price|--publish|run it|bench run|validation\.samples|doctor", shown), (
            shown
        )
