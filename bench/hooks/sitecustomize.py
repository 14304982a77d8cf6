"""Watch the training of an unchanged script that uses torch. Python imports this file first where `bench` starts a command.

Each process that trains writes `seen-HOST-PID.jsonl` into the folder that the variable WATTBENCH_SEEN names; without it
nothing is done. `bench.run.seen` reads these files and decides on steps. Times are CLOCK_MONOTONIC in ns. The lines:

    {"facts": {"rank": 0, "world_size": 2, ...}, "optimizer": 0}     before the first step of an optimizer
    {"t_ns": [1], "optimizer": 0, "backwards": 1, "passes": [[0, 1, 12, 384]], "eval": [[1, 5, 9, 0, 1, 1]]}     equal steps
    {"device_ns": [[0, 8]]}     when the device ended step 0
    {"phase": "checkpoint", "start_ns": 5, "end_ns": 9}
    {"trainable": true}     other parameters are trained than at the first steps of an optimizer
    {"precision": true}     products are computed otherwise than at the first steps
    {"captured": true}     a step became part of a CUDA graph: its replays are not seen
    {"varied": true}     samples have another shape, or another way through the model, than those whose FLOP are counted
    {"compiled": true}     something was compiled in the second step
    {"crowded": true}     more optimizers than can be told apart made steps

`passes`, since the last line of a step: model, calls, samples, tokens (null: not sure). `eval`: model, start, end, passes and
backwards of the step before it, whether the model was in evaluation, how many calls these were, and the samples of each where
it was not.
`begun_ns`, in the lines of steps that were looked at in full: when the first pass in training began.
"flops" are those of the passes and backwards of a line; "products" those of its products by data type, also where some are
not counted. Where the hooks failed, there is an empty file beside, whose name has `.failed` behind it. Lines are written at
once at first, later some at a time: within a 32nd of the time since the first.
A script never fails, prints or computes otherwise for these files.
Python 3.8, standard library only.
"""

from __future__ import annotations

import os
import sys

FOLDER = os.environ.get("WATTBENCH_SEEN")
HERE = os.path.dirname(os.path.abspath(__file__))
WRITERS = {"safetensors.torch": "save_file", "torch.distributed.checkpoint.state_dict_saver": "save"}
"""Functions that write checkpoints, by their modules; `torch.save` is another one."""


def _hooks():
    """Return the module with the hooks, which lies beside this file: a package of its own, on no path."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("wattbench_hooks", os.path.join(HERE, "watch.py"), submodule_search_locations=[HERE])
    sys.modules[spec.name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class WattbenchFinder:
    """Puts the hooks into torch as soon as it has been imported."""

    timed = None  # what makes a function that writes checkpoints a watched one

    def find_spec(self, name, path=None, target=None):
        """Return the spec of torch and of the writers of checkpoints, as all other finders have it."""
        if name != "torch" and name not in WRITERS:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    if hasattr(spec.loader, "exec_module"):
                        self.follow(spec.loader)
                    return spec
        return None

    def follow(self, loader):
        """Call the hooks after a module has been executed."""
        execute = loader.exec_module

        def exec_module(module):
            execute(module)
            try:
                if module.__name__ == "torch":
                    self.timed = _hooks().install(FOLDER)
                elif self.timed is not None:
                    write = WRITERS[module.__name__]
                    setattr(module, write, self.timed(getattr(module, write)))
            except Exception:
                return  # an old torch: the script goes on unwatched

        loader.exec_module = exec_module


def start():
    """Watch once, however many copies of this file there are; then import the `sitecustomize` that this one hides."""
    import importlib.machinery
    import importlib.util

    if FOLDER and not any(type(finder).__name__ == "WattbenchFinder" for finder in sys.meta_path):
        sys.meta_path.insert(0, WattbenchFinder())
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        sys.modules["sitecustomize"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    start()
