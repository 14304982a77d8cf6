"""Memory of one rank on torch's real allocator, beside the estimate of `bench.train.footprint`: rank 0 of any number.

`python -m tests.cuda_rehearsal --memory` runs it, with communicators of NCCL's stand-in that have one real rank.
"""

import json
import os
import sys
import warnings
from typing import Any

_GPT2, _LLAMA = {"preset": "gpt2-1.5b"}, {"preset": "llama-8b"}
_LLAMA_70B = {"preset": "llama-8b", "layers": 80, "hidden": 8192, "heads": 64, "intermediate_size": 28672}
_MEDIUM = {"preset": "gpt2-350m", "sequence_length": 1024}


def _case(
    world: int, model: dict[str, Any], parallelism: str, batch: int = 8, **more: Any
) -> tuple[int, dict[str, Any]]:
    """Return the number of ranks and the fields of a training; options of the parallelism begin with `p_`."""
    options = {key[2:]: value for key, value in more.items() if key.startswith("p_")}
    fields = {key: value for key, value in more.items() if not key.startswith("p_")}
    how = {"workload_args": model, "parallelism": {"name": parallelism, **options}, "batch_size_per_device": batch}
    return world, how | fields


CASES = {
    "gpt2-1.5b fsdp2, 8 ranks": _case(8, _GPT2, "fsdp2", 1),
    "gpt2-1.5b fsdp2, 64 ranks": _case(64, _GPT2, "fsdp2", 1),
    "gpt2-1.5b tp, 5 ranks, batch 8": _case(5, _GPT2, "tp"),
    "llama-8b fsdp2 not mixed, 8 ranks": _case(8, _LLAMA, "fsdp2", 1, p_mixed=False),
    "llama-8b fsdp2 meta, 8 ranks": _case(8, _LLAMA, "fsdp2", 1, p_meta=True),
    "llama-8b tp, 8 ranks": _case(8, _LLAMA, "tp", 1),
    "llama-8b fsdp_tp, 64 ranks": _case(64, _LLAMA, "fsdp_tp", 1, p_size=8),
    "llama-70b fsdp2 meta, recompute, 64 ranks": _case(64, _LLAMA_70B, "fsdp2", 1, p_meta=True, memory="recompute"),
    "gpt2-350m ddp, 8 ranks": _case(8, _MEDIUM, "ddp"),
    "gpt2-350m zero1, 8 ranks": _case(8, _MEDIUM, "zero1"),
    "gpt2-350m hsdp, 8 ranks": _case(8, _MEDIUM, "hsdp"),
    "gpt2-350m cp, 2 ranks": _case(2, _MEDIUM, "cp"),
    "gpt2-350m pp, 2 ranks": _case(2, _MEDIUM, "pp"),
    "gpt2-350m pp, 4 ranks": _case(4, _MEDIUM, "pp"),
    "gpt2-350m pp gpipe, 4 ranks": _case(4, _MEDIUM, "pp", p_schedule="gpipe"),
    "gpt2-350m LoRA": _case(1, _MEDIUM, "single", finetune="lora"),
    "gpt2-350m activations offloaded": _case(1, _MEDIUM, "single", memory="offload"),
    "gpt2-350m fsdp2 offload, 8 ranks": _case(8, _MEDIUM, "fsdp2", p_offload=True),
}
"""Number of ranks and fields of a training in bf16, by its name in the table."""


def all_ranks(name: str) -> bool:
    """Whether all ranks have to run: stages of a pipeline tell each other what they send."""
    return " pp" in name


def measure(name: str, rank: int, store: str) -> dict[str, Any]:
    """Return the peak bytes of the third step on the allocator, and the estimate; each is its error where it fails."""
    import torch
    import torch.distributed as dist

    from bench.schema import RunSpec
    from bench.train import footprint, trainer

    world, fields = CASES[name]
    base = {"workload": "decoder_lm", "device_type": "gpu", "devices_per_node": world, "precision": "bf16"}
    spec = RunSpec.model_validate(base | {"measure_steps": 5} | fields)
    torch.cuda.set_device(rank)
    meeting = dist.FileStore(store, world) if all_ranks(name) else dist.HashStore()
    dist.init_process_group("nccl", store=meeting, rank=rank, world_size=world)
    row: dict[str, Any] = {"name": name, "rank": rank}
    try:
        training = trainer.build(spec, torch.device("cuda", rank), None)
        for _ in range(3):
            torch.cuda.reset_peak_memory_stats()
            training.step()
        row["measured"] = torch.cuda.max_memory_allocated()
        row["estimate"] = vars(footprint.estimate(spec))
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
    return row


def line(rows: list[dict[str, Any]]) -> str:
    """Return one line of the table: GB of the fullest rank, GB of the estimate, and its error."""
    if errors := [row["error"] for row in rows if "error" in row]:
        return f"{rows[0]['name']:44} {errors[0]}"
    measured, peak = max(row["measured"] for row in rows), rows[0]["estimate"]["peak"]
    return f"{rows[0]['name']:44} {measured / 1e9:7.2f} {peak / 1e9:7.2f} {peak / measured - 1:+7.1%}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])), flush=True)
    os._exit(0)
