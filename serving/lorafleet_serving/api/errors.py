"""Errors as HTTP answers. The one place where a status is decided, and where both envelopes are written."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lorafleet_contract.exceptions import InvalidTemplate
from lorafleet_serving.exceptions import (
    AdapterInUse,
    AdapterNotReady,
    AdapterWithdrawn,
    AnswerLost,
    BodyTooLong,
    CannotLoad,
    ClientGone,
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
    TryLater,
    Unauthorized,
    UnknownAdapter,
)

_logger = logging.getLogger(__name__)

LORAX_PATHS = frozenset(
    {
        "/", "/invocations", "/generate", "/generate_stream", "/embed", "/classify", "/classify_batch", "/tokenize",
        "/info",
    }
)  # fmt: skip


@dataclass(frozen=True)
class _Answer:
    """How one kind of error is answered."""

    status: int
    kind: str
    """`type` of the OpenAI envelope."""
    lorax_kind: str
    """`error_type` of LoRAX: its client raises by it, or by the status where it does not know it."""
    retry_after_s: int | None = None
    may_repeat: bool = True
    """Whether OpenAI's library, which repeats a request after any 5xx, may do so here."""


_ANSWERS: dict[type[Exception], _Answer] = {
    # As vLLM answers, whose route this is.
    CannotLoad: _Answer(400, "InvalidUserInput", "validation"),
    Unauthorized: _Answer(401, "authentication_error", "unauthorized"),
    Forbidden: _Answer(403, "permission_error", "forbidden"),
    UnknownAdapter: _Answer(404, "not_found_error", "not_found"),
    NameTaken: _Answer(409, "conflict_error", "name_taken"),
    AdapterInUse: _Answer(409, "conflict_error", "in_use", retry_after_s=1),
    AdapterNotReady: _Answer(409, "conflict_error", "not_ready", retry_after_s=1),
    AdapterWithdrawn: _Answer(410, "gone_error", "withdrawn"),
    BodyTooLong: _Answer(413, "invalid_request_error", "validation"),
    PromptTooLong: _Answer(413, "invalid_request_error", "validation"),
    InvalidRequest: _Answer(422, "invalid_request_error", "validation"),
    InvalidTemplate: _Answer(422, "invalid_request_error", "validation"),
    QueueFull: _Answer(429, "rate_limit_error", "overloaded", retry_after_s=1),
    QuotaExceeded: _Answer(429, "rate_limit_error", "rate_limit", retry_after_s=1),
    # Proxies' word for it, for our own eyes: no client sees it.
    ClientGone: _Answer(499, "client_error", "client_gone"),
    GenerationFailed: _Answer(500, "server_error", "generation"),
    PodUnavailable: _Answer(503, "unavailable_error", "unavailable", retry_after_s=2),
    AnswerLost: _Answer(503, "unavailable_error", "incomplete_generation", retry_after_s=2),
    # The caller has set the time: asking again in the same way is for it to decide, not for its library.
    DeadlineExceeded: _Answer(504, "timeout_error", "timeout", may_repeat=False),
    NoRoom: _Answer(507, "insufficient_storage_error", "no_room", retry_after_s=30),
}
RETRY_STATUSES = frozenset(answer.status for answer in _ANSWERS.values() if answer.retry_after_s is not None)
"""Statuses that come with `Retry-After`."""
FINAL_STATUSES = frozenset(answer.status for answer in _ANSWERS.values() if not answer.may_repeat)
"""Statuses that come with `X-Should-Retry: false`."""
_OWN_FAULT = _Answer(500, "server_error", "generation")


class ErrorResponse(JSONResponse):
    """The answer to an error; `reason` is its kind, one of few."""

    def __init__(self, body: Mapping[str, Any], answer: _Answer, headers: Mapping[str, str]) -> None:
        super().__init__(body, answer.status, headers)
        self.reason = answer.lorax_kind


def install_handlers(app: FastAPI, on_refusal: Callable[[str], None]) -> None:
    """Have the application answer every error through this module; `on_refusal` is told the reason of each."""

    def counted(answer: Callable[[Request, Exception], ErrorResponse]) -> Callable[[Request, Exception], Response]:
        def handle(request: Request, error: Exception) -> Response:
            response = answer(request, error)
            on_refusal(response.reason)
            return response

        return handle

    for kind in _ANSWERS:
        app.add_exception_handler(kind, counted(_answer_known))
    app.add_exception_handler(RequestValidationError, counted(_answer_invalid))
    app.add_exception_handler(HTTPException, counted(_answer_http))
    app.add_exception_handler(RecursionError, counted(_answer_too_deep))
    app.add_exception_handler(Exception, counted(_answer_own_fault))


