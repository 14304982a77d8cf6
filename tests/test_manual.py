"""README and docs are true: commands run, files in YAML are valid, lists are complete, links lead somewhere."""

import json
import os
import re
import shutil
import sys
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import click
import pytest

from analytics.search.file import OBJECTIVES, Search
from app.page import PAGES as DASHBOARD
from bench import registry
from bench.cli import _GROUPS, _VERBS, cli
from bench.schema import AXES
from bench.suites.load import FIELDS
from tests import commands
from tests.fake_nvml import environment, fake_gpu
from tests.manual import BLOCKS, PAGES, README, ROOT, Command, blocks, fenced, filled, links, sentences
from tests.manual import commands as commands_of
from tests.processes import run

COMMANDS = [command for page in PAGES for command in commands_of(page)]
DRY = {"run", "search"}
"""Verbs that get `--dry-run` here, since they would train for minutes."""
ELSEWHERE = {"dashboard", "doctor", "measure"}
"""Verbs that are parsed only: they start a server or read meters, which other tests and the slow one below do."""
PLACES = {"--gpus", "--storage", "--show", "--confirm"}
"""Options that need other hardware, a server, or the runs of a search: such commands are parsed only."""
IDENTITIES = {page.name: page for page in PAGES}


def bench_words(command: Command) -> list[str] | None:
    """Return the arguments of `bench`; None for another command."""
    words = list(command.words)
    words = words[3:] if words[0] == "taskset" else words
    return words[1:] if words[0] == "bench" else None


