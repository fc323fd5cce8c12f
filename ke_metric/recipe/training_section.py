"""The section `training` of a recipe: one generation of training, and which of its weights count."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ke_metric.schema import ConflictError, Section


class Training(Section):
    """One generation of training."""

    epochs: int = Field(100, ge=1)
    """Epochs of every generation."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs over which the learning rate rises linearly from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine down to 0 after the last step, or constant."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the network's forward pass; the loss is always fp32. auto: bf16 where the device has it."""
    channels_last: bool = True
    """Store images and weights as NHWC, which is faster for convolutions on most devices."""
    compile: bool = False
    """Train with the network compiled by torch. Needs a C++ compiler (on a GPU also Triton) and one process, and
    takes a minute or more before the first step of all; weights differ from uncompiled ones by rounding."""
    gradient_clip: float | None = Field(None, gt=0)
    """Largest norm of the network's gradient; none when left out."""
    norm_statistics: Literal["batch", "stored"] = "batch"
    """What batch norm goes by while a generation trains. batch: the statistics of the batch, as usual. stored: those
    that came with the weights, which stay as they are; for small batches on top of `network.weights`."""
    average: float | None = Field(None, gt=0, lt=1)
    """Score an exponential moving average of the weights in place of the last ones: how much of it every step keeps,
    0.999 for example; less in the first steps. None when left out."""
    average_last: int | None = Field(None, ge=2)
    """Score the mean of the weights after each of so many last epochs in place of the last ones; none when left out.
    """
    patience: int | None = Field(None, ge=1)
    """End a generation when its score on the validation part (Recall@K of the smallest K, or top-1) has not risen for
    so many epochs, and take the weights of its best epoch: they are scored and inherited. `data.validation_fraction`
    makes a validation part where the benchmark has none. All `epochs`, and the last one's weights, when left out."""

    @property
    def averages(self) -> str:
        """The field that asks for averaged weights, with its value; empty where none does."""
        fields = (("average", self.average), ("average_last", self.average_last))
        return next((f"training.{name} = {value}" for name, value in fields if value is not None), "")

    @model_validator(mode="after")
    def _ends_fit(self) -> Self:
        if self.average is not None and self.average_last is not None:
            message = f"average = {self.average}, does not go with average_last = {self.average_last}: two averages"
            raise ConflictError(message, ("average", "average_last"))
        if self.average_last is not None and self.average_last > self.epochs:
            message = f"average_last = {self.average_last}, must be at most epochs = {self.epochs}"
            raise ConflictError(message, ("average_last", "epochs"))
        if self.average_last is not None and self.patience is not None:
            message = (
                f"patience = {self.patience}, does not go with average_last = {self.average_last}: nobody knows "
                "beforehand which epochs are the last ones (average goes with it)"
            )
            raise ConflictError(message, ("patience", "average_last"))
        return self