def envelope(error: Exception, *, lorax: bool) -> dict[str, Any]:
    """The body that tells of an error, in an answer or as an event of a stream."""
    answer = _ANSWERS.get(type(error), _OWN_FAULT)
    message = str(error) if answer is not _OWN_FAULT else "internal error: see the pod's log"
    return _envelope(message, answer, _parameter(error), lorax=lorax)


def statuses(kinds: Iterable[type[Exception]]) -> dict[int, str]:
    """The statuses of kinds of errors, each with when it is answered."""
    told: dict[int, list[str]] = {}
    for kind in kinds:
        summary = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
        told.setdefault(_ANSWERS[kind].status, []).append(summary.replace("Raised when", "When", 1))
    return {status: " ".join(lines) for status, lines in sorted(told.items())}


def error_response(path: str, error: Exception) -> ErrorResponse:
    """The answer to an error that this module knows, on a path of either dialect."""
    answer = _ANSWERS[type(error)]
    if isinstance(error, TryLater):
        answer = replace(answer, retry_after_s=error.retry_after_s)
    return _response(path, str(error), answer, _parameter(error))


def _answer_known(request: Request, error: Exception) -> ErrorResponse:
    return error_response(request.url.path, error)


def _answer_invalid(request: Request, error: Exception) -> ErrorResponse:
    assert isinstance(error, RequestValidationError)
    first: Mapping[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        message = f"the body is not JSON, from character {first['loc'][-1]} on: {first['ctx']['error']}"
        return _response(request.url.path, message, _ANSWERS[InvalidRequest], None)
    # Where a field may be of several types, the one that it nearly is tells more than those that it is not.
    same_field = [found for found in error.errors() if found["loc"][:2] == first["loc"][:2]]
    told = next((found for found in same_field if not found["type"].endswith("_type")), first)
    place = [str(part) for part in told["loc"] if part != "body" and _is_name(part)]
    message = f"{'.'.join(place) or 'body'}: {told['msg']}"
    return _response(request.url.path, message, _ANSWERS[InvalidRequest], place[0] if place else None)


def _is_name(part: str | int) -> bool:
    """Whether a part of a place is a field's or an item's, and not a name that one of several types has."""
    return isinstance(part, int) or part.isidentifier()


def _answer_http(request: Request, error: Exception) -> ErrorResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # The framework's word for a body that breaks its JSON parser: too deep, too long.
        return _response(request.url.path, "the body cannot be read as JSON", _ANSWERS[InvalidRequest], None)
    answer = _Answer(error.status_code, "invalid_request_error", "not_found")
    return _response(request.url.path, str(error.detail), answer, None, error.headers)


def _answer_too_deep(request: Request, error: Exception) -> ErrorResponse:
    message = "the body is nested too deeply: send a flatter one"
    return _response(request.url.path, message, _ANSWERS[InvalidRequest], None)


def _answer_own_fault(request: Request, error: Exception) -> ErrorResponse:
    _logger.error("request %s %s failed", request.method, request.url.path, exc_info=error)
    return _response(request.url.path, "internal error: see the pod's log", _OWN_FAULT, None)


def _response(
    path: str, message: str, answer: _Answer, parameter: str | None, extra: Mapping[str, str] | None = None
) -> ErrorResponse:
    body = _envelope(message, answer, parameter, lorax=path in LORAX_PATHS)
    headers = dict(extra or {})
    if answer.retry_after_s is not None:
        headers["Retry-After"] = str(answer.retry_after_s)
    if not answer.may_repeat:
        headers["X-Should-Retry"] = "false"
    if answer.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return ErrorResponse(body, answer, headers)


def _envelope(message: str, answer: _Answer, parameter: str | None, *, lorax: bool) -> dict[str, Any]:
    told = _sendable(message)
    if lorax:
        return {"error": told, "error_type": answer.lorax_kind}
    return {"error": {"message": told, "type": answer.kind, "param": parameter, "code": answer.status}}


def _sendable(message: str) -> str:
    """A message that may repeat what was sent: JSON may write half of a surrogate pair, which UTF-8 cannot."""
    return message.encode(errors="backslashreplace").decode()


def _parameter(error: Exception) -> str | None:
    if isinstance(error, InvalidRequest):
        return error.field
    return "variables" if isinstance(error, InvalidTemplate) else None
