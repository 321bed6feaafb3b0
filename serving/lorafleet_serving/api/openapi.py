"""The OpenAPI document: what FastAPI reads off the routes, and what it cannot know: answers, errors, headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from lorafleet_contract.fleet import PodReport, VersionReport
from lorafleet_contract.webhook import DELIVERY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from lorafleet_serving.api import lorax_answers as lorax, openai_answers as openai, pod_answers as pod
from lorafleet_serving.api.answer import ADAPTER_HEADER, DIGEST_HEADER
from lorafleet_serving.api.callers import MAX_USER_CHARACTERS, PRIORITY_HEADER, TIMEOUT_HEADER, USER_HEADER
from lorafleet_serving.api.errors import FINAL_STATUSES, LORAX_PATHS, RETRY_STATUSES, statuses
from lorafleet_serving.api.lorax_headers import ADAPTER_HEADERS, MODEL_HEADERS, TIMING_HEADERS
from lorafleet_serving.api.rate_headers import RATE_HEADERS
from lorafleet_serving.api.sse import END_OF_STREAM
from lorafleet_serving.engine.request import PRIORITIES
from lorafleet_serving.exceptions import (
    AdapterInUse,
    AdapterNotReady,
    AdapterWithdrawn,
    BodyTooLong,
    CannotLoad,
    DeadlineExceeded,
    Forbidden,
    GenerationFailed,
    InvalidRequest,
    NameTaken,
    NoRoom,
    PodUnavailable,
    PromptTooLong,
    QueueFull,
    QuotaExceeded,
    ServingError,
    Unauthorized,
    UnknownAdapter,
)

Json = dict[str, Any]
Errors = tuple[type[ServingError], ...]

_JSON = "application/json"
_EVENTS = "text/event-stream"
_TEXT: Mapping[str, str] = {"type": "string"}
_ADAPTER_ERRORS: Errors = (UnknownAdapter, Forbidden, AdapterNotReady, AdapterWithdrawn, NoRoom)
_BODY_ERRORS: Errors = (Unauthorized, BodyTooLong, InvalidRequest)
_WORK_ERRORS: Errors = (PromptTooLong, QueueFull, QuotaExceeded, GenerationFailed, PodUnavailable, DeadlineExceeded)
_ASKS: Errors = (*_BODY_ERRORS, *_ADAPTER_ERRORS, *_WORK_ERRORS)
_KEY, _ADMIN = "ApiKey", "AdminToken"
_ANSWER_HEADERS = {
    ADAPTER_HEADER: "The version that answers, `name:version`; empty for the base model",
    DIGEST_HEADER: "Digest of what answers",
}
_LORAX_HEADERS = _ANSWER_HEADERS | MODEL_HEADERS
_WHOLE_HEADERS = _LORAX_HEADERS | TIMING_HEADERS
_EITHER_HEADERS = ADAPTER_HEADERS | TIMING_HEADERS


@dataclass(frozen=True)
class _Route:
    """What a route answers."""

    answer: Any
    """Type of the JSON; None where it is text."""
    errors: Errors = ()
    event: Any = None
    """Type of the JSON of an event, where the answer can be a stream."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of every answer, and what they tell."""
    other_headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of some answers."""
    text: str | None = None
    """Media type of an answer that is text."""
    unready: Any = None
    """Type of what is answered with 503."""


_ROUTES: dict[tuple[str, str], _Route] = {
    ("post", "/v1/completions"): _Route(openai.Completion, _ASKS, openai.CompletionChunk, headers=_ANSWER_HEADERS),
    ("post", "/v1/chat/completions"): _Route(
        openai.ChatCompletion, _ASKS, openai.ChatCompletionChunk, headers=_ANSWER_HEADERS
    ),
    ("post", "/v1/embeddings"): _Route(openai.EmbeddingList, _ASKS, headers=_ANSWER_HEADERS),
    ("get", "/v1/models"): _Route(openai.ModelList),
    ("get", "/v1/models/{model_id}"): _Route(openai.ModelEntry, (UnknownAdapter,)),
    ("post", "/"): _Route(
        list[lorax.Generated], _ASKS, lorax.GeneratedEvent, headers=_LORAX_HEADERS, other_headers=_EITHER_HEADERS
    ),
    ("post", "/invocations"): _Route(
        list[lorax.Generated], _ASKS, lorax.GeneratedEvent, headers=_LORAX_HEADERS, other_headers=_EITHER_HEADERS
    ),
    ("post", "/generate"): _Route(lorax.Generated, _ASKS, headers=_WHOLE_HEADERS, other_headers=ADAPTER_HEADERS),
    ("post", "/generate_stream"): _Route(
        None, _ASKS, lorax.GeneratedEvent, headers=_LORAX_HEADERS, other_headers=ADAPTER_HEADERS
    ),
    ("post", "/embed"): _Route(lorax.Embedded, _ASKS, headers=_WHOLE_HEADERS, other_headers=ADAPTER_HEADERS),
    ("post", "/classify"): _Route(None, _BODY_ERRORS),
    ("post", "/classify_batch"): _Route(None, _BODY_ERRORS),
    ("post", "/tokenize"): _Route(
        list[lorax.PlacedToken], (*_BODY_ERRORS, PromptTooLong, QuotaExceeded, PodUnavailable)
    ),
    ("get", "/info"): _Route(lorax.Info, (PodUnavailable,)),
    ("get", "/v1/adapters"): _Route(PodReport, (Unauthorized, Forbidden)),
    ("post", "/v1/adapters/{action}"): _Route(
        VersionReport, (*_BODY_ERRORS, *_ADAPTER_ERRORS, AdapterInUse, QueueFull, PodUnavailable)
    ),
    ("post", "/v1/load_lora_adapter"): _Route(
        None, (*_BODY_ERRORS, Forbidden, CannotLoad, NameTaken, NoRoom, PodUnavailable), text="text/plain"
    ),
    ("post", "/v1/unload_lora_adapter"): _Route(
        None,
        (*_BODY_ERRORS, Forbidden, CannotLoad, NameTaken, UnknownAdapter, PodUnavailable),
        text="text/plain",
    ),
    ("post", "/v1/registry/webhook"): _Route(pod.DeliveryTaken, (Unauthorized, Forbidden, BodyTooLong, InvalidRequest)),
    ("get", "/"): _Route(pod.Health, unready=pod.EngineDown),
    ("get", "/health"): _Route(pod.Health, unready=pod.EngineDown),
    ("get", "/ping"): _Route(pod.Health, unready=pod.EngineDown),
    ("get", "/ready"): _Route(pod.Readiness, unready=pod.Readiness),
    ("get", "/startup"): _Route(pod.Readiness, unready=pod.Readiness),
    ("get", "/v2/health/ready"): _Route(pod.Readiness, unready=pod.Readiness),
    ("get", "/v2/health/live"): _Route(pod.Liveness),
    ("get", "/version"): _Route(pod.Version),
    ("get", "/metrics"): _Route(None, text="text/plain"),
}


def install_document(app: FastAPI) -> None:
    """Have the application describe itself in full."""

    def document() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> Json:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=_DESCRIPTION,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    components = _Components(document["components"]["schemas"])
    for method, path, operation in _operations(document):
        route = _ROUTES[method, path]
        operation["responses"] = {**_success(path, route, components), **_failures(path, route, components)}
        _add_request(method, path, operation, components)
    document["components"]["securitySchemes"] = {
        _KEY: {"type": "http", "scheme": "bearer", "description": "A key of the pod, where it tells callers apart"},
        _ADMIN: {"type": "http", "scheme": "bearer", "description": "LORAFLEET_ADMIN_TOKEN"},
    }
    for name in ("HTTPValidationError", "ValidationError"):
        components.schemas.pop(name, None)
    return document


_DESCRIPTION = """\
OpenAI's routes, LoRAX's routes, and those of the platform. Unknown fields are refused with 422; every error names the
field that is at fault. Streams are server-sent events; an error that comes after a stream has begun is its last event,
in the form of the errors here. Constraints that no answer can follow, or that are too complex, are refused with 422."""


class _Components:
    """Schemas that the document refers to."""

    def __init__(self, schemas: Json) -> None:
        self.schemas = schemas

    def schema(self, kind: Any) -> Json:
        """The schema of a type; those that it refers to are added."""
        found = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}")
        self.schemas.update(found.pop("$defs", {}))
        if not isinstance(kind, type) or "title" not in found:
            return found
        self.schemas[kind.__name__] = found
        return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def _success(path: str, route: _Route, components: _Components) -> Json:
    content: Json = {}
    if route.answer is not None:
        content[_JSON] = {"schema": components.schema(route.answer)}
    if route.event is not None:
        content[_EVENTS] = {"schema": _event(path, route, components)}
    if route.text is not None:
        content[route.text] = {"schema": _TEXT}
    if not content:
        return {}  # A route that only tells why it is not served.
    answer: Json = {"description": "The answer", "content": content}
    headers = {name: _header(told) for name, told in route.headers.items()}
    headers |= {name: _header(told, required=False) for name, told in {**route.other_headers, **_rates(route)}.items()}
    if headers:
        answer["headers"] = headers
    return {"200": answer}


def _rates(route: _Route) -> Mapping[str, str]:
    return RATE_HEADERS if QuotaExceeded in route.errors else {}


def _event(path: str, route: _Route, components: _Components) -> Json:
    """A stream is a sequence of these; an error that comes after it has begun is the last."""
    bodies = {"anyOf": [components.schema(route.event), components.schema(_error(path))]}
    data: Json = {**_TEXT, "contentMediaType": _JSON, "contentSchema": bodies}
    if path not in LORAX_PATHS:
        data = {"anyOf": [{"const": END_OF_STREAM}, data]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _error(path: str) -> type[openai.AnswerBody]:
    return lorax.LoraxError if path in LORAX_PATHS else openai.OpenAIError


def _failures(path: str, route: _Route, components: _Components) -> Json:
    envelope = components.schema(_error(path))
    failures: Json = {}
    for status, told in statuses(route.errors).items():
        failures[str(status)] = {"description": told, "content": {_JSON: {"schema": envelope}}}
        if status in RETRY_STATUSES:
            failures[str(status)]["headers"] = {"Retry-After": _header("Seconds after which to ask again", "integer")}
        if status == 429:
            rates = {name: _header(told, required=False) for name, told in _rates(route).items()}
            failures[str(status)]["headers"] |= rates
        if status == 401:
            failures[str(status)]["headers"] = {"WWW-Authenticate": _header("How to show a key")}
        if status in FINAL_STATUSES:
            failures[str(status)]["headers"] = {
                "X-Should-Retry": _header("`false`: to ask again is for the caller to decide")
            }
    if route.unready is not None:
        schema = components.schema(route.unready)
        failures["503"] = {"description": "It is not", "content": {_JSON: {"schema": schema}}}
    return failures


def _add_request(method: str, path: str, operation: Json, components: _Components) -> None:
    """What a route reads off the request beside its body."""
    if path.startswith("/v1/adapters") or path.endswith("load_lora_adapter"):
        operation["security"] = [{_ADMIN: []}]
    elif path == "/v1/registry/webhook":
        operation["requestBody"] = {
            "required": True,
            "content": {_JSON: {"schema": components.schema(pod.Delivery)}},
        }
        signed = {
            DELIVERY_HEADER: "Id of the delivery",
            TIMESTAMP_HEADER: "Its time",
            SIGNATURE_HEADER: "Its signature",
        }
        operation["parameters"] = [_parameter(name, told, _TEXT) for name, told in signed.items()]
    elif method == "post":
        operation["security"] = [{}, {_KEY: []}]
        if DeadlineExceeded in _ROUTES[method, path].errors:
            operation["parameters"] = [
                _parameter(
                    TIMEOUT_HEADER,
                    "Seconds after which the request is given up",
                    {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
                ),
                _parameter(
                    PRIORITY_HEADER,
                    "Higher ones go first, as far as the key may; 0 unless set",
                    {"type": "integer", "minimum": PRIORITIES[0], "maximum": PRIORITIES[-1]},
                ),
                _parameter(
                    USER_HEADER,
                    "Whom the request is for: a canary answers the same users again and again",
                    {"type": "string", "maxLength": MAX_USER_CHARACTERS},
                ),
            ]


def _parameter(name: str, told: str, schema: Mapping[str, Any]) -> Json:
    return {"name": name, "in": "header", "required": False, "description": told, "schema": schema}


def _header(told: str, kind: str = "string", *, required: bool = True) -> Json:
    return {"description": told, "required": required, "schema": {"type": kind}}
