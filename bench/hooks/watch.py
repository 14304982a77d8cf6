"""Hooks in torch: what passes between the steps of an optimizer, written to a file as it happens."""

from __future__ import annotations

import atexit
import json
import os
import threading
from contextlib import suppress
from functools import partial, wraps
from time import monotonic_ns
from weakref import WeakKeyDictionary, ref

import torch
from torch import is_grad_enabled
from torch._C import _current_graph_task_id as graph_task
from torch._C import _is_tracing as is_tracing
from torch.optim.optimizer import register_optimizer_step_post_hook

from .around import FlushedExit, timed
from .clock import DeviceClock
from .facts import countable, facts, is_compiled, owns_another, trained_by
from .facts import state as current
from .flops import flop_counter
from .inputs import InputRules, amounts, as_json, form, parameters_of, storage_key, values_of
from .lines import LineFile, new_file
from .trained import AUTOCAST, Trained, calls_of, hide, main_cast
from .usual import Usual

MODELS, OPTIMIZERS = 64, 64
"""So many models and optimizers are told apart at a time."""
SAVE_NS = 1_000_000
"""Shorter writes of checkpoints are part of a step."""
ALIKE, FULL = 16, 61
"""After so many steps that are alike, one in so many is looked at in full: a prime, so that no period hides a difference."""
STATES = 4
"""At one in so many of these, all parameters are looked at."""


