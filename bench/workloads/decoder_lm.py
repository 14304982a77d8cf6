"""A decoder language model from a `transformers` configuration, trained on real text byte by byte.

Nothing is downloaded: weights start at random, and the text is what the Python standard library ships
(`pydoc_data.topics`, the language reference) or a file or folder of the user's. torch and transformers are imported when
a model is built, not when the arguments are checked.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bench.registry import did_you_mean
from bench.schema import Count
from bench.workloads.base import Split, Workload, WorkloadArgs

if TYPE_CHECKING:
    import torch

    from bench.workloads.base import Batch

PRESETS: dict[str, tuple[int, int, int, int]] = {
    # name: layers, hidden size, heads, vocabulary. Bytes need 256; the GPT-2 shapes keep their own vocabulary and head.
    "tiny": (4, 128, 4, 256),
    "small": (4, 256, 4, 256),
    "base": (6, 384, 6, 256),
    "gpt2-124m": (12, 768, 12, 50257),
    "gpt2-350m": (24, 1024, 16, 50257),
    "gpt2-774m": (36, 1280, 20, 50257),
    "gpt2-1.5b": (48, 1600, 25, 50257),
}
MAX_TEXT_BYTES = 1 << 30


class DecoderLMArgs(WorkloadArgs):
    """What may be chosen: a preset, or `layers`, `hidden` and `heads` one by one; the length of a sequence; the text."""

    architecture: Literal["gpt2"] = "gpt2"
    preset: str | None = None
    layers: Count | None = None
    hidden: Count | None = None
    heads: Count | None = None
    vocabulary: Annotated[int, Field(ge=256)] | None = None
    sequence_length: Annotated[int, Field(ge=2, le=1 << 20)] = 128
    text: str | None = None

    @field_validator("preset")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            raise ValueError(f"unknown preset {value!r}: {did_you_mean(value, PRESETS)}")
        return value

    @field_validator("text")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is None:
            return None
        path = Path(value).expanduser().resolve()
        if not path.exists():
            raise ValueError(f"no such file or folder: {path}")
        return str(path)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.preset is None and (self.layers is None or self.hidden is None):
            raise ValueError(f"give a preset ({', '.join(PRESETS)}), or layers and hidden")
        if self.text is not None:
            check_text(self.text, self.sequence_length)
        _, hidden, heads, _ = self.shape
        if hidden % heads:
            raise ValueError(f"hidden {hidden} is not a multiple of heads {heads}")
        return self

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Layers, hidden size, heads, vocabulary: the preset's, where they are not given one by one."""
        layers, hidden, heads, vocabulary = PRESETS[self.preset] if self.preset else (0, 0, 0, 256)
        hidden = self.hidden or hidden
        heads = self.heads or (heads if not self.hidden else max(1, hidden // 64))
        return self.layers or layers, hidden, heads, self.vocabulary or vocabulary


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


def read_text(source: str | None) -> tuple[str, bytes]:
    """Return the name and the bytes of the text: the language reference, a file, or all text files of a folder.

    Files of a folder are joined in the order of their paths; those with NUL bytes are left out as binary. Raises
    ValueError for a text that is empty or larger than 1 GiB.
    """
    if source is None:
        from pydoc_data.topics import topics

        text = "\n".join(topics[key] for key in sorted(topics)).encode()
        return f"pydoc_data.topics of Python {platform.python_version()}", text
    path, files = Path(source), _files(source)
    parts = [part for file in files if (part := file.read_bytes()) and b"\0" not in part]
    if not parts:
        raise ValueError(f"no text in {path}: {len(files)} files, all empty or binary")
    return path.name, b"\n".join(parts)


class Windows(Split):
    """Stretches of `length` bytes of a text, one beginning at every byte: batches of shape (samples, length), uint8."""

    def __init__(self, text: torch.Tensor, length: int, step: int = 1) -> None:
        self.text, self.length, self.step = text, length, step

    def __len__(self) -> int:
        return (len(self.text) - self.length) // self.step + 1

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return the stretches that begin at these places."""
        import torch

        starts = torch.tensor(indices).unsqueeze(1) * self.step
        return (self.text[starts + torch.arange(self.length)],)  # bytes: small enough to travel without waiting


class DecoderLM(Workload):
    """The workload of one rank. A sample is one sequence of `sequence_length` bytes, each with a byte to predict."""

    Args = DecoderLMArgs
    modules = ("transformers.models.gpt2.modeling_gpt2",)

    def __init__(self, args: dict[str, Any]) -> None:
        import torch

        super().__init__(args)
        self.dataset, text = read_text(self.args.text)
        self.dataset_digest = hashlib.sha256(text).hexdigest()
        length = self.args.sequence_length + 1
        if len(text) < length:
            raise ValueError(f"the text {self.dataset} has {len(text)} bytes, a sequence {length}")
        held = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        # The last tenth is held out, or one sequence of a text that is too short for that.
        border = max(length, min(len(held) - len(held) // 10, len(held) - length))
        self.train = Windows(held[:border], length)
        self.validation = Windows(held[border:] if len(held) - border >= length else held, length, step=length)
        self.tokens_per_sample = self.args.sequence_length

    def build(self) -> torch.nn.Module:
        """Return the model with random weights, on the current default device."""
        from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        # transformers looks for packed sequences in each forward pass and waits for the device to know. An attention
        # that it knows no mask for spares that: without a mask, SDPA is causal, which is what is wanted.
        AttentionInterface.register("sdpa_causal", sdpa_attention_forward)
        layers, hidden, heads, vocabulary = self.args.shape
        config = GPT2Config(
            n_layer=layers,
            n_embd=hidden,
            n_head=heads,
            vocab_size=vocabulary,
            n_positions=self.args.sequence_length,
            use_cache=False,
            attn_implementation="sdpa_causal",
            bos_token_id=0,
            eos_token_id=0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
        )
        return GPT2LMHeadModel(config)

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the transformer layers."""
        return list(model.transformer.h)

    def flops_per_sample(self) -> float:
        """Model FLOP of one sequence, forward and backward: T (6 N + 12 L h T).

        PaLM, appendix B (Chowdhery et al. 2022): 6 for each parameter that is multiplied with, and 12 L h T a token for
        attention, not halved for the causal mask. The position embedding, which is looked up, is left out; the token
        embedding stays, as it is also the output projection.
        """
        import torch

        layers, hidden, _, _ = self.args.shape
        tokens = self.args.sequence_length
        with torch.device("meta"):
            multiplied = sum(p.numel() for p in self.build().parameters()) - tokens * hidden
        return float(tokens * (6 * multiplied + 12 * layers * hidden * tokens))

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Scores of each next byte, of shape (samples, sequence_length, vocabulary)."""
        logits: torch.Tensor = model(input_ids=batch[0][:, :-1].long()).logits
        return logits

    def labels(self, batch: Batch) -> torch.Tensor:
        """The next bytes."""
        return batch[0][:, 1:].long()

    def initialize(self, model: torch.nn.Module) -> None:
        """Give weights and buffers to a model that was built on `meta`; weights that were tied are tied again."""
        for module in model.modules():
            module._is_hf_initialized = False
        model.init_weights()
