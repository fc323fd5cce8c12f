"""The part of the record that is trained: a small lineage for every method, and for every way to grow one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from golden_world import call, contents, must

# What a method needs beside its name.
METHODS = {
    "knowledge_evolution": (),
    "born_again": (),
    "dense_sparse_dense": ("generations=3",),
    "repr": ("method.cycles=1", "method.full_epochs=1", "method.dropped_epochs=1", "training.epochs=3"),
    "later_layer_forgetting": ("method.layers=[head]",),
    "layer_wise": (),
    "neural_regeneration": (),
    "restarts": (),
    "repeats": (),
    "shrink_and_perturb": (),
    "slim_alone": (),
}
# Ways of a retrieval lineage that the methods alone do not go.
RETRIEVAL = {
    "slim_last": ("method.slim_last=true",),
    "teacher": ("method.teacher_weight=0.5", "method.teacher_temperature=0.2"),
    "wels": ("split.kind=wels", "split.rate=0.7"),
    "same_as_init": ("method.reset=same_as_init",),
    "orthogonal": ("method.reset=orthogonal",),
    "zero": ("method.reset=zero",),
    "layers": ("method.name=layer_wise", "method.layers=[backbone.blocks.2, head]"),
    "final_share": ("method.name=neural_regeneration", "method.final_share=0.0", "generations=3"),
    "proxies": ("loss.name=ProxyAnchorLoss", "loss.learning_rate_factor=10", "method.reset_loss=false"),
    "proxies_redrawn": ("loss.name=ClassicProxyNCALoss",),
    "miner": ("loss.name=TripletMarginLoss", "miner.name=TripletMarginMiner"),
    "keep_best": ("keep=best", "generations=3"),
    "keep_last": ("keep=last",),
    "adam": ("optimizer.name=adamw", "optimizer.learning_rate=0.001", "training.warmup_epochs=0.5"),
    "clipped": ("training.gradient_clip=0.5", "training.schedule=constant", "training.channels_last=false"),
    "whole": ("split.keep_whole=[backbone.conv_head]", "split.channel_multiple=8", "split.rate=0.4"),
    "noise": ("data.label_noise=0.3",),
    "square": ("data.store_shape=square", "data.background=keep", "augmentation.geometry=affine"),
    "csv": ("data.root=halves.csv",),
    "backbone": ("network.backbone=resnet18", "network.stem=small", "network.stem_stride=2", "generations=1"),
}
CLASSIFICATION = {
    "cosine": ("network.head=cosine", "loss={name: AdaCosLoss}"),
    "paired": ("loss={name: CSKDLoss}", "batches.sampler=paired"),
    "balanced": ("batches.sampler=class_balanced", "batches.images_per_class=2"),
    "slim_last": ("method.slim_last=true",),
    "teacher": ("method.teacher_weight=0.5",),
    "noise": ("data.label_noise=0.2", "keep=best"),
    "validated": ("data.validation_fraction=0.25",),
    "csv": ("data.root=parts.csv",),
}


@cache
def grown(name: str, recipe: str, *settings: str) -> dict:
    """Train a lineage in the folder lineages/NAME, and return all that it consists of."""
    folder = Path("lineages", name)
    changes = [f"--set={setting}" for setting in settings]
    told = must("train", recipe, *changes, "--lineage", folder, "--device", "cpu", "--json")
    return {"train": told, "files": contents(folder)}


def base_lineages() -> dict:
    """Train what the other parts work with."""
    return {
        "base": grown("base", "base.yaml"),
        "other": grown("other", "base.yaml", "seed=1"),
        "restarts": grown("restarts", "base.yaml", "method.name=restarts", "name=restarts"),
        "classes": grown("classes", "classes.yaml"),
    }


def lineages() -> dict:
    """Every method for both tasks, and every other way to grow a lineage."""
    found = {}
    for task, recipe, ways in (
        ("retrieval", "base.yaml", RETRIEVAL),
        ("classification", "classes.yaml", CLASSIFICATION),
    ):
        for name, settings in METHODS.items():
            found[f"{task} {name}"] = grown(f"{task}-{name}", recipe, f"method.name={name}", *settings)
        for name, settings in ways.items():
            found[f"{task}, {name}"] = grown(f"{task}-way-{name}", recipe, *settings)
    found["resumed"] = _resumed()
    return found


def _resumed() -> dict:
    """A lineage that is finished, and made longer."""
    folder = Path("lineages", "resumed")
    first = must("train", "base.yaml", "--set=generations=1", "--lineage", folder, "--device", "cpu", "--json")
    longer = must("train", "base.yaml", "--resume", "--lineage", folder, "--device", "cpu", "--json")
    again = call("train", "base.yaml", "--resume", "--lineage", folder, "--device", "cpu")
    return {"first": first, "longer": longer, "again": again, "files": contents(folder)}
