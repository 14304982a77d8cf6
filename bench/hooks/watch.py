"""Hooks in torch: what passes between the steps of an optimizer, written to a file as it happens."""

from __future__ import annotations

import atexit
import json
import os
import threading
from functools import wraps
from time import monotonic_ns
from weakref import WeakKeyDictionary, ref

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from .facts import facts, trained_by
from .flops import flop_counter
from .inputs import InputRules, amounts, storage_key, values_of

MODELS, OPTIMIZERS = 64, 64
"""So many models and optimizers are told apart at a time."""
SAVE_NS = 1_000_000
"""Shorter writes of checkpoints are part of a step."""
RECOUNT = 64
"""After so many steps it is looked whether the same parameters are trained."""


class StepWatch:
    """What this process has seen since its last step, and the file to which it is written."""

    def __init__(self, folder):
        self.folder, self.broken = folder, False
        self.reset()

    def reset(self):
        """Begin anew, as in a forked process."""
        self.file, self.marks, self.steps = None, 0, 0
        self.inside = self.training = False
        self.models, self.optimizers, self.trainable = {}, WeakKeyDictionary(), {}
        self.device = self.counter = self.autocast = None
        self.probing, self.captured, self.unseen = True, False, False
        self.pending, self.resolved = [], []
        self.unpaired, self.shapes, self.varied, self.crowded = {}, set(), False, False
        self.clear()

    def clear(self):
        """Forget what the last step has consumed."""
        self.outputs, self.repeated, self.strays = {}, False, set()
        self.backwards, self.passes, self.evals, self.inputs, self.begun = 0, {}, {}, {}, 0

    def probe(self):
        """Note the data type of autocast inside the model, before the first step."""
        if torch.is_autocast_enabled():
            self.autocast = torch.get_autocast_gpu_dtype()
        elif torch.is_autocast_cpu_enabled():
            self.autocast = torch.get_autocast_cpu_dtype()

    def model(self, module):
        """Return the model that a module is; None for one without parameters. Modules may be no keys of dictionaries."""
        entry = self.models.get(id(module))
        if entry is None or entry[0]() is not module:
            key, models, rules = id(module), self.models, None
            if _parameters(module):
                taken = {each.index for _, each in list(models.values()) if each is not None}
                rules = InputRules(module, next((i for i in range(MODELS) if i not in taken), -1))
            entry = self.models[key] = ref(module, lambda _: models.pop(key, None)), rules
        return entry[1]

    def passed(self, model, start, samples, tokens, tensor):
        """Add a pass in training. An input that is passed again is not another sample."""
        self.begun = self.begun or start
        self.unpaired[model.index] = self.unpaired.get(model.index, 0) + 1
        here = None if tensor is None else storage_key(tensor)
        if here is None or here == self.inputs.get(model.index):
            samples = tokens = None
        self.inputs[model.index] = here
        self.shaped(() if tensor is None else tuple(tensor.shape[1:]))
        sums = self.passes.get(model.index)
        if sums is None:
            self.passes[model.index] = [1, samples, tokens]
        else:
            sums[0] += 1
            sums[1] = None if samples is None or sums[1] is None else sums[1] + samples
            sums[2] = None if tokens is None or sums[2] is None else sums[2] + tokens

    def shaped(self, shape):
        """Note the shape of a sample: FLOP that were counted with another one are not those of all steps."""
        if self.counter is not None:
            self.shapes.add(shape)
        elif self.shapes and shape not in self.shapes:
            self.varied, self.shapes = True, set()

    def returned(self, model, out):
        """Note where the output of a pass lies."""
        self.outputs[model.index] = {lies[0] for each in values_of(out) if (lies := storage_key(each)) is not None}

    def went_back(self):
        """Count a backward. Each follows one pass of a model; otherwise passes are no samples, however many there are."""
        self.backwards += 1
        self.repeated |= not self.unpaired or any(count != 1 for count in self.unpaired.values())
        self.unpaired = {}

    def continues(self, model, named):
        """Return whether an input has part of what the last pass in this step returned, as in a loop over time."""
        outputs = self.outputs.get(model.index, ())
        return bool(outputs) and any((lies := storage_key(each)) and lies[0] in outputs for _, each in named)

    def evaluated(self, model, evaluating, start, end):
        """Note a pass without gradients: a span lasts until the next pass in training or backward."""
        key = model.index, sum(sums[0] for sums in self.passes.values()) + self.backwards, int(evaluating)
        self.evals.setdefault(key, [start, end])[1] = end

    def number(self, optimizer):
        """Return the number of an optimizer by its first step; None where there are too many."""
        number = self.optimizers.get(optimizer)
        if number is None and len(self.optimizers) < OPTIMIZERS:
            number = self.optimizers[optimizer] = self.marks
        return number

    def write(self, text):
        """Write a line at once, so that nothing is lost however the process ends."""
        if _identity(self.file) != self.own:  # the script has closed it; another file may have its number
            self.open()
        os.write(self.file, (text + "\n").encode())

    def open(self):
        """Open the file to which lines are added."""
        self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.own = _identity(self.file)

    def mark(self, optimizer):
        """Write the end of a step."""
        number = self.number(optimizer)
        if number is None:
            if id(optimizer) in self.strays and not self.crowded:  # a training of its own
                self.crowded = True
                self.write('{"crowded":true}')
            self.strays.add(id(optimizer))
            return
        if self.repeated:
            self.passes = {index: [sums[0], None, None] for index, sums in self.passes.items()}
        if number == self.marks:
            self.begin(optimizer, number)
        elif (self.marks - number) % RECOUNT == 0:
            self.recount(number)
        passes = ",".join("[%d,%d,%s,%s]" % (k, *_json(v)) for k, v in self.passes.items())
        evals = ",".join("[%d,%d,%d,%d,%d]" % (k[0], *v, *k[1:]) for k, v in self.evals.items())
        more = ',"eval":[' + evals + "]" if evals else ""
        if number == self.marks:
            more += ',"begun_ns":%d' % self.begun
        if self.device is not None:
            more += self.device_times()
        if self.steps == 1 and number == 0:
            more += self.counted()
        if self.varied:
            more, self.varied = more + ',"varied":true', False
        line = '{"t_ns":%d,"optimizer":%d,"backwards":%d,"passes":[%s]%s}'
        self.write(line % (monotonic_ns(), number, self.backwards, passes, more))
        self.clear()
        self.marks += 1
        self.steps += number == 0
        if self.marks == 1:
            self.prepare()

    def begin(self, optimizer, number):
        """Write the facts of a new optimizer; open the file for the first one."""
        passed = [
            each() for each, rules in list(self.models.values()) if rules is not None and rules.index in self.passes
        ]
        roots = trained_by(optimizer, [each for each in passed if each is not None])
        parameters = [ref(each) for root in roots for each in root.parameters()]
        self.trainable[number] = [parameters, _trainable(parameters)]
        found = facts(optimizer, roots, self.autocast)
        if self.file is None:
            name = "seen-%s-%d.jsonl" % (os.uname().nodename.replace("/", "_"), os.getpid())
            self.path = os.path.join(self.folder, name)
            self.open()
            self.probing, self.facts, self.roots = False, found, len(roots)
            if self.unseen:
                self.write('{"captured":true}')
        self.write(json.dumps({"facts": found, "optimizer": number}))
        if self.device is None and found["device_type"] == "cuda":
            self.start_clock(optimizer)

    def recount(self, number):
        """Write that other parameters are trained than at the first step of an optimizer."""
        parameters, before = self.trainable[number]
        count = _trainable(parameters)
        if None not in (count, before) and count != before:
            self.trainable[number][1] = count
            self.write('{"trainable":%d,"optimizer":%d}' % (count, number))

    def start_clock(self, optimizer):
        """Relate the clock of the device to that of the host."""
        self.device = optimizer.param_groups[0]["params"][0].device
        torch.cuda.synchronize(self.device)
        self.last = torch.cuda.Event(enable_timing=True)
        self.last.record(torch.cuda.current_stream(self.device))
        self.last.synchronize()
        self.clock = float(monotonic_ns())

    def device_times(self):
        """Record an event for this step, and return as JSON the times of those that the device has reached. Nothing waits."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self.pending.append((self.marks, event))
        return "," + times if (times := self.reached()) else ""

    def reached(self):
        """Return as JSON the times of the steps that the device has ended since the last call."""
        times = []
        while self.pending and self.pending[0][1].query():
            number, event = self.pending.pop(0)
            self.clock += self.last.elapsed_time(event) * 1e6  # ms, a float: short spans are exact
            self.last = event
            times.append("[%d,%d]" % (number, self.clock))
        return '"device_ns":[%s]' % ",".join(times) if times else ""

    def finish(self):
        """Write the times of the last steps at the end of the process, and whether the same parameters were trained."""
        if len(self.trainable) == 1:
            self.recount(0)
        if self.pending and (times := self.reached()):
            self.write("{" + times + "}")

    def saved(self, start, end):
        """Write that a checkpoint was saved."""
        if self.file is not None and end - start >= SAVE_NS and threading.current_thread() is threading.main_thread():
            self.write('{"phase":"checkpoint","start_ns":%d,"end_ns":%d}' % (start, end))

    def prepare(self):
        """Count the FLOP of the second step, where that changes nothing: not compiled, not sharded, one model."""
        if (
            self.facts["compiled"] is False
            and self.facts["apart"] is not None
            and not self.facts["outside"]
            and not self.captured
            and self.roots == 1
            and self.facts["parallelism"] in (None, "ddp")
        ):
            self.counter = flop_counter()

    def counted(self):
        """Return as JSON the FLOP of a step, if they are sure."""
        counter, self.counter = self.counter, None
        sums, shapes, self.shapes = list(self.passes.values()), self.shapes, set()
        if counter is None or counter.uncounted or self.captured or len(sums) != 1 or len(shapes) != 1:
            return ""
        calls, samples, tokens = sums[0]
        rows = tokens or samples
        # Kernels that torch does not see leave matrices without their products: each row takes 2 FLOP a weight.
        if calls != self.backwards or not rows or counter.forward < 2 * self.facts["weights"] * rows:
            return ""
        if counter.backward > 1.02 * counter.ceiling:  # of products outside of the model, too
            return ""
        self.shapes = shapes
        return ',"flops":%d' % (counter.forward + counter.backward)

    def safely(self, function, *values):
        """Call a method; its first error ends the watch, and is noted."""
        try:
            return None if self.broken else function(*values)
        except Exception:
            self.broken = True
        try:
            if self.file is not None:
                self.write('{"broken":true}')
        except Exception:
            return None

    def capturing(self):
        """Return whether a CUDA graph is recorded: what is called now is not done now."""
        self.captured |= (now := torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
        return now

    def replayed(self, optimizer):
        """Write that a step is part of a CUDA graph: its replays are not seen."""
        if not self.unseen and self.file is not None:
            self.write('{"captured":true}')
        self.unseen = True

    def entered(self, module, args, kwargs):
        """Return the model of a call, and its input in training; None where it is no pass of a model."""
        model = self.model(module)
        if model is None or in_backward() or self.capturing():
            return None
        if not torch.is_grad_enabled():
            return model, None
        if not module.training and not any(each.requires_grad for each in module.parameters()):  # a frozen teacher
            return model, None
        if self.probing:
            self.probe()
        samples, tokens, tensor, named = amounts(model, args, kwargs)
        if self.continues(model, named):
            samples = tokens = None
        return model, (samples, tokens, tensor)

    def call(self, call, module, args, kwargs):
        """Call a module from outside of all modules."""
        entry = self.safely(self.entered, module, args, kwargs)
        if entry is None:
            return call(module, *args, **kwargs)
        model, consumed = entry
        start = monotonic_ns()
        self.inside, self.training = True, consumed is not None
        try:
            if consumed is None or self.counter is None:
                out = call(module, *args, **kwargs)
            else:
                with self.counter:
                    out = call(module, *args, **kwargs)
        finally:
            self.inside = False
        if consumed is None:
            self.safely(self.evaluated, model, not module.training, start, monotonic_ns())
        else:
            self.safely(self.passed, model, start, *consumed)
            self.safely(self.returned, model, out)
        return out


def in_backward():
    """Return whether autograd runs: a checkpoint calls its modules again there."""
    return torch._C._current_graph_task_id() != -1


def _identity(descriptor):
    """Return which file a descriptor is of; None where it is closed."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _parameters(module):
    """Return the parameters of a module; none where torch cannot list them, as parts of it have no hash."""
    try:
        return list(module.parameters())
    except TypeError:
        return []


