"""Reports as files: whole without a network, the same when made again, and text of runs is text in all of them."""

import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from analytics.render.files import FORMATS
from analytics.render.svg import svg
from analytics.runs.frame import frame
from analytics.runs.share import scrubbed
from analytics.say import advice
from analytics.say.answer import find
from analytics.say.blocks import Figure, Group, Mark, Sentence
from analytics.say.report import Report, make
from analytics.say.results import execution_blocks
from bench.figures.metrics import row
from bench.record import RunRecord, Status
from bench.schema import RunSpec
from tests import rows

NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
LONG, BACKWARDS = "x" * 3000, "\u202eabc \u05d0\u05d1\u05d2"
EVIL = [
    rows.HOSTILE,
    rows.HOSTILE_LINK,
    rows.HOSTILE_FORMULA,
    "$\\frac{1}{0}$ $x$",
    "a|b\n# c\n```\n</style><script>x</script>",
    "_ *b* `c` ~~d~~ &lt; https://example.invalid www.example.invalid ![i](j)",
    "{{ 7 * 7 }} {% raw %}",
    BACKWARDS,
    LONG,
]
PAIRS = [*zip(EVIL, [*EVIL[1:], EVIL[0]], strict=True)][::2]
"""Each of them in one report."""


def matrix(**fields: Any) -> list[RunRecord]:
    """Two precisions, fp32 first, one or two devices, three repeats; bf16 is faster."""
    out = []
    for late, precision in enumerate(("fp32", "bf16")):
        for d in (1, 2):
            for r in range(3):
                v = rows.V * (1 + 0.5 * late) * (1 + r / 1000)
                record = rows.record(d, precision=precision, repeat=r, v=v, **fields)
                out.append(record.model_copy(update={"started_at": record.started_at + timedelta(seconds=late)}))
    return out


def made(records: list[RunRecord]) -> Report:
    return make(
        frame([row(record) for record in records]), records, NOW, ["bench", "report", "synthetic", "-o", "report.html"]
    )


@cache
def usual() -> Report:
    return made(matrix())


def hostile(*texts: str) -> list[RunRecord]:
    """Runs with texts in everything that is not checked when it is made: the second in those on two devices."""
    out = []
    for record in [*matrix(), rows.record(4, status=Status.FAILED, message=texts[0])]:
        text = texts[record.spec.world_size == 2]
        args = {**record.spec.workload_args, "note": text, "extra": f"{text}{record.spec.world_size}"}
        site = record.site.changed(price_note=text[:200])
        argv = ["bench", "run", text]
        machine = record.environment.machine.model_copy(update={"cpu_model": text})
        about = {"argv": argv, "wattbench_commit": text, "os": text, "host": text, "machine": machine}
        environment = record.environment.model_copy(update=about)
        measured = record.measurement and record.measurement.model_copy(update={"dataset": text})
        spec = record.spec.model_copy(update={"workload_args": args})
        update = {"spec": spec, "site": site, "environment": environment, "measurement": measured}
        out.append(record.model_copy(update=update))
    return out


@cache
def hostile_report(evil: tuple[str, ...]) -> Report:
    return made(hostile(*evil))


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check_alone(text: str) -> Page:
    """A page without script that refers to nothing but itself."""
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "img", "base", "form", "image", "foreignobject"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                assert str(value).startswith("#"), (tag, name, value)
    inside = "".join(f"{v}" for _, attributes in page.tags for k, v in attributes.items() if k == "style")
    styles = inside + "".join(re.findall(r"<style.*?</style>", text, re.DOTALL))
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", styles + text))
    assert "@import" not in styles
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy[0]).startswith("default-src 'none'")
    return page


