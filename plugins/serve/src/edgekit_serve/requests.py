"""Checks the requests of clients: the part of OpenAI's API that a runtime supports.

Of OpenAI's parameters some are used; some have no effect on a local server and are ignored; some are accepted only with
the value that describes this server (``min_tokens=0``). Any other parameter is refused, or ignored by a lenient server.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Self

import attrs

from edgekit.runtime.chat import ROLES
from edgekit_serve.fields import Fields, is_id, shown
from edgekit_serve.settings import Settings
from edgekit_serve.wire import ApiError, Json, refused

#: Fields without effect: accounting on OpenAI's platform, and cache options of other servers.
IGNORED = (
    "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "cache_prompt", "priority", "request_id",
)  # fmt: skip
#: Fields that are accepted only with the values that describe this server.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "bad_words": ([],),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
}
MOST_TOKENS, MOST_STOPS, LONGEST_STOP, MOST_INPUTS, LARGEST_SEED = 1 << 24, 16, 256, 256, (1 << 63) - 1
#: Largest numbers of prompts in a completion, of texts per prompt, of alternatives per token; the largest token id.
MOST_PROMPTS, MOST_CHOICES, MOST_SCORES, LARGEST_ID = 64, 16, 20, (1 << 31) - 1
#: Largest scale of an adapter.
LARGEST_SCALE = 100.0
#: Default of ``max_tokens`` for completions, as in OpenAI's API.
COMPLETION_TOKENS = 16
#: A prompt: a text, or a list of token ids.
Prompt = str | list[int]


@attrs.frozen
class AnswerOptions:
    """Generation options, independent of the prompt.

    Attributes:
        max_tokens: largest number of tokens in a text; None for the rest of the context.
        asked: whether the client set `max_tokens`; if not, it is reduced if the context is too short.
        options: the other keyword arguments of `edgekit.runtime.Runtime.stream`.
        stream: whether to send pieces when they are generated.
        usage: whether a stream ends with token counts.
        choices: number of texts per prompt.
        lora: the adapters to compute with, by name, and the scale of each.
    """

    max_tokens: int | None
    asked: bool
    options: Json
    stream: bool
    usage: bool
    choices: int = 1
    lora: Mapping[str, float] = attrs.field(factory=dict)

    @classmethod
    def of(cls, fields: Fields, settings: Settings, default: int | None, *, least: int = 1) -> Self:
        """Read the fields that all requests for text share, and raise `ApiError` for fields that are left."""
        tokens = fields.integer("max_tokens", least, settings.max_tokens or MOST_TOKENS)
        most = [limit for limit in (default, settings.max_tokens) if limit is not None]
        allowed = min(most, default=None) if tokens is None else tokens
        stream, choices = fields.flag("stream"), fields.integer("n", 1, MOST_CHOICES) or 1
        fields.only("best_of", choices)
        chosen, lora = options(fields), adapters(fields, settings)
        self = cls(allowed, tokens is not None, chosen, stream, _usage(fields, stream), choices, lora)
        finish(fields)
        return self

    def of_choice(self, number: int) -> Json:
        """Return the options of the text with an index among those of a prompt: each has its own seed."""
        return {**self.options, "seed": (self.options["seed"] + number) & LARGEST_SEED}


@attrs.frozen
class CompletionRequest:
    """A request of ``/v1/completions``: prompts to continue."""

    prompts: list[Prompt] = attrs.field(repr=False)
    requested: AnswerOptions
    echo: bool = False

    @classmethod
    def of(cls, given: Json, settings: Settings) -> Self:
        """Return the request of a parsed body; raises `ApiError` if a field is invalid or unsupported."""
        fields = Fields(given, settings.lenient)
        model(fields, settings)
        prompts = _prompts(fields.take("prompt"), "prompt", MOST_PROMPTS)
        echo, count = fields.flag("echo"), fields.integer("logprobs", 0, MOST_SCORES)
        requested = AnswerOptions.of(fields, settings, COMPLETION_TOKENS, least=0)
        if count is not None:
            requested.options["logprobs"] = count
        return cls(prompts, requested, echo)


@attrs.frozen
class ChatRequest:
    """A request of ``/v1/chat/completions``: a conversation to answer.

    Attributes:
        messages: the messages of the conversation.
        requested: the generation options.
        reply: further keyword arguments of `edgekit.runtime.ReplyingRuntime.reply`, without those that have their
            default values.
    """

    messages: list[Json] = attrs.field(repr=False)
    requested: AnswerOptions
    reply: Json = attrs.field(factory=dict, repr=False)

    @classmethod
    def of(cls, given: Json, settings: Settings) -> Self:
        """Return the request of a parsed body; raises `ApiError` if a field is invalid or unsupported."""
        fields = Fields(given, settings.lenient)
        model(fields, settings)
        messages = messages_of(fields.take("messages"), "messages")
        scores = fields.flag("logprobs")
        count = fields.integer("top_logprobs", 0, MOST_SCORES)
        if count and not scores:
            raise refused("top_logprobs goes with logprobs true", "top_logprobs")
        reply = reply_of(fields)
        fields.rename("max_completion_tokens", "max_tokens")
        requested = AnswerOptions.of(fields, settings, None)
        if scores:
            requested.options["logprobs"] = count or 0
        return cls(messages, requested, reply)


@attrs.frozen
class EmbeddingRequest:
    """A request of ``/v1/embeddings``: texts to embed."""

    texts: list[Prompt] = attrs.field(repr=False)
    base64: bool
    dimensions: int | None = None
    lora: Mapping[str, float] = attrs.field(factory=dict)

    @classmethod
    def of(cls, given: Json, settings: Settings) -> Self:
        """Return the request of a parsed body; raises `ApiError` if a field is invalid or unsupported."""
        fields = Fields(given, settings.lenient)
        model(fields, settings)
        texts = _prompts(fields.take("input"), "input", MOST_INPUTS)
        form = fields.take("encoding_format")
        if form not in (None, "float", "base64"):
            raise refused("encoding_format must be float or base64", "encoding_format")
        dimensions, lora = fields.integer("dimensions", 1, 1 << 20), adapters(fields, settings)
        fields.ignore(IGNORED)
        fields.done()
        return cls(texts, form == "base64", dimensions, lora)


def finish(fields: Fields) -> None:
    """Raise `ApiError` if fields are left, other than those without effect."""
    for name, meanings in NEUTRAL.items():
        fields.only(name, *meanings)
    fields.ignore(IGNORED)
    fields.done()


def model(fields: Fields, settings: Settings) -> None:
    """Read the field ``model``, and raise `ApiError` 404 if it names another model than the server's.

    The name of an adapter stands for the model with that adapter.
    """
    name = fields.text("model")
    if name in settings.adapters:
        fields.default("lora", [{"id": name, "scale": 1.0}])
    elif name is not None and name != settings.model:
        there = ", ".join(map(repr, (settings.model, *settings.adapters)))
        raise ApiError(
            404, f"the model {name[:80]!r} is not here; this server has {there}", "model_not_found", param="model"
        )


def adapters(fields: Fields, settings: Settings) -> dict[str, float]:
    """Read the field ``lora`` as llama-server has it, and return the scales of adapters by name.

    Each entry has an ``id``, the number of an adapter or its name, and a ``scale``.
    """
    given, names = fields.take("lora"), settings.adapters
    if given and not names:
        raise refused("lora is given, and this server has no adapters", "lora", "unsupported_value")
    if not isinstance(given, list | None) or len(given or ()) > len(names):
        raise refused(f"lora is {shown(given)}; it must be a list of at most {len(names)} adapters", "lora")
    return dict(_adapter(entry, f"lora[{number}]", names) for number, entry in enumerate(given or ()))


def _adapter(entry: Any, where: str, names: Sequence[str]) -> tuple[str, float]:
    fields = Fields(entry if isinstance(entry, dict) else {})
    number, scale = fields.take("id"), fields.number("scale", -LARGEST_SCALE, LARGEST_SCALE)
    name = names[number] if is_id(number, len(names) - 1) else number
    if name not in names or scale is None:
        there = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        raise refused(f"{where} is {shown(entry)}; it must have a scale, and the id of one of {there}", where)
    fields.done()
    return name, scale


def _prompts(given: Any, name: str, most: int) -> list[Prompt]:
    """Return the prompts of a field that is a text, a list of texts, a list of token ids, or a list of such lists."""
    parsed = [given] if isinstance(given, str) or _are_ids(given) else given
    if isinstance(parsed, list) and 0 < len(parsed) <= most and all(map(_is_prompt, parsed)):
        return parsed
    if isinstance(parsed, list) and len(parsed) > most:
        raise refused(f"{name} has {len(parsed)} entries; at most {most} are supported", name)
    raise refused(f"{name} must be a text, token ids, or a list of at most {most} of either, none of them empty", name)


def _is_prompt(value: Any) -> bool:
    return (isinstance(value, str) and bool(value)) or _are_ids(value)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_id(each, LARGEST_ID) for each in value)


def options(fields: Fields) -> Json:
    """Return the sampling options, stop texts and constraints of a request as keyword arguments of `stream`."""
    temperature = fields.number("temperature", 0, 2)
    top_p = fields.number("top_p", 0, 1, above=True)
    top_k = fields.integer("top_k", -1, 1 << 20)  # -1 for all, as vLLM has it
    seed = fields.integer("seed", -LARGEST_SEED, LARGEST_SEED)
    fields.rename("repeat_penalty", "repetition_penalty")  # the name in llama.cpp
    parsed: Json = {
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": 1.0 if top_p is None else top_p,
        "top_k": max(0, top_k or 0),
        "seed": secrets.randbits(32) if seed is None else seed & LARGEST_SEED,
        "stop": tuple(fields.texts("stop", MOST_STOPS, LONGEST_STOP)),
    }
    further = {
        "min_p": fields.number("min_p", 0, 1),
        "repetition_penalty": fields.number("repetition_penalty", 0, 100, above=True),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "logit_bias": _biases(fields),
        "stop_token_ids": fields.integers("stop_token_ids", 64, LARGEST_ID),
        **_followed(fields),
    }
    neutral = {"repetition_penalty": 1.0}
    return parsed | {name: value for name, value in further.items() if value and value != neutral.get(name)}


def _biases(fields: Fields) -> dict[str, float]:
    given = fields.object("logit_bias") or {}
    for token, value in given.items():
        right = isinstance(value, int | float) and not isinstance(value, bool) and -100 <= value <= 100
        if not (right and token.isascii() and token.isdigit() and len(token) < 10):
            raise refused("logit_bias must map token ids to numbers from -100 to 100", "logit_bias")
    if len(given) > 1024:
        raise refused(f"logit_bias has {len(given)} entries; at most 1024 are supported", "logit_bias")
    return given


def _followed(fields: Fields) -> Json:
    """Return the constraint on the text: a JSON schema, a regular expression or a grammar; None for absent ones."""
    parsed: Json = {"regex": fields.text("regex"), "grammar": fields.text("grammar")}
    return parsed | format_of(fields.object("response_format"), "response_format")


def format_of(given: Json | None, where: str) -> Json:
    """Return the option for a response format: ``json_schema``, or none for plain text.

    Raises:
        ApiError: 400; the format is malformed or unsupported.
    """
    match given or {"type": "text"}:
        case {"type": "text"}:
            return {}
        case {"type": "json_object"}:
            return {"json_schema": {"type": "object"}}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}} | {
            "type": "json_schema",
            "schema": dict(schema),
        }:
            return {"json_schema": schema}
        case {"type": "json_schema"}:
            raise refused(f"{where} of type json_schema must have a json_schema with a schema, an object", where)
    raise ApiError(
        400,
        f"{where} is {shown(given)}; its type must be text, json_object or json_schema",
        "unsupported_value",
        param=where,
    )


def reply_of(fields: Fields) -> Json:
    """Return the options of a chat as keyword arguments of `reply`: tools, reasoning, template variables."""
    tools, choice, parallel = fields.take("tools"), fields.take("tool_choice"), fields.take("parallel_tool_calls")
    effort, variables = fields.text("reasoning_effort"), fields.object("chat_template_kwargs")
    if not isinstance(tools, list | None):
        raise refused(f"tools is {shown(tools)}; it must be a list", "tools")
    if not isinstance(parallel, bool | None):
        raise refused(f"parallel_tool_calls is {shown(parallel)}; it must be true or false", "parallel_tool_calls")
    if not tools and choice not in (None, "none", "auto"):
        raise refused("tool_choice demands a call, and there are no tools", "tool_choice")
    efforts = ("none", "minimal", "low", "medium", "high", "xhigh")
    if effort is not None and effort not in efforts:
        raise refused(
            f"reasoning_effort is {shown(effort)}; it must be one of {', '.join(efforts)}", "reasoning_effort"
        )
    on = fields.flag("continue_final_message")
    fields.only("add_generation_prompt", not on)
    parsed = {
        "tools": tools if choice != "none" else None,
        "tool_choice": choice if tools else None,
        "parallel_tool_calls": False if parallel is False and tools else None,
        "reasoning_effort": effort,
        "template_variables": variables,
        "continue_final": on or None,
    }
    return {name: value for name, value in parsed.items() if value not in (None, [], {})}


def _usage(fields: Fields, stream: bool) -> bool:
    given = fields.take("stream_options")
    if given is None:
        return False
    if not stream or not isinstance(given, dict):
        raise refused("stream_options must be an object, and goes with stream", "stream_options")
    inner = Fields(given, fields.lenient)
    usage = inner.flag("include_usage")
    inner.ignore(["include_obfuscation", "continuous_usage_stats"])
    inner.done()
    return usage


def messages_of(messages: Any, where: str) -> list[Json]:
    """Return the checked messages of a conversation.

    Raises:
        ApiError: 400; a message is malformed or has unsupported content.
    """
    if not isinstance(messages, list) or not messages:
        raise refused(f"{where} must be a list of at least one message", where)
    return [_message(message, f"{where}[{number}]") for number, message in enumerate(messages)]


def _message(message: Any, where: str) -> Json:
    """Return a message for templates: a role, a text, and the fields of tool calls."""
    if not isinstance(message, dict):
        raise refused(f"{where} must be an object with a role and a content", where)
    fields = Fields(message)
    role = fields.text("role")
    if role not in ROLES:
        raise refused(f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
    content = fields.take("content")
    if content is None and role == "assistant":  # a message with tool calls, or an empty one
        content = ""
    parsed: Json = {"role": role, "content": content_of(content, f"{where}.content")}
    parsed |= {"name": fields.text("name"), "tool_calls": _calls(fields, where) if role == "assistant" else None}
    parsed["tool_call_id"] = fields.text("tool_call_id") if role == "tool" else None
    if role == "assistant":
        parsed["reasoning_content"] = fields.text("reasoning_content") or fields.text("reasoning")
    fields.only("annotations", [])  # part of an earlier answer, as OpenAI's client sends it back
    fields.ignore(["parsed"])  # the parsed answer, which the client's schema helper sends back
    fields.done()
    return {name: value for name, value in parsed.items() if value is not None}


def _calls(fields: Fields, where: str) -> list[Json] | None:
    """Return the tool calls of an assistant's earlier message; None if there are none."""
    calls = fields.take("tool_calls")
    if not isinstance(calls, list | None):
        raise refused(f"{where}.tool_calls must be a list", f"{where}.tool_calls")
    return [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls or ())] or None


