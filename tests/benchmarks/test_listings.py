"""CSV files that list pictures: what is accepted, and every refusal."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.benchmarks.listings import CLASSIFICATION, Columns, LabelledPath, read_csv_rows
from ke_metric.errors import ExitCode, KeMetricError


@pytest.fixture
def write(tmp_path):
    def write_text(text, encoding="utf-8"):
        path = tmp_path / "list.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write_text


def refused(path, *divisions):
    with pytest.raises(KeMetricError) as raised:
        read_csv_rows(path, *divisions)
    assert raised.value.exit_code is ExitCode.DATA
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_rows_come_in_the_order_of_the_file(write):
    rows = read_csv_rows(write("path,label,split\nb.jpg,bee,train\na.jpg,ant,test\n"))
    assert rows == [LabelledPath("b.jpg", "bee", "train"), LabelledPath("a.jpg", "ant", "test")]


def test_without_split_column_no_part_is_named(write):
    assert read_csv_rows(write("path,label\na.jpg,ant\n")) == [LabelledPath("a.jpg", "ant", None)]


def test_columns_in_any_order_and_further_ones_are_accepted(write):
    rows = read_csv_rows(write("weight, label ,path\n3,ant,a.jpg\n"))
    assert rows == [LabelledPath("a.jpg", "ant", None)]


def test_a_byte_order_mark_and_crlf_are_accepted(write):
    rows = read_csv_rows(write("path,label\r\nä.jpg,ant\r\n", encoding="utf-8-sig"))
    assert rows == [LabelledPath("ä.jpg", "ant", None)]


names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\\x00:", exclude_categories=("Cc", "Cs")), min_size=1
)
plain_names = names.filter(lambda name: name.strip() == name and name not in (".", ".."))


@given(st.lists(st.tuples(plain_names, plain_names), min_size=1, unique_by=lambda row: row[0]))
def test_whatever_csv_writes_is_read_back(tmp_path_factory, rows):
    text = io.StringIO()
    csv.writer(text).writerows([("path", "label"), *rows])
    path = tmp_path_factory.mktemp("csv") / "list.csv"
    path.write_bytes(text.getvalue().encode())
    assert [(row.path, row.label) for row in read_csv_rows(path)] == rows


@pytest.mark.parametrize(("header", "word"), [("label", "'path'"), ("path", "'label'"), ("path,lable", "'lable'")])
def test_a_missing_column_is_named_with_what_is_there(write, header, word):
    message = refused(write(f"{header}\na,b\n"))
    assert word in message
    assert f"found: {header.replace(',', ', ')}" in message


def test_an_empty_file_is_refused(write):
    assert "an empty file" in refused(write(""))


def test_a_header_without_rows_is_refused(write):
    assert "no rows" in refused(write("path,label\n"))


def test_a_misspelt_split_column_is_not_passed_over(write):
    assert "did you mean 'spilt'" in refused(write("path,label,spilt\na.jpg,ant,train\n"))


@pytest.mark.parametrize("row", ["a.jpg", "a.jpg,ant,test,more", "a, b.jpg,ant,test"])
def test_a_row_with_another_number_of_cells_is_named_by_line(write, row):
    message = refused(write(f"path,label,split\nb.jpg,bee,train\n{row}\n"))
    assert "line 3" in message
    assert "number of cells" in message


@pytest.mark.parametrize("row", [",ant", "a.jpg,", " ,ant"])
def test_an_empty_path_or_label_is_named_by_line(write, row):
    message = refused(write(f"path,label\n{row}\n"))
    assert "line 2" in message
    assert "must not be empty" in message


@pytest.mark.parametrize(
    "path", ["../a.jpg", "x/../../a.jpg", "/etc/a.jpg", "C:\\a.jpg", "..\\a.jpg", "\\\\host\\a.jpg"]
)
def test_a_path_that_leaves_the_folder_is_refused(write, path):
    message = refused(write(f"path,label\n{path},ant\n"))
    assert "line 2" in message
    assert "leaves the data folder" in message


def test_an_unknown_split_is_refused_with_the_closest(write):
    message = refused(write("path,label,split\na.jpg,ant,tarin\n"))
    assert "line 2" in message
    assert "did you mean 'train'" in message


@pytest.mark.parametrize(
    "splits", [("train",), ("test",), ("train", "query"), ("train", "test", "query", "gallery"), ("query", "gallery")]
)
def test_an_incomplete_or_mixed_split_is_refused(write, splits):
    rows = "".join(f"{split}.jpg,{split},{split}\n" for split in splits)
    message = refused(write("path,label,split\n" + rows))
    assert "must have train and test, or train, query and gallery" in message
    assert all(split in message for split in splits)


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "val", "test")])
def test_for_classification_there_may_be_a_validation_part(write, splits):
    rows = "".join(f"{split}.jpg,ant,{split}\n" for split in splits)
    found = read_csv_rows(write("path,label,split\n" + rows), CLASSIFICATION)
    assert [row.split for row in found] == list(splits)


@pytest.mark.parametrize("splits", [("train", "val"), ("val", "test"), ("train", "test", "gallery")])
def test_other_splits_are_refused_for_classification(write, splits):
    rows = "".join(f"{split}.jpg,ant,{split}\n" for split in splits)
    message = refused(write("path,label,split\n" + rows), CLASSIFICATION)
    assert "train and test, or train, val and test" in message


def test_a_picture_with_two_labels_is_refused(write):
    message = refused(write("path,label\na.jpg,ant\n./a.jpg,bee\n"))
    assert "more than one label: a.jpg" in message


def test_a_picture_in_training_and_test_is_refused(write):
    message = refused(write("path,label,split\na.jpg,ant,train\na.jpg,ant,test\n"))
    assert "more than one split: a.jpg" in message


def test_a_picture_may_be_searched_with_and_searched_in(write):
    rows = read_csv_rows(write("path,label,split\nb.jpg,b,train\na.jpg,a,query\na.jpg,a,gallery\n"))
    assert [row.split for row in rows] == ["train", "query", "gallery"]


def test_a_file_that_is_not_utf8_is_refused(write):
    assert "not a UTF-8 text file" in refused(write("path,label\nä.jpg,ant\n", encoding="latin-1"))


def test_a_file_that_is_not_csv_is_refused(write):
    assert "not a CSV file" in refused(write('path,label\n"a.jpg"x,ant\n'))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_spreadsheet_of_any_country_is_read(delimiter, write):
    lines = ['path,label,"split"', 'a.jpg,"ant, red; big",train', "b.jpg,bee,test"]
    mixed = "\n".join(line.replace(",", delimiter) if "red" not in line else line for line in lines)
    text = mixed.replace('a.jpg,"ant, red; big",train', delimiter.join(["a.jpg", '"ant, red; big"', "train"]))
    assert read_csv_rows(write(text + "\n")) == [
        LabelledPath("a.jpg", "ant, red; big", "train"),
        LabelledPath("b.jpg", "bee", "test"),
    ]


def test_columns_may_have_other_names(write):
    file = write("id;Bild;Art;label\n1;a.jpg;Ameise;x\n")
    assert read_csv_rows(file, columns=Columns("Bild", "Art")) == [LabelledPath("a.jpg", "Ameise", None)]
    message = refused(file)
    assert "no column 'path'" in message
    assert "found: id, Bild, Art, label" in message
    assert "--path-column" in message
    assert "data.path_column" in message


def test_a_column_called_like_split_may_be_the_label(write):
    rows = read_csv_rows(write("path,splits\na.jpg,ant\n"), columns=Columns(label="splits"))
    assert rows == [LabelledPath("a.jpg", "ant", None)]


def test_a_path_that_is_not_beside_the_file_says_where_paths_begin(write):
    assert "the folder of a list of your own is the one that it lies in" in refused(write("path,label\n/a.jpg,ant\n"))
