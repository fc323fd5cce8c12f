"""The parent as a teacher: what is added to the loss, to which images, and that nothing flows back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from ke_metric.methods.generations import BornAgain
from ke_metric.methods.method import Guided, frozen_parent, taught
from ke_metric.recipe.schema import Training
from ke_metric.training.hooks import TrainingHooks, TrainingObserver
from ke_metric.training.joint import divergence, similarities


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_loops(teacher, student, temperature):
    """KL(softmax(t / T) || softmax(z / T)) row by row, entry by entry, in double precision."""
    total = 0.0
    for t, z in zip(teacher.double(), student.double(), strict=True):
        p, q = (t / temperature).softmax(0), (z / temperature).softmax(0)
        total += sum(float(p[k] * (p[k] / q[k]).log()) for k in range(len(t)))
    return total / len(teacher)


@given(st.integers(1, 5), st.integers(2, 6), st.sampled_from([0.1, 1.0, 4.0]), st.integers(0, 10**6))
@settings(deadline=None, max_examples=50)
def test_the_divergence_is_its_formula(rows, entries, temperature, seed):
    teacher, student = drawn(rows, entries, seed=seed), drawn(rows, entries, seed=seed + 1)
    found = float(divergence(teacher, student, temperature))
    assert found == pytest.approx(by_loops(teacher, student, temperature), rel=1e-4, abs=1e-6)


def test_a_copy_of_the_teacher_diverges_by_nothing():
    assert float(divergence(drawn(4, 5), drawn(4, 5), 0.1)) == pytest.approx(0, abs=1e-6)


def test_similarities_are_those_to_the_others():
    embeddings = normalize(drawn(4, 3), dim=1)
    found = similarities(embeddings)
    expected = [[float(embeddings[i] @ embeddings[j]) for j in range(4) if j != i] for i in range(4)]
    torch.testing.assert_close(found, torch.tensor(expected))


def hooks_of(task="classification", *, teacher=None, weight=1.0, temperature=None):
    return Guided(teacher or nn.Identity(), task, weight=weight, temperature=temperature)


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_logits_have_temperature_1_and_its_square(temperature):
    outputs, targets = drawn(4, 5), drawn(4, 5, seed=1)
    found = float(hooks_of(weight=0.5, temperature=temperature).added_loss(outputs, targets))
    t = temperature or 1.0
    assert found == pytest.approx(0.5 * t**2 * by_loops(targets, outputs, t), rel=1e-4)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_similarities_have_temperature_a_tenth(temperature):
    outputs, targets = normalize(drawn(5, 4), dim=1), normalize(drawn(5, 4, seed=1), dim=1)
    found = float(hooks_of("retrieval", weight=2.0, temperature=temperature).added_loss(outputs, targets))
    expected = 2 * by_loops(similarities(targets), similarities(outputs), temperature or 0.1)
    assert found == pytest.approx(expected, rel=1e-4)


def test_of_two_images_there_is_nothing_to_compare():
    outputs = normalize(drawn(2, 4), dim=1).requires_grad_()
    added = hooks_of("retrieval").added_loss(outputs, normalize(drawn(2, 4, seed=1), dim=1))
    added.backward()
    assert float(added.detach()) == 0
    assert not outputs.grad.any()


def test_its_gradient_is_that_of_the_cross_entropy_with_the_teachers_probabilities():
    """CE(softmax(t), softmax(z)) of Furlanello et al., which has the teacher's entropy on top, a constant."""
    targets, logits = drawn(4, 5, seed=1), drawn(4, 5)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    hooks_of().added_loss(ours, targets).backward()
    cross_entropy(theirs, targets.softmax(dim=1)).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_teacher_that_knows_nothing_smooths_labels():
    """Its share of the gradient is softmax(z) - 1 / C, whatever it is shown."""
    logits = drawn(4, 5).requires_grad_()
    hooks_of().added_loss(logits, torch.zeros(4, 5)).backward()
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(dim=1) - 1 / 5) / 4)


def test_nothing_flows_into_the_targets():
    targets = hooks_of(teacher=nn.Linear(3, 5)).targets(drawn(4, 3))
    assert not targets.requires_grad
    assert targets.grad_fn is None


