"""Losses: of embeddings, what pytorch-metric-learning lacks and what holds one of its own; of classifiers, our own.

All are computed in float32 whatever the network's precision. What takes logits takes [B, C] of any floating-point
type and labels, int64 [B] in [0, C), and returns a float32 scalar. Where pictures are mixed, labels are the shares of
the classes, float32 [B, C] of sum 1, and the loss is its mean over the classes with these shares as weights.

Shapes: B batch, D embedding, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ke_metric.errors import ExitCode, KeMetricError

# An arc cosine has no slope at -1 and 1; the nearest numbers float32 has.
_LARGEST_COSINE = 1 - 1e-7
# Half precision leaves cosines this far from what they are.
_ROUNDING = 0.01


class EmbeddingLoss(nn.Module):
    """A loss and its miner, computed in float32 whatever the precision of the network.

    Args:
        loss: Takes embeddings [B, D], labels [B] and, when there is a miner, the mined tuples.
        miner: Takes embeddings and labels; none when left out.

    Attributes:
        tuples: How many pairs or triplets were mined from the last batch; None without a miner. With no tuple at all
            a loss is 0, which looks like success, so this number is worth a line in the log.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner
        self.tuples: int | None = None

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a float32 scalar, of embeddings [B, D] of any floating-point type and labels [B]."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            mined = () if self.miner is None else (self.miner(embeddings, labels),)
            self.tuples = sum(tuple_count(tuples) for tuples in mined) if mined else None
            value: Tensor = self.loss(embeddings, labels, *mined)
        return value


def tuple_count(mined: tuple[Tensor, ...]) -> int:
    """Count triplets (anchors, positives, negatives) or pairs (anchors, positives, anchors, negatives)."""
    return len(mined[0]) if len(mined) == 3 else len(mined[0]) + len(mined[2])


class ClassicProxyNCALoss(nn.Module):
    """ProxyNCA as published: the positive proxy is not part of the denominator.

    With x an embedding, p_y its class's proxy, both normalised, and s the softmax scale:
    L = s |x - p_y|^2 + ln sum over z != y of exp(-s |x - p_z|^2), averaged over the batch
    (Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017, equation 4). It can be
    negative. The `ProxyNCALoss` of pytorch-metric-learning sums over all classes, as ProxyNCA++ does (Teh et al.,
    ECCV 2020); with p its probability of the right class, L = L_all + ln(1 - p).

    Args:
        num_classes: C, at least 2.
        embedding_size: D.
        softmax_scale: s, positive; 1 as published, 9 in ProxyNCA++.
    """

    def __init__(self, num_classes: int, embedding_size: int, softmax_scale: float = 1.0) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"needs at least 2 classes, not {num_classes}")
        self.softmax_scale = softmax_scale
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_size))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of embeddings [B, D] of any length and labels, int64 [B] in [0, C)."""
        cosine = functional.normalize(embeddings) @ functional.normalize(self.proxies).T
        # |x - p|^2 = 2 - 2 cos for unit vectors.
        logits = self.softmax_scale * (2 * cosine - 2)
        others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
        return (others - of_own_class(logits, labels)).mean()


class ClassificationLoss(nn.Module):
    """What the losses of classifiers have in common.

    Attributes:
        takes_partners: Whether it compares the logits with those of a second picture of the same class, and needs
            `batches.sampler: paired` for that.
        takes_cosines: Whether its logits must be cosines, those of `network.head: cosine`.
        of_one_class: Why a picture must be of one class for it; empty where it takes the labels of mixed pictures.
    """

    takes_partners = False
    takes_cosines = False
    of_one_class = ""


class CrossEntropyLoss(ClassificationLoss):
    """Cross-entropy with label smoothing, torch's own, averaged over the batch.

    L = (1 - e) (-ln p_y) + e/C sum over all k of (-ln p_k), with p the softmax of the logits, y the label and e the
    smoothing (Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7). The uniform part
    includes the class y. Knowledge Evolution takes e = 0.1.

    Args:
        label_smoothing: e in [0, 1); 0 is plain cross-entropy.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing = {label_smoothing}, must be in [0, 1)")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return functional.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


