"""What the hooks cost a training step, beside a TrainerCallback of Hugging Face and torch's profiler.

    python -m tests.benchmarks.hooks [--blocks 40] [--steps 20]

A GPT of 4 layers (43 modules) trains in one process. First the time inside of the hooks is added up, in CPU time of the
thread, by timers around each call of them; what a timer adds itself is subtracted. The target is 0.5 % of a step of 10 ms.
Then it trains in short blocks of steps in ABBA order with and without each tool, so that a slow second hits both. The ratio
is that of CPU seconds a step (process clock), without the first two of a block, which fill the caches that exchanging methods
of torch has emptied. The callback writes a line a step, as trackers do; the profiler records one step in 20.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

STEP_SECONDS, TARGET = 0.01, 0.005
MODULES = 43
WARM = 2
"""So many steps at the beginning of a block are not timed."""
HOOKS = Path(__file__).parents[2] / "bench" / "hooks"


def training() -> Callable[[], None]:
    """Return a function that makes one step."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out, self.drop = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(0.0)
            self.attention = nn.Identity()
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x: Any) -> Any:
            q, k, v = self.qkv(self.one(x)).chunk(3, -1)
            x = x + self.drop(self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)))
            return x + self.mlp(self.two(self.attention(x)))

    model = nn.Sequential(nn.Embedding(256, 64), *(Block(64) for _ in range(4)), nn.LayerNorm(64), nn.Linear(64, 256))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    tokens = torch.randint(256, (4, 65))

    def step() -> None:
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@contextmanager
def hooked(on: dict[str, Any], off: dict[str, Any]) -> Any:
    """Put the hooks into torch for the time of a block."""
    import torch
    from torch.optim.optimizer import _global_optimizer_post_hooks as post_hooks

    torch.nn.Module.__call__, torch.autograd.backward = on["call"], on["backward"]
    post_hooks.update(on["post"])
    yield
    torch.nn.Module.__call__, torch.autograd.backward = off["call"], off["backward"]
    post_hooks.clear()


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WATTBENCH_SEEN"] = folder
        sys.path.insert(0, str(HOOKS))
        import sitecustomize as hooks

        if Path(hooks.__file__ or "").parent != HOOKS:
            raise SystemExit("another sitecustomize is in the way")
        import torch
        from torch.optim.optimizer import _global_optimizer_post_hooks as post_hooks

        torch.set_num_threads(1)
        on = {"call": torch.nn.Module.__call__, "backward": torch.autograd.backward, "post": dict(post_hooks)}
        cells = {cell.__name__: cell for cell in _originals(on["call"])}
        off = {"call": cells["_wrapped_call_impl"], "backward": on["backward"].__wrapped__}
        post_hooks.clear()
        step = training()
        with hooked(on, off):
            for _ in range(640):  # facts, FLOP, what is usual; after some seconds lines are written more rarely
                step()
            print(report_inside(inside(step, on, off)))
        print(report(measure(step, on, off, args, Path(folder))))


def _originals(function: Any) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__ if hasattr(cell.cell_contents, "__name__")]


def inside(step: Callable[[], None], on: Any, off: Any, steps: int = 640) -> dict[str, float]:
    """Return the microseconds of a step that pass inside of the hooks, where torch has emptied the caches of the processor.

    Each timer around a call adds what an empty call takes there; that is subtracted. Modules inside of the model are called
    in a loop, with and without hooks.
    """
    import torch

    watch = next(
        each.cell_contents for each in on["call"].__closure__ if type(each.cell_contents).__name__ == "StepWatch"
    )
    kind, spent, empty = type(watch), dict.fromkeys(("call", "went_back", "mark"), 0), 0
    originals = {name: getattr(kind, name) for name in spent}

    def call(self: Any, inner: Any, *values: Any) -> Any:
        model = 0

        def timed(*args: Any, **kwargs: Any) -> Any:
            nonlocal model
            begun = time.thread_time_ns()
            try:
                return inner(*args, **kwargs)
            finally:
                model = time.thread_time_ns() - begun

        begun = time.thread_time_ns()
        out = originals["call"](self, timed, *values)
        spent["call"] += time.thread_time_ns() - begun - model
        return out

    def timed(name: str) -> Any:
        def method(*values: Any) -> Any:
            begun = time.thread_time_ns()
            out = originals[name](*values)
            spent[name] += time.thread_time_ns() - begun
            return out

        return method

    kind.call, kind.went_back, kind.mark = call, timed("went_back"), timed("mark")
    for _ in range(steps):
        step()
        begun = time.thread_time_ns()
        empty += time.thread_time_ns() - begun
    for name, method in originals.items():
        setattr(kind, name, method)
    timers = {"call": 2, "went_back": 1, "mark": 1}
    out = {name: (each - timers[name] * empty) / steps / 1e3 for name, each in spent.items()}
    module, times = torch.nn.Identity(), dict[str, list[int]](on=[], off=[])
    watch.inside = True
    for _ in range(21):
        for name, each in (("on", on["call"]), ("off", off["call"])):
            begun = time.thread_time_ns()
            for _ in range(1000):
                each(module, None)
            times[name].append(time.thread_time_ns() - begun)
    watch.inside = False
    out["inner modules"] = MODULES * (median(times["on"]) - median(times["off"])) / 1e6
    return out


