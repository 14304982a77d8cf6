"""What a script did, counted and timed by itself: the truth beside which wattbench's figures are held.

With TRUTH=PATH, each rank writes `PATH-RANK`: [[seconds, samples, tokens], ...] at the end of each step, by CLOCK_MONOTONIC.
With REPORT=1 it also tells wattbench of each step.
"""

import atexit
import json
import os
import time
from pathlib import Path

import wattbench

steps: list = []


def step(samples, tokens=None):
    """Note the end of a step and what this rank consumed in it."""
    steps.append((time.monotonic(), samples, tokens))
    if os.environ.get("REPORT"):
        wattbench.step(samples=samples, tokens=tokens)


@atexit.register
def write():
    """Write what was noted."""
    if steps and (path := os.environ.get("TRUTH")):
        Path(f"{path}-{os.environ.get('TRUTH_RANK') or os.environ.get('RANK', '0')}").write_text(json.dumps(steps))
