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
    policy: Literal["none", "trivial_augment_wide", "rand_augment"] = "none"
    """Operations that each picture draws after it is cut and flipped, as torchvision has them: one of any strength
    (TrivialAugment), or several of one strength (RandAugment)."""
    policy_operations: int = Field(2, ge=1, le=14)
    """rand_augment: how many operations, one after the other."""
    policy_magnitude: int = Field(9, ge=0, le=30)
    """rand_augment: their strength; 0 changes least, 30 most."""
    saturation: float = Field(0.0, ge=0, lt=1)
    """Largest change of saturation, either way, as a factor; after contrast."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Largest turn of the hue, either way, as a share of the circle; after saturation."""
    grayscale: float = Field(0.0, ge=0, le=1)
    """Probability that a picture loses its colours; after hue."""
    blur: float = Field(0.0, ge=0, le=1)
    """Probability of a Gaussian blur; after grayscale."""
    blur_sigma: Pair = (0.1, 2.0)
    """blur: range of its standard deviation in pixels of the network's input."""
    erasing: float = Field(0.0, ge=0, le=1)
    """Probability that a rectangle of 2 to 33 % of the picture is set to `data.mean`; last of all."""
    where: Literal["loader", "device"] = "loader"
    """Where pictures are cut and moved. loader: one by one, by Pillow. device: whole batches on the training device,
    by the same draws; pixels differ by rounding. With a policy, which is Pillow's: crops by torch, in the loader."""
    mixup: float = Field(0.0, ge=0, le=100)
    """classification: blend every picture of a batch, and its label, with another one. The share of each is drawn
    from Beta(mixup, mixup), once for a batch; 0: off. Beside `cutmix`, every batch draws one of the two."""
    cutmix: float = Field(0.0, ge=0, le=100)
    """classification: put a square of another picture into every picture of a batch. Its area is drawn from
    Beta(cutmix, cutmix), once for a batch, and labels are shared by area; 0: off."""

    @field_validator("scale", "ratio", "blur_sigma")
    @classmethod
    def _ordered(cls, limits: Pair) -> Pair:
        if not 0 < limits[0] <= limits[1]:
            raise ValueError("must be two positive numbers, the smaller one first")
        return limits

    @property
    def mixes(self) -> str:
        """The fields that mix pictures in pairs, and their values; empty where none does."""
        return ", ".join(
            f"augmentation.{name} = {getattr(self, name)}" for name in ("mixup", "cutmix") if getattr(self, name)
        )

    @model_validator(mode="after")
    def _crop_inside_the_picture(self) -> Self:
        if self.geometry == "crop" and self.scale[1] > 1:
            message = f"scale = {list(self.scale)}, must be at most 1 where geometry = 'crop'"
            raise ConflictError(message, ("scale", "geometry"))
        return self

    @model_validator(mode="after")
    def _every_value_has_an_effect(self) -> Self:
        of_policy = ("policy", self.policy == "rand_augment", "policy = 'rand_augment'")
        read_where = {
            "policy_operations": of_policy,
            "policy_magnitude": of_policy,
            "blur_sigma": ("blur", self.blur > 0, "blur above 0"),
        }
        for name, (other, is_read, needed) in read_where.items():
            value = getattr(self, name)
            if not is_read and value != type(self).model_fields[name].default:
                shown = list(value) if isinstance(value, tuple) else value
                given = getattr(self, other)
                message = f"{name} = {shown}, has no effect where {other} = {given!r}, needs {needed}"
                raise ConflictError(message, (name, other))
        return self

    @property
    def changes_colours_further(self) -> bool:
        """Whether there is a step of colours after brightness and contrast."""
        return any((self.saturation, self.hue, self.grayscale, self.blur))

    @property
    def has_further_steps(self) -> bool:
        """Whether it asks for more than geometry, brightness and contrast."""
        return self.changes_colours_further or self.policy != "none" or self.erasing > 0
