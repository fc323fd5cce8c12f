"""The section `augmentation` of a recipe: what happens to a training picture."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, field_validator, model_validator

from ke_metric.schema import ConflictError, Section

# Strict types would refuse the list that a YAML file has for a tuple; what is inside stays strict.
Pair = Annotated[tuple[float, float], Strict(False)]


class Augmentation(Section):
    """What happens to a training picture; every picture draws its own values."""

    geometry: Literal["crop", "affine"] = "crop"
    """`crop`: random resized crop. `affine`: the whole picture rotated, scaled, moved and sheared."""
    scale: Pair = (0.08, 1.0)
    """crop: range of the share of the picture's area; affine: range of the zoom."""
    ratio: Pair = (0.75, 1.3333333333333333)
    """crop: range of width / height."""
    rotation: float = Field(0.0, ge=0, le=180)
    """affine: largest rotation in degrees, either way."""
    translation: float = Field(0.0, ge=0, le=0.5)
    """affine: largest shift as a share of the side, either way."""
    shear: float = Field(0.0, ge=0, le=60)
    """affine: largest shear in degrees, either way."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    brightness: float = Field(0.0, ge=0, lt=1)
    """Largest change of brightness, either way, as a factor: 0.2 draws from [0.8, 1.2]."""
    contrast: float = Field(0.0, ge=0, lt=1)
    """Largest change of contrast around the picture's mean, either way, as a factor."""
    where: Literal["loader", "device"] = "loader"
    """Where pictures are cut and moved. loader: one by one, by Pillow. device: whole batches on the training device,
    by the same draws; pixels differ by rounding."""

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, limits: Pair) -> Pair:
        if not 0 < limits[0] <= limits[1]:
            raise ValueError("must be two positive numbers, the smaller one first")
        return limits

    @model_validator(mode="after")
    def _crop_inside_the_picture(self) -> Self:
        if self.geometry == "crop" and self.scale[1] > 1:
            message = f"scale = {list(self.scale)}, must be at most 1 where geometry = 'crop'"
            raise ConflictError(message, ("scale", "geometry"))
        return self
