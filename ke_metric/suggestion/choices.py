"""Which fields of a recipe follow from pictures, each with the reason for it.

What is said of strategies and networks was measured: docs/what-to-use.md, and docs/start.md for the networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ke_metric.benchmarks.listings import Columns
from ke_metric.recipe.schema import Recipe
from ke_metric.suggestion.survey import PictureSurvey

SMALL_BACKBONE = "timm/test_resnet"
BACKBONE = "resnet18"
FEW_PICTURES = 10_000
"""Training pictures up to which the small backbone is the first choice."""
LARGEST_AFFINE = 64
"""Image size up to which training pictures are moved whole; crops lose what so small a picture shows."""
IMAGE_SIZES = (32, 64, 96, 128, 224)
LONG_ASPECT = 1.6
ALIKE_ASPECTS = 1.25
BATCH_SIZES = (32, 64, 128)
FEWEST_BATCHES = 16
"""Batches of an epoch below which a smaller batch is taken, as long as there is one."""
GENERATIONS = 3
STEPS = 600
"""Optimizer steps of a generation that are aimed at."""
FEWEST_STEPS = 150
"""Steps below which a generation teaches little."""
MOST_STEPS = 1_800
EPOCHS = (5, 100)
"""Fewest and most epochs of a generation where nothing is said of the time."""


@dataclass(frozen=True)
class Scale:
    """How large pictures and network are: what the time of a step depends on most.

    Attributes:
        image_size: Pixels that the network sees.
        backbone: As a recipe names it.
        small_stem: Whether the first convolution is the small one, of stride 2.
    """

    image_size: int
    backbone: str
    small_stem: bool = False

    def __str__(self) -> str:
        stem = " with the small stem" if self.small_stem else ""
        return f"{self.backbone}{stem} at {self.image_size} pixels"


@dataclass(frozen=True)
class Plan:
    """How long is trained.

    Attributes:
        generations: How many.
        epochs: Of each.
    """

    generations: int
    epochs: int


@dataclass(frozen=True)
class FieldChoice:
    """A field of a recipe.

    Attributes:
        name: Dotted name.
        value: Its value.
        reason: Why; empty where there is nothing to say.
    """

    name: str
    value: Any
    reason: str = ""


@dataclass(frozen=True)
class Surroundings:
    """What a recipe depends on beside the pictures.

    Attributes:
        on_gpu: Whether it is trained on a GPU.
        has_timm: Whether timm is installed.
        columns: What the columns of a CSV are called.
    """

    on_gpu: bool = False
    has_timm: bool = True
    columns: Columns = field(default_factory=Columns)


def scales(survey: PictureSurvey, around: Surroundings) -> list[Scale]:
    """Return the scales that pictures are for, the wanted one first, then ever cheaper ones."""
    most = 224 if around.on_gpu else 128
    wanted = max((size for size in IMAGE_SIZES if size <= min(most, 1.2 * survey.sides.median)), default=32)
    sizes = [size for size in reversed(IMAGE_SIZES) if min(64, wanted) <= size <= wanted]
    backbones = [SMALL_BACKBONE] if around.has_timm else []
    if survey.train_images > FEW_PICTURES or not backbones:
        backbones = [BACKBONE, *backbones]
    found = []
    for backbone in backbones:
        for size in sizes:
            small_stem = backbone == BACKBONE and size <= LARGEST_AFFINE
            found += [Scale(size, backbone, small_stem=True)] * small_stem + [Scale(size, backbone)]
    return found if wanted == IMAGE_SIZES[0] else [*found, Scale(IMAGE_SIZES[0], backbones[-1])]


def batches_per_epoch(survey: PictureSurvey, size: int) -> int:
    """Return how many batches of a size an epoch has."""
    return max(1, survey.train_images // size)


def plan_of(batches: int) -> Plan:
    """Return how long is trained where nothing is said of the time."""
    fewest, most = EPOCHS
    return Plan(GENERATIONS, min(max(round(STEPS / batches), fewest), most))


def fewest_epochs(batches: int) -> int:
    """Return the epochs below which a generation teaches little."""
    return min(max(round(FEWEST_STEPS / batches), 2), EPOCHS[1])


def most_epochs(batches: int) -> int:
    """Return the epochs above which further ones were not tried."""
    return min(max(round(MOST_STEPS / batches), EPOCHS[0]), 2 * EPOCHS[1])


def choices(survey: PictureSurvey, root: Path, scale: Scale, around: Surroundings) -> list[FieldChoice]:
    """Return the fields of a recipe in the order in which it has them, but for how long is trained.

    Args:
        survey: What the pictures are.
        root: Where they lie.
        scale: How large pictures and network are.
        around: What else it depends on.
    """
    return [
        FieldChoice("task", survey.benchmark.task, survey.task_reason),
        FieldChoice("keep", "all", f"weights of every generation, to be looked at: {_looked_at(survey)}"),
        *_data(survey, root, scale, around),
        *_augmentation(survey, scale),
        *_network(survey, scale, around),
        FieldChoice("split.rates", [0.5], "a half as wide network learns beside the whole one, in the same training"),
        FieldChoice(
            "method.name",
            "shrink_and_perturb",
            "each generation begins with its parent's weights, shrunk, and a little of new ones. Beside one plain "
            "training of as many epochs it was 4.0 points better on emoji and 1.8 on characters, and 0.1 and 1.2 "
            "worse on two other sets (docs/what-to-use.md)",
        ),
        *_loss(survey),
        *_batches(survey),
        *_optimizer(scale),
        FieldChoice("evaluation.slim_repair", "auto", "narrow networks have norm statistics of their own"),
        *_evaluation(survey, scale),
    ]


def _looked_at(survey: PictureSurvey) -> str:
    """Return by which commands; a classification has no neighbours to explore."""
    return "ke-metric report" if survey.benchmark.task == "classification" else "ke-metric report, ke-metric explore"


def _data(survey: PictureSurvey, root: Path, scale: Scale, around: Surroundings) -> Iterator[FieldChoice]:
    yield FieldChoice("data.benchmark", "folder")
    yield FieldChoice("data.root", str(root))
    default = Columns()
    if around.columns.path != default.path:
        yield FieldChoice("data.path_column", around.columns.path)
    if around.columns.label != default.label:
        yield FieldChoice("data.label_column", around.columns.label)
    sides, size = survey.sides, scale.image_size
    yield FieldChoice(
        "data.image_size", size, f"most pictures have shorter sides of {_span(sides.low, sides.high)} pixels"
    )
    store = stored_size(survey, size)
    kept = "as they are" if size <= LARGEST_AFFINE and store >= round(sides.median) else "once, to cut from"
    yield FieldChoice("data.store_size", store, f"decoded pictures are kept {kept}")
    if is_squashed(survey):
        yield FieldChoice(
            "data.store_shape",
            "square",
            f"nearly all pictures are {survey.aspects.median:.1f} times as long as they are wide: the square in the "
            f"middle would show {100 / survey.aspects.median:.0f} % of them",
        )
    if survey.vanished:
        reason = f"{survey.vanished:,} transparent pictures have nothing that shows on white"
        yield FieldChoice("data.background", "#808080", reason)
    elif survey.transparent:
        reason = f"{100 * survey.transparent:.0f} % of the pictures are transparent in parts; all show on white"
        yield FieldChoice("data.background", "white", reason)


def stored_size(survey: PictureSurvey, image_size: int) -> int:
    """Return the shorter side in pixels that decoded pictures are kept with."""
    if image_size <= LARGEST_AFFINE:
        return max(image_size, min(2 * image_size, round(survey.sides.median)))
    return 8 * round(image_size * 8 / 7 / 8)


def is_squashed(survey: PictureSurvey) -> bool:
    """Whether pictures are so long, all alike, that they are squashed rather than cut."""
    aspects = survey.aspects
    return aspects.median >= LONG_ASPECT and aspects.high <= ALIKE_ASPECTS * aspects.low


def _augmentation(survey: PictureSurvey, scale: Scale) -> Iterator[FieldChoice]:
    if scale.image_size <= LARGEST_AFFINE:
        reason = "small pictures are turned and moved whole: crops lose what they show"
        yield FieldChoice("augmentation.geometry", "affine", reason)
        yield FieldChoice("augmentation.scale", [0.8, 1.2])
        yield FieldChoice("augmentation.rotation", 10)
        yield FieldChoice("augmentation.translation", 0.1)
    else:
        yield FieldChoice(
            "augmentation.geometry", "crop", "parts of a photograph, at other sizes, show its class too"
        )
        yield FieldChoice("augmentation.scale", [0.3, 1.0])
    yield _flip(survey)
    if survey.grey < 0.5:
        yield FieldChoice("augmentation.brightness", 0.2)
        yield FieldChoice("augmentation.contrast", 0.2)


def _flip(survey: PictureSurvey) -> FieldChoice:
    found = survey.mirrored
    shares = f"{100 * found.straight:.0f} % of tiny copies find their class, {100 * found.mirrored:.0f} % mirrored"
    if found.matters:
        return FieldChoice("augmentation.flip", 0.0, f"left and right differ: {shares}")
    return FieldChoice(
        "augmentation.flip",
        0.5,
        f"nothing speaks against it ({shares}), and nobody can know: 0.0 where a mirrored picture is another thing, "
        "as with writing",
    )


def _network(survey: PictureSurvey, scale: Scale, around: Surroundings) -> Iterator[FieldChoice]:
    count = f"{survey.train_images:,} training pictures"
    if scale.backbone == SMALL_BACKBONE:
        reason = (
            f"0.4 million parameters, for {count}: of two sets of drawn characters it learnt more than resnet18 "
            "with its 11 million, in a sixth of the time (docs/start.md)"
        )
    elif around.has_timm:
        reason = f"{count} are enough for it; {SMALL_BACKBONE} is smaller and several times as fast"
    else:
        reason = f"for few pictures {SMALL_BACKBONE} is better and faster: pip install 'ke_metric[timm]'"
    yield FieldChoice("network.backbone", scale.backbone, reason)
    if scale.small_stem:
        yield FieldChoice("network.stem", "small", "the standard one shrinks small pictures to nothing")
        yield FieldChoice("network.stem_stride", 2)


def _loss(survey: PictureSurvey) -> Iterator[FieldChoice]:
    if survey.benchmark.task == "classification":
        yield FieldChoice("loss.name", "CrossEntropyLoss")
        yield FieldChoice("loss.arguments", {"label_smoothing": 0.1})
    else:
        yield FieldChoice("loss.name", "MultiSimilarityLoss", "the best one of those tried on emoji")


def batch_of(survey: PictureSurvey) -> tuple[int, int]:
    """Return the images of a batch, and of each class in it; 1 where the classes are not balanced."""
    fitting = [size for size in BATCH_SIZES if survey.train_images >= FEWEST_BATCHES * size]
    size = max(fitting, default=BATCH_SIZES[0])
    if survey.benchmark.task == "classification":
        return min(size, max(2, survey.train_images // 4)), 1
    each = 4 if survey.class_sizes.median >= 4 else 2
    # Of few classes, more pictures of each: else a batch would have hardly any.
    while 2 * each * survey.train_classes <= size and survey.class_sizes.median >= 2 * each:
        each *= 2
    return each * min(size // each, survey.train_classes), each


def _batches(survey: PictureSurvey) -> Iterator[FieldChoice]:
    size, each = batch_of(survey)
    if survey.benchmark.task == "classification":
        yield FieldChoice("batches.sampler", "shuffled", "every training picture once in an epoch")
        yield FieldChoice("batches.size", size, f"{batches_per_epoch(survey, size):,} batches in an epoch")
        return
    per_class = _span(survey.class_sizes.smallest, survey.class_sizes.largest)
    yield FieldChoice("batches.sampler", "class_balanced")
    yield FieldChoice(
        "batches.size", size, f"{size // each} of {survey.train_classes:,} training classes share a batch"
    )
    yield FieldChoice("batches.images_per_class", each, f"training classes have {per_class} pictures each")


def _span(low: float, high: float) -> str:
    """Return `20 to 30`, or `20` where both are that."""
    return f"{low:.0f} to {high:.0f}" if round(low) != round(high) else f"{low:.0f}"


def _optimizer(scale: Scale) -> Iterator[FieldChoice]:
    yield FieldChoice("optimizer.name", "adamw")
    rate = 3e-3 if scale.backbone == SMALL_BACKBONE else 1e-3
    yield FieldChoice("optimizer.learning_rate", rate)


def _evaluation(survey: PictureSurvey, scale: Scale) -> Iterator[FieldChoice]:
    size = scale.image_size
    if size <= LARGEST_AFFINE:
        yield FieldChoice("evaluation.resize", size, "the whole picture is scored, but for what is beyond the square")
    else:
        yield FieldChoice("evaluation.resize", stored_size(survey, size), "the middle of a picture is scored")


def with_plan(chosen: Sequence[FieldChoice], plan: Plan, reason: str) -> list[FieldChoice]:
    """Return the fields of a whole recipe: with how long is trained."""
    warmup = 1 if plan.epochs > 2 else 0
    length = [
        FieldChoice("training.epochs", plan.epochs, reason),
        *[FieldChoice("training.warmup_epochs", warmup)] * bool(warmup),
    ]
    how_many = (
        "generation 1 is a plain training, to be compared with; one as long as all of them: "
        f"--set generations=1 --set training.epochs={plan.generations * plan.epochs}"
        if plan.generations > 1
        else "there is no time for more"
    )
    if plan.generations == 1:
        # What a child takes from its parent is nothing that a single generation reads.
        chosen = [choice for choice in chosen if choice.name != "method.name"]
    first, *others = chosen
    at = next(place for place, choice in enumerate(others) if choice.name.startswith("evaluation."))
    return [first, FieldChoice("generations", plan.generations, how_many), *others[:at], *length, *others[at:]]


def as_recipe(chosen: Sequence[FieldChoice]) -> Recipe:
    """Return the recipe that has these fields, without the name that its file will give it."""
    fields: dict[str, Any] = {"name": "suggested"}
    for choice in chosen:
        section, _, own = choice.name.rpartition(".")
        (fields.setdefault(section, {}) if section else fields)[own] = choice.value
    return Recipe.model_validate(fields)
