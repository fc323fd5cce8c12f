"""A small network with every kind of parameter, inheritances of its generations, and steps that train it for real."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn

from ke_metric.generation import Generation, Provenance, Scorecard
from ke_metric.images.batches import DeviceBatch
from ke_metric.losses.losses import CrossEntropyLoss
from ke_metric.methods.method import Inheritance
from ke_metric.networks.recipe_networks import LineageNetworks
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Method, Optimizer, Recipe, Training
from ke_metric.split.following import follow_channels
from ke_metric.split.planning import plan_split
from ke_metric.training.engine import Engine
from ke_metric.training.one_generation import GenerationTraining

EXAMPLE = torch.zeros(1, 3, 8, 8)
CLASSES, BATCHES, BATCH = 3, 3, 6
# All cycles of filters have room in so many epochs.
TRAINING = Training(epochs=100, channels_last=False)


class Block(nn.Module):
    """Two convolutions with batch norm around a shortcut, as in a ResNet."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, maps):
        inner = torch.relu(self.bn1(self.conv1(maps)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(maps))


class Small(nn.Module):
    """A stem, a block with a shortcut, a chain without, a head; it remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.layer1 = Block(6, 8)
        self.layer2 = nn.Sequential(
            nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.ReLU()
        )
        self.head = nn.Linear(10, CLASSES)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        maps = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(images)))))
        return self.head(maps.mean(dim=(2, 3)))


def build(number):
    """Build the network that generation `number` begins with."""
    with default_streams(0, number, "network"):
        return Small()


def trained(number=1):
    """Return the state dict of a network in which no value is at its default, as after some training."""
    network, generator = build(number), torch.Generator().manual_seed(number)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.empty_like(value).uniform_(0.01, 0.2, generator=generator))
    network.bn1.num_batches_tracked += 7
    return {name: value.clone() for name, value in network.state_dict().items()}


@cache
def plan_of_all():
    return plan_split(build(1), EXAMPLE, rate=0.5)


@cache
def channels_of_all():
    return follow_channels(build(1), EXAMPLE)


class SmallNetworks(LineageNetworks):
    """Gives small networks, or what another function builds, for those of a lineage."""

    def __init__(self, recipe, builds):
        super().__init__(recipe, CLASSES)
        object.__setattr__(self, "builds", builds)

    def build(self, number, *, load_pretrained=False):
        return self.builds(number)

    def channels(self):
        return channels_of_all()


def generation_of(number, weights, plan):
    """Return a stored generation with these weights."""
    return Generation(
        number=number,
        weights=weights,
        loss_weights={},
        split=plan.to_json(),
        split_bits=plan.to_tensors(),
        scorecard=Scorecard({}, None, 1, None),
        training_log=(),
        magnitudes={},
        provenance=Provenance("0", "1" if number > 1 else None, 0, {}, {}, {}),
    )


@dataclass(frozen=True)
class Inheritances:
    """Makes inheritances of the small network, or of another one."""

    def __call__(
        self, name="knowledge_evolution", *, number=2, parent=None, plan=None, builds=build, gradients=None, **fields
    ):
        """Return the inheritance of a generation; of number 1 without, of any other with a parent."""
        facts = {"generations": 3, "task": "classification", "training": TRAINING}
        facts |= {key: fields.pop(key) for key in ("seed", "task", "generations", "training") if key in fields}
        recipe = Recipe(name="small", method=Method(name=name, **fields), **facts)
        plan = plan or plan_of_all()
        return Inheritance(
            number,
            networks=SmallNetworks(recipe, builds),
            plan=plan,
            device=torch.device("cpu"),
            parent=None if number == 1 else generation_of(number - 1, parent or trained(), plan),
            gradients=gradients,
        )


class Noise:
    """Batches of noise, the same ones whenever they are asked for."""

    def __len__(self):
        return BATCHES

    def epoch(self, number):
        for step in range(BATCHES):
            generator = torch.Generator().manual_seed(100 * number + step)
            images = torch.randn(BATCH, 3, 8, 8, generator=generator)
            yield DeviceBatch(images, torch.arange(BATCH) % CLASSES, tuple("abcdef"))


class Scaling(Engine):
    """An engine that scales its losses, as in fp16: by so much that the first step's gradients are not finite."""

    def new_scaler(self):
        return torch.amp.GradScaler("cpu", init_scale=2.0**127)


@pytest.fixture
def scaling():
    return Scaling("fp32", "cpu")


@pytest.fixture
def inheritance_of():
    return Inheritances()


@pytest.fixture
def training_of():
    """Return the training of a network under hooks; momentum and weight decay are strong."""

    def prepare(network, hooks, *, optimizer="sgd", epochs=4, engine=None, **training):
        recipe = Recipe(
            name="small",
            task="classification",
            optimizer=Optimizer(name=optimizer, learning_rate=0.05, weight_decay=0.1),
            training=Training(**{"epochs": epochs, "precision": "fp32", "schedule": "constant"} | training),
        )
        engine = engine or Engine("fp32", "cpu")
        engine.place(network, channels_last=recipe.training.channels_last)
        return GenerationTraining(
            network, CrossEntropyLoss(), Noise(), recipe=recipe, engine=engine, number=2, hooks=hooks
        )

    return prepare


@pytest.fixture
def small():
    """Builds the network that a generation begins with."""
    return build


@pytest.fixture
def parent():
    """State dict of a parent, no value of it at its default."""
    return trained()


@pytest.fixture
def channels():
    """The channels of the small network."""
    return channels_of_all()


@pytest.fixture
def networks_of():
    """Builds the networks of a recipe as those of a lineage are built, around the small network."""

    class OfSmall(LineageNetworks):
        _example = EXAMPLE

        def _dense(self, load_pretrained):
            return Small()

    return lambda recipe: OfSmall(recipe, CLASSES)
