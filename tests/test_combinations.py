"""Pairs of axes that once gave a wrong figure or a crash: each is right now, or refused with its reason."""

from typing import Any

import pytest
import torch

from bench.strategies import precision
from bench.strategies.finetune import bitfit
from bench.strategies.flops import count_share
from bench.strategies.precision import store_as
from tests import tiny
from tests.tiny import parts

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("workload", "args"),
    [
        ("image_classification", {"preset": "tiny"}),
        ("image_classification", {"preset": "vit-tiny"}),
        ("recommender", {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inputs_that_are_floats_follow_the_type_of_the_served_weights(
    workload: str, args: dict[str, Any], dtype: torch.dtype
) -> None:
    found = parts(workload, args | {"data": "synthetic"})
    model = store_as(found.model.eval(), dtype)
    with torch.no_grad():
        scores = found.workload.logits(model, found.workload.validation.__getitems__(range(4)))
    assert scores.dtype == dtype
    assert scores.isfinite().all()


def test_tables_of_rotary_positions_keep_their_digits() -> None:
    found = parts("decoder_lm", {"preset": "llama-tiny"})
    before = found.model.model.rotary_emb.inv_freq.clone()
    store_as(found.model, torch.bfloat16)
    assert torch.equal(found.model.model.rotary_emb.inv_freq, before)
    assert found.model.lm_head.weight.dtype == torch.bfloat16


def test_biases_of_recurrent_layers_are_biases() -> None:
    found = parts("lstm_lm", {"preset": "tiny", "sequence_length": 8}, finetune="bitfit")
    bitfit(found)
    trained = {name.rpartition(".")[2].split("_")[0] for name, p in found.model.named_parameters() if p.requires_grad}
    assert trained == {"bias"}
    assert sum("bias_ih" in name for name, p in found.model.named_parameters() if p.requires_grad) == 2


def test_flop_of_layers_that_torch_does_not_count_are_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiny.parts()
    truth = found.workload.flops_per_sample()
    monkeypatch.setattr(type(found.workload), "flops_per_sample", lambda self: 3 * truth)
    count_share(found)
    assert found.flops_share == 1.0
    assert "torch does not count" in found.notes["flops"]


def test_one_sample_is_enough_to_count_flop_of_a_model_with_batch_statistics() -> None:
    found = parts("image_classification", {"preset": "resnet-18", "image_size": 32}, finetune="last_layers")
    count_share(found)  # its last feature map has one value a channel
    assert found.flops_share == pytest.approx(1.0)


def test_fp32_is_32_bits_in_convolutions_too() -> None:
    precision.fp32(CPU)
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_classifier_of_labelled_text_may_be_adapted() -> None:
    pytest.importorskip("peft")
    found = parts("encoder", {"preset": "tiny", "objective": "classification"}, finetune="lora")
    tiny.strategy("finetune", "lora")(found)
    assert 0.3 < found.flops_share < 1
