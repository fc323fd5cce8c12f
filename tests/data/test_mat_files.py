"""Records of MATLAB files: one or many, small numbers, wrong files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from ke_metric.data.mat_files import read_labels, read_strings
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


@pytest.mark.parametrize("texts", [["one name"], ["a", "b"], ["a"], ["ab", "c/d e"]])
def test_one_string_is_a_list_of_one(tmp_path, texts):
    savemat(tmp_path / "meta.mat", {"class_names": cell_array(texts)})
    assert read_strings(tmp_path / "meta.mat", "class_names") == texts


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
