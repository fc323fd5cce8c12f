"""The loader alone and the first step of a second training, beside decoding JPEGs every epoch with torchvision.

    python -m eval.speed.loader [--rounds 5] [--pictures 3000 12000] [--results eval/speed/results/loader.md]

The pictures are JPEGs of 500 x 375 pixels and of quality 95, drawn with the spectrum of photographs. All ways run on
one core with one thread, and end with standardised float32 batches: ours from a kept store, with `augmentation.where`
`loader` (Pillow) or `device` (on a CPU: torch), the peer by PIL's decoder and torchvision's v2 transforms, of uint8
tensors, which is faster, or of PIL's pictures, as torchvision's reference training has it by default. Policies are of
PIL's pictures in both, which is faster; ours move bilinearly, as that training does, while v2's default is the
nearest pixel. The second training is the whole process, from its start to its first step.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from eval.shared.photographs import QUALITY, photograph
from eval.shared.provenance import provenance_lines
from eval.shared.rounds import Clocked, clocked, in_turn, ratios, spread
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.images.batches import TrainingEpochs
from ke_metric.images.image_set import Benchmark
from ke_metric.images.kept_stores import KeptStores
from ke_metric.images.pixel_store import Pictures
from ke_metric.recipe.schema import Recipe

CLASSES, DRAWN, SIZE = 50, 40, (500, 375)
BATCH = 50
PARTS = ("loaders", "steps", "second")
STEPS: dict[str, float] = {"saturation": 0.3, "hue": 0.1, "grayscale": 1.0, "blur": 1.0, "erasing": 1.0}
CPU = torch.device("cpu")
AFFINE = {"geometry": "affine", "scale": [0.8, 1.2], "rotation": 10.0, "translation": 0.1}
HEAD = [
    "| what | ours | the other | ratio, wall | ratio, CPU | target | met |",
    "|---|---|---|---|---|---|---|",
]


def main() -> None:
    """Measure, print the tables, and write them where `--results` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument(
        "--pictures", type=int, nargs="+", default=[3000, 12000], help="JPEGs of the second training (3000 and 12000)"
    )
    parser.add_argument("--few", type=int, default=400, help="JPEGs that the loaders are timed on (default: 400)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (default: all)")
    parser.add_argument("--results", type=Path, help="write the tables there as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for count in given.pictures:
            photos = write_photos(Path(folder, f"{count} photos"), count)
            if "second" in given.parts:
                rows += second_training(photos, Path(folder), max(1, given.rounds - 2))
        rows = [*loaders(photos, given), *rows]
    text = "\n".join(["# The loader", "", *provenance(given), "", *HEAD, *rows, ""])
    print(text)
    if given.results:
        given.results.parent.mkdir(parents=True, exist_ok=True)
        given.results.write_text(text, encoding="utf-8")


def provenance(given: argparse.Namespace) -> list[str]:
    """Return what the figures depend on."""
    more = f"the loaders on one core with one thread; {given.rounds} rounds of {given.few} pictures each"
    return provenance_lines(("torchvision", "pillow", "numpy"), more=more)


def write_photos(folder: Path, count: int) -> Path:
    """Write JPEGs of 500 x 375 pixels in class folders: photographs, each moved by another way around its edges."""
    drawn = [np.asarray(photograph(seed, *SIZE)) for seed in range(min(count, DRAWN))]
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class {number % CLASSES:02d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        moved = np.roll(drawn[number % len(drawn)], generator.integers(SIZE), (1, 0))
        Image.fromarray(moved).save(path, quality=QUALITY)
    return folder


def recipe_of(photos: Path, *, size: int, store_size: int, **augmentation: object) -> Recipe:
    """Return a recipe whose batches are those that are timed."""
    return Recipe.model_validate(
        {
            "name": "photos",
            "generations": 1,
            "data": {
                "benchmark": "folder",
                "root": str(photos),
                "image_size": size,
                "store_size": store_size,
                "test_fraction": 0.04,
            },
            "augmentation": augmentation,
            "network": {"backbone": "resnet18"},
            "batches": {"sampler": "shuffled", "size": BATCH},
            "training": {"epochs": 1, "precision": "fp32"},
            "evaluation": {"resize": size, "slim": False},
        }
    )


def loaders(photos: Path, given: argparse.Namespace) -> list[str]:
    """Time an epoch of the loader in our two ways, and as the peer does it, on one core."""
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(cores)})
    try:
        rows = [*policy_rows(photos, given), *step_rows(photos, given)] if "steps" in given.parts else []
        return [*crop_rows(photos, given), *rows] if "loaders" in given.parts else rows
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, cores)


