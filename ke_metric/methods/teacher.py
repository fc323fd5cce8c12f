"""The parent as a teacher: its outputs for the same views of the images are part of the child's loss.

Shapes: B batch, D embedding, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from ke_metric.methods.method import Inheritance
from ke_metric.training.hooks import TrainingHooks

LOGITS_TEMPERATURE = 1.0
SIMILARITY_TEMPERATURE = 0.1


class Guided(TrainingHooks):
    """Adds to the loss how far the network's outputs are from the teacher's.

    Args:
        teacher: The parent, frozen and in eval mode.
        task: `classification`: T^2 KL(softmax(t / T) || softmax(z / T)), mean over the batch, for logits t of the
            teacher and z of the student (Hinton, Vinyals, Dean 2015; with T = 1 its gradient is that of the cross
            entropy of Furlanello et al., ICML 2018). `retrieval`: the same for every image's similarities to the
            others of the batch, whose temperature stays (relational distillation; ours).
        weight: Factor of what is added.
        temperature: T; 1 for logits and 0.1 for similarities when None.
    """

    def __init__(self, teacher: nn.Module, task: str, *, weight: float, temperature: float | None) -> None:
        self._teacher, self._task, self._weight = teacher, task, weight
        own = LOGITS_TEMPERATURE if task == "classification" else SIMILARITY_TEMPERATURE
        self._temperature = own if temperature is None else temperature

    def targets(self, images: Tensor) -> Tensor | None:
        """Return the teacher's outputs."""
        with torch.no_grad():
            outputs: Tensor = self._teacher(images)
        return outputs

    def added_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted divergence."""
        if self._task == "classification":
            return self._weight * self._temperature**2 * divergence(targets, outputs, self._temperature)
        if len(outputs) < 3:
            # One other image has all of the similarity, whatever it is.
            return outputs.sum() * 0
        return self._weight * divergence(similarities(targets), similarities(outputs), self._temperature)


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return KL(softmax(teacher / T) || softmax(student / T)) of two score tensors [B, K], mean over rows."""
    expected = log_softmax(teacher.float() / temperature, dim=1)
    return kl_div(log_softmax(student.float() / temperature, dim=1), expected, reduction="batchmean", log_target=True)


def similarities(embeddings: Tensor) -> Tensor:
    """Return the similarities of every item to the others, [B, B - 1], of L2-normalised embeddings [B, D]."""
    count = len(embeddings)
    others = ~torch.eye(count, dtype=torch.bool, device=embeddings.device)
    return (embeddings @ embeddings.T)[others].view(count, count - 1)


def taught(inheritance: Inheritance, *, least: float = 0.0) -> TrainingHooks:
    """Return the hooks of a generation whose parent teaches it, if it has one, with `method.teacher_weight`.

    Args:
        inheritance: Of the generation.
        least: The weight where the recipe's is 0; with 0 nobody teaches then.
    """
    method = inheritance.method
    weight = method.teacher_weight or least
    if inheritance.parent is None or not weight:
        return TrainingHooks()
    teacher = frozen_parent(inheritance)
    return Guided(teacher, inheritance.recipe.task, weight=weight, temperature=method.teacher_temperature)


def frozen_parent(inheritance: Inheritance) -> nn.Module:
    """Return the parent as a network of its own, frozen and in eval mode, where the generation is trained."""
    network, _ = inheritance.parent_network(inheritance.device)
    return network.requires_grad_(False).eval()
