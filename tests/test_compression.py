"""Pruning, quantization and distillation: what they do to a model, and what is refused."""

import copy
import os
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import registry
from bench.strategies.parts import Precision, Unsupported

torch = pytest.importorskip("torch")
from bench.strategies import pruning  # noqa: E402
from bench.strategies.decoders import replace_conv1d  # noqa: E402
from bench.train import inference  # noqa: E402
from bench.train.inference import model_bytes, zeros_share  # noqa: E402
from tests import tiny, warm  # noqa: E402
from tests.clock import Clock  # noqa: E402
from tests.tiny import saved, strategy  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def served(parts: Any) -> Any:
    """Return a copy of the model in its served form."""
    model = copy.deepcopy(parts.model).eval()
    with torch.no_grad():
        for serve in parts.serve:
            model = serve(model)
    return model


def logits(parts: Any, model: Any) -> Any:
    with torch.no_grad():
        return parts.workload.logits(model, tiny.batch(parts)).float()


# --- pruning


def test_the_mask_of_a_weight_takes_the_least_magnitudes() -> None:
    weight = torch.tensor([[3.0, -1.0, 0.5], [-0.1, 2.0, -4.0]])
    assert pruning.smallest(weight, 0.5).tolist() == [[True, False, False], [False, True, True]]
    assert pruning.smallest(weight, 0.0).all()


def test_sparsity_rises_by_the_cubic_schedule_and_zeros_stay_zero() -> None:
    parts = tiny.parts(pruning="magnitude")
    strategy("pruning", "magnitude", sparsity=0.6, begin=0.2, end=0.8, updates=3)(parts)
    parts.planned_steps = 10  # pruning from step 2 to step 8: updates at 4, 6 and 8
    weight = parts.model.transformer.h[0].mlp.c_fc.weight
    found = []
    for step in range(1, 11):
        tiny.train(parts, 1, first=step)
        found.append(float((weight == 0).float().mean()))
    wanted = [0, 0, 0, *[0.6 * (1 - (2 / 3) ** 3)] * 2, *[0.6 * (1 - (1 / 3) ** 3)] * 2, 0.6, 0.6, 0.6]
    assert found == pytest.approx(wanted, abs=1e-3)
    assert not (parts.model.transformer.wte.weight == 0).any()
    assert 0.3 < zeros_share(parts.model) < 0.6  # embeddings are not pruned
    assert parts.flops_share == 1  # dense kernels multiply zeros like any other number


def test_pruning_once_happens_at_its_beginning_and_waits_until_the_steps_are_known() -> None:
    parts = tiny.parts(pruning="magnitude")
    strategy("pruning", "magnitude", sparsity=0.5, schedule="once")(parts)
    parts.planned_steps = 0
    tiny.train(parts, 1)
    assert zeros_share(parts.model) == 0
    parts.planned_steps = 8
    tiny.train(parts, 1)
    before = zeros_share(parts.model)
    assert before > 0.3
    assert tiny.train(parts, 6)[-1] < 5
    assert zeros_share(parts.model) == before


def test_two_of_four_along_the_input() -> None:
    weight = torch.tensor([[1.0, -5.0, 2.0, 0.5, 9.0, 8.0, 7.0, 6.0]])
    linear = torch.nn.Linear(8, 1)
    assert pruning.two_of_four(linear, weight).tolist() == [[0, 1, 1, 0, 1, 1, 0, 0]]
    other = tiny.parts().model.transformer.h[0].mlp.c_fc  # Conv1D: (in, out)
    assert torch.equal(pruning.two_of_four(other, weight.t()), pruning.two_of_four(linear, weight).t())


@pytest.mark.parametrize("kind", ["decoder_lm", "llama", "bert"])
def test_neurons_without_weight_are_removed_without_a_difference(kind: str) -> None:
    parts = tiny.parts(kind, None if kind == "decoder_lm" else {"architecture": kind})
    parts.model.eval()
    for block in parts.blocks:  # half of the neurons say nothing: removing them changes nothing
        names = dict(block.named_modules())
        into, out = next((into, out) for into, out in pruning._MLPS if out in names and into[0] in names)
        with torch.no_grad():
            for name in (*into, out):
                rows = names[name].weight if isinstance(names[name], torch.nn.Linear) else names[name].weight.t()
                (rows[:, ::2] if name == out else rows[::2]).zero_()
    before, size = logits(parts, parts.model), sum(p.numel() for p in parts.model.parameters())
    pruning.structured(parts, share=0.5)
    assert torch.allclose(logits(parts, parts.model), before, atol=1e-5)
    hidden = 128 if kind == "decoder_lm" else 64
    assert parts.notes["removed_neurons"] == len(parts.blocks) * hidden // 2
    assert sum(p.numel() for p in parts.model.parameters()) < 0.8 * size
    assert 0.5 < parts.flops_share < 0.95
    assert tiny.train(parts, 8)[-1] < tiny.train(tiny.parts(), 1)[0]