class CSKDLoss(ClassificationLoss):
    """Class-wise self-knowledge distillation: two pictures of a class are to be judged alike.

    L = CE(z, y) + w T^2/B sum over i of KL(softmax(z'_i / T) || softmax(z_i / T)), with z the logits and z' those of
    the partners, through which no gradient flows (Yun et al., "Regularizing Class-wise Predictions via Self-knowledge
    Distillation", CVPR 2020; the mean over the batch as in the authors' code). No labels are smoothed beside it.

    The partners go through the network in a forward pass of their own, without gradient and in train mode: batch norm
    takes the statistics of each half by itself.

    Args:
        temperature: T, positive; 4 as the authors have it.
        weight: w, at least 0; the authors take 3 for fine-grained classes, 1 for CIFAR-100 and TinyImageNet.
    """

    takes_partners = True
    of_one_class = "compares two pictures of one class"

    def __init__(self, temperature: float = 4.0, weight: float = 3.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature = {temperature}, must be greater than 0")
        if weight < 0:
            raise ValueError(f"weight = {weight}, must be at least 0")
        self.temperature, self.weight = temperature, weight

    def forward(self, logits: Tensor, labels: Tensor, partner_logits: Tensor) -> Tensor:
        """Return the loss of a batch; row i of `partner_logits` [B, C] is of the partner of picture i."""
        logits = logits.float()
        soft = functional.log_softmax(logits / self.temperature, dim=1)
        targets = functional.log_softmax(partner_logits.detach().float() / self.temperature, dim=1)
        divergence = functional.kl_div(soft, targets, reduction="batchmean", log_target=True)
        return functional.cross_entropy(logits, labels) + self.weight * self.temperature**2 * divergence


class AdaCosLoss(ClassificationLoss):
    """AdaCos: cross-entropy of scaled cosines, whose scale needs no tuning.

    L = CE(s cos, y). Fixed: s = sqrt(2) ln(C - 1). Dynamic: before every step, without gradient,
    B = 1/N sum over i, k != y_i of exp(s cos_ik) and m = the median over the batch of the angles to the own class;
    then s = ln(B) / cos(min(pi/4, m)), beginning with the fixed value (Zhang et al., "AdaCos: Adaptively Scaling
    Cosine Logits for Effectively Learning Deep Face Representations", CVPR 2019). The tables of Knowledge Evolution
    do not say which of the two they have; the dynamic one is what the paper proposes.

    Of an even number of angles the median is the smaller of the two in the middle, torch's. The scale moves in train
    mode only, and does not matter for which class is the most likely one.

    Args:
        num_classes: C, at least 3: of 2 classes the fixed scale is 0.
        dynamic: Whether the scale moves with the batches.

    Attributes:
        scale: s, a float32 buffer: saved and resumed with the weights.
    """

    takes_cosines = True
    scale: Tensor
    _refused: Tensor

    def __init__(self, num_classes: int, dynamic: bool = True) -> None:
        super().__init__()
        if num_classes < 3:
            raise ValueError(f"needs at least 3 classes, not {num_classes}: the scale of 2 classes is ln(1) = 0")
        self.dynamic = dynamic
        if dynamic:
            self.of_one_class = "moves its scale by the angle between a picture and its one class"
        self._are_cosines = False
        self.register_buffer("scale", torch.tensor(math.sqrt(2) * math.log(num_classes - 1)))
        self.register_buffer("_refused", torch.tensor(torch.nan), persistent=False)

    def forward(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch of cosines, each in [-1, 1]; nan from where on a scale is not positive.

        Raises:
            KeMetricError: The logits of the first batch are not cosines (RECIPE).
        """
        cosines = cosines.float()
        self._require_cosines(cosines.detach())
        if self.dynamic and self.training:
            self._adapt(cosines.detach(), labels)
        scale = torch.where(self._refused.isnan(), self.scale, torch.nan)
        return functional.cross_entropy(scale * cosines, labels)

    def fault(self) -> str | None:
        """Return why the loss has become nan, in words; None where it is not the scale's fault."""
        refused = float(self._refused)
        if math.isnan(refused):
            return None
        return (
            f"AdaCosLoss: the scale would go from {float(self.scale):.3g} to {refused:.3g}, which turns the loss "
            "around: the cosines with other classes are too low for so few classes. Use loss.arguments = "
            "{dynamic: false}"
        )

    def _require_cosines(self, logits: Tensor) -> None:
        """Look at the first batch alone, where it shows: the host waits for the device to know."""
        if not self._are_cosines and bool((logits.abs() > 1 + _ROUNDING).any()):
            raise KeMetricError(
                "loss.name = 'AdaCosLoss' takes cosines, and got larger logits; use network.head = 'cosine'",
                ExitCode.RECIPE,
            )
        self._are_cosines = True

    def _adapt(self, cosines: Tensor, labels: Tensor) -> None:
        """Move the scale, for good no more after one that is not positive: the device keeps which one that was."""
        proposed = self._next_scale(cosines, labels)
        is_fine = self._refused.isnan() & ~(proposed <= 0)
        self._refused = torch.where(self._refused.isnan() & (proposed <= 0), proposed, self._refused)
        # Not in place: the graph of a loss that is still to be differentiated may hold the last one. What is not
        # finite is left to whoever looks at the loss.
        self.scale = torch.where(is_fine, proposed, self.scale)

    def _next_scale(self, cosines: Tensor, labels: Tensor) -> Tensor:
        others = (self.scale * cosines).exp().scatter(1, labels[:, None], 0).sum() / len(cosines)
        angles = of_own_class(cosines, labels).clamp(-_LARGEST_COSINE, _LARGEST_COSINE).acos()
        return others.log() / angles.median().clamp(max=math.pi / 4).cos()


def of_own_class(values: Tensor, labels: Tensor) -> Tensor:
    """Return every row's number for its own class, [B], of values [B, C] and labels [B].

    A mask would say the same, and have the host wait for the device to count it.
    """
    return values.gather(1, labels[:, None]).squeeze(1)


CLASSIFICATION_LOSSES: dict[str, type[ClassificationLoss]] = {
    loss.__name__: loss for loss in (CrossEntropyLoss, CSKDLoss, AdaCosLoss)
}
