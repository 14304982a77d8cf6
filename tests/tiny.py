"""Parts of trainings small enough to be looked at: a decoder, and blocks of other architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from bench import registry
from bench.folder import CHECKPOINT, SPEC
from bench.schema import Choice, RunSpec
from bench.strategies import catalog
from bench.strategies.checkpoint import save
from bench.strategies.parts import Parts, Precision
from bench.workloads.base import Batch, Workload, WorkloadArgs
from bench.workloads.decoder_lm import DecoderLM

CPU = torch.device("cpu")
DECODER = {"layers": 4, "hidden": 32, "heads": 2, "sequence_length": 16}


class OtherArgs(WorkloadArgs):
    architecture: Literal["llama", "bert", "mlp", "classifier"] = "llama"
    classes: int = 7


class _Tokens:
    """Samples (16 tokens, a label for each), all alike."""

    weights = None

    def __len__(self) -> int:
        return 8

    def __getitems__(self, indices: Any) -> Batch:
        return torch.arange(16).repeat(len(indices), 1) % 7, torch.arange(16).repeat(len(indices), 1) % 5


class Other(Workload):
    """Two blocks of a Llama, a BERT, a BERT classifier of whole samples, or two linear layers without blocks."""

    Args = OtherArgs
    dataset, dataset_digest = "tokens", "0"
    train = validation = _Tokens()

    def build(self) -> torch.nn.Module:
        from transformers import (
            AttentionInterface,
            BertConfig,
            BertForMaskedLM,
            BertForSequenceClassification,
            LlamaConfig,
            LlamaForCausalLM,
        )
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 32}
        kind = self.args.architecture
        if kind == "llama":
            AttentionInterface.register("sdpa_causal", sdpa_attention_forward)  # as decoder_lm has it, for its reason
            config = LlamaConfig(**sizes, use_cache=False, pad_token_id=0, attn_implementation="sdpa_causal")
            return LlamaForCausalLM(config)
        if kind == "bert":
            return BertForMaskedLM(BertConfig(**sizes))
        if kind == "classifier":
            return BertForSequenceClassification(BertConfig(**sizes, num_labels=self.args.classes))
        layers = [torch.nn.Embedding(16, 64), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16)]
        return torch.nn.Sequential(*layers)

    def blocks(self, model: Any) -> list[torch.nn.Module]:
        if self.args.architecture == "llama":
            return list(model.model.layers)
        return list(model.bert.encoder.layer) if self.args.architecture in ("bert", "classifier") else []

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        found = model(batch[0])
        return found if isinstance(found, torch.Tensor) else found.logits

    def labels(self, batch: Batch) -> torch.Tensor:
        return batch[1] if self.args.architecture != "classifier" else batch[1][:, 3]

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        loss, _, asked = self.score(model, batch)
        return loss / asked


class Whole:
    """What `save` asks of a parallelism, without ranks."""

    def __init__(self, parts: Parts, prefix: str = "") -> None:
        self.parts, self.prefix = parts, prefix

    def state(self) -> dict[str, torch.Tensor]:
        return {self.prefix + name: tensor.detach() for name, tensor in self.parts.model.state_dict().items()}


def saved(run: Path, parts: Parts, prefix: str = "") -> Path:
    """Save the weights as the run of this folder does; return the folder."""
    run.mkdir(exist_ok=True)
    SPEC.write(run, parts.spec)
    save(parts.spec, Whole(parts, prefix), run / CHECKPOINT)
    return run


def strategy(axis: str, name: str, **options: Any) -> Any:
    """Return the code of a strategy with its options, those that are not given at their defaults."""
    return catalog.load(axis, Choice(name=name, options=options))


def spec(workload: str = "decoder_lm", args: dict[str, Any] | None = None, **fields: Any) -> RunSpec:
    """Return a run of a few steps on this CPU."""
    given = {"device_type": "cpu", "batch_size_per_device": 2, "measure_steps": 8, "warmup_steps": 2} | fields
    return RunSpec.model_validate({"workload": workload, "workload_args": DECODER if args is None else args, **given})


def parts(
    workload: str = "decoder_lm",
    args: dict[str, Any] | None = None,
    precise: Precision | None = None,
    **fields: Any,
) -> Parts:
    """Return the parts of such a run, its model with random weights."""
    asked = spec(workload, args, **fields)
    kind = registry.load("workload", workload) if workload in registry.names("workload") else Other
    made: Workload = kind(asked.workload_args)
    torch.manual_seed(0)
    found = Parts(asked, CPU, made, made.build().train(), precise or Precision())
    found.planned_steps = 10
    return found


def batch(found: Parts, count: int = 4) -> Batch:
    """Return samples of the training split."""
    return found.workload.train.__getitems__(
        list(range(0, 5 * count, 5)) if isinstance(found.workload, DecoderLM) else [0, 1]
    )


def train(found: Parts, steps: int, rate: float = 1e-2, first: int = 1) -> list[float]:
    """Train with AdamW as a run does, from the step `first` on; return the losses."""
    optimizer = torch.optim.AdamW([p for p in found.model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = found.loss(found.model, batch(found))
        loss.backward()
        optimizer.step()
        for after in found.after_step:
            after(step)
        losses.append(loss.item())
    return losses
