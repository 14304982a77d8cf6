"""Training on the outputs of a trained model in addition to the labels."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from bench import registry
from bench.folder import SPEC
from bench.strategies.checkpoint import load_into
from bench.strategies.flops import on_meta
from bench.strategies.parts import Parts, Unsupported
from bench.strategies.precision import store_as
from bench.workloads.base import Batch, Workload


def soft(parts: Parts, *, temperature: float, alpha: float) -> None:
    """Distil the model of the needed run into this one (Hinton et al. 2015).

    The loss is alpha · T² · KL(teacher / T || student / T) + (1 - alpha) · cross-entropy, averaged over the labelled
    positions. The teacher's forward pass is part of the step but not of the model's FLOP. Each rank holds a whole teacher,
    in the type of the training's matrix products.
    """
    theirs, teacher = _teacher(parts)
    ours = parts.workload
    _same_answers(parts, theirs, teacher)

    def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            target = log_softmax(theirs.logits(teacher, batch).flatten(0, -2).float() / temperature, -1)
        logits, labels = ours.logits(model, batch).flatten(0, -2).float(), ours.labels(batch).flatten()
        divergence = kl_div(log_softmax(logits / temperature, -1), target, reduction="none", log_target=True).sum(-1)
        labelled = labels != -100
        distance = (divergence * labelled).sum() / labelled.sum().clamp(min=1)
        return alpha * temperature**2 * distance + (1 - alpha) * cross_entropy(logits, labels)

    parts.loss = loss


def _teacher(parts: Parts) -> tuple[Workload, torch.nn.Module]:
    """Build the model of the needed run with its weights, frozen."""
    assert parts.needed is not None, "expansion demands a teacher"  # noqa: S101
    spec = SPEC.read(parts.needed)
    workload: Workload = registry.load("workload", spec.workload)(spec.workload_args)
    with parts.device:
        model = workload.build()
    loaded = load_into(model, parts.needed)
    if loaded.fresh:
        raise ValueError(f"the teacher's checkpoint lacks {loaded.notes['left']}")
    model = store_as(model, parts.precision.compute_dtype)  # autocast would cast frozen weights in each step
    parts.notes["teacher"] = spec.label
    parts.notes["teacher_parameters"] = sum(p.numel() for p in model.parameters())
    parts.notes["teacher_sha256"] = loaded.notes["needed_sha256"]
    return workload, model.eval().requires_grad_(False)


def _same_answers(parts: Parts, theirs: Workload, teacher: torch.nn.Module) -> None:
    """Raise Unsupported if teacher and student do not score the same classes at the same positions."""
    batch = tuple(tensor.to("meta") for tensor in parts.workload.train.__getitems__([0]))
    try:
        with torch.no_grad():
            teacher_shape = theirs.logits(on_meta(teacher), batch).shape
            student_shape = parts.workload.logits(on_meta(parts.model), batch).shape
            labels = parts.workload.labels(batch).shape
    except NotImplementedError as error:
        raise Unsupported(f"distillation needs a workload with classes, unlike {parts.spec.workload}") from error
    except (RuntimeError, IndexError) as error:
        raise Unsupported(f"the teacher cannot process the student's samples: {error}") from error
    if teacher_shape != student_shape or labels != student_shape[:-1]:
        raise Unsupported(
            f"the teacher returns scores of shape {tuple(teacher_shape)}, the student of {tuple(student_shape)}"
        )
