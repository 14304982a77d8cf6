"""Text as bytes: for language models, and labelled with classes. Nothing is downloaded.

The Python standard library ships real text: its language reference (`docs`, `pydoc_data.topics`) and its source (`code`).
Files and folders of the user are supported too. Without labels the last tenth of each source is held out. With labels
whole files are held out, so no file is in both splits.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, field_validator, model_validator

from bench.registry import did_you_mean
from bench.schema import Scalar
from bench.workloads.base import SYNTHETIC, Batch, Corpus, Split, WorkloadArgs, balanced, chances, digest

if TYPE_CHECKING:
    import torch

MAX_TEXT_BYTES = 1 << 30
NAMES = ("default", "docs", "code", SYNTHETIC)
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")
"""Large packages of the standard library of Python 3.11 and newer: the classes of labelled text."""
HELD_OUT = 1 / 6
SYNTHETIC_TOKENS = 1 << 20
Documents = list[tuple[str, bytes]]


class TextArgs(WorkloadArgs):
    """Arguments: the text and the length of a sample.

    `data` is `docs` (the default), `code`, `synthetic` (random tokens by Zipf's law), or a file or folder; `text` is another
    name for it. `mix` draws from several sources by weight: `docs:0.7,code:0.3`.
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
            raise ValueError(f"{value!r} is no mix: give each source once, with a weight above 0: docs:0.7,code:0.3")
        if SYNTHETIC in shares or "default" in shares:
            raise ValueError(f"{value!r}: a mix takes docs, code, files and folders")
        return ",".join(f"{name}:{share:g}" for name, share in shares.items())

    @property
    def labelled(self) -> bool:
        """Whether the samples have classes."""
        return False

    @property
    def sources(self) -> dict[str, float]:
        """Sources of the text, each with its share of the samples."""
        if self.mix is None:
            return {self.text or ("docs" if self.data == "default" else self.data): 1.0}
        parts = [part.rpartition(":") for part in self.mix.split(",")]
        total = sum(float(share) for _, _, share in parts)
        return {name: float(share) / total for name, _, share in parts}

    def refusals(self) -> dict[str, str]:
        """Return the arguments that are not supported with labels, or without, each with the reason."""
        reasons = {"augmentation": "a language model has none", "balance": "text without labels has no classes"}
        if self.labelled:
            reasons = dict.fromkeys(
                ("text", "mix"), "text with labels comes from data: a folder with one folder per class"
            )
        return super().refusals() | reasons

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        names = [name for name in ("text", "mix") if getattr(self, name) is not None]
        names += ["data"] if self.data != "default" else []
        if len(names) > 1:
            raise ValueError(f"give only one of {' and '.join(names)}")
        if self.labelled and self.data in ("docs", "code"):
            raise ValueError(
                f"data {self.data!r} has no labels: leave it out, or give a folder with one folder per class"
            )
        if self.labelled and self.data not in NAMES:
            _class_folders(self.data)
        for source in [] if self.labelled else self.sources:
            if source not in NAMES:
                check_text(source, self.sequence_length)
        return self


def _existing(value: str) -> str:
    path = Path(value).expanduser().resolve()
    if not path.exists():
        hint = "" if "/" in value else f"; {did_you_mean(value, NAMES)}"
        raise ValueError(f"no such file or folder: {path}{hint}")
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
    """Look at the first bytes of the files of a text. Raises ValueError where it cannot be used for training."""
    size = 0
    for file in _files(source):
        try:
            with file.open("rb") as opened:
                size += file.stat().st_size if b"\0" not in opened.read(65_536) else 0
        except OSError as error:
            raise ValueError(f"the text {file} cannot be read: {error.strerror}") from error
    if size <= sequence_length:
        raise ValueError(f"the text {source} has {size} bytes of text; a sequence needs {sequence_length} + 1")


def documents(source: str) -> tuple[str, Documents]:
    """Return the name of a source and its named documents: topics or files. Files with NUL bytes are binary and left out."""
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
    """Return the Python files below a folder of the standard library, without tests and installed packages."""
    excluded = {"test", "tests", "site-packages", "dist-packages", "idle_test"}
    return sorted(p for p in folder.rglob("*.py") if not excluded & set(p.relative_to(folder).parts))


def cleaned(texts: Documents, notes: dict[str, Scalar], seen: set[bytes]) -> Documents:
    """Drop empty documents and duplicates, and count them in `notes`; `seen` holds the digests of earlier documents."""
    kept, filled = [], [(name, text) for name, text in texts if text.strip()]
    for name, text in filled:
        key = hashlib.sha256(text).digest()
        if key not in seen:
            seen.add(key)
            kept.append((name, text))
    removed = {"empty_removed": len(texts) - len(filled), "duplicates_removed": len(filled) - len(kept)}
    for name, count in ({"documents": len(kept)} | removed).items():
        notes[f"data_{name}"] = int(notes.get(f"data_{name}", 0)) + count
    return kept


class Windows(Split):
    """Windows of `length` tokens of a text: batches of shape (samples, length), uint8 (bytes) or int32.

    A window starts at every token, or at each of `starts`. With `spans` (first window, number of windows, share; one of each
    per source) training draws a source by its share, then a window in it.
    """

    def __init__(self, text: torch.Tensor, length: int, starts: torch.Tensor | None = None) -> None:
        self.text, self.length, self.starts = text, length, starts
        self.spans: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.text) - self.length + 1 if self.starts is None else len(self.starts)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw a source by its share, then a window in it. A weighted draw over all windows would be slow."""
        import torch

        if self.spans is None:
            return super().draw(count, generator)
        firsts, counts, shares = self.spans
        chosen = torch.multinomial(shares, count, replacement=True, generator=generator)
        places = torch.rand(count, dtype=torch.float64, generator=generator) * counts[chosen]
        return firsts[chosen] + places.long()

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return windows; nothing about them is random."""
        import torch

        rows = torch.tensor(indices)
        starts = rows if self.starts is None else self.starts[rows]
        return (self.text[starts.unsqueeze(1) + torch.arange(self.length)],)


