"""Trained weights of a run for other runs: a folder with `weights.safetensors` and `checkpoint.json`, written atomically."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.files import read_json, write_json
from bench.folder import CHECKPOINT
from bench.schema import RunSpec, Scalar
from bench.strategies.parts import Parallelism

WEIGHTS, FACTS = "weights.safetensors", "checkpoint.json"
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "module.")
"""Parts of tensor names that training wrappers add; the last one occurs only at the beginning."""
_NAMED = 5


class Loaded(NamedTuple):
    """The result of loading: notes for the record, and the names of the model's tensors that were not loaded."""

    notes: dict[str, Scalar]
    fresh: frozenset[str]


def plain_name(name: str) -> str:
    """Return the name of a tensor in the workload's own model."""
    for wrapper in _WRAPPERS[:-1]:
        name = name.replace(wrapper, "")
    return name.removeprefix(_WRAPPERS[-1])


def save(spec: RunSpec, parallel: Parallelism, folder: Path) -> None:
    """Write the weights of a model to `folder`; all ranks call it, rank 0 writes."""
    state = parallel.state()
    if state is None:
        return

    same: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in parallel.parts.model.state_dict(keep_vars=True).items():
        first = same.setdefault(id(tensor), name)
        if first != name:
            tied[plain_name(name)] = plain_name(first)
    named = {plain_name(name): tensor for name, tensor in state.items()}
    stored = {name: tensor.contiguous() for name, tensor in named.items() if tied.get(name) not in named}
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file(stored, temporary / WEIGHTS)
    facts = {
        "workload": spec.workload,
        "workload_args": spec.workload_args,
        "sha256": _digest(temporary / WEIGHTS),
        "tensors": len(stored),
        "tied": {name: first for name, first in tied.items() if first in named},
    }
    write_json(temporary / FACTS, facts)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_into(model: torch.nn.Module, run: Path) -> Loaded:
    """Copy saved weights into a model: all tensors whose name and shape match.

    So a model with another head loads everything but the head. Raises ValueError if less than half of the model's tensors
    match: the checkpoint is of another model.
    """
    folder = run / CHECKPOINT
    facts = read_json(folder / FACTS)
    if facts is None:
        raise ValueError(f"no checkpoint in {folder}")
    own, tied = model.state_dict(), facts["tied"]
    loaded: set[str] = set()
    with safe_open(folder / WEIGHTS, framework="pt") as file, torch.no_grad():
        saved = set(file.keys())
        for name, tensor in own.items():
            source = name if name in saved else tied.get(name)
            if source in saved and list(tensor.shape) == file.get_slice(source).get_shape():
                tensor.copy_(file.get_tensor(source))
                loaded.add(name)
    if 2 * len(loaded) < len(own):
        raise ValueError(
            f"only {len(loaded)} of the {len(own)} tensors of this model match the checkpoint of {facts['workload']} "
            f"{facts['workload_args']}, at least half must: it has {_some(saved)}, the model has {_some(own)}"
        )
    fresh = frozenset(own) - loaded
    notes: dict[str, Scalar] = {
        "needed_sha256": facts["sha256"],
        "loaded_tensors": len(loaded),
        "left_tensors": len(fresh),
        "unused_tensors": len(saved - loaded - {tied[name] for name in loaded if name in tied}),
    }
    return Loaded(notes | ({"left": _some(fresh)} if fresh else {}), fresh)


def _some(names: set[str] | frozenset[str] | dict[str, torch.Tensor]) -> str:
    shown = sorted(names)[:_NAMED]
    return ", ".join(shown) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
