"""Every error in OpenAI's envelope: {"error": {"message", "type", "param", "code"}}."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.engine.protocol import EngineBusy
from sid_builder.errors import InputError

_TRIED = ("str", "int")
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal with its HTTP status; `param` names the field at fault, `code` is for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def envelope(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """The response that carries an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    error = {"message": _whole(message), "type": kind, "param": param and _whole(param), "code": code}
    return JSONResponse({"error": error}, status, headers)


def _whole(text: str) -> str:
    """Without halves of characters, which JSON may hold and UTF-8 cannot."""
    return text.encode(errors="backslashreplace").decode()


def install(app: FastAPI) -> None:
    """Turn everything that routes raise into envelopes."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(InputError, _input_error)
    app.add_exception_handler(EngineBusy, _busy)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _api_error(_: Request, error: Any) -> JSONResponse:
    return envelope(error.status, error.message, error.param, error.code)


async def _input_error(_: Request, error: Exception) -> JSONResponse:
    message = str(error)
    return envelope(400, message, message.partition(":")[0])


async def _busy(_: Request, error: Exception) -> JSONResponse:
    return envelope(429, str(error), code="engine_busy")


async def _validation(_: Request, error: Any) -> JSONResponse:
    """The first of pydantic's complaints, in one line that names the field and the value."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return envelope(400, "body: is no valid JSON; send a JSON object", "body")
    unknown = first["type"] == "extra_forbidden"
    param = _param(first["loc"][1:-1]) + "." + first["loc"][-1] if unknown else _param(first["loc"][1:])
    param = param.lstrip(".") or "body"
    if unknown:
        return envelope(400, f"{param}: is no field of this route; see /openapi.json", param)
    if first["type"] == "missing":
        return envelope(400, f"{param}: is missing; add it", param)
    reason = first["msg"].removeprefix("Value error, ")
    return envelope(400, f"{param}: {reason}; got {repr(first.get('input'))[:80]}", param)


def _param(place: Sequence[str | int]) -> str:
    """messages[0].content for pydantic's place, which also names the types that were tried."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place if part not in _TRIED]
    return "".join(part for part in parts if part[0] == "[" or part[1:].isidentifier()).lstrip(".")


async def _http(request: Request, error: Any) -> JSONResponse:
    if error.status_code == 400:  # FastAPI could not read the body
        return envelope(400, "body: cannot be read; send a JSON object in UTF-8", "body")
    where = f"{request.method} {request.url.path[:200]}"
    messages = {404: f"{where}: there is no such route", 405: f"{where}: the route has other methods"}
    return envelope(error.status_code, messages.get(error.status_code, str(error.detail)))


async def _unexpected(_: Request, error: Exception) -> JSONResponse:
    """What went wrong inside stands in the log and not in the answer."""
    return envelope(500, "the server failed at this request; its log says more")
