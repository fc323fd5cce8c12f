"""`ke-metric embed`: which network, which pictures, what is left out, what is printed."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ke_metric import Embedder
from ke_metric.cli import main
from ke_metric.errors import ExitCode


def run(*arguments):
    return CliRunner().invoke(main, ["embed", *map(str, arguments)])


def expect(code, *arguments):
    result = run(*arguments)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result.stderr if code else result.stdout


@pytest.fixture
def photos(make_picture, tmp_path):
    """Five good pictures in two classes, and two files that are none."""
    for name in ("crow/1.png", "crow/2.jpg", "jay/1.png", "jay/deep/1.png", "top.png"):
        make_picture(tmp_path / "photos" / name, kind="PNG" if name.endswith("png") else "JPEG")
    (tmp_path / "photos" / "crow" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "photos" / "jay" / "empty.png").write_bytes(b"")
    return tmp_path / "photos"


GOOD = ["crow/1.png", "crow/2.jpg", "jay/1.png", "jay/deep/1.png", "top.png"]


def test_pictures_become_files_and_bad_ones_are_named(photos, scored, tmp_path):
    result = run(photos, "-o", tmp_path / "e", "--lineage", scored.folder, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    embedder = Embedder.load(scored.folder)
    assert document == {
        "folder": str(tmp_path / "e"),
        "count": 5,
        "dimension": 8,
        "model": {"digest": embedder.digest, "description": embedder.description},
        "left_out": [
            {"name": str(photos / name), "reason": bad["reason"]}
            for name, bad in zip(["crow/broken.jpg", "jay/empty.png"], document["left_out"], strict=True)
        ],
        "skipped": [],
    }
    for name in ("crow/broken.jpg", "jay/empty.png"):
        assert f"warning: {photos / name}: cannot be decoded as an image" in result.stderr
    lines = (tmp_path / "e" / "items.csv").read_text().splitlines()
    assert lines == ["id,path,label"] + [
        f'"{name}","{photos / name}","{name.rpartition("/")[0]}"' for name in GOOD
    ]  # fmt: skip
    vectors = np.load(tmp_path / "e" / "vectors.npy", allow_pickle=False)
    assert np.array_equal(vectors, embedder(photos / name for name in GOOD))


def test_people_read_a_table(photos, scored, tmp_path):
    table = expect(ExitCode.OK, photos, "-o", tmp_path / "e", "--lineage", scored.folder)
    assert "5 of 8 numbers" in table
    assert Embedder.load(scored.folder).description.replace(str(scored.folder), "") in table


def test_strict_stops_at_the_first_bad_picture(photos, scored, tmp_path):
    told = expect(ExitCode.DATA, photos, "-o", tmp_path / "e", "--lineage", scored.folder, "--strict")
    assert f"{photos / 'crow' / 'broken.jpg'}: cannot be decoded" in told
    assert not (tmp_path / "e").exists()


def test_nothing_but_bad_pictures(photos, scored, tmp_path):
    bad = photos / "crow" / "broken.jpg", photos / "jay" / "empty.png"
    told = expect(ExitCode.DATA, *bad, "-o", tmp_path / "e", "--lineage", scored.folder)
    assert "none of the 2 pictures can be used" in told
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("options", "generation", "network"),
    [
        ((), None, None),
        (("--gen", 1), 1, None),
        (("--gen", "best"), "best", None),
        (("--network", "dense"), None, "dense"),
        (("--gen", "last", "--network", "slim", "--device", "cpu", "--batch-size", 2), "last", "slim"),
    ],
)
def test_the_network_asked_for(options, generation, network, photos, scored, tmp_path):
    arguments = (photos / "top.png", "-o", tmp_path / "e", "--lineage", scored.folder, *options, "--json")
    result = run(*arguments)
    assert result.exit_code == ExitCode.OK, result.output
    embedder = Embedder.load(scored.folder, generation, network)
    assert json.loads(result.stdout)["model"]["digest"] == embedder.digest
    (told,) = [line for line in result.stderr.splitlines() if line.startswith("network: ")]
    assert told == f"network: {embedder.description}{f': {embedder.reason}' if embedder.reason else ''}"


def test_a_bundle(photos, scored, tmp_path):
    embedder = Embedder.load(scored.folder, 1, "dense")
    embedder.save(tmp_path / "bundle")
    document = json.loads(
        expect(ExitCode.OK, photos, "-o", tmp_path / "e", "--bundle", tmp_path / "bundle", "--json")
    )
    words = f"{tmp_path / 'bundle'} (lineage, {embedder.description.partition(', ')[2]})"
    assert document["model"] == {"digest": embedder.digest, "description": words}


@pytest.mark.parametrize("also", [("--lineage", "x"), ("--gen", "1"), ("--network", "dense")])
def test_a_bundle_is_one_network(also, photos, tmp_path):
    told = expect(ExitCode.USAGE, photos, "-o", tmp_path / "e", "--bundle", tmp_path, *also)
    assert "--bundle is one network" in told


def test_the_newest_lineage_is_taken_and_named(photos, scored, tmp_path, monkeypatch):
    (tmp_path / "lineages").mkdir()
    shutil.copytree(scored.folder, tmp_path / "lineages" / "x")
    monkeypatch.chdir(tmp_path)
    result = run("photos", "-o", "e", "--gen", 1)
    assert result.exit_code == 0, result.output
    assert "newest lineage: lineages/x" in result.stderr


def test_labels_can_be_forgotten(photos, scored, tmp_path):
    expect(ExitCode.OK, photos, "-o", tmp_path / "e", "--lineage", scored.folder, "--no-labels")
    lines = (tmp_path / "e" / "items.csv").read_text().splitlines()
    assert all(line.endswith(',""') for line in lines[1:])


def test_what_is_there_is_replaced_only_when_asked(photos, scored, tmp_path):
    arguments = (photos, "-o", tmp_path / "e", "--lineage", scored.folder)
    expect(ExitCode.OK, *arguments)
    # Told before anything is looked for.
    assert "--overwrite" in expect(ExitCode.USAGE, tmp_path / "none", "-o", tmp_path / "e")
    expect(ExitCode.OK, *arguments, "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), ExitCode.USAGE, "no pictures are named"),
        (("none.png",), ExitCode.DATA, "none.png: no such file or folder"),
        (("photos", "--lineage", "photos"), ExitCode.LINEAGE, "no lineage here"),
        (("photos", "--gen", "lsat"), ExitCode.USAGE, "did you mean 'last'"),
        (("photos", "--gen", "7"), ExitCode.LINEAGE, "no generation 7"),
        (("photos", "--device", "gpu"), ExitCode.ENVIRONMENT, "device = 'gpu'"),
        (("photos", "--batch-size", "0"), ExitCode.USAGE, "batch-size"),
    ],
)
def test_what_is_refused(arguments, code, words, photos, scored, tmp_path, monkeypatch):
    (tmp_path / "lineages").mkdir()
    (tmp_path / "lineages" / "x").symlink_to(scored.folder)
    monkeypatch.chdir(tmp_path)
    assert words in expect(code, *arguments, "-o", "e")
    assert not (tmp_path / "e").exists()


def test_no_slim_network_is_told_and_nothing_else_taken(photos, scored, tmp_path):
    shutil.copytree(scored.folder, tmp_path / "l")
    recipe = tmp_path / "l" / "recipe.resolved.yaml"
    recipe.write_text(recipe.read_text().replace("kind: kels", "kind: wels"))
    told = expect(ExitCode.LINEAGE, photos, "-o", tmp_path / "e", "--lineage", tmp_path / "l", "--network", "slim")
    assert "no slim network" in told


def test_grey_and_palette_pictures_are_embedded(scored, tmp_path):
    Image.new("L", (50, 40), 100).save(tmp_path / "g.png")
    Image.new("P", (40, 50)).save(tmp_path / "p.gif")
    document = json.loads(
        expect(ExitCode.OK, tmp_path / "g.png", tmp_path / "p.gif", "-o", tmp_path / "e", "--lineage", scored.folder,
               "--json")
    )  # fmt: skip
    assert document["count"] == 2
