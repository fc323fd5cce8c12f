"""One generation of training: epochs over batches, from starting weights to the last or the best epoch's.

Optimizer and learning rate are new in every generation.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ke_metric.arrays import load_whole, weights_of
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.generation import TrainingState
from ke_metric.randomness import default_streams
from ke_metric.recipe.schema import Recipe, Training
from ke_metric.split.plan import SplitPlan
from ke_metric.training.averaging import AveragedWeights
from ke_metric.training.compiling import compiled, told_of_compiling
from ke_metric.training.engine import Engine
from ke_metric.training.given_weights import groups_by_rate, norms_at_rest, trainable
from ke_metric.training.hooks import StepReport, TrainingHooks, TrainingObserver
from ke_metric.training.joint import JointWidths, at_rest
from ke_metric.training.patience import Patience, Validator
from ke_metric.training.steps import EpochFacts, StepFacts, TakenStep, first_not_finite, sign_of

# Mean cosine distance between the embeddings of a batch below which they are as good as one point.
COLLAPSED_SPREAD = 0.01


def build_optimizer(
    network: nn.Module, loss: nn.Module, recipe: Recipe, *, device: torch.device, scaled: bool
) -> Optimizer:
    """Build the recipe's optimizer over the network and the loss's own parameters (proxies).

    Each is a parameter group of its own, and so is a backbone with a learning rate of its own, after the head; the
    loss's has its learning-rate factor and no weight decay. The highest learning rate of a group is kept under the
    key `peak`.

    Args:
        network: The network.
        loss: The loss.
        recipe: The recipe.
        device: Where both are.
        scaled: Whether a loss scaler (fp16) leaves steps out whose gradients are not finite.
    """
    section, of_loss = recipe.optimizer, recipe.optimizer.learning_rate * recipe.loss.learning_rate_factor
    groups = [
        *(
            {"params": parameters, "lr": section.learning_rate * factor, "weight_decay": section.weight_decay}
            for factor, parameters in groups_by_rate(network, section.backbone_factor)
        ),
        {"params": trainable(loss), "lr": of_loss, "weight_decay": 0.0},
    ]
    groups = [group | {"peak": group["lr"]} for group in groups if group["params"]]
    # One pass over the parameters instead of several: a fifth less time for a small batch on the CPU.
    fused = device.type in ("cpu", "cuda")
    if section.name == "sgd":
        # A first step that is left out would leave torch's fused SGD with momentum from memory nobody has written.
        return torch.optim.SGD(groups, momentum=section.momentum, fused=fused and not scaled)
    kind = torch.optim.AdamW if section.name == "adamw" else torch.optim.Adam
    return kind(groups, fused=fused)


def learning_rate_factor(step: int, steps_per_epoch: int, training: Training) -> float:
    """Return the learning rate of a step (from 0) as a share of its highest value.

    Linear warm-up over `warmup_epochs`, then half a cosine that reaches 0 after the last step (Loshchilov and
    Hutter 2017, without restarts), or constant. A function of the step alone, so that a resume needs no state.
    """
    warmup = training.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if training.schedule == "constant":
        return 1.0
    progress = (step - warmup) / (training.epochs * steps_per_epoch - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its highest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


class TrainingBatch(Protocol):
    """Images [B, 3, H, W] and labels [B], or shares of classes [B, C], on the device, and the keys of the B items."""

    @property
    def images(self) -> Tensor: ...  # noqa: D102
    @property
    def labels(self) -> Tensor: ...  # noqa: D102
    @property
    def keys(self) -> tuple[str, ...]: ...  # noqa: D102


class Epochs(Protocol):
    """The batches of every epoch of a generation."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        ...

    def epoch(self, number: int) -> Iterator[TrainingBatch]:
        """Yield the batches of epoch `number` (from 1); the same ones whenever it is asked."""
        ...


