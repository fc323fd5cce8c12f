"""What a child takes from its parent: the fit hypothesis, norms and biases to the last bit, and nothing else."""

import pytest
import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.methods.knowledge_evolution import KnowledgeEvolution
from ke_metric.methods.method import Guided
from ke_metric.split.planning import plan_split
from ke_metric.training.hooks import TrainingHooks


class Small(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, 10, 3, bias=False)
        self.head = nn.Linear(10, 5)

    def forward(self, images):
        maps = torch.relu(self.norm(self.stem(images)))
        return self.head(torch.relu(self.inner(maps)).mean(dim=(2, 3)))


def build(seed):
    """Build a network with no value at its default, as after some training."""
    network, generator = Small(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.empty_like(value).uniform_(0.5, 1.5, generator=generator))
    network.norm.num_batches_tracked += seed
    return network


def copied(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture(params=["kels", "wels"])
def plan(request):
    return plan_split(build(0), torch.zeros(1, 3, 8, 8), rate=0.5, kind=request.param, seed=3)


@pytest.fixture
def parent():
    return copied(build(1))


@pytest.fixture
def inherit(inheritance_of):
    """Makes a newly built network the child of a parent."""

    def make(child, parent, plan, *, reset="official", **facts):
        inheritance = inheritance_of(parent=parent, plan=plan, builds=build, reset=reset, **facts)
        KnowledgeEvolution().inherit(child, inheritance)

    return make


@pytest.mark.parametrize("reset", ["official", "same_as_init", "zero"])
def test_what_is_fit_is_the_parents_to_the_last_bit(parent, plan, reset, inherit):
    child = build(2)
    inherit(child, parent, plan, reset=reset)
    masks = plan.masks
    assert set(masks) == {"stem.weight", "inner.weight", "head.weight"}
    for name, value in child.state_dict().items():
        fit = masks.get(name, torch.ones(value.shape, dtype=torch.bool))
        assert torch.equal(value[fit], parent[name][fit]), name


def test_official_reset_lies_within_its_bound(parent, plan, inherit):
    child = build(2)
    inherit(child, parent, plan, reset="official")
    fan_in = {"stem.weight": 3 * 9, "inner.weight": 6 * 9, "head.weight": 10}
    for name, mask in plan.masks.items():
        redrawn = child.state_dict()[name][~mask]
        assert (redrawn != parent[name][~mask]).all()
        assert float(redrawn.abs().max()) <= fan_in[name] ** -0.5
        # Uniform to its ends, not just small: 0.9 of the bound is reached by some of so many.
        assert float(redrawn.abs().max()) > 0.8 * fan_in[name] ** -0.5


def test_same_as_init_takes_the_new_networks_values(parent, plan, inherit):
    child = build(2)
    newly_built = copied(child)
    inherit(child, parent, plan, reset="same_as_init")
    for name, mask in plan.masks.items():
        assert torch.equal(child.state_dict()[name][~mask], newly_built[name][~mask])


def test_zero_reset(parent, plan, inherit):
    child = build(2)
    inherit(child, parent, plan, reset="zero")
    assert all(not child.state_dict()[name][~mask].any() for name, mask in plan.masks.items())


@pytest.mark.parametrize("reset", ["official", "zero"])
def test_the_rest_of_the_new_network_does_not_matter(parent, plan, reset, inherit):
    one, other = build(2), build(3)
    inherit(one, parent, plan, reset=reset)
    inherit(other, parent, plan, reset=reset)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("facts", [{"number": 3}, {"number": 2, "seed": 1}], ids=["generation", "seed"])
def test_every_generation_and_seed_draws_another_reset(facts, parent, plan, inherit):
    one, other = build(2), build(2)
    inherit(one, parent, plan, number=2)
    inherit(other, parent, plan, **facts)
    for name, mask in plan.masks.items():
        assert (one.state_dict()[name][~mask] != other.state_dict()[name][~mask]).all()


def test_the_parent_and_the_plan_stay_as_they_are(parent, plan, inherit):
    before, masks = {name: value.clone() for name, value in parent.items()}, plan.masks
    inherit(build(2), parent, plan, reset="official")
    assert all(torch.equal(value, before[name]) for name, value in parent.items())
    assert all(torch.equal(mask, masks[name]) for name, mask in plan.masks.items())


def test_split_rate_1_inherits_everything(parent, inherit):
    plan = plan_split(build(0), torch.zeros(1, 3, 8, 8), rate=1.0)
    child = build(2)
    inherit(child, parent, plan, reset="official")
    assert all(torch.equal(value, parent[name]) for name, value in child.state_dict().items())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda weights: weights.pop("norm.running_mean"), "norm.running_mean"),
        (lambda weights: weights.update({"tail.weight": torch.zeros(2)}), "tail.weight"),
        (lambda weights: weights.update({"inner.weight": torch.zeros(10, 4, 3, 3)}), "inner.weight"),
    ],
    ids=["missing", "left over", "wrong shape"],
)
def test_weights_that_do_not_fit(parent, plan, change, word, inherit):
    change(parent)
    with pytest.raises(KeMetricError, match="the parent's weights do not fit the recipe's network") as raised:
        inherit(build(2), parent, plan, reset="official")
    assert word in str(raised.value)
    assert raised.value.exit_code == ExitCode.LINEAGE


def test_same_as_init_draws_anew_in_every_generation(parent, plan, inherit):
    one, other = build(2), build(3)
    inherit(one, parent, plan, reset="same_as_init", number=2)
    inherit(other, parent, plan, reset="same_as_init", number=3)
    for name, mask in plan.masks.items():
        assert (one.state_dict()[name][~mask] != other.state_dict()[name][~mask]).all()


def test_the_parent_teaches_only_where_the_recipe_asks_for_it(parent, inheritance_of):
    method, network = KnowledgeEvolution(), build(2)
    assert type(method.hooks(network, inheritance_of(parent=parent))) is TrainingHooks
    assert type(method.hooks(network, inheritance_of(number=1, teacher_weight=0.5))) is TrainingHooks
    plan = plan_split(build(0), torch.zeros(1, 3, 8, 8), rate=0.5)
    taught = inheritance_of(parent=parent, plan=plan, builds=build, teacher_weight=0.5)
    assert isinstance(method.hooks(network, taught), Guided)
