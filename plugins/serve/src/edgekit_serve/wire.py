"""Errors in the form of OpenAI's API, and the mapping from edgekit's errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from edgekit.errors import ContextOverflowError, EdgekitError, InvalidFileError, ResourceError, UsageError

#: A JSON object.
Json = dict[str, Any]
#: Messages that replace an error's own message, which may name files or Python objects.
_TOO_LONG = "the prompt and what is to follow do not fit the model's context; shorten it"
_REFUSED = "the model refuses this request; the server's log says where"
_TEMPLATE = "the model's chat template fails on these messages"
#: Headers of every answer: no caching, no guessing of the content type.
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class ApiError(Exception):
    """An error response.

    Attributes:
        status: the HTTP status.
        message: the text for the user.
        code: the code for programs, such as ``context_length_exceeded``.
        param: the name of the invalid field, or None.
        headers: further headers.
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
        self.status, self.code = status, code
        self.message, self.param = unicode(message), None if param is None else unicode(param)
        self.headers = {**HEADERS, **(headers or {})}

    def body(self) -> Json:
        """Return the error in the form of OpenAI's API."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic_body(self) -> Json:
        """Return the error in the form of Anthropic's API."""
        kinds = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
        kinds |= {413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def response(self, *, anthropic: bool = False) -> JSONResponse:
        """Return the response in the form of OpenAI's or Anthropic's API."""
        return JSONResponse(self.anthropic_body() if anthropic else self.body(), self.status, self.headers)


def unicode(text: str) -> str:
    """Return a text that can be encoded as UTF-8: half of a surrogate pair stays escaped, as in JSON."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class ClientGoneError(Exception):
    """The client disconnected before the answer."""


def refused(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Return an error 400: the request is invalid or unsupported."""
    return ApiError(400, message, code, param=param)


def of(error: BaseException, *, well: bool) -> ApiError:
    """Return the response for an error of the runtime.

    Args:
        error: as it was raised.
        well: whether the model still computes. If so, a failing chat template is reported as an error of the client's
            messages.
    """
    match error:
        case ApiError():
            return error
        case ContextOverflowError():
            return refused(error.public or _TOO_LONG, code="context_length_exceeded")
        case UsageError():
            return refused(error.public or _REFUSED)
        case InvalidFileError() if well:
            return refused(error.public or _TEMPLATE, "messages", "template_failed")
        case ResourceError() | MemoryError():
            return ApiError(503, "out of memory or another resource; ask for less", "out_of_resources")
        case EdgekitError():
            return ApiError(500, f"the model cannot compute this: {type(error).__name__}", "model_error")
    return ApiError(500, "an internal error; the server's log says where", "internal_error")


__all__ = ["HEADERS", "ApiError", "ClientGoneError", "Json", "of", "refused", "unicode"]
