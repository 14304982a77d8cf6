"""The command: what it loads, what it says, how it ends."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from analytics.plan.preview import Preview
from analytics.say import terms
from analytics.say.blocks import Sentence, Table
from analytics.say.runs import blocks
from bench.cli import _GROUPS, _VERBS, cli
from bench.cli.progress import Lines
from bench.figures.flags import FLAGS
from bench.machine.environment import find_machine
from bench.record import Provenance
from bench.run.runner import Execution
from bench.schema import Gpu, Machine, Suite
from bench.suites.expand import expand
from tests import rows
from tests.commands import bench
from tests.processes import run

ROOT = Path(__file__).parent.parent
SCALING = str(ROOT / "suites" / "scaling.yaml")
HEAVY = {"torch", "mlflow", "transformers", "streamlit", "optuna", "codecarbon"}
TABLES = {"pandas", "numpy", "scipy", "pyarrow"}


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], HEAVY | TABLES),
        (["run", "--help"], HEAVY | TABLES),
        (["show", SCALING, "--region", "FR", "--price", "2", "--no-memory"], HEAVY),
    ],
)
def test_help_and_show_load_nothing_heavy(arguments: list[str], heavy: set[str]) -> None:
    code = (
        "import sys\nfrom bench.cli import main\n"
        "try: main()\nexcept SystemExit as e: code = e.code\nelse: code = 0\n"
        f"print(sorted({heavy!r} & set(sys.modules)), code, file=sys.stderr)"
    )
    done = run([sys.executable, "-c", code, *arguments])
    assert done.stderr.splitlines()[-1] == "[] 0", done.stderr
    assert done.stdout


def test_help_lists_ten_verbs_in_three_groups_one_line_each() -> None:
    groups = {group: set(verbs) for group, verbs in _GROUPS.items()}
    assert groups.pop("More") == {"show", "doctor", "import", "baseline", "sync", "help"}
    assert groups == {
        "Run": {"run", "measure", "search"},
        "Look": {"fit", "compare", "advise", "report", "dashboard"},
        "Decide": {"plan", "pareto"},
    }
    lines = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["--help"]).output.splitlines()
    for group, verbs in _GROUPS.items():
        first = lines.index(f"{group}:") + 1
        assert [line.split(maxsplit=1) for line in lines[first : first + len(verbs)]] == [
            [name, sentence] for name, (_, sentence) in verbs.items()
        ]


def test_bench_alone_and_bench_help_are_its_help() -> None:
    texts = {bench(*arguments).stdout for arguments in ((), ("--help",), ("-h",), ("help",))}
    assert len(texts) == 1
    assert bench().exit_code == 0


@pytest.mark.parametrize("verb", _VERBS)
def test_help_explains_a_verb_in_few_words(verb: str) -> None:
    text = bench(verb, "--help").stdout
    assert bench("help", verb).stdout == text
    about = text.partition("\n\n")[2].partition("Options:")[0]
    assert len(about.split()) <= 90, about
    assert max(len(sentence.split()) for sentence in re.split(r"[.:;]\s", about)) <= 45, about


def test_help_defines_each_term_once() -> None:
    printed = " ".join(bench("help", "terms").stdout.split())
    meanings = [entry for subject in terms.definitions().values() for entry in subject.items()]
    assert len(meanings) == len(dict(meanings)) > 40
    for name, meaning in meanings:
        assert f"{name} {meaning}" in printed
        assert 1 < len(meaning.split()) <= 20, name
    assert {"T = n / (d · v)", "Pareto front", "~", "PUE"} <= {name for name, _ in meanings}


def test_help_has_every_grade_provenance_and_flag() -> None:
    *_, grades, provenances = terms.definitions().values()
    assert {flag.grade for flag in FLAGS.values()} < set(grades) == {"A", "B", "C"}
    assert list(provenances) == list(Provenance)
    for name, meaning in provenances.items():
        assert Provenance(name).measured == meaning.startswith("measured, ")
        assert ("estimated" in name) == meaning.startswith("~ estimated")
    (table,) = (block for block in terms.flags() if isinstance(block, Table))
    assert {name: (grade, meaning) for name, grade, meaning in table.rows} == FLAGS
    assert "noisy_host" in bench("help", "flags").stdout


def test_show_lists_the_runs_starts_nothing_and_says_how_to(tmp_path: Path) -> None:
    given = [SCALING, "--set", "device_type=cpu", "--set", "devices=[1]", "--only", "preset=tiny", "--price", "3.6"]
    done = bench("show", *given)
    assert (done.exit_code, list(tmp_path.iterdir())) == (0, [])
    command = shlex.join(["bench", "run", *given])
    assert command in done.stdout
    assert done.stdout == bench("run", *given, "--dry-run").stdout


def test_show_as_json() -> None:
    done = bench(
        "show", SCALING, "--set", "device_type=cpu", "--set", "devices=[1, 4096]", "--only", "preset=tiny", "--json"
    )
    document = json.loads(done.stdout)
    assert {run["devices_per_node"] for run in document["runs"]} == {1, 4096}
    assert len(document["skipped"]) == 2
    assert document["machine"]["cpu_count"] == find_machine()[0].cpu_count
    assert document["estimate"]["seconds"] > 10
    assert set(document["memory_estimated_bytes"]) < {
        run["config_id"] for run in document["runs"]
    }  # not of the skipped
    assert all(10e6 < size < 100e6 for size in document["memory_estimated_bytes"].values())
    assert document["does_not_fit"] == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "no command 'rnu'; did you mean 'run'?"),
        (["show"], "Missing argument"),
        (["help", "flag"], "no topic 'flag': did you mean 'flags'?"),
        (["show", "none.yaml"], "none.yaml: no such file"),
        (["run", SCALING.removesuffix(".yaml")], f"no such file; did you mean {SCALING}?"),
        (["show", SCALING, "--set", "repeat=5"], "did you mean 'repeats'"),
        (["show", SCALING, "--set", "precision=fp31"], "unknown precision 'fp31': did you mean 'fp32'?"),
        (["show", SCALING, "--only", "precision=fp31"], "no run has precision=fp31; allowed: bf16, fp32"),
        (["show", SCALING, "--region", "Narnia"], "region 'Narnia' is not known"),
        (["show", SCALING, "--pue", "0.5"], "bench: --pue: must be greater than or equal to 1"),
        (["show", SCALING, "--price", "1", "--electricity-price", "1"], "give --price (rented) or --electricity-price"),
        (["show", SCALING, "--price", "1", "--capital-price", "1"], "give --price (rented) or --capital-price (owned)"),
        (
            ["show", SCALING, "--capital-price", "-1"],
            "bench: --capital-price: '-1' is no number above 0",
        ),
        (
            ["show", SCALING, "--price-note", "x" * 201],
            "bench: --price-note: must have at most 200 characters",
        ),
        (["run", SCALING, "--max-minutes", "nan"], "not a number of minutes"),
        (["run", SCALING, "--max-minutes", "-1"], "max-minutes"),
        (["run", SCALING, "--nodes", "2"], "--nodes is for a cluster, and this would run on this machine"),
        (["run", SCALING, "--set", "cluster.qos=low"], "--set cluster.qos=low is for a cluster"),
        (["run", SCALING, "--gpus", "17"], "--gpus names '17', which is not visible here"),
        (["fit"], "there is no store at "),
        (["sync"], "no folder of runs at "),
        (["dashboard", "--port", "0"], "--port"),
    ],
)
def test_wrong_use_ends_with_2_and_starts_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = bench(*arguments)
    assert done.exit_code == 2, done
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_doctor(tmp_path: Path) -> None:
    done = bench("doctor", "--json")
    assert done.exit_code == 0
    assert {"torch", "host", "import bench", "carbon"} <= {finding["subject"] for finding in json.loads(done.stdout)}
    assert f"sqlite:///{tmp_path}/mlflow.db" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_region_comes_from_the_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATTBENCH_REGION", "SE")
    assert json.loads(bench("show", SCALING, "--json").stdout)["suite"]["region"] == "SE"
    assert json.loads(bench("show", SCALING, "--json", "--region", "NO").stdout)["suite"]["region"] == "NO"


def test_show_of_a_suite_to_be_published() -> None:
    given = ["--publish", "--capital-price", "1.5", "--electricity-price", "0.2", "--price-note", "list price, 2026"]
    document = json.loads(bench("show", SCALING, "--set", "device_type=cpu", "--no-memory", "--json", *given).stdout)
    suite = document["suite"]
    assert (suite["usd_capital_per_device_hour"], suite["usd_per_kwh"], suite["price_note"]) == (
        1.5,
        0.2,
        "list price, 2026",
    )
    assert (suite["repeats"], suite["idle_seconds"]) == (5, 60)
    for spec in document["runs"]:
        assert (spec["warmup_steps"], spec["warmup_seconds"], spec["measure_seconds"]) == (10, 30, 60)
    assert document["estimate"]["seconds"] > len(document["runs"]) * 90 + 60


def test_show_says_what_is_skipped_and_what_does_not_fit() -> None:
    gpu = Gpu(index=0, uuid="GPU-0", name="x", memory_bytes=10**10)
    machine = Machine(cpu_model="Synthetic", cpu_count=8, gpus=[gpu])
    defaults = {"workload": "decoder_lm", "workload_args": {"preset": "tiny"}, "batch_size_per_device": 1}
    suite = Suite(name="s", defaults=defaults, matrix={"precision": ["fp32", "bf16"], "devices": [1, 2]}, repeats=3)
    plan = expand(suite, machine)
    small, large = (run.config_id for run in plan.to_do if run.repeat == 0)
    shown = [*blocks(Preview(machine, plan, plan), {small: 5 * 10**9, large: 2 * 10**10})]
    title, *answers = (block.text for block in shown if isinstance(block, Sentence))
    assert title.startswith("s: 6 runs on 1 x x, about ")
    assert [text.partition(":")[0] for text in answers] == [
        "2 configurations x 3. Weak scaling", "Skipped", "1 configuration will probably not fit into memory."
    ]  # fmt: skip
    (table,) = (block for block in shown if isinstance(block, Table))
    assert table.columns == ("configuration", "memory~", "limit")
    assert [row[1:] for row in table.rows] == [("5 GB", ""), ("20 GB", "does not fit: a device has 10 GB")]
    assert all(name in row[0] for name, row in zip(("fp32", "bf16"), table.rows, strict=True))


def test_progress_names_runs_in_words_and_counts_what_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    defaults = {"workload": "decoder_lm", "workload_args": {"preset": "tiny"}, "batch_size_per_device": 1}
    matrix = {"precision": ["fp32", "bf16"], "devices": [1, 64, 128]}
    suite = Suite(name="s", defaults=defaults | {"measure_steps": 1}, matrix=matrix, repeats=2)
    plan = expand(suite, Machine(cpu_model="Synthetic", cpu_count=2))
    with Lines("about 4 min") as lines:
        lines.begin(Execution(Path("runs/s/1"), plan, resumed=False), len(plan.to_do), 0)
        lines.skipped(plan.skipped)
        for spec in plan.to_do[:2]:
            lines.done(rows.record().changed(spec=spec))
    first, *skipped, one, two, last = capsys.readouterr().err.splitlines()
    assert first == "4 runs, about 4 min, in runs/s/1"
    assert [line.partition(":")[0] for line in skipped] == ["skipped 2 configurations"] * 2
    assert (one.partition(":")[0], two.partition(":")[0]) == (
        "[1/4] 1 device, fp32 (1 of 2)",
        "[2/4] 1 device, bf16 (1 of 2)",
    )
    assert last.startswith("done in ")


def test_a_store_without_an_address_is_a_mistake() -> None:
    done = bench("fit", "--store", "")
    assert done.exit_code == 2
    assert "--store: wanted the URI of a store, got nothing" in done.output
