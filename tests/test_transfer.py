"""Fine-tuning: what is trained, what is frozen, and how much is left to compute."""

import copy
from typing import Any

import pytest

from bench.strategies.parts import Unsupported

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
from bench.strategies.flops import count_share, on_meta  # noqa: E402
from tests import tiny  # noqa: E402
from tests.tiny import strategy  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def trained(parts: Any) -> set[str]:
    return {name for name, p in parts.model.named_parameters() if p.requires_grad}


def test_only_the_last_layers_change() -> None:
    parts = tiny.parts()
    before = copy.deepcopy(parts.model.state_dict())
    strategy("finetune", "last_layers", layers=1)(parts)
    losses = tiny.train(parts, 8)
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in parts.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith(("transformer.h.3.", "transformer.ln_f."))}
    assert "frozen_weights" in parts.notes  # nothing was loaded: the frozen weights are random


def test_a_tied_head_stays_with_its_embedding_and_another_is_trained() -> None:
    parts = tiny.parts()
    strategy("finetune", "last_layers", layers=0)(parts)
    assert trained(parts) == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    llama = tiny.parts("other", {"architecture": "llama"})
    strategy("finetune", "last_layers", layers=0)(llama)
    assert trained(llama) == {"model.norm.weight", "lm_head.weight"}
    with pytest.raises(Unsupported, match="layers is 9, the model has 4 repeated layers"):
        strategy("finetune", "last_layers", layers=9)(tiny.parts())
    with pytest.raises(Unsupported, match="has 0 repeated layers"):
        strategy("finetune", "last_layers")(tiny.parts("other", {"architecture": "mlp"}))


def test_a_head_that_was_not_in_the_checkpoint_is_trained_whatever_is_frozen() -> None:
    for name in ("bitfit", "lora", "ia3"):
        parts = tiny.parts("other", {"architecture": "classifier"})
        parts.fresh = frozenset({"classifier.weight", "classifier.bias", "bert.pooler.dense.weight"})
        strategy("finetune", name)(parts)
        assert trained(parts) >= parts.fresh
        assert "bert.encoder.layer.0.output.dense.weight" not in trained(parts)


def test_biases_alone() -> None:
    parts = tiny.parts()
    strategy("finetune", "bitfit")(parts)
    assert trained(parts)
    assert all(name.endswith(".bias") for name in trained(parts))


@pytest.mark.parametrize(
    ("name", "options"), [("lora", {"rank": 4}), ("lora", {"targets": "all", "rank": 2}), ("ia3", {})]
)
@pytest.mark.parametrize("kind", ["decoder_lm", "llama", "bert"])
def test_additions_are_trained_alone_and_merged_to_be_served(name: str, options: dict[str, Any], kind: str) -> None:
    parts = tiny.parts("decoder_lm") if kind == "decoder_lm" else tiny.parts("other", {"architecture": kind})
    before = {n: p.detach().clone() for n, p in parts.model.named_parameters()}
    names = set(parts.model.state_dict())
    parts.model.eval()  # no dropout, so that losses can be compared
    strategy("finetune", name, **options)(parts)
    count = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    assert 0 < count < 0.3 * sum(p.numel() for p in parts.model.parameters())
    losses = tiny.train(parts, 12, rate=2e-2)
    assert losses[-1] < losses[0]
    frozen = {n.replace(".base_layer", ""): p for n, p in parts.model.named_parameters() if not p.requires_grad}
    assert set(frozen) == set(before)
    assert all(torch.equal(frozen[n], before[n]) for n in before)
    with torch.no_grad():
        logits = parts.workload.logits(parts.model.eval(), tiny.batch(parts))
        (serve,) = parts.serve
        model = serve(parts.model).eval()
        assert torch.allclose(parts.workload.logits(model, tiny.batch(parts)), logits, atol=1e-4)
    assert set(model.state_dict()) == names
    assert 0.6 < parts.flops_share < 0.9


def test_targets_may_be_named() -> None:
    parts = tiny.parts()
    strategy("finetune", "lora", targets="c_attn mlp.c_proj")(parts)
    assert {name.split(".")[4] for name in trained(parts)} == {"c_attn", "c_proj"}
    with pytest.raises(Unsupported, match=r"lora: Target modules .*nonsense"):
        strategy("finetune", "lora", targets="nonsense")(tiny.parts())


def test_the_flop_of_what_has_no_gradients_are_left_out() -> None:
    """Four linear layers of N weights each: 2 N forward, 2 N for the weights that are trained, 2 N above the lowest."""

    class Chain(tiny.Other):
        def build(self) -> Any:
            return torch.nn.Sequential(*(torch.nn.Linear(16, 16, bias=False) for _ in range(4)))

        def loss(self, model: Any, batch: Any) -> Any:
            return model(batch[0].float()).sum()

    parts = tiny.parts("other", {"architecture": "mlp"})
    parts.workload = Chain({})
    parts.model = parts.workload.build()
    full = 4 * 6 - 2  # nobody asks for the gradient of the samples
    for frozen, flops in (((), full), ((0,), full - 4), ((1,), full - 2), ((0, 1, 2), 4 * 2 + 2)):
        for number, layer in enumerate(parts.model):
            layer.requires_grad_(number not in frozen)
        count_share(parts)
        assert parts.flops_share == pytest.approx(flops / full), frozen


def test_a_copy_on_meta_keeps_ties_and_takes_nothing() -> None:
    model = tiny.parts().model
    model.transformer.h[0].requires_grad_(False)
    copied = on_meta(model)
    assert copied.lm_head.weight is copied.transformer.wte.weight
    assert {p.device.type for p in copied.parameters()} == {"meta"}
    assert [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in model.parameters()]
    assert model.lm_head.weight.device.type == "cpu"
