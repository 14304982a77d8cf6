"""A step that is like many others, so that it need not be looked at in full."""

from __future__ import annotations

from threading import get_ident
from weakref import ref

from torch import is_grad_enabled
from torch._C import _current_graph_task_id as graph_task
from torch._C import _is_tracing as is_tracing

from .inputs import autocasts, storage_key


class Usual:
    """A step of the first optimizer that is like many: passes of one model with one form of input, each with its backward.

    In a step that looks like these, passes are only counted.
    """

    __slots__ = (
        *(
            "autocast",
            "calls",
            "exact",
            "first",
            "form",
            "index",
            "input",
            "line",
            "loops",
            "module",
            "names",
            "optimizer",
        ),
        *("passed", "steps", "sums", "training"),
    )

    def __init__(self, module, optimizer, form, index, sums, returns, line, scaled):
        self.module, self.training, self.optimizer = ref(module), module.training, ref(optimizer)
        (self.names, self.form, self.autocast), self.index, self.calls, self.sums = form, index, sums[0], sums[1:]
        self.line, self.passed, self.steps, self.input = line, 0, 1, None
        tensors = [(place, shape.numel(), dtype) for place, (_, shape, dtype) in enumerate(self.form) if shape]
        # What is returned may be a part of the next input only where it is as large.
        self.loops = any(dtype == each and size <= most for _, size, dtype in tensors for each, most in returns)
        # Where a step may be skipped, memory is used again within one: inputs are told apart by their storages.
        self.exact = self.calls > 1 or scaled
        self.first = None  # the place of the tensor that has the samples
        if self.sums != [None, None]:
            ids = (
                len(self.form) - len(self.names) + self.names.index("input_ids") if "input_ids" in self.names else None
            )
            self.first = ids if ids is not None and self.form[ids][1] else tensors[0][0]

    def fits(self, watch, module, args, kwargs):
        """Return whether a call is one of the usual passes of a step."""
        if (
            not self.passed == watch.backwards < self.calls
            or self.module() is not module
            or self.training != module.training
            or get_ident() != watch.thread
        ):
            return False
        if autocasts() != self.autocast:
            watch.fresh = watch.marks  # the next steps are compared with the first ones
            return False
        values = (*args, *kwargs.values()) if kwargs else args
        if len(values) != len(self.form) or self.names != tuple(kwargs) or not is_grad_enabled():
            return False
        for value, (kind, shape, dtype) in zip(values, self.form):  # noqa: B905 - Python 3.8
            if type(value) is not kind or (shape is not None and (value.shape != shape or value.dtype is not dtype)):
                return False
        if watch.clock is not None and watch.capturing():
            return False
        if self.loops and watch.outputs.get(self.index):  # it may have a part of what was returned
            return False
        if is_tracing() or (self.calls > 1 and graph_task() != -1):  # no pass; the first one is never in autograd
            return False
        if self.first is not None and not self.exact:
            try:
                self.input = values[self.first].data_ptr()
            except RuntimeError:  # in a transform of a function
                return False
        elif self.first is not None:
            here = storage_key(values[self.first])
            if here == watch.inputs.get(self.index):
                return False
            watch.inputs[self.index] = here
        return True

    def equals(self, other):
        """Return whether another step looks like this one."""
        return (
            (self.names, self.form, self.autocast) == (other.names, other.form, other.autocast)
            and self.calls == other.calls
            and self.training == other.training
            and self.module() is other.module()
            and self.optimizer() is other.optimizer()
        )

    def amounts(self):
        """Return what the passes so far have consumed."""
        return [self.passed, *(None if each is None else each * self.passed // self.calls for each in self.sums)]
