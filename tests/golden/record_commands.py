"""The parts of the record that a user types: every command's numbers, and what it says to a mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from golden_world import call, contents, digest, must
from PIL import Image

BASE = ("--lineage", "lineages/base")
CPU = ("--device", "cpu")

COMMANDS = {
    "dry run": ("train", "base.yaml", "--dry-run", *CPU, "--json"),
    "dry run of classes": ("train", "classes.yaml", "--dry-run", *CPU, "--json"),
    "dry run without a slim": ("train", "base.yaml", "--set=method.name=slim_alone", "--dry-run", *CPU, "--json"),
    "dry run as a table": ("train", "base.yaml", "--dry-run", "--seed", 3, *CPU),
    "eval": ("eval", *BASE, *CPU, "--json"),
    "eval all": ("eval", *BASE, "--gen", "all", *CPU, "--json"),
    "eval as a table": ("eval", *BASE, "--gen", "all", *CPU),
    "eval best slim": ("eval", *BASE, "--gen", "best", "--network", "slim", *CPU, "--json"),
    "eval with minimum": ("eval", *BASE, "--min", "recall@1=1%", "--min", "map@r=0.01", *CPU, "--json"),
    "eval below minimum": ("eval", *BASE, "--min", "recall@1=100%", "--min", "ami=0.999", *CPU, "--json"),
    "eval classes": ("eval", "--lineage", "lineages/classes", "--gen", "all", *CPU, "--json"),
    "eval classes as a table": ("eval", "--lineage", "lineages/classes", *CPU),
    "eval through memmap": ("eval", *BASE, "--store", "memmap", "--expand", "2:3", *CPU, "--json"),
    "eval through flat": ("eval", *BASE, "--store", "faiss", "--rerank", "4:2:0.3", *CPU, "--json"),
    "eval through a graph": ("eval", *BASE, "--store", "faiss", "--factory", "HNSW8", *CPU, "--json"),
    "eval on others": ("eval", *BASE, "--gen", 1, "--on", "list.csv", *CPU, "--json"),
    "eval on other columns": (
        *("eval", *BASE, "--on", "files.csv", "--path-column", "file", "--label-column", "kind", *CPU, "--json"),
    ),
    "eval a bundle": ("eval", "--bundle", "bundle", "--on", "pictures", *CPU, "--json"),
    "eval a bundle as a table": ("eval", "--bundle", "bundle", "--on", "list.csv", *CPU),
    "eval a classifier": ("eval", "--lineage", "lineages/classes", "--on", "list.csv", *CPU, "--json"),
    "compare": ("compare", "lineages/base", "lineages/other", "lineages/restarts", "--json"),
    "compare as a table": ("compare", "lineages/base", "lineages/other", "lineages/restarts"),
    "compare classes": ("compare", "lineages/classes", "--json"),
    "check": ("data", "check", "pictures", "--json"),
    "check odd": ("data", "check", "odd", "--json"),
    "check odd as a table": ("data", "check", "odd"),
    "check a list": ("data", "check", "parts.csv", "--task", "classification", "--json"),
    "pictures": ("data", "pictures", *BASE, "--to", "written", "--json"),
    "training pictures": ("data", "pictures", *BASE, "--to", "trained", "--part", "train", "--json"),
    "embed a list": ("embed", "list.csv", "-o", "listed", "--bundle", "bundle", *CPU, "--json"),
    "embed odd": (
        "embed",
        "odd",
        "--no-labels",
        "-o",
        "odd-embedded",
        *BASE,
        "--network",
        "dense",
        "--batch-size",
        2,
        *CPU,
        "--json",
    ),
    "index": ("index", "build", "pictures", "list.csv", "-o", "index", "--bundle", "bundle", *CPU, "--json"),
    "index as a table": ("index", "info", "--index", "index"),
    "search": ("search", "queries", "--index", "index", "-k", 4, "--montage", "found.png", *CPU, "--json"),
    "search as a table": ("search", "queries", "odd/bee/turned.jpg", "--index", "index", "-k", 2, *CPU),
    "predict": ("predict", "queries", "odd", "--lineage", "lineages/classes", "-k", 2, *CPU, "--json"),
    "predict as a table": ("predict", "queries", "--lineage", "lineages/classes", "-o", "told.csv", *CPU),
    "predict known": ("predict", "list.csv", "--lineage", "lineages/classes", "-o", "told.json", *CPU, "--json"),
    "slim": ("slim", *BASE, "-o", "slim"),
    "slim again": ("slim", *BASE, "-o", "slim", "--overwrite", "--json"),
    "train again": ("train", "base.yaml", "--set=generations=1", "--lineage", "lineages/again", *CPU, "--json"),
    "train over": ("train", "base.yaml", "--set=generations=1", "--lineage", "lineages/again", "--overwrite", *CPU),
}

ERRORS = {
    "unknown command": ("frobnicate",),
    "unknown option": ("eval", "--generation", 3),
    "two that exclude each other": ("train", "base.yaml", "--resume", "--overwrite"),
    "no such recipe": ("train", "nothing.yaml"),
    "unknown field": ("train", "base.yaml", "--set=split.rat=0.5"),
    "unknown section": ("train", "wrong.yaml"),
    "value out of range": ("train", "base.yaml", "--set=split.rate=1.5"),
    "wrong type": ("train", "base.yaml", "--set=training.epochs=many"),
    "unread field": ("train", "base.yaml", "--set=method.share=0.3"),
    "conflict": ("train", "base.yaml", "--set=batches.size=7"),
    "unknown method": ("train", "base.yaml", "--set=method.name=knowledge_revolution"),
    "unknown layer": ("train", "base.yaml", "--set=method.name=later_layer_forgetting", "--set=method.layers=[haed]"),
    "unknown backbone": ("train", "base.yaml", "--set=network.backbone=resnet19", "--dry-run"),
    "unknown loss": ("train", "base.yaml", "--set=loss.name=TripletMarginLos", "--dry-run"),
    "unknown argument of a loss": ("train", "base.yaml", "--set=loss.arguments={alfa: 1}", "--dry-run"),
    "unknown benchmark": ("train", "base.yaml", "--set=data.benchmark=cubs"),
    "unknown device": ("train", "base.yaml", "--device", "quantum"),
    "no data": ("train", "base.yaml", "--set=data.root=nowhere"),
    "broken data": ("train", "base.yaml", "--set=data.root=odd"),
    "too few classes": ("train", "base.yaml", "--set=batches.size=64", "--dry-run"),
    "finished lineage": ("train", "base.yaml", *BASE),
    "lineage of another recipe": ("train", "base.yaml", "--set=split.rate=0.6", "--resume", *BASE),
    "no such lineage": ("eval", "--lineage", "lineages/none"),
    "no such generation": ("eval", *BASE, "--gen", 9),
    "no such word": ("eval", *BASE, "--gen", "newest"),
    "no such score": ("eval", *BASE, "--min", "recall@3=0.5"),
    "percent of what is a share": ("eval", *BASE, "--min", "recall@1=60"),
    "no store": ("eval", *BASE, "--factory", "Flat"),
    "bad factory": ("eval", *BASE, "--store", "faiss", "--factory", "HNSWx"),
    "bad expansion": ("search", "queries", "--index", "index", "--expand", "many"),
    "bad rerank": ("search", "queries", "--index", "index", "--rerank", "5:3"),
    "bad condition": ("search", "queries", "--index", "index", "--where", 'label = "ant"'),
    "unknown field of a condition": ("search", "queries", "--index", "index", "--where", 'colour == "red"'),
    "nothing to search with": ("search", "empty", "--index", "index"),
    "no index": ("search", "queries", "--index", "nowhere.index"),
    "another network": ("index", "add", "queries", "--index", "index", "--lineage", "lineages/other"),
    "unknown id": ("index", "remove", "ant/99.bmp", "--index", "index"),
    "more than half": ("index", "remove", "--where", 'label != "ant"', "--index", "index"),
    "an index that is there": ("index", "build", "pictures", "-o", "index", "--bundle", "bundle"),
    "unreadable picture": ("embed", "odd", "--strict", "-o", "strict", *BASE, "--network", "dense"),
    "unknown class": ("eval", "--lineage", "lineages/classes", "--on", "strangers"),
    "no classifier": ("predict", "queries", *BASE),
    "no bundle": ("eval", "--bundle", "pictures", "--on", "pictures"),
    "a bundle that is there": ("slim", *BASE, "-o", "bundle"),
    "too few pictures to export": ("export", "--format", "torch-export", *BASE, "--pictures", "queries", "-o", "e"),
    "no such column": ("data", "check", "files.csv"),
    "no such benchmark": ("data", "prepare", "cubs"),
    "other data": ("compare", "lineages/base", "lineages/classes"),
}


def commands() -> dict:
    """What every command prints and says, and what it leaves behind where that is not in another part."""
    must("slim", *BASE, "--gen", 2, "-o", "bundle")
    found = {name: call(*words) for name, words in COMMANDS.items()}
    for answer in found.values():
        answer.get("json", {}).get("store", {}).pop("bytes", None)
    found["left behind"] = {
        "written": sorted(path.relative_to("written").as_posix() for path in Path("written").rglob("*.*")),
        "trained": len(list(Path("trained").rglob("*.png"))),
        "told.csv": Path("told.csv").read_text(encoding="utf-8").splitlines()[0],
        "told.json": sorted(json.loads(Path("told.json").read_text(encoding="utf-8"))),
        # Its size: another library draws it since, and the pictures in it are those of the search above.
        "montage": list(Image.open("found.png").size),
        "listed": contents(Path("listed")),
        "odd": contents(Path("odd-embedded")),
    }
    return found


def errors() -> dict:
    """The exit code and the words of every kind of mistake, and that it left nothing behind."""
    if not Path("index").exists():
        must("slim", *BASE, "--gen", 2, "-o", "bundle")
        must("index", "build", "pictures", "list.csv", "-o", "index", "--bundle", "bundle", *CPU)
    Path("empty").mkdir()
    Path("wrong.yaml").write_text("splitt: {rate: 0.5}\n", encoding="utf-8")
    shutil.copytree("pictures/ant", "strangers/unicorn")
    before = _files()
    found = {name: call(*words) for name, words in ERRORS.items()}
    found["left behind"] = sorted(_files() - before)
    found["base"] = digest("\n".join(sorted(path for path in before if path.startswith("lineages/base"))))
    return found


def _files() -> set[str]:
    return {path.as_posix() for path in Path().rglob("*") if path.is_file() and "tensorboard" not in path.parts}
