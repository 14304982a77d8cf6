"""Precision, memory, attention, graphs and optimizers: they do what their names say, and refuse what they cannot."""

import copy
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from bench import registry
from bench.strategies import attention, graph, memory, precision, schedule
from bench.strategies.parts import Parallelism, Parts, Precision, Unsupported
from bench.workloads.base import Workload
from bench.workloads.decoder_lm import DecoderLM
from tests import tiny
from tests.commands import execute
from tests.processes import records
from tests.stores import empty_store
from tests.tiny import batch, strategy

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CPU = torch.device("cpu")
SMALL = {"layers": 3, "hidden": 64, "heads": 2, "sequence_length": 16}


spec, parts = partial(tiny.spec, args=SMALL), partial(tiny.parts, args=SMALL)


def gradients(made: Parts) -> tuple[float, dict[str, torch.Tensor]]:
    with made.precision.context():
        loss = made.loss(made.model, batch(made))
    made.precision.backward(loss)
    return loss.item(), {name: p.grad for name, p in made.model.named_parameters()}


def saved_bytes(made: Parts) -> int:
    """Bytes of what is held between the forward and the backward pass, weights left out."""
    seen: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not memory.is_weight(tensor):
            kept.append(tensor)
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made.loss(made.model, batch(made))
    return sum(seen.values())


