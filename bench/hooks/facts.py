"""What is known of a training at the first step of an optimizer."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .inputs import parameters_of
from .lines import restartable

PARALLEL = {
    "DistributedDataParallel": "ddp",
    "FullyShardedDataParallel": "fsdp",
    "FSDPModule": "fsdp2",
    "DataParallel": "data_parallel",
    "DeepSpeedEngine": "deepspeed",
}


def _world():
    """Return rank, number of ranks, and whether torch's processes are joined."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size(), True
    names = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "LOCAL_RANK")
    ranks = [os.environ[name] for name in names if os.environ.get(name, "").isdigit()]
    return int(ranks[0]) if ranks else 0, 1, False


def _devices(modules, parameters):
    """Return the devices of a model: UUIDs of GPUs, or `cpu`."""
    devices = {parameter.device for parameter in parameters}
    for module in modules:
        if type(module).__name__ == "DataParallel":
            devices |= {torch.device("cuda", index) for index in module.device_ids}
    out = []
    for device in sorted(devices, key=str):
        uuid = torch.cuda.get_device_properties(device).uuid if device.type == "cuda" else None
        out.append("cpu" if device.type == "cpu" else "GPU-%s" % uuid if uuid is not None else str(device))
    return out


def _shared_by(modules, world):
    """Return how ranks share the work, and whether each has samples of its own: all are copies, or shards, of one model."""
    for module in modules:
        for kind in type(module).__mro__:
            name = PARALLEL.get(kind.__name__)
            if name in ("ddp", "fsdp"):
                return name, module.process_group.size() == world
            if name == "fsdp2":
                group = module._get_fsdp_state()._fsdp_param_group
                return name, group is not None and group.mesh_info.mesh.size() == world
            if name is not None:
                return name, name == "data_parallel" or getattr(module, "dp_world_size", None) == world
    return None, world == 1