def test_removed_layers_take_their_flop_with_them() -> None:
    parts = tiny.parts()
    blocks = parts.blocks
    pruning.layers(parts, remove=2)
    assert [id(block) for block in parts.blocks] == [id(blocks[0]), id(blocks[3])]
    with torch.device("meta"):
        half = type(parts.workload)(tiny.DECODER | {"layers": 2})
        assert parts.flops_share == pytest.approx(half.flops_per_sample() / parts.workload.flops_per_sample(), rel=0.03)
    assert len(tiny.train(parts, 2)) == 2
    with pytest.raises(Unsupported, match="remove is 2, the model has 2 repeated layers"):
        pruning.layers(parts, remove=2)


# --- quantization


def test_a_conv1d_becomes_a_linear_layer_that_computes_the_same() -> None:
    parts = tiny.parts()
    model = copy.deepcopy(parts.model)
    replace_conv1d(model)
    kinds = {type(m).__name__ for m in model.modules()}
    assert "Conv1D" not in kinds
    assert torch.allclose(logits(parts, model), logits(parts, parts.model), atol=1e-6)
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("name", ["fp16", "int8", "int8_asymmetric", "int8_dynamic", "int8_dynamic_asymmetric"])
def test_quantized_models_are_smaller_and_answer_nearly_the_same(name: str) -> None:
    parts = tiny.parts(quantization=name)
    tiny.train(parts, 5)
    before = logits(parts, parts.model.eval())
    strategy("quantization", name)(parts)
    model = served(parts)
    error = (logits(parts, model) - before).norm() / before.norm()
    assert 1e-6 < error < 0.05
    assert model_bytes(model) < (0.7 if name == "fp16" else 0.55) * model_bytes(parts.model)
    assert torch.equal(logits(parts, parts.model), before)  # the copy was changed, not the model
    assert ("quantized_share" in parts.notes) == (name != "fp16")


def test_zeros_stay_zeros_in_integers() -> None:
    parts = tiny.parts(quantization="int8", pruning="magnitude")
    strategy("pruning", "magnitude", sparsity=0.5, schedule="once")(parts)
    tiny.train(parts, 2)
    strategy("quantization", "int8")(parts)
    assert zeros_share(served(parts)) > zeros_share(parts.model) - 0.1


@pytest.mark.parametrize(("bits", "activations"), [(8, True), (8, False), (4, False)])
def test_quantization_aware_training_trains_what_is_served(bits: int, activations: bool) -> None:
    parts = tiny.parts(quantization="qat")
    strategy("quantization", "qat", bits=bits, activations=activations)(parts)
    losses = tiny.train(parts, 8)
    assert losses[-1] < losses[0] - 0.5
    trained = logits(parts, parts.model.eval())
    assert torch.allclose(logits(parts, served(parts)), trained, atol=1e-4)


def test_the_rest_of_a_quantized_model_has_the_type_of_the_training() -> None:
    for name in ("int8", "qat"):
        parts = tiny.parts(quantization=name)
        parts.precision = Precision(("cpu", torch.bfloat16))
        strategy("quantization", name)(parts)
        model = served(parts)
        assert model.transformer.ln_f.weight.dtype is torch.bfloat16
        assert logits(parts, model).isfinite().all()


# --- passes of the served form


