import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from ke_metric.benchmarks import drawn
from ke_metric.benchmarks.drawn import FACES, MIN_FACES, GlyphSource, candidate_characters, draw, glyph_classes
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.recipe.schema import Data

LATIN, GREEK, CYRILLIC = 0x41, 0x391, 0x410
SUBSET = [
    *range(0x21, 0x7F),
    *range(0x391, 0x3CA),
    *range(0x410, 0x450),
    *range(0x2190, 0x21A0),
    *range(0x2013, 0x2016),
]


@pytest.fixture(scope="module")
def classes() -> dict[int, tuple[str, ...]]:
    return glyph_classes(SUBSET)


@pytest.fixture
def small(monkeypatch, classes):
    """The benchmark as `read` builds it, of a subset of the characters."""
    monkeypatch.setattr(drawn, "_all_classes", lambda: classes)
    return drawn.read_glyphs(Data(benchmark="glyphs", test_fraction=0.4))


def test_sixteen_faces_and_as_many_candidates_as_documented() -> None:
    assert len(FACES) == 16
    assert 2200 < len(candidate_characters()) < 2500


def test_candidates_stand_alone() -> None:
    candidates = set(candidate_characters())
    assert {LATIN, GREEK, CYRILLIC} <= candidates
    space, no_break_space, combining_acute, soft_hyphen, private = 0x20, 0xA0, 0x301, 0xAD, 0xE000
    assert not {space, no_break_space, combining_acute, soft_hyphen, private} & candidates


def test_every_class_has_twelve_to_sixteen_known_faces(classes) -> None:
    for faces in classes.values():
        assert MIN_FACES <= len(faces) <= len(FACES)
        assert list(faces) == [face for face in FACES if face in faces]


def test_characters_that_look_the_same_are_one_class(classes) -> None:
    assert LATIN in classes
    assert GREEK not in classes
    assert CYRILLIC not in classes
    assert 0x393 in classes  # Gamma: no letter before it looks like this
    assert 0x413 not in classes  # Cyrillic Ghe, Gamma in most faces


def test_arrows_do_not_lean_and_so_are_no_class(classes) -> None:
    assert not [code_point for code_point in classes if 0x2190 <= code_point < 0x21A0]


def test_no_picture_of_a_face_belongs_to_two_classes_nor_twice_to_one(classes) -> None:
    pictures = [(code_point, face, draw(code_point, face)) for code_point, faces in classes.items() for face in faces]
    assert len({(face, picture.tobytes()) for _, face, picture in pictures}) == len(pictures)
    assert len({(code_point, picture.tobytes()) for code_point, _, picture in pictures}) == len(pictures)


def test_the_order_of_the_candidates_does_not_matter(classes) -> None:
    some = [*range(0x41, 0x48), GREEK, CYRILLIC]
    assert glyph_classes(reversed(some)) == glyph_classes(some)
    assert set(glyph_classes(some)) == set(range(0x41, 0x48))


def test_every_picture_is_rgb_of_64_pixels_with_ink_on_white(small) -> None:
    for index in range(0, len(small.train), 7):
        picture = small.train.read(index)
        assert (picture.mode, picture.size) == ("RGB", (64, 64))
        low, high = picture.convert("L").getextrema()
        assert low < 64, small.train.keys[index]
        assert high == 255


