"""The house is in order: budgets, names, and who needs which library."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from analytics.quantities import CATALOGUE
from bench import folder
from bench.cli import _VERBS
from bench.store.tracker import location

ROOT = Path(__file__).parent.parent
ROOMS = ("bench", "analytics", "app")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SEARCHING = [ROOT / "analytics/search" / name for name in ("searcher.py", "study.py", "session.py")]
FILE_LINES, FUNCTION_LINES = 400, 60
BUDGETS = {
    "bench": 1_490,
    "bench/suites": 930,
    "bench/machine": 1_010,
    "bench/meters": 1_688,
    "bench/workloads": 2_065,
    "bench/strategies": 1_911,
    "bench/train": 1_105,
    "bench/run": 4_550,
    "bench/jobs": 1_175,
    "bench/figures": 1_046,
    "bench/store": 727,
    "bench/cli": 1_680,
    "bench/hooks": 1_053,
    "bench/script": 413,
    "analytics": 510,
    "analytics/runs": 1_988,
    "analytics/judge": 2_014,
    "analytics/law": 694,
    "analytics/plan": 1_042,
    "analytics/search": 1_375,
    "analytics/say": 3_735,
    "analytics/render": 316,
    "app": 2_484,
}
"""Code lines that a room may have: a room is a folder of `bench` or `analytics`, or one of the other packages."""


@cache
def source(path: Path) -> str:
    return path.read_text()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(source(path))


@cache
def walked(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree(path)))


@cache
def code_lines(text: str) -> set[int]:
    """Numbers of the lines with code: no blanks, comments, docstrings."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                lines -= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
    return lines


def functions(text: str) -> Iterator[tuple[str, int]]:
    lines = code_lines(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1)))


def test_the_counter_counts_code_only() -> None:
    text = (
        '"""Doc."""\n\n# comment\nx = 1  # why\n\ndef f():\n    """Doc\n    more."""\n    return (\n        1\n    )\n'
    )
    assert code_lines(text) == {4, 6, 9, 10, 11}
    assert list(functions(text)) == [("f", 4)]


def test_files_and_functions_stay_small() -> None:
    sizes = {path: len(code_lines(source(path))) for path in FILES}
    assert {str(path): size for path, size in sizes.items() if size > FILE_LINES} == {}
    long = [
        (path.name, name, size) for path in FILES for name, size in functions(source(path)) if size > FUNCTION_LINES
    ]
    assert long == []


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2]) if parts[0] in ("bench", "analytics") and len(parts) > 2 else parts[0]


def test_rooms_keep_to_their_budgets() -> None:
    sizes = dict.fromkeys(BUDGETS, 0)
    for path in FILES:
        sizes[room(path)] += len(code_lines(source(path)))  # a room without a budget is an error
    assert {name: (size, BUDGETS[name]) for name, size in sizes.items() if size > BUDGETS[name]} == {}


def test_errors_are_caught_once() -> None:
    """No verb catches an error, or suppresses one: `bench.cli.main` shows what was raised below."""
    for path in FILES:
        if room(path) != "bench/cli":
            continue
        main = {
            id(node)
            for function in walked(path)
            if isinstance(function, ast.FunctionDef) and function.name == "main" and path.name == "__init__.py"
            for node in ast.walk(function)
        }
        for node in walked(path):
            if isinstance(node, ast.ExceptHandler):
                assert id(node) in main, f"{path}:{node.lineno}: except"
            names = {getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "name", "")}
            assert "suppress" not in names, f"{path}: suppress"


def texts(path: Path) -> Iterator[str]:
    """Yield the strings of a file but for docstrings; what an f-string fills in is `*`."""
    nodes = walked(path)
    other = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    other |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in other:
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)


OWN_FORMATS = {
    "analytics/say": 3_640,
    "app": 9,
    "analytics/plan": 6,
    "analytics/runs": 1,
    "analytics/search": 1,
}
"""Numbers to which a room gives digits of its own, instead of by `analytics.text`. These counts may only be lowered."""


