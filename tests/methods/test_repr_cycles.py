"""RePr: filters go, stay away, and come back elsewhere, at the epochs that the recipe says."""

import pytest
import torch
from torch import nn

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.methods.repr import SHARE, FilterCycles, RePr, is_dropped, most_redundant
from ke_metric.training.hooks import TrainingObserver

# Filters come and go in epochs 3, 4 and 7, 8 of 9.
CYCLES = {"full_epochs": 2, "dropped_epochs": 2, "cycles": 2}
EPOCHS = 9
NORMS = {"layer1.conv1": "layer1.bn1", "layer2.0": "layer2.1"}
READERS = {"layer1.conv1": "layer1.conv2", "layer2.0": "layer2.3", "layer2.3": "head"}


class AtEpochs(TrainingObserver):
    """Keeps what the weights are after every epoch."""

    def __init__(self):
        self.states = []

    def epoch_done(self, state):
        self.states.append(state)


class Steps(FilterCycles):
    """Calls something whenever a step is done."""

    def __init__(self, network, inheritance, look):
        super().__init__(network, inheritance)
        self._look, self._epoch = look, 0

    def epoch_begins(self, epoch, optimizer):
        super().epoch_begins(epoch, optimizer)
        self._epoch = epoch
        self._look(epoch)

    def after_step(self):
        super().after_step()
        self._look(self._epoch)


def inheritance(inheritance_of, **facts):
    return inheritance_of("repr", **CYCLES | facts)


def filters_in(weights):
    names = ("layer1.conv1", "layer1.conv2", "layer1.shortcut", "layer2.0", "layer2.3")
    return {f"{name}.weight": weights[f"{name}.weight"] for name in names}


def zeros_in(weights):
    """Return weight name -> which filters are 0, of those that may be dropped."""
    return {name: weight.flatten(1).eq(0).all(dim=1) for name, weight in filters_in(weights).items()}


def train(training, observer=None):
    observer = observer or AtEpochs()
    training.train(observer)
    return [state.weights for state in observer.states]


def test_the_schedule_is_cycles_of_full_and_dropped_epochs(inheritance_of):
    dropped = [epoch for epoch in range(1, 12) if is_dropped(epoch, inheritance(inheritance_of).method)]
    assert dropped == [3, 4, 7, 8]
    default = inheritance_of("repr").method
    dropped = [epoch for epoch in range(1, 201) if is_dropped(epoch, default)]
    assert dropped == [*range(21, 31), *range(51, 61), *range(81, 91)]
    assert SHARE == 0.3


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_dropped_filters_are_0_throughout(optimizer, channels_last, small, inheritance_of, training_of):
    """After every single step, through momentum and weight decay; floor(0.3 x 42) of them, the others train."""
    network, seen = small(1), {}

    def look(epoch):
        seen.setdefault(epoch, []).append(zeros_in(network.state_dict()))

    hooks = Steps(network, inheritance(inheritance_of, number=1), look)
    train(training_of(network, hooks, optimizer=optimizer, epochs=EPOCHS, channels_last=channels_last))
    for epoch, looks in seen.items():
        counts = {sum(int(flags.sum()) for flags in zeros.values()) for zeros in looks}
        assert len(looks) == 1 + 3
        assert counts == ({12} if epoch in (3, 4, 7, 8) else {0}), epoch
    assert str(seen[3]) == str(seen[4]), "the filters changed while they were dropped"
    assert str(seen[3]) != str(seen[7]), "the second cycle dropped the same filters"


def test_the_most_redundant_filters_are_dropped(small, inheritance_of, training_of):
    network = small(1)
    training = training_of(network, FilterCycles(network, inheritance(inheritance_of, number=1)), epochs=EPOCHS)
    weights = train(training)
    for before, after in ((1, 2), (5, 6)):
        expected = most_redundant(filters_in(weights[before]), 0.3)
        found = {name: flags for name, flags in zeros_in(weights[after]).items() if flags.any()}
        assert {name: flags.tolist() for name, flags in found.items()} == {
            name: flags.tolist() for name, flags in expected.items()
        }


