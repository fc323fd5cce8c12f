"""The README's first commands, word for word, on a folder that is none of the shipped sets."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image, ImageDraw
from shown_blocks import BLOCKS

FIRST = next(block for block in BLOCKS if block.document == "README.md")
COMMANDS = re.findall(r"^(ke-metric .*?)(?:\s+#.*)?$", FIRST.text, re.MULTILINE)


def test_there_are_four_of_them():
    assert [line.split()[1] for line in COMMANDS] == ["recipe", "train", "report", "explore"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with `my_images`: polygons of three to fourteen corners, turned, in colours of no meaning."""
    home = tmp_path_factory.mktemp("home")
    drawn = np.random.default_rng(0)
    for corners in range(3, 15):
        for number in range(8):
            picture = Image.new("RGB", (32, 32), tuple(drawn.integers(0, 90, 3).tolist()))
            turned, colour = int(drawn.integers(0, 360)), tuple(drawn.integers(150, 256, 3).tolist())
            ImageDraw.Draw(picture).regular_polygon((16, 16, 13), corners, rotation=turned, fill=colour)
            path = home / "my_images" / f"{corners} corners" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return home


def start(line, home):
    """Start a command in a shell, in an empty folder of the home."""
    (home / "here").mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "PATH": path, "BROWSER": "true"}
    return subprocess.Popen(
        ["bash", "-c", f"exec {line}"],
        cwd=home / "here",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_they_lead_from_a_folder_to_a_page(home):
    recipe, train, report, explore = COMMANDS
    for line in (recipe, f"{train} --set training.epochs=3", report):
        process = start(line, home)
        _, complained = process.communicate(timeout=900)
        assert process.returncode == 0, (line, complained)
    (page,) = (home / "here" / "lineages").rglob("*.html")
    assert "my_recipe" in page.read_text(encoding="utf-8")
    process = start(f"{explore} --port 0", home)
    try:
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
        with urlopen(address, timeout=60) as answer:
            assert b"<html" in answer.read()
    finally:
        process.terminate()
        process.communicate(timeout=60)