class GenerationTraining:
    """Trains one network with one loss for the epochs of a recipe.

    Args:
        network: Images [B, 3, H, W] to outputs [B, D]: L2-normalised embeddings or logits; placed, trained in place.
        loss: Outputs [B, D] and labels [B] to a scalar; placed, trained in place. Where it has `takes_partners`, a
            batch is two halves of one class each, and the loss also gets the outputs of the second half.
        epochs: The batches.
        recipe: The recipe of the lineage.
        engine: Device, precision, processes.
        number: Number of the generation, from 1.
        hooks: What the recipe's method does while the generation trains; nothing when left out.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        epochs: Epochs,
        *,
        recipe: Recipe,
        engine: Engine,
        number: int,
        hooks: TrainingHooks | None = None,
    ) -> None:
        self.network, self.loss, self.epochs = network, loss, epochs
        self.recipe, self.engine, self.number = recipe, engine, number
        self.hooks = hooks or TrainingHooks()
        self.joint: JointWidths | None = None
        self.parallel = compiled(network, engine) if recipe.training.compile else engine.parallel(network)
        self.scaler = engine.new_scaler()
        scaled = self.scaler.is_enabled()
        self.optimizer = build_optimizer(network, loss, recipe, device=engine.device, scaled=scaled)
        self.average = AveragedWeights(network, recipe.training)
        self.patience: Patience | None = None
        self.log: tuple[Mapping[str, Any], ...] = ()
        self.seconds = 0.0

    def train_widths(self, plans: Mapping[str, SplitPlan]) -> None:
        """Have narrow networks learn beside the network, split rate as text to its plan there; see `JointWidths`."""
        self.joint = JointWidths(self.network, plans, recipe=self.recipe, number=self.number)
        # DistributedDataParallel shares a gradient after one backward pass; that of several widths is averaged
        # when all of it is there.
        self.parallel = self.network

    def validate_by(self, validator: Validator) -> None:
        """Have every epoch scored, and the generation end where its recipe's patience does; see `Patience`."""
        epochs = self.recipe.training.patience
        assert epochs is not None, "the recipe has no patience"
        self.patience = Patience(self.network, self.average, validator, epochs)

    def restore(self, state: TrainingState) -> None:
        """Continue from a state of the same generation; a tensor that does not match is a KeMetricError."""
        assert state.number == self.number, (state.number, self.number)
        if self.patience is not None:
            self.patience.restore(state, self.loss)
        load_whole(self.network, state.weights, "the weights to go on with")
        load_whole(self.loss, state.loss_weights, "the parameters of the loss to go on with")
        # A copy: the optimizer works on the very tensors that it is given.
        self.optimizer.load_state_dict(_on_cpu(state.optimizer["optimizer"]))
        self.scaler.load_state_dict(state.optimizer["scaler"])
        self.hooks.restore(state.method_weights)
        self.average.restore(state.average, state.epoch)
        self.log, self.seconds = state.training_log, state.seconds

    def train(self, observer: TrainingObserver) -> TrainingState:
        """Train the epochs that are left and return the state after the last one, with the weights that count.

        Raises:
            KeMetricError: The loss or a weight is not finite (exit code 6).
        """
        state = self._state()
        for epoch in range(len(self.log) + 1, self.recipe.training.epochs + 1):
            if self.patience is not None and self.patience.is_over(self.log):
                break
            state = self.train_epoch(epoch, observer)
            observer.epoch_done(state)
        return state if self.patience is None else self.patience.chosen(state, self.loss, observer)

    def train_epoch(self, epoch: int, observer: TrainingObserver) -> TrainingState:
        """Train epoch `epoch`, which must be the next one, and return the state after it; raises as `train` does."""
        started = time.perf_counter()
        self.hooks.epoch_begins(epoch, self.optimizer)
        facts = self._take_steps(epoch, observer)
        self._warn(epoch, facts, observer)
        self.average.epoch_done(epoch)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        engine = {"processes": self.engine.processes, "precision": self.engine.precision}
        record = {"generation": self.number, "epoch": epoch, **facts, **engine, "seconds": round(seconds, 3)}
        self.log = (*self.log, record)
        state = self._state()
        if self.patience is not None:
            state = self.patience.judge(state)
            self.log = state.training_log
        return state

    def _warn(self, epoch: int, facts: Mapping[str, float], observer: TrainingObserver) -> None:
        """Tell the observer of an epoch that was probably in vain."""
        where = f"generation {self.number}, epoch {epoch}"
        if facts.get("spread", 1.0) < COLLAPSED_SPREAD:
            observer.warn(
                f"{where}: embeddings have collapsed (mean cosine distance in a batch {facts['spread']:.4f}); a "
                "smaller optimizer.learning_rate or another loss may help"
            )
        if facts.get("idle_steps") == len(self.epochs):
            observer.warn(
                f"{where}: nothing was learnt: all {len(self.epochs)} steps had loss 0 or no tuples. Either "
                "everything is told apart already, or the batches have no pairs that the loss can use: other "
                "batches, another loss or another miner may help"
            )

    def begin_training(self) -> None:
        """Put the network into train mode, but for norm layers that go by their stored statistics."""
        self.parallel.train()
        for norm in norms_at_rest(self.network, self.recipe):
            norm.eval()

    def _take_steps(self, epoch: int, observer: TrainingObserver) -> dict[str, Any]:
        """Take the steps of one epoch and return what the log says of them: means over steps, images in all."""
        facts = EpochFacts()
        self.begin_training()
        # Dropout and stochastic depth draw from the default streams; an epoch that is repeated draws the same.
        with default_streams(self.recipe.seed, self.number, f"training-{epoch}-{self.engine.rank}"):
            for taken in self._taken(epoch):
                facts.steps.append(self.heard(taken))
                report = self._report(taken, epoch, facts.steps[-1].loss)
                facts.images += report.images
                observer.step_done(report)
        self.engine.share_buffers(self.network)
        self._require_finite_weights(taken)
        return facts.record(self.recipe.task, taken.learning_rate)

    def _taken(self, epoch: int) -> Iterator[TakenStep]:
        """Yield the steps of an epoch, each when the next one was begun: that is computed while this one is heard."""
        last: TakenStep | None = None
        for index, batch in enumerate(self.epochs.epoch(epoch)):
            try:
                taken = self.take_step((epoch - 1) * len(self.epochs) + index, batch)
            except Exception:
                # What it failed of may be what the one before left behind, which is the news then. Observers are not
                # told of it: other processes, with which they may talk, have not failed.
                if last is not None:
                    self.heard(last)
                raise
            if last is not None:
                yield last
            last = taken
        assert last is not None, "an epoch has batches"
        yield last

    def heard(self, taken: TakenStep) -> StepFacts:
        """Wait for what a step says, and return it.

        Raises:
            KeMetricError: One of its losses is not finite.
        """
        facts = taken.read()
        if facts.strange_loss is not None:
            reason = getattr(self.loss, "fault", lambda: None)()
            raise self._diverged(reason or f"the loss is {facts.strange_loss}", taken)
        return facts

    def take_step(self, step: int, batch: TrainingBatch) -> TakenStep:
        """Take optimizer step number `step` (from 0) of the generation; what it says is read by `heard`.

        Raises:
            KeMetricError: The network is to be compiled and cannot be.
        """
        factor = self.hooks.learning_rate_factor * learning_rate_factor(step, len(self.epochs), self.recipe.training)
        set_learning_rate(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        with self.hooks.step(step):
            with self._told_of_compiling():
                loss, outputs, labels = self._compute_loss(step, batch, self.parallel)
                tuples = getattr(self.loss, "tuples", None)
                self._differentiate(loss)
            outputs = outputs.detach()
            rate_losses = self._train_narrow(step, batch, outputs)
        self.engine.average_gradients(self.loss)
        self.hooks.before_step()
        if self.recipe.training.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.training.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.hooks.after_step()
        self.average.step_done(step)
        return TakenStep(
            step,
            batch.keys,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            loss=loss,
            sign=sign_of(outputs, labels, self.recipe.task),
            rate_losses=rate_losses,
            tuples=tuples,
        )

    def _told_of_compiling(self) -> AbstractContextManager[None]:
        return told_of_compiling() if self.recipe.training.compile else nullcontext()

    def _differentiate(self, loss: Tensor) -> None:
        """Compute the gradient of a loss, added to what there is."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # untyped in torch

    def _train_narrow(self, step: int, batch: TrainingBatch, dense: Tensor) -> dict[str, Tensor]:
        """Add the gradients of the narrow networks, one after another so that one at a time holds activations.

        Args:
            step: Number of the step, from 0.
            batch: Its batch.
            dense: What the whole network gave for it, without gradient.

        Returns:
            Split rate to the loss of the narrow network there.
        """
        if self.joint is None:
            return {}
        losses: dict[str, Tensor] = {}
        for rate, network in self.joint.of_step(step):
            with at_rest(self.loss):
                loss, outputs, _ = self._compute_loss(step, batch, network)
            loss = loss + self.joint.taught_loss(outputs, dense)
            self._differentiate(loss)
            losses[rate] = loss.detach()
        self.engine.average_gradients(self.network)
        return losses

    def _compute_loss(self, step: int, batch: TrainingBatch, network: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of the whole or a narrow network, outputs and labels of all processes' images."""
        has_partners = getattr(self.loss, "takes_partners", False)
        half = len(batch.images) // 2 if has_partners else len(batch.images)
        images, own_labels = batch.images[:half], batch.labels[:half]
        with self.engine.autocast():
            own_outputs = network(images)
            # The halves do not go through together: each is normalised by its own statistics.
            is_whole = network is self.parallel
            looking = self.network if is_whole and self.engine.processes > 1 else network
            partner_outputs = [_look(looking, batch.images[half:])] if has_partners else []
            targets = self.hooks.targets(images) if is_whole else None
        outputs, labels = self.engine.gather(own_outputs.float(), own_labels)
        partners = [self.engine.gather(each.float(), own_labels)[0] for each in partner_outputs]
        # Every process computes the loss of the whole batch, and must draw the same for it.
        with default_streams(self.recipe.seed, self.number, f"loss-{step}"):
            loss = self.loss(outputs, labels, *partners)
        if targets is not None:
            loss = loss + self.hooks.added_loss(outputs, self.engine.gather(targets.float(), own_labels)[0])
        return loss, outputs, labels

    def _report(self, taken: TakenStep, epoch: int, loss: float) -> StepReport:
        return StepReport(
            generation=self.number,
            epoch=epoch,
            step=taken.number + 1,
            steps=self.recipe.training.epochs * len(self.epochs),
            images=sum(self.engine.lengths(len(taken.keys))),
            loss=loss,
            learning_rate=taken.learning_rate,
        )

    def _require_finite_weights(self, last: TakenStep) -> None:
        """Refuse a network or a loss that is not finite after the last step of an epoch; one wait for the device."""
        strange = first_not_finite([*self.network.state_dict().items(), *self.loss.state_dict().items()])
        if strange is not None:
            raise self._diverged(f"{strange} is not finite", last)

    def _diverged(self, what: str, taken: TakenStep) -> KeMetricError:
        epoch, index = divmod(taken.number, len(self.epochs))
        images = f"; images of the batch: {', '.join(taken.keys)}" if taken.keys else ""
        where = f"generation {self.number}, epoch {epoch + 1}, step {index + 1} of {len(self.epochs)}"
        return KeMetricError(
            f"training diverged in {where}: {what} at learning rate {taken.learning_rate:.3g}. The "
            "state after the last finished epoch is kept. Try a smaller optimizer.learning_rate, a longer "
            f"training.warmup_epochs, training.gradient_clip, or training.precision = 'fp32'{images}",
            ExitCode.DIVERGED,
        )

    def _state(self) -> TrainingState:
        return TrainingState(
            number=self.number,
            epoch=len(self.log),
            weights=weights_of(self.network),
            loss_weights=weights_of(self.loss),
            optimizer=_on_cpu({"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}),
            training_log=self.log,
            seconds=self.seconds,
            method_weights=self.hooks.tensors(),
            average=self.average.tensors(),
        )


@torch.no_grad()
def _look(network: nn.Module, images: Tensor) -> Tensor:
    """Return outputs without gradient, the network in train mode.

    Past DistributedDataParallel, which has no gradients to share here and would give every process the norm
    statistics of the first one in the middle of a step.
    """
    outputs: Tensor = network(images)
    return outputs


def _on_cpu(value: Any) -> Any:
    """Return a copy of an optimizer's state on the CPU; a fused optimizer needs each tensor in the layout it has."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_cpu(part) for key, part in value.items()}
    return [_on_cpu(part) for part in value] if isinstance(value, list) else value
