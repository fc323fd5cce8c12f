"""How many files a picture passes on its way from a recipe to a scorecard: what has to be read to follow it."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import ke_metric
from ke_metric import evolve, load_recipe
from ke_metric.benchmarks.registry import load_benchmark

PACKAGE = Path(ke_metric.__file__).parent
# Rooms and files that are given pictures, what is known of them, or their embeddings. Before them comes the recipe;
# what comes after them (neighbours, recall, clusters, the folder of the lineage) sees numbers only.
HANDLE_PICTURES = (
    "benchmarks/",
    "images/",
    "scoring.py",
    "training/one_generation.py",
    "evaluation/embeddings.py",
    "evaluation/retrieval.py",
)
MOST_FILES = 16

RECIPE = """
generations: 1
data: {benchmark: folder, root: pictures, image_size: 24, store_size: 24}
network: {backbone: resnet18, stem: small}
batches: {size: 8, images_per_class: 2}
training: {epochs: 1, precision: fp32, warmup_epochs: 0}
evaluation: {resize: 24}
"""


def files_run(function):
    """Return the files of the package in which a function ran, other than by being imported, while `function` did."""
    files = set()

    def note(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name != "<module>" and path.is_relative_to(PACKAGE):
            files.add(path.relative_to(PACKAGE).as_posix())

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return files


def test_a_pictures_way_is_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(8 * 6):
        path = Path("pictures", f"class {number % 8}", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(path)
    Path("recipe.yaml").write_text(RECIPE)

    def train():
        recipe = load_recipe("recipe.yaml")
        (generation,) = evolve(recipe, load_benchmark(recipe.data, recipe.task))
        assert "recall@1" in generation.scorecard.dense

    way = {name for name in files_run(train) if name.startswith(HANDLE_PICTURES)}
    assert {"benchmarks/folder.py", "images/preparation.py", "scoring.py"} <= way
    assert len(way) <= MOST_FILES, sorted(way)
