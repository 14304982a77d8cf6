"""The import `wattbench` for scripts that say `from bench.steps import step`; new ones say `import wattbench`."""

from bench.script.wattbench import VARIABLE, phase, step

__all__ = ["VARIABLE", "phase", "step"]