class Pieces(Split):
    """Labelled pieces of `length` bytes (uint8 of shape (samples, length)) and classes (uint8 of shape (samples,)).

    With `shifted` a training piece starts up to a quarter of its length earlier or later, within its file.
    """

    def __init__(self, text: torch.Tensor, rows: torch.Tensor, length: int, *, shifted: bool = False) -> None:
        self.text, self.length, self.shifted = text, length, shifted
        self.starts, self.low, self.high, self.classes = rows.unbind(1)

    def __len__(self) -> int:
        return len(self.starts)

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return pieces and their classes."""
        import torch

        rows = torch.tensor(indices)
        starts = self.starts[rows]
        if self.shifted and seed is not None:
            shift = ((chances(indices, 1, seed)[:, 0] - 0.5) * self.length / 2).round().long()
            starts = torch.minimum(torch.maximum(starts + shift, self.low[rows]), self.high[rows])
        return self.text[starts.unsqueeze(1) + torch.arange(self.length)], self.classes[rows].to(torch.uint8)


def zipf(count: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Return random tokens whose frequency falls as 1 / rank (Zipf 1949), so a model can learn down to their entropy."""
    import torch

    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    tokens = ((vocabulary + 1) ** uniform - 1).long().clamp(max=vocabulary - 1)
    return tokens.to(torch.uint8 if vocabulary <= 256 else torch.int32)


def read_text(source: str = "docs", *, clean: bool = False) -> tuple[str, bytes]:
    """Return the name and the bytes of one source: its documents in order, joined by newlines."""
    return _joined(source, {}, set() if clean else None)


def _joined(source: str, notes: dict[str, Scalar], seen: set[bytes] | None) -> tuple[str, bytes]:
    name, texts = documents(source)
    return name, b"\n".join(text for _, text in (texts if seen is None else cleaned(texts, notes, seen)))