@pytest.mark.parametrize("name", ["knowledge_evolution", "restarts"])
def test_only_what_the_recipe_asks_for(name, small, inheritance_of):
    assert type(taught(inheritance_of(name))) is TrainingHooks
    assert type(taught(inheritance_of(name, number=1, teacher_weight=1.0))) is TrainingHooks
    inheritance = inheritance_of(name, teacher_weight=0.25, teacher_temperature=3.0, task="retrieval")
    hooks = taught(inheritance)
    outputs, targets = normalize(drawn(5, 4), dim=1), normalize(drawn(5, 4, seed=1), dim=1)
    expected = hooks_of("retrieval", weight=0.25, temperature=3.0).added_loss(outputs, targets)
    assert float(hooks.added_loss(outputs, targets)) == float(expected)


def test_born_again_inherits_nothing(small, inheritance_of, parent):
    child = small(2)
    BornAgain().inherit(child, inheritance_of("born_again", parent=parent))
    assert all(torch.equal(value, small(2).state_dict()[name]) for name, value in child.state_dict().items())
    for name, value in child.named_parameters():
        if value.ndim > 1:
            assert (value != parent[name]).all()


def test_born_again_is_taught_by_its_parent_with_weight_1(small, inheritance_of, parent):
    method = BornAgain()
    assert type(method.hooks(small(1), inheritance_of("born_again", number=1))) is TrainingHooks
    images, outputs = drawn(4, 3, 8, 8), drawn(4, 3, seed=1)
    for weight in (0.0, 0.5):
        hooks = method.hooks(small(2), inheritance_of("born_again", parent=parent, teacher_weight=weight))
        targets = hooks.targets(images)
        teacher = small(9)
        teacher.load_state_dict(parent)
        with torch.no_grad():
            assert torch.equal(targets, teacher.eval()(images))
        expected = (weight or 1.0) * by_loops(targets, outputs, 1.0)
        assert float(hooks.added_loss(outputs, targets)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_teacher_sees_the_same_views_and_stays_as_it_is(channels_last, small, inheritance_of, training_of, parent):
    network = small(2)
    recipe = {"training": Training(channels_last=channels_last)}
    teacher = frozen_parent(inheritance_of("born_again", parent=parent, **recipe))
    training = training_of(network, hooks_of(teacher=teacher), epochs=1, channels_last=channels_last)
    teacher.seen.clear()
    training.train(TrainingObserver())
    assert len(teacher.seen) == len(network.seen) > 0
    assert all(a is b for a, b in zip(teacher.seen, network.seen, strict=True))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, parent[name]) for name, value in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    optimised = {id(parameter) for group in training.optimizer.param_groups for parameter in group["params"]}
    assert not optimised & {id(parameter) for parameter in teacher.parameters()}


def test_a_student_comes_closer_to_its_teacher(small, inheritance_of, training_of, parent):
    """And needs the teacher for that: the labels of noise alone do not lead there."""
    distances = {}
    for weight in (0.0, 20.0):
        network = small(2)
        inheritance = inheritance_of("restarts", parent=parent, teacher_weight=weight)
        training = training_of(network, taught(inheritance), epochs=6)
        training.train(TrainingObserver())
        teacher = frozen_parent(inheritance)
        images = next(training.epochs.epoch(1)).images
        with torch.no_grad():
            distances[weight] = float(divergence(teacher(images), network.eval()(images), 1.0))
    assert distances[20.0] < 0.5 * distances[0.0]


def test_what_a_teacher_adds_is_part_of_the_logged_loss(small, inheritance_of, training_of, parent):
    logged = []
    for weight in (1.0, 3.0):
        network = small(2)
        training = training_of(network, taught(inheritance_of("restarts", parent=parent, teacher_weight=weight)))
        batch = next(training.epochs.epoch(1))
        plain = float(cross_entropy(network.train()(batch.images).detach(), batch.labels))
        logged.append(training.heard(training.take_step(0, batch)).loss - plain)
    assert logged[0] > 0
    assert logged[1] == pytest.approx(3 * logged[0], rel=1e-3)
