"""Facts about the machine and its software, from an allow-list."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import socket
import subprocess
import sys
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.errors import UserError
from bench.meters.meter import list_gpus
from bench.process import boot_id
from bench.record import Environment
from bench.redact import redact, redact_argv
from bench.schema import Gpu, Machine
from bench.vendors import FILTERS, VENDORS

PACKAGES = ("wattbench", "torch", "transformers", "numpy", "nvidia-ml-py", "codecarbon", "mlflow")
VARIABLES = (
    *(*FILTERS, "CUDA_DEVICE_ORDER", "CUDA_DEVICE_MAX_CONNECTIONS", "CUBLAS_WORKSPACE_CONFIG"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND"),
    *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
)
VARIABLE_PREFIXES = ("NCCL_", "TORCH_NCCL_", "RCCL_", "GLOO_", "UCX_", "FI_", "OMPI_MCA_btl", "HSA_")


class EnvironmentProblem(UserError):
    """The machine cannot do what is asked; the message says why and what to do about it."""


def processors() -> int:
    """Return how many processors this process may use, by its affinity and by the quota of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # the quota is `max` where there is none
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


def cpu_model() -> str:
    """Return the name of the processor that the kernel states."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine() or "unknown"


def find_machine(named_gpus: str | None = None) -> tuple[Machine, str | None]:
    """Return the processors and visible GPUs of this machine, and the reason if there are no GPUs.

    `named_gpus` (indices or UUIDs, separated by commas) keeps only these, even if others use them. Raises
    EnvironmentProblem if one of them is not visible.
    """
    gpus, driver, reason = list_gpus()
    if named_gpus is not None:
        gpus = [_named(name.strip(), gpus) for name in named_gpus.split(",") if name.strip()]
    memory = psutil.virtual_memory().total
    machine = Machine(
        cpu_model=cpu_model(), cpu_count=processors(), memory_bytes=memory, gpus=gpus, driver_version=driver
    )
    return machine, reason


def _named(name: str, gpus: list[Gpu]) -> Gpu:
    for gpu in gpus:
        if name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name)):
            return gpu.changed(used_by=[])
    visible = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none"
    raise EnvironmentProblem(f"--gpus names {name!r}, which is not visible here; visible: {visible}")


def check_no_gpu_is_hidden(reason: str | None) -> None:
    """Refuse to use the CPU silently: raise EnvironmentProblem if there seem to be GPUs that no meter lists.

    Graphics of an AMD processor look like its GPUs. They count only where torch is built for ROCm.
    """
    if reason is None or "lists no GPU" in reason:
        return
    if "not found" in reason or "not installed" in reason:
        vendors = ["nvidia", "amd"] if torch_build().rocm else ["nvidia"]
        hidden = any(any(Path("/dev").glob(VENDORS[vendor].files)) for vendor in vendors)  # without the library
    else:  # a name that does not exist, rather than none on purpose; or NVML does not answer
        names = {os.environ.get(variable, "").strip() for variable in FILTERS}
        hidden = "leaves no GPU visible" not in reason or not names <= {"", "-1", "NoDevFiles"}
    if hidden:
        raise EnvironmentProblem(
            f"there seem to be GPUs, but none can be used: {reason}\n"
            "Repair that (nvidia-smi or amd-smi should list them), "
            "or measure the CPU on purpose: --set device_type=cpu"
        )


class TorchBuild(NamedTuple):
    """Versions of torch, and of the platform that it is built for; None if there is none."""

    version: str | None = None
    cuda: str | None = None
    rocm: str | None = None

    @property
    def platform(self) -> str:
        """Name and version of the platform, for people."""
        return f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.rocm}" if self.rocm else "CPU"


def torch_build() -> TorchBuild:
    """Return the version of the installed torch and of its platform, read from its files without importing it."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return TorchBuild()
    values: dict[str, Any] = {}
    for node in ast.parse((Path(spec.origin).parent / "version.py").read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            values[target.id] = value.value
    return TorchBuild(values.get("__version__"), values.get("cuda"), values.get("hip"))


def commit(folder: Path | None = None) -> str | None:
    """Return the commit of the checkout that contains a folder, with a hash of uncommitted changes; None outside one.

    Without a folder, that of the checkout that wattbench runs from.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder or root), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)
        return done.stdout.decode(errors="replace").strip()

    try:
        if folder is None and Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        changes = git("diff", "HEAD")
        changed = f"+changed.{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return None


def describe(machine: Machine) -> Environment:
    """Return the facts that results depend on, with the few variables that change them and without credentials."""
    torch = torch_build()
    versions = {"torch": torch.version} if torch.version is not None else {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions.setdefault(name, metadata.version(name))
    names = [name for name in sorted(os.environ) if name in VARIABLES or name.startswith(VARIABLE_PREFIXES)]
    kept = {name: redact(f"{name}={os.environ[name]}").partition("=")[2] for name in names}
    return Environment(
        host=socket.gethostname(),
        boot_id=boot_id(),
        os=platform.platform(terse=True),
        kernel=platform.release(),
        python=platform.python_version(),
        packages=versions,
        wattbench_commit=commit(),
        folder_commit=commit(Path.cwd()),
        machine=machine,
        torch_cuda=torch.cuda,
        torch_rocm=torch.rocm,
        variables=kept,
        argv=redact_argv(sys.argv),
        load_average=round(os.getloadavg()[0], 2),
    )


def check_torch(machine: Machine, *, for_gpus: bool) -> None:
    """Raise EnvironmentProblem if torch is missing, or if runs are `for_gpus` and it is not built for these GPUs."""
    torch, vendor = torch_build(), VENDORS[machine.vendor]
    if torch.version is None:
        raise EnvironmentProblem("torch is not installed, but runs need it: pip install -e . -c constraints.txt")
    if for_gpus and machine.gpus and not torch.platform.startswith(vendor.platform):
        raise EnvironmentProblem(
            f"{len(machine.gpus)} {vendor.title} GPU(s) are here, "
            f"but the installed torch {torch.version} is built for {torch.platform}.\n"
            f"Install a {vendor.platform} build of torch, or measure the CPU on purpose: --set device_type=cpu"
        )
