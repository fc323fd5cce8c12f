"""What can be asked and what is answered: query strings, JSON documents, and the OpenAPI document that tells both.

An answer is a dataclass; pydantic makes of it the bytes that are sent and the schema that describes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl, quote

from pydantic import ConfigDict, Field, TypeAdapter

from ke_metric.errors import KeMetricError
from ke_metric.retrieval.index import Result
from ke_metric.retrieval.predictor import Prediction
from ke_metric.retrieval.query import SearchOptions
from ke_metric.retrieval.ranking import EXPANSION_FORM, RERANKING_FORM
from ke_metric.serving.exchange import Limits, Refused, ServiceSettings
from ke_metric.serving.pictures import CONTENT_TYPES, FORMATS, can_be_id
from ke_metric.stores.contract import LONGEST_TEXT

Document = dict[str, Any]
State = Literal["starting", "ready", "stopping"]

DEFAULT_K = 10
DEFAULT_CLASSES = 5
LONGEST_KEPT = 256
"""Longer query strings are read anew each time: kept, those that somebody makes up would fill the memory."""
CLOSED = ConfigDict(extra="forbid")
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
TEXT: Document = {"type": "string"}
IDENTIFIER: Document = {"type": "string", "minLength": 1, "maxLength": LONGEST_TEXT}
SEARCH_PARAMETERS = {
    "where": 'Only items for which it holds: label == "crow", id != "a.jpg", label in ["a", "b"], joined by and.',
    "expand": f"Query expansion, the query moved towards its nearest items first: {EXPANSION_FORM}.",
    "rerank": f"k-reciprocal re-ranking of what is found: {RERANKING_FORM}.",
    "exclude": "Id of an item that is never a result: of the one whose picture is sent.",
}


# --- what is asked ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """How the gallery is searched.

    Attributes:
        options: As in the library.
        exclude: Id of an item that is left out, the picture's own; None: none is.
    """

    options: SearchOptions
    exclude: str | None = None


@dataclass(frozen=True)
class ClassQuestion:
    """How many of the likeliest classes are told; all where there are fewer."""

    k: int


def read_question(query: bytes, max_k: int) -> Question:
    """Read the query string of a search.

    Raises:
        Refused: 400: a parameter is unknown, comes twice, or has a value that is not allowed.
    """
    return _read_short(query, max_k) if len(query) <= LONGEST_KEPT else _read(query, max_k)


def _read(query: bytes, max_k: int) -> Question:
    given = read_parameters(query, ("k", *SEARCH_PARAMETERS))
    k = _read_k(given, DEFAULT_K, max_k)
    try:
        options = SearchOptions.parse(
            k, where=given.get("where"), expand=given.get("expand"), rerank=given.get("rerank"), keep_self=True
        )
    except KeMetricError as error:
        raise Refused(400, str(error)) from None
    if options.where is not None and any(condition.field == "path" for condition in options.where.conditions):
        raise Refused(400, "where: paths are not shown here and cannot be asked for; there are id and label")
    if options.depth > max_k:
        raise Refused(400, f"expand, rerank: {options.depth:,} neighbours of a query, at most {max_k} are looked at")
    if "exclude" in given and not can_be_id(given["exclude"]):
        raise Refused(400, "exclude: no item can have this id")
    return Question(options, given.get("exclude"))


_read_short = lru_cache(maxsize=1024)(_read)


def read_class_question(query: bytes, max_k: int) -> ClassQuestion:
    """Read the query string of a prediction.

    Raises:
        Refused: 400: a parameter is unknown, comes twice, or has a value that is not allowed.
    """
    return ClassQuestion(_read_k(read_parameters(query, ("k",)), DEFAULT_CLASSES, max_k))


def _read_k(given: dict[str, str], default: int, max_k: int) -> int:
    k = given.get("k", str(min(default, max_k)))
    if not (k.isascii() and k.isdecimal() and len(k) <= 9 and 1 <= int(k) <= max_k):
        raise Refused(400, f"k = {k[:20]!r}: must be a whole number from 1 to {max_k}")
    return int(k)


def read_parameters(query: bytes, allowed: tuple[str, ...] = ()) -> dict[str, str]:
    """Read a query string.

    Raises:
        Refused: 400: it is none, or a parameter is not among those allowed or comes twice.
    """
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=8,
        )
    except ValueError:
        raise Refused(400, "the query string cannot be read") from None
    given = dict(pairs)
    unknown = [name for name in given if name not in allowed]
    if unknown or len(given) < len(pairs):
        wrong = f"parameter {unknown[0][:40]!r} is unknown" if unknown else "a parameter comes twice"
        raise Refused(400, f"{wrong}; allowed: {', '.join(allowed) or 'none'}")
    return given


# --- what is answered ---------------------------------------------------------------------------------------------

Digest = Annotated[str, Field(description="SHA-256 of what the vectors depend on.")]


@dataclass(slots=True)
class SearchAnswer:
    """What a search found."""

    @dataclass(slots=True)
    class Result:
        """One item of the gallery; no path of this machine, but where to get its picture from here."""

        __pydantic_config__: ClassVar = CLOSED
        rank: Annotated[int, Field(ge=1)]
        id: str
        label: Annotated[str, Field(description="Empty where it is not known.")]
        image: Annotated[str, Field(description="Path of its picture here.")]
        similarity: Annotated[
            float,
            Field(description="Cosine similarity, or what a re-ranking puts in its place; higher is better."),
        ]

    __pydantic_config__: ClassVar = CLOSED
    results: list[SearchAnswer.Result]
    digest: Digest
    note: Annotated[str, Field(description="That no item meets the condition where.")] = ""


@dataclass(slots=True)
class PredictAnswer:
    """What a picture is likely of."""

    @dataclass(slots=True)
    class Prediction:
        """One class."""

        __pydantic_config__: ClassVar = CLOSED
        label: str
        probability: Annotated[float, Field(ge=0, le=1)]

    __pydantic_config__: ClassVar = CLOSED
    predictions: list[PredictAnswer.Prediction]
    digest: Digest


@dataclass(slots=True)
class EmbedAnswer:
    """The embedding of a picture."""

    __pydantic_config__: ClassVar = CLOSED
    embedding: list[float]
    digest: Digest


@dataclass(slots=True)
class Health:
    """Whether searches are answered."""

    __pydantic_config__: ClassVar = CLOSED
    status: State


@dataclass(slots=True)
class Error:
    """What every refused request is told."""

    __pydantic_config__: ClassVar = CLOSED
    error: str


ANSWERS: dict[Any, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (SearchAnswer, PredictAnswer, EmbedAnswer, Health, Error)
}


def search_document(results: Sequence[Result], digest: str, *, note: str = "") -> bytes:
    """Return the answer to a search, most similar first; `note` is what is to be said of it, empty for nothing."""
    found = [
        SearchAnswer.Result(result.rank, result.id, result.label, _address(result.id), result.similarity)
        for result in results
    ]
    return ANSWERS[SearchAnswer].dump_json(SearchAnswer(found, digest, note), exclude_defaults=True)


@lru_cache(maxsize=16_384)
def _address(identifier: str) -> str:
    return f"/images/{quote(identifier, safe='')}"


def prediction_document(predictions: Sequence[Prediction], digest: str) -> bytes:
    """Return the answer to a prediction."""
    likely = [PredictAnswer.Prediction(found.label, found.probability) for found in predictions]
    return ANSWERS[PredictAnswer].dump_json(PredictAnswer(likely, digest))


def embedding_document(vector: list[float], digest: str) -> bytes:
    """Return the answer to an embedding, [D] numbers."""
    return ANSWERS[EmbedAnswer].dump_json(EmbedAnswer(vector, digest))


def health_document(state: State) -> bytes:
    """Return what /health answers."""
    return ANSWERS[Health].dump_json(Health(state))


# --- the description ----------------------------------------------------------------------------------------------


def openapi_document(settings: ServiceSettings) -> Document:
    """Return the OpenAPI 3.1 description of a service with these settings."""
    limits, searches = settings.limits, settings.serves == "index"
    asked = _asked_of_index(limits) if searches else {"/predict": {"post": _predict(limits)}}
    answers = [SearchAnswer, EmbedAnswer] if searches else [PredictAnswer]
    document: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "ke-metric serve",
            "version": version("ke_metric"),
            "description": "Search an index of pictures with a picture."
            if searches
            else "Tell what a picture shows.",
        },
        "paths": {**asked, **_about_the_service()},
        "components": {"schemas": _schemas([*answers, Health, Error])},
    }
    if settings.token is not None:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        document["paths"]["/health"]["get"]["security"] = []
    return document


def _schemas(answers: Sequence[Any]) -> Document:
    asked = [(kind, "serialization", ANSWERS[kind]) for kind in answers]
    _, found = TypeAdapter.json_schemas(asked, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    schemas: Document = found["$defs"]
    return schemas


def _asked_of_index(limits: Limits) -> Document:
    types = sorted({name.decode() for name in CONTENT_TYPES.values()})
    search = {
        "operationId": "search",
        "summary": "The items of the gallery most similar to a picture.",
        "parameters": [
            _k("How many.", DEFAULT_K, limits),
            *(_text(name, said) for name, said in SEARCH_PARAMETERS.items()),
        ],
        "requestBody": _picture(limits),
        "responses": {"200": _json("SearchAnswer", "Most similar first."), **_reasons(UPLOAD_REASONS)},
    }
    embed = {
        "operationId": "embed",
        "summary": "The embedding of a picture.",
        "requestBody": _picture(limits),
        "responses": {"200": _json("EmbedAnswer", "L2-normalised."), **_reasons(UPLOAD_REASONS)},
    }
    image = {
        "operationId": "image",
        "summary": "The picture of an item of the gallery.",
        "parameters": [
            {"name": "id", "in": "path", "required": True, "description": "Percent-encoded.", "schema": IDENTIFIER}
        ],
        "responses": {
            "200": {"description": "The file as it is.", "content": {name: {} for name in types}},
            **_reasons((*READ_REASONS, "404")),
        },
    }
    return {"/search": {"post": search}, "/embed": {"post": embed}, "/images/{id}": {"get": image}}


def _predict(limits: Limits) -> Document:
    return {
        "operationId": "predict",
        "summary": "The classes that a picture is most likely of.",
        "parameters": [_k("How many; all where there are fewer.", DEFAULT_CLASSES, limits)],
        "requestBody": _picture(limits),
        "responses": {"200": _json("PredictAnswer", "Likeliest first."), **_reasons(UPLOAD_REASONS)},
    }


def _about_the_service() -> Document:
    not_ready = _json("Error", "Starting or stopping; or an error: too many connections.")
    schemas = [{"$ref": f"#/components/schemas/{name}"} for name in ("Health", "Error")]
    not_ready |= {"headers": RETRY_AFTER, "content": {"application/json": {"schema": {"anyOf": schemas}}}}
    health = {**_reasons(ANY_REASONS), "200": _json("Health", "Ready."), "503": not_ready}
    prometheus = {"description": "Prometheus text format.", "content": {"text/plain": {"schema": TEXT}}}
    described = {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}}
    told = {
        "/health": ("health", "Whether searches are answered; needs no token.", health),
        "/metrics": ("metrics", "Counters for Prometheus.", {"200": prometheus, **_reasons(READ_REASONS)}),
        "/openapi.json": ("description", "This document.", {"200": described, **_reasons(READ_REASONS)}),
    }
    return {
        path: {"get": {"operationId": name, "summary": summary, "responses": responses}}
        for path, (name, summary, responses) in told.items()
    }


def _k(description: str, default: int, limits: Limits) -> Document:
    schema = {"type": "integer", "minimum": 1, "maximum": limits.max_k, "default": min(default, limits.max_k)}
    return {"name": "k", "in": "query", "description": description, "schema": schema}


def _text(name: str, description: str) -> Document:
    schema = IDENTIFIER if name == "exclude" else TEXT
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _picture(limits: Limits) -> Document:
    return {
        "required": True,
        "description": f"The file: at most {limits.max_bytes:,} bytes and {limits.max_pixels:,} pixels.",
        "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in FORMATS},
    }


def _json(schema: str, description: str) -> Document:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _reasons(statuses: tuple[str, ...]) -> Document:
    found = {status: _json("Error", REASONS[status]) for status in sorted(statuses)}
    found["503"]["headers"] = RETRY_AFTER
    return found
