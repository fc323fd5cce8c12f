"""Figures: colours of the scheme, files that can be opened, data that are never taken for colours."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.report.charts import (
    PALETTE,
    Axes,
    for_file,
    for_page,
    generation_color,
    line_chart,
    scatter_chart,
    write_figures,
)
from ke_metric.report.page_parts import Chart

ROWS = [{"x": x, "y": x / 10, "series": "@dense", "label": "@slim", "name": "n"} for x in (1, 2)]


def chart(specification, name="figure"):
    return Chart(name, "A title", "in words", specification)


def luminance(color):
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "dense", "right", "wrong"])
def test_words_can_be_read_on_their_ground(name, scheme):
    for ground in ("page", "panel"):
        assert contrast(PALETTE[name][scheme], PALETTE[ground][scheme]) >= 4.5


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    "name", ["dense", "slim", "third", "fourth", "fit", "reset", *(f"class-{n}" for n in range(8))]
)
def test_marks_can_be_seen_on_their_ground(name, scheme):
    assert contrast(PALETTE[name][scheme], PALETTE["panel"][scheme]) >= 3


def test_data_are_not_painted():
    specification = scatter_chart(ROWS, {"@dense": "@dense"}, axes="PCA")
    for drawn, color in (
        (for_page(chart(specification)), "var(--dense)"),
        (for_file(chart(specification)), "#1d5fc4"),
    ):
        assert drawn["data"]["values"] == ROWS
        assert drawn["encoding"]["color"]["scale"] == {"domain": ["@dense"], "range": [color]}


def test_generations_are_coloured_from_pale_to_strong():
    colors = [generation_color(position, 10)[1:] for position in range(10)]
    light = [luminance(PALETTE[color][0]) for color in colors]
    dark = [luminance(PALETTE[color][1]) for color in colors]
    assert light == sorted(light, reverse=True)
    assert dark == sorted(dark)
    assert (colors[0], colors[-1]) == ("ramp-0", "ramp-7")
    assert generation_color(0, 1) == "@ramp-7"


def test_figures_are_written_as_png_and_svg(tmp_path):
    specification = line_chart(ROWS, {"@dense": "@dense"}, Axes("generation", "score", ".0%"), with_dashes=True)
    written = write_figures([chart(specification)], tmp_path / "new" / "figures")
    png, svg = (path.read_bytes() for path in written)
    assert [path.name for path in written] == ["figure.png", "figure.svg"]
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    assert picture.width >= 1000
    assert (0x1D, 0x5F, 0xC4) in {color for _, color in picture.getcolors(1 << 20)}
    assert b"A title" in svg
    assert not re.search(rb"var\(|href=|@", svg.replace(b"@dense", b""))


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    specification = line_chart(ROWS, {"@dense": "@dense"}, Axes("x", "y"))
    with pytest.raises(KeMetricError) as caught:
        write_figures([chart(specification)], Path(tmp_path / "file"))
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
