"""Every workload: builds here and on meta, learns from real data, counts its FLOP, refuses what makes no sense."""

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bench import registry
from bench.schema import COMMAND, RunSpec
from bench.workloads.base import Workload, counted_flops, training_batches, validation_batches
from bench.workloads.transformer import config_fields
from tests.tiny import strategy

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# Arguments that are quick here, classes, learning rate, steps, and how far the loss is to go down in them.
CASES: dict[str, tuple[str, dict[str, Any], int, float, int, float]] = {
    "gpt2": ("decoder_lm", {"preset": "tiny", "sequence_length": 16}, 256, 1e-3, 20, 1.0),
    "llama": ("decoder_lm", {"preset": "llama-tiny", "sequence_length": 16}, 256, 1e-3, 20, 1.0),
    "bert": ("encoder", {"preset": "tiny", "sequence_length": 16}, 258, 1e-3, 20, 1.0),
    "bert classes": (
        *(
            "encoder",
            {"layers": 2, "hidden": 64, "sequence_length": 32, "objective": "classification", "data": "synthetic"},
        ),
        *(8, 3e-3, 50, 0.3),
    ),
    "resnet": ("image_classification", {"preset": "tiny"}, 10, 2e-3, 40, 0.4),
    "vit": ("image_classification", {"preset": "vit-tiny", "patch_size": 8}, 10, 3e-3, 60, 0.1),
    "recommender": ("recommender", {"rows": 100, "tables": 4}, 2, 1e-2, 80, 0.03),
    "text_cnn": ("text_cnn", {"filters": 32, "dimension": 64, "dropout": 0.0}, 8, 3e-3, 60, 0.1),
    "lstm": ("lstm_lm", {"sequence_length": 32}, 256, 3e-3, 20, 1.0),
}


def made(case: str, **more: Any) -> Workload:
    name, args, *_ = CASES[case]
    work: Workload = registry.load("workload", name)(args | more)
    return work


def parameters(work: Workload) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in work.build().parameters())


def train(work: Workload, model: Any, steps: int, rate: float, samples: int = 16) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for batch in islice(training_batches(work, samples, 0, on_gpu=False), steps):
        loss = work.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_all_are_here() -> None:
    assert {name for name, *_ in CASES.values()} | {COMMAND} == set(registry.names("workload"))


