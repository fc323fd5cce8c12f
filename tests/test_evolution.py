"""The conductor: who inherits what from whom, and that going on is the same as never having stopped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ke_metric.arrays import weights_digest
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.evolution import LineageTraining, Start, evolve
from ke_metric.images.image_set import Benchmark, ImageSet
from ke_metric.images.pixel_store import Pictures
from ke_metric.networks import recipe_networks
from ke_metric.recipe.schema import Recipe
from ke_metric.split.plan import SplitPlan
from ke_metric.training.engine import Engine
from ke_metric.training.hooks import TrainingObserver

IMAGES = 6


class Squares:
    """Draws a square whose colour tells the class; counts what is read and never touches a disk."""

    def __init__(self):
        self.reads = []

    def read(self, key):
        self.reads.append(key)
        label, image = (int(number) for number in key.split("/")[1:])
        picture = Image.new("RGB", (32, 32), (128, 128, 128))
        colour = (60 * label % 256, 255 - 60 * label % 256, 97 * label % 256)
        picture.paste(colour, (3 * image, 3 * image, 3 * image + 12, 3 * image + 12))
        return picture


class Recorder(TrainingObserver):
    def __init__(self):
        self.notes, self.states = [], []

    def note(self, text):
        self.notes.append(text)

    def epoch_done(self, state):
        self.states.append(state)


def squares():
    source = Squares()

    def part(name, classes):
        keys = tuple(f"{name}/{label}/{image}" for label in range(classes) for image in range(IMAGES))
        labels = np.repeat(np.arange(classes), IMAGES)
        return ImageSet(keys, labels, tuple(f"class {label}" for label in range(classes)), source)

    test = part("test", 3)
    return Benchmark("squares", part("train", 4), test, test)


def recipe_of(**sections):
    return Recipe.model_validate(
        {
            "name": "squares",
            "generations": 3,
            "data": {"image_size": 32, "store_size": 32},
            "network": {"backbone": "timm/test_resnet", "embedding_size": 8},
            "loss": {"name": "ProxyAnchorLoss", "learning_rate_factor": 10},
            "batches": {"size": 8, "images_per_class": 2},
            "optimizer": {"name": "adamw", "learning_rate": 1e-3},
            "training": {"epochs": 2, "precision": "fp32"},
            "evaluation": {"recall_at": [1, 2], "resize": 32, "kmeans_seeds": 1, "backend": "torch"},
        }
        | sections
    )


@pytest.fixture(scope="module")
def pictures():
    return Pictures.decode(squares(), 32)


@pytest.fixture(scope="module")
def lineage(pictures):
    """Three generations, and what their training said."""
    recorder = Recorder()
    return list(evolve(recipe_of(), pictures, device="cpu", watch=recorder)), recorder


@pytest.fixture
def training_of(pictures):
    return lambda **sections: LineageTraining(recipe_of(**sections), pictures, Engine("fp32", "cpu"))


def child_of(training, number, parent):
    """Return a generation's starting network and its split plan."""
    inheritance = training.inheritance(number, parent)
    return training.assemble(inheritance, rehearsed=False).network, inheritance.plan


def masks_of(generation):
    return SplitPlan.from_json(generation.split, generation.split_bits).masks


def assert_same_generation(found, expected):
    assert weights_digest(found.weights) == weights_digest(expected.weights)
    assert weights_digest(found.loss_weights) == weights_digest(expected.loss_weights)
    assert found.split == expected.split
    assert found.scorecard == expected.scorecard
    assert found.magnitudes == expected.magnitudes
    assert found.provenance.parent_digest == expected.provenance.parent_digest
    logs = [[{**record, "seconds": 0} for record in part.training_log] for part in (found, expected)]
    assert logs[0] == logs[1]


