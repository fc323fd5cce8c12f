import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image

from ke_metric.datasets import prepare as source_files
from ke_metric.datasets import published_files
from ke_metric.datasets.prepare import LAYOUTS, prepare, prepare_text
from ke_metric.datasets.published_files import DISTRIBUTIONS
from ke_metric.errors import ExitCode, KeMetricError


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def cub_files(folder="CUB_200_2011"):
    rows = [(class_id, number) for class_id in (1, 2, 101, 102) for number in range(2)]
    paths = [f"{class_id:03}.Bird_{class_id}/Bird_{class_id}_{number}.jpg" for class_id, number in rows]
    lists = {
        "images.txt": "".join(f"{index} {path}\n" for index, path in enumerate(paths, 1)),
        "image_class_labels.txt": "".join(f"{index} {row[0]}\n" for index, row in enumerate(rows, 1)),
        "train_test_split.txt": "".join(f"{index} {index % 2}\n" for index in range(1, len(rows) + 1)),
        "classes.txt": "".join(f"{class_id} {class_id:03}.Bird_{class_id}\n" for class_id in (1, 2, 101, 102)),
    }
    files = {f"{folder}/{name}": text.encode() for name, text in lists.items()}
    return files | {f"{folder}/images/{path}": picture(index) for index, path in enumerate(paths)}


def sop_files():
    header = "image_id class_id super_class_id path\n"
    train = "".join(f"{n} {(n + 1) // 2} 1 bicycle_final/{n}_0.JPG\n" for n in range(1, 5))
    test = "".join(f"{n} {(n + 1) // 2} 1 bicycle_final/{n}_0.JPG\n" for n in range(5, 9))
    lists = {"Ebay_train.txt": (header + train).encode(), "Ebay_test.txt": (header + test).encode()}
    pictures = {f"bicycle_final/{n}_0.JPG": picture(n) for n in range(1, 9)}
    return {f"Stanford_Online_Products/{name}": content for name, content in (lists | pictures).items()}


def inshop_list():
    rows = [(1, 1, "train"), (1, 2, "train"), (2, 1, "train"), (3, 1, "query"), (3, 2, "gallery"), (4, 1, "query"),
            (4, 2, "gallery")]  # fmt: skip
    lines = [f"{inshop_path(item, n)}      id_{item:08}   {part}\n" for item, n, part in rows]
    text = f"{len(rows)}\nimage_name  item_id  evaluation_status\n" + "".join(lines)
    return text.encode(), {inshop_path(item, n): picture(10 * item + n) for item, n, _ in rows}


def inshop_path(item, number):
    return f"img/WOMEN/Dresses/id_{item:08}/0{number}_1_front.jpg"


def cars_records(names, classes, **fields):
    records = np.zeros((1, len(names)), dtype=[(key, object) for key in (*fields, "class")])
    for index, (name, class_id) in enumerate(zip(names, classes, strict=True)):
        values = {key: name if key in {"fname", "relative_im_path"} else np.uint8(0) for key in fields}
        records[0, index] = (*values.values(), np.array([[class_id]], dtype=np.uint8))
    return records


def mat(**content):
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, content)
    return file.getvalue()


def class_names():
    names = np.empty((1, 196), dtype=object)
    names[0, :] = [f"Car {number}" for number in range(1, 197)]
    return names