def own_formats(path: Path) -> int:
    """Count the values of f-strings with a precision, such as `{x:.3g}`."""
    specs = (node.format_spec for node in walked(path) if isinstance(node, ast.FormattedValue))
    parts = (spec.values[0] for spec in specs if isinstance(spec, ast.JoinedStr) and spec.values)
    return sum(isinstance(part, ast.Constant) and re.match(r"[+,]*\.", str(part.value)) is not None for part in parts)


def test_numbers_are_printed_by_one_formatter() -> None:
    counts: Counter[str] = Counter()
    for path in FILES:
        if path != ROOT / "analytics" / "text.py" and (room(path) == "bench/cli" or not room(path).startswith("bench")):
            counts[room(path)] += own_formats(path)
    over = {name: count for name, count in counts.items() if count > OWN_FORMATS.get(name, 0)}
    assert over == {}


def test_only_folder_names_the_files_of_runs() -> None:
    values = vars(folder).values()
    names = {value.name for value in values if isinstance(value, folder.JsonFile)}
    names |= {value.pattern for value in values if isinstance(value, folder.NumberedFiles)}
    names |= {folder.WORKER_LOG, folder.SCRATCH, folder.IDLE_TRACE, folder.PROGRESS, folder.LOCK, folder.NODE_LOG}
    names |= {folder.IMPORTED, folder.SEARCH}
    assert {"spec.json", "error-*.json", ".lock"} <= names
    spelled = [
        (path.name, text)
        for path in FILES
        if path != ROOT / "bench" / "folder.py"
        for text in texts(path)
        if re.sub(r"(?<=-)(\d+|command)(?=\.)", "*", text.rpartition("/")[2]) in names
    ]
    assert spelled == []


def test_models_are_copied_with_validation_only() -> None:
    for path in FILES:
        calls = (node.func for node in walked(path) if isinstance(node, ast.Call))
        copies = [f for f in calls if isinstance(f, ast.Attribute) and f.attr in ("model_copy", "model_construct")]
        assert copies == [], path


SHARED_CLASSES = {"Goal", "Lines", "Objective", "Progress", "Runner", "Section", "Shares", "Side", "Source", "State"}
SHARED_CLASSES |= {"Array", "Found", "Mark", "Verdict"}
"""Names of classes with two meanings, of which analytics or app has one: they are to be renamed there."""
SHARED_FUNCTIONS = {"main", "list_gpus", *_VERBS}
"""Functions that several files of bench may have: entry points, a seam and its code, verbs and what carries them out."""
SHARED_FUNCTIONS |= {
    "check",
    "estimate",
    "execute",
    "fp16",
    "inhabited",
    "lines",
    "load",
    "news",
    "read",
    "save",
    "step",
}
"""... and those that are still to be renamed."""


def public(path: Path, kinds: tuple[type[ast.stmt], ...]) -> Iterator[str]:
    """Yield the public names that a file defines at its top: classes (and aliases of types), or functions."""
    for node in tree(path).body:
        if isinstance(node, kinds) and isinstance(node, ast.ClassDef | ast.FunctionDef):
            names = [node.name]
        elif ast.Assign in kinds and isinstance(node, ast.Assign):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            names = [name for name in targets if name[0].isupper() and not name.isupper()]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def test_a_public_name_means_one_thing() -> None:
    classes = Counter(name for path in FILES for name in public(path, (ast.ClassDef, ast.Assign)))
    assert {name for name, count in classes.items() if count > 1} - SHARED_CLASSES == set()
    files = [path for path in FILES if path.is_relative_to(ROOT / "bench")]
    inside = Counter(name for path in files for name in public(path, (ast.ClassDef, ast.Assign)))
    assert {name for name, count in inside.items() if count > 1} == set()
    verbs = Counter(name for path in files for name in public(path, (ast.FunctionDef,)))
    assert {name for name, count in verbs.items() if count > 1} - SHARED_FUNCTIONS == set()


