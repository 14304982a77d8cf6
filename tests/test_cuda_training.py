"""What a training does on GPUs, where the fault or its remedy shows on a CPU too."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from bench.schema import RunSpec

torch = pytest.importorskip("torch")

from bench.strategies import attention, catalog, graph  # noqa: E402
from bench.strategies.optimizer import allocate_state  # noqa: E402
from bench.strategies.parts import Unsupported  # noqa: E402
from bench.train import batch_size, inference  # noqa: E402
from bench.train.batch_size import line, static_bytes  # noqa: E402
from bench.train.trainer import build  # noqa: E402
from tests import tiny  # noqa: E402

CPU = torch.device("cpu")
SMALL = {"layers": 2, "hidden": 32, "heads": 2, "sequence_length": 16}
MB = 1_000_000
pytestmark = [
    pytest.mark.usefixtures("one_rank"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def spec(**fields: Any) -> RunSpec:
    base = {"workload": "decoder_lm", "workload_args": SMALL, "device_type": "cpu", "batch_size_per_device": 2}
    return RunSpec.model_validate(base | {"parallelism": "single", "measure_steps": 4} | fields)


# --- the largest batch


def test_one_size_does_not_allow_the_largest_batch() -> None:
    """Without samples a step needs 60 MB, with one 100 MB: at most 40 MB a sample."""
    assert line([(0, 60 * MB), (1, 100 * MB)], 300 * MB, 1024) == 6
    assert line([(0, 60 * MB), (1, 61 * MB)], 100 * MB, 1024) == 10  # growth below what can be seen may be that much
    assert line([(0, 60 * MB), (1, 100 * MB), (2, 110 * MB)], 300 * MB, 1024) == 21


def test_a_slow_model_is_tried_with_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    step = batch_size._Trials.step
    monkeypatch.setattr(batch_size._Trials, "step", lambda self, size: made.append(size) or step(self, size))
    monkeypatch.setattr(batch_size, "TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(batch_size, "peak_memory", lambda device, before: (10 + 5 * made[-1]) * MB)
    asked = spec(batch_size_per_device="max", memory_limit_bytes=260 * MB)
    size, notes = batch_size.find_batch(asked, CPU, None)
    assert (size, notes["batch_found_by"], set(made)) == (50, "line", {1, 2})


def test_a_gpu_is_filled_to_a_share_of_what_a_rank_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, limits = torch.device("cuda", 0), []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70_000 * MB, 80_000 * MB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5_000 * MB)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: limits.append(share))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("Properties", (), {"total_memory": 80_000 * MB})
    )
    assert batch_size._limit(spec(), gpu) == pytest.approx(0.92 * 75_000 * MB)
    assert batch_size._limit(spec(memory_limit_bytes=40_000 * MB), gpu) == pytest.approx(0.92 * 40_000 * MB)
    batch_size.limit_memory(40_000 * MB, gpu)
    batch_size.limit_memory(None, gpu)
    assert limits == [0.5, 1.0]


@pytest.mark.parametrize("parallelism", ["single", "zero1"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adagrad"])
def test_the_state_of_an_optimizer_is_allocated_without_a_trace_in_the_training(
    optimizer: str, parallelism: str
) -> None:
    asked = spec(optimizer=optimizer, parallelism=parallelism)
    plain, early = build(asked, CPU, None), build(asked, CPU, None)
    trained = sum(p.nbytes for p in early.parts.model.parameters())
    assert static_bytes(early) < 3 * trained or optimizer != "adamw"
    allocate_state(early.optimizer)
    assert static_bytes(early) >= {"adamw": 4, "sgd": 3, "adagrad": 3}[optimizer] * trained
    for trainer in (plain, early):
        for _ in range(3):
            trainer.step()
    for before, after in zip(plain.parts.model.parameters(), early.parts.model.parameters(), strict=True):
        assert torch.equal(before, after)


# --- strategies


class Packed(torch.Tensor):  # type: ignore[misc]
    """A weight that can only be multiplied, as the 4-bit one of torchao."""

    @staticmethod
    def __new__(cls, dense: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, dense.shape, dtype=dense.dtype)

    def __init__(self, dense: Any) -> None:
        self.dense = dense

    def __tensor_flatten__(self) -> Any:
        return ["dense"], None

    __tensor_unflatten__ = None

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.linear:
            return function(args[0], args[1].dense)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return Packed(args[0].dense)
        raise NotImplementedError(f"no {function} of a packed weight")


def test_zeros_are_counted_in_weights_that_can_only_be_multiplied() -> None:
    dense = torch.arange(12.0).reshape(3, 4) % 3
    model = torch.nn.Linear(4, 3)
    model.weight = torch.nn.Parameter(Packed(dense), requires_grad=False)
    assert inference.zeros_share(model) == pytest.approx(4 / 12)


@pytest.mark.parametrize("parallelism", ["single", "ddp", "zero1"])
def test_a_graph_is_captured_before_gradients_are_exchanged(parallelism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda module, sample: captured.append(module))
    trainer = build(spec(parallelism=parallelism, compile="cuda_graphs", device_type="gpu"), CPU, None)
    (module,) = captured
    assert not isinstance(module, torch.nn.parallel.DistributedDataParallel)
    wrapped = trainer.parallel.module
    assert (wrapped if parallelism == "single" else wrapped.module) is module
    trainer.step()


def test_max_autotune_compiles_the_step_of_ddp_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's DDPOptimizer fails on it; it splits what is compiled at the buckets of ddp."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(graph, "_prepare", lambda parts, cold: None)
    parallel: Any = SimpleNamespace(compile=lambda **options: asked.update(options))
    parts = tiny.parts()
    parts.device = torch.device("cuda", 0)
    strategy = tiny.strategy("compile", "max-autotune")
    with torch._dynamo.config.patch(optimize_ddp=True):
        strategy(parts, parallel)
        assert (asked["mode"], torch._dynamo.config.optimize_ddp) == ("max-autotune", False)


def test_sharded_weights_travel_in_the_type_of_the_layers_unless_it_is_declined() -> None:
    from bench.suites.combine import why_impossible

    def gathered(**fields: Any) -> set[Any]:
        trainer, seen = build(spec(devices_per_node=1, **fields), CPU, None), set()
        layer = trainer.parts.blocks[0].mlp.c_fc
        layer.register_forward_pre_hook(lambda module, args: seen.add(module.weight.dtype))
        trainer.step()
        assert {p.dtype for p in trainer.parts.model.parameters()} == {torch.float32}
        return seen

    assert gathered(parallelism="fsdp2", precision="bf16") == {torch.bfloat16}
    assert gathered(parallelism={"name": "fsdp2", "mixed": False}, precision="bf16") == {torch.float32}
    assert gathered(parallelism="fsdp2", precision="fp32") == {torch.float32}
    assert why_impossible(spec(parallelism="fsdp2", precision="fp32", devices_per_node=2)) is None


HEADINGS = ("Memory efficient", "Flash attention", "CuDNN attention")


@pytest.mark.parametrize(("name", "reason"), [("flash", "too old"), ("efficient", "no mask"), ("cudnn", "off")])
def test_an_attention_is_refused_for_its_own_reason(name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        for heading, why in zip(HEADINGS, ("no mask", "too old", "off"), strict=True):
            warnings.warn(f"{heading} kernel not used because: (Triggered internally at x)", UserWarning, stacklevel=1)
            warnings.warn(f"{why} (Triggered internally at y)", UserWarning, stacklevel=1)
        raise RuntimeError("No available kernel. Aborting execution.")

    parts = tiny.parts()
    monkeypatch.setattr(attention, "first_call", lambda parts: ((torch.ones(1, 1, 2, 2),) * 3, {}))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    with pytest.raises(Unsupported, match=f"attention {name} does not support .*: {reason}$"):
        attention._force(parts, name)


def test_an_unknown_recipe_of_fp8_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="recipe must be tensorwise, rowwise or rowwise_with_gw_hp, not 'x'"):
        catalog.options("precision", spec(precision={"name": "fp8", "recipe": "x"}).precision)
