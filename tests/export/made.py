"""Embedders that were drawn, not trained, and pictures that differ from each other."""

import numpy as np
import torch
from torch import nn

from ke_metric.images.preparation import Preparation
from ke_metric.networks.bundle_config import Architecture, NetworkCard
from ke_metric.networks.dense import build_network
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.embedder import Embedder
from ke_metric.retrieval.predictor import Predictor

SIZE = 32
MEAN, STD = (0.2, 0.5, 0.7), (0.3, 0.2, 0.4)


class Tiny(nn.Module):
    """What every backbone here has, once: following a graph takes a time for each of its operations."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 5, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.mix = nn.Conv2d(16, 32, 3)
        self.head = nn.Linear(32, 8)

    def forward(self, images):
        features = torch.relu(self.norm(self.conv(images)))
        features = nn.functional.adaptive_avg_pool2d(torch.relu(self.mix(features)), 1)
        return nn.functional.normalize(self.head(torch.flatten(features, 1)))


def make_embedder(backbone=None, *, seed=0):
    """Return an embedder of a backbone, or of `Tiny`, whose batch statistics are not those of a fresh network."""
    fields = {"name": "x", "data": {"image_size": SIZE}}
    fields["network"] = {"backbone": backbone or "timm/test_resnet", "embedding_size": 8}
    recipe = Recipe.model_validate(fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = (build_network(recipe.network, SIZE) if backbone else Tiny()).train()
        for _ in range(20):
            network(torch.randn(16, 3, SIZE, SIZE) * 2)
    normalization = Preparation(resize=40, image_size=SIZE, mean=MEAN, std=STD)
    card = NetworkCard(normalization=normalization)
    return Embedder(network.eval(), architecture=Architecture.of_recipe(recipe), card=card)


class TinyClassifier(Tiny):
    """Logits of eight classes."""

    def forward(self, images):
        features = torch.relu(self.norm(self.conv(images)))
        features = nn.functional.adaptive_avg_pool2d(torch.relu(self.mix(features)), 1)
        return 20 * self.head(torch.flatten(features, 1))


CLASS_NAMES = ("crow", "jay", "rook", "héron", "🦜", "a,b", 'say "hi"', "8")


def make_predictor(*, seed=0):
    """Return a predictor of eight classes."""
    recipe = Recipe.model_validate(
        {"name": "x", "task": "classification", "data": {"image_size": SIZE},
         "network": {"backbone": "timm/test_resnet"}}
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TinyClassifier().eval()
    normalization = Preparation(resize=40, image_size=SIZE, mean=MEAN, std=STD)
    card = NetworkCard(normalization=normalization, class_names=CLASS_NAMES)
    return Predictor(network, architecture=Architecture.of_recipe(recipe, classes=8), card=card)


def make_pictures(count=40, *, seed=0):
    """Return pictures uint8 [count, 32, 32, 3] of random colours in squares."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3))
    return coarse.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2).astype(np.uint8)
