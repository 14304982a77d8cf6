"""Text to train on, byte by byte: for language models, and labelled with classes. Nothing is downloaded.

The Python standard library ships real text: its language reference (`docs`, `pydoc_data.topics`) and its source (`code`).
Files and folders of the user's are read likewise. Without labels the last tenth of each source is held out; with labels
whole files are, so that no file is trained and validated on.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, field_validator, model_validator

from bench.registry import did_you_mean
from bench.schema import Scalar
from bench.workloads.base import SYNTHETIC, Split, WorkloadArgs, balanced, chances, digest

if TYPE_CHECKING:
    import torch

    from bench.workloads.base import Batch

MAX_TEXT_BYTES = 1 << 30
NAMES = ("default", "docs", "code", SYNTHETIC)
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")
"""Large packages of the standard library that every version from 3.11 on has: the classes of labelled text."""
HELD_OUT = 1 / 6
SYNTHETIC_TOKENS = 1 << 20
Documents = list[tuple[str, bytes]]


class TextArgs(WorkloadArgs):
    """Text and the length of a sample of it.

    `data` is `docs` (the default), `code`, `synthetic` (random tokens by Zipf's law), or a file or folder, which `text` names
    as well; `mix` draws from several of them by weight: `docs:0.7,code:0.3`.
    """

    sequence_length: Annotated[int, Field(ge=2, le=1 << 20)] = 128
    text: str | None = None
    mix: str | None = None

    @field_validator("data", "text")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None or value in NAMES else _existing(value)

    @field_validator("mix")
    @classmethod
    def _parsed(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = [part.strip().rpartition(":") for part in value.split(",")]
        try:
            shares = {n if n in NAMES else _existing(n): float(share) for n, _, share in parts}
        except ValueError as error:
            if "no such" in str(error):
                raise
            shares = {}
        if len(shares) != len(parts) or not all(0 < share < float("inf") for share in shares.values()):
            raise ValueError(
                f"{value!r} is no mix: give sources with weights above 0, each once, as in docs:0.7,code:0.3"
            )
        if SYNTHETIC in shares or "default" in shares:
            raise ValueError("a mix takes docs, code, and files or folders")
        return ",".join(f"{name}:{share:g}" for name, share in shares.items())

    @property
    def labelled(self) -> bool:
        """Whether the samples have classes."""
        return False

    @property
    def sources(self) -> dict[str, float]:
        """Sources of the text, and the share of the samples that each gives."""
        if self.mix is None:
            return {self.text or ("docs" if self.data == "default" else self.data): 1.0}
        parts = [part.rpartition(":") for part in self.mix.split(",")]
        total = sum(float(share) for _, _, share in parts)
        return {name: float(share) / total for name, _, share in parts}

    def refusals(self) -> dict[str, str]:
        """Classes can be balanced; whole windows of a text cannot be augmented without changing what is asked."""
        if self.labelled:
            return dict.fromkeys(("text", "mix"), "text with labels comes from data: a folder with one folder a class")
        return {"augmentation": "a language model has none", "balance": "text without labels has no classes"}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("text", "mix") if getattr(self, name) is not None]
        given += ["data"] if self.data != "default" else []
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}")
        if self.labelled:
            if self.data in ("docs", "code"):
                raise ValueError(
                    f"data {self.data!r} has no labels: leave it out, or give a folder with one folder a class"
                )
            if self.data not in NAMES:
                _class_folders(self.data)
            return self
        for source in self.sources:
            if source not in NAMES:
                check_text(source, self.sequence_length)
        return self


def _existing(value: str) -> str:
    path = Path(value).expanduser().resolve()
    if not path.exists():
        raise ValueError(
            f"no such file or folder: {path}" + ("" if "/" in value else f"; {did_you_mean(value, NAMES)}")
        )
    return str(path)


def _files(source: str) -> list[Path]:
    """Return the files of a text, by path. Raises ValueError for what is neither a file nor a folder, or too large."""
    path = Path(source)
    if not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is neither a file nor a folder")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    total = sum(file.stat().st_size for file in files)
    if total > MAX_TEXT_BYTES:
        raise ValueError(f"the text {path} has {total} bytes; at most {MAX_TEXT_BYTES} are read")
    return files


def check_text(source: str, sequence_length: int) -> None:
    """Look at the beginnings of the files of a text. Raises ValueError where no run could be trained on it."""
    size = 0
    for file in _files(source):
        try:
            with file.open("rb") as opened:
                size += file.stat().st_size if b"\0" not in opened.read(65_536) else 0
        except OSError as error:
            raise ValueError(f"the text {file} cannot be read: {error.strerror}") from error
    if size <= sequence_length:
        raise ValueError(f"the text {source} has {size} bytes of text; a sequence takes {sequence_length} + 1")


def documents(source: str) -> tuple[str, Documents]:
    """Return the name of a source, and its documents by name: topics, or files; those with NUL bytes are binary, no text."""
    python = f"of Python {platform.python_version()}"
    if source == "docs":
        from pydoc_data.topics import topics

        return f"pydoc_data.topics {python}", [(key, topics[key].encode()) for key in sorted(topics)]
    folder = Path(sysconfig.get_path("stdlib")) if source == "code" else Path(source)
    files = _sources(folder) if source == "code" else _files(source)
    parts = [(file.relative_to(folder).as_posix(), file.read_bytes()) for file in files]
    parts = [(name, text) for name, text in parts if b"\0" not in text]
    if not any(text for _, text in parts):
        raise ValueError(f"no text in {folder}: {len(files)} files, all empty or binary")
    return f"source of the standard library {python}" if source == "code" else folder.name, parts


def _sources(folder: Path) -> list[Path]:
    """Python source below a folder of the standard library, by path, without tests and what was installed beside it."""
    strangers = {"test", "tests", "site-packages", "dist-packages", "idle_test"}
    return sorted(p for p in folder.rglob("*.py") if not strangers & set(p.relative_to(folder).parts))


def cleaned(held: Documents, notes: dict[str, Scalar], seen: set[bytes]) -> Documents:
    """Drop documents that are empty, or equal to one before (by digest, kept in `seen`); count them in `notes`."""
    kept, empty, twice = [], 0, 0
    for name, text in held:
        key = hashlib.sha256(text).digest()
        empty += not text.strip()
        twice += bool(text.strip()) and key in seen
        if text.strip() and key not in seen:
            seen.add(key)
            kept.append((name, text))
    for name, count in {"documents": len(kept), "empty_removed": empty, "duplicates_removed": twice}.items():
        notes[f"data_{name}"] = int(notes.get(f"data_{name}", 0)) + count
    return kept


class Windows(Split):
    """Stretches of `length` tokens of a text: batches of shape (samples, length), bytes (uint8) or int32.

    One begins at every token, or at each of `starts`. With `spans` (beginnings, and numbers of stretches from there on) and
    `shares`, training draws a span first and then a place in it.
    """

    def __init__(self, text: torch.Tensor, length: int, starts: torch.Tensor | None = None) -> None:
        self.text, self.length, self.starts = text, length, starts
        self.spans: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.text) - self.length + 1 if self.starts is None else len(self.starts)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw a source by its share, then a place in it: a draw by weight over all places would be slow."""
        import torch

        if self.spans is None:
            return super().draw(count, generator)
        firsts, counts, shares = self.spans
        chosen = torch.multinomial(shares, count, replacement=True, generator=generator)
        places = torch.rand(count, dtype=torch.float64, generator=generator) * counts[chosen]
        return firsts[chosen] + places.long()

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return the stretches; bytes are small enough to travel without waiting."""
        import torch

        places = torch.tensor(indices)
        starts = places if self.starts is None else self.starts[places]
        return (self.text[starts.unsqueeze(1) + torch.arange(self.length)],)


class Pieces(Split):
    """Labelled stretches of `length` bytes: (bytes of shape (samples, length) uint8, classes of shape (samples,) uint8).

    With `moved`, a piece of the training begins up to a quarter of its length earlier or later, within its file.
    """

    def __init__(self, text: torch.Tensor, rows: torch.Tensor, length: int, *, moved: bool = False) -> None:
        self.text, self.length, self.moved = text, length, moved
        self.starts, self.low, self.high, self.classes = rows.unbind(1)

    def __len__(self) -> int:
        return len(self.starts)

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return pieces and their classes."""
        import torch

        places = torch.tensor(indices)
        starts = self.starts[places]
        if self.moved and seed is not None:
            by = ((chances(indices, 1, seed)[:, 0] - 0.5) * self.length / 2).round().long()
            starts = torch.minimum(torch.maximum(starts + by, self.low[places]), self.high[places])
        return self.text[starts.unsqueeze(1) + torch.arange(self.length)], self.classes[places].to(torch.uint8)


@dataclass
class Corpus:
    """A text that was read and divided."""

    dataset: str
    digest: str
    train: Split
    validation: Split
    classes: list[str] = field(default_factory=list)
    notes: dict[str, Scalar] = field(default_factory=dict)


def zipf(count: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Random tokens whose frequency falls as 1 / rank (Zipf 1949): there is something to learn, down to their entropy."""
    import torch

    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    tokens = ((vocabulary + 1) ** uniform - 1).long().clamp(max=vocabulary - 1)
    return tokens.to(torch.uint8 if vocabulary <= 256 else torch.int32)


def read_text(source: str = "docs", *, clean: bool = False) -> tuple[str, bytes]:
    """Return the name and the bytes of one source: its documents in order, joined by newlines."""
    name, held = documents(source)
    held = cleaned(held, {}, set()) if clean else held
    return name, b"\n".join(text for _, text in held)


def unlabelled(args: TextArgs, length: int, vocabulary: int = 256) -> Corpus:
    """Read text as windows of `length` tokens; of each source the last tenth is held out, and validated on by its share."""
    import torch

    if args.data == SYNTHETIC:
        tokens = zipf(SYNTHETIC_TOKENS + 2 * length, vocabulary, seed=0)
        border = len(tokens) - len(tokens) // 16 - length
        starts = torch.arange(0, len(tokens) - border - length + 1, length)
        name = f"synthetic tokens, {vocabulary} by Zipf's law"
        train, held_out = Windows(tokens[:border], length), Windows(tokens[border:], length, starts)
        return Corpus(name, digest(tokens.numpy().tobytes()), train, held_out)
    names, texts, seen = [], [], set[bytes]()
    notes: dict[str, Scalar] = {}
    for source in args.sources:
        name, held = documents(source)
        joined = b"\n".join(text for _, text in (cleaned(held, notes, seen) if args.clean else held))
        if len(joined) < length:
            raise ValueError(f"the text {name} has {len(joined)} bytes, a sequence {length}")
        names.append(name)
        texts.append(joined)
    shares = list(args.sources.values())
    train, validation = _divided(
        [torch.frombuffer(bytearray(text), dtype=torch.uint8) for text in texts], shares, length
    )
    if len(texts) == 1:
        return Corpus(names[0], digest(texts[0]), train, validation, notes=notes)
    parts = [part for share, text in zip(shares, texts, strict=True) for part in (f"{share}:{len(text)}:", text)]
    mixed = " + ".join(f"{share:.3g} {name}" for share, name in zip(shares, names, strict=True))
    return Corpus(f"mix of {mixed}", digest(*parts), train, validation, notes=notes)


def _divided(texts: list[torch.Tensor], shares: list[float], length: int) -> tuple[Windows, Windows]:
    """Hold the last tenth of each text out, or one window of one that is too short for that."""
    import torch

    trained: list[torch.Tensor] = []
    held_out: list[torch.Tensor] = []
    spans, order, first, later_first = [], [], 0, 0
    for text, share in zip(texts, shares, strict=True):
        border = max(length, min(len(text) - len(text) // 10, len(text) - length))
        later = text[border:] if len(text) - border >= length else text
        spans.append((first, border - length + 1, share))
        starts = torch.arange(0, len(later) - length + 1, length)
        # Sorted by this, every beginning of the list has the sources in their shares.
        order.append(((torch.arange(len(starts)) + 0.5) / share, starts + later_first))
        trained.append(text[:border])
        held_out.append(later)
        first, later_first = first + border, later_first + len(later)
    places, starts = (torch.cat(part) for part in zip(*order, strict=True))
    train = Windows(torch.cat(trained), length)
    if len(texts) > 1:
        firsts, counts, weights = zip(*spans, strict=True)
        train.spans = torch.tensor(firsts), torch.tensor(counts, dtype=torch.float64), torch.tensor(weights)
    return train, Windows(torch.cat(held_out), length, starts[places.argsort(stable=True)])


def _class_folders(source: str) -> dict[str, Path]:
    folders = {p.name: p for p in sorted(Path(source).iterdir()) if p.is_dir()} if Path(source).is_dir() else {}
    if not 2 <= len(folders) <= 256:
        raise ValueError(
            f"{source} has {len(folders)} folders; labelled text is a folder with one folder a class, 2 to 256"
        )
    return folders


def labelled(args: WorkloadArgs, length: int) -> Corpus:
    """Read labelled text as pieces of `length` bytes; by default source, and which standard package it comes from.

    Of each class files with a sixth of its bytes are held out, chosen by a hash of their names. A folder of the user's has
    one folder a class; synthetic classes are random bytes with frequencies of their own.
    """
    import torch

    notes: dict[str, Scalar] = {}
    if args.data == SYNTHETIC:
        name, held = f"synthetic bytes in {len(PACKAGES)} classes", _synthetic_classes(length)
    elif args.data == "default":
        root = Path(sysconfig.get_path("stdlib"))
        name = f"source of {len(PACKAGES)} packages of the standard library of Python {platform.python_version()}"
        held = {p: [(str(f.relative_to(root)), f.read_bytes()) for f in _sources(root / p)] for p in PACKAGES}
    else:
        name = Path(args.data).name
        held = {label: documents(str(folder))[1] for label, folder in _class_folders(args.data).items()}
    seen = set[bytes]()
    halves: tuple[Documents, Documents] = [], []
    labels: tuple[list[int], list[int]] = [], []
    for label, (called, files) in enumerate(held.items()):
        for half, files_of in enumerate(_by_files(called, cleaned(files, notes, seen) if args.clean else files)):
            halves[half].extend(files_of)
            labels[half].extend([label] * len(files_of))
    known = set[bytes]() if args.clean else None
    moved = args.augmentation == "standard"
    validation = _pieces(halves[1], labels[1], length, known, moved=False)
    train = _pieces(halves[0], labels[0], length, known, moved=moved)
    for label, called in enumerate(held):
        if not all((part.classes == label).any() for part in (train, validation)):
            raise ValueError(f"class {called!r} has no piece of {length} bytes to train or to validate on")
    train.weights = balanced(train.classes) if args.balance else None
    tensors = (train.text, train.starts, train.classes, validation.text, validation.starts, validation.classes)
    mark = digest(*(t.numpy().tobytes() for t in tensors), torch.tensor(length).numpy().tobytes(), args.sampling)
    notes |= {"data_training_samples": len(train), "data_validation_samples": len(validation)}
    return Corpus(name, mark, train, validation, list(held), notes)


def _synthetic_classes(length: int) -> dict[str, Documents]:
    texts = {label: zipf(128 * length, 256, seed) for seed, label in enumerate(PACKAGES)}
    moved = {label: (text + 29 * seed).numpy().tobytes() for seed, (label, text) in enumerate(texts.items())}
    return {
        k: [(f"{k}/{i}", text[i : i + 8 * length]) for i in range(0, len(text), 8 * length)]
        for k, text in moved.items()
    }


def _by_files(called: str, files: Documents) -> tuple[Documents, Documents]:
    """Divide the files of a class: those to train on, and those held out."""
    if len(files) < 2:
        raise ValueError(f"class {called!r} has {len(files)} files with text; it takes two, one of them to validate on")
    order = sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).digest())
    wanted, count, held = HELD_OUT * sum(len(text) for _, text in files), 0, 0
    while count < len(order) - 1 and held < wanted:
        held += len(order[count][1])
        count += 1
    return order[count:], order[:count]


def _pieces(files: Documents, labels: list[int], length: int, known: set[bytes] | None, *, moved: bool) -> Pieces:
    """Cut files into pieces; with `known`, those that are empty or were there before are left out."""
    import torch

    rows, offset = [], 0
    for (_, text), label in zip(files, labels, strict=True):
        last = offset + len(text) - length
        for start in range(0, len(text) - length + 1, length):
            piece = text[start : start + length]
            if known is not None and (piece in known or not piece.strip()):
                continue
            if known is not None:
                known.add(piece)
            rows.append((offset + start, offset, last, label))
        offset += len(text)
    # In no order, so that the first pieces, which a validation looks at, are of all classes.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    held = torch.frombuffer(bytearray(b"".join(text for _, text in files) or b"\0"), dtype=torch.uint8)
    return Pieces(held, torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)[order], length, moved=moved)
