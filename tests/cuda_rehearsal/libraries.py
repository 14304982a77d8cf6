"""Stand-ins for the CUDA libraries: a shared object for each that torch's libraries need, with every symbol they look for.

Most functions are generated: they return 0, and where they create something they also return a handle. Those written by
hand (folder `stand_ins`) take their place when the library is linked, because the generated ones are weak.
"""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests import fake_nvml

SOURCES = Path(__file__).with_name("stand_ins")
CORE = ("libcudart", "libcuda", "libnccl")
"""Libraries with a source of their own; `others.c` is for all others. The first is linked to the following."""
_SYSTEM = re.compile(r"(ld-linux|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|gomp))[-.]")
_UNDEFINED = re.compile(r"\s+[Uw] (\w+)(?:@+(\S+))?$")
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")


class Symbol(NamedTuple):
    """A name that a library looks for, and the version that it must have, if any."""

    name: str
    version: str | None


def imports(library: Path) -> tuple[set[str], set[Symbol]]:
    """Return what an ELF file needs: names of libraries, and undefined symbols."""
    dynamic = subprocess.run(["readelf", "--wide", "-d", library], capture_output=True, text=True, check=True).stdout
    command = ["nm", "-D", "--undefined-only", "--with-symbol-versions", library]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = {Symbol(*match.groups()) for line in lines if (match := _UNDEFINED.match(line))}
    return set(_NEEDED.findall(dynamic)), symbols


def _prefix(library: str) -> str:
    """Return how the functions of a library begin, in lower case: `libcusparseLt.so.0` has `cusparselt`."""
    stem = re.split(r"[._]", library.removeprefix("lib"))[0].lower()
    return {"cuda": "cu"}.get(stem, stem)


def share_out(libraries: Iterable[str], symbols: Iterable[Symbol]) -> dict[str, set[Symbol]]:
    """Return the symbols of each library: those with its version, or its prefix where no longer one fits."""
    shares: dict[str, set[Symbol]] = {library: set() for library in libraries}
    for symbol in symbols:
        name = symbol.name.lstrip("_").lower()
        fitting = [library for library in shares if name.startswith(_prefix(library))]
        if symbol.version in shares:
            shares[symbol.version].add(symbol)
        elif fitting:
            shares[max(fitting, key=lambda library: len(_prefix(library)))].add(symbol)
    return shares


def stubs(symbols: Iterable[Symbol], status: int = 0) -> str:
    """Return C code that defines these symbols weakly. What is created is a handle to memory of zeros."""
    lines = ["static char zeros[1 << 16];", "#define WEAK __attribute__((weak)) long"]
    for name in sorted({symbol.name for symbol in symbols}):
        creates = "Create" in name
        body = "(void **made) { if (made) *made = zeros; return 0; }" if creates else f"(void) {{ return {status}; }}"
        lines.append(f"WEAK {name}{body}")
    return "\n".join(lines) + "\n"


def build(torch_folder: Path, include: Path, out: Path) -> dict[str, int]:
    """Compile the stand-ins for a CUDA build of torch into a folder; return the number of symbols of each library."""
    out.mkdir(parents=True, exist_ok=True)
    own = {path.name: imports(path) for path in torch_folder.glob("lib/*.so*")}
    needed = {name for libraries, _ in own.values() for name in libraries if not _SYSTEM.match(name)} - set(own)
    # Triton opens the driver itself, and compiles code that calls it.
    driver = {Symbol(name, None) for name in re.findall(r"\b(cu[A-Z]\w+)\(", (include / "cuda.h").read_text())}
    shares = share_out(needed, driver.union(*(symbols for _, symbols in own.values())))
    runtime = next(library for library in shares if library.startswith(CORE[0]))
    for library in sorted(shares, key=lambda name: name != runtime):
        stem = library.split(".")[0]
        generated, versions = out / f"{stem}.c", {symbol.version for symbol in shares[library]} - {None}
        generated.write_text(stubs(shares[library]))
        by_hand = SOURCES / (f"{stem}.c" if stem in CORE else "others.c")
        command = ["gcc", "-shared", "-fPIC", "-O2", "-w", f"-I{include}", f"-I{SOURCES}", f"-D{stem.upper()}"]
        command += [f"-Wl,-soname,{library}", "-o", str(out / library), str(generated), str(by_hand)]
        if versions:
            script = out / f"{stem}.map"
            script.write_text("".join(f"{version} {{ global: *; }};\n" for version in versions))
            command.append(f"-Wl,--version-script={script}")
        if stem in CORE[1:]:
            command += [f"-L{out}", f"-l:{runtime}"]
        subprocess.run(command, check=True, capture_output=True, text=True)
    _build_nvml(torch_folder, out)
    return {library: len(symbols) for library, symbols in shares.items()}


def _build_nvml(torch_folder: Path, out: Path) -> None:
    """Compile the fake NVML again, with the functions that torch asks it for when memory runs out: not supported (3)."""
    names = set(re.findall(rb"\0(nvml[A-Z]\w+)\0", (torch_folder / "lib" / "libc10_cuda.so").read_bytes()))
    generated = out / "nvml-more.c"
    generated.write_text(stubs((Symbol(name.decode(), None) for name in names), status=3))
    sources = [generated, SOURCES / "others.c", fake_nvml.SOURCE]
    command = ["gcc", "-std=gnu11", "-shared", "-fPIC", "-w", "-DLIBNVIDIA_ML", "-o", out / fake_nvml.LIBRARY, *sources]
    subprocess.run(command, check=True, capture_output=True, text=True)
