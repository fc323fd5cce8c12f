"""A transparent, turned picture is one picture wherever it is read, and the same as one that was flattened before."""

import csv
import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from ke_metric import Embedder
from ke_metric.benchmarks.registry import load_benchmark
from ke_metric.cli import main
from ke_metric.datasets.pictures import write_pictures
from ke_metric.errors import KeMetricError
from ke_metric.images.pixel_store import Pictures
from ke_metric.recipe.schema import Data
from ke_metric.retrieval.embedding_files import ITEMS
from ke_metric.retrieval.index import Index
from ke_metric.retrieval.montage import MontageRow, draw_montage
from ke_metric.serving.pictures import decode

GROUNDS = {"white": (255, 255, 255), "#ff8000": (255, 128, 0)}
DRAWINGS = ("cross", "ring", "dot", "bar")


def mask(name):
    picture = Image.new("L", (60, 40), 0)
    draw = ImageDraw.Draw(picture)
    match name:
        case "cross":
            draw.line((5, 5, 55, 35), 255, 5)
            draw.line((55, 5, 5, 35), 255, 5)
        case "ring":
            draw.ellipse((10, 5, 50, 35), outline=255, width=5)
        case "dot":
            draw.ellipse((4, 4, 20, 20), 255)
        case "bar":
            draw.rectangle((40, 2, 56, 38), 255)
    return picture


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Black drawings on transparent black that lie on their side, and the same ones upright on white and orange."""
    root = tmp_path_factory.mktemp("drawings")
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in DRAWINGS:
        layers = Image.new("RGB", (60, 40), 0)
        layers.putalpha(mask(name))
        for number in range(2):
            for folder in (root / "raw" / name, *(root / ground / name for ground in GROUNDS)):
                folder.mkdir(parents=True, exist_ok=True)
            layers.transpose(Image.Transpose.ROTATE_90).save(root / "raw" / name / f"{number}.png", exif=exif)
            for ground, colour in GROUNDS.items():
                flat = Image.new("RGB", (60, 40), colour)
                flat.paste((0, 0, 0), mask=mask(name))
                flat.save(root / ground / name / f"{number}.png")
    return root


@pytest.fixture(scope="module", params=GROUNDS)
def embedder(request, grow_lineage, tmp_path_factory):
    fields = {
        "image_size": 32, "store_size": 40, "benchmark": "folder", "background": request.param,
        "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3],
    }  # fmt: skip
    lineage = grow_lineage(tmp_path_factory.mktemp("seen") / "lineage", data=fields)
    return Embedder.load(lineage.folder, device="cpu")


def test_one_flattened_beforehand_is_the_same_picture(embedder, drawings):
    ground = embedder.normalization.background
    ours = embedder([drawings / "raw" / name / "0.png" for name in DRAWINGS])
    before = embedder([drawings / ground / name / "0.png" for name in DRAWINGS])
    np.testing.assert_allclose((ours * before).sum(axis=1), 1, atol=1e-6)
    others = (ours @ ours.T)[~np.eye(len(DRAWINGS), dtype=bool)]
    assert others.max() < 0.9999, "a cross, a ring and a dot are three pictures"


def test_every_reader_sees_the_same_pixels(embedder, drawings, tmp_path):
    ground = embedder.normalization.background
    decoding = embedder.normalization.decoding
    parts = {}
    for root in ("raw", ground):
        data = Data(benchmark="folder", root=str(drawings / root), background=ground, store_size=40, image_size=32)
        parts[root] = load_benchmark(data)
        write_pictures(parts[root], tmp_path / root.strip("#"))
    stores = [Pictures.decode(part, 40) for part in parts.values()]
    for one, other in ((stores[0].train, stores[1].train), (stores[0].query, stores[1].query)):
        for index in range(len(one)):
            assert np.array_equal(one.picture(index), other.picture(index))
    for written in (tmp_path / "raw").rglob("*.png"):
        wanted = tmp_path / ground.strip("#") / written.relative_to(tmp_path / "raw")
        assert written.read_bytes() == wanted.read_bytes(), "data pictures"

    for name in DRAWINGS:
        raw, flat = drawings / "raw" / name / "0.png", drawings / ground / name / "0.png"
        wanted = embedder.prepare(flat)
        uploaded = decode(raw.read_bytes(), "PNG", 10**6)
        with Image.open(raw) as opened, Image.open(io.BytesIO(raw.read_bytes())) as copied:
            seen = [embedder.prepare(raw), embedder.prepare(uploaded), embedder.prepare(opened)]
            vectors = embedder([raw, copied, flat])
        for pixels in seen:
            assert np.array_equal(pixels, wanted)
        np.testing.assert_allclose(vectors, vectors[2:].repeat(3, axis=0), atol=1e-6)
        shown = [np.asarray(draw_montage([MontageRow("q", str(path), "x", [])], decoding)) for path in (raw, flat)]
        assert np.array_equal(*shown)


def test_the_montage_of_a_search_shows_them_on_the_networks_ground(embedder, drawings, tmp_path):
    ground = embedder.normalization.background
    embedder.save(tmp_path / "bundle")
    for words in (
        ["index", "build", drawings / "raw", "--bundle", tmp_path / "bundle", "-o", tmp_path / "index"],
        ["search", drawings / "raw" / "dot" / "0.png", "--index", tmp_path / "index", "-k", 1,
         "--montage", tmp_path / "m.png", "--json"],
    ):  # fmt: skip
        result = CliRunner().invoke(main, list(map(str, words)))
        assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["queries"][0]["results"][0]["label"] == "dot"
    with Image.open(tmp_path / "m.png") as sheet:
        colours = {colour for _, colour in sheet.getcolors(1 << 24)}
    assert GROUNDS[ground] in colours
    assert ((255, 128, 0) in colours) == (ground != "white")


def run(*words):
    result = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert result.exit_code in (0, 4), result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def bundle(grow_lineage, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    Embedder.load(grow_lineage(folder / "lineage").folder, device="cpu").save(folder / "bundle")
    return folder / "bundle"


def test_a_class_that_is_linked_twice_is_two_classes_everywhere(bundle, make_class_folders, tmp_path):
    photos = make_class_folders(tmp_path / "photos", ["crow", "jay", "sparrow"], 2)
    (photos / "passerine").symlink_to(photos / "sparrow")
    classes = ["crow", "jay", "passerine", "sparrow"]

    benchmark = load_benchmark(Data(benchmark="folder", root=str(photos)))
    assert sorted([*benchmark.train.class_names, *benchmark.query.class_names]) == classes
    checked = run("data", "check", photos)
    assert sum(part["classes"] for part in checked["counts"].values()) == 4
    copies = [problem for problem in checked["problems"] if "sparrow" in problem["reason"]]
    assert len(copies) == 2
    assert all(problem["is_error"] for problem in copies), "a picture of two classes, or of training and test"

    run("embed", photos, "-o", tmp_path / "embeddings", "--bundle", bundle)
    with (tmp_path / "embeddings" / ITEMS).open(encoding="utf-8", newline="") as rows:
        assert sorted(row["label"] for row in csv.DictReader(rows)) == sorted(classes * 2)
    run("index", "build", photos, "-o", tmp_path / "index", "--bundle", bundle)
    with Index.open(tmp_path / "index") as index:
        assert sorted(item.label for items, _ in index.store.read() for item in items) == sorted(classes * 2)


def test_files_that_are_no_pictures_are_named(bundle, make_class_folders, tmp_path):
    photos = make_class_folders(tmp_path / "photos", ["crow", "jay"], 2)
    (photos / "crow" / "phone.heic").write_bytes(b"x")
    assert run("embed", photos, "-o", tmp_path / "embeddings", "--bundle", bundle)["skipped"] == ["crow/phone.heic"]
    assert run("index", "build", photos, "-o", tmp_path / "index", "--bundle", bundle)["skipped"] == [
        "crow/phone.heic"
    ]


def test_columns_of_a_csv_are_named_on_the_command_line(bundle, make_class_folders, tmp_path):
    photos = make_class_folders(tmp_path / "photos", ["crow", "jay", "owl", "wren"], 2)
    rows = [f"{path.relative_to(photos)};{path.parent.name}" for path in sorted(photos.rglob("*.jpg"))]
    (photos / "list.csv").write_text("\n".join(["Bild;Art", *rows, ""]), encoding="utf-8")
    columns = ("--path-column", "Bild", "--label-column", "Art")
    assert run("data", "check", photos / "list.csv", *columns)["images"] == 8
    assert run("embed", photos / "list.csv", *columns, "-o", tmp_path / "e", "--bundle", bundle)["count"] == 8
    data = Data(benchmark="folder", root=str(photos / "list.csv"), path_column="Bild", label_column="Art")
    assert len(load_benchmark(data).train) == 4
    with pytest.raises(KeMetricError, match=r"data\.path_column = 'Bild' is not read"):
        load_benchmark(Data(path_column="Bild"))