LONG = ("bert", "bert classes", "llama", "vit")
"""Those that learn for a second or more, of kinds of which others learn in the quick half too."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in LONG else []) for case in CASES]
)
def test_it_learns(case: str) -> None:
    classes, rate, steps, gain = CASES[case][2:]
    work = made(case)
    torch.manual_seed(0)
    model = work.build()
    samples = 16 if classes > 100 else 32
    losses = train(work, model, steps, rate, samples)
    assert losses[0] == pytest.approx(math.log(classes), abs=0.3)  # knows nothing yet
    assert sum(losses[-5:]) / 5 < math.log(classes) - gain
    model.eval()
    with torch.no_grad():
        (batch,) = validation_batches(work, 64, 64, 0, 1)
        loss, correct, asked = work.score(model, batch)
        again = work.score(model, batch)
    assert loss / asked < math.log(classes) - gain / 5
    assert 0 < correct <= asked
    assert again[0] == loss
    logits, labels = work.logits(model, batch), work.labels(batch)
    assert logits.shape == (*labels.shape, classes)
    torch.manual_seed(0)
    assert train(work, work.build(), 2, rate, samples) == losses[:2]


@pytest.mark.parametrize("case", CASES)
def test_a_model_of_meta_is_as_good_after_initialize(case: str) -> None:
    work = made(case)
    with torch.device("meta"):
        model = work.build()
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(77)
    torch.manual_seed(1)
    work.initialize(model)
    direct = work.build()
    held, wanted = dict(model.named_parameters()), dict(direct.named_parameters())
    assert held.keys() == wanted.keys()  # what was tied is tied again
    for name, parameter in held.items():
        assert parameter.std(correction=0).item() == pytest.approx(
            wanted[name].std(correction=0).item(), rel=0.6, abs=0.02
        ), name
    buffers = dict(direct.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    batch = work.train.__getitems__(range(8))
    assert work.loss(model, batch).item() == pytest.approx(math.log(CASES[case][2]), abs=0.5)


@pytest.mark.parametrize("case", CASES)
def test_flops_are_plausible(case: str) -> None:
    work = made(case)
    flops = work.flops_per_sample()
    assert flops == pytest.approx(counted_flops(work), rel=0.02)
    if work.tokens_per_sample and case not in ("text_cnn",):
        assert flops == pytest.approx(6 * parameters(work) * work.tokens_per_sample, rel=0.6)


@pytest.mark.parametrize("case", CASES)
def test_what_is_validated_on_was_not_trained_on(case: str) -> None:
    if case == "recommender":
        pytest.skip("its samples are drawn one by one")
    work = made(case)
    held = {row.numpy().tobytes() for row in work.validation.__getitems__(range(min(200, len(work.validation))))[0]}
    batches = islice(training_batches(work, 500, 0, on_gpu=False), 3)
    assert not held & {row.numpy().tobytes() for batch in batches for row in batch[0]}


def test_synthetic_data_are_called_so_and_can_be_learned() -> None:
    for case in CASES:
        work = made(case, data="synthetic")
        assert work.dataset.startswith("synthetic"), case
        assert len(work.validation) >= 10
        assert made(case, data="synthetic").dataset_digest == work.dataset_digest
    work = made("llama", data="synthetic", vocabulary=1000)
    torch.manual_seed(0)
    losses = train(work, work.build(), 20, 1e-3)
    assert losses[0] == pytest.approx(math.log(1000), abs=0.3)
    assert losses[-1] < losses[0] - 0.5


PARAMETERS = {
    # Published; for Llama the number of the weights in the checkpoints, for BERT with its head for masked tokens.
    ("decoder_lm", "gpt2-124m"): 124_439_808,
    ("decoder_lm", "llama-1b"): 1_235_814_400,
    ("decoder_lm", "llama-3b"): 3_212_749_824,
    ("decoder_lm", "llama-8b"): 8_030_261_248,
    ("encoder", "bert-base"): 109_514_298,
    ("encoder", "bert-large"): 335_174_458,
}
IMAGE_PARAMETERS = {"resnet-18": 11_689_512, "resnet-50": 25_557_032, "vit-base": 86_567_656}
"""With 1,000 classes and three channels."""


@pytest.mark.parametrize(("name", "preset"), PARAMETERS)
def test_presets_have_the_parameters_of_the_published_models(name: str, preset: str) -> None:
    length = {"sequence_length": 1024} if name == "decoder_lm" else {}
    work = registry.load("workload", name)({"preset": preset} | length)
    assert parameters(work) == PARAMETERS[name, preset]


@pytest.mark.parametrize("preset", IMAGE_PARAMETERS)
def test_presets_of_images_have_the_parameters_of_the_published_models(preset: str) -> None:
    work = registry.load("workload", "image_classification")({"preset": preset, "data": "synthetic"})
    work.class_count = 1000
    assert parameters(work) == IMAGE_PARAMETERS[preset]
    # Multiply-adds of the papers, forward: 1.8, 4.1, 17.6 G (He et al. 2016; Dosovitskiy et al. 2021).
    published = {"resnet-18": 1.8e9, "resnet-50": 4.1e9, "vit-base": 17.6e9}[preset]
    assert work.flops_per_sample() == pytest.approx(6 * published, rel=0.05)


def test_shared_parameters_are_there_once_and_compute_each_time() -> None:
    plain, shared = (made("llama", shared_layers=n) for n in (1, 2))
    tied, untied = (made("llama", tie_embeddings=t) for t in (True, False))
    counts = [parameters(w) for w in (plain, shared, tied, untied)]
    layer = sum(p.numel() for p in plain.blocks(plain.build())[0].parameters())
    assert counts[1] == counts[0] - 2 * layer
    assert counts[2] == counts[3] - 256 * 128
    assert len({w.flops_per_sample() for w in (plain, shared, tied, untied)}) == 1
    assert [len(w.blocks(w.build())) for w in (plain, shared)] == [4, 2]
    assert train(shared, shared.build(), 15, 2e-3)[-1] < 5


@pytest.mark.parametrize("case", ["gpt2", "llama", "bert"])
def test_what_a_model_sees(case: str) -> None:
    """A decoder nothing of what comes, an encoder everything; without a mask that would have to be looked at."""
    work = made(case)
    model = work.build().eval()
    tokens = torch.randint(0, 256, (1, 16))
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 256
    with torch.no_grad():
        before, after = model(input_ids=tokens).logits, model(input_ids=changed).logits
    assert torch.equal(before[0, :-1], after[0, :-1]) is (case != "bert")
    assert not torch.equal(before[0, -1], after[0, -1])


def test_grouped_queries_agree_with_the_plain_computation() -> None:
    work = made("llama")
    model = work.build().eval()
    batch = work.train.__getitems__(range(2))
    with torch.no_grad():
        fused = work.logits(model, batch)
        model.config._attn_implementation = "eager"
        assert torch.allclose(fused, work.logits(model, batch), atol=1e-5)


@pytest.mark.parametrize("case", ["llama", "bert classes", "vit"])
def test_a_local_checkpoint(case: str, tmp_path: Path) -> None:
    first = made(case)
    model = first.build()
    model.save_pretrained(tmp_path / "saved")
    name, args, *_ = CASES[case]
    kept = {k: v for k, v in args.items() if k not in ("preset", "patch_size", "layers", "hidden")}
    work = registry.load("workload", name)(kept | {"pretrained": str(tmp_path / "saved")})
    batch = first.validation.__getitems__(range(4))
    with torch.no_grad():
        wanted = first.logits(model.eval(), batch)
        assert torch.equal(work.logits(work.build().eval(), batch), wanted)
        with torch.device("meta"):
            other = work.build()
        other.to_empty(device="cpu")
        work.initialize(other)
        assert torch.equal(work.logits(other.eval(), batch), wanted)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    args = registry.load("workload", "decoder_lm").Args
    for folder, part in {"none": "no such folder", ".": r"has no config.json with \*.safetensors"}.items():
        with pytest.raises(ValidationError, match=part):
            args.model_validate({"pretrained": str(tmp_path / folder)})
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValidationError, match="unknown architecture 'bert'"):
        args.model_validate({"pretrained": str(tmp_path)})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValidationError, match="a pretrained model has its own shape: leave layers out"):
        args.model_validate({"pretrained": str(tmp_path), "layers": 2})


def test_fields_of_a_configuration_are_read_without_importing_it() -> None:
    import transformers

    for name, _ in {pair for work in ("decoder_lm", "encoder", "image_classification") for pair in classes(work)}:
        made_of = getattr(transformers, name)
        fields = config_fields(made_of.model_type)
        assert len(fields) > 5
        assert all(hasattr(made_of(), field) for field in fields)
    work = made("llama", rms_norm_eps=1e-3, num_key_value_heads=1, attention_bias=True)
    model = work.build()
    assert (model.config.rms_norm_eps, model.config.num_key_value_heads) == (1e-3, 1)
    assert model.model.layers[0].self_attn.q_proj.bias is not None


def classes(name: str) -> list[tuple[str, str]]:
    return list(registry.load("workload", name).classes.values())


@pytest.mark.parametrize(
    ("name", "args", "part"),
    [
        ("decoder_lm", {"preset": "llama-8B"}, "unknown preset 'llama-8B': did you mean 'llama-8b'"),
        (
            "decoder_lm",
            {"preset": "llama-1b", "architecture": "gpt2"},
            "preset 'llama-1b' is of architecture llama, not gpt2",
        ),
        ("decoder_lm", {"preset": "llama-1b", "num_key_value_head": 4}, "did you mean 'num_key_value_heads'"),
        ("decoder_lm", {"preset": "tiny", "num_key_value_heads": 4}, "unknown key 'num_key_value_heads'"),
        (
            "decoder_lm",
            {"preset": "llama-1b", "num_key_value_heads": 5},
            "32 is not a multiple of num_key_value_heads 5",
        ),
        ("decoder_lm", {"preset": "llama-1b", "rms_norm_eps": "low"}, "rms_norm_eps must be a number, not 'low'"),
        ("decoder_lm", {"preset": "llama-1b", "attention_bias": 1}, "attention_bias must be true or false, not 1"),
        ("decoder_lm", {"preset": "llama-1b", "rope_parameters": "x"}, "is a list or a mapping"),
        ("decoder_lm", {"preset": "llama-1b", "use_cache": True}, "unknown key 'use_cache'"),
        ("decoder_lm", {"preset": "tiny", "layers": 2, "n_layer": 3}, "layers and n_layer are the same"),
        ("decoder_lm", {"preset": "tiny", "shared_layers": 3}, "layers 4 is not a multiple of shared_layers 3"),
        ("decoder_lm", {"preset": "tiny", "n_positions": 64}, "sequence_length 128 exceeds the 64 positions"),
        (
            "decoder_lm",
            {"preset": "tiny", "augmentation": "standard"},
            "augmentation 'standard': a language model has none",
        ),
        ("decoder_lm", {"preset": "tiny", "balance": True}, "balance True: text without labels has no classes"),
        ("decoder_lm", {"preset": "tiny", "mix": "docs"}, "is no mix"),
        ("decoder_lm", {"preset": "tiny", "mix": "docs:1,doc:1"}, "no such file or folder: .*did you mean 'docs'"),
        ("decoder_lm", {"preset": "tiny", "mix": "docs:1", "data": "code"}, "give only one of mix and data"),
        (
            "encoder",
            {"preset": "tiny", "objective": "classification", "mix": "docs:1,code:1"},
            "text with labels comes from",
        ),
        ("encoder", {"preset": "tiny", "objective": "classification", "data": "code"}, "data 'code' has no labels"),
        ("encoder", {"preset": "tiny", "objective": "classification", "data": "."}, "one folder per class"),
        ("encoder", {"preset": "tiny", "vocab_size": 256}, "vocab_size must be at least 258"),
        ("image_classification", {}, "give a preset"),
        ("image_classification", {"preset": "tiny", "layers": 2}, "resnet has no layers"),
        ("image_classification", {"preset": "vit-base", "image_size": 30}, "30 is not a multiple of patch_size 16"),
        ("image_classification", {"preset": "tiny", "data": "cifar"}, "no data 'cifar'"),
        ("image_classification", {"preset": "tiny", "classes": 5}, "classes may be chosen for synthetic data"),
        ("recommender", {"data": "movielens"}, "only synthetic data"),
        ("recommender", {"pretrained": "x"}, "pretrained weights are for models of transformers"),
        ("text_cnn", {"widths": "3,x"}, "widths must be whole numbers"),
        ("lstm_lm", {"preset": "huge"}, "unknown preset 'huge'"),
    ],
)
def test_bad_arguments(name: str, args: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        registry.load("workload", name).Args.model_validate(args, strict=True)


def test_sparse_tables_need_an_optimizer_that_takes_them() -> None:
    spec = {"workload": "recommender", "workload_args": {"sparse": True}, "device_type": "cpu", "measure_steps": 1}
    check = registry.load("workload", "recommender").check
    with pytest.raises(ValueError, match="sparse tables need optimizer"):
        check(RunSpec(**spec, batch_size_per_device=1))
    taken = {"name": "sgd", "momentum": 0, "implementation": "foreach"}
    check(RunSpec(**spec, batch_size_per_device=1, optimizer=taken))
    work = made("recommender", sparse=True)
    model = work.build()
    work.loss(model, work.train.__getitems__(range(4))).backward()
    assert model.tables[0].weight.grad.is_sparse
    strategy("optimizer", "sgd", momentum=0.0, implementation="foreach")(model.parameters()).step()


def test_speech_is_not_covered() -> None:
    with pytest.raises(ValueError, match="workload 'speech': speech is not covered"):
        registry.load("workload", "speech")
