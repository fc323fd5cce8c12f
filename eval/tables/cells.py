"""Every cell of the published tables as a recipe and its overrides, and rows of ours beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ke_metric.recipe.file import load_recipe
from ke_metric.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]

CLASSIFICATION = ("flowers", "cub", "aircraft", "mit67", "dogs")
# Loss of a classification row -> overrides of a recipe, which has the smoothed cross-entropy.
LOSSES = {
    "smth": (),
    "ce": ("loss.arguments={label_smoothing: 0.0}",),
    "cskd": ("loss.name=CSKDLoss", "loss.arguments={temperature: 4.0, weight: 3.0}", "batches.sampler=paired"),
    "adacos": ("loss.name=AdaCosLoss", "loss.arguments={}", "network.head=cosine"),
}
LOSS_NAMES = {"smth": "Smth", "ce": "CE", "cskd": "CS-KD", "adacos": "CE + AdaCos"}
# Method of a row -> what it is called, and overrides.
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("", ("generations=1",)),
    "ke": ("KE", ()),
    "bans": ("BANs", ("method.name=born_again",)),
    "dsd": ("DSD", ("method.name=dense_sparse_dense", "generations=3")),
    "repr": ("RePr", ("method.name=repr", "generations=1")),
    "llf": ("LLF", ("method.name=later_layer_forgetting",)),
    "dnr": ("DNR", ("method.name=neural_regeneration",)),
    "layer_wise": ("layer-wise re-initialisation", ("method.name=layer_wise",)),
    "restarts": ("restarts", ("method.name=restarts",)),
    "shrink": ("shrink and perturb", ("method.name=shrink_and_perturb",)),
    "ke_teacher": ("KE, taught by the parent", ("method.teacher_weight=1.0",)),
    "repeats": ("repeats", ("method.name=repeats",)),
    "long": ("long baseline", ()),
    "slim_alone": ("slim architecture alone", ("method.name=slim_alone",)),
}
# One training with the epochs of all generations. So are RePr's, and DSD's three phases share them.
SINGLE = frozenset({"long", "slim_alone"})
# Whose fit part is told: what was trained to be cut out, and the training that it is compared with.
WITH_SLIM = frozenset({"ke", "ke_teacher", "long"})
# The first layer that Later-Layer Forgetting redraws; its authors' layer 68 of DenseNet169 lies in the third block.
FORGOTTEN = {"resnet18": "layer4", "resnet50": "layer4", "googlenet": "inception5a", "densenet169": "denseblock4"}
# The rows of the published classification tables; generation 1 of Knowledge Evolution is their N_1.
PUBLISHED = (
    ("adacos", "plain"), ("ce", "repr"), ("ce", "dsd"), ("ce", "bans"),
    ("ce", "ke"), ("smth", "ke"), ("cskd", "ke"),
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table: networks and benchmarks that share their rows.

    Attributes:
        benchmarks: Benchmark -> recipe in `recipes/`.
        network: The backbone, which decides where Later-Layer Forgetting begins.
        published: Key in `eval/tables/published.yaml`; None where nothing was published.
        losses: The losses its rows have.
        has_slim: Whether its splits leave a slim network.
    """

    benchmarks: dict[str, str]
    network: str
    published: str | None
    losses: tuple[str, ...]
    has_slim: bool = True


TABLES = {
    **{
        network: Table(
            {each: f"{each}_{network}" for each in CLASSIFICATION}, network, key, tuple(LOSSES), has_slim=has_slim
        )
        for network, key, has_slim in (
            ("resnet18", "classification_resnet18_kels", True),
            ("densenet169", "classification_densenet169_wels", False),
        )
    },
    **{
        f"retrieval_{network}": Table(
            {each: f"{each}_{network}" for each in ("cub", "cars")}, network, "retrieval", ()
        )
        for network in ("resnet50", "googlenet")
    },
    "small": Table(
        {each: f"{each}_classes_resnet18" for each in ("glyphs", "emoji")}, "resnet18", None, tuple(LOSSES)
    ),
}


@dataclass(frozen=True)
class Variant:
    """One lineage of a table, of which several rows may be generations.

    Attributes:
        loss: Key of `LOSSES`; `own` for the loss of a retrieval recipe.
        method: Key of `METHODS`.
    """

    loss: str
    method: str

    @property
    def title(self) -> str:
        """What the row is called, without its generation."""
        names = [LOSS_NAMES.get(self.loss, ""), METHODS[self.method][0]]
        return " + ".join(name for name in names if name) or "recipe"

    @property
    def key(self) -> str:
        """Its part of a lineage's name."""
        return f"{self.loss}-{self.method}"


def variants(table: Table, methods: Sequence[str], losses: Sequence[str] = ()) -> list[Variant]:
    """Return the variants that have one of the methods and one of the losses.

    Without `losses`: for the methods of the published rows the losses they are published with, for others smoothed
    cross-entropy. The slim architecture alone is left out where there is none.
    """
    methods = [method for method in methods if table.has_slim or method != "slim_alone"]
    if not table.losses:
        return [Variant("own", method) for method in methods]
    found = []
    for method in methods:
        usual = [loss for loss, published in PUBLISHED if published == method] or ["smth"]
        found += [Variant(loss, method) for loss in losses or usual]
    return found


def recipe_path(table: Table, benchmark: str) -> Path:
    """Return the recipe file of a benchmark."""
    return ROOT / "recipes" / f"{table.benchmarks[benchmark]}.yaml"


def overrides_of(table: Table, benchmark: str, variant: Variant, changes: Sequence[str] = ()) -> list[str]:
    """Return what turns the benchmark's recipe into the variant.

    Args:
        table: The table.
        benchmark: One of its benchmarks.
        variant: Which row.
        changes: Further overrides that all rows share, such as fewer epochs.
    """
    shared = [*changes, *(() if variant.loss == "own" else LOSSES[variant.loss])]
    own = [f"name={table.benchmarks[benchmark]}-{variant.key}", *METHODS[variant.method][1]]
    recipe = load_recipe(recipe_path(table, benchmark), shared)
    total = recipe.generations * recipe.training.epochs
    if variant.method in SINGLE:
        own += ["generations=1", f"training.epochs={total}"]
    if variant.method == "dsd":
        own.append(f"training.epochs={max(1, total // 3)}")
    if variant.method == "llf":
        own.append(f"method.layers=[{FORGOTTEN[table.network]}]")
    if variant.method == "repr":
        own += _cycles(total)
    return [*shared, *own]


def _cycles(epochs: int) -> list[str]:
    """Return RePr's lengths: its own 20 and 10 epochs where they fit three times, else shares of what there is."""
    told = [f"training.epochs={epochs}"]
    if epochs > 90:
        return told
    dropped = max(1, epochs // 12)
    return [
        *told, f"method.dropped_epochs={dropped}", f"method.full_epochs={2 * dropped}",
        f"method.cycles={max(1, min(3, (epochs - 1) // (3 * dropped)))}",
    ]  # fmt: skip


def recipe_of(table: Table, benchmark: str, variant: Variant, changes: Sequence[str], seed: int) -> Recipe:
    """Return the complete recipe of a variant."""
    overrides = overrides_of(table, benchmark, variant, changes)
    return load_recipe(recipe_path(table, benchmark), overrides, seed=seed)
