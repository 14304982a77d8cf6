"""Unchanged scripts, run for real: the steps, samples and tokens that they print are counted, or a flag says why not.

Times are not asserted, as they depend on the machine; `tests/test_printed.py` has them with a clock of its own.
"""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.run.command import execute
from bench.workloads.counted import Counted, count
from bench.workloads.printed import Printed

ALL_RANKS = """
import multiprocessing, time
def train(barrier):
    for i in range(1, 13):
        barrier.wait(); time.sleep(PAUSE); print(f"step {i} loss {9-i*0.1:.3f} samples 32", flush=True)
fork = multiprocessing.get_context("fork")
barrier = fork.Barrier(4)
ranks = [fork.Process(target=train, args=(barrier,)) for _ in range(4)]
for rank in ranks: rank.start()
for rank in ranks: rank.join()
"""
COLOURS = r"""
import time
R, G, C, X = "\033[31m", "\033[32m", "\033[36m", "\033[0m"
for i in range(1, 13):
    time.sleep(PAUSE)
    print(f"[rank0]:2026-01-01 00:00:00 - root - INFO - {R}step: {i:2}  {G}loss: {9.0-i*0.1:7.4f}  {C}tps: {16384:,}  "
          f"mfu: 31.2%{X}", flush=True)
"""
TOTALS = """
import time
for i in range(1, 13):
    time.sleep(PAUSE)
    print(f" iteration {i:8d}/ 12 | consumed samples: {i*64:12d} | consumed tokens: {i*64*1024:14d} | elapsed time per "
          f"iteration (ms): {1e3 * PAUSE} | lm loss: {9-i*.1:.6E} |", flush=True)
"""
EVERY_TEN = """
import time
for i in range(1, 121):
    time.sleep(PAUSE / 10)
    if i % 10 == 0: print(f"iter {i}: loss {9-i*.01:.4f}, time {100 * PAUSE:.2f}ms, mfu 30.10%, tok/s 12.3k", flush=True)
"""
WORKERS = """
import subprocess, sys
for i in (0, 2, 1): subprocess.run([sys.executable, "-c", f"print('step', {i})"])
"""
BLOCKS = """
#include <stdio.h>
#include <unistd.h>
int main(){ for(int i=1;i<=40;i++){ usleep(10000);
printf("step %4d/40 | loss %f | norm 1.0 | 10.0 ms | 12%% bf16 MFU | 81920 tok/s\\n", i, 9.0-i*0.01);} return 0; }
"""
CASES: list[tuple[str, str | None, tuple[int, int, int], set[str], str]] = [
    (ALL_RANKS, r"step (?P<step>\d+) .*samples (?P<samples>\d+)", (12, 384, 0), {"lines_repeat"}, ""),
    (ALL_RANKS, r"step (?P<step>\d+)", (12, 0, 0), set(), ""),
    (COLOURS, None, (12, 0, 0), set(), "torchtitan"),
    (COLOURS, r"step: +(?P<step>\d+)", (12, 0, 0), set(), ""),
    (TOTALS, None, (12, 11 * 64, 11 * 65_536), set(), "megatron"),
    (TOTALS, r"iteration +(?P<step>\d+)/.*samples: +(?P<samples>\d+)", (12, 0, 0), {"counts_only_grow"}, ""),
    (EVERY_TEN, None, (111, 0, 0), set(), "nanogpt"),
    (EVERY_TEN, r"iter \d+: loss", (0, 0, 0), {"lines_are_not_steps"}, ""),
    (EVERY_TEN, r"item (?P<step>\d+):", (0, 0, 0), {"no_line_matched"}, ""),
    (WORKERS, r"step (?P<step>\d+)", (3, 0, 0), {"counter_restarts"}, ""),
]
"""Scripts, patterns, and the steps, samples and tokens of all lines; of the first one, a step and no total is known."""
OF_THE_MACHINE = {"times_differ", "times_of_script", "output_in_blocks"}
"""Flags that a busy machine may raise."""


def printed(argv: list[str], pattern: str | None, folder: Path) -> Counted:
    """Run a command and count the steps that it prints."""
    (folder / "steps").unlink(missing_ok=True)
    assert execute(argv, folder / "steps", how=Printed(pattern), output=io.BytesIO()).exitcode == 0
    return count([json.loads(line) for line in (folder / "steps").read_text().splitlines()], Printed(pattern))


@pytest.mark.slow
@pytest.mark.parametrize(("script", "pattern", "sums", "flags", "known"), CASES)
def test_steps_of_a_script(
    script: str, pattern: str | None, sums: tuple[int, int, int], flags: set[str], known: str, tmp_path: Path
) -> None:
    found = printed([sys.executable, "-c", script.replace("PAUSE", "0.1")], pattern, tmp_path)
    names = ("steps", "samples", "tokens")
    assert tuple(sum(mark.get(name, 0) for mark in found.marks) for name in names) == sums
    assert ({*found.flags} - OF_THE_MACHINE, found.known) == (flags, known)


@pytest.mark.slow
def test_lines_of_several_ranks_are_no_steps_in_whichever_order_they_come(tmp_path: Path) -> None:
    found = printed([sys.executable, "-c", ALL_RANKS.replace("PAUSE", "0.1")], "loss", tmp_path)
    assert {"lines_are_not_steps", "lines_repeat"} & {*found.flags}  # either has grade C


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_program_whose_output_comes_at_its_end_has_no_steps_and_the_remedy_helps(tmp_path: Path) -> None:
    (tmp_path / "blocks.c").write_text(BLOCKS)
    subprocess.run(["cc", "-o", tmp_path / "blocks", tmp_path / "blocks.c"], check=True)
    for pattern in (None, r"step +(?P<step>\d+)/"):
        found = printed([str(tmp_path / "blocks")], pattern, tmp_path)
        assert (len(found.marks), found.flags) == (1, ["output_in_blocks"])
    found = printed(["stdbuf", "-oL", str(tmp_path / "blocks")], None, tmp_path)
    assert (sum(mark["steps"] for mark in found.marks), found.known) == (40, "llm_c")