def test_generations_are_counted_and_know_their_parents(lineage):
    generations, _ = lineage
    assert [generation.number for generation in generations] == [1, 2, 3]
    digests = [None, *(weights_digest(generation.weights) for generation in generations)]
    assert [generation.provenance.parent_digest for generation in generations] == digests[:3]
    for generation in generations:
        assert generation.provenance.recipe_digest == recipe_of().digest
        assert generation.provenance.seed == 0
        assert generation.provenance.training["precision"] == "fp32"
        assert generation.provenance.training["search_backend"] == "torch"
        assert generation.provenance.ties == "mean over all orders"
        seconds = generation.provenance.seconds
        assert set(seconds) == {"inheriting", "training", "scoring", "slim"}
        assert 0 < seconds["slim"] <= seconds["scoring"]
        assert [record["epoch"] for record in generation.training_log] == [1, 2]
        assert {record["generation"] for record in generation.training_log} == {generation.number}


def test_every_generation_is_scored_dense_and_slim(lineage):
    for generation in lineage[0]:
        card = generation.scorecard
        assert set(card.dense) == set(card.slim) >= {"recall@1", "recall@2", "map@r", "nmi"}
        assert card.slim_parameters < card.dense_parameters
        for fit, reset in generation.magnitudes.values():
            assert fit > 0
            assert reset is None or reset > 0


def test_every_epoch_is_told(lineage):
    assert [(state.number, state.epoch) for state in lineage[1].states] == [(g, e) for g in (1, 2, 3) for e in (1, 2)]


def test_the_untrained_network_is_introduced_once(lineage):
    [note] = lineage[1].notes
    assert note.startswith("untrained network: recall@1 ")
    assert "cpu, fp32" in note


def test_the_split_is_the_same_in_every_generation(lineage):
    assert len({generation.split for generation in lineage[0]}) == 1


def test_training_moves_both_hypotheses(lineage):
    """Nothing is frozen: the split is felt between generations only."""
    one, two = lineage[0][:2]
    for name, mask in masks_of(one).items():
        changed = one.weights[name] != two.weights[name]
        assert changed[mask].any()
        assert not (~mask).any() or changed[~mask].any()


def test_a_child_starts_with_its_parents_fit_hypothesis(training_of, lineage):
    parent = lineage[0][0]
    child, plan = child_of(training_of(), 2, parent)
    masks = plan.masks
    assert sum(int((~mask).sum()) for mask in masks.values()) > 0
    for name, value in child.state_dict().items():
        mask = masks.get(name, torch.ones(value.shape, dtype=torch.bool))
        assert torch.equal(value[mask], parent.weights[name][mask]), name
        assert (value[~mask] != parent.weights[name][~mask]).all(), name


def test_every_generation_draws_its_own_reset_hypothesis(training_of, lineage):
    parent = lineage[0][0]
    older = replace(parent, number=2, provenance=replace(parent.provenance, parent_digest="0" * 64))
    for reset in ("official", "same_as_init"):
        training = training_of(method={"reset": reset})
        one, plan = child_of(training, 2, parent)
        again, _ = child_of(training, 2, parent)
        other, _ = child_of(training, 3, older)
        for name, mask in plan.masks.items():
            drawn = [network.state_dict()[name][~mask] for network in (one, again, other)]
            assert torch.equal(drawn[0], drawn[1])
            assert (drawn[0] != drawn[2]).float().mean() > 0.99 or not len(drawn[0])


