"""`bench import`: tables of others become runs that fit, compare and summary can use; what is of no use is told by line."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import Result

from analytics.judge.front import front
from analytics.law.series import fit
from analytics.render.files import FORMATS
from analytics.runs import store
from analytics.runs.frame import frame, summary
from analytics.runs.imported import Imported, imported
from analytics.runs.share import cleaner, scrubbed, scrubbed_rows
from analytics.say.blocks import Note, Sentence, Table
from analytics.say.report import make
from analytics.say.results import results
from analytics.work import language_model
from bench.errors import UserError
from bench.store import tracker as tracking
from tests import rows
from tests.commands import bench

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TABLE = """model,params,gpus,seq,tok_s,step_ms,note
a,1e9,1,2048,10000,200,
a,1e9,2,2048,19000,210,x
a,1e9,4,2048,36000,220,"two
lines"
"""
MAPS = (
    "model=workload_args.model",
    "params=parameters",
    "gpus=devices",
    "seq=sequence_length",
    "tok_s=tokens_per_second",
)
SETTINGS = ("precision=bf16", "workload=decoder_lm")
NAMED = [part for text in MAPS for part in ("--map", text)] + [part for text in SETTINGS for part in ("--set", text)]


def table(folder: Path, text: str = TABLE, name: str = "theirs.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def read(
    folder: Path, text: str = TABLE, maps: tuple[str, ...] = MAPS, settings: tuple[str, ...] = SETTINGS
) -> Imported:
    return imported(table(folder, text), maps, settings, "theirs", NOW)


def simple(folder: Path, *lines: str, header: str = "devices,samples_per_second,precision") -> Imported:
    return imported(table(folder, "\n".join([header, *lines]) + "\n"), (), (), "theirs", NOW)


def run(path: Path, *arguments: str) -> Result:
    return bench("import", str(path), *arguments)


def test_rows_are_runs(tmp_path: Path) -> None:
    found = read(tmp_path, maps=(*MAPS, "step_ms=step_seconds:0.001"))
    assert (len(found.rows), found.refused, found.ignored) == (3, [], ["note"])
    first = found.rows[0]
    work = language_model(1e9, 2048, sequence=2048).per_sample
    assert {name: first[name] for name in ("status", "flags", "precision", "devices")} == {
        "status": "ok", "flags": "imported", "precision": "bf16", "devices": 1
    }  # fmt: skip
    assert first["step_seconds_median"] == pytest.approx(0.2)
    assert first["samples_per_second"] == pytest.approx(10000 / 2048)
    assert first["flops_per_sample"] == work > 6e9 * 2048, "attention counts, as in bench plan"
    assert first["flops_per_second_per_device"] == pytest.approx(work * 10000 / 2048)
    assert "energy_provenance" not in first, "no energy, no provenance of it"
    assert any("assumed: 17 layers" in note for note in found.notes)
    shaped = read(tmp_path, settings=(*SETTINGS, "workload_args.layers=24", "workload_args.hidden=2048"))
    assert shaped.rows[0]["flops_per_sample"] == (6e9 + 12 * 24 * 2048 * 2048) * 2048
    assert not any("assumed" in note for note in shaped.notes)
    df = frame(found.rows)
    assert df["devices"].tolist() == [1, 2, 4], "in the order of the file"
    assert len(summary(df)) == 3
    (series,) = fit(df).series
    assert series.devices == (1, 2, 4)
    assert not series.efficiency, "neither weak nor strong where the batch is not told"
    (pareto,) = front(df, ("time",))
    assert pareto.table["time"].is_monotonic_increasing


def test_the_same_file_is_the_same_execution_and_the_host_is_not_asked(tmp_path: Path) -> None:
    one, two = read(tmp_path), imported(table(tmp_path), MAPS, SETTINGS, "theirs")
    assert one.execution == two.execution
    assert [row["run_id"] for row in one.rows] == [row["run_id"] for row in two.rows]
    assert read(tmp_path, settings=("precision=fp8",)).execution != one.execution
    here, there = (read(tmp_path, settings=(*SETTINGS, f"host={host}")).rows[0] for host in ("gpu01", "gpu02"))
    assert here["config_id"] == there["config_id"], "the same work elsewhere"
    assert "gpu01" not in str(here["label"])


def test_energy_and_prices_are_labelled(tmp_path: Path) -> None:
    header = "devices,samples_per_second,joules_per_sample,cost_usd_per_million_samples"
    found = simple(tmp_path, "2,10,300,0.5", header=header)
    (row,) = found.rows
    assert row["energy_provenance"] == row["cost_basis"] == "imported"
    assert summary(frame(found.rows))["energy_provenance"].tolist() == ["imported"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        *((f"1,{text},fp32", "no speed") for text in ("", "-", "nan", "N/A")),
        ("1,0,fp32", "samples_per_second '0': must be greater than 0"),
        ("1,-5,fp32", "greater than 0"),
        *((f"1,{text},fp32", "not a number") for text in ("inf", "1_0", "12q", "12 km/h", '"1,23,4"', "5 tokens")),
        (f"1,{'9' * 400},fp32", "finite"),
        ("1,1e308,fp32", "less than or equal to"),
        ("1,1e-320,fp32", "cannot be meant"),
        ("1e18,1,fp32", "less than or equal to"),
        ("1000001,1,fp32", "less than or equal to 1000000"),
        ("1.5,7,fp32", "devices '1.5': must be a whole number"),
        ("0,7,fp32", "greater than 0"),
        (",7,fp32", "no number of devices"),
        ("1,10,fp32", "the same run as line 2"),
    ],
)
def test_rows_of_no_use(tmp_path: Path, line: str, reason: str) -> None:
    found = simple(tmp_path, "1,10,fp32", line, "2,19,fp32")
    assert [(number, reason in told) for number, told in found.refused] == [(3, True)], found.refused
    assert len(found.rows) == 2


def test_figures_that_follow_must_be_numbers(tmp_path: Path) -> None:
    header = "devices,samples_per_second,parameters,workload_args.sequence_length"
    found = simple(tmp_path, "1,1e30,1e9,2048", "1,1,1e32,2048", "1,1,1e9,2048", header=header)
    assert [line for line, _ in found.refused] == [2, 3]
    assert all("cannot be meant" in reason for _, reason in found.refused)


@pytest.mark.parametrize("began", ["9999-12-31T23:59:59-12:00", "1969-12-31", "1970-01-01T00:00+05:00", "soon"])
def test_a_start_that_no_run_can_have(tmp_path: Path, began: str) -> None:
    found = simple(tmp_path, f"1,2,{began}", "1,2,2026-01-01", header="devices,samples_per_second,started_at")
    ((line, reason),) = found.refused
    assert line == 2
    assert reason.startswith(f"started_at {began!r}: ")


def test_names_of_precisions(tmp_path: Path) -> None:
    found = simple(tmp_path, "1,2,bfloat16", "1,3,amp_bf16", "1,4,BF16", "1,5,half", "1,6,FP32")
    assert [row["precision"] for row in found.rows] == ["bf16", "bf16", "bf16", "fp16", "fp32"]
    assert "Precision bfloat16 is called bf16 here" in found.notes
    assert "Precision float32 is called fp32 here" in read(tmp_path, settings=("precision=float32",)).notes


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    found = imported(table(tmp_path, TABLE + "a,1e9,8,2048,x,1,\n"), MAPS, SETTINGS, "theirs")
    assert [line for line, _ in found.refused] == [6], "a cell of two lines counts as two"


def test_ratios_are_not_percent(tmp_path: Path) -> None:
    header = "devices,samples_per_second,model_flops_utilization"
    assert "for percent give the factor :0.01" in simple(tmp_path, "1,10,41", header=header).refused[0][1]
    path = table(tmp_path, f"{header}\n1,10,41\n")
    found = imported(path, ["model_flops_utilization=model_flops_utilization:0.01"], (), "theirs")
    assert found.rows[0]["model_flops_utilization"] == pytest.approx(0.41)


def test_repeats(tmp_path: Path) -> None:
    found = simple(tmp_path, "1,10,fp32,x", "1,11,fp32,y", header="devices,samples_per_second,precision,node")
    assert [row["repeat"] for row in found.rows] == [0, 1]
    assert found.rows[0]["config_id"] == found.rows[1]["config_id"]
    assert "not mapped, though they differ: node" in found.notes[0]
    header = "devices,samples_per_second,repeat"
    told = simple(tmp_path, "1,10,0", "1,10,1", "1,11,1", header=header)
    assert [row["repeat"] for row in told.rows] == [0, 1]
    assert told.refused[0][0] == 4


@pytest.mark.parametrize(
    ("maps", "settings", "said"),
    [
        (("tok_s=token_per_second",), (), "unknown name 'token_per_second': did you mean 'tokens_per_second'"),
        (("toks=tokens_per_second",), (), "no column 'toks'; did you mean 'tok_s'"),
        (("tok_s=tokens_per_second:0",), (), "factor '0': must be greater than 0"),
        (("tok_s=tokens_per_second:k",), (), "factor 'k': not a number"),
        (("tok_s=tokens_per_second", "step_ms=tokens_per_second"), (), "tokens_per_second is given twice"),
        (("tok_s=tokens_per_second", "gpus=devices"), ("devices=2",), "devices is given twice"),
        (("gpus=devices",), (), "no column is tokens_per_second or samples_per_second"),
        (("tok_s=tokens_per_second", "gpus=batch_size_per_device"), (), "no column is devices"),
        (MAPS, ("precission=bf16",), "did you mean 'precision'"),
        (MAPS, ("repeat=1", "repeat=2"), "--set repeat=2: repeat is given twice"),
        (("tok_s=zzzz",), (), "unknown name 'zzzz': "),
        (MAPS, ("precision",), "--set precision: give NAME=VALUE"),
        (MAPS, ("repeat=1.5",), "--set repeat=1.5: repeat '1.5': must be a whole number"),
        (("tok_s",), (), "no column ''"),
    ],
)
def test_wrong_names(tmp_path: Path, maps: tuple[str, ...], settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as problem:
        read(tmp_path, maps=maps, settings=settings)
    assert said in str(problem.value)
    assert max(map(len, str(problem.value).splitlines())) < 500


def test_other_kinds_of_files(tmp_path: Path) -> None:
    wanted = read(tmp_path).rows
    semicolons = read(tmp_path, "\ufeff" + TABLE.replace(",", ";").replace('"two\nlines"', "")).rows
    assert [row["tokens_per_second"] for row in semicolons] == [row["tokens_per_second"] for row in wanted]
    data = pd.read_csv(table(tmp_path))
    data.to_parquet(tmp_path / "theirs.parquet")
    data.to_json(tmp_path / "theirs.jsonl", orient="records", lines=True)
    for name in ("theirs.parquet", "theirs.jsonl"):
        found = imported(tmp_path / name, MAPS, SETTINGS, "theirs", NOW)
        assert [row["samples_per_second"] for row in found.rows] == [row["samples_per_second"] for row in wanted]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"\xff\xfe\x00x"),
        ("a.jsonl", b'{"devices": 1}\n{torn'),
        ("a.jsonl", b"3\n"),
        ("a.jsonl", b"[" * 100_000),
        ("a.parquet", b"PAR1"),
        ("none.csv", None),
        ("e.csv", b""),
        ("useless.csv", b"devices,samples_per_second\n1,12q\n"),
    ],
)
def test_what_is_no_table_of_runs(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = run(tmp_path / name)
    assert done.exit_code == 2
    assert 1 <= len(done.stderr.splitlines()) <= 2
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name] * (content is not None)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    document = json.loads(run(table(tmp_path), *NAMED, "--dry-run", "--json").stdout)
    assert {"name": "gpus", "target": "devices", "factor": 1.0} in document["columns"]
    assert (len(document["rows"]), document["ignored"], document["logged"]) == (3, ["note"], None)
    assert run(table(tmp_path), *NAMED, "--suite", "../up").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.csv"]


def test_tokens_alone_are_shown_and_what_is_lacking_is_said(tmp_path: Path) -> None:
    header = "devices,tokens_per_second,joules_per_token"
    rows_ = simple(tmp_path, "1,1000,", "1,1010,", "2,1900,0.5", header=header).rows
    blocks = results(frame(rows_))
    table_ = next(block for block in blocks if isinstance(block, Table))
    assert {"tokens/s", "J/token"} <= set(table_.columns)
    assert "samples/s" not in table_.columns
    assert [cells[table_.columns.index("tokens/s")].split()[0] for cells in table_.rows] == ["1,000", "1,900"]
    words = " ".join(block.text for block in blocks if isinstance(block, Note | Sentence))
    assert "no meter" not in words
    assert "price" not in words


def test_hostile_cells_stay_one_line(tmp_path: Path) -> None:
    text = f'devices,samples_per_second,workload_args.x,"b\x1b[31m"\n1,1,"{rows.HOSTILE}\n\x1b[31m",z\n'
    done = run(table(tmp_path, text), "--dry-run")
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output


PRIVATE = "host=gpu01.secret.example", "workload_args.user=alice", "dataset=/home/bob/data/corpus.bin"


def test_hosts_and_users_of_imported_rows_are_taken_out_of_every_format(tmp_path: Path) -> None:
    old = [
        {**row, "label": f"devices=1 host=gpu01.secret.example on=gpu01 user=alice by=bob layers={10 + i}"}
        for i, row in enumerate(read(tmp_path, settings=(*SETTINGS, *PRIVATE)).rows)
    ]
    df, record = frame(old), rows.record(1)
    at = frame([{**old[0], "host": "10.0.0.7", "run_id": "address"}])
    assert scrubbed_rows(at, cleaner([], at))["label"].str.endswith("layers=10").all(), "an address has no short name"
    clean = cleaner([record], df)
    (other,) = scrubbed([record], clean)
    hidden = scrubbed_rows(df, clean)
    assert (other.environment.host, set(hidden["host"])) == ("host-1", {"host-2"})
    assert hidden["label"].str.startswith("devices=1 host=host-2 on=host-2 user=user by=user layers=").all()
    report = make(hidden, [other], NOW, ["bench", "report"])
    for form, render in FORMATS.items():
        content = render(report)
        text = content.decode(errors="replace") if isinstance(content, bytes) else content
        assert not [word for word in ("gpu01", "secret", "alice", "bob", "/home") if word in text], form
        assert form in ("html", "md") or "corpus.bin" in text


@pytest.mark.slow
def test_imported_runs_are_kept_once_and_can_be_used(tmp_path: Path) -> None:
    path = table(tmp_path)
    named = [*NAMED, *(part for text in PRIVATE for part in ("--set", text))]
    first = run(path, *named)
    assert first.exit_code == 0, first.output
    assert "3 of 3 rows imported, 3 of them new" in first.stdout
    kept = list((tmp_path / "runs").glob("theirs/imported-*/imported.jsonl"))
    assert len(kept) == 1
    before = store.load()
    pd.testing.assert_frame_equal(before, frame(tracking.load()))
    assert before["tokens_per_second"].tolist() == [10000, 19000, 36000]
    assert before["repeat"].tolist() == [0, 0, 0]
    assert "0 of them new" in run(path, *named).stdout
    kept[0].unlink()
    assert "0 of them new" in run(path, *named).stdout, "the store has them, whatever the time of the import"
    assert len(tracking.load()) == 3

    def verb(*arguments: str) -> Any:
        done = bench(*arguments)
        assert done.exit_code == 0, done.output
        return done

    assert "3 configurations" in verb("fit", "theirs").stdout
    priced = verb("report", "theirs", "--price", "2")
    assert priced.stderr == "bench: 3 imported runs have no records: their carbon and cost are unchanged\n"
    document = json.loads(verb("report", "theirs", "--region", "FR", "--json").stdout)
    assert [row["carbon"] for row in document["runs"]] == [None] * 3
    for options, leaks in ((), False), (("--with-hosts",), True):
        verb("report", "theirs", *options, *(part for form in FORMATS for part in ("-o", f"report.{form}")))
        for form in FORMATS:
            content = Path(f"report.{form}").read_bytes()
            found = [word for word in (b"gpu01", b"alice", b"/home") if word in content]
            assert (bool(found) == leaks) or (leaks and form in ("html", "md")), (form, found)
    assert "4 devices" in verb("pareto", "theirs", "--by", "time").stdout
    other = f"sqlite:///{tmp_path}/other.db"
    assert verb("sync", "--store", other).stdout.startswith("3 runs logged")
    assert verb("sync", "--store", other).stdout.startswith("Nothing to log")
    assert len(store.load(other)) == 3
    kept[0].write_text("torn")
    assert "imported.jsonl" in verb("sync", "--store", other).stderr


@pytest.mark.parametrize(
    ("rows", "refused"),
    [("8;11.216", True), ("8;11.216\n4;0.5", False), ("8;1234.567", False), ("8;11216", False)],
)
def test_a_point_that_may_group_digits_is_refused(tmp_path: Path, rows: str, refused: bool) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"devices;samples_per_second\n{rows}\n")
    if refused:
        with pytest.raises(UserError, match=r"line 2: .* may be a fraction or have its digits in groups"):
            imported(path, (), (), "theirs", NOW)
        values = {mark: imported(path, (), (), "theirs", NOW, mark).rows for mark in ".,"}
        speeds = {mark: found[0]["samples_per_second"] for mark, found in values.items()}
        assert speeds == {".": 11.216, ",": 11216}
    else:
        assert len(imported(path, (), (), "theirs", NOW).rows) == rows.count("\n") + 1