def dropped_network(small, inheritance_of, *, share=0.3, **facts):
    """Return a network whose filters have just been dropped, its hooks, the weights before, and the filters."""
    network = small(1)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.rand(value.shape, generator=torch.Generator().manual_seed(5)) / 10 + 0.01)
        for value in network.buffers():
            if value.is_floating_point():
                value.add_(0.5)
    hooks = FilterCycles(network, inheritance(inheritance_of, **{"number": 1, "share": share} | facts))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    hooks.epoch_begins(3, torch.optim.SGD(network.parameters()))
    return network, hooks, before, most_redundant(filters_in(before), share)


def entries_of(network, chosen, *, running=False):
    """Return name -> the entries that go with filters: rows, biases, and channels of norms that are theirs alone."""
    entries = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in network.state_dict().items()}
    for name, flags in chosen.items():
        module = name.removesuffix(".weight")
        entries[name][flags] = True
        if f"{module}.bias" in entries:
            entries[f"{module}.bias"][flags] = True
        if module in NORMS:
            for tensor in ("weight", "bias", *(("running_mean", "running_var") if running else ())):
                entries[f"{NORMS[module]}.{tensor}"][flags] = True
    return entries


def test_what_goes_with_a_filter(small, inheritance_of):
    network, _, before, chosen = dropped_network(small, inheritance_of)
    assert {"layer1.conv1.weight", "layer1.conv2.weight", "layer2.0.weight"} & set(chosen)
    entries = entries_of(network, chosen)
    for name, value in network.state_dict().items():
        assert not value[entries[name]].any(), name
        assert torch.equal(value[~entries[name]], before[name][~entries[name]]), name


def test_a_dropped_channel_is_0_and_not_a_constant(small, inheritance_of):
    network, _, _, chosen = dropped_network(small, inheritance_of, share=0.5)
    maps = {}
    for name, norm in NORMS.items():
        network.get_submodule(norm).register_forward_hook(lambda *facts, name=name: maps.update({name: facts[2]}))
    network.train()(torch.randn(4, 3, 8, 8))
    checked = 0
    for name in NORMS:
        flags = chosen.get(f"{name}.weight", torch.zeros(8, dtype=torch.bool))
        assert not maps[name][:, flags].any()
        assert maps[name][:, ~flags].flatten(2).any(dim=2).all()
        checked += int(flags.sum())
    assert checked


def test_nothing_but_what_is_dropped_is_held(small, inheritance_of):
    network, hooks, _, chosen = dropped_network(small, inheritance_of)
    entries = entries_of(network, chosen)
    network(torch.randn(4, 3, 8, 8)).square().sum().backward()
    gradients = {name: value.grad.clone() for name, value in network.named_parameters()}
    hooks.before_step()
    for name, value in network.named_parameters():
        assert not value.grad[entries[name]].any()
        assert torch.equal(value.grad[~entries[name]], gradients[name][~entries[name]])
    with torch.no_grad():
        for value in network.parameters():
            value.add_(1)
    moved = {name: value.detach().clone() for name, value in network.named_parameters()}
    hooks.after_step()
    for name, value in network.named_parameters():
        assert not value[entries[name]].any()
        assert torch.equal(value[~entries[name]], moved[name][~entries[name]])
    network.zero_grad(set_to_none=True)
    hooks.before_step()