def report_inside(spent: dict[str, float]) -> str:
    """Return the time inside of the hooks, and its share in a step."""
    total = sum(spent.values())
    parts = ", ".join(f"{name} {each:.0f}" for name, each in spent.items())
    return f"inside of the hooks: {total:.0f} us a step ({parts}), {total / 1e6 / STEP_SECONDS:.2%} of 10 ms"


def measure(
    step: Callable[[], None], on: Any, off: Any, args: Any, folder: Path
) -> dict[str, list[tuple[float, float]]]:
    """Return for each tool pairs of CPU seconds a step: with it, and without."""
    from torch.profiler import ProfilerActivity, profile, schedule
    from transformers import TrainerCallback, TrainerControl, TrainerState

    class Writer(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, arguments: object, state: Any, control: object, **rest: object) -> None:
            with (folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": state.global_step, "time": time.time()}) + "\n")

    writer, state, control = Writer(), TrainerState(), TrainerControl()
    timing = schedule(wait=18, warmup=1, active=1)

    def profiler() -> Any:
        return profile(activities=[ProfilerActivity.CPU], schedule=timing, on_trace_ready=lambda profiler: None)

    def nothing(tool: Any) -> None:
        """Do no more than the step."""

    def called(tool: Any) -> None:
        writer.on_step_end(None, state, control)

    def seconds(around: Callable[[], Any], after: Callable[[Any], None]) -> float:
        with around() as tool:
            for _ in range(WARM):
                step()
                after(tool)
            before = time.process_time()
            for _ in range(args.steps):
                step()
                after(tool)
            return (time.process_time() - before) / args.steps

    plain = (nullcontext, nothing)
    tools = {
        "hooks": (lambda: hooked(on, off), nothing),
        "TrainerCallback": (nullcontext, called),
        "torch.profiler": (profiler, lambda tool: tool.step()),
    }
    out: dict[str, list[tuple[float, float]]] = {name: [] for name in tools}
    for block in range(args.blocks):
        for name, tool in tools.items():
            first, second = (plain, tool) if block % 2 else (tool, plain)
            one, two, three, four = (seconds(*each) for each in (first, second, second, first))
            pair = ((one + four) / 2, (two + three) / 2)
            out[name].append(pair[::-1] if block % 2 else pair)
    return out


def report(pairs: dict[str, list[tuple[float, float]]]) -> str:
    """Return the ratios, and what the hooks add to a step of 10 ms."""
    lines = []
    for name, both in pairs.items():
        ratios = sorted(a / b for a, b in both)
        quartiles = f"quartiles {ratios[len(ratios) // 4]:.4f} to {ratios[3 * len(ratios) // 4]:.4f}"
        extra = median(a - b for a, b in both)
        share = extra / STEP_SECONDS
        lines.append(
            f"{name}: ratio {median(ratios):.4f} ({quartiles}), {1e6 * extra:.0f} us a step, {share:.2%} of 10 ms"
        )
    plain = median(b for both in pairs.values() for _, b in both)
    return "\n".join([*lines, f"a step without: {1e3 * plain:.2f} CPU ms; target for hooks: {TARGET:.1%} of 10 ms"])


if __name__ == "__main__":
    main()
