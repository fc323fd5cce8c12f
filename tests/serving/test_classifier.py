"""A classifier behind HTTP: its answers are those of the predictor, and the description says what there is."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from live_service import LIMITS, Running, encode, picture_of

from ke_metric.cli import main
from ke_metric.errors import ExitCode
from ke_metric.images.preparation import Preparation
from ke_metric.networks.bundle_config import Architecture, NetworkCard
from ke_metric.networks.dense import build_classifier
from ke_metric.recipe.schema import Recipe
from ke_metric.retrieval.predictor import Predictor
from ke_metric.serving.api import openapi_document
from ke_metric.serving.exchange import ServiceSettings
from ke_metric.serving.service import ServedNetwork

NAMES = ("crow", "jay", "héron", "🦜")
SETTINGS = ServiceSettings(port=0, limits=replace(LIMITS, max_k=3), serves="classifier")


@pytest.fixture(scope="module")
def predictor():
    fields = {"name": "x", "task": "classification", "data": {"image_size": 32}}
    recipe = Recipe.model_validate(fields | {"network": {"backbone": "timm/test_resnet"}})
    network = build_classifier(recipe.network, 32, 4).eval()
    card = NetworkCard(normalization=Preparation.of_recipe(recipe), class_names=NAMES)
    return Predictor(network, architecture=Architecture.of_recipe(recipe, classes=4), card=card)


@pytest.fixture(scope="module")
def service(predictor):
    found = Running(ServedNetwork(predictor), SETTINGS, max_k=3).start()
    yield found
    found.stop()


def test_answers_are_those_of_the_predictor(service, predictor):
    images = [picture_of(number, (40, 30)) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda image: service.search(encode(image), "/predict?k=2"), images))
    assert {answer.status for answer in answers} == {200}
    expected = predictor.predict(images, 2)
    for answer, found in zip(answers, expected, strict=True):
        assert answer.document["digest"] == predictor.digest
        given = answer.document["predictions"]
        assert [prediction["label"] for prediction in given] == [prediction.label for prediction in found]
        np.testing.assert_allclose(
            [prediction["probability"] for prediction in given],
            [prediction.probability for prediction in found],
            atol=1e-5,
        )
    assert len(service.search(encode(images[0]), "/predict").document["predictions"]) == 3


@pytest.mark.parametrize(
    ("path", "body", "content_type", "status"),
    [
        ("/predict?k=0", encode(picture_of(1)), "image/png", 400),
        ("/predict?k=4", encode(picture_of(1)), "image/png", 400),
        ("/predict?where=x", encode(picture_of(1)), "image/png", 400),
        ("/predict", b"x", "text/plain", 415),
        ("/predict", b"\x89PNG\r\n\x1a\n no picture", "image/png", 422),
        ("/predict", bytes(300_000), "image/png", 413),
        ("/search", encode(picture_of(1)), "image/png", 404),
        ("/embed", encode(picture_of(1)), "image/png", 404),
    ],
)
def test_what_is_refused(service, path, body, content_type, status):
    answer = service.search(body, path, content_type)
    assert answer.status == status, answer
    assert set(answer.document) == {"error"}


def test_the_description_says_what_there_is(service):
    document = service.ask("GET", "/openapi.json").document
    assert document == json.loads(json.dumps(openapi_document(SETTINGS)))
    assert set(document["paths"]) == {"/predict", "/health", "/metrics", "/openapi.json"}
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named == set(document["components"]["schemas"])
    answer = document["components"]["schemas"]["PredictAnswer"]["properties"]
    assert set(service.search(encode(picture_of(1)), "/predict").document) == set(answer)
    assert service.ask("GET", "/health").document == {"status": "ready"}


def test_a_classifier_or_an_index_is_served(predictor, tmp_path):
    def refused(*arguments):
        result = CliRunner().invoke(main, ["serve", "--port", "0", *map(str, arguments)])
        assert result.exit_code != 0
        return result.exit_code, result.stderr

    for both in ((), ("--index", tmp_path, "--bundle", tmp_path)):
        code, said = refused(*both)
        assert code == ExitCode.USAGE
        assert "name either --index" in said
    code, said = refused("--bundle", tmp_path)
    assert code == ExitCode.DATA
    assert "config.json" in said
    assert "serving" not in said