def test_every_generation_draws_its_own_batches(training_of):
    training, drawn = training_of(), []
    inheritance = training.inheritance(1, None)
    for number in (1, 1, 2):
        epochs = training.assemble(replace(inheritance, number=number), rehearsed=False).epochs
        drawn.append([batch.keys for batch in epochs.epoch(1)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_generation_1_knows_nothing_of_the_split(training_of):
    """It is the plain baseline: the same for every split rate and kind."""
    starts = [
        child_of(training_of(split=split), 1, None)[0].state_dict()
        for split in ({"rate": 0.5}, {"rate": 0.8}, {"kind": "wels", "rate": 0.5})
    ]
    assert len({weights_digest(start) for start in starts}) == 1


def test_seeds_give_other_networks(training_of):
    starts = [child_of(training_of(seed=seed), 1, None)[0].state_dict() for seed in (0, 0, 1)]
    digests = [weights_digest(start) for start in starts]
    assert digests[0] == digests[1] != digests[2]


def test_a_split_rate_of_1_changes_nothing(training_of):
    training = training_of(split={"rate": 1.0}, training={"epochs": 1, "precision": "fp32"})
    parent = training.grow(1, None, state=None, observer=TrainingObserver())
    child, plan = child_of(training, 2, parent)
    assert plan.reset_count == 0
    assert weights_digest(child.state_dict()) == weights_digest(parent.weights)


def test_proxies_are_redrawn_or_inherited(training_of, lineage):
    parent = lineage[0][0]
    [name] = parent.loss_weights
    first, redrawn = (training_of().loss(*of).state_dict()[name] for of in ((1, None), (2, parent)))
    inherited = training_of(method={"reset_loss": False}).loss(2, parent).state_dict()[name]
    assert torch.equal(inherited, parent.loss_weights[name])
    assert (redrawn != parent.loss_weights[name]).all()
    assert (redrawn != first).all()


def test_going_on_from_a_generation_is_never_having_stopped(pictures, lineage):
    one, two, three = lineage[0]
    found = list(evolve(recipe_of(), pictures, start=Start(one), device="cpu"))
    assert [generation.number for generation in found] == [2, 3]
    for generation, expected in zip(found, (two, three), strict=True):
        assert_same_generation(generation, expected)


def test_going_on_from_an_epoch_is_never_having_stopped(pictures, lineage):
    (one, two, three), recorder = lineage
    state = recorder.states[2]
    assert (state.number, state.epoch) == (2, 1)
    listener = Recorder()
    found = list(evolve(recipe_of(), pictures, start=Start(one, state), device="cpu", watch=listener))
    assert [(state.number, state.epoch) for state in listener.states] == [(2, 2), (3, 1), (3, 2)]
    for generation, expected in zip(found, (two, three), strict=True):
        assert_same_generation(generation, expected)
    assert not listener.notes


def test_going_on_after_the_last_epoch_scores(pictures, lineage):
    """Training was over, scoring was not."""
    (one, two, _), recorder = lineage
    found = next(evolve(recipe_of(), pictures, start=Start(one, recorder.states[3]), device="cpu"))
    assert_same_generation(found, two)


@pytest.mark.parametrize(("number", "with_parent"), [(2, False), (3, True), (1, True)])
def test_without_its_parent_there_is_no_child(number, with_parent, training_of, lineage):
    with pytest.raises(KeMetricError, match=rf"generation {number} needs generation {number - 1}") as raised:
        child_of(training_of(), number, lineage[0][0] if with_parent else None)
    assert raised.value.exit_code == ExitCode.LINEAGE


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"split": {"rate": 0.8}}, r"split\.rate = 0\.8.*generation 1 was split with 'kels', 0\.5"),
        ({"split": {"kind": "wels"}}, r"split\.kind = 'wels'"),
        ({"network": {"backbone": "timm/test_resnet", "embedding_size": 9}}, r"head\.weight"),
        ({"network": {"backbone": "timm/test_efficientnet", "embedding_size": 8}}, "another network"),
        # These load nothing of their parent, or nothing before the training.
        ({"method": {"name": "repeats"}, "network": {"backbone": "timm/test_efficientnet"}}, "another network"),
        ({"method": {"name": "born_again"}, "network": {"backbone": "timm/test_efficientnet"}}, "another network"),
    ],
)
def test_a_parent_of_another_recipe(sections, words, training_of, lineage):
    with pytest.raises(KeMetricError, match=words):
        child_of(training_of(**sections), 2, lineage[0][0])


def test_pictures_are_decoded_once_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmark = squares()
    recipe = recipe_of(generations=2, training={"epochs": 1, "precision": "fp32"})
    random = torch.get_rng_state()
    assert len(list(evolve(recipe, benchmark, device="cpu"))) == 2
    assert sorted(benchmark.train.source.reads) == sorted(benchmark.train.keys + benchmark.query.keys)
    assert not list(tmp_path.rglob("*"))
    assert torch.equal(torch.get_rng_state(), random)


