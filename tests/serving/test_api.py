"""The description says what there is: routes, methods, statuses, schemas."""

import json
import re

import pytest
from live_service import FakeSearcher, encode, picture_of

from ke_metric.serving.api import REASONS, openapi_document, read_question
from ke_metric.serving.exchange import Limits, Refused, ServiceSettings
from ke_metric.serving.server import Application
from ke_metric.serving.service import Service

DOCUMENT = openapi_document(ServiceSettings())


def operations(document):
    return {
        (path, method): operation for path, item in document["paths"].items() for method, operation in item.items()
    }


def test_the_routes_are_those_described(items):
    service = Service(lambda: FakeSearcher(items), Limits())
    routes = Application(service, ServiceSettings()).routes
    real = {
        (re.sub(r":\w+}", "}", route.path), method.lower()) for route in routes for method in route.methods - {"HEAD"}
    }
    assert real == set(operations(DOCUMENT))


def test_references_lead_somewhere():
    schemas = DOCUMENT["components"]["schemas"]
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert named == set(schemas)


def test_every_status_has_a_reason():
    used = {status for operation in operations(DOCUMENT).values() for status in operation["responses"]} - {"200"}
    assert used == set(REASONS)


def test_what_is_refused_before_a_route_is_found_may_come_from_every_route():
    for operation in operations(DOCUMENT).values():
        assert {"400", "403", "408", "431", "500", "503"} <= set(operation["responses"])
        assert "Retry-After" in operation["responses"]["503"]["headers"]


def conforms(value, schema):
    """A few words of JSON Schema, those that the document uses."""
    if "$ref" in schema:
        return conforms(value, DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float)}
    if not isinstance(value, kinds[schema["type"]]):
        return False
    if schema["type"] == "object" and "properties" in schema:
        return set(schema["required"]) <= set(value) <= set(schema["properties"]) and all(
            conforms(part, schema["properties"][name]) for name, part in value.items()
        )
    return schema["type"] != "array" or all(conforms(element, schema["items"]) for element in value)


@pytest.mark.parametrize(
    ("method", "path", "body", "content_type"),
    [
        ("post", "/search", encode(picture_of(1)), "image/png"),
        ("post", "/search", b"", "image/png"),
        ("post", "/search?k=0", b"", "image/png"),
        ("post", "/search?k=3&expand=2:1&rerank=2:2:0.3:5&exclude=x", encode(picture_of(1)), "image/png"),
        ("post", "/search?where=label+%3D%3D+%22nobody%22", encode(picture_of(1)), "image/png"),
        ("post", "/search", b"x", "text/plain"),
        ("post", "/search", b"x", "image/png"),
        ("post", "/search", bytes(300_000), "image/png"),
        ("post", "/embed", encode(picture_of(1)), "image/png"),
        ("get", "/images/birds/0%20%C3%BC.png", None, None),
        ("get", "/images/x", None, None),
        ("get", "/health", None, None),
        ("get", "/metrics", None, None),
        ("get", "/openapi.json", None, None),
    ],
)
def test_answers_are_those_described(service, method, path, body, content_type):
    answer = service.ask(method.upper(), path, body, content_type)
    route = "/images/{id}" if path.startswith("/images") else path.partition("?")[0]
    described = DOCUMENT["paths"][route][method]["responses"][str(answer.status)]
    media = answer.headers["content-type"].partition(";")[0]
    schema = described["content"][media].get("schema", {})
    if media == "application/json":
        assert conforms(answer.document, schema), answer.document


def test_a_token_is_described_where_there_is_one():
    assert "security" not in DOCUMENT
    document = openapi_document(ServiceSettings(token="0123456789abcdef"))
    assert document["security"] == [{"token": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "0123456789abcdef" not in json.dumps(document)


def test_every_parameter_is_described():
    described = [parameter["name"] for parameter in DOCUMENT["paths"]["/search"]["post"]["parameters"]]
    with pytest.raises(Refused) as caught:
        read_question(b"zork=1", 5)
    assert str(caught.value).endswith(f"allowed: {', '.join(described)}")


def test_limits_are_described():
    document = openapi_document(ServiceSettings(limits=Limits(max_k=5, max_bytes=1234, max_pixels=99)))
    k = document["paths"]["/search"]["post"]["parameters"][0]["schema"]
    assert (k["maximum"], k["default"]) == (5, 5)
    assert "1,234 bytes and 99 pixels" in json.dumps(document)