def _trainable(parameters):
    """Return how many numbers are trained; None if some parameters are no more. Sharded ones are counted as they lie here."""
    alive = [each() for each in parameters]
    return None if any(each is None for each in alive) else sum(each.numel() for each in alive if each.requires_grad)


def _json(sums):
    return tuple("null" if each is None else each for each in sums)


def _hide(*functions):
    """Let dynamo begin below some functions, as if there were no such frames, and never look into what is called safely."""
    frames = torch._C._dynamo.eval_frame
    if not hasattr(frames, "set_code_exec_strategy"):  # an older torch
        for function in (*functions, StepWatch.safely):
            frames.skip_code(function.__code__)
        return
    skip, default = frames._FrameAction.SKIP, frames._FrameAction.DEFAULT
    for function in functions:
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, default))
    frames.set_code_exec_strategy(StepWatch.safely.__code__, frames._FrameExecStrategy(skip, skip))


def install(folder):
    """Put the hooks into torch; return what makes a function that writes checkpoints a watched one."""
    watch = StepWatch(folder)
    call, backward, traced = torch.nn.Module.__call__, torch.autograd.backward, torch.compiler.is_dynamo_compiling

    if call.__code__.co_names != ("_compiled_call_impl", "_call_impl"):
        raise NotImplementedError("another torch")

    def module_call(self, *args, **kwargs):
        if traced():  # a constant while dynamo traces: it guards nothing of what follows
            return call(self, *args, **kwargs)
        if not watch.inside:
            return watch.call(call, self, args, kwargs)
        if watch.probing and watch.training:
            watch.safely(watch.probe)
        compiled = self._compiled_call_impl  # as torch's own does it, which costs a call less
        return self._call_impl(*args, **kwargs) if compiled is None else compiled(*args, **kwargs)

    @wraps(backward)
    def counted_backward(*args, **kwargs):
        if in_backward():  # of a checkpoint, inside another one
            return backward(*args, **kwargs)
        watch.safely(watch.went_back)
        if watch.counter is None:
            return backward(*args, **kwargs)
        with watch.counter:
            return backward(*args, **kwargs)

    def stepped(optimizer, args, kwargs):
        if not traced():
            watch.safely(watch.replayed if watch.safely(watch.capturing) else watch.mark, optimizer)

    def timed(save):
        @wraps(save)
        def timed_save(*args, **kwargs):
            start = monotonic_ns()
            try:
                return save(*args, **kwargs)
            finally:
                watch.safely(watch.saved, start, monotonic_ns())

        return timed_save

    _hide(module_call, counted_backward, stepped, StepWatch.call)
    module_call.__name__, module_call.__qualname__ = call.__name__, "Module.__call__"  # where pickle finds it
    module_call.__module__ = torch.nn.Module.__module__
    register_optimizer_step_post_hook(stepped)
    torch.nn.Module.__call__ = module_call
    torch.autograd.backward = counted_backward
    torch.save = torch.serialization.save = timed(torch.save)
    os.register_at_fork(after_in_child=watch.reset)
    atexit.register(watch.safely, watch.finish)
    return timed
