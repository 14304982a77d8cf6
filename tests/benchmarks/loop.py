"""Our training step against a bare hand-written loop and Hugging Face's Trainer: same model, same data, same optimizer.

    python -m tests.benchmarks.loop [--device cuda] [--preset gpt2-124m ...] [--json]

All run in one process, in blocks of steps in ABBA order, so that a slow minute hits each. On a CPU the ratio is that of CPU
seconds a step, on a GPU that of seconds between synchronised edges. A difference that such a loop makes on purpose (what our
step does beside training: loss kept, schedule, data wait) is the price of measuring; the target is 1.02 at most. On a GPU
both loops are compiled, in bf16, with fused AdamW and a vocabulary of 50304, at the largest batch that fits, and MFU is told.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from bench import registry
from bench.figures.metrics import peak_flops
from bench.schema import Choice, RunSpec
from bench.train.trainer import Trainer, build
from bench.workloads.base import SampleOrder

BLOCKS, TARGET = 24, 1.02
BATCHES = (128, 96, 64, 48, 32, 16, 8)
"""Micro-batches that are tried on a GPU, the largest first."""


def spec(preset: str, device: str, batch: int) -> RunSpec:
    """The same training for all."""
    gpu = device == "cuda"
    return RunSpec(
        workload="decoder_lm",
        workload_args={"preset": preset} | ({"sequence_length": 1024, "vocabulary": 50304} if gpu else {}),
        parallelism="single",
        precision="bf16" if gpu else "fp32",
        compile="default" if gpu else "eager",
        device_type=device,
        batch_size_per_device=batch,
        measure_steps=1000,
    )


def ours(asked: RunSpec, device: torch.device) -> Callable[[int], None]:
    """Return what trains for so many steps as a run does."""
    trainer: Trainer = build(asked, device, None)

    def train(steps: int) -> None:
        for _ in range(steps):
            trainer.step()

    return train


def by_hand(asked: RunSpec, device: torch.device) -> Callable[[int], None]:
    """Return the shortest loop that does the same."""
    plain = asked.changed(compile=Choice(name="eager"))
    parts = build(plain, device, None).parts  # for the model, the split and the optimizer's settings alone
    model, split = parts.model, parts.workload.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=device.type == "cuda" or None)
    batches = iter(SampleOrder(split, int(asked.batch_size_per_device or 1), 0))
    cast = torch.autocast(device.type, torch.bfloat16, enabled=asked.precision.name == "bf16")

    def objective(batch: torch.Tensor) -> torch.Tensor:
        tokens = batch.long()
        logits = model(input_ids=tokens[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    if device.type == "cuda":
        objective = torch.compile(objective)

    def train(steps: int) -> None:
        for _ in range(steps):
            (batch,) = split.fetch(*next(batches))
            if device.type == "cuda":
                batch = batch.pin_memory()
            with cast:
                loss = objective(batch.to(device, non_blocking=True))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return train


class Rows(torch.utils.data.Dataset):
    """The split as Trainer wants it: a mapping a sample. The labels are the tokens: the model shifts them itself."""

    def __init__(self, split: object, length: int) -> None:
        self.split, self.length = split, length

    def __len__(self) -> int:
        return len(self.split)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.split.__getitems__([index])[0][0][: self.length].long()  # type: ignore[attr-defined]
        return {"input_ids": tokens, "labels": tokens}


def trainer_of_transformers(asked: RunSpec, device: torch.device, folder: str) -> Callable[[int], None]:
    """Return a Trainer of transformers that trains for so many steps a call, and is begun anew each time."""
    from transformers import Trainer as Theirs
    from transformers import TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    parts = build(asked, device, None).parts
    rows = Rows(parts.workload.train, asked.workload_args.get("sequence_length", 128))  # type: ignore[arg-type]

    class Timed(TrainerCallback):  # type: ignore[misc]
        """Leaves the start of each `train` call out: the clock runs from the end of the first step on."""

        def on_step_end(self, args: object, state: object, control: object, **rest: object) -> None:
            if state.global_step == 1:  # type: ignore[attr-defined]
                started.append(clock(device))

    started: list[float] = []

    def train(steps: int) -> None:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps + 1,
            per_device_train_batch_size=int(asked.batch_size_per_device or 1),
            learning_rate=1e-3,
            weight_decay=0.01,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            bf16=asked.precision.name == "bf16",
            use_cpu=device.type == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        with redirect_stdout(io.StringIO()):  # it prints a summary of each call
            Theirs(model=parts.model, args=arguments, train_dataset=rows, callbacks=[Timed()]).train()

    train.started = started  # type: ignore[attr-defined]
    return train


def clock(device: torch.device) -> float:
    """CPU seconds of this process, or seconds at which a GPU has done its work."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.monotonic()