@pytest.mark.parametrize("character", "A@gQ.,Ǻ|й")
@pytest.mark.parametrize("face", ["DejaVuSans-BoldOblique", "DejaVuSerif-Italic"])
def test_nothing_is_clipped_and_the_ink_is_centred(character: str, face: str) -> None:
    pixels = 255 - np.asarray(draw(ord(character), face), dtype=int)
    # The slow twin: the same glyph on a sheet far larger than any glyph.
    sheet = Image.new("L", (300, 300), 255)
    font = ImageFont.truetype(drawn._font_file(face), drawn.FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    ImageDraw.Draw(sheet).text((100, 150), character, font=font, fill=0, anchor="ls")
    assert pixels.sum() == (255 - np.asarray(sheet, dtype=int)).sum()
    columns = np.flatnonzero(pixels.any(axis=0))
    assert abs(columns[0] - (63 - columns[-1])) <= 1


def test_all_characters_stand_on_one_baseline() -> None:
    bottoms = {character: np.flatnonzero(_ink(character).any(axis=1))[-1] for character in "EHi.g'"}
    assert bottoms["E"] == bottoms["H"] == bottoms["i"] == bottoms["."]
    assert bottoms["'"] < bottoms["."] < bottoms["g"]


def test_a_character_that_does_not_fit_or_is_not_there_is_not_drawn() -> None:
    horizontal_bar, object_replacement = 0x2015, 0xFFFC
    assert draw(horizontal_bar, "STIXGeneral") is None
    assert draw(object_replacement, "DejaVuSans") is None
    assert draw(0x10FFFF, "DejaVuSans") is None


def test_two_constructions_are_equal_and_classes_are_disjoint(small) -> None:
    again = drawn.read_glyphs(Data(benchmark="glyphs", test_fraction=0.4))
    assert (again.train.keys, again.query.keys) == (small.train.keys, small.query.keys)
    assert np.array_equal(again.train.labels, small.train.labels)
    assert not set(small.train.class_names) & set(small.query.class_names)
    assert small.leave_one_out
    assert len(small.query.class_names) == round(0.4 * (len(small.train.class_names) + len(small.query.class_names)))


@pytest.fixture
def classify(monkeypatch, classes):
    """Build the benchmark for classification, of a subset of the characters."""
    monkeypatch.setattr(drawn, "_all_classes", lambda: classes)
    return lambda fraction: drawn.read_glyphs_classification(Data(benchmark="glyphs", test_fraction=fraction))


def faces_of(images) -> set[str]:
    return {key.partition("/")[2] for key in images.keys}


@pytest.mark.parametrize(("fraction", "tested"), [(0.1, 2), (0.25, 4), (0.5, 8), (0.9, 14)])
def test_for_classification_faces_are_divided_and_characters_are_shared(classes, classify, fraction, tested) -> None:
    benchmark = classify(fraction)
    assert len(faces_of(benchmark.query)) == tested
    assert faces_of(benchmark.train) == set(FACES) - faces_of(benchmark.query)
    assert benchmark.train.class_names == benchmark.query.class_names
    assert benchmark.gallery is benchmark.query
    for images in (benchmark.train, benchmark.query):
        assert np.unique(images.labels).tolist() == list(range(len(images.class_names)))
        for key, label in zip(images.keys, images.labels, strict=True):
            assert images.class_names[label].startswith(key.partition("/")[0] + " ")
    kept = {int(name[2:].partition(" ")[0], 16) for name in benchmark.train.class_names}
    assert len(benchmark.train) + len(benchmark.query) == sum(len(classes[code_point]) for code_point in kept)
    for code_point in set(classes) - kept:
        # Left out are only characters that all training faces or all test faces lack.
        assert not {*classes[code_point]} & faces_of(benchmark.query)


def test_a_quarter_of_the_faces_for_testing_are_of_every_kind(classify) -> None:
    # Written down once: scores of different versions are only comparable on the same test faces.
    benchmark = classify(0.25)
    expected = {"DejaVuSansMono", "DejaVuSansMono-Oblique", "DejaVuSerif-Bold", "DejaVuSerif-Italic"}
    assert faces_of(benchmark.query) == expected
    assert all(face in benchmark.notes["split"] for face in expected)
    assert faces_of(classify(0.1).query) < expected < faces_of(classify(0.5).query)


def test_a_character_without_a_test_face_is_left_out(monkeypatch, classify) -> None:
    test_faces = faces_of(classify(0.1).query)
    made = {0x41: FACES, 0x42: tuple(face for face in FACES if face not in test_faces), 0x43: tuple(test_faces)}
    monkeypatch.setattr(drawn, "_all_classes", lambda: made)
    benchmark = classify(0.1)
    assert benchmark.train.class_names == ("U+0041 LATIN CAPITAL LETTER A",)
    assert len(benchmark.train) == 14


def test_keys_labels_and_names_belong_together(small) -> None:
    for key, label in zip(small.query.keys, small.query.labels, strict=True):
        assert small.query.class_names[label].startswith(key.partition("/")[0] + " ")


def test_the_source_can_be_pickled_after_fonts_are_open() -> None:
    source = GlyphSource()
    before = source.read("U+0041/DejaVuSans")
    assert pickle.loads(pickle.dumps(source)).read("U+0041/DejaVuSans").tobytes() == before.tobytes()


@pytest.mark.parametrize("key", ["A/DejaVuSans", "U+0041", "U+XYZ/DejaVuSans", "U+0041/Comic", "U+-041/DejaVuSans"])
def test_a_key_of_another_form_is_refused(key: str) -> None:
    with pytest.raises(KeMetricError, match="U\\+0041/DejaVuSans") as caught:
        GlyphSource().read(key)
    assert caught.value.exit_code == ExitCode.DATA


def test_a_character_the_face_lacks_is_an_error() -> None:
    with pytest.raises(KeMetricError, match="no such character") as caught:
        GlyphSource().read("U+10FFFF/DejaVuSans")
    assert caught.value.exit_code == ExitCode.DATA


def test_a_missing_font_is_named(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(KeMetricError, match=r"DejaVuSans-Bold\.ttf.*matplotlib") as caught:
        drawn._font_file("DejaVuSans-Bold")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


@pytest.mark.slow
def test_the_whole_benchmark_has_the_documented_size() -> None:
    benchmark = drawn.read_glyphs(Data(benchmark="glyphs"))
    class_count = len(benchmark.train.class_names) + len(benchmark.query.class_names)
    assert 1500 < class_count < 1600
    assert 20_000 < len(benchmark.train) + len(benchmark.query) < 22_000
    shared = drawn.read_glyphs_classification(Data(benchmark="glyphs", test_fraction=0.25))
    assert len(shared.train.class_names) == class_count
    assert np.bincount(shared.query.labels).min() >= 1


def _ink(character: str) -> np.ndarray:
    return np.asarray(draw(ord(character), "DejaVuSans")) < 128
