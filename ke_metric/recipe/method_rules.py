"""The section `method` of a recipe: how a lineage goes from one generation to the next, and what each way reads."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ke_metric.schema import ConflictError, Names, Section


class Method(Section):
    """What a child takes from its parent, and what else a method does while a generation trains."""

    name: Literal[
        "knowledge_evolution",
        "born_again",
        "dense_sparse_dense",
        "repr",
        "later_layer_forgetting",
        "layer_wise",
        "neural_regeneration",
        "restarts",
        "repeats",
        "shrink_and_perturb",
        "slim_alone",
    ] = "knowledge_evolution"
    """knowledge_evolution: the fit hypothesis, the norm layers and the biases; the rest is redrawn. The others are
    described in docs/recipes-and-methods.md."""
    reset: Literal["official", "same_as_init", "orthogonal", "zero"] = "official"
    """How weights are redrawn. official: uniform within 1/sqrt(fan_in), as in the authors' code."""
    reset_loss: bool = True
    """Redraw the loss's own parameters (proxies) in every generation; false: the child inherits them."""
    layers: Names = ()
    """later_layer_forgetting: the first layer that is redrawn. layer_wise: where units begin, every layer when
    empty."""
    share: float | None = Field(None, gt=0, lt=1)
    """Share of weights held at zero (dense_sparse_dense, 0.3), filters dropped (repr, 0.3) or weights redrawn
    (neural_regeneration, 0.2); the method's own when left out."""
    final_share: float | None = Field(None, ge=0, lt=1)
    """neural_regeneration: share that its last generation redraws, reached in equal steps from `share`; the same in
    all generations when left out."""
    full_epochs: int = Field(20, ge=1)
    """repr: epochs of the full network in a cycle."""
    dropped_epochs: int = Field(10, ge=1)
    """repr: epochs without the dropped filters in a cycle."""
    cycles: int = Field(3, ge=1)
    """repr: cycles in a generation; the epochs after them train the full network."""
    shrink: float = Field(0.4, ge=0, le=1)
    """shrink_and_perturb: what is left of every inherited weight."""
    perturb: float = Field(0.1, ge=0, le=1)
    """shrink_and_perturb: how much of a new random weight is added."""
    teacher_weight: float = Field(0.0, ge=0)
    """Weight of the parent's outputs in the loss of its child; born_again takes 1 where this is 0."""
    teacher_temperature: float | None = Field(None, gt=0)
    """Temperature of the teacher's outputs; 1 for logits, 0.1 for similarities when left out."""
    fit_steps: float = Field(0.0, ge=0, lt=1)
    """Share of the steps in which the fit hypothesis computes alone, the reset hypothesis 0; in generation 1 too."""
    slim_last: bool = False
    """kels: the last generation is the slim network itself, cut out of its parent and trained on, with the parent as
    its teacher (teacher_weight, 1 where it is 0)."""

    @model_validator(mode="after")
    def _only_what_is_read(self) -> Self:
        unread = [name for name in READERS if name in self.model_fields_set and self.name not in READERS[name]]
        # A recipe with every default written out is the same recipe.
        unread = [name for name in unread if getattr(self, name) != type(self).model_fields[name].default]
        if unread:
            readers = ", ".join(READERS[unread[0]])
            message = f"{unread[0]} = {getattr(self, unread[0])!r}, is not read by {self.name} (but by {readers})"
            raise ConflictError(message, (unread[0], "name"))
        is_taught = self.teacher_weight > 0 or self.slim_last or self.name == "born_again"
        if self.teacher_temperature is not None and not is_taught:
            message = f"teacher_temperature = {self.teacher_temperature}, has no effect where teacher_weight = 0"
            raise ConflictError(message, ("teacher_temperature", "teacher_weight"))
        if self.name == "later_layer_forgetting" and len(self.layers) != 1:
            message = (
                f"layers = {list(self.layers)}, must be one layer, the first that later_layer_forgetting redraws"
            )
            raise ConflictError(message, ("layers", "name"))
        return self


_TAUGHT = (
    "knowledge_evolution",
    "later_layer_forgetting",
    "layer_wise",
    "neural_regeneration",
    "restarts",
    "shrink_and_perturb",
)
# They begin every generation with nothing of its parent.
ANEW = ("born_again", "repeats")
READERS = {
    "reset_loss": (*_TAUGHT, "dense_sparse_dense", "repr", "slim_alone"),
    "reset": ("knowledge_evolution", "later_layer_forgetting", "neural_regeneration"),
    "layers": ("later_layer_forgetting", "layer_wise"),
    "share": ("dense_sparse_dense", "repr", "neural_regeneration"),
    "final_share": ("neural_regeneration",),
    "full_epochs": ("repr",),
    "dropped_epochs": ("repr",),
    "cycles": ("repr",),
    "shrink": ("shrink_and_perturb",),
    "perturb": ("shrink_and_perturb",),
    "teacher_weight": (*_TAUGHT, "born_again"),
    "teacher_temperature": (*_TAUGHT, "born_again"),
    "fit_steps": ("knowledge_evolution", "restarts"),
    "slim_last": _TAUGHT,
}
"""Fields of `method` that only some methods read, and which."""
