"""Small copies of the benchmarks, in exactly the layouts in which the real ones lie on disk.

Every fixture is a function that writes the files below a folder and returns what `data.root` should be. Counts must
not be verified (`data.verify_counts: false`). There is enough to train one step: for retrieval always 4 training
classes of 4 pictures and 3 test classes of 4 (In-Shop: 2 queries and 2 in the gallery); for classification 6 classes,
each with 4 training pictures, 2 for validation where the benchmark has that part, and 2 for testing.
"""

from __future__ import annotations

import csv
import gc
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

sys.path.append(str(Path(__file__).parent))  # browser

from browser import chromium

IMAGES_PER_CLASS = 4
CUB_CLASSES = (1, 2, 3, 100, 101, 102, 200)
GREY_CUB_PICTURE = "001.Bird_1/Bird_1_0000_7.jpg"
# Some above 127: as the uint8 of the file they overflow when two are added.
CARS_CLASSES = (1, 2, 97, 98, 99, 150, 196)
CARS_SLASH_CLASS = 150
SOP_CLASSES = (1, 2, 3, 11318, 11319, 11320, 22634)
INSHOP_TRAIN = (1, 2, 3, 4)
INSHOP_LONE = 5
INSHOP_TEST = (6, 7, 8)
CLASSIFICATION_PARTS = {"train": 4, "val": 2, "test": 2}
FLOWERS_CLASSES = (1, 2, 3, 4, 5, 6)
# In an order that no sorting gives: a label is the position in this list. Some have a blank or a slash.
AIRCRAFT_VARIANTS = ("Fokker 100", "707-320", "F-16A/B", "Cessna 172", "DR-400", "A318")
MIT67_CATEGORIES = ("winecellar", "bar", "church_inside", "tv_studio", "children_room", "mall")
# WordNet folder to label: real labels follow the order of the folders, a reader must not rely on it.
DOGS_LABELS = {
    "n02085620-Chihuahua": 3,
    "n02085782-Japanese_spaniel": 1,
    "n02105855-Shetland_sheepdog": 6,
    "n02106662-German_shepherd": 2,
    "n02113712-miniature_poodle": 5,
    "n02116738-African_hunting_dog": 4,
}


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the user's own cache folder, by no process that a test starts either."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KE_METRIC_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.delenv("KE_METRIC_CACHE_GB", raising=False)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the garbage collector away from what is loaded to collect the tests: a million objects that stay.

    Going through all of them again and again is a third of the time that collecting takes, and goes on in the tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def write_picture(path: Path, *, mode: str = "RGB", size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> None:
    """Write random pixels that depend on the file's name only; `kind` is the content, whatever the extension says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(mode) if mode in ("RGB", "RGBA") else 1
    pixels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 256, (size[1], size[0], channels))
    Image.fromarray(pixels.astype(np.uint8).squeeze(), "L" if channels == 1 else mode).save(path, kind)


def write_lines(path: Path, lines: Sequence[str], line_end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + line_end for line in lines).encode())


def write_cub(root: Path) -> Path:
    """CUB-200-2011: image ids run against the order of the paths, one picture is grey."""
    top = root / "CUB_200_2011"
    rows = [
        (class_id, f"{class_id:03d}.Bird_{class_id}/Bird_{class_id}_{number:04d}_{class_id * 7 + number}.jpg")
        for class_id in reversed(CUB_CLASSES)
        for number in range(IMAGES_PER_CLASS)
    ]
    for _, path in rows:
        write_picture(top / "images" / path, mode="L" if path == GREY_CUB_PICTURE else "RGB")
    numbered = list(enumerate(rows, start=1))
    write_lines(top / "images.txt", [f"{image_id} {path}" for image_id, (_, path) in numbered])
    write_lines(top / "image_class_labels.txt", [f"{image_id} {class_id}" for image_id, (class_id, _) in numbered])
    write_lines(top / "train_test_split.txt", [f"{image_id} {image_id % 2}" for image_id, _ in numbered])
    write_lines(top / "classes.txt", [f"{class_id} {class_id:03d}.Bird_{class_id}" for class_id in CUB_CLASSES])
    write_lines(top / "images" / "001.Bird_1" / "._Bird_1_0000_7.jpg", ["left over by macOS"])
    return top


def write_cars(root: Path, layout: str, *, nested: bool = False) -> Path:
    """Stanford Cars in layout A, B or C; `nested` puts the picture folders into a folder of their own name."""
    writer = {"A": _write_cars_combined, "B": _write_cars_parted, "C": _write_cars_class_folders}[layout]
    writer(root, nested)
    return root


def cars_name(class_id: int) -> str:
    return "Ram C/V Cargo Van Minivan 2012" if class_id == CARS_SLASH_CLASS else f"Make Model {class_id} 2012"


def _cars_records() -> list[tuple[int, int]]:
    """(class, official test flag) of every picture; the flag is mixed in every class."""
    return [(class_id, number % 2) for class_id in CARS_CLASSES for number in range(IMAGES_PER_CLASS)]


def _picture_folder(root: Path, name: str, nested: bool) -> Path:
    return root / name / name if nested else root / name


def _struct_array(records: Sequence[dict[str, str | int]]) -> np.ndarray:
    fields = list(records[0])
    array = np.empty((1, len(records)), dtype=[(name, object) for name in fields])
    for position, record in enumerate(records):
        for name, value in record.items():
            kind = np.uint8 if name == "class" else np.uint16
            array[0, position][name] = value if isinstance(value, str) else np.array([[value]], dtype=kind)
    return array


def _cell_array(texts: Sequence[str]) -> np.ndarray:
    array = np.empty((1, len(texts)), dtype=object)
    array[0, :] = texts
    return array


def _box() -> dict[str, str | int]:
    return {"bbox_x1": 1, "bbox_y1": 2, "bbox_x2": 300, "bbox_y2": 20}


def _all_car_names() -> list[str]:
    return [cars_name(class_id) for class_id in range(1, 197)]


def _write_cars_combined(root: Path, nested: bool) -> None:
    records = []
    for number, (class_id, flag) in enumerate(_cars_records(), start=1):
        path = f"car_ims/{number:06d}.jpg"
        records.append({"relative_im_path": path, **_box(), "class": class_id, "test": flag})
        kind = {"mode": "RGBA", "kind": "PNG"} if number == 1 else {}
        write_picture(_picture_folder(root, "car_ims", nested) / f"{number:06d}.jpg", **kind)
    savemat(
        root / "cars_annos.mat",
        {"annotations": _struct_array(records), "class_names": _cell_array(_all_car_names())},
    )


def _write_cars_parted(root: Path, nested: bool) -> None:
    """00001.jpg is of class 1 in cars_train and of class 196 in cars_test."""
    devkit = root / "devkit"
    devkit.mkdir(parents=True)
    files = {"train": devkit / "cars_train_annos.mat", "test": root / "cars_test_annos_withlabels.mat"}
    for flag, part in enumerate(files):
        classes = [class_id for class_id, of_test in _cars_records() if of_test == flag]
        records = []
        for number, class_id in enumerate(reversed(classes) if flag else classes, start=1):
            name = f"{number:05d}.jpg"
            records.append({**_box(), "class": class_id, "fname": name})
            write_picture(_picture_folder(root, f"cars_{part}", nested) / name)
        savemat(files[part], {"annotations": _struct_array(records)})
    for record in records:
        del record["class"]
    savemat(devkit / "cars_test_annos.mat", {"annotations": _struct_array(records)})
    savemat(devkit / "cars_meta.mat", {"class_names": _cell_array(_all_car_names())})


def _write_cars_class_folders(root: Path, nested: bool) -> None:
    rows: dict[str, list[list[str | int]]] = {"train": [], "test": []}
    for class_id, flag in _cars_records():
        part = "test" if flag else "train"
        name = f"{len(rows[part]) + 1:05d}.jpg"
        rows[part].append([name, 1, 2, 300, 20, class_id])
        folder = cars_name(class_id).replace("/", "-")
        write_picture(_picture_folder(root, "car_data", nested) / part / folder / name)
    for part, part_rows in rows.items():
        with (root / f"anno_{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(part_rows)
    write_lines(root / "names.csv", _all_car_names())


def write_sop(root: Path) -> Path:
    """Stanford Online Products: one GIF is called .JPG; the test list has CRLF line ends."""
    top = root / "Stanford_Online_Products"
    header = "image_id class_id super_class_id path"
    lines: dict[str, list[str]] = {"train": [header], "test": [header]}
    image_id = 0
    for position, class_id in enumerate(SOP_CLASSES):
        category, super_class = (("bicycle_final", 1), ("chair_final", 3))[position % 2]
        for number in range(IMAGES_PER_CLASS):
            image_id += 1
            path = f"{category}/1110{class_id:08d}_{number}.JPG"
            write_picture(top / path, **({"mode": "P", "kind": "GIF"} if image_id == 1 else {}))
            lines["train" if class_id <= 11318 else "test"].append(f"{image_id} {class_id} {super_class} {path}")
    write_lines(top / "Ebay_train.txt", lines["train"])
    write_lines(top / "Ebay_test.txt", lines["test"], line_end="\r\n")
    write_lines(top / "Ebay_info.txt", lines["train"] + lines["test"][1:])
    return top


def write_inshop(root: Path, prefix: str = "Img/img") -> Path:
    """In-Shop: columns padded with runs of spaces; item 5 has a single (training) picture."""
    rows = []
    for item_id in (*INSHOP_TRAIN, INSHOP_LONE, *INSHOP_TEST):
        for number in range(1 if item_id == INSHOP_LONE else IMAGES_PER_CLASS):
            status = "train" if item_id <= INSHOP_LONE else ("query", "gallery")[number % 2]
            path = f"WOMEN/Dresses/id_{item_id:08d}/{number:02d}_1_front.jpg"
            write_picture(root / prefix / path)
            rows.append(f"img/{path:<70} id_{item_id:08d}   {status}")
    header = "image_name    item_id    evaluation_status"
    write_lines(root / "Eval" / "list_eval_partition.txt", [str(len(rows)), header, *rows])
    return root


def write_flowers(root: Path) -> Path:
    """Flowers102: image numbers of a part in no order; one picture is a PNG with transparency, one is in no part."""
    numbers: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    labels: list[int] = []
    for part, count in CLASSIFICATION_PARTS.items():
        for class_id in reversed(FLOWERS_CLASSES):
            for _ in range(count):
                labels.append(class_id)
                numbers[part].insert(len(labels) % 3, len(labels))
    labels.append(FLOWERS_CLASSES[0])
    for number in range(1, len(labels) + 1):
        kind = {"mode": "RGBA", "kind": "PNG"} if number == 2 else {}
        write_picture(root / "jpg" / f"image_{number:05d}.jpg", **kind)
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    keys = {"train": "trnid", "val": "valid", "test": "tstid"}
    savemat(root / "setid.mat", {keys[part]: np.array([ids], dtype=np.uint16) for part, ids in numbers.items()})
    return root


def write_aircraft(root: Path) -> Path:
    """FGVC-Aircraft: ids with leading zeros; one list with CRLF and one without a last line end; one GIF."""
    data = root / "fgvc-aircraft-2013b" / "data"
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    number = 0
    for variant in sorted(AIRCRAFT_VARIANTS):
        for part, count in CLASSIFICATION_PARTS.items():
            for _ in range(count):
                number += 1
                image_id = f"{34309 + 7919 * (number % 13) + number:07d}"
                lines[part].insert(number % 4, f"{image_id} {variant}")
                kind = {"mode": "P", "kind": "GIF"} if number == 1 else {}
                write_picture(data / "images" / f"{image_id}.jpg", size=(40, 50), **kind)
    write_picture(data / "images" / "0000001.jpg")
    write_lines(data / "variants.txt", AIRCRAFT_VARIANTS)
    write_lines(data / "families.txt", [variant[:5].strip() for variant in AIRCRAFT_VARIANTS])
    line_ends = {"train": "\n", "val": "\r\n", "test": "\n"}
    for part, rows in lines.items():
        write_lines(data / f"images_variant_{part}.txt", rows, line_ends[part])
    drop_last_line_end(data / "images_variant_test.txt")
    write_lines(data / "images_variant_trainval.txt", sorted(lines["train"] + lines["val"]))
    return root / "fgvc-aircraft-2013b"


def write_mit67(root: Path) -> Path:
    """MIT Indoor-67: lists without a last line end, one with CRLF; a blank in a path, a grey picture and a GIF."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for category in MIT67_CATEGORIES:
        odd = {"bar": {"mode": "L"}, "tv_studio": {"mode": "P", "kind": "GIF"}}.get(category, {})
        for part, paths in lines.items():
            for number in range(CLASSIFICATION_PARTS[part]):
                blank = " " if (category, part, number) == ("mall", "train", 0) else "_"
                paths.append(f"{category}/{part}{blank}{category}_{number}_altavista.jpg")
                write_picture(root / "Images" / paths[-1], **(odd if (part, number) == ("train", 0) else {}))
    write_picture(root / "Images" / "bar" / "in_no_list.jpg")
    for part, line_end in (("train", "\n"), ("test", "\r\n")):
        write_lines(root / f"{part.capitalize()}Images.txt", lines[part], line_end)
        drop_last_line_end(root / f"{part.capitalize()}Images.txt")
    return root


def write_dogs(root: Path) -> Path:
    """Stanford Dogs: labels as fractions in one list and as bytes in the other; one PNG with transparency."""
    for part, kind in (("train", np.float64), ("test", np.uint8)):
        paths, labels = [], []
        for position, (folder, label) in enumerate(DOGS_LABELS.items()):
            for number in range(CLASSIFICATION_PARTS[part]):
                paths.append(f"{folder}/{folder.partition('-')[0]}_{10 * number + (part == 'test')}.jpg")
                labels.append(label)
                odd = {"mode": "RGBA", "kind": "PNG"} if (part, position, number) == ("train", 2, 0) else {}
                write_picture(root / "Images" / paths[-1], **odd)
        content = {
            "file_list": _cell_array(paths).T,
            "annotation_list": _cell_array([path.removesuffix(".jpg") for path in paths]).T,
            "labels": np.array([labels], dtype=kind).T,
        }
        savemat(root / f"{part}_list.mat", content)
    write_picture(root / "Images" / "n02085620-Chihuahua" / "n02085620_99.jpg")
    return root


def write_solar(root: Path) -> Path:
    """Solar cells, as their wheel unpacks: grey pictures, four of every class, the classes in turn."""
    data = root / "elpv_dataset" / "data"
    probabilities = ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")
    classes = [(module_type, probability) for module_type in ("mono", "poly") for probability in probabilities]
    lines = []
    for number in range(4 * len(classes)):
        module_type, probability = classes[number % len(classes)]
        path = f"images/cell{number + 1:04d}.png"
        write_picture(data / path, mode="L", size=(30, 30), kind="PNG")
        lines.append(f"{path}  {probability:<20}{module_type}")
    write_lines(data / "labels.csv", lines)
    write_lines(root / "elpv_dataset" / "__init__.py", [])
    write_lines(root / "elpv_dataset-1.0.0.post1.dist-info" / "licenses" / "LICENSE.md", ["the licence"])
    return root


def drop_last_line_end(path: Path) -> None:
    path.write_bytes(path.read_bytes().rstrip(b"\r\n"))


def write_class_folders(
    root: Path, classes: int | Sequence[str] = 7, images_per_class: int = IMAGES_PER_CLASS
) -> Path:
    """A folder per class, by number (`class_0`, ...) or by name, with one picture that is smaller than any crop."""
    names = [f"class_{number}" for number in range(classes)] if isinstance(classes, int) else classes
    for name in names:
        for number in range(images_per_class):
            size = (8, 6) if (name, number) == (names[0], 0) else (40, 30)
            write_picture(root / name / f"{name}_{number}.jpg", size=size)
    return root


@pytest.fixture
def make_cub() -> Callable[[Path], Path]:
    """Write CUB-200-2011 below a folder: `make_cub(root)`."""
    return write_cub


@pytest.fixture
def make_cars() -> Callable[..., Path]:
    """Write Stanford Cars: `make_cars(root, layout, nested=False)`, layout "A", "B" or "C"."""
    return write_cars


@pytest.fixture
def make_sop() -> Callable[[Path], Path]:
    """Write Stanford Online Products: `make_sop(root)`."""
    return write_sop


@pytest.fixture
def make_inshop() -> Callable[..., Path]:
    """Write In-Shop: `make_inshop(root, prefix="Img/img")`; the prefix is where the pictures lie."""
    return write_inshop


@pytest.fixture
def make_flowers() -> Callable[[Path], Path]:
    """Write Flowers102: `make_flowers(root)`."""
    return write_flowers


@pytest.fixture
def make_aircraft() -> Callable[[Path], Path]:
    """Write FGVC-Aircraft below a folder: `make_aircraft(root)`."""
    return write_aircraft


@pytest.fixture
def make_mit67() -> Callable[[Path], Path]:
    """Write MIT Indoor-67: `make_mit67(root)`."""
    return write_mit67


@pytest.fixture
def make_solar() -> Callable[[Path], Path]:
    """Write the solar cells: `make_solar(root)`."""
    return write_solar


@pytest.fixture
def make_dogs() -> Callable[[Path], Path]:
    """Write Stanford Dogs: `make_dogs(root)`."""
    return write_dogs


@pytest.fixture
def make_class_folders() -> Callable[..., Path]:
    """Write a folder per class: `make_class_folders(root, classes=7, images_per_class=4)`."""
    return write_class_folders


@pytest.fixture
def make_picture() -> Callable[..., None]:
    """Write one picture: `make_picture(path, mode="RGB", size=(40, 30), kind="JPEG")`."""
    return write_picture


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Chromium without a window."""
    with chromium() as started:
        yield started


@pytest.fixture
def one_faiss_thread() -> Iterator[None]:
    """Threads of FAISS that wait for each other take long on a busy machine."""
    from ke_metric.evaluation.backend import load_faiss

    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)
