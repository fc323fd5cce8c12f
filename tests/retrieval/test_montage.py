"""The montage: right and wrong ones are told by colour and sign, names fit, what is missing is named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageFont

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.images.lettering import LINES, shortened
from ke_metric.retrieval import montage
from ke_metric.retrieval.index import Result
from ke_metric.retrieval.montage import MontageRow, draw_montage, require_picture_name, write_montage


@pytest.fixture
def picture(tmp_path):
    """A blue picture, 30 x 60 pixels."""
    Image.new("RGB", (30, 60), "#0000ff").save(tmp_path / "blue.png")
    return str(tmp_path / "blue.png")


def results(path, *labels):
    return [Result(rank, f"id {rank}", path, label, 1 - rank / 10) for rank, label in enumerate(labels, start=1)]


def pixel_of(sheet, column, row=0, at=(1, 1)):
    """A pixel of a cell, seen from its upper left corner."""
    top = montage.HEADER + montage.MARGIN // 2 + row * montage.ROW
    return sheet.getpixel((montage._left_of(column) + at[0], top + at[1]))


def color(name):
    return ImageColor.getrgb(getattr(montage, name))


def test_frames_tell_right_wrong_and_unknown(picture):
    sheet = draw_montage([MontageRow("q", picture, "crow", results(picture, "crow", "jay", ""))])
    assert [pixel_of(sheet, column) for column in range(4)] == [
        color("QUERY"), color("RIGHT"), color("WRONG"), color("UNKNOWN"),
    ]  # fmt: skip


def test_nothing_is_right_or_wrong_where_the_query_has_no_label(picture):
    sheet = draw_montage([MontageRow("q", picture, "", results(picture, "crow", "jay", ""))])
    assert {pixel_of(sheet, column) for column in (1, 2, 3)} == {color("UNKNOWN")}


def test_rows_follow_each_other(picture):
    rows = [MontageRow("q", picture, label, results(picture, "crow")) for label in ("crow", "jay", "")]
    sheet = draw_montage(rows)
    assert [pixel_of(sheet, 1, row) for row in range(3)] == [color("RIGHT"), color("WRONG"), color("UNKNOWN")]


def test_pictures_are_shown_whole_on_white(picture):
    sheet = draw_montage([MontageRow("q", picture, "", [])])
    middle, edge = montage.CELL // 2, montage.FRAME + 2
    assert pixel_of(sheet, 0, at=(middle, middle)) == (0, 0, 255)
    assert pixel_of(sheet, 0, at=(middle, edge)) == (0, 0, 255)
    assert pixel_of(sheet, 0, at=(edge, middle)) == (255, 255, 255)


@pytest.mark.parametrize("path", ["", "none.png", "broken.png"])
def test_a_picture_that_cannot_be_read_is_a_placeholder(path, picture, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"x")
    sheet = draw_montage([MontageRow("q", picture, "", results(path and str(tmp_path / path), "crow"))])
    assert pixel_of(sheet, 1, at=(montage.FRAME + 1, montage.FRAME + 1)) == color("NO_PICTURE")


def test_no_more_than_fits_is_drawn(picture):
    few = [MontageRow("q", picture, "", results(picture, *["x"] * montage.MOST_RESULTS))] * montage.MOST_QUERIES
    many = [MontageRow("q", picture, "", results(picture, *["x"] * 99))] * 99
    assert draw_montage(many).size == draw_montage(few).size


def test_the_last_cell_lies_inside(picture):
    for count in (0, 1, 5, montage.MOST_RESULTS):
        sheet = draw_montage([MontageRow("q", picture, "a", results(picture, *["a"] * count))] * 2)
        assert montage._left_of(max(count, 1)) + montage.CELL <= sheet.width
        if count:
            assert pixel_of(sheet, count, 1, (montage.CELL - 1, montage.CELL - 1)) == color("RIGHT")


def test_nothing_found_is_said(picture):
    without, with_one = (draw_montage([MontageRow("q", picture, "", found)]) for found in ([], results("", "x")))
    empty = np.asarray(without)[montage.HEADER :, montage._left_of(1) :]
    assert (empty < 200).any()
    assert without.size == with_one.size


@pytest.mark.parametrize(
    ("text", "lines", "shown"),
    [
        ("crow", 2, ["crow"]),
        ("", 2, []),
        ("U+0041 LATIN CAPITAL LETTER A", 2, ["U+0041 LATIN", "CAPITAL LETTER A"]),
        ("a\nb\tc", 1, ["a b c"]),
        ("鸦 crow", 2, ["U+9E26 crow"]),
        ("🐦", 1, ["U+1F426"]),
    ],
)
def test_labels_that_fit(text, lines, shown):
    assert shortened(text, 18, lines) == shown


def test_what_does_not_fit_is_left_out_of_the_middle():
    lines = shortened("U+FB03 LATIN SMALL LIGATURE FFI AND MUCH MORE THAN FITS HERE THE END", 18, 2)
    assert len(lines) == 2
    assert lines[0].startswith("U+FB03")
    assert lines[1].endswith("END")
    assert sum("…" in line for line in lines) == 1


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.integers(7, montage.LETTERS), st.integers(1, LINES))
def test_nothing_is_wider_than_its_place(text, letters, lines):
    shown = shortened(text, letters, lines)
    assert len(shown) <= lines
    assert all(len(line) <= letters for line in shown)
    font = ImageFont.truetype(montage.FONT, montage.SMALL)
    assert all(font.getlength(line) <= montage.CELL + montage.GAP for line in shown)
    if text.strip() and text.isprintable():
        assert shown


def test_a_file_is_written_whole(picture, tmp_path, monkeypatch):
    rows = [MontageRow("q", picture, "a", results(picture, "a"))]
    for name in ("m.png", "m.jpg", "m.webp"):
        write_montage(rows, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.size == draw_montage(rows).size
    before = (tmp_path / "m.png").read_bytes()

    def full(self, path, *arguments, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(KeMetricError, match="No space left") as caught:
        write_montage(rows, tmp_path / "m.png")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert (tmp_path / "m.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blue.png", "m.jpg", "m.png", "m.webp"]


@pytest.mark.parametrize("name", ["m", "m.txt", "none/m.png", "folder.png"])
def test_file_names_that_are_refused(name, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(KeMetricError) as caught:
        require_picture_name(tmp_path / name)
    assert caught.value.exit_code == ExitCode.USAGE


def test_the_longest_name_that_a_file_can_have(tmp_path):
    target = tmp_path / f"{'a' * 251}.png"
    write_montage([], target)
    assert list(tmp_path.iterdir()) == [target]
