"""What an optimizer trains, and what torch has to be asked by names that depend on its version."""

from __future__ import annotations

from functools import partial
from weakref import ref

import torch
from torch.nn.parameter import is_lazy

DEVICES = ("cuda", "cpu")
if hasattr(torch, "get_autocast_dtype"):  # torch 2.4: the other names warn
    AUTOCAST = [(partial(torch.is_autocast_enabled, each), partial(torch.get_autocast_dtype, each)) for each in DEVICES]
else:
    AUTOCAST = [
        (torch.is_autocast_enabled, torch.get_autocast_gpu_dtype),
        (torch.is_autocast_cpu_enabled, torch.get_autocast_cpu_dtype),
    ]
"""Whether autocast is on, and its data type."""
PARTLY, MAIN = "partly", 0.8
"""What autocast is where neither this share of the weights nor of the rest is called in it."""


class Trained:
    """What an optimizer trains: its models, and what is compared with that of its later steps."""

    __slots__ = ("autocast", "models", "roots", "state", "steps")

    def __init__(self, roots, models, autocast):
        self.roots, self.models, self.autocast = [ref(each) for each in roots], [ref(each) for each in models], autocast
        self.state, self.steps = None, 0


def own_weights(module):
    """Return the number of weights of matrices that a module has itself: products take place where it is called."""
    own = [each for each in module._parameters.values() if each is not None and not is_lazy(each)]
    return sum(each.numel() for each in own if each.dim() > 1)


def calls_of(casts):
    """Return how many calls have been looked at in a step."""
    return sum(map(len, casts.values()))


def main_cast(casts):
    """Return the data type of autocast, of the modules that are called in each; None where there is no autocast."""
    if len(casts) < 2:
        return next(iter(casts), None)
    modules = {cast: [each() for each in refs] for cast, refs in casts.items()}
    weights = {cast: sum(own_weights(each) for each in called if each is not None) for cast, called in modules.items()}
    total, most = sum(weights.values()), max(weights, key=weights.__getitem__)
    if not total:  # products are elsewhere
        return next((each for each in casts if each is not None), None)
    return most if weights[most] >= MAIN * total else PARTLY


def hide(functions, never):
    """Let dynamo begin below some functions, as if there were no such frames, and never look into what is called safely."""
    frames = torch._C._dynamo.eval_frame
    if not hasattr(frames, "set_code_exec_strategy"):  # an older torch
        for function in (*functions, never):
            frames.skip_code(function.__code__)
        return
    skip, default = frames._FrameAction.SKIP, frames._FrameAction.DEFAULT
    for function in functions:
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, default))
    frames.set_code_exec_strategy(never.__code__, frames._FrameExecStrategy(skip, skip))
