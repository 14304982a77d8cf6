"""Start wattbench's own modules from where they are, never a `bench.py`, `app.py` or `analytics.py` on PYTHONPATH.

The command `bench` begins here, and `python -P wattbench_command.py bench.run.node ...` is `python -m bench.run.node ...`.
"""

import runpy
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

for _name in ("bench", "analytics", "app"):
    _spec = PathFinder.find_spec(_name, [str(Path(__file__).resolve().parents[2])])
    assert _spec is not None and _spec.loader is not None  # noqa: S101, PT018  they are installed together
    sys.modules[_name] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])


def main() -> None:
    """Run the command `bench`."""
    from bench.cli import main as bench

    bench()


if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
