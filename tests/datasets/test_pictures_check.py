import json
import shutil
import threading
from dataclasses import dataclass, field, replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ke_metric.datasets.pictures import check_images, check_text, load_for_check
from ke_metric.datasets.problems import look_at, unbalanced_classes
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.decoding import LOOK_AHEAD
from ke_metric.images.image_set import Benchmark, FolderSource, ImageSet, labelled_set


def pixels(seed, height=12, width=10):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, kind)
    return path


@pytest.fixture
def pets(tmp_path):
    """Two training and two test classes of two pictures each, below train and test."""
    seed = iter(range(100))
    for folder in ("train/cat", "train/dog", "test/fox", "test/owl"):
        for name in ("a.png", "b.png"):
            save(tmp_path / "pets" / folder / name, pixels(next(seed)))
    return tmp_path / "pets"


def checked(folder, **options):
    return check_images(load_for_check(str(folder)), workers=2, **options)


def kinds(report):
    return {(problem.kind, problem.is_error, problem.paths) for problem in report.problems}


def pair(folder):
    return [f"{folder}/a.png", f"{folder}/b.png"]


def image_set(source, classes):
    """classes: class name to keys."""
    names = dict(enumerate(sorted(classes)))
    rows = [(key, number) for number, name in names.items() for key in classes[name]]
    return labelled_set([key for key, _ in rows], [number for _, number in rows], names, source)


def test_clean_data(pets):
    report = checked(pets)
    assert report.ok
    assert report.problems == ()
    assert report.images == 8
    expected = {"images": 4, "classes": 2, "smallest_class": 2, "largest_class": 2}
    assert {part: counts.to_json() for part, counts in report.counts.items()} == {"train": expected, "test": expected}
    text = check_text(report)
    assert "8 images looked at, 0 errors, 0 warnings" in text
    assert text.count("2 classes   2 images per class") == 2