def seconds(train: Callable[[int], None], steps: int, device: torch.device) -> float:
    """Seconds a step of a block."""
    before = clock(device)
    train(steps)
    started = getattr(train, "started", None)
    return (clock(device) - (started[-1] if started else before)) / steps


def compare(preset: str, device: torch.device, batch: int, steps: int, folder: str) -> dict[str, dict[str, float]]:
    """Return for each loop its median seconds a step, the ratio to the loop by hand and its quartiles, and MFU if known."""
    asked = spec(preset, device.type, batch)
    loops = {
        "wattbench": ours(asked, device),
        "by hand": by_hand(asked, device),
    }
    if device.type == "cpu":  # it compiles nothing here, so on a GPU it is no equal
        loops["transformers.Trainer"] = trainer_of_transformers(asked, device, folder)
    taken: dict[str, list[float]] = {name: [] for name in loops}
    for train in loops.values():
        seconds(train, steps, device)
    for block in range(BLOCKS):
        for name in loops if block % 2 == 0 else reversed(loops):
            taken[name].append(seconds(loops[name], steps, device))
    flops = registry.load("workload", asked.workload)(asked.workload_args).flops_per_sample() * batch
    peak = peak_flops(torch.cuda.get_device_name(device), "bf16") if device.type == "cuda" else None
    out = {}
    for name, each in taken.items():
        ratios = sorted(a / b for a, b in zip(each, taken["by hand"], strict=True))
        out[name] = {"seconds": median(each), "ratio": median(ratios), "batch": batch}
        out[name] |= {"low": ratios[len(ratios) // 4], "high": ratios[3 * len(ratios) // 4]}
        if peak:
            out[name]["model_flops_utilization"] = flops / median(each) / peak
    return out


def largest(preset: str, device: torch.device, steps: int, folder: str) -> dict[str, dict[str, float]]:
    """Compare at the largest batch that fits."""
    for batch in BATCHES:
        try:
            return compare(preset, device, batch, steps, folder)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    raise SystemExit(f"{preset} does not fit into the memory of this GPU with a batch of {BATCHES[-1]}")


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--preset", nargs="+", default=None)
    parser.add_argument("--batch", type=int, help="4 on a CPU, the largest that fits on a GPU")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    gpu = args.device == "cuda"
    device = torch.device(args.device, 0) if gpu else torch.device("cpu")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=0, world_size=1)
        for preset in args.preset or (["gpt2-124m"] if gpu else ["tiny", "small"]):
            if gpu and args.batch is None:
                found = largest(preset, device, args.steps, folder)
            else:
                found = compare(preset, device, args.batch or 4, args.steps, folder)
            if args.json:
                print(json.dumps({"preset": preset, **found}))
                continue
            for name, figures in found.items():
                unit, mfu = "ms" if gpu else "CPU ms", figures.get("model_flops_utilization")
                quartiles = f"quartiles {figures['low']:.3f} to {figures['high']:.3f}"
                told = f"{1e3 * figures['seconds']:.2f} {unit} a step, {figures['ratio']:.3f} ({quartiles}) of that by hand"
                print(f"{preset} batch {figures['batch']}: {name}: {told}" + (f", MFU {mfu:.3f}" if mfu else ""))
            print(f"target: wattbench at most {TARGET}")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