CHANGES: dict[str, Callable[[Parts], None]] = {
    "recompute": memory.recompute,
    "selective": strategy("memory", "selective"),
    "selective products": lambda made: memory.selective(made, every=1, policy="save_products"),
    "offload": lambda made: memory.put_around(made.blocks, memory.through_host),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_memory_changes_neither_loss_nor_gradients_nor_names(
    change: Callable[[Parts], None], dtype: torch.dtype | None
) -> None:
    precise = Precision(("cpu", dtype) if dtype else None)
    plain, changed = parts(precise=precise), parts(precise=precise)
    change(changed)
    (loss, wanted), (again, found) = gradients(plain), gradients(changed)
    assert loss == again
    assert list(wanted) == list(found)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert list(plain.model.state_dict()) == list(changed.model.state_dict())
    assert changed.blocks == list(changed.model.transformer.h)


def test_memory_is_saved_in_the_order_of_the_work_that_is_done_again() -> None:
    held = {}
    for name in ("none", "selective", "recompute"):
        made = parts()
        if name in CHANGES:
            CHANGES[name](made)
        held[name] = saved_bytes(made)
    assert held["none"] > held["selective"] > held["recompute"]
    assert held["recompute"] < held["none"] / 4


def test_recomputation_is_of_a_copy_of_a_model_too() -> None:
    made = parts()
    memory.recompute(made)
    copied = copy.deepcopy(made.model)
    with torch.no_grad():
        for p in made.model.parameters():
            p.zero_()
    made.workload.loss(copied, batch(made)).backward()
    assert all(p.grad is not None for p in copied.parameters())
    assert all(p.grad is None for p in made.model.parameters())


def test_dropout_is_the_same_when_it_is_computed_again() -> None:
    made = parts()
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    plain = copy.deepcopy(made.model)
    memory.recompute(made)
    for model in (plain, made.model):
        torch.manual_seed(1)
        made.workload.loss(model.train(), batch(made)).backward()
    for p, q in zip(plain.parameters(), made.model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_offload_moves_activations_and_leaves_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    moved = []

    def watch(tensor: torch.Tensor) -> Any:
        packed = memory._to_host(tensor, pinned=False)
        moved.append((tuple(tensor.shape), isinstance(packed, tuple)))
        return packed

    with torch.autograd.graph.saved_tensors_hooks(watch, memory._to_device):
        x = torch.ones(2, 3, requires_grad=True) * 2
        out = torch.nn.functional.linear(x, weight)
        with torch.autocast("cpu", torch.bfloat16):
            out = torch.nn.functional.linear(out, weight)
    out.sum().backward()
    assert {shape for shape, away in moved if not away} == {(3, 3)}
    assert {shape for shape, away in moved if away} == {(2, 3)}


class Flat(Workload):
    """A model without repeated layers and without attention."""

    def __init__(self) -> None:
        self.train = DecoderLM(SMALL).train

    def build(self) -> torch.nn.Module:
        return torch.nn.Linear(17, 1)

    def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return model(batch[0].float()).mean()


def refused(what: Callable[[], Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        what()


def test_memory_refuses_what_makes_no_sense() -> None:
    flat = Flat()
    flat_parts = Parts(spec(memory="recompute"), CPU, flat, flat.build(), Precision())
    refused(lambda: memory.recompute(flat_parts), "works on repeated layers")
    refused(lambda: strategy("memory", "selective", every=4)(parts(memory="selective")), "has too few")


def test_bf16_params_stores_and_computes_in_16_bits() -> None:
    precise = precision.bf16_params(CPU)
    made = parts(precise=precise)
    single = copy.deepcopy(made.model)
    precise.convert(made)
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    loss, found = gradients(made)
    assert {g.dtype for g in found.values()} == {torch.bfloat16}
    assert loss == pytest.approx(made.workload.loss(single, batch(made)).item(), abs=0.05)
    assert precise.compute_dtype == precise.matmul_dtype == torch.bfloat16
    held = strategy("optimizer", "adamw")(made.model.parameters())
    held.step()
    states = [state for each in held.state.values() for name, state in each.items() if name != "step"]
    assert {state.dtype for state in states} == {torch.bfloat16}


def test_fp8_turns_the_layers_of_the_blocks_and_keeps_the_names_and_shapes_of_the_state() -> None:
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear

    made = parts()
    before = copy.deepcopy(made.model)
    precision.linear_to_fp8(made, Float8LinearConfig(emulate=True))
    turned = [name for name, module in made.model.named_modules() if isinstance(module, Float8Linear)]
    assert len(turned) == made.notes["fp8_layers"] == 4 * 3
    assert all(".h." in name for name in turned)
    old, new = before.state_dict(), made.model.state_dict()
    assert list(old) == list(new)
    assert all(torch.equal(old[name], new[name]) for name in old)
    loss, found = gradients(made)
    assert loss == pytest.approx(made.workload.loss(before, batch(made)).item(), abs=0.02)
    assert loss != made.workload.loss(before, batch(made)).item()
    assert all(grad is not None for grad in found.values())
    assert {p.shape for p in made.blocks[0].attn.c_attn.parameters()} == {(192, 64), (192,)}
    made.model.load_state_dict({name: torch.ones_like(tensor) for name, tensor in old.items()})
    assert all(bool((p == 1).all()) for p in made.model.parameters())


def test_fp8_needs_layers_of_fitting_sizes() -> None:
    odd = parts(args={"layers": 1, "hidden": 12, "heads": 1, "sequence_length": 16})
    refused(lambda: precision.linear_to_fp8(odd, None), "multiples of 16")


def test_the_probe_multiplies_8_bit_floats() -> None:
    from bench.train.probes import _product

    a, b = (torch.randn(32, 32).to(torch.float8_e4m3fn) for _ in range(2))
    product = _product(a, b)()
    assert product.dtype == torch.bfloat16
    # b is transposed: its columns must lie in memory one after the other
    assert torch.allclose(product.float(), a.float() @ b.float().t(), rtol=0.02, atol=0.1)


@pytest.fixture
def kernels() -> Iterator[None]:
    yield
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cuda.enable_math_sdp(True)


def operations(made: Parts) -> set[str]:
    from torch.profiler import profile

    with profile() as profiler:
        made.loss(made.model, batch(made)).backward()
    return {event.name for event in profiler.events()}


@pytest.mark.usefixtures("kernels")
def test_the_kernel_of_the_attention_is_the_one_asked_for() -> None:
    made = parts()
    attention.math(made)
    assert not any("flash" in name for name in operations(made))
    attention.flash(made)
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in operations(made)


@pytest.mark.usefixtures("kernels")
def test_attention_that_this_device_cannot_do_is_refused() -> None:
    for name in ("efficient", "cudnn"):
        change = registry.load("attention", name)
        refused(
            lambda change=change: change(parts()), f"attention {name} does not support this model in float32 on a CPU"
        )
    assert torch.backends.cuda.flash_sdp_enabled()
    flat = Flat()
    made = Parts(spec(), CPU, flat, flat.build(), Precision())
    refused(lambda: attention.flash(made), "has no dot product attention")


OPTIMIZERS = ("sgd", "adagrad", "adam", "adamw")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_implementations_of_an_optimizer_agree(name: str) -> None:
    results = {}
    for kind in ("auto", "fused", "foreach", "loop"):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(7, 5))
        made = strategy("optimizer", name, learning_rate=0.01, weight_decay=0.1, implementation=kind)([weight])
        for _ in range(3):
            weight.grad = torch.cos(weight.detach())
            made.step()
        results[kind] = weight.detach()
        assert bool(made.defaults["fused"]) is (kind in ("auto", "fused"))
        assert bool(made.defaults["foreach"]) is (kind == "foreach")
    for kind, weight in results.items():
        assert torch.allclose(weight, results["loop"], atol=1e-6), kind


def test_optimizers_are_those_of_their_papers() -> None:
    def after(name: str, **options: Any) -> float:
        weight = torch.nn.Parameter(torch.tensor([1.0]))
        made = strategy("optimizer", name, learning_rate=0.1, **options)([weight])
        for _ in range(2):
            weight.grad = torch.tensor([2.0])
            made.step()
        return weight.item()

    assert after("sgd", momentum=0.0) == pytest.approx(1 - 0.2 - 0.2)
    assert after("sgd", momentum=0.9) == pytest.approx(1 - 0.2 - 0.1 * 3.8)
    assert after("sgd", momentum=0.9, nesterov=True) == pytest.approx(1 - 0.1 * 3.8 - 0.1 * (2 + 0.9 * 3.8))
    assert after("sgd", momentum=0.0, weight_decay=0.5) == pytest.approx((1 - 0.25) - 0.1 * (2 + 0.375))
    assert after("adam") == pytest.approx(0.8, abs=1e-4)
    assert after("adamw", weight_decay=0.5) == pytest.approx((0.95 - 0.1) * 0.95 - 0.1, abs=1e-4)
    assert after("adagrad") == pytest.approx(1 - 0.1 - 0.1 * 2 / 8**0.5, abs=1e-5)


def test_a_kernel_that_torch_lacks_is_refused() -> None:
    weight = [torch.nn.Parameter(torch.ones(1, device="meta"))]
    refused(lambda: strategy("optimizer", "adam", implementation="fused")(weight), "fused")


class Whole(Parallelism):
    """One process without a process group."""

    def __init__(self, made: Parts) -> None:
        self.parts = made
        self.module = torch.nn.Module()
        self.asked: dict[str, Any] = {}

    def compile(self, **options: Any) -> None:
        self.asked = options


def test_compile_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(graph, "needs_compilers", lambda device: None)
    store = tmp_path / "execution" / "run" / ".scratch" / "store"
    store.parent.mkdir(parents=True)
    monkeypatch.setenv("WATTBENCH_STORE", str(store))
    for name, options, wanted, folder in (
        ("default", {}, {"dynamic": False, "fullgraph": False}, "execution/.compiled"),
        ("default", {"dynamic": True, "cold": True}, {"dynamic": True}, "execution/run/.scratch/compiled"),
        ("max-autotune", {"fullgraph": True}, {"mode": "max-autotune-no-cudagraphs", "fullgraph": True}, None),
    ):
        made = Whole(parts(compile=name))
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        strategy("compile", name, **options)(made.parts, made)
        assert made.asked.items() >= wanted.items()
        if folder:
            assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / folder)
            assert (tmp_path / folder).is_dir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/of/the/user")
    strategy("compile", "default")(made.parts, made)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/of/the/user"


def test_compile_is_refused_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    made = parts(compile="default")
    refused(lambda: strategy("compile", "default")(made, Whole(made)), "install g")


def rates(name: str, steps: int, **options: Any) -> list[float]:
    weight = torch.nn.Parameter(torch.ones(1))
    held = torch.optim.SGD([weight], lr=2.0)
    made = strategy("schedule", name, **options)(held, steps)
    out = []
    for _ in range(steps + 2):
        out.append(held.param_groups[0]["lr"])
        held.step()
        made.step()
    return out


def test_schedules_at_their_begin_their_warm_up_and_their_end() -> None:
    assert rates("constant", 5) == [2.0] * 7
    assert rates("constant", 10, warmup=0.4)[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    linear = rates("linear", 10, warmup=0.2, final=0.5)
    assert linear[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])
    assert linear[6] == pytest.approx(2 * 0.75)
    assert linear[10:] == pytest.approx([1.0, 1.0])
    cosine = rates("cosine", 10, warmup=0.0, final=0.1)
    assert (cosine[0], cosine[5], cosine[10], cosine[11]) == pytest.approx((2.0, 1.1, 0.2, 0.2))
    assert cosine == sorted(cosine, reverse=True)
    steps = rates("step", 9, factor=0.1, stages=3)
    assert steps[:9] == pytest.approx([2.0] * 3 + [0.2] * 3 + [0.02] * 3)
    assert steps[9:] == pytest.approx([0.02] * 2)
    assert schedule.cosine is registry.load("schedule", "cosine")


SUITE = """
name: strategies
idle_seconds: 0
defaults:
  workload: decoder_lm
  workload_args: {preset: tiny}
  device_type: cpu
  batch_size_per_device: 2
  warmup_seconds: 0
  measure_steps: 4
  validation.samples: 0
  meters: []
include:
  - {}
  - {memory: recompute, attention: math, devices: 2}
  - {precision: bf16_params, optimizer: {name: sgd, learning_rate: 0.01, nesterov: true}}
  - {memory: offload}
  - {compile: cuda_graphs}
  - {batch_size_per_device: max, memory_limit_bytes: 150000000, batch_size_cap: 64, devices: 2}
  - {batch_size_per_device: max, memory_limit_bytes: 2000000}
"""


@pytest.mark.slow
def test_strategies_in_runs(tmp_path: Any) -> None:
    from bench.figures.metrics import row
    from bench.record import Status

    (tmp_path / "suite.yaml").write_text(SUITE)
    empty_store(tmp_path)
    done = execute(tmp_path, "run", "suite.yaml")
    by_order = sorted(records(tmp_path).values(), key=lambda record: record.started_at)
    assert len(by_order) == 7, done.stderr
    offload, graphs, plain, recompute, stored, largest, none = by_order  # what is skipped is recorded before the runs
    for record in (plain, recompute, stored, largest):
        assert record.status is Status.OK, record.error
        assert record.measurement is not None
        assert record.measurement.memory_estimated_bytes is not None
        assert record.measurement.compile_seconds is None
    assert plain.measurement is not None
    assert recompute.measurement is not None
    assert plain.measurement.loss_first == pytest.approx(recompute.measurement.loss_first, abs=0.1)
    assert recompute.measurement.memory_estimated_bytes < plain.measurement.memory_estimated_bytes
    assert (offload.status, graphs.status) == (Status.SKIPPED, Status.SKIPPED)
    assert largest.measurement is not None
    found = largest.measurement.batch_size_per_device
    assert found is not None
    assert 2 <= found <= 64
    assert largest.measurement.samples == 4 * 2 * found
    flat = row(largest)
    assert (flat["batch_size_per_device"], flat["global_batch_size"]) == (found, 2 * found)
    phases = [phase.name for phase in largest.measurement.phases]
    assert phases[:5] == ["launch", "start", "find_batch", "build", "warmup"]
    assert flat["startup_seconds"] >= flat["phase_find_batch_seconds"]
    assert none.status is Status.OUT_OF_MEMORY
    assert none.error is not None
    assert "a batch of 1 needs" in none.error.message