def crop_rows(photos: Path, given: argparse.Namespace) -> list[str]:
    """Return rows of what every recipe does: cutting or moving, and standardising."""
    return [
        *loader_rows(photos, given, "crop, 224 px", 6.0, size=224, store_size=256),
        *loader_rows(photos, given, "crop, 64 px", 25.0, size=64, store_size=72),
        *loader_rows(photos, given, "crop, 64 px from a store of 256", None, size=64, store_size=256),
        *loader_rows(photos, given, "affine, 32 px from a store of 64", None, size=32, store_size=64, **AFFINE),
    ]


def policy_rows(photos: Path, given: argparse.Namespace) -> list[str]:
    """Return rows of crops and TrivialAugment: ours, which moves bilinearly, and the peer by either interpolation."""
    recipe = recipe_of(photos, size=224, store_size=256, policy="trivial_augment_wide")
    pictures, files = few_pictures(photos, recipe, given.few)
    ways = {where: epoch_of(pictures, of_where(recipe, where)) for where in ("loader", "device")}
    others = {f"v2 of PIL, {how.value}": how for how in (v2.InterpolationMode.BILINEAR, v2.InterpolationMode.NEAREST)}
    for name, how in others.items():
        ways[name] = peer(files, recipe, of_tensors=False, policy=[v2.TrivialAugmentWide(interpolation=how)])
    times, what = timed(ways, given), "crop and TrivialAugment, 224 px"
    pairs = [(ours, other) for ours in ("loader", "device") for other in others]
    return [row(f"{what}: `{ours}` against {other}", times, other, ours, 1.5, len(files)) for ours, other in pairs]


def step_rows(photos: Path, given: argparse.Namespace) -> list[str]:
    """Return rows of each further step of every picture, against the crop alone."""
    alone = recipe_of(photos, size=224, store_size=256)
    pictures, files = few_pictures(photos, alone, given.few)
    options: dict[str, dict[str, object]] = {f"`{name}: {value:g}`": {name: value} for name, value in STEPS.items()}
    options["`policy: trivial_augment_wide`"] = {"policy": "trivial_augment_wide"}
    recipes = {name: recipe_of(photos, size=224, store_size=256, **more) for name, more in options.items()}
    times = timed({name: epoch_of(pictures, recipe) for name, recipe in {"alone": alone, **recipes}.items()}, given)
    return [
        row(f"crop and {name}, 224 px, against the crop alone", times, "alone", name, None, len(files))
        for name in recipes
    ]


def timed(ways: dict[str, Callable[[], None]], given: argparse.Namespace) -> dict[str, list[Clocked]]:
    """Go through every way once before they are timed in turn."""
    for way in ways.values():
        way()
    return in_turn(ways, given.rounds)


def loader_rows(
    photos: Path, given: argparse.Namespace, what: str, target: float | None, **settings: object
) -> list[str]:
    """Return rows of ours against the peer, where it does the same, and of our two ways."""
    recipe = recipe_of(photos, **settings)  # type: ignore[arg-type]
    pictures, files = few_pictures(photos, recipe, given.few)
    ways = {where: epoch_of(pictures, of_where(recipe, where)) for where in ("loader", "device")}
    if recipe.augmentation.geometry == "crop":
        ways |= {"v2 of tensors": peer(files, recipe), "v2 of PIL": peer(files, recipe, of_tensors=False)}
    times = timed(ways, given)
    pairs = [("loader", "device", None)]
    if "v2 of tensors" in times:
        pairs += [(ours, "v2 of tensors", target) for ours in ("loader", "device")]
        pairs += [(ours, "v2 of PIL", None) for ours in ("loader", "device")]
    return [
        row(f"{what}: `{ours}` against {other}", times, other, ours, aim, len(files)) for ours, other, aim in pairs
    ]


def few_pictures(photos: Path, recipe: Recipe, count: int) -> tuple[Pictures, list[Path]]:
    """Return the first training pictures, decoded, and their files."""
    benchmark = with_few(load_benchmark(recipe.data, recipe.task), count)
    return Pictures.decode(benchmark, recipe.data.store_size), [photos / key for key in benchmark.train.keys]


