"""The scikit-learn transformer: the embedder's vectors, clone, Pipeline, pickle by parameters, refused exchanges."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from ke_metric import Embedder
from ke_metric.errors import ExitCode, KeMetricError
from ke_metric.retrieval.scikit_learn import EmbeddingTransformer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve pictures: six that are nearly red, six that are nearly blue."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        color = (200 + number, 10, 10) if number < 6 else (10, 10, 200 + number)
        Image.new("RGB", (40, 40), color).save(folder / f"{number:02d}.png")
    return sorted(folder.iterdir())


LABELS = ["red"] * 6 + ["blue"] * 6


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, (None, None)),
        ({"generation": 1, "network": "dense"}, (1, "dense")),
        ({"generation": "best", "network": "slim", "device": "cpu"}, ("best", "slim")),
    ],
)
def test_its_vectors_are_those_of_the_embedder(options, arguments, grown, pictures):
    transformer = EmbeddingTransformer(grown.folder, **options)
    embedder = Embedder.load(grown.folder, *arguments)
    assert np.array_equal(transformer.fit_transform(pictures, LABELS), embedder(pictures))
    assert transformer.digest_ == embedder.digest
    smaller = EmbeddingTransformer(grown.folder, batch_size=5, **options).fit(pictures)
    np.testing.assert_allclose(smaller.transform(map(str, pictures)), embedder(pictures), atol=1e-5)
    assert smaller.transform([]).shape == (0, 8)


def test_the_batch_size_asked_for_is_used(grown, pictures, monkeypatch):
    sizes = []
    original = Embedder.compute
    monkeypatch.setattr(Embedder, "compute", lambda self, pixels: sizes.append(len(pixels)) or original(self, pixels))
    EmbeddingTransformer(grown.folder, batch_size=5).fit().transform(pictures)
    assert sizes == [5, 5, 2]


def test_it_works_in_a_pipeline(grown, pictures):
    pipeline = make_pipeline(EmbeddingTransformer(grown.folder), KNeighborsClassifier(1, metric="cosine"))
    assert pipeline.fit(pictures[1:-1], LABELS[1:-1]).predict([pictures[0], pictures[-1]]).tolist() == ["red", "blue"]
    assert cross_val_score(pipeline, pictures, LABELS, cv=3).tolist() == [1, 1, 1]
    names = pipeline[0].get_feature_names_out()
    assert names.tolist() == [f"embeddingtransformer{number}" for number in range(8)]


def test_parameters_and_clone(grown):
    transformer = EmbeddingTransformer(grown.folder, generation=1, network="dense", device="cpu", batch_size=3).fit()
    parameters = {"source": grown.folder, "generation": 1, "network": "dense", "device": "cpu", "batch_size": 3}
    parameters["rate"] = None
    assert transformer.get_params() == parameters
    copy = clone(transformer)
    assert copy.get_params() == parameters
    assert not hasattr(copy, "embedder_")
    assert copy.set_params(generation=2).fit().digest_ != transformer.digest_


def test_before_fitting_nothing_is_transformed(grown, pictures):
    with pytest.raises(NotFittedError):
        EmbeddingTransformer(grown.folder).transform(pictures)


def test_a_pickle_holds_no_network_and_finds_it_again(grown, pictures):
    transformer = EmbeddingTransformer(grown.folder).fit()
    assert len(pickle.dumps(transformer)) < 2000
    again = pickle.loads(pickle.dumps(transformer))
    assert np.array_equal(again.transform(pictures), transformer.transform(pictures))
    assert again.get_feature_names_out().tolist() == transformer.get_feature_names_out().tolist()


def test_another_network_at_the_same_place_is_refused(grown, pictures, tmp_path):
    bundle = tmp_path / "b"
    Embedder.load(grown.folder, 1).save(bundle)
    transformer = pickle.loads(pickle.dumps(EmbeddingTransformer(bundle).fit()))
    shutil.rmtree(bundle)
    Embedder.load(grown.folder, 2).save(bundle)
    with pytest.raises(KeMetricError, match="another network than when this transformer was fitted") as caught:
        transformer.transform(pictures)
    assert caught.value.exit_code == ExitCode.DATA
    assert transformer.fit().transform(pictures).shape == (12, 8)


def test_a_bad_picture_is_an_error_that_names_it(grown, pictures, tmp_path):
    with pytest.raises(KeMetricError, match=r"none\.png"):
        EmbeddingTransformer(grown.folder).fit().transform([*pictures, tmp_path / "none.png"])
