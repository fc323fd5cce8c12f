"""The parent as a teacher: its outputs for the same views of the images are part of the child's loss.

Shapes: B batch, D embedding, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from ke_metric.methods.method import Birth, Method
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


def guidance(birth: Birth) -> TrainingHooks:
    """Return the hooks of a method whose recipe may ask for the parent as a teacher (`method.teacher_weight`)."""
    recipe = birth.recipe
    if birth.parent is None or recipe.teacher_weight == 0:
        return TrainingHooks()
    return Guided(birth.teacher(), birth.task, weight=recipe.teacher_weight, temperature=recipe.teacher_temperature)


def taught_by_parent(birth: Birth) -> TrainingHooks:
    """Return the hooks of a generation that always has its parent as a teacher, with a weight of 1 where it is 0."""
    weight = birth.recipe.teacher_weight or 1.0
    return Guided(birth.teacher(), birth.task, weight=weight, temperature=birth.recipe.teacher_temperature)


class BornAgain(Method):
    """Born-Again Networks: a student from new random weights, its parent the teacher.

    Furlanello, Lipton, Tschannen, Itti, Anandkumar: Born Again Neural Networks, ICML 2018. Generation k learns from
    CE(y, z_k) + CE(softmax(z_(k-1)), softmax(z_k)), equally weighted, T = 1; the teacher is frozen, in eval mode, and
    sees the same augmented views. No weight is inherited. N_10 is the tenth network of the chain. How Taha et al. set
    it up for their tables is not published.
    """

    def inherit(self, child: nn.Module, birth: Birth) -> None:
        """See `Method.inherit`."""

    def hooks(self, network: nn.Module, birth: Birth) -> TrainingHooks:
        """Return the teacher's hooks; a weight of 1 unless the recipe names another."""
        return TrainingHooks() if birth.parent is None else taught_by_parent(birth)
