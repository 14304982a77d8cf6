"""The input of a pass: how many samples and tokens it has, where that is sure."""

from __future__ import annotations

import sys
from collections import UserDict
from numbers import Number

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.conv import _ConvNd

SEQUENCE = ("attention", "attn", "transformer", "rnn", "lstm", "gru", "mamba", "ssm", "rwkv", "hyena", "retention")
"""Parts of the names of modules that relate the tokens of a sequence."""
BATCHED = ("input_ids", "input_features", "input_values", "inputs_embeds", "pixel_values")
"""Names of tensors of Hugging Face, which always begin with the batch."""
PACKED = ("position_ids", "seq_idx")
"""Names of tensors that say where the samples in a row begin; so do those that begin with `cu_seq`."""
autocasts = getattr(torch._C, "_is_any_autocast_enabled", torch.is_autocast_enabled)
"""Whether autocast is on for any device."""
PLAIN = (Number, str, bytes, type(None), torch.dtype, torch.device)
"""Types of values that hold no samples."""


class InputRules:
    """What must be known of a model to count its input. `index` is -1 where there are too many models."""

    __slots__ = ("collated", "columns", "index", "names", "sequence", "time_first", "unbatched")

    def __init__(self, module, index):
        modules = list(module.modules()) if index >= 0 else []
        names = {type(each).__name__.lower() for each in modules}
        recurrent = (nn.RNNBase, nn.RNNCellBase, nn.Transformer, nn.MultiheadAttention)
        self.index = index
        self.sequence = any(part in name for name in names for part in SEQUENCE)
        self.time_first = any(
            isinstance(each, recurrent) and not getattr(each, "batch_first", False) for each in modules
        )
        self.columns = max(map(_columns, modules), default=0)
        self.unbatched = {
            (len(each.kernel_size) + 1, each.in_channels) for each in modules if isinstance(each, _ConvNd)
        }
        inner = getattr(module, "module", module)
        self.collated = hasattr(inner, "training_step")  # Lightning: a batch as it was loaded
        forward = getattr(inner, "forward", None)
        code = getattr(forward, "__code__", None) if hasattr(forward, "__self__") else None
        self.names = code.co_varnames[1 : code.co_argcount] if code is not None else ()


def _columns(module):
    """Return how many columns of a table a module takes, each into an embedding of its own; 0 where it takes none."""
    if isinstance(module, nn.EmbeddingBag):
        return sys.maxsize
    children = list(module.children()) if isinstance(module, (nn.ModuleList, nn.ModuleDict)) else []
    tables = sum(isinstance(child, nn.Embedding) for child in children)
    return tables if tables > 1 else 0


def tensors_of(model, args, kwargs):
    """Return the tensors of an input by name, and whether the size of its batch can be told from them."""
    out, clear = [], model.index >= 0
    names = [*model.names[: len(args)], *range(len(model.names), len(args))]
    for name, value in (*((names[i], each) for i, each in enumerate(args)), *kwargs.items()):
        if isinstance(value, Tensor):
            out.append((name, value))
        elif isinstance(value, (list, tuple)):
            inner = [(name, each) for each in value if isinstance(each, Tensor)]
            clear = clear and (model.collated or not inner) and _readable(value)
            out += inner
        elif hasattr(value, "edge_index"):
            clear = False
        elif (items := _plain_items(value)) is not None:
            out += [(key, each) for key, each in items.items() if isinstance(each, Tensor)]
            clear = clear and _readable(items.values())
        else:
            clear = clear and isinstance(value, PLAIN)
    clear = clear and not any(_merged(each) for _, each in out)
    nested = any(each.is_nested or torch._C._functorch.is_batchedtensor(each) for _, each in out)  # also inside a vmap
    return ([] if nested else out), clear and not nested and all(name != "edge_index" for name, _ in out)


def _plain_items(value):
    """Return the items of a mapping that reads them from memory; another one may compute them, which changes the training."""
    if isinstance(value, UserDict):
        value = vars(value).get("data")
    return dict(dict.items(value)) if isinstance(value, dict) else None


