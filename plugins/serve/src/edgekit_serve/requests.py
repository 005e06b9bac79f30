"""Requests of clients: the part of OpenAI's API that a runtime supports.

Of OpenAI's many parameters some are used, some change nothing here and are ignored, some have one value that means the
same here (``n=1``), and any other parameter is refused.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, Self

import attrs

from edgekit.runtime.chat import ROLES
from edgekit_serve.fields import Fields
from edgekit_serve.settings import Settings
from edgekit_serve.wire import ApiError, refused

#: Change nothing: bookkeeping of OpenAI's platform.
IGNORED = (
    "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "parallel_tool_calls",
)  # fmt: skip
#: Have one value that means what this server does.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "top_logprobs": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
MOST_TOKENS, MOST_STOPS, LONGEST_STOP, MOST_INPUTS, LARGEST_SEED = 1 << 24, 4, 256, 256, (1 << 63) - 1
#: What a completion gets that does not say; as OpenAI's.
COMPLETION_TOKENS = 16


@attrs.frozen
class AnswerOptions:
    """Generation options, independent of the prompt.

    Attributes:
        max_tokens: at most so many; None for as many as the context has room for.
        asked: whether the client said so; else fewer will do where the context is too short.
        options: the other keyword arguments of `edgekit.runtime.Runtime.stream`.
        stream: whether pieces are sent as they come.
        usage: whether a stream ends with the tokens counted.
    """

    max_tokens: int | None
    asked: bool
    options: dict[str, Any]
    stream: bool
    usage: bool

    @classmethod
    def of(cls, fields: Fields, settings: Settings, default: int | None) -> Self:
        """Read the fields that all requests for text share, and refuse the rest."""
        tokens = fields.integer("max_tokens", 1, settings.max_tokens or MOST_TOKENS)
        most = [limit for limit in (default, settings.max_tokens) if limit is not None]
        allowed = min(most, default=None) if tokens is None else tokens
        stream = fields.flag("stream")
        self = cls(allowed, tokens is not None, _options(fields), stream, _usage(fields, stream))
        for name, meanings in NEUTRAL.items():
            fields.only(name, *meanings)
        fields.ignore(IGNORED)
        fields.done()
        return self


@attrs.frozen
class CompletionRequest:
    """Continue a text."""

    prompt: str = attrs.field(repr=False)
    requested: AnswerOptions

    @classmethod
    def of(cls, given: dict[str, Any], settings: Settings) -> Self:
        """Check a body; raises `ApiError`."""
        fields = Fields(given)
        _model(fields, settings)
        prompt = fields.take("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            (prompt,) = prompt
        if not isinstance(prompt, str) or not prompt:
            raise refused("prompt must be one text, not empty; lists and token ids are not supported", "prompt")
        fields.only("logprobs")
        return cls(prompt, AnswerOptions.of(fields, settings, COMPLETION_TOKENS))


@attrs.frozen
class ChatRequest:
    """Answer a conversation."""

    messages: list[dict[str, Any]] = attrs.field(repr=False)
    requested: AnswerOptions

    @classmethod
    def of(cls, given: dict[str, Any], settings: Settings) -> Self:
        """Check a body; raises `ApiError`."""
        fields = Fields(given)
        _model(fields, settings)
        messages = fields.take("messages")
        if not isinstance(messages, list) or not messages:
            raise refused("messages must be a list of at least one message", "messages")
        fields.only("logprobs", False)
        fields.rename("max_completion_tokens", "max_tokens")
        return cls(
            [_message(m, f"messages[{i}]") for i, m in enumerate(messages)], AnswerOptions.of(fields, settings, None)
        )


@attrs.frozen
class EmbeddingRequest:
    """Make vectors of texts."""

    texts: list[str] = attrs.field(repr=False)
    base64: bool

    @classmethod
    def of(cls, given: dict[str, Any], settings: Settings) -> Self:
        """Check a body; raises `ApiError`."""
        fields = Fields(given)
        _model(fields, settings)
        texts = fields.texts("input", MOST_INPUTS, settings.max_body)
        if not texts:
            raise refused(f"input must be a text, or a list of at most {MOST_INPUTS}", "input")
        form = fields.take("encoding_format")
        if form not in (None, "float", "base64"):
            raise refused("encoding_format must be float or base64", "encoding_format")
        fields.only("dimensions")
        fields.ignore(IGNORED)
        fields.done()
        return cls(texts, form == "base64")


def _model(fields: Fields, settings: Settings) -> None:
    name = fields.text("model")
    if name is not None and name != settings.model:
        raise ApiError(
            404,
            f"the model {name[:80]!r} is not here; this server has {settings.model!r}",
            "model_not_found",
            param="model",
        )


def _options(fields: Fields) -> dict[str, Any]:
    temperature = fields.number("temperature", 0, 2)
    top_p = fields.number("top_p", 0, 1, above=True)
    seed = fields.integer("seed", -LARGEST_SEED, LARGEST_SEED)
    return {
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": 1.0 if top_p is None else top_p,
        "top_k": fields.integer("top_k", 0, 1 << 20) or 0,
        "seed": secrets.randbits(32) if seed is None else seed & LARGEST_SEED,
        "stop": tuple(fields.texts("stop", MOST_STOPS, LONGEST_STOP)),
    }


def _usage(fields: Fields, stream: bool) -> bool:
    options = fields.take("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict):
        raise refused("stream_options must be an object, and goes with stream", "stream_options")
    inner = Fields(options)
    usage = inner.flag("include_usage")
    inner.ignore(["include_obfuscation"])
    inner.done()
    return usage


def _message(message: Any, where: str) -> dict[str, Any]:
    """A message as templates get it: a role, a text, and what belongs to a call of a tool."""
    if not isinstance(message, dict):
        raise refused(f"{where} must be an object with a role and a content", where)
    fields = Fields(message)
    role = fields.text("role")
    if role not in ROLES:
        raise refused(f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
    content = fields.take("content")
    if content is None and role == "assistant":  # it called tools, or said nothing
        content = ""
    parsed: dict[str, Any] = {"role": role, "content": _content(content, f"{where}.content")}
    parsed |= {"name": fields.text("name"), "tool_calls": _calls(fields, where) if role == "assistant" else None}
    parsed["tool_call_id"] = fields.text("tool_call_id") if role == "tool" else None
    fields.only("annotations", [])  # of an answer with quotations, as OpenAI's client hands it back
    fields.done()
    return {name: value for name, value in parsed.items() if value is not None}


def _calls(fields: Fields, where: str) -> list[dict[str, Any]] | None:
    """The calls of tools that an assistant's earlier message has; None for none."""
    calls = fields.take("tool_calls")
    if not isinstance(calls, list | None):
        raise refused(f"{where}.tool_calls must be a list", f"{where}.tool_calls")
    return [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls or ())] or None


def _call(call: Any, where: str) -> dict[str, Any]:
    match call:
        case {"id": str(number), "type": "function", "function": {"name": str(name), "arguments": str(text)}}:
            return {"id": number, "type": "function", "function": {"name": name, "arguments": _arguments(text)}}
    raise refused(f"{where} must be an object with id, type function, and function: its name and arguments", where)


def _arguments(text: str) -> Any:
    """An object where the text is one: templates write it as JSON, and would quote a text."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return parsed if isinstance(parsed, dict) else text


def _content(content: Any, where: str) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise refused(f"{where} must be a text, or a list of parts that are texts", where)
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(400, f"{where}: only parts of type text are supported", "unsupported_value", param=where)
    return "".join(part["text"] for part in content)


__all__ = [
    "COMPLETION_TOKENS",
    "IGNORED",
    "LARGEST_SEED",
    "LONGEST_STOP",
    "MOST_INPUTS",
    "MOST_STOPS",
    "MOST_TOKENS",
    "NEUTRAL",
    "AnswerOptions",
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingRequest",
]
