"""Records of MATLAB files: one or many, small numbers, wrong files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from ke_metric.benchmarks.layout import read_flags, read_labels, read_strings, read_whole_numbers
from ke_metric.errors import ExitCode, KeMetricError


def struct_array(rows):
    array = np.empty((1, len(rows)), dtype=[("class", object), ("fname", object)])
    for position, (name, class_id) in enumerate(rows):
        array[0, position] = (np.array([[class_id]], dtype=np.uint8), name)
    return array


def cell_array(texts):
    array = np.empty((1, len(texts)), dtype=object)
    array[0, :] = texts
    return array


def refused(function, *arguments, **named):
    with pytest.raises(KeMetricError) as raised:
        function(*arguments, **named)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


names = st.from_regex(r"[a-z0-9]{1,8}\.jpg", fullmatch=True)


@given(st.lists(st.tuples(names, st.integers(1, 255)), min_size=1, max_size=5))
def test_records_are_read_back_and_classes_do_not_overflow(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("mat") / "annos.mat"
    savemat(path, {"annotations": struct_array(rows)})
    found = read_labels(path, path_field="fname")
    assert found == rows
    assert all(type(class_id) is int and class_id + class_id == 2 * class_id for _, class_id in found)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=6))
def test_flags_are_read_back_in_order(tmp_path_factory, flags):
    path = tmp_path_factory.mktemp("mat") / "annos.mat"
    savemat(path, {"annotations": struct_array([("a.jpg", flag) for flag in flags])})
    assert read_flags(path, field="class") == [flag == 1 for flag in flags]


def test_a_flag_that_is_neither_0_nor_1_is_named_with_its_record(tmp_path):
    savemat(tmp_path / "annos.mat", {"annotations": struct_array([("a.jpg", 1), ("b.jpg", 2)])})
    assert "record 2: class must be 0 or 1, not '2'" in refused(read_flags, tmp_path / "annos.mat", field="class")
    assert "no field test; they have class, fname" in refused(read_flags, tmp_path / "annos.mat", field="test")


@pytest.mark.parametrize("texts", [["one name"], ["a", "b"], ["a"], ["ab", "c/d e"]])
def test_one_string_is_a_list_of_one(tmp_path, texts):
    savemat(tmp_path / "meta.mat", {"class_names": cell_array(texts)})
    assert read_strings(tmp_path / "meta.mat", "class_names") == texts


@settings(max_examples=50, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 255), min_size=1, max_size=6),
    kind=st.sampled_from([np.uint8, np.uint16, np.float64, object]),
    column=st.booleans(),
)
def test_whole_numbers_are_read_back_from_every_type(tmp_path_factory, numbers, kind, column):
    path = tmp_path_factory.mktemp("mat") / "labels.mat"
    savemat(path, {"labels": np.array(numbers, dtype=kind).reshape((-1, 1) if column else (1, -1))})
    found = read_whole_numbers(path, "labels")
    assert found == numbers
    assert all(type(number) is int for number in found)


@pytest.mark.parametrize("wrong", [2.5, float("nan"), float("inf"), 1 + 2j])
def test_a_number_that_is_not_whole_is_named_with_its_position(tmp_path, wrong):
    savemat(tmp_path / "labels.mat", {"labels": np.array([[1.0, 2.0, wrong]])})
    message = refused(read_whole_numbers, tmp_path / "labels.mat", "labels")
    assert "labels.mat" in message
    assert "labels, entry" in message
    assert "entry 3" in message or isinstance(wrong, complex)


def test_texts_and_tables_are_no_whole_numbers(tmp_path):
    savemat(tmp_path / "labels.mat", {"texts": cell_array(["1", "2"]), "table": np.ones((2, 3))})
    assert "entry 1: must be a whole number, not '1'" in refused(read_whole_numbers, tmp_path / "labels.mat", "texts")
    assert "not 2 x 3" in refused(read_whole_numbers, tmp_path / "labels.mat", "table")


def test_a_missing_field_is_named_with_those_that_are_there(tmp_path):
    savemat(tmp_path / "annos.mat", {"annotations": struct_array([("a.jpg", 1)])})
    message = refused(read_labels, tmp_path / "annos.mat", path_field="relative_im_path")
    assert "no field relative_im_path" in message
    assert "class, fname" in message


def test_an_array_without_fields_is_refused(tmp_path):
    savemat(tmp_path / "annos.mat", {"annotations": np.arange(3)})
    assert "they have none" in refused(read_labels, tmp_path / "annos.mat", path_field="fname")


def test_a_missing_array_is_named_with_those_that_are_there(tmp_path):
    savemat(tmp_path / "annos.mat", {"something": np.arange(3)})
    message = refused(read_labels, tmp_path / "annos.mat", path_field="fname")
    assert "no array 'annotations'" in message
    assert "something" in message


def test_a_class_that_is_no_number_is_refused(tmp_path):
    records = struct_array([("a.jpg", 1), ("b.jpg", 2)])
    records[0, 1]["class"] = "sedan"
    savemat(tmp_path / "annos.mat", {"annotations": records})
    assert "not a number" in refused(read_labels, tmp_path / "annos.mat", path_field="fname")


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>" * 20, b"MATLAB 5.0 MAT-file" + bytes(200)])
def test_a_file_that_is_not_matlab_is_refused(tmp_path, content):
    (tmp_path / "annos.mat").write_bytes(content)
    message = refused(read_labels, tmp_path / "annos.mat", path_field="fname")
    assert "cannot be read as a MATLAB file" in message


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "annos.mat"
    savemat(path, {"annotations": struct_array([(f"{number}.jpg", 1) for number in range(200)])}, do_compression=True)
    whole = path.read_bytes()
    for size in range(130, len(whole), max(1, len(whole) // 7)):
        path.write_bytes(whole[:size])
        assert "MATLAB" in refused(read_labels, path, path_field="fname")