def test_a_lineage_of_single_weights(pictures):
    recipe = recipe_of(
        split={"kind": "wels", "rate": 0.7}, generations=2, training={"epochs": 1, "precision": "fp32"}
    )
    one, two = evolve(recipe, pictures, device="cpu")
    assert one.scorecard.slim is None
    assert weights_digest(one.split_bits) == weights_digest(two.split_bits)
    child, plan = child_of(LineageTraining(recipe, pictures, Engine("fp32", "cpu")), 2, one)
    for name, mask in plan.masks.items():
        assert int(mask.sum()) == round(0.7 * mask.numel())
        assert torch.equal(child.state_dict()[name][mask], one.weights[name][mask])


def test_modules_the_recipe_keeps_whole(training_of):
    split = {"rate": 0.5, "keep_whole": ["backbone.layer4"], "channel_multiple": 12}
    _, plan = child_of(training_of(split=split), 1, None)
    assert plan.weights["backbone.layer1.0.conv1.weight"].outputs.count == 24  # of 32: 16 rounded up
    kept = {name: mask.outputs.count == mask.shape[0] for name, mask in plan.weights.items()}
    assert kept.pop("head.weight")
    assert {name.split(".")[1] for name, whole in kept.items() if whole} == {"layer4"}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"batches": {"size": 64, "images_per_class": 2}}, "the training part has 4"),
        ({"loss": {"name": "ProxyAnchorLos"}}, "ProxyAnchorLoss"),
        ({"network": {"backbone": "resnet81"}}, "resnet81"),
        ({"method": {"name": "later_layer_forgetting", "layers": ["layer5"]}}, "no weights in a layer 'layer5'"),
        ({"method": {"name": "layer_wise", "layers": ["layer1", "haed"]}}, "did you mean 'head'"),
        (
            {"method": {"name": "repr", "share": 1e-5, "cycles": 1}, "training": {"epochs": 31}},
            r"method\.share = 1e-05, of the \d+ filters",
        ),
    ],
)
def test_what_cannot_be_built_shows_before_any_harm(sections, words, training_of):
    training_of().require_buildable()
    with pytest.raises(KeMetricError, match=words) as raised:
        training_of(**sections).require_buildable()
    assert raised.value.exit_code == ExitCode.RECIPE


def test_only_generation_1_asks_for_pretrained_weights(training_of, lineage, monkeypatch):
    asked, build = [], recipe_networks.build_network

    def note(*arguments, load_pretrained):
        asked.append(load_pretrained)
        return build(*arguments, load_pretrained=False)

    monkeypatch.setattr(recipe_networks, "build_network", note)
    one, two = training_of().inheritance(1, None), training_of().inheritance(2, lineage[0][0])
    asked.clear()
    training_of().assemble(one)
    training_of().assemble(two)
    assert asked == [True, False]
    child = training_of(method={"name": "layer_wise"}).inheritance(2, lineage[0][0])
    asked.clear()
    training_of(method={"name": "layer_wise"}).assemble(child)
    assert asked == [False, True], "a method that looks back at the first weights sees others"


def test_a_test_set_in_which_nothing_can_be_found():
    """One image per class: there is no recall to tell, and none is invented."""
    benchmark = squares()
    lone = replace(benchmark.query, keys=("test/0/0", "test/1/0"), labels=np.array([0, 1]))
    recorder = Recorder()
    recipe = recipe_of(generations=1, training={"epochs": 1, "precision": "fp32"})
    [generation] = evolve(recipe, replace(benchmark, query=lone, gallery=lone), device="cpu", watch=recorder)
    assert "recall@1 not defined" in recorder.notes[0]
    assert not [name for name in generation.scorecard.dense if name.startswith("recall")]


def test_a_device_that_is_not_there(pictures):
    with pytest.raises(KeMetricError, match="device 'cuda:99' cannot be used") as raised:
        next(evolve(recipe_of(), pictures, device="cuda:99"))
    assert raised.value.exit_code == ExitCode.ENVIRONMENT


def test_a_start_counts_on(lineage):
    assert Start().number == 1
    assert Start(lineage[0][1]).number == 3
