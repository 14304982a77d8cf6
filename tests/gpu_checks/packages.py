"""Which packages `python -m tests.gpu_check` needs, and how to bring them along. Only the standard library is imported."""

import shlex
import sys
from importlib import util

NEEDED = {"pydantic": "pydantic", "psutil": "psutil", "pynvml": "nvidia-ml-py"}
"""Modules without which nothing can be checked, and the packages that contain them."""
OF_LOADS = {"torch": "torch", "numpy": "numpy"}
OF_RUNS = OF_LOADS | {
    "click": "click",
    "ruamel.yaml": "ruamel.yaml",
    "pyarrow": "pyarrow",
    "transformers": "transformers",
}
OF_STRATEGIES = {"torchao": "torchao", "peft": "peft", "accelerate": "accelerate", "mlxtend": "mlxtend"}
USES = {
    "loads on the GPU": OF_LOADS,
    "runs of suites": OF_RUNS,
    "all strategies": OF_STRATEGIES,
    "the search": {"optuna": "optuna"},
}
"""What is skipped without which modules. MLflow, CodeCarbon, pandas, SciPy and Rich are used if they are here."""


def absent(modules):
    """Return the packages of these modules that are not installed."""

    def find(module):
        try:
            return util.find_spec(module)
        except ModuleNotFoundError:  # the package above it is absent
            return None

    return [package for module, package in modules.items() if find(module) is None]


def commands(packages):
    """Return commands that fetch packages into the folder `carried`; torch, which some depend on, is that of the machine."""
    alone = [package for package in packages if package in OF_STRATEGIES]
    rest = [package for package in packages if package not in OF_STRATEGIES and package != "torch"]
    groups = [(["--no-deps", *alone] if alone else []), rest]
    return [shlex.join(["python", "-m", "pip", "install", "--target", "carried", *group]) for group in groups if group]


def advice():
    """Return lines that say what is absent and what to do, and whether anything can be checked at all."""
    missing, lines = absent(NEEDED), []
    without = {use: packages for use, modules in USES.items() if (packages := absent(modules))}
    everything = list(dict.fromkeys(missing + [package for packages in without.values() for package in packages]))
    if missing:
        lines.append(f"Nothing can be checked without {', '.join(missing)}.")
    lines += [f"Skipped without {', '.join(packages)}: {use}." for use, packages in without.items()]
    if everything:
        lines += [f"Install what is absent: {command}" for command in commands(everything)]
        lines.append(
            "On a machine without a network, bring the folder along: PYTHONPATH=carried python -m tests.gpu_check"
        )
    return lines, not missing


def require():
    """Print what is absent; end the process if nothing can be checked."""
    lines, enough = advice()
    print("\n".join([f"Python {sys.version.split()[0]}", *lines]), flush=True)
    if not enough:
        sys.exit(2)
