"""Statements of bench/ that run only where a CUDA device is there, found in the syntax tree, and which of them ran.

A statement is CUDA-only if it stands in a branch whose condition says so (`device.type == "cuda"`, or a name that holds
this), after a guard that leaves a function on other devices, if it calls `torch.cuda`, or if it belongs to the code of a
strategy that the rules of `bench.suites.combine` refuse on a CPU.
"""

import ast
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.strategies.catalog import CATALOG
from bench.suites.combine import ROWS

FOLDERS = ("run", "train", "strategies", "workloads")
_HARMLESS = {"is_available", "is_initialized", "_is_in_bad_fork", "OutOfMemoryError"}
"""What of `torch.cuda` also runs without a device."""
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
Lines = set[tuple[str, int]]


def gpu_strategies() -> set[tuple[str, str]]:
    """Return (axis, name) of the strategies that need a GPU whatever else is chosen."""
    pairs = set()
    for conditions, _ in ROWS:
        parts = conditions.split(" & ")
        for part in parts:
            axis, _, names = part.partition("=")
            if len(parts) == 2 and "device_type=cpu" in parts and axis in CATALOG:
                pairs |= {(axis, name) for name in names.split(",")}
    return pairs


class Finder:
    """Collects the lines of the CUDA-only statements of one module."""

    def __init__(self, needs_gpu: Iterable[str] = ()) -> None:
        self.lines: set[int] = set()
        self.names: set[str] = {"on_gpu"}
        self.needs_gpu = set(needs_gpu)

    def meaning(self, test: ast.expr) -> bool | None:
        """Return what a true condition says: True for a CUDA device, False for none, None for neither."""
        match test:
            case ast.Compare(ops=[operator], comparators=[ast.Constant(value=("cuda" | "gpu" | "cpu") as kind)]):
                if "device" not in ast.unparse(test.left) and "type" not in ast.unparse(test.left):
                    return None
                return {ast.Eq: kind != "cpu", ast.NotEq: kind == "cpu"}.get(type(operator))
            case ast.Name(id=name):
                return True if name in self.names else None
            case ast.Attribute():
                return True if ast.unparse(test) == "node.gpus" else None
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.meaning(operand)
                return None if inner is None else not inner
            case ast.BoolOp(op=ast.And(), values=values):
                return next((m for value in values if (m := self.meaning(value)) is not None), None)
            case ast.BoolOp(op=ast.Or(), values=values):
                meanings = {self.meaning(value) for value in values}
                return meanings.pop() if len(meanings) == 1 else None
        return None

    def block(self, statements: Sequence[ast.stmt], *, on_gpu: bool) -> None:
        """Walk through statements that follow each other."""
        for statement in statements:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.block(statement.body, on_gpu=on_gpu or statement.name in self.needs_gpu)
                continue
            if isinstance(statement, ast.Assign) and self.meaning(statement.value):
                self.names |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
            if (on_gpu or self.calls_cuda(statement)) and not _is_docstring(statement):
                self.lines.add(statement.lineno)
            meaning = self.meaning(statement.test) if isinstance(statement, ast.If) else None
            self.block(getattr(statement, "body", []), on_gpu=on_gpu or meaning is True)
            for name in ("orelse", "finalbody"):
                self.block(getattr(statement, name, []), on_gpu=on_gpu or (meaning is False and name == "orelse"))
            for handler in getattr(statement, "handlers", []):
                self.block(handler.body, on_gpu=on_gpu)
            for case in getattr(statement, "cases", []):
                self.block(case.body, on_gpu=on_gpu)
            leaves = isinstance(statement, ast.If) and isinstance(
                statement.body[-1], ast.Return | ast.Raise | ast.Continue
            )
            if leaves and meaning is False and not statement.orelse:
                on_gpu = True

    def calls_cuda(self, statement: ast.stmt) -> bool:
        """Whether the statement itself, not its blocks, uses `torch.cuda` in a way that needs a device."""
        blocks = [inner for name in _BLOCKS for inner in getattr(statement, name, [])]
        own = [n for child in ast.iter_child_nodes(statement) if child not in blocks for n in ast.walk(child)]
        attributes = [n for n in own if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "torch.cuda"]
        chosen = any(isinstance(n, ast.IfExp) for n in own)
        return bool({n.attr for n in attributes} - _HARMLESS) and not chosen


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def cuda_only(root: Path) -> Lines:
    """Return the CUDA-only statements of a checkout, by file and line."""
    needing: dict[str, set[str]] = {}
    for axis, name in gpu_strategies():
        module, _, attribute = CATALOG[axis][name].code.partition(":")
        needing.setdefault(module, set()).add(attribute)
    found: Lines = set()
    for path in sorted(path for folder in FOLDERS for path in (root / "bench" / folder).glob("*.py")):
        name = str(path.relative_to(root))
        finder = Finder(needing.get(name.removesuffix(".py").replace("/", "."), ()))
        finder.block(ast.parse(path.read_text()).body, on_gpu=False)
        found |= {(name, line) for line in finder.lines}
    return found


def executed(folder: Path, root: Path) -> Lines:
    """Return the lines of bench/ that the processes of a rehearsal noted in a folder."""
    lines: Lines = set()
    for path in folder.iterdir():
        for text in path.read_text().splitlines():
            name, _, line = text.rpartition(":")
            if Path(name).is_relative_to(root):
                lines.add((str(Path(name).relative_to(root)), int(line)))
    return lines


def share(needed: Lines, ran: Lines) -> str:
    """Return in words how many of the statements ran, and which did not."""
    missing: dict[str, list[int]] = {}
    for name, line in sorted(needed - ran):
        missing.setdefault(name, []).append(line)
    places = "; ".join(f"{name} {', '.join(map(str, lines))}" for name, lines in missing.items())
    ratio = len(needed & ran) / max(1, len(needed))
    return f"{ratio:.0%} of the {len(needed)} CUDA-only statements ran" + (f"; not {places}" if places else "")
