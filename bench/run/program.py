"""What a command runs, by hashes: its working folder, its program and its scripts. What they import is not looked at."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from bench.errors import UserError
from bench.redact import redact

FOLDER = "the working folder"
ALIKE = 0.8
"""Share of letters (difflib) from which another program may be meant."""
_SCRIPTS = (".py", ".sh", ".R", ".jl", ".js")


def program_hashes(argv: Sequence[str]) -> dict[str, str]:
    """Return a hash of each part of a command, by its word: of the place and content of its program, of its scripts' content.

    Scripts are files by their endings, or without such one, or a module, the first file. The folder is hashed by its path.
    """
    hashes = {FOLDER: _hash(os.fsencode(Path.cwd()))}
    program = shutil.which(argv[0])
    files = [word for word in argv[1:] if _is_file(word)]
    scripts = [word for word in files if word.endswith(_SCRIPTS)]
    with suppress(OSError):
        if program is not None:
            hashes[_printable(argv[0])] = _hash(os.fsencode(Path(program).absolute()), *_content(program))
        for word in scripts or ([] if "-m" in argv else files[:1]):
            hashes[_printable(word)] = _hash(*_content(word))
    return hashes


def check_program(name: str) -> None:
    """Raise UserError with the exit code of a shell, and a name that is near, where there is no program of a name."""
    path = Path(name)
    folders = [path.parent] if os.sep in name else [*map(Path, os.get_exec_path())]
    if any((folder / path.name).exists() or (folder / path.name).is_symlink() for folder in folders):
        return
    programs = set[str]()
    for folder in folders:
        with suppress(OSError):
            programs |= {program.name for program in folder.iterdir()}
    near = difflib.get_close_matches(path.name, programs, n=1, cutoff=ALIKE)
    meant = f"; did you mean {name.removesuffix(path.name) + near[0]!r}?" if near else ""
    raise UserError(f"cannot start {name}: there is no such program{meant}", code=127)


def _printable(word: str) -> str:
    """Return a word without secrets, and with a replacement for bytes that are no text."""
    return redact(os.fsencode(word).decode(errors="replace"))


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        return False


def _content(path: str) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            yield block


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