def of_where(recipe: Recipe, where: str) -> Recipe:
    """Return the recipe with another `augmentation.where`."""
    return recipe.model_copy(update={"augmentation": recipe.augmentation.model_copy(update={"where": where})})


def with_few(benchmark: Benchmark, count: int) -> Benchmark:
    """Keep the first training pictures, and none to test on."""
    none = benchmark.query.at(np.arange(0))
    return replace(benchmark, train=benchmark.train.at(np.arange(count)), query=none, gallery=none)


def epoch_of(pictures: Pictures, recipe: Recipe) -> Callable[[], None]:
    """Return what goes through one epoch of ours."""
    epochs = TrainingEpochs(pictures, recipe, generation=1, device=CPU)

    def go_through() -> None:
        for _ in epochs.epoch(1):
            pass

    return go_through


def peer(
    files: list[Path], recipe: Recipe, *, of_tensors: bool = True, policy: Sequence[v2.Transform] = ()
) -> Callable[[], None]:
    """Return what goes through the same pictures by PIL and torchvision."""
    geometry = [v2.RandomResizedCrop(recipe.data.image_size, antialias=True), v2.RandomHorizontalFlip(), *policy]
    numbers = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(recipe.data.mean, recipe.data.std)]
    transform = v2.Compose([*([v2.ToImage(), *geometry] if of_tensors else [*geometry, v2.ToImage()]), *numbers])

    def go_through() -> None:
        for start in range(0, len(files), BATCH):
            torch.stack([transform(Image.open(path).convert("RGB")) for path in files[start : start + BATCH]])

    return go_through


def row(
    what: str, times: Mapping[str, list[Clocked]], other: str, ours: str, target: float | None, count: int
) -> str:
    """Return a row of the table; the ratio says how many times faster ours is."""
    walls, cpus = (
        [[getattr(each, kind) for each in times[way]] for way in (other, ours)] for kind in ("wall", "cpu")
    )
    ratio = ratios(*walls)
    each = [f"{np.median(wall) / count * 1e6:,.0f} µs per picture" for wall in reversed(walls)]
    met = "" if target is None else ("yes" if np.median(ratio) >= target else "no")
    aim = "" if target is None else f">= {target:g}"
    return f"| {what} | {each[0]} | {each[1]} | {spread(ratio, 1)} | {spread(ratios(*cpus), 1)} | {aim} | {met} |"


def second_training(photos: Path, folder: Path, rounds: int) -> list[str]:
    """Time a training that decodes and one that finds what is kept, each to its first step; and the stores alone."""
    recipe = recipe_of(photos, size=64, store_size=256)
    path = folder / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    benchmark, cache = load_benchmark(recipe.data, recipe.task), folder / "cache"

    def process() -> None:
        command = [sys.executable, "-m", "eval.speed.first_step", str(path)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "KE_METRIC_CACHE": str(cache)})

    def stores() -> None:
        kept = KeptStores(cache / "pixels", least_seconds=0)
        Pictures.decode(benchmark, recipe.data.store_size, build=kept.store)

    rows, count = [], len(benchmark.train) + len(benchmark.query)
    for what, work in (("the stores alone", stores), ("`ke-metric train` to its first step", process)):
        firsts, seconds = [], []
        for _ in range(rounds):
            shutil.rmtree(cache, ignore_errors=True)
            firsts.append(clocked(work))
            seconds.append(clocked(work))
        rows.append(second_row(f"second training, {count:,} JPEGs: {what}", seconds, firsts))
    shutil.rmtree(cache, ignore_errors=True)
    return rows


def second_row(what: str, seconds: list[Clocked], firsts: list[Clocked]) -> str:
    """Return the row of a second training beside the first one."""
    (wall, first_wall), (cpu, first_cpu) = (
        [[getattr(each, kind) for each in times] for times in (seconds, firsts)] for kind in ("wall", "cpu")
    )
    share = ratios(wall, first_wall)
    met = "yes" if np.median(share) <= 0.2 else "no"
    times = f"{np.median(wall):.2f} s | first: {np.median(first_wall):.2f} s"
    return f"| {what} | {times} | {spread(share)} | {spread(ratios(cpu, first_cpu))} | <= 0.2 | {met} |"


if __name__ == "__main__":
    main()
