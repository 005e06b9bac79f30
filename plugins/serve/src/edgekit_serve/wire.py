"""Errors as OpenAI's API has them, and what each of edgekit's becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from edgekit.errors import ContextOverflowError, EdgekitError, InvalidFileError, ResourceError, UsageError

#: What every answer carries: it belongs to one client, and is what it says.
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        message: for people.
        code: for programs, ``context_length_exceeded``.
        param: the request's field that is wrong, or None.
        headers: besides the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {**HEADERS, **(headers or {})}

    def body(self) -> dict[str, Any]:
        """The object that OpenAI's clients understand."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


class ClientGoneError(Exception):
    """The client hung up; nobody is there to be answered."""


def refused(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: what the client sent cannot be done."""
    return ApiError(400, message, code, param=param)


def of(error: BaseException, *, well: bool) -> ApiError:
    """What an error of the runtime becomes on the wire.

    Args:
        error: as it was raised.
        well: whether the model still computes; a chat template that fails on these messages is then the client's to
            change, and nothing else is.
    """
    match error:
        case ApiError():
            return error
        case ContextOverflowError():
            return refused(str(error), code="context_length_exceeded")
        case UsageError():
            return refused(str(error))
        case InvalidFileError() if well:
            return refused(str(error), "messages", "template_failed")
        case ResourceError() | MemoryError():
            return ApiError(503, "out of memory or another resource; ask for less", "out_of_resources")
        case EdgekitError():
            return ApiError(500, f"the model cannot compute this: {type(error).__name__}", "model_error")
    return ApiError(500, "an internal error; the server's log says where", "internal_error")
