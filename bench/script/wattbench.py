"""Report the steps of a training to wattbench: `import wattbench`, then `wattbench.step(samples=32)` after each step.

It does nothing unless wattbench runs the script (`bench measure`, or the workload `command` of a suite). It needs only
Python, so a script can also carry a copy of this file. Callbacks for Trainer, Lightning, accelerate and Keras are made when
first used. Lines go to the file that WATTBENCH_STEPS names: {"t_ns": CLOCK_MONOTONIC in nanoseconds, "rank": 0, "pid": 1234,
"samples": 32, "tokens": 4096, "loss": 2.3, "number": 7, "own": {"accuracy": 0.9}} at the end of a step, {"t_ns", "rank",
"pid", "phase": "eval", "begin": true} at the begin of a phase, and the same with false at its end. "restart": 1 is in the
lines of processes that torchrun has started again.
"""

from __future__ import annotations

import atexit
import functools
import json
import numbers
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

VARIABLE = "WATTBENCH_STEPS"
_reporter = ""
_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "LOCAL_RANK")


def step(*, samples: int | None = None, tokens: int | None = None, loss: float | None = None, **own: float) -> None:
    """Report the end of a step of the optimizer, and what this process consumed in it.

    Call it once a step in every process. `own` are metrics of your own, as numbers, but for `number`: that of the step in the
    whole training, which tells after a restart which steps are repeated. Making a number of a tensor on a GPU waits for the
    GPU; nothing here does. On a GPU the host runs ahead of the device.
    """
    if _reports("step"):
        number = _number("number", own.pop("number", None), _whole)
        _append(**_mark(samples, tokens, loss, own), number=number)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark time that is no training, `eval` or `checkpoint`: a context. It is measured apart, and is not in the steps."""
    _append(phase=name, begin=True)
    try:
        yield
    finally:
        _append(phase=name, begin=False)


def _reports(name: str) -> bool:
    """Return whether wattbench runs, and `name` is the first that reports steps: those of a second are not counted again."""
    global _reporter
    if not os.environ.get(VARIABLE):
        return False
    _reporter = _reporter or name
    if _reporter != name:
        with suppress(Exception):  # a warning may be an error here
            warnings.warn(f"{_reporter} reports steps to wattbench already; those of {name} do not count", stacklevel=3)
    return _reporter == name


def _mark(samples: Any, tokens: Any, loss: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Return the line of a step that ends now."""
    metrics = {name: _number(name, value, float) for name, value in own.items()}
    return {
        "t_ns": time.monotonic_ns(),
        "samples": _number("samples", samples, _whole),
        "tokens": _number("tokens", tokens, _whole),
        "loss": _number("loss", loss, float),
        "own": {name: value for name, value in metrics.items() if value is not None} or None,
    }


def _number(name: str, value: Any, kind: Any) -> Any:
    """Return a value as a number; None, with a warning, where it is none: a report must not end a training."""
    if value is None:
        return None
    try:
        number = kind(value)
        float(number)  # a whole number may be too large for one
        return number
    except (TypeError, ValueError, OverflowError, RuntimeError):
        with suppress(Exception):  # a warning may be an error here, and a number too long to be shown
            kind = "whole number" if kind is _whole else "number"
            warnings.warn(f"{name}={value!r} is no {kind}: it is not reported to wattbench", stacklevel=4)
        return None


def _whole(value: Any) -> int:
    """Return a count; raises ValueError where it is a fraction, of which the rest would be lost."""
    count = int(value)
    if count != float(value):
        raise ValueError
    return count


def _append(**line: Any) -> None:
    path = os.environ.get(VARIABLE)
    if not path:
        return
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    restarts = int(restart) if restart.isdecimal() and int(restart) else None
    line = {"t_ns": time.monotonic_ns(), "rank": _rank(), "pid": os.getpid(), "restart": restarts, **line}
    text = json.dumps({k: v for k, v in line.items() if v is not None}, default=str) + "\n"
    if _on_another_host():  # its clock is another one: it only tells that it is there
        name = f"seen-{os.uname().nodename.replace('/', '_')}-{os.getpid()}.elsewhere"
        path, text = str(Path(path).with_name(name)), ""
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)
    except OSError:
        return  # a full disk must not end a training


