"""An environment of its own for the rehearsal: torch's CUDA build, and the packages of the environment that starts it.

Everything lies in one cache folder that git ignores. Nothing is installed elsewhere.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cuda_rehearsal import libraries
from tests.cuda_rehearsal.cases import Execution
from tests.fake_nvml import SOURCE as NVML
from tests.fake_nvml import environment as nvml_environment
from tests.fake_nvml import fake_gpu

ROOT = Path(__file__).parents[2]
INSIDE = Path(__file__).with_name("inside")
"""The folder of `sitecustomize`, which every process of the rehearsal imports first."""
_GIGABYTES = 6
_REPLACED = re.compile(r"(torch|torchgen|functorch|triton|nvidia|torchao|_*editable).*|.*\.pth", re.IGNORECASE)
"""What the new environment does not take over. It has torch by itself, and torchao in a folder of its own."""


class Unavailable(Exception):
    """The rehearsal cannot be set up here; the message gives the reason."""


@dataclass(frozen=True)
class Environment:
    """The prepared environment: `python` runs in it. `seconds` is the time of each part of the preparation."""

    python: Path
    stand_ins: Path
    torchao: Path
    seconds: dict[str, float]

    @property
    def has_torchao(self) -> bool:
        """Whether torchao can be made importable."""
        return any(self.torchao.iterdir())

    def variables(self, execution: Execution, scratch: Path, **more: str) -> dict[str, str]:
        """Return the variables of a process that sees the GPUs of an execution, with the fault of the last one."""
        cards = [fake_gpu(number) for number in range(execution.gpus)]
        texts = [f"{card['uuid']} {card['memory']} 0 0;" for card in cards]
        texts[-1] = f"{cards[-1]['uuid']} {execution.memory or cards[-1]['memory']} {execution.fault};"
        nvml = nvml_environment(*cards)
        paths = [ROOT, INSIDE, *([self.torchao] if execution.torchao else [])]
        kept = {name: os.environ[name] for name in ("LANG", "PATH", "TMPDIR") if name in os.environ}
        return kept | nvml | {
            "LD_LIBRARY_PATH": os.pathsep.join([str(self.stand_ins), nvml["LD_LIBRARY_PATH"]]),
            "FAKE_CUDA": "".join(texts),
            "FAKE_NCCL": str(scratch),
            "HOME": str(self.stand_ins.parent / "home"),  # caches of compilers
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            **execution.variables,
            **more,
        }  # fmt: skip


def prepare(cache: Path, version: str) -> Environment:
    """Set up the environment, or what is missing of it. Raises Unavailable with the reason where that is not possible."""
    _check(cache)
    seconds: dict[str, float] = {}
    home = cache.absolute() / f"torch-{version}"
    (home / "home").mkdir(parents=True, exist_ok=True)
    (cache / "wheels").mkdir(exist_ok=True)
    began = time.monotonic()
    torch = _download(cache, "torch", f"==={version}")
    python = home / "venv" / "bin" / "python"
    if not (home / "installed").exists():
        shutil.rmtree(home / "venv", ignore_errors=True)
        _call([sys.executable, "-m", "venv", "--without-pip", home / "venv"])
        _install(python, torch)
        site = next((home / "venv").glob("lib/python*/site-packages"))
        metadata = next(site.glob("torch-*.dist-info/METADATA")).read_text()
        pin = re.search(r"^Requires-Dist: triton(==[\d.]+)", metadata, re.MULTILINE)
        cuda = re.search(r"^cuda\b.*'(\d+\.\d+)'", (site / "torch" / "version.py").read_text(), re.MULTILINE)
        if not cuda or int(cuda[1].split(".")[0]) < 13:
            raise Unavailable(f"torch {version} of this registry is no build for CUDA 13 or newer")
        _install(python, _download(cache, "triton", pin[1] if pin else ""))
        for name in ("nvidia-cuda-runtime", "nvidia-cuda-crt"):
            shutil.unpack_archive(_download(cache, name, f"=={cuda[1]}.*"), home / "headers", "zip")
        _link_packages(home, site)
        (home / "installed").touch()
    seconds["download and install"] = time.monotonic() - began
    began = time.monotonic()
    site = next((home / "venv").glob("lib/python*/site-packages"))
    sources = sorted([*libraries.SOURCES.iterdir(), Path(libraries.__file__), NVML])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    stand_ins = home / f"stand-ins-{digest}"
    if not stand_ins.exists():
        for old in home.glob("stand-ins-*"):
            shutil.rmtree(old)
        unfinished = home / f"unfinished-{os.getpid()}"
        include = next((home / "headers").glob("nvidia/*/include"))
        try:
            libraries.build(site / "torch", include, unfinished)
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"the stand-ins cannot be compiled: {error.stderr}") from error
        unfinished.rename(stand_ins)
    seconds["stand-ins"] = time.monotonic() - began
    return Environment(python, stand_ins, home / "torchao", seconds)


def _check(cache: Path) -> None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Unavailable("torch has CUDA builds with these libraries for Linux on x86-64 only")
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free / 1e9
    if free < _GIGABYTES and not any(cache.glob("torch-*/installed")):
        raise Unavailable(f"{cache} has {free:.1f} GB free, and the packages need {_GIGABYTES}")


def _call(command: list[object]) -> None:
    """Run a command. Raises Unavailable with the last line that it printed if it fails."""
    process = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if process.returncode:
        lines = (process.stderr.strip() or process.stdout.strip() or "no output").splitlines()
        raise Unavailable(f"{' '.join(map(str, command[1:4]))} failed: {lines[-1]}")


def _download(cache: Path, package: str, pin: str) -> Path:
    """Return the wheel of a package, from the cache or from the registry."""
    wheels = cache / "wheels"
    pattern = f"{package.replace('-', '_')}-{pin.lstrip('=').rstrip('*')}*.whl"
    if not any(wheels.glob(pattern)):
        quiet = ["--quiet", "--disable-pip-version-check", "--timeout", "15", "--retries", "2"]
        _call([sys.executable, "-m", "pip", "download", "--no-deps", *quiet, "--dest", wheels, f"{package}{pin}"])
    return next(wheels.glob(pattern))


def _install(python: Path, wheel: Path) -> None:
    alone = ["--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check"]
    _call([sys.executable, "-m", "pip", "--python", python, "install", *alone, wheel])


def _link_packages(home: Path, site: Path) -> None:
    """Make the packages of this environment importable in the new one, by links to them."""
    for folder in (home / "packages", home / "torchao"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    for entry in (path for folder in sys.path if folder.endswith("-packages") for path in Path(folder).iterdir()):
        target = home / ("torchao" if entry.name.startswith("torchao") else "packages") / entry.name
        if (target.parent.name == "torchao" or not _REPLACED.fullmatch(entry.name)) and not target.is_symlink():
            target.symlink_to(entry)
    (site / "packages.pth").write_text(f"{home / 'packages'}\n")