def truncated(kind):
    def write(path):
        file = BytesIO()
        Image.fromarray(pixels(50, 64, 64)).save(file, kind)
        path.write_bytes(file.getvalue()[: len(file.getvalue()) * 2 // 3])

    return write


@pytest.mark.parametrize(
    ("write", "word"),
    [
        (truncated("JPEG"), "truncated"),
        (truncated("PNG"), "truncated"),
        (lambda path: path.write_bytes(b""), "cannot be decoded"),
        (lambda path: path.write_text("<html>404 not found</html>"), "cannot be decoded"),
    ],
    ids=["jpeg", "png", "empty", "text"],
)
def test_unreadable_files_are_named_with_reason(pets, write, word):
    write(pets / "train" / "cat" / "bad.jpg")
    write(pets / "test" / "owl" / "bad.jpg")
    report = checked(pets)
    assert not report.ok
    assert kinds(report) == {
        ("unreadable image", True, ("train/cat/bad.jpg",)),
        ("unreadable image", True, ("test/owl/bad.jpg",)),
    }
    assert all(word in problem.reason for problem in report.problems)
    assert all("whole copy" in problem.fix for problem in report.problems)
    assert "train/cat/bad.jpg" in check_text(report)


def test_same_pixels_in_another_file_format_are_found(pets):
    copy = save(pets / "train" / "cat" / "c.bmp", np.asarray(Image.open(pets / "train" / "cat" / "a.png")), "BMP")
    assert copy.read_bytes() != (pets / "train" / "cat" / "a.png").read_bytes()
    report = checked(pets)
    assert report.ok
    assert kinds(report) == {("same image twice", False, ("train/cat/a.png", "train/cat/c.bmp"))}


def test_duplicates_of_two_classes_are_an_error(pets):
    shutil.copyfile(pets / "test" / "fox" / "a.png", pets / "test" / "owl" / "c.png")
    report = checked(pets)
    assert not report.ok
    assert kinds(report) == {("same image in two classes", True, ("test/fox/a.png", "test/owl/c.png"))}


def test_duplicates_across_training_and_test_are_an_error(pets):
    for copy in ("test/owl/c.png", "train/cat/c.png"):
        shutil.copyfile(pets / "train" / "cat" / "a.png", pets / copy)
    report = checked(pets)
    assert not report.ok
    ((kind, is_error, paths),) = kinds(report)
    assert (kind, is_error) == ("same image in training and test", True)
    assert sorted(paths) == ["test/owl/c.png", "train/cat/a.png", "train/cat/c.png"]


def test_one_file_used_in_training_and_test_is_an_error(pets):
    source = FolderSource(pets)
    train = image_set(source, {"cat": pair("train/cat"), "dog": ["train/dog/a.png"]})
    test = image_set(source, {"fox": ["train/cat/a.png", "test/fox/a.png"]})
    report = check_images(Benchmark("mine", train, test, test))
    assert ("same image in training and test", True, ("train/cat/a.png",)) in kinds(report)
    assert report.images == 4


def test_pictures_with_the_same_bytes_and_another_shape_differ(pets):
    save(pets / "train" / "cat" / "wide.png", np.zeros((2, 8, 3), np.uint8))
    save(pets / "train" / "cat" / "high.png", np.zeros((8, 2, 3), np.uint8))
    assert checked(pets).problems == ()


def test_the_same_item_in_query_and_gallery_is_no_duplicate(pets):
    source = FolderSource(pets)
    train = image_set(source, {name: pair(f"train/{name}") for name in ("cat", "dog")})
    query = image_set(source, {name: [f"test/{name}/a.png"] for name in ("fox", "owl")})
    gallery = image_set(source, {name: pair(f"test/{name}") for name in ("fox", "owl")})
    report = check_images(Benchmark("mine", train, query, gallery))
    assert report.problems == ()
    assert report.images == 8
    assert list(report.counts) == ["train", "query", "gallery"]


def test_query_without_match_in_the_gallery(pets):
    source = FolderSource(pets)
    train = image_set(source, {name: pair(f"train/{name}") for name in ("cat", "dog")})
    query = image_set(source, {"fox": ["test/fox/a.png"], "owl": ["test/owl/a.png"]})
    gallery = ImageSet(("test/fox/b.png", "test/owl/a.png"), np.array([0, 1]), ("fox", "owl"), source)
    report = check_images(Benchmark("mine", train, query, gallery))
    assert report.ok
    assert kinds(report) == {("query without match", False, ("test/owl/a.png",))}
    hopeless = replace(gallery, keys=("test/owl/a.png",), labels=np.array([1]))
    report = check_images(Benchmark("mine", train, query, hopeless))
    assert not report.ok
    assert [problem.kind for problem in report.problems] == ["nothing can be scored"]


def test_classes_with_one_image_are_warnings(pets):
    save(pets / "train" / "emu" / "a.png", pixels(200))
    save(pets / "test" / "gnu" / "a.png", pixels(201))
    report = checked(pets)
    assert report.ok
    assert kinds(report) == {
        ("training class with one image", False, ("train/emu/a.png",)),
        ("query without match", False, ("test/gnu/a.png",)),
    }
    assert any("'emu'" in problem.reason for problem in report.problems)


def test_class_name_on_both_sides_is_an_error(pets):
    source = FolderSource(pets)
    train = image_set(source, {"cat": pair("train/cat"), "owl": pair("train/dog")})
    test = image_set(source, {"fox": pair("test/fox"), "owl": pair("test/owl")})
    report = check_images(Benchmark("mine", train, test, test))
    assert not report.ok
    assert kinds(report) == {("class in training and test", True, ("train/dog/a.png", "test/owl/a.png"))}
    assert "'owl'" in report.problems[0].reason


def test_one_training_class_is_an_error(pets):
    source = FolderSource(pets)
    train = image_set(source, {"cat": pair("train/cat")})
    test = image_set(source, {"fox": pair("test/fox")})
    assert kinds(check_images(Benchmark("mine", train, test, test))) == {
        ("too few training classes", True, ("train/cat/a.png",))
    }


@pytest.fixture
def zoo(tmp_path):
    """Two classes of two pictures each in all three parts."""
    seed = iter(range(300, 400))
    for part in ("train", "val", "test"):
        for name in ("cat", "dog"):
            for picture in "ab":
                save(tmp_path / "zoo" / part / name / f"{picture}.png", pixels(next(seed)))
    return tmp_path / "zoo"


def checked_for_classification(folder):
    return check_images(load_for_check(str(folder), task="classification"), workers=2)


def test_classes_in_every_part_are_right_for_classification(zoo):
    (zoo / "test" / "dog" / "a.png").unlink()
    report = checked_for_classification(zoo)
    assert report.ok
    assert report.problems == ()
    assert report.images == 11
    assert {part: counts.images for part, counts in report.counts.items()} == {"train": 4, "validation": 4, "test": 3}
    with pytest.raises(KeMetricError, match="both trained on and tested on"):
        load_for_check(str(zoo))


def test_a_picture_of_the_validation_part_may_be_in_no_other(zoo):
    shutil.copyfile(zoo / "val" / "cat" / "a.png", zoo / "train" / "cat" / "c.png")
    shutil.copyfile(zoo / "val" / "dog" / "a.png", zoo / "test" / "cat" / "c.png")
    (zoo / "val" / "dog" / "bad.png").write_bytes(b"")
    report = checked_for_classification(zoo)
    assert {(kind, is_error) for kind, is_error, _ in kinds(report)} == {
        ("same image in training and test", True),
        ("same image in two classes", True),
        ("unreadable image", True),
    }
    reasons = " ".join(problem.reason for problem in report.problems)
    assert "val/cat/a.png (validation/cat)" in reasons


def test_a_benchmark_is_checked_for_a_task_that_it_has(tmp_path):
    for name, task in {"dogs": None, "cub": "classification", "sop": None}.items():
        with pytest.raises(KeMetricError, match=f"the files of {name} are not there"):
            load_for_check(name, root=str(tmp_path), task=task)
    with pytest.raises(KeMetricError, match="'sop' is no benchmark for classification") as caught:
        load_for_check("sop", task="classification")
    assert caught.value.exit_code == ExitCode.RECIPE


def test_json_has_path_reason_and_fix_of_everything(pets):
    (pets / "train" / "cat" / "bad.jpg").write_bytes(b"")
    shutil.copyfile(pets / "test" / "fox" / "a.png", pets / "test" / "fox" / "c.png")
    document = json.loads(json.dumps(checked(pets).to_json()))
    beside = {"notes", "skipped", "transparent", "turned"}
    assert set(document) == {"benchmark", "ok", "images", "counts", "problems"} | beside
    assert document["ok"] is False
    assert document["counts"]["train"]["images"] == 5
    assert [set(problem) for problem in document["problems"]] == [{"kind", "is_error", "paths", "reason", "fix"}] * 2
    assert [problem["is_error"] for problem in document["problems"]] == [True, False]
    assert document["problems"][1]["paths"] == ["test/fox/a.png", "test/fox/c.png"]


def test_text_counts_what_it_does_not_name(pets):
    for number in range(5):
        (pets / "train" / "cat" / f"bad{number}.jpg").write_bytes(b"")
    text = check_text(checked(pets), most=2)
    assert "ERROR: unreadable image (5)" in text
    assert "bad1.jpg" in text
    assert "bad2.jpg" not in text
    assert "and 3 more" in text
    assert text.count("fix:") == 1


def test_csv_and_class_folders_go_through_the_folder_reader(pets):
    lines = ["path,label,split"]
    for path in sorted(pets.rglob("*.png")):
        place = path.relative_to(pets)
        lines.append(f"{place.as_posix()},{place.parts[1]},{place.parts[0]}")
    (pets / "list.csv").write_text("\n".join(lines))
    report = checked(pets / "list.csv")
    assert report.ok
    assert report.counts["train"].images == 4
    folders = checked(pets / "train")
    assert folders.counts["train"].classes == folders.counts["test"].classes == 1
    assert {problem.kind for problem in folders.problems} == {"too few training classes"}


def test_what_is_checked_must_exist(tmp_path):
    with pytest.raises(
        KeMetricError, match="neither a file or folder nor a benchmark; did you mean 'inshop'"
    ) as caught:
        load_for_check("inshp")
    assert caught.value.exit_code == ExitCode.DATA
    with pytest.raises(KeMetricError, match="cub") as caught:
        load_for_check("cub", root=str(tmp_path))
    assert caught.value.exit_code == ExitCode.DATA


@dataclass
class CountingSource:
    """Counts how many pictures are being read at once."""

    at_once: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, key):
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        image = Image.fromarray(pixels(int(key)))
        with self.lock:
            self.at_once -= 1
        return image


def test_few_pictures_are_alive_at_once_and_progress_counts_them_all():
    source = CountingSource()
    seen = []
    done = look_at(
        {str(number): source for number in range(60)}, workers=3, progress=lambda *count: seen.append(count)
    )
    assert seen == [(number, 60) for number in range(1, 61)]
    assert len(set(done.by_key.values())) == 60
    assert source.most <= 3


def test_look_ahead_is_bounded():
    submitted = []

    class Watched(dict):
        def items(self):
            for item in super().items():
                submitted.append(item)
                yield item

    ahead = []
    sources = Watched(dict.fromkeys(map(str, range(100)), CountingSource()))
    look_at(sources, workers=2, progress=lambda done, _: ahead.append(len(submitted) - done))
    assert len(ahead) == 100
    assert max(ahead) < 2 * LOOK_AHEAD


def test_fingerprints_do_not_depend_on_the_number_of_workers(pets):
    images = load_for_check(str(pets)).train
    sources = dict.fromkeys(images.keys, images.source)
    assert look_at(sources, workers=1) == look_at(sources, workers=5) == look_at(sources)


@pytest.mark.parametrize(
    ("sizes", "warns"), [((30, 10, 12), True), ((29, 10, 12), False), ((9, 1), False), ((10, 3, 0), True)]
)
def test_a_training_part_that_is_mostly_one_class_is_told(sizes, warns):
    names = ("ring", "cross", "dot")[: len(sizes)]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    keys = tuple(f"{names[label]}/{number}.png" for number, label in enumerate(labels.tolist()))
    found = list(unbalanced_classes(ImageSet(keys, labels, names, None)))
    assert bool(found) == warns
    if sizes[0] == 30:
        assert "'ring' has 30 of 52 training images (57.7 %), class 'cross' has 10" in found[0].reason
        assert found[0].paths == ("ring/0.png", "cross/30.png")


def test_balance_is_a_matter_of_classifications(tmp_path):
    for name, count in (("ring", 22), ("dot", 4)):
        for number in range(count):
            save(tmp_path / name / f"{number}.png", pixels(100 * count + number))
    told = {
        task: {problem.kind for problem in check_images(load_for_check(str(tmp_path), task=task)).problems}
        for task in ("classification", "retrieval")
    }
    assert "unbalanced classes" in told["classification"]
    assert "unbalanced classes" not in told["retrieval"]


def drawing(path, name, ink=0, **options):
    """A drawing on transparent ground; ink and hidden colours are one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", (24, 24), 0)
    draw = ImageDraw.Draw(mask)
    {"cross": draw.line, "ring": draw.ellipse, "dot": draw.rectangle}[name]((4, 4, 19, 19), 255)
    picture = Image.new("RGB", (24, 24), (ink, ink, ink))
    picture.putalpha(mask)
    picture.save(path, **options)


def test_transparent_drawings_are_told_and_told_apart(pets):
    names = ("cross", "ring", "dot")
    for folder in ("train/cat", "test/fox"):
        for name in names[:2] if folder == "train/cat" else names[2:]:
            drawing(pets / folder / f"{name}.png", name)
    report = checked(pets)
    assert report.problems == (), "three drawings are no copies of each other"
    wanted = ["train/cat/cross.png", "train/cat/ring.png", "test/fox/dot.png"]
    assert sorted(report.to_json()["transparent"]) == sorted(wanted)
    assert "transparent pictures: 3, seen on white unless data.background says otherwise: " in check_text(report)
    assert "cross.png" in check_text(report)


def test_white_drawings_on_white_are_no_copies_but_nothing_to_see(pets):
    for name in ("cross", "ring"):
        drawing(pets / "train" / "cat" / f"{name}.png", name, ink=255)
    report = checked(pets)
    assert report.ok
    assert kinds(report) == {
        ("nothing to see on the background", False, (f"train/cat/{name}.png",)) for name in ("cross", "ring")
    }
    assert "data.background" in check_text(report)


def test_turned_pictures_are_told_and_their_upright_copies_found(pets):
    picture = Image.fromarray(pixels(60))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(pets / "train" / "cat" / "upright.png")
    picture.transpose(Image.Transpose.ROTATE_90).save(pets / "train" / "cat" / "phone.png", exif=exif)
    report = checked(pets)
    assert report.to_json()["turned"] == {"train/cat/phone.png": 6}
    assert "turned pictures: 1, seen upright as their EXIF orientation says" in check_text(report)
    assert kinds(report) == {("same image twice", False, ("train/cat/phone.png", "train/cat/upright.png"))}


def test_twelve_bits_in_sixteen_are_told(pets):
    grey = np.random.default_rng(0).integers(0, 4096, (12, 10)).astype(np.uint16)
    grey[0, 0] = 4095
    for name, numbers in (("dark.png", grey), ("dark.tif", grey + 1), ("scaled.png", grey * 16)):
        Image.fromarray(numbers).save(pets / "train" / "cat" / name)
    Image.fromarray((grey // 256).astype(np.uint8)).save(pets / "train" / "cat" / "night.png")
    report = checked(pets)
    assert report.ok
    dark = [problem for problem in report.problems if problem.kind == "nearly black"]
    assert [problem.paths for problem in dark] == [("train/cat/dark.png",), ("train/cat/dark.tif",)]
    assert "4,095 of 65,535" in dark[0].reason
    assert "times 16" in dark[0].fix


def test_what_is_skipped_is_named(pets):
    for name in ("train/cat/phone.heic", "loose.jpg", "train/cat/Thumbs.db"):
        (pets / name).write_bytes(b"")
    (pets / "train" / "cat" / "older").mkdir()
    report = checked(pets)
    skipped = {"files": ["loose.jpg", "train/cat/Thumbs.db", "train/cat/phone.heic"], "folders": ["train/cat/older"]}
    assert report.to_json()["skipped"] == skipped
    assert report.notes["files skipped"] == "3"
    assert "files skipped: 3 (loose.jpg, train/cat/Thumbs.db, train/cat/phone.heic)" in check_text(report)
    assert "folders skipped: 1 (train/cat/older)" in check_text(report)
