"""Learning from a trained model beside the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.folder import SPEC
from bench.schema import SHARED_COPY
from bench.strategies.flops import on_meta
from bench.strategies.precision import Unsupported, store_as

if TYPE_CHECKING:
    import torch

    from bench.strategies.parts import Parts
    from bench.workloads.base import Batch, Workload


def soft(parts: Parts, temperature: float = 2.0, alpha: float = 0.5) -> None:
    """Distil the needed run's model into this one (Hinton et al. 2015).

    The loss is alpha · T² · KL(teacher / T || student / T) + (1 - alpha) · cross-entropy, means over the answers that are
    asked for. The teacher's forward pass is part of the step, and no part of the model's FLOP; each rank holds a whole
    teacher, in the type in which the training multiplies.
    """
    import torch
    from torch.nn.functional import cross_entropy, kl_div, log_softmax

    if not (temperature > 0 and 0 <= alpha <= 1):
        raise Unsupported(f"distillation takes temperature > 0 and 0 <= alpha <= 1, not {temperature} and {alpha}")
    if parts.spec.parallelism.name in SHARED_COPY:
        raise Unsupported(
            f"distillation does not go with parallelism {parts.spec.parallelism.name!r}: choose ddp or fsdp"
        )
    theirs, teacher = _teacher(parts)
    ours = parts.workload
    _same_answers(parts, theirs, teacher)

    def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            wanted = log_softmax(theirs.logits(teacher, batch).flatten(0, -2).float() / temperature, -1)
        logits, labels = ours.logits(model, batch).flatten(0, -2).float(), ours.labels(batch).flatten()
        divergence = kl_div(log_softmax(logits / temperature, -1), wanted, reduction="none", log_target=True).sum(-1)
        asked = labels != -100
        likeness = (divergence * asked).sum() / asked.sum().clamp(min=1)
        return alpha * temperature**2 * likeness + (1 - alpha) * cross_entropy(logits, labels)

    parts.loss = loss


def _teacher(parts: Parts) -> tuple[Workload, torch.nn.Module]:
    """Build the model of the needed run with its weights, frozen."""
    from bench import registry
    from bench.strategies.checkpoint import load_into

    if parts.needed is None:
        raise Unsupported("distillation has no teacher: give needs: NAME of a run that saves NAME")
    spec = SPEC.read(parts.needed)
    if spec.workload != parts.spec.workload:
        raise Unsupported(f"the teacher's workload is {spec.workload}, the student's {parts.spec.workload}")
    workload: Workload = registry.load("workload", spec.workload)(spec.workload_args)
    with parts.device:
        model = workload.build()
    loaded = load_into(model, parts.needed)
    if loaded.fresh:
        raise ValueError(f"the teacher's checkpoint lacks {loaded.notes['left']}")
    model = store_as(model, parts.precision.compute_dtype)  # autocast would cast frozen weights anew in each step
    parts.notes["teacher"] = spec.label
    parts.notes["teacher_parameters"] = sum(p.numel() for p in model.parameters())
    parts.notes["teacher_sha256"] = loaded.notes["needed_sha256"]
    return workload, model.eval().requires_grad_(False)


def _same_answers(parts: Parts, theirs: Workload, teacher: torch.nn.Module) -> None:
    """Refuse a teacher that answers other questions than the student is asked."""
    import torch

    batch = tuple(tensor.to("meta") for tensor in parts.workload.train.__getitems__([0]))
    try:
        with torch.no_grad():
            taught = theirs.logits(on_meta(teacher), batch).shape
            asked = parts.workload.logits(on_meta(parts.model), batch).shape
            labels = parts.workload.labels(batch).shape
    except NotImplementedError as error:
        raise Unsupported(f"distillation needs a workload with classes, which {parts.spec.workload} has not") from error
    except (RuntimeError, IndexError) as error:
        raise Unsupported(f"the teacher cannot read the student's samples: {error}") from error
    if taught != asked or labels != asked[:-1]:
        raise Unsupported(f"the teacher answers with scores of shape {tuple(taught)}, the student of {tuple(asked)}")
