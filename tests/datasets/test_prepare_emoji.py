import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ke_metric.benchmarks import drawn
from ke_metric.datasets import prepare as preparing
from ke_metric.datasets.emoji_artwork import STYLES
from ke_metric.datasets.prepare import prepare_emoji
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data

NAMES = {"1f436": "dog", "1f431": "cat", "1f43b": "bear", "1f98a": "fox", "1f981": "lion", "1f42f-fe0f": "tiger"}
WITH_CODE_POINTS = {"noto", "twemoji", "openmoji", "fluent-emoji-flat"}


def drawing(style: str, number: int) -> str:
    """A bar as long as the emoji's number, in a colour of the style."""
    return f'<path fill="#{20 * [s.name for s in STYLES].index(style):02x}40c0" d="M1 1h{number + 1}v9H1z"/>'


def write_packages(folder: Path, edit: dict[str, dict[str, Any]] | None = None) -> Path:
    """All eight packages with six emojis each; `edit` replaces bodies (None: no such drawing) by style and name."""
    for style in STYLES:
        changes = (edit or {}).get(style.name, {})
        bodies = {name: drawing(style.name, number) for number, name in enumerate(NAMES.values())} | changes
        icons = {name: {"body": body} for name, body in bodies.items() if body is not None}
        characters = {code: name for code, name in NAMES.items() if name in icons}
        files = {
            "package.json": {"version": f"{style.version}-test"},
            "info.json": {
                "author": {"name": f"maker of {style.name}", "url": "https://example.org"},
                "license": {"title": "CC BY 4.0", "spdx": "CC-BY-4.0", "url": "https://example.org/by"},
            },
            "icons.json": {"icons": icons, "width": 12, "height": 12},
            "chars.json": characters if style.name in WITH_CODE_POINTS else {},
        }
        package = folder / style.name
        package.mkdir(parents=True)
        for name, content in files.items():
            (package / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    prepare_emoji(tmp_path / "emoji", source=write_packages(tmp_path / "packages"))
    return tmp_path / "emoji"


def data(root: Path, fraction: float = 0.5) -> Data:
    return Data(benchmark="emoji", root=str(root), test_fraction=fraction)


def refusal(root: Path) -> str:
    with pytest.raises(KeMetricError) as caught:
        drawn.read_emoji(data(root))
    assert caught.value.exit_code == ExitCode.DATA
    return str(caught.value)


def test_every_emoji_is_there_in_every_style(root: Path) -> None:
    benchmark = drawn.read_emoji(data(root))
    assert len(benchmark.train) + len(benchmark.query) == 6 * 8
    assert set(benchmark.train.class_names) | set(benchmark.query.class_names) == set(NAMES.values())
    assert "images/1f42f/noto-v1.png" in benchmark.train.keys + benchmark.query.keys
    for image_set in (benchmark.train, benchmark.query):
        assert np.bincount(image_set.labels).tolist() == [8] * len(image_set.class_names)


def test_every_picture_is_rgb_of_64_pixels_and_not_blank(root: Path) -> None:
    train = drawn.read_emoji(data(root)).train
    for index in range(len(train)):
        picture = train.read(index)
        assert (picture.mode, picture.size) == ("RGB", (64, 64))
        assert len(picture.getcolors()) > 1


def test_pictures_show_the_emoji_their_key_says(root: Path) -> None:
    query = drawn.read_emoji(data(root)).query
    for index, key in enumerate(query.keys):
        name = query.class_names[query.labels[index]]
        blue = (np.asarray(query.read(index))[20, :, 0] < 200).sum() * 12 / 64
        assert round(blue) == list(NAMES.values()).index(name) + 1, key


def test_classes_are_disjoint_and_two_constructions_are_equal(root: Path) -> None:
    one, other = drawn.read_emoji(data(root, 0.3)), drawn.read_emoji(data(root, 0.3))
    assert not set(one.train.class_names) & set(one.query.class_names)
    assert len(one.query.class_names) == 2
    assert (one.train.keys, one.query.keys, one.notes) == (other.train.keys, other.query.keys, other.notes)
    assert np.array_equal(one.train.labels, other.train.labels)
    assert one.leave_one_out


def classify(root: Path, fraction: float = 0.25):
    return drawn.read_emoji_classification(data(root, fraction))


def styles_of(images) -> set[str]:
    return {Path(key).stem for key in images.keys}


@pytest.mark.parametrize(("fraction", "tested"), [(0.01, 1), (0.25, 2), (0.5, 4)])
def test_for_classification_styles_are_divided_and_emojis_are_shared(
    root: Path, fraction: float, tested: int
) -> None:
    benchmark = classify(root, fraction)
    assert len(styles_of(benchmark.query)) == tested
    assert styles_of(benchmark.train) == {style.name for style in STYLES} - styles_of(benchmark.query)
    assert set(benchmark.train.class_names) == set(NAMES.values())
    assert benchmark.query.class_names == benchmark.train.class_names
    assert benchmark.gallery is benchmark.query
    assert np.bincount(benchmark.query.labels).tolist() == [tested] * 6
    assert np.bincount(benchmark.train.labels).tolist() == [8 - tested] * 6
    code_of = {name: code.removesuffix("-fe0f") for code, name in NAMES.items()}
    for images in (benchmark.train, benchmark.query):
        for key, label in zip(images.keys, images.labels, strict=True):
            assert Path(key).parent.name == code_of[images.class_names[label]]
    assert all(style in benchmark.notes["split"] for style in styles_of(benchmark.query))
    assert "maker of openmoji" in benchmark.notes["openmoji"]


def test_the_test_styles_never_change(root: Path) -> None:
    # Written down once: scores of different versions are only comparable on the same test styles.
    assert styles_of(classify(root, 0.25).query) == {"noto-v1", "twemoji"}
    assert classify(root).train.keys == classify(root).train.keys


def test_an_emoji_without_a_test_or_a_training_style_is_left_out(root: Path) -> None:
    test_styles = styles_of(classify(root).query)
    lines = (root / "index.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [
        line
        for line in lines
        if not (",dog," in line and Path(line.partition(",")[0]).stem in test_styles)
        and not (",cat," in line and Path(line.partition(",")[0]).stem not in test_styles)
    ]
    assert len(kept) == len(lines) - 8
    (root / "index.csv").write_text("".join(kept), encoding="utf-8")
    benchmark = classify(root)
    assert set(benchmark.train.class_names) == set(NAMES.values()) - {"dog", "cat"}
    assert np.bincount(benchmark.query.labels).tolist() == [2] * 4


def test_an_index_of_one_style_cannot_be_divided_by_style(root: Path) -> None:
    lines = (root / "index.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (root / "index.csv").write_text("".join([lines[0], *(line for line in lines if ",twemoji" in line)]))
    with pytest.raises(KeMetricError, match="no emoji has a picture in a training style") as caught:
        classify(root)
    assert caught.value.exit_code == ExitCode.DATA


def test_two_renderings_are_equal_byte_by_byte(root: Path, tmp_path: Path) -> None:
    prepare_emoji(tmp_path / "again", source=tmp_path / "packages")
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert len(files) == 6 * 8 + 2
    assert all((root / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


def test_licences_are_those_of_the_packages(root: Path) -> None:
    document = json.loads((root / "licences.json").read_text(encoding="utf-8"))
    assert document["images"] == 48
    assert document["renderer"].startswith("resvg ")
    assert {style["style"]: style["images"] for style in document["styles"]} == {style.name: 6 for style in STYLES}
    assert document["styles"][0]["version"] == "1.2.9-test"
    assert document["styles"][0]["licence"]["spdx"] == "CC-BY-4.0"
    assert "maker of openmoji" in drawn.read_emoji(data(root)).notes["openmoji"]


def test_broken_blank_and_shared_drawings_are_left_out_by_name(tmp_path: Path) -> None:
    same = drawing("openmoji", 9)
    edit = {"noto": {"dog": "<path"}, "twemoji": {"cat": ""}, "openmoji": {"fox": same, "lion": same}}
    prepared = prepare_emoji(tmp_path / "emoji", source=write_packages(tmp_path / "packages", edit))
    assert (prepared.classes, prepared.images) == (6, 48 - 4)
    reasons = dict(line.split(": ", 1) for line in prepared.left_out)
    assert set(reasons) == {"noto/dog", "twemoji/cat", "openmoji/fox", "openmoji/lion"}
    assert reasons["twemoji/cat"] == "blank"
    assert reasons["openmoji/fox"] == "the same picture for lion, fox"
    assert not (tmp_path / "emoji" / "images" / "1f436" / "noto.png").exists()


def test_an_emoji_that_four_styles_draw_is_left_out(tmp_path: Path) -> None:
    edit: dict[str, dict[str, Any]] = defaultdict(dict)
    for style in STYLES[4:]:
        edit[style.name] = {"dog": None, "cat": "<path"}
    prepared = prepare_emoji(tmp_path / "emoji", source=write_packages(tmp_path / "packages", edit))
    assert prepared.classes == 4
    assert {path.name for path in (tmp_path / "emoji" / "images").iterdir()} == {"1f43b", "1f98a", "1f981", "1f42f"}


def test_progress_is_told_up_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    source = write_packages(tmp_path / "packages", {"noto": {"dog": "<path"}})
    prepare_emoji(tmp_path / "emoji", source=source, progress=lambda done, total: told.append((done, total)))
    assert told == [(8 * (number + 1), 48) for number in range(6)]


def test_packages_are_fetched_when_no_source_is_named(tmp_path: Path, monkeypatch) -> None:
    packages = write_packages(tmp_path / "packages")
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\ncp -r {packages}/* "$4"\n', encoding="utf-8")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent), prepend=":")
    assert prepare_emoji(tmp_path / "emoji").images == 48


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    source = write_packages(tmp_path / "packages")
    (source / "emojione" / "info.json").unlink()
    with pytest.raises(KeMetricError, match="@iconify-json/emojione") as caught:
        prepare_emoji(tmp_path / "emoji", source=source)
    assert caught.value.exit_code == ExitCode.DATA
    assert [path.name for path in tmp_path.iterdir()] == ["packages"]


def test_an_interruption_while_writing_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    source = write_packages(tmp_path / "packages")
    monkeypatch.setattr(preparing, "_write_licences", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_emoji(tmp_path / "emoji", source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["packages"]


def test_an_existing_folder_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    with pytest.raises(KeMetricError, match="emoji: exists") as caught:
        prepare_emoji(root, source=tmp_path / "packages")
    assert caught.value.exit_code == ExitCode.DATA


def test_packages_without_a_common_emoji_are_refused(tmp_path: Path) -> None:
    nothing = {style.name: dict.fromkeys(NAMES.values()) for style in STYLES}
    with pytest.raises(KeMetricError, match="no emoji that 5 styles draw") as caught:
        prepare_emoji(tmp_path / "emoji", source=write_packages(tmp_path / "packages", nothing))
    assert caught.value.exit_code == ExitCode.DATA


def test_without_the_renderer_it_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(KeMetricError, match=r"ke_metric\[emoji\]") as caught:
        prepare_emoji(tmp_path / "emoji", source=tmp_path)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_a_missing_folder_says_what_to_call(tmp_path: Path) -> None:
    assert "ke-metric data prepare emoji" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "columns"),
        ("path,name\n", "expected ['path', 'code points'"),
        ("path,code points,name,style\nx.png,1f436\n", "line 2: 2 fields"),
        ("path,code points,name,style\n../x.png,1f436,dog,noto\n", "leads out of the folder"),
        ("path,code points,name,style\n/etc/x.png,1f436,dog,noto\n", "leads out of the folder"),
        ("path,code points,name,style\n", "0 class"),
    ],
)
def test_another_index_is_refused(root: Path, content: str, named: str) -> None:
    (root / "index.csv").write_text(content, encoding="utf-8")
    assert named in refusal(root)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"styles": [{}]}'])
def test_other_licences_are_refused(root: Path, content: str | None) -> None:
    path = root / "licences.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    assert "licences.json" in refusal(root)


def test_the_default_folder_is_data_emoji(root: Path, tmp_path: Path, monkeypatch) -> None:
    root.rename(tmp_path / "moved")
    (tmp_path / "data").mkdir()
    (tmp_path / "moved").rename(tmp_path / "data" / "emoji")
    monkeypatch.chdir(tmp_path)
    assert len(drawn.read_emoji(Data(benchmark="emoji")).train) == 24
