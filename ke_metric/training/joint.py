"""Joint training of nested widths: narrow networks that learn beside the whole one, in every step (`split.rates`).

Slimmable networks (Yu et al., ICLR 2019) and universally slimmable ones (Yu and Huang, ICCV 2019: the sandwich rule,
distillation in place) for the networks of a lineage: the widths are those of its split at several rates.

Shapes: B batch, D size of an output (embedding or logits).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from ke_metric.randomness import numpy_generator
from ke_metric.recipe.schema import Recipe
from ke_metric.split.narrow import NarrowNetwork
from ke_metric.split.plan import SplitPlan

LOGITS_TEMPERATURE = 1.0
SIMILARITY_TEMPERATURE = 0.1


class JointWidths:
    """The narrow networks of a generation.

    Args:
        network: The generation's network, placed.
        plans: Split rate, as the recipe's text, to the split plan of the network at that rate, ascending.
        recipe: The recipe of the lineage.
        number: Of the generation, from 1.
    """

    def __init__(self, network: nn.Module, plans: Mapping[str, SplitPlan], *, recipe: Recipe, number: int) -> None:
        self._recipe, self._number = recipe, number
        self._networks = {rate: NarrowNetwork(network, plan) for rate, plan in plans.items()}

    def __len__(self) -> int:
        return len(self._networks)

    def of_step(self, step: int) -> Iterator[tuple[str, nn.Module]]:
        """Yield rate and network of every width that step `step` (from 0) trains.

        What the caller leaves in their gradients is added to those of the whole network before the next one comes.
        By the sandwich rule the narrowest one is trained in every step, and one of the others, drawn.
        """
        for rate in self._rates(step):
            narrow = self._networks[rate]
            narrow.refresh()
            narrow.module.train()
            yield rate, narrow.module
            narrow.add_gradients()

    def _rates(self, step: int) -> list[str]:
        narrowest, *others = self._networks
        if self._recipe.split.joint == "all":
            return [narrowest, *others]
        drawn = numpy_generator(self._recipe.seed, self._number, f"widths-{step}").integers(len(others))
        return [narrowest, others[int(drawn)]]

    def taught_loss(self, outputs: Tensor, dense: Tensor) -> Tensor | float:
        """Return what the whole network's outputs [B, D] add to the loss of a narrow one (`split.joint_teacher`)."""
        weight = self._recipe.split.joint_teacher
        return weight * distance_from_teacher(outputs, dense, task=self._recipe.task) if weight else 0.0


@contextmanager
def at_rest(loss: nn.Module) -> Iterator[None]:
    """Keep a loss inside the block from adapting to what it sees: a scale follows the whole network alone."""
    was_training = loss.training
    loss.eval()
    try:
        yield
    finally:
        loss.train(was_training)


def distance_from_teacher(outputs: Tensor, targets: Tensor, *, task: str, temperature: float | None = None) -> Tensor:
    """Return how far outputs [B, D] are from those of a teacher [B, D], a scalar.

    Args:
        outputs: Of the student, float32.
        targets: Of the teacher, without gradient.
        task: `classification`: T^2 KL(softmax(t / T) || softmax(z / T)), mean over the batch, for logits t of the
            teacher and z of the student (Hinton, Vinyals, Dean 2015; with T = 1 its gradient is that of the cross
            entropy of Furlanello et al., ICML 2018). `retrieval`: the same for every image's similarities to the
            others of the batch, whose temperature stays (relational distillation; ours).
        temperature: T; 1 for logits and 0.1 for similarities when None.
    """
    if task == "classification":
        factor = LOGITS_TEMPERATURE if temperature is None else temperature
        return factor**2 * divergence(targets, outputs, factor)
    if len(outputs) < 3:
        # One other image has all of the similarity, whatever it is.
        return outputs.sum() * 0
    factor = SIMILARITY_TEMPERATURE if temperature is None else temperature
    return divergence(similarities(targets), similarities(outputs), factor)


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return KL(softmax(teacher / T) || softmax(student / T)) of two score tensors [B, K], mean over rows."""
    expected = log_softmax(teacher.float() / temperature, dim=1)
    return kl_div(log_softmax(student.float() / temperature, dim=1), expected, reduction="batchmean", log_target=True)


def similarities(embeddings: Tensor) -> Tensor:
    """Return the similarities of every item to the others, [B, B - 1], of L2-normalised embeddings [B, D]."""
    count = len(embeddings)
    # From one diagonal entry to the next there are B others. A mask would say the same, and have the host wait for
    # the device to count it.
    rows = (embeddings @ embeddings.T).flatten()[1:].view(count - 1, count + 1)
    return rows[:, :-1].reshape(count, count - 1)