@pytest.mark.usefixtures("one_rank")
def test_passes_are_timed_for_the_seconds_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, passes = Clock(), 0
    monkeypatch.setattr("bench.train.inference.time", clock)
    parts = tiny.parts(inference_seconds=0.3)

    class Work:
        def logits(self, model: Any, batch: Any) -> None:
            nonlocal passes
            passes += 1
            clock.sleep(1 if passes <= 3 else 0.002)  # the first ones are slow, as where kernels are chosen

    trainer: Any = SimpleNamespace(parts=parts, device=tiny.CPU, batches=cycle([tiny.batch(parts)]), batch_size=4)
    trainer.parallel, trainer.evaluate = SimpleNamespace(data_ranks=2), lambda context: None
    trainer.optimizer = SimpleNamespace(zero_grad=lambda set_to_none: None)
    parts.workload = Work()
    timed = inference.measure(trainer)
    assert timed is not None
    assert timed.seconds == pytest.approx(0.3)
    assert timed.samples == 150 * 4 * 2
    assert timed.end_ns - timed.start_ns == pytest.approx(0.3e9)
    assert parts.model.training


# --- distillation


def test_the_loss_of_distillation_is_hintons(tmp_path: Path) -> None:
    teacher = tiny.parts()
    tiny.train(teacher, 3)
    student = tiny.parts(args=tiny.DECODER | {"layers": 1}, distillation="soft", needs="teacher")
    student.needed = saved(tmp_path / "teacher", teacher)
    hard = student.loss(student.model, tiny.batch(student)).item()
    strategy("distillation", "soft", temperature=3.0, alpha=0.25)(student)
    ours, theirs = logits(student, student.model), logits(student, teacher.model)
    p, q = (theirs / 3).softmax(-1), (ours / 3).softmax(-1)
    likeness = (p * (p.log() - q.log())).sum(-1).mean()
    found = student.loss(student.model, tiny.batch(student)).item()
    assert found == pytest.approx(0.25 * 9 * float(likeness) + 0.75 * hard, rel=1e-4)
    assert student.notes["teacher_parameters"] == sum(p.numel() for p in teacher.model.parameters())
    assert tiny.train(student, 8)[-1] < found


def test_answers_that_are_not_asked_for_do_not_count(tmp_path: Path) -> None:
    teacher = tiny.parts("other", {"architecture": "bert"})
    student = tiny.parts("other", {"architecture": "bert"}, distillation="soft", needs="teacher")
    student.needed = saved(tmp_path / "teacher", teacher)
    registry._BUILT_IN["workload"]["other"] = "tests.tiny:Other"
    registry.names.cache_clear()
    try:
        strategy("distillation", "soft", alpha=1.0)(student)
    finally:
        del registry._BUILT_IN["workload"]["other"]
        registry.names.cache_clear()
    student.model.eval()
    with torch.no_grad():
        student.model.cls.predictions.bias += torch.randn(16)
    tokens, labels = tiny.batch(student)
    whole = student.loss(student.model, (tokens, labels))
    some = labels.clone()
    some[:, 1:] = -100
    one = student.loss(student.model, (tokens, some))
    assert whole.item() > 0
    assert one.item() > 0
    assert not torch.isclose(whole, one)


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    teacher = tiny.parts(args=tiny.DECODER | {"vocabulary": 300})
    student = tiny.parts(distillation="soft", needs="teacher")
    student.needed = saved(tmp_path / "teacher", teacher)
    with pytest.raises(Unsupported, match=r"scores of shape \(1, 16, 300\), the student of \(1, 16, 256\)"):
        strategy("distillation", "soft")(student)


# --- shards


def _prune_shards(folder: Path) -> None:
    """Prune a model and its shards on two ranks; leave a file for each rank whose masks agree."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank = int(os.fork() == 0)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    whole, parts = tiny.parts(), tiny.parts()
    mesh = init_device_mesh("cpu", (2,))
    masks = pruning.Masks(parts)
    for block in parts.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(parts.model, mesh=mesh)
    plain = pruning.Masks(whole)
    for each in (masks, plain):
        each.renew(lambda module, weight: pruning.smallest(weight, 0.3))
    tiny.train(parts, 2)
    masks.apply()
    for (module, name), (other, _) in zip(masks.places, plain.places, strict=True):
        assert torch.equal(getattr(module, name).full_tensor() == 0, getattr(other, name) == 0), name
    (folder / f"rank-{rank}").touch()
    dist.barrier()
    os._exit(0)


@pytest.mark.slow
def test_masks_of_shards_are_those_of_the_whole_model(tmp_path: Path) -> None:
    assert warm.call(_prune_shards, tmp_path) == 0
    assert len(list(tmp_path.glob("rank-*"))) == 2
