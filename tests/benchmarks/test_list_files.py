"""Rows of plain-text lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_metric.benchmarks.layout import ListRow, parse_whole, read_counted_rows, read_rows, whole_number
from ke_metric.errors import ExitCode, KeMetricError

COLUMNS = ("name", "kind")


@pytest.fixture
def write(tmp_path):
    def write_bytes(content):
        path = tmp_path / "list.txt"
        path.write_bytes(content)
        return path

    return write_bytes


def refused(function, *arguments, **named):
    with pytest.raises(KeMetricError) as raised:
        function(*arguments, **named)
    assert raised.value.exit_code is ExitCode.DATA
    return str(raised.value)


@given(
    rows=st.lists(st.tuples(st.integers(0, 99999), st.from_regex(r"[a-z][a-z ]*[a-z]", fullmatch=True)), min_size=1),
    line_end=st.sampled_from(["\n", "\r\n"]),
    gap=st.sampled_from([" ", "   ", "\t"]),
    last_end=st.booleans(),
)
def test_line_ends_gaps_and_a_missing_last_end_do_not_matter(tmp_path_factory, rows, line_end, gap, last_end):
    path = tmp_path_factory.mktemp("list") / "list.txt"
    text = line_end.join(f"{number}{gap}{name}" for number, name in rows) + (line_end if last_end else "")
    path.write_bytes(text.encode())
    assert [(whole_number(row, 0, "id"), row.cells[1]) for row in read_rows(path, COLUMNS, header=False)] == rows


def test_a_row_knows_its_line(write):
    path = write(b"a x\n\nb y z\n")
    assert read_rows(path, COLUMNS, header=False) == [
        ListRow(["a", "x"], f"{path}, line 1"),
        ListRow(["b", "y z"], f"{path}, line 3"),
    ]


def test_a_row_with_fewer_columns_is_named(write):
    message = refused(read_rows, write(b"a x\nb\n"), COLUMNS, header=False)
    assert "line 2" in message
    assert "name kind" in message
    assert "'b'" in message


def test_the_header_is_checked_and_not_a_row(write):
    assert len(read_rows(write(b"name   kind\na x\n"), COLUMNS, header=True)) == 1
    assert "'name kind'" in refused(read_rows, write(b"a x\n"), COLUMNS, header=True)
    assert "nothing" in refused(read_rows, write(b""), COLUMNS, header=True)


def test_counted_rows_are_all_rows(write):
    rows = read_counted_rows(write(b"2\nname kind\na    x  \r\nb  y\n"), COLUMNS)
    assert [row.cells for row in rows] == [["a", "x"], ["b", "y"]]


@pytest.mark.parametrize("promised", [0, 1, 3])
def test_another_number_of_rows_than_promised_is_refused(write, promised):
    message = refused(read_counted_rows, write(b"%d\nname kind\na x\nb y\n" % promised), COLUMNS)
    assert f"promises {promised} images, but 2 follow" in message


@pytest.mark.parametrize("content", [b"", b"name kind\na x\n", b"1\na x\n"])
def test_a_missing_count_or_header_is_refused(write, content):
    message = refused(read_counted_rows, write(content), COLUMNS)
    assert "number of images" in message or "header" in message


@pytest.mark.parametrize("text", ["", "x", "-1", "1.0", "１"])
def test_what_is_no_whole_number_is_refused(text):
    assert f"line 7: class must be a whole number, not {text!r}" in refused(parse_whole, text, "line 7: class")


def test_a_file_that_is_no_text_is_refused(write):
    assert "not a UTF-8 text file" in refused(read_rows, write(b"\xff\xfe\x00"), COLUMNS, header=False)