def unlabelled(args: TextArgs, length: int, vocabulary: int = 256) -> Corpus:
    """Read text as windows of `length` tokens; the last tenth of each source is held out for validation, by its share."""
    import torch

    if args.data == SYNTHETIC:
        tokens = zipf(SYNTHETIC_TOKENS + 2 * length, vocabulary, seed=0)
        border = len(tokens) - len(tokens) // 16 - length
        starts = torch.arange(0, len(tokens) - border - length + 1, length)
        name = f"synthetic tokens, {vocabulary} by Zipf's law"
        train, held_out = Windows(tokens[:border], length), Windows(tokens[border:], length, starts)
        return Corpus(name, digest(tokens.numpy().tobytes()), train, held_out)
    notes: dict[str, Scalar] = {}
    seen: set[bytes] | None = set() if args.clean else None
    names, texts = zip(*(_joined(source, notes, seen) for source in args.sources), strict=True)
    for name, text in zip(names, texts, strict=True):
        if len(text) < length:
            raise ValueError(f"the text {name} has {len(text)} bytes; a sequence needs {length}")
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
    """Split each text: its last tenth is held out, or one window where that is longer."""
    import torch

    trained: list[torch.Tensor] = []
    held_out: list[torch.Tensor] = []
    spans, order, first, later_first = [], [], 0, 0
    for text, share in zip(texts, shares, strict=True):
        border = max(length, min(len(text) - len(text) // 10, len(text) - length))
        later = text[border:] if len(text) - border >= length else text
        spans.append((first, border - length + 1, share))
        starts = torch.arange(0, len(later) - length + 1, length)
        # Sorted by this key, every prefix of the list contains the sources in their shares.
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
        raise ValueError(f"{source} has {len(folders)} folders; labelled text has one folder per class, 2 to 256")
    return folders


def labelled(args: WorkloadArgs, length: int) -> Corpus:
    """Read labelled text as pieces of `length` bytes. By default it is source, labelled with its standard package.

    Files with a sixth of the bytes of each class are held out, chosen by a hash of their names. A folder of the user has one
    folder per class. Synthetic classes are random bytes, each class with its own frequencies.
    """
    import torch

    notes: dict[str, Scalar] = {}
    if args.data == SYNTHETIC:
        name, texts = f"synthetic bytes in {len(PACKAGES)} classes", _synthetic_classes(length)
    elif args.data == "default":
        root = Path(sysconfig.get_path("stdlib"))
        name = f"source of {len(PACKAGES)} packages of the standard library of Python {platform.python_version()}"
        texts = {p: [(str(f.relative_to(root)), f.read_bytes()) for f in _sources(root / p)] for p in PACKAGES}
    else:
        name = Path(args.data).name
        texts = {label: documents(str(folder))[1] for label, folder in _class_folders(args.data).items()}
    seen = set[bytes]()
    halves: tuple[Documents, Documents] = [], []
    labels: tuple[list[int], list[int]] = [], []
    for label, (class_name, files) in enumerate(texts.items()):
        for half, part in enumerate(_split_files(class_name, cleaned(files, notes, seen) if args.clean else files)):
            halves[half].extend(part)
            labels[half].extend([label] * len(part))
    pieces = set[bytes]() if args.clean else None
    validation = _pieces(halves[1], labels[1], length, pieces, shifted=False)
    train = _pieces(halves[0], labels[0], length, pieces, shifted=args.augmentation == "standard")
    for label, class_name in enumerate(texts):
        if not all((split.classes == label).any() for split in (train, validation)):
            raise ValueError(f"class {class_name!r} has no piece of {length} bytes for training or for validation")
    train.weights = balanced(train.classes) if args.balance else None
    tensors = (train.text, train.starts, train.classes, validation.text, validation.starts, validation.classes)
    sha = digest(*(t.numpy().tobytes() for t in tensors), torch.tensor(length).numpy().tobytes(), args.sampling)
    notes |= {"data_training_samples": len(train), "data_validation_samples": len(validation)}
    return Corpus(name, sha, train, validation, list(texts), notes)


def _synthetic_classes(length: int) -> dict[str, Documents]:
    classes: dict[str, Documents] = {}
    for seed, label in enumerate(PACKAGES):
        text = (zipf(128 * length, 256, seed) + 29 * seed).numpy().tobytes()
        classes[label] = [(f"{label}/{i}", text[i : i + 8 * length]) for i in range(0, len(text), 8 * length)]
    return classes


def _split_files(class_name: str, files: Documents) -> tuple[Documents, Documents]:
    """Return the files of a class for training and those held out."""
    if len(files) < 2:
        raise ValueError(f"class {class_name!r} has {len(files)} files with text; it needs at least two")
    order = sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).digest())
    limit, count, size = HELD_OUT * sum(len(text) for _, text in files), 0, 0
    while count < len(order) - 1 and size < limit:
        size += len(order[count][1])
        count += 1
    return order[count:], order[:count]


def _pieces(files: Documents, labels: list[int], length: int, seen: set[bytes] | None, *, shifted: bool) -> Pieces:
    """Cut files into pieces. With `seen` empty pieces and duplicates are left out."""
    import torch

    rows, offset = [], 0
    for (_, text), label in zip(files, labels, strict=True):
        last = offset + len(text) - length
        for start in range(0, len(text) - length + 1, length):
            piece = text[start : start + length]
            if seen is not None and (piece in seen or not piece.strip()):
                continue
            if seen is not None:
                seen.add(piece)
            rows.append((offset + start, offset, last, label))
        offset += len(text)
    # In random order, so that the first pieces, which validation uses, are of all classes.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    joined = torch.frombuffer(bytearray(b"".join(text for _, text in files) or b"\0"), dtype=torch.uint8)
    return Pieces(joined, torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)[order], length, shifted=shifted)