@pytest.mark.parametrize(("kind", "moment"), [(torch.optim.SGD, "momentum_buffer"), (torch.optim.AdamW, "exp_avg")])
def test_the_momentum_of_dropped_filters_is_dropped(kind, moment, small, inheritance_of):
    facts = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    network = small(1)
    optimizer = kind(network.parameters(), lr=0.01, **facts)
    for _ in range(2):
        network(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    moments = {name: optimizer.state[value][moment].clone() for name, value in network.named_parameters()}
    hooks = FilterCycles(network, inheritance(inheritance_of, number=1))
    hooks.epoch_begins(3, optimizer)
    entries = entries_of(
        network, {name: flags for name, flags in zeros_in(network.state_dict()).items() if any(flags)}
    )
    for name, value in network.named_parameters():
        left = optimizer.state[value][moment]
        assert not left[entries[name]].any()
        assert torch.equal(left[~entries[name]], moments[name][~entries[name]])


def bring_back(network, hooks):
    hooks.epoch_begins(5, torch.optim.SGD(network.parameters()))
    return network.state_dict()


def test_what_comes_back_and_what_stays(small, inheritance_of):
    network, hooks, _, chosen = dropped_network(small, inheritance_of)
    with torch.no_grad():
        for name, value in network.named_parameters():
            # As if other weights had trained.
            value.add_(torch.where(entries_of(network, chosen)[name], 0, 0.1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    after = bring_back(network, hooks)
    entries = entries_of(network, chosen, running=True)
    read = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in after.items()}
    for name, flags in chosen.items():
        module = name.removesuffix(".weight")
        if module in READERS:
            read[f"{READERS[module]}.weight"][:, flags] = True
    starts = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
    for name, value in after.items():
        untouched = ~entries[name] & ~read[name]
        assert torch.equal(value[untouched], before[name][untouched]), name
        if name in chosen:
            assert (value[chosen[name]] != 0).all()
        elif value.ndim == 1 and entries[name].any():
            assert (value[entries[name]] == starts[name.rpartition(".")[2]]).all(), name
        fresh = read[name] & ~entries[name]
        if fresh.any():
            assert (value[fresh] != before[name][fresh]).all()
            assert value[fresh].abs().max() <= value[0].numel() ** -0.5
    assert any(each.any() for each in read.values())


def test_filters_come_back_orthogonal(small, inheritance_of):
    """To what they were and to what stayed, where a filter has entries enough; and as long as the others were."""
    network, hooks, before, chosen = dropped_network(small, inheritance_of)
    after, roomy = bring_back(network, hooks), 0
    for name, flags in chosen.items():
        new, old = (nn.functional.normalize(each[name].flatten(1), dim=1) for each in (after, before))
        torch.testing.assert_close(
            after[name][flags].flatten(1).norm(dim=1),
            before[name].flatten(1).norm(dim=1).mean().expand(int(flags.sum())),
        )
        count, size = int(flags.sum()), new.shape[1]
        if len(new) + count <= size:
            roomy += count
            assert (new[flags] @ old[flags].T).abs().max() < 1e-5
            assert (new[flags] @ new[~flags].T).abs().max() < 1e-5
            assert (new[flags] @ new[flags].T - torch.eye(count)).abs().max() < 1e-5
        elif size > 1:
            assert (new[flags] * old[flags]).sum(dim=1).abs().max() < 1e-5
    assert roomy


def test_the_same_seed_brings_back_the_same(small, inheritance_of):
    def brought_back(**facts):
        network, hooks, *_ = dropped_network(small, inheritance_of, **facts)
        return bring_back(network, hooks)

    one, again, other, seed = (brought_back(**facts) for facts in ({}, {}, {"number": 2}, {"seed": 1}))
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    for name in ("layer1.conv1.weight", "layer2.0.weight"):
        assert not torch.equal(one[name], other[name])
        assert not torch.equal(one[name], seed[name])


def test_two_cycles_draw_differently(small, inheritance_of):
    """The filters that come back, and what reads them."""
    weights = []
    for epoch in (5, 9):
        network, hooks, _, chosen = dropped_network(small, inheritance_of, share=0.5)
        hooks.epoch_begins(epoch, torch.optim.SGD(network.parameters()))
        weights.append(network.state_dict())
    for name, flags in chosen.items():
        module = name.removesuffix(".weight")
        assert (weights[0][name][flags] != weights[1][name][flags]).any(dim=1).all()
        if module in READERS:
            reader = f"{READERS[module]}.weight"
            stays = ~chosen.get(reader, torch.zeros(len(weights[0][reader]), dtype=torch.bool))
            one, other = (each[reader][stays][:, flags] for each in weights)
            assert one.numel()
            assert (one != other).all()


def test_training_ends_with_the_full_network(small, inheritance_of, training_of):
    network = small(1)
    weights = train(training_of(network, FilterCycles(network, inheritance(inheritance_of, number=1)), epochs=EPOCHS))
    assert not any(flags.any() for flags in zeros_in(weights[-1]).values())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resume_is_never_having_stopped(optimizer, small, inheritance_of, training_of):
    """After every epoch: before, while and after filters are dropped."""

    def prepare():
        network = small(1)
        hooks = RePr().hooks(network, inheritance(inheritance_of, number=1))
        return training_of(network, hooks, optimizer=optimizer, epochs=EPOCHS)

    observer = AtEpochs()
    expected = train(prepare(), observer)[-1]
    for state in observer.states[:-1]:
        again = prepare()
        again.restore(state)
        found = train(again)[-1]
        assert all(torch.equal(value, found[name]) for name, value in expected.items()), state.epoch


def test_a_state_is_a_copy(small, inheritance_of):
    network, hooks, *_ = dropped_network(small, inheritance_of)
    tensors = hooks.tensors()
    kept = {name: value.clone() for name, value in tensors.items()}
    assert {name.partition("/")[0] for name in tensors} == {"norm", "dropped", "old"}
    bring_back(network, hooks)
    hooks.epoch_begins(7, torch.optim.SGD(network.parameters()))
    assert all(torch.equal(value, kept[name]) for name, value in tensors.items())


@pytest.mark.parametrize("missing", ["norm/layer2.0.weight", "old/"])
def test_a_state_of_something_else_is_refused(missing, small, inheritance_of):
    _, hooks, *_ = dropped_network(small, inheritance_of)
    tensors = {name: value for name, value in hooks.tensors().items() if not name.startswith(missing)}
    with pytest.raises(KeMetricError, match="lacks what RePr keeps") as raised:
        FilterCycles(small(1), inheritance(inheritance_of, number=1)).restore(tensors)
    assert raised.value.exit_code == ExitCode.LINEAGE


def test_a_skipped_step_leaves_filters_dropped(small, inheritance_of, training_of, scaling):
    """As in fp16, where the scaler leaves steps out whose gradients are not finite."""
    network = small(1)
    hooks = FilterCycles(network, inheritance(inheritance_of, number=1))
    training = training_of(network, hooks, epochs=EPOCHS, engine=scaling)
    batches = list(training.epochs.epoch(1))
    hooks.epoch_begins(3, training.optimizer)
    dropped = zeros_in(network.state_dict())
    hook = training.loss.register_forward_hook(lambda *facts: 100 * facts[2])
    head = network.head.weight.detach().clone()
    training.take_step(1, batches[1])
    assert torch.equal(network.head.weight, head), "the scale was not too large"
    hook.remove()
    training.scaler.update(2.0**10)
    training.take_step(2, batches[2])
    assert not torch.equal(network.head.weight, head)
    assert str(zeros_in(network.state_dict())) == str(dropped)


def test_a_child_inherits_everything(small, inheritance_of, parent):
    child = small(2)
    RePr().inherit(child, inheritance(inheritance_of, parent=parent))
    assert all(torch.equal(value, parent[name]) for name, value in child.state_dict().items())


def test_what_cannot_be_dropped_shows_before_anything_is_trained(small, inheritance_of):
    with pytest.raises(KeMetricError, match=r"method\.share = 0\.01, of the 42 filters of this network that is none"):
        RePr().hooks(small(1), inheritance(inheritance_of, share=0.01))
    with pytest.raises(KeMetricError, match="the network has none"):
        RePr().hooks(nn.Linear(2, 2), inheritance(inheritance_of))