def test_a_page_needs_nothing_else_and_has_all_sections() -> None:
    failed = rows.record(4, status=Status.FAILED, message="no such thing")
    page = check_alone(str(FORMATS["html"](made([*matrix(), failed]))))
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    keys = ["results", "advice", "asked", "machine", "carbon", "cost", "again", "reading"]
    assert [str(name).rpartition("-")[0] for name in sections] == keys
    linked = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert linked == [f"#{name}" for name in sections]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels == [1, *[2] * len(sections)]
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert tables == sum(tag == "caption" for tag, _ in page.tags) > 5
    assert dict(page.tags)["html"] == {"lang": "en"}
    labels = [str(attributes["aria-label"]) for tag, attributes in page.tags if tag == "figure"]
    assert len(labels) == sum(tag == "svg" for tag, _ in page.tags) == 2
    assert "2 devices 100 (" in labels[1], "the numbers of a figure are there in words"
    text = " ".join(" ".join(page.text).split())
    for said in (
        "no such thing",
        "by the energy counter of the device",
        "0.4 kg CO2e/kWh, XX, synthetic",
        "location-based",
        "3.6 USD",
    ):
        assert said in text


def figures(report: Report) -> list[Figure]:
    return [block for section in report.sections for block in section.blocks if isinstance(block, Figure)]


def test_each_kind_of_suite_gets_its_answer_first_and_the_figures_that_show_it() -> None:
    law, noisy = usual(), [rows.record(d, repeat=r, v=rows.V * (1, 3, 0.3)[r]) for d in (1, 2) for r in range(3)]
    assert law.in_short[0].startswith("synthetic: 12 runs")
    assert law.in_short[1].startswith("2 devices train 2.00x as fast as 1 device")
    assert [one.most for one in figures(made(noisy)) if "arrows" in one.title] == [150]
    sizes = made([rows.record(d, preset, repeat=r) for d in (1, 2) for preset in ("tiny", "small") for r in range(2)])
    names = [{group.name for group in one.groups} for one in figures(sizes)]
    ways = {"tiny, batch 8 a device", "small, batch 8 a device"}
    assert names == [{"tiny", "small"}, ways], "names of people"
    assert not any(mark.estimated for one in figures(sizes) for group in one.groups for mark in group.marks)
    assert all("<svg" in svg(one) for report in (law, sizes) for one in figures(report))
    pair = [one for one in matrix() if one.spec.world_size == 1]
    compared = made(pair)
    assert compared.in_short[1].startswith("bf16 trains 1.5")
    assert next(group.name for one in figures(compared) for group in one.groups) == "better"
    rungs = [r.spec.model_copy(update={"ladder": int(r.spec.precision.name == "bf16")}) for r in pair]
    steps = [record.model_copy(update={"spec": spec}) for record, spec in zip(pair, rungs, strict=True)]
    assert "1.5" in made(steps).in_short[1]
    one = made([rows.record(1, repeat=r) for r in range(2)])
    assert "20 samples/s" in one.in_short[1]
    assert "All runs together: Energy, measured: 200 J" in one.in_short[-1]
    none = made([rows.record(1, status=Status.FAILED)])
    assert none.in_short[1] == "No run ended well, so there is no result."
    check_alone(str(FORMATS["html"](none)))


def test_a_file_says_what_the_terminal_says() -> None:
    report = usual()
    (found,) = find(report.runs)
    of_terminal = list(execution_blocks(found))
    for block in of_terminal:
        if isinstance(block, Sentence) and block.role != "plain":
            assert block.text in report.in_short
        else:
            assert block in report.sections[0].blocks
    advised = [block for block in report.sections[1].blocks if isinstance(block, Sentence)]
    assert advised == [block for block in advice.blocks(report.runs) if getattr(block, "role", "") == "answer"] != []
    text = str(FORMATS["md"](report))
    assert figures(report)
    for figure in figures(report):
        assert text.count(figure.title) == 1, "a figure is named once"


def test_several_executions_are_told_apart() -> None:
    other = "20260103T030405-bbbb"
    report = made([rows.record(1), rows.record(1, execution=other)])
    titles = [section.title for section in report.sections if section.key == "results"]
    assert titles == ["Results (synthetic 20260102T030405-aaaa)", f"Results (synthetic {other})"]
    assert sum(section.key == "carbon" for section in report.sections) == 1