def _readable(values):
    """Return whether values are tensors and plain ones, so that none of them hides a batch."""
    return all(isinstance(each, (Tensor, *PLAIN)) for each in values)


def _merged(tensor):
    """Return whether the first dimension of a tensor is made of several ones, such as samples and frames."""
    base = tensor._base
    if base is None or base.dim() <= tensor.dim() or not tensor.dim():
        return False
    return base.numel() == tensor.numel() and base.shape[0] != tensor.shape[0]


def form(args, kwargs):
    """Return what an input looks like, whatever its values: names; types, shapes and data types of tensors; autocast.

    None where it has more in it than tensors and plain values.
    """
    values = [*args, *kwargs.values()]
    if not all(type(each) is Tensor or isinstance(each, PLAIN) for each in values):
        return None
    if any(type(each) is Tensor and each.is_nested for each in values):
        return None
    facts = [(Tensor, each.shape, each.dtype) if type(each) is Tensor else (type(each), None, None) for each in values]
    return tuple(kwargs), tuple(facts), autocasts()


def values_of(out):
    """Return the tensors of an output, but for those in nested ones."""
    values = out if isinstance(out, (list, tuple)) else dict.values(out) if isinstance(out, dict) else [out]
    return [each for each in values if isinstance(each, Tensor)]


def storage_key(tensor):
    """Return where a tensor lies: its storage, which no other takes meanwhile, and its part of it; None without a storage."""
    try:
        storage = StorageWeakRef(tensor.untyped_storage())
        return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
    except (NotImplementedError, RuntimeError):
        return None


def amounts(model, args, kwargs):
    """Return the samples and the tokens of an input, each None where it is not sure, its first tensor, and all of them."""
    everything, clear = tensors_of(model, args, kwargs)
    named = [(name, each) for name, each in everything if each.dim()]
    if not named:
        return None, None, None, everything
    integers = (torch.int64, torch.int32)
    every = [each for _, each in named]
    first = dict(named).get("input_ids", every[0])
    ids = first.dim() == 2 and first.dtype in integers
    if _alone(model, named, first) or len({each.shape[0] for each in every}) > 1:
        clear = False
    if model.time_first and (ids or any(each.dim() == 3 and each.is_floating_point() for each in every)):
        clear = False
    table = any(each.dim() == 2 and each.is_floating_point() and "mask" not in str(name) for name, each in named)
    words = ids and model.sequence and first.shape[1] > model.columns  # GPTs have two tables: of words and of positions
    texts = {
        tuple(each.shape) for name, each in named if each.dim() == 2 and each.dtype in integers and name not in PACKED
    }
    tokens = first.numel() if words and not table and len(texts) == 1 else None
    return (first.shape[0] if clear else None), tokens, first, everything


def _alone(model, named, first):
    """Return whether an input may be a single sample, one graph, or several samples packed into a row."""
    sizes = tuple(first.shape)
    every = [each for _, each in named]
    if all(each.dim() == 1 for each in every):  # features of a sample, or columns of a batch
        return len(every) == 1 or bool(model.columns) or all(each.is_floating_point() for each in every)
    if any(str(name).startswith("cu_seq") or (name in PACKED and sizes[0] == 1) for name, _ in named):
        return True
    if any(first is each for name, each in named if name in BATCHED):
        return False
    if first.is_floating_point():
        channels = {sizes[0], sizes[-1]}
        if any(len(sizes) == count and channel in channels for count, channel in model.unbatched):
            return True
        if model.sequence and len(sizes) == 2:
            return True
    graph = len(every) > 1 and (first.is_floating_point() or len(sizes) == 1)
    return graph and any(tuple(each.shape) == (sizes[0], sizes[0]) for each in every)


def parameters_of(module):
    """Return the parameters of a module; none where torch cannot list them, as parts of it have no hash."""
    try:
        return list(nn.Module.parameters(module))  # some modules have their own method, for those that are trained
    except TypeError:
        return []


def as_json(sums):
    """Return numbers as JSON."""
    return tuple("null" if each is None else each for each in sums)
