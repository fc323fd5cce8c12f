"""The OpenAPI 3.1 description of the service; a test compares it with the routes and the answers there are."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from ke_metric.serving.pictures import CONTENT_TYPES, FORMATS
from ke_metric.serving.service import DEFAULT_CLASSES, DEFAULT_K
from ke_metric.serving.settings import Limits, ServiceSettings

Document = dict[str, Any]

REASONS = {
    "400": "A parameter is unknown or has a value that is not allowed, or the request is no HTTP.",
    "401": "The token is missing or wrong; only where the service has one.",
    "403": "The Host header names another machine, or a page of another origin asks.",
    "404": "There is nothing at this path, or no picture of this id.",
    "405": "The path does not take this method.",
    "408": "Headers or upload came too slowly; the connection is closed.",
    "413": "The upload has too many bytes, or the picture too many pixels.",
    "415": "Content type or content is not JPEG, PNG or WebP, or one is not the other.",
    "422": "The picture cannot be decoded: it is damaged or cut off; or it is too long a strip.",
    "431": "The headers are too large.",
    "500": "A mistake of the service; its log says what.",
    "503": "Too much to do, starting or stopping; try again after Retry-After seconds.",
}
# Of every route: also what is refused before a route is found, as too slow headers and too many connections are.
ANY_REASONS = ("400", "403", "405", "408", "431", "500", "503")
READ_REASONS = (*ANY_REASONS, "401")
UPLOAD_REASONS = (*READ_REASONS, "413", "415", "422")
RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}}}


def openapi_document(settings: ServiceSettings) -> Document:
    """Return the description of a service with these settings."""
    limits, searches = settings.limits, settings.serves == "index"
    asked: Document = {"/predict": {"post": _predict(limits)}}
    if searches:
        asked = {
            "/search": {"post": _search(limits)},
            "/embed": {"post": _embed(limits)},
            "/images/{id}": {"get": _image()},
        }
    answers = SEARCH_SCHEMAS if searches else PREDICT_SCHEMAS
    document: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "ke-metric serve",
            "version": version("ke_metric"),
            "description": "Search an index of pictures with a picture."
            if searches
            else "Tell what a picture shows.",
        },
        "paths": {
            **asked,
            "/health": {"get": _health()},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _description()},
        },
        "components": {"schemas": answers | SCHEMAS},
    }
    if settings.token is not None:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        document["paths"]["/health"]["get"]["security"] = []
    return document


def _search(limits: Limits) -> Document:
    k = {"type": "integer", "minimum": 1, "maximum": limits.max_k, "default": min(DEFAULT_K, limits.max_k)}
    where = (
        'Only items for which this holds: label == "crow", id != "a.jpg", label in ["crow", "jay"], joined by and.'
    )
    return {
        "operationId": "search",
        "summary": "The items of the gallery most similar to a picture.",
        "parameters": [
            {"name": "k", "in": "query", "description": "How many.", "schema": k},
            {"name": "where", "in": "query", "description": where, "schema": {"type": "string"}},
        ],
        "requestBody": _picture(limits),
        "responses": {"200": _json("SearchAnswer", "Most similar first."), **_reasons(UPLOAD_REASONS)},
    }


def _predict(limits: Limits) -> Document:
    k = {
        "type": "integer", "minimum": 1, "maximum": limits.max_k, "default": min(DEFAULT_CLASSES, limits.max_k)
    }  # fmt: skip
    return {
        "operationId": "predict",
        "summary": "The classes that a picture is most likely of.",
        "parameters": [
            {"name": "k", "in": "query", "description": "How many; all where there are fewer.", "schema": k}
        ],
        "requestBody": _picture(limits),
        "responses": {"200": _json("PredictAnswer", "Likeliest first."), **_reasons(UPLOAD_REASONS)},
    }


def _embed(limits: Limits) -> Document:
    return {
        "operationId": "embed",
        "summary": "The embedding of a picture.",
        "requestBody": _picture(limits),
        "responses": {"200": _json("EmbedAnswer", "L2-normalised."), **_reasons(UPLOAD_REASONS)},
    }


def _image() -> Document:
    types = sorted({name.decode() for name in CONTENT_TYPES.values()})
    return {
        "operationId": "image",
        "summary": "The picture of an item of the gallery.",
        "parameters": [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "description": "Percent-encoded.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 1024},
            }
        ],
        "responses": {
            "200": {"description": "The file as it is.", "content": {name: {} for name in types}},
            **_reasons((*READ_REASONS, "404")),
        },
    }


def _health() -> Document:
    return {
        "operationId": "health",
        "summary": "Whether searches are answered; needs no token.",
        "responses": {
            **_reasons(ANY_REASONS),
            "200": _json("Health", "Ready."),
            "503": _not_ready(),
        },
    }


def _metrics() -> Document:
    return {
        "operationId": "metrics",
        "summary": "Counters for Prometheus.",
        "responses": {
            "200": {
                "description": "Prometheus text format.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **_reasons(READ_REASONS),
        },
    }


def _description() -> Document:
    return {
        "operationId": "description",
        "summary": "This document.",
        "responses": {
            "200": {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}},
            **_reasons(READ_REASONS),
        },
    }


def _picture(limits: Limits) -> Document:
    return {
        "required": True,
        "description": f"The file: at most {limits.max_bytes:,} bytes and {limits.max_pixels:,} pixels.",
        "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in FORMATS},
    }


def _json(schema: str, description: str) -> Document:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _not_ready() -> Document:
    schemas = [{"$ref": f"#/components/schemas/{name}"} for name in ("Health", "Error")]
    return {
        "description": "Starting or stopping; or an error: too many connections.",
        "headers": RETRY_AFTER,
        "content": {"application/json": {"schema": {"anyOf": schemas}}},
    }


def _reasons(statuses: tuple[str, ...]) -> Document:
    found = {status: _json("Error", REASONS[status]) for status in sorted(statuses)}
    found["503"]["headers"] = RETRY_AFTER
    return found


def _object(*, optional: Document | None = None, **properties: Document) -> Document:
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties | (optional or {}),
        "additionalProperties": False,
    }


TEXT: Document = {"type": "string"}
DIGEST: Document = {"type": "string", "description": "SHA-256 of what the vectors depend on."}
SEARCH_SCHEMAS: Document = {
    "SearchAnswer": _object(
        results={"type": "array", "items": {"$ref": "#/components/schemas/Result"}},
        digest=DIGEST,
        optional={"note": {"type": "string", "description": "That no item meets the condition where."}},
    ),
    "Result": _object(
        rank={"type": "integer", "minimum": 1},
        id=TEXT,
        label={"type": "string", "description": "Empty where it is not known."},
        image={"type": "string", "description": "Path of its picture here."},
        similarity={"type": "number", "description": "Cosine similarity; higher is better."},
    ),
    "EmbedAnswer": _object(embedding={"type": "array", "items": {"type": "number"}}, digest=DIGEST),
}
PREDICT_SCHEMAS: Document = {
    "PredictAnswer": _object(
        predictions={"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}, digest=DIGEST
    ),
    "Prediction": _object(label=TEXT, probability={"type": "number", "minimum": 0, "maximum": 1}),
}
SCHEMAS: Document = {
    "Health": _object(status={"enum": ["starting", "ready", "stopping"]}),
    "Error": _object(error=TEXT),
}