class StepWatch:
    """What this process has seen since its last step, and the file to which it is written."""

    def __init__(self, folder):
        self.folder, self.broken = folder, False
        self.reset()

    def reset(self):
        """Begin anew, as in a forked process."""
        self.file, self.marks, self.steps, self.fresh = None, 0, 0, 0  # the last: the line of the newest optimizer
        self.inside = self.looking = self.captured = self.unseen = False
        self.models, self.optimizers, self.states = {}, WeakKeyDictionary(), {}
        self.clock = self.counter = self.work = self.thread = None
        self.known, self.usual, self.plan, self.scaled = [], None, None, False
        self.unpaired, self.shapes, self.events = {}, set(), set()
        self.clear()

    def clear(self):
        """Forget what the last step has consumed."""
        self.outputs, self.casts, self.returns, self.repeated, self.strays = {}, {}, [], False, set()
        self.backwards, self.passes, self.evals, self.inputs, self.begun = 0, {}, {}, {}, 0
        self.forms, self.module = set(), None

    def look(self, module):
        """Note a call inside of a model by the data type of autocast there."""
        cast = next((dtype() for enabled, dtype in AUTOCAST if enabled()), None)
        self.casts.setdefault(cast, []).append(ref(module))

    def model(self, module):
        """Return the model that a module is; None for one without parameters. Modules may be no keys of dictionaries."""
        entry = self.models.get(id(module))
        if entry is None or entry[0]() is not module:
            key, models, rules = id(module), self.models, None
            if parameters_of(module):
                taken = {each.index for _, each in list(models.values()) if each is not None}
                rules = InputRules(module, next((i for i in range(MODELS) if i not in taken), -1))
            entry = self.models[key] = ref(module, lambda _: models.pop(key, None)), rules
        return entry[1]

    def passed(self, model, start, samples, tokens, tensor, shape):
        """Add a pass in training. An input that is passed again is not another sample."""
        self.begun = self.begun or start
        self.unpaired[model.index] = self.unpaired.get(model.index, 0) + 1
        here = None if tensor is None else storage_key(tensor)
        before = self.inputs.get(model.index)
        if here is None or here == before or (type(before) is int and before == tensor.data_ptr()):
            samples = tokens = None
        self.inputs[model.index] = here
        self.shaped(shape)
        sums = self.passes.get(model.index)
        if sums is None:
            self.passes[model.index] = [1, samples, tokens]
        else:
            sums[0] += 1
            sums[1] = None if samples is None or sums[1] is None else sums[1] + samples
            sums[2] = None if tokens is None or sums[2] is None else sums[2] + tokens

    def shaped(self, shape):
        """Note the shapes of a sample: FLOP that were counted with other ones are not those of all steps."""
        if self.counter is not None:
            self.shapes.add(shape)
        elif self.shapes and shape not in self.shapes:
            self.shapes = set()
            self.changed("varied")

    def returned(self, model, out):
        """Note where the output of a pass lies."""
        values = values_of(out)
        self.outputs[model.index] = {lies[0] for each in values if (lies := storage_key(each)) is not None}
        self.returns = [(each.dtype, each.numel()) for each in values]

    def went_back(self):
        """Count a backward. Each follows one pass of a model; otherwise passes are no samples, however many there are."""
        if self.plan is not None and self.plan.passed != self.backwards + 1:
            self.settle()
        self.backwards += 1
        if self.plan is not None:
            return
        self.repeated |= not self.unpaired or any(count != 1 for count in self.unpaired.values())
        self.unpaired = {}

    def continues(self, model, named):
        """Return whether an input has part of what the last pass in this step returned, as in a loop over time."""
        outputs = self.outputs.get(model.index, ())
        return bool(outputs) and any((lies := storage_key(each)) and lies[0] in outputs for _, each in named)

    def evaluated(self, model, evaluating, start, end, *inputs):
        """Note a pass without gradients: a span lasts until the next pass in training or backward."""
        rows = None
        if not evaluating:
            with suppress(Exception):  # of what a script passes without gradients
                rows = amounts(model, *inputs)[0]
        key = model.index, sum(sums[0] for sums in self.passes.values()) + self.backwards, int(evaluating), rows
        span = self.evals.setdefault(key, [start, end, 0])
        span[1:] = end, span[2] + 1

    def number(self, optimizer):
        """Return the number of an optimizer by its first step; None where there are too many."""
        number = self.optimizers.get(optimizer)
        if number is None and len(self.optimizers) < OPTIMIZERS:
            number = self.optimizers[optimizer] = self.marks
        return number

    def settle(self):
        """Look at the rest of a step in full, as it is not like the usual ones."""
        plan, self.plan = self.plan, None
        if plan.passed:
            self.passes, self.forms = {plan.index: plan.amounts()}, {(plan.names, plan.form, plan.autocast)}
            self.module = plan.module
            if not plan.exact:
                self.inputs = {plan.index: plan.input}
            self.unpaired = {plan.index: 1} if plan.passed > self.backwards else {}

    def mark(self, optimizer):
        """Write the end of a step, or that it is part of a CUDA graph."""
        plan = self.plan
        if (self.clock is not None or plan is None) and self.capturing():
            self.replayed(optimizer)
        elif plan is None or not plan.passed == plan.calls == self.backwards or plan.optimizer() is not optimizer:
            self.full_mark(optimizer)
        else:
            if self.clock is not None:
                self.record()
            self.file.step(monotonic_ns(), plan.line)
            self.begun = self.backwards = plan.passed = 0
            if plan.exact or plan.loops:
                self.inputs, self.outputs = {}, {}
            self.marks += 1
            self.steps += 1
            if not self.marks % FULL:
                self.plan = None

    def learn(self, optimizer, line):
        """Take a step for a usual one after some that were alike."""
        if self.evals:
            return
        sums = next(iter(self.passes.values()), (0,))
        module = None if self.module is None else self.module()
        if module is None or self.repeated or len(self.passes) > 1 or len(self.forms) > 1 or None in self.forms:
            self.known, self.usual = [], None
        elif sums[0] == self.backwards:
            step = Usual(module, optimizer, *self.forms, *self.passes, sums, self.returns, line, self.scaled)
            known = next((each for each in self.known if each.equals(step)), step)
            if known is step:
                self.known = [*self.known[-3:], step]
            elif known.sums != step.sums:  # another use of equal input
                self.known, self.usual = [], None
            else:
                known.steps += 1
                self.usual = known if known.steps >= ALIKE else self.usual

    def full_mark(self, optimizer):
        """Write the end of a step that was looked at in full."""
        if self.plan is not None:
            self.settle()
        self.thread = threading.get_ident()
        number = self.number(optimizer)
        if number is None:
            if id(optimizer) in self.strays:  # a training of its own
                self.changed("crowded")
            self.strays.add(id(optimizer))
            return
        if self.repeated:
            self.passes = {index: [sums[0], None, None] for index, sums in self.passes.items()}
        if number == self.marks:
            self.begin(optimizer, number)
        else:
            self.compare(optimizer, number)
        passes = ",".join("[%d,%d,%s,%s]" % (k, *as_json(v)) for k, v in self.passes.items())
        evals = [[k[0], *v[:2], *k[1:3], v[2], k[3]] for k, v in self.evals.items()]
        more = ',"eval":' + json.dumps(evals) if evals else ""
        if self.begun:
            more += ',"begun_ns":%d' % self.begun
        if self.clock is not None:
            self.record()
        if self.steps == 1 and number == 0:
            more += self.counted()
        line = ',"optimizer":%d,"backwards":%d,"passes":[%s]' % (number, self.backwards, passes)
        self.file.step(monotonic_ns(), line + more)
        if number == 0:
            self.learn(optimizer, line)
        self.clear()
        self.marks += 1
        self.steps += number == 0
        self.plan = None if self.observed or self.unpaired else self.usual
        if self.plan is not None:
            self.plan.passed = 0
        if self.marks == 1:
            self.prepare()

    def begin(self, optimizer, number):
        """Write the facts of a new optimizer; open the file for the first one."""
        passing, autocast = self.passing(), main_cast(self.casts)
        roots = trained_by(optimizer, passing)
        self.states[number] = Trained(roots, passing, autocast)
        self.fresh = number
        found = facts(optimizer, roots, autocast)
        self.scaled |= bool(found["gradient_scaler"])
        if self.file is None:
            self.file, self.facts, self.roots = LineFile(new_file(self.folder)), found, len(roots)
            if self.unseen:
                self.file.write('{"captured":true}')
        self.file.write(json.dumps({"facts": found, "optimizer": number}))
        if self.clock is None and found["device_type"] == "cuda":
            self.clock = DeviceClock(optimizer.param_groups[0]["params"][0].device)

    def passing(self):
        """Return the models that have passed in this step."""
        models = [
            each() for each, rules in list(self.models.values()) if rules is not None and rules.index in self.passes
        ]
        return [each for each in models if each is not None]

    @property
    def observed(self):
        """Whether a step that is looked at in full is compared with the first ones."""
        return self.marks - self.fresh < ALIKE or self.marks % FULL == 0

    def compare(self, optimizer, number):
        """Write what is not as it was at the first steps of an optimizer: what is trained, how, and with how much work."""
        state = self.states[number]
        roots, models = [each() for each in state.roots], [each() for each in state.models]
        for module in self.passing():
            if not any(module is each for each in models):
                state.models.append(ref(module))
                if owns_another(optimizer, module, [each for each in roots if each is not None]):
                    self.changed("trainable")
        if not self.observed or None in roots or not self.passes:
            return
        if main_cast(self.casts) != state.autocast:
            self.changed("precision")
        calls = sum(sums[0] for sums in self.passes.values())
        if self.work is not None and calls_of(self.casts) * self.work[1] != self.work[0] * calls:
            self.changed("varied")
        if state.steps in (0, 2, ALIKE - 2) or self.marks % (STATES * FULL) == 0:
            before, state.state = state.state, current(optimizer, roots)
            for place, event in enumerate(("trainable", "varied", "precision") if before is not None else ()):
                if before[place] != state.state[place]:
                    self.changed(event)
        state.steps += 1

    def changed(self, event):
        """Write once that a fact is not that of all steps."""
        if event not in self.events:
            self.events.add(event)
            self.file.write('{"%s":true}' % event)

    def record(self):
        """Record an event of the device for this step, and write what it has ended as often as lines are written."""
        self.clock.record(self.marks)
        if monotonic_ns() >= self.file.due:
            self.reached()

    def reached(self):
        """Write when the device ended steps since the last call."""
        if self.clock is not None and (times := self.clock.ended()):
            self.file.write('{"device_ns":[%s]}' % times)

    def finish(self):
        """Write the times of the last steps at the end of the process, and whether the same parameters were trained."""
        roots = [each() for each in self.states[0].roots] if len(self.states) == 1 else [None]
        before = self.states[0].state if None not in roots else None
        if before is not None:
            after = current(None, roots)
            ends = ("trainable",) * (before[0][:2] != after[0][:2]) + ("precision",) * (before[2][0] != after[2][0])
            for event in ends:
                self.changed(event)
        if self.file is not None:
            self.reached()
            self.file.close()

    def saved(self, start, end):
        """Write that a checkpoint was saved."""
        if self.file is not None and end - start >= SAVE_NS and threading.get_ident() == self.thread:
            self.file.write('{"phase":"checkpoint","start_ns":%d,"end_ns":%d}' % (start, end))

    def prepare(self):
        """Count the FLOP of the second step, where that changes nothing: not compiled, not sharded, one model."""
        if not self.captured and self.roots == 1 and countable(self.facts):
            self.counter = flop_counter()

    def counted(self):
        """Return as JSON the FLOP of a step, if they are sure, and those of its products by data type."""
        counter, self.counter = self.counter, None
        sums, shapes, self.shapes = list(self.passes.values()), self.shapes, set()
        if self.facts["compiled"] is False and is_compiled(()):  # since the first step: what is compiled is not counted
            self.changed("compiled")
            return ""
        for _, rules in list(self.models.values()) if counter is not None and counter.attends else ():
            if rules is not None and rules.index in self.passes:
                rules.sequence = True
        if counter is None or self.captured or not counter.products or graph_task() != -1:  # a step inside a backward
            return ""
        products = ',"products":' + json.dumps(counter.products)
        if counter.uncounted or len(sums) != 1 or len(shapes) != 1:
            return products
        calls, samples, tokens = sums[0]
        rows = tokens or samples
        # Kernels that torch does not see leave matrices without their products: each row takes 2 FLOP a weight.
        if calls != self.backwards or not rows or counter.forward < 2 * self.facts["weights"] * rows:
            return products
        if counter.backward > 1.02 * counter.ceiling:  # of products outside of the model, too
            return products
        self.shapes, self.work = shapes, (calls_of(self.casts), calls)
        return products + ',"flops":%d' % (counter.forward + counter.backward)

    def safely(self, function, *values):
        """Call a method; its first error ends the watch, and is noted."""
        try:
            return None if self.broken else function(*values)
        except Exception:
            self.broken = True
        try:
            if self.file is not None:  # it may be what failed: another one is made
                os.close(os.open(self.file.path + ".failed", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
                self.file.close()
        except Exception:
            return None

    def capturing(self):
        """Return whether a CUDA graph is recorded: what is called now is not done now."""
        self.captured |= (now := torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
        return now

    def replayed(self, optimizer):
        """Write that a step is part of a CUDA graph: its replays are not seen."""
        if not self.unseen and self.file is not None:
            self.file.write('{"captured":true}')
        self.unseen = True

    def entered(self, module, args, kwargs):
        """Return the model of a call, and its input in training; None where it is no pass of a model."""
        model = self.model(module)
        if model is None or self.capturing():
            return None
        if self.plan is not None:
            self.settle()
        if not is_grad_enabled():
            return model, None
        if not module.training and not any(each.requires_grad for each in parameters_of(module)):  # a frozen teacher
            return model, None
        self.looking = self.observed
        if self.looking:
            self.look(module)
        self.forms.add(form(args, kwargs))
        self.module = ref(module)
        samples, tokens, tensor, named = amounts(model, args, kwargs)
        rows = () if tensor is None else tensor.shape[:1]
        shape = tuple(each.shape[each.shape[:1] == rows :] for _, each in named)  # without the batch
        if self.continues(model, named):
            samples = tokens = None
        return model, (samples, tokens, tensor, shape)

    def call(self, call, module, args, kwargs):
        """Call a module from outside of all modules."""
        plan = self.plan
        if plan is not None and plan.fits(self, module, args, kwargs):
            plan.passed += 1
            self.begun = self.begun or monotonic_ns()
            self.inside = True
            try:
                out = call(module, *args, **kwargs)
            except BaseException:  # no pass, as the script may try again
                plan.passed -= 1
                self.inputs.pop(plan.index, None)
                raise
            finally:
                self.inside = False
            if plan.loops:
                self.safely(self.returned, plan, out)
            return out
        if graph_task() != -1 or is_tracing():  # a checkpoint calls its modules again in autograd; a trace is no pass
            return call(module, *args, **kwargs)
        other = self.thread not in (None, threading.get_ident())  # such as an actor's: no part of a step
        entry = None if other else self.safely(self.entered, module, args, kwargs)
        if entry is None:
            return call(module, *args, **kwargs)
        model, consumed = entry
        start = monotonic_ns()
        self.inside = True
        try:
            if consumed is None or self.counter is None:
                out = call(module, *args, **kwargs)
            else:
                with self.counter:
                    out = call(module, *args, **kwargs)
        finally:
            self.inside = self.looking = False
        if consumed is None:
            self.safely(self.evaluated, model, not module.training, start, monotonic_ns(), args, kwargs)
        else:
            self.safely(self.passed, model, start, *consumed)
            self.safely(self.returned, model, out)
        return out


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
        if watch.looking:
            watch.safely(watch.look, self)
        compiled = self._compiled_call_impl  # as torch's own does it, which costs a call less
        return self._call_impl(*args, **kwargs) if compiled is None else compiled(*args, **kwargs)

    @wraps(backward)
    def counted_backward(*args, **kwargs):
        if graph_task() != -1:  # of a checkpoint, inside another one
            return backward(*args, **kwargs)
        watch.safely(watch.went_back)
        counter = watch.counter
        if counter is None:
            return backward(*args, **kwargs)
        counter.recomputes = not (kwargs.get("create_graph") or (len(args) > 3 and args[3]))
        try:
            with counter:
                return backward(*args, **kwargs)
        finally:
            counter.recomputes = False

    def stepped(optimizer, args, kwargs):
        if not traced():
            watch.safely(watch.mark, optimizer)

    hide((module_call, counted_backward, stepped, StepWatch.call), StepWatch.safely)
    module_call.__name__, module_call.__qualname__ = call.__name__, "Module.__call__"  # where pickle finds it
    module_call.__module__ = torch.nn.Module.__module__
    register_optimizer_step_post_hook(stepped)
    torch.nn.Module.__call__ = module_call
    torch.autograd.backward = counted_backward
    watched = partial(timed, then=partial(watch.safely, watch.saved))
    torch.save = torch.serialization.save = watched(torch.save)
    os.register_at_fork(after_in_child=watch.reset)
    end = partial(watch.safely, watch.finish)
    os._exit = FlushedExit(os._exit, end)  # without `atexit`, as forked processes end
    atexit.register(end)
    return watched
