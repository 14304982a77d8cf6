"""Weights between runs: written whole, loaded by name and shape, and what is said when they do not fit."""

import json
from pathlib import Path

import pytest

from bench.folder import CHECKPOINT

torch = pytest.importorskip("torch")
from bench.strategies.checkpoint import load_into, plain_name  # noqa: E402
from tests import tiny  # noqa: E402
from tests.tiny import saved  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_what_is_saved_is_loaded_and_tied_weights_are_written_once(tmp_path: Path) -> None:
    parts = tiny.parts()
    tiny.train(parts, 1)
    run = saved(tmp_path / "run", parts, prefix="_orig_mod.")
    facts = json.loads((run / CHECKPOINT / "checkpoint.json").read_text())
    assert facts["tied"] == {"lm_head.weight": "transformer.wte.weight"}
    assert facts["workload_args"] == tiny.DECODER
    size = sum(p.numel() * 4 for p in parts.model.parameters())
    assert size < (run / CHECKPOINT / "weights.safetensors").stat().st_size < 1.2 * size
    assert {path.name for path in run.iterdir()} == {CHECKPOINT, "spec.json"}
    torch.manual_seed(7)
    model = parts.workload.build()
    loaded = load_into(model, run)
    for (name, mine), theirs in zip(model.state_dict().items(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert loaded.fresh == frozenset()
    assert loaded.notes["loaded_tensors"] == len(model.state_dict())
    assert (loaded.notes["left_tensors"], loaded.notes["unused_tensors"]) == (0, 0)
    assert loaded.notes["needed_sha256"] == facts["sha256"]
    assert model.lm_head.weight is model.transformer.wte.weight
    tiny.train(parts, 1)
    saved(run, parts)  # in place of the older one
    assert json.loads((run / CHECKPOINT / "checkpoint.json").read_text())["sha256"] != facts["sha256"]


def test_another_head_keeps_its_own_weights(tmp_path: Path) -> None:
    pretrained = tiny.parts("other", {"architecture": "bert"})
    run = saved(tmp_path / "run", pretrained)
    model = tiny.parts("other", {"architecture": "classifier"}).model
    with torch.no_grad():
        pretrained.model.bert.embeddings.word_embeddings.weight += 0  # the same tensor, whoever looks at it
    before = model.classifier.weight.clone()
    loaded = load_into(model, run)
    assert {name.split(".")[0] for name in loaded.fresh} >= {"classifier"}
    assert {name for name in loaded.fresh if "encoder" in name} == set()
    assert torch.equal(model.classifier.weight, before)
    theirs = pretrained.model.bert.encoder.layer[0].output.dense.weight
    assert torch.equal(model.bert.encoder.layer[0].output.dense.weight, theirs)
    assert loaded.notes["left_tensors"] == len(loaded.fresh)
    assert int(loaded.notes["unused_tensors"]) > 0
    assert "classifier.bias" in str(loaded.notes["left"])


def test_a_tensor_of_another_shape_is_left(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", tiny.parts())
    longer = tiny.parts(args=tiny.DECODER | {"sequence_length": 32})
    assert load_into(longer.model, run).fresh == {"transformer.wpe.weight"}


def test_a_checkpoint_that_fits_nothing_or_is_not_there_is_an_error(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", tiny.parts())
    with pytest.raises(ValueError, match=r"only 0 of the 5 tensors of this model match the checkpoint of decoder_lm "):
        load_into(tiny.parts("other", {"architecture": "mlp"}).model, run)
    with pytest.raises(ValueError, match="no checkpoint in"):
        load_into(tiny.parts().model, tmp_path)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("model._orig_mod.h.0._checkpoint_wrapped_module.w", "model.h.0.w"),
        ("module.w", "w"),
        ("my_module.w", "my_module.w"),
    ],
)
def test_names_are_those_of_the_plain_model(given: str, wanted: str) -> None:
    assert plain_name(given) == wanted