def test_the_statement_of_carbon_keeps_measured_and_estimated_apart() -> None:
    records = [rows.record(1, repeat=0), rows.record(1, repeat=1, readings="e"), rows.record(1, repeat=2, readings="")]
    report = made(records)
    (section,) = [section for section in report.sections if section.key == "carbon"]
    quotes = section.blocks[0].lines  # type: ignore[union-attr]
    grams = 100 / 3.6e6 * 0.4 * 1000
    assert quotes[0].startswith("1 training run (suite synthetic, begun on 2026-01-02) emitted ")
    assert f"{grams:.3g} g CO2e" in quotes[0]
    assert f"emitted an estimated {1.5 * grams:.3g} g CO2e" in quotes[1]
    assert quotes[2].startswith("The carbon of 1 of 3 runs is not known")
    records += [rows.record(2, repeat=r, status=Status.SKIPPED, readings="") for r in range(4)]
    report = made(records)
    parts = {section.key: section for section in report.sections}
    assert parts["carbon"].blocks[0].lines[2].startswith("The carbon of 1 of 3 runs is not known")  # type: ignore[union-attr]
    assert parts["carbon"].blocks[0].lines[2].endswith("; 4 skipped.")  # type: ignore[union-attr]
    text = str(FORMATS["md"](report))
    assert "1 of 3 runs, 4 skipped" in text
    assert "of 7 runs is" not in text


@pytest.mark.parametrize("evil", PAIRS)
def test_hostile_text_is_text_in_html(evil: tuple[str, str]) -> None:
    page = check_alone(str(FORMATS["html"](hostile_report(evil))))
    text = " ".join("".join(page.text).split())
    assert all(shown(one) in text for one in evil)


def shown(evil: str) -> str:
    """What of a text stands in a report at least."""
    return " ".join(evil.replace("\u202e", "?").split())[:30]


@pytest.mark.parametrize("evil", PAIRS)
def test_hostile_text_is_text_in_markdown(evil: tuple[str, str]) -> None:
    report = hostile_report(evil)
    text = str(FORMATS["md"](report))
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or []}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open", "code_block"}
    plain = "".join(child.content for token in tokens for child in token.children or [])
    assert all(shown(one) in plain for one in evil)
    headings = [token for token in tokens if token.type == "heading_open"]
    assert len(headings) == 1 + len(report.sections)
    widths = {}
    for place, token in enumerate(tokens):
        if token.type == "tr_open":
            end = next(i for i in range(place, len(tokens)) if tokens[i].type == "tr_close")
            table = max(i for i in range(place) if tokens[i].type == "table_open")
            widths.setdefault(table, set()).add(sum(t.type in ("td_open", "th_open") for t in tokens[place:end]))
    assert all(len(width) == 1 for width in widths.values()), "no cell breaks out of its row"


@pytest.mark.parametrize("evil", PAIRS)
def test_hostile_text_in_tables_for_programs(evil: tuple[str, str]) -> None:
    report = hostile_report(evil)
    content = FORMATS["csv"](report)
    back = rows.restored(pd.read_csv(io.StringIO(str(content), newline=""), dtype="str", keep_default_na=False))
    assert back["device_name"].tolist() == report.runs["device_name"].tolist()
    parquet = FORMATS["parquet"](report)
    assert isinstance(parquet, bytes)
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(parquet)), report.runs, check_dtype=False)
    document = json.loads(str(FORMATS["json"](report)))
    assert [run["device_name"] for run in document["runs"]].count(evil[0]) == 7
    assert {run["device_name"] for run in document["runs"]} == {*evil}
    assert set(document) == {
        "factors",
        "runs",
        "configurations",
        "comparisons",
        "ladder",
        "precisions",
        "fit",
        "report",
    }
    assert document["report"]["digest_sha256"] == report.digest


def test_the_same_runs_make_the_same_files_but_for_when() -> None:
    first, again = usual(), made(matrix())
    later = replace(first, made_at=NOW.replace(year=2027))
    for form, render in FORMATS.items():
        assert render(first) == render(again), form
        if form in ("csv", "parquet"):
            assert render(first) == render(later)
            continue
        lines = zip(str(render(first)).splitlines(), str(render(later)).splitlines(), strict=True)
        assert sum(a != b for a, b in lines) == 1, form


def test_the_digest_is_that_of_the_csv() -> None:
    import hashlib

    report = usual()
    assert hashlib.sha256(str(FORMATS["csv"](report)).encode()).hexdigest() == report.digest


