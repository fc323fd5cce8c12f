"""Every error of docs/faq.md is brought about, and its words and its exit code are compared with the page."""

import re
import shlex
import shutil
import socket
import sys
from contextlib import ExitStack, suppress
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from shown_blocks import DOCUMENTS

from ke_metric import Lineage
from ke_metric.cli import main

PAGE = DOCUMENTS["docs/faq.md"]
SECTION = re.compile(r"^### ([^\n]+)\n\n```\n\$ ke-metric ([^\n]+)\n(.*?)\n```\n\nExit code (\d+)\b", re.M | re.S)
CASES = {heading: (command, words, int(code)) for heading, command, words, code in SECTION.findall(PAGE)}
RECIPE = """
generations: 2
data: {benchmark: folder, root: photos, image_size: 32, store_size: 32}
network: {backbone: timm/test_resnet, embedding_size: 8}
loss: {name: MultiSimilarityLoss}
batches: {size: 8, images_per_class: 2}
optimizer: {name: adamw, learning_rate: 1e-3}
training: {epochs: 1, precision: fp32}
evaluation: {resize: 32, recall_at: [1, 2]}
"""


def run(line):
    return CliRunner().invoke(main, shlex.split(line))


def draw(root, *, classes):
    """Four pictures of noise for each class."""
    noise = np.random.default_rng(0)
    for number in range(4 * classes):
        path = root / f"class_{number // 4}" / f"{number % 4}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with pictures, a recipe, a lineage of two generations, two others, and an index."""
    folder = tmp_path_factory.mktemp("faq") / "trained"
    draw(folder / "photos", classes=8)
    draw(folder / "one", classes=1)
    (folder / "my_recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        for line in (
            "train my_recipe.yaml --lineage lineages/weights --set split.kind=wels --set generations=1",
            "train my_recipe.yaml --lineage lineages/classes --set generations=1 --set task=classification "
            "--set loss.name=CrossEntropyLoss --set network.embedding_size=128",
            "train my_recipe.yaml",
            "index build photos -o photos.index --network dense --lineage lineages/my_recipe-s0",
        ):
            result = run(line)
            assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """A copy of it, which is where the commands are run."""
    folder = tmp_path / "folder"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


def put_loose_pictures(folder, until):
    (folder / "flat").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "flat" / "0.png")


def break_a_picture(folder, until):
    shutil.copytree(folder / "photos", folder / "broken")
    (folder / "broken" / "class_3" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")


def add_a_picture(folder, until):
    shutil.copy(folder / "photos" / "class_0" / "0.png", folder / "photos" / "class_0" / "new.png")


def hold_the_lineage(folder, until):
    until.enter_context(Lineage(folder / "lineages" / "my_recipe-s0").writing())


def forget_other_lineages(folder, until):
    for name in ("weights", "classes"):
        shutil.rmtree(folder / "lineages" / name)


def take_the_port(folder, until):
    """Listen on the explorer's own port, where no other program does."""
    taken = until.enter_context(socket.socket())
    with suppress(OSError):
        taken.bind(("127.0.0.1", 8050))
        taken.listen()


def install_faiss_twice(folder, until):
    both = ("faiss-cpu", "faiss-gpu")
    until.enter_context(patch("ke_metric.evaluation.backend.installed_distributions", lambda: both))


SITUATIONS = {
    'A colour, an "on", a time': lambda folder, until: (folder / "colour.yaml").write_text(
        "data:\n  background: #ffffff\n"
    ),
    "No folder per class": put_loose_pictures,
    "A CSV whose columns have other names": lambda folder, until: (folder / "list.csv").write_text(
        "file,class\nphotos/class_0/0.png,a\n"
    ),
    "A file that is broken": break_a_picture,
    "Pictures changed since the training began": add_a_picture,
    "Another process trains it": hold_the_lineage,
    "Nothing was trained here": lambda folder, until: shutil.rmtree(folder / "lineages"),
    "Classes asked of a network that has none": forget_other_lineages,
    "The port is taken": take_the_port,
    "faiss-cpu and faiss-gpu together": install_faiss_twice,
    "The report's part is not installed": lambda folder, until: until.enter_context(
        patch.dict(sys.modules, jinja2=None)
    ),
    "A part is not installed": lambda folder, until: until.enter_context(patch.dict(sys.modules, uvicorn=None)),
}
"""What is done in the folder before the command, and holds `until` it has ended; nothing for the other cases."""


def matches(words, said):
    """Whether the words of the page are what was said, where each … stands for anything."""
    pattern = ".*?".join(map(re.escape, words.split("…")))
    return re.fullmatch(pattern, said, re.DOTALL) is not None


def test_every_error_of_the_page_is_a_case():
    assert len(CASES) == PAGE.count("$ ke-metric") == PAGE.count("Exit code ")
    assert SITUATIONS.keys() <= CASES.keys()


@pytest.mark.parametrize("heading", CASES)
def test_an_error_is_said_as_the_page_has_it(heading, folder):
    command, words, code = CASES[heading]
    is_before_training = PAGE.index(f"\n### {heading}\n") < PAGE.index("\n## Training\n")
    if is_before_training and "--resume" not in command:
        shutil.rmtree(folder / "lineages")
    with ExitStack() as until:
        SITUATIONS.get(heading, lambda folder, until: None)(folder, until)
        result = run(command)
    said = result.stderr[result.stderr.find("ke-metric: ") :].rstrip("\n")
    assert matches(words, said), said
    assert result.exit_code == code


@pytest.mark.parametrize(
    ("words", "said", "same"),
    [("a … c", "a b c", True), ("a … c", "a b d", False), ("a.c", "abc", False), ("a …", "x a b", False)],
)
def test_the_page_is_compared_word_for_word(words, said, same):
    assert matches(words, said) == same
