"""The decoder language model: its text, its parameters, its FLOP."""

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from bench.workloads.base import training_batches, validation_batches
from bench.workloads.decoder_lm import DecoderLM, DecoderLMArgs
from bench.workloads.text import read_text

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_the_text_of_the_standard_library() -> None:
    name, text = read_text()
    assert name.startswith("pydoc_data.topics of Python 3.")
    assert len(text) > 300_000
    assert b"yield" in text


def test_a_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"bbb")
    (tmp_path / "a.txt").write_bytes(b"aaa")
    (tmp_path / "binary").write_bytes(b"\0\1")
    assert read_text(str(tmp_path)) == (tmp_path.name, b"aaa\nbbb")
    assert read_text(str(tmp_path / "a.txt")) == ("a.txt", b"aaa")
    work = DecoderLM({"preset": "tiny", "text": str(tmp_path), "sequence_length": 4})
    assert work.dataset_digest == hashlib.sha256(b"aaa\nbbb").hexdigest()
    with pytest.raises(ValidationError, match=r"has 6 bytes of text; a sequence needs 128 \+ 1"):
        DecoderLMArgs.model_validate({"preset": "tiny", "text": str(tmp_path)})
    for path, part in {
        "/dev/zero": "neither a file nor a folder",
        str(tmp_path / "binary"): "has 0 bytes of text",
    }.items():
        with pytest.raises(ValidationError, match=part):
            DecoderLMArgs.model_validate({"preset": "tiny", "text": path})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no text in"):
        read_text(str(tmp_path / "empty"))


def test_batches_are_of_the_text_and_of_the_seed() -> None:
    work = DecoderLM({"preset": "tiny"})

    def first(seed: int) -> torch.Tensor:
        return next(training_batches(work, 3, seed, on_gpu=False))[0]

    batch = first(1)
    assert batch.shape == (3, 129)
    _, text = read_text()
    assert bytes(batch[0].tolist()) in text
    assert torch.equal(batch, first(1))
    assert not torch.equal(batch, first(2))


def test_what_is_validated_on_was_not_trained_on() -> None:
    work = DecoderLM({"preset": "tiny"})
    assert len(work.train.text) + len(work.validation.text) == len(read_text(clean=True)[1])
    shares = [list(validation_batches(work, 7, 2, rank, 3)) for rank in range(3)]
    assert [[len(batch[0]) for batch in share] for share in shares] == [[2]] * 3  # 7 over 3 ranks: one is left out
    whole = torch.cat([batch[0] for batch in validation_batches(work, 6, 6, 0, 1)])
    assert torch.equal(torch.cat([batch[0] for (batch,) in shares])[[0, 2, 4, 1, 3, 5]], whole)


def test_gpt2_presets_have_the_parameters_of_gpt2() -> None:
    work = DecoderLM({"preset": "gpt2-124m", "sequence_length": 1024})
    with torch.device("meta"):
        model = work.build()
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


@pytest.mark.parametrize("length", [32, 128])
def test_flops_agree_with_those_that_torch_counts(length: int) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    work = DecoderLM({"layers": 3, "hidden": 64, "heads": 2, "sequence_length": length})
    with torch.device("meta"):
        model = work.build()
        batch = (torch.zeros((2, length + 1), dtype=torch.int64),)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work.loss(model, batch).backward()
    # What the formula has and the counter has not: 6 for each bias and norm parameter. That is little.
    assert work.flops_per_sample() == pytest.approx(counter.get_total_flops() / 2, rel=0.02)
