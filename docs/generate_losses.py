"""Writes docs/losses.md: every class of pytorch-metric-learning, trained or refused (`make docs`)."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import Tensor, nn
from torch.nn.functional import normalize

from ke_metric.losses.building import SIZES, allowed_keywords, build_part
from ke_metric.losses.library import (
    EMBEDDING_LOSSES,
    MINERS,
    MISCOUNTING,
    NESTED,
    REFUSED,
    REMEMBERING,
    UNFINISHED,
)

PAGE = Path(__file__).with_name("losses.md")
HEAD = """\
# Losses, miners and their parts

Written by `docs/generate_losses.py` from the classes of pytorch-metric-learning 2.9 and our own. What is not \
refused here is trained and resumed in `tests/losses/test_library.py`; what is refused ends with exit code 3 and \
these words before a training, as do the unfinished classes that others are made of (Base..., GenericPairLoss). How \
a recipe names them, and how a loss is tried: \
[recipes-and-methods.md](recipes-and-methods.md#losses).
"""
WHAT: Mapping[str, str] = {
    # Losses
    "AngularLoss": "angle at the negative of a triplet (Wang et al., ICCV 2017)",
    "ArcFaceLoss": "softmax with an angle added to the own class (Deng et al., CVPR 2019)",
    "CircleLoss": "pairs, each weighted by how far it is from its optimum (Sun et al., CVPR 2020)",
    "ClassicProxyNCALoss": "ProxyNCA as published: the own proxy is not in the denominator (Movshovitz-Attias et "
    "al., ICCV 2017)",
    "ContrastiveLoss": "pairs within, or beyond, a margin (Hadsell et al., CVPR 2006)",
    "CosFaceLoss": "softmax with a cosine taken off the own class (Wang et al., CVPR 2018)",
    "CrossBatchMemory": "a loss of pairs or triplets with the last embeddings of earlier batches (Wang et al., CVPR "
    "2020)",
    "DynamicSoftMarginLoss": "triplets weighted by a running histogram (Zhang and Rusinkiewicz, ICCV 2019)",
    "FastAPLoss": "average precision by histograms (Cakir et al., CVPR 2019)",
    "GeneralizedLiftedStructureLoss": "lifted structure over all positives (Hermans et al., 2017)",
    "HistogramLoss": "overlap of the histograms of positive and negative pairs (Ustinova and Lempitsky, NeurIPS "
    "2016)",
    "InstanceLoss": "every picture a class (Zheng et al., TOMM 2020)",
    "IntraPairVarianceLoss": "variance of positive and of negative pairs; beside another loss, in `MultipleLosses` "
    "(Yu and Tao, ICCV 2019)",
    "LargeMarginSoftmaxLoss": "softmax with a multiplied angle (Liu et al., ICML 2016)",
    "LiftedStructureLoss": "every positive pair against all negatives of both (Oh Song et al., CVPR 2016)",
    "ManifoldLoss": "random walks between embeddings and proxies (Aziere and Todorovic, CVPR 2019)",
    "MarginLoss": "pairs around a learnt boundary (Wu et al., ICCV 2017)",
    "MultiSimilarityLoss": "soft weights of pairs by three similarities (Wang et al., CVPR 2019)",
    "MultipleLosses": "weighted sum of losses",
    "NCALoss": "neighbourhood components analysis (Goldberger et al., NIPS 2004)",
    "NPairsLoss": "one positive pair of every class against the others (Sohn, NIPS 2016)",
    "NTXentLoss": "every positive pair in a softmax with the negatives (van den Oord et al., 2018; SimCLR)",
    "NormalizedSoftmaxLoss": "softmax over cosines (Zhai and Wu, BMVC 2019)",
    "P2SGradLoss": "squared error of cosines with the classes (Zhang et al., CVPR 2019)",
    "PNPLoss": "penalises negatives before positives in the ranking (Li et al., AAAI 2022)",
    "ProxyAnchorLoss": "proxies as anchors of all embeddings (Kim et al., CVPR 2020)",
    "ProxyNCALoss": "softmax over the distances to proxies (ProxyNCA++: Teh et al., ECCV 2020)",
    "RankedListLoss": "positives within a sphere, negatives beyond it (Wang et al., CVPR 2019)",
    "SelfSupervisedLoss": "wraps a loss for two views of every picture",
    "SignalToNoiseRatioContrastiveLoss": "ContrastiveLoss over signal-to-noise distances (Yuan et al., CVPR 2019)",
    "SmoothAPLoss": "average precision with sigmoids (Brown et al., ECCV 2020)",
    "SoftTripleLoss": "softmax over several proxies of every class (Qian et al., ICCV 2019)",
    "SphereFaceLoss": "softmax with a multiplied angle and normalised proxies: a hypersphere (Liu et al., CVPR 2017)",
    "SubCenterArcFaceLoss": "ArcFace with `sub_centers` proxies of every class (Deng et al., ECCV 2020)",
    "SupConLoss": "supervised contrastive (Khosla et al., NeurIPS 2020)",
    "ThresholdConsistentMarginLoss": "hard pairs beyond two thresholds; beside another loss, in `MultipleLosses` "
    "(Zhang et al., ICLR 2024)",
    "TripletMarginLoss": "triplets with a margin (Balntas et al., BMVC 2016; FaceNet, CVPR 2015)",
    "TupletMarginLoss": "tuplets with an angle of slack (Yu and Tao, ICCV 2019)",
    "VICRegLoss": "variance, invariance, covariance of two views (Bardes et al., ICLR 2022)",
    # Miners
    "AngularMiner": "triplets with a larger angle than `angle`",
    "BatchEasyHardMiner": "easy, semihard or hard positive and negative of every anchor (Xuan et al., WACV 2020)",
    "BatchHardMiner": "hardest positive and hardest negative of every anchor (Hermans et al., 2017)",
    "DistanceWeightedMiner": "negatives drawn evenly over distances (Wu et al., ICCV 2017)",
    "EmbeddingsAlreadyPackagedAsTriplets": "for batches that are made of triplets",
    "HDCMiner": "the hardest share of pairs (Yuan et al., ICCV 2017)",
    "MultiSimilarityMiner": "pairs harder than the easiest of the other sort (Wang et al., CVPR 2019)",
    "PairMarginMiner": "pairs beyond two margins",
    "TripletMarginMiner": "triplets that violate a margin; all, semihard, hard or easy ones",
    "UniformHistogramMiner": "as many pairs from every bin of distances",
    # Distances
    "BatchedDistance": "another distance, a few rows at a time",
    "CosineSimilarity": "cosine; larger is closer",
    "DotProductSimilarity": "dot product; larger is closer",
    "LpDistance": "of normalised embeddings, to a `power`",
    "SNRDistance": "variance of the difference over that of the anchor (Yuan et al., CVPR 2019)",
    # Reducers
    "AvgNonZeroReducer": "mean of what is above 0",
    "ClassWeightedReducer": "mean, weighted by the anchor's class: `weights`, one for each training class",
    "DivisorReducer": "sum over a number that the loss gives: MarginLoss, ProxyAnchorLoss",
    "DoNothingReducer": "for losses that are taken apart",
    "MeanReducer": "mean",
    "MultipleReducers": "a reducer for each summand",
    "PerAnchorReducer": "mean over the pairs of an anchor first; losses of pairs, not in a memory",
    "SumReducer": "sum",
    "ThresholdReducer": "mean of what is above `low` or below `high`",
    # Regularizers
    "CenterInvariantRegularizer": "proxies of one length (Wu et al., 2017)",
    "LpRegularizer": "length; with p = 2 without effect on embeddings, whose length is 1",
    "RegularFaceRegularizer": "nearest proxies pushed apart on the hypersphere (Zhao et al., CVPR 2019)",
    "SparseCentersRegularizer": "proxies of one class drawn together; SoftTripleLoss, SubCenterArcFaceLoss (Qian et "
    "al., ICCV 2019)",
    "ZeroMeanRegularizer": "the numbers of a row add up to 0",
}
"""What every class is; one that a new version brings has to be written here."""

TRIED: Mapping[str, str] = {
    "DynamicSoftMarginLoss": "fails at its second step; use TripletMarginLoss",
    "HistogramLoss": "fails where two pictures have the same embedding; use MultiSimilarityLoss",
    "TupletMarginLoss": "nan where two pictures have the same embedding; use CircleLoss",
}
"""Losses that the trial refuses with their defaults: why."""

ONE_CLASS, ALL_DIFFERENT = torch.zeros(8, dtype=torch.int64), torch.arange(8)


def arguments_of(name: str) -> Mapping[str, float]:
    """Return arguments that a loss cannot do without."""
    return {"margin": 0.4, "Tn": 10} if name == "RankedListLoss" else {}


def learns_from(name: str, labels: Tensor) -> bool:
    """Return whether a loss has a gradient for a batch, with nothing but its necessary arguments."""
    loss = build_part(EMBEDDING_LOSSES, name, arguments_of(name), field=name, sizes=dict.fromkeys(SIZES, 8))
    largest = 0.0
    for spread in (0.0, 0.03, 1.0):
        vectors = 1 + spread * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        try:
            (gradient,) = torch.autograd.grad(loss(normalize(vectors.requires_grad_()), labels), vectors)
        except RuntimeError:
            return False
        # One class alone teaches those that move even what is all in one point: the others only draw it together.
        if spread == 0 and labels is ONE_CLASS and not gradient.abs().max() > 1e-3:
            return False
        largest = max(largest, float(gradient.abs().max()))
    return largest > 1e-3


def needs_of(name: str) -> Iterator[str]:
    """Yield what a loss needs of a recipe."""
    if name == "CrossBatchMemory":
        yield f"`loss`: one of {', '.join(sorted(REMEMBERING.keys() - TRIED.keys()))}"
        return
    if name == "MultipleLosses":
        yield "`losses`"
        return
    torch.manual_seed(0)
    keywords = allowed_keywords(EMBEDDING_LOSSES[name])
    yield from (
        f"`{key}`" for key, keyword in keywords.items() if keyword.default is keyword.empty and key not in SIZES
    )
    loss = build_part(EMBEDDING_LOSSES, name, arguments_of(name), field=name, sizes=dict.fromkeys(SIZES, 8))
    if any(True for _ in loss.parameters()):
        yield "parameters of its own"
    if not learns_from(name, ONE_CLASS):
        yield "2 classes in a batch"
    if not learns_from(name, ALL_DIFFERENT):
        yield "2 pictures of a class in a batch"


def cells(name: str) -> str:
    """Return what the table says of a class after its name."""
    what = WHAT[name]
    refused = REFUSED.get(name) or TRIED.get(name) or MISCOUNTING.get(name)
    if name == "SmoothAPLoss":
        return f"{what} | trained or refused: it {refused}"
    if refused:
        return f"{what} | refused: {'it ' * (name not in TRIED)}{refused}"
    if name not in EMBEDDING_LOSSES:
        return f"{what} | trained"
    return f"{what} | trained; {', '.join(needs_of(name)) or 'no needs'}"


def tables() -> Iterator[str]:
    """Yield heading and table of every sort of class."""
    for title, module, ours in (
        ("Losses of embeddings (`loss.name`)", losses, EMBEDDING_LOSSES),
        ("Miners (`miner.name`)", miners, MINERS),
        ("Distances (`distance`)", distances, NESTED["distance"]),
        ("Reducers (`reducer`)", reducers, NESTED["reducer"]),
        ("Regularizers (`embedding_regularizer`, `weight_regularizer`)", regularizers, NESTED["weight_regularizer"]),
    ):
        parts = (name for name, part in vars(module).items() if inspect.isclass(part) and issubclass(part, nn.Module))
        names = sorted(name for name in {*parts, *ours} if REFUSED.get(name) != UNFINISHED)
        assert not (new := set(names) - WHAT.keys()), f"write into WHAT what {new} is"
        rows = [f"| `{name}` | {cells(name)} |" for name in names]
        yield "\n".join([f"## {title}", "", "| class | what it is | in a recipe |", "|---|---|---|", *rows])


def page() -> str:
    """Return the page."""
    return "\n\n".join([HEAD.strip(), *tables()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