def test_hosts_users_and_folders_are_taken_out_of_every_format() -> None:
    out = []
    for host, record in zip(["alice-laptop", "node7.cluster.corp"], [rows.record(1), rows.record(2)], strict=True):
        argv = [
            "/home/alice/bin/bench",
            "run",
            "/home/alice/secret place/x.yaml",
            "--store",
            "https://ml.corp.invalid/x",
        ]
        environment = record.environment.model_copy(
            update={"host": host, "argv": argv, "variables": {"NCCL_SOCKET_IFNAME": "eth-private"}}
        )
        args = {
            **record.spec.workload_args,
            "data": "/data/projects/apollo/corpus.txt",
            "who": "by alice on node7",
            "user": "carol",
        }
        spec = record.spec.model_copy(update={"workload_args": args})
        note = "see https://prices.example/gpu and /home/alice/prices"
        site = record.site.model_copy(update={"price_note": note})
        cost = record.cost and record.cost.model_copy(update={"note": note})
        out.append(record.model_copy(update={"environment": environment, "spec": spec, "site": site, "cost": cost}))
    failed = rows.record(
        4, status=Status.FAILED, message="alice-laptop: cannot open C:\\Users\\alice\\x.bin or ~alice/y"
    )
    out.append(failed.model_copy(update={"environment": out[0].environment}))
    report = made(scrubbed(out))
    private = (
        "alice",
        "carol",
        "node7",
        "cluster.corp",
        "apollo",
        "/home",
        "/data",
        "eth-private",
        "ml.corp",
        "secret place/",
    )
    for form, render in FORMATS.items():
        content = render(report)
        text = content.decode(errors="replace") if isinstance(content, bytes) else content
        assert not [word for word in private if word in text], form
    text = str(FORMATS["html"](report))
    for kept in ("host-1", "host-2", "corpus.txt", "by user on host-2", "host-1: cannot open x.bin"):
        assert kept in text
    assert "https://prices.example/gpu and prices" in text, "the source of a price is public"
    assert "node7" in str(FORMATS["html"](made(out)))


def test_the_name_of_a_run_is_scrubbed_with_its_command() -> None:
    spec = RunSpec(
        workload="command",
        workload_args={"argv": "python /home/alice/train.py --x {x}", "x": "/home/alice/x"},
        device_type="cpu",
    )
    record = rows.record(1).model_copy(update={"spec": spec, "run_id": spec.run_id, "config_id": spec.config_id})
    assert "alice" in record.run_id
    (clean,) = scrubbed([record])
    assert clean.spec.label == "train.py x=x d1"
    assert clean.run_id == f"train-py-x-x-d1-{spec.config_id}-r0"
    assert "alice" not in json.dumps(row(clean))


def test_scrubbing_leaves_plain_runs_as_they_are() -> None:
    records = matrix()
    kept = [
        frame([row(r) for r in some]).drop(columns=["host", "environment"]) for some in (records, scrubbed(records))
    ]
    pd.testing.assert_frame_equal(*kept)


def test_the_axis_of_one_execution_is_its_day() -> None:
    at = datetime(2026, 12, 2, 14, tzinfo=UTC).timestamp() / 86400
    drawn = svg(Figure("t", "u", (Group("a", (Mark("a", 1.0, x=at),)),), "time (UTC)"))
    assert "2026-Dec-03" in drawn
    assert "2027" not in drawn


def test_a_figure_takes_the_colour_of_the_text_and_ignores_formulas() -> None:
    marks = (Mark("$x_1$ <b>", 1.0, 0.9, 1.2), Mark("_hidden", 2.0))
    figure = Figure("t", "u", (Group("_a", marks), Group("$b$", marks)), reference=1.0)
    drawn = svg(figure)
    assert drawn == svg(figure)
    assert drawn.startswith("<svg")
    assert "currentColor" in drawn
    assert "#010203" not in drawn
    assert "metadata" not in drawn
    for name in ("$x_1$ &lt;b&gt;", "_hidden", "_a", "$b$"):
        assert name in drawn
    assert (
        figure.words == "t (u). _a: $x_1$ <b> 1.00 (0.90-1.20); _hidden 2. $b$: $x_1$ <b> 1.00 (0.90-1.20); _hidden 2."
    )
