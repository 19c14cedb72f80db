"""Turn exceptions into error responses: a status, a code and a sentence."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from e3d_deploy.errors import ClipError, ConfigError, E3DError, ResourceLimit, ShapeError, SourceLost

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5
"""Value of the header Retry-After: time after which a client may retry (s)."""
STATUSES: dict[type[E3DError], tuple[int, str]] = {
    ConfigError: (422, "invalid"),
    ShapeError: (422, "shape"),
    ClipError: (422, "unreadable"),
    SourceLost: (422, "damaged"),
    ResourceLimit: (503, "full"),
}
"""HTTP status and code for each class of error; every class that is not listed becomes status 500."""


class ErrorDetail(BaseModel):
    code: str
    """Machine-readable reason, one word."""
    message: str
    """Reason as a sentence for people."""


class ErrorAnswer(BaseModel):
    """Body of every error response."""

    error: ErrorDetail


class Problem(Exception):
    """Exception that becomes an error response.

    Args:
        status: HTTP status.
        code: machine-readable reason, one word.
        message: reason as a sentence for people.
        retry: True if the same request may succeed later; adds the header Retry-After.
    """

    def __init__(self, status: int, code: str, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry = status, code, message, retry


def response_of(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the error response for a problem."""
    found = dict(headers or {})
    if problem.retry:
        found["Retry-After"] = str(RETRY_AFTER_S)
    if problem.status == 401:
        found["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": {"code": problem.code, "message": problem.message}}, problem.status, headers=found)


def problem_of(error: Exception, names: Mapping[str, str] | None = None) -> Problem:
    """Return the problem that describes an exception to clients; log unexpected exceptions.

    Args:
        names: names that replace paths of the server in the message.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, E3DError):
        for kind, (status, code) in STATUSES.items():
            if isinstance(error, kind):
                return Problem(status, code, _named(str(error), names), retry=status == 503)
    log.error("%s: %s", type(error).__name__, error, exc_info=log.isEnabledFor(logging.DEBUG))
    return Problem(500, "internal", "the server failed; see its log")


def _named(message: str, names: Mapping[str, str] | None) -> str:
    for path in sorted(names or {}, key=len, reverse=True):
        message = message.replace(path, (names or {})[path])
    return message


def openapi_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of error responses."""
    return {status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase} for status in statuses}


def install(app: FastAPI) -> None:
    """Make an application turn every exception into an error response."""

    def counted(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
        app.state.service.metrics.errors.labels(problem.code).inc()
        return response_of(problem, headers)

    async def on_error(_: Request, error: Exception) -> JSONResponse:
        return counted(problem_of(error))

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_")
        return counted(Problem(error.status_code, code, str(error.detail)), error.headers)

    async def on_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        found = error.errors()[0]
        place = ".".join(str(part) for part in found["loc"])
        return counted(Problem(422, "invalid", f"{place}: {found['msg']}"))

    for kind in (Problem, E3DError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_error)