def _call(call: Any, where: str) -> Json:
    match call:
        case {"id": str(number), "type": "function", "function": {"name": str(name), "arguments": str(text)}}:
            return {"id": number, "type": "function", "function": {"name": name, "arguments": _arguments(text)}}
    raise refused(f"{where} must be an object with id, type function, and function: its name and arguments", where)


def _arguments(text: str) -> Any:
    """Return the object that a text describes, if it does: templates write objects as JSON, but would quote a text."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return parsed if isinstance(parsed, dict) else text


def content_of(content: Any, where: str, kinds: tuple[str, ...] = ("text",)) -> str:
    """Return a text, or the joined texts of a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise refused(f"{where} must be a text, or a list of parts that are texts", where)
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in kinds or not isinstance(part.get("text"), str):
            raise ApiError(
                400, f"{where}: only parts of type {kinds[0]} are supported", "unsupported_value", param=where
            )
    return "".join(part["text"] for part in content)


__all__ = [
    "COMPLETION_TOKENS",
    "IGNORED",
    "LARGEST_ID",
    "LARGEST_SCALE",
    "LARGEST_SEED",
    "LONGEST_STOP",
    "MOST_CHOICES",
    "MOST_INPUTS",
    "MOST_PROMPTS",
    "MOST_SCORES",
    "MOST_STOPS",
    "MOST_TOKENS",
    "NEUTRAL",
    "AnswerOptions",
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "Prompt",
    "adapters",
    "content_of",
    "finish",
    "format_of",
    "messages_of",
    "model",
    "options",
    "reply_of",
]