def leaf(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that some arguments mean, and its own arguments."""
    command, rest = cli, list(words)
    while isinstance(command, click.Group) and rest:
        found = command.get_command(click.Context(command), rest.pop(0))
        assert found is not None, words
        command = found
    return command, rest


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_blocks_are_what_the_code_prints() -> None:
    names = [name for page in PAGES for name in blocks(page)]
    assert sorted(names) == sorted(BLOCKS)
    for page in PAGES:
        assert filled(page.read_text()) == page.read_text(), "python -m tests.manual rewrites it"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in links(page):
            path, _, anchor = target.partition("#")
            assert (page.parent / path).is_file(), f"{page.name}: {target}"
            text = (page.parent / path).read_text()
            titles = {re.sub(r"\W+", "-", title.lower()) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
            assert not anchor or anchor in titles, f"{page.name}: {target}"
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(links(README)), "the README leads to every page"


def test_the_map_of_the_rooms_is_true() -> None:
    (block,) = [text for text in fenced(README, "text") if text.startswith("bench ")]
    drawn: list[str] = []
    for line in block.splitlines():
        name = line.split()[0]
        drawn.append(f"{drawn_room(drawn)}/{name}" if line.startswith("  ") else name)
    files = [path for room in ("bench", "analytics", "app") for path in (ROOT / room).rglob("*.*")]
    folders = {path.parent for path in files if path.parent.name[0] not in "._"}
    folders |= {ROOT / name for name in ("suites", "docs", "tests")}
    assert sorted(drawn) == sorted(path.relative_to(ROOT).as_posix() for path in folders)


def drawn_room(drawn: list[str]) -> str:
    return next(name for name in reversed(drawn) if "/" not in name)


def test_pages_list_all_there_is() -> None:
    text = {page.stem: page.read_text() for page in PAGES}
    prose = {page.stem: " ".join(re.findall(r"`([^`]+)`", sentences(page))) for page in PAGES}
    code = {stem: set(re.findall(r"[\w./-]+", words)) for stem, words in prose.items()}
    assert set(FIELDS) - set(AXES) <= code["suites"]
    assert set(registry.names("workload")) <= code["suites"]
    assert {f"suites/{path.name}" for path in (ROOT / "suites").glob("*.yaml")} <= code["suites"]
    words = set(re.findall(r"\w+", text["search"]))
    assert {*OBJECTIVES, *Search.model_fields["sampler"].annotation.__args__} <= words  # type: ignore[union-attr]
    pages = {title for title, _ in DASHBOARD.values()}
    assert pages == set(re.findall(r"^\| ([A-Z][\w-]+) \|", text["dashboard"], re.MULTILINE))
    assert len(pages) == 7


def test_every_verb_is_there_and_the_ten_are_in_the_readme() -> None:
    verbs = {name: {words[0] for c in COMMANDS if c.page == name and (words := bench_words(c))} for name in IDENTITIES}
    assert set().union(*verbs.values()) >= set(_VERBS)
    assert verbs["README.md"] == set(_VERBS)
    shown = {c.words[1] for c in COMMANDS if c.page == "README.md" and c.whole and c.words[0] == "bench"}
    assert shown == {verb for group in ("Run", "Look", "Decide") for verb in _GROUPS[group]}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_valid(command: Command) -> None:
    words, (first, *rest) = bench_words(command), command.words
    if words is not None:
        verb, arguments = leaf(words)
        if command.whole:
            with suppress(click.exceptions.Exit):  # of `bench show --options`
                verb.make_context("bench", list(arguments))  # click takes words out of it
        own = arguments[: arguments.index("--")] if "--" in arguments else arguments
        known = {option for parameter in verb.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in own if re.match(r"--?[a-z]", word)} <= known
        for word in own:
            assert not word.startswith("suites/") or (ROOT / word).is_file()
    elif first == "make":
        done = run(["make", "-n", "-C", str(ROOT), *rest])
        assert done.returncode == 0, done.stderr
    elif first == "python":
        module = rest[rest.index("-m") + 1] if "-m" in rest else None
        assert find_spec(module) is not None if module else (ROOT / rest[0]).is_file()
    elif first == "pip":
        files = [word for option, word in pairwise(rest) if option in ("-r", "-c")]
        assert all((ROOT / name).is_file() for name in files)
        assert rest[0] == "install"
    else:
        assert command.words in (("python3", "-m", "venv", ".venv"), (".", ".venv/bin/activate"))


def test_files_that_pages_name_exist() -> None:
    rooms = "bench|analytics|app|suites|tests|docs"
    named = {name for page in PAGES for name in re.findall(rf"`((?:{rooms})/[\w./-]+)`", sentences(page))}
    assert len(named) > 20
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("option", sorted({o for p in PAGES for o in re.findall(r"`(--[a-z-]+)", p.read_text())}))
def test_every_option_in_a_sentence_exists(option: str) -> None:
    known = {name for verb in _VERBS for parameter in leaf([verb])[0].params for name in parameter.opts}
    assert option in known


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, recorded_uri: str) -> Path:
    """A folder as users have it: runs, a store, the suites, and tables of others."""
    folder = tmp_path_factory.mktemp("user") / "folder"
    shutil.copytree(Path(recorded_uri.removeprefix("sqlite:///")).parent, folder)
    shutil.copytree(ROOT / "suites", folder / "suites")
    (folder / "theirs.csv").write_text("gpus,tok_s,parameters\n8,1000,1e9\n16,1900,1e9\n")
    (folder / "grid.csv").write_text("hour,kg_per_kwh\n" + "".join(f"{hour},0.{50 + hour}\n" for hour in range(24)))
    (folder / "my-texts").mkdir()
    (folder / "my-texts" / "a.txt").write_text("to be or not to be, that is the question\n" * 2000)
    script = next(text for text in fenced(IDENTITIES["own-scripts.md"], "python") if text.startswith("# train.py"))
    (folder / "train.py").write_text(script.replace("sleep(0.1)", "sleep(0.01)"))
    return folder


RUN = [
    Command(command.page, tuple(words), True)
    for command in COMMANDS
    if command.whole
    and (words := bench_words(command)) is not None
    and words[0] not in ELSEWHERE
    and not PLACES & set(words)
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("page", sorted({command.page for command in RUN}))
def test_commands_run_one_after_the_other(page: str, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    first = next(place for place, command in enumerate(RUN) if command.page == page)
    earlier = {command.words for command in RUN[:first]}
    new = [command for command in RUN if command.page == page and command.words not in earlier]
    for command in new:
        verb, *arguments = command.words
        dry = ["--dry-run"] if verb in DRY and "--dry-run" not in arguments else []
        done = commands.bench(verb, *arguments, *dry)
        assert done.exit_code == 0, f"{command}\n{done.output}"
        assert done.stdout.strip(), command
        if command.words[:2] == ("baseline", "save"):
            saved = user / "baselines" / f"{arguments[1]}.json"
            names = set(re.findall(r'"execution": "([^"]+)"', saved.read_text()))
            assert len(names) == 1
            saved.write_text(saved.read_text().replace(names.pop(), "20260101T000000Z-earlier"))  # runs of another day
    outputs = [file for command in new for option, file in pairwise(command.words) if option == "-o"]
    assert all((user / file).stat().st_size > 100 for file in outputs)


YAML = [(page.name, text) for page in PAGES for text in fenced(page, "yaml")]


@pytest.mark.parametrize(("page", "text"), YAML, ids=[f"{page} {text.splitlines()[0]}" for page, text in YAML])
def test_files_in_yaml_are_valid(page: str, text: str, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    (user / "file.yaml").write_text(text)
    search = "\nspace:" in text
    arguments = ["search", "file.yaml", "--dry-run"] if search else ["show", "file.yaml", "--no-memory", "--json"]
    done = commands.bench(*arguments)
    assert done.exit_code == 0, done.output
    if not search:
        assert len(json.loads(done.stdout)["runs"]) > 1


@pytest.mark.slow
def test_the_script_of_the_manual_is_measured(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands as they stand, with `bench` and `python` on the path of a shell, on a machine with a GPU."""
    tools = user / "bin"
    tools.mkdir()
    (tools / "bench").write_text(
        f"#!/bin/sh\nexec {sys.executable} -P -c 'from bench.cli import main; main()' \"$@\"\n"
    )
    (tools / "bench").chmod(0o755)
    (tools / "python").symlink_to(sys.executable)
    variables = os.environ | environment(fake_gpu(0, 300))
    variables |= {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    lines = "".join(fenced(IDENTITIES["own-scripts.md"], "sh")).splitlines()
    for line in (line for line in lines if line.endswith(" train.py")):  # the others: test_callbacks.py
        done = run(
            ["sh", "-c", line.replace("measure", "measure --json --no-store --idle-seconds 0", 1)],
            cwd=user,
            env=variables,
        )
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        measured = record["measurement"]
        assert measured["steps"] == 40 - 3
        assert measured["loss_last"] == pytest.approx(0.1, rel=0.01)
        assert measured["tokens"] == (40 - 3) * 4096
        assert "nvml" in {reading["source"] for reading in record["energy"]}
        assert (record["carbon"] is not None) == ("--region" in line)