def _scaled():
    """Return whether a gradient scaler makes this step."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith("grad_scaler.py"):
            return bool(getattr(frame.f_locals.get("self"), "_enabled", True))
        frame = frame.f_back
    return False


def _tf32(modules):
    """Return whether products of fp32 are TF32 on CUDA; None where they are only in some kinds of layers."""
    backends, kinds = torch.backends, set()
    convolves = any(isinstance(each, _ConvNd) for each in modules)
    recurs = any(isinstance(each, nn.RNNBase) for each in modules)
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # without it, an older torch
        kinds.add(backends.cuda.matmul.fp32_precision == "tf32")
        kinds |= {backends.cudnn.conv.fp32_precision == "tf32"} if convolves else set()
        kinds |= {backends.cudnn.rnn.fp32_precision == "tf32"} if recurs else set()
    else:
        kinds.add(torch.get_float32_matmul_precision() != "highest")
        kinds |= {backends.cudnn.allow_tf32} if convolves or recurs else set()
    return kinds.pop() if len(kinds) == 1 else None


def _types(parameters, sizes):
    """Return the data type of most parameters."""
    types = {}
    for key, each in parameters.items():
        types[str(each.dtype)] = types.get(str(each.dtype), 0) + sizes[key]
    return max(types, key=types.get).replace("torch.", "") if types else None


def is_compiled(modules):
    """Return whether anything is compiled."""
    if any("OptimizedModule" in type(each).__name__ or getattr(each, "_compiled_call_impl", None) for each in modules):
        return True
    dynamo = sys.modules.get("torch._dynamo.utils")  # imported by many, but it has compiled nothing for most of them
    return dynamo is not None and any(dynamo.counters[each] for each in ("frames", "stats"))  # no frames in `fullgraph`


def _owned(optimizer):
    """Return the parameters of an optimizer by their identity."""
    return {id(each): each for group in optimizer.param_groups for each in group["params"]}


def trained_by(optimizer, modules):
    """Return the models that an optimizer trains: those in evaluation only with parameters of its own."""
    own = _owned(optimizer)
    trained = [each for each in modules if each.training or any(id(one) in own for one in parameters_of(each))]
    return [each for each in trained if any(one.requires_grad for one in parameters_of(each))] or trained


def state(optimizer, roots):
    """Return what may change while a training goes on: sizes, how many gradients there are, and how products are computed."""
    modules = [each for root in roots for each in root.modules()]
    parameters = {id(each): each for root in roots for each in parameters_of(root)}
    sizes = {key: each.numel() for key, each in parameters.items()}  # sharded ones as they lie here
    return (
        (
            sum(sizes.values()),
            sum(sizes[key] for key, each in parameters.items() if each.requires_grad),
            sum(len(group["params"]) for group in optimizer.param_groups) if optimizer is not None else None,
        ),
        sum(each.grad is not None for each in parameters.values()),
        (_fact(lambda: _types(parameters, sizes)), _fact(lambda: is_compiled(modules))),
    )


def owns_another(optimizer, module, roots):
    """Return whether an optimizer trains parameters of a module that are not those of its models."""
    others = {id(each) for each in parameters_of(module)} - {id(each) for root in roots for each in parameters_of(root)}
    return not others.isdisjoint(_owned(optimizer))


def _made(optimizer):
    """Return the number of the step that an optimizer has just made, as its state counts it; None where it does not.

    The state of one that was restored from a checkpoint counts the steps before, too.
    """
    return max((int(each["step"]) for each in optimizer.state.values() if "step" in each), default=None)


def facts(optimizer, roots, autocast):
    """Return what is known of a training at the first step of an optimizer; what cannot be told is None."""
    modules = [each for root in roots for each in root.modules()]
    parameters = {id(each): each for root in roots for each in parameters_of(root)}
    tables = {id(each.weight) for each in modules if isinstance(each, (nn.Embedding, nn.EmbeddingBag))}
    sizes = {key: getattr(each, "ds_numel", None) or each.numel() for key, each in parameters.items()}
    rank, world, joined = _world()
    every = list(parameters.values()) or optimizer.param_groups[0]["params"]
    parallelism, apart = _fact(lambda: _shared_by(modules, world)) or (None, None)
    own = _owned(optimizer)
    outside = not own.keys() <= parameters.keys()
    outside = outside and bool(parameters) and parallelism not in ("fsdp", "deepspeed")  # these have their own
    sharded = parallelism == "fsdp" or not parameters  # a rank has a part of the numbers
    trained = [each for each in own.values() if each.requires_grad]
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    return {
        "rank": rank,
        "world_size": world,
        "joined": joined,
        "apart": apart,
        "restart": int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0),
        "made": _fact(lambda: _made(optimizer)) if restartable() else None,
        "local_world_size": int(local) if local.isdigit() else None,
        "devices": _fact(lambda: _devices(modules, every)) or ["unknown"],
        "device_type": every[0].device.type,
        "autocast": None if autocast is None else str(autocast).replace("torch.", ""),
        "dtype": _fact(lambda: _types(parameters, sizes)),
        "tf32": _fact(lambda: _tf32(modules)),
        "gradient_scaler": _fact(_scaled),
        "parallelism": parallelism,
        "optimizer": type(optimizer).__name__,
        "closures": any("LBFGS" in kind.__name__ for kind in type(optimizer).__mro__),
        "outside": outside,
        "compiled": _fact(lambda: is_compiled(modules)),
        "threads": torch.get_num_threads(),
        "parameters": None if sharded else sum(sizes.values()),
        "trainable_parameters": None if sharded else sum(sizes[k] for k, p in parameters.items() if p.requires_grad),
        "own_parameters": None if parallelism in ("fsdp", "deepspeed") else sum(each.numel() for each in trained),
        "weights": sum(sizes[k] for k, p in parameters.items() if p.dim() > 1 and k not in tables),
        "torch": str(torch.__version__),
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def countable(known):
    """Return whether FLOP can be counted and nothing changes by that: not compiled, not sharded, not started again."""
    plain = not known["restart"] and known["compiled"] is False and known["parallelism"] in (None, "ddp")
    return plain and known["apart"] is not None and not known["outside"]


def _fact(function):
    """Return a fact; None where another torch does not have it as this one."""
    try:
        return function()
    except Exception:
        return None
