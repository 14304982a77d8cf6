"""The files that a report is written to: their formats, and writing each whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analytics.render.files import FORMATS
from analytics.say.report import Report
from analytics.text import counted, number
from bench.errors import UserError
from bench.files import write_bytes

STDOUT = "-"


@dataclass(frozen=True)
class Output:
    """A file, or `-` for standard output, and its format: a key of FORMATS."""

    name: str
    form: str

    @classmethod
    def of(cls, name: str, form: str | None) -> Output:
        """Return an output, whose format follows from its suffix unless one is given. Raises UserError."""
        suffix = Path(name).suffix.lower().lstrip(".")
        chosen = form or {"htm": "html", "markdown": "md"}.get(suffix, suffix)
        if chosen not in FORMATS:
            source = "--format" if name == STDOUT else "a suffix"
            raise UserError(f"-o {name}: {source} must name the format: {', '.join(FORMATS)}")
        if name != STDOUT and Path(name).is_dir():
            raise UserError(f"-o {name} is a folder; name a file in it")
        if name != STDOUT and Path(name).exists() and not Path(name).is_file():
            raise UserError(f"-o {name} is no file: give - for standard output")
        folder = Path(name).parent
        if not folder.is_dir():
            code = errno.ENOTDIR if folder.exists() else errno.ENOENT
            raise UserError(f"-o {name} cannot be written: {os.strerror(code)}")
        return cls(name, chosen)


def write(report: Report, outputs: Sequence[Output]) -> list[str]:
    """Write a report to each output; return a line on each file. Raises UserError for a file that cannot be written."""
    lines = []
    for output in outputs:
        content = FORMATS[output.form](report)
        data = content.encode() if isinstance(content, str) else content
        if output.name == STDOUT:
            sys.stdout.buffer.write(data)
            continue
        try:
            write_bytes(Path(output.name), data)
        except OSError as error:
            raise UserError(f"-o {output.name} cannot be written: {error.strerror}") from error
        lines.append(f"{output.name}: {counted(len(report.runs), 'run')}, {number(round(len(data) / 1000))} kB")
    return lines