def tgz(path, files, *, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def on_disk(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def cars_a(folder):
    paths = [f"car_ims/{number:06}.jpg" for number in range(1, 9)]
    records = cars_records(paths, [97, 97, 98, 98, 99, 99, 196, 196], relative_im_path=0, bbox_x1=0)
    tgz(folder / "car_ims.tgz", {path: picture(index) for index, path in enumerate(paths)})
    (folder / "cars_annos.mat").write_bytes(mat(annotations=records, class_names=class_names()))


def cars_b(folder):
    names = [f"{number:05}.jpg" for number in range(1, 5)]
    train = mat(annotations=cars_records(names, [97, 98, 99, 196], bbox_x1=0, fname=0))
    test = mat(annotations=cars_records(names, [98, 97, 196, 99], bbox_x1=0, fname=0))
    for offset, part in enumerate(("cars_train", "cars_test")):
        tgz(folder / f"{part}.tgz", {f"{part}/{name}": picture(10 * offset + n) for n, name in enumerate(names)})
    meta = mat(class_names=class_names())
    tgz(folder / "car_devkit.tgz", {"devkit/cars_meta.mat": meta, "devkit/cars_train_annos.mat": train})
    (folder / "cars_test_annos_withlabels.mat").write_bytes(test)


def pack_classification(name, root, folder):
    """Pack what a fixture wrote below `root` into the files in which the benchmark is published."""
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    pictures = {path: content for path, content in files.items() if path.endswith(".jpg")}
    lists = {path: content for path, content in files.items() if path not in pictures}
    if name == "aircraft":
        tgz(folder / "fgvc-aircraft-2013b.tar.gz", files)
    elif name == "dogs":
        tgz(folder / "images.tar", pictures, mode="w")
        tgz(folder / "lists.tar", lists, mode="w")
    else:
        on_disk(folder, lists)
        packed, mode = {"flowers": ("102flowers.tgz", "w:gz"), "mit67": ("indoorCVPR_09.tar", "w")}[name]
        tgz(folder / packed, pictures, mode=mode)


def publish(monkeypatch, benchmark, folder, *, md5_only=False):
    """Make the files that lie in `folder` the published ones of their names."""

    def published(file):
        path = folder / file.name
        if not path.is_file():
            return file
        content = path.read_bytes()
        sha256 = None if md5_only else hashlib.sha256(content).hexdigest()
        return replace(file, size=len(content), md5=hashlib.md5(content).hexdigest(), sha256=sha256)

    ways = tuple(
        replace(each, files=tuple(published(file) for file in each.files))
        for each in source_files.DISTRIBUTIONS[benchmark]
    )
    table = MappingProxyType({**source_files.DISTRIBUTIONS, benchmark: ways})
    for module in (published_files, source_files):
        monkeypatch.setattr(module, "DISTRIBUTIONS", table)


@pytest.fixture
def downloads(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "target"


@pytest.fixture
def cub(downloads, monkeypatch):
    archive = tgz(downloads / "CUB_200_2011.tgz", cub_files() | {"attributes.txt": b"1 a\n"})
    publish(monkeypatch, "cub", downloads)
    return archive


def refused(name, source, target, code=ExitCode.DATA, **options):
    parents = list(target.parent.parent.rglob("*"))
    with pytest.raises(KeMetricError) as caught:
        prepare(name, source, target=target, **{"verify_counts": False, **options})
    assert caught.value.exit_code == code
    assert list(target.parent.parent.rglob("*")) == parents
    return str(caught.value)


def test_the_table_holds_the_published_checksums():
    found = {file.name: (file.size, file.md5, file.sha256) for ways in DISTRIBUTIONS.values() for way in ways
             for file in way.files}  # fmt: skip
    assert found == {
        "CUB_200_2011.tgz": (1150585339, "97eceeb196236b17998738112f37df78",
                             "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081"),
        "car_ims.tgz": (None, "d5c8f0aa497503f355e17dc7886c3f14", None),
        "cars_annos.mat": (None, "b407c6086d669747186bd1d764ff9dbc", None),
        "elpv_dataset-1.0.0.post1-py3-none-any.whl": (90801454, "59ce39e42ef4ffb70979f462ec8e529e",
                           "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c"),
        "cars_train.tgz": (979269282, "065e5b463ae28d29e77c1b4b166cfe61",
                           "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288"),
        "cars_test.tgz": (977350468, "4ce7ebf6a94d07f1952d94dd34c4d501",
                          "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243"),
        "car_devkit.tgz": (330960, "c3b158d763b6e2245038c8ad08e45376",
                           "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd"),
        "cars_test_annos_withlabels.mat": (185758, "b0a2b23655a3edd16d84508592a98d10",
                                           "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05"),
        "Stanford_Online_Products.zip": (3083860082, "7f73d41a2f44250d4779881525aea32e",
                                         "b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48"),
        "img.zip": (None, None, None),
        "list_eval_partition.txt": (None, None, None),
        "102flowers.tgz": (344862509, "52808999861908f626f3c1f4e79d11fa",
                           "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246"),
        "imagelabels.mat": (502, "e0620be6f572b9609742df49c70aed4d",
                            "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d"),
        "setid.mat": (14989, "a5357ecc9cb78c4bef273ce3793fc85c",
                      "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd"),
        "fgvc-aircraft-2013b.tar.gz": (None, "d4acdd33327262359767eeaa97a4f732", None),
        "indoorCVPR_09.tar": (None, None, None),
        "TrainImages.txt": (None, None, None),
        "TestImages.txt": (None, None, None),
        "images.tar": (793579520, None, "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58"),
        "lists.tar": (481280, None, "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c"),
    }  # fmt: skip
    assert set(LAYOUTS) == set(DISTRIBUTIONS)


@pytest.mark.parametrize("as_folder", [False, True])
def test_cub_archive(cub, target, as_folder):
    told = []
    report = prepare(
        "cub", cub.parent if as_folder else cub, target=target, verify_counts=False, progress=told.append
    )
    assert report.root == target
    assert (target / "CUB_200_2011" / "images" / "001.Bird_1" / "Bird_1_0.jpg").read_bytes() == picture(0)
    assert [(file.name, file.action, file.checksum) for file in report.taken] == [
        ("CUB_200_2011.tgz", "unpacked", "sha256 as published")
    ]
    assert report.counts["train"].to_json() == {"images": 4, "classes": 2, "smallest_class": 2, "largest_class": 2}
    assert any("unpacking CUB_200_2011.tgz" in line for line in told)
    assert cub.exists()
    text = prepare_text(report)
    assert f"data.root = {target}" in text
    assert "sha256 as published" in text
    document = json.loads(json.dumps(report.to_json()))
    assert document["root"] == str(target)
    assert document["counts"]["test"]["images"] == 4
    assert document["taken"][0]["size"] == cub.stat().st_size


def test_unpacked_folder_is_used_where_it_is(tmp_path, target):
    folder = on_disk(tmp_path / "mine", cub_files())
    for source in (folder, folder / "CUB_200_2011"):
        report = prepare("cub", source, target=target, verify_counts=False)
        assert (report.root, report.taken) == (source, ())
        assert "nothing was copied" in prepare_text(report)
    assert not target.exists()


def test_unpacked_folder_beside_its_archive_is_used(cub, target):
    on_disk(cub.parent, cub_files())
    assert prepare("cub", cub.parent, target=target, verify_counts=False).root == cub.parent


def test_wrong_counts_leave_nothing_and_name_the_target(cub, target):
    message = refused("cub", cub, target, verify_counts=True)
    assert "not the published benchmark" in message
    assert "5,864" in message
    assert "nothing was kept" in message
    assert ".writing-" not in message
    assert str(target / "CUB_200_2011" / "images.txt") in message


def test_sop_archive(downloads, target, monkeypatch):
    archive = zipped(downloads / "Stanford_Online_Products.zip", sop_files())
    publish(monkeypatch, "sop", downloads)
    report = prepare("sop", archive, target=target, verify_counts=False)
    assert {part: counts.images for part, counts in report.counts.items()} == {"train": 4, "test": 4}


@pytest.mark.parametrize("name", ["flowers", "aircraft", "mit67", "dogs"])
def test_classification_archives(request, tmp_path, downloads, target, monkeypatch, name):
    request.getfixturevalue(f"make_{name}")(tmp_path / "made")
    pack_classification(name, tmp_path / "made", downloads)
    if name != "mit67":
        publish(monkeypatch, name, downloads)
    report = prepare(name, downloads, target=target, verify_counts=False)
    expected = {"train": 24, "validation": 12, "test": 12}
    parts = expected if name in {"flowers", "aircraft"} else {"train": 24, "test": 12}
    assert {part: counts.images for part, counts in report.counts.items()} == parts
    checksum = "no published checksum" if name == "mit67" else "sha256 as published"
    assert {(file.name, file.checksum) for file in report.taken} == {
        (path.name, checksum) for path in downloads.iterdir()
    }
    assert {file.action for file in report.taken} == (
        {"unpacked"} if name in {"aircraft", "dogs"} else {"unpacked", "copied"}
    )
    assert not list(target.rglob("*.t*r*"))
    again = prepare(name, target, target=target / "elsewhere", verify_counts=False)
    assert (again.root, again.taken, again.counts) == (target, (), report.counts)


def test_a_part_of_the_files_of_a_classification_benchmark_is_named(make_dogs, tmp_path, downloads, target):
    pack_classification("dogs", make_dogs(tmp_path / "made"), downloads)
    (downloads / "lists.tar").unlink()
    assert "Missing for Stanford Dogs: lists.tar" in refused("dogs", downloads, target)


@pytest.mark.parametrize("places", [("Img", "Eval"), (".", ".")])
def test_inshop_files_have_no_published_checksum(downloads, target, places):
    partition, pictures = inshop_list()
    for place in places:
        (downloads / place).mkdir(exist_ok=True)
    zipped(downloads / places[0] / "img.zip", pictures)
    (downloads / places[1] / "list_eval_partition.txt").write_bytes(partition)
    report = prepare("inshop", downloads, target=target, verify_counts=False)
    assert {part: counts.images for part, counts in report.counts.items()} == {"train": 3, "query": 2, "gallery": 2}
    assert {(file.action, file.checksum) for file in report.taken} == {
        ("unpacked", "no published checksum"),
        ("copied", "no published checksum"),
    }


def test_inshop_outer_archive_says_what_to_do(downloads, target):
    partition, pictures = inshop_list()
    inner = zipped(downloads / "img.zip", pictures).read_bytes()
    outer = zipped(downloads / "drive.zip", {"Img/img.zip": inner, "Eval/list_eval_partition.txt": partition})
    message = refused("inshop", outer, target)
    assert "It holds archives: img.zip. Unpack the outer one" in message


@pytest.mark.parametrize(("build", "count"), [(cars_a, 2), (cars_b, 4)])
def test_cars_layouts(downloads, target, monkeypatch, build, count):
    build(downloads)
    publish(monkeypatch, "cars", downloads, md5_only=build is cars_a)
    report = prepare("cars", downloads, target=target, verify_counts=False)
    assert {part: (c.images, c.classes) for part, c in report.counts.items()} == {"train": (4, 2), "test": (4, 2)}
    assert len(report.taken) == count
    assert {file.checksum for file in report.taken} == {f"{'md5' if count == 2 else 'sha256'} as published"}


def test_cars_class_folders_in_an_archive_nobody_published(downloads, target):
    names = "".join(f"Car {number}\n" for number in range(1, 197)).encode()
    files = {"names.csv": names}
    for part in ("train", "test"):
        files[f"anno_{part}.csv"] = "".join(f"{n}.jpg,0,0,1,1,{n}\n" for n in (97, 98, 99, 196)).encode()
        files |= {f"car_data/car_data/{part}/Car {n}/{n}.jpg": picture(n) for n in (97, 98, 99, 196)}
    report = prepare("cars", zipped(downloads / "archive.zip", files), target=target, verify_counts=False)
    assert report.taken[0].checksum == "not a published file, no checksum to compare with"
    assert report.counts["train"].classes == 2


def test_incomplete_layout_names_found_and_missing(downloads, target, monkeypatch):
    cars_b(downloads)
    publish(monkeypatch, "cars", downloads)
    (downloads / "cars_test.tgz").unlink()
    (downloads / "car_devkit.tgz").unlink()
    message = refused("cars", downloads, target)
    assert "Found: cars_test_annos_withlabels.mat, cars_train.tgz." in message
    assert "Missing for layout B: cars_test.tgz, car_devkit.tgz." in message
    assert "layout A" not in message


def test_single_archive_of_several_is_incomplete(downloads, target, monkeypatch):
    cars_b(downloads)
    publish(monkeypatch, "cars", downloads)
    message = refused("cars", downloads / "cars_train.tgz", target)
    assert "Missing for layout B: cars_test.tgz, car_devkit.tgz, cars_test_annos_withlabels.mat." in message


def test_mixed_layouts_are_told_apart(downloads, target, monkeypatch):
    cars_a(downloads)
    cars_b(downloads)
    publish(monkeypatch, "cars", downloads)
    for name in ("car_ims.tgz", "cars_train.tgz"):
        (downloads / name).unlink()
    message = refused("cars", downloads, target)
    assert "Missing for layout A: car_ims.tgz." in message
    assert "Missing for layout B: cars_train.tgz." in message
    assert "do not go together" in message


def test_renamed_file_is_known_by_its_content(cub, target):
    renamed = cub.rename(cub.with_name("download (1).tgz"))
    report = prepare("cub", renamed, target=target, verify_counts=False)
    assert [(file.name, file.checksum) for file in report.taken] == [("download (1).tgz", "sha256 as published")]


def test_other_archives_are_not_read_when_the_names_are_enough(cub, target, monkeypatch):
    zipped(cub.parent / "holiday.zip", {"film": b"x"})
    real = published_files.file_checksum

    def file_checksum(path, algorithm):
        assert path.name != "holiday.zip", "a checksum of some other file"
        return real(path, algorithm)

    monkeypatch.setattr(published_files, "file_checksum", file_checksum)
    report = prepare("cub", cub.parent, target=target, verify_counts=False)
    assert [file.name for file in report.taken] == ["CUB_200_2011.tgz"]


def test_wrong_checksum_names_the_file_it_really_is(downloads, target, monkeypatch):
    cars_a(downloads)
    cars_b(downloads)
    publish(monkeypatch, "cars", downloads)
    shutil.copyfile(downloads / "cars_train.tgz", downloads / "car_ims.tgz")
    message = refused("cars", downloads, target)
    assert "It is cars_train.tgz (cars, layout B) under the name of car_ims.tgz (cars, layout A)" in message


def test_incomplete_download_has_both_sizes(cub, target):
    whole = cub.read_bytes()
    cub.write_bytes(whole[:-10])
    message = refused("cub", cub, target)
    assert "download is incomplete" in message
    assert f"{len(whole) - 10:,} of {len(whole):,} bytes" in message
    assert "sha256" in message


def test_damaged_download_is_not_called_incomplete(cub, target):
    content = bytearray(cub.read_bytes())
    content[100] ^= 1
    cub.write_bytes(content)
    message = refused("cub", cub, target)
    assert "damaged" in message
    assert "The download is incomplete" not in message


def test_archive_of_another_benchmark_is_named(cub, target):
    message = refused("sop", cub, target)
    assert "CUB_200_2011.tgz (cub, CUB-200-2011)" in message


def test_archive_with_other_content_leaves_nothing(downloads, target):
    archive = zipped(downloads / "birds.zip", {"readme.txt": b"nothing here"})
    message = refused("cub", archive, target)
    assert "not usable as cub" in message
    assert "images.txt" in message


def test_hostile_archive_leaves_nothing(downloads, target):
    assert "outside" in refused("cub", zipped(downloads / "a.zip", {"../evil": b"x"}), target)


def test_several_unknown_archives_are_listed(downloads, target):
    for name in ("one.zip", "two.zip"):
        zipped(downloads / name, {name: b"x"})
    message = refused("cub", downloads, target)
    assert "one.zip, two.zip" in message
    assert "Expected CUB_200_2011.tgz" in message


def test_same_file_twice_is_refused(cub, target):
    (cub.parent / "copy").mkdir()
    shutil.copyfile(cub, cub.parent / "copy" / cub.name)
    assert "more than once" in refused("cub", cub.parent, target)


def test_folder_without_archives_is_left_to_the_reader(downloads, target):
    on_disk(downloads, {"CUB_200_2011/images.txt": b"1 a.jpg\n"})
    message = refused("cub", downloads, target)
    assert "image_class_labels.txt" in message


def test_file_that_is_no_archive(downloads, target):
    (downloads / "page.html").write_text("<html>404</html>")
    assert "not an archive" in refused("cub", downloads / "page.html", target)


def test_missing_source_and_unknown_benchmark(downloads, target):
    assert "no such file" in refused("cub", downloads / "missing.tgz", target)
    assert "did you mean 'inshop'" in refused("in-shop", downloads, target)
    assert "cub, cars, sop, inshop, flowers, aircraft, mit67, dogs" in refused("glyphs", downloads, target)


def test_occupied_target_is_refused_before_anything_is_read(cub, target):
    on_disk(target, {"mine.txt": b"mine"})
    told = []
    assert "not an empty folder" in refused("cub", cub, target, progress=told.append)
    assert told == []
    assert (target / "mine.txt").read_bytes() == b"mine"


def test_empty_target_is_used(cub, target):
    target.mkdir(parents=True)
    assert prepare("cub", cub, target=target, verify_counts=False).root == target


def test_full_disk_is_an_environment_error(cub, target, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))
    assert "are free" in refused("cub", cub, target, ExitCode.ENVIRONMENT)