@functools.lru_cache
def _on_another_host() -> bool:
    """Whether this process runs on another machine than `bench`, by its boot: containers have names of their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return False
    return os.environ.get("WATTBENCH_BOOT", boot) not in ("", boot)


def _rank() -> int:
    """Return the rank of this process: that of torch.distributed where it runs, else that of the launcher's variables."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    return next((int(os.environ[name]) for name in _RANKS if os.environ.get(name, "").isdecimal()), 0)


class _Steps:
    """The steps of a framework. The newest is kept until the next begins, since its loss is known only after its end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._newest: dict[str, Any] = {}
        self._planned: dict[str, Any] = {}
        self._paused = False
        atexit.register(self.write)

    def plan(self, last: Any, epoch_steps: Any, earlier_steps: int = 0) -> None:
        """Keep the number of the `last` step that the framework plans, and how many an epoch has.

        A training that is resumed has made `earlier_steps`. The first step of the training reports all that. It may be one
        training of several in a script, so its length is assumed to be that of all.
        """
        left = last - earlier_steps if isinstance(last, (int, float)) else None
        counts = {"steps": left, "epoch_steps": epoch_steps, "earlier_steps": earlier_steps}
        plan = {name: int(n) for name, n in counts.items() if isinstance(n, (int, float)) and 0 < n < float("inf")}
        self._planned = {**plan, "source": self._name, "assumed": True} if plan else {}

    def end(self, samples: int | None = None, tokens: int | None = None, number: int | None = None) -> None:
        self.write()
        if _reports(self._name):
            if self._planned:
                _append(phase="training", begin=True, planned=self._planned)
            self._planned = {}
            self._newest = {**_mark(samples, tokens, None, {}), "number": number}

    def note(self, values: dict[str, Any], loss: str = "loss") -> None:
        """Add what the framework logs to the newest step: its loss, and other numbers under their names."""
        logged = {
            name: _number(name, value, float) for name, value in values.items() if isinstance(value, numbers.Real)
        }
        if not self._newest:
            return
        if loss in logged:
            self._newest["loss"] = logged.pop(loss)
        own = {name: value for name, value in logged.items() if value is not None}
        self._newest["own"] = {**(self._newest["own"] or {}), **own} or None

    def write(self) -> None:
        if self._newest:
            _append(**self._newest)
        self._newest = {}

    def pause(self) -> None:
        """Mark the end of a training; the time until the next one in this process is in no step."""
        self.write()
        self._paused = True
        _append(phase="pause", begin=True)

    def resume(self) -> None:
        if self._paused:
            _append(phase="pause", begin=False)
        self._paused = False

    def __reduce__(self) -> Any:
        return _Steps, (self._name,)  # callbacks are sent to other processes before the training


class _Work:
    """Samples and tokens of the batches since the last step; None where those of a batch are not known for certain."""

    def __init__(self) -> None:
        self.batches = 0
        self._samples: int | None = 0
        self._tokens: int | None = 0

    def add(self, samples: int | None, tokens: int | None) -> None:
        self.batches += 1
        self._samples = None if samples is None or self._samples is None else self._samples + samples
        self._tokens = None if tokens is None or self._tokens is None else self._tokens + tokens

    def take(self) -> dict[str, int | None]:
        work = {"samples": self._samples or None, "tokens": self._tokens or None}
        self.__init__()  # type: ignore[misc]
        return work


def _rows(batch: Any) -> int | None:
    """Return the number of samples in a batch: the first dimension of its tensors; None where they differ."""
    sizes = set(_sizes(batch))
    return sizes.pop() if len(sizes) == 1 else None


def _sizes(batch: Any) -> Iterator[int | None]:
    if hasattr(batch, "shape") and hasattr(batch, "dtype"):
        yield int(batch.shape[0]) if len(batch.shape) else None
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _sizes(part)
    elif isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _sizes(part)
    elif batch is not None and not isinstance(batch, (str, int, float)):
        yield None


def _timed(call: Callable[..., Any], name: str, *args: Any, **named: Any) -> Any:
    with phase(name):
        return call(*args, **named)


class _HuggingFace:
    """`Trainer(..., callbacks=[wattbench.HuggingFaceCallback()])`.

    Samples are the rows that the model got in training, tokens those of its 2-D input with padding, or those that Trainer
    counts (`include_num_input_tokens_seen`). They are left out where a row need not be a sample: where there are more
    forward passes than batches or more rows than the batch size, in packed batches without padding, and where several
    processes share a batch (tensor or sequence parallelism).
    """

    def __init__(self) -> None:
        self._steps, self._work = _Steps("HuggingFaceCallback"), _Work()
        self._hook: Any = None
        self._evaluating, self._evaluated_ns = False, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._steps.resume()
        whole, epochs = getattr(state, "max_steps", None), getattr(args, "num_train_epochs", None)
        sure = whole and epochs and epochs % 1 == 0 and args.max_steps <= 0
        each = whole / epochs if sure else None  # type: ignore[operator]
        self._steps.plan(whole, each, getattr(state, "global_step", 0))
        self._work, self._parts, self._seen = _Work(), 0, state.num_input_tokens_seen
        parallel = import_module("accelerate.state").AcceleratorState._shared_state.get("parallelism_config")
        ways = (getattr(parallel, "non_data_parallel_size", 1), getattr(model, "tp_size", None) or 1)
        self._shared = max(ways) > 1
        self._unhook()
        if os.environ.get(VARIABLE):
            count = self._batch(state, model)
            if "torch._dynamo" in sys.modules:
                count = sys.modules["torch"].compiler.disable(count)
            self._hook = model.register_forward_pre_hook(count, with_kwargs=True)

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def _batch(self, state: Any, model: Any) -> Callable[..., None]:
        name = getattr(model, "main_input_name", "input_ids")
        work, packed = self._work, {"position_ids", "seq_idx", "cu_seq_lens_q"}

        def count(module: Any, _: Any, inputs: dict[str, Any]) -> None:
            main = inputs.get(name)
            if not module.training or not sys.modules["torch"].is_grad_enabled():
                return
            if main is None or not len(main.shape):
                work.add(None, None)
                return
            rows = int(main.shape[0])
            most = state.train_batch_size or 0
            several = rows == 1 != most and any(inputs.get(name) is not None for name in packed)
            certain = not several and rows <= most
            text = len(main.shape) == 2 and not main.is_floating_point()
            work.add(rows if certain else None, int(main.numel()) if text else None)

        return count

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._steps.write()
        self._parts = self._evaluated_ns = 0

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._parts += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        batches, work = self._work.batches, self._work.take()
        if self._shared or batches != self._parts + 1:
            work = {}
        if args.include_num_input_tokens_seen not in ("no", False, None) and not self._shared:
            new, self._seen = state.num_input_tokens_seen - self._seen, state.num_input_tokens_seen
            # Trainer counts the tokens of all ranks, so each reports its share; together they are what it counts.
            work["tokens"] = (new + args.process_index) // args.world_size
        self._steps.end(**work, number=getattr(state, "global_step", None))
        self._ahead(control)

    def _ahead(self, control: Any) -> None:
        """Mark the begin of an evaluation or a checkpoint that Trainer is about to make, as it logs before either."""
        if control.should_log:
            return
        if control.should_evaluate:
            self._evaluate()
        elif control.should_save:
            _append(phase="checkpoint", begin=True)

    def _evaluate(self) -> None:
        if not self._evaluating:
            # The first batch of a second evaluation in a row is over when it is first heard of.
            _append(phase="eval", begin=True, t_ns=self._evaluated_ns or time.monotonic_ns())
        self._evaluating = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ahead(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        clocks = ("_runtime", "_per_second", "epoch", "total_flos", "num_input_tokens_seen")
        self._steps.note({name: value for name, value in (logs or {}).items() if not name.endswith(clocks)})
        self._ahead(control)

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self._evaluate()  # nothing says earlier that an evaluation begins which Trainer does not make by itself

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._evaluating:
            self._evaluated_ns = time.monotonic_ns()
            _append(phase="eval", begin=False, t_ns=self._evaluated_ns)
        self._evaluating = False
        if control.should_save or args.save_strategy == "best":
            _append(phase="checkpoint", begin=True)  # a begin without an end counts for nothing

    def on_predict(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_evaluate(args, state, control)

    def on_save(self, *_: Any, **__: Any) -> None:
        _append(phase="checkpoint", begin=False)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._steps.pause()
        self._unhook()


class _Lightning:
    """`Trainer(callbacks=[wattbench.LightningCallback()])`.

    A step is a batch after which `global_step` has grown. Samples are the first dimension of the tensors of a batch, where
    all have the same and it is the batch size of the loader; tokens are the elements of `input_ids`. Functions `samples`
    and `tokens` of a batch say it where these do not hold. Both are left out with tensor parallelism. The loss on a GPU is
    read where Lightning logs.
    """

    def __init__(self, samples: Callable[[Any], int] | None = None, tokens: Callable[[Any], int] | None = None) -> None:
        self._steps, self._work, self._done = _Steps("LightningCallback"), _Work(), 0
        self._samples, self._tokens = samples, tokens

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._steps.resume()
        self._work, self._done = _Work(), trainer.global_step
        if pl_module.automatic_optimization:  # else a batch may make several steps, or none
            with suppress(Exception):  # its accumulation may change from epoch to epoch
                each = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
                self._steps.plan(trainer.estimated_stepping_batches, each, trainer.global_step)
        self._shared = getattr(trainer.strategy, "_tensor_parallel_size", 1) != 1
        if os.environ.get(VARIABLE):
            trainer.save_checkpoint = functools.partial(_timed, trainer.save_checkpoint, "checkpoint")

    def on_train_batch_start(self, *_: Any) -> None:
        self._steps.write()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not os.environ.get(VARIABLE):
            return
        self._work.add(self._samples_of(batch, trainer), self._tokens_of(batch))
        if trainer.global_step == self._done:
            return
        self._done, work = trainer.global_step, self._work.take()
        self._steps.end(**({} if self._shared else work), number=trainer.global_step)
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        logs = trainer.loggers and trainer.global_step % trainer.log_every_n_steps == 0
        if loss is not None and (logs or loss.device.type == "cpu"):
            self._steps.note({"loss": float(loss) * trainer.accumulate_grad_batches})

    def _samples_of(self, batch: Any, trainer: Any) -> int | None:
        if self._samples is not None:
            return int(self._samples(batch))
        rows, most = _rows(batch), getattr(trainer.train_dataloader, "batch_size", None)
        certain = rows == most or (rows is not None and most is not None and rows < most and trainer.is_last_batch)
        return rows if certain else None

    def _tokens_of(self, batch: Any) -> int | None:
        if self._tokens is not None:
            return int(self._tokens(batch))
        try:
            return int(batch["input_ids"].numel())
        except (TypeError, KeyError, IndexError, AttributeError):
            return None

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        _append(phase="eval", begin=True)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._steps.note({name: float(value) for name, value in trainer.callback_metrics.items()}, loss="")
        _append(phase="eval", begin=False)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._steps.pause()
        vars(trainer).pop("save_checkpoint", None)


class _Accelerate:
    """`Accelerator(log_with=wattbench.AccelerateTracker())`, and `accelerator.init_trackers(...)`.

    Steps are those of the first optimizer that makes one. What `accelerator.log` gets is of the step before it: `loss` or
    `train_loss`, and other numbers under their names. accelerate does not know samples; `samples_per_step` and
    `tokens_per_step` say what each step takes in one process, where all take the same.
    """

    name = "wattbench"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, samples_per_step: int | None = None, tokens_per_step: int | None = None) -> None:
        super().__init__()
        self._steps, self._optimizer = _Steps("AccelerateTracker"), None
        self._work = {"samples": samples_per_step, "tokens": tokens_per_step}
        optimizers = import_module("torch.optim.optimizer")
        self._hook = optimizers.register_optimizer_step_post_hook(self._step)  # `start` is for the main process only

    @property
    def tracker(self) -> Any:
        return self

    def _step(self, optimizer: Any, *_: Any) -> None:
        self._optimizer = self._optimizer or optimizer
        if optimizer is self._optimizer:
            self._steps.end(**self._work)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._steps.note(values, loss="loss" if "loss" in values else "train_loss")

    def finish(self) -> None:
        self._steps.write()
        self._hook.remove()


class _Keras:
    """`model.fit(..., callbacks=[wattbench.KerasCallback()])`.

    Samples are known with the torch backend: the first dimension of the arrays of a batch, where all have the same. The
    loss is the mean of an epoch, at its end. With `steps_per_execution` above 1, steps are not counted.
    """

    model: Any  # Keras sets both
    params: Any

    def __init__(self) -> None:
        super().__init__()
        self._steps, self._work = _Steps("KerasCallback"), _Work()
        self._batches, self._counting, self._begun = 0, False, False

    def on_train_begin(self, logs: Any = None) -> None:
        self._restore()
        self._steps.resume()
        self._work = _Work()
        self._several = getattr(self.model.optimizer, "gradient_accumulation_steps", None) or 1
        if not os.environ.get(VARIABLE):
            return
        if (getattr(self.model, "steps_per_execution", 1) or 1) > 1:
            warnings.warn("wattbench counts no steps where steps_per_execution is above 1", stacklevel=2)
            return
        train, self._begun = self.model.train_function, False

        def counted(*data: Any) -> Any:
            self._steps.write()
            out = train(*data)
            self._work.add(_rows(data[0]) if isinstance(data[0], (list, tuple)) and len(data) == 1 else None, None)
            self._batches += 1
            if self._batches % self._several == 0:
                self._steps.end(**self._work.take())
            return out

        counted.__wrapped__ = train  # type: ignore[attr-defined]
        self.model.train_function, self._counting = counted, True
        for name in ("save", "save_weights"):
            setattr(self.model, name, functools.partial(_timed, getattr(self.model, name), "checkpoint"))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        batches = (self.params or {}).get("steps")
        if self._counting and not self._begun and batches:  # fit(initial_epoch=...) begins later
            each, rest = divmod(batches, self._several)
            last, earlier = (batches * epochs // self._several for epochs in (self.params.get("epochs", 0), epoch))
            self._steps.plan(last, None if rest else each, earlier)
        self._begun = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._steps.note(logs or {})

    def on_test_begin(self, logs: Any = None) -> None:
        _append(phase="eval", begin=True)

    def on_test_end(self, logs: Any = None) -> None:
        _append(phase="eval", begin=False)

    def on_train_end(self, logs: Any = None) -> None:
        self._restore()
        self._steps.pause()

    def _restore(self) -> None:
        train = self.model.train_function
        self.model.train_function = getattr(train, "__wrapped__", train) if self._counting else train
        for name in ("save", "save_weights") if self._counting else ():
            delattr(self.model, name)
        self._counting = False


_CLASSES: dict[str, tuple[type, list[str]]] = {
    "HuggingFaceCallback": (_HuggingFace, ["transformers:TrainerCallback"]),
    "LightningCallback": (_Lightning, ["lightning.pytorch:Callback", "pytorch_lightning:Callback"]),
    "AccelerateTracker": (_Accelerate, ["accelerate.tracking:GeneralTracker"]),
    "KerasCallback": (_Keras, ["keras.callbacks:Callback"]),
}
"""What each callback does, and the class of the framework that it is made a subclass of."""


def __getattr__(name: str) -> Any:
    """Make a callback on its first use, so that this module imports no framework."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    behaviour, places = _CLASSES[name]
    imported = [place for place in places if place.partition(":")[0] in sys.modules]
    installed = [place for place in places if find_spec(place.partition(".")[0].partition(":")[0])]
    module, _, base = [*imported, *installed, *places][0].partition(":")
    bases = (behaviour, getattr(import_module(module), base))
    made = type(name, bases, {"__doc__": behaviour.__doc__, "__module__": __name__})
    return globals().setdefault(name, made)