TITLES = {
    "analytics/say/measure.py",
    "app/charts/bars.py",
    *(f"app/pages/{n}.py" for n in ("run", "scaling", "tradeoffs")),
}
"""Files that name quantities themselves; to be emptied."""
ENDS = {"Interval", "Effect", "Outcome", "Evidence", "Mark", "Range", "Tried", "Ratio", "Moment"}
"""Classes with the ends of an interval: what has more to tell than a figure, and what is drawn. No other may be added."""


def nodes(kind: type[ast.AST], *rooms: str) -> Iterator[tuple[str, Any]]:
    """Yield the nodes of a kind in the code of some packages, with the names of their files."""
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(rooms):
            yield from ((name, node) for node in walked(path) if isinstance(node, kind))


def constants(node: ast.AST) -> list[Any]:
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]


def test_there_is_one_catalogue_of_quantities() -> None:
    """Titles and units stand in `analytics.quantities` alone."""
    named = {
        name
        for name, node in nodes(ast.Dict, "analytics", "app", "bench/cli")
        if sum(key.value in CATALOGUE for key in node.keys if isinstance(key, ast.Constant)) > 1
        and any(isinstance(text, str) for value in node.values for text in constants(value))
    }
    assert named <= TITLES


def test_there_is_one_interval() -> None:
    fields = {
        node.name: {
            part.target.id
            for part in node.body
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
        }
        for _, node in nodes(ast.ClassDef, "analytics", "app")
    }
    assert {name for name, own in fields.items() if own >= {"low", "high"}} <= ENDS


def test_constraints_are_within_the_ranges() -> None:
    extras = [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    everything = [*PROJECT["dependencies"], *extras]
    ranges = {r.name: r.specifier for r in map(Requirement, everything)}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert Requirement("torch==2.13.0") in pins
    for pin in pins:
        (version,) = pin.specifier
        assert version.operator == "=="
        assert ranges[pin.name].contains(version.version), pin


def test_the_dashboard_needs_a_part_of_the_dependencies_and_no_torch() -> None:
    lines = (ROOT / "app" / "requirements.txt").read_text().splitlines()
    wanted = {line for line in lines if not line.startswith("#")}
    assert wanted <= {text.strip() for text in PROJECT["dependencies"]}
    modules = [path for path in FILES if path.relative_to(ROOT).parts[0] in ("analytics", "app")]
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in modules
        # Searching itself is done where the devices are.
        if path.stem not in ("__init__", "main") and path not in SEARCHING
    ]
    assert imports(names, without=["torch", "transformers", "codecarbon", "optuna", "pycountry"]) == ""


def imports(modules: list[str], without: list[str]) -> str:
    """Import modules in a process where some libraries are not installed; return what it says if that fails."""
    code = (
        "import sys\nclass Absent:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {without!r}: raise ModuleNotFoundError(f'No module named {{name!r}}')\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    code += "\n".join(f"import {name}" for name in modules)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=600)
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (
            ["bench.run.node", "bench.train.worker", "bench.meters.sampler"],
            ["mlflow", "codecarbon", "pandas", "streamlit", "optuna", "pycountry"],
        ),
        (
            ["bench.meters.sampler", "bench.suites.expand", "bench.suites.combine", "bench.strategies.catalog"],
            ["torch", "transformers", "peft", "torchao", "pyarrow"],
        ),
    ],
)
def test_libraries_that_a_part_does_not_need(modules: list[str], without: list[str]) -> None:
    assert imports(modules, without) == ""
    assert without[0] in imports([without[0]], without)


def test_a_default_store_lies_in_this_folder(tmp_path: Path) -> None:
    assert location() == f"sqlite:///{tmp_path}/mlflow.db"
