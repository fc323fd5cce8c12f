"""All that holds for a method beside its code: the section `method` of a recipe, and the rules of every method.

A new method is one entry in `RULES` and its fields in `Method`, here (with `RECIPE_FIELDS` of
`ke_metric/schema.py`: what recipes stored before them mean), and its class in `ke_metric/methods/` with a row in
`table.py` there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from ke_metric.recipe.training_section import Training
from ke_metric.schema import ConflictError, Names, Section

_OF_A_TEACHER = ("teacher_weight", "teacher_temperature")
_INHERITED = ("reset_loss", "inherit_average")
_COMMON = (*_INHERITED, *_OF_A_TEACHER, "slim_last")
"""What every method reads whose child goes on from its parent and can be taught by it."""


@dataclass(frozen=True)
class MethodRules:
    """What holds for one method.

    Attributes:
        reads: The fields of `method` that it reads, besides `name`; another one that is set is refused.
        begins_anew: Every generation begins with nothing of its parent, so that none begins with given weights.
        changes_all: It changes weights wherever they lie, so that none of its network can be frozen.
        is_taught: Its children always learn from their parent's outputs.
        is_slim: It trains the slim architecture itself: there is no slim network to be cut out.
        why_not_longer: Why a lineage cannot get more generations than it was begun with; empty where it can.
    """

    reads: tuple[str, ...] = ()
    begins_anew: bool = False
    changes_all: bool = False
    is_taught: bool = False
    is_slim: bool = False
    why_not_longer: str = ""


RULES = {
    "knowledge_evolution": MethodRules(reads=(*_COMMON, "reset")),
    "born_again": MethodRules(reads=_OF_A_TEACHER, begins_anew=True, is_taught=True),
    "dense_sparse_dense": MethodRules(reads=(*_INHERITED, "share"), changes_all=True),
    "repr": MethodRules(reads=("reset_loss", "share", "full_epochs", "dropped_epochs", "cycles"), changes_all=True),
    "later_layer_forgetting": MethodRules(reads=(*_COMMON, "reset", "layers")),
    "layer_wise": MethodRules(
        reads=(*_COMMON, "layers"),
        changes_all=True,
        why_not_longer="layer_wise shares its units out among the generations it was begun with",
    ),
    "neural_regeneration": MethodRules(reads=(*_COMMON, "reset", "share", "final_share")),
    "restarts": MethodRules(reads=_COMMON),
    "repeats": MethodRules(begins_anew=True),
    "shrink_and_perturb": MethodRules(reads=(*_COMMON, "shrink", "perturb"), changes_all=True),
    "slim_alone": MethodRules(reads=_INHERITED, is_slim=True),
}
"""Every method by its name in a recipe; described in docs/recipes-and-methods.md."""
_freezing = ", ".join(name for name, rules in RULES.items() if not (rules.changes_all or rules.begins_anew))

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(RULES)]


class Method(Section):
    """What a child takes from its parent, and what else a method does while a generation trains."""

    name: MethodName = "knowledge_evolution"
    """knowledge_evolution: the fit hypothesis, the norm layers and the biases; the rest is redrawn. The others are
    described in docs/recipes-and-methods.md."""
    reset: Literal["official", "same_as_init", "orthogonal", "zero", "starting_weights"] = "official"
    """How weights are redrawn. official: uniform within 1/sqrt(fan_in), as in the authors' code. starting_weights:
    they go back to those of `network.weights` or `network.pretrained`, the head's to new random ones."""
    reset_loss: bool = True
    """Redraw the loss's own parameters (proxies) in every generation; false: the child inherits them."""
    inherit_average: bool = True
    """What a child takes of a parent whose weights were averaged (`training.average`, `training.average_last`). true:
    the average, which is what was scored. false: the weights after its last step, which are then kept beside it."""
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
    slim_last: bool = False
    """kels: the last generation is the slim network itself, cut out of its parent and trained on, with the parent as
    its teacher (teacher_weight, 1 where it is 0)."""

    @property
    def rules(self) -> MethodRules:
        """What holds for it."""
        return RULES[self.name]

    @property
    def looks_back(self) -> bool:
        """Whether later generations read the weights that generation 1 started from."""
        return self.reset == "starting_weights" or self.name == "layer_wise"

    @property
    def why_not_longer(self) -> str:
        """Why a lineage cannot get more generations than it was begun with; empty where it can."""
        if self.rules.why_not_longer:
            return self.rules.why_not_longer
        if self.slim_last:
            return "method.slim_last makes the last one the slim network"
        return "method.final_share belongs to the last one" if self.final_share is not None else ""

    @model_validator(mode="before")
    @classmethod
    def _without_fit_steps(cls, fields: object) -> object:
        """Take a field that is gone where it did nothing, as stored recipes have it."""
        if not isinstance(fields, dict) or "fit_steps" not in fields:
            return fields
        if fields["fit_steps"] != 0 or isinstance(fields["fit_steps"], bool):
            message = (
                f"fit_steps = {fields['fit_steps']!r}, is gone: split.rates = [0.5] has the fit hypothesis learn "
                "beside the whole network in every step, with norm statistics of its own"
            )
            raise ConflictError(message, ("fit_steps",))
        return {name: value for name, value in fields.items() if name != "fit_steps"}

    @model_validator(mode="after")
    def _only_what_is_read(self) -> Self:
        fields = type(self).model_fields
        # A recipe with every default written out is the same recipe.
        foreign = self.model_fields_set - {"name", *self.rules.reads}
        unread = [name for name in fields if name in foreign and getattr(self, name) != fields[name].default]
        if unread:
            readers = ", ".join(name for name, rules in RULES.items() if unread[0] in rules.reads)
            message = f"{unread[0]} = {getattr(self, unread[0])!r}, is not read by {self.name} (but by {readers})"
            raise ConflictError(message, (unread[0], "name"))
        is_taught = self.teacher_weight > 0 or self.slim_last or self.rules.is_taught
        if self.teacher_temperature is not None and not is_taught:
            message = f"teacher_temperature = {self.teacher_temperature}, has no effect where teacher_weight = 0"
            raise ConflictError(message, ("teacher_temperature", "teacher_weight"))
        if self.name == "later_layer_forgetting" and len(self.layers) != 1:
            message = (
                f"layers = {list(self.layers)}, must be one layer, the first that later_layer_forgetting redraws"
            )
            raise ConflictError(message, ("layers", "name"))
        return self

    def require_fit(
        self,
        *,
        kind: str,
        rate: float,
        generations: int,
        start: str,
        freeze: Names,
        training: Training,
    ) -> None:
        """Check the method against what other sections of its recipe say.

        `start` is the field that gives generation 1 its weights, with its value; empty where they are random.

        Raises:
            ConflictError: They do not go together.
        """
        grown = generations - self.slim_last
        epochs, averages, patience = training.epochs, training.averages, training.patience
        cycled = self.cycles * (self.full_epochs + self.dropped_epochs)
        conflicts = (
            (
                self.rules.is_slim and kind != "kels",
                f"method.name = {self.name!r}, needs split.kind = 'kels': single weights leave no slim network",
                ("method.name", "split.kind"),
            ),
            (
                self.slim_last and (kind != "kels" or generations < 2),
                f"method.slim_last = true, needs split.kind = 'kels' (is {kind!r}) and generations of at least 2 (is "
                f"{generations}): the slim network is cut out of the generation before the last",
                ("method.slim_last", "split.kind", "generations"),
            ),
            (
                self.final_share is not None and grown < 3,
                f"method.final_share = {self.final_share}, needs at least 3 generations that {self.name} grows (are "
                f"{grown}): the second has method.share, the last method.final_share",
                ("method.final_share", "generations"),
            ),
            (
                "cycles" in self.rules.reads and cycled >= epochs,
                f"training.epochs = {epochs}, must be more than method.cycles * (method.full_epochs + "
                f"method.dropped_epochs) = {cycled}, so that the full network trains last",
                ("training.epochs", "method.cycles"),
            ),
            (
                "cycles" in self.rules.reads and bool(averages),
                f"{averages}, does not go with method.name = {self.name!r}: it redraws filters while a generation "
                "trains, and the average of a filter and another one is neither",
                (averages.partition(" ")[0], "method.name"),
            ),
            (
                not (self.inherit_average or averages),
                "method.inherit_average = false, has no effect without training.average or training.average_last",
                ("method.inherit_average", "training.average"),
            ),
            (
                "cycles" in self.rules.reads and patience is not None,
                f"training.patience = {patience}, does not go with method.name = {self.name!r}: while it trains "
                "without some filters the score falls for that alone",
                ("training.patience", "method.name"),
            ),
            (
                not self.inherit_average and patience is not None,
                f"training.patience = {patience}, does not go with method.inherit_average = false: what counts are "
                "the weights of the best epoch, not the last ones",
                ("training.patience", "method.inherit_average"),
            ),
            (
                self.rules.begins_anew and bool(start),
                f"{start}, does not go with method.name = {self.name!r}, which begins every generation but the first "
                "from random weights",
                (start.partition(" ")[0], "method.name"),
            ),
            (
                self.rules.changes_all and bool(freeze),
                f"network.freeze = {list(freeze)}, does not go with method.name = {self.name!r}, which changes "
                f"weights wherever they lie (but with {_freezing})",
                ("network.freeze", "method.name"),
            ),
            (
                self.reset == "starting_weights" and not start,
                "method.reset = 'starting_weights', needs network.weights or network.pretrained = true",
                ("method.reset", "network.weights", "network.pretrained"),
            ),
        )
        for is_met, message, fields in conflicts:
            if is_met:
                raise ConflictError(message, fields)
